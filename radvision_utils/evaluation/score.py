"""Score predictions of any system: our `predictions.jsonl`, a CSV with columns uid, prediction, reference, or the files
of ReXrank and MedEvalKit as they are published. No torch.

`python -m radvision_utils score FILE` compares with the references in the file; with `--run NAME` with those of a
run's split, of which every study must have a prediction.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from radvision_utils.config import STAGE_LABELS, RadVisionError, parse_json
from radvision_utils.data.cells import check_columns, csv_columns, csv_lines, given, open_i_number, study_number
from radvision_utils.data.cleaning import is_english
from radvision_utils.data.labels import label
from radvision_utils.data.parsing import parse_report
from radvision_utils.data.reports import Report
from radvision_utils.data.studies import Study, open_prepared
from radvision_utils.evaluation.records import check_texts
from radvision_utils.evaluation.table import Scorer, figures_of, page
from radvision_utils.evaluation.text_metrics import r2gen_vocabulary
from radvision_utils.figures import markdown_table
from radvision_utils.files import of_shape, read_json, text_lines
from radvision_utils.runs import RunFolder

SEED = 7
_LINES = 'write each study as a JSON object on a line of its own, in UTF-8: {"uid": "1", "generated": "Findings: ..."}'
Pairs = dict[str, tuple[Report, Report | None]]  # uid -> prediction, reference


def score_file(
    path: Path,
    run: RunFolder | None = None,
    split: str = "test",
    training: Sequence[str] = (),
    clinical: Callable[[Sequence[Report], Sequence[Report]], dict[str, float]] | None = None,
) -> tuple[dict[str, Any], str]:
    """The figures of `metrics.json` for every system in a file of predictions, and the page for people.

    Args:
        path: `.jsonl` (one system a stage), `.csv` or `.json` (one system).
        run: whose references to compare with, instead of those in the file.
        split: of the run.
        training: findings of the training reports, whose words R2Gen would know; those of the run if it is given.
        clinical: further figures of a system's reports against the references, by models of other people.

    Raises:
        RadVisionError: the file cannot be read; a study is unknown, missing or there twice; a text is empty or not
            English. Nothing is scored then.
    """
    systems = _read_systems(path)
    dataset = open_prepared(run.profile()) if run else None
    studies = list(dataset.split(split)) if dataset else None
    training = training or [study.reference.findings for study in (dataset.split("train") if dataset else ())]
    reports: dict[str, list[Report]] = {}
    references: list[Report] = []
    for name, pairs in systems.items():
        where = f"{path}, {name}" if len(systems) > 1 else str(path)
        predictions, true = _matched(pairs, studies, where, split)
        if references and list(true.values()) != references:
            raise RadVisionError(f"{where} has other studies than the first system in the file: score it alone.")
        references, reports[name] = list(true.values()), [predictions[uid] for uid in true]
    truths = [study.truth for study in studies or () if study.truth is not None]
    known = r2gen_vocabulary(training) if training else None
    scorer = Scorer(references, SEED, truths=truths or None, known=known)
    scored = {name: scorer.score(given) for name, given in reports.items()}
    metrics: dict[str, Any] = {"predictions": path.name, **figures_of(scored, scorer)}
    told = page(path.name, metrics, scored)
    if clinical is not None:
        metrics["clinical"] = {name: clinical(given, references) for name, given in reports.items()}
        heads = next(iter(metrics["clinical"].values()))
        lines = [[name, *(f"{value:.3f}" for value in row.values())] for name, row in metrics["clinical"].items()]
        told += f"\n## Clinical models\n\n{markdown_table(['reports by', *heads], lines)}"
    return metrics, told


def label_lines(text: str) -> str:
    """The 14 labels of a text, a line each.

    Raises:
        RadVisionError: the text has no words or is not English.
    """
    if not re.search(r"\w", text):
        raise RadVisionError("the text is empty: give a report or a sentence of one, in quotes.")
    if not is_english(text):
        raise RadVisionError("the text is not English: the rules are made for English reports.")
    return "\n".join(f"{name:28}{' '.join([found.status, *found.sides])}" for name, found in label(text).items())


def _matched(
    pairs: Pairs, studies: list[Study] | None, where: str, split: str
) -> tuple[dict[str, Report], dict[str, Report]]:
    """Predictions and references by uid, the latter in the order of scoring; both complete and fit to be scored."""
    predictions = {uid: prediction for uid, (prediction, _) in pairs.items()}
    if studies is None:
        without = [uid for uid, (_, reference) in pairs.items() if reference is None]
        if without:
            raise RadVisionError(f"study {without[0]} in {where} has no reference: add it, or name its run with --run.")
        true = {uid: reference for uid, (_, reference) in pairs.items() if reference is not None}
    else:
        true = {study.uid: study.reference for study in studies}
        unknown = [uid for uid in predictions if uid not in true]
        missing = [uid for uid in true if uid not in predictions]
        if unknown:
            raise RadVisionError(
                f"{where} has a prediction for study {unknown[0]}, which is not in the {split} split "
                f"({len(unknown)} such): take it out, or name the split it belongs to."
            )
        if missing:
            raise RadVisionError(
                f"{where} has no prediction for study {missing[0]} of the {split} split ({len(missing)} of {len(true)} "
                "missing): the scores would be those of a smaller set."
            )
    if not true:
        raise RadVisionError(f"{where} has no studies to score.")
    check_texts(predictions, "prediction")
    check_texts(true, "reference")
    return predictions, true


def _read_systems(path: Path) -> dict[str, Pairs]:
    """Systems in the file: name -> uid -> prediction and reference."""
    if not path.is_file():
        raise RadVisionError(f"{path} is not a file: give predictions as .jsonl, .csv or .json.")
    if path.name.lower().endswith((".csv", ".csv.gz", ".tsv")):
        return {path.stem: _read_csv(path)}
    if path.suffix.lower() == ".json":
        return {path.stem: _read_json(path)}
    if path.suffix.lower() != ".jsonl":
        raise RadVisionError(f"{path} is neither .jsonl, .csv nor .json: give predictions in one of these.")
    systems: dict[str, Pairs] = {}
    for where, text in text_lines(path):
        line = of_shape(parse_json(text, where, _LINES), dict, where, _LINES)
        if "uid" not in line or "generated" not in line:
            raise RadVisionError(f"{where} lacks uid or generated: {_LINES}.")
        if not isinstance(line["uid"], str | int | float):
            raise RadVisionError(f"{where} has a uid that is neither a text nor a number: give the study's own.")
        model, reference = line.get("model"), line.get("reference")
        stage = model.get("stage") if isinstance(model, Mapping) else None  # another system's model may be a name
        name = STAGE_LABELS.get(stage, path.stem) if isinstance(stage, int) else path.stem
        pair = _read_report(line["generated"], where), None if reference is None else _read_report(reference, where)
        _add(systems.setdefault(name, {}), study_number(str(line["uid"])), pair, where)
    return systems or {path.stem: {}}


def _read_json(path: Path) -> Pairs:
    """ReXrank's studies by name with `model_prediction`, or MedEvalKit's list of studies with `response`."""
    data = read_json(path, dict | list, "get the file anew")
    named = data.items() if isinstance(data, dict) else ((None, entry) for entry in data)
    pairs: Pairs = {}
    for number, (name, entry) in enumerate(named, start=1):
        where = f"study {name or number} of {path}"
        entry = entry if isinstance(entry, dict) else {}
        said = entry.get("model_prediction", entry.get("response"))
        images = entry.get("image")
        name = name or (images[0] if isinstance(images, list) and images else number)
        if said is None:
            raise RadVisionError(f"{where} has neither model_prediction nor response: give the file with predictions.")
        told = (entry.get(f"section_{name}", entry.get(name)) for name in ("findings", "impression"))
        findings, impression = (given(str(text or "")) or "" for text in told)
        reference = Report(findings, impression) if findings or impression else None
        _add(pairs, open_i_number(name), (_read_report(said, where), reference), where)
    return pairs


def _read_report(text: object, where: str) -> Report:
    if isinstance(text, str):
        return parse_report(text)
    if isinstance(text, Mapping):
        findings, impression = (text.get(section, "") for section in ("findings", "impression"))
        if isinstance(findings, str) and isinstance(impression, str) and (findings or impression or "findings" in text):
            return Report(findings, impression, bool(text.get("headed", True)))
        if (report := parse_report(json.dumps(text))).headed:  # other keys, or lists of sentences
            return report
    raise RadVisionError(
        f"{where} has a report that is neither a text nor findings and impression: give it as one of these."
    )


def _read_csv(path: Path) -> Pairs:
    """A table of ours, or MedEvalKit's `predictions.csv` with the references in `ground_truth.csv` beside it."""
    needed, true = ("uid", "prediction"), dict[str, str]()
    if {"study_id", "report"} <= set(map(str.lower, csv_columns(path))):
        needed, beside = ("study_id", "report"), path.with_name("ground_truth.csv")
        if not beside.is_file():
            raise RadVisionError(f"{path} has no references: put MedEvalKit's ground_truth.csv beside it.")
        true = {row["study_id"]: row["report"] for row in _rows(beside, needed)}
    pairs: Pairs = {}
    for number, row in enumerate(_rows(path, needed), start=1):
        uid, said = (row[name] for name in needed)
        reference = true.get(uid, row.get("reference"))
        pair = _read_cell(said), None if reference is None else _read_cell(reference)
        _add(pairs, study_number(uid), pair, f"row {number} of {path}")
    return pairs


def _rows(path: Path, needed: Sequence[str]) -> Iterator[dict[str, str]]:
    """The lines of a table that has these columns, by their names in small letters."""
    columns = [name.lower() for name in csv_columns(path)]
    check_columns(columns, str(path), [*needed, *({"reference"} & set(columns))])
    for cells in csv_lines(path):
        yield {name.lower(): cell for name, cell in cells.items()}


def _read_cell(cell: str) -> Report:
    return parse_report(given(cell) or "")


def _add(pairs: Pairs, uid: str | None, pair: tuple[Report, Report | None], where: str) -> None:
    if uid is None:
        raise RadVisionError(f"{where} names no study: give its number as uid.")
    if uid in pairs:
        raise RadVisionError(f"{where}: study {uid} is there twice; keep one prediction a study.")
    pairs[uid] = pair
