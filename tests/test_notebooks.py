"""The notebook contract: what a reader and papermill may rely on in all six. Needs no torch."""

import ast
import json

import pytest

from radvision_utils.config import DISCLAIMER, project_root
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
