"""What an interruption leaves is recognized: half a checkpoint, half a line, a whole folder not yet in its place."""

import json
import os
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from radvision_utils import RadVisionError, train_stage
from radvision_utils.config import RunPaused, project_root, settings_of
from radvision_utils.content import checksum
from radvision_utils.data.reports import format_report
from radvision_utils.evaluation.writing import write_reports
from radvision_utils.files import LIST, is_whole, list_files, read_json, read_json_lines, write_json, write_text
from radvision_utils.model.base import component_of
from radvision_utils.planning.cost import disk_gib, read_shape
from radvision_utils.report import reporter_of
from radvision_utils.runs import NO_RESULT, RunFolder, is_current, working
from radvision_utils.training import train as trainer
from radvision_utils.training.resume import TRAINED, last_checkpoint

STEPS = {"max_steps": 4, "save_steps": 1, "micro_batch": 4, "lora_dropout": 0.1}


def killed(profile, stage, place):
    """End a stage as a kill would, at a place of the trainer's own code; everything written stays."""

    def stop(*_, **__):
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, place, stop)
        with pytest.raises(KeyboardInterrupt):
            train_stage(profile, stage)


def of_four_steps(small_profile, root, **changes):
    """A run of its own with the session's data."""
    stage = replace(small_profile.stage1, **{**STEPS, **changes})
    profile = replace(small_profile, output_root=str(root), stage1=stage)
    shutil.copytree(RunFolder.of(small_profile).data, RunFolder.of(profile).data)
    return profile


def copy_of(profile, root):
    shutil.copytree(profile.output_root, root)
    return replace(profile, output_root=str(root))


@pytest.fixture(scope="module")
def ends(small_profile, dataset, tmp_path_factory):
    """Two runs, alike but that stage 1 of the second was killed after its last step."""
    whole, cut = (of_four_steps(small_profile, tmp_path_factory.mktemp(name)) for name in ("whole", "cut"))
    train_stage(whole, 1)
    killed(cut, 1, "save_adapter")
    return whole, cut


@pytest.fixture
def finished(ends, tmp_path):
    return copy_of(ends[0], tmp_path / "finished")


@pytest.fixture
def unfinished(ends, tmp_path):
    return copy_of(ends[1], tmp_path / "unfinished")


