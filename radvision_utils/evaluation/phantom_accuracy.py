"""How right a report on a phantom is, by what was drawn: no labeler, no reference text."""

from __future__ import annotations

from collections.abc import Sequence

from radvision_utils.data.phantom import read_findings, truth_findings
from radvision_utils.data.reports import Report


def verdicts(report: Report, truth: str) -> list[dict[str, str]]:
    """What became of each drawn or asserted finding: `{"name", "side", "verdict"}`.

    The verdict is "agree", "missed" (drawn, not asserted with its side) or "unsupported" (asserted, not drawn).
    """
    drawn, said = truth_findings(truth), read_findings(f"{report.findings} {report.impression}")
    rows = [(pair, "agree" if pair in said else "missed") for pair in drawn]
    rows += [(pair, "unsupported") for pair in said - drawn]
    rows.sort(key=lambda row: (row[0][0], row[0][1] or "", row[1]))
    return [{"name": name, "side": side or "", "verdict": verdict} for (name, side), verdict in rows]


def phantom_accuracy(reports: Sequence[Report], truths: Sequence[str]) -> dict[str, float]:
    """Agreement of reports with what was drawn.

    Args:
        reports: one for each study.
        truths: the studies' `truth`, in the same order.

    Returns:
        study_accuracy: share of studies whose report asserts every drawn finding with its side and nothing else;
        finding_precision, finding_recall: over all (finding, side) pairs; 1.0 where there is none. All in 0 to 1.
    """
    right = agree = drawn = said = 0
    for report, truth in zip(reports, truths, strict=True):
        found = [row["verdict"] for row in verdicts(report, truth)]
        right += all(verdict == "agree" for verdict in found)
        agree += found.count("agree")
        drawn += len(found) - found.count("unsupported")
        said += len(found) - found.count("missed")
    return {
        "study_accuracy": round(right / len(reports), 4),
        "finding_precision": round(agree / said, 4) if said else 1.0,
        "finding_recall": round(agree / drawn, 4) if drawn else 1.0,
    }
