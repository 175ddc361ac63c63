"""Run folders: what is finished, what is stale, and what one is told."""

import json

import pytest

from radvision_utils.config import RadVisionError, load_profile
from radvision_utils.runs import RunFolder, is_current, read_json, require, step_key, write_json


@pytest.fixture
def profile(tmp_path):
    return load_profile("tiny", run="r", output_root=str(tmp_path))


def finish(profile, step, content="1"):
    write_json(RunFolder.of(profile).record_path(step), {"key": step_key(profile, step), "hash": content})


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


def test_a_stage_made_with_other_settings_is_refused(profile):
    for step in ("data", "stage1"):
        finish(profile, step)
    other = load_profile("tiny", {"stage1.epochs": 9}, run="r", output_root=profile.output_root)
    with pytest.raises(RadVisionError, match="stage1 of run 'r' was made with other settings"):
        require(other, "stage1")


def test_a_run_that_does_not_exist_is_answered_with_those_that_do(profile, tmp_path):
    RunFolder.of(profile).note(profile, "data", seconds=1)
    with pytest.raises(RadVisionError, match=r"run 'x' does not exist in .* \(runs there: r\)"):
        RunFolder("x", tmp_path).profile()


def test_a_copied_run_folder_reads_as_the_run_it_is_now(profile, tmp_path):
    RunFolder.of(profile).note(profile, "data", seconds=1)
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
    path.write_text(json.dumps({"key": 1})[:-1])
    with pytest.raises(RadVisionError, match=r"summary\.json is not readable JSON"):
        require(profile, "data")