def test_half_a_checkpoint_is_not_used_but_the_one_before(finished, unfinished):
    whole = RunFolder.of(finished).record("stage1")
    checkpoints = RunFolder.of(unfinished).partial("stage1") / "checkpoints"
    newest = last_checkpoint(checkpoints)
    assert newest.name == "checkpoint-4"
    with (newest / "optimizer.pt").open("r+b") as file:
        file.truncate(file.seek(0, 2) // 2)
    assert not is_whole(newest)
    result = train_stage(unfinished, 1)
    assert result.record["resumed_from"] == "checkpoint-3"
    for same in ("hash", "validation_loss", "train_loss"):
        assert result.record[same] == whole[same]
    assert [line["step"] for line in result.log if "loss" in line] == [1, 2, 3, 4]


def test_a_checkpoint_without_its_mark_is_not_used(tmp_path):
    (tmp_path / "checkpoint-9").mkdir()
    (tmp_path / "checkpoint-9" / "optimizer.pt").write_bytes(b"all there, but who knows")
    assert last_checkpoint(tmp_path) is None


def test_a_checkpoint_holds_what_the_stage_trains_in_the_bytes_that_are_planned(finished):
    profile = replace(finished, stage2=replace(finished.stage2, **STEPS))
    killed(profile, 2, "save_adapter")
    checkpoint = last_checkpoint(RunFolder.of(profile).partial("stage2") / "checkpoints")
    saved = load_file(checkpoint / TRAINED)
    assert {component_of(name) for name in saved} == {"projector"}
    shape = read_shape(profile.model)
    assert sum(tensor.numel() for tensor in saved.values()) == sum(shape.adapter_tensors(profile)[2])
    # The plan has room for three, of the stage that trains most: here the projector's.
    planned = disk_gib(profile)["checkpoints of a stage while it trains"] * 2**30 / 3
    assert sum(path.stat().st_size for path in checkpoint.iterdir()) == pytest.approx(planned, rel=0.05)


def test_a_checkpoint_of_other_tensors_is_refused_and_named(unfinished):
    checkpoint = last_checkpoint(RunFolder.of(unfinished).partial("stage1") / "checkpoints")
    renamed = {name.replace("lora_A", "lora_a"): tensor for name, tensor in load_file(checkpoint / TRAINED).items()}
    save_file(renamed, checkpoint / TRAINED)
    (checkpoint / LIST).unlink()
    list_files(checkpoint)
    with pytest.raises(RadVisionError, match=r"checkpoint-4 holds other tensors .* delete .*stage1\.partial and give"):
        train_stage(unfinished, 1)


def test_a_stage_killed_after_its_last_step_does_not_train_on(finished, unfinished):
    whole = RunFolder.of(finished).record("stage1")
    result = train_stage(unfinished, 1)
    assert result.record["resumed_from"] == "checkpoint-4"
    assert (result.record["hash"], result.record["steps"]) == (whole["hash"], 4)
    assert result.record["validation_loss"] == whole["validation_loss"]


def test_a_stage_killed_before_it_is_put_in_its_place_is_put_there(fresh_run, monkeypatch):
    profile, rename = fresh_run(stage1=STEPS), Path.rename

    def stop(path, target):
        if path.name == "stage1.partial":
            raise KeyboardInterrupt
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", stop)
    with pytest.raises(KeyboardInterrupt):
        train_stage(profile, 1)
    monkeypatch.setattr(Path, "rename", rename)
    assert not is_current(profile, "stage1")
    monkeypatch.setattr(trainer, "_train", lambda *_: pytest.fail("it trains again"))
    result = train_stage(profile, 1)
    assert result.record["steps"] == 4
    assert sorted(p.name for p in RunFolder.of(profile).path.iterdir()) == ["data", "run.json", "stage1"]


def test_an_older_stage_stays_until_the_new_one_is_whole(finished):
    old = RunFolder.of(finished).record("stage1")["hash"]
    other = replace(finished, stage1=replace(finished.stage1, max_steps=3))
    killed(other, 1, "loss_figure")
    assert (RunFolder.of(other).adapter(1) / "adapter_model.safetensors").is_file()
    assert train_stage(other, 1).record["hash"] != old


def killed_before_change(patch, number):
    """Interrupt before the change of that number, from 0, to a folder's files."""
    changes = []

    def counted(true):
        def change(*values, **options):
            changes.append(true)
            if len(changes) > number:
                raise KeyboardInterrupt
            return true(*values, **options)

        return change

    patch.setattr(Path, "rename", counted(Path.rename))
    patch.setattr("os.rmdir", counted(os.rmdir))
    patch.setattr("os.unlink", counted(os.unlink))
    patch.setattr("radvision_utils.runs.write_json", counted(write_json))


@pytest.mark.parametrize("number", range(6))
def test_an_exchange_killed_before_any_of_its_changes_leaves_a_whole_result(finished, monkeypatch, number):
    run = RunFolder.of(finished)
    old = run.record("stage1")
    shutil.copytree(run.stage(1), run.partial("stage1"))
    with monkeypatch.context() as patch, suppress(KeyboardInterrupt):
        killed_before_change(patch, number)
        run.publish(finished, "stage1")
    assert train_stage(finished, 1).record["finished"] == old["finished"]
    assert not run.before("stage1").exists()
    assert checksum(run.adapter(1) / "adapter_model.safetensors") == old["hash"]


@pytest.mark.parametrize("step", ["evaluation", "evaluation/validation"])
@pytest.mark.parametrize("number", range(8))
def test_so_does_that_of_an_evaluation_and_those_of_other_splits_stay(fresh_run, monkeypatch, step, number):
    profile = fresh_run()
    run = RunFolder.of(profile)
    for name, path in (("evaluation", run.evaluation), ("evaluation/validation", run.evaluation / "validation")):
        write_json(path / "metrics.json", {"hash": "", "of": f"{name}, old"})
        (path / "predictions.jsonl").write_text("old")
    shutil.copytree(run.path / step, run.partial(step))
    write_json(run.partial(step) / "metrics.json", {"hash": "", "of": f"{step}, new"})
    (run.partial(step) / "predictions.jsonl").write_text("new")
    with monkeypatch.context() as patch, suppress(KeyboardInterrupt):
        killed_before_change(patch, number)
        run.publish(profile, step)
    with working(run, "evaluation"):
        pass
    for name in ("evaluation", "evaluation/validation"):
        content = (run.path / name / "predictions.jsonl").read_text()
        assert run.record(name)["of"] == f"{name}, {content}"
        assert content == "old" or name == step
    assert not list(run.path.rglob("*.before"))


@pytest.mark.parametrize("error", [KeyboardInterrupt, RadVisionError])
def test_a_forced_attempt_that_ends_early_leaves_the_result_and_the_same_command_goes_on(finished, monkeypatch, error):
    old = RunFolder.of(finished).record("stage1")

    def stop(*_, **__):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "save_adapter", stop)
        with pytest.raises(error):
            train_stage(finished, 1, force=True)
    assert train_stage(finished, 1).record == old
    again = train_stage(finished, 1, force=True).record
    assert (again["resumed_from"], again["hash"]) == ("checkpoint-4", old["hash"])
    assert train_stage(finished, 1, force=True).record["resumed_from"] is None


