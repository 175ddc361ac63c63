"""Blind ratings of reports: kept a line each in `ratings.jsonl`, and summed up by author once they are unblinded."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from itertools import combinations
from pathlib import Path
from typing import Any

from radvision_utils.dashboard.record import AUTHORS, Record
from radvision_utils.files import append_json_lines, read_json_lines, write_json_lines
from radvision_utils.runs import now

SCORES = (1, 2, 3, 4, 5)  # 1: unusable, 5: as good as it gets
ERRORS = ("no error", "finding invented", "finding missed", "wrong place", "wrong severity", "other")
"""The worst error of a report."""


def add_ratings(
    path: Path,
    record: Record,
    order: tuple[str, str],
    scores: tuple[int, int],
    comment: str,
    errors: tuple[str, str] = (ERRORS[0], ERRORS[0]),
    rater: str = "",
) -> None:
    """Append a study's two ratings; they are on the disk when this returns.

    Args:
        path: the file; made where it is missing.
        record: the rated prediction.
        order: the authors ("generated", "reference") of reports A and B.
        scores: of A and B, 1 to 5.
        comment: on both.
        errors: the worst of A and of B, of `ERRORS`.
        rater: who rates.
    """
    study = {"uid": record.uid, "run": record.model.run, "stage": record.stage}
    told = {"rater": rater, "comment": comment, "time": now()}
    rated = [
        {**study, "author": author, "shown_as": letter, "score": score, "error": error, **told}
        for letter, author, score, error in zip("AB", order, scores, errors, strict=True)
    ]
    if path.is_file() and not path.read_bytes().endswith(b"\n"):  # a crash tore the last line
        write_json_lines(path, read_json_lines(path, torn=True))
    append_json_lines(path, *rated)


def read_ratings(path: Path) -> list[dict[str, Any]]:
    """The latest rating of each study, stage, author and rater; a line torn by a crash is left out."""
    latest: dict[tuple[str, ...], dict[str, Any]] = {}
    shape = {"uid": str, "stage": int, "author": str, "score": int, "error": str, "rater": str}
    for rating in read_json_lines(path, shape, torn=True) if path.is_file() else []:
        latest[rating["uid"], str(rating["stage"]), rating["author"], rating["rater"]] = rating
    return list(latest.values())


def agreement(ratings: Iterable[Mapping[str, Any]]) -> dict[str, float] | None:
    """How far raters agree on the reports that several of them rated; None where there are none.

    Returns:
        pairs: of ratings of one report; same, near: the share that is equal, and at most 1 apart; alpha: Krippendorff's
        for intervals, 1 for full agreement, 0 for what chance gives.
    """
    reports: dict[tuple[str, int, str], list[int]] = {}
    for rating in ratings:
        reports.setdefault((rating["uid"], rating["stage"], rating["author"]), []).append(rating["score"])
    shared = [scores for scores in reports.values() if len(scores) > 1]
    apart = [abs(a - b) for scores in shared for a, b in combinations(scores, 2)]
    if not apart:
        return None
    seen = sum(2 * (a - b) ** 2 / (len(s) - 1) for s in shared for a, b in combinations(s, 2)) / sum(map(len, shared))
    every = [score for scores in shared for score in scores]
    chance = sum((a - b) ** 2 for a, b in combinations(every, 2)) / math.comb(len(every), 2)
    shares = {"same": apart.count(0) / len(apart), "near": sum(d < 2 for d in apart) / len(apart)}
    return {"pairs": len(apart), **shares, "alpha": 1 - seen / chance if chance else 1.0}


def summary(ratings: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row an author: ratings, their mean, how often it was rated above the other, with errors, with each score."""
    studies: dict[tuple[str, int, str], dict[str, Mapping[str, Any]]] = {}
    for rating in ratings:
        studies.setdefault((rating["uid"], rating["stage"], rating["rater"]), {})[rating["author"]] = rating
    rows = []
    for author in AUTHORS:
        rated = [study for study in studies.values() if author in study]
        scores = [study[author]["score"] for study in rated]
        if not scores:
            continue
        above = sum(study[author]["score"] > min(r["score"] for r in study.values()) for study in rated)
        wrong = sum(study[author]["error"] != ERRORS[0] for study in rated)
        row = {"author": author.capitalize(), "n": len(scores), "mean": sum(scores) / len(scores), "preferred": above}
        rows.append({**row, "errors": wrong, **{str(score): scores.count(score) for score in SCORES}})
    return rows
