"""What notebook 05 costs: reports, image use, samples and maps, in passes, hours and memory.

Knows no torch; what was measured is set beside the plan by `reports_beside` and `maps_beside`, for `metrics.json`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from radvision_utils.config import AUTO, EvaluationSettings, Profile
from radvision_utils.environment import Device, peak_memory_gib
from radvision_utils.planning.cost import Card, Lengths, longest, read_shape, study_counts, typical
from radvision_utils.planning.plan import MARGIN_GIB, card_here
from radvision_utils.planning.step import ON_CARD, ON_CPU, Memory, Numbers, Step

if TYPE_CHECKING:
    from radvision_utils.data.studies import Study
    from radvision_utils.report import Reporter

logger = logging.getLogger(__name__)

USE_STUDIES = 200  # `image_use.SAMPLE`
CALIBRATED = 200  # `evidence.confidence.CALIBRATED`
NEUTRAL_IMAGES = 64  # `evidence.passage.IMAGES`
DRAWN = 60  # `evidence.study_maps.VALIDATED`
WINDOWS, RANDOM_SETS = 9, 20  # `evidence.explain.WINDOWS`, along a side, and `RANDOM_SETS`
# Of 1,232 Open-I reports with both sections: the longest of 32 drawn by lot has so many tokens on average; sentences of
# a report; and of the first 1,000 the share that the rule labels find to assert something on one side only.
LONGEST_OF_BATCH = 170
SENTENCES = 6.5
ONE_SIDED = 0.19
# What Python takes to launch a step of decoding in 4-bit with LoRA, however many reports: 113 ms measured at batch 32
# on an H100's host with random weights (119, 159 and 130 at 1, 8 and 64), of which the card works 19. A slower
# processor takes longer.
STEP_SECONDS = 0.113
MOST_REPORTS = 64  # at a time: a batch takes as many steps as its longest report, and a step hardly gets slower by then
_PARTS = ("cache", "activations", "logits")


@dataclass(frozen=True)
class JudgingPart:
    """A part of notebook 05 on a card.

    Attributes:
        name: what is done.
        setting: what asks for it where the profile does not; "" where it does.
        reports: that are written.
        passes: of the language model over a whole sequence, prompts of the reports not counted.
        memory: at the fullest moment.
        hours: with reports of usual length; NaN: the card's speed is not known.
        hours_at_most: where every report runs to `generation.max_new_tokens`.
    """

    name: str
    setting: str
    reports: int
    passes: int
    memory: Memory
    hours: float
    hours_at_most: float


def plan_judging(profile: Profile, card: Card) -> list[JudgingPart]:
    """All parts of notebook 05, those too that the profile leaves out: they say which setting asks for them.

    One card does it, also where several train.
    """
    judge, counts = settled(profile, card), study_counts(profile)
    asked, usual, test = profile.evaluation, EvaluationSettings(), counts["test"]
    some, again = min(USE_STUDIES, test), min(CALIBRATED, counts["validation"])
    rows = ["base", *(f"stage {stage}" for stage in asked.judged if stage)]
    others = [f"stage {stage}" for stage in usual.judged if stage not in asked.judged]
    name, written = f"reports: {', '.join(rows)}", len(rows) * test
    parts = [
        # The base's encoder also sees all training and test images, for the nearest neighbor.
        judge.writing(name, "", written, written, counts["train"] + test),
        judge.writing("image use", "", 2 + round(ONE_SIDED * some), 4 * some),
    ]
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


def settled(profile: Profile, card: Card) -> Judging:
    """With as many reports at a time as are written fastest in place of `AUTO`, up to `MOST_REPORTS`, and copies of
    4-bit weights or none: what leaves `MARGIN_GIB` free, or, where nothing does, needs least."""
    asked = profile.generation.batch_size
    sizes = [1 << power for power in range(MOST_REPORTS.bit_length())] if asked == AUTO else [asked]
    copies = (False, True) if profile.model.quantization == "nf4" else (False,)
    generations = [replace(profile.generation, batch_size=size) for size in sizes]
    ways = [Judging(replace(profile, generation=each), card, copied) for each in generations for copied in copies]
    return min(ways, key=Judging.effort)


def reports_here(profile: Profile, device: Device) -> Profile:
    """The profile as `settled`, on the device at hand, and told in the log."""
    if profile.generation.batch_size != AUTO:
        return profile
    card = card_here(device)
    profile = settled(profile, card).profile
    logger.info("reports are written %d at a time, as fit %s", profile.generation.batch_size, card.title)
    return profile


def copied_here(profile: Profile, device: Device) -> bool:
    """Whether who writes reports on the device at hand keeps 4-bit weights a second time in 16 bits."""
    return device.kind == "cuda" and settled(profile, card_here(device)).copied


@dataclass(frozen=True)
class Judging:
    """A card that judges a run; `copied`: it keeps 4-bit weights a second time in 16 bits."""

    profile: Profile
    card: Card
    copied: bool = False

    def writing(self, name: str, setting: str, reports: int, passes: int, images: int = 0) -> JudgingPart:
        """Reports, and passes over whole sequences, each with its image; and images that the encoder sees alone."""
        whole, most = longest(self.profile), self.profile.generation.max_new_tokens
        prompt = replace(whole, report=1)
        once = self.seconds(reports, prompt) + self.seconds(passes, typical(whole))
        once += self.seeing(reports + passes + images)
        batches = math.ceil(reports / self.profile.generation.batch_size)
        likely, at_most = (
            (once + batches * steps * self.step_seconds(prompt.total + steps)) / 3600
            for steps in (min(LONGEST_OF_BATCH, most), most)
        )
        return JudgingPart(name, setting, reports, passes, self.memory(), likely, at_most)

    def effort(self) -> tuple[float, ...]:
        """Less is better: the fewest seconds a report of what fits, then the least memory of what does not."""
        gib, size = self.memory().total, self.profile.generation.batch_size
        if gib + MARGIN_GIB > self.card.usable_gib:
            return (1, gib)
        return (0, self.step_seconds(longest(self.profile).total) / size, not self.copied)

    def memory(self) -> Memory:
        """Of reports that are written or scored, at the fullest moment."""
        whole = longest(self.profile)
        written = replace(whole, report=self.profile.generation.max_new_tokens)
        return max(self.batch(written).writing(), self.batch(whole).scoring(), key=lambda memory: memory.total)

    def maps(self, setting: str, studies: int, drawn: int) -> JudgingPart:
        """Maps of the worst reports, and of `drawn` phantoms, these once more with shuffled weights.

        A pass backward costs one forward. What the curves of deletion and insertion take on phantoms is not counted.
        """
        side = math.isqrt(self.profile.model.visual_tokens)
        occluded = 1 + math.ceil(side / math.ceil(side / WINDOWS)) ** 2
        gradients = 1 + SENTENCES
        check = gradients + RANDOM_SETS
        passes = round(studies * (occluded + gradients + check) + drawn * (2 * (occluded + gradients) + check))
        # A neutral sentence of about its length stands behind the report for each of the report's own.
        whole, sample = longest(self.profile), typical(longest(self.profile))
        seconds = self.seconds(passes, replace(sample, report=2 * sample.report))
        hours = (seconds + self.seeing(NEUTRAL_IMAGES + studies + 2 * drawn)) / 3600
        written = min(whole.report, self.profile.generation.max_new_tokens)
        memory = self.batch(replace(whole, report=2 * written)).maps(2 * written)
        return JudgingPart(f"maps of {studies + drawn} reports", setting, 0, passes, memory, hours, hours)

    def batch(self, lengths: Lengths) -> JudgingStep:
        """Studies of such lengths, as many at a time as the profile says."""
        return JudgingStep.of(self.profile, lengths, self.profile.generation.batch_size, copied=self.copied)

    def seconds(self, studies: int, lengths: Lengths) -> float:
        """Of the language model over whole sequences, once forward with the reports' logits, a batch at a time."""
        step = self.batch(lengths)
        head = 2 * lengths.report * step.shape.language.vocabulary * step.shape.language.width
        computing = self.card.seconds(studies * (step.language_operations()[0] + head) / 1e12)
        return math.ceil(studies / step.batch) * step.dequantizing_seconds(self.card) + computing

    def seeing(self, studies: int) -> float:
        """Seconds of the vision encoder and the projector."""
        step = self.batch(longest(self.profile))
        projector = 2 * step.lengths.image * step.shape.projector_parameters
        return self.card.seconds(studies * (step.vision_operations() + projector) / 1e12)

    def step_seconds(self, tokens: int) -> float:
        """A word of every report of a batch: what the card does, or what Python takes to launch it, if that is more."""
        return max(STEP_SECONDS, self.card_seconds(tokens))

    def card_seconds(self, tokens: int) -> float:
        """The card's own work in a step: weights, head and cache are read, 4-bit weights unpacked and read again."""
        step = self.batch(longest(self.profile))
        language = step.shape.language
        weights = language.linear_weights + language.vocabulary * language.width
        read = self.card.reading_seconds((2 * weights + step.cache(tokens)) / 1e9)
        return read + step.dequantizing_seconds(self.card) + self.card.seconds(2 * step.batch * weights / 1e12)


