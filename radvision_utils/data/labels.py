"""Which of the 14 CheXpert observations a chest report asserts, denies or doubts, by rules.

Conventions of the labels, after the CheXpert labeler (Irvin et al., AAAI 2019) unless said otherwise:

* Of several mentions present beats uncertain, and uncertain beats absent. No Finding is present where the text
  denies something, or calls it normal, and nothing but Support Devices is present or uncertain; findings outside the
  14 (scoliosis, emphysema, granuloma) speak against it too. It is never absent or uncertain.
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

import bisect
import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from radvision_utils.data.context import LEXICON, Mention, denies_all, read_sentence
from radvision_utils.data.lines import statement_lines

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
ABNORMAL = OBSERVATIONS[1:]
ASSERTED = ("present", "uncertain")
_MIDLINE = ("Cardiomegaly", "Enlarged Cardiomediastinum")
# For untouched text, with stops without a blank behind them; reports.split_sentences cuts cleaned text.
_END = re.compile(
    r"(?<!\b(?i:vs|dr|lt|rt))(?:\.|(?<=\w)[!?])(?=\s|$|[A-Z])(?!(?<=\b[lrLR]\.)\s[a-z])|\.(?=\d{1,2}[.)] )"
)

# What was asked, and not what is seen; it ends at the next heading or blank line. Of a comparison that is one sentence:
# "Comparison: none. The lungs are clear" often goes on without a heading.
_ASKED = re.compile(
    r"\b(?:indications?|history|clinical (?:information|details|question|data)|(comparisons?)"
    r"|reason for (?:the |this )?(?:exam(?:ination)?|study|test|referral))[ \t]*:\s*",
    re.IGNORECASE,
)
_SECTION_END = re.compile(
    r"\b(?i:findings?|impressions?|conclusions?|interpretation|report|comparisons?|techniques?|exam(?:ination)?|procedure"
    r"|views?|chest|history|indications?)[ \t]*:|\n[ \t]*[A-Z][A-Za-z /&-]{2,40}:|\n\s*\n"
)


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
    spans = []
    for start, line_end in statement_lines(text):
        for end in [*(match.end() for match in _END.finditer(text, start, line_end)), line_end]:
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
        text: findings and impression, with or without headings, in lines of any length; of a text without a word that
            is known all is "not mentioned".
    """
    mentions = _all_mentions(text)
    labels = {name: _aggregate([m for m in mentions if m.observation == name]) for name in OBSERVATIONS}
    abnormal = any(m.status != "absent" and m.observation != "Support Devices" for m in mentions)
    if not abnormal and (mentions or denies_all(text)):
        labels["No Finding"] = Label("present")
    return labels


@functools.lru_cache(maxsize=1 << 16)
def asserted(text: str) -> tuple[str, ...]:
    """The abnormal observations that a text asserts, uncertain ones too."""
    found = label(text)
    return tuple(name for name in ABNORMAL if found[name].status in ASSERTED)


def says_nothing(text: str) -> bool:
    """Whether a text neither names nor denies a finding: it is neither normal nor abnormal."""
    return not _all_mentions(text) and not denies_all(text)


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
        said = [side.status in ASSERTED for side in (ours, theirs)]
        if not any(said):
            continue
        apart = bool(ours.sides and theirs.sides) and not set(ours.sides) & set(theirs.sides)
        if all(said):
            verdicts[name] = "contradiction" if apart else "agree"
        elif {ours.status, theirs.status} == {"present", "absent"} and not apart:
            verdicts[name] = "contradiction"
        else:
            verdicts[name] = "unsupported" if said[0] else "missed"
    return verdicts


def _all_mentions(text: str) -> list[Mention]:
    """Mentions, those of findings outside the 14 ("Other Finding") included."""
    spans = sentences(text)
    asked = _asked(text, spans)
    starts = [start for start, _ in asked]

    def is_asked(place: int) -> bool:
        n = bisect.bisect_right(starts, place)
        return n > 0 and place < asked[n - 1][1]

    return [
        claim._replace(
            side="" if claim.observation in _MIDLINE else claim.side,
            start=start + claim.start,
            end=start + claim.end,
            sentence=index,
        )
        for index, (start, end) in enumerate(spans)
        for claim in read_sentence(text[start:end])
        if not is_asked(start + claim.start)
    ]


def _asked(text: str, spans: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Spans of indication, history and comparison, in order. Where nothing else ends one, its sentence does."""
    found = []
    stops = [stop for _, stop in spans]
    for match in _ASKED.finditer(text):
        n = bisect.bisect_right(stops, match.end())
        sentence = stops[n] if n < len(stops) else len(text)
        section = _SECTION_END.search(text, match.end())
        if section is None:
            found.append((match.start(), sentence))
            break
        found.append((match.start(), min(sentence, section.start()) if match[1] else section.start()))
    return found


def _aggregate(mentions: Sequence[Mention]) -> Label:
    for status in ("present", "uncertain", "absent"):
        named = {mention.side for mention in mentions if mention.status == status}
        if named:
            return _label(status, tuple(side for side in ("left", "right") if {side, "bilateral"} & named))
    return _label("not mentioned")


_label = functools.cache(Label)  # there are a few only, and many reports


def mesh_labels(mesh: str) -> set[str]:
    """The observations that a human annotation of Open-I names; the table is in `lexicon.json`.

    Args:
        mesh: annotations separated by ";", for example "Opacity/lung/base/left;Cardiomegaly/mild".
    """
    tags = [tag.strip() for tag in mesh.split(";") if tag.strip()]
    found = {name for name, patterns in LEXICON["mesh"].items() if any(_matches(tag, patterns) for tag in tags)}
    harmless = LEXICON["mesh without finding"] + LEXICON["mesh"]["Support Devices"]
    return found | {"No Finding"} if tags and all(_matches(tag, harmless) for tag in tags) else found


def _matches(tag: str, patterns: Iterable[str]) -> bool:
    return any(re.match(pattern, tag) for pattern in patterns)
