"""One training step by arithmetic: its operations, its seconds on a card, and its memory when that is fullest.

Memory is what autograd keeps of every layer; each term says which tensors it counts. The tests compare the sum with the
live tensors of real training steps on a CPU. Of operations, a multiplication and an addition are two: a frozen layer
costs one product forward and one backward (its input's gradient), a trained one two backward, and a checkpointed one is
computed forward twice. Knows no torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from radvision_utils.config import Profile, StageSettings
from radvision_utils.planning.cost import Card, LanguageShape, Lengths, Shape, VisionShape

GIB = 2**30
# Beside torch's tensors: the CUDA context with its loaded kernels (0.3 to 0.5 GiB in nvidia-smi), cuBLAS's workspace,
# and what the allocator holds in blocks too small for the next tensor. An allowance, not arithmetic.
CONTEXT_GIB = 0.75
# The loss makes logits in chunks of so many bytes of float32 (`loss.py`); their logarithms take a second such chunk.
_LOGIT_CHUNK_BYTES = 128 << 20
_SMALL_TENSOR = 4096  # numbers; the 8-bit optimizer keeps the state of smaller tensors in float32
_QUANTIZED_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)  # 4 bits, an 8-bit scale for 64, a float32 scale for 256 scales
_DEQUANTIZED_BYTES = 0.53 + 2  # read in 4-bit with its scales, written in 16
# Python launches a card's kernels one after another, and a fast card waits for it: seconds for one layer once forward,
# backward or again, however small the micro-batch. From 6.7 and 4.0 studies/s of stages 2 and 3 at micro-batch 4 on an
# H100's host (random weights of the 7B's shape); a slower processor takes longer.
_LAYER_SECONDS = {1: 0.006, 2: 0.006, 3: 0.010}  # by stage: in stage 3 every layer has LoRA that trains


@dataclass(frozen=True)
class Numbers:
    """Bytes of the formats that a device computes in.

    Attributes:
        compute: of weights and activations.
        mask: of an element of a dropout mask; a CPU keeps the mask in the format of computation.
        context: GiB beside the tensors; 0: it is no card.
    """

    compute: int
    mask: int
    context: float


ON_CARD = Numbers(compute=2, mask=1, context=CONTEXT_GIB)
ON_CPU = Numbers(compute=4, mask=4, context=0.0)  # float32; the process's libraries are not counted


@dataclass(frozen=True)
class Memory:
    """GiB by part, at the moment when their sum is largest.

    Attributes:
        parts: `weights` of the base, the language model's linear layers in 4-bit, in the format of computation or
            both, all else in that format; `trainables`, the whole adapter in float32, of which a stage trains a part;
            `activations`, the inputs, what autograd keeps and the widest tensors of a layer; `logits` of what is
            scored, with the loss's copies; `context`, an allowance for CUDA itself and for fragmentation. In training
            also `gradients` in float32 and AdamW's state, `optimizer`: that of `paged_adamw_8bit` may be moved to the
            computer's memory when the card is full, so a stage that is short of less than this part still runs,
            slower. In judging also the `cache` of keys and values.
        moment: when it is, such as "decoder layer" or "optimizer step".
    """

    parts: dict[str, float]
    moment: str

    @property
    def total(self) -> float:
        return sum(self.parts.values())

    @property
    def tensors(self) -> float:
        """GiB that torch counts as allocated: all but the context."""
        return self.total - self.parts["context"]


@dataclass(frozen=True)
class Step:
    """A micro-batch that trains a stage; methods that do not say otherwise give bytes.

    Attributes:
        shape: the model's sizes, from `read_shape`.
        profile: settings of the run; the stage's own say how many studies and how many checkpointed layers.
        stage: 1, 2 or 3.
        lengths: tokens of every study.
        cached: what enters the projector comes from the disk, and the vision encoder's blocks are not on the card.
        numbers: formats of the device.
        copied: 4-bit weights are kept a second time in the format of computation.
    """

    shape: Shape
    profile: Profile
    stage: int
    lengths: Lengths
    cached: bool = False
    numbers: Numbers = ON_CARD
    copied: bool = False

    @property
    def settings(self) -> StageSettings:
        return self.profile.stage(self.stage)

    @property
    def batch(self) -> int:
        """Studies at once."""
        return self.settings.micro_batch

    @property
    def layers(self) -> int:
        """Checkpointed decoder layers; 0: the vision encoder's blocks are not checkpointed either."""
        depth, asked = self.shape.language.depth, self.settings.checkpointed_layers
        return depth if asked is None else min(asked, depth)

    @property
    def quantized(self) -> bool:
        """Whether the language model's linear layers are 4-bit."""
        return self.profile.model.quantization == "nf4"

    @property
    def dequantizes(self) -> bool:
        """Whether 4-bit weights are expanded in every pass."""
        return self.quantized and not self.copied

    # Of the whole micro-batch

    @property
    def tokens(self) -> int:
        return self.batch * self.lengths.total

    @property
    def patches(self) -> int:
        return self.batch * self.lengths.image * self.shape.vision.merge**2

    # Operations and seconds

    def tflop(self) -> float:
        """10^12 operations of one study."""
        language, report = self.shape.language, self.lengths.report
        forward, backward = self.language_operations()
        again = self.layers / language.depth * forward
        head = 2 * 2 * report * language.vocabulary * language.width
        projector = (2 + {1: 2, 2: 4, 3: 0}[self.stage]) * self.lengths.image * self.shape.projector_parameters
        whole = forward + again + backward + head + projector + self.vision_operations()
        if self.layers < language.depth:  # the last feed-forward network sees the report alone (`loss.py`)
            weights, rank = 3 * language.width * language.inner, self.profile.stage3.lora_rank
            lora = 3 * rank * (language.width + language.inner) if self.stage == 3 else 0
            whole -= 2 * (self.lengths.total - report) * (2 * weights + 3 * lora)
        return whole / 1e12

    def language_operations(self) -> tuple[int, int]:
        """Of the decoder layers for one study, forward and backward."""
        language, total = self.shape.language, self.lengths.total
        products = 2 * total * language.linear_weights
        # Before stage 3 the LoRA adds nothing and is not computed.
        lora = 2 * total * sum(self.shape.adapter_tensors(self.profile)[3]) if self.stage == 3 else 0
        # Causal attention needs half of the products of queries with keys and of weights with values.
        attention = 2 * total**2 * language.width * language.depth
        return products + lora + attention, products + 2 * lora + 2 * attention

    def vision_operations(self) -> int:
        """Of the vision encoder for one study: in stage 1 also backward, and again where it is checkpointed."""
        vision = self.shape.vision
        patches, whole = self.lengths.image * vision.merge**2, len(vision.whole_image)
        windows = (vision.depth - whole) * patches * min(patches, (vision.window // vision.patch) ** 2)
        attention = 4 * (whole * patches**2 + windows) * vision.width
        products = 2 * patches * vision.depth * sum(a * b for a, b in vision.linears())
        lora = 2 * patches * sum(self.shape.adapter_tensors(self.profile)[1])
        forward = products + lora + 2 * patches * self.shape.patch_embedding + attention
        if self.stage > 1:
            return 0 if self.cached else forward
        return (2 if self.layers else 1) * forward + products + 2 * lora + 2 * attention

    def seconds(self, card: Card) -> float:
        """Of the micro-batch on a card: what it computes, or what Python takes to launch it, if that is more.

        NaN where the card's speed is not known.
        """
        depth = self.shape.language.depth
        passes = 2 + self.layers / depth  # forward, backward, and again where checkpointed
        seeing = 0 if self.cached else 1 if self.stage > 1 else 3 if self.layers else 2
        launching = passes * depth * _LAYER_SECONDS[self.stage] + seeing * self.shape.vision.depth * _LAYER_SECONDS[1]
        working = card.seconds(self.batch * self.tflop()) + passes * self.dequantizing_seconds(card)
        return max(working, launching)  # NaN first: it then stays

    def dequantizing_seconds(self, card: Card) -> float:
        """Of one pass over the language model, that expanding its 4-bit weights takes, however many the studies."""
        if not self.dequantizes:
            return 0.0
        return card.reading_seconds(self.shape.language.linear_weights * _DEQUANTIZED_BYTES / 1e9)

    # Memory

    def memory(self) -> Memory:
        """At the step's fullest moment."""
        inputs, optimizer, gradients = self.inputs(), self.optimizer(), 4.0 * sum(self.tensors_on_device()[self.stage])
        # Gradients of earlier micro-batches stay until the optimizer's step.
        earlier = gradients if self.settings.accumulation > 1 else 0.0
        kept = self.vision_kept() + self.language_kept()
        moments = [
            ("loss", earlier, optimizer, inputs + kept, self.logits()),
            ("decoder layer", earlier, optimizer, inputs + self.language_backward(), 0.0),
            ("optimizer step", gradients, optimizer, 0.0, 0.0),
        ]
        if self.stage == 1:
            moments.append(("vision block", gradients, optimizer, inputs + self.vision_backward(), 0.0))
        elif not self.cached:
            moments.append(("vision forward", earlier, optimizer, inputs + self.vision_forward(), 0.0))
        return self.fullest(("gradients", "optimizer", "activations", "logits"), moments)

    def fullest(self, parts: Sequence[str], moments: Sequence[tuple[Any, ...]]) -> Memory:
        """The moment with most bytes in these parts, and with what is always there."""
        moment, *most = max(moments, key=lambda moment: sum(moment[1:]))
        trainables = 4.0 * sum(map(sum, self.tensors_on_device().values()))
        count = {"weights": self.weights(), "trainables": trainables, **dict(zip(parts, most, strict=True))}
        gib = {part: each / GIB for part, each in count.items()}
        return Memory({**gib, "context": self.numbers.context}, moment)

    # Always there

    def weights(self) -> float:
        language, bytes_each = self.shape.language, self.numbers.compute
        linears = language.linear_weights * (_QUANTIZED_BYTES if self.quantized else bytes_each)
        linears += language.linear_weights * bytes_each if self.copied else 0
        # The projector in the base's format stays beside the copy that trains.
        tower = self.shape.patch_embedding + self.shape.projector_parameters
        blocks = 0 if self.blocks_left else self.shape.vision_parameters - self.shape.patch_embedding
        return linears + bytes_each * (language.other_weights + language.embeddings + tower + blocks)

    @property
    def blocks_left(self) -> bool:
        """With cached features the vision encoder's blocks, with their LoRA, leave a card; a CPU keeps them."""
        return self.cached and self.numbers.context > 0

    def tensors_on_device(self) -> dict[int, list[int]]:
        """Numbers in each of the adapter's tensors, by the stage that trains it."""
        tensors = self.shape.adapter_tensors(self.profile)
        return {stage: sizes for stage, sizes in tensors.items() if not (self.blocks_left and stage == 1)}

    def optimizer(self) -> float:
        sizes = self.tensors_on_device()[self.stage]
        if self.settings.optimizer == "adamw_torch":
            return 8.0 * sum(sizes)
        # Two moments of 8 bits, and for 256 of each a float32 scale.
        return sum(size * (2 + 8 / 256) if size >= _SMALL_TENSOR else 8.0 * size for size in sizes)

    def inputs(self) -> float:
        """Pixels in float32, or cached features in the format of computation, and the tokens' numbers."""
        vision = self.shape.vision
        image = self.patches * (vision.width * self.numbers.compute if self.cached else vision.pixel_values * 4)
        # transformers puts all micro-batches of an optimizer step on the device at once.
        return self.settings.accumulation * (image + 4 * 8 * self.tokens)

    # Kept for the backward pass

    def layer_kept(self, tower: VisionShape | LanguageShape, count: int, trains: bool, again: bool = False) -> float:
        """Kept of one layer for so many tokens or patches.

        Args:
            tower: whose layer.
            count: of the whole micro-batch.
            trains: its LoRA does.
            again: LoRA reads a copy of the attention's result.
        """
        width, inner, each = tower.width, tower.inner, self.numbers.compute
        # The norms' inputs in float32; query, key, value and result (keys and values repeated for all heads, as a mask
        # needs it); log-sum-exp; gate, up, silu.
        kept = 2 * 4 * width + each * (4 * width + 3 * inner) + 4 * tower.heads
        if not trains:
            return float(count * kept)
        linears, rank = tower.linears(), self.settings.lora_rank
        inputs = sum(a for a, _ in linears) if self.settings.lora_dropout else 2 * width + inner + again * width
        kept += len(linears) * rank * each + inputs * self.input_bytes
        return count * kept + self.casts(rank * sum(a + b for a, b in linears))

    @property
    def input_bytes(self) -> int:
        """Of what a LoRA that trains reads: linears share their input, but dropout makes each a copy, with a mask."""
        return self.numbers.compute + (self.numbers.mask if self.settings.lora_dropout else 0)

    def vision_block(self) -> float:
        """Kept of one block, in stage 1."""
        vision = self.shape.vision
        side, window = math.isqrt(self.lengths.image) * vision.merge, vision.window // vision.patch
        # The attention's result is kept already, but as groups of windows of one length, where the last ones are cut.
        return self.layer_kept(vision, self.patches, True, again=side > window and side % window > 0)

    def casts(self, numbers: int) -> float:
        """Copies of so many of the adapter's float32 numbers, which autocast makes where it computes in 16 bits."""
        return 2.0 * numbers if self.numbers.compute == 2 else 0.0

    def vision_kept(self) -> float:
        """Kept of vision encoder and projector until the language model's backward pass is through."""
        vision, bytes_each = self.shape.vision, self.numbers.compute
        features = float(bytes_each * self.batch * self.lengths.image * self.shape.language.width)
        if self.stage == 3:
            return features
        features += self.casts(self.shape.projector_parameters)
        # The projector: its norm's input in float32, the inner layer before GELU (as wide as the joined patches).
        kept = (4.0 + bytes_each) * vision.width
        if self.stage == 2:
            # Trained in float32: also the norm's result, twice in float32 and once for the product, and GELU's result.
            kept += (4 + 4 * (bytes_each == 2) + 2 * bytes_each) * vision.width
            return features + self.patches * kept
        blocks = vision.depth * (self.patches * vision.width * bytes_each if self.layers else self.vision_block())
        return features + self.patches * kept + blocks

    def language_layer(self) -> float:
        """Kept of one decoder layer. Before stage 3 its LoRA adds nothing and is not computed."""
        # The padding's mask, made additive by every layer.
        mask = self.numbers.compute * self.batch * self.lengths.total**2 if self.batch > 1 else 0
        return self.layer_kept(self.shape.language, self.tokens, self.stage == 3) + mask

    def layer_input(self) -> float:
        return float(self.tokens * self.shape.language.width * self.numbers.compute)

    def language_kept(self) -> float:
        """Kept of the whole language model at the end of the forward pass."""
        language, still_open = self.shape.language, self.shape.language.depth - self.layers
        kept = self.layers * self.layer_input() + still_open * self.language_layer() + self.ends()
        if still_open:  # the feed-forward network of the last computes the report alone (`loss.py`): gate, up, silu
            elsewhere = self.tokens - self.batch * (self.lengths.report + 1)
            kept -= elsewhere * language.inner * (3 * self.numbers.compute + self.input_bytes * (self.stage == 3))
        return kept

    def ends(self) -> float:
        """The rotary angles, the padding's mask, the last norm's input in float32."""
        language = self.shape.language
        angles = 2 * self.tokens * language.head * self.numbers.compute
        mask = self.batch * self.lengths.total**2 if self.batch > 1 else 0
        return angles + mask + 4 * self.tokens * language.width

    def logits(self) -> float:
        """A chunk of them twice in float32; the report's hidden states and, in float32, their gradient."""
        language, rows = self.shape.language, self.batch * self.lengths.report
        chunk = min(rows, max(1, _LOGIT_CHUNK_BYTES // (4 * language.vocabulary)))
        return float(2 * 4 * chunk * language.vocabulary + rows * language.width * (4 + self.numbers.compute))

    # In the backward pass

    def language_backward(self) -> float:
        """Within the last checkpointed layer, computed again; or within the last layer but one, where that is not."""
        language, bytes_each = self.shape.language, self.numbers.compute
        wide = self.tokens * language.inner * bytes_each
        # Gradients of gate, up and their product; or of two, while a 4-bit weight is there in full.
        product = wide if self.stage == 3 else 0  # used up by then
        weight = language.width * language.inner * bytes_each if self.dequantizes else 0
        gradients = max(3 * wide, 2 * wide + weight) + 2 * self.layer_input() - product
        kept = self.vision_kept() + self.ends() - 4 * self.tokens * language.width
        again = self.language_layer() - (4 * self.tokens * language.width if bytes_each == 4 else 0)
        still_open = (language.depth - 1 - self.layers) * self.language_layer()
        return kept + self.layers * self.layer_input() + max(again, still_open) + gradients

    def vision_backward(self) -> float:
        """Within the last block of the vision encoder, the language model being through."""
        vision, bytes_each = self.shape.vision, self.numbers.compute
        wide = self.patches * vision.inner * bytes_each
        block = self.patches * vision.width * bytes_each
        blocks = vision.depth * block + self.vision_block() if self.layers else vision.depth * self.vision_block()
        return blocks + 2 * wide + 2 * block  # gradients of two of gate, up and product

    def vision_forward(self) -> float:
        """Within one block of a vision encoder that does not train: gate, up, their product, what enters the block."""
        vision, bytes_each = self.shape.vision, self.numbers.compute
        return float(self.patches * bytes_each * (4 * vision.inner + 3 * vision.width))
