"""Where the seconds of a step go, by kind of operation: what decides how fast a step can be."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

PRODUCTS, ATTENTION, DEQUANTIZED = "matrix products", "attention", "4-bit weights, backward"
ELEMENTWISE, REST = "element by element", "the rest"
KINDS = (PRODUCTS, ELEMENTWISE, ATTENTION, DEQUANTIZED, REST)
_PRODUCTS = ("mm", "addmm", "addmm_", "bmm", "baddbmm", "convolution", "gemm_4bit")


class Breakdown(TorchDispatchMode):
    """Within, adds up the seconds of every operation that torch carries out on the CPU.

    torch.profiler would tell more, but what it records comes to lie between the tensors: the step that it looks at has
    to fetch memory anew, which takes as long as the step.

    Attributes:
        seconds: by kind. The product of a 4-bit layer's forward pass is one operation with its dequantization.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seconds = dict.fromkeys(KINDS[:-1], 0.0)

    def __torch_dispatch__(
        self, func: Any, types: Sequence[Any], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        began = time.perf_counter()
        result = func(*args, **(kwargs or {}))
        self.seconds[kind_of(func.overloadpacket.__name__)] += time.perf_counter() - began
        return result

    def of(self, whole: float) -> dict[str, float]:
        """Seconds by kind of a step that took `whole` seconds: the rest is Python, and images where they are made."""
        return self.seconds | {REST: whole - sum(self.seconds.values())}


def kind_of(operation: str) -> str:
    """The kind of an operation by its name, such as `addmm` or `dequantize_4bit`."""
    if operation in _PRODUCTS:
        return PRODUCTS
    if "scaled_dot_product" in operation:
        return ATTENTION
    return DEQUANTIZED if operation.startswith("dequantize") else ELEMENTWISE
