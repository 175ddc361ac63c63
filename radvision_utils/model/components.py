"""Which parameters belong to the vision encoder, the projector and the language model of a Qwen2.5-VL, and how to let
a part of it compute something else, for a while or for good."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

COMPONENTS = ("vision_encoder", "projector", "language_model")

# Full paths of the linear layers that carry LoRA. The patch embedding and the embeddings stay as they are.
VISION_LINEARS = r"model\.visual\.blocks\.\d+\.(attn\.(qkv|proj)|mlp\.(gate_proj|up_proj|down_proj))"
LANGUAGE_LINEARS = (
    r"model\.language_model\.layers\.\d+\.(self_attn\.(q_proj|k_proj|v_proj|o_proj)|mlp\.(gate_proj|up_proj|down_proj))"
)
PROJECTOR = "merger"


def component_of(name: str) -> str:
    """The component that a parameter or module name of the model, plain or inside a PEFT wrapper, belongs to.

    Raises:
        ValueError: the name belongs to no component of a Qwen2.5-VL.
    """
    if re.search(r"(^|\.)visual\.merger\.", name):
        return "projector"
    if re.search(r"(^|\.)visual\.", name):
        return "vision_encoder"
    if re.search(r"(^|\.)(language_model|lm_head)\.", name):
        return "language_model"
    raise ValueError(f"{name!r} is not a parameter of a Qwen2.5-VL")


def is_adapter(name: str) -> bool:
    """Whether a parameter of a PEFT model is part of the adapter: a LoRA matrix or the projector's trained copy."""
    return ".lora_A." in name or ".lora_B." in name or ".modules_to_save." in name


def trained_tensors(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that have gradients, by their names in the model."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def count_parameters(model: nn.Module) -> dict[str, int]:
    """Number of parameters of each component, those of an attached adapter included; works on `meta` tensors."""
    counts: Counter[str] = Counter(dict.fromkeys(COMPONENTS, 0))
    for name, parameter in model.named_parameters():
        # A 4-bit weight stores two numbers in a byte; its quantization state knows the true shape.
        state = getattr(parameter, "quant_state", None)
        counts[component_of(name)] += state.shape.numel() if state is not None else parameter.numel()
    return dict(counts)


@contextmanager
def computing(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Within, the module computes `forward` in place of its class's own, whatever wraps the model around it."""
    module.forward = forward
    try:
        yield
    finally:
        del module.forward


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
