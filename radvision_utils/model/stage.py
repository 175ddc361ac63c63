"""What each of the three stages trains, and the proofs that it trains that and nothing else."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from bitsandbytes.functional import dequantize_4bit
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import nn
from torch.distributed.tensor import DTensor
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from radvision_utils.config import RadVisionError
from radvision_utils.model.base import COMPONENTS, LABEL_HEAD, component_of, is_adapter, trained_tensors
from radvision_utils.runs import Stage


def select_stage(model: PeftModel, stage: Stage) -> list[str]:
    """Give gradients to exactly the stage's part of the adapter, and dropout to its LoRA alone.

    Returns:
        Names of the tensors that will train.
    """
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer):
            rate = stage.settings.lora_dropout if component_of(name + ".") == stage.component else 0.0
            for adapter in module.lora_dropout:
                module.lora_dropout[adapter] = nn.Dropout(rate) if rate else nn.Identity()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(is_adapter(name) and component_of(name) == stage.component)
    return list(trained_tensors(model))


def checkpoint_layers(model: nn.Module, stage: Stage, layers: int | None) -> None:
    """Let layers compute their activations again in the backward pass instead of keeping them.

    transformers' own switch takes all layers or every n-th, those of a frozen vision encoder too. Since 5.24 it also
    makes what enters the vision encoder require gradients: stages 2 and 3 would go back through all of it for nothing.

    Args:
        model: in whatever wrapper.
        stage: whose settings say so; the vision encoder's blocks are checkpointed where they train.
        layers: of the language model, counted from the first; None: all; 0: none at all. The first ones, because
            what the last ones keep is used up before the first are computed again.
    """
    seen = 0
    for name, module in model.named_modules():
        if not isinstance(module, GradientCheckpointingLayer):
            continue
        if component_of(name + ".") == "vision_encoder":
            chosen = stage.component == "vision_encoder" and layers != 0
        else:
            chosen, seen = layers is None or seen < layers, seen + 1
        module.gradient_checkpointing = chosen
        # Re-entrant checkpointing gives a LoRA whose inputs need no gradient (stage 1's first block) none at all.
        module._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)


def assert_gradients(model: nn.Module, stage: Stage) -> None:
    """After a backward pass: every tensor of the stage, and of a label head, has a gradient, no other tensor has one.

    Re-entrant checkpointing, a frozen input or a wrong target pattern would leave LoRA untrained without a word.

    Raises:
        RadVisionError: it is not so; the sentence names the first such tensor.
    """
    for name, parameter in model.named_parameters():
        belongs = name.startswith(LABEL_HEAD) or (is_adapter(name) and component_of(name) == stage.component)
        if belongs != (parameter.grad is not None):
            what = "has no gradient" if belongs else "has a gradient"
            raise RadVisionError(
                f"stage {stage.number} trains the {stage.title} only, but after the first batch {name} {what}: "
                "this is a fault of the set-up, not of the data; please report it with your library versions."
            )


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
    """A parameter's tensors with their labels: itself, and of a 4-bit weight what it takes to expand it.

    Its dequantized copy counts where it is no longer that: it would be computed with.
    """
    # Put together from all processes' shares, one at a time: the digits are those of a process alone.
    yield name, parameter.full_tensor() if isinstance(parameter, DTensor) else parameter
    state, copy = getattr(parameter, "quant_state", None), getattr(parameter, "dequantized", None)
    if copy is not None and not torch.equal(copy, dequantize_4bit(parameter.data, state)):
        yield f"{name} dequantized", copy
    while state is not None:
        name += f" {state.quant_type} {state.blocksize} {state.dtype} {state.shape}"
        for part in ("absmax", "code", "offset"):
            tensor = getattr(state, part)
            if tensor is not None:
                yield f"{name} {part}", tensor
        state = state.state2


def check_ledger(before: dict[str, str], after: dict[str, str], stage: Stage) -> list[str]:
    """Which parts moved.

    Raises:
        RadVisionError: something else than the stage's part of the adapter moved, or that did not.
    """
    moved = [key for key in before if before[key] != after[key]]
    expected = [f"{stage.component}.adapter"]
    if not moved:
        raise RadVisionError(
            f"stage {stage.number} has changed nothing, and its result is not kept. If it had a single optimizer step, "
            f"the learning rate of its warm-up was still 0: train longer, or set {stage.step}.warmup_ratio=0, with "
            "--force. Otherwise please report this with your library versions."
        )
    if moved != expected:
        raise RadVisionError(
            f"stage {stage.number} should have changed {expected[0]} only, but {', '.join(moved)} changed: "
            "its result is not kept; please report this with your library versions."
        )
    return moved
