"""How close `mini` comes to the 7B: the shares of its parts, by the planner's arithmetic and on the clock."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from typing import Any

from benchmarks.contenders import ProcessorCollator, in_our_order, load_peer
from benchmarks.race import keep_freed_memory
from radvision_utils.config import Profile, load_profile
from radvision_utils.planning.cost import TYPICAL_REPORT, Lengths, Shape, longest, open_card, read_shape
from radvision_utils.planning.step import ON_CPU, Step

_ALL = 10**6  # checkpointed layers: all there are


def compute_shares(profile: Profile) -> dict[str, float]:
    """Shares of a forward pass whose logits are made at every token, as the peers do."""
    shape, lengths = read_shape(profile.model), _lengths(profile)
    head = 2 * lengths.total * shape.language.vocabulary * shape.language.width / 1e12
    vision = _step(profile, 3).tflop() - _step(profile, 3, cached=True).tflop()
    # What checkpointing all layers but the last (whose checkpoint changes more than that) computes again.
    depth = shape.language.depth
    again = _step(profile, 3, layers=depth - 1).tflop() - _step(profile, 3, layers=0).tflop()
    decoder = again * depth / (depth - 1)
    whole = vision + decoder + head
    return {"vision encoder": vision / whole, "decoder": decoder / whole, "head, logits of every token": head / whole}


def tflop(profile: Profile, stage: int, *, ours: bool, layers: int = _ALL) -> float:
    """10^12 operations of a training sample: ours, or a peer's, who makes the logits of every token.

    Args:
        profile: which model.
        stage: 1, 2 or 3.
        ours: with features cached in stages 2 and 3, and logits of the report alone.
        layers: checkpointed.
    """
    step = _step(profile, stage, cached=ours and stage > 1, layers=layers)
    others = 0 if ours else step.lengths.total - step.lengths.report
    return step.tflop() + 4 * others * step.shape.language.vocabulary * step.shape.language.width / 1e12


@dataclass(frozen=True)
class Way:
    """How a contender trains: with our measures or not, so many studies at once, so many layers checkpointed."""

    ours: bool
    micro_batch: int
    layers: int = _ALL


def t4_seconds(profile: Profile, stage: int, way: Way) -> float:
    """Seconds a study on a T4 by arithmetic: operations at the share of its peak that the planner assumes, and
    dequantization, which every micro-batch pays once."""
    step, card = _step(profile, stage, layers=way.layers), open_card("t4")
    passes = 2 + step.layers / step.shape.language.depth
    operations = card.seconds(tflop(profile, stage, ours=way.ours, layers=way.layers))
    return operations + passes * step.dequantizing_seconds(card) / way.micro_batch


def memory_shares(profile: Profile) -> dict[str, float]:
    """Shares of what a step of stage 1 keeps for its pass backward without checkpointing, logits of every token."""
    shape, lengths = read_shape(profile.model), _lengths(profile)
    alone = replace(profile, stage1=replace(profile.stage1, micro_batch=1, accumulation=1, checkpointed_layers=0))

    def kept(shape: Shape) -> float:
        return Step(shape, alone, 1, lengths, numbers=ON_CPU).memory().parts["activations"]

    vision = kept(shape) - kept(replace(shape, vision=replace(shape.vision, depth=0)))
    depth = shape.language.depth
    # A layer as the first ones are: our last one keeps less.
    decoder = depth * (kept(shape) - kept(replace(shape, language=replace(shape.language, depth=depth - 1))))
    # Logits, their log-softmax and their gradient, in float32 as all else here.
    head = 3 * 4 * lengths.total * shape.language.vocabulary / 2**30
    whole = vision + decoder + head
    return {"vision encoder": vision / whole, "decoder": decoder / whole, "head, logits of every token": head / whole}


def vision_share_of_operations(profile: Profile) -> float:
    """Of a step of stage 1 as the peers take it: every layer checkpointed, logits of every token."""
    step = _step(profile, 1)
    blind = replace(step, shape=replace(step.shape, vision=replace(step.shape.vision, depth=0, whole_image=())))
    return (step.tflop() - blind.tflop()) / tflop(profile, 1, ours=False)


def vision_share_of_seconds(profile: Profile, steps: int = 5) -> float:
    """The same share on the clock: the vision encoder forward and back by itself, and a study of the plain loop.

    Measured in a process of its own, which keeps freed memory as the contenders do.

    Args:
        profile: of a model that this machine can train, with its studies prepared.
        steps: the median counts.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=keep_freed_memory) as process:
        return process.submit(_measure_vision_share, profile, steps).result()


def _measure_vision_share(profile: Profile, steps: int) -> float:
    model = load_peer(profile, 1)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.train()
    batch = ProcessorCollator(profile)(in_our_order(profile, 1)[:1]).to(model.device)
    vision = model.get_base_model().model.visual

    def study() -> Any:
        return model(**batch, use_cache=False).loss

    def picture() -> Any:
        return vision(batch["pixel_values"], grid_thw=batch["image_grid_thw"]).pooler_output.sum()

    def seconds(loss: Callable[[], Any]) -> float:
        began = time.perf_counter()
        loss().backward()
        return time.perf_counter() - began

    rounds = [(seconds(picture), seconds(study)) for _ in range(steps + 1)][1:]  # the first warms up
    return statistics.median(one / whole for one, whole in rounds)


def seven_b() -> Profile:
    """The 7B's profile."""
    return load_profile("lingshu-7b")


def _lengths(profile: Profile) -> Lengths:
    return replace(longest(profile), report=TYPICAL_REPORT)


def _step(profile: Profile, stage: int, cached: bool = False, layers: int = _ALL) -> Step:
    changes: Any = {f"stage{stage}": replace(profile.stage(stage), checkpointed_layers=layers)}
    return Step(read_shape(profile.model), replace(profile, **changes), stage, _lengths(profile), cached)
