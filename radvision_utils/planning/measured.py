"""Memory by plan beside what was measured: of a stage for `stage.json`, of judging for `metrics.json`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from radvision_utils.data.studies import Study
from radvision_utils.environment import Device, peak_memory_gib
from radvision_utils.planning.judging import maps_memory, scoring_memory, writing_memory
from radvision_utils.planning.memory import ON_CARD, ON_CPU
from radvision_utils.planning.shape import Lengths, read_shape
from radvision_utils.report import Reporter


def reports_beside(reporter: Reporter, studies: Sequence[Study]) -> dict[str, Any]:
    """Writing reports on the studies, and scoring those that they have: `{"measured": GiB or None, "planned": GiB}`.

    Planned are torch's tensors; measured is the card's peak since `forget_peak_memory`, None where there is no card.
    """
    profile = reporter.profile
    report = max(len(reporter.collator.report_ids(study.report)) for study in studies)
    given: dict[str, Any] = {
        "batch": min(profile.generation.batch_size, len(studies)),
        "numbers": ON_CARD if reporter.device.kind == "cuda" else ON_CPU,
    }
    shape, scored = read_shape(profile.model), _lengths(reporter, studies, report)
    written = _lengths(reporter, studies, profile.generation.max_new_tokens)
    writing = writing_memory(shape, profile, lengths=written, **given)
    return _beside(
        max(writing.tensors, scoring_memory(shape, profile, lengths=scored, **given).tensors), reporter.device
    )


def maps_beside(reporter: Reporter, studies: Sequence[Study], behind: int, scored: int) -> dict[str, Any]:
    """As `reports_beside`, for maps.

    Args:
        reporter: the model.
        studies: whose maps.
        behind: tokens behind the prompt of the longest report, with its neutral sentences.
        scored: tokens of it whose probability is asked for.
    """
    numbers = ON_CARD if reporter.device.kind == "cuda" else ON_CPU
    lengths, shape = _lengths(reporter, studies, behind), read_shape(reporter.profile.model)
    planned = maps_memory(shape, reporter.profile, lengths=lengths, scored=scored, numbers=numbers)
    return _beside(planned.tensors, reporter.device)


def _beside(planned: float, device: Device) -> dict[str, Any]:
    measured = round(peak_memory_gib(device), 3) if device.kind == "cuda" else None
    return {"measured": measured, "planned": round(planned, 3)}


def _lengths(reporter: Reporter, studies: Sequence[Study], report: int) -> Lengths:
    image = reporter.profile.model.visual_tokens
    prompt = max(len(reporter.prompt(study)) for study in studies)
    return Lengths(image, prompt - image, report)
