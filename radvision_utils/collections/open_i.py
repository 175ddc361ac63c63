"""The published tables of Open-I: its human annotation beside the rule labels, and its split answered without an image.

Two verbs of the command line: `label --mesh` and `constant`.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from radvision_utils.config import RadVisionError
from radvision_utils.data.cells import check_columns, csv_columns, csv_lines, given, open_i_number, study_number
from radvision_utils.data.cleaning import clean_section
from radvision_utils.data.labels import OBSERVATIONS, Label, find_mentions, label, mesh_labels, sentences
from radvision_utils.data.reports import Report, format_report
from radvision_utils.evaluation.baselines import CANDIDATES, best_constant, commonest_normal_report
from radvision_utils.evaluation.label_scores import mesh_agreement
from radvision_utils.evaluation.score import SEED
from radvision_utils.evaluation.table import RULE_LABELS, Scorer
from radvision_utils.evaluation.text_metrics import R2GEN, REXRANK, REXRANK_TEXTS, r2gen_vocabulary, sentence_bleu2
from radvision_utils.figures import markdown_table
from radvision_utils.files import read_json, require_writable, write_text

_PARTS = ("train", "val", "test")
_NAMES = {**{part: part for part in _PARTS}, "validation": "val"}


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
    rows = [
        (row, f"{given(row['findings']) or ''}\n\n{given(row['impression']) or ''}".strip()) for row in csv_lines(path)
    ]
    return [
        _Row(study_number(row["uid"]) or "", text, row["MeSH"], label(text))
        for row, text in rows
        if text and given(row["MeSH"]) and row["MeSH"] != "No Indexing"
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


def constant_table(files: Sequence[Path], to: Path | None = None) -> str:
    """What reports earn on the test studies of a published split that never look at an image, for people.

    Args:
        files: R2Gen's `annotation.json`; or the table of the collection, a CSV with uid, findings, impression, and its
            split, see `published_split`.
        to: a CSV to write, as `score` reads it: uid, prediction, reference of the best constant.

    Raises:
        RadVisionError: a file is missing or not as described.
    """
    if to is not None:
        require_writable(to)
    raw = read_published(files)
    train = [Report(clean_section(r.findings), clean_section(r.impression)) for r in raw["train"].values()]
    validation, references = list(raw["val"].values()), list(raw["test"].values())

    def bleu2(said: Report) -> float:
        return sum(sentence_bleu2(said.findings, true.findings) for true in validation)

    chosen = {
        f"of the {CANDIDATES} commonest normal training reports the best": best_constant(train, validation),
        "of all training reports the best by ReXrank's BLEU-2": max(dict.fromkeys(train), key=bleu2),
        "commonest normal training report": commonest_normal_report(train),
    }
    scorer = Scorer(references, SEED, known=r2gen_vocabulary(r.findings for r in raw["train"].values()))
    headings = {"BLEU-4": (R2GEN, "bleu4"), "ROUGE-L": (R2GEN, "rouge_l"), "CIDEr-D": (R2GEN, "cider_d")}
    texts = REXRANK_TEXTS if any(r.impression for r in references) else ["findings"]
    headings |= {f"ReXrank's BLEU-2, {name}": (REXRANK, name) for name in texts}
    headings["rule-label F1"] = (RULE_LABELS, "micro_f1")
    lines = []
    for name, report in chosen.items():
        scored = scorer.score([report] * len(references)).estimates
        lines.append([name, *(f"{scored[protocol][metric].value:.3f}" for protocol, metric in headings.values())])
    if to is not None:
        best, table = format_report(next(iter(chosen.values()))), io.StringIO(newline="")
        csv.writer(table).writerow(("uid", "prediction", "reference"))
        csv.writer(table).writerows((uid, best, format_report(true)) for uid, true in raw["test"].items())
        write_text(to, table.getvalue())
    return markdown_table([f"said of all {len(references)} test studies", *headings], lines)


def read_published(files: Sequence[Path]) -> dict[str, dict[str, Report]]:
    """The untouched reports of each part of a published split, by uid; files as for `constant_table`."""
    for path in files:
        if not path.is_file():
            raise RadVisionError(
                f"{path} is not a file: give R2Gen's annotation.json, or the reports table (CSV) and its split (JSON)."
            )
    table, split = files[0], files[-1]
    parts = published_split(split)
    reports = _annotated(split) if len(files) == 1 else _in_table(table)
    raw = {part: {u: report for u, report in reports.items() if parts.get(u) == part} for part in _PARTS}
    if empty := [part for part, studies in raw.items() if not studies]:
        raise RadVisionError(f"{table} has no report of the {empty[0]} part of {split}: give the table of that split.")
    return raw


def _annotated(path: Path) -> dict[str, Report]:
    """What `annotation.json` holds itself: findings."""
    entries = [entry for part in read_json(path).values() if isinstance(part, list) for entry in part]
    told = [entry for entry in entries if isinstance(entry, dict) and isinstance(entry.get("report"), str)]
    return {open_i_number(entry["id"]) or "": Report(entry["report"], "") for entry in told}


def _in_table(path: Path) -> dict[str, Report]:
    check_columns(csv_columns(path), str(path), ("uid", "findings", "impression"))
    return {
        study_number(row["uid"]) or "": Report(given(row["findings"]) or "", given(row["impression"]) or "")
        for row in csv_lines(path)
    }


def published_split(path: Path) -> dict[str, str]:
    """The part of each study by its number: "train", "val" or "test".

    Args:
        path: JSON in one of three forms: `{"by_uid": {uid: part}}`; numbers by part, as in this project's
            `r2gen_split.json`; or R2Gen's `annotation.json`, entries by part whose ids read "CXR2384_IM-0942".

    Raises:
        RadVisionError: it is none of these, or has a study in two parts.
    """
    data = read_json(path, remedy="get the file anew")
    data = data if isinstance(data, dict) else {}
    pairs = list(data["by_uid"].items()) if isinstance(data.get("by_uid"), dict) else []
    for name in _NAMES.keys() & data.keys():
        entries = data[name] if isinstance(data[name], list) else [None]
        pairs += [(entry.get("id") if isinstance(entry, dict) else entry, name) for entry in entries]
    numbered: list[tuple[Any, Any]] = [(open_i_number(entry), _NAMES.get(str(name))) for entry, name in pairs]
    if not numbered or any(None in pair for pair in numbered):
        raise RadVisionError(
            f'{path} is no split: it must hold {{"by_uid": {{uid: "train", "val" or "test"}}}}, or lists of studies '
            'under "train", "val" and "test".'
        )
    found = dict(numbered)
    if twice := sorted({uid for uid, part in numbered if found[uid] != part}):
        raise RadVisionError(
            f"{path} has {len(twice)} studies in two parts, such as {', '.join(twice[:3])}: keep each in one."
        )
    return found
