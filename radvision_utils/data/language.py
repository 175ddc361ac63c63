"""Whether a report is English: cleaning rules, finding labels and text metrics are made for no other language."""

from __future__ import annotations

import re

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
