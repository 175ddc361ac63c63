"""What notebook 05 costs: reports, image use, samples and maps, in passes, hours and memory.

Knows no torch; what was measured is set beside the plan by `reports_beside` and `maps_beside`, for `metrics.json`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from radvision_utils.config import EvaluationSettings, Profile
from radvision_utils.environment import Device, peak_memory_gib
from radvision_utils.planning.cost import (
    BANDWIDTH_SHARE,
    Card,
    Lengths,
    Shape,
    dequantization_seconds,
    language_tflop,
    longest,
    read_shape,
    study_counts,
    typical,
    vision_tflop,
)
from radvision_utils.planning.memory import GIB, ON_CARD, ON_CPU, GibByPart, Numbers, Step

if TYPE_CHECKING:
    from radvision_utils.data.studies import Study
    from radvision_utils.report import Reporter

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


@dataclass(frozen=True)
class JudgingMemory(GibByPart):
    """GiB by part, at the moment when their sum is largest.

    Attributes:
        weights: of the base: language model's linear layers in 4-bit or not, all else in the format of computation.
        adapter: float32.
        cache: keys and values of all tokens so far.
        activations: pixels, and the widest tensors of a layer; with gradients, what autograd keeps.
        logits: of what is scored or drawn.
        moment: "vision", "prompt", "last word", "loss", "occlusion" or "gradient".
    """

    weights: float
    adapter: float
    cache: float
    activations: float
    logits: float


def writing_memory(
    shape: Shape,
    profile: Profile,
    *,
    batch: int | None = None,
    lengths: Lengths | None = None,
    numbers: Numbers = ON_CARD,
) -> JudgingMemory:
    """Memory of writing reports, greedily or by lot.

    Args:
        shape: the model's sizes, from `read_shape`.
        profile: settings of the run.
        batch: studies at a time; None: the profile's.
        lengths: tokens of every study; None: the longest that the model may write.
        numbers: formats of the device.
    """
    lengths = lengths or replace(longest(profile), report=profile.generation.max_new_tokens)
    judge = _Judge.of(shape, profile, batch or profile.generation.batch_size, lengths, numbers)
    return max([judge.vision(), judge.prompt(), judge.last_word()], key=lambda memory: memory.total)


def scoring_memory(
    shape: Shape,
    profile: Profile,
    *,
    batch: int | None = None,
    lengths: Lengths | None = None,
    numbers: Numbers = ON_CARD,
) -> JudgingMemory:
    """Memory of the loss of reports that are there, or of their sentences' probabilities; arguments as above.

    `lengths` None: the longest that the profile allows.
    """
    judge = _Judge.of(shape, profile, batch or profile.generation.batch_size, lengths or longest(profile), numbers)
    return max([judge.vision(), judge.loss()], key=lambda memory: memory.total)


def maps_memory(
    shape: Shape,
    profile: Profile,
    *,
    batch: int | None = None,
    lengths: Lengths | None = None,
    scored: int | None = None,
    numbers: Numbers = ON_CARD,
) -> JudgingMemory:
    """Memory of a report's maps: `batch` images with something taken away at a time, and one with gradients.

    Arguments as of `writing_memory`, but:

    Args:
        lengths: tokens of the study, its neutral sentences counted with the report; None: the longest report that the
            model may write, and neutral sentences as long.
        scored: tokens whose probability is asked for; None: those of report and neutral sentences.
    """
    written = min(profile.model.max_report_tokens, profile.generation.max_new_tokens)
    lengths = lengths or replace(longest(profile), report=2 * written)
    judge = _Judge.of(shape, profile, batch or profile.generation.batch_size, lengths, numbers)
    scored = lengths.report if scored is None else scored
    return max([judge.occlusion(scored), judge.gradient(scored)], key=lambda memory: memory.total)


@dataclass(frozen=True)
class _Judge:
    """A batch that is judged; methods give the memory at a moment."""

    step: Step  # of stage 3, of one study without dropout: what is alike is counted there
    batch: int

    @classmethod
    def of(cls, shape: Shape, profile: Profile, batch: int, lengths: Lengths, numbers: Numbers) -> _Judge:
        still = replace(profile, stage3=replace(profile.stage3, lora_dropout=0.0, accumulation=1))
        return cls(Step(shape, still, 3, batch, 0, False, lengths, numbers), batch)

    def memory(self, moment: str, cache: float, activations: float, logits: float) -> JudgingMemory:
        step = self.step
        parts = {
            "weights": step.weights(),
            "adapter": 4.0 * sum(map(sum, step.tensors_on_device().values())),
            "cache": cache,
            "activations": activations,
            "logits": logits,
        }
        gib = {name: count / GIB for name, count in parts.items()}
        return JudgingMemory(**gib, context=step.numbers.context, moment=moment)

    @property
    def inputs(self) -> float:
        """Pixels in float32; tokens, their kinds and the mask, 8 bytes each."""
        return self.step.patches * self.step.shape.vision.pixel_values * 4 + 3 * 8 * self.step.tokens

    def vision(self) -> JudgingMemory:
        """Within a block: while queries and keys are turned, in float32; behind the attention; at the MLP's product."""
        vision, each = self.step.shape.vision, self._bytes
        turned = 5 * each * vision.width + 4 * (4 if each == 4 else 6) * vision.width
        attended = 12 * each * vision.width
        product = each * (2 * vision.width + 3 * vision.inner)
        angles = 2 * 4 * vision.width // vision.heads
        copy = 0 if each == 4 else each * vision.pixel_values  # of the pixels, in the format of computation
        widest = self.step.patches * (max(turned, attended, product) + angles + copy)
        return self.memory("vision", 0.0, self.inputs + widest, 0.0)

    def prompt(self) -> JudgingMemory:
        prompt = self.step.lengths.image + self.step.lengths.text
        return self.memory("prompt", self.cache(prompt), self.inputs + self.layer(prompt), self.words(self.batch))

    def last_word(self) -> JudgingMemory:
        total = self.step.lengths.total
        return self.memory("last word", self.cache(total), self.inputs + self.repeated(total), self.words(self.batch))

    def loss(self) -> JudgingMemory:
        """Nothing is kept: the last layer's tensors, or the logits of a chunk of tokens."""
        layer, logits = self.layer(self.step.lengths.total), self.step.logits()
        ends = 3.0 * self.step.layer_input()
        moments = [(self.inputs + layer, 0.0), (self.inputs + ends, logits)]
        return self.memory("loss", 0.0, *max(moments, key=sum))

    def occlusion(self, scored: int) -> JudgingMemory:
        """The visual tokens of each image in float32, before and after the exchange, and the layers' widest tensors."""
        step = self.step
        mixed = 2 * 4.0 * self.batch * step.lengths.image * step.shape.language.width
        moments = [(mixed + self.layer(step.lengths.total), 0.0), (mixed + 3 * step.layer_input(), self.words(scored))]
        return self.memory("occlusion", 0.0, *max(moments, key=sum))

    def gradient(self, scored: int) -> JudgingMemory:
        """One image, with all that autograd keeps of every layer; the logits, or the last layer's gradients."""
        one = replace(self.step, batch=1)
        language = one.shape.language
        kept = language.depth * one.language_layer() + one.ends()
        logarithms = 4.0 * scored * language.vocabulary  # which their gradient needs
        wide = 3.0 * one.tokens * language.inner * one.numbers.compute
        moments = [(kept, self.words(scored)), (kept + wide, logarithms)]
        return self.memory("gradient", 0.0, *max(moments, key=sum))

    def cache(self, tokens: int) -> float:
        language = self.step.shape.language
        return 2.0 * language.depth * self.batch * tokens * language.key_heads * language.head * self._bytes

    def repeated(self, tokens: int) -> float:
        """Keys and values of a layer: longer by a token beside the old ones, then repeated for all heads."""
        language = self.step.shape.language
        return 2.0 * self.batch * tokens * language.width * self._bytes

    def layer(self, tokens: int) -> float:
        """Within a feed-forward network: gate, up and their product, or the 4-bit weight in full; and what waits
        meanwhile: the embeddings, the residual, their norms, the image's features, the rotary angles."""
        language = self.step.shape.language
        count = self.batch * tokens
        wide = count * language.inner * self._bytes
        weight = language.width * language.inner * self._bytes if self.step.quantized else 0
        waiting = 5 * count * language.width + self.batch * self.step.lengths.image * language.width
        return (waiting + 2 * count * language.head) * self._bytes + max(3 * wide, 2 * wide + weight)

    def words(self, rows: int) -> float:
        """Logits, and float32 copies of them and of their logarithms or probabilities."""
        return rows * self.step.shape.language.vocabulary * (self._bytes + 4.0 + 4.0)

    @property
    def _bytes(self) -> int:
        return self.step.numbers.compute


