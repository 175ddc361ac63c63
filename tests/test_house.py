"""The house: a spine that one reads, rooms beside it that one may skip, and no import that runs upward."""

import ast
import re
from collections import Counter

import pytest

from radvision_utils.config import project_root

PACKAGE = project_root() / "radvision_utils"
ROOMS = ("phantoms", "small_data", "evidence", "planning", "hand_over", "bases", "collections")
# From the ground up: a module imports from its own floor or from below.
FLOORS = ("config", "content", "files", "environment", "runs", "progress", "figures", "data", "model", "training")
FLOORS += ("report", "evaluation", "dashboard", "own_images", "cards", "pipeline", "__main__")


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


def to_read():
    """The files that README names for an evening."""
    told = (project_root() / "README.md").read_text(encoding="utf-8")
    return {name.replace("/", ".") for name in re.findall(r"^\| `([\w/]+)\.py` \|", told, re.MULTILINE)}


def spine():
    return {name for name in MODULES if floor(name) not in ROOMS}


def test_the_spine_imports_no_room_beside_it():
    # The command line and the list of public names open rooms: they are the doors.
    doors = {"__main__", "__init__"}
    assert not {(name, other) for name in spine() - doors for other in imports(name) if floor(other) in ROOMS}


def test_no_import_runs_upward():
    assert not {
        (name, other)
        for name in spine() - {"__init__"}
        for other in imports(name, everywhere=False) - {"__init__"}
        if FLOORS.index(floor(other)) > FLOORS.index(floor(name))
    }


@pytest.mark.parametrize(
    "name", sorted(name for name in MODULES if floor(name) in ("config", "content", "files", "runs", "data"))
)
def test_what_lies_below_the_model_knows_no_torch(name):
    nodes = ast.walk(ast.parse(MODULES[name].read_text(encoding="utf-8")))
    heads = {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
    nodes = ast.walk(ast.parse(MODULES[name].read_text(encoding="utf-8")))
    heads |= {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    assert not {head.split(".")[0] for head in heads} & {"torch", "transformers", "peft", "bitsandbytes"}


def test_the_model_knows_no_data_and_the_dashboard_loads_no_model():
    def crossing(of, to):
        return {(name, other) for name in MODULES if floor(name) == of for other in imports(name) if floor(other) in to}

    assert not crossing("model", ("data",))
    assert not crossing("dashboard", ("model", "training", "report"))


def test_no_two_files_have_one_name():
    names = Counter(path.name for path in MODULES.values() if path.name != "__init__.py")
    assert not {name: count for name, count in names.items() if count > 1}


@pytest.mark.parametrize(
    ("what", "names", "files", "most"),
    [  # what there is now; wanted: 75 files and 13,500 lines, the spine 9,000, and 16 / 3,500, 13 / 3,000, 27 / 5,200
        ("what README names to read", to_read, 8, 2_550),
        ("the package", lambda: set(MODULES), 87, 21_580),
        ("the spine", spine, 59, 14_960),
        ("behind train_stage", lambda: behind("training.train"), 21, 5_530),
        ("behind load_reporter", lambda: behind("report"), 20, 4_730),
        ("behind evaluate", lambda: behind("evaluation.evaluate"), 34, 8_080),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_house_does_not_grow(what, names, files, most):
    found = names()
    assert len(found) <= files, f"{what}: {len(found)} files"
    assert lines(found) <= most, f"{what}: {lines(found)} lines"
