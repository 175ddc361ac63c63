"""Time and memory end: the stage pauses at a checkpoint, or takes smaller micro-batches, or says what to change."""

import shutil
from dataclasses import replace

import pytest
import torch

from radvision_utils import RadVisionError, train_stage
from radvision_utils.config import RunPaused, StageSettings
from radvision_utils.pipeline import continue_run, run_notebooks
from radvision_utils.runs import RunFolder
from radvision_utils.training import train as trainer
from radvision_utils.training import trainer as report_trainer
from radvision_utils.training.resume import Split, split_batch

STEPS = {"max_steps": 3, "micro_batch": 4, "accumulation": 2, "validation_studies": 2}


def memory_for(studies):
    """A `report_token_losses` for a card that holds so many studies at a time while it trains."""
    true = report_trainer.report_token_losses

    def losses(model, batch):
        if model.training and len(batch["uids"]) > studies:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return true(model, batch)

    return losses


def losses_of(result):
    return torch.tensor([line["loss"] for line in result.log if "loss" in line])


@pytest.fixture(scope="module")
def whole(small_profile, dataset, tmp_path_factory):
    """Stage 1 with all the time and memory that it takes."""
    stage = replace(small_profile.stage1, **STEPS)
    profile = replace(small_profile, output_root=str(tmp_path_factory.mktemp("whole")), stage1=stage)
    shutil.copytree(RunFolder.of(small_profile).data, RunFolder.of(profile).data)
    return train_stage(profile, 1)


def test_a_stage_out_of_time_pauses_at_a_checkpoint_and_goes_on_to_the_same_weights(whole, fresh_run):
    short = fresh_run("short", stage1={**STEPS, "max_minutes": 0.0})
    for step in (1, 2):
        told = rf"stage 1 used up its max_minutes \(0\) and stopped at step {step} of 3, .*; the same command goes on"
        with pytest.raises(RunPaused, match=told):
            train_stage(short, 1)
        assert RunFolder.of(short).record("stage1") is None
    result = train_stage(short, 1).record
    assert result["resumed_from"] == "checkpoint-2"
    for same in ("hash", "validation_loss", "train_loss", "made_from"):
        assert result[same] == whole.record[same]


def test_a_paused_stage_goes_on_the_next_day_from_a_folder_that_nobody_can_write(fresh_run, tmp_path):
    first = fresh_run("first", stage1={**STEPS, "max_minutes": 0.0})
    with pytest.raises(RunPaused):
        train_stage(first, 1)
    RunFolder.of(first).note(first, "data")
    earlier = RunFolder.of(first).path
    (earlier / "lock.json").write_text('{"process": 1, "host": "of-yesterday"}')
    for path in (earlier, *earlier.rglob("*")):
        path.chmod(path.stat().st_mode & ~0o222)
    kept = {path: path.stat().st_mtime_ns for path in earlier.rglob("*")}
    second = replace(first, output_root=str(tmp_path / "second"), stage1=replace(first.stage1, max_minutes=None))
    for _ in range(2):  # given again, the command goes on with what is there
        continue_run(RunFolder.of(second), earlier)
    assert train_stage(second, 1).record["resumed_from"] == "checkpoint-1"
    assert {path: path.stat().st_mtime_ns for path in earlier.rglob("*")} == kept


def test_a_folder_that_holds_no_run_or_comes_too_late_is_told_in_a_sentence(fresh_run, tmp_path):
    profile = fresh_run()
    run = RunFolder.of(profile)
    with pytest.raises(RadVisionError, match=rf"{tmp_path} holds no run: give the folder with its run.json"):
        continue_run(RunFolder("other", tmp_path), tmp_path)
    RunFolder("earlier", tmp_path).note(profile, "data")
    with pytest.raises(RadVisionError, match="was begun without --continue-from: delete it, or give another --run"):
        continue_run(run, tmp_path / "earlier")


def test_a_pause_is_told_by_the_command_line_with_status_0(fresh_run, capsys, monkeypatch):
    from radvision_utils.__main__ import main

    def pause(*_):
        raise RunPaused("stage 1 used up its max_minutes (5): the same command goes on from there.")

    monkeypatch.setattr(trainer, "train_stage", pause)
    assert main(["train", "--stage", "1"]) == 0
    assert capsys.readouterr().out.startswith("stage 1 used up its max_minutes (5): the same command goes on")


def test_a_pause_in_a_notebook_pauses_the_chain_and_names_the_command(fresh_run, monkeypatch):
    from papermill.exceptions import PapermillExecutionError

    def execute(*_, **__):
        raise PapermillExecutionError(
            1, 4, "", "RunPaused", "stage 1 stopped: the same command goes on from there.", []
        )

    monkeypatch.setattr("papermill.execute_notebook", execute)
    monkeypatch.setattr("radvision_utils.pipeline.is_current", lambda *_: False)
    profile = fresh_run()
    told = rf"goes on from there: `python -m radvision_utils run --profile tiny --run {profile.run} .*--from 2`"
    with pytest.raises(RunPaused, match=told):
        run_notebooks(profile, first=2)


