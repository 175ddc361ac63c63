"""A run's folder: where each artefact lies, whether it still belongs to the settings at hand, and who works on it.

Every step (data, stage1, stage2, stage3, evaluation) ends by writing a record that holds what it was `made_from`, its
settings and its parents' `hash` by name. A step whose record is there and would be made from the same is current. One
process at a time works on a folder: the lock is its `lock.json`, which names the holder; the operating system's lock on
that file ends with the process however it ends, so a lock left by a killed process is seen to be stale.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import logging
import os
import shlex
import shutil
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import cache
from pathlib import Path
from typing import Any

from radvision_utils.config import (
    Profile,
    RadVisionError,
    SeeingSettings,
    StageSettings,
    command_words,
    load_profile,
    parse_json,
    profile_from_dict,
    project_root,
    settings_of,
    usual_settings,
)
from radvision_utils.content import source_content
from radvision_utils.environment import process_rank
from radvision_utils.files import (
    DamagedFile,
    first_line,
    is_alive,
    list_files,
    of_shape,
    read_json,
    sync_folder,
    told_if_unwritable,
    write_json,
)

try:
    import fcntl
except ImportError:  # on Windows
    fcntl = None  # type: ignore[assignment]

log = logging.getLogger(__name__)

STEPS = ("data", "stage1", "stage2", "stage3", "evaluation")
# Settings of a stage that change how it gets to its result, not the result.
NO_RESULT = (
    *("save_steps", "eval_steps", "report_to", "max_minutes"),
    *("validation_studies", "checkpointed_layers", "compile", "cache_features"),
)
# Only the studies of a step change the result, but for the masks of dropout.
_SPLIT = ("batch", "micro_batch", "accumulation")
# What each stage trains, and how; the first is the untuned base.
_STAGES = (
    ("", ""),
    ("vision_encoder", "LoRA on the linear layers of its blocks"),
    ("projector", "all weights of the merger"),
    ("language_model", "LoRA on the linear layers of its decoder, over 4-bit weights"),
)
NOTEBOOKS = {
    "data": "01_data_preparation",
    "stage1": "02_stage1_vision_encoder",
    "stage2": "03_stage2_projector",
    "stage3": "04_stage3_language_model",
    "evaluation": "05_inference_dashboard",
    "evidence": "06_judge_the_judge",  # adds to the evaluation, and is no step of its own
}
FORCE_VARIABLE = "RADVISION_FORCE"
_LONG = 60  # characters of a setting that stands in a sentence


@cache
def _writable_root(below: Path) -> Path:
    """The project's folder, or the working directory where nothing can be written below it."""
    root, here = project_root(), Path.cwd()
    there = next(folder for folder in (root / below, *(root / below).parents) if folder.is_dir())
    if os.access(there, os.W_OK) or here == root:
        return root
    log.warning("%s cannot be written to: runs are in %s instead", there, here / below)
    return here


