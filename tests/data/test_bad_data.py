"""Bad data: every kind of rubbish in one source is counted by reason and named, and the rest is prepared."""

import io
import json
import logging
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from radvision_utils.config import Profile, RadVisionError, load_profile
from radvision_utils.data.images import load_image
from radvision_utils.data.prepare import prepare_dataset, split_of
from radvision_utils.data.studies import SPLITS, PreparedDataset

SEED = 7
PATIENT = "Planted^Patient^Name"


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def chest(seed: int) -> Image.Image:
    """Noise that is its own mirror image, as a frontal chest nearly is; another for every seed."""
    half = np.random.default_rng(seed).integers(0, 256, (48, 32), dtype=np.uint8)
    return Image.fromarray(np.hstack([half, half[:, ::-1]]))


def sixteen_bit(seed: int, **options: object) -> bytes:
    return encoded(Image.fromarray(np.asarray(chest(seed), dtype=np.uint16) * 100), "TIFF", **options)


def bomb() -> bytes:
    """A PNG of a few bytes that claims 20,000 x 20,000 pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 999)) + chunk(b"IEND", b"")
    )


def exif(**values: object) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112], tags[0x013B] = values.get("orientation", 1), PATIENT
    return tags


def dicom(photometric: str = "MONOCHROME2", frames: int = 1, table: list[int] | None = None) -> bytes:
    pydicom = pytest.importorskip("pydicom", reason="pydicom is not installed")
    from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = SecondaryCaptureImageStorage, generate_uid()
    scan = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    scan.PatientName, scan.PatientID, scan.InstitutionName = PATIENT, f"{PATIENT}-1", f"{PATIENT}-2"
    scan.PatientComments, scan.PatientBirthDate = PATIENT * 3, "no date"
    pixels = np.asarray(chest(5), dtype=np.uint16)
    scan.Rows, scan.Columns = pixels.shape
    scan.SamplesPerPixel, scan.PhotometricInterpretation, scan.PixelRepresentation = 1, photometric, 0
    scan.BitsAllocated, scan.BitsStored, scan.HighBit = 16, 8, 7
    if frames > 1:
        scan.NumberOfFrames = frames
    if table is not None:
        lut = Dataset()
        lut.LUTDescriptor, lut.LUTData = [len(table), 0, 16], np.array(table, dtype=np.uint16).tobytes()
        scan.VOILUTSequence = [lut]
    scan.PixelData = np.stack([pixels] * frames).tobytes()
    stream = io.BytesIO()
    pydicom.dcmwrite(stream, scan, enforce_file_format=True)
    return stream.getvalue()


def row(uid: object, **changes: object) -> dict[str, object]:
    values = {
        "uid": None if uid is None else str(uid),
        "MeSH": "normal",
        "Problems": "normal",
        "image": "Xray Chest PA and Lateral",
        "indication": "Cough.",
        "comparison": None,
        "findings": f"The lungs are clear in study {uid}.",
        "impression": "No acute disease.",
        "img_frontal": encoded(chest(zlib.crc32(str(uid).encode()))),
        "truth": '{"findings": []}',  # so that it is not taken for Open-I
    }
    return {**values, **changes}


GOOD = [row(uid) for uid in range(100, 160)]  # fills every split
JPEG = encoded(chest(1), "JPEG", quality=95)
FRAMES = {"save_all": True, "append_images": [chest(3)]}

LEFT_OUT = {
    "truncated-jpeg": ({"img_frontal": JPEG[: len(JPEG) // 2]}, "image cannot be decoded"),
    "not-an-image": ({"img_frontal": b"<html>404 Not Found</html>"}, "image cannot be decoded"),
    "pickle": ({"img_frontal": b"\x80\x04cos\nsystem\n(S'true'\ntR."}, "image cannot be decoded"),
    "postscript": ({"img_frontal": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 48\n"}, "image cannot be decoded"),
    "zero-bytes": ({"img_frontal": b""}, "no frontal image"),
    "null-image": ({"img_frontal": None}, "no frontal image"),
    "one-pixel": ({"img_frontal": encoded(Image.new("L", (1, 1), 9))}, "image is too small"),
    "one level": ({"img_frontal": encoded(Image.new("L", (64, 48), 90))}, "image shows nothing"),
    "bomb": ({"img_frontal": bomb()}, "image is too large"),
    "null-report": ({"findings": None}, "no findings"),
    "empty-report": ({"findings": ""}, "no findings"),
    "whitespace-report": ({"findings": " \n\t\u00a0"}, "no findings"),
    "tags-only": ({"findings": "<p>&nbsp;</p>"}, "no findings"),
    "control-only": ({"impression": "\x00\x07\u202e"}, "no impression"),
    "neither-section": ({"findings": None, "impression": "."}, "no findings and no impression"),
    "endless-report": ({"findings": "Clear lungs. " * 7692 + "End."}, "report longer than 20,000 characters"),
    "arabic-report": ({"findings": "الرئتان صافيتان.", "impression": "لا يوجد مرض حاد."}, "report is not English"),
    "105": ({"findings": "A second study of this uid."}, "uid seen before"),
    "": ({}, "no uid"),
}
MENDED = {
    "cmyk": ({"img_frontal": encoded(chest(11).convert("CMYK"), "JPEG")}, "image: CMYK"),
    "sixteen-bit": ({"img_frontal": sixteen_bit(12)}, "image: more than 8 bits"),
    "inverted": ({"img_frontal": sixteen_bit(13, tiffinfo={262: 0})}, "image: inverted"),
    "palette": ({"img_frontal": encoded(chest(14).quantize(200))}, "image: palette"),
    "alpha": ({"img_frontal": encoded(chest(15).convert("LA"))}, "image: transparency"),
    "turned": ({"img_frontal": encoded(chest(16), "JPEG", exif=exif(orientation=3))}, "image: turned by EXIF"),
    "animated": ({"img_frontal": encoded(chest(17), "PNG", **FRAMES)}, "image: several frames"),
    "html": ({"findings": "<b>Clear</b> lungs.<script>alert(1)</script>"}, "report with HTML tags"),
    "control": ({"findings": "Clear\x00 lungs\x1b[31m.\u202e"}, "report with control characters"),
}
DOUBTED = {
    "lateral": (
        {"img_frontal": encoded(Image.linear_gradient("L").rotate(90))},
        "frontal image that looks lateral",
    ),
}


def profile_for(folder: Path, rows: list[dict[str, object]], **overrides: object) -> Profile:
    pq.write_table(pa.Table.from_pylist(rows), folder / "rows.parquet")
    settings = {"data.image_size": 56, "data.workers": 1, **{f"data.{k}": v for k, v in overrides.items()}}
    return load_profile(
        "tiny", settings, source=str(folder / "rows.parquet"), output_root=str(folder / "out"), seed=SEED
    )


def studies_of(data: PreparedDataset) -> dict[str, str]:
    return {study.uid: study.split for name in SPLITS for study in data.split(name)}


@pytest.fixture(scope="module")
def rubbish(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[PreparedDataset, str]]:
    """All of it among good studies, prepared in one run, with what was logged."""
    cases = {**LEFT_OUT, **MENDED, **DOUBTED}
    rows = [*GOOD, *(row(uid or None, **changes) for uid, (changes, _) in cases.items())]
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    logger = logging.getLogger("radvision_utils")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield prepare_dataset(profile_for(tmp_path_factory.mktemp("rubbish"), rows)), stream.getvalue()
    logger.removeHandler(handler)
    logger.setLevel(level)


@pytest.mark.parametrize(
    ("uid", "kind"),
    [(uid, kind) for kind, cases in (("dropped", LEFT_OUT), ("mended", MENDED), ("doubted", DOUBTED)) for uid in cases],
)
def test_each_fault_is_counted_by_its_reason_and_named_with_its_uid(rubbish, uid, kind):
    data, logged = rubbish
    reason = {**LEFT_OUT, **MENDED, **DOUBTED}[uid][1]
    alike = [other for cases in (LEFT_OUT, MENDED, DOUBTED) for other, (_, why) in cases.items() if why == reason]
    alike += ["inverted"] if reason == "image: more than 8 bits" else []
    counts = data.summary["counts"]["dropped"] if kind == "dropped" else data.summary[kind]
    assert counts[reason] == len(alike)
    assert (uid or "(none)") in data.summary[f"{kind}_uids"][reason]
    assert any(reason in line and (uid or "(none)") in line for line in logged.splitlines())
    remarks = [json.loads(line) for line in (data.folder / "remarks.jsonl").read_text().splitlines()]
    assert {"uid": uid or "(none)", "reason": reason}.items() <= {
        key: value
        for remark in remarks
        if (remark["uid"], remark["reason"]) == (uid or "(none)", reason)
        for key, value in remark.items()
    }.items()


def test_the_good_and_the_mended_studies_are_all_there(rubbish):
    data, _ = rubbish
    assert set(studies_of(data)) == {str(uid) for uid in range(100, 160)} | set(MENDED) | set(DOUBTED)
    assert data.summary["counts"]["read"] == 60 + len(LEFT_OUT) + len(MENDED) + len(DOUBTED)
    assert sum(data.summary["counts"]["dropped"].values()) == len(LEFT_OUT)


def test_mended_reports_hold_neither_tags_nor_control_characters(rubbish):
    data, _ = rubbish
    reports = {study.uid: study.report for name in SPLITS for study in data.split(name)}
    assert reports["html"].findings == "Clear lungs. Alert(1)."
    assert reports["control"].findings == "Clear lungs 31m."


def test_an_inverted_16_bit_tiff_is_turned_and_a_plain_one_is_not():
    plain, inverted = (np.asarray(load_image(sixteen_bit(4, tiffinfo={262: how})), dtype=int) for how in (1, 0))
    assert abs(plain + inverted - 255).max() <= 1
    assert np.corrcoef(plain.ravel(), np.asarray(chest(4)).ravel())[0, 1] > 0.99


def test_a_flood_of_one_fault_is_counted_in_full_and_named_twenty_times(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    bad = [row(f"bad-{n}", img_frontal=b"no image") for n in range(50)]
    data = prepare_dataset(profile_for(tmp_path, [*GOOD, *bad]))
    assert data.summary["counts"]["dropped"] == {"image cannot be decoded": 50}
    [told] = [message for message in caplog.messages if "cannot be decoded" in message]
    assert told.count("bad-") == 21  # twenty names, and what was wrong with the first
    assert any("30 more in data/remarks.jsonl" in message for message in caplog.messages)
    assert len((data.folder / "remarks.jsonl").read_text().splitlines()) == 50


def test_where_nothing_is_left_one_sentence_says_why(tmp_path):
    rows = [row(uid, img_frontal=b"no image") for uid in range(5)] + [row(9, findings=None)]
    with pytest.raises(RadVisionError, match=r"6 were read and 0 kept \(5 image cannot be decoded, 1 no findings\)"):
        prepare_dataset(profile_for(tmp_path, rows))


def test_a_uid_cannot_steer_the_terminal_or_forge_a_log_line(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    uid = "1\n\x1b[2Jleft out 0: nothing"
    prepare_dataset(profile_for(tmp_path, [*GOOD, row(uid, img_frontal=b"no image")]))
    assert not any("\n" in message or "\x1b" in message for message in caplog.messages)


def in_split(split: str, start: int) -> int:
    return next(uid for uid in range(start, start + 1000) if split_of(str(uid), False, SEED) == split)


@pytest.mark.parametrize("order", [1, -1], ids=["test first", "test last"])
def test_the_same_image_under_two_uids_stays_in_the_split_that_judges(tmp_path, order):
    twin = encoded(chest(99))
    trained, judged, also_judged = in_split("train", 1000), in_split("test", 1000), in_split("test", 1500)
    uids = [trained, judged, also_judged][::order]
    data = prepare_dataset(profile_for(tmp_path, [*GOOD, *(row(uid, img_frontal=twin) for uid in uids)]))
    kept = studies_of(data)
    assert {str(judged), str(also_judged)} <= set(kept)
    assert str(trained) not in kept
    assert data.summary["counts"]["dropped"] == {"image also in another split": 1}
    assert data.summary["dropped_uids"]["image also in another split"] == [str(trained)]
    assert data.summary["doubted"] == {"image of another study too": 2}
    assert not (data.folder / "images" / f"{trained}.png").exists()
    alone = tmp_path / "alone"
    alone.mkdir()
    without = [row(uid, img_frontal=encoded(chest(uid))) for uid in uids if uid != trained]
    for key in ("words", "normal_share", "mesh", "identical_reports", "cleaning"):
        assert data.summary[key] == prepare_dataset(profile_for(alone, [*GOOD, *without])).summary[key], key


def test_a_picture_shared_by_r2gens_splits_stays_in_its_test_split(tmp_path):
    fixed = {name: next(str(u) for u in range(1, 4000) if split_of(str(u), True, 0) == name) for name in SPLITS}
    rows = [{k: v for k, v in row(uid).items() if k != "truth"} for uid in fixed.values()]
    also = next(u for u in range(1, 4000) if split_of(str(u), True, 0) == "train" and str(u) not in fixed.values())
    twin = {k: v for k, v in row(also).items() if k != "truth"} | {"img_frontal": rows[2]["img_frontal"]}
    data = prepare_dataset(profile_for(tmp_path, [twin, *rows]))
    assert data.summary["split_by"] == "R2Gen"
    assert studies_of(data) == {uid: name for name, uid in fixed.items()}
    assert data.summary["dropped_uids"] == {"image also in another split": [str(also)]}


def test_a_patient_is_never_in_two_splits(tmp_path):
    rows = [row(uid, patient=f"patient-{uid % 40}") for uid in range(200, 400)]
    data = prepare_dataset(profile_for(tmp_path, rows))
    splits: dict[int, set[str]] = {}
    for uid, split in studies_of(data).items():
        splits.setdefault(int(uid) % 40, set()).add(split)
    assert len(studies_of(data)) == 200
    assert all(len(found) == 1 for found in splits.values())


def test_a_patient_whom_the_source_put_into_two_splits_leaves_the_one_that_is_trained_on(tmp_path):
    rows = [row(uid, patient=str(uid), split=SPLITS[uid % 3]) for uid in range(200, 230)]
    rows += [row(1, patient="x", split="train"), row(2, patient="x", split="val"), row(3, patient="x", split="test")]
    data = prepare_dataset(profile_for(tmp_path, rows))
    assert {"3"} == {"1", "2", "3"} & set(studies_of(data))
    assert data.summary["counts"]["dropped"] == {"patient also in another split": 2}
    table = (data.folder / "studies.arrow").read_bytes()
    assert b"patient" not in table.replace(b"patient also", b"")


def test_dicom_with_a_voi_lookup_table_is_shown_through_it():
    falling = [255 - level for level in range(256)]
    plain, inverted = np.asarray(load_image(dicom()), int), np.asarray(load_image(dicom(table=falling)), int)
    assert abs(plain + inverted - 255).max() <= 2


def test_nothing_of_a_patient_in_an_image_file_reaches_the_outputs_or_the_log(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    whole = dicom()
    damaged = whole[: len(whole) // 3]
    pictures = [
        *(whole, dicom("MONOCHROME1"), dicom(frames=2), damaged, whole[: len(whole) // 2], whole[:900]),
        encoded(chest(31), "JPEG", exif=exif(), comment=PATIENT.encode()),
        encoded(chest(32), "TIFF", tiffinfo={270: PATIENT}),
    ]
    rows = [row(f"scan-{n}", img_frontal=picture) for n, picture in enumerate(pictures)]
    data = prepare_dataset(profile_for(tmp_path, [*GOOD, *rows]))
    assert {"scan-0", "scan-6", "scan-7"} <= set(studies_of(data))
    assert data.summary["counts"]["dropped"] == {"image cannot be decoded": 3, "image has several frames": 1}
    assert not any("Planted" in message for message in caplog.messages)
    written = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert len(written) > 60
    assert not [path for path in written if b"Planted" in path.read_bytes()]