NO_DROPOUT = {"accumulation": 2, "lora_dropout": 0.0}  # masks would depend on the micro-batches


@pytest.fixture(scope="module")
def whole(small_profile, dataset, tmp_path_factory):
    """Stage 1, uninterrupted."""
    return train_stage(of_four_steps(small_profile, tmp_path_factory.mktemp("whole"), **NO_DROPOUT), 1)


@pytest.fixture(scope="module")
def begun(small_profile, dataset, tmp_path_factory):
    """The profile of a run whose stage 1 was interrupted after two of its four steps."""
    profile = of_four_steps(small_profile, tmp_path_factory.mktemp("begun"), **NO_DROPOUT)
    for _ in range(2):
        with pytest.raises(RunPaused):
            train_stage(replace(profile, stage1=replace(profile.stage1, max_minutes=0.0)), 1)
    return profile


class TestChangedSettings:
    @pytest.fixture
    def cut(self, begun, tmp_path):
        return copy_of(begun, tmp_path / "cut")

    @pytest.mark.parametrize(
        "change",
        [
            {"save_steps": 3, "max_minutes": 9.0, "cache_features": False},
            {"validation_studies": 2},
            {"checkpointed_layers": 0},
            {"micro_batch": 2, "accumulation": 4},
            {"micro_batch": 8, "accumulation": 1},
        ],
    )
    def test_without_effect_on_the_weights_go_on_to_the_same_losses(self, whole, cut, change):
        result = train_stage(replace(cut, stage1=replace(cut.stage1, **change)), 1)
        assert result.record["resumed_from"] == "checkpoint-2"
        logs = [[line["loss"] for line in each.log if "loss" in line] for each in (result, whole)]
        assert logs[0] == pytest.approx(logs[1], rel=1e-3)
        if "validation_studies" not in change:
            expected = pytest.approx(whole.record["validation_loss"], abs=1e-3)
            assert result.record["validation_loss"] == expected

    def test_any_one_of_them_keeps_the_checkpoint_or_is_named(self, begun, monkeypatch):
        class Trains(Exception):
            pass

        def reached(stage, *_):
            raise Trains(last_checkpoint(stage.work / "checkpoints").name)

        monkeypatch.setattr(trainer, "_train", reached)
        kept = set()
        other = {"schedule": "linear", "optimizer": "adamw_torch", "cache_features": False, "train": "full"}
        other |= {"report_to": "tensorboard", "compile": "always"}
        for name, value in settings_of(begun.stage1).items():
            stage = replace(begun.stage1, **{name: other[name] if name in other else (value or 0) + 1})
            with pytest.raises((Trains, RadVisionError)) as told:
                train_stage(replace(begun, stage1=stage), 1)
            kept |= {name} if told.type is Trains else set()
            assert "checkpoint-2" in str(told.value) or (
                f"stage1.{name}" in str(told.value) and "to give up these steps (" in str(told.value)
            )
        assert kept == {*NO_RESULT, "batch"}  # which counts where the split of a step is left to the planner
        assert last_checkpoint(RunFolder.of(begun).partial("stage1") / "checkpoints").name == "checkpoint-2"

    def test_that_cost_checkpoints_are_told_with_steps_and_time_and_asked_for(self, cut):
        other = replace(cut, stage1=replace(cut.stage1, learning_rate=2e-4))
        told = (
            r"stage1 of run 'small' was begun with stage1\.learning_rate 0\.002 \(you ask for 0\.0002\) and stopped at "
            r"step 2: to give up these steps \(\d+ seconds\) and begin anew, give `python -m .* --from 2 --force`"
        )
        for _ in range(2):
            with pytest.raises(RadVisionError, match=told):
                train_stage(other, 1)
        assert train_stage(other, 1, force=True).record["resumed_from"] is None

    def test_of_an_attempt_that_recorded_none_are_asked_for_too(self, cut):
        begun = RunFolder.of(cut).partial("stage1") / "begun.json"
        begun.rename(begun.with_name("key.txt"))
        with pytest.raises(
            RadVisionError, match="was begun with other settings or other data and stopped at step 2: to"
        ):
            train_stage(cut, 1)

    def test_of_the_machine_are_told_since_the_weights_then_agree_only_to_rounding(self, whole, cut, caplog):
        begun = RunFolder.of(cut).partial("stage1") / "begun.json"
        known = read_json(begun)
        assert known["conditions"]["threads"] == whole.record["threads"] == torch.get_num_threads()
        known["conditions"]["threads"] = 7
        known["conditions"]["versions"]["torch"] = "1.0"
        write_json(begun, known)
        assert train_stage(cut, 1).record["resumed_from"] == "checkpoint-2"
        assert f"threads 7 (now {torch.get_num_threads()})" in caplog.text
        assert f'torch "1.0" (now "{torch.__version__.partition("+")[0]}' in caplog.text
        assert "not bit for bit" in caplog.text


