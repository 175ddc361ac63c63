"""Before a card is spent: what each stage needs, whether it fits, how long it takes, and what to change first.

All of it is arithmetic on the model's configuration (`memory.py`, `cost.py`); nothing is loaded and no card is asked.
Alone: `python -m radvision_utils plan --profile lingshu-7b --gpu t4`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from radvision_utils.config import STAGES, Profile, StageSettings
from radvision_utils.environment import choose_device
from radvision_utils.planning.cost import (
    Card,
    Lengths,
    Shape,
    find_card,
    longest,
    read_shape,
    sample_tflop,
    study_counts,
    training_hours,
    typical,
)
from radvision_utils.planning.memory import ON_CARD, ON_CPU, Memory, stage_memory

MARGIN_GIB = 1.0  # that the recommended settings leave free: a plan is no measurement
_SIDES = (1024, 896, 768, 640, 512, 448, 392, 336, 280, 224)  # pixels that a smaller image may have


@dataclass(frozen=True)
class StagePlan:
    """One stage on one card.

    Attributes:
        stage: 1, 2 or 3.
        card: the card.
        settings: of the stage.
        image_size: side of the stored image, pixels.
        layers: checkpointed decoder layers.
        memory: at the stage's fullest moment, with reports as long as the profile allows.
        tflop: 10^12 operations of a sample with a report of usual length.
        samples: that the stage trains on, epochs counted; what the frozen vision encoder costs once is not in it.
        hours: at the share of the card's peak that is assumed, with dequantization, or as fast as Python launches it;
            None: speed not known.
        hours_at_peak: at the card's peak; None: not known.
        change: what to change first; "" where it fits.
        fitting: the fastest settings with the same studies an optimizer step that fit with `MARGIN_GIB` to spare;
            with a smaller image where none does with the profile's.
    """

    stage: int
    card: Card
    settings: StageSettings
    image_size: int
    layers: int
    memory: Memory
    tflop: float
    samples: int
    hours: float | None
    hours_at_peak: float | None
    change: str
    fitting: StagePlan | None

    @property
    def fits(self) -> bool:
        """Whether the card's memory is enough."""
        return self.memory.total <= self.card.usable_gib


def plan_run(profile: Profile, card: Card) -> list[StagePlan]:
    """All three stages of a profile on a card."""
    return [plan_stage(profile, stage, card) for stage in STAGES]


def plan_stage(profile: Profile, stage: int, card: Card) -> StagePlan:
    """One stage as the profile sets it, what to change if it does not fit, and the fastest settings that fit.

    Raises:
        RadVisionError: the base's configuration cannot be read, or there is no such stage.
    """
    shape = read_shape(profile.model)
    plan = _plan(shape, profile, stage, card)
    change = "" if plan.fits else first_change(profile, stage, card)
    return replace(plan, change=change, fitting=_fastest(shape, profile, stage, card))


def _fastest(shape: Shape, profile: Profile, stage: int, card: Card) -> StagePlan | None:
    """The fastest settings that fit, with the profile's image if any does, else with the largest image that does."""
    for sized in (profile, *_smaller_images(shape, profile)):
        plans = (
            _plan(shape, changed, stage, card)
            for micro, times in _splits(profile.stage(stage))
            if times % card.count == 0  # cards share an optimizer step evenly
            for layers in range(shape.language.depth + 1)
            for changed in [_changed(sized, stage, micro_batch=micro, accumulation=times, checkpointed_layers=layers)]
        )
        fitting = [plan for plan in plans if plan.memory.total + MARGIN_GIB <= card.usable_gib]
        if fitting:
            return min(fitting, key=_effort)
    return None


def plan_record(
    profile: Profile, stage: int, settings: StageSettings, prompt: int, report: int, *, cached: bool, card: bool
) -> dict[str, Any]:
    """The plan of a stage that runs, for `stage.json`: GiB by part, their total, and what of it is tensors.

    Args:
        profile: of the run.
        stage: 1, 2 or 3.
        settings: that it runs with.
        prompt: tokens of the prompt with the image.
        report: tokens of its longest report.
        cached: features of the frozen vision encoder are read from disk.
        card: it runs on a card, not on the CPU in float32.
    """
    changes: Any = {f"stage{stage}": settings}
    image = profile.model.visual_tokens
    lengths, numbers = Lengths(image, prompt - image, report), ON_CARD if card else ON_CPU
    memory = stage_memory(
        read_shape(profile.model),
        replace(profile, **changes),
        stage,
        checkpointed_layers=settings.checkpointed_layers,
        cached=cached,
        lengths=lengths,
        numbers=numbers,
    )
    parts = {part: round(gib, 4) for part, gib in memory.parts.items()}
    return {**parts, "total": round(memory.total, 4), "tensors": round(memory.tensors, 4), "moment": memory.moment}


def what_to_change(profile: Profile, stage: int) -> str:
    """For a stage that does not fit with one study at a time: the planner's figures and its first change."""
    card = find_card(choose_device().title)
    if card is None:
        return "end other programs, or train on a computer with more memory."
    settings = profile.stage(stage)
    one: Any = {
        f"stage{stage}": replace(settings, micro_batch=1, accumulation=settings.micro_batch * settings.accumulation)
    }
    return first_change(replace(profile, **one), stage, card)


