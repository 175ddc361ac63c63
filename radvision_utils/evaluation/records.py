"""Predictions: what a report says, how that stands to the reference, and which errors need no reference to see.

A `Prediction` is one line of `predictions.jsonl`, the seam between the evaluation and the dashboard. Its types are the
only description of that file: what does not fit them gives one sentence that names the field.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, is_dataclass
from functools import cache, lru_cache
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Any, TypeVar, Union, get_args, get_origin, get_type_hints

from radvision_utils.config import Profile, RadVisionError
from radvision_utils.content import parameter_count, public_name
from radvision_utils.data.cleaning import DEIDENTIFIED, PRIORS, clean_section, drop_sentences, is_english
from radvision_utils.data.labels import ASSERTED, Label, compare, find_mentions, label
from radvision_utils.data.reports import Report, format_report, split_sentences
from radvision_utils.data.studies import Study, open_prepared
from radvision_utils.environment import open_room
from radvision_utils.evaluation.label_scores import study_f1
from radvision_utils.figures import VERDICTS
from radvision_utils.files import read_json_lines
from radvision_utils.runs import RunFolder

if TYPE_CHECKING:  # whose module imports torch, which a score does without
    from radvision_utils.report import WrittenReport

CUT, REPEATS, COPIED = "cut at the token limit", "repeats itself", "copied from training"
UNKNOWN = "unknown word"
FLAGS = {
    "prior study": "mentions a prior study that was not given",
    "de-identification token": "contains XXXX, a de-identification token",
    "findings against impression": "findings and impression contradict each other",
    CUT: "cut off at the longest allowed length, not ended by the model",
    REPEATS: "says the same again and again",
    COPIED: "copied from a training report",
    UNKNOWN: "has a word that no training report has",
}
"""What is odd in a generated report, and that in words."""
_TIMES = 3  # that a sentence, or the words at the end, must stand there
_TINY = 100_000_000  # parameters at most
_LATEST = 300  # words at the end in which a loop is looked for
_STUTTER = re.compile(r"([^\W_]{1,8}?)\1{11,}")  # within a word
_IF_EMPTY = {
    "reference": "a study without a true report cannot be scored; leave it out knowingly.",
    "prediction": "write the report, or a word such as 'Nothing' where the system wrote nothing.",
}
_UNSEEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")  # a terminal would obey, a file refuse them
_P = TypeVar("_P", bound="Prediction")
_hints = cache(get_type_hints)


@dataclass(frozen=True, kw_only=True)
class Mention:
    """Where a section speaks of an observation: status and side there, first character and one past the last."""

    observation: str
    status: str
    side: str = ""
    start: int
    end: int


@dataclass(frozen=True, kw_only=True)
class DrawnFinding:
    """A finding of a phantom study against what was drawn, and where: left, top, right, bottom as shares of a side."""

    name: str
    side: str = ""
    verdict: str
    box: tuple[float, float, float, float] | None = None


@dataclass(frozen=True)
class Model:
    """What wrote the report: the run, its stage (0 is the untuned base) and the base model; whether all that it was
    trained on are drawn phantoms, and of how many parameters it is, where that is known."""

    run: str
    stage: int
    base: str
    phantoms: bool = False
    parameters: int | None = None

    @classmethod
    def of(cls, profile: Profile, stage: int) -> Model:
        """The model of a run after a stage."""
        base, drawn = profile.model.base, profile.data.source == "phantom"
        return cls(profile.run, stage, public_name(base), drawn, parameter_count(base))

    @property
    def base_name(self) -> str:
        """The base as others may know it: pages are handed around, paths of a machine are not."""
        return public_name(self.base.strip())

    def band(self, own: bool = False) -> str:
        """What nobody may overlook of a model that was trained on drawings, or is too small; "" of any other.

        Args:
            own: of its report on an image of one's own.
        """
        if not self.phantoms:
            if self.parameters is None or self.parameters > _TINY:
                return ""
            size = f"{self.parameters / 1e6:,.1f} million parameters"
            return f"Real radiographs, a tiny model of {size} that sees heart size and opacities at best."
        size = "" if self.parameters is None else f", a model of {self.parameters / 1e6:,.1f} million parameters"
        if own:
            seen = f"This run has only ever seen drawings, no patient{size}"
            return f"{seen}: what it says of a real radiograph means nothing."
        return f"Drawn phantoms, no patients{size}."


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """A report that a model wrote on an image; what is None stands in no line of `predictions.jsonl`.

    Attributes:
        uid: the study, or the name of an image of one's own.
        split: of the study: "train", "validation" or "test"; "" for an image of one's own.
        index: the study's place in its split, or the image's among those of one's own.
        image: the file, relative to the folder of the run or of the images.
        view: "frontal".
        indication: why the study was made; "" where it is not known.
        generated: the report.
        reference: the true report; None for an image of one's own.
        labels: "generated" and "reference" -> observation -> label, those that the text mentions.
        verdicts: observation -> one of `figures.VERDICTS`; None without a reference.
        mentions: "generated" and "reference" -> section -> its mentions.
        flags: which of `FLAGS` the report earns.
        findings: on phantoms what became of each drawn or asserted finding.
        scores: label_f1 (0 to 1) and, in an evaluation, text metrics of this one report.
        model: what wrote the report.
        prompt: what the model was asked.
        seconds: what writing took.
        file, path, key: of an image of one's own: hash and name of its file, and fingerprint of the model.
        place: fingerprint of where that file lay.
    """

    uid: str
    split: str = ""
    index: int | None = None
    image: str = ""
    view: str = ""
    indication: str = ""
    generated: Report
    reference: Report | None
    labels: dict[str, dict[str, Label]] = field(default_factory=dict)
    verdicts: dict[str, str] | None = None
    mentions: dict[str, dict[str, tuple[Mention, ...]]] = field(default_factory=dict)
    flags: tuple[str, ...] = ()
    findings: tuple[DrawnFinding, ...] = ()
    scores: dict[str, float] = field(default_factory=dict)
    model: Model
    prompt: str = ""
    seconds: float | None = None
    file: str | None = None
    path: str | None = None
    key: str | None = None
    place: str | None = None

    @property
    def stage(self) -> int:
        """The stage whose report it is."""
        return self.model.stage

    @property
    def asserted(self) -> dict[str, Label]:
        """The observations that the generated report asserts."""
        return {name: found for name, found in self.labels.get("generated", {}).items() if found.status in ASSERTED}

    @property
    def verdict_pairs(self) -> list[tuple[str, str]]:
        """Observation and verdict: by the rules where a record has those, else of a phantom's drawn findings.

        Without a reference there is nothing to judge by: what the report asserts has the verdict "asserted".
        """
        if self.reference is None:
            return [(name, "asserted") for name in self.asserted]
        if self.verdicts is not None:
            return list(self.verdicts.items())
        return [(finding.name, finding.verdict) for finding in self.findings]

    @classmethod
    def read(cls: type[_P], source: Any, where: str = "this") -> _P:
        """The prediction in a JSON object; its texts lose their control characters.

        Args:
            source: what `to_json` gave.
            where: the line, for the sentence of an error.

        Raises:
            RadVisionError: a field is missing or of the wrong kind, or a verdict is none of `figures.VERDICTS`.
        """
        try:
            read: _P = read_as(cls, source)
        except ValueError as error:
            raise RadVisionError(
                f"{where} is no prediction record ({error}): delete the file and run the evaluation again."
            ) from None
        judged = [*(read.verdicts or {}).items(), *((finding.name, finding.verdict) for finding in read.findings)]
        for name, verdict in judged:
            if verdict not in VERDICTS:
                raise RadVisionError(
                    f"{where} gives finding {name!r} of study {read.uid} the verdict {verdict!r}: "
                    f"use one of {', '.join(VERDICTS)}."
                )
        return read

    def to_json(self) -> dict[str, Any]:
        """The line of `predictions.jsonl`."""
        values = json.loads(json.dumps(dataclasses.asdict(self)))  # lists for tuples
        values["generated"] = self.generated.to_json()
        if self.reference is not None:
            values["reference"] = {"findings": self.reference.findings, "impression": self.reference.impression}
        return {name: value for name, value in values.items() if value is not None or name == "reference"}


def read_predictions(path: Path) -> list[Prediction]:
    """The lines of a `predictions.jsonl`.

    Raises:
        RadVisionError: a line is no prediction; the sentence names it.
    """
    lines = enumerate(read_json_lines(path), start=1)
    return [Prediction.read(source, f"line {number} of {path}") for number, source in lines]


def by_index(ours: Prediction) -> float:
    """The order of the data."""
    return float(ours.index or 0)


def by_label_f1(ours: Prediction) -> tuple[float, ...]:
    """Lowest label F1 first; studies without one last."""
    return (ours.scores.get("label_f1", 2.0), by_index(ours))


def by_contradiction(ours: Prediction) -> tuple[float, ...]:
    """Worst first: contradictions, then what was missed or invented, then the lowest label F1."""
    found = [verdict for _, verdict in ours.verdict_pairs]
    wrong = found.count("missed") + found.count("unsupported")
    return (-found.count("contradiction"), -wrong, *by_label_f1(ours))


def predictions_csv(predictions: Iterable[Prediction]) -> str:
    """Reports beside their references as a table that spreadsheets open and `score` takes: a row a study."""
    table = io.StringIO(newline="")
    rows = csv.writer(table)
    rows.writerow(("uid", "prediction", "reference", "flags", "label F1"))
    for ours in predictions:
        said, true = dataclasses.replace(ours.generated, line=""), ours.reference
        texts = format_report(said), format_report(true) if true else ""
        rows.writerow((ours.uid, *texts, "; ".join(ours.flags), ours.scores.get("label_f1", "")))
    return table.getvalue()


def read_as(kind: Any, value: Any, place: str = "") -> Any:
    """A JSON value as a type: a dataclass, tuple, dictionary, text, truth, whole or finite number, or None.

    Of a dataclass, a field that may be left out may be null too, and no keys but its fields are looked at.

    Raises:
        ValueError: the value has another type, or lacks a field; it names the place.
    """
    origin, inner = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if is_dataclass(kind) and isinstance(value, Mapping):
        return _build(kind, value, place)
    if origin in (Union, UnionType):
        return None if value is None else read_as(inner[0], value, place)
    if origin is dict and isinstance(value, Mapping):
        return {clean(k): read_as(inner[1], v, f"{place}.{k}") for k, v in value.items() if v is not None}
    if origin is tuple and isinstance(value, list) and (inner[-1] is Ellipsis or len(value) == len(inner)):
        return tuple(read_as(inner[0], item, place) for item in value)
    if kind is str and isinstance(value, str):
        return clean(value)
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if (kind is bool and isinstance(value, bool)) or (number and kind in (float, type(value))):
        return value
    raise ValueError(f"its {place} is of the wrong kind" if place else "it is no object")


def _build(kind: Any, source: Mapping[str, Any], place: str) -> Any:
    values = {}
    for each in dataclasses.fields(kind):
        value, where = source.get(each.name), f"{place}.{each.name}".lstrip(".")
        if value is None and (each.default is not MISSING or each.default_factory is not MISSING):
            continue
        if each.name not in source:
            raise ValueError(f"it lacks {where}")
        values[each.name] = read_as(_hints(kind)[each.name], value, where)
    return kind(**values)


def clean(value: object) -> str:
    """Any value as text, with blanks for control characters, so that places in it stay; None is ""."""
    return "" if value is None else _UNSEEN.sub(" ", str(value))


def report_labels(report: Report) -> dict[str, Label]:
    """The 14 labels of a report, both sections, and its line of findings if it has one, read together."""
    return label("\n\n".join(filter(None, (report.line, report.text))))


def normal_form(report: Report) -> str:
    """A report as it is compared for being a copy: without a line of findings, one line, lower case."""
    return " ".join(format_report(dataclasses.replace(report, line="")).lower().split())


def training_forms(profile: Profile) -> frozenset[str]:
    """The run's training reports in `normal_form`.

    Raises:
        RadVisionError: the run's data is missing or stale.
    """
    return frozenset(normal_form(study.report) for study in open_prepared(profile).split("train"))


@lru_cache(maxsize=4)
def _words_of(forms: frozenset[str]) -> frozenset[str]:
    """The words in texts of lower case; a word replaced when a report was de-identified is none."""
    return frozenset(word for form in forms for word in re.findall(r"[^\W\d_]+", form)) - {"xxxx"}


def flags_of(report: Report, training: frozenset[str], finished: bool = True) -> list[str]:
    """Which of `FLAGS` a generated report earns.

    Args:
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
        UNKNOWN: bool(training and _words_of(frozenset([normal_form(report)])) - _words_of(training)),
    }
    return [name for name in FLAGS if found[name]]


