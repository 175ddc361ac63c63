"""The notebook contract: what a reader and papermill may rely on in all six. Needs no torch."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys

import pytest

from radvision_utils.config import DISCLAIMER, REPOSITORY, project_root
from radvision_utils.runs import NOTEBOOKS

PATHS = sorted((project_root() / "notebooks").glob("*.ipynb"))
PARAMETERS = ["profile", "run", "source", "output_root", "overrides", "seed"]
LONGEST_CELL = 15  # lines of code


def cells(path, kind=None):
    return [c for c in json.loads(path.read_text(encoding="utf-8"))["cells"] if kind in (None, c["cell_type"])]


def source(cell):
    return "".join(cell["source"])


def code(path):
    return [source(cell) for cell in cells(path, "code")]


def parameters_cell(path):
    tagged = [c for c in cells(path, "code") if "parameters" in c["metadata"].get("tags", [])]
    assert len(tagged) == 1
    return source(tagged[0])


def badges(name):
    """What opens a notebook on Colab and Kaggle, from the address in config."""
    page = f"{REPOSITORY}/blob/main/notebooks/{name}"
    colab = page.replace("https://github.com/", "https://colab.research.google.com/github/")
    return (
        f"[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]({colab})\n"
        f"[![Open in Kaggle](https://kaggle.com/static/images/open-in-kaggle.svg)](https://kaggle.com/kernels/welcome?src={page})\n"
    )


def setup_cell(path):
    [found] = [text for text in code(path) if "sys.path.insert" in text]
    return found


def test_readme_and_package_name_the_address_that_config_has():
    texts = [(project_root() / name).read_text(encoding="utf-8") for name in ("README.md", "pyproject.toml")]
    assert badges(PATHS[0].name) in texts[0]
    assert f"git clone --depth 1 {REPOSITORY}" in texts[0]
    named = re.compile(r"github(?:\.com)?/([\w-]+/radvision-7b)\b")
    assert {found for text in texts for found in named.findall(text)} == {
        REPOSITORY.removeprefix("https://github.com/")
    }


def test_the_six_notebooks_are_there_in_order():
    assert [path.stem for path in PATHS] == list(NOTEBOOKS.values())


@pytest.mark.parametrize("path", PATHS, ids=lambda p: p.stem)
class TestEachNotebook:
    def test_opens_with_title_question_what_goes_in_and_out_time_and_disclaimer(self, path):
        first = cells(path)[0]
        text = source(first)
        assert first["cell_type"] == "markdown"
        assert text.startswith(f"# {int(path.stem[:2])}. ")
        for needed in ("?**", "| goes in |", "| comes out |", "| time, `tiny`", "| time, `lingshu-7b`", DISCLAIMER):
            assert needed in text

    def test_opens_on_colab_and_kaggle_from_the_address_that_config_has(self, path):
        text = source(cells(path)[0])
        assert text.splitlines()[2] == "Runtime: T4, Run all."
        assert badges(path.name) in text
        assert f'"{REPOSITORY}"' in setup_cell(path)

    def test_parameters_are_the_six_literals_each_typed_and_commented(self, path):
        text = parameters_cell(path)
        body = ast.parse(text).body
        assert [node.target.id for node in body if isinstance(node, ast.AnnAssign)] == PARAMETERS
        assert all(isinstance(node, ast.AnnAssign) and isinstance(node.value, ast.Constant) for node in body)
        assert all("  # " in line for line in text.splitlines())

    def test_parameters_are_the_same_in_all_notebooks(self, path):
        assert parameters_cell(path) == parameters_cell(PATHS[0])

    def test_every_code_cell_follows_a_sentence(self, path):
        kinds = [cell["cell_type"] for cell in cells(path)]
        assert all(kinds[i - 1] == "markdown" for i, kind in enumerate(kinds) if kind == "code")

    def test_code_cells_are_short_and_define_nothing(self, path):
        for text in code(path):
            assert len(text.splitlines()) <= LONGEST_CELL, text
            defined = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)
            assert not any(isinstance(node, defined) for node in ast.walk(ast.parse(text))), text

    def test_nothing_is_swallowed_or_run_in_a_shell(self, path):
        for text in code(path):
            assert not any(isinstance(node, ast.Try) for node in ast.walk(ast.parse(text))), text
            assert not any(line.lstrip().startswith(("!", "%")) for line in text.splitlines()), text

    def test_is_committed_without_outputs_or_widget_state(self, path):
        whole = json.loads(path.read_text(encoding="utf-8"))
        assert all(not c["outputs"] and c["execution_count"] is None for c in cells(path, "code"))
        assert "widgets" not in whole["metadata"]
        assert whole["metadata"]["kernelspec"]["name"] == "python3"

    def test_ends_with_an_answer_to_its_question_in_figures_of_the_run(self, path):
        kinds = cells(path)
        [place] = [i for i, cell in enumerate(kinds) if source(cell).startswith("## Answer the question")]
        assert "print(" in source(kinds[place + 1])
        assert source(kinds[place + 2]).startswith("## What was written")

    def test_settings_have_a_meaning_and_phantoms_are_no_patients(self, path):
        text = "\n".join(map(source, cells(path)))
        assert "settings_table(settings, meanings)" in text
        assert "settings.to_dict()" not in text
        for words in ("human indexers", "the radiologist wrote"):
            assert words not in text

    def test_closes_by_naming_what_comes_next(self, path):
        last = source([cell for cell in cells(path) if cell["cell_type"] == "markdown"][-1])
        following = PATHS[PATHS.index(path) + 1 :]
        assert (following[0].name if following else "the last notebook") in last


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A copy of what the notebooks' first cells need of the project, as a git repository."""
    folder = tmp_path_factory.mktemp("repository") / "project"
    shutil.copytree(project_root() / "radvision_utils", folder / "radvision_utils")
    shutil.copytree(project_root() / "notebooks", folder / "notebooks")
    shutil.copy(project_root() / "pyproject.toml", folder)
    git = ["git", "-C", str(folder), "-c", "user.name=test", "-c", "user.email=test@example.org"]
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "As it is"]):
        subprocess.run([*git, *words], check=True)
    return folder


