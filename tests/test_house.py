"""The house: a spine that one reads in an evening, rooms beside it that one may skip, and no import that runs upward."""

import ast
from collections import Counter
from pathlib import Path

import pytest

from radvision_utils.config import project_root

PACKAGE = project_root() / "radvision_utils"
ROOMS = ("phantoms", "evidence", "planning", "hand_over", "bases", "collections")
# From the ground up: a module imports from its own floor or from below.
FLOORS = ("config", "environment", "runs", "progress", "figures", "data", "model", "training", "report", "evaluation")
FLOORS += ("dashboard", "own_images", "cards", "pipeline", "__main__")


def modules():
    return {".".join(path.relative_to(PACKAGE).with_suffix("").parts): path for path in PACKAGE.rglob("*.py")}


MODULES = modules()


def imports(name, everywhere=True):
    """Names of the package's modules that a module imports: at its head, or anywhere in it."""
    tree = ast.parse(MODULES[name].read_text(encoding="utf-8"))
    nodes = ast.walk(tree) if everywhere else tree.body
    found = set()
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "radvision_utils":
            module = ".".join(node.module.split(".")[1:])
            below = {f"{module}.{alias.name}".strip(".") for alias in node.names}
            found |= (below & set(MODULES)) or {module or "__init__"}
    return {module if module in MODULES else f"{module}.__init__" for module in found}


def behind(name):
    """All modules that importing one brings, itself included."""
    known, waiting = set(), [name]
    while waiting:
        module = waiting.pop()
        if module not in known:
            known.add(module)
            waiting += imports(module, everywhere=False)
    return known


def lines(names):
    return sum(len(MODULES[name].read_text(encoding="utf-8").splitlines()) for name in names)


def floor(name):
    return name.split(".")[0]


def spine():
    return {name for name in MODULES if floor(name) not in ROOMS}


def test_the_spine_imports_no_room_beside_it():
    # The command line and the list of public names open rooms; they are read last.
    crossing = {
        (name, other)
        for name in spine() - {"__main__", "__init__"}
        for other in imports(name)
        if floor(other) in ROOMS
    }
    assert not crossing


def test_no_import_runs_upward():
    upward = {
        (name, other)
        for name in spine() - {"__init__"}
        for other in imports(name, everywhere=False)
        if other != "__init__" and FLOORS.index(floor(other)) > FLOORS.index(floor(name))
    }
    assert not upward


@pytest.mark.parametrize(
    ("of", "never"),
    [
        ("config", ("torch", "transformers", "peft")),
        ("runs", ("torch", "transformers", "peft")),
        ("data", ("torch", "transformers", "peft")),
    ],
)
def test_what_lies_below_knows_nothing_of_models(of, never):
    for name in MODULES:
        if floor(name) == of:
            tree = ast.parse(MODULES[name].read_text(encoding="utf-8"))
            heads = {
                (node.module or "") if isinstance(node, ast.ImportFrom) else alias.name
                for node in ast.walk(tree)
                if isinstance(node, ast.ImportFrom | ast.Import)
                for alias in node.names
            }
            assert not {head for head in heads if head.split(".")[0] in never}, name


def test_the_model_knows_nothing_of_data_and_the_dashboard_loads_no_model():
    assert not {other for name in MODULES if floor(name) == "model" for other in imports(name) if floor(other) == "data"}
    loading = ("model", "training", "report")
    assert not {
        (name, other) for name in MODULES if floor(name) == "dashboard" for other in imports(name) if floor(other) in loading
    }


def test_no_two_files_have_one_name():
    names = Counter(Path(path).name for path in MODULES.values() if path.name != "__init__.py")
    assert not {name: count for name, count in names.items() if count > 1}


@pytest.mark.parametrize(
    ("what", "names", "files", "most"),
    [
        ("the package", lambda: set(MODULES), 75, 13_500),
        ("the spine", spine, None, 9_000),
        ("behind train_stage", lambda: behind("training.train"), 16, 3_500),
        ("behind load_reporter", lambda: behind("report"), 13, 3_000),
        ("behind evaluate", lambda: behind("evaluation.evaluate"), 27, 5_200),
    ],
)
def test_the_house_stays_small(what, names, files, most):
    found = names()
    assert files is None or len(found) <= files, f"{what}: {len(found)} files"
    assert lines(found) <= most, f"{what}: {lines(found)} lines"
