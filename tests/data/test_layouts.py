"""Collections in their official layouts: MIMIC-CXR-JPG, CheXpert Plus, and a table of one's own with a column map."""

import csv
import gzip
import io
import json
from pathlib import Path

import pytest
from PIL import Image

from radvision_utils.collections.mimic import sections_of
from radvision_utils.config import DataSettings, RadVisionError, load_profile
from radvision_utils.data.prepare import prepare_dataset
from radvision_utils.data.sources import open_source
from radvision_utils.data.studies import SPLITS

SETTINGS = DataSettings(workers=1)
REPORT = """                                 FINAL REPORT
 EXAMINATION:  CHEST (PA AND LAT)

 INDICATION:  ___ year old woman with cough  // rule out
 pneumonia

 TECHNIQUE:  PA and lateral.

 COMPARISON:  ___

 FINDINGS:

 The lungs are clear in study {study}. There is
 no effusion.

 IMPRESSION:

 No acute disease.
"""


def picture(number: int, kind: str = "JPEG") -> bytes:
    stream = io.BytesIO()
    half = Image.effect_noise((24, 48), 10 + number % 90)
    whole = Image.new("L", (48, 48))
    whole.paste(half, (0, 0))
    whole.paste(half.transpose(Image.Transpose.FLIP_LEFT_RIGHT), (24, 0))
    whole.save(stream, kind)
    return stream.getvalue()


