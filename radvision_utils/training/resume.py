"""How a stage survives: whole checkpoints, time that runs out, micro-batches that get smaller where memory ends.

A checkpoint holds what the stage trains, not the whole adapter: the rest is in the adapter that the stage began with.
transformers writes the files of a checkpoint one after the other; killed in between, it leaves one that looks like any
other. Here a list with size and checksum of every file is written last, and a checkpoint that it does not fit is not
used, but the one before.
"""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from accelerate.utils.memory import clear_device_cache
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import TrainerCallback, TrainerState

from radvision_utils.config import RadVisionError, RunPaused, StageSettings
from radvision_utils.environment import choose_device, conditions, is_out_of_memory, open_room, process_count
from radvision_utils.files import first_line, is_whole, list_files, read_json, read_json_lines, write_json
from radvision_utils.model.base import trained_tensors
from radvision_utils.runs import Stage, differences, is_current, made_from, publish_finished, redo_command, working

logger = logging.getLogger(__name__)

STATE = "trainer_state.json"
TRAINED = "trained.safetensors"
_KEPT = 2  # checkpoints


class CheckpointMark(TrainerCallback):
    """Lists a checkpoint's files when every process has written its part; only then older ones go, but for the last.

    transformers would tell by the clock which are older, and remove the newest where it was set back.
    """

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        args.distributed_state.wait_for_everyone()
        if state.is_world_process_zero:
            folder = Path(args.output_dir)
            list_files(folder / f"checkpoint-{state.global_step}")
            for older in sorted(folder.glob("checkpoint-*"), key=_step_of)[:-_KEPT]:
                if older.name != Path(state.best_model_checkpoint or "").name:
                    shutil.rmtree(older)


def last_checkpoint(folder: Path) -> Path | None:
    """The checkpoint of the highest step whose files are as they were written, or None."""
    return max(filter(is_whole, folder.glob("checkpoint-*")), key=_step_of, default=None)


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


@contextmanager
def being_made(stage: Stage, force: bool) -> Iterator[bool]:
    """Within, the run is ours, and what an interrupted attempt at the stage left is taken up; an older result stays.

    Gives whether there is something to do: not where a killed process had finished the stage but for its name.

    Raises:
        RadVisionError: accelerate was asked to shard the model.
    """
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true":
        raise RadVisionError(
            "accelerate's FSDP would take the adapter apart too: launch with --multi_gpu and no configuration of "
            "FSDP; the processes then share a base with model.quantization=none by themselves."
        )
    together = PartialState(cpu=choose_device().kind == "cpu")  # of the processes that `accelerate launch` started
    with working(stage.run, stage.step):
        if together.is_main_process and not _waits(stage, force):
            _start_or_resume(stage, force)
        together.wait_for_everyone()
        yield stage.work.is_dir()
        together.wait_for_everyone()


def _waits(stage: Stage, force: bool) -> bool:
    """Whether there is a whole result already: in its place, or ready to be put there."""
    if force and not _goes_on(stage, force):
        return False
    return publish_finished(stage.profile, stage.step) or (not force and is_current(stage.profile, stage.step))


def _begun(stage: Stage) -> dict[str, Any]:
    """What is known of the attempt in the folder where the stage is made: `made_from`, its conditions, `forced`."""
    path = stage.work / "begun.json"
    shape = {"made_from": dict, "forced": bool, "conditions": {"versions": dict}}
    return read_json(path, shape) if path.is_file() else {}


def _goes_on(stage: Stage, force: bool) -> bool:
    """Whether what is there is an attempt at this very result; with `force` only one that was forced too."""
    begun = _begun(stage)
    same = not differences(begun.get("made_from"), made_from(stage.profile, stage.step))
    return same and (begun["forced"] or not force)


def _start_or_resume(stage: Stage, force: bool) -> None:
    """Leave whole checkpoints of this very stage in the folder where it is made, and nothing of another.

    Raises:
        RadVisionError: checkpoints of another stage are there, and `force` does not give them up.
    """
    before, now = _begun(stage), conditions(choose_device())
    if _goes_on(stage, force):
        force = before["forced"]
        _tell_conditions(stage, before["conditions"], now)
    else:
        if not force:
            _check_changes(stage, before.get("made_from"))
        shutil.rmtree(stage.work, ignore_errors=True)
    made = made_from(stage.profile, stage.step)
    write_json(stage.work / "begun.json", {"made_from": made, "forced": force, "conditions": now})
    for checkpoint in (stage.work / "checkpoints").glob("checkpoint-*"):
        if not is_whole(checkpoint):
            logger.warning("%s is damaged or was not written to its end, and is removed", checkpoint.name)
            shutil.rmtree(checkpoint)


