"""What a plan is made of: the sizes of a Qwen2.5-VL, the lengths of a sample, the card, the studies. Knows no torch."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from radvision_utils.config import PROMPT, ModelSettings, Profile, RadVisionError
from radvision_utils.files import read_json
from radvision_utils.runs import RunFolder

_MODEL = Path(__file__).resolve().parent.parent / "model"
# The report prompt with its chat template, without the image's tokens, counted with Qwen's vocabulary.
_TEXT_TOKENS = 58
_OPEN_I = {"train": 2069, "validation": 296, "test": 590}  # the split of R2Gen
# Of the drawn; the rest is dropped: `summary.json` of a default run.
_PHANTOM_SPLIT = {"train": 0.75, "validation": 0.11, "test": 0.09}
# Mean of the 3,331 Open-I reports with findings and impression, in the target's format, with Qwen's vocabulary.
TYPICAL_REPORT = 71
_BANDWIDTH_SHARE = 0.6  # of a card's bandwidth that reading weights and dequantizing reach: assumed
_BYTES_PER_PIXEL = 0.6  # of a stored PNG: 0.56 in a default run


@dataclass(frozen=True)
class VisionShape:
    """The vision encoder: `depth` blocks of `width`, patches of `patch` pixels, `merge` x `merge` to a token."""

    depth: int
    width: int
    inner: int
    heads: int
    patch: int
    merge: int
    window: int  # pixels
    whole_image: tuple[int, ...]  # blocks that attend to the whole image instead of windows
    pixel_values: int  # of one patch: channels x two equal frames x patch x patch

    def linears(self) -> list[tuple[int, int]]:
        """(inputs, outputs) of a block's linear layers with LoRA: qkv, proj, gate, up, down."""
        width, inner = self.width, self.inner
        return [(width, 3 * width), (width, width), (width, inner), (width, inner), (inner, width)]

    @property
    def block_parameters(self) -> int:
        """Weights, biases and the two norms of one block."""
        return sum(a * b + b for a, b in self.linears()) + 2 * self.width


@dataclass(frozen=True)
class LanguageShape:
    """The language model: `depth` decoder layers of `width`, `heads` of `head`, fewer of them for keys and values."""

    depth: int
    width: int
    inner: int
    heads: int
    key_heads: int
    vocabulary: int
    tied: bool

    @property
    def head(self) -> int:
        """Width of one attention head."""
        return self.width // self.heads

    def linears(self) -> list[tuple[int, int]]:
        """(inputs, outputs) of a layer's linear layers, all with LoRA: q, k, v, o, gate, up, down."""
        width, inner, keys = self.width, self.inner, self.key_heads * self.head
        attention = [(width, width), (width, keys), (width, keys), (width, width)]
        return [*attention, (width, inner), (width, inner), (inner, width)]

    @property
    def linear_weights(self) -> int:
        """Weights of all layers' linear layers: what is 4-bit in the 7B."""
        return self.depth * sum(a * b for a, b in self.linears())

    @property
    def other_weights(self) -> int:
        """Biases of q, k, v, and the norms."""
        layer = self.width + 2 * self.key_heads * self.head + 2 * self.width
        return self.depth * layer + self.width

    @property
    def embeddings(self) -> int:
        """The embedding and the head over the vocabulary: one matrix where they are tied."""
        return self.vocabulary * self.width * (1 if self.tied else 2)


@dataclass(frozen=True)
class Shape:
    """A whole model."""

    vision: VisionShape
    language: LanguageShape

    @property
    def merger_linears(self) -> list[tuple[int, int]]:
        """(inputs, outputs) of the projector's two linear layers, both with bias."""
        joined = self.vision.width * self.vision.merge**2
        return [(joined, joined), (joined, self.language.width)]

    @property
    def projector_parameters(self) -> int:
        """All weights of the projector (merger)."""
        return sum(a * b + b for a, b in self.merger_linears) + self.vision.width

    @property
    def patch_embedding(self) -> int:
        return self.vision.pixel_values * self.vision.width

    @property
    def vision_parameters(self) -> int:
        """Blocks and patch embedding."""
        return self.vision.depth * self.vision.block_parameters + self.patch_embedding

    @property
    def parameters(self) -> int:
        language = self.language.linear_weights + self.language.other_weights + self.language.embeddings
        return self.vision_parameters + self.projector_parameters + language

    def adapter_tensors(self, profile: Profile) -> dict[int, list[int]]:
        """Numbers in each trained tensor, by the stage that trains it: LoRA matrices, and what trains in full."""

        def lora(linears: list[tuple[int, int]], depth: int, rank: int) -> list[int]:
            return [rank * size for pair in linears for size in pair] * depth

        projector = [size for a, b in self.merger_linears for size in (a * b, b)] + [self.vision.width]
        encoder = lora(self.vision.linears(), self.vision.depth, profile.stage1.lora_rank)
        if profile.stage1.train == "full":
            encoder = [self.vision.block_parameters] * self.vision.depth + [self.patch_embedding]
        return {
            1: encoder,
            2: projector,
            3: lora(self.language.linears(), self.language.depth, profile.stage3.lora_rank),
        }


