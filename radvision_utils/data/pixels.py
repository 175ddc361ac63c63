"""Gray levels of any depth as 8 bits, and the sizes that a radiograph has: what every reader of pictures needs."""

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
FEW_LEVELS = 16  # gray levels; a border has fewer, a radiograph more


class UnfitImage(RadVisionError):
    """A picture that cannot be used.

    Attributes:
        reason: the kind of fault in a few words, the same for all pictures that have it; they are counted by it.
    """

    def __init__(self, sentence: str, reason: str = "image cannot be decoded") -> None:
        super().__init__(sentence)
        self.reason = reason


def check_size(width: int, height: int, where: str) -> None:
    """Refuse a size that no radiograph has, before anything is decoded."""
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


def by_own_range(levels: NDArray[np.float32], inverted: bool, meant: NDArray[np.bool_] | None = None) -> Image.Image:
    """Gray levels of any depth as 8 bits, the lowest black and the highest white (inverted: the other way round); one
    level alone is black.

    Args:
        levels: of any shape.
        inverted: whether low levels are white.
        meant: the pixels whose levels set the range, of the same shape; all where it is None.

    Raises:
        ValueError: a level is no finite number.
    """
    if not np.isfinite(levels).all():
        raise ValueError("pixels that are no finite numbers")
    levels = levels.max() - levels if inverted else levels
    low, high = _gray_range(levels.ravel() if meant is None else levels[meant])
    scaled = (levels - low) * (255.0 / (high - low) if high > low else 0.0)
    return Image.fromarray(scaled.round().clip(0, 255).astype(np.uint8))


def _gray_range(levels: NDArray[np.float32]) -> tuple[float, float]:
    """The lowest and the highest gray level of what was taken, unmarked borders and defect pixels left aside.

    Where these are all less than half of the range, it is that of all pixels, to the last bit.
    """
    whole = np.sort(levels, axis=None)
    while True:  # a border or a defect stands alone: more than half of the range lies empty between it and the rest
        gaps = np.diff(whole)
        at = int(gaps.argmax()) if len(gaps) else 0
        if not len(gaps) or gaps[at] <= (whole[-1] - whole[0]) / 2:
            break
        rest = max(whole[: at + 1], whole[at + 1 :], key=_distinct)
        if _distinct(rest) < FEW_LEVELS:
            break
        whole = rest
    aside = len(whole) // 200
    middle = whole[aside : len(whole) - aside]
    scattered = middle[-1] - middle[0] < (whole[-1] - whole[0]) / 2 and _distinct(middle) >= FEW_LEVELS
    kept = middle if scattered else whole
    return float(kept[0]), float(kept[-1])


def _distinct(ordered: NDArray[np.float32]) -> int:
    return 1 + int(np.count_nonzero(np.diff(ordered)))
