"""A source is known by what it holds, not by where it lies; prepared data stand for a source that is gone."""

import os
import shutil
from types import SimpleNamespace

import huggingface_hub.constants
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from radvision_utils import RadVisionError, load_profile, prepare_dataset
from radvision_utils import content as module
from radvision_utils.content import public_name, source_content
from radvision_utils.data import prepare
from radvision_utils.files import read_json, write_json
from radvision_utils.phantoms.phantom_rows import phantom_rows
from radvision_utils.runs import RunFolder, is_current, made_from, require


@pytest.fixture(scope="module")
def rows():
    found = list(phantom_rows(30, "B", 11, workers=1))
    for row in found:
        row.pop("truth")
        row["split"] = ("train", "validation", "test")[int(row["uid"]) % 3]
    return found


@pytest.fixture
def source(rows, tmp_path):
    path = tmp_path / "here" / "studies.parquet"
    path.parent.mkdir()
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def asked(source, tmp_path, **changes):
    settings = {"data.workers": 1, "data.image_size": 56, **changes}
    return load_profile("tiny", settings, run="r", source=str(source), output_root=str(tmp_path / "outputs"))


@pytest.fixture
def prepared(source, tmp_path):
    profile = asked(source, tmp_path)
    prepare_dataset(profile)
    return profile


@pytest.fixture
def nothing_is_prepared(monkeypatch):
    monkeypatch.setattr(prepare, "_prepare_aside", lambda *_: pytest.fail("it is prepared again"))


@pytest.mark.parametrize("place", ["there/studies.parquet", "there/other name.parquet"])
def test_the_same_file_elsewhere_is_the_same_source(source, prepared, tmp_path, place, nothing_is_prepared):
    (tmp_path / "there").mkdir()
    source.rename(tmp_path / place)
    moved = asked(tmp_path / place, tmp_path)
    assert prepare_dataset(moved).summary["hash"] == prepare_dataset(prepared).summary["hash"]
    assert is_current(moved, "data")


def test_a_file_rewritten_in_place_is_noticed_and_prepared_anew(source, prepared, rows, tmp_path):
    before = require(prepared, "data")["hash"]
    pq.write_table(pa.Table.from_pylist([{**row, "findings": "The lungs are clear."} for row in rows]), source)
    assert not is_current(prepared, "data")
    assert prepare_dataset(prepared).summary["hash"] != before
    assert is_current(prepared, "data")


def test_other_studies_under_another_name_are_another_source(prepared, rows, tmp_path):
    pq.write_table(pa.Table.from_pylist(rows[:29]), tmp_path / "less.parquet")
    with pytest.raises(RadVisionError, match="made with other data"):
        require(asked(tmp_path / "less.parquet", tmp_path), "data")


def test_a_source_that_is_gone_leaves_its_preparation_of_use(source, prepared, tmp_path, nothing_is_prepared):
    source.unlink()
    assert is_current(prepared, "data")
    assert len(prepare_dataset(prepared).split("train")) > 0


def test_a_source_that_is_not_there_is_not_taken_for_the_one_that_was_prepared(prepared, tmp_path):
    other = asked(tmp_path / "typo.parquet", tmp_path)
    with pytest.raises(RadVisionError, match="made with other data"):
        require(other, "data")
    with pytest.raises(RadVisionError, match="does not exist"):
        prepare_dataset(other)


def test_a_run_that_was_worked_on_under_two_mounts_can_be_used_where_its_source_is_not(source, prepared, tmp_path):
    moved = source.rename(tmp_path / "moved.parquet")
    other, run = asked(moved, tmp_path), RunFolder.of(prepared)
    write_json(run.record_path("stage1"), {"made_from": made_from(other, "stage1"), "hash": "1"})
    run.note(other, "stage1")
    moved.unlink()
    shutil.move(run.path, tmp_path / "copied")
    found = RunFolder("copied", tmp_path).profile()
    assert is_current(found, "data")
    assert is_current(found, "stage1")


def test_of_a_folder_tables_count_by_every_byte_and_images_by_name_and_size(tmp_path):
    folder = tmp_path / "source"
    (folder / "images").mkdir(parents=True)
    (folder / "reports.csv").write_text("uid,findings\n1,clear\n")
    (folder / "images" / "1.png").write_bytes(b"12345")
    first = source_content(str(folder))
    shutil.copytree(folder, tmp_path / "copy")
    (tmp_path / "copy" / ".DS_Store").write_bytes(b"of the desktop")
    assert source_content(str(tmp_path / "copy")) == first
    (folder / "images" / "1.png").write_bytes(b"54321")
    assert source_content(str(folder)) == first  # known, and said
    changes = {"reports.csv": b"uid,findings\n1,clean\n", "images/1.png": b"123456", "images/2.png": b""}
    for name, data in changes.items():
        changed = tmp_path / name.replace("/", "-")
        shutil.copytree(folder, changed)
        (changed / name).write_bytes(data)
        assert source_content(str(changed)) != first, name


def test_links_between_folders_of_a_source_are_followed_and_end(tmp_path):
    (tmp_path / "scans").mkdir()
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "images").symlink_to(tmp_path / "scans")
    (tmp_path / "scans" / "round").symlink_to(tmp_path / "source")
    before = source_content(str(tmp_path / "source"))
    (tmp_path / "scans" / "1.png").write_bytes(b"1")
    assert source_content(str(tmp_path / "source")) != before


def test_a_data_set_of_the_hub_is_known_by_its_commit_with_and_without_the_network(tmp_path, monkeypatch):
    name = "owner/studies"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    for reached in (True, False):
        module._commit.cache_clear()

        def info(*_, reached=reached, **__):
            if not reached:
                raise OSError("no network")
            return SimpleNamespace(sha="abc")

        monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", info)
        assert source_content(name) == ("abc" if reached else None)
    ref = tmp_path / "datasets--owner--studies" / "refs" / "main"
    ref.parent.mkdir(parents=True)
    ref.write_text("abc")
    module._commit.cache_clear()
    assert source_content(name) == "abc"
    module._commit.cache_clear()


def test_a_file_is_read_once_a_process_until_it_changes(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_bytes(b"one")
    first = module.checksum(path)
    monkeypatch.setattr(module.xxhash, "xxh3_64", lambda: pytest.fail("read again"))
    assert module.checksum(path) == first
    monkeypatch.undo()
    path.write_bytes(b"two")
    os.utime(path, ns=(0, 1))
    assert module.checksum(path) != first


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/home/alice/models/base", "base"),
        ("~/base/", "base"),
        (r"C:\Users\alice\base", "base"),
        ("tiny", "tiny"),
        ("lingshu-medical-mllm/Lingshu-7B", "lingshu-medical-mllm/Lingshu-7B"),
    ],
)
def test_of_a_path_others_learn_its_last_part(path, name):
    assert public_name(path) == name


def test_the_record_of_a_preparation_says_what_its_source_held(prepared, source):
    assert read_json(RunFolder.of(prepared).record_path("data"))["content"] == source_content(str(source))