def _tell_conditions(stage: Stage, before: dict[str, Any], now: dict[str, Any]) -> None:
    was, are = ({**each, **each["versions"], "versions": None} for each in (before, now))
    told = differences(was, are, "now")
    if told and last_checkpoint(stage.work / "checkpoints"):
        unlike = "its weights will be those of an uninterrupted stage to rounding, not bit for bit"
        logger.warning("%s goes on under other conditions, %s: %s", stage.step, told, unlike)


def _check_changes(stage: Stage, before: dict[str, Any] | None) -> None:
    """Say what differs from the finished stage, which stays until the new one is whole, or from the one begun.

    Raises:
        RadVisionError: the one begun has checkpoints.
    """
    made, checkpoint = made_from(stage.profile, stage.step), last_checkpoint(stage.work / "checkpoints")
    if checkpoint is not None:
        log = stage.work / "log.jsonl"
        lines = read_json_lines(log, torn=True) if log.is_file() else []
        seconds = sum(line.get("seconds", 0.0) for line in lines)
        took = f"{seconds / 3600:.1f} hours" if seconds >= 360 else f"{seconds:.0f} seconds"
        raise RadVisionError(
            f"{stage.step} of run {stage.profile.run!r} was begun with {differences(before, made)} and stopped at step "
            f"{_step_of(checkpoint)}: to give up these steps ({took}) and begin anew, give "
            f"`{redo_command(stage.profile, stage.step)} --force`; with what it was begun with it goes on."
        )
    older = stage.run.record(stage.step)
    if older is not None:
        told = differences(older.get("made_from"), made)
        logger.info("%s was made with %s: it is made anew and takes the older one's place", stage.step, told)


def finished_state(checkpoint: Path | None) -> TrainerState | None:
    """The state in a checkpoint after the last step, which has nothing left to train; else None."""
    if checkpoint is None:
        return None
    state = read_json(checkpoint / STATE, {"global_step": int, "max_steps": int})
    done = state["global_step"] >= state["max_steps"]
    return TrainerState.load_from_json(str(checkpoint / STATE)) if done else None


