"""One model at a time: what a call made is gone when it has ended, without waiting for Python's garbage collector."""

import gc
import shutil
import sys
from dataclasses import replace

import pytest
import torch
from IPython.core.interactiveshell import InteractiveShell
from torch import nn

from radvision_utils import ReportBrowser, evaluate, predict_beautiful, train_stage
from radvision_utils.config import RunPaused
from radvision_utils.data.studies import open_prepared
from radvision_utils.environment import DTYPE_VARIABLE, choose_device
from radvision_utils.evaluation.image_use import study_losses
from radvision_utils.evidence import confidence, study_maps
from radvision_utils.hand_over.export import export_run
from radvision_utils.model import base as loading
from radvision_utils.report import Sampling, reporter_of, write_in_stages
from radvision_utils.runs import RunFolder
from radvision_utils.training import trainer as report_trainer

COLLECT = gc.collect


@pytest.fixture
def left(monkeypatch):
    """What layers and weights are left of those made since, with the garbage collector off, the product's own calls
    of it too."""
    gc.collect()
    gc.disable()
    monkeypatch.setattr(gc, "collect", lambda *_: 0)

    def there():
        return [thing for thing in gc.get_objects() if issubclass(type(thing), nn.Module | nn.Parameter)]

    before = there()
    known = {id(thing) for thing in before}
    yield lambda: sorted({type(thing).__name__ for thing in there() if id(thing) not in known})
    gc.enable()


@pytest.fixture
def beside(left, monkeypatch):
    """For every model that was loaded: what was left of those before it."""
    seen, load = [], loading.from_pretrained

    def look(loader, *arguments, **options):
        if loader is loading.Qwen2_5_VLForConditionalGeneration:
            seen.append(left())
        return load(loader, *arguments, **options)

    monkeypatch.setattr(loading, "from_pretrained", look)
    return seen


@pytest.fixture
def run(trained, tmp_path):
    """A trained run that a test may change."""
    profile = replace(trained, output_root=str(tmp_path))
    shutil.copytree(RunFolder.of(trained).path, RunFolder.of(profile).path)
    return profile


def fail_at(call, monkeypatch):
    """Let a training break off in a forward pass, as where memory ends."""
    true, calls = report_trainer.report_token_losses, []

    def losses(model, batch):
        calls.append(1)
        found = true(model, batch)
        if len(calls) == call:
            raise RuntimeError("an error in the middle of a step")
        return found

    monkeypatch.setattr(report_trainer, "report_token_losses", losses)


@pytest.mark.parametrize(("stage", "dtype"), [(1, "float32"), (3, "bfloat16")])
def test_a_finished_stage_leaves_no_model(run, left, monkeypatch, stage, dtype):
    monkeypatch.setenv(DTYPE_VARIABLE, dtype)
    settings = replace(run.stage(stage), max_steps=7, accumulation=1)
    whole = replace(run, **{f"stage{stage}": settings})
    assert (train_stage(whole, stage, force=True).record["features"] is not None) == (stage > 1)
    assert left() == []


def test_a_stage_that_pauses_leaves_no_model_and_goes_on_beside_none(run, left, beside):
    short = replace(run, stage1=replace(run.stage1, max_minutes=0.0))
    with pytest.raises(RunPaused):
        train_stage(short, 1, force=True)
    assert left() == []
    try:
        train_stage(short, 1, force=True)
    except RunPaused:  # where a notebook's cell goes on in its handler, the first call's frames are still there
        train_stage(short, 1, force=True)
    assert beside == [[]] * 3
    assert left() == []


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_stage_that_breaks_off_in_a_step_leaves_no_model(run, left, monkeypatch, dtype):
    monkeypatch.setenv(DTYPE_VARIABLE, dtype)
    fail_at(2, monkeypatch)
    with pytest.raises(RuntimeError, match="in the middle of a step"):
        train_stage(run, 1, force=True)
    assert left() == []


def test_a_notebooks_last_error_holds_no_model_where_the_cell_is_run_again(run, left, beside, monkeypatch):
    fail_at(2, monkeypatch)
    monkeypatch.setattr(gc, "collect", COLLECT)  # IPython makes circles of frames while it formats a traceback
    shell = InteractiveShell.instance()
    shell._showtraceback = lambda *_: None
    shell.user_ns |= {"train_stage": train_stage, "run": run, "own": torch.ones(3)}
    try:
        shell.run_cell("def call(mine):\n    kept = mine\n    train_stage(run, 1, force=True)")
        shell.run_cell("call(own)")
        assert left() != []  # else this test shows nothing
        assert shell.run_cell("result = train_stage(run, 1, force=True)").success
        assert beside == [[], []]
        assert "in the middle of a step" in str(sys.last_value)
        assert torch.equal(shell.user_ns["own"], torch.ones(3))
    finally:
        InteractiveShell.clear_instance()


def test_a_reporter_that_is_let_go_leaves_no_model(trained, left):
    studies = open_prepared(trained).split("validation")[:3]
    for stage in (0, 3):
        reporter = reporter_of(trained, stage)
        drawn = reporter.drawing(Sampling(1.0, seed=1))
        assert reporter.report(studies)
        assert drawn.report(studies)
        assert len(study_losses(reporter, studies)) == 3
        assert left() != []
        del reporter, drawn
        assert left() == []


def test_stages_are_compared_one_model_at_a_time(trained, left, beside):
    write_in_stages(trained, (0, 1, 2), open_prepared(trained).split("validation")[:2])
    assert beside == [[]] * 2  # the base that the untuned reports were written with is used once more
    assert left() == []


def test_an_evaluation_has_one_model_at_a_time(run, left, beside, monkeypatch):
    monkeypatch.setattr(study_maps, "VALIDATED", 1)
    monkeypatch.setattr(confidence, "CALIBRATED", 1)
    evaluate(run, force=True, evidence=1, samples=1)
    assert beside == [[]] * 6  # base and three stages, samples, evidence
    assert left() == []


def test_an_export_checks_one_model_at_a_time(run, left, beside, tmp_path):
    export_run(run, tmp_path / "export")
    assert beside == [[]] * 4
    assert left() == []


def test_a_card_and_the_browser_leave_no_model(run, left, beside):
    evaluate(run)
    where = {"run": run.run, "output_root": run.output_root}
    browser = ReportBrowser(**where)
    beside.clear()
    assert not predict_beautiful(index=1, split="train", evidence=True, **where).cached
    browser.own.path.value = str(open_prepared(run).split("validation")[0].image)
    for stage in (1, 3):
        browser.stage.value = stage
        browser.own.report.click()
        assert "generated now in" in browser.card.value
        assert left() == []
    assert beside == [[]] * 4


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_base_that_is_let_go_leaves_no_layer(trained, left, monkeypatch, dtype):
    monkeypatch.setenv(DTYPE_VARIABLE, dtype)
    loading.load_base(trained.model, choose_device())
    assert left() == []