def set_up(here, host, repository="nowhere"):
    """Runs a notebook's first cells in a folder of a made-up host; gives where the package is, or None, and errors."""
    cell = setup_cell(PATHS[-1]).replace('"/content/', f'"{host}/content/').replace('"/kaggle/', f'"{host}/kaggle/')
    told = "from radvision_utils import environment\nenvironment.setup_notebook()\nprint(environment.__file__)"
    given = {**os.environ, "RADVISION_REPOSITORY": str(repository)}
    given.pop("PYTHONPATH", None)
    command = [sys.executable, "-c", f"{cell}\n{told}"]
    done = subprocess.run(command, cwd=here, env=given, capture_output=True, text=True)
    return (done.stdout.splitlines()[-1] if done.returncode == 0 else None), done.stderr


class TestSetUp:
    def test_is_the_same_in_all_notebooks(self):
        assert len({setup_cell(path) for path in PATHS}) == 1

    @pytest.mark.parametrize(
        ("here", "there"),
        [
            ("content", "content/radvision-7b"),
            ("content/sample_data", "content/cloned-under-another-name"),
            ("kaggle/working", "kaggle/working/radvision-7b"),
            ("kaggle/working", "kaggle/input/radvision"),
            ("kaggle/working", "kaggle/input/yesterday/radvision-7b"),
            ("home/radvision-7b", "home/radvision-7b"),
            ("home/radvision-7b/notebooks", "home/radvision-7b"),
        ],
    )
    def test_finds_the_project_beside_above_or_below_and_among_read_only_inputs(self, project, tmp_path, here, there):
        shutil.copytree(project, tmp_path / there)
        (tmp_path / here).mkdir(parents=True, exist_ok=True)
        if "input" in there:
            for path in (tmp_path / there, *(tmp_path / there).rglob("*")):
                path.chmod(path.stat().st_mode & ~0o222)
        found, errors = set_up(tmp_path / here, tmp_path)
        assert found == str(tmp_path / there / "radvision_utils" / "environment.py"), errors

    def test_clones_the_project_where_it_is_nowhere_and_finds_the_clone_again(self, project, tmp_path):
        for repository in (project, "nowhere"):
            found, errors = set_up(tmp_path, tmp_path, repository)
            assert found == str(tmp_path / "radvision-7b" / "radvision_utils" / "environment.py"), errors

    def test_says_in_a_sentence_that_nothing_could_be_cloned(self, tmp_path):
        found, errors = set_up(tmp_path, tmp_path)
        assert found is None
        assert errors.splitlines()[-1].startswith("nowhere could not be cloned: turn Internet on, or put the project")
        assert "Traceback" not in errors
