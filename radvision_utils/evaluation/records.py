"""Prediction records: what a report says, how that stands to the reference, and which errors need no reference to see.

One record is one line of `predictions.jsonl`, the seam between the evaluation and the dashboard.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from radvision_utils.config import Profile
from radvision_utils.data.reports import (
    DEIDENTIFIED,
    PRIORS,
    Report,
    clean_section,
    drop_sentences,
    format_report,
)
from radvision_utils.data.studies import Study
from radvision_utils.evaluation.finding_labels import Label, compare, find_mentions, label
from radvision_utils.evaluation.label_scores import study_f1
from radvision_utils.evaluation.phantom_accuracy import verdicts
from radvision_utils.runs import RunFolder

FLAGS = ("prior study", "de-identification token", "findings against impression", "copied from training")
VERDICTS = ("agree", "missed", "unsupported", "contradiction")
Labels = Mapping[str, Label]


def report_labels(report: Report) -> dict[str, Label]:
    """The 14 labels of a report, both sections read together."""
    return label(f"{report.findings}\n{report.impression}")


def normal_form(report: Report) -> str:
    """A report as it is compared for being a copy: one line, lower case."""
    return " ".join(format_report(report).lower().split())


def flags_of(report: Report, training: set[str]) -> list[str]:
    """Which of `FLAGS` a generated report earns.

    Args:
        report: what the model wrote.
        training: the training reports, each in `normal_form`.
    """
    sections = [clean_section(text) for text in (report.findings, report.impression)]
    found = {
        "prior study": any(drop_sentences(text, {PRIORS})[1] for text in sections),
        "de-identification token": any(drop_sentences(text, {DEIDENTIFIED})[1] for text in sections),
        "findings against impression": _contradicts_itself(report),
        "copied from training": normal_form(report) in training,
    }
    return [name for name in FLAGS if found[name]]


def _contradicts_itself(report: Report) -> bool:
    if not (report.findings and report.impression):
        return False
    return "contradiction" in compare(label(report.findings), label(report.impression)).values()


def mentioned(labels: Labels) -> dict[str, dict[str, Any]]:
    """Labels as a record has them: only observations that the text mentions."""
    return {
        name: {"status": found.status, "sides": list(found.sides)}
        for name, found in labels.items()
        if found.status != "not mentioned"
    }


def mention_spans(report: Report) -> dict[str, list[dict[str, Any]]]:
    """Where each section mentions an observation: `{"findings": [{"observation", "status", "side", ...}], ...}`."""
    keys = ("observation", "status", "side", "start", "end")
    return {
        section: [{key: getattr(mention, key) for key in keys} for mention in find_mentions(getattr(report, section))]
        for section in ("findings", "impression")
    }


def prediction_record(
    profile: Profile,
    stage: int,
    study: Study,
    index: int,
    report: Report,
    *,
    scores: Mapping[str, float],
    training: set[str],
    seconds: float,
) -> dict[str, Any]:
    """One line of `predictions.jsonl`: all that a card shows of a study."""
    ours, true = report_labels(report), report_labels(study.reference)
    return {
        "uid": study.uid,
        "split": study.split,
        "index": index,
        "image": study.image.relative_to(RunFolder.of(profile).path).as_posix(),
        "view": "frontal",
        "indication": study.indication,
        "generated": vars(report),
        "reference": {"findings": study.reference.findings, "impression": study.reference.impression},
        "labels": {"generated": mentioned(ours), "reference": mentioned(true)},
        "verdicts": compare(ours, true),
        "mentions": {"generated": mention_spans(report), "reference": mention_spans(study.reference)},
        "flags": flags_of(report, training),
        "findings": verdicts(report, study.truth) if study.truth else [],
        "scores": {"label_f1": study_f1(ours, true), **scores},
        "model": {"run": profile.run, "stage": stage, "base": profile.model.base},
        "prompt": profile.model.prompt,
        "seconds": round(seconds, 4),
    }


def rexrank_submission(records: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Predictions as ReXrank takes them: study -> references, image path and `model_prediction`.

    Source: rajpurkarlab/ReXrank, `data/iu_xray/ReXRank_IUXray_test.json` and `example_files/prediction.json`.
    """
    return {
        record["uid"]: {
            "key_image_path": record["image"],
            "image_path": [record["image"]],
            "frontal_lateral": [record["view"].capitalize()],
            "section_findings": record["reference"]["findings"],
            "section_impression": record["reference"]["impression"],
            "report": format_report(Report(**record["reference"])),
            "context": f"Indication: {record['indication']}",
            "split": record["split"],
            "model_prediction": format_report(Report(**record["generated"])),
        }
        for record in records
    }
