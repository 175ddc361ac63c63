"""LoRA computed with fewer passes over memory than PEFT's: same weights, same results, same adapter files.

PEFT computes W x + s * B(A x): it copies the output of a 4-bit layer, makes a second tensor as wide, scales it, and
adds it; the backward pass scales a gradient as wide again. Where r is 16 and the output 18,944 wide, that is more than
the arithmetic. Here s scales the r numbers of a token, and one matrix product adds B's part to the output.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import nn


def speed_up_lora(model: PeftModel) -> None:
    """Let every LoRA layer compute as above, and one that adds nothing compute nothing.

    In stages 1 and 2 that is the language model's: its B is zero until stage 3 trains it.

    Args:
        model: with gradients already given to what trains (`training.stages.select_stage`). Call it again after
            weights have been exchanged from outside.
    """
    for layer in model.modules():
        if isinstance(layer, LoraLayer) and isinstance(layer.get_base_layer(), nn.Linear) and _is_plain(layer):
            layer.forward = partial(_forward, layer, _is_idle(layer))


def _forward(layer: Any, idle: bool, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    """`peft.tuners.lora.Linear.forward` and `Linear4bit.forward`: (..., in) to (..., out)."""
    if args or kwargs or layer.disable_adapters or layer.merged:
        return type(layer).forward(layer, x, *args, **kwargs)
    output: torch.Tensor = layer.base_layer(x)
    if idle:
        return output
    (name,) = layer.active_adapters
    up = layer.lora_B[name].weight
    converts = torch.is_autocast_enabled(x.device.type)  # brings all factors to one format by itself
    x, result = (x, output) if converts else (x.to(up.dtype), output.to(up.dtype))
    reduced = layer.lora_A[name](layer.lora_dropout[name](x)) * layer.scaling[name]
    result = torch.addmm(result.flatten(0, -2), reduced.flatten(0, -2), up.t())
    return result.view_as(output).to(output.dtype)


def _is_plain(layer: Any) -> bool:
    """One adapter, and LoRA as in Hu et al. 2021: no DoRA, no bias of its own."""
    names = layer.active_adapters
    return len(names) == 1 and names[0] not in layer.lora_variant and not any(layer.lora_bias.values())


def _is_idle(layer: Any) -> bool:
    up = layer.lora_B[layer.active_adapters[0]].weight
    return not up.requires_grad and not bool(up.any())