@dataclass(frozen=True)
class Lengths:
    """Tokens of one training sample.

    Attributes:
        image: visual tokens.
        text: prompt and chat template, without the image.
        report: with its end mark.
    """

    image: int
    text: int
    report: int

    @property
    def total(self) -> int:
        """Tokens that go through the language model."""
        return self.image + self.text + self.report


def longest(profile: Profile) -> Lengths:
    """A sample as long as the profile allows: what memory must be planned for."""
    text = round(_TEXT_TOKENS * len(profile.model.prompt) / len(PROMPT))
    return Lengths(profile.model.visual_tokens, text, profile.model.max_report_tokens)


def read_shape(settings: ModelSettings) -> Shape:
    """The model's sizes: the embedded tiny base, a folder's config.json, or the 7B's for a hub id.

    A hub id is taken to be of the architecture of Qwen2.5-VL-7B, as Lingshu-7B is; nothing is downloaded.

    Raises:
        RadVisionError: the folder has no config.json, or it is not one of a Qwen2.5-VL.
    """
    if settings.base == "tiny":
        path = _MODEL / "tiny_base" / "config.json"
    elif Path(settings.base).is_dir():
        path = Path(settings.base) / "config.json"
    else:
        path = _MODEL / "qwen2_5_vl_7b.json"
    if not path.is_file():
        raise RadVisionError(f"{path} does not exist: model.base must be a folder with a model's config.json.")
    state = path.stat()
    return _shape_in(path, state.st_size, state.st_mtime_ns)


