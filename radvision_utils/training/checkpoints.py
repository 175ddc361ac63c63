"""Checkpoints that are whole, and the folder where a stage is made until it is finished.

A checkpoint holds what the stage trains, not the whole adapter: the rest is in the adapter that the stage began with.
transformers writes the files of a checkpoint one after the other; killed in between, it leaves one that looks like any
other. Here a mark with the size of every file is written last, and a checkpoint without its mark is not used.
"""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import TrainerCallback, TrainerState

from radvision_utils.config import RadVisionError
from radvision_utils.model.components import trained_tensors
from radvision_utils.runs import read_json, sync_folder, write_json, write_text

logger = logging.getLogger(__name__)

MARK = "whole.json"
STATE = "trainer_state.json"
TRAINED = "trained.safetensors"


class CheckpointMark(TrainerCallback):
    """Marks a checkpoint as whole when every process has written its part of it."""

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        args.distributed_state.wait_for_everyone()
        if state.is_world_process_zero:
            mark_whole(Path(args.output_dir) / f"checkpoint-{state.global_step}")


def mark_whole(folder: Path) -> None:
    """Write the mark of a checkpoint whose files are all there, once the disk holds them."""
    sync_folder(folder)
    write_json(folder / MARK, {path.name: path.stat().st_size for path in sorted(folder.iterdir())})


def is_whole(folder: Path) -> bool:
    """Whether a checkpoint was written to its end and has lost nothing since."""
    try:
        sizes = json.loads((folder / MARK).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return all((folder / name).is_file() and (folder / name).stat().st_size == size for name, size in sizes.items())


def last_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint, or None."""
    return max(filter(is_whole, folder.glob("checkpoint-*")), key=_step_of, default=None)


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def start_or_resume(folder: Path, key: str, force: bool) -> None:
    """Leave whole checkpoints of this very stage in the folder where it is made, and nothing of another."""
    marker = folder / "key.txt"
    if force or not marker.is_file() or marker.read_text(encoding="utf-8") != key:
        shutil.rmtree(folder, ignore_errors=True)
        write_text(marker, key)
    for checkpoint in (folder / "checkpoints").glob("checkpoint-*"):
        if not is_whole(checkpoint):
            logger.info("%s was not written to its end and is removed", checkpoint.name)
            shutil.rmtree(checkpoint)


def finished_state(checkpoint: Path | None) -> TrainerState | None:
    """The state in a checkpoint after the last step, which has nothing left to train; else None."""
    if checkpoint is None:
        return None
    state = read_json(checkpoint / STATE)
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
