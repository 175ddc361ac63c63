"""Memory of judging for `metrics.json`: planned by arithmetic and, on a card, measured beside it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from radvision_utils.data.studies import Study
from radvision_utils.environment import Device, peak_memory_gib
from radvision_utils.planning.judging import maps_memory, scoring_memory, writing_memory
from radvision_utils.planning.memory import ON_CARD, ON_CPU
from radvision_utils.planning.shape import Lengths, read_shape
from radvision_utils.report import Reporter


def beside_measured(planned: float, device: Device) -> dict[str, Any]:
    """GiB of tensors by plan, and the card's peak since `forget_peak_memory`; None where there is no card."""
    measured = round(peak_memory_gib(device), 3) if device.kind == "cuda" else None
    return {"measured": measured, "planned": round(planned, 3)}


def reports_plan(reporter: Reporter, studies: Sequence[Study]) -> float:
    """GiB of tensors that writing reports on the studies takes, and scoring those that they have."""
    profile = reporter.profile
    report = max(len(reporter.collator.report_ids(study.report)) for study in studies)
    given: dict[str, Any] = {
        "batch": min(profile.generation.batch_size, len(studies)),
        "numbers": ON_CARD if reporter.device.kind == "cuda" else ON_CPU,
    }
    shape, scored = read_shape(profile.model), _lengths(reporter, studies, report)
    written = _lengths(reporter, studies, profile.generation.max_new_tokens)
    writing = writing_memory(shape, profile, lengths=written, **given)
    return max(writing.tensors, scoring_memory(shape, profile, lengths=scored, **given).tensors)


def maps_plan(reporter: Reporter, studies: Sequence[Study], behind: int, scored: int) -> float:
    """GiB of tensors that maps take.

    Args:
        reporter: the model.
        studies: whose maps.
        behind: tokens behind the prompt of the longest report, with its neutral sentences.
        scored: tokens of it whose probability is asked for.
    """
    numbers = ON_CARD if reporter.device.kind == "cuda" else ON_CPU
    lengths = _lengths(reporter, studies, behind)
    shape = read_shape(reporter.profile.model)
    return maps_memory(shape, reporter.profile, lengths=lengths, scored=scored, numbers=numbers).tensors


def _lengths(reporter: Reporter, studies: Sequence[Study], report: int) -> Lengths:
    image = reporter.profile.model.visual_tokens
    prompt = max(len(reporter.prompt(study)) for study in studies)
    return Lengths(image, prompt - image, report)