def _repeats_itself(report: Report) -> bool:
    """Whether a sentence stands in a section three times, or the end goes round and round."""
    sections = [text.lower() for text in (report.findings, report.impression)]
    said = [Counter(re.sub(r"^\d+[.)]\s*", "", sentence) for sentence in split_sentences(text)) for text in sections]
    if any(max(counts.values(), default=0) >= _TIMES for counts in said) or any(map(_STUTTER.search, sections)):
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


def mentioned(labels: Mapping[str, Label]) -> dict[str, Label]:
    """Labels as a record has them: only observations that the text mentions."""
    return {name: found for name, found in labels.items() if found.status != "not mentioned"}


def mention_spans(report: Report) -> dict[str, tuple[Mention, ...]]:
    """Where each section mentions an observation: "findings" and "impression" -> its mentions."""
    return {
        section: tuple(
            Mention(observation=m.observation, status=m.status, side=m.side, start=m.start, end=m.end)
            for m in find_mentions(getattr(report, section))
        )
        for section in ("findings", "impression")
    }


def own_prediction(
    profile: Profile, stage: int, uid: str, written: WrittenReport, training: frozenset[str]
) -> Prediction:
    """A report without a reference: what it says, by the rules. `uid`: the study, or the name of an image of one's own;
    `training`: see `training_forms`."""
    report = written.report
    return Prediction(
        uid=uid,
        generated=report,
        reference=None,
        labels={"generated": mentioned(report_labels(report))},
        mentions={"generated": mention_spans(report)},
        flags=tuple(flags_of(report, training, written.finished)),
        model=Model.of(profile, stage),
        prompt=profile.model.prompt,
        seconds=round(written.seconds, 4),
    )


def study_prediction(
    profile: Profile,
    stage: int,
    study: Study,
    index: int,
    written: WrittenReport,
    training: frozenset[str],
    scores: Mapping[str, float],
) -> Prediction:
    """A report beside the reference of its study; `index` is its place in the split, `scores` what only that can tell.

    The other arguments are those of `own_prediction`.
    """
    said = own_prediction(profile, stage, study.uid, written, training)
    ours, true = report_labels(written.report), report_labels(study.reference)
    drawn = open_room("phantoms.phantom_reports").verdicts(written.report, study.truth) if study.truth else []
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
        findings=tuple(DrawnFinding(**found) for found in drawn),
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
            "frontal_lateral": [ours.view.capitalize()],
            "section_findings": ours.reference.findings,
            "section_impression": ours.reference.impression,
            "report": format_report(ours.reference),
            "context": f"Indication: {ours.indication}",
            "split": ours.split,
            "model_prediction": format_report(dataclasses.replace(ours.generated, line="")),
        }
        for ours in predictions
        if ours.reference is not None
    }


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
