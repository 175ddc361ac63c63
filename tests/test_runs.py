"""Run folders: what is finished, what is stale, and what one is told."""

import json
import os

import pytest

from radvision_utils import runs
from radvision_utils.config import (
    PROMPT,
    RadVisionError,
    load_profile,
    project_root,
    settings_of,
    usual_settings,
)
from radvision_utils.files import read_json, write_json
from radvision_utils.runs import STEPS, RunFolder, is_current, made_from, require, working


@pytest.fixture
def profile(tmp_path):
    return load_profile("tiny", run="r", output_root=str(tmp_path))


def finish(profile, step, content="1"):
    record = {"made_from": made_from(profile, step), "hash": content}
    write_json(RunFolder.of(profile).record_path(step), record)


def test_a_step_is_current_only_after_its_record_was_written(profile):
    assert not is_current(profile, "data")
    finish(profile, "data")
    assert is_current(profile, "data")


def test_a_changed_setting_makes_its_step_and_all_after_it_stale(profile):
    for step in ("data", "stage1", "stage2"):
        finish(profile, step)
    changed = load_profile("tiny", {"stage1.epochs": 9}, run="r", output_root=profile.output_root)
    assert is_current(changed, "data")
    assert not is_current(changed, "stage1")
    assert not is_current(changed, "stage2")


def test_new_data_make_every_stage_stale(profile):
    for step in ("data", "stage1"):
        finish(profile, step)
    finish(profile, "data", content="2")
    assert not is_current(profile, "stage1")


def test_other_rows_make_an_evaluation_stale_and_maps_or_samples_do_not(profile):
    for step in ("data", "stage1", "stage2", "stage3", "evaluation"):
        finish(profile, step)
    for setting, value, current in (("stages", "ends", False), ("evidence", 0, True), ("samples", 5, True)):
        changed = load_profile("tiny", {f"evaluation.{setting}": value}, run="r", output_root=profile.output_root)
        assert is_current(changed, "stage3")
        assert is_current(changed, "evaluation") == current


def test_the_number_of_processes_does_not_make_data_stale(profile):
    finish(profile, "data")
    assert is_current(load_profile("tiny", {"data.workers": 3}, run="r", output_root=profile.output_root), "data")


def test_a_missing_parent_is_named_with_the_command_that_makes_it(profile):
    finish(profile, "data")
    with pytest.raises(
        RadVisionError,
        match=r"stage1 of run 'r' has not been made .*: make it with "
        rf"`python -m radvision_utils run --profile tiny --run r --output-root {profile.output_root} --from 2`",
    ):
        require(profile, "stage1")


def test_an_unfinished_stage_is_told_from_a_missing_one(profile):
    finish(profile, "data")
    RunFolder.of(profile).stage(1).mkdir(parents=True)
    with pytest.raises(RadVisionError, match="stage1 of run 'r' was started but is not finished"):
        require(profile, "stage1")


# What changes no step: how a step gets to its result, and what is added to an evaluation.
WITHOUT_RESULT = {"data.workers", "data.source", "generation.batch_size", "evaluation.evidence", "evaluation.samples"}
WITHOUT_RESULT |= {f"stage{n}.{name}" for n in (1, 2, 3) for name in ("save_steps", "max_minutes", "cache_features")}
WITHOUT_RESULT |= {
    f"stage{n}.{name}" for n in (1, 2, 3) for name in ("validation_studies", "checkpointed_layers", "compile")
}
WITHOUT_RESULT |= {f"stage{n}.{name}" for n in (1, 2, 3) for name in ("eval_steps", "report_to", "batch")}
SETTINGS = {name: value for name, value in settings_of(load_profile()).items() if "." in name or name == "seed"}


def another(name, value):
    """A valid value of a setting that is not the one it has."""
    choices = {"hospital": "A", "required": "either", "deidentified": "keep", "priors": "keep", "quantization": "none"}
    choices |= {"stages": "ends", "schedule": "linear", "optimizer": "adamw_torch", "train": "full"}
    choices |= {"findings": "scored", "compile": "always", "micro_batch": 3, "accumulation": 3}
    if isinstance(value, bool):
        return not value
    if isinstance(value, str):
        return choices.get(name.rpartition(".")[2], f"{value}x")
    if value is None:
        return 0.5 if name in ("data.abnormal_share", "generation.unsupported") else 7
    return 0.25 if isinstance(value, float) else value + 1


@pytest.mark.parametrize("name", SETTINGS)
def test_for_any_one_setting_changed_a_step_is_current_or_the_sentence_names_the_setting(profile, name):
    for step in STEPS:
        finish(profile, step)
    value = another(name, SETTINGS[name])
    changed = load_profile("tiny", {name: value}, run="r", output_root=profile.output_root)
    if name in WITHOUT_RESULT:
        assert all(is_current(changed, step) for step in STEPS)
        return
    told = f"{name} {json.dumps(SETTINGS[name])} (you ask for {json.dumps(value)})"
    if name.endswith((".micro_batch", ".accumulation")):  # by their product
        told = f"{name.partition('.')[0]}.accumulation 8 (you ask for {16 if name.endswith('accumulation') else 9})"
    with pytest.raises(RadVisionError, match="of run 'r' was made with") as error:
        require(changed, "evaluation")
    assert (f"another {name}" if SETTINGS[name] == PROMPT else told) in str(error.value)


