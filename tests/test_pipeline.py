"""Several cards: `run` trains each stage on all of them with the run's own settings, then its notebook shows it."""

import logging
from types import SimpleNamespace

import pytest
import torch

from radvision_utils import RadVisionError, load_profile, pipeline
from radvision_utils.__main__ import _parser, profile_of
from radvision_utils.config import RunPaused
from radvision_utils.files import write_json
from radvision_utils.runs import NOTEBOOKS, STEPS, RunFolder, is_current, made_from

OVERRIDES = {"stage2.epochs": 2, "stage1.max_minutes": None, "data.required": "either", "model.indication": True}


def finish(profile, step, **facts):
    write_json(RunFolder.of(profile).record_path(step), {"made_from": made_from(profile, step), "hash": "1", **facts})


@pytest.fixture
def profile(tmp_path):
    return load_profile("lingshu-7b", OVERRIDES, run="r", source="my studies", output_root=str(tmp_path))


@pytest.fixture
def happened(profile, monkeypatch):
    """What a run on two cards does, in order; nothing is trained."""
    happened = []

    def launch(command, **_):
        happened.append(command)
        finish(profile, f"stage{command[command.index('--stage') + 1]}")
        return SimpleNamespace(returncode=0)

    def execute(step, executed, *_):
        happened.append(step)
        if step in STEPS:
            finish(profile, step)

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(pipeline.subprocess, "run", launch)
    monkeypatch.setattr(pipeline, "_execute", execute)
    return happened


def test_every_stage_is_trained_on_both_cards_before_its_notebook_shows_it(profile, happened):
    pipeline.run_notebooks(profile)
    assert [step for step in happened if isinstance(step, str)] == list(NOTEBOOKS)
    for number in (1, 2, 3):
        command = happened[happened.index(f"stage{number}") - 1]
        assert command[command.index("--num_processes") + 1] == "2"
        options = _parser().parse_args(command[command.index("radvision_utils") + 1 :])
        assert (options.verb, options.stage) == ("train", number)
        assert profile_of(options) == profile


def test_a_notebook_is_given_the_very_profile(profile, monkeypatch):
    given = []
    monkeypatch.setattr(pipeline, "_execute", lambda step, executed, parameters, *_: given.append(parameters))
    pipeline.run_notebooks(profile, last=1)
    [words] = given
    assert load_profile(words.pop("profile"), words.pop("overrides"), **words) == profile


@pytest.mark.parametrize(("returncode", "error"), [(1, RadVisionError), (0, RunPaused)])
def test_a_stage_that_failed_or_paused_on_both_cards_ends_the_run_with_the_command_that_goes_on(
    profile, happened, monkeypatch, returncode, error
):
    monkeypatch.setattr(pipeline.subprocess, "run", lambda *_, **__: SimpleNamespace(returncode=returncode))
    with pytest.raises(error, match=r"stage1 .* --source 'my studies' .*--set stage2.epochs=2.0 .*--from 2`"):
        pipeline.run_notebooks(profile)


def test_a_refused_force_leaves_every_finished_step(profile, happened, monkeypatch):
    pipeline.run_notebooks(profile)

    def refuse(*_):
        raise RadVisionError("the run is being worked on by another process.")

    monkeypatch.setattr(pipeline, "_execute", refuse)
    for number in range(1, len(STEPS) + 1):
        with pytest.raises(RadVisionError, match="worked on"):
            pipeline.run_notebooks(profile, number, force=True)
    assert all(is_current(profile, step) for step in STEPS)


@pytest.mark.parametrize(("cards", "processes"), [(0, 1), (1, 1), (2, 2), (3, 2), (8, 8)])
def test_as_many_cards_train_as_share_an_optimizer_step_evenly(profile, cards, processes, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: cards)
    assert pipeline.training_processes(profile, "stage1") == processes


def test_the_tiny_model_is_trained_by_its_notebook_whatever_the_cards(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert pipeline.training_processes(load_profile("tiny", output_root=str(tmp_path)), "stage1") == 1


def test_maps_or_samples_asked_for_later_run_the_last_notebook_alone(profile, happened):
    pipeline.run_notebooks(profile)
    for step in NOTEBOOKS:
        executed = RunFolder.of(profile).notebooks / f"{pipeline.NOTEBOOKS[step]}.ipynb"
        executed.parent.mkdir(exist_ok=True)
        executed.touch()
    happened.clear()
    pipeline.run_notebooks(profile)
    assert happened == []
    for setting in ("evidence", "samples"):
        more = load_profile(
            "lingshu-7b",
            {**OVERRIDES, f"evaluation.{setting}": 2},
            run="r",
            source="my studies",
            output_root=profile.output_root,
        )
        pipeline.run_notebooks(more)
    assert happened == ["evidence", "evidence"]
    happened.clear()
    finish(profile, "evaluation", evidence={"asked": 2}, confidence={"samples": 2})
    pipeline.run_notebooks(more)
    assert happened == []


def test_what_notebooks_say_is_kept_in_a_file_and_not_shown(tmp_path, capsys):
    papermill, file = logging.getLogger("papermill"), tmp_path / "run" / "run.log"
    for said in ("first", "second"):
        with pipeline.kept_log(file):
            papermill.info(said)
    assert file.read_text(encoding="utf-8") == "first\nsecond\n"
    assert "".join(capsys.readouterr()) == ""
    assert papermill.propagate
    assert not papermill.handlers


def test_somebody_who_watches_sees_the_latest_line_in_one_place(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(pipeline.sys.stderr, "isatty", lambda: True, raising=False)
    with pipeline.kept_log(tmp_path / "run.log"):
        logging.getLogger("papermill").info("loss 2.1\nloss 2.0 \x1b[31m in step 7\n")
    start = "\r\x1b[K"
    assert capsys.readouterr().err == f"{start}loss 2.0 [31m in step 7{start}"


def test_what_a_base_says_while_it_is_made_is_kept_beside_them(tmp_path, monkeypatch):
    ours, shown = logging.getLogger("radvision_utils"), logging.NullHandler()
    monkeypatch.setattr(ours, "handlers", [shown])
    with pipeline.kept_log(tmp_path / "run.log", ours.name):
        logging.getLogger("radvision_utils.bases.build").info("base: step 1")
    assert (tmp_path / "run.log").read_text(encoding="utf-8") == "base: step 1\n"
    assert ours.handlers == [shown]