class JudgingStep(Step):
    """A batch that is judged: what is alike is counted as for stage 3 without dropout and checkpoints."""

    @classmethod
    def of(
        cls, profile: Profile, lengths: Lengths, batch: int, numbers: Numbers = ON_CARD, copied: bool = False
    ) -> JudgingStep:
        """So many studies of such lengths."""
        still = replace(profile.stage3, micro_batch=batch, accumulation=1, lora_dropout=0.0, checkpointed_layers=0)
        shape, profile = read_shape(profile.model), replace(profile, stage3=still)
        return cls(shape, profile, 3, lengths, numbers=numbers, copied=copied)

    def writing(self) -> Memory:
        """Of writing reports greedily; by lot it is less."""
        inputs, words = self.inputs(), self.words(self.batch)
        prompt, total = self.lengths.image + self.lengths.text, self.lengths.total
        return self.fullest(
            _PARTS,
            [
                ("vision", 0.0, inputs + self.vision(), 0.0),
                # Written greedily, the words' places in the cache are there from the beginning.
                ("prompt", self.cache(total), inputs + self.layer(prompt), words),
            ],
        )

    def scoring(self) -> Memory:
        """Of the loss of reports that are there, or of their sentences' probabilities; nothing is kept."""
        inputs = self.inputs()
        return self.fullest(
            _PARTS,
            [
                ("vision", 0.0, inputs + self.vision(), 0.0),
                ("loss", 0.0, inputs + self.layer(self.lengths.total), 0.0),
                ("loss", 0.0, inputs + 3.0 * self.layer_input(), self.logits()),  # of a chunk of tokens
            ],
        )

    def maps(self, scored: int) -> Memory:
        """Of maps: the batch's images with something taken away, and one image with gradients.

        Args:
            scored: tokens whose probability is asked for; the report's lengths count the neutral sentences too.
        """
        language = self.shape.language
        # The visual tokens of each image in float32, before and after the exchange.
        mixed = 2 * 4.0 * self.batch * self.lengths.image * language.width
        one = JudgingStep.of(self.profile, self.lengths, 1, self.numbers, self.copied)
        kept = language.depth * one.language_layer() + one.ends()  # all that autograd keeps
        last_gradients = 3.0 * one.tokens * language.inner * self.numbers.compute
        logarithms = 4.0 * scored * language.vocabulary  # which their gradient needs
        return self.fullest(
            _PARTS,
            [
                ("occlusion", 0.0, mixed + self.layer(self.lengths.total), 0.0),
                ("occlusion", 0.0, mixed + 3 * self.layer_input(), self.words(scored)),
                ("gradient", 0.0, kept, self.words(scored)),
                ("gradient", 0.0, kept + last_gradients, logarithms),
            ],
        )

    def inputs(self) -> float:
        """As in training, without labels."""
        return super().inputs() - 8 * self.tokens

    def vision(self) -> float:
        """Within a block: while queries and keys are turned, in float32; behind the attention; at the MLP's product."""
        vision, each = self.shape.vision, self.numbers.compute
        turned = 5 * each * vision.width + 4 * (4 if each == 4 else 6) * vision.width
        attended = 12 * each * vision.width
        product = each * (2 * vision.width + 3 * vision.inner)
        angles = 2 * 4 * vision.width // vision.heads
        copy = 0 if each == 4 else each * vision.pixel_values  # of the pixels, in the format of computation
        return float(self.patches * (max(turned, attended, product) + angles + copy))

    def cache(self, tokens: int) -> float:
        """Keys and values of so many tokens of each report."""
        language = self.shape.language
        return 2.0 * language.depth * self.batch * tokens * language.key_heads * language.head * self.numbers.compute

    def layer(self, tokens: int) -> float:
        """Within a feed-forward network: gate, up and their product, or the 4-bit weight in full; and what waits
        meanwhile: the embeddings, the residual, their norms, the image's features, the rotary angles."""
        language, each = self.shape.language, self.numbers.compute
        count = self.batch * tokens
        wide = count * language.inner * each
        weight = language.width * language.inner * each if self.dequantizes else 0
        waiting = 5 * count * language.width + self.batch * self.lengths.image * language.width
        return (waiting + 2 * count * language.head) * each + max(3 * wide, 2 * wide + weight)

    def words(self, rows: int) -> float:
        """Logits, and float32 copies of them and of their logarithms or probabilities."""
        return rows * self.shape.language.vocabulary * (self.numbers.compute + 4.0 + 4.0)


