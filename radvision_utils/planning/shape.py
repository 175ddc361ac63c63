"""The sizes of a Qwen2.5-VL, read from its config.json: what the planner's arithmetic starts from. Knows no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from radvision_utils.config import PROMPT, ModelSettings, Profile, RadVisionError
from radvision_utils.runs import read_json

_MODEL = Path(__file__).resolve().parent.parent / "model"
# The report prompt with its chat template, without the image's tokens, counted with Qwen's vocabulary.
_TEXT_TOKENS = 58


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

    def block_linears(self) -> list[tuple[int, int]]:
        """(inputs, outputs) of a block's linear layers with LoRA: qkv, proj, gate, up, down."""
        return [
            (self.width, 3 * self.width),
            (self.width, self.width),
            (self.width, self.inner),
            (self.width, self.inner),
            (self.inner, self.width),
        ]

    @property
    def block_parameters(self) -> int:
        """Weights, biases and the two norms of one block."""
        return sum(a * b + b for a, b in self.block_linears()) + 2 * self.width

    def window_lengths(self, side: int) -> set[int]:
        """Patches of the windows of different size that an image of `side` x `side` patches falls into."""
        whole = self.window // self.patch
        sides = {whole} if side >= whole else set()
        sides |= {side % whole} - {0}
        return {a * b for a in sides for b in sides}


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

    def layer_linears(self) -> list[tuple[int, int]]:
        """(inputs, outputs) of a layer's linear layers, all with LoRA: q, k, v, o, gate, up, down."""
        keys = self.key_heads * self.head
        return [
            (self.width, self.width),
            (self.width, keys),
            (self.width, keys),
            (self.width, self.width),
            (self.width, self.inner),
            (self.width, self.inner),
            (self.inner, self.width),
        ]

    @property
    def linear_weights(self) -> int:
        """Weights of all layers' linear layers: what is 4-bit in the 7B."""
        return self.depth * sum(a * b for a, b in self.layer_linears())

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
        """Weights of the patch embedding."""
        return self.vision.pixel_values * self.vision.width

    @property
    def vision_parameters(self) -> int:
        """Blocks and patch embedding."""
        return self.vision.depth * self.vision.block_parameters + self.patch_embedding

    @property
    def parameters(self) -> int:
        """All parameters of the base."""
        language = self.language.linear_weights + self.language.other_weights + self.language.embeddings
        return self.vision_parameters + self.projector_parameters + language

    def adapter_tensors(self, profile: Profile) -> dict[int, list[int]]:
        """Numbers in each trained tensor, by the stage that trains it: LoRA matrices, and the projector in full."""

        def lora(linears: list[tuple[int, int]], depth: int, rank: int) -> list[int]:
            return [rank * size for pair in linears for size in pair] * depth

        projector = [size for a, b in self.merger_linears for size in (a * b, b)] + [self.vision.width]
        return {
            1: lora(self.vision.block_linears(), self.vision.depth, profile.stage1.lora_rank),
            2: projector,
            3: lora(self.language.layer_linears(), self.language.depth, profile.stage3.lora_rank),
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
    try:
        return shape_of(read_json(path))
    except (KeyError, TypeError, ValueError) as error:
        raise RadVisionError(f"{path} is not the configuration of a Qwen2.5-VL ({error!r} is missing).") from error


def shape_of(config: Mapping[str, Any]) -> Shape:
    """The sizes in a config.json, in the hub's flat layout or in that of transformers 5.

    Raises:
        KeyError: a size is missing.
    """
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
