"""What judging takes by arithmetic: which reports and passes notebook 05 asks for, and their hours on a card.

`evaluation/` and `explain/` do what is counted here; a test compares the numbers they share. Knows no torch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from radvision_utils.config import EvaluationSettings, Profile
from radvision_utils.training.cost import (
    BANDWIDTH_SHARE,
    Card,
    dequantization_seconds,
    language_tflop,
    study_counts,
    typical,
    vision_tflop,
)
from radvision_utils.training.judging_memory import JudgingMemory, maps_memory, scoring_memory, writing_memory
from radvision_utils.training.shape import Lengths, Shape, longest, read_shape

USE_STUDIES = 200  # `image_use.SAMPLE`
CALIBRATED = 200  # `confidence.CALIBRATED`
NEUTRAL_IMAGES = 64  # `explain.neutral.IMAGES`
DRAWN = 60  # `evidence.VALIDATED`
WINDOWS, RANDOM_SETS = 9, 20  # `explain.WINDOWS`, along a side, and `explain.RANDOM_SETS`
# Of 1,232 Open-I reports with both sections: the longest of 32 drawn by lot has so many tokens on average; sentences of
# a report; and of the first 1,000 the share that the rule labels find to assert something on one side only.
LONGEST_OF_BATCH = 170
SENTENCES = 6.5
ONE_SIDED = 0.19
# What Python takes to launch a step of decoding in 4-bit with LoRA, however many reports: 113 ms measured at batch 32
# on an H100's host with random weights (119, 159 and 130 at 1, 8 and 64), of which the card works 19. A slower
# processor takes longer.
STEP_SECONDS = 0.113


@dataclass(frozen=True)
class JudgingPart:
    """A part of notebook 05 on a card.

    Attributes:
        name: what is done.
        setting: what asks for it where the profile does not; "" where it does.
        reports: that are written.
        passes: of the language model over a whole sequence, prompts of the reports not counted.
        memory: at the fullest moment.
        hours: with reports of usual length; None: the card's speed is not known.
        hours_at_most: where every report runs to `generation.max_new_tokens`.
    """

    name: str
    setting: str
    reports: int
    passes: int
    memory: JudgingMemory
    hours: float | None
    hours_at_most: float | None


def plan_judging(profile: Profile, card: Card) -> list[JudgingPart]:
    """All parts of notebook 05, those too that the profile leaves out: they say which setting asks for them.

    One card does it, also where several train.
    """
    counts, asked, usual = study_counts(profile), profile.evaluation, EvaluationSettings()
    judge, test = Judging(read_shape(profile.model), profile, card), counts["test"]
    some, again = min(USE_STUDIES, test), min(CALIBRATED, counts["validation"])
    rows = ["base", *(f"stage {stage}" for stage in asked.judged if stage)]
    others = [f"stage {stage}" for stage in usual.judged if stage not in asked.judged]
    # The base's encoder also sees all training and test images, for the nearest neighbor.
    parts = [
        judge.writing(f"reports: {', '.join(rows)}", "", len(rows) * test, len(rows) * test, counts["train"] + test)
    ]
    parts.append(judge.writing("image use", "", 2 + round(ONE_SIDED * some), 4 * some))
    if others:
        name = f"reports: {', '.join(others)}"
        parts.append(judge.writing(name, f"evaluation.stages={usual.stages}", len(others) * test, len(others) * test))
    maps, samples = asked.evidence or usual.evidence, asked.samples or usual.samples
    setting = "" if asked.evidence else f"evaluation.evidence={maps}"
    parts.append(judge.maps(setting, min(maps, test), min(DRAWN, test) if profile.data.source == "phantom" else 0))
    setting = "" if asked.samples else f"evaluation.samples={samples}"
    reports = samples * (test + again) + again
    parts.append(judge.writing(f"{samples} samples a study", setting, reports, test + again))
    return sorted(parts, key=lambda part: bool(part.setting))


@dataclass(frozen=True)
class Judging:
    """A card that judges a run."""

    shape: Shape
    profile: Profile
    card: Card

    def writing(self, name: str, setting: str, reports: int, passes: int, images: int = 0) -> JudgingPart:
        """Reports, and passes over whole sequences, each with its image; and images that the encoder sees alone."""
        sample, most = typical(longest(self.profile)), self.profile.generation.max_new_tokens
        prompt = Lengths(sample.image, sample.text, 1)
        once = self.seconds(reports, prompt) + self.seconds(passes, sample) + self.seeing(reports + passes + images)
        batches = math.ceil(reports / self.profile.generation.batch_size)
        hours = [
            (once + batches * steps * self.step_seconds(prompt.total + steps)) / 3600
            for steps in (min(LONGEST_OF_BATCH, most), most)
        ]
        memories = writing_memory(self.shape, self.profile), scoring_memory(self.shape, self.profile)
        memory = max(memories, key=lambda memory: memory.total)
        likely, at_most = hours if self.card.speed else (None, None)
        return JudgingPart(name, setting, reports, passes, memory, likely, at_most)

    def maps(self, setting: str, studies: int, drawn: int) -> JudgingPart:
        """Maps of the worst reports, and of `drawn` phantoms, these once more with shuffled weights.

        A pass backward costs one forward. What the curves of deletion and insertion take on phantoms is not counted.
        """
        occluded = 1 + math.ceil(self.shape_side / math.ceil(self.shape_side / WINDOWS)) ** 2
        gradients = 1 + SENTENCES
        check = 1 + SENTENCES + RANDOM_SETS + 1
        passes = round(studies * (occluded + gradients + check) + drawn * (2 * (occluded + gradients) + check))
        sample = typical(longest(self.profile))
        # A neutral sentence of about its length stands behind the report for each of the report's own.
        seconds = self.seconds(passes, Lengths(sample.image, sample.text, 2 * sample.report))
        seconds += self.seeing(NEUTRAL_IMAGES + studies + 2 * drawn)
        hours = seconds / 3600 if self.card.speed else None
        memory = maps_memory(self.shape, self.profile)
        return JudgingPart(f"maps of {studies + drawn} reports", setting, 0, passes, memory, hours, hours)

    @property
    def shape_side(self) -> int:
        """Visual tokens along a side."""
        return math.isqrt(self.profile.model.visual_tokens)

    def seconds(self, studies: int, lengths: Lengths) -> float:
        """Of the language model over whole sequences, a batch at a time; 0 where the card's speed is not known."""
        if not self.card.speed:
            return 0.0
        rank, batches = self.profile.stage3.lora_rank, math.ceil(studies / self.profile.generation.batch_size)
        unpacking = dequantization_seconds(self.shape, self.card, 0) / 2 if self.quantized else 0.0
        computing = studies * language_tflop(self.shape, rank, lengths, lengths.report) / self.card.speed
        return batches * unpacking + computing

    def seeing(self, studies: int) -> float:
        """Seconds of the vision encoder."""
        rank, lengths = self.profile.stage1.lora_rank, longest(self.profile)
        return studies * vision_tflop(self.shape, rank, lengths) / self.card.speed if self.card.speed else 0.0

    def step_seconds(self, tokens: int) -> float:
        """A word of every report of a batch: what the card does, or what Python takes to launch it, if that is more."""
        return max(STEP_SECONDS, self.card_seconds(tokens))

    def card_seconds(self, tokens: int) -> float:
        """The card's own work in a step: weights, head and cache are read, 4-bit weights unpacked and read again."""
        if not self.card.speed:
            return 0.0
        language, batch = self.shape.language, self.profile.generation.batch_size
        head = language.vocabulary * language.width
        cache = 2 * 2 * language.depth * language.key_heads * language.head * batch * tokens
        read = (2 * (language.linear_weights + head) + cache) / 1e9 / (self.card.bandwidth_gbs * BANDWIDTH_SHARE)
        unpacking = dequantization_seconds(self.shape, self.card, 0) / 2 if self.quantized else 0.0
        return read + unpacking + 2 * batch * (language.linear_weights + head) / 1e12 / self.card.speed

    @property
    def quantized(self) -> bool:
        return self.profile.model.quantization == "nf4"