def test_in_a_notebook_a_pause_is_a_sentence_and_no_traceback():
    from IPython.core.interactiveshell import InteractiveShell

    shell, shown = InteractiveShell.instance(), []
    shell._showtraceback = lambda kind, value, lines: shown.extend(lines)
    shell.run_cell("from radvision_utils.config import RunPaused\nraise RunPaused('it paused.')")
    InteractiveShell.clear_instance()
    assert shown == ["it paused."]


def test_where_memory_ends_the_micro_batch_is_halved_and_a_step_takes_the_same_studies(
    whole, fresh_run, monkeypatch, caplog
):
    monkeypatch.setattr(report_trainer, "report_token_losses", memory_for(1))
    with caplog.at_level("WARNING"):
        result = train_stage(fresh_run("small", stage1=STEPS), 1)
    assert [(e["micro_batch"], e["accumulation"]) for e in result.record["memory_events"]] == [
        ([4, 2], [2, 4]),
        ([2, 1], [4, 8]),
    ]
    assert "ran out of memory with 4 studies at a time; now 2, accumulated 4 times" in caplog.text
    torch.testing.assert_close(losses_of(result), losses_of(whole), rtol=1e-3, atol=1e-4)


def test_memory_that_ends_late_goes_on_from_the_checkpoint(whole, fresh_run, monkeypatch):
    true, tight = report_trainer.report_token_losses, memory_for(2)
    calls = []

    def later(model, batch):
        calls.append(1)
        return (true if len(calls) <= 2 * STEPS["accumulation"] else tight)(model, batch)

    monkeypatch.setattr(report_trainer, "report_token_losses", later)
    result = train_stage(fresh_run("late", stage1={**STEPS, "save_steps": 1}), 1)
    assert result.record["resumed_from"] == "checkpoint-2"
    assert len(result.record["memory_events"]) == 1
    torch.testing.assert_close(losses_of(result), losses_of(whole), rtol=1e-3, atol=1e-4)


def test_where_not_even_one_study_fits_one_is_told_what_to_change(fresh_run, monkeypatch):
    monkeypatch.setattr(report_trainer, "report_token_losses", memory_for(0))
    told = r"stage 1 ran out of memory with one study at a time \(CUDA out of memory.*GiB.*\): .*"
    with pytest.raises(RadVisionError, match=told):
        train_stage(fresh_run(stage1=STEPS), 1)


@pytest.mark.parametrize("kind", [float("nan"), float("inf")])
def test_a_gradient_norm_that_is_no_number_stops_before_a_checkpoint_holds_it(fresh_run, monkeypatch, kind):
    true = trainer.ReportTrainer.training_step
    profile = fresh_run(stage1={**STEPS, "save_steps": 1})

    def spoil_at_2(self, model, *args, **kwargs):
        loss = true(self, model, *args, **kwargs)
        if self.state.global_step == 1:
            next(p for p in model.parameters() if p.requires_grad).grad[0] = kind
        return loss

    monkeypatch.setattr(trainer.ReportTrainer, "training_step", spoil_at_2)
    told = r"the gradient norm is (nan|inf) at step 2 on studies (\w+, ){7}\w+: training stops and keeps the last check"
    with pytest.raises(RadVisionError, match=told):
        train_stage(profile, 1)
    checkpoints = RunFolder.of(profile).partial("stage1") / "checkpoints"
    assert [path.name for path in checkpoints.iterdir()] == ["checkpoint-1"]


def test_processes_share_the_studies_of_a_step_in_micro_batches_that_fit():
    settings = StageSettings(micro_batch=4, accumulation=4)
    assert split_batch(settings, 1) == Split(4, 4)
    assert split_batch(settings, 2) == Split(4, 2)
    assert split_batch(settings, 8) == Split(2, 1)
    assert split_batch(settings, 2, at_most=2) == Split(2, 4)
    assert split_batch(replace(settings, micro_batch=6, accumulation=1), 1, at_most=4) == Split(3, 2)
    with pytest.raises(RadVisionError, match=r"takes 16 studies .*, which 3 processes cannot share evenly"):
        split_batch(settings, 3)


def test_weights_that_the_last_step_has_ruined_are_not_published(fresh_run):
    profile = fresh_run(stage1={"max_steps": 2, "learning_rate": 1e30, "warmup_ratio": 0.0, "max_grad_norm": 0.0})
    with pytest.raises(RadVisionError, match=r"(validation loss|gradient norm|loss) is (nan|inf)"):
        train_stage(profile, 1)
    assert not RunFolder.of(profile).record_path("stage1").exists()
