"""A report under its image, to be asked how the odds of its sentences depend on what is kept of the image.

What is taken away is compared with what says nothing is wrong: the mean image of training, and neutral sentences.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from radvision_utils.config import RadVisionError
from radvision_utils.data.labels import asserted, label, sentences
from radvision_utils.data.reports import Report, format_report
from radvision_utils.data.studies import Study
from radvision_utils.evaluation.bootstrap import Array
from radvision_utils.model.base import compute_device
from radvision_utils.report import ImageLike, Reporter
from radvision_utils.training.collator import Collator

Kept = NDArray[np.bool_]
SECTIONS = ("findings", "impression")
IMAGES = 64  # training images whose tokens are averaged
_SCALE = 1024.0


@dataclass(frozen=True)
class Part:
    """A sentence of a report, or words of it: the `index`-th sentence of a section begins at character `start`."""

    section: str
    index: int
    text: str
    start: int


def parts_of(report: Report) -> list[Part]:
    """The sentences of a report in reading order, as the finding labels cut them."""
    return [
        Part(section, index, text[start:end], start)
        for section in SECTIONS
        for text in (getattr(report, section),)
        for index, (start, end) in enumerate(sentences(text))
    ]


def _find(report: Report, words: str) -> Part:
    for section in SECTIONS:
        text = getattr(report, section)
        start = text.find(words)
        if start >= 0:
            return Part(section, sum(end <= start for _, end in sentences(text)), words, start)
    raise RadVisionError(f"the report does not say {words!r}: give words as they stand in it ({report.findings!r}).")


@dataclass(frozen=True)
class Neutral:
    """What a study is compared with.

    Attributes:
        tokens: (V, D) the visual token at each place, mean over training images. The mean over places would tell the
            model more than that something is missing: that a piece of an image lies where it never does.
        denials: observation -> the commonest training sentence that denies it and asserts nothing.
        normals: training sentences that assert nothing, the commonest first.
    """

    tokens: torch.Tensor
    denials: dict[str, str]
    normals: tuple[str, ...]

    def sentence(self, text: str) -> str:
        """The neutral sentence for the place of `text`: what denies its finding, else the commonest normal one."""
        denials = [self.denials[name] for name in asserted(text) if name in self.denials]
        return next(iter(denials + [normal for normal in self.normals if normal != text]), "")


def learn_neutral(reporter: Reporter, train: Sequence[Study]) -> Neutral:
    """The neutral image and sentences of the training studies."""
    chosen = np.random.default_rng(reporter.profile.seed).permutation(len(train))[:IMAGES]
    images = [train[int(i)] for i in chosen]
    sums = reporter.in_batches(images, lambda batch: reporter.visual_tokens(batch).sum(0))
    texts = [study.report.findings for study in train]
    counted = Counter(text[start:end] for text in texts for start, end in sentences(text))
    normals = [text for text, _ in counted.most_common() if not asserted(text)]
    denials: dict[str, str] = {}
    for text in normals:
        for name, said in label(text).items():
            if said.status == "absent":
                denials.setdefault(name, text)
    return Neutral(torch.stack(list(sums)).sum(0) / len(chosen), denials, tuple(normals[:2]))


@dataclass(frozen=True)
class Layout:
    """Prompt, report and neutral sentences as one sequence of L tokens, T of which are scored.

    A neutral sentence is a branch behind the report: it sees the prompt, the report up to the sentence that it stands
    for, and itself, at the positions that it would have in that place.

    Attributes:
        ids: (L,) tokens.
        line: how many of them are prompt and report.
        places: (L,) the place in the prompt and report that each has or takes.
        sees: (L, L) bool.
        scored: T tokens, of each the place where it is predicted, which it is, the number of its part, and 1 for a
            part's own or -1 for one of its neutral sentence.
        parts: those that have tokens; training would have cut off the others.
        contrasts: their neutral sentences; "" for none.
    """

    ids: list[int]
    line: int
    places: list[int]
    sees: Kept
    scored: list[tuple[int, int, int, float]]
    parts: tuple[Part, ...]
    contrasts: tuple[str, ...]


def lay_out(
    collator: Collator, prompt: list[int], report: Report, parts: Sequence[Part], contrasts: Sequence[str]
) -> Layout:
    """The sequence in which all parts of a report are scored in one pass.

    Args:
        collator: tokenizer and longest report.
        prompt: its token numbers.
        report: what the parts are of.
        parts: sentences or words of it.
        contrasts: the neutral sentence of each; "" for none.
    """
    before, report_ids = len(prompt), collator.report_ids(report)
    ids = [*prompt, *report_ids]
    line = len(ids)
    places, branches, scored = list(range(line)), [], []
    kept: list[tuple[Part, str]] = []
    for part, contrast, within in zip(parts, contrasts, token_places(collator, report, parts), strict=True):
        own = [before + place for place in within]
        if not own:
            continue
        scored += [(at - 1, ids[at], len(kept), 1.0) for at in own]
        if contrast:
            # Behind a heading or a sentence; only a report without headings begins with a sentence, and no blank.
            blank = " " if within[0] else ""
            branch = collator.tokenizer(blank + contrast, add_special_tokens=False)["input_ids"]
            at = [own[0] - 1, *range(len(ids), len(ids) + len(branch) - 1)]
            scored += [(place, token, len(kept), -1.0) for place, token in zip(at, branch, strict=True)]
            branches.append((len(ids), len(branch), own[0]))
            places += range(own[0], own[0] + len(branch))
            ids += branch
        kept.append((part, contrast))
    sees = np.tri(len(ids), dtype=bool)
    for begin, length, start in branches:
        sees[begin : begin + length, start:begin] = False
    shown, neutral = tuple(part for part, _ in kept), tuple(contrast for _, contrast in kept)
    return Layout(ids, line, places, sees, scored, shown, neutral)


def token_places(collator: Collator, report: Report, parts: Sequence[Part]) -> list[list[int]]:
    """For each part the places of its tokens in `collator.report_ids`; none for what is cut off there."""
    text = format_report(report)
    spans = collator.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    known = spans[: len(collator.report_ids(report))]
    first = text.index(report.findings)
    starts = {"findings": first, "impression": text.index(report.impression, first + len(report.findings))}
    places = []
    for part in parts:
        begin = starts[part.section] + part.start
        places.append([i for i, (a, b) in enumerate(known) if b > begin and a < begin + len(part.text)])
    return places


class Passage:
    """A report under its image; the layout of a report without a sentence has no parts, and nothing to ask for.

    Args:
        reporter: the model.
        neutral: what is put in the place of what is taken from the image.
        image: as `Reporter.report` takes it.
        report: what is explained.
        words: a sentence or a word as it stands in the report; all sentences if left out.

    Raises:
        RadVisionError: the image cannot be read, or the words are not in the report.
    """

    def __init__(self, reporter: Reporter, neutral: Neutral, image: ImageLike, report: Report, words: str = "") -> None:
        self.reporter, self.neutral, self.core = reporter, neutral, reporter.core
        parts = [_find(report, words)] if words else parts_of(report)
        # A single word has no other that could stand in its place.
        contrasts = ["" if words else neutral.sentence(part.text) for part in parts]
        self.layout = layout = lay_out(reporter.collator, reporter.prompt(image), report, parts, contrasts)
        self.tokens = reporter.visual_tokens([image])[0]
        self.side = math.isqrt(len(self.tokens))
        device = compute_device(self.core)
        self._ids = torch.tensor([layout.ids], device=device)
        self._is_image = self._ids == reporter.collator.processor.image_token_id
        self._sees = torch.tensor(layout.sees, device=device)[None, None]
        self._positions = self._rotary_positions()
        self._at, self._target, self._owner, self._sign = (
            torch.tensor(column, device=device) for column in list(zip(*layout.scored, strict=True)) or [()] * 4
        )

    def _rotary_positions(self) -> torch.Tensor:
        line, merge = self.layout.line, self.reporter.collator.processor.image_processor.merge_size
        grid = torch.tensor([[1, self.side * merge, self.side * merge]], device=self._ids.device)
        known, _ = self.core.model.get_rope_index(
            self._ids[:, :line], self._is_image[:, :line].long(), image_grid_thw=grid
        )
        places = torch.tensor(self.layout.places, device=self._ids.device)
        # A branch may be longer than what is left of the report; positions of text go on by one a token.
        beyond = (places - (line - 1)).clamp(min=0)
        return known[:, :, places.clamp(max=line - 1)] + beyond

    @torch.no_grad()
    def scores(self, kept: Kept, image: ImageLike | None = None) -> Array:
        """Log-odds of each part against its neutral sentence (log-probability where it has none), nats.

        Args:
            kept: (n, V) which tokens of the image are kept; the others are replaced by the neutral ones.
            image: shown in the place of the report's own.

        Returns:
            (n, parts)
        """
        tokens = self.tokens if image is None else self.reporter.visual_tokens([image])[0]

        def work(some: Sequence[Kept]) -> torch.Tensor:
            keep = torch.tensor(np.stack(some), device=tokens.device)[..., None]
            return self._scores(torch.where(keep, tokens, self.neutral.tokens))

        return torch.cat(list(self.reporter.in_batches(list(kept), work))).double().cpu().numpy()

    def gradients(self) -> Array:
        """(parts, V) nats: gradient of the scores times (image - neutral image), summed over a token's numbers.

        The gradient is taken halfway between the two images: at the image itself a model that is sure has hardly any.
        """
        away = self.tokens - self.neutral.tokens
        point = (self.neutral.tokens + away / 2)[None].requires_grad_()
        scores, found = self._scores(point)[0], []
        for number, score in enumerate(scores):
            # float16 has nothing between 0 and 6e-8
            (slope,) = torch.autograd.grad(score * _SCALE, point, retain_graph=number + 1 < len(scores))
            found.append((slope[0] / _SCALE * away).sum(-1))
        return torch.stack(found).double().cpu().numpy()

    def _scores(self, tokens: torch.Tensor) -> torch.Tensor:
        """(n, parts) under (n, V, D) visual tokens."""
        sums = torch.zeros(len(tokens), len(self.layout.parts), device=tokens.device)
        return sums.index_add(1, self._owner, self._log_probabilities(tokens) * self._sign)

    def _log_probabilities(self, tokens: torch.Tensor) -> torch.Tensor:
        """(n, T) of the scored tokens under (n, V, D) visual tokens."""
        rows = len(tokens)
        words = self.core.get_input_embeddings()(self._ids)
        image = self._is_image[..., None].expand(rows, -1, words.shape[-1])
        with self.reporter.device.autocast():
            states = self.core.model.language_model(
                inputs_embeds=words.expand(rows, -1, -1).masked_scatter(image, tokens.to(words.dtype)),
                position_ids=self._positions.expand(-1, rows, -1),
                attention_mask=self._sees.expand(rows, -1, -1, -1),
                use_cache=False,
            ).last_hidden_state[:, self._at]
            # A row at a time: the logits of a batch at 152,000 words would fill gigabytes.
            return torch.stack([self._target_log_probabilities(row) for row in states])

    def _target_log_probabilities(self, states: torch.Tensor) -> torch.Tensor:
        """(T,) of one image; what is as wide as the vocabulary ends here."""
        words = self.core.lm_head(states).float().log_softmax(-1)
        return words.gather(1, self._target[:, None])[:, 0]
