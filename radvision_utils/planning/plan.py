"""Before a card is spent: what each stage needs, whether it fits, how long it takes, and what to change first.

All of it is arithmetic on the model's configuration (`step.py`, `cost.py`); nothing is loaded and no card is asked.
Alone: `python -m radvision_utils plan --profile lingshu-7b --gpu t4`.
"""

from __future__ import annotations

import json
import math
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from radvision_utils.config import AUTO, STAGES, Profile, RadVisionError, StageSettings
from radvision_utils.environment import Device, choose_device, process_count
from radvision_utils.planning.cost import (
    Card,
    Lengths,
    find_card,
    longest,
    open_card,
    read_shape,
    study_counts,
    typical,
)
from radvision_utils.planning.step import ON_CARD, ON_CPU, Memory, Step

MARGIN_GIB = 1.0  # that the recommended settings leave free: a plan is no measurement
_CHOSEN = ("micro_batch", "accumulation", "checkpointed_layers")
_SIDES = (1024, 896, 768, 640, 512, 448, 392, 336, 280, 224)  # pixels that a smaller image may have


@dataclass(frozen=True)
class StagePlan:
    """One stage as a profile sets it, on one card.

    Attributes:
        auto: settings that the profile leaves to the planner.
        copied: the planner has 4-bit weights kept a second time in 16 bits.
    """

    profile: Profile
    stage: int
    card: Card
    auto: tuple[str, ...] = ()
    copied: bool = False

    @property
    def settings(self) -> StageSettings:
        return self.profile.stage(self.stage)

    @cached_property
    def samples(self) -> int:
        """Studies that it trains on, each as often as it comes; what a frozen encoder costs once is not in it."""
        return round(self.settings.shown(study_counts(self.profile)["train"]))

    @cached_property
    def step(self) -> Step:
        """A micro-batch with reports as long as the profile allows."""
        profile, stage = self.profile, self.stage
        cached = profile.keeps_features(stage, study_counts(profile)["train"])
        return Step(read_shape(profile.model), profile, stage, longest(profile), cached, copied=self.copied)

    @property
    def usual(self) -> Step:
        """A micro-batch with reports of usual length."""
        return replace(self.step, lengths=typical(self.step.lengths))

    @cached_property
    def memory(self) -> Memory:
        """At its fullest moment, with reports as long as the profile allows."""
        return self.step.memory()

    @property
    def fits(self) -> bool:
        return self.memory.total <= self.card.usable_gib

    @cached_property
    def hours(self) -> float:
        """As `Step.seconds` assumes, shared by the cards; NaN: the card's speed is not known."""
        return self.samples / self.settings.micro_batch * self.usual.seconds(self.card) / self.card.count / 3600

    @property
    def hours_at_peak(self) -> float:
        """At the cards' peak; NaN: not known."""
        peak = self.card.peak_tflops or math.nan
        return self.samples * self.usual.tflop() / peak / self.card.count / 3600

    @property
    def roomy(self) -> bool:
        """Whether it fits with `MARGIN_GIB` to spare."""
        return self.memory.total + MARGIN_GIB <= self.card.usable_gib

    @property
    def chosen(self) -> dict[str, Any]:
        """What the planner chose, by the settings' names, and `why`; nothing where all is as set."""
        if not (self.auto or self.copied):
            return {}
        why = f"{self.memory.total:.1f} of {self.card.usable_gib:.1f} GiB by plan on {self.card.title}"
        return {**{name: getattr(self.settings, name) for name in self.auto}, "dequantized": self.copied, "why": why}

    def settled(self) -> StagePlan:
        """With numbers in place of `AUTO`, and copies of 4-bit weights or none: the fastest that fits with
        `MARGIN_GIB` to spare, or, where none does, what needs least.

        Raises:
            RadVisionError: the profile's own number does not divide the studies of an optimizer step.
        """
        name, asked = f"stage{self.stage}", self.settings
        auto = tuple(leaf for leaf in _CHOSEN if getattr(asked, leaf) == AUTO)
        given = [leaf for leaf in _CHOSEN[:2] if leaf not in auto]
        splits = [s for s in _splits(asked, name) if all(s[f"{name}.{leaf}"] == getattr(asked, leaf) for leaf in given)]
        if len(given) < 2:  # cards share an optimizer step evenly
            splits = [s for s in splits if s[f"{name}.accumulation"] % self.card.count == 0]
        if not splits:
            raise RadVisionError(
                f"stage{self.stage}.micro_batch and accumulation cannot share the {asked.step_size} studies of an "
                f"optimizer step on {self.card.count} card(s): change their number, or stage{self.stage}.batch."
            )
        copies = (False, True) if self.step.quantized else (False,)
        plans = [replace(self.changed(split), copied=copied, auto=auto) for split in splits for copied in copies]
        if _CHOSEN[2] in auto:
            plans = [plan._with_fewest_checkpoints() for plan in plans]
        return min(plans, key=StagePlan._effort)

    def _with_fewest_checkpoints(self) -> StagePlan:
        """As many checkpointed layers as it takes to fit, each of which costs time and saves memory."""

        def at(layers: int) -> StagePlan:
            return self.changed({f"stage{self.stage}.checkpointed_layers": layers})

        depth = self.step.shape.language.depth
        return at(min(bisect_left(range(depth + 1), True, key=lambda layers: at(layers).roomy), depth))

    def _effort(self) -> tuple[float, ...]:
        """Less is better: of what fits the faster; where the card's speed is not known, fewer operations, then larger
        micro-batches, then weights that need not be dequantized. What does not fit comes behind, by its memory."""
        if not self.roomy:
            return (1, self.memory.total)
        likely = self.usual.tflop() if math.isnan(self.hours) else self.hours
        return (0, likely, -self.settings.micro_batch, not self.copied)

    def record(self, settings: StageSettings, prompt: int, report: int, cached: bool, card: bool) -> dict[str, Any]:
        """Of the stage as it ran, for `stage.json`: GiB by part, their total, and what of it is tensors.

        Args:
            settings: that it ran with.
            prompt: tokens of the prompt with the image.
            report: tokens of its longest report.
            cached: features of the frozen vision encoder were read from disk.
            card: it ran on a card, not on the CPU in float32.
        """
        changes: Any = {f"stage{self.stage}": settings}
        image, numbers = self.profile.model.visual_tokens, ON_CARD if card else ON_CPU
        step = replace(self.step, profile=replace(self.profile, **changes), cached=cached, numbers=numbers)
        memory = replace(step, lengths=Lengths(image, prompt - image, report)).memory()
        gib = {**memory.parts, "total": memory.total, "tensors": memory.tensors}
        return {**{part: round(each, 4) for part, each in gib.items()}, "moment": memory.moment}

    def changed(self, settings: Mapping[str, Any]) -> StagePlan:
        """The plan with settings changed by their dotted names."""
        profile = self.profile
        for name, value in settings.items():
            section, leaf = name.split(".")
            change: Any = {section: replace(getattr(profile, section), **{leaf: value})}
            profile = replace(profile, **change)
        return replace(self, profile=profile)