@cache  # a plan tries hundreds of settings; a base may be made anew meanwhile
def _shape_in(path: Path, size: int, modified: int) -> Shape:
    """The sizes in a config.json, in the hub's flat layout or in that of transformers 5."""
    try:
        config = read_json(path, dict)
        text, vision = config.get("text_config", config), config["vision_config"]
        return Shape(
            VisionShape(
                depth=vision["depth"],
                width=vision["hidden_size"],
                inner=vision["intermediate_size"],
                heads=vision["num_heads"],
                patch=vision["patch_size"],
                merge=vision["spatial_merge_size"],
                window=vision["window_size"],
                whole_image=tuple(vision["fullatt_block_indexes"]),
                pixel_values=3 * vision["temporal_patch_size"] * vision["patch_size"] ** 2,
            ),
            LanguageShape(
                depth=text["num_hidden_layers"],
                width=text["hidden_size"],
                inner=text["intermediate_size"],
                heads=text["num_attention_heads"],
                key_heads=text["num_key_value_heads"],
                vocabulary=text["vocab_size"],
                tied=config.get("tie_word_embeddings", text.get("tie_word_embeddings", False)),
            ),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise RadVisionError(f"{path} is not the configuration of a Qwen2.5-VL ({error!r} is missing).") from error


@dataclass(frozen=True)
class Card:
    """A graphics card.

    Attributes:
        title: its name.
        usable_gib: what torch can have of its memory.
        peak_tflops: of dense 16-bit products; 0: not known.
        bandwidth_gbs: of memory, GB/s; 0: not known.
        dtype: number format of training.
        share: of the peak that training is assumed to keep.
        why: the reason for `share`.
        count: such cards side by side: each trains its share of every optimizer step; memory is of each.
    """

    title: str
    usable_gib: float
    peak_tflops: float = 0.0
    bandwidth_gbs: float = 0.0
    dtype: str = "float16"
    share: float = 0.0
    why: str = ""
    count: int = 1

    def seconds(self, tflop: float) -> float:
        """That products take; NaN where the card's speed is not known, as what is computed from it."""
        return tflop / (self.peak_tflops * self.share) if self.peak_tflops else math.nan

    def reading_seconds(self, gigabytes: float) -> float:
        """That moving so much of its memory takes; NaN where its bandwidth is not known."""
        return gigabytes / (self.bandwidth_gbs * _BANDWIDTH_SHARE) if self.bandwidth_gbs else math.nan


@cache
def cards() -> dict[str, Card]:
    """The cards of cards.json by their short names."""
    values: dict[str, Any] = read_json(Path(__file__).with_name("cards.json"))
    return {name: Card(**value) for name, value in values.items() if not name.startswith("_")}


def open_card(gpu: str = "t4", gib: float | None = None) -> Card:
    """A card by its short name ("t4", "RTX 4090", "T4 x2"), or any card with so many GiB.

    Raises:
        RadVisionError: there is no such card, or the memory is no sensible number.
    """
    if gib is not None:
        if not 0 < gib <= 1024:
            raise RadVisionError(f"a card with {gib:g} GiB does not exist: give its memory in GiB, such as --gib 16.")
        return Card(f"a card with {gib:g} GiB", gib)
    name = re.sub(r"nvidia|geforce|tesla|rtx|[\s_-]", "", gpu.lower())
    several = re.fullmatch(r"(.+)x([2-9])", name)
    name, count = (several[1], int(several[2])) if several else (name, 1)
    if name not in cards():
        raise RadVisionError(
            f"card {gpu!r} is not known: choose one of {', '.join(cards())}, two of them as 't4 x2', or give --gib."
        )
    card = cards()[name]
    return replace(card, title=f"{count} x {card.title}", count=count) if several else card


def find_card(title: str) -> Card | None:
    """The card that `environment.Device.title` names, such as "Tesla T4, 14.6 GiB", with the memory that it has.

    Its speed is unknown where it is none of ours. None: the title is not that of a card.
    """
    parts = re.fullmatch(r"(.*), ([\d.]+) GiB", title)
    if parts is None:
        return None
    name, gib = parts[1], float(parts[2])
    words = re.split(r"[\s-]+", name.lower())
    laptop = "laptop" in words  # slower than the card of the same number
    known = next((card for short, card in cards().items() if short in words and not laptop), None)
    return replace(known, title=name, usable_gib=gib) if known else Card(name, gib)


def typical(longest: Lengths) -> Lengths:
    """A sample with a report of usual length, for sums over a whole run."""
    return replace(longest, report=min(TYPICAL_REPORT, longest.report))


def study_counts(profile: Profile) -> dict[str, int]:
    """Studies by split: of the prepared data where they are, else what the source is known to give."""
    path = RunFolder.of(profile).data / "summary.json"
    if path.is_file():
        shape = {"counts": {"splits": dict.fromkeys(_PHANTOM_SPLIT, int)}}
        counts: dict[str, int] = read_json(path, shape)["counts"]["splits"]
        return counts
    known = _OPEN_I
    if profile.data.source == "phantom":
        known = {split: round(share * profile.data.phantoms) for split, share in _PHANTOM_SPLIT.items()}
    whole = sum(known.values())
    share = min(1.0, (profile.data.limit or whole) / whole)
    return {split: round(share * count) for split, count in known.items()}


def disk_gib(profile: Profile) -> dict[str, float]:
    """GiB on disk by what they are for; a source of studies that is downloaded comes on top."""
    shape, counts = read_shape(profile.model), study_counts(profile)
    tensors = shape.adapter_tensors(profile)
    adapter = 4 * sum(map(sum, tensors.values()))
    trained = max(sum(sizes) for sizes in tensors.values())
    embedded = profile.model.base == "tiny" or Path(profile.model.base).is_dir()
    features = 0
    if any(profile.keeps_features(stage, counts["train"]) for stage in (2, 3)):
        cached = counts["train"] + min(counts["validation"], profile.stage2.validation_studies)
        features = cached * profile.model.visual_tokens * shape.vision.merge**2 * shape.vision.width * 2
    bytes_by_use = {
        "base model from the hub": 0 if embedded else 2 * shape.parameters,
        "prepared studies": sum(counts.values()) * profile.data.image_size**2 * _BYTES_PER_PIXEL,
        "features of the frozen vision encoder": features,
        # Two are kept, and the oldest goes when the next is written: what trains, and its 8-bit optimizer state.
        "checkpoints of a stage while it trains": 3 * (4 + 2 + 8 / 256) * trained,
        "adapters of three stages": 3 * adapter,
        "reports, dashboard, notebooks": 20e6 + 20e3 * counts["test"],
    }
    return {use: count / 2**30 for use, count in bytes_by_use.items()}