class RunFolder:
    """`outputs/<run>/`: the paths of a run and the records of its steps."""

    def __init__(self, run: str, output_root: str | Path = "outputs") -> None:
        root = Path(output_root)
        self.run, self.root = run, str(output_root)
        with told_if_unwritable(root / run), suppress(FileNotFoundError):
            self.path = (root if root.is_absolute() else _writable_root(root) / root) / run
            os.lstat(self.path)  # a name too long, a file where a folder should be

    @classmethod
    def of(cls, profile: Profile) -> RunFolder:
        return cls(profile.run, profile.output_root)

    @property
    def data(self) -> Path:
        return self.path / "data"

    def stage(self, number: int) -> Path:
        return self.path / f"stage{number}"

    def adapter(self, number: int) -> Path:
        return self.stage(number) / "adapter"

    @property
    def features(self) -> Path:
        return self.path / "features"

    @property
    def evaluation(self) -> Path:
        return self.path / "evaluation"

    @property
    def predictions(self) -> Path:
        return self.evaluation / "predictions.jsonl"

    @property
    def dashboard(self) -> Path:
        return self.path / "dashboard"

    def thresholds(self, number: int) -> Path:
        """Of the findings that reports after a stage begin with."""
        return self.path / "thresholds" / f"stage{number}.json"

    @property
    def notebooks(self) -> Path:
        return self.path / "notebooks"

    @property
    def log(self) -> Path:
        """What the notebooks said while `run` executed them."""
        return self.path / "run.log"

    def partial(self, step: str) -> Path:
        """Where a step is made; it becomes visible by `publish`, whole."""
        return self.path / f"{step}.partial"

    def before(self, step: str) -> Path:
        """Where an older result waits while a new one takes its place."""
        return self.path / f"{step}.before"

    def publish(self, profile: Profile, step: str) -> None:
        """Put the finished folder `partial(step)` in the place of an older one, and note that in `run.json`.

        Killed in between, one of the two is whole: `publish_finished` or `settle` takes the exchange up again.
        """
        final, partial, before = self.path / step, self.partial(step), self.before(step)
        if step in STEPS:
            self.note(profile, step)
        list_files(partial)
        if final.is_dir():
            final.rename(before)
        partial.rename(final)
        sync_folder(final.parent, deep=False)
        shutil.rmtree(before, ignore_errors=True)

    def settle(self) -> None:
        """End an exchange that was killed between its two renames or while it removed the older result."""
        for folder in (self.path, self.evaluation):
            for before in folder.glob("*.before"):
                final, partial = before.with_suffix(""), before.with_suffix(".partial")
                if not final.is_dir():
                    (partial if partial.is_dir() else before).rename(final)
                shutil.rmtree(before, ignore_errors=True)

    def record_path(self, step: str) -> Path:
        """The file that a step writes last."""
        names = {"data": "summary.json", "evaluation": "metrics.json"}
        return self.path / step / names.get(step.split("/")[0], "stage.json")

    def record(self, step: str) -> dict[str, Any] | None:
        """What the finished step recorded, or None.

        Raises:
            RadVisionError: the record cannot be read.
        """
        path = self.record_path(step)
        return read_json(path, _RECORD) if path.is_file() else None

    def profile(self) -> Profile:
        """The settings that this run was last worked on with.

        Raises:
            RadVisionError: the run does not exist; the sentence lists those that do.
        """
        path = self.path / "run.json"
        if not path.is_file():
            found = sorted(p.parent.name for p in self.path.parent.glob("*/run.json"))
            there = f"runs there: {', '.join(found)}" if found else "there is no run yet"
            raise RadVisionError(
                f"run {self.run!r} does not exist in {self.path.parent} ({there}): "
                f"make it with `{redo_command(load_profile(run=self.run, output_root=self.root), 'data')}`."
            )
        settings = read_json(path, {"profile": dict})["profile"]
        try:
            profile = profile_from_dict(settings)
        except RadVisionError as error:
            raise RadVisionError(
                f"{path} cannot be used ({first_line(error)}): give the `run` command with this run's settings again."
            ) from error
        # A run folder may have been moved or copied since: it is where we found it.
        return dataclasses.replace(profile, run=self.run, output_root=self.root)

    def note(self, profile: Profile, step: str) -> None:
        """Record in `run.json` the settings in force and when a step was finished."""
        path = self.path / "run.json"
        known: dict[str, Any] = read_json(path, {"steps": dict}) if path.is_file() else {"created": now(), "steps": {}}
        known["profile"] = {key: value for key, value in profile.to_dict().items() if key != "output_root"}  # it moves
        # The name under which the data know their source: under another it would have to be there to be known.
        made = self.record("data") if step != "data" else None
        known["profile"]["data"]["source"] = (made or {}).get("source", profile.data.source)
        known["steps"][step] = now()
        write_json(path, known)


def only_run(run: str, output_root: str | Path = "outputs") -> str:
    """The run that is asked for; where none is, the only one there, or "tiny" before there is any.

    Raises:
        RadVisionError: none is asked for and there are several.
    """
    found = sorted(path.parent.name for path in RunFolder("tiny", output_root).path.parent.glob("*/run.json"))
    if not run and len(found) > 1:
        raise RadVisionError(f"there are several runs ({', '.join(found)}): name one with --run.")
    return run or (found[0] if found else "tiny")


