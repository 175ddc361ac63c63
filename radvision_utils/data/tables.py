"""Sources that are tables beside images: Kaggle's Open-I, CheXpert Plus, and one's own with a map of its columns.

One's own folder has a `radvision.json` that says where the table and the images are and what its columns are called:
`{"table": "reports.csv", "images": "png", "uid": "study", "image": "file", "findings": "findings", "impression":
"impression"}`, and if they are there `"patient"`, `"split"` and `"indication"`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

from radvision_utils.config import RadVisionError
from radvision_utils.data.rows import (
    Row,
    Source,
    check_columns,
    check_count,
    csv_columns,
    csv_lines,
    inside,
    make_row,
    split_name,
)
from radvision_utils.data.splits import share_of
from radvision_utils.runs import read_json

log = logging.getLogger(__name__)

OPEN_I_CITATION = (
    "Demner-Fushman D, Kohli MD, Rosenman MB, et al. Preparing a collection of radiology examinations for distribution "
    "and retrieval. Journal of the American Medical Informatics Association 2016;23(2):304-310."
)
OPEN_I_LICENSE = "CC BY-NC-ND 4.0: research only, not commercial. It is used here and never shipped."
REPORTS, PROJECTIONS = "indiana_reports.csv", "indiana_projections.csv"
CHEXPERT_PLUS = "df_chexpert_plus_240401.csv"
MAP = "radvision.json"

_MAP_NEEDED = ("table", "uid", "image", "findings", "impression")
_MAP_OPTIONAL = ("images", "patient", "split", "indication")


def open_i_terms(is_open_i: bool) -> dict[str, Any]:
    """What `Source` says of Open-I, or of a collection that is not known."""
    if not is_open_i:
        return {"is_open_i": False, "citation": "", "license": ""}
    return {"is_open_i": True, "citation": OPEN_I_CITATION, "license": OPEN_I_LICENSE, "split_by": "R2Gen"}


def open_kaggle(name: str, folder: Path, seed: int) -> Source | None:
    """Open-I as Kaggle has it; None if the folder is not of that layout.

    Raises:
        RadVisionError: a table or the images are missing or damaged.
    """
    if not any((folder / file).is_file() for file in (REPORTS, PROJECTIONS)):
        return None
    for file, needed in (
        (REPORTS, ("uid", "findings", "impression")),
        (PROJECTIONS, ("uid", "filename", "projection")),
    ):
        if not (folder / file).is_file():
            raise RadVisionError(f"folder {folder} lacks {file}: the Kaggle layout has it beside the other table.")
        check_columns(csv_columns(folder / file), str(folder / file), needed)
    count = sum(1 for _ in csv_lines(folder / REPORTS))
    check_count(count, str(folder / REPORTS))
    images = _image_files(folder)
    if not images:
        place = folder / "images" / "images_normalized"
        raise RadVisionError(f"folder {folder} holds no images: put the PNG or JPEG files into {place}.")
    return Source(
        name=name, kind="kaggle", **open_i_terms(True), count=count, read=lambda: _kaggle_rows(folder, images)
    )


def _image_files(folder: Path) -> dict[str, Path]:
    """Images by the part of their name before the first dot: copies differ in "x.dcm.png", "x.png", "x.jpg"."""
    root = folder / "images" if (folder / "images").is_dir() else folder
    kinds = (".png", ".jpg", ".jpeg")
    return {p.name.split(".")[0]: p for p in sorted(root.rglob("*")) if p.suffix.lower() in kinds}


def _kaggle_rows(folder: Path, images: dict[str, Path]) -> Iterator[Row]:
    frontal: dict[str, Path] = {}
    absent = 0
    for line in csv_lines(folder / PROJECTIONS):
        file = images.get(line["filename"].split(".")[0])
        if file is None:
            absent += 1
        elif line["projection"].strip().lower() == "frontal":
            frontal.setdefault(line["uid"], file)
    if absent:
        log.warning("%d images named in %s are not in %s", absent, PROJECTIONS, folder)
    for line in csv_lines(folder / REPORTS):
        row = make_row(line)
        file = frontal.get(line["uid"])
        row["img_frontal"] = file.read_bytes() if file else None
        yield row


def open_mapped(name: str, folder: Path, seed: int) -> Source | None:
    """A table of one's own, whose columns a `radvision.json` names; None if the folder has none.

    Raises:
        RadVisionError: the map lacks or misspells an entry, or the table is missing, empty or damaged.
    """
    if not (folder / MAP).is_file():
        return None
    columns = read_json(folder / MAP)
    known = (*_MAP_NEEDED, *_MAP_OPTIONAL)
    if not isinstance(columns, dict) or not all(isinstance(value, str) for value in columns.values()):
        raise RadVisionError(f"{folder / MAP} must be an object of texts with {', '.join(_MAP_NEEDED)}.")
    if wrong := [key for key in columns if key not in known] or [key for key in _MAP_NEEDED if key not in columns]:
        raise RadVisionError(
            f"{folder / MAP} has no use for, or lacks, {wrong[0]!r}: it needs {', '.join(_MAP_NEEDED)}, and may have "
            f"{', '.join(_MAP_OPTIONAL)}."
        )
    table = inside(folder, columns["table"])
    if table is None:
        raise RadVisionError(f"{folder / MAP} names the table {columns['table']!r}, which is not in {folder}.")
    named = [column for key, column in columns.items() if key not in ("table", "images")]
    check_columns(csv_columns(table), str(table), named)
    count = sum(1 for _ in csv_lines(table))
    check_count(count, str(table))
    source = Source(
        name=name,
        kind="table",
        **open_i_terms(False),
        count=count,
        read=lambda: _mapped_rows(folder, table, columns),
    )
    return replace(source, split_by=f"column {columns['split']} of the table") if "split" in columns else source


def _mapped_rows(folder: Path, table: Path, columns: Mapping[str, str]) -> Iterator[Row]:
    images = folder / columns.get("images", "")
    for line in csv_lines(table):
        values: dict[str, Any] = {
            key: line[columns[key]]
            for key in ("uid", "findings", "impression", "patient", "split", "indication")
            if key in columns
        }
        file = inside(images, line[columns["image"]])
        yield make_row({**values, "img_frontal": file.read_bytes() if file else None})


def open_chexpert_plus(name: str, folder: Path, seed: int) -> Source | None:
    """CheXpert Plus (Chambon et al. 2024), its table beside the folders `train` and `valid`; None if it is not that.

    The official "valid" split judges, as in ReXrank; a tenth of the other patients, by a seeded hash, is for
    validation.

    Raises:
        RadVisionError: the table lacks columns, or is empty or damaged.
    """
    table = folder / CHEXPERT_PLUS
    if not table.is_file():
        return None
    needed = ("path_to_image", "frontal_lateral", "deid_patient_id", "section_findings", "section_impression", "split")
    check_columns(csv_columns(table), str(table), needed)
    count = sum(1 for _ in groupby(csv_lines(table), key=_study_folder))
    check_count(count, str(table))
    return Source(
        name=name,
        kind="chexpert-plus",
        is_open_i=False,
        citation="Chambon P, Delbrouck JB, Sounack T, et al. CheXpert Plus: augmenting a large chest X-ray dataset "
        "with text radiology reports, patient demographics and additional image formats. arXiv:2405.19538, 2024.",
        license="Stanford University School of Medicine CheXpert Plus research use agreement: never shipped.",
        count=count,
        read=lambda: _chexpert_rows(folder, seed),
        split_by="official: valid is the test split; validation by patient from train",
    )


def _study_folder(line: Mapping[str, str]) -> str:
    return line["path_to_image"].rpartition("/")[0]


def _chexpert_rows(folder: Path, seed: int) -> Iterator[Row]:
    for study, group in groupby(csv_lines(folder / CHEXPERT_PLUS), key=_study_folder):
        lines = list(group)
        frontal = (line for line in lines if line["frontal_lateral"].strip().lower() == "frontal")
        files = (_chexpert_image(folder, line["path_to_image"]) for line in frontal)
        file = next((file for file in files if file), None)
        uid, patient = "_".join(study.split("/")[-2:]), lines[0]["deid_patient_id"]
        judges = split_name(lines[0]["split"], uid) != "train"
        known = "validation" if share_of(f"patient:{patient}", seed) < 0.1 else "train"
        sections = {name: _given(lines[0].get(f"section_{name}")) for name in ("findings", "impression", "history")}
        yield make_row(
            {
                "uid": uid,
                "findings": sections["findings"],
                "impression": sections["impression"],
                "indication": _given(lines[0].get("section_clinical_history")) or sections["history"],
                "patient": patient,
                "split": "test" if judges else known,
                "img_frontal": file.read_bytes() if file else None,
            }
        )


def _given(text: str | None) -> str | None:
    """A cell; "nan", which pandas writes for an empty one, is None."""
    return None if text is None or text.strip().lower() in ("", "nan") else text


def _chexpert_image(folder: Path, name: str) -> Path | None:
    # The table names JPEG files; the download has PNG files too, in a folder PNG or PNG/PNG.
    stem = name.rpartition(".")[0]
    places = (inside(folder / root, stem + end) for root in ("", "PNG", "PNG/PNG") for end in (".jpg", ".png"))
    return next((path for path in places if path), None)
