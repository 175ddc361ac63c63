"""Blind ratings of reports: kept a line each in `ratings.jsonl`, and summed up by author once they are unblinded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from radvision_utils.dashboard.record import AUTHORS, Record
from radvision_utils.runs import append_json_lines, now, read_json_lines, write_json_lines

SCORES = (1, 2, 3, 4, 5)  # 1: unusable, 5: as good as it gets


def add_ratings(path: Path, record: Record, order: tuple[str, str], scores: tuple[int, int], comment: str) -> None:
    """Append a study's two ratings; they are on the disk when this returns.

    Args:
        path: the file; made where it is missing.
        record: the rated prediction.
        order: the authors ("generated", "reference") of reports A and B.
        scores: of A and B, 1 to 5.
        comment: on both.
    """
    model, time = record.model, now()
    rated = [
        {
            "uid": record.uid,
            "run": model.run,
            "stage": model.stage,
            "author": author,
            "shown_as": letter,
            "score": score,
            "comment": comment,
            "time": time,
        }
        for letter, author, score in zip("AB", order, scores, strict=True)
    ]
    if path.is_file() and not path.read_bytes().endswith(b"\n"):  # a crash tore the last line
        write_json_lines(path, read_json_lines(path, torn=True))
    append_json_lines(path, *rated)


def read_ratings(path: Path) -> list[dict[str, Any]]:
    """The latest rating of each study, stage and author; a line torn by a crash is left out."""
    latest: dict[tuple[str, int, str], dict[str, Any]] = {}
    shape = {"uid": str, "stage": int, "author": str, "score": int}
    for rating in read_json_lines(path, shape, torn=True) if path.is_file() else []:
        latest[rating["uid"], rating["stage"], rating["author"]] = rating
    return list(latest.values())


def summary(ratings: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row an author: number of ratings, mean, how often each score, how often it was rated above the other."""
    by_study: dict[tuple[str, int], dict[str, int]] = {}
    for rating in ratings:
        by_study.setdefault((rating["uid"], rating["stage"]), {})[rating["author"]] = rating["score"]
    rows = []
    for author in AUTHORS:
        scores = [study[author] for study in by_study.values() if author in study]
        if not scores:
            continue
        above = sum(study[author] > min(study.values()) for study in by_study.values() if author in study)
        rows.append(
            {"author": author.capitalize(), "n": len(scores), "mean": sum(scores) / len(scores), "preferred": above}
            | {str(score): scores.count(score) for score in SCORES}
        )
    return rows
