"""Which of the 14 CheXpert observations a chest report asserts, denies or doubts, and on which side, by rules.

The score made with these labels is called rule-label F1: it is not CheXbert's.

Conventions, after the CheXpert labeler (Irvin et al., AAAI 2019) unless said otherwise:

* Of several mentions present beats uncertain, and uncertain beats absent. No Finding is present where the text has
  words and nothing but Support Devices is present or uncertain; findings outside the 14 (scoliosis, emphysema,
  granuloma) speak against it too. It is never absent or uncertain.
* Uncertain: may, possible, probable, suspicious for, cannot exclude, "A versus B", an asserted "A or B", "no new A"
  (an old A is not denied), a borderline heart, vascular congestion, and, ours, a blunted costophrenic angle and a
  compression deformity, which have other causes too. "Likely" and "consistent with" count as present.
* "Heart at the upper limits of normal" is a normal heart: absent. (The annotators of Open-I agree: they call 6 of 83
  such hearts enlarged, but 48 of 52 borderline ones.)
* "The lungs are clear" denies Lung Opacity and what CheXpert's hierarchy puts below it: Lung Lesion, Edema,
  Consolidation, Pneumonia, Atelectasis. The labeler takes no label from such a sentence; without one, a report that
  calls a diseased lung clear would contradict nothing. "Otherwise clear" and "remaining lungs" deny nothing.
* A normal cardiomediastinal silhouette denies Cardiomegaly too; an enlarged one says Enlarged Cardiomediastinum only.
* "History of A" says nothing about A today: not mentioned. Resolved findings and removed devices are absent.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from radvision_utils.evaluation.finding_context import read_sentence

OBSERVATIONS: tuple[str, ...] = (
    "No Finding",
    "Enlarged Cardiomediastinum",
    "Cardiomegaly",
    "Lung Lesion",
    "Lung Opacity",
    "Edema",
    "Consolidation",
    "Pneumonia",
    "Atelectasis",
    "Pneumothorax",
    "Pleural Effusion",
    "Pleural Other",
    "Fracture",
    "Support Devices",
)
_MIDLINE = ("Cardiomegaly", "Enlarged Cardiomediastinum")
# For untouched text, with stops without a blank behind them and lines without a stop; reports.split_sentences cuts
# cleaned text.
_END = re.compile(r"(?<!\bvs)(?<!\bVs)(?<!\bDr)(?:\.|(?<=\w)[!?])(?=\s|$|[A-Z])|\.(?=\d{1,2}[.)] )|\n")


@dataclass(frozen=True)
class Mention:
    """One place that speaks about an observation.

    Attributes:
        observation: one of `OBSERVATIONS`, never No Finding.
        status: "present", "absent" or "uncertain".
        side: "left", "right", "bilateral", or "" where the text gives none.
        start: first character in the text.
        end: one past the last character.
        sentence: index in `sentences(text)`.
    """

    observation: str
    status: str
    side: str
    start: int
    end: int
    sentence: int


@dataclass(frozen=True)
class Label:
    """What a text says about one observation.

    Attributes:
        status: "present", "absent", "uncertain" or "not mentioned".
        sides: those of "left" and "right" that the mentions of this status name; "bilateral" names both.
    """

    status: str
    sides: tuple[str, ...] = ()


def sentences(text: str) -> list[tuple[int, int]]:
    """Spans of the sentences of an untouched text, in order, without the blanks around them."""
    spans, start = [], 0
    for end in [*(match.end() for match in _END.finditer(text)), len(text)]:
        part = text[start:end]
        if part.strip():
            spans.append((end - len(part.lstrip()), start + len(part.rstrip())))
        start = end
    return spans


def find_mentions(text: str) -> list[Mention]:
    """Every mention of an observation, in the order of the text; any string will do."""
    return [mention for mention in _all_mentions(text) if mention.observation in OBSERVATIONS]


def label(text: str) -> dict[str, Label]:
    """What a report says about each of the 14 observations, in their order; the module's text has the conventions.

    Args:
        text: findings and impression, with or without headings; without a word all is "not mentioned".
    """
    mentions = _all_mentions(text)
    labels = {name: _aggregate([m for m in mentions if m.observation == name]) for name in OBSERVATIONS}
    abnormal = any(m.status != "absent" and m.observation != "Support Devices" for m in mentions)
    if not abnormal and re.search(r"\w", text):
        labels["No Finding"] = Label("present")
    return labels


def compare(generated: Mapping[str, Label], reference: Mapping[str, Label]) -> dict[str, str]:
    """How a generated report stands to the reference, per observation that either asserts (present or uncertain).

    Returns:
        observation -> "contradiction" (one present, the other absent, unless on different sides; or both asserted on
        sides that do not meet), "missed" (only the reference asserts it), "unsupported" (only the generated report
        does), or "agree" (both assert it, be it with different certainty or one without a side).
    """
    verdicts = {}
    for name in OBSERVATIONS:
        ours, theirs = generated[name], reference[name]
        asserted = [side.status in ("present", "uncertain") for side in (ours, theirs)]
        if not any(asserted):
            continue
        apart = bool(ours.sides and theirs.sides) and not set(ours.sides) & set(theirs.sides)
        if all(asserted):
            verdicts[name] = "contradiction" if apart else "agree"
        elif {ours.status, theirs.status} == {"present", "absent"} and not apart:
            verdicts[name] = "contradiction"
        else:
            verdicts[name] = "unsupported" if asserted[0] else "missed"
    return verdicts


def _all_mentions(text: str) -> list[Mention]:
    """Mentions, those of findings outside the 14 ("Other Finding") included."""
    return [
        Mention(
            claim.observation,
            claim.status,
            "" if claim.observation in _MIDLINE else claim.side,
            start + claim.start,
            start + claim.end,
            index,
        )
        for index, (start, end) in enumerate(sentences(text))
        for claim in read_sentence(text[start:end])
    ]


def _aggregate(mentions: Sequence[Mention]) -> Label:
    for status in ("present", "uncertain", "absent"):
        named = {mention.side for mention in mentions if mention.status == status}
        if named:
            return Label(status, tuple(side for side in ("left", "right") if {side, "bilateral"} & named))
    return Label("not mentioned")