@pytest.mark.parametrize("name", [name for name in SETTINGS if name not in WITHOUT_RESULT and "." in name])
def test_a_run_of_a_version_without_a_setting_was_made_with_its_default(profile, name):
    def finish_without(asked):
        for step in STEPS:
            finish(asked, step)
            path = RunFolder.of(asked).record_path(step)
            record = read_json(path)
            record["made_from"].pop(name, None)
            write_json(path, record)

    usual = usual_settings()[name]
    finish_without(with_setting := load_profile("tiny", {name: usual}, run="r", output_root=profile.output_root))
    assert all(is_current(with_setting, step) for step in STEPS)
    changed = load_profile("tiny", {name: another(name, usual)}, run="r", output_root=profile.output_root)
    with pytest.raises(RadVisionError, match=f"was made with .*({name.partition('.')[0]}|another)"):
        require(changed, "evaluation")


@pytest.mark.parametrize("made_from", [None, 3, [], ["seed"], "seed"])
def test_a_record_that_does_not_say_what_it_was_made_from_is_stale_in_a_sentence(profile, made_from):
    write_json(RunFolder.of(profile).record_path("data"), {"hash": "1", "made_from": made_from})
    with pytest.raises(RadVisionError, match="data of run 'r' was made with other settings or other data, in"):
        require(profile, "data")


def test_a_step_of_micro_batches_is_known_by_its_studies(profile):
    for step in STEPS:
        finish(profile, step)
    for micro, times in ((1, 8), (2, 4), (4, 2)):
        split = {}
        for stage in ("stage1", "stage2", "stage3"):
            split |= {f"{stage}.micro_batch": micro, f"{stage}.accumulation": times}
        assert is_current(load_profile("tiny", split, run="r", output_root=profile.output_root), "evaluation")


def test_all_that_differs_is_named_and_a_record_without_names_is_answered_too(profile):
    for step in ("data", "stage1", "stage2"):
        finish(profile, step)
    finish(profile, "stage1", content="2")
    other = load_profile("tiny", {"stage2.epochs": 9, "seed": 23}, run="r", output_root=profile.output_root)
    with pytest.raises(
        RadVisionError, match=r"stage2 .* with another stage1 and stage2\.epochs 1\.0 \(you ask for 9\.0\)"
    ):
        require(other, "stage2")
    write_json(RunFolder.of(profile).record_path("stage1"), {"key": "of an earlier version", "hash": "1"})
    with pytest.raises(RadVisionError, match="stage1 of run 'r' was made with other settings or other data, in"):
        require(profile, "stage1")


def test_a_run_that_does_not_exist_is_answered_with_those_that_do(profile, tmp_path):
    RunFolder.of(profile).note(profile, "data")
    with pytest.raises(RadVisionError, match=r"run 'x' does not exist in .* \(runs there: r\)"):
        RunFolder("x", tmp_path).profile()


def test_a_copied_run_folder_reads_as_the_run_it_is_now(profile, tmp_path):
    RunFolder.of(profile).note(profile, "data")
    (tmp_path / "r").rename(tmp_path / "copy")
    assert RunFolder("copy", tmp_path).profile().run == "copy"


def test_a_failed_write_leaves_the_old_file_and_no_rest(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"old": 1})
    with pytest.raises(TypeError):
        write_json(path, {"new": object()})
    assert read_json(path) == {"old": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_a_broken_record_is_named(profile):
    path = RunFolder.of(profile).record_path("data")
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"hash": "1"})[:-1])
    with pytest.raises(RadVisionError, match=r"summary\.json is not readable JSON"):
        require(profile, "data")


@pytest.fixture
def read_only(monkeypatch):
    """Makes folders look as if nothing could be written to them."""
    refused, allowed = [], os.access
    monkeypatch.setattr(os, "access", lambda path, mode: str(path) not in map(str, refused) and allowed(path, mode))
    runs._writable_root.cache_clear()
    yield refused
    runs._writable_root.cache_clear()


def test_where_the_project_is_read_only_runs_are_in_the_working_directory(read_only, tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    assert RunFolder("r").path == project_root() / "outputs" / "r"
    runs._writable_root.cache_clear()
    read_only.append(project_root() / "outputs")
    assert RunFolder("r").path == RunFolder("r").path == tmp_path / "outputs" / "r"
    [message] = [m for m in caplog.messages if "cannot be written" in m]
    assert str(tmp_path / "outputs") in message


def test_a_folder_that_may_not_be_written_to_is_one_sentence(tmp_path, monkeypatch):
    def refuse(path, *_):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "open", refuse)
    told = r"r cannot be worked in \(.*Permission denied.*\): mend the permissions, or give another folder"
    with pytest.raises(RadVisionError, match=told), working(RunFolder("r", tmp_path), "data"):
        pass


@pytest.mark.parametrize(
    ("record", "place"),
    [
        ([], "value"),
        ({"made_from": {}}, "hash"),
        ({"hash": 2}, "hash"),
    ],
)
def test_a_record_of_another_shape_is_told_with_the_place(profile, record, place):
    write_json(RunFolder.of(profile).record_path("data"), record)
    with pytest.raises(
        RadVisionError, match=rf"summary\.json has no usable {place}: put back a whole copy, or delete it"
    ):
        require(profile, "data")


def test_settings_that_cannot_be_used_are_told_with_their_file(profile):
    path = RunFolder.of(profile).path / "run.json"
    write_json(path, {"profile": {**profile.to_dict(), "stage1": 7}, "steps": {}})
    with pytest.raises(RadVisionError, match=rf"{path} cannot be used \(setting 'stage1' must be an object"):
        RunFolder.of(profile).profile()
