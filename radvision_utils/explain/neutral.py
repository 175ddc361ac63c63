"""What images and sentences are compared with: the mean image of training, and sentences that say nothing is wrong."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from radvision_utils.data.studies import Study
from radvision_utils.evaluation.finding_labels import label, sentences
from radvision_utils.model.base import compute_device
from radvision_utils.report import ImageLike, Reporter
from radvision_utils.training.loss import to_device

IMAGES = 64  # training images whose tokens are averaged
ASSERTED = ("present", "uncertain")


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
    sums = reporter.in_batches(images, lambda batch: visual_tokens(reporter, batch).sum(0))
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


@torch.no_grad()
def visual_tokens(reporter: Reporter, images: Sequence[ImageLike]) -> torch.Tensor:
    """(n, V, D) what the projector gives the language model for each image, float32.

    The tokens lie row by row: the encoder works in windows, and puts its tokens back in order before it ends.
    """
    core: Any = core_of(reporter)
    inputs = to_device(reporter.collator.prompts([reporter.prepare(image) for image in images]), compute_device(core))
    with reporter.device.autocast():
        found = core.model.get_image_features(inputs["pixel_values"], inputs["image_grid_thw"]).pooler_output
    return torch.stack(list(found)).float().view(len(images), -1, found[0].shape[-1])


def core_of(reporter: Reporter) -> torch.nn.Module:
    """The Qwen2.5-VL itself, inside whatever carries its adapter."""
    model: Any = reporter.model
    return model.get_base_model() if hasattr(model, "get_base_model") else model