def test_8_bit_optimizer_state_resumes_to_the_same_weights(finished, tmp_path):
    whole = replace(finished, stage2=replace(finished.stage2, **STEPS))
    cut = copy_of(whole, tmp_path / "cut")
    expected = train_stage(whole, 2).record["hash"]
    killed(cut, 2, "save_adapter")
    checkpoints = RunFolder.of(cut).partial("stage2") / "checkpoints"
    shutil.rmtree(checkpoints / "checkpoint-4")
    saved = torch.load(checkpoints / "checkpoint-3" / "optimizer.pt", weights_only=True)["state"].values()
    quantized = [state.get("__bnb_optimizer_quant_state__", state)["state1"] for state in saved]
    assert [moment.numel() for moment in quantized if moment.dtype == torch.uint8] == [384 * 384, 384 * 128]
    result = train_stage(cut, 2)
    assert (result.record["resumed_from"], result.record["hash"]) == ("checkpoint-3", expected)


def test_what_a_process_killed_in_the_middle_of_a_file_has_left_goes_when_the_file_is_written(tmp_path):
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        ended.wait()
    (tmp_path / f".page [1].html.{ended.pid}.abc").write_text("half")
    kept = [f".page [1].html.{os.getpid()}.abc", ".page [1].html.swp", ".other.html.1.abc"]
    for name in kept:
        (tmp_path / name).write_text("of others")
    write_text(tmp_path / "page [1].html", "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*kept, "page [1].html"])


def test_a_log_whose_last_line_was_cut_is_read_to_the_line_before(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"ste')
    assert [line["step"] for line in read_json_lines(path, torn=True)] == [1, 2]


class TestReports:
    @pytest.fixture
    def reporter(self, trained):
        generation = replace(trained.generation, batch_size=2, max_new_tokens=8)
        return reporter_of(replace(trained, generation=generation), 3)

    @pytest.fixture
    def studies(self, dataset):
        return dataset.split("train")[:7]

    def test_written_before_an_interruption_are_not_written_again(self, reporter, studies, tmp_path, monkeypatch):
        whole = write_reports(reporter, studies, tmp_path / "whole")
        one_by_one = reporter.write

        def stop_after_3(chosen):
            for number, report in enumerate(one_by_one(chosen)):
                if number == 3:
                    raise KeyboardInterrupt
                yield report

        monkeypatch.setattr(reporter, "write", stop_after_3)
        with pytest.raises(KeyboardInterrupt):
            write_reports(reporter, studies, tmp_path / "cut")
        with (tmp_path / "cut" / "stage3-by-2.0.jsonl").open("a") as file:
            file.write('{"first": 2, "rep')
        asked = []
        monkeypatch.setattr(reporter, "write", lambda chosen: asked.extend(chosen) or one_by_one(chosen))
        again = write_reports(reporter, studies, tmp_path / "cut")
        shortest_first = sorted(studies, key=lambda study: len(format_report(study.reference)))
        assert asked == shortest_first[2:]
        assert [w.text for w in again] == [w.text for w in whole]

    def test_of_batches_of_another_size_are_not_taken_for_these(self, reporter, studies, tmp_path):
        whole = write_reports(reporter, studies, tmp_path)
        reporter.profile = replace(reporter.profile, generation=replace(reporter.profile.generation, batch_size=3))
        assert [w.text for w in write_reports(reporter, studies, tmp_path)] == [w.text for w in whole]

    def test_are_those_of_their_studies_whatever_the_order_they_were_written_in(self, reporter, studies, tmp_path):
        lengths = [len(format_report(study.reference)) for study in studies]
        assert lengths != sorted(lengths)
        written = write_reports(reporter, studies, tmp_path)
        alone = [reporter.report(study) for study in studies]
        assert [w.report for w in written] == alone
        assert any(report != alone[0] for report in alone)

    def test_two_processes_write_each_its_share_and_together_the_same(self, reporter, studies, tmp_path, monkeypatch):
        whole = write_reports(reporter, studies, tmp_path / "one")
        monkeypatch.setenv("WORLD_SIZE", "2")
        for rank in ("1", "0"):
            monkeypatch.setenv("RANK", rank)
            shared = write_reports(reporter, studies, tmp_path / "two")
        shares = [[line["first"] for line in read_json_lines(p)] for p in sorted((tmp_path / "two").iterdir())]
        assert shares == [[0, 4], [2, 6]]
        assert [w.text for w in shared] == [w.text for w in whole]


PREPARE = """
import os, sys, time
from radvision_utils.data.storing import in_processes
if __name__ == "__main__":
    for _, process in in_processes(os.getpid, ((n, ()) for n in iter(int, 1)), 2):
        print(process, flush=True)
        time.sleep(0.1)
"""


def test_processes_that_prepare_images_end_with_the_one_that_is_killed(tmp_path):
    (tmp_path / "prepare.py").write_text(PREPARE)
    environment = os.environ | {"PYTHONPATH": str(project_root())}
    command = [sys.executable, str(tmp_path / "prepare.py")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as asked:
        worker = int(asked.stdout.readline())
        asked.kill()
    for _ in range(600):
        with suppress(FileNotFoundError):
            if Path(f"/proc/{worker}/stat").read_text().rsplit(")")[-1].split()[0] != "Z":
                time.sleep(0.1)
                continue
        return
    pytest.fail(f"process {worker} goes on for ever")


def kill_many(kills, seed):
    command = [sys.executable, str(Path(__file__).with_name("kill_many.py")), f"--kills={kills}", f"--seed={seed}"]
    return subprocess.run(command, capture_output=True, text=True, cwd=project_root())


def test_a_chain_killed_at_random_points_ends_as_if_it_had_not_been():
    result = kill_many(2, 1)
    assert result.returncode == 0, result.stdout + result.stderr[-2000:]


@pytest.mark.slow
def test_chains_killed_at_20_random_points_end_as_if_they_had_not_been():
    result = kill_many(20, 2)
    assert result.returncode == 0, result.stdout + result.stderr[-2000:]
    found = json.loads(result.stdout[: result.stdout.rindex("}") + 1])
    assert found["kills"] >= 20
    assert found["repeated_steps"] <= 3
