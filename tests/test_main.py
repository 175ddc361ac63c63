"""The command line: every mistake ends with one sentence and exit status 1, never with a traceback."""

import json
import os
import shlex
import typing
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from radvision_utils import RadVisionError, load_profile
from radvision_utils.__main__ import _parser, main, parse_settings, profile_of
from radvision_utils.config import PROFILES, Profile, project_root, settings_of
from radvision_utils.pipeline import check_parameters, notebook_path, run_notebooks
from radvision_utils.runs import NOTEBOOKS, STEPS, RunFolder, redo_command


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
        (["run", "--from", "7"], "there is no notebook 7: --from takes 1 to 6."),
        (["run", "--profile", "lingshu-7b"], "needs an NVIDIA card with at least 16 GB"),
        (["run", "--run", "a/b"], "run 'a/b' cannot name a folder"),
        (["run", "--run", "n" * 400], "File name too long"),
        (["predict", "README.md", "--run", "n" * 400], "File name too long"),
        (["evaluate", "--run", "nothing"], "run 'nothing' does not exist"),
        (["evaluate", "--samples", "-1"], "argument --samples: '-1' is no whole number of 0 or more"),
        (["evaluate", "--evidence", "x"], "argument --evidence: 'x' is no whole number of 0 or more"),
        (["run", "--profile", "huge"], "profile 'huge' does not exist: choose one of tiny, tiny-real, lingshu-7b."),
        (["run", "--continue-from", "nowhere"], "nowhere holds no run: give the folder with its run.json"),
        (["run", "--bogus"], "unrecognized arguments: --bogus: `radvision --help` says what there is."),
        (["train", "--stage", "4"], "argument --stage: invalid choice: 4"),
        (["train"], "the following arguments are required: --stage: `radvision train --help`"),
        (["nonsense"], "invalid choice: 'nonsense'"),
        (["score", "nothing.csv", "--split", "val"], "nothing.csv is not a file"),
        (["gpu-check", "--minutes", "nan"], "--minutes nan is no time: give minutes such as 10."),
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


def verbs():
    [choices] = [action.choices for action in _parser()._actions if action.choices]
    return choices


def test_help_names_every_verb_with_an_example_that_is_understood(capsys):
    with pytest.raises(SystemExit):
        main([])
    told = capsys.readouterr().out
    pages = (project_root() / "docs" / "commands.md").read_text(encoding="utf-8")
    for name, parser in verbs().items():
        example = parser.epilog.removeprefix("Example: ")
        assert example in told
        radvision, *words = shlex.split(example)
        assert (radvision, _parser().parse_args(words).verb) == ("radvision", name)
        assert f"radvision {name} " in f"{pages} "


@pytest.mark.parametrize("profile", PROFILES)
def test_settings_are_listed_with_value_and_meaning(profile, capsys):
    assert main(["settings", "--profile", profile]) == 0
    told = [line.split(maxsplit=2) for line in capsys.readouterr().out.splitlines()[1:] if line]
    expected = settings_of(PROFILES[profile])
    assert [name for name, *_ in told] == list(expected)[1:]
    by_name = {name: value for name, value, _ in told}
    assert by_name["stage3.epochs"] == str(expected["stage3.epochs"])


# Each verb that writes where it is told to, and the work that it must not begin if it cannot.
WRITING = {
    "score": (["score", "p.csv", "--json"], "radvision_utils.evaluation.score.score_file"),
    "constant": (["constant", "r.csv", "--to"], "radvision_utils.collections.open_i.read_published"),
    "build-base": (["build-base", "--source", "phantom", "--to"], "radvision_utils.bases.build.prepare_dataset"),
    "run": (["run", "--output-root"], "radvision_utils.pipeline.run_notebooks"),
}


@pytest.mark.parametrize(
    "place", ["file/x", "/proc/x/y", "/proc/self/x", "/dev/null", "n" * 300, "d/" * 3000, "loop/x"]
)
@pytest.mark.parametrize("verb", WRITING)
def test_what_cannot_be_written_is_told_before_the_work(verb, place, tmp_path, monkeypatch, capsys):
    words, work = WRITING[verb]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(work, lambda *_, **__: pytest.fail("the work was begun"))
    Path("file").write_text("kept")
    Path("loop").symlink_to("loop")
    place = str(tmp_path / place) if verb == "run" and not place.startswith("/") else place
    assert main([*words, place]) == 1
    [said] = capsys.readouterr().err.splitlines()
    assert "nothing can be written to" in said or "cannot be worked in" in said
    assert Path("file").read_text() == "kept"
    assert Path("/dev/null").is_char_device()


def test_a_folder_of_other_things_is_no_place_for_a_base(tmp_path, capsys):
    (tmp_path / "letter.txt").write_text("mine")
    assert main(["build-base", "--source", "phantom", "--to", str(tmp_path)]) == 1
    assert "is there and holds no base" in capsys.readouterr().err
    assert (tmp_path / "letter.txt").read_text() == "mine"


