"""The cards of a run: cached predictions where there are any, else a live model.

The dashboard draws records and never loads a model; here a run's records and its model meet it.
"""

from __future__ import annotations

import io
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from markupsafe import escape

from radvision_utils.config import Profile, RadVisionError
from radvision_utils.dashboard import browser
from radvision_utils.dashboard.card import ReportCard, training_changed
from radvision_utils.dashboard.record import Record, find_prediction, image_path, read_predictions
from radvision_utils.data.images import load_square
from radvision_utils.data.studies import Studies, Study, open_prepared
from radvision_utils.environment import open_room
from radvision_utils.evaluation.records import own_prediction, study_prediction, training_forms
from radvision_utils.runs import RunFolder, is_current

_SHOWN = 2  # cards of studies that a stage changed


def predict_beautiful(
    index: int = 5,
    run: str = "tiny",
    split: str = "test",
    uid: str | int | None = None,
    stage: int = 3,
    output_root: str = "outputs",
    evidence: bool = False,
    before: int | None = None,
) -> ReportCard:
    """A card with radiograph, generated report and reference side by side.

    Args:
        index: place of the study in its split, from 0; not used where `uid` is given.
        run: the run's folder below `output_root`.
        split: "train", "validation" or "test".
        uid: the study by its number.
        stage: whose report: 1, 2 or 3; 0 is the untuned base.
        output_root: the folder that holds the run.
        evidence: also show what each sentence rests on; computed now where the evaluation has not done so.
        before: an earlier stage whose report stands beside it, with what changed since; 0 is the untuned base.

    Raises:
        RadVisionError: no such run, study or stage; the sentence names the valid range or the command.
    """
    folder = RunFolder(run, output_root)
    profile = folder.profile()
    studies = open_prepared(profile).split(split)
    position = _position(studies, split, index, uid)
    found, cached = _find(profile, studies, position, stage)
    if evidence and not found.evidence:
        explained = _explain(profile, studies[position], found, stage)
        found = replace(found, evidence=explained)
    earlier = None if before is None else _find(profile, studies, position, before)[0]
    return ReportCard(found, image_path(found, folder.path), cached, before=earlier)


def _find(profile: Profile, studies: Studies, position: int, stage: int) -> tuple[Record, bool]:
    """A study's record in a stage, and whether it was there already."""
    # Predictions of an older adapter would pass for this one's.
    there = RunFolder.of(profile).predictions if is_current(profile, "evaluation") else None
    found = find_prediction(there, studies[position].uid, studies[position].split, stage) if there else None
    return found or _generate(profile, studies, position, stage), found is not None


@dataclass(frozen=True)
class StageChanges:
    """What a stage changed in the reports on validation studies, for a notebook.

    Attributes:
        sentence: of so many studies how many gained, lost or dropped a finding.
        cards: of the studies that changed most, both reports in one card.
    """

    sentence: str
    cards: list[ReportCard]

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, str]:
        shown = "".join(f'<div style="margin-top:16px">{card.html()}</div>' for card in self.cards)
        text = "\n\n".join([self.sentence, *(card.text() for card in self.cards)])
        return {"text/html": f"<p>{escape(self.sentence)}</p>{shown}", "text/plain": text}


