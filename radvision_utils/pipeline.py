"""Run the notebooks in order through papermill: check their parameters, skip what is finished, stop at a failure.

Knows notebooks and folders only.
"""

from __future__ import annotations

import json
import logging
import os
import shlex
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import papermill
from papermill.exceptions import PapermillExecutionError

from radvision_utils.config import Profile, RadVisionError, RunPaused, project_root
from radvision_utils.runs import NOTEBOOKS, STEPS, RunFolder, is_current, redo_command

logger = logging.getLogger(__name__)


def run_notebooks(profile: Profile, overrides: Mapping[str, Any], first: int = 1, force: bool = False) -> RunFolder:
    """Execute the five notebooks into `outputs/<run>/notebooks/`.

    Args:
        profile: the settings, overrides applied.
        overrides: the same overrides again, as the notebooks take them.
        first: number of the notebook to begin with, 1 to 5.
        force: run also what is finished and unchanged.

    Raises:
        RunPaused: a stage used up its `max_minutes`; the sentence says how to go on.
        RadVisionError: a notebook lacks a parameter or failed; the sentence says where and how to go on.
    """
    folder = RunFolder.of(profile)
    parameters = {
        "profile": profile.name,
        "run": profile.run,
        "source": profile.data.source,
        "output_root": str(folder.path.parent),
        "overrides": json.dumps(dict(overrides)),
        "seed": profile.seed,
    }
    if not 1 <= first <= len(STEPS):
        raise RadVisionError(f"there is no notebook {first}: --from takes 1 to {len(STEPS)}.")
    steps = STEPS[first - 1 :]
    for step in steps:
        check_parameters(notebook_path(step), parameters)
    for step in steps:
        executed = folder.notebooks / f"{NOTEBOOKS[step]}.ipynb"
        if is_current(profile, step) and executed.is_file() and not force:
            logger.info("%s: finished and unchanged, skipped", NOTEBOOKS[step])
            continue
        if force:
            folder.record_path(step).unlink(missing_ok=True)
        started = time.perf_counter()
        logger.info("%s: begins", NOTEBOOKS[step])
        _execute(step, executed, parameters, profile, overrides)
        logger.info("%s: done in %.0f s", NOTEBOOKS[step], time.perf_counter() - started)
    return folder


def notebook_path(step: str) -> Path:
    """The committed notebook of a step.

    Raises:
        RadVisionError: the package was installed without its notebooks.
    """
    path = project_root() / "notebooks" / f"{NOTEBOOKS[step]}.ipynb"
    if not path.is_file():
        raise RadVisionError(f"{path} is missing: run from a clone of the project, which holds the notebooks.")
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


def _execute(
    step: str, executed: Path, parameters: Mapping[str, Any], profile: Profile, overrides: Mapping[str, Any]
) -> None:
    executed.parent.mkdir(parents=True, exist_ok=True)
    partial = executed.with_suffix(".partial.ipynb")  # a copy that ends before its last cell must not pass for whole
    os.environ["RADVISION_HEADLESS"] = "1"  # the kernel inherits it: plain lines instead of bars that nobody sees move
    try:
        papermill.execute_notebook(
            str(notebook_path(step)),
            str(partial),
            parameters=dict(parameters),
            kernel_name="python3",
            cwd=str(project_root()),
            progress_bar=False,
            log_output=True,
        )
    except PapermillExecutionError as error:
        words = [redo_command(profile, step)]
        words += [f"--set {shlex.quote(f'{key}={json.dumps(value)}')}" for key, value in overrides.items()]
        command = " ".join(words)
        if error.ename == RunPaused.__name__:
            raise RunPaused(f"{error.evalue.rstrip('.')}: `{command}`.") from error
        raise RadVisionError(
            f"notebook {NOTEBOOKS[step]} stopped at code cell {error.exec_count} with {error.ename}: {error.evalue} "
            f"(executed so far: {partial}). When it is mended, go on with `{command}`."
        ) from error
    os.replace(partial, executed)