@pytest.mark.parametrize("words", [["score"], ["label", "--mesh"], ["predict"]])
def test_a_name_that_no_system_takes_is_one_sentence(words, capsys):
    assert main([*words, "n" * 5000]) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_run_with_a_source_that_cannot_be_read_starts_no_kernel(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("radvision_utils.pipeline.run_notebooks", lambda *_, **__: pytest.fail("a kernel was started"))
    (tmp_path / "radvision.json").write_text("{}")
    assert main(["run", "--run", "r", "--output-root", str(tmp_path / "out"), "--source", str(tmp_path)]) == 1
    assert "radvision.json has no usable table" in capsys.readouterr().err


def test_a_run_that_is_stopped_by_hand_ends_with_a_sentence(capsys, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("radvision_utils.__main__.load_profile", stop)
    assert main(["plan"]) == 130
    assert capsys.readouterr().err == "radvision: stopped; what is finished is whole, and the same command goes on.\n"


WORDS = st.one_of(
    st.text(), st.sampled_from(["", "-x", ".", "..", "~", "null", "5", "$(touch x)", "a b'c\"d", "tests"])
)


def values(setting, kind):
    """Any value that a setting may have."""
    low, high, choices = (setting.metadata.get(name) for name in ("low", "high", "choices"))
    if setting.name == "run":
        return st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]*", fullmatch=True)
    if setting.name == "name":
        return st.sampled_from(list(PROFILES))
    if is_dataclass(kind):
        return settings(kind)
    plain = next(part for part in typing.get_args(kind) or (kind,) if part is not type(None))
    found = {
        bool: st.booleans(),
        int: st.integers(int(low or 0), int(high or 10**9)),
        float: st.floats(low, high, allow_nan=False, allow_infinity=False),
        str: st.sampled_from(choices) if choices else WORDS,
    }[plain]
    return found if plain is kind else st.none() | found


def settings(kind):
    """Any profile, or any part of one."""
    hints = typing.get_type_hints(kind)
    return st.builds(kind, **{setting.name: values(setting, hints[setting.name]) for setting in fields(kind)})


@given(settings(Profile), st.sampled_from(STEPS))
def test_the_printed_command_gives_the_very_profile_that_it_was_printed_for(profile, step):
    printed = redo_command(profile, step)
    assert len(printed.splitlines()) == 1
    python, dash_m, package, *words = shlex.split(printed)
    assert (python, dash_m, package) == ("python", "-m", "radvision_utils")
    options = _parser().parse_args(words)
    assert profile_of(options) == profile
    assert options.first == STEPS.index(step) + 1


def test_a_profile_that_nothing_was_changed_of_needs_its_name_alone():
    assert redo_command(load_profile("tiny"), "data") == "python -m radvision_utils run --profile tiny --run tiny"


@pytest.mark.parametrize("name", ["tiny; touch x #", "tiny`touch x`", "", "other"])
def test_a_profile_name_of_another_kind_in_a_runs_record_is_refused(name, tmp_path):
    profile = load_profile("tiny", run="r", output_root=str(tmp_path))
    RunFolder.of(profile).note(profile, "data")
    path = tmp_path / "r" / "run.json"
    path.write_text(json.dumps({"profile": {**profile.to_dict(), "name": name}}))
    with pytest.raises(RadVisionError, match=r"profile .* does not exist: choose one of tiny, tiny-real, lingshu-7b"):
        RunFolder("r", tmp_path).profile()


@pytest.mark.parametrize("step", NOTEBOOKS)
def test_every_notebook_takes_the_parameters_that_the_runner_passes(step):
    check_parameters(
        notebook_path(step), dict.fromkeys(("profile", "run", "source", "output_root", "overrides", "seed"))
    )


def test_a_parameter_that_a_notebook_lacks_is_refused():
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
    run_notebooks(load_profile("tiny", output_root=str(tmp_path)))
    assert seen == ["1"] * len(NOTEBOOKS)
    assert "RADVISION_HEADLESS" not in os.environ


@pytest.mark.parametrize("words", ["Kernel died", "Kernel died before replying to kernel_info"])
def test_a_kernel_that_died_is_one_sentence_with_the_command_that_goes_on(tmp_path, monkeypatch, words):
    def execute(*_, **__):
        raise RuntimeError(words)

    monkeypatch.setattr("radvision_utils.pipeline.papermill.execute_notebook", execute)
    profile = load_profile("tiny", output_root=str(tmp_path))
    told = rf"the kernel of notebook 01_data_preparation died \({words}\): .* go on with `.* --output-root {tmp_path}`"
    with pytest.raises(RadVisionError, match=told):
        run_notebooks(profile)


def test_an_unknown_source_is_answered_with_what_there_is():
    from radvision_utils import prepare_dataset

    with pytest.raises(RadVisionError, match="nothing-like-it"):
        prepare_dataset(load_profile("tiny", source="./nothing-like-it"))
