"""Run the notebooks in order through papermill: check their parameters, skip what is finished, stop at a failure.

Where there are several cards, a stage trains on all of them before its notebook shows it. Knows notebooks, folders and
commands only.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import papermill
from papermill.exceptions import PapermillExecutionError

from radvision_utils.config import (
    PROFILES,
    REPOSITORY,
    Profile,
    RadVisionError,
    RunPaused,
    command_words,
    project_root,
    settings_of,
)
from radvision_utils.files import first_line, told_if_unwritable
from radvision_utils.runs import FORCE_VARIABLE, NOTEBOOKS, RunFolder, is_current, redo_command

logger = logging.getLogger(__name__)


def run_notebooks(profile: Profile, first: int = 1, force: bool = False, last: int = len(NOTEBOOKS)) -> RunFolder:
    """Execute the six notebooks into `outputs/<run>/notebooks/`; what they say meanwhile is in its `run.log`.

    Args:
        profile: the settings.
        first: number of the notebook to begin with, 1 to 6.
        force: run also what is finished and unchanged.
        last: number of the notebook to end with.

    Raises:
        RunPaused: a stage used up its `max_minutes`; the sentence says how to go on.
        RadVisionError: a notebook lacks a parameter or failed; the sentence says where and how to go on.
    """
    folder = RunFolder.of(profile)
    if not folder.path.is_relative_to(project_root()):  # the notebooks run in the project
        profile = replace(profile, output_root=str(folder.path.parent))
    named = ("run", "data.source", "output_root", "seed")  # have parameters of their own
    usual, settings = settings_of(PROFILES[profile.name]), settings_of(profile)
    changed = {name: value for name, value in settings.items() if value != usual[name] and name not in named}
    parameters = {
        "profile": profile.name,
        "run": profile.run,
        "source": profile.data.source,
        "output_root": profile.output_root,
        "overrides": json.dumps(changed),
        "seed": profile.seed,
    }
    if not 1 <= first <= len(NOTEBOOKS):
        raise RadVisionError(f"there is no notebook {first}: --from takes 1 to {len(NOTEBOOKS)}.")
    steps = list(NOTEBOOKS)[first - 1 : last]
    for step in steps:
        check_parameters(notebook_path(step), parameters)
    for number, step in enumerate(steps, start=first):
        executed, started, again = folder.notebooks / f"{NOTEBOOKS[step]}.ipynb", time.perf_counter(), force
        told = f"{number} of {len(NOTEBOOKS)}  {NOTEBOOKS[step]:26}"
        if not force and executed.is_file() and _is_shown(profile, step):
            logger.info("%s  finished and unchanged, skipped", told)
            continue
        with told_if_unwritable(folder.path), kept_log(folder.log):
            if step.startswith("stage") and (processes := training_processes(profile, step, force)) > 1:
                _train_together(profile, step, processes, force)
                again = False
            _execute(step, executed, parameters, profile, again)
        logger.info("%s  %5.1f min", told, (time.perf_counter() - started) / 60)
    return folder


def _is_shown(profile: Profile, step: str) -> bool:
    """Whether the step is current; of the last notebook, whether the maps and samples asked for are there."""
    if step != "evidence" or not is_current(profile, "evaluation"):
        return step != "evidence" and is_current(profile, step)
    record, asked = RunFolder.of(profile).record("evaluation") or {}, profile.evaluation
    maps, samples = record.get("evidence", {}).get("asked"), record.get("confidence", {}).get("samples")
    return asked.evidence in (0, maps) and asked.samples in (0, samples)


def training_processes(profile: Profile, step: str, force: bool = False) -> int:
    """How many cards a stage trains on: all that share its optimizer step evenly; 1 where a notebook does it itself."""
    import torch

    stage = profile.stage(int(step.removeprefix("stage")))
    if profile.model.base == "tiny" or (not force and is_current(profile, step)):
        return 1
    return max(n for n in range(1, max(torch.cuda.device_count(), 1) + 1) if stage.step_size % n == 0)


def training_command(profile: Profile, step: str, processes: int) -> list[str]:
    """The command that trains a stage in several processes, a card each, with all settings of the run."""
    return [
        *(sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", str(processes)),
        *("--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"),
        *("-m", "radvision_utils", *command_words(profile, "train"), "--stage", step.removeprefix("stage")),
    ]


def _train_together(profile: Profile, step: str, processes: int, force: bool) -> None:
    """Train a stage on several cards; its notebook then finds it finished.

    Raises:
        RunPaused: it used up its `max_minutes`.
        RadVisionError: a process failed; what it said stands above.
    """
    logger.info("%s trains on %d cards, a process each", step, processes)
    command = training_command(profile, step, processes) + (["--force"] if force else [])
    log = RunFolder.of(profile).log
    with log.open("a", encoding="utf-8") as stream:
        done = subprocess.run(command, cwd=project_root(), check=False, stdout=stream, stderr=subprocess.STDOUT)
    go_on = redo_command(profile, step) + (" --force" if force else "")
    if done.returncode:
        raise RadVisionError(
            f"{step} stopped on {processes} cards, see {log}: when it is mended, go on with `{go_on}`."
        )
    if not is_current(profile, step):
        raise RunPaused(f"{step} used up its max_minutes and left a checkpoint: `{go_on}`.")


def continue_run(run: RunFolder, earlier: Path) -> None:
    """Copy the run of an earlier session, which may lie where nothing can be written; a run that is here stays.

    Raises:
        RadVisionError: there is no run, or something that is none is in its place here.
    """
    if (run.path / "run.json").is_file():
        logger.info("run %r is here and goes on; %s is not looked at", run.run, earlier)
        return
    if not (earlier / "run.json").is_file():
        raise RadVisionError(f"{earlier} holds no run: give the folder with its run.json, like outputs/{run.run}.")
    if run.path.is_dir() and any(run.path.iterdir()):
        raise RadVisionError(f"{run.path} was begun without --continue-from: delete it, or give another --run.")
    partial = run.path.with_name(f"{run.run}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    with told_if_unwritable(run.path.parent):
        for file in earlier.rglob("*"):
            if file.is_file() and file.name != "lock.json":  # of a machine that is no more
                to = partial / file.relative_to(earlier)
                to.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, to)  # without its mode, which may forbid to write
        partial.rename(run.path)


def notebook_path(step: str) -> Path:
    """The committed notebook of a step.

    Raises:
        RadVisionError: the package was installed without its notebooks.
    """
    path = project_root() / "notebooks" / f"{NOTEBOOKS[step]}.ipynb"
    if not path.is_file():
        raise RadVisionError(f"{path} is missing: run from a clone of the project, `git clone {REPOSITORY}`.")
    return path


def check_parameters(notebook: Path, parameters: Mapping[str, Any]) -> None:
    """Papermill only warns of a parameter that a notebook does not have; here it is refused.

    Raises:
        RadVisionError: the notebook's `parameters` cell lacks one of these names.
    """
    known = papermill.inspect_notebook(str(notebook))
    unknown = [name for name in parameters if name not in known]
    if unknown:
        raise RadVisionError(
            f"{notebook.name} has no parameter {', '.join(unknown)}: its parameters are {', '.join(known)}."
        )


def _execute(step: str, executed: Path, parameters: Mapping[str, Any], profile: Profile, force: bool) -> None:
    executed.parent.mkdir(parents=True, exist_ok=True)
    command = redo_command(profile, step) + (" --force" if force else "")
    partial = executed.with_suffix(".partial.ipynb")  # a copy that ends before its last cell must not pass for whole
    try:
        # Plain lines instead of bars that nobody sees move, and what is forced.
        quiet = {"PYDEVD_DISABLE_FILE_VALIDATION": "1"}  # a page of a debugger's warnings, from Colab's ipykernel
        with environment_variables({"RADVISION_HEADLESS": "1", FORCE_VARIABLE: step if force else "", **quiet}):
            papermill.execute_notebook(
                str(notebook_path(step)),
                str(partial),
                parameters=dict(parameters),
                kernel_name="python3",
                cwd=str(project_root()),
                progress_bar=False,
                log_output=True,
                extra_arguments=["--log-level=CRITICAL"],  # of the kernel, which tells how it listens and ends
            )
    except PapermillExecutionError as error:
        if error.ename == RunPaused.__name__:
            raise RunPaused(f"{error.evalue.rstrip('.')}: `{command}`.") from error
        raise RadVisionError(
            f"notebook {NOTEBOOKS[step]} stopped at code cell {error.exec_count} with {error.ename}: {error.evalue} "
            f"(executed so far: {partial}). When it is mended, go on with `{command}`."
        ) from error
    except RuntimeError as error:  # nbclient's DeadKernelError, or that of a kernel which died as it started
        raise RadVisionError(
            f"the kernel of notebook {NOTEBOOKS[step]} died ({first_line(error)}): it was killed, or memory ran out; "
            f"go on with `{command}`."
        ) from error
    os.replace(partial, executed)


@contextmanager
def environment_variables(values: Mapping[str, str]) -> Iterator[None]:
    """Set variables of the environment, which a process started meanwhile inherits, and put them back."""
    before = {name: os.environ.pop(name, None) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            os.environ.update({name: value} if value is not None else {})


class _LogFile(logging.FileHandler):
    def handleError(self, record: logging.LogRecord) -> None:
        """A full disk is told in a sentence by whoever writes results."""


class _LatestLine(logging.Handler):
    """Shows the latest line in one place of the terminal, where the next one takes it."""

    def emit(self, record: logging.LogRecord) -> None:
        line = (record.getMessage().strip().splitlines() or [""])[-1].rstrip("-")
        told = "".join(filter(str.isprintable, line))[: shutil.get_terminal_size().columns - 1]
        print(f"\r\033[K{told}", end="", file=sys.stderr, flush=True)


@contextmanager
def kept_log(path: Path, name: str = "papermill") -> Iterator[None]:
    """Append what papermill says, notebooks and all, to a file; where somebody watches, show its latest line.

    Args:
        path: the file.
        name: another logger, to append what that says.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    log = logging.getLogger(name)
    before = log.handlers, log.propagate
    handlers = [_LogFile(path, encoding="utf-8"), *([_LatestLine()] if sys.stderr.isatty() else [])]
    level, log.handlers, log.propagate = log.level, handlers, False
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        for handler in handlers:
            handler.close()
        log.handlers, log.propagate = before
        log.setLevel(level)
        if len(handlers) > 1:
            print("\r\033[K", end="", file=sys.stderr, flush=True)
