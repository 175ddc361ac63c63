"""What ends a training at once: a gradient norm that is no number, and the death of another process."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.utils import gather_object
from transformers import Trainer

from radvision_utils.config import RadVisionError
from radvision_utils.environment import process_count, process_rank

logger = logging.getLogger(__name__)

# What gloo and NCCL say when the process at the other end is gone.
_LOST_WORDS = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Timed out waiting", "NCCL")


class GuardedTrainer(Trainer):
    """transformers.Trainer that stops at a gradient norm which is no number, before a checkpoint can hold its harm."""

    uids: tuple[str, ...] = ()  # of the optimizer step at work

    def training_step(self, model: torch.nn.Module, inputs: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """As in transformers; remembers whose studies the step takes."""
        self.uids += tuple(inputs["uids"])
        return super().training_step(model, inputs, *args, **kwargs)

    def log(self, logs: dict[str, Any], *args: Any, **kwargs: Any) -> None:
        """As in transformers, which calls it after each optimizer step and before the step's checkpoint.

        Raises:
            RadVisionError: the gradient norm is infinite or no number.
        """
        norm = logs.get("grad_norm")
        if norm is not None and not math.isfinite(norm):
            self._judge(norm)
            logs = {**logs, "grad_norm": None}
        self.uids = ()
        super().log(logs, *args, **kwargs)

    def _judge(self, norm: float) -> None:
        step, scaler = self.state.global_step, self.accelerator.scaler
        # In float16 an overflow is how the scaler finds its scale: the step is skipped and the scale halved. Below a
        # scale of 1 it is no longer the scale that overflows.
        if self.accelerator.optimizer_step_was_skipped and scaler is not None and scaler.get_scale() >= 1:
            logger.info("step %d skipped: float16 gradients overflowed, loss scale now %g", step, scaler.get_scale())
            return
        uids = gather_object(list(self.uids)) if process_count() > 1 else self.uids
        raise RadVisionError(
            f"the gradient norm is {norm} at step {step} on studies {', '.join(uids)}: training stops and keeps the "
            "last checkpoint; try half the learning rate, or look at these studies."
        )


@contextmanager
def other_processes_watched(stage: int) -> Iterator[None]:
    """Say in one sentence that another process of the training is gone.

    Raises:
        RadVisionError: it is.
    """
    try:
        yield
    except RuntimeError as error:
        if process_count() == 1 or not any(words in str(error) for words in _LOST_WORDS):
            raise
        raise RadVisionError(
            f"stage {stage}: process {process_rank()} of {process_count()} lost another one, which was ended or failed "
            "(look above for its reason): all stop; the same command goes on from the last checkpoint, also with "
            "another --num_processes."
        ) from error
