"""Reports on many images of one's own: a folder, a CSV or single files become one `predictions.jsonl` and one page.

Stopped at any moment it goes on where it was: every batch is on the disk before the next begins, and what is there
already is not written again. `python -m radvision_utils predict FOLDER --to DIR`.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from PIL import Image

from radvision_utils.config import Profile, RadVisionError, unusual_settings
from radvision_utils.content import checksum, fingerprint
from radvision_utils.data.cells import csv_columns, csv_lines, given, study_number
from radvision_utils.data.images import is_dicom, load_square
from radvision_utils.environment import choose_device, open_room
from radvision_utils.evaluation.records import (
    CUT,
    REPEATS,
    Prediction,
    clean,
    own_prediction,
    predictions_csv,
    training_forms,
)
from radvision_utils.files import append_json_lines, read_json_lines, write_json, write_json_lines, write_text
from radvision_utils.progress import show_progress
from radvision_utils.report import reporter_of
from radvision_utils.runs import RunFolder, holding, require

logger = logging.getLogger(__name__)

ENDINGS = (".png", ".jpg", ".jpeg", ".dcm", ".dicom")


@dataclass(frozen=True)
class OwnImage:
    """An image of one's own: its name in the page, and its file."""

    name: str
    path: Path

    @property
    def place(self) -> str:
        """Stands for where the file lies, and does not tell it."""
        return fingerprint(str(self.path.resolve()))

    @cached_property
    def hash(self) -> str:
        """Of the file's content; "" where it cannot be read."""
        try:
            return checksum(self.path) if self.path.is_file() else ""
        except OSError:
            return ""

    @property
    def shown(self) -> str:
        """Where in the folder of the reports lies what the model saw of it."""
        return f"images/{self.hash}.png"


@dataclass(frozen=True)
class BatchResult:
    """What a batch came to.

    Attributes:
        folder: holds `predictions.jsonl`, also as CSV, `index.html`, `skipped.json` and the squares that the model saw.
        written: reports written now.
        kept: reports that were there already.
        skipped: why an image has no report, by its name.
        doubted: reports, of all there are, that were cut at the token limit or repeat themselves.
    """

    folder: Path
    written: int
    kept: int
    skipped: dict[str, str]
    doubted: int


def find_images(inputs: Sequence[Path], leave_out: Path) -> list[OwnImage]:
    """The images that folders (searched to the bottom), CSV files and paths stand for, each name once.

    Args:
        inputs: a CSV needs a column `image` with paths, relative ones from where the CSV lies; `uid` names them.
        leave_out: a folder whose files are no inputs, since we write them.

    Raises:
        RadVisionError: an input does not exist, a CSV has no such column, or there is no image at all.
    """
    found: list[OwnImage] = []
    for path in inputs:
        if path.is_dir():
            found += [OwnImage(file.relative_to(path).as_posix(), file) for file in _files(path, leave_out.resolve())]
        elif path.suffix.lower() == ".csv" and path.is_file():
            found += _listed(path)
        elif path.is_file():
            found.append(OwnImage(path.name, path))
        else:
            raise RadVisionError(f"image {path} does not exist: give paths of PNG, JPEG or DICOM files.")
    if not found:
        raise RadVisionError(
            f"there is no image in {', '.join(map(str, inputs))}: it takes {', '.join(ENDINGS)} files."
        )
    often = Counter(image.name for image in found)
    above = os.path.commonpath([image.path.parent.absolute() for image in found])
    names = (image.name if often[image.name] == 1 else os.path.relpath(image.path, above) for image in found)
    named = [OwnImage(clean(name), image.path) for name, image in zip(names, found, strict=True)]
    return list({image.name: image for image in named}.values())


