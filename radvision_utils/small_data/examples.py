"""What a training example is made of where data are few: an image that varies by chance (`data.augment`), and with
`model.summary` a report that begins with a line of its labels, and tells what is abnormal before the rest. What few
reports say is then learned early and weighs more than the sentences that all reports share.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import replace

import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2.functional import adjust_brightness, adjust_contrast, adjust_gamma, affine

from radvision_utils.data.labels import ABNORMAL, ASSERTED, asserted, label
from radvision_utils.data.reports import Report, format_report, line_of_findings, split_sentences

# How much a token weighs in the loss: of the line, of a sentence without a finding; of all else 1.
LINE, PLAIN = 3.0, 0.5


class Augmentation:
    """Changes an image as another exposure and another stance would; never a mirror image, since sides matter.

    Up to 4 degrees, 6 % of size, 3 % of the side, a gamma of 0.82 to 1.22, 15 % of contrast and 6 % of brightness: more
    keeps a small encoder from learning what it can.

    Args:
        seed: it, the epoch and the study alone say how an image is changed, so an interrupted epoch goes on alike.
    """

    def __init__(self, seed: int) -> None:
        self.seed, self.epoch = seed, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __call__(self, image: torch.Tensor, uid: str) -> torch.Tensor:
        """(1, H, W) uint8 in and out."""
        generator = torch.Generator().manual_seed(zlib.crc32(f"{self.seed} {self.epoch} {uid}".encode()))
        turn, size, right, down, gamma, contrast, bright = (2 * torch.rand(7, generator=generator) - 1).tolist()
        shift = [round(0.03 * part * image.shape[-1]) for part in (right, down)]
        image = affine(image, 4 * turn, shift, 1 + 0.06 * size, [0.0], interpolation=InterpolationMode.BILINEAR)
        image = adjust_contrast(adjust_gamma(image, math.exp(0.2 * gamma)), 1 + 0.15 * contrast)
        changed: torch.Tensor = adjust_brightness(image, 1 + 0.06 * bright)
        return changed


def with_line(report: Report, reference: Report) -> Report:
    """The report with a line of what the reference asserts, its sentences with a finding before those without one."""
    ordered = sorted(split_sentences(report.findings), key=lambda sentence: not asserted(sentence))
    line = line_of_findings(asserted(reference.text))
    return replace(report, findings=" ".join(ordered), line=line)


def following(report: Report) -> Report:
    """The report without sentences that contradict its line: that assert a finding it does not name, or deny one that
    it names. An impression that is left without a sentence says the line again."""
    against = {name: ("absent",) if name in asserted(report.line) else ASSERTED for name in ABNORMAL}

    def follows(sentence: str) -> bool:
        found = label(sentence)
        return not any(found[name].status in statuses for name, statuses in against.items())

    findings, impression = (
        " ".join(filter(follows, split_sentences(section))) for section in (report.findings, report.impression)
    )
    return replace(report, findings=findings, impression=impression or (report.impression and report.line))


def token_weights(report: Report, offsets: Sequence[tuple[int, int]]) -> list[float]:
    """How much each token of `format_report` weighs.

    Args:
        report: as `with_line` gives it.
        offsets: where the tokens begin and end in that text.
    """
    text, end = format_report(report), 0
    weights = [1.0] * (len(text) + 1)
    for place, sentence in enumerate(
        [report.line, *split_sentences(report.findings), *split_sentences(report.impression)]
    ):
        start = text.index(sentence, end)
        end = start + len(sentence)
        weight = LINE if place == 0 else 1.0 if asserted(sentence) else PLAIN
        weights[start:end] = [weight] * len(sentence)
    return [weights[max(start, stop - 1)] for start, stop in offsets]
