"""Images per second into prepared squares: `store_squares` against the loop that everyone writes."""

from __future__ import annotations

import io
import logging
import shutil
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.mini import IMAGE_SIZE, SEED
from benchmarks.ratios import Ratio
from radvision_utils.data.images import letterbox
from radvision_utils.data.storing import store_squares
from radvision_utils.phantoms.phantom_rows import draw

logger = logging.getLogger(__name__)

SIDES = (
    2048,
    2500,
)  # width and height in pixels of a digitized chest radiograph; Open-I's originals are about as large
_DIFFERENT = 12  # pictures, taken again and again


@dataclass(frozen=True)
class Preparation:
    """Pictures of one format made into squares.

    Attributes:
        format: "JPEG" or "PNG".
        ours: images/s, median over the rounds.
        plain: images/s, median over the rounds.
        ratio: round by round.
        difference: mean absolute difference of our squares from the plain loop's, gray levels of 255.
    """

    format: str
    ours: float
    plain: float
    ratio: Ratio
    difference: float


def race_preparation(folder: Path, picture_format: str, rounds: int, count: int) -> Preparation:
    """Let both prepare pictures in turn.

    Args:
        folder: for the squares.
        picture_format: "JPEG" or "PNG".
        rounds: at least 1.
        count: pictures a round of ours; the plain loop, being slower, takes a quarter of them.
    """
    pictures = list(radiographs(picture_format, min(count, _DIFFERENT)))
    logger.info("preparation of %s, %d rounds in turn", picture_format, rounds)
    seconds = []
    for _ in range(rounds):
        mine, theirs = (_emptied(folder / name) for name in ("ours", "plain"))
        jobs = ((number, pictures[number % len(pictures)], mine / f"{number}.png") for number in range(count))
        began = time.perf_counter()
        stored = sum(1 for _ in store_squares(jobs, IMAGE_SIZE, 0, count))
        between = time.perf_counter()
        for number in range(count // 4):
            plain(pictures[number % len(pictures)], theirs / f"{number}.png")
        seconds.append(((between - began) / stored, (time.perf_counter() - between) / (count // 4)))
    return Preparation(
        format=picture_format,
        ours=1 / statistics.median(ours for ours, _ in seconds),
        plain=1 / statistics.median(loop for _, loop in seconds),
        ratio=Ratio.of([loop / ours for ours, loop in seconds]),
        difference=_difference(mine, theirs),
    )


def plain(picture: bytes, path: Path) -> None:
    """Decode, gray, letterbox, save: as in the field's notebooks."""
    letterbox(Image.open(io.BytesIO(picture)).convert("L"), IMAGE_SIZE).save(path)


def radiographs(picture_format: str, count: int) -> Iterator[bytes]:
    """Phantoms enlarged to a radiograph's size, with a detector's noise, so that they cost what a radiograph costs."""
    rng = np.random.default_rng(SEED)
    for number in range(count):
        pixels, _ = draw(number, "B", SEED)
        large = np.asarray(Image.fromarray(pixels).resize(SIDES, Image.Resampling.BICUBIC), dtype=np.float32)
        noisy = (large + rng.normal(0, 3, large.shape)).clip(0, 255).astype(np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(noisy).save(buffer, picture_format, quality=90, compress_level=1)
        yield buffer.getvalue()


def _emptied(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def _difference(ours: Path, theirs: Path) -> float:
    names = sorted(path.name for path in theirs.iterdir())[:_DIFFERENT]
    pairs = [[np.asarray(Image.open(folder / name), dtype=np.int16) for folder in (ours, theirs)] for name in names]
    return float(np.mean([np.abs(a - b).mean() for a, b in pairs]))