def save_trained(model: nn.Module, folder: Path) -> None:
    """Write what the stage trains, by its names in the model."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.data for name, tensor in trained_tensors(model).items()}, folder / TRAINED)


def load_trained(model: nn.Module, checkpoint: Path) -> None:
    """Put the tensors of a checkpoint into the model that trains them.

    Raises:
        RadVisionError: the checkpoint holds other tensors than the model trains.
    """
    saved, trained = load_file(checkpoint / TRAINED), trained_tensors(model)
    if {name: tensor.shape for name, tensor in saved.items()} != {name: p.shape for name, p in trained.items()}:
        raise RadVisionError(
            f"{checkpoint} holds other tensors than this stage trains, perhaps by another version of the libraries: "
            f"delete {checkpoint.parent.parent} and give the same command again; the stage then begins anew."
        )
    with torch.no_grad():
        for name, parameter in trained.items():
            parameter.copy_(saved[name])


class TimeBudget(TrainerCallback):
    """Stops the training at a checkpoint before `minutes` are over, but never before one step of this call.

    Args:
        minutes: None for no limit.
        started: when the stage's work began, as `time.perf_counter` gives it.
    """

    def __init__(self, minutes: float | None, started: float) -> None:
        self.minutes, self.started, self.step_began, self.over = minutes, started, started, False

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.step_began = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.minutes is None or state.global_step >= state.max_steps:
            return
        now = time.perf_counter()
        over = [now - self.started + (now - self.step_began) >= 60 * self.minutes]  # the next step would end too late
        if process_count() > 1:
            broadcast_object_list(over)  # clocks differ; a process that stopped alone would leave the others waiting
        self.over = over[0]
        control.should_save = control.should_training_stop = over[0] or control.should_training_stop


def pause_if_unfinished(stage: Stage, state: Any, budget: TimeBudget) -> None:
    """Say that the training ended before its last step for want of time, and not since it no longer got better.

    Raises:
        RunPaused: it did.
    """
    if budget.over and state.global_step < state.max_steps:
        raise RunPaused(
            f"stage {stage.number} used up its max_minutes ({stage.settings.max_minutes:g}) and stopped at step "
            f"{state.global_step} of {state.max_steps}, where it left a checkpoint; the same command goes on from "
            "there."
        )


@dataclass(frozen=True)
class Split:
    """How a process takes its studies of an optimizer step."""

    micro_batch: int
    accumulation: int


def split_batch(settings: StageSettings, processes: int, at_most: int | None = None) -> Split:
    """Each process's share of an optimizer step's studies, in micro-batches of at most `at_most` studies.

    Args:
        settings: of the stage, with numbers; micro_batch is the largest micro-batch.
        processes: that share the step.
        at_most: what memory allows, if less.

    Raises:
        RadVisionError: the processes cannot share the step evenly.
    """
    whole = settings.step_size
    share, rest = divmod(whole, processes)
    if rest:
        raise RadVisionError(
            f"an optimizer step takes {whole} studies (micro_batch x accumulation), which {processes} processes cannot "
            "share evenly: start another number of processes, or change the stage's accumulation."
        )
    limit = min(share, settings.micro_batch, at_most or share)
    micro = max(size for size in range(1, limit + 1) if share % size == 0)
    return Split(micro, share // micro)


class MemoryBudget:
    """The micro-batch that fits, found by halving it whenever memory ends; kept in a file, so that it is found once.

    Args:
        stage: in whose work folder the file lies.
    """

    def __init__(self, stage: Stage) -> None:
        self.path, self.stage = stage.work / "memory.json", stage
        known: dict[str, Any] = {"at_most": None, "events": []}
        if self.path.is_file():
            known = read_json(self.path, {"at_most": int | None, "events": list})
        self.at_most: int | None = known["at_most"]
        self.events: list[dict[str, Any]] = known["events"]

    @property
    def split(self) -> Split:
        """What the next attempt should use."""
        return split_batch(self.stage.settings, process_count(), self.at_most)

    def reduce(self, problem: str) -> None:
        """Halve the micro-batch.

        Args:
            problem: what the allocator said.

        Raises:
            RadVisionError: one study does not fit; or several processes must be started anew with the smaller one.
        """
        before = self.split
        if before.micro_batch == 1:
            raise RadVisionError(
                f"stage {self.stage.number} ran out of memory with one study at a time ({problem}): "
                f"{open_room('planning.plan').what_to_change(self.stage.profile, self.stage.number)}"
            )
        self.at_most = before.micro_batch // 2
        after = self.split
        changed = {name: [getattr(before, name), getattr(after, name)] for name in ("micro_batch", "accumulation")}
        self.events.append({**changed, "problem": problem})
        write_json(self.path, {"at_most": self.at_most, "events": self.events})
        told = (
            f"stage {self.stage.number} ran out of memory with {before.micro_batch} studies at a time; now "
            f"{after.micro_batch}, accumulated {after.accumulation} times: an optimizer step takes the same studies"
        )
        if process_count() > 1:
            raise RadVisionError(f"{told}: give the same command again, it goes on from the last checkpoint.")
        logger.warning("%s", told)


def train_in_memory(
    memory: MemoryBudget, model: torch.nn.Module, attempt: Callable[[Split], dict[str, Any]]
) -> dict[str, Any]:
    """What `attempt` gives, tried with smaller micro-batches while memory ends.

    An attempt goes on from the last checkpoint; where there is none yet, from the weights that the model has now.

    Raises:
        RadVisionError: one study at a time does not fit.
    """
    trained = trained_tensors(model)
    start = {name: parameter.detach().cpu().clone() for name, parameter in trained.items()}
    while True:
        try:
            return attempt(memory.split)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            problem = first_line(error)
        # Not in the handler: there the error still holds the attempt's tensors.
        for name, parameter in trained.items():
            parameter.grad = None
            parameter.data.copy_(start[name])
        clear_device_cache(garbage_collection=True)
        memory.reduce(problem)
