"""Reports per second: `Reporter` in batches against the loop that writes one report at a time."""

from __future__ import annotations

import copy
import itertools
import logging
import statistics
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.contenders import ProcessorCollator, load_peer
from benchmarks.race import keep_freed_memory
from benchmarks.ratios import Ratio
from radvision_utils.config import Profile, RadVisionError
from radvision_utils.data.studies import open_prepared
from radvision_utils.report import reporter_of

logger = logging.getLogger(__name__)

ONE_BY_ONE = 4  # reports a round of the plain loop; ours writes a batch


@dataclass(frozen=True)
class Generation:
    """Reports per second of both, and how many times ours they are.

    Attributes:
        ours: median over the rounds.
        plain: median over the rounds.
        ratio: round by round.
        batch: reports at a time, ours.
        tokens: of every report; equal for both, since nothing in random weights ends a report.
        reading: seconds a report that ours needs for the first word: vision encoder, and the decoder over the prompt.
    """

    ours: float
    plain: float
    ratio: Ratio
    batch: int
    tokens: int
    reading: float

    @property
    def limit(self) -> float:
        """How many times as fast ours would be if words came in no time."""
        return 1 / (self.plain * self.reading)


def race_generation(profile: Profile, rounds: int) -> Generation:
    """Let both write reports on the same images in turn, after one round to warm up.

    Raises:
        RadVisionError: they write different reports.
    """
    keep_freed_memory()
    studies = itertools.cycle(open_prepared(profile).split("train"))
    images = [study.image for study in itertools.islice(studies, profile.generation.batch_size)]
    reporter = reporter_of(profile, 3)
    model, collate = load_peer(profile, 4), ProcessorCollator(profile)
    model.eval()
    logger.info("generation, %d rounds in turn", rounds)
    first_word = copy.copy(reporter)
    first_word.profile = replace(profile, generation=replace(profile.generation, max_new_tokens=1))
    seconds, reading = [], []
    for _ in range(rounds + 1):
        began = time.perf_counter()
        batched = list(reporter.write(images))
        between = time.perf_counter()
        single = [write_one(model, collate, image, profile) for image in images[:ONE_BY_ONE]]
        seconds.append(((between - began) / len(images), (time.perf_counter() - between) / len(single)))
        began = time.perf_counter()
        list(first_word.write(images))
        reading.append((time.perf_counter() - began) / len(images))
        check_same_reports([report.text for report in batched], single)
    measured = seconds[1:]
    return Generation(
        ours=1 / statistics.median([ours for ours, _ in measured]),
        plain=1 / statistics.median([plain for _, plain in measured]),
        ratio=Ratio.of([plain / ours for ours, plain in measured]),
        batch=len(images),
        tokens=max(report.tokens for report in batched),
        reading=statistics.median(reading[1:]),
    )


@torch.inference_mode()
def write_one(model: Any, collate: ProcessorCollator, image: Path, profile: Profile) -> str:
    """One report as the model card shows it."""
    inputs = collate.prompts([image]).to(model.device)
    output = model.generate(**inputs, max_new_tokens=profile.generation.max_new_tokens, do_sample=False)
    text: str = collate.processor.decode(output[0, inputs.input_ids.shape[1] :], skip_special_tokens=True)
    return text.strip()


def check_same_reports(ours: list[str], theirs: list[str]) -> None:
    """That the reports written in a batch are those written one by one.

    Raises:
        RadVisionError: they are not, or are empty; a ratio of their speeds would mean nothing.
    """
    for number, (mine, other) in enumerate(zip(ours, theirs, strict=False)):
        if mine != other or not mine:
            raise RadVisionError(
                f"report {number} is {mine[:60]!r} in a batch and {other[:60]!r} alone: "
                "the two do not write the same; mend benchmarks/generation.py."
            )
