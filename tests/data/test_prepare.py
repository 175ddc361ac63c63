"""Preparing: what is kept, what is dropped and why, the images, the splits, and that nothing half-made is seen."""

import hashlib
import io
import json
import pickle
import re
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from radvision_utils.config import DISCLAIMER, Profile, RadVisionError, load_profile, project_root
from radvision_utils.data import images, pixels, prepare, storing
from radvision_utils.data.images import load_image
from radvision_utils.data.prepare import prepare_dataset, safe_name, split_of
from radvision_utils.data.studies import SPLITS, PreparedDataset, Study, open_prepared
from radvision_utils.data.study_figures import show_findings, show_lengths, show_studies
from radvision_utils.runs import RunFolder

REAL = project_root().parent / "shared" / "data" / "open-i" / "open-i-mini.parquet"
SIZE = 56


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def gray(shade: int = 128, size: tuple[int, int] = (40, 32)) -> bytes:
    return encoded(Image.new("L", size, shade))


def picture(seed: int, size: tuple[int, int] = (40, 32)) -> bytes:
    """Noise that is its own mirror image, as a frontal chest nearly is; another for every seed."""
    half = np.random.default_rng(seed).integers(0, 256, (size[1], size[0] // 2), dtype=np.uint8)
    return encoded(Image.fromarray(np.hstack([half, half[:, ::-1]])))


def row(uid: object, **changes: object) -> dict[str, object]:
    values = {
        "uid": str(uid),
        "MeSH": "normal",
        "Problems": "normal",
        "image": "Xray Chest PA and Lateral",
        "indication": "Cough.",
        "comparison": None,
        "findings": f"The lungs are clear in study {uid}.",
        "impression": "No acute disease.",
        "img_frontal": picture(zlib.crc32(str(uid).encode())),
        "truth": '{"findings": []}',  # so that it is not taken for Open-I
    }
    return {**values, **changes}


ENOUGH = [row(uid) for uid in range(100, 160)]  # fills every split


def profile_for(folder: Path, rows: list[dict[str, object]], **overrides: object) -> Profile:
    pq.write_table(pa.Table.from_pylist(rows), folder / "rows.parquet")
    settings = {"data.image_size": SIZE, "data.workers": 1, **{f"data.{k}": v for k, v in overrides.items()}}
    return load_profile("tiny", settings, source=str(folder / "rows.parquet"), output_root=str(folder / "out"), seed=7)


def all_studies(data: PreparedDataset) -> dict[str, Study]:
    return {study.uid: study for name in ("train", "validation", "test") for study in data.split(name)}


def test_every_dropped_study_is_counted_with_its_reason(tmp_path):
    photo = encoded(Image.effect_noise((64, 64), 50), "JPEG")
    bad = [
        row(1, img_frontal=None),
        row(2, img_frontal=photo[: len(photo) // 2]),
        row(3, img_frontal=b"no image"),
        row(4, findings=None),
        row(5, impression=" . "),
        row(6, findings=None, impression=""),
        row(7, impression="Stable chest."),
        row(8, findings="XXXX are XXXX."),
        row(100, findings="The second of its name."),
        row(9) | {"uid": None},
    ]
    data = prepare_dataset(profile_for(tmp_path, [*ENOUGH, *bad]))
    assert data.summary["counts"]["dropped"] == {
        "image cannot be decoded": 2,
        "no frontal image": 1,
        "no findings": 1,
        "no impression": 1,
        "no findings and no impression": 1,
        "no impression left after cleaning": 1,
        "no findings left after cleaning": 1,
        "uid seen before": 1,
        "no uid": 1,
    }
    assert data.summary["dropped_uids"]["image cannot be decoded"] == ["2", "3"]
    assert data.summary["counts"]["read"] == 70
    assert data.summary["counts"]["kept"] == len(all_studies(data)) == 60
    assert all_studies(data)["100"].report.findings == "The lungs are clear in study 100."


def test_either_section_is_enough_where_the_setting_says_so(tmp_path):
    rows = [*ENOUGH, row(1, findings=None), row(2, impression=None), row(3, findings=None, impression=None)]
    data = prepare_dataset(profile_for(tmp_path, rows, required="either"))
    assert {"1", "2"} <= set(all_studies(data))
    assert data.summary["counts"]["dropped"] == {"no findings and no impression": 1}


def test_the_target_is_cleaned_and_the_reference_is_untouched(tmp_path):
    findings = "1. Lungs clear.. 2. Stable heart. 3. XXXX sternotomy."
    data = prepare_dataset(profile_for(tmp_path, [*ENOUGH, row(1, findings=findings)]))
    study = all_studies(data)["1"]
    assert study.report.findings == "Lungs clear."
    assert study.reference.findings == findings
    assert data.summary["cleaning"] == {
        "deidentified": {"sentences": 1, "studies": 1},
        "priors": {"sentences": 1, "studies": 1},
    }
    kept = prepare_dataset(profile_for(tmp_path, [*ENOUGH, row(1, findings=findings)], priors="keep"))
    assert all_studies(kept)["1"].report.findings == "Lungs clear. Stable heart."


def test_a_test_study_is_never_dropped_for_its_words(tmp_path):
    blank = {"findings": "XXXX lungs are XXXX.", "impression": "Unchanged."}
    uids = range(1000, 1100)
    profile = profile_for(tmp_path, [*ENOUGH, *(row(uid, **blank) for uid in uids)])
    in_test = {str(uid) for uid in uids if split_of(str(uid), False, profile.seed) == "test"}
    kept = all_studies(prepare_dataset(profile))
    assert in_test
    assert {uid for uid in kept if int(uid) >= 1000} == in_test
    assert kept[min(in_test)].reference.findings == blank["findings"]


def test_the_summary_counts_what_notebook_one_shows(tmp_path):
    rows = [row(uid, MeSH="Opacity/lung/left;Opacity/lung/right;Scoliosis") for uid in range(200, 220)]
    twins = [row(uid, findings="The lungs are clear.") for uid in range(300, 420)]
    data = prepare_dataset(profile_for(tmp_path, [*ENOUGH, *rows, *twins]))
    summary = data.summary
    assert summary["mesh"] == {"Opacity": 20, "Scoliosis": 20}
    assert summary["words"]["impression"] == {"min": 3, "median": 3, "max": 3}
    sizes, train = summary["counts"]["splits"], data.split("train")
    twins_in_train = sum(study.report.findings == "The lungs are clear." for study in train)
    assert summary["identical_reports"]["within train"] == twins_in_train - 1
    assert summary["identical_reports"]["test also in train"] > 0
    normal = sum(study.mesh == "normal" for study in train) / sizes["train"]
    assert summary["normal_share"]["train"] == pytest.approx(normal, abs=1e-4)
    assert {"made_from", "hash", "license", "citation", "seconds", "studies_per_second"} <= set(summary)


def test_two_processes_give_what_one_gives(tmp_path, monkeypatch):
    monkeypatch.setattr(storing, "_PER_WORKER", 16)
    rows = [*ENOUGH, row(1, img_frontal=b"no image")]
    one = prepare_dataset(profile_for(tmp_path, rows))
    table = (one.folder / "studies.arrow").read_bytes()
    pictures = {path.name: path.read_bytes() for path in (one.folder / "images").iterdir()}
    (one.folder / "summary.json").unlink()
    two = prepare_dataset(profile_for(tmp_path, rows, workers=2))
    assert (two.folder / "studies.arrow").read_bytes() == table
    assert {path.name: path.read_bytes() for path in (two.folder / "images").iterdir()} == pictures
    assert len(pictures) == 60


def test_progress_is_told_to_the_caller(tmp_path):
    seen: list[tuple[int, int | None]] = []
    prepare_dataset(profile_for(tmp_path, ENOUGH), progress=lambda done, total: seen.append((done, total)))
    assert seen[0] == (1, 60)
    assert seen[-1] == (60, 60)


@pytest.mark.parametrize(("width", "height"), [(200, 100), (100, 200), (1000, 3), (50, 50)])
def test_letterboxing_keeps_the_aspect_and_pads_with_black(width, height):
    square = np.asarray(images.letterbox(Image.new("L", (width, height), 200), 100))
    assert square.shape == (100, 100)
    rows, columns = np.nonzero(square)
    tall, wide = np.ptp(rows) + 1, np.ptp(columns) + 1
    scale = 100 / max(width, height)
    assert (wide, tall) == (max(1, round(width * scale)), max(1, round(height * scale)))
    assert abs(rows.min() - (99 - rows.max())) <= 1
    assert abs(columns.min() - (99 - columns.max())) <= 1


def test_16_bit_pixels_are_scaled_and_not_cut_off():
    ramp = np.linspace(1000, 5000, 4096, dtype=np.uint16).reshape(64, 64)
    image = load_image(encoded(Image.fromarray(ramp)))
    levels = np.asarray(image).ravel()
    assert (levels[0], levels[-1]) == (0, 255)
    assert (np.diff(levels.astype(int)) >= 0).all()
    assert 126 <= levels[2048] <= 129
    assert not np.asarray(load_image(encoded(Image.fromarray(np.full((40, 40), 900, np.uint16))))).any()


@pytest.mark.parametrize(
    ("picture", "kind", "expected"),
    [
        (Image.new("RGB", (40, 40), (90, 90, 90)), "PNG", 90),
        (Image.new("RGBA", (40, 40), (200, 200, 200, 255)), "PNG", 200),
        (Image.new("RGBA", (40, 40), (200, 200, 200, 0)), "PNG", 0),
        (Image.new("LA", (40, 40), (200, 255)), "PNG", 200),
        (Image.new("CMYK", (40, 40), (0, 0, 0, 155)), "JPEG", 100),
        (Image.new("RGB", (40, 40), (70, 70, 70)).quantize(4), "PNG", 70),
        (Image.new("F", (40, 40), 3.5), "TIFF", 0),
        (Image.new("1", (40, 40), 1), "PNG", 255),
    ],
    ids=lambda value: getattr(value, "mode", None),
)
def test_pictures_of_any_mode_become_gray(picture, kind, expected):
    image = load_image(encoded(picture, kind))
    assert image.mode == "L"
    assert image.getpixel((4, 4)) == pytest.approx(expected, abs=2)


def test_the_exif_orientation_is_applied():
    picture = Image.new("L", (80, 40), 0)
    picture.paste(255, (0, 0, 40, 40))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees to the right
    image = load_image(encoded(picture, "JPEG", exif=exif))
    assert image.size == (40, 80)
    assert image.getpixel((20, 10)) > 200
    assert image.getpixel((20, 70)) < 50


def test_of_an_animation_the_first_frame_is_taken():
    frames = [Image.new("L", (40, 40), shade) for shade in (50, 200)]
    image = load_image(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    assert image.getpixel((4, 4)) == pytest.approx(50, abs=3)


def test_a_decompression_bomb_is_refused_before_it_is_decoded(monkeypatch):
    monkeypatch.setattr(pixels, "MAX_PIXELS", 1_000_000)
    with pytest.raises(RadVisionError, match="1001 x 1000 pixels, more than 1 million"):
        load_image(gray(size=(1001, 1000)))


def test_an_image_file_that_is_missing_or_none_is_named(tmp_path):
    with pytest.raises(RadVisionError, match=r"absent\.png cannot be read"):
        load_image(tmp_path / "absent.png")
    (tmp_path / "notes.png").write_text("no picture")
    with pytest.raises(RadVisionError, match=r"notes\.png cannot be decoded"):
        load_image(tmp_path / "notes.png")


def dicom(pixels: np.ndarray, photometric: str, frames: int = 1) -> bytes:
    pydicom = pytest.importorskip("pydicom", reason="pydicom is not installed")
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = SecondaryCaptureImageStorage, generate_uid()
    scan = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    scan.Rows, scan.Columns = pixels.shape[-2:]
    scan.SamplesPerPixel, scan.PhotometricInterpretation, scan.PixelRepresentation = 1, photometric, 0
    scan.BitsAllocated, scan.BitsStored, scan.HighBit = 16, 12, 11
    if frames > 1:
        scan.NumberOfFrames = frames
    scan.WindowCenter, scan.WindowWidth = 2000, 2001
    scan.PixelData = pixels.astype(np.uint16).tobytes()
    stream = io.BytesIO()
    pydicom.dcmwrite(stream, scan, enforce_file_format=True)
    return stream.getvalue()


def test_dicom_is_windowed_and_monochrome1_is_inverted():
    pixels = np.tile([0, 1000, 2000, 3000, 4095], (40, 8))
    plain = np.asarray(load_image(dicom(pixels, "MONOCHROME2")))[0]
    inverted = np.asarray(load_image(dicom(pixels, "MONOCHROME1")))[0]
    assert plain[[0, 1, 3, 4]] == pytest.approx([0, 0, 255, 255], abs=2)
    assert plain[2] == pytest.approx(128, abs=2)
    assert (255 - inverted) == pytest.approx(plain, abs=2)


def test_dicom_with_several_frames_is_refused():
    with pytest.raises(RadVisionError, match="has 2 frames"):
        load_image(dicom(np.zeros((2, 4, 4)), "MONOCHROME2", frames=2))


HOSTILE = ["../../x", "a/b", "a_b", "A", "a", "..", ".hidden", "x" * 300, "Ünïcödé", "uid with space", "zero\0", "12"]


def test_hostile_uids_stay_in_the_folder_and_stay_apart(tmp_path):
    data = prepare_dataset(profile_for(tmp_path, [*ENOUGH, *(row(uid, findings="Clear.") for uid in HOSTILE)]))
    studies = all_studies(data)
    assert set(HOSTILE) <= set(studies)
    names = {study.image.name for study in studies.values()}
    assert len({name.lower() for name in names}) == len(studies)
    assert names == {path.name for path in (data.folder / "images").iterdir()}
    assert all(re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*\.png", name) and len(name) < 100 for name in names)
    assert safe_name("12") == "12"


def test_open_i_gets_the_split_of_r2gen(tmp_path):
    ids = json.loads((Path(prepare.__file__).parent / "r2gen_split.json").read_text())
    assert {name: len(ids[name]) for name in SPLITS} == {"train": 2069, "validation": 296, "test": 590}
    assert len({uid for name in SPLITS for uid in ids[name]}) == 2955
    wanted = {str(ids[name][0]): name for name in SPLITS} | {"999999": "train"}
    rows = [{k: v for k, v in row(uid).items() if k != "truth"} for uid in wanted]
    data = prepare_dataset(profile_for(tmp_path, rows))
    assert {uid: study.split for uid, study in all_studies(data).items()} == wanted
    assert data.summary["split_by"] == "R2Gen"


def test_the_hash_split_is_80_10_10_seeded_and_stable_when_data_grow(tmp_path):
    uids = [str(uid) for uid in range(5000)]
    splits = [split_of(uid, False, 7) for uid in uids]
    shares = [splits.count(name) / len(uids) for name in SPLITS]
    assert shares == pytest.approx([0.8, 0.1, 0.1], abs=0.02)
    assert splits != [split_of(uid, False, 8) for uid in uids]
    small = all_studies(prepare_dataset(profile_for(tmp_path, ENOUGH)))
    large = all_studies(prepare_dataset(profile_for(tmp_path, [*ENOUGH, *(row(uid) for uid in range(30))], limit=80)))
    assert len(large) == 80
    assert {uid: large[uid].split for uid in small} == {uid: study.split for uid, study in small.items()}


def test_no_uid_is_in_two_splits(tmp_path):
    rows = [*ENOUGH, *(row(uid, findings="Again the same uid.") for uid in range(100, 130))]
    data = prepare_dataset(profile_for(tmp_path, rows))
    members = [{study.uid for study in data.split(name)} for name in SPLITS]
    assert sum(map(len, members)) == len(set.union(*members)) == 60
    stored = json.loads((data.folder / "split.json").read_text())
    assert stored == {uid: study.split for uid, study in all_studies(data).items()}


def test_too_few_studies_are_refused_and_the_empty_split_is_named(tmp_path):
    with pytest.raises(RadVisionError, match=r"Raise data\.limit\."):
        prepare_dataset(profile_for(tmp_path, ENOUGH, limit=1))
    with pytest.raises(RadVisionError, match=r"no study of .* fell to .*(validation|test).*2 were read and 1 kept"):
        prepare_dataset(profile_for(tmp_path, [row(1), row(2, img_frontal=None)]))
    assert not RunFolder("tiny", tmp_path / "out").data.exists()
    assert not (tmp_path / "out" / "tiny" / "data.partial").exists()


def test_a_second_call_prepares_nothing_and_a_changed_setting_does(tmp_path):
    profile = profile_for(tmp_path, ENOUGH)
    first = prepare_dataset(profile)
    stamp = (first.folder / "summary.json").stat().st_mtime_ns
    assert prepare_dataset(profile).summary == first.summary
    assert prepare_dataset(profile_for(tmp_path, ENOUGH, workers=2)).summary == first.summary
    assert (first.folder / "summary.json").stat().st_mtime_ns == stamp
    changed = prepare_dataset(profile_for(tmp_path, ENOUGH, image_size=64))
    assert changed.summary["made_from"] != first.summary["made_from"]
    assert changed.summary["hash"] != first.summary["hash"]
    with Image.open(changed.split("train")[0].image) as image:
        assert (image.size, image.mode, image.format) == ((64, 64), "L", "PNG")
    with pytest.raises(RadVisionError, match=r"data\.image_size 64 \(you ask for \d+\)"):
        open_prepared(profile)


def test_a_killed_preparation_is_not_taken_for_finished(tmp_path, monkeypatch):
    profile = profile_for(tmp_path, ENOUGH)
    run = RunFolder.of(profile)
    partial = run.path / "data.partial" / "images"
    partial.mkdir(parents=True)
    (partial / "stale.png").write_bytes(b"half")
    (partial.parent / "stored.0123456789abcdef.jsonl").write_text("")  # of another source, or other settings
    with pytest.raises(RadVisionError, match="is not finished"):
        open_prepared(profile)
    data = prepare_dataset(profile)
    assert not partial.exists()
    assert not (data.folder / "images" / "stale.png").exists()


def test_an_interrupted_preparation_leaves_the_finished_one_alone(tmp_path):
    profile = profile_for(tmp_path, ENOUGH)
    finished = prepare_dataset(profile)

    def interrupt(done: int, total: int | None) -> None:
        if done == 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare_dataset(profile_for(tmp_path, ENOUGH, image_size=64), progress=interrupt)
    assert open_prepared(profile).summary == finished.summary


def test_an_interrupted_preparation_goes_on_with_the_pictures_it_has_stored(tmp_path, monkeypatch):
    rows = [row(1, img_frontal=picture(1)[:-60]), *ENOUGH]  # cut off
    (tmp_path / "whole").mkdir()
    whole, profile = prepare_dataset(profile_for(tmp_path / "whole", rows)), profile_for(tmp_path, rows)

    def interrupt(done: int, total: int | None) -> None:
        if done == 40:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare_dataset(profile, progress=interrupt)
    (journal,) = RunFolder.of(profile).partial("data").glob("stored.*.jsonl")
    with journal.open("a") as file:
        file.write('{"image": "ima')  # as of a process killed in the middle of a line
    stored, true = [], storing.store_square
    monkeypatch.setattr(storing, "store_square", lambda data, path, size: stored.append(path) or true(data, path, size))
    data = prepare_dataset(profile)
    assert len(stored) == len(rows) - 39
    assert {file.name for file in data.folder.iterdir()} == {file.name for file in whole.folder.iterdir()}
    for name in ("studies.arrow", "split.json", "remarks.jsonl"):
        assert (data.folder / name).read_bytes() == (whole.folder / name).read_bytes()


def test_the_run_notes_that_its_data_are_prepared_and_the_data_what_that_took(tmp_path):
    profile = profile_for(tmp_path, ENOUGH)
    summary = prepare_dataset(profile).summary
    assert list(json.loads((RunFolder.of(profile).path / "run.json").read_text())["steps"]) == ["data"]
    assert summary["counts"]["kept"] == 60
    assert summary["seconds"] > 0


def test_splits_are_sequences_that_worker_processes_can_share(tmp_path):
    data = prepare_dataset(profile_for(tmp_path, ENOUGH))
    train = data.split("train")
    assert train[-1] == train[len(train) - 1] == list(train)[-1]
    assert train[:2] == [train[0], train[1]]
    assert train[0].uid == "100" or train[0].split == "train"
    with pytest.raises(IndexError):
        train[len(train)]
    blob = pickle.dumps(train)
    assert len(blob) < 1000
    assert pickle.loads(blob)[3] == train[3]
    with pytest.raises(RadVisionError, match="split 'val' does not exist"):
        data.split("val")


def test_other_programs_can_read_the_arrow_file(tmp_path):
    datasets = pytest.importorskip("datasets")
    data = prepare_dataset(profile_for(tmp_path, ENOUGH))
    table = datasets.Dataset.from_file(str(data.folder / "studies.arrow"))
    assert table.num_rows == 60
    first = table[0]
    with Image.open(data.folder / first["image"]) as image:
        assert hashlib.sha256(image.tobytes()).hexdigest()[:16] == first["pixels"]


def test_figures_carry_the_notice_and_show_every_study(tmp_path):
    data = prepare_dataset(profile_for(tmp_path, ENOUGH))
    grid = show_studies(data.split("train")[:4])
    assert [axes.get_title(loc="left") for axes in grid.axes] == [
        f"study {s.uid} (train)" for s in data.split("train")[:4]
    ]
    for figure in (grid, show_lengths(data), show_findings(data)):
        assert figure.get_supxlabel() == DISCLAIMER
        figure.savefig(io.BytesIO(), format="png", dpi=30)


@pytest.mark.skipif(not REAL.is_file(), reason="the Open-I sample is not on this machine")
def test_real_studies_are_prepared(tmp_path):
    profile = load_profile(
        "tiny",
        {"data.limit": 64, "data.image_size": SIZE, "data.workers": 1},
        source=str(REAL),
        output_root=str(tmp_path),
    )
    summary = prepare_dataset(profile).summary
    assert summary["counts"]["read"] == 64
    assert sum(summary["counts"]["dropped"].values()) + summary["counts"]["kept"] == 64
    assert summary["counts"]["kept"] > 40
    for study in all_studies(open_prepared(profile)).values():
        text = f"{study.report.findings} {study.report.impression}"
        assert "XXXX" not in text
        assert not re.search(r"&\w+;|\.\.|\s\.|^\d+\.", text)


def test_phantoms_that_are_damaged_on_purpose_are_announced_and_told_in_a_line_a_reason(tmp_path, caplog):
    caplog.set_level("INFO")
    profile = load_profile("tiny", {"data.phantoms": 180, "data.workers": 1}, run="r", output_root=str(tmp_path))
    prepared = prepare_dataset(profile)
    assert any("damaged on purpose" in message for message in caplog.messages)
    told = [message for message in caplog.messages if message.startswith("left out")]
    assert len(told) == len(prepared.summary["counts"]["dropped"])
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
