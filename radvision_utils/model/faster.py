"""The same numbers in fewer passes over memory: patch embedding, windowed attention, LoRA, 4-bit weights.

Each function exchanges how some modules of one model compute; names, parameters and what is saved stay as they are.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import apply_rotary_pos_emb_vision

Windows = tuple[list[torch.Tensor], torch.Tensor]  # patches of the windows of each length, and the order to put back


@contextmanager
def computing(module: nn.Module, by: Callable[..., Any], method: str = "forward") -> Iterator[None]:
    """Within, the module computes `by` in place of its own method, whatever wraps the model around it."""
    before = vars(module).get(method)
    setattr(module, method, by)
    try:
        yield
    finally:
        delattr(module, method)
        if before is not None:
            setattr(module, method, before)


def compute_by(module: nn.Module, way: type) -> None:
    """Let one module compute by the `forward` of `way`, which finds that of the module's own class by `super()`.

    Its class is exchanged, because a function stored in `module.forward` would hold the module that holds it: a model
    with such a circle stays in memory until Python's garbage collector happens to run.
    """
    kind: Any = type(module)
    if not issubclass(kind, way):
        module.__class__ = _combined(way, kind)


@cache
def _combined(way: type, kind: type) -> type:
    return type(kind.__name__, (way, kind), {})


def patch_embedding_by_matmul(model: PreTrainedModel) -> None:
    """Compute the patch embedding as the matrix product that it is: its Conv3d has stride = kernel = one patch.

    Same weights, same result to rounding; a training step of the tiny model on a CPU takes a seventh of the time.
    """
    compute_by(model.model.visual.patch_embed, _ByMatmul)


class _ByMatmul:
    """Before `Qwen2_5_VisionPatchEmbed`."""

    proj: torch.nn.Conv3d

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        weight = self.proj.weight.flatten(1)
        return F.linear(pixels.to(weight.dtype), weight)


def attention_by_window_length(model: PreTrainedModel) -> None:
    """One attention call for all windows of a length, where transformers makes one for each window of each image.

    An image of 504 x 504 pixels has 25 windows of 64, 32 or 16 patches in each of the 7B's 28 windowed blocks, and 4
    blocks attend to it as a whole: 704 calls for one image and 704 more for each further one; here 88 for any number.
    """
    for block in model.model.visual.blocks:
        compute_by(block.attn, _ByWindowLength)


class _ByWindowLength:
    """Before `Qwen2_5_VLVisionAttention`."""

    qkv: torch.nn.Linear
    proj: torch.nn.Linear
    num_heads: int
    scaling: float

    def forward(
        self,
        hidden_states: torch.Tensor,
        cu_seqlens: torch.Tensor | Windows,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        **_: Any,
    ) -> torch.Tensor:
        """(patches, width) in and out; `cu_seqlens`: where windows begin and end, or what follows from that."""
        patches = hidden_states.shape[0]
        query, key, value = self.qkv(hidden_states).view(patches, 3, self.num_heads, -1).unbind(1)
        query, key = apply_rotary_pos_emb_vision(query, key, *position_embeddings)
        groups, order = _windows(cu_seqlens) if isinstance(cu_seqlens, torch.Tensor) else cu_seqlens
        attended = []
        for group in groups:
            # (windows, heads, patches of a window, width of a head)
            q, k, v = (part[group].transpose(1, 2) for part in (query, key, value))
            out = F.scaled_dot_product_attention(q, k, v, scale=self.scaling)
            attended.append(out.transpose(1, 2).flatten(0, 1))
        together = attended[0] if len(groups) == 1 else torch.cat(attended)[order]
        projected: torch.Tensor = self.proj(together.reshape(patches, -1))
        return projected


def _windows(cu_seqlens: Any) -> Windows:
    """Kept with the tensor, which all blocks of a pass are given: to read numbers off a card is to wait for it."""
    if not hasattr(cu_seqlens, "windows"):
        cu_seqlens.windows = _windows_by_length(tuple(cu_seqlens.tolist()), cu_seqlens.device)
    windows: Windows = cu_seqlens.windows
    return windows


@lru_cache(maxsize=64)  # two kinds of blocks, and as many batch sizes as a run has
def _windows_by_length(bounds: tuple[int, ...], device: torch.device) -> Windows:
    """Which patches form the windows of each length, and how to put the results back.

    Args:
        bounds: where each window begins, and the end of the last.

    Returns:
        For each length (windows, length) patch numbers; and for each patch its place among the groups' patches.
    """
    starts: dict[int, list[int]] = {}
    for start, end in itertools.pairwise(bounds):
        starts.setdefault(end - start, []).append(start)
    with torch.inference_mode(False):  # what is kept from writing reports must do for training too
        groups = [torch.tensor(first)[:, None] + torch.arange(length) for length, first in starts.items()]
        order = torch.argsort(torch.cat([group.flatten() for group in groups]))
        return [group.to(device) for group in groups], order.to(device)


@contextmanager
def compiled_layers(model: PeftModel, backend: str = "inductor") -> Iterator[None]:
    """Within, the decoder's layers and, where they train, the vision encoder's compute as compiled code.

    Layers of a kind share it, for batches of all sizes. Checkpointing stays around it. Without gradients they compute
    as before, and so does the decoder's last layer, which leaves out what no loss reads (`training.loss`).

    Args:
        backend: of `torch.compile`. What it cannot do is raised by the first pass.
    """
    base: Any = model.get_base_model()
    decoder = base.get_decoder().layers
    blocks = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer) and m not in decoder]
    training = [block for block in blocks if any(p.requires_grad for p in block.parameters())]
    layers: list[Any] = [*decoder[:-1], *training]
    compiled = torch.compile(_forward, backend=backend, dynamic=True)
    for layer in layers:
        compute_by(layer, _Compiled)
        layer.compiled = compiled
    try:
        yield
    finally:
        for layer in layers:
            layer.compiled = None
        torch.compiler.reset()


class _Compiled:
    """Before the class of a layer."""

    compiled: Callable[..., Any] | None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        compiled = self.compiled if torch.is_grad_enabled() else None
        if compiled is not None and isinstance(getattr(self, "attn", None), _ByWindowLength):  # which reads numbers
            kwargs["cu_seqlens"] = _windows(kwargs["cu_seqlens"])
        return (compiled or _forward)(self, *args, **kwargs)


def _forward(layer: Any, *args: Any, **kwargs: Any) -> Any:
    return super(_Compiled, layer).forward(*args, **kwargs)


def keep_dequantized(model: nn.Module) -> None:
    """Keep every 4-bit weight a second time, as the 16-bit numbers that bitsandbytes makes of it in each pass anew.

    The 4-bit weight stays what is stored and proved (`stage.weight_ledger`); its copy is no parameter and never saved.

    Args:
        model: with or without adapter, where it computes.
    """
    for layer in model.modules():
        if isinstance(layer, Linear4bit):
            weight: Any = layer.weight
            weight.dequantized = dequantize_4bit(weight.data, weight.quant_state)
            compute_by(layer, _ByDequantized)


class _ByDequantized:
    """Before bitsandbytes' `Linear4bit`."""

    weight: Any
    bias: torch.Tensor | None
    compute_dtype: torch.dtype

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., in) to (..., out)."""
        weight = self.weight.dequantized
        if weight.dtype != self.compute_dtype:  # a block kept in float32 has its weights made in float32
            output: torch.Tensor = super().forward(x)  # type: ignore[misc]
            return output
        bias = None if self.bias is None else self.bias.to(weight.dtype)
        return F.linear(x.to(weight.dtype), weight, bias).to(x.dtype)


def speed_up_lora(model: PeftModel) -> None:
    """Let every LoRA layer compute as above, and one that adds nothing compute nothing.

    In stages 1 and 2 that is the language model's: its B is zero until stage 3 trains it.

    Args:
        model: with gradients already given to what trains (`stage.select_stage`). Call it again after
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
        if torch.compiler.is_compiling():  # the compiler chooses its own passes, and none may write what it was given
            return (wide + F.linear(reduced, up.to(wide.dtype))).to(output.dtype)
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