def first_change(profile: Profile, stage: int, card: Card) -> str:
    """What to change first where a stage is out of memory, one sentence.

    In this order, each on top of the one before: what costs no time (cached features, 4-bit weights), what costs a
    third more (all layers checkpointed), what costs little but is slower (smaller micro-batches), what changes the
    result (a smaller image, shorter reports), another card. Where the arithmetic says that it fits, so that something
    else must use the card, the first change that frees a quarter of a GiB.
    """
    shape = read_shape(profile.model)
    need = _memory(shape, profile, stage).total
    target = min(card.usable_gib, need - 0.25)
    said = f"stage {stage} needs {need:.1f} GiB by arithmetic, and {card.title} has {card.usable_gib:.1f}"
    least = need
    for words, changed in _changes(shape, profile, stage):
        least = _memory(shape, changed, stage).total
        if least <= target:
            return f"{said}: set {words}, which needs {least:.1f}."
    return (
        f"{said}: it does not fit with any setting (one study at a time, the smallest image: {least:.1f} GiB); "
        f"take a card with at least {least + MARGIN_GIB:.0f} GiB."
    )


def _changes(shape: Shape, profile: Profile, stage: int) -> Iterator[tuple[str, Profile]]:
    """The settings to change, in order, each with the profile that they make together with those before."""
    settings, words = profile.stage(stage), []
    if stage > 1 and not settings.cache_features:
        profile = _changed(profile, stage, cache_features=True)
        words.append(f"stage{stage}.cache_features=true")
        yield words[-1], profile
    if profile.model.quantization != "nf4":
        profile = replace(profile, model=replace(profile.model, quantization="nf4"))
        words.append("model.quantization=nf4")
        yield " and ".join(words), profile
    if settings.checkpointed_layers is not None:
        profile = _changed(profile, stage, checkpointed_layers=None)
        words.append(f"stage{stage}.checkpointed_layers=null")
        yield " and ".join(words), profile
    for micro, times in _splits(settings):
        if micro < settings.micro_batch:
            profile = _changed(profile, stage, micro_batch=micro, accumulation=times)
            split = [f"stage{stage}.micro_batch={micro}", f"stage{stage}.accumulation={times}"]
            yield " and ".join([*words, *split]), profile
    if settings.micro_batch > 1:
        words += split
    images = _smaller_images(shape, profile)
    for smaller in images:
        image = [f"data.image_size={smaller.data.image_size}", f"model.visual_tokens={smaller.model.visual_tokens}"]
        yield " and ".join([*words, *image]), smaller
    if profile.model.max_report_tokens > 128:
        profile = images[-1] if images else profile
        shorter = replace(profile.model, max_report_tokens=128)
        words += image if images else []
        yield " and ".join([*words, "model.max_report_tokens=128"]), replace(profile, model=shorter)


def _smaller_images(shape: Shape, profile: Profile) -> list[Profile]:
    """The profile with smaller and smaller images; none where the processor reduces images anyway, as the tiny one."""

    def tokens(side: int) -> int:
        return round(side / (shape.vision.patch * shape.vision.merge)) ** 2

    if tokens(profile.data.image_size) != profile.model.visual_tokens:
        return []
    return [
        replace(
            profile,
            data=replace(profile.data, image_size=side),
            model=replace(profile.model, visual_tokens=tokens(side)),
        )
        for side in _SIDES
        if side < profile.data.image_size
    ]


def _splits(settings: StageSettings) -> list[tuple[int, int]]:
    """Micro-batch and accumulation that make the same optimizer step, the largest micro-batch first."""
    whole = settings.micro_batch * settings.accumulation
    return [(micro, whole // micro) for micro in range(whole, 0, -1) if whole % micro == 0]


def _changed(profile: Profile, stage: int, **settings: Any) -> Profile:
    changes: Any = {f"stage{stage}": replace(profile.stage(stage), **settings)}
    return replace(profile, **changes)


def _memory(shape: Shape, profile: Profile, stage: int) -> Memory:
    layers = profile.stage(stage).checkpointed_layers
    return stage_memory(shape, profile, stage, checkpointed_layers=layers, cached=_cached(profile, stage))


def _samples(profile: Profile, stage: int) -> int:
    """Studies that a stage trains on, each as often as it comes."""
    settings = profile.stage(stage)
    samples = round(settings.epochs * study_counts(profile)["train"])
    whole = settings.micro_batch * settings.accumulation
    return min(samples, settings.max_steps * whole) if settings.max_steps else samples


def _cached(profile: Profile, stage: int) -> bool:
    """Whether the stage reads features from disk; it does not where it would not see every study (`features.py`)."""
    return (
        stage > 1 and profile.stage(stage).cache_features and _samples(profile, stage) >= study_counts(profile)["train"]
    )


def _plan(shape: Shape, profile: Profile, stage: int, card: Card) -> StagePlan:
    """One stage as it is set."""
    settings = profile.stage(stage)
    depth = shape.language.depth
    layers = depth if settings.checkpointed_layers is None else min(settings.checkpointed_layers, depth)
    rank = profile.stage1.lora_rank if stage == 1 else profile.stage3.lora_rank
    tflop = sample_tflop(shape, stage, rank, typical(longest(profile)), layers, _cached(profile, stage))
    samples = _samples(profile, stage)
    cached, quantized = _cached(profile, stage), profile.model.quantization == "nf4"
    hours = training_hours(shape, card, stage, layers, cached, quantized, (samples, settings.micro_batch, tflop))
    at_peak = samples * tflop / card.peak_tflops / card.count / 3600 if card.peak_tflops else None
    return StagePlan(
        stage=stage,
        card=card,
        settings=settings,
        image_size=profile.data.image_size,
        layers=layers,
        memory=_memory(shape, profile, stage),
        tflop=tflop,
        samples=samples,
        hours=hours,
        hours_at_peak=at_peak,
        change="",
        fitting=None,
    )


def _effort(plan: StagePlan) -> tuple[float, int]:
    """Less is faster; where the card's speed is not known, fewer operations, then larger micro-batches."""
    return (plan.tflop if plan.hours is None else plan.hours, -plan.settings.micro_batch)
