"""Predictions: what a report says, how that stands to the reference, and which errors need no reference to see.

A `Prediction` is one line of `predictions.jsonl`, the seam between the evaluation and the dashboard.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from radvision_utils.config import Profile, RadVisionError
from radvision_utils.content import public_name
from radvision_utils.data.reports import (
    DEIDENTIFIED,
    PRIORS,
    Report,
    clean_section,
    drop_sentences,
    format_report,
    is_english,
    parse_report,
    split_sentences,
)
from radvision_utils.data.studies import Study, open_prepared
from radvision_utils.environment import open_room
from radvision_utils.evaluation.labels import Label, compare, find_mentions, label, study_f1
from radvision_utils.runs import RunFolder, read_json_lines

if TYPE_CHECKING:  # whose module imports torch, which a score does without
    from radvision_utils.report import WrittenReport

CUT, REPEATS, COPIED = "cut at the token limit", "repeats itself", "copied from training"
FLAGS = ("prior study", "de-identification token", "findings against impression", CUT, REPEATS, COPIED)
VERDICTS = ("agree", "missed", "unsupported", "contradiction")
Labels = Mapping[str, Label]
_TIMES = 3  # that a sentence, or the words at the end, must stand there
_LATEST = 300  # words at the end in which a loop is looked for
_IF_EMPTY = {
    "reference": "a study without a true report cannot be scored; leave it out knowingly.",
    "prediction": "write the report, or a word such as 'None' where the system wrote nothing.",
}


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """A report that a system wrote on an image; what is None stands in no line of `predictions.jsonl`.

    Attributes:
        uid: the study, or the name of an image of one's own.
        split: of the study: "train", "validation" or "test".
        index: the study's place in its split, or the image's among those of one's own.
        image: the file, relative to the folder of the run or of the images.
        view: "frontal".
        indication: why the study was made; "" where it is not known.
        generated: the report.
        reference: the true report; None for an image of one's own.
        labels: "generated" and "reference" -> observation -> `{"status", "sides"}`, those that the text mentions.
        verdicts: observation -> one of `VERDICTS`.
        mentions: "generated" and "reference" -> section -> `mention_spans`.
        flags: which of `FLAGS` the report earns.
        findings: on phantoms what became of each drawn or asserted finding: `{"name", "side", "verdict"}`.
        scores: label_f1 (0 to 1) and, in an evaluation, text metrics of this one report.
        model: `{"run", "stage", "base"}`; stage 0 is the untuned base.
        prompt: what the model was asked.
        seconds: what writing took.
        file, path, key: of an image of one's own: hash and name of its file, and fingerprint of the model.
        place: fingerprint of where that file lay.
    """

    uid: str
    split: str | None = None
    index: int | None = None
    image: str | None = None
    view: str | None = None
    indication: str | None = None
    generated: Report
    reference: Report | None = None
    labels: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    verdicts: dict[str, str] | None = None
    mentions: dict[str, dict[str, list[dict[str, Any]]]] = field(default_factory=dict)
    flags: list[str] = field(default_factory=list)
    findings: list[dict[str, str]] | None = None
    scores: dict[str, float] | None = None
    model: dict[str, Any] = field(default_factory=dict)
    prompt: str | None = None
    seconds: float | None = None
    file: str | None = None
    path: str | None = None
    key: str | None = None
    place: str | None = None

    @property
    def stage(self) -> int | None:
        """The stage whose report it is; None where another system wrote it."""
        stage = self.model.get("stage")
        return stage if isinstance(stage, int) else None

    @classmethod
    def from_json(cls, record: Mapping[str, Any], where: str) -> Prediction:
        """A line of `predictions.jsonl`; of other systems' uid and generated are enough, and a report may be a text.

        Args:
            record: what `to_json` gave, or another system's.
            where: the line, for the sentence of an error.

        Raises:
            RadVisionError: it is no such record.
        """
        if not isinstance(record, Mapping) or "uid" not in record or "generated" not in record:
            raise RadVisionError(f"{where} lacks uid or generated: see the README for the schema of a prediction.")
        names = [each.name for each in dataclasses.fields(cls)]
        known = {name: record[name] for name in names if record.get(name) is not None}
        known |= {"uid": str(record["uid"]), "generated": _read_report(record["generated"], where)}
        if "reference" in known:
            known["reference"] = _read_report(known["reference"], where)
        if not isinstance(known.get("model", {}), Mapping):
            del known["model"]  # another system's name, say
        return cls(**known)

    def to_json(self) -> dict[str, Any]:
        """The line of `predictions.jsonl`."""
        values = {each.name: getattr(self, each.name) for each in dataclasses.fields(self)}
        values["generated"] = vars(self.generated)
        if self.reference is not None:
            values["reference"] = {"findings": self.reference.findings, "impression": self.reference.impression}
        return {name: value for name, value in values.items() if value is not None or name == "reference"}


def read_predictions(path: Path) -> list[Prediction]:
    """The lines of a `predictions.jsonl`, ours or another system's.

    Raises:
        RadVisionError: a line is no prediction; the sentence names it.
    """
    records = read_json_lines(path)
    return [Prediction.from_json(record, f"line {number} of {path}") for number, record in enumerate(records, start=1)]


def report_labels(report: Report) -> dict[str, Label]:
    """The 14 labels of a report, both sections read together."""
    return label(f"{report.findings}\n\n{report.impression}")


def normal_form(report: Report) -> str:
    """A report as it is compared for being a copy: one line, lower case."""
    return " ".join(format_report(report).lower().split())


def training_forms(profile: Profile) -> set[str]:
    """The run's training reports in `normal_form`.

    Raises:
        RadVisionError: the run's data is missing or stale.
    """
    return {normal_form(study.report) for study in open_prepared(profile).split("train")}


def flags_of(report: Report, training: set[str], finished: bool = True) -> list[str]:
    """Which of `FLAGS` a generated report earns.

    Args:
        report: what the model wrote.
        training: the training reports, each in `normal_form`.
        finished: False where the longest allowed report ended it, not the model.
    """
    sections = [clean_section(text) for text in (report.findings, report.impression)]
    found = {
        "prior study": any(drop_sentences(text, {PRIORS})[1] for text in sections),
        "de-identification token": any(drop_sentences(text, {DEIDENTIFIED})[1] for text in sections),
        "findings against impression": _contradicts_itself(report),
        CUT: not finished,
        REPEATS: _repeats_itself(report),
        COPIED: normal_form(report) in training,
    }
    return [name for name in FLAGS if found[name]]


def _repeats_itself(report: Report) -> bool:
    """Whether a sentence stands in a section three times, or the end goes round and round."""
    sections = [text.lower() for text in (report.findings, report.impression)]
    if any(max(Counter(split_sentences(text)).values(), default=0) >= _TIMES for text in sections):
        return True
    words = " ".join(sections).split()[-_LATEST:]
    return _ends_in_loop(words) or _ends_in_loop(words[:-1])  # the last word may be cut off


def _ends_in_loop(words: list[str]) -> bool:
    turns = range(1, len(words) // _TIMES + 1)
    return any(words[-_TIMES * turn : -turn] == words[-(_TIMES - 1) * turn :] for turn in turns)


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


def own_prediction(profile: Profile, stage: int, uid: str, written: WrittenReport, training: set[str]) -> Prediction:
    """A report without a reference: what it says, by the rules.

    Args:
        profile: the run's settings.
        stage: whose report.
        uid: the study, or the name of an image of one's own.
        written: what the model wrote.
        training: see `training_forms`.
    """
    report = written.report
    return Prediction(
        uid=uid,
        generated=report,
        labels={"generated": mentioned(report_labels(report))},
        mentions={"generated": mention_spans(report)},
        flags=flags_of(report, training, written.finished),
        model={"run": profile.run, "stage": stage, "base": public_name(profile.model.base)},
        prompt=profile.model.prompt,
        seconds=round(written.seconds, 4),
    )


def study_prediction(
    profile: Profile,
    stage: int,
    study: Study,
    index: int,
    written: WrittenReport,
    training: set[str],
    scores: Mapping[str, float],
) -> Prediction:
    """A report beside the reference of its study; `index` is its place in the split, `scores` what only that can tell.

    The other arguments are those of `own_prediction`.
    """
    said = own_prediction(profile, stage, study.uid, written, training)
    ours, true = report_labels(written.report), report_labels(study.reference)
    return dataclasses.replace(
        said,
        split=study.split,
        index=index,
        image=study.image.relative_to(RunFolder.of(profile).path).as_posix(),
        view="frontal",
        indication=study.indication,
        reference=study.reference,
        labels={**said.labels, "reference": mentioned(true)},
        verdicts=compare(ours, true),
        mentions={**said.mentions, "reference": mention_spans(study.reference)},
        findings=open_room("phantoms.phantom_accuracy").verdicts(written.report, study.truth) if study.truth else [],
        scores={"label_f1": study_f1(ours, true), **scores},
    )


def rexrank_submission(predictions: Iterable[Prediction]) -> dict[str, dict[str, Any]]:
    """Predictions beside references as ReXrank takes them: study -> references, image path and `model_prediction`.

    Source: rajpurkarlab/ReXrank, `data/iu_xray/ReXRank_IUXray_test.json` and `example_files/prediction.json`.
    """
    return {
        ours.uid: {
            "key_image_path": ours.image,
            "image_path": [ours.image],
            "frontal_lateral": [str(ours.view).capitalize()],
            "section_findings": ours.reference.findings,
            "section_impression": ours.reference.impression,
            "report": format_report(ours.reference),
            "context": f"Indication: {ours.indication}",
            "split": ours.split,
            "model_prediction": format_report(ours.generated),
        }
        for ours in predictions
        if ours.reference is not None
    }


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


def check_texts(reports: Mapping[str, Report], what: str) -> None:
    """Refuses what cannot be scored: reports without a word, and those not in English, for which no metric is made.

    Args:
        reports: by uid.
        what: "reference" or "prediction".

    Raises:
        RadVisionError: the sentence names the first such study, how many there are, and what to do.
    """
    texts = {uid: f"{report.findings} {report.impression}" for uid, report in reports.items()}
    if empty := [uid for uid, text in texts.items() if not re.search(r"\w", text)]:
        raise RadVisionError(f"the {what} of study {empty[0]} is empty ({_how_many(empty)}): {_IF_EMPTY[what]}")
    if odd := [uid for uid, text in texts.items() if not is_english(text)]:
        raise RadVisionError(
            f"the {what} of study {odd[0]} is not English ({_how_many(odd)}): the metrics and the finding labels are "
            "made for English reports; translate the texts first."
        )


def _how_many(odd: Sequence[str]) -> str:
    return f"{len(odd)} in all" if len(odd) > 1 else "the only one"
