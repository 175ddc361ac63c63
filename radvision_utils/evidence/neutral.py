"""What images and sentences are compared with: the mean image of training, and sentences that say nothing is wrong."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from radvision_utils.data.studies import Study
from radvision_utils.evaluation.labels import ASSERTED, label, sentences
from radvision_utils.report import Reporter

IMAGES = 64  # training images whose tokens are averaged


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
        asserted = [name for name, found in label(text).items() if found.status in ASSERTED]
        denial = next((self.denials[name] for name in asserted if name in self.denials), "")
        return denial or next((normal for normal in self.normals if normal != text), "")


def learn_neutral(reporter: Reporter, train: Sequence[Study]) -> Neutral:
    """The neutral image and sentences of the training studies."""
    chosen = np.random.default_rng(reporter.profile.seed).permutation(len(train))[:IMAGES]
    images = [train[int(i)] for i in chosen]
    sums = reporter.in_batches(images, lambda batch: reporter.visual_tokens(batch).sum(0))
    normals, denials = _normal_sentences(train)
    return Neutral(torch.stack(list(sums)).sum(0) / len(chosen), denials, normals)


def _normal_sentences(train: Sequence[Study]) -> tuple[tuple[str, ...], dict[str, str]]:
    found = [study.report.findings for study in train]
    counted = Counter(text[start:end] for text in found for start, end in sentences(text))
    normals: list[str] = []
    denials: dict[str, str] = {}
    for text, _ in counted.most_common():
        labels = {name: said.status for name, said in label(text).items() if name != "No Finding"}
        if any(status in ASSERTED for status in labels.values()):
            continue
        normals.append(text)
        for name, status in labels.items():
            if status == "absent":
                denials.setdefault(name, text)
    return tuple(normals[:2]), denials
