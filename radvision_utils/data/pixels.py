"""What every decoder of radiographs shares: the limits of a picture's size, and gray levels of any depth as 8 bits."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from radvision_utils.config import RadVisionError

MAX_PIXELS = 50_000_000
"""Larger pictures are refused: a few kilobytes can claim to be gigabytes of pixels (decompression bombs). The largest
detectors have some 20 million."""

MIN_SIDE = 32
"""Pixels; a picture with a shorter side is a thumbnail or a placeholder, and no radiograph."""


class UnfitImage(RadVisionError):
    """A picture that cannot be used.

    Attributes:
        reason: the kind of fault in a few words, the same for all pictures that have it; they are counted by it.
    """

    def __init__(self, sentence: str, reason: str = "image cannot be decoded") -> None:
        super().__init__(sentence)
        self.reason = reason


def check_size(width: int, height: int, where: str) -> None:
    """Refuse a size that no radiograph has, before anything is decoded.

    Raises:
        UnfitImage: more than `MAX_PIXELS` pixels, or a side below `MIN_SIDE`.
    """
    if width * height > MAX_PIXELS:
        raise UnfitImage(
            f"{where} has {width} x {height} pixels, more than {MAX_PIXELS // 1_000_000} million: reduce it first.",
            "image is too large",
        )
    if min(width, height) < MIN_SIDE:
        raise UnfitImage(
            f"{where} has {width} x {height} pixels: give a radiograph of at least {MIN_SIDE} pixels a side.",
            "image is too small",
        )


def by_own_range(pixels: NDArray[np.float32]) -> Image.Image:
    """Gray levels of any depth as 8 bits, the lowest black and the highest white; one level alone is black.

    Raises:
        ValueError: a level is no finite number.
    """
    low, high = float(pixels.min()), float(pixels.max())
    if not np.isfinite([low, high]).all():
        raise ValueError("pixels that are no finite numbers")
    scaled = (pixels - low) * (255.0 / (high - low) if high > low else 0.0)
    return Image.fromarray(scaled.round().astype(np.uint8))