def reports_beside(reporter: Reporter, studies: Sequence[Study]) -> dict[str, Any]:
    """Writing reports on the studies, and scoring those that they have: `{"measured": GiB or None, "planned": GiB}`.

    Planned are torch's tensors; measured is the card's peak since `forget_peak_memory`, None where there is no card.
    """
    report = max(len(reporter.collator.report_ids(reporter.collator.target(study))) for study in studies)
    size = min(reporter.profile.generation.batch_size, len(studies))
    writing = _step(reporter, studies, reporter.profile.generation.max_new_tokens, size).writing()
    scoring = _step(reporter, studies, report, size).scoring()
    return _beside(max(writing.tensors, scoring.tensors), reporter.device)


def maps_beside(reporter: Reporter, studies: Sequence[Study], behind: int, scored: int) -> dict[str, Any]:
    """As `reports_beside`, for maps.

    Args:
        reporter: the model.
        studies: whose maps.
        behind: tokens behind the prompt of the longest report, with its neutral sentences.
        scored: tokens of it whose probability is asked for.
    """
    step = _step(reporter, studies, behind, reporter.profile.generation.batch_size)
    return _beside(step.maps(scored).tensors, reporter.device)


def _step(reporter: Reporter, studies: Sequence[Study], report: int, size: int) -> JudgingStep:
    """So many of the studies at a time, with so many tokens behind the longest prompt."""
    profile, image = reporter.profile, reporter.profile.model.visual_tokens
    prompt = max(len(reporter.prompt(study)) for study in studies)
    numbers = ON_CARD if reporter.device.kind == "cuda" else ON_CPU
    copied = any(hasattr(weight, "dequantized") for weight in reporter.core.parameters())
    lengths = Lengths(image, prompt - image, report)
    return JudgingStep.of(profile, lengths, size, numbers, copied)


def _beside(planned: float, device: Device) -> dict[str, Any]:
    measured = round(peak_memory_gib(device), 3) if device.kind == "cuda" else None
    return {"measured": measured, "planned": round(planned, 3)}