@dataclass(frozen=True)
class Stage:
    """One stage of a run, resolved once: what it trains, with which settings, and where its files lie.

    Attributes:
        profile: settings of the run.
        number: 1, 2 or 3; 0 stands for the untuned base, which has no settings, files or parent.

    Raises:
        RadVisionError: there is no such stage.
    """

    profile: Profile
    number: int

    def __post_init__(self) -> None:
        if self.number not in range(len(_STAGES)):
            raise RadVisionError(f"stage {self.number!r} does not exist: choose 1, 2 or 3, or 0 for the untuned base.")

    @property
    def component(self) -> str:
        """What gets gradients: "vision_encoder", "projector" or "language_model"."""
        return _STAGES[self.number][0]

    @property
    def title(self) -> str:
        """The component for people: "vision encoder"."""
        return self.component.replace("_", " ")

    @property
    def how(self) -> str:
        """How the component trains, in words."""
        whole = self.number == 1 and self.profile.stage1.train == "full"
        return "all its weights" if whole else _STAGES[self.number][1]

    @property
    def step(self) -> str:
        """The step's name in the run: "stage1"."""
        return f"stage{self.number}"

    @property
    def label_weight(self) -> float:
        """How much of the loss is that of finding labels; they teach what makes visual tokens, stages 1 and 2."""
        settings = self.settings
        return settings.label_weight if isinstance(settings, SeeingSettings) else 0.0

    @property
    def settings(self) -> StageSettings:
        return self.profile.stage(self.number)

    @property
    def run(self) -> RunFolder:
        return RunFolder.of(self.profile)

    @property
    def folder(self) -> Path:
        """`outputs/<run>/stage<n>/`, which is there when the stage is finished."""
        return self.run.stage(self.number)

    @property
    def adapter(self) -> Path:
        return self.run.adapter(self.number)

    @property
    def work(self) -> Path:
        """Where the stage is made."""
        return self.run.partial(self.step)

    @property
    def parent(self) -> Stage | None:
        """The stage whose adapter it goes on with; stage 1 has none."""
        return Stage(self.profile, self.number - 1) if self.number > 1 else None

    def record(self) -> dict[str, Any]:
        """`stage.json` of the finished stage.

        Raises:
            RadVisionError: it is missing, unfinished or was made with other settings.
        """
        return require(self.profile, self.step)


def publish_finished(profile: Profile, step: str) -> bool:
    """Whether a step with these settings was whole but not yet in its place; it is now."""
    folder = RunFolder.of(profile)
    record = folder.partial(step) / folder.record_path(step).name
    if not record.is_file() or differences(read_json(record, dict).get("made_from"), made_from(profile, step)):
        return False
    folder.publish(profile, step)
    return True


def made_from(profile: Profile, step: str) -> dict[str, Any]:
    """Everything that the step's result depends on: settings by the names that `--set` takes, steps by their hashes.

    Beside `STEPS` there may be "evaluation/validation" and "evaluation/train", of other splits.

    Raises:
        RadVisionError: the step before it is missing, unfinished or was made with other settings.
    """
    settings, seed = settings_of(profile), {"seed": profile.seed}
    if step == "data":
        # The source is known by its content, see `require` and `is_current`; how studies are shown changes none.
        unlike = ("data.workers", "data.source", "data.augment", "data.abnormal_share")
        return seed | {name: settings[name] for name in settings_of(profile.data, "data.") if name not in unlike}
    made = {"dataset": require(profile, "data")["hash"]}
    if step.startswith("evaluation"):
        names = [name for name in settings if name.startswith("generation.") and name != "generation.batch_size"]
        names += ["evaluation.stages"]
        return made | {"stage3": require(profile, "stage3")["hash"]} | {name: settings[name] for name in names}
    stage = Stage(profile, int(step.removeprefix("stage")))
    if stage.parent is not None:
        made[stage.parent.step] = stage.parent.record()["hash"]
    # Where the best checkpoint is kept, it matters at which steps that is asked.
    hidden = {*NO_RESULT, *_SPLIT} ^ {"patience" if stage.settings.patience is None else "eval_steps"}
    names = [f"{step}.{name}" for name in settings_of(stage.settings) if name not in hidden]
    # The one adapter is shaped at stage 1, by the ranks of both its LoRA components.
    names += ["stage3.lora_rank", "stage3.lora_alpha"] if stage.number == 1 else []
    names += ["data.abnormal_share", "data.augment"]
    made |= seed | settings_of(profile.model, "model.") | {name: settings[name] for name in names}
    made[f"{step}.micro_batch x {step}.accumulation"] = stage.settings.step_size
    return made


