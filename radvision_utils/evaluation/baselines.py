"""Rows that keep the table honest: reports that need no model, or no look at the image."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from radvision_utils.config import RadVisionError
from radvision_utils.data.reports import Report, clean_section, format_report
from radvision_utils.data.sources import check_columns, csv_columns, csv_lines
from radvision_utils.evaluation.finding_labels import label
from radvision_utils.evaluation.text_metrics import PROTOCOLS, score_texts
from radvision_utils.runs import read_json

CONSTANT = "constant report"
BEST_CONSTANT = "best constant"
RANDOM = "random training report"
NEAREST = "nearest neighbor"
CANDIDATES = 50  # commonest normal training reports that the best constant is chosen from
ROWS = {
    CONSTANT: "the most frequent normal training report, for every study",
    BEST_CONSTANT: f"of the {CANDIDATES} most frequent normal training reports the one that earns most BLEU-4 times "
    "CIDEr-D on validation, for every study",
    RANDOM: "a training report drawn at random for each study",
    NEAREST: "the report of the training image closest in the base's vision encoder (mean token, cosine)",
}


def blind_reports(
    train: Sequence[Report], validation: Sequence[Report], studies: int, seed: int
) -> dict[str, list[Report]]:
    """The rows that never look at an image, one report a study each.

    Args:
        train: training reports.
        validation: reference reports to choose the best constant by.
        studies: how many studies there are to report on.
        seed: of the random row.
    """
    drawn = np.random.default_rng(seed).integers(len(train), size=studies)
    return {
        CONSTANT: [commonest_normal_report(train)] * studies,
        BEST_CONSTANT: [best_constant(train, validation)] * studies,
        RANDOM: [train[i] for i in drawn],
    }


def commonest_normal_report(train: Sequence[Report]) -> Report:
    """The most frequent training report among those that assert nothing abnormal; of equally frequent ones the first.

    Where none is normal it is the most frequent one.
    """
    return next(_normal_reports(train), Counter(train).most_common(1)[0][0])


def best_constant(train: Sequence[Report], validation: Sequence[Report]) -> Report:
    """Of the `CANDIDATES` commonest normal reports the one that earns most as the report of every validation study.

    What it earns is BLEU-4 times CIDEr-D of its findings under R2Gen's normalization. Without a normal training report
    it is the most frequent one.
    """
    protocol = next(iter(PROTOCOLS))

    def worth(report: Report) -> float:
        corpus = score_texts([report] * len(validation), validation, protocol).corpus
        return corpus["bleu4"] * corpus["cider_d"]

    candidates: dict[str, Report] = {}
    for report in islice(_normal_reports(train), CANDIDATES):
        candidates.setdefault(report.findings, report)  # only findings are scored
    return max(candidates.values(), key=worth, default=commonest_normal_report(train))


def _normal_reports(train: Sequence[Report]) -> Iterator[Report]:
    """The different training reports that assert nothing abnormal, no device either; the commonest first."""
    for report, _ in Counter(train).most_common():
        found = label(f"{report.findings} {report.impression}")
        device = found["Support Devices"].status in ("present", "uncertain")
        if found["No Finding"].status == "present" and not device:
            yield report


def nearest(train: NDArray[np.float32], images: NDArray[np.float32]) -> NDArray[np.intp]:
    """For each row of `images` the row of `train` with the largest cosine; of equal ones the first."""
    unit = [matrix / np.maximum(np.linalg.norm(matrix, axis=1, keepdims=True), 1e-12) for matrix in (train, images)]
    return np.argmax(unit[1] @ unit[0].T, axis=1)


def write_constant(reports: Path, split: Path, out: Path, commonest: bool = False) -> int:
    """A report that never looks at an image for the test studies of a published split, as a CSV for `score`.

    Args:
        reports: the table of the collection, a CSV with uid, findings, impression.
        split: JSON: `{"by_uid": {uid: "train" | "val" | "test"}}`.
        out: the CSV to write: uid, prediction, reference.
        commonest: the commonest normal training report instead of the best constant.

    Returns:
        The number of test studies.

    Raises:
        RadVisionError: a file is missing or not as described.
    """
    raw = _read_split(reports, split)
    train = [Report(clean_section(r.findings), clean_section(r.impression)) for r in raw["train"].values()]
    chosen = commonest_normal_report(train) if commonest else best_constant(train, list(raw["val"].values()))
    with out.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["uid", "prediction", "reference"])
        for uid, reference in raw["test"].items():
            table.writerow([uid, format_report(chosen), format_report(reference)])
    return len(raw["test"])


def _read_split(reports: Path, split: Path) -> dict[str, dict[str, Report]]:
    """The untouched reports of each part of the split, by uid."""
    for path in (reports, split):
        if not path.is_file():
            raise RadVisionError(f"{path} is not a file: give the reports table (CSV) and its split (JSON).")
    parts = read_json(split)
    parts = parts.get("by_uid") if isinstance(parts, dict) else None
    raw: dict[str, dict[str, Report]] = {"train": {}, "val": {}, "test": {}}
    if not isinstance(parts, dict) or not set(parts.values()) <= set(raw):
        raise RadVisionError(f'{split} is no split: it must hold {{"by_uid": {{uid: "train", "val" or "test"}}}}.')
    check_columns(csv_columns(reports), str(reports), ("uid", "findings", "impression"))
    for row in csv_lines(reports):
        if part := parts.get(row["uid"]):
            raw[part][row["uid"]] = Report(row["findings"], row["impression"])
    if empty := [part for part, studies in raw.items() if not studies]:
        raise RadVisionError(f"{reports} has no study of the {empty[0]} part of {split}: give the table of that split.")
    return raw
