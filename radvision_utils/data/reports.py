"""What a report is, and how it is written as a training target; `parsing.parse_report` reads it back."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

# Stops that end no sentence. A single capital is an initial, but "I" and "A" do not occur as one in reports.
_ABBREVIATION = re.compile(
    r"(?:^|[\s(])(?:Drs?|Mrs?|Ms|St|vs|e\.g|i\.e|approx|ca|a\.m|p\.m|[B-HJ-Z])\.$", re.IGNORECASE
)
_BREAK = re.compile(r"(?<=[.!?])\s+")


@dataclass(frozen=True)
class Report:
    """A radiology report in its two sections; an absent section is the empty text.

    Attributes:
        findings: what is seen.
        impression: what it means.
        headed: whether the text had headings; without any, the whole text stands in `findings`.
        line: of findings, as `line_of_findings` makes it; a model that trained with `model.summary` begins with it.
    """

    findings: str = ""
    impression: str = ""
    headed: bool = True
    line: str = ""

    @property
    def text(self) -> str:
        """Both sections, a blank line between them: the finding labels would take a single break for a wrapped line."""
        return f"{self.findings}\n\n{self.impression}"

    def to_json(self) -> dict[str, Any]:
        """As records keep it; without a line there is no word of one."""
        return {name: value for name, value in vars(self).items() if name != "line" or value}


# Observations in a line's words, the commonest of Open-I first; the finding labels read each of them as itself.
LINE_WORDS = {
    "Cardiomegaly": "cardiomegaly",
    "Pleural Effusion": "pleural effusion",
    "Atelectasis": "atelectasis",
    "Lung Opacity": "lung opacity",
    "Support Devices": "support device",
    "Enlarged Cardiomediastinum": "enlarged mediastinum",
    "Lung Lesion": "lung nodule",
    "Edema": "pulmonary edema",
    "Consolidation": "consolidation",
    "Pneumonia": "pneumonia",
    "Pneumothorax": "pneumothorax",
    "Pleural Other": "pleural thickening",
    "Fracture": "fracture",
}
NO_FINDING = "no key finding"


def line_of_findings(observations: Collection[str]) -> str:
    """A sentence that asserts these observations and no more: "Cardiomegaly, atelectasis."."""
    line = ", ".join(words for name, words in LINE_WORDS.items() if name in observations) or NO_FINDING
    return f"{line.capitalize()}."


def split_sentences(text: str) -> list[str]:
    """The sentences of a cleaned section. "Dr.", "vs.", "2.5 cm" and "1. " end none."""
    sentences: list[list[str]] = []
    for piece in filter(None, _BREAK.split(text.strip())):
        before = sentences[-1] if sentences else [""]
        if _ABBREVIATION.search(before[-1]) or (len(before) == 1 and re.fullmatch(r"\d{1,2}\.", before[0])):
            before.append(piece)
        else:
            sentences.append([piece])
    return [" ".join(pieces) for pieces in sentences]


def format_report(report: Report) -> str:
    """The report as one text, the training target: "Findings: ... Impression: ...". An empty section has no heading."""
    findings = " ".join(filter(None, (report.line, report.findings)))
    if not report.headed:
        return findings
    sections = (("Findings", findings), ("Impression", report.impression))
    return " ".join(f"{heading}: {text}" for heading, text in sections if text)
