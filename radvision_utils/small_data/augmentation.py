"""Images that vary by chance while stages train (`data.augment`): few studies then teach more than themselves."""

from __future__ import annotations

import math
import zlib

import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2.functional import adjust_brightness, adjust_contrast, adjust_gamma, affine


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