def write(path: Path, content: bytes | str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def write_table(path: Path, columns: str, lines: list[tuple[object, ...]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "wt", newline="", encoding="utf-8") as stream:
        table = csv.writer(stream)
        table.writerow(columns.split(","))
        table.writerows(lines)


def sentence_of(source: Path) -> str:
    with pytest.raises(RadVisionError) as caught:
        list(open_source(str(source), SETTINGS, 0).rows())
    assert "\n" not in str(caught.value)
    return str(caught.value)


def mimic_folder(folder: Path, reports: str = "mimic-cxr-reports/files", suffix: str = ".gz") -> Path:
    """Twelve patients with two studies each, a frontal (AP and PA) and a lateral image in a study."""
    metadata, split = [], []
    for patient in range(10000001, 10000013):
        name = "test" if patient % 4 == 0 else "validate" if patient % 4 == 1 else "train"
        for study in (50000000 + 2 * (patient - 10000000), 50000001 + 2 * (patient - 10000000)):
            place = f"p{str(patient)[:2]}/p{patient}/s{study}"
            write(folder / reports / f"{place}.txt", REPORT.format(study=study))
            for number, view in enumerate(("LATERAL", "AP", "PA", "")):
                image = f"{study}-{number}"
                write(folder / "files" / place / f"{image}.jpg", picture(study * 4 + number))
                metadata.append((image, patient, study, "CHEST (PA AND LAT)", view))
                split.append((image, study, patient, name))
    columns = "dicom_id,subject_id,study_id,PerformedProcedureStepDescription,ViewPosition"
    write_table(folder / f"mimic-cxr-2.0.0-metadata.csv{suffix}", columns, metadata)
    write_table(folder / f"mimic-cxr-2.0.0-split.csv{suffix}", "dicom_id,study_id,subject_id,split", split)
    return folder


def prepared(source: Path, folder: Path):
    settings = {"data.image_size": 56, "data.workers": 1}
    return prepare_dataset(load_profile("tiny", settings, source=str(source), output_root=str(folder / "out")))


@pytest.mark.parametrize(("reports", "suffix"), [("mimic-cxr-reports/files", ".gz"), ("files", "")])
def test_mimic_gives_the_pa_view_the_sections_and_the_official_split(tmp_path, reports, suffix):
    source = open_source(str(mimic_folder(tmp_path, reports, suffix)), SETTINGS, 0)
    assert (source.kind, source.count, source.is_open_i) == ("mimic", 24, False)
    assert "Credentialed" in source.license
    first = next(source.rows())
    assert first["uid"] == "50000002"
    assert first["findings"] == "The lungs are clear in study 50000002. There is no effusion."
    assert first["impression"] == "No acute disease."
    assert first["indication"] == "___ year old woman with cough // rule out pneumonia"
    files = tmp_path / "files" / "p10" / "p10000001" / "s50000002"
    assert first["img_frontal"] == (files / "50000002-2.jpg").read_bytes()
    assert {row["patient"]: row["split"] for row in source.rows()}["10000004"] == "test"


def test_mimic_is_prepared_with_no_patient_in_two_splits_and_no_patient_number_written(tmp_path):
    data = prepared(mimic_folder(tmp_path / "mimic"), tmp_path)
    assert data.summary["counts"]["splits"] == {"train": 12, "validation": 6, "test": 6}
    assert data.summary["split_by"] == "official, by patient"
    patients = {split: {(int(s.uid) - 50000000) // 2 for s in data.split(split)} for split in SPLITS}
    assert not patients["train"] & (patients["validation"] | patients["test"])
    assert b"10000004" not in (data.folder / "studies.arrow").read_bytes()
    assert data.split("test")[0].indication.startswith("___ year old woman")


def test_an_incomplete_mimic_folder_is_refused_in_one_sentence(tmp_path):
    folder = mimic_folder(tmp_path)
    (folder / "mimic-cxr-2.0.0-split.csv.gz").unlink()
    assert "lacks mimic-cxr-2.0.0-split.csv" in sentence_of(folder)
    mimic_folder(folder)
    (folder / "mimic-cxr-reports").rename(folder / "elsewhere")
    assert "unpack mimic-cxr-reports.zip" in sentence_of(folder)
    damaged = folder / "mimic-cxr-2.0.0-metadata.csv.gz"
    (folder / "elsewhere").rename(folder / "mimic-cxr-reports")
    damaged.write_bytes(damaged.read_bytes()[:200])
    assert "is not a CSV table" in sentence_of(folder)


@pytest.mark.parametrize(
    ("text", "sections"),
    [
        (REPORT, ["preamble", "examination", "indication", "technique", "comparison", "findings", "impression"]),
        (
            " FINAL REPORT\n CHEST, TWO VIEWS:  Clear.\n\n CONCLUSION:  Normal.\n",
            ["preamble", "findings", "impression"],
        ),
        (" FINAL REPORT\n FINDINGS:\n\n IMPRESSION:  Normal.\n", ["preamble", "impression"]),
        (" FINAL REPORT\n REASON FOR EXAM:  Cough.\n \n Lungs clear.\n", ["preamble", "indication", "last_paragraph"]),
        (" FINAL REPORT\n PORTABLE AP CHEST:  Clear.\n", ["preamble", "findings"]),
        (" FINAL REPORT\n IMPRESSON:  Normal.\n", ["preamble", "impression"]),
        ("Lungs clear, no heading", ["full report"]),
        ("", ["full report"]),
    ],
)
def test_sections_follow_the_conventions_of_the_mimic_code_repository(text, sections):
    found = dict(sections_of(text))
    names = [name for name, _ in sections_of(text)]
    assert [name for name in names if name != "findings" or found[name].strip()] == sections
    assert "".join(found.get("impression", "Normal").split()).rstrip(".") in ("Normal", "Noacutedisease")


def test_of_two_sections_of_one_name_the_last_counts():
    text = " FINAL REPORT\n IMPRESSION:  Wet read.\n\n IMPRESSION:  Final.\n"
    assert dict(sections_of(text))["impression"].strip() == "Final."


def chexpert_folder(folder: Path, images: str = "", kind: str = "jpg") -> Path:
    lines = []
    for patient in range(64):
        split = "valid" if patient % 8 == 0 else "train"
        for study in (1, 2):
            for number, view in ((1, "Lateral"), (2, "Frontal"), (3, "Frontal")):
                path = f"{split}/patient{patient:05}/study{study}/view{number}_{view.lower()}"
                write(folder / images / f"{path}.{kind}", picture(patient * 8 + study * 2 + number))
                texts = ("nan" if study == 1 else "", f"Clear lungs in {patient}, {study}.", "Normal.", "Cough.")
                lines.append((f"{path}.jpg", view, f"pat{patient:05}", split, *texts))
    columns = "path_to_image,frontal_lateral,deid_patient_id,split,section_history,section_findings,section_impression"
    write_table(folder / "df_chexpert_plus_240401.csv", f"{columns},section_clinical_history", lines)
    return folder


@pytest.mark.parametrize(("images", "kind"), [("", "jpg"), ("PNG", "png"), ("PNG/PNG", "png")])
def test_chexpert_plus_gives_the_frontal_view_of_a_study_and_tests_on_the_official_valid_split(tmp_path, images, kind):
    source = open_source(str(chexpert_folder(tmp_path, images, kind)), SETTINGS, 0)
    rows = list(source.rows())
    assert (source.kind, source.count, len(rows)) == ("chexpert-plus", 128, 128)
    assert rows[0]["uid"] == "patient00000_study1"
    assert rows[0]["findings"] == "Clear lungs in 0, 1."
    assert rows[0]["indication"] == "Cough."
    assert (
        rows[0]["img_frontal"] == (tmp_path / images / f"valid/patient00000/study1/view2_frontal.{kind}").read_bytes()
    )
    splits: dict[str, set[str]] = {name: {r["patient"] for r in rows if r["split"] == name} for name in SPLITS}
    assert splits["test"] == {f"pat{patient:05}" for patient in range(0, 64, 8)}
    assert 0 < len(splits["validation"]) < 16
    assert not splits["train"] & splits["validation"]


def test_chexpert_plus_is_prepared(tmp_path):
    data = prepared(chexpert_folder(tmp_path / "chexpert"), tmp_path)
    assert data.summary["counts"]["kept"] == 128
    assert data.summary["counts"]["splits"]["test"] == 16


MAP = {
    "table": "lists/mine.csv",
    "images": "png",
    "uid": "Accession",
    "image": "File",
    "findings": "Befund",
    "impression": "Result",
    "patient": "Who",
    "indication": "Why",
}


def own_folder(folder: Path, columns: object = MAP, header: str = "Accession,File,Befund,Result,Who,Why") -> Path:
    lines = [(f"a{n}", f"sub/{n}.png", f"Clear lungs {n}.", "Normal.", f"p{n // 2}", "Cough.") for n in range(80)]
    lines += [
        ("gone", "sub/none.png", "Clear.", "Normal.", "p99", ""),
        ("out", "../map", "Clear.", "Normal.", "p99", ""),
    ]
    lines += [("root", "/etc/passwd", "Clear.", "Normal.", "p99", "")]
    write_table(folder / "lists" / "mine.csv", header, lines)
    for n in range(80):
        write(folder / "png" / "sub" / f"{n}.png", picture(n, "PNG"))
    write(folder / "map", picture(1, "PNG"))
    write(folder / "radvision.json", json.dumps(columns))
    return folder


def test_a_table_of_ones_own_is_read_by_its_column_map_and_split_by_patient(tmp_path):
    data = prepared(own_folder(tmp_path / "own"), tmp_path)
    splits = {study.uid: name for name in SPLITS for study in data.split(name)}
    assert all(splits[f"a{n}"] == splits[f"a{n + 1}"] for n in range(0, 80, 2))
    assert data.summary["counts"]["dropped"] == {"no file at the image's path": 3}
    assert data.summary["dropped_uids"]["no file at the image's path"] == ["gone", "out", "root"]
    assert {study.indication for study in data.split("train")} == {"Cough."}


def test_a_split_column_decides_the_split(tmp_path):
    columns = {**MAP, "split": "Why"}
    source = open_source(str(own_folder(tmp_path, columns)), SETTINGS, 0)
    assert source.split_by == "column Why of the table"
    with pytest.raises(RadVisionError, match=r"study a0 is in split 'Cough\.'"):
        list(source.rows())


@pytest.mark.parametrize(
    ("columns", "told"),
    [
        ({**MAP, "findings": "Finding"}, "lacks the column Finding; it has Accession, File"),
        ({**MAP, "impresion": "Result"}, "has no use for impresion"),
        (
            {key: value for key, value in MAP.items() if key != "uid"},
            "has no usable uid: it needs texts for table, uid,",
        ),
        ({**MAP, "patient": 7}, "has no usable patient"),
        ({**MAP, "table": "other.csv"}, "'other.csv', which is not in"),
        ({**MAP, "table": "../own.csv"}, "'../own.csv', which is not in"),
        ({**MAP, "images": "nowhere"}, "the images' folder 'nowhere', which is not in"),
        ({**MAP, "images": ".."}, "the images' folder '..', which is not in"),
        (["a"], "has no usable value"),
    ],
)
def test_a_wrong_column_map_is_refused_in_one_sentence(tmp_path, columns, told):
    assert told in sentence_of(own_folder(tmp_path, columns))


def test_a_column_map_that_is_no_json_is_refused(tmp_path):
    folder = own_folder(tmp_path)
    (folder / "radvision.json").write_text("{uid:")
    assert "is not readable JSON" in sentence_of(folder)
