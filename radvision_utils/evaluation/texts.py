"""Texts that cannot be scored: empty ones, and those that are not English, for which no metric here is made."""

from __future__ import annotations

import re
from collections.abc import Mapping

from radvision_utils.config import RadVisionError
from radvision_utils.data.reports import Report

_ENGLISH = (
    "the is are of and no in with without there or to within normal clear not has been at this seen by for from on as "
    "was heart lungs lung chest acute right left"
)
# Function words of Spanish, Portuguese, French, Italian, German and Dutch that are no words of an English report.
_FOREIGN = (
    "el la los las del una con sin por y se os um uma com sem não e ao le les des du une et est avec sans pas dans il "
    "lo gli di della che non senza der die das und ist mit ohne kein keine keinen nicht den dem ein eine im het een "
    "van geen zonder met"
)
_WORDS = {"english": frozenset(_ENGLISH.split()), "foreign": frozenset(_FOREIGN.split())}


def is_english(text: str) -> bool:
    """Whether a report reads as English; texts without letters and short ones in Latin script pass."""
    letters = [c for c in text if c.isalpha()]
    if letters and sum(not c.isascii() for c in letters) > 0.3 * len(letters):
        return False
    words = re.findall(r"[^\W\d_]+", text.lower())
    foreign = sum(word in _WORDS["foreign"] for word in words)
    return foreign < 2 or foreign <= sum(word in _WORDS["english"] for word in words)


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
