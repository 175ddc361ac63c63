"""A full disk ends with one sentence and leaves what was finished before; input folders are only read."""

import resource
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from radvision_utils import RadVisionError, evaluate, prepare_dataset, train_stage
from radvision_utils.cards import write_dashboard
from radvision_utils.files import told_if_unwritable, write_json
from radvision_utils.hand_over.export import export_run
from radvision_utils.runs import RunFolder, is_current
from radvision_utils.training.resume import last_checkpoint

TOLD = r"a file in .* could not be written to its end \(.*\): make room and give the same command again"
STEPS = {"max_steps": 2, "save_steps": 1, "micro_batch": 2}


@contextmanager
def largest_file(size):
    """No file may grow beyond `size` bytes, as if the disk were full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_while_data_are_prepared_leaves_the_older_data_and_the_same_command_goes_on(fresh_run):
    profile = fresh_run()
    larger = replace(profile, data=replace(profile.data, phantoms=80))
    with largest_file(20_000), pytest.raises(RadVisionError, match=TOLD):
        prepare_dataset(larger)
    assert is_current(profile, "data")
    prepare_dataset(larger)
    assert is_current(larger, "data")
    assert sorted(path.name for path in RunFolder.of(profile).path.iterdir()) == ["data", "run.json"]


def test_while_a_checkpoint_is_written_leaves_the_one_before(fresh_run):
    profile = fresh_run(stage1={**STEPS, "max_minutes": 0.0})
    with pytest.raises(RadVisionError, match="max_minutes"):
        train_stage(profile, 1)
    checkpoints = RunFolder.of(profile).partial("stage1") / "checkpoints"
    with largest_file(100_000), pytest.raises(RadVisionError, match=TOLD):
        train_stage(profile, 1)
    assert last_checkpoint(checkpoints).name == "checkpoint-1"
    assert train_stage(profile, 1).record["resumed_from"] == "checkpoint-1"


def test_while_an_adapter_is_written_leaves_the_last_checkpoint(fresh_run, monkeypatch):
    from radvision_utils.training import train as trainer

    profile, save = fresh_run(stage1=STEPS), trainer.save_adapter

    def save_on_full_disk(*values):
        with largest_file(1_000_000):
            save(*values)

    monkeypatch.setattr(trainer, "save_adapter", save_on_full_disk)
    with pytest.raises(RadVisionError, match=TOLD):
        train_stage(profile, 1)
    monkeypatch.setattr(trainer, "save_adapter", save)
    assert not is_current(profile, "stage1")
    assert train_stage(profile, 1).record["resumed_from"] == "checkpoint-2"


def test_while_reports_are_evaluated_leaves_the_older_evaluation(trained):
    older = evaluate(trained)
    changed = replace(trained, generation=replace(trained.generation, max_new_tokens=4))
    before = {path: path.read_bytes() for path in older.folder.glob("*.json*")}
    with largest_file(500), pytest.raises(RadVisionError, match=TOLD):
        evaluate(changed)
    assert {path: path.read_bytes() for path in older.folder.glob("*.json*")} == before
    assert is_current(trained, "evaluation")


def test_while_a_page_is_written_leaves_the_older_page(trained):
    evaluate(trained)
    page = write_dashboard(trained.run, trained.output_root)
    before = page.read_bytes()
    with largest_file(20_000), pytest.raises(RadVisionError, match=TOLD):
        write_dashboard(trained.run, trained.output_root)
    assert page.read_bytes() == before
    assert [path.name for path in page.parent.iterdir()] == [page.name]


def test_while_a_model_is_exported_leaves_no_folder_that_looks_whole(trained, tmp_path):
    with largest_file(1_000_000), pytest.raises(RadVisionError, match=TOLD):
        export_run(trained, tmp_path / "hand-over")
    assert not (tmp_path / "hand-over").exists()


@pytest.mark.parametrize("save", [torch.save, save_file])
def test_a_file_of_weights_that_ends_at_any_byte_is_told(tmp_path, save):
    weights, file = {"a": torch.ones(1000), "b": torch.ones(3)}, tmp_path / "weights"
    save(weights, file)
    for size in range(0, file.stat().st_size - 1, 100):
        with largest_file(size), pytest.raises(RadVisionError, match=TOLD), told_if_unwritable(tmp_path):
            save(weights, tmp_path / "cut")


@pytest.mark.parametrize("place", ["file/figures.json", "folder", "n" * 300, "n" * 300 + "/figures.json"])
def test_a_place_that_takes_no_file_is_told(place, tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    with pytest.raises(RadVisionError, match=r"cannot be worked in \(.*\): mend the permissions, or give another"):
        write_json(tmp_path / place, {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def test_a_source_folder_is_only_read(open_i, tmp_path):
    import shutil

    from radvision_utils import load_profile

    source = tmp_path / "input"
    source.mkdir()
    shutil.copy(open_i / "open-i-mini.parquet", source)
    for path in (source / "open-i-mini.parquet", source):
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = [(path.name, path.stat().st_mtime_ns) for path in (source, *source.iterdir())]
    changes = {"data.limit": 60, "data.workers": 1}
    prepare_dataset(load_profile("tiny", changes, run="r", source=str(source), output_root=str(tmp_path / "out")))
    assert [(path.name, path.stat().st_mtime_ns) for path in (source, *source.iterdir())] == before
