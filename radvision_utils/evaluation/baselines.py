"""Rows that keep the table honest: reports that need no model, or no look at the image.

`python -m radvision_utils.evaluation.baselines REPORTS.csv SPLIT.json OUT.csv --row "best constant"` writes such a row
for a published split of the Open-I reports table, as `python -m radvision_utils score OUT.csv` reads it.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from radvision_utils.config import RadVisionError
from radvision_utils.data.reports import Report, clean_section, format_report
from radvision_utils.evaluation.constant_report import best_constant, commonest_normal_report
from radvision_utils.runs import read_json

CONSTANT = "constant report"
BEST_CONSTANT = "best constant"
RANDOM = "random training report"
NEAREST = "nearest neighbor"
ROWS = {
    CONSTANT: "the most frequent normal training report, for every study",
    BEST_CONSTANT: "the fixed normal report that earns most BLEU-4 times CIDEr-D on validation, for every study",
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


def nearest(train: NDArray[np.float32], images: NDArray[np.float32]) -> NDArray[np.intp]:
    """For each row of `images` the row of `train` with the largest cosine; of equal ones the first."""
    unit = [matrix / np.maximum(np.linalg.norm(matrix, axis=1, keepdims=True), 1e-12) for matrix in (train, images)]
    return np.argmax(unit[1] @ unit[0].T, axis=1)


def main(arguments: Sequence[str] | None = None) -> None:
    """Writes a row that never looks at an image for the test studies of a split, as a CSV for `score`."""
    parser = argparse.ArgumentParser(prog="python -m radvision_utils.evaluation.baselines", description=main.__doc__)
    parser.add_argument("reports", type=Path, help="CSV with uid, findings, impression")
    parser.add_argument("split", type=Path, help='JSON: {"by_uid": {uid: "train" | "val" | "test"}}')
    parser.add_argument("out", type=Path, help="CSV to write: uid, prediction, reference")
    parser.add_argument("--row", choices=(CONSTANT, BEST_CONSTANT, RANDOM), default=BEST_CONSTANT)
    parser.add_argument("--seed", type=int, default=7, help="of the random row")
    options = parser.parse_args(arguments)
    raw = _read_split(options.reports, options.split)
    train = [Report(clean_section(r.findings), clean_section(r.impression)) for r in raw["train"].values()]
    rows = blind_reports(train, list(raw["val"].values()), len(raw["test"]), options.seed)
    with options.out.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["uid", "prediction", "reference"])
        for (uid, reference), report in zip(raw["test"].items(), rows[options.row], strict=True):
            table.writerow([uid, format_report(report), format_report(reference)])
    print(f"{options.out}: {options.row} for {len(raw['test'])} studies")


def _read_split(reports: Path, split: Path) -> dict[str, dict[str, Report]]:
    """The untouched reports of each part of the split, by uid."""
    for path in (reports, split):
        if not path.is_file():
            raise RadVisionError(f"{path} is not a file: give the reports table (CSV) and its split (JSON).")
    parts = read_json(split)["by_uid"]
    raw: dict[str, dict[str, Report]] = {"train": {}, "val": {}, "test": {}}
    with reports.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if part := parts.get(row["uid"]):
                raw[part][row["uid"]] = Report(row["findings"] or "", row["impression"] or "")
    return raw


if __name__ == "__main__":
    try:
        main()
    except RadVisionError as error:
        sys.exit(f"radvision: {error}")