def plan_run(profile: Profile, card: Card) -> list[StagePlan]:
    """All three stages of a profile on a card."""
    return [plan_stage(profile, stage, card) for stage in STAGES]


def plan_stage(profile: Profile, stage: int, card: Card) -> StagePlan:
    """One stage as the profile sets it, and as fits the card where that says "auto".

    Raises:
        RadVisionError: the base's configuration cannot be read.
    """
    return StagePlan(profile, stage, card).settled()


def plan_here(profile: Profile, stage: int, device: Device) -> StagePlan:
    """As `plan_stage`, on the device at hand, for this process and those beside it; a CPU keeps no copies."""
    count = process_count()
    shared = profile.stage(stage).step_size % count == 0  # else training says so
    plan = plan_stage(profile, stage, replace(card_here(device), count=count if shared else 1))
    return replace(plan, copied=plan.copied and device.kind == "cuda")


def copied_from(profile: Profile, stage: int, card: Card) -> int | None:
    """From so many GiB on 4-bit weights are kept a second time on such a card; None: up to 256 they never are."""
    sizes = range(1, 257)
    place = bisect_left(sizes, True, key=lambda gib: plan_stage(profile, stage, replace(card, usable_gib=gib)).copied)
    return sizes[place] if place < len(sizes) else None


