"""What a stage costs by arithmetic: operations, hours on a card, disk. Knows no torch.

A multiplication and an addition are two operations. A frozen layer costs one product forward and one backward (its
input's gradient), a trained one two backward, a checkpointed one is computed forward twice.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from radvision_utils.config import Profile, RadVisionError
from radvision_utils.planning.shape import Lengths, Shape
from radvision_utils.runs import RunFolder, read_json

_OPEN_I = {"train": 2069, "validation": 296, "test": 590}  # the split of R2Gen
_PHANTOM_SPLIT = {
    "train": 0.75,
    "validation": 0.11,
    "test": 0.09,
}  # the rest is dropped: `summary.json` of a default run
# Mean of the 3,331 Open-I reports with findings and impression, in the target's format, with Qwen's vocabulary.
TYPICAL_REPORT = 71
_DEQUANTIZED_BYTES = 0.53 + 2  # read in 4-bit with its scales, written in 16
BANDWIDTH_SHARE = 0.6  # of a card's bandwidth that dequantizing reaches: assumed
# Python launches a card's kernels one after another, and a fast card waits for it: seconds for one layer once forward,
# backward or again, however small the micro-batch. From 6.7 and 4.0 studies/s of stages 2 and 3 at micro-batch 4 on an
# H100's host (random weights of the 7B's shape); a slower processor takes longer.
_LAYER_SECONDS = {1: 0.006, 2: 0.006, 3: 0.010}  # by stage: in stage 3 every layer has LoRA that trains
_BYTES_PER_PIXEL = 0.6  # of a stored PNG: 0.56 in a default run


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

    @property
    def speed(self) -> float:
        """TFLOP/s of products that one card is assumed to keep; 0: not known."""
        return self.peak_tflops * self.share


@cache
def cards() -> dict[str, Card]:
    """The cards of cards.json by their short names."""
    values: dict[str, Any] = json.loads(Path(__file__).with_name("cards.json").read_text(encoding="utf-8"))
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
    if "laptop" in words:  # slower than the card of the same number
        return Card(name, gib)
    known = next((card for short, card in cards().items() if short in words), None)
    return replace(known, title=name, usable_gib=gib) if known else Card(name, gib)


def typical(longest: Lengths) -> Lengths:
    """A sample with a report of usual length, for sums over a whole run."""
    return Lengths(longest.image, longest.text, min(TYPICAL_REPORT, longest.report))


def sample_tflop(shape: Shape, stage: int, rank: int, lengths: Lengths, layers: int, cached: bool) -> float:
    """10^12 operations of one training sample.

    Args:
        shape: of the model.
        stage: 1, 2 or 3.
        rank: of the LoRA in vision encoder and language model.
        lengths: of the sample.
        layers: checkpointed decoder layers.
        cached: the vision encoder's blocks are not computed.
    """
    language = shape.language
    # Before stage 3 the language model's LoRA adds nothing and is not computed.
    lora = rank * language.depth * sum(a + b for a, b in language.layer_linears()) if stage == 3 else 0
    # Causal attention needs half of the products of queries with keys and of weights with values.
    attention = 2 * lengths.total**2 * language.width * language.depth
    forward = 2 * lengths.total * (language.linear_weights + lora) + attention
    backward = 2 * lengths.total * (language.linear_weights + 2 * lora) + 2 * attention
    again = layers / language.depth * forward
    if layers < language.depth:  # the last feed-forward network sees the report alone (`loss.py`)
        spared, weights = 2 * (lengths.total - lengths.report), 3 * language.width * language.inner
        their_lora = 3 * rank * (language.width + language.inner) if stage == 3 else 0
        forward -= spared * (weights + their_lora)
        backward -= spared * (weights + 2 * their_lora)
    head = 2 * 2 * lengths.report * language.vocabulary * language.width
    projector = (2 + {1: 2, 2: 4, 3: 0}[stage]) * lengths.image * shape.projector_parameters
    return (forward + again + backward + head + projector + _vision(shape, stage, rank, lengths, layers, cached)) / 1e12


def language_tflop(shape: Shape, rank: int, lengths: Lengths, scored: int) -> float:
    """10^12 operations of the language model once forward, with LoRA and with logits at `scored` tokens."""
    language = shape.language
    weights = language.linear_weights + rank * language.depth * sum(a + b for a, b in language.layer_linears())
    attention = 2 * lengths.total**2 * language.width * language.depth
    return (2 * lengths.total * weights + attention + 2 * scored * language.vocabulary * language.width) / 1e12


def vision_tflop(shape: Shape, rank: int, lengths: Lengths) -> float:
    """10^12 operations of vision encoder and projector once forward."""
    projector = 2 * lengths.image * shape.projector_parameters
    return (_vision(shape, 2, rank, lengths, 0, False) + projector) / 1e12


def _vision(shape: Shape, stage: int, rank: int, lengths: Lengths, layers: int, cached: bool) -> float:
    vision = shape.vision
    patches = lengths.image * vision.merge**2
    whole = len(vision.whole_image)
    pairs = whole * patches**2 + (vision.depth - whole) * patches * min(patches, (vision.window // vision.patch) ** 2)
    weights = vision.depth * sum(a * b for a, b in vision.block_linears())
    lora = rank * vision.depth * sum(a + b for a, b in vision.block_linears())
    forward = 2 * patches * (weights + lora + shape.patch_embedding) + 4 * pairs * vision.width
    if stage > 1:
        return 0.0 if cached else forward
    backward = 2 * patches * (weights + 2 * lora) + 8 * pairs * vision.width
    return (2 if layers else 1) * forward + backward


def dequantization_seconds(shape: Shape, card: Card, layers: int) -> float:
    """Of one micro-batch, whatever its size: every 4-bit weight forward, backward, and again where checkpointed."""
    passes = 2 + layers / shape.language.depth
    gigabytes = passes * shape.language.linear_weights * _DEQUANTIZED_BYTES / 1e9
    return gigabytes / (card.bandwidth_gbs * BANDWIDTH_SHARE) if card.bandwidth_gbs else 0.0


def waiting_seconds(shape: Shape, stage: int, layers: int, cached: bool) -> float:
    """Of one micro-batch, whatever its size: what Python takes to launch it, if the card is faster."""
    language = (2 + layers / shape.language.depth) * shape.language.depth
    vision = shape.vision.depth * (0 if cached else 1 if stage > 1 else 3 if layers else 2)
    return language * _LAYER_SECONDS[stage] + vision * _LAYER_SECONDS[1]


def training_hours(
    shape: Shape, card: Card, stage: int, layers: int, cached: bool, quantized: bool, studies: tuple[int, int, float]
) -> float | None:
    """Hours of a stage on a card, or on several: what it computes, or what Python takes to launch it, if that is more.

    Args:
        studies: that it trains on, those of a micro-batch, and TFLOP of one.

    Returns:
        None where the card's speed is not known.
    """
    if not card.speed:
        return None
    samples, micro, tflop = studies
    computing = micro * tflop / card.speed + (dequantization_seconds(shape, card, layers) if quantized else 0.0)
    return samples / micro * max(computing, waiting_seconds(shape, stage, layers, cached)) / card.count / 3600


def study_counts(profile: Profile) -> dict[str, int]:
    """Studies by split: of the prepared data where they are, else what the source is known to give."""
    path = RunFolder.of(profile).data / "summary.json"
    if path.is_file():
        counts: dict[str, int] = read_json(path)["counts"]["splits"]
        return counts
    known = _OPEN_I
    if profile.data.source == "phantom":
        known = {split: round(share * profile.data.phantoms) for split, share in _PHANTOM_SPLIT.items()}
    limit = profile.data.limit
    whole = sum(known.values())
    share = min(1.0, limit / whole) if limit else 1.0
    return {split: round(share * count) for split, count in known.items()}


def disk_gib(shape: Shape, profile: Profile) -> dict[str, float]:
    """GiB on disk by what they are for; a source of studies that is downloaded comes on top."""
    counts = study_counts(profile)
    tensors = shape.adapter_tensors(profile)
    adapter = 4 * sum(map(sum, tensors.values()))
    trained = max(sum(sizes) for sizes in tensors.values())
    embedded = profile.model.base == "tiny" or Path(profile.model.base).is_dir()
    features = profile.model.visual_tokens * shape.vision.merge**2 * shape.vision.width * 2
    cached = counts["train"] + min(counts["validation"], profile.stage2.validation_studies)
    bytes_by_use = {
        "base model from the hub": 0 if embedded else 2 * shape.parameters,
        "prepared studies": sum(counts.values()) * profile.data.image_size**2 * _BYTES_PER_PIXEL,
        "features of the frozen vision encoder": cached * features
        if profile.stage2.cache_features or profile.stage3.cache_features
        else 0,
        # Two are kept, and the oldest goes when the next is written: what trains, and its 8-bit optimizer state.
        "checkpoints of a stage while it trains": 3 * (4 + 2 + 8 / 256) * trained,
        "adapters of three stages": 3 * adapter,
        "reports, dashboard, notebooks": 20e6 + 20e3 * counts["test"],
    }
    return {use: count / 2**30 for use, count in bytes_by_use.items()}
