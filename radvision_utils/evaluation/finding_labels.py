"""Which of the 14 CheXpert observations a chest report asserts, denies or doubts, and on which side, by rules.

The score made with these labels is called rule-label F1: it is not CheXbert's.
`python -m radvision_utils.evaluation.finding_labels REPORTS.csv` measures them against the MeSH annotation of Open-I.

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

import argparse
import csv
import re
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from radvision_utils.config import RadVisionError
from radvision_utils.evaluation.finding_context import LEXICON, read_sentence

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


def mesh_labels(mesh: str, problems: str = "") -> set[str]:
    """The observations that a human annotation of Open-I names; the table is in `lexicon.json`.

    Args:
        mesh: annotations separated by ";", for example "Opacity/lung/base/left;Cardiomegaly/mild".
        problems: their headings alone; read where `mesh` is empty, since they do not tell where a finding is.
    """
    tags = [tag.strip() for tag in (mesh or problems or "").split(";") if tag.strip()]
    found = {name for name, patterns in LEXICON["mesh"].items() if any(_matches(tag, patterns) for tag in tags)}
    harmless = LEXICON["mesh without finding"] + LEXICON["mesh"]["Support Devices"]
    return found | {"No Finding"} if tags and all(_matches(tag, harmless) for tag in tags) else found


def mesh_agreement(labels: Sequence[Mapping[str, Label]], mesh: Sequence[str]) -> dict[str, dict[str, float]]:
    """How labels agree with annotations of the same reports.

    Args:
        labels: of each report, by `label`.
        mesh: each report's annotation; left out are those without and "No Indexing" beforehand.

    Returns:
        observation -> support (reports annotated with it), precision, recall, f1 ("present" as positive) and
        f1_uncertain (uncertain as positive too); 0 where there is nothing to be right about.
    """
    true = [mesh_labels(text) for text in mesh]
    return {
        name: _agreement([found[name].status for found in labels], [name in t for t in true]) for name in OBSERVATIONS
    }


def _agreement(statuses: Sequence[str], true: Sequence[bool]) -> dict[str, float]:
    scores: dict[str, float] = {"support": sum(true)}
    for positive, ending in (({"present"}, ""), ({"present", "uncertain"}, "_uncertain")):
        said = [status in positive for status in statuses]
        hits = sum(a and b for a, b in zip(said, true, strict=True))
        if not ending:
            scores["precision"] = round(hits / max(sum(said), 1), 4)
            scores["recall"] = round(hits / max(sum(true), 1), 4)
        scores[f"f1{ending}"] = round(2 * hits / max(sum(said) + sum(true), 1), 4)
    return scores


def _matches(tag: str, patterns: Iterable[str]) -> bool:
    return any(re.match(pattern, tag) for pattern in patterns)


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


@dataclass(frozen=True)
class _Row:
    uid: str
    text: str
    labels: dict[str, Label]
    mesh: set[str]


def _read_reports(path: Path) -> list[_Row]:
    """The annotated reports of a table; those without text or that the annotators left out ("No Indexing") are not."""
    if not path.is_file():
        raise RadVisionError(f"{path} is not a file: give the reports table (CSV) of the Open-I collection.")
    with path.open(newline="", encoding="utf-8") as file:
        table = csv.DictReader(file)
        missing = {"uid", "MeSH", "Problems", "findings", "impression"} - set(table.fieldnames or ())
        if missing:
            raise RadVisionError(f"{path} has no column {', '.join(sorted(missing))}: give the Open-I reports table.")
        rows = [(row, f"{row['findings'] or ''}\n{row['impression'] or ''}".strip()) for row in table]
    return [
        _Row(row["uid"], text, label(text), mesh_labels(row["MeSH"], row["Problems"]))
        for row, text in rows
        if text and row["MeSH"] and row["MeSH"] != "No Indexing"
    ]


def _disagreements(rows: Sequence[_Row], name: str, count: int) -> list[str]:
    """Up to `count` reports each that only the rules or only MeSH call present, with what decided."""
    lines = []
    for kind, by_rules in (("rules only", True), ("MeSH only", False)):
        odd = [r for r in rows if (r.labels[name].status == "present") is by_rules is (name not in r.mesh)]
        for row in odd[:count]:
            spans = sentences(row.text)
            said = [
                f"{m.status}: {row.text[slice(*spans[m.sentence])]}"
                for m in find_mentions(row.text)
                if m.observation == name and (m.status == "present") is by_rules
            ]
            reason = " | ".join(dict.fromkeys(said)) or f"no mention in: {' '.join(row.text.split())}"
            lines.append(f"{name}, {kind}, uid {row.uid}: {reason}")
    return lines


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints how the rules agree with the human MeSH annotation of a reports table."""
    parser = argparse.ArgumentParser(
        prog="python -m radvision_utils.evaluation.finding_labels", description=main.__doc__
    )
    parser.add_argument("reports", type=Path, help="CSV with uid, MeSH, Problems, findings, impression")
    parser.add_argument("--examples", type=int, default=0, metavar="N", help="print N disagreements of each kind")
    options = parser.parse_args(arguments)
    started = time.perf_counter()
    rows = _read_reports(options.reports)
    seconds = time.perf_counter() - started
    print(f"{'observation':28}{'MeSH':>6}{'precision':>11}{'recall':>8}{'F1':>7}{'F1, uncertain as present':>26}")
    for name in OBSERVATIONS:
        s = _agreement([row.labels[name].status for row in rows], [name in row.mesh for row in rows])
        print(
            f"{name:28}{s['support']:6}{s['precision']:11.3f}{s['recall']:8.3f}{s['f1']:7.3f}{s['f1_uncertain']:26.3f}"
        )
    print(f"{len(rows)} reports labeled in {seconds:.1f} s")
    for name in OBSERVATIONS:
        for line in _disagreements(rows, name, options.examples):
            print(line)


if __name__ == "__main__":
    try:
        main()
    except RadVisionError as error:
        sys.exit(f"radvision: {error}")
