"""CheXpert Plus (Chambon et al. 2024): its table beside the folders `train` and `valid` with the images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import groupby
from pathlib import Path

from radvision_utils.data.cells import check_columns, csv_columns, csv_lines, given, study_number
from radvision_utils.data.sources import CHEXPERT_PLUS, Row, Source, add_picture, make_row, share_of, split_name
from radvision_utils.files import inside


def open_collection(name: str, folder: Path, seed: int) -> Source:
    """The collection in its official layout.

    The official "valid" split judges, as in ReXrank; a tenth of the other patients, by a seeded hash, is for
    validation.

    Raises:
        RadVisionError: the table lacks columns, or is empty or damaged.
    """
    table = folder / CHEXPERT_PLUS
    needed = ("path_to_image", "frontal_lateral", "deid_patient_id", "section_findings", "section_impression", "split")
    check_columns(csv_columns(table), str(table), needed)
    count = sum(1 for _ in groupby(csv_lines(table), key=_study_folder))
    return Source(
        name=name,
        kind="chexpert-plus",
        count=count,
        rows=lambda: _rows(table, seed),
        citation="Chambon P, Delbrouck JB, Sounack T, et al. CheXpert Plus: augmenting a large chest X-ray dataset "
        "with text radiology reports, patient demographics and additional image formats. arXiv:2405.19538, 2024.",
        license="Stanford University School of Medicine CheXpert Plus research use agreement: never shipped.",
        split_by="official: valid is the test split; validation by patient from train",
    )


def _study_folder(line: Mapping[str, str]) -> str:
    return line["path_to_image"].rpartition("/")[0]


def _rows(table: Path, seed: int) -> Iterator[Row]:
    for study, group in groupby(csv_lines(table), key=_study_folder):
        lines = list(group)
        line = lines[0]
        named = [each["path_to_image"] for each in lines if each["frontal_lateral"].strip().lower() == "frontal"]
        uid, patient = "_".join(study.split("/")[-2:]), study_number(line["deid_patient_id"])
        judges = split_name(line["split"], uid) != "train"
        known = "validation" if share_of(f"patient:{patient}", seed) < 0.1 else "train"
        row = make_row(
            {
                "uid": uid,
                "findings": line["section_findings"],
                "impression": line["section_impression"],
                "indication": given(line.get("section_clinical_history")) or line.get("section_history"),
                "patient": patient,
                "split": "test" if judges else known,
            }
        )
        yield add_picture(row, *((name, _image(table.parent, name)) for name in named))


def _image(folder: Path, name: str) -> Path | None:
    # The table names JPEG files; the download has PNG files too, in a folder PNG or PNG/PNG.
    stem = name.rpartition(".")[0]
    places = (
        inside(folder / root, stem + end, links=True) for root in ("", "PNG", "PNG/PNG") for end in (".jpg", ".png")
    )
    return next((path for path in places if path), None)
