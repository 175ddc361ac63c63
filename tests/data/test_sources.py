"""Every source gives the same rows; what is wrong with one is said in a sentence."""

import csv
import io
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from radvision_utils.config import DataSettings, RadVisionError, project_root
from radvision_utils.data.sources import COLUMNS, _splits_of_names, _stem, open_source

SETTINGS = DataSettings(workers=1)
REAL = project_root().parent / "shared" / "data" / "open-i"


def png(shade: int = 128, size: tuple[int, int] = (12, 8)) -> bytes:
    stream = io.BytesIO()
    Image.new("L", size, shade).save(stream, "PNG")
    return stream.getvalue()


def row(uid: object, **changes: object) -> dict[str, object]:
    values = {
        "uid": uid,
        "MeSH": "normal",
        "Problems": "normal",
        "image": "Xray Chest PA and Lateral",
        "indication": "Cough.",
        "comparison": None,
        "findings": "The lungs are clear.",
        "impression": "No acute disease.",
        "img_frontal": png(),
    }
    return {**values, **changes}


def write_parquet(path: Path, rows: list[dict[str, object]]) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def kaggle_folder(folder: Path) -> Path:
    images = folder / "images" / "images_normalized"
    images.mkdir(parents=True)
    with (folder / "indiana_reports.csv").open("w", newline="") as stream:
        table = csv.DictWriter(stream, COLUMNS[:8])
        table.writeheader()
        for uid in (1, 2, 3):
            table.writerow({k: v for k, v in row(uid).items() if k in COLUMNS[:8]})
    with (folder / "indiana_projections.csv").open("w", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(["uid", "filename", "projection"])
        lines = [
            (1, "a", "Lateral"),
            (1, "b", "Frontal"),
            (1, "c", "Frontal"),
            (2, "d", "Lateral"),
            (3, "e", "Frontal"),
        ]
        table.writerows([uid, f"{uid}_IM-{name}.dcm.png", view] for uid, name, view in lines)
    for shade, name in enumerate(("1_IM-a", "1_IM-b", "1_IM-c", "2_IM-d"), start=10):
        (images / f"{name}.dcm.png").write_bytes(png(shade))
    return folder


def sentence_of(source: str) -> str:
    with pytest.raises(RadVisionError) as caught:
        list(open_source(source, SETTINGS, 0).rows())
    message = str(caught.value)
    assert "\n" not in message
    assert message.endswith(".")
    return message


def test_the_column_called_image_is_a_title_and_never_taken_for_the_picture(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", [row(1, img_frontal=None), row(2)])
    first, second = open_source(str(path), SETTINGS, 0).rows()
    assert first["image"] == "Xray Chest PA and Lateral"
    assert first["img_frontal"] is None
    assert second["img_frontal"] == png()


def test_a_parquet_with_the_whole_schema_is_open_i_and_is_cited(tmp_path):
    source = open_source(str(write_parquet(tmp_path / "a.parquet", [row(1)])), SETTINGS, 0)
    assert (source.kind, source.is_open_i, source.count) == ("parquet", True, 1)
    assert "Demner-Fushman" in source.citation
    assert "CC BY-NC-ND" in source.license


@pytest.mark.parametrize("change", [{"truth": '{"findings": []}'}, {"MeSH": ...}])
def test_a_parquet_of_ones_own_is_not_taken_for_open_i(tmp_path, change):
    values = {key: value for key, value in {**row(1), **change}.items() if value is not ...}
    source = open_source(str(write_parquet(tmp_path / "a.parquet", [values])), SETTINGS, 0)
    assert not source.is_open_i
    assert source.license == ""
    (only,) = source.rows()
    assert set(COLUMNS) <= set(only)


def test_a_folder_of_parquet_files_is_read_in_the_order_of_their_names(tmp_path):
    (tmp_path / "data").mkdir()
    write_parquet(tmp_path / "data" / "train-1.parquet", [row(3)])
    write_parquet(tmp_path / "data" / "train-0.parquet", [row(uid) for uid in (1, 2)])
    source = open_source(str(tmp_path), SETTINGS, 0)
    assert source.count == 3
    assert [values["uid"] for values in source.rows()] == ["1", "2", "3"]


def test_images_stored_as_bytes_with_path_and_uids_stored_as_floats_are_accepted(tmp_path):
    values = row(7.0, img_frontal={"bytes": png(), "path": "7.png"})
    (only,) = open_source(str(write_parquet(tmp_path / "a.parquet", [values])), SETTINGS, 0).rows()
    assert only["img_frontal"] == png()
    assert only["uid"] == "7"


def test_a_limit_takes_the_first_rows(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", [row(uid) for uid in range(50)])
    source = open_source(str(path), DataSettings(limit=20), 0)
    assert source.count == 20
    assert [values["uid"] for values in source.rows()] == [str(uid) for uid in range(20)]


def test_a_relative_path_is_found_from_the_working_directory(tmp_path, monkeypatch):
    write_parquet(tmp_path / "a.parquet", [row(1)])
    monkeypatch.chdir(tmp_path)
    assert open_source("a.parquet", SETTINGS, 0).count == 1


def test_the_kaggle_layout_gives_the_first_frontal_image(tmp_path):
    source = open_source(str(kaggle_folder(tmp_path)), SETTINGS, 0)
    first, second, third = source.rows()
    assert (source.kind, source.is_open_i, source.count) == ("kaggle", True, 3)
    assert first["img_frontal"] == png(11)
    assert second["img_frontal"] is None
    assert third["img_frontal"] is None
    assert first["image"] == "Xray Chest PA and Lateral"


def test_phantoms_have_the_schema_of_open_i_and_their_truth():
    source = open_source("phantom", DataSettings(phantoms=10, limit=2, workers=1), 3)
    rows = list(source.rows())
    assert source.count == len(rows) == 2
    assert set(rows[0]) == {*COLUMNS, "truth"}
    assert not source.is_open_i


def test_a_hub_data_set_is_read_with_its_images_as_bytes(monkeypatch):
    import datasets

    def load(name: str, **options: object) -> datasets.Dataset:
        assert (name, options) == ("ykumards/open-i", {"split": "train", "streaming": False})
        table = datasets.Dataset.from_list([row(1), row(2, img_frontal=None)])
        return table.cast_column("img_frontal", datasets.Image())

    monkeypatch.setattr(datasets, "load_dataset", load)
    source = open_source("ykumards/open-i", SETTINGS, 0)
    first, second = source.rows()
    assert (source.kind, source.is_open_i, source.count) == ("hub", True, 2)
    assert first["img_frontal"] == png()
    assert second["img_frontal"] is None


def test_without_network_the_sentence_says_what_else_to_give(monkeypatch):
    import datasets

    def fail(*_: object, **__: object) -> None:
        raise ConnectionError("cannot reach the hub\nwith much detail")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    message = sentence_of("ykumards/open-i")
    assert "network" in message
    assert "parquet" in message


@pytest.mark.parametrize("source", ["phantoms", "", "no/such/folder", "missing.parquet", "gone/missing.parquet"])
def test_an_unknown_source_lists_what_there_is(source):
    message = sentence_of(source)
    assert "does not exist" in message
    assert "'phantom'" in message


def test_missing_columns_are_named(tmp_path):
    values = {key: value for key, value in row(1).items() if key not in ("impression", "img_frontal")}
    assert "lacks the columns impression, img_frontal" in sentence_of(
        str(write_parquet(tmp_path / "a.parquet", [values]))
    )


def test_empty_damaged_and_foreign_files_are_refused(tmp_path):
    table = pa.Table.from_pylist([row(1)])
    pq.write_table(table.slice(0, 0), tmp_path / "empty.parquet")
    assert "holds no studies" in sentence_of(str(tmp_path / "empty.parquet"))
    (tmp_path / "bad.parquet").write_bytes(b"not parquet")
    assert "cannot be read as parquet" in sentence_of(str(tmp_path / "bad.parquet"))
    (tmp_path / "reports.csv").write_text("uid\n")
    assert "give the folder" in sentence_of(str(tmp_path / "reports.csv"))
    (tmp_path / "nothing").mkdir()
    assert "neither indiana_reports.csv" in sentence_of(str(tmp_path / "nothing"))


def test_a_picture_column_that_holds_no_bytes_is_refused(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", [row(1, img_frontal="1_IM-0001.png")])
    assert "study 1 has str in img_frontal" in sentence_of(str(path))


def test_images_that_are_not_there_are_counted_and_named(tmp_path, caplog):
    list(open_source(str(kaggle_folder(tmp_path)), SETTINGS, 0).rows())
    assert "1 images named in indiana_projections.csv are not in" in caplog.text
    assert "3_IM-e.dcm.png" in caplog.text


@pytest.mark.parametrize("same", [True, False])
def test_two_files_that_a_name_can_mean_are_one_if_they_are_equal_and_told_if_not(tmp_path, same):
    images = kaggle_folder(tmp_path) / "images"
    (images / "1_IM-b.jpg").write_bytes(png(11 if same else 99))
    (images / "images_normalized" / "1_IM-b.dcm.png").rename(images / "images_normalized" / "1_IM-b.png")
    if same:
        assert next(open_source(str(tmp_path), SETTINGS, 0).rows())["img_frontal"] == png(11)
    else:
        assert "could be either of two different files" in sentence_of(str(tmp_path))


def test_an_incomplete_kaggle_folder_is_refused(tmp_path):
    folder = kaggle_folder(tmp_path)
    reports, projections = folder / "indiana_reports.csv", folder / "indiana_projections.csv"
    text = projections.read_text()
    projections.write_text(re.sub("projection", "view", text, count=1))
    assert "lacks the column projection" in sentence_of(str(folder))
    projections.unlink()
    assert "lacks indiana_projections.csv" in sentence_of(str(folder))
    projections.write_text(text)
    reports.write_text(reports.read_text().splitlines()[0] + "\n")
    assert "holds no studies" in sentence_of(str(folder))


@pytest.mark.skipif(not (REAL / "open-i-mini.parquet").is_file(), reason="the Open-I sample is not on this machine")
def test_the_real_sample_is_open_i():
    source = open_source(str(REAL / "open-i-mini.parquet"), SETTINGS, 0)
    first = next(source.rows())
    assert (source.is_open_i, source.count) == (True, 1400)
    assert isinstance(first["image"], str)
    assert first["img_frontal"][:2] == b"\xff\xd8"


def test_a_parquet_cut_in_half_or_damaged_inside_is_named_in_one_sentence(tmp_path):
    rows = [row(uid, img_frontal=png(uid % 256)) for uid in range(2000)]
    path = tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path, compression="zstd")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert "cannot be read as parquet" in sentence_of(str(path))
    path.write_bytes(whole[:1000] + bytes(len(whole) // 2) + whole[1000 + len(whole) // 2 :])
    assert "is damaged" in sentence_of(str(path))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"findings": 5}, "study 1 has int in findings: it must hold a text"),
        ({"impression": ["No", "disease"]}, "study 1 has list in impression: it must hold a text"),
        ({"img_frontal": [1, 2, 3]}, "study 1 has list in img_frontal: it must hold the bytes of an image file"),
        ({"uid": True}, "study True has bool in uid: it must hold a text or a whole number"),
        ({"truth": 1}, "study 1 has int in truth: it must hold what was drawn into a phantom; rename yours"),
        ({"truth": "normal"}, "the column truth of study 1 is not readable JSON"),
        ({"truth": "{}"}, "the column truth of study 1 has no usable findings: it holds what was drawn"),
        ({"split": "holdout"}, "study 1 is in split 'holdout': use train, validation or test"),
    ],
)
def test_a_value_of_the_wrong_type_is_named_with_study_and_column(tmp_path, change, told):
    assert told in sentence_of(str(write_parquet(tmp_path / "a.parquet", [{**row(1), **change}])))


def test_texts_that_are_no_utf8_are_read_with_replacement_signs(tmp_path):
    texts = pa.array([b"Lungs are clear \xff\xfe.", None], pa.binary()).view(pa.string())
    table = pa.Table.from_pylist([row(1), row(2)]).set_column(6, "findings", texts)
    pq.write_table(table, tmp_path / "a.parquet")
    first, second = open_source(str(tmp_path / "a.parquet"), SETTINGS, 0).rows()
    assert first["findings"] == "Lungs are clear \ufffd\ufffd."
    assert second["findings"] is None
    assert first["img_frontal"] == png()


def test_a_hub_id_without_network_is_one_sentence(monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    message = sentence_of("nobody/no-such-collection")
    assert "could not be loaded from the hub" in message
    assert "parquet" in message


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (("train.parquet", "val.parquet", "test.parquet"), "train validation test"),
        (("trainset.parquet", "testset.parquet"), "train test"),
        (("openiTrain.parquet", "openiTest.parquet"), "train test"),
        (("TRAIN_data.parquet", "Evaluation Split.parquet"), "train test"),
        (("split=train/0.parquet", "split=dev/0.parquet"), "train validation"),
        (("train_val.parquet", "test-0.parquet"), "train test"),
        (("train.parquet", "val_test.parquet"), "train test"),
        (("train.parquet", "holdout.parquet"), "train test"),
        (("reports.parquet", "test.parquet"), "train test"),
        (("contest.parquet", "latest.parquet"), "None None"),
        (("train-00000-of-00002.parquet", "train-00001-of-00002.parquet"), "None None"),
    ],
)
def test_the_split_that_a_file_name_states_holds_in_any_spelling(names, splits):
    found = _splits_of_names([Path("source", name) for name in names], Path("source"))
    assert [str(found.get(Path("source", name))) for name in names] == splits.split()


def test_a_parquet_file_is_found_in_any_capitals_and_a_hidden_one_is_not(tmp_path):
    pq.write_table(pa.Table.from_pylist([row(1)]), tmp_path / "Train.PARQUET")
    (tmp_path / ".cache").mkdir()
    for name in ("._Train.parquet", ".cache/a.parquet"):  # of a Mac, of a download
        (tmp_path / name).write_bytes(b"no table")
    assert [study["uid"] for study in open_source(str(tmp_path), SETTINGS, 0).rows()] == ["1"]


@pytest.mark.parametrize("name", ["A.PNG", "a.dcm.png", "'a.jpg'", "folder/A.jpeg", " a.png "])
def test_an_image_is_found_by_its_name_in_other_capitals_and_endings(name):
    assert _stem(name) == "a"
    assert _stem("\u00e9.png") == _stem("e\u0301.png") != _stem("e.png")