def compare_stages(profile: Profile, before: int, after: int, studies: int = 60) -> StageChanges:
    """Reports of two stages on the first validation studies: counts, and cards of the studies that changed most.

    Args:
        profile: the run's settings.
        before: the earlier stage; 0 is the untuned base.
        after: the later one.
        studies: to write reports on, in both stages.

    Raises:
        RadVisionError: data or a stage is missing, unfinished or made with other settings.
    """
    from radvision_utils.report import write_in_stages

    chosen, training = open_prepared(profile).split("validation")[:studies], training_forms(profile)
    old, new = (
        [
            Record.of(study_prediction(profile, stage, study, index, ours, training, scores={}))
            for index, (study, ours) in enumerate(zip(chosen, written, strict=True))
        ]
        for stage, written in zip((before, after), write_in_stages(profile, (before, after), chosen), strict=True)
    )
    changes = [list(training_changed(*pair).values()) for pair in zip(old, new, strict=True)]
    gained, lost, dropped, invented = (
        sum(any(test(then, now) for then, now in found) for found in changes)
        for test in (
            lambda then, now: now == "agree",
            lambda then, now: then == "agree",
            lambda then, now: then == "unsupported" and not now,
            lambda then, now: now == "unsupported" and not then,
        )
    )
    sentence = (
        f"Of {len(chosen)} validation studies {gained} gained a true finding and {lost} lost one; {dropped} dropped a "
        f"false one and {invented} gained one."
    )
    most = sorted((n for n in range(len(chosen)) if changes[n]), key=lambda n: -len(changes[n]))[:_SHOWN]
    root = RunFolder.of(profile).path
    return StageChanges(
        sentence, [ReportCard(new[n], image_path(new[n], root), cached=False, before=old[n]) for n in most]
    )


class ReportBrowser(browser.ReportBrowser):
    """The cards of a run's test split to step, sort and filter through in a notebook, to rate blind, and more.

    Ratings are kept in `outputs/<run>/ratings.jsonl`. A model is loaded only to report on an image of one's own.

    Raises:
        RadVisionError: the run has no predictions yet; the sentence names the command.
    """

    def __init__(self, run: str = "tiny", output_root: str = "outputs") -> None:
        folder = RunFolder(run, output_root)
        records = read_predictions(folder.predictions)
        super().__init__(records, folder.path, partial(_report_on, folder.profile()))


def write_dashboard(run: str = "tiny", output_root: str = "outputs") -> Path:
    """Write the standalone page of a run and give its path.

    Raises:
        RadVisionError: the run has no predictions yet; the sentence names the command.
    """
    from radvision_utils.dashboard.page import write_page

    folder = RunFolder(run, output_root)
    records = read_predictions(folder.predictions)
    return write_page(records, folder.record("evaluation") or {}, folder.path, folder.dashboard / "index.html")


def _position(studies: Studies, split: str, index: int, uid: str | int | None) -> int:
    if uid is None:
        if not 0 <= index < len(studies):
            raise RadVisionError(
                f"index {index} does not exist: the {split} split has {len(studies)} studies, 0 to {len(studies) - 1}."
            )
        return index
    uids = [study.uid for study in studies]
    if str(uid) not in uids:
        raise RadVisionError(
            f"study {uid} is not in the {split} split of {len(uids)} studies: give another uid, such as {uids[0]}, or "
            "another split."
        )
    return uids.index(str(uid))


def _generate(profile: Profile, studies: Studies, position: int, stage: int) -> Record:
    from radvision_utils.report import reporter_of

    study, training = studies[position], training_forms(profile)
    [written] = reporter_of(profile, stage).write([study])
    return Record.of(study_prediction(profile, stage, study, position, written, training, scores={}))


def _explain(profile: Profile, study: Study, record: Record, stage: int) -> dict[str, Any]:
    """The line that `evidence.jsonl` would have for a report."""
    from radvision_utils.report import reporter_of

    found = open_room("evidence.explain").explain_report(reporter_of(profile, stage), study, record.generated)
    line: dict[str, Any] = open_room("evidence.study_maps").evidence_record(study.uid, found.parts, found.seconds)
    return line


def _report_on(profile: Profile, name: str, image: bytes | Path, stage: int) -> ReportCard:
    """A card for an image of one's own. The model is loaded anew for each: kept, a 7B would fill the card."""
    from radvision_utils.report import reporter_of

    if isinstance(image, Path) and not image.is_file():
        raise RadVisionError(f"image {image} does not exist: give the path of a PNG, JPEG or DICOM file.")
    square = load_square(image, profile.data.image_size)
    [written] = reporter_of(profile, stage).write([square])
    shown = io.BytesIO()
    square.save(shown, "PNG")
    said = own_prediction(profile, stage, name, written, training_forms(profile))
    return ReportCard(Record.of(said), shown.getvalue(), cached=False)
