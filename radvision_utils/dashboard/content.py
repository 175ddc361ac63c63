"""What a card says, in words and without markup: shared by its HTML, its PNG and its plain text.

Everything here is a pure function of one prediction record.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from radvision_utils.config import DISCLAIMER, RadVisionError
from radvision_utils.dashboard.evidence import (
    MEANING,
    NOT_SUPPORTED,
    WORDS_OF_CONFIDENCE,
    Sentence,
    explained_sentences,
)
from radvision_utils.dashboard.marks import WORST_FIRST, Change, Piece, marked_text, scrub, word_changes

FOOTER = DISCLAIMER
EMPTY = "(empty)"
NO_HEADINGS = "no headings in the model's text"
NO_IMAGE = "No image"
RULES = "rule-based, may be wrong"
STAGES = {
    0: "base, untuned",
    1: "stage 1: vision encoder",
    2: "stage 2: projector",
    3: "stage 3: language model",
}
SCORES = {"label_f1": "Label F1", "bleu4": "BLEU-4", "rouge_l": "ROUGE-L", "cider_d": "CIDEr-D"}
SCORES_NOTE = f"Label F1 is {RULES}. The others count shared words, not clinical accuracy."
WORDS_NOTE = "Shared words, not clinical accuracy."
LABELS_TITLE = "Generated against reference"
ASSERTED_TITLE = "Asserted by the report"
DRAWN_TITLE = "Generated against what was drawn"
SENTENCES_TITLE = "Sentence by sentence"
FLAGS_TITLE = "Flags on the generated report"
CHANGES_TITLE = "Word differences"
VERDICTS = {
    "contradiction": "\N{NOT EQUAL TO}",
    "missed": "\N{MINUS SIGN}",
    "unsupported": "+",
    "agree": "\N{CHECK MARK}",
}
"""Each verdict and its glyph, the worst first: the texts deny each other; only the reference says so; only the
generated report says so; both say so."""
FLAGS = {
    "prior study": "mentions a prior study that was not given",
    "de-identification token": "contains XXXX, a de-identification token",
    "findings against impression": "findings and impression contradict each other",
    "copied from training": "copied from a training report",
}
FLAG_GLYPH = "!"
AUTHORS = {"generated": "Generated", "reference": "Reference"}


@dataclass(frozen=True)
class Section:
    """One cell's worth of report: whose it is, which part, its text in pieces (none when empty), and a flag on it.

    `sentences` are the same text one by one, where more is known of them than their words; else there are none.
    """

    author: str
    name: str
    pieces: tuple[Piece, ...]
    flag: str = ""
    sentences: tuple[Sentence, ...] = ()

    @property
    def title(self) -> str:
        return f"{self.author} {self.name}"

    @property
    def text(self) -> str:
        return "".join(piece.text for piece in self.pieces)


Row = tuple[tuple[Section, ...], ...]
"""What stands side by side: the sections of each column."""


@dataclass(frozen=True)
class Chip:
    """An observation, a verdict on it ("" without a reference), and what the texts say where that is not plain."""

    words: str
    verdict: str
    detail: str = ""

    @property
    def glyph(self) -> str:
        return VERDICTS.get(self.verdict, "")


def clean(value: object) -> str:
    """Text without control characters, stripped; None is ""."""
    return scrub(value).strip()


def study_title(record: Mapping[str, Any]) -> str:
    """ "Study 17", or "Image lungs.png" of an image of one's own, which has no reference."""
    return f"{'Study' if record['reference'] else 'Image'} {clean(record['uid'])}"


def image_title(record: Mapping[str, Any]) -> str:
    """Kind of the image, without what is seen in it: "Frontal chest radiograph"."""
    view = clean(record.get("view"))
    return f"{view} chest radiograph".strip().capitalize()


def place(record: Mapping[str, Any]) -> str:
    """Where the study lies in the data: "test split, index 5"."""
    index = record.get("index")
    parts = [
        f"{clean(record['split'])} split" if record.get("split") else "",
        "" if index is None else f"index {index}",
    ]
    return ", ".join(part for part in parts if part)


def stage_words(stage: int) -> str:
    return STAGES.get(stage, f"stage {stage}")


def provenance(record: Mapping[str, Any], cached: bool) -> str:
    """Whether the report was read or written now, and the seconds that it took."""
    seconds = record.get("seconds")
    if cached:
        return "cached" if seconds is None else f"cached, written in {seconds:.2f} s"
    return "generated now" if seconds is None else f"generated now in {seconds:.2f} s"


def facts(record: Mapping[str, Any], cached: bool) -> list[tuple[str, str]]:
    """Label and value of what made the report."""
    model = record["model"]
    return [
        ("Run", clean(model["run"])),
        ("Model", stage_words(model["stage"])),
        ("Base", clean(model["base"])),
        ("Report", provenance(record, cached)),
    ]


def report_rows(record: Mapping[str, Any]) -> list[Row]:
    """Findings beside findings and impression beside impression; a report without headings beside both.

    A record without a reference (an image of one's own) has one column.
    """
    ours = _sections(record, "generated")
    theirs = _sections(record, "reference") if record["reference"] else ()
    if not record["generated"].get("headed", True):
        whole = Section("Generated", "report", _joined(ours), NO_HEADINGS, explained(record))
        return [((whole,), theirs) if theirs else ((whole,),)]
    return list(zip(*([(section,) for section in column] for column in (ours, theirs) if column), strict=True))


def explained(record: Mapping[str, Any]) -> tuple[Sentence, ...]:
    """Every generated sentence, where anything is known of one beyond its words; else none."""
    return explained_sentences(record, "findings") + explained_sentences(record, "impression")