def reports_beside(reporter: Reporter, studies: Sequence[Study]) -> dict[str, Any]:
    """Writing reports on the studies, and scoring those that they have: `{"measured": GiB or None, "planned": GiB}`.

    Planned are torch's tensors; measured is the card's peak since `forget_peak_memory`, None where there is no card.
    """
    profile = reporter.profile
    shape, batch = read_shape(profile.model), min(profile.generation.batch_size, len(studies))
    report = max(len(reporter.collator.report_ids(study.report)) for study in studies)
    written, scored = (_lengths(reporter, studies, tokens) for tokens in (profile.generation.max_new_tokens, report))
    numbers = _numbers(reporter)
    writing = writing_memory(shape, profile, batch=batch, lengths=written, numbers=numbers)
    scoring = scoring_memory(shape, profile, batch=batch, lengths=scored, numbers=numbers)
    return _beside(max(writing.tensors, scoring.tensors), reporter.device)


def maps_beside(reporter: Reporter, studies: Sequence[Study], behind: int, scored: int) -> dict[str, Any]:
    """As `reports_beside`, for maps.

    Args:
        reporter: the model.
        studies: whose maps.
        behind: tokens behind the prompt of the longest report, with its neutral sentences.
        scored: tokens of it whose probability is asked for.
    """
    lengths, shape = _lengths(reporter, studies, behind), read_shape(reporter.profile.model)
    planned = maps_memory(shape, reporter.profile, lengths=lengths, scored=scored, numbers=_numbers(reporter))
    return _beside(planned.tensors, reporter.device)


def _beside(planned: float, device: Device) -> dict[str, Any]:
    measured = round(peak_memory_gib(device), 3) if device.kind == "cuda" else None
    return {"measured": measured, "planned": round(planned, 3)}


def _numbers(reporter: Reporter) -> Numbers:
    return ON_CARD if reporter.device.kind == "cuda" else ON_CPU


def _lengths(reporter: Reporter, studies: Sequence[Study], report: int) -> Lengths:
    image = reporter.profile.model.visual_tokens
    prompt = max(len(reporter.prompt(study)) for study in studies)
    return Lengths(image, prompt - image, report)