def differences(before: Any, now: Mapping[str, Any], word: str = "you ask for") -> str:
    """How a step or its conditions were, in words: "stage1.learning_rate 0.0001 (you ask for 0.0002)".

    A setting that `before` lacks was as it is by default; one that `now` lacks does not matter any more. Where `before`
    cannot be read it names nothing; where nothing differs it is "".
    """
    if not isinstance(before, Mapping):
        return "other settings or other data"
    parts, usual = [], usual_settings()
    for name in dict.fromkeys([*before, *now]):
        old, new = before.get(name, usual.get(name)), now.get(name)
        if old == new or (name in usual and name not in now):
            continue
        told = [json.dumps(value, ensure_ascii=False) for value in (old, new)]
        plain = name not in ("dataset", *STEPS) and max(map(len, told)) <= _LONG
        parts.append(f"{name} {told[0]} ({word} {told[1]})" if plain else f"another {name}")
    return " and ".join(filter(None, [", ".join(parts[:-1]), *parts[-1:]]))


def is_current(profile: Profile, step: str) -> bool:
    """Whether the step is finished, in its place, and nothing that it depends on has changed since.

    For the data the content of their source is looked at; one that cannot be reached has not changed.

    Raises:
        DamagedFile: what the step recorded is damaged; to make it anew without a word would cost hours.
    """
    if RunFolder.of(profile).before(step).is_dir():
        return False  # as far as can be seen: whoever takes the lock ends the exchange
    try:
        record = require(profile, step)
    except DamagedFile:
        raise
    except RadVisionError:
        return False
    was = record.get("content") if step == "data" else None
    if was is None or source_content(profile.data.source) in (was, None):
        return True
    log.info("source %s does not hold any more what the data were prepared from", profile.data.source)
    return False


def require(profile: Profile, step: str) -> dict[str, Any]:
    """The record of a finished step that belongs to these settings.

    Prepared data stand for their source, which is not looked at unless it is asked for under another name: then it must
    be there and hold the same. So a finished run can be used where its source is not.

    Raises:
        RadVisionError: it is missing, unfinished or was made with other settings; the sentence names the command.
    """
    folder = RunFolder.of(profile)
    record = folder.record(step)
    where, command = folder.record_path(step).parent, redo_command(profile, step.split("/")[0])
    if record is None:
        begun = where.is_dir() or folder.partial(step).is_dir()
        state = "was started but is not finished" if begun else "has not been made"
        raise RadVisionError(f"{step} of run {profile.run!r} {state} ({where}): make it with `{command}`.")
    source, known = profile.data.source, record.get("source") if step == "data" else None
    moved = known is not None and source != known and source_content(source) != record.get("content")
    told = differences(record.get("made_from"), made_from(profile, step))
    if moved or told:
        raise RadVisionError(
            f"{step} of run {profile.run!r} was made with {told or 'other data'}, in {where}: "
            f"make it again with `{command}`, or use the settings in {folder.path / 'run.json'}."
        )
    return record


def redo_command(profile: Profile, step: str) -> str:
    """The shell command that makes a step, and those after it, with these very settings."""
    words = ["python", "-m", "radvision_utils", *command_words(profile, "run")]
    return shlex.join([*words, *(["--from", str(list(NOTEBOOKS).index(step) + 1)] if step != "data" else [])])