def sentences_note(record: Mapping[str, Any]) -> str:
    """What the maps and words of confidence mean."""
    maps = f"{MEANING} Yellow speaks most for it; gray and hatched: {NOT_SUPPORTED}."
    return " ".join([maps] * bool(record.get("evidence")) + [WORDS_OF_CONFIDENCE] * bool(record.get("confidence")))


def blind_rows(record: Mapping[str, Any], order: tuple[str, str]) -> list[Row]:
    """The two reports as A and B, without marks or anything else that tells whose they are.

    Args:
        record: has both reports.
        order: which of "generated" and "reference" is A, and which is B.
    """
    columns = []
    for letter, author in zip("AB", order, strict=True):
        report = record[author]
        parts = [(name, clean(report.get(name))) for name in ("findings", "impression")]
        columns.append([Section(f"Report {letter}", name, (Piece(text),) if text else ()) for name, text in parts])
    return [((a,), (b,)) for a, b in zip(*columns, strict=True)]


def score_values(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Name and value of the scores that the record has, in a fixed order."""
    scores = record.get("scores") or {}
    return [(name, f"{scores[key]:.3f}") for key, name in SCORES.items() if scores.get(key) is not None]


def scores_note(record: Mapping[str, Any]) -> str:
    """What the scores are not."""
    return SCORES_NOTE if (record.get("scores") or {}).get("label_f1") is not None else WORDS_NOTE


def label_chips(record: Mapping[str, Any]) -> list[Chip]:
    """Every observation that either text asserts, disagreement first.

    Raises:
        RadVisionError: a verdict is none of `VERDICTS`.
    """
    labels = record.get("labels") or {}
    chips = []
    for name, verdict in (record.get("verdicts") or {}).items():
        says = [_said((labels.get(author) or {}).get(name)) for author in AUTHORS]
        detail = f"generated: {says[0]}, reference: {says[1]}" if verdict == "contradiction" and all(says) else ""
        chips.append(_chip(record, name, verdict, detail))
    return sorted(chips, key=_worst_first)


def drawn_chips(record: Mapping[str, Any]) -> list[Chip]:
    """The findings of a phantom study against what was drawn, disagreement first; empty for any other.

    Raises:
        RadVisionError: a verdict is none of `VERDICTS`.
    """
    findings = record.get("findings") or []
    chips = [_chip(record, f"{f.get('side') or ''} {f['name']}", f["verdict"]) for f in findings]
    return sorted(chips, key=_worst_first)


def asserted_chips(record: Mapping[str, Any]) -> list[Chip]:
    """Every observation that a report without a reference asserts; there is nothing to judge it by."""
    said = (record.get("labels") or {}).get("generated") or {}
    details = {name: _said(label) for name, label in said.items() if label.get("status") in ("present", "uncertain")}
    return [_chip(record, name, "", detail.replace("present", "")) for name, detail in details.items()]


def chip_groups(record: Mapping[str, Any]) -> list[tuple[str, str, list[Chip]]]:
    """The groups of chips that a card shows: title, how far it is to be trusted ("" for drawn truth), chips."""
    if record["reference"] is None:
        chips = asserted_chips(record)
        return [(ASSERTED_TITLE, RULES, chips)] if chips else []
    groups = [(LABELS_TITLE, RULES, label_chips(record)), (DRAWN_TITLE, "", drawn_chips(record))]
    return [group for group in groups if group[2]]


def flag_words(record: Mapping[str, Any]) -> list[str]:
    """What is odd about the generated report, in words."""
    return [FLAGS.get(flag, clean(flag)) for flag in record.get("flags") or []]


def changes(record: Mapping[str, Any]) -> list[tuple[str, list[Change]]]:
    """The word differences of each section in which the two reports differ; none without a reference."""
    if not record["reference"]:
        return []
    ours, theirs = (_sections(record, author) for author in AUTHORS)
    if not record["generated"].get("headed", True):
        pairs = [("Report", *(" ".join(section.text for section in side) for side in (ours, theirs)))]
    else:
        pairs = [(a.name.capitalize(), a.text, b.text) for a, b in zip(ours, theirs, strict=True)]
    found = [(name, word_changes(generated, reference)) for name, generated, reference in pairs]
    return [(name, parts) for name, parts in found if any(part.found_in != "both" for part in parts)]


def _sections(record: Mapping[str, Any], author: str) -> tuple[Section, ...]:
    return tuple(
        Section(
            AUTHORS[author],
            name,
            marked_text(record, author, name),
            sentences=explained_sentences(record, name) if author == "generated" else (),
        )
        for name in ("findings", "impression")
    )


def _joined(sections: tuple[Section, ...]) -> tuple[Piece, ...]:
    pieces: list[Piece] = []
    for section in sections:
        pieces += [Piece("\n")] if pieces and section.pieces else []
        pieces += section.pieces
    return tuple(pieces)


def _said(label: Mapping[str, Any] | None) -> str:
    if label is None:
        return ""
    sides = " and ".join(clean(side) for side in label.get("sides") or [])
    return sides if label["status"] == "present" and sides else clean(label["status"])


def _chip(record: Mapping[str, Any], name: object, verdict: str, detail: str = "") -> Chip:
    words = clean(name)
    if verdict and verdict not in VERDICTS:
        raise RadVisionError(
            f"finding {words!r} of study {record['uid']} has the verdict {verdict!r}: use one of {', '.join(VERDICTS)}."
        )
    return Chip(words[:1].upper() + words[1:].lower(), verdict, detail)


def _worst_first(chip: Chip) -> int:
    return WORST_FIRST.index(chip.verdict)
