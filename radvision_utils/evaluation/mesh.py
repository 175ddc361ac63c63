"""How the rule labels agree with the human MeSH annotation of Open-I."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from radvision_utils.config import RadVisionError
from radvision_utils.data.sources import check_columns, csv_columns, csv_lines
from radvision_utils.evaluation.finding_context import LEXICON
from radvision_utils.evaluation.finding_labels import OBSERVATIONS, Label, find_mentions, label, sentences


def mesh_labels(mesh: str) -> set[str]:
    """The observations that a human annotation of Open-I names; the table is in `lexicon.json`.

    Args:
        mesh: annotations separated by ";", for example "Opacity/lung/base/left;Cardiomegaly/mild".
    """
    tags = [tag.strip() for tag in mesh.split(";") if tag.strip()]
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


@dataclass(frozen=True)
class _Row:
    uid: str
    text: str
    mesh: str
    labels: dict[str, Label]


def mesh_table(reports: Path, examples: int = 0) -> str:
    """The agreement by observation for people, and up to so many disagreements of each kind.

    Args:
        reports: the table of Open-I, a CSV with uid, MeSH, findings, impression. Reports without text, and
            those that the annotators left out ("No Indexing"), are left out.
        examples: how many reports that only the rules, and that only MeSH call present, to list an observation.

    Raises:
        RadVisionError: the table is missing or lacks a column.
    """
    rows = _read_reports(reports)
    lines = [f"{'observation':28}{'MeSH':>6}{'precision':>11}{'recall':>8}{'F1':>7}{'F1, uncertain as present':>26}"]
    for name, s in mesh_agreement([row.labels for row in rows], [row.mesh for row in rows]).items():
        lines.append(
            f"{name:28}{s['support']:6}{s['precision']:11.3f}{s['recall']:8.3f}{s['f1']:7.3f}{s['f1_uncertain']:26.3f}"
        )
    lines.append(f"{len(rows)} reports")
    odd = [line for name in OBSERVATIONS if examples for line in _disagreements(rows, name, examples)]
    return "\n".join([*lines, *odd])


def _read_reports(path: Path) -> list[_Row]:
    if not path.is_file():
        raise RadVisionError(f"{path} is not a file: give the reports table (CSV) of the Open-I collection.")
    check_columns(csv_columns(path), str(path), ("uid", "MeSH", "findings", "impression"))
    rows = [(row, f"{row['findings']}\n{row['impression']}".strip()) for row in csv_lines(path)]
    return [
        _Row(row["uid"], text, row["MeSH"], label(text))
        for row, text in rows
        if text and row["MeSH"] and row["MeSH"] != "No Indexing"
    ]


def _disagreements(rows: Sequence[_Row], name: str, count: int) -> list[str]:
    """Up to `count` reports each that only the rules or only MeSH call present, with what decided."""
    lines = []
    for kind, by_rules in (("rules only", True), ("MeSH only", False)):
        odd = [r for r in rows if (r.labels[name].status == "present") is by_rules is (name not in mesh_labels(r.mesh))]
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
