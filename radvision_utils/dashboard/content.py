"""What a card says, in words and without markup: shared by its HTML, its PNG and its plain text.

Everything here is a pure function of one prediction record.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from radvision_utils.config import RadVisionError

FOOTER = "Research and education only. Not a medical device."
EMPTY = "(empty)"
NO_HEADINGS = "no headings in the model's text"
NO_IMAGE = "No image"
STAGES = {
    0: "base, untuned",
    1: "stage 1: vision encoder",
    2: "stage 2: projector",
    3: "stage 3: language model",
}
SCORES = {"bleu4": "BLEU-4", "rouge_l": "ROUGE-L", "cider_d": "CIDEr-D"}
SCORES_NOTE = "Word overlap, not clinical accuracy."
FINDINGS_TITLE = "Findings checked against the drawing"
VERDICTS = {"agree": "\N{CHECK MARK}", "missed": "\N{BALLOT X}", "unsupported": "?"}
"""Each verdict and its glyph: named in both, drawn but not written, written but not drawn."""


@dataclass(frozen=True)
class Section:
    """One cell's worth of report: whose it is, which part, and its text ("" when empty)."""

    author: str
    name: str
    text: str
    flag: str = ""

    @property
    def title(self) -> str:
        return f"{self.author} {self.name}"


@dataclass(frozen=True)
class Row:
    """What stands side by side: the generated sections and the reference sections."""

    generated: tuple[Section, ...]
    reference: tuple[Section, ...]


@dataclass(frozen=True)
class Chip:
    """A finding of a phantom study and how the report deals with it."""

    words: str
    verdict: str
    glyph: str


def clean(value: object) -> str:
    """Text without control characters (a terminal would obey them), stripped; None is ""."""
    text = "" if value is None else str(value)
    return "".join(c for c in text if c in "\n\t" or unicodedata.category(c) != "Cc").strip()


def study_title(record: Mapping[str, Any]) -> str:
    return f"Study {clean(record['uid'])}"


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
    """Findings beside findings and impression beside impression; a report without headings beside both."""
    generated, reference = record["generated"], record["reference"]
    ours = [Section("Generated", name, clean(generated.get(name))) for name in ("findings", "impression")]
    theirs = [Section("Reference", name, clean(reference.get(name))) for name in ("findings", "impression")]
    if generated.get("headed", True):
        return [Row((a,), (b,)) for a, b in zip(ours, theirs, strict=True)]
    whole = "\n".join(section.text for section in ours if section.text)
    return [Row((Section("Generated", "report", whole, NO_HEADINGS),), tuple(theirs))]


def score_values(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Name and value of the scores that the record has, in a fixed order."""
    scores = record.get("scores") or {}
    return [(name, f"{scores[key]:.3f}") for key, name in SCORES.items() if scores.get(key) is not None]


def chips(record: Mapping[str, Any]) -> list[Chip]:
    """The findings of a phantom study; empty for any other.

    Raises:
        RadVisionError: a verdict is none of `VERDICTS`.
    """
    found = []
    for finding in record.get("findings") or []:
        verdict = finding["verdict"]
        if verdict not in VERDICTS:
            raise RadVisionError(
                f"finding {finding['name']!r} of study {record['uid']} has the verdict {verdict!r}: "
                f"use one of {', '.join(VERDICTS)}."
            )
        words = f"{clean(finding.get('side'))} {clean(finding['name'])}".strip()
        found.append(Chip(words, verdict, VERDICTS[verdict]))
    return found