def _files(folder: Path, leave_out: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        if any(part.startswith(".") for part in parts) or leave_out in path.resolve().parents or not path.is_file():
            continue
        if path.suffix.lower() in ENDINGS or (not path.suffix and _looks_like_dicom(path)):
            yield path


def _looks_like_dicom(path: Path) -> bool:
    """Scanners write DICOM without an ending."""
    with path.open("rb") as stream:
        return is_dicom(stream.read(132))


def _listed(path: Path) -> list[OwnImage]:
    names = csv_columns(path)
    if "image" not in names:
        raise RadVisionError(f"{path} has no column `image` (it has {', '.join(names)}): name that of the paths so.")
    rows = [
        (study_number(row.get("uid")) or given(row["image"]) or f"row {number}", given(row["image"]) or "")
        for number, row in enumerate(csv_lines(path), start=1)
    ]
    return [OwnImage(name.strip(), path.parent / file.strip()) for name, file in rows]


def predict_files(
    inputs: Sequence[Path], run: str = "tiny", stage: int = 3, to: Path | None = None, output_root: str = "outputs"
) -> BatchResult:
    """Report on all images of folders, CSV files and paths; a file that is no image is named, counted and skipped.

    Args:
        inputs: see `find_images`.
        run: whose model.
        stage: 1, 2 or 3; 0 is the untuned base.
        to: where to write; what is there of the same model and the same files is kept. Default:
            `outputs/<run>/own/<name of the first input>-<hash of the model and of all names and contents>`; reports
            of this model on the same content that stand beside it are taken over.
        output_root: the folder that holds the run.

    Raises:
        RadVisionError: no such run, stage or input; no image could be read; another process writes there; or `to` holds
            reports of another model, or of another image of one's name.
    """
    # The page is the dashboard's, which this module's other half must not need.
    from radvision_utils.dashboard.page import write_own_page
    from radvision_utils.dashboard.record import Record

    home = RunFolder(run, output_root)
    profile = home.profile()
    own = home.path / "own"
    images = find_images(inputs, to or own)
    # By what is in it: two folders of one name are two, and one that was moved is the same.
    key = _model_key(profile, stage)
    content = fingerprint([key, sorted((image.name, image.hash) for image in images)])
    folder = to or own / f"{inputs[0].resolve().stem or 'images'}-{content}"
    with holding(folder, "predict", f"folder {folder}", "give another folder with --to"):
        kept = _kept(folder, key, images)
        if to is None:
            kept |= _written_beside(folder, key, [image for image in images if image.name not in kept])
        written, skipped = _write_missing(profile, stage, folder, key, images, kept)
        if not kept:
            name, reason = next(iter(skipped.items()))
            raise RadVisionError(f"none of the {len(images)} images could be read; the first, {name}: {reason}")
        records = [dataclasses.replace(ours, index=index).to_json() for index, ours in enumerate(kept.values())]
        write_text(folder / "predictions.csv", predictions_csv(kept.values()))
        write_json_lines(folder / "predictions.jsonl", records)
        write_json(folder / "skipped.json", skipped)
        write_own_page([Record.read(record) for record in records], folder, folder / "index.html")
    doubted = sum(bool({CUT, REPEATS}.intersection(ours.flags)) for ours in kept.values())
    return BatchResult(folder, written, len(images) - written - len(skipped), skipped, doubted)


def _write_missing(
    profile: Profile, stage: int, folder: Path, key: str, images: Sequence[OwnImage], kept: dict[str, Prediction]
) -> tuple[int, dict[str, str]]:
    """Writes the reports that `kept` lacks, into it and, a batch at a time, into the folder; how many, and the skipped.

    What cannot be read is named before a model is loaded; without anything to write none is.
    """
    missing = [image for image in images if image.name not in kept or kept[image.name].file != image.hash]
    skipped = _store_squares(missing, folder, profile.data.image_size)
    for image in missing:
        if image.hash:
            kept.pop(image.name, None)  # its report was on another file of that name
    ready = [image for image in missing if image.name not in skipped]
    if not ready:
        return 0, skipped
    profile = open_room("planning.judging").reports_here(profile, choose_device())
    size, reporter, training = profile.generation.batch_size, reporter_of(profile, stage), training_forms(profile)
    with show_progress(len(ready)) as step:
        for first in range(0, len(ready), size):
            batch = ready[first : first + size]
            written = reporter.write([folder / image.shown for image in batch], progress=lambda done, total: None)
            for image, ours in zip(batch, written, strict=True):
                said = own_prediction(profile, stage, image.name, ours, training)
                said = dataclasses.replace(said, image=image.shown, file=image.hash, key=key)
                kept[image.name] = dataclasses.replace(said, path=image.path.name, place=image.place)
            append_json_lines(folder / "predictions.jsonl", *(kept[image.name].to_json() for image in batch))
            step(first + len(batch))
    return len(ready), skipped


def _store_squares(images: Sequence[OwnImage], folder: Path, size: int) -> dict[str, str]:
    """Writes what the model is to see of images; why there is nothing of some, by their names."""
    skipped = {}
    with show_progress(len(images)) as step:
        for done, image in enumerate(images, start=1):
            try:
                if not image.hash:
                    raise RadVisionError(
                        f"image {image.path} cannot be read: it does not exist, or you may not read it."
                    )
                _save(load_square(image.path, size), folder / image.shown)
            except RadVisionError as error:
                logger.warning("skipped: %s", error)
                skipped[image.name] = str(error).replace(str(image.path), image.name)  # the folder may be handed on
            step(done)
    return skipped


def _model_key(profile: Profile, stage: int) -> str:
    """Fingerprint of all that a report depends on besides its image."""
    adapter = require(profile, f"stage{stage}")["hash"] if stage in (1, 2, 3) else stage
    settings = {
        name: value
        for name, value in unusual_settings(profile).items()
        # Not of the batch size: who ran out of memory may go on with a smaller one.
        if name.startswith(("model.", "generation.", "data.image_size")) and name != "generation.batch_size"
    }
    return fingerprint([settings, adapter])


def _kept(folder: Path, key: str, images: Sequence[OwnImage]) -> dict[str, Prediction]:
    """The predictions of an earlier call by name, the latest of each; a line torn by its interruption is dropped.

    Raises:
        RadVisionError: they are another model's, or one is of another image than ours of its name.
    """
    path = folder / "predictions.jsonl"
    kept = {ours.uid: ours for ours in _predictions(path)}
    if any(ours.key != key for ours in kept.values()):
        raise RadVisionError(
            f"{path} holds reports of another model or other settings: give another folder with --to, or delete it."
        )
    for image in images:
        ours = kept.get(image.name)
        if ours and image.hash not in ("", ours.file) and ours.place not in (None, image.place):
            raise RadVisionError(
                f"{path} holds a report on another folder's image of the name {image.name}, which that on {image.path} "
                "would replace: give another folder with --to."
            )
    if kept:
        write_json_lines(path, (ours.to_json() for ours in kept.values()))
    return kept


def _predictions(path: Path) -> Iterator[Prediction]:
    for record in read_json_lines(path, torn=True) if path.is_file() else ():
        yield Prediction.read(record, str(path))


def _written_beside(folder: Path, key: str, images: Sequence[OwnImage]) -> dict[str, Prediction]:
    """Reports of this model on the same content in other folders: the image was moved, or had others beside it."""
    there = {
        ours.file: (ours, path.parent / ours.image)
        for path in sorted(folder.parent.glob("*/predictions.jsonl"))
        for ours in _predictions(path)
        if ours.key == key and ours.image and (path.parent / ours.image).is_file()
    }
    found = {}
    for image in images:
        if image.hash in there:
            ours, square = there[image.hash]
            _save(square, folder / "images" / square.name)
            found[image.name] = dataclasses.replace(ours, uid=image.name, path=image.path.name, place=image.place)
    return found


def _save(square: Image.Image | Path, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    if isinstance(square, Path):
        shutil.copyfile(square, partial)
    else:
        square.save(partial, "PNG")
    os.replace(partial, path)


def told(result: BatchResult) -> str:
    """The result in lines for people: counts, and where the reports and the page lie."""
    counts = [f"{result.written} reports written", f"{result.kept} were there already"]
    counts += [f"{len(result.skipped)} skipped (see {result.folder / 'skipped.json'})"] if result.skipped else []
    counts += [f"{result.doubted} with the flag '{CUT}' or '{REPEATS}'"] if result.doubted else []
    reports, page = result.folder / "predictions.jsonl", result.folder / "index.html"
    return f"{', '.join(counts)}\nReports  {reports}\nPage     {page}"
