"""A library older than its floor is one sentence before anything imports it; Colab and Kaggle get a newer one."""

import os
import re
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest

from radvision_utils import environment
from radvision_utils.config import RadVisionError, project_root


@pytest.fixture
def old(tmp_path):
    """A folder with an old `peft` that cannot even be imported, and its version."""
    (tmp_path / "peft-0.17.1.dist-info").mkdir()
    (tmp_path / "peft-0.17.1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: peft\nVersion: 0.17.1\n")
    (tmp_path / "peft.py").write_text("raise ImportError('cannot import name')\n")
    return tmp_path


def run(old, *arguments):
    paths = os.pathsep.join([str(old), str(project_root())])
    command = [sys.executable, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": paths})


TOLD = r"installed libraries are too old \(peft 0\.17\.1\): `python -m pip install 'peft>=0\.19'`\.$"


def test_the_command_line_says_it_in_one_line(old):
    done = run(old, "-m", "radvision_utils", "train", "--stage", "1")
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(f"radvision: {TOLD}", done.stderr.strip())


def test_the_first_cell_of_a_notebook_says_it(old):
    done = run(old, "-c", "from radvision_utils.environment import setup_notebook; setup_notebook()")
    assert re.search(f"RadVisionError: {TOLD}", done.stderr.strip())


def test_what_is_installed_here_is_new_enough():
    assert environment.set_up_libraries() == []


def test_every_floor_of_the_project_is_asked_for(monkeypatch):
    monkeypatch.setattr(environment, "_version", lambda name: "0.0.1")
    asked = set(environment.unmet())
    floors = (project_root() / "constraints-floor.txt").read_text().splitlines()
    names = {line.split("==")[0] for line in floors if "==" in line}
    assert names <= {re.split("[>=]=", requirement)[0] for requirement in asked}


@pytest.mark.parametrize("name", ["torchao", "pydicom"])
def test_what_nothing_needs_may_be_missing_but_not_too_old(monkeypatch, name):
    found = {}
    monkeypatch.setattr(environment, "_version", lambda asked: found.get(asked, "999"))
    for version, lacking in (("", []), ("0.10.0", [name]), ("99", [])):
        found[name] = version
        assert [re.split("[>=]=", asked)[0] for asked in environment.unmet()] == lacking


@pytest.mark.parametrize("version", ["2.7", "2.7.0+cu126", "2.10.1", "3", "2.7.0a0+ecf3bae40a.nv25.01"])
def test_a_build_of_the_floor_or_later_is_new_enough(monkeypatch, version):
    monkeypatch.setattr(environment, "_version", lambda name: version if name == "torch" else "999")
    assert environment.unmet() == {}


def make(*words, cwd):
    # Within `make test` a make says which folder it enters, and takes the outer one's options.
    env = {name: value for name, value in os.environ.items() if name not in ("MAKELEVEL", "MAKEFLAGS", "MFLAGS")}
    return subprocess.run(["make", *words], cwd=cwd, env=env, capture_output=True, text=True, check=True).stdout


def test_each_target_installs_what_it_needs_and_says_what_that_takes(tmp_path):
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(project_root() / name, tmp_path)
    planned = {target: make("--dry-run", target, cwd=tmp_path) for target in ("run", "test", "lint", "lab", "bench")}
    installed = {target: re.findall(r"-e '\.\[(\w+)\]'", told) for target, told in planned.items()}
    tools = {"run": [], "test": ["test"], "lint": ["test"], "lab": ["lab"], "bench": ["bench"]}
    assert installed == {target: ["dicom", *more] for target, more in tools.items()}
    assert all(told.index("GB of disk") < told.index("pip install") for told in planned.values())


def test_make_alone_lists_what_there_is():
    targets = re.search(r"\.PHONY: (.*) always", (project_root() / "Makefile").read_text(encoding="utf-8"))[1].split()
    told = make(cwd=project_root())
    assert [line.split()[1] for line in told.splitlines()] == targets


@pytest.fixture
def colab(monkeypatch):
    """A host with an old peft and torchao and no papermill; gives the commands that were run: each installs them."""
    there, commands = {"peft": "0.17.1", "papermill": "", "torchao": "0.10.0"}, []

    def pip(command, **options):
        commands.append(command)
        there.clear()
        return SimpleNamespace(returncode=0, stderr="")

    monkeypatch.setattr(environment, "hosted_notebook", lambda: "colab")
    monkeypatch.setattr(environment, "_version", lambda name: there.get(name, "999"))
    monkeypatch.setattr(environment.subprocess, "run", pip)
    monkeypatch.setattr(environment.importlib.metadata, "packages_distributions", lambda: {"peft": ["peft"]})
    monkeypatch.delitem(sys.modules, "peft", raising=False)
    return commands


def test_a_host_gets_what_is_missing_or_too_old_and_keeps_its_torch(colab):
    assert environment.set_up_libraries() == ["peft>=0.19", "papermill>=2.6", "torchao>=0.16"]
    assert colab[0][-5:] == ["peft>=0.19", "papermill>=2.6", "torchao>=0.16", "torch==999", "torchvision==999"]
    assert environment.set_up_libraries() == []


def test_a_library_that_was_replaced_while_in_use_asks_for_a_restart(colab, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", SimpleNamespace())
    with pytest.raises(RadVisionError, match="an older peft is in use: restart the session"):
        environment.set_up_libraries()
