"""On a card: the 7B with random weights made on the spot, each stage beside its plan, and generation."""

from __future__ import annotations

import logging
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

from radvision_utils.bases.random import random_model_folder
from radvision_utils.config import STAGES, Profile, load_profile
from radvision_utils.data.prepare import prepare_dataset
from radvision_utils.data.studies import open_prepared
from radvision_utils.environment import choose_device, peak_memory_gib
from radvision_utils.inference import reporter_of
from radvision_utils.training.cost import find_card, sample_tflop
from radvision_utils.training.shape import longest, read_shape
from radvision_utils.training.trainer import train_stage

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class OnCard:
    """A stage, or generation, of the 7B on a card.

    Attributes:
        part: what ran.
        gib: peak of the card's allocated memory.
        planned_gib: the planner's figure for the same studies; None where it has none.
        rate: samples/s of a stage, tokens/s of generation.
        tflops: 10^12 operations a second by the planner's arithmetic; None for generation.
        share: of the card's peak; None where the peak is not known.
        features: seconds an image that are spent once before the stage.
    """

    part: str
    gib: float
    planned_gib: float | None
    rate: float
    tflops: float | None = None
    share: float | None = None
    features: float = 0.0


def random_7b(folder: Path, steps: int) -> Profile:
    """`lingshu-7b` on random weights of its shape, with phantoms enough for one epoch of `steps` optimizer steps."""
    base = random_model_folder(folder / "base")
    profile = load_profile("lingshu-7b")
    group = profile.stage1.micro_batch * profile.stage1.accumulation
    changes = {
        "model.base": str(base),
        "data.phantoms": round(steps * group / 0.75),  # three quarters of the phantoms are left for training
        **{f"stage{n}.{key}": value for n in STAGES for key, value in (("epochs", 1.0), ("validation_studies", 4))},
    }
    return load_profile("lingshu-7b", changes, run="7b", source="phantom", output_root=str(folder))


def measure_on_card(profile: Profile) -> list[OnCard]:
    """Train the three stages and write a batch of reports."""
    prepare_dataset(profile)
    return [*(_stage(profile, stage) for stage in STAGES), _generation(profile)]


def _stage(profile: Profile, stage: int) -> OnCard:
    device, settings = choose_device(), profile.stage(stage)
    result = train_stage(profile, stage, force=True)
    record = result.record
    seconds = [line["seconds"] for line in result.log if "loss" in line][1:]  # the first step warms up
    rate = settings.micro_batch * settings.accumulation / statistics.median(seconds)
    shape = read_shape(profile.model)
    layers = shape.language.depth if settings.checkpointed_layers is None else settings.checkpointed_layers
    cached = record["features"] is not None
    operations = sample_tflop(shape, stage, settings.lora_rank, longest(profile), layers, cached) * rate
    card = find_card(device.title)
    peak = card.peak_tflops if card else 0.0
    images = record["studies"]["train"] + record["studies"]["validation"]
    return OnCard(
        part=f"stage {stage}",
        gib=record["peak_memory_gib"],
        planned_gib=record["plan"]["tensors"],
        rate=rate,
        tflops=operations,
        share=operations / peak if peak else None,
        features=record["features"]["seconds"] / images if cached else 0.0,
    )


def _generation(profile: Profile) -> OnCard:
    reporter = reporter_of(profile, 3)
    images = [study.image for study in open_prepared(profile).split("train")[: profile.generation.batch_size]]
    list(reporter.write(images[:1]))  # warms up
    began = time.perf_counter()
    tokens = sum(report.tokens for report in reporter.write(images))
    rate = tokens / (time.perf_counter() - began)
    return OnCard(f"generation, {len(images)} at a time", peak_memory_gib(choose_device()), None, rate)
