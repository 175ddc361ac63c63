"""Judge a run on its test split: reports of the base and of every stage, beside what needs no model at all.

Writes `evaluation/predictions.jsonl` (the seam to the dashboard), `table.md`, `ladder.png` and, last, `metrics.json`.
"""

from __future__ import annotations

import json
import logging
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from radvision_utils.config import Profile
from radvision_utils.data.reports import Report
from radvision_utils.data.studies import Study, open_prepared
from radvision_utils.evaluation.phantom_accuracy import phantom_accuracy, verdicts
from radvision_utils.evaluation.text_metrics import PROTOCOLS, score_texts
from radvision_utils.inference import WrittenReport, reporter_of
from radvision_utils.runs import (
    RunFolder,
    fingerprint,
    is_current,
    now,
    read_json_lines,
    require,
    step_key,
    write_json,
    write_text,
)
from radvision_utils.training.loss import mean_report_loss

logger = logging.getLogger(__name__)

STAGE_ROWS = {0: "base, untuned", 1: "after stage 1", 2: "after stage 2", 3: "after stage 3"}
CONSTANT_ROW = "constant report"
CARD_PROTOCOL = "findings + impression, raw"  # whose scores a study's card shows


@dataclass(frozen=True)
class EvaluationResult:
    """A finished evaluation: its folder and `metrics.json`."""

    folder: Path
    metrics: dict[str, Any]

    @property
    def predictions(self) -> list[dict[str, Any]]:
        """The records of `predictions.jsonl`."""
        return read_json_lines(self.folder / "predictions.jsonl")

    @property
    def table(self) -> list[dict[str, Any]]:
        """The headline table, a dictionary a row."""
        rows: list[dict[str, Any]] = self.metrics["table"]
        return rows


def evaluate(profile: Profile, split: str = "test", force: bool = False) -> EvaluationResult:
    """Write and score reports for a split, or give back the result where nothing has changed.

    Raises:
        RadVisionError: data or a stage is missing or stale; the sentence names the command.
    """
    folder = RunFolder.of(profile)
    if not force and is_current(profile, "evaluation"):
        return EvaluationResult(folder.evaluation, require(profile, "evaluation"))
    key, started = step_key(profile, "evaluation"), time.perf_counter()
    dataset = open_prepared(profile)
    studies = list(dataset.split(split))
    constant = commonest_report(dataset.split("train"))
    rows: dict[str, dict[str, Any]] = {
        CONSTANT_ROW: {"report": vars(constant), **score_row([constant] * len(studies), studies)}
    }
    records: list[dict[str, Any]] = []
    for stage, row in STAGE_ROWS.items():
        written, loss = _write_reports(profile, stage, studies)
        rows[row] = {**score_row([w.report for w in written], studies), **_effort(written), "loss": round(loss, 4)}
        records += prediction_records(profile, stage, studies, written)
        logger.info("%s: %s", row, ", ".join(f"{k} {v}" for k, v in headline(rows[row]).items()))

    write_text(folder.predictions, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))
    table = [{"row": name, **headline(row)} for name, row in rows.items()]
    metrics = {
        "key": key,
        "split": split,
        "n": len(studies),
        "seed": profile.seed,
        "rows": rows,
        "table": table,
        "seconds": round(time.perf_counter() - started, 1),
        "finished": now(),
    }
    metrics["hash"] = fingerprint([metrics["rows"], [record["generated"] for record in records]])
    write_text(folder.evaluation / "table.md", markdown_table(table))
    write_json(folder.record_path("evaluation"), metrics)
    folder.note(profile, "evaluation", seconds=metrics["seconds"])
    return EvaluationResult(folder.evaluation, metrics)


def commonest_report(train: Sequence[Study]) -> Report:
    """The most frequent training report; of equally frequent ones the first."""
    return Counter(study.report for study in train).most_common(1)[0][0]


def score_row(generated: Sequence[Report], studies: Sequence[Study]) -> dict[str, Any]:
    """All scores of one row of the table: text metrics by protocol, variety, and on phantoms what was drawn."""
    references = [study.reference for study in studies]
    counts = Counter(generated)
    row: dict[str, Any] = {
        "text": {protocol: score_texts(generated, references, protocol).corpus for protocol in PROTOCOLS},
        "distinct_reports": len(counts),
        "commonest_share": round(counts.most_common(1)[0][1] / len(generated), 4),
        "without_headings": sum(not report.headed for report in generated),
    }
    truths = [study.truth for study in studies if study.truth is not None]
    if len(truths) == len(studies):
        row["drawn"] = phantom_accuracy(generated, truths)
    return row


def headline(row: dict[str, Any]) -> dict[str, Any]:
    """The few figures of a row that its line in the table shows."""
    text = row["text"][CARD_PROTOCOL]
    return {
        **row.get("drawn", {}),
        **({"loss": row["loss"]} if "loss" in row else {}),
        **{name: round(text[name], 4) for name in ("bleu4", "rouge_l", "cider_d")},
        "distinct_reports": row["distinct_reports"],
    }


def _write_reports(profile: Profile, stage: int, studies: Sequence[Study]) -> tuple[list[WrittenReport], float]:
    reporter = reporter_of(profile, stage)
    batch = profile.generation.batch_size
    loss = mean_report_loss(reporter.model, reporter.collator, studies, batch, reporter.device.autocast)
    return list(reporter.write([study.image for study in studies])), loss


def _effort(written: Sequence[WrittenReport]) -> dict[str, Any]:
    seconds, tokens = sum(w.seconds for w in written), sum(w.tokens for w in written)
    return {
        "tokens_per_report": round(tokens / len(written), 1),
        "unfinished": sum(not w.finished for w in written),
        "seconds_per_report": round(seconds / len(written), 4),
        "tokens_per_second": round(tokens / seconds, 1),
    }


def prediction_records(
    profile: Profile, stage: int, studies: Sequence[Study], written: Sequence[WrittenReport]
) -> list[dict[str, Any]]:
    """The lines of `predictions.jsonl`: all that a card shows of a study."""
    scores = score_texts([w.report for w in written], [s.reference for s in studies], CARD_PROTOCOL).each
    return [
        {
            "uid": study.uid,
            "split": study.split,
            "index": index,
            "image": study.image.relative_to(RunFolder.of(profile).path).as_posix(),
            "view": "frontal",
            "indication": study.indication,
            "generated": vars(ours.report),
            "reference": {"findings": study.reference.findings, "impression": study.reference.impression},
            "findings": verdicts(ours.report, study.truth) if study.truth else [],
            "scores": {name: round(score[name], 4) for name in ("bleu4", "rouge_l", "cider_d")},
            "model": {"run": profile.run, "stage": stage, "base": profile.model.base},
            "prompt": profile.model.prompt,
            "seconds": round(ours.seconds, 4),
        }
        for index, (study, ours, score) in enumerate(zip(studies, written, scores, strict=True))
    ]


def markdown_table(table: Sequence[dict[str, Any]]) -> str:
    """The rows as a Markdown table; a metric that a row has not is left empty."""
    columns = list(dict.fromkeys(column for row in table for column in row))
    lines = [columns, ["---"] * len(columns)]
    lines += [[str(row.get(column, "")) for column in columns] for row in table]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)
