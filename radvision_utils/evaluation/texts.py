"""Texts that cannot be scored: empty ones, and those that are not English, for which no metric here is made."""

from __future__ import annotations

import re
from collections.abc import Mapping

from radvision_utils.config import RadVisionError
from radvision_utils.data.reports import Report, is_english


def check_english(reports: Mapping[str, Report], what: str) -> None:
    """Refuses reports that are not English.

    Args:
        reports: by uid.
        what: "reference" or "prediction".

    Raises:
        RadVisionError: the sentence names the first such study and how many there are.
    """
    odd = [uid for uid, report in reports.items() if not is_english(f"{report.findings} {report.impression}")]
    if odd:
        raise RadVisionError(
            f"the {what} of study {odd[0]} is not English ({_how_many(odd)}): the metrics and the finding labels are "
            "made for English reports; translate the texts first."
        )


def check_not_empty(reports: Mapping[str, Report], what: str, then: str) -> None:
    """Refuses reports without a word.

    Raises:
        RadVisionError: the sentence names the first such study and ends with what to do (`then`).
    """
    odd = [uid for uid, report in reports.items() if not re.search(r"\w", f"{report.findings} {report.impression}")]
    if odd:
        raise RadVisionError(f"the {what} of study {odd[0]} is empty ({_how_many(odd)}): {then}")


def check_references(references: Mapping[str, Report]) -> None:
    """Both checks for the true reports.

    Raises:
        RadVisionError: a reference is empty or not English.
    """
    check_not_empty(references, "reference", "a study without a true report cannot be scored; leave it out knowingly.")
    check_english(references, "reference")


def _how_many(odd: list[str]) -> str:
    return f"{len(odd)} in all" if len(odd) > 1 else "the only one"