def card_here(device: Device) -> Card:
    """The card at hand; a CPU is planned for as a T4."""
    t4 = open_card("t4")
    return find_card(device.title) or replace(t4, title=f"{t4.title}, for which this CPU stands")


def what_to_change(profile: Profile, stage: int) -> str:
    """For a stage that does not fit with one study at a time: the planner's figures and its first change."""
    card = find_card(choose_device().title)
    if card is None:
        return "end other programs, or train on a computer with more memory."
    *_, one = _splits(profile.stage(stage), f"stage{stage}")
    return first_change(plan_stage(profile, stage, card).changed(one).settled())


def first_change(plan: StagePlan) -> str:
    """What to change first where a stage is out of memory, one sentence.

    In this order, each on top of the one before: what costs no time (cached features, 4-bit weights), what costs a
    third more (all layers checkpointed), what costs little but is slower (smaller micro-batches), what changes the
    result (a smaller image, shorter reports), another card. Where the arithmetic says that it fits, so that something
    else must use the card, the first change that frees a quarter of a GiB.
    """
    card, need = plan.card, plan.memory.total
    said = f"stage {plan.stage} needs {need:.1f} GiB by arithmetic, and {card.title} has {card.usable_gib:.1f}"
    least = need
    for settings in _changes(plan):
        least = plan.changed(settings).memory.total
        if least <= min(card.usable_gib, need - 0.25):
            words = " and ".join(f"{name}={json.dumps(value).strip(chr(34))}" for name, value in settings.items())
            return f"{said}: set {words}, which needs {least:.1f}."
    return (
        f"{said}: it does not fit with any setting (one study at a time, the smallest image: {least:.1f} GiB); "
        f"take a card with at least {least + MARGIN_GIB:.0f} GiB."
    )


def _changes(plan: StagePlan) -> Iterator[dict[str, Any]]:
    """The settings to change, in order, each together with those before, by their dotted names."""
    settings, name = plan.settings, f"stage{plan.stage}"
    changes: dict[str, Any] = {}
    steps: list[dict[str, Any]] = []
    if plan.stage > 1 and not settings.cache_features:
        steps.append({f"{name}.cache_features": True})
    if plan.stage > 1 and plan.profile.data.augment:
        steps.append({"data.augment": False})
    if plan.profile.model.quantization != "nf4":
        steps.append({"model.quantization": "nf4"})
    if plan.step.layers < plan.step.shape.language.depth:
        steps.append({f"{name}.checkpointed_layers": None})
    steps += [split for split in _splits(settings, name) if split[f"{name}.micro_batch"] < settings.micro_batch]
    steps += _smaller_images(plan.profile)
    if plan.profile.model.max_report_tokens > 128:
        steps.append({"model.max_report_tokens": 128})
    for step in steps:
        changes = changes | step
        yield changes


def _smaller_images(profile: Profile) -> list[dict[str, Any]]:
    """Smaller and smaller images; none where the processor reduces images anyway, as the tiny one."""
    vision, side = read_shape(profile.model).vision, profile.data.image_size
    tokens = {each: round(each / (vision.patch * vision.merge)) ** 2 for each in (side, *_SIDES)}
    if tokens[side] != profile.model.visual_tokens:
        return []
    return [{"data.image_size": less, "model.visual_tokens": tokens[less]} for less in _SIDES if less < side]


def _splits(settings: StageSettings, name: str) -> list[dict[str, int]]:
    """Micro-batch and accumulation that make the same optimizer step, the largest micro-batch first."""
    whole = settings.step_size
    return [
        {f"{name}.micro_batch": micro, f"{name}.accumulation": whole // micro}
        for micro in range(whole, 0, -1)
        if whole % micro == 0
    ]
