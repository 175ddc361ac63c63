"""Whether a picture that is said to be frontal looks lateral: a frontal chest is nearly its own mirror image.

A hint, never a reason to leave a study out.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

LATERAL_BELOW = 0.6
"""Mirror symmetry under which a picture counts as lateral: below it are 0.7 % of 1,338 frontal images of Open-I (some
mislabeled or turned) and 81 % of 1,284 lateral ones; of another 1,464 frontal ones 0.8 %."""

_SIDE, _SHIFT = 64, 6  # pixels of the reduced picture, and how far the chest may lie from its middle
_EDGE = 8  # pixels left and right that are not compared: arms, markers, collimation
_COLUMNS = (np.arange(_EDGE, _SIDE - _EDGE) - np.arange(-_SHIFT, _SHIFT + 1)[:, None]) % _SIDE


def mirror_symmetry(square: Image.Image) -> float:
    """How alike the middle of a picture and its mirror image are: Pearson's r of gray levels at the best axis.

    Args:
        square: a letterboxed picture, mode "L".

    Returns:
        -1 to 1; 0 where all is of one shade.
    """
    levels = np.asarray(square.resize((_SIDE, _SIDE), Image.Resampling.BOX), dtype=np.float32)
    strips = levels[:, _COLUMNS].swapaxes(0, 1)  # an axis each: shifts, rows, columns
    centered = strips - strips.mean(axis=(1, 2), keepdims=True)
    power = (centered * centered).sum(axis=(1, 2))
    alike = (centered * centered[:, :, ::-1]).sum(axis=(1, 2))
    return float(np.divide(alike, power, out=np.zeros_like(alike), where=power > 0).max())
