"""Merge an adapter into the 16-bit files of its base, tensor by tensor: no model is built, no card is needed.

The result has the base's files, key names and shapes (the hub layout of Qwen2.5-VL), so whatever loads the base loads
it. One tensor is worked on at a time: at the 7B's widths that took 0.5 GiB of memory, besides pages of the files that
are read, which the system takes back when it needs them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft.utils.other import get_pattern_key
from safetensors import safe_open
from safetensors.torch import load_file

from radvision_utils.config import RadVisionError
from radvision_utils.files import checked, read_json
from radvision_utils.model.base import WEIGHTS, read_lora

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_SIXTEEN_BIT = {"BF16": torch.bfloat16, "F16": torch.float16}
_PREFIX = "base_model.model."  # PEFT's wrapper around every module name


@dataclass(frozen=True)
class LowRank:
    """What LoRA adds to a weight of the base: `scale * b @ a`."""

    a: torch.Tensor  # (rank, inputs)
    b: torch.Tensor  # (outputs, rank)
    scale: float

    @property
    def shape(self) -> torch.Size:
        return torch.Size((len(self.b), self.a.shape[1]))


def merge_into_files(base: Path, adapter: Path, to: Path) -> dict[str, int]:
    """Write the base's weights with the adapter merged in, in 16 bits, into the folder `to`, which must exist.

    Each product is made in float32 and rounded once to the base's own format (float32 bases become bfloat16).

    Returns:
        How many tensors were merged, replaced and copied, and the bytes written.

    Raises:
        RadVisionError: the base has no safetensors files or is quantized, or the adapter does not fit it.
    """
    files, changes = _weight_files(base), _changes(adapter)
    counts = {"merged": 0, "replaced": 0, "copied": 0, "bytes": 0}
    weight_map: dict[str, str] = {}

    def merged(weights: Any, key: str) -> torch.Tensor:
        change = changes.pop(module_name(key), None)
        counts["copied" if change is None else "merged" if isinstance(change, LowRank) else "replaced"] += 1
        return _apply(change, weights.get_tensor(key), key)

    for file in files:
        with safe_open(str(base / file), framework="pt") as weights:
            layout = _layout(weights, base / file)
            tensors = (merged(weights, key).to(_SIXTEEN_BIT[kind]) for key, (kind, _) in layout.items())
            counts["bytes"] += _write_safetensors(to / file, layout, tensors)
        weight_map |= {hub_name(key): file for key in layout}
    if changes:
        raise RadVisionError(
            f"the adapter in {adapter} does not fit the base in {base}: {sorted(changes)[0]} is not there; "
            "give the base that it was trained on."
        )
    if len(files) > 1:
        index = {"metadata": {"total_size": counts["bytes"]}, "weight_map": dict(sorted(weight_map.items()))}
        (to / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return counts


def module_name(key: str) -> str:
    """The parameter name in transformers 5 of a key on disk: `visual.x` is `model.visual.x` in the model."""
    if key.startswith(("model.visual.", "model.language_model.", "lm_head.")):
        return key
    if key.startswith("visual."):
        return "model." + key
    return re.sub(r"^model\.", "model.language_model.", key)


def hub_name(key: str) -> str:
    """The key in the layout of the Qwen2.5-VL checkpoints on the hub, which transformers, vLLM and llama.cpp read."""
    return re.sub(r"^model\.language_model\.", "model.", re.sub(r"^model\.visual\.", "visual.", key))


def base_bytes(base: Path) -> int:
    """Bytes of the merged weights, to see beforehand whether they fit the disk."""
    return sum((base / file).stat().st_size for file in _weight_files(base))


def _weight_files(base: Path) -> list[str]:
    if "quantization_config" in read_json(base / "config.json", dict):
        raise RadVisionError(
            f"the base in {base} is stored quantized, and merging into quantized weights loses the adapter: "
            "give its 16-bit version with model.base."
        )
    if (base / INDEX).is_file():
        return sorted(set(read_json(base / INDEX, {"weight_map": dict})["weight_map"].values()))
    if (base / SINGLE).is_file():
        return [SINGLE]
    raise RadVisionError(f"the base in {base} has no {SINGLE}: an adapter is merged into safetensors files only.")


def _changes(adapter: Path) -> dict[str, LowRank | torch.Tensor]:
    """By parameter name of the base: what the adapter adds to it, or puts in its place."""
    settings, tensors = read_lora(adapter), load_file(checked(adapter / WEIGHTS))
    alphas, changes = settings.alpha_pattern or {}, dict[str, LowRank | torch.Tensor]()
    for name, tensor in tensors.items():
        module = name.removeprefix(_PREFIX)
        if ".lora_A." in name:
            linear = module.split(".lora_A.")[0]
            alpha = alphas.get(get_pattern_key(list(alphas), linear), settings.lora_alpha)
            b = tensors[name.replace(".lora_A.", ".lora_B.")]
            changes[f"{linear}.weight"] = LowRank(tensor, b, alpha / len(tensor))
        elif ".lora_B." not in name:
            changes[module] = tensor
    return changes


def _apply(change: LowRank | torch.Tensor | None, weight: torch.Tensor, key: str) -> torch.Tensor:
    if change is not None and change.shape != weight.shape:
        raise RadVisionError(
            f"the adapter does not fit the base: {key} is {tuple(weight.shape)} there and {tuple(change.shape)} in the "
            "adapter; give the base that it was trained on."
        )
    if isinstance(change, LowRank):
        return torch.addmm(weight.float(), change.b.float(), change.a.float(), alpha=change.scale)
    return weight if change is None else change


def _layout(weights: Any, path: Path) -> dict[str, tuple[str, list[int]]]:
    """Format and shape of each tensor as it will be written, by its key on disk."""
    layout = {}
    for key in weights.keys():  # noqa: SIM118
        part = weights.get_slice(key)
        kind = part.get_dtype()
        if kind not in (*_SIXTEEN_BIT, "F32"):
            raise RadVisionError(f"{key} in {path} is {kind}: an adapter is merged into 16- or 32-bit weights only.")
        layout[key] = (kind if kind in _SIXTEEN_BIT else "BF16", part.get_shape())
    return layout


def _write_safetensors(path: Path, layout: Mapping[str, tuple[str, list[int]]], tensors: Iterable[torch.Tensor]) -> int:
    """Write 16-bit tensors one after the other (the library's own writer wants them all in memory at once).

    The format: length of the header as 8 bytes, little endian; the header as JSON, padded by spaces; the data.

    Args:
        path: the file.
        layout: format and shape by key on disk.
        tensors: in the layout's order, each made when its turn comes.

    Returns:
        Bytes of the data.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for key, (kind, shape) in layout.items():
        start, end = end, end + 2 * torch.Size(shape).numel()
        header[hub_name(key)] = {"dtype": kind, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors:
            stream.write(tensor.contiguous().view(torch.int16).numpy().data)
    return end
