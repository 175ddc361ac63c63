"""Does float16 hold this model's activations? Measure them block by block; keep a block near overflow in float32.

Cards before compute capability 8.0 (T4, V100) compute in float16, whose largest number is 65,504; Qwen2.5-VL was
trained in bfloat16, and its last vision block is reported to overflow for some image sizes.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import nn

from radvision_utils.environment import Device
from radvision_utils.model.base import core_of
from radvision_utils.model.faster import compute_by

logger = logging.getLogger(__name__)

LARGEST_FLOAT16 = 65504.0
MARGIN = 4.0  # a block nears overflow from a quarter of the largest number on: other images may be that much larger
_BLOCK = r"model\.(visual\.(modules_to_save\.default\.)?(blocks\.\d+|merger)|language_model\.layers\.\d+)"


@torch.no_grad()
def audit_fp16(model: nn.Module, batch: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The largest magnitude that enters or leaves any layer of each block, while the model computes a batch.

    Args:
        model: with or without adapter; call it within the autocast that it will run in.
        batch: the model's inputs.

    Returns:
        A row a block, in the order of computation: `block` (module name), `layer` (where it was, below the block),
        `largest` (inf where a number overflowed or was none), `share` (of the largest float16) and `near`.
    """
    blocks = {name: module for name, module in core_of(model).named_modules() if re.fullmatch(_BLOCK, name)}
    rows: dict[str, dict[str, Any]] = {}
    with ExitStack() as hooks:
        for name, block in blocks.items():
            for layer, module in block.named_modules():
                handle = module.register_forward_hook(partial(_note, rows, name, layer))
                hooks.callback(handle.remove)
        was_training = model.training
        model.eval()
        model(**batch, use_cache=False)
        model.train(was_training)
    for row in rows.values():
        row["share"] = row["largest"] / LARGEST_FLOAT16
        row["near"] = row["largest"] * MARGIN > LARGEST_FLOAT16
    return [rows[name] for name in blocks if name in rows]


def _note(
    rows: dict[str, dict[str, Any]], block: str, layer: str, module: nn.Module, inputs: tuple[Any, ...], output: Any
) -> None:
    row = rows.setdefault(block, {"block": block, "layer": "", "largest": 0.0})
    for value in (*inputs, *(output if isinstance(output, tuple) else (output,))):
        if isinstance(value, torch.Tensor) and value.is_floating_point() and value.numel():
            largest = value.detach().abs().max().item()
            if not largest <= row["largest"]:  # so that "not a number" counts as larger
                row["largest"], row["layer"] = largest if math.isfinite(largest) else math.inf, layer


def keep_in_float32(model: nn.Module, names: Sequence[str]) -> None:
    """Compute these blocks in float32, whatever autocast is in force: weights are upcast, the output stays float32.

    What follows then adds to a float32 residual, and its matrix products are in float16 as before.

    Args:
        model: with or without adapter, in the state in which `audit_fp16` named the blocks.
        names: of blocks.
    """
    for name in names:
        block = core_of(model).get_submodule(name)
        for module in block.modules():
            # 4-bit weights stay as they are and are expanded to what the layer computes in.
            if hasattr(module, "compute_dtype"):
                setattr(module, "compute_dtype", torch.float32)  # noqa: B010  (mypy takes it for a parameter)
            for parameter in module.parameters(recurse=False):
                if parameter.is_floating_point():
                    parameter.data = parameter.data.float()
        compute_by(block, _InFloat32)


class _InFloat32:
    """Before the class of a block."""

    def forward(self: Any, *inputs: Any, **options: Any) -> Any:
        device = next(value.device.type for value in inputs if isinstance(value, torch.Tensor))
        with torch.autocast(device, enabled=False):
            options = {name: _float(value) for name, value in options.items()}
            return super().forward(*(_float(value) for value in inputs), **options)  # type: ignore[misc]


def _float(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(_float(part) for part in value)
    return value.float() if isinstance(value, torch.Tensor) and value.is_floating_point() else value


def guard_fp16(model: nn.Module, batch: Mapping[str, Any], device: Device) -> list[str]:
    """Where the device computes in float16: audit, and keep in float32 what nears overflow, until nothing does.

    Args:
        model: with or without adapter.
        batch: the model's inputs, on its device.
        device: what it computes on.

    Returns:
        Names of the blocks now in float32; none on other devices.
    """
    if device.dtype != "float16":
        return []
    kept: list[str] = []
    while True:
        with device.autocast():
            rows = audit_fp16(model, batch)
        near = _next_blocks([row for row in rows if row["block"] not in kept])
        if not near:
            break
        keep_in_float32(model, near)
        kept += near
    largest = max(rows, key=lambda row: row["share"])
    told = f"the largest activation is {largest['largest']:.3g} in {largest['block']} (float16 ends at 65504)"
    logger.info("float16: %s; in float32 for safety: %s", told, ", ".join(kept) or "no block")
    return kept


def _next_blocks(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Those near overflow, up to the first that overflowed: what comes after it computed with no numbers."""
    near = []
    for row in rows:
        if row["near"]:
            near.append(row["block"])
        if math.isinf(row["largest"]):
            break
    return near
