"""LoRA computed with fewer passes over memory than PEFT's: same weights, same results, same adapter files.

PEFT computes W x + s * B(A x): it copies the output of a 4-bit layer, makes a second tensor as wide, scales it, and
adds it; the backward pass scales a gradient as wide again. Where r is 16 and the output 18,944 wide, that is more than
the arithmetic. Here s scales the r numbers of a token, and one matrix product adds B's part to the output in place.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import nn

from radvision_utils.model.components import compute_by


def speed_up_lora(model: PeftModel) -> None:
    """Let every LoRA layer compute as above, and one that adds nothing compute nothing.

    In stages 1 and 2 that is the language model's: its B is zero until stage 3 trains it.

    Args:
        model: with gradients already given to what trains (`training.stages.select_stage`). Call it again after
            weights have been exchanged from outside.
    """
    layers: Iterator[Any] = model.modules()
    for layer in filter(_is_plain, layers):
        compute_by(layer, _InFewerPasses)
        layer.idle = _is_idle(layer)


class _InFewerPasses:
    """Before `peft.tuners.lora.Linear` and `Linear4bit`."""

    idle: bool  # adds nothing

    def forward(self: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """(..., in) to (..., out)."""
        if args or kwargs or self.disable_adapters or self.merged:
            return super().forward(x, *args, **kwargs)  # type: ignore[misc]
        output: torch.Tensor = self.base_layer(x)
        if self.idle:
            return output
        (name,) = self.active_adapters
        up = self.lora_B[name].weight
        if not torch.is_autocast_enabled(x.device.type):  # which lets lora_A take x as it is
            x = x.to(up.dtype)
        reduced = self.lora_A[name](self.lora_dropout[name](x)) * self.scaling[name]
        wide = output.to(reduced.dtype)
        added: torch.Tensor = _AddUp.apply(wide, reduced, up.to(wide.dtype))
        return added.to(output.dtype)


class _AddUp(torch.autograd.Function):
    """(..., out) + (..., r) (out, r)^T to (..., out), in the memory of the first.

    autograd's own product for the gradient of B would have the wide tensor transposed; here the narrow one is.
    """

    @staticmethod
    def forward(ctx: Any, output: torch.Tensor, reduced: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(reduced, up)
        # Not marked as written: bitsandbytes hands out a view of its own, which autograd would let nobody write. No
        # layer keeps its output for the backward pass, and here nobody else has seen it yet.
        output.flatten(0, -2).addmm_(reduced.flatten(0, -2), up.t())
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, *slopes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        reduced, up = ctx.saved_tensors
        trains = ctx.needs_input_grad[2]  # not where LoRA is passed through: an earlier stage's, or for evidence
        slope_up = (reduced.flatten(0, -2).t() @ slopes[0].flatten(0, -2)).t() if trains else None
        return slopes[0], slopes[0] @ up, slope_up


def _is_plain(layer: Any) -> bool:
    """A linear layer with one adapter, and LoRA as in Hu et al. 2021: no DoRA, no bias of its own."""
    if not isinstance(layer, LoraLayer) or not isinstance(layer.get_base_layer(), nn.Linear):
        return False
    names = layer.active_adapters
    return len(names) == 1 and names[0] not in layer.lora_variant and not any(layer.lora_bias.values())


def _is_idle(layer: Any) -> bool:
    up = layer.lora_B[layer.active_adapters[0]].weight
    return not up.requires_grad and not bool(up.any())
