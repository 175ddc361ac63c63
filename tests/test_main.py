"""The command line: every mistake ends with one sentence and exit status 1, never with a traceback."""

import os

import pytest

from radvision_utils import load_profile
from radvision_utils.__main__ import main, parse_settings
from radvision_utils.pipeline import check_parameters, notebook_path, run_notebooks
from radvision_utils.runs import STEPS


def test_settings_are_json_where_they_can_be_and_text_otherwise():
    pairs = ["stage3.epochs=2", "data.source=phantom", "data.limit=null", "model.base=a=b"]
    assert parse_settings(pairs) == {
        "stage3.epochs": 2,
        "data.source": "phantom",
        "data.limit": None,
        "model.base": "a=b",
    }


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["run", "--set", "stage3.epocs=2"], "did you mean 'stage3.epochs'?"),
        (["run", "--set", "stage3.epochs"], "is not KEY=VALUE"),
        (["run", "--from", "6"], "there is no notebook 6: --from takes 1 to 5."),
        (["run", "--profile", "lingshu-7b"], "needs an NVIDIA card with at least 16 GB"),
        (["run", "--run", "a/b"], "run 'a/b' cannot name a folder"),
        (["evaluate", "--run", "nothing"], "run 'nothing' does not exist"),
        (["predict", "nothing.png"], "image nothing.png does not exist"),
    ],
)
def test_a_mistake_is_answered_with_one_sentence(arguments, sentence, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    root = ["--output-root", str(tmp_path)]
    assert main([*arguments, *root]) == 1
    error = capsys.readouterr().err
    assert error.startswith("radvision: ")
    assert sentence in error
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize("step", STEPS)
def test_every_notebook_takes_the_parameters_that_the_runner_passes(step):
    check_parameters(
        notebook_path(step), dict.fromkeys(("profile", "run", "source", "output_root", "overrides", "seed"))
    )


def test_a_parameter_that_a_notebook_lacks_is_refused():
    from radvision_utils import RadVisionError

    with pytest.raises(RadVisionError, match=r"01_data_preparation.ipynb has no parameter epochs: its parameters are"):
        check_parameters(notebook_path("data"), {"profile": "tiny", "epochs": 3})


def test_a_run_leaves_the_environment_as_it_was(tmp_path, monkeypatch):
    from pathlib import Path

    seen = []

    def execute(notebook, copy, **options):
        seen.append(os.environ["RADVISION_HEADLESS"])
        Path(copy).touch()

    monkeypatch.delenv("RADVISION_HEADLESS", raising=False)
    monkeypatch.setattr("radvision_utils.pipeline.papermill.execute_notebook", execute)
    run_notebooks(load_profile("tiny", output_root=str(tmp_path)), {})
    assert seen == ["1"] * len(STEPS)
    assert "RADVISION_HEADLESS" not in os.environ


def test_an_unknown_source_is_answered_with_what_there_is():
    from radvision_utils import RadVisionError, prepare_dataset

    with pytest.raises(RadVisionError, match="nothing-like-it"):
        prepare_dataset(load_profile("tiny", source="./nothing-like-it"))
