"""Whether a picture that is said to be frontal looks lateral: a frontal chest is nearly its own mirror image.

A hint, never a reason to leave a study out. `python -m radvision_utils.data.views SOURCE` measures it on the frontal
and lateral images of a source.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import numpy as np
from PIL import Image

from radvision_utils.config import DataSettings, RadVisionError
from radvision_utils.data.pixels import UnfitImage

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


def _measure(source: str) -> dict[str, list[float]]:
    """Mirror symmetry of the frontal and of the lateral images of a source; those that cannot be read are left out."""
    from radvision_utils.data.images import letterbox, load_image
    from radvision_utils.data.sources import open_source

    found: dict[str, list[float]] = {"frontal": [], "lateral": []}
    for row in open_source(source, DataSettings(), 0).rows():
        for view, values in found.items():
            if picture := row[f"img_{view}"]:
                try:
                    values.append(mirror_symmetry(letterbox(load_image(picture), 512)))
                except UnfitImage:
                    continue
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints how many frontal and lateral images of a source fall below the threshold, and below others."""
    parser = argparse.ArgumentParser(prog="python -m radvision_utils.data.views", description=main.__doc__)
    parser.add_argument("source", help="as data.source: a parquet file or folder, a Kaggle folder, a hub id")
    found = _measure(parser.parse_args(arguments).source)
    print(f"{'below':>8}" + "".join(f"{f'{view} of {len(values)}':>20}" for view, values in found.items()))
    for threshold in sorted({0.5, 0.55, 0.65, 0.7, LATERAL_BELOW}):
        shares = [np.mean(np.less(values, threshold)) if values else float("nan") for values in found.values()]
        print(f"{threshold:8.2f}" + "".join(f"{share:20.1%}" for share in shares))


if __name__ == "__main__":
    try:
        main()
    except RadVisionError as error:
        sys.exit(f"radvision: {error}")