def now() -> str:
    """The time in UTC, ISO 8601, to the second."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


_RECORD = {"hash": str}  # what every step's record holds, and what it was made from, see `differences`


def asked_to_force(step: str) -> bool:
    """Whether `run --force` had the notebook that is executed here make the step anew; true once a process."""
    return os.environ.get(FORCE_VARIABLE) == step and bool(os.environ.pop(FORCE_VARIABLE))


@contextmanager
def working(run: RunFolder, step: str) -> Iterator[None]:
    """Hold the run while a step writes to it. Of several processes that were launched together the first holds it.

    Raises:
        RadVisionError: another process works on the run; the sentence names it. Or nothing can be written to it.
    """
    with holding(run.path, step, f"run {run.run!r}", "use another name with --run"):
        if not process_rank():
            run.settle()
        yield


@contextmanager
def holding(folder: Path, step: str, name: str, otherwise: str) -> Iterator[None]:
    """Hold a folder, by its name for people, while a step writes to it.

    Raises:
        RadVisionError: another process holds it: wait, or do `otherwise`. Or the disk is full.
    """
    with told_if_unwritable(folder), nullcontext() if process_rank() else _locked(folder, step, name, otherwise):
        yield


def require_locks() -> None:
    """Refuse at once, before anything is written, a system on which two processes could spoil a run.

    Raises:
        RadVisionError: it is one, as Windows is.
    """
    if fcntl is None:
        raise RadVisionError(
            "this system cannot lock a run against a second process: use Linux, macOS, or on Windows its WSL."
        )


@contextmanager
def _locked(folder: Path, step: str, name: str, otherwise: str) -> Iterator[None]:
    require_locks()
    path = folder / "lock.json"
    folder.mkdir(parents=True, exist_ok=True)
    handle = _acquire(path, name, otherwise)
    try:
        holder = {"process": os.getpid(), "host": socket.gethostname(), "step": step, "since": now()}
        os.ftruncate(handle, 0)
        os.pwrite(handle, (json.dumps(holder) + "\n").encode(), 0)
        yield
    finally:
        path.unlink(missing_ok=True)  # while it is still held: nobody else's lock can be removed
        os.close(handle)


def _acquire(path: Path, name: str, otherwise: str) -> int:
    """An open, locked handle of the lock file.

    Raises:
        RadVisionError: another process holds it, or may hold it on another machine.
    """
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        free = _flock(handle)
        holder = _holder(handle)
        if free and os.fstat(handle).st_nlink == 0:
            os.close(handle)  # its holder ended, and removed it, between our opening and our locking it
            continue
        ours = holder.get("host") in (None, socket.gethostname())
        if free is None:  # a file system without locks
            free = not (ours and is_alive(holder.get("process")))
        if free and ours:
            if holder:
                log.info("the lock of process %s, which is no more, is taken over", holder.get("process"))
            return handle
        os.close(handle)
        who = f"process {holder.get('process', '(unknown)')} on {holder.get('host', 'this machine')}"
        what = f"{holder.get('step', 'a step')} since {holder.get('since', 'just now')}"
        if free:
            raise RadVisionError(
                f"{name} was being worked on by {who} ({what}), which cannot be seen from "
                f"{socket.gethostname()}: if it is no more, delete {path} and give the same command again."
            )
        raise RadVisionError(f"{name} is being worked on by {who} ({what}): wait until it ends, or {otherwise}.")


def _flock(handle: int) -> bool | None:
    """Whether the handle could be locked; None where the file system has no locks."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK, errno.EINVAL):
            return None
        raise
    return True


def _holder(handle: int) -> dict[str, Any]:
    """Who wrote the lock; empty where nobody did, or not to the end."""
    try:
        return dict(of_shape(parse_json(os.pread(handle, 4096, 0), "", ""), dict, "", ""))
    except RadVisionError:
        return {}
