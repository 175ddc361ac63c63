"""Blind ratings of reports: kept a line each in `ratings.jsonl`, and summed up by author once they are unblinded."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from radvision_utils.dashboard.record import AUTHORS, Record
from radvision_utils.runs import now

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
    lines = "".join(
        json.dumps(
            {
                "uid": record.uid,
                "run": model.run,
                "stage": model.stage,
                "author": author,
                "shown_as": letter,
                "score": score,
                "comment": comment,
                "time": time,
            },
            ensure_ascii=False,
        )
        + "\n"
        for letter, author, score in zip("AB", order, scores, strict=True)
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as stream:
        stream.seek(0, os.SEEK_END)
        if stream.tell():
            stream.seek(-1, os.SEEK_END)
            lines = lines if stream.read(1) == b"\n" else "\n" + lines  # a crash tore the last line
        stream.write(lines.encode())
        stream.flush()
        os.fsync(stream.fileno())


def read_ratings(path: Path) -> list[dict[str, Any]]:
    """The latest rating of each study, stage and author; a line torn by a crash is left out."""
    latest: dict[tuple[str, int, str], dict[str, Any]] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            rating = json.loads(line)
        except json.JSONDecodeError:
            continue  # append-only: nothing but a torn line can be unreadable, and its ratings were never confirmed
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
