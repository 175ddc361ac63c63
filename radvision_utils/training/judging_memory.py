"""How much memory judging needs, by arithmetic: for writing reports, for their loss, and for maps of their sentences.

As `memory.py` for training: each term says which tensors it counts, and the tests compare the sum with live tensors on
a CPU. Knows no torch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from radvision_utils.config import Profile
from radvision_utils.training.memory import GIB, ON_CARD, GibByPart, Numbers, Step
from radvision_utils.training.shape import Lengths, Shape, longest


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

    Args:
        shape: the model's sizes, from `read_shape`.
        profile: settings of the run.
        batch: images at a time; None: the profile's.
        lengths: tokens of the study, its neutral sentences counted with the report; None: the longest report that the
            model may write, and neutral sentences as long.
        scored: tokens whose probability is asked for; None: those of report and neutral sentences.
        numbers: formats of the device.
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
