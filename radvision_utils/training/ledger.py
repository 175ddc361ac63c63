"""The proof that a stage moved its own weights and no others: a fingerprint of every component before and after.

It is computed where the weights lie, so that no gigabytes travel to the host.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from radvision_utils.config import RadVisionError
from radvision_utils.model.components import COMPONENTS, component_of, is_adapter
from radvision_utils.training.stages import STAGES

_WORDS = 1 << 18  # of 8 bytes at a time: 2 MiB, and as much again for their places
# SplitMix64 (Steele et al. 2014): its step and the shifts and factors of its finalizer, as signed numbers.
_STEP = 0x9E3779B97F4A7C15 - (1 << 64)
_ROUNDS = ((30, 0xBF58476D1CE4E5B9 - (1 << 64)), (27, 0x94D049BB133111EB - (1 << 64)), (31, 1))


def weight_ledger(model: nn.Module) -> dict[str, str]:
    """Fingerprint (16 hex digits) of each component's base and adapter weights: `{"projector.adapter": ...}`.

    Names, shapes and number formats count, and the quantization state of 4-bit weights. The digits are the same on
    every device.
    """
    sums: dict[str, list[torch.Tensor]] = {
        f"{component}.{part}": [] for component in COMPONENTS for part in ("base", "adapter")
    }
    for name, parameter in model.named_parameters():
        key = f"{component_of(name)}.{'adapter' if is_adapter(name) else 'base'}"
        sums[key] += [fingerprint(label, tensor) for label, tensor in _stored(name, parameter)]
    # Read only now: to wait for each sum would leave a card idle in between.
    return {key: f"{sum(value.item() for value in values) % (1 << 64):016x}" for key, values in sums.items()}


def fingerprint(label: str, tensor: torch.Tensor) -> torch.Tensor:
    """A sum modulo 2^64 over the tensor's bytes, their places and the label: int64, no dimension, on its device.

    SplitMix64's finalizer turns each word of 8 bytes plus a number of its place into a term of the sum. It is one to
    one, so a change within one word always changes the sum. Changes in several words cancel only by chance, about once
    in 2^64. Someone who means to forge a sum can: it guards against faults, not against people.

    Args:
        label: other labels give other places, so that two tensors may not change theirs.
        tensor: of any shape and format. One that is not contiguous is copied.
    """
    data = tensor.detach().reshape(-1)
    kind = f"{label} {tensor.dtype} {tuple(tensor.shape)}"
    start = int.from_bytes(hashlib.sha256(kind.encode()).digest()[:8], "little", signed=True)
    total = torch.full((), start, dtype=torch.int64, device=data.device)
    for number, chunk in enumerate(data.split(8 * _WORDS // tensor.element_size())):
        words = torch.zeros(-(-chunk.nbytes // 8), dtype=torch.int64, device=data.device)
        words.view(tensor.dtype)[: chunk.numel()] = chunk
        places = torch.arange(words.numel(), device=data.device).add_(number * _WORDS)
        words += places.mul_(_STEP).add_(start)
        for shift, factor in _ROUNDS:
            # torch shifts the sign along; the mask makes the shift a logical one, without which nothing is one to one.
            words ^= torch.bitwise_right_shift(words, shift, out=places).bitwise_and_((1 << (64 - shift)) - 1)
            words *= factor
        total += words.sum()
    return total


def _stored(name: str, parameter: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """A parameter's tensors with their labels: itself, and of a 4-bit weight what it takes to expand it."""
    yield name, parameter
    state = getattr(parameter, "quant_state", None)
    while state is not None:
        name += f" {state.quant_type} {state.blocksize} {state.dtype} {state.shape}"
        for part in ("absmax", "code", "offset"):
            tensor = getattr(state, part)
            if tensor is not None:
                yield f"{name} {part}", tensor
        state = state.state2


def check_ledger(before: dict[str, str], after: dict[str, str], number: int) -> list[str]:
    """Which parts moved.

    Raises:
        RadVisionError: something else than the stage's part of the adapter moved, or that did not.
    """
    moved = [key for key in before if before[key] != after[key]]
    expected = [f"{STAGES[number].component}.adapter"]
    if not moved:
        raise RadVisionError(
            f"stage {number} has changed nothing, and its result is not kept. If it had a single optimizer step, the "
            f"learning rate of its warm-up was still 0: train longer, or set stage{number}.warmup_ratio=0. "
            "Otherwise please report this with your library versions."
        )
    if moved != expected:
        raise RadVisionError(
            f"stage {number} should have changed {expected[0]} only, but {', '.join(moved)} changed: "
            "its result is not kept; please report this with your library versions."
        )
    return moved
