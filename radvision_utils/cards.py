"""The cards of a run: cached predictions where there are any, else a live model.

The dashboard draws records and never loads a model; here a run's records and its model meet it.
"""

from __future__ import annotations

import io
from functools import partial
from pathlib import Path
from typing import Any

from radvision_utils.config import Profile, RadVisionError
from radvision_utils.dashboard import browser
from radvision_utils.dashboard.card import ReportCard
from radvision_utils.dashboard.record import Record, find_prediction, image_path, read_predictions
from radvision_utils.data.images import load_square
from radvision_utils.data.studies import Studies, Study, open_prepared
from radvision_utils.environment import open_room
from radvision_utils.evaluation.records import own_prediction, study_prediction, training_forms
from radvision_utils.runs import RunFolder, is_current


def predict_beautiful(
    index: int = 5,
    run: str = "tiny",
    split: str = "test",
    uid: str | int | None = None,
    stage: int = 3,
    output_root: str = "outputs",
    evidence: bool = False,
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

    Raises:
        RadVisionError: no such run, study or stage; the sentence names the valid range or the command.
    """
    folder = RunFolder(run, output_root)
    profile = folder.profile()
    studies = open_prepared(profile).split(split)
    position = _position(studies, split, index, uid)
    # Predictions of an older adapter would pass for this one's.
    current = is_current(profile, "evaluation")
    record = find_prediction(folder.predictions, studies[position].uid, split, stage) if current else None
    cached = record is not None
    if record is None:
        record = _generate(profile, studies, position, stage)
    if evidence and not record.evidence:
        found = _explain(profile, studies[position], record, stage)
        record = Record.read({**record.source, "evidence": found})
    return ReportCard(record, image_path(record, folder.path), cached)


class ReportBrowser(browser.ReportBrowser):
    """The cards of a run's test split to step, sort and filter through in a notebook, to rate blind, and more.

    Ratings are kept in `outputs/<run>/ratings.jsonl`. A model is loaded only to report on an image of one's own.

    Raises:
        RadVisionError: the run has no predictions yet; the sentence names the command.
    """

    def __init__(self, run: str = "tiny", output_root: str = "outputs", index: int = 0) -> None:
        folder = RunFolder(run, output_root)
        records = read_predictions(folder.predictions)
        super().__init__(records, folder.path, index, partial(_report_on, folder.profile()))


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
            f"study {uid} is not in the {split} split, whose {len(uids)} studies run from {uids[0]} to {uids[-1]}: "
            "give another uid, or another split."
        )
    return uids.index(str(uid))


def _generate(profile: Profile, studies: Studies, position: int, stage: int) -> Record:
    from radvision_utils.report import reporter_of

    study, training = studies[position], training_forms(profile)
    [written] = reporter_of(profile, stage).write([study])
    return Record.read(study_prediction(profile, stage, study, position, written, training, scores={}).to_json())


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
    return ReportCard(Record.read(said.to_json()), shown.getvalue(), cached=False)
