"""Pictures of a whole collection: stored as squares, in parallel."""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from pathlib import Path
from threading import Thread
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from radvision_utils.config import RadVisionError
from radvision_utils.data.images import decode, square_of
from radvision_utils.data.pixels import UnfitImage

PNG_LEVEL = 1  # of zlib: on Open-I five times faster than the default 6, for files a sixth larger
LATERAL_BELOW = 0.6
"""Mirror symmetry under which a picture counts as lateral: below it are 0.7 % of 1,338 frontal images of Open-I (some
mislabeled or turned) and 81 % of 1,284 lateral ones; of another 1,464 frontal ones 0.8 %."""

_SIDE, _SHIFT = 64, 6  # pixels of the picture compared with its mirror image; how far the chest may lie from its middle
_EDGE = 8  # pixels left and right that are not compared: arms, markers, collimation
_COLUMNS = (np.arange(_EDGE, _SIDE - _EDGE) - np.arange(-_SHIFT, _SHIFT + 1)[:, None]) % _SIDE

_PER_WORKER = 64  # pictures that pay for starting a process

T = TypeVar("T")
R = TypeVar("R")


def mirror_symmetry(square: Image.Image) -> float:
    """How alike the middle of a picture and its mirror image are: Pearson's r of gray levels at the best axis.

    A frontal chest is nearly its own mirror image. A hint, never a reason to leave a study out.

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


@dataclass(frozen=True)
class Stored:
    """What became of a picture.

    Attributes:
        pixels: 16 hex digits of the SHA-256 of its pixels: the same on every machine, which the PNG's own bytes are
            not. "" where it was not stored.
        symmetry: of the picture with its mirror image, see `mirror_symmetry`.
        oddities: what was unusual about its file and has been mended.
        reason: the kind of fault for which it was not stored.
        fault: the same as a sentence with the particulars.
    """

    pixels: str
    symmetry: float = 0.0
    oddities: tuple[str, ...] = ()
    reason: str = ""
    fault: str = ""


def store_square(data: bytes, path: Path, size: int) -> Stored:
    """Write a picture as an 8-bit grayscale PNG square, wholly or not at all; nothing else of its file is kept.

    Args:
        data: the picture, encoded.
        path: of the PNG.
        size: side of the square in pixels.

    Raises:
        UnfitImage: the picture cannot be decoded, has a size that no radiograph has, or shows nothing.
    """
    picture, oddities = decode(data, "the image", size)
    square = square_of(picture, size, "the image")
    partial = path.with_name(f".{path.name}.partial")
    square.save(partial, format="PNG", compress_level=PNG_LEVEL)
    os.replace(partial, path)
    return Stored(hashlib.sha256(square.tobytes()).hexdigest()[:16], mirror_symmetry(square), oddities)


def store_squares(
    jobs: Iterable[tuple[T, bytes | Stored, Path]], size: int, workers: int, count: int
) -> Iterator[tuple[T, Stored]]:
    """Store many pictures as squares, in parallel, a few ahead of the one that is asked for.

    Args:
        jobs: what the picture belongs to, its encoded bytes or what became of it before, and where to write it.
        size: side of the squares in pixels.
        workers: processes; 0: one a core, 1: this process.
        count: how many jobs to expect; a few do not pay for processes.

    Yields:
        For each job, in order: what it belongs to, and what became of its picture.

    Raises:
        RadVisionError: a process died.
    """
    workers = min(workers or cores(), 1 + count // _PER_WORKER)
    return in_processes(_try_store, ((item, (data, path, size)) for item, data, path in jobs), workers)


def _try_store(data: bytes | Stored, path: Path, size: int) -> Stored:
    if isinstance(data, Stored):
        return data
    try:
        return store_square(data, path, size)
    except UnfitImage as error:
        return Stored("", reason=error.reason, fault=str(error))


def in_processes(
    work: Callable[..., R], jobs: Iterable[tuple[T, tuple[Any, ...]]], workers: int
) -> Iterator[tuple[T, R]]:
    """Do the same work many times in parallel, a few jobs ahead of the one that is asked for.

    Args:
        work: a function of a module's own, so that another process finds it.
        jobs: what each belongs to, which stays here, and the arguments of `work`.
        workers: processes, started anew, so a script that asks for several needs `if __name__ == "__main__"`;
            1: this process.

    Yields:
        For each job, in order: what it belongs to, and what `work` returned.

    Raises:
        RadVisionError: a process died.
    """
    if workers <= 1:
        yield from ((item, work(*arguments)) for item, arguments in jobs)
        return
    # Spawn: a fork would copy the locks of threads (torch, pyarrow) in whatever state they are.
    with ProcessPoolExecutor(workers, get_context("spawn"), initializer=_end_with_parent) as pool:
        ahead: deque[tuple[T, Future[R]]] = deque()
        try:
            for item, arguments in jobs:
                ahead.append((item, pool.submit(work, *arguments)))
                if len(ahead) > 4 * workers:
                    yield ahead[0][0], ahead.popleft()[1].result()
            while ahead:
                yield ahead[0][0], ahead.popleft()[1].result()
        except BrokenProcessPool as error:
            raise RadVisionError(
                "a process that prepares images died, for want of memory or because the script that started it lacks "
                "`if __name__ == '__main__':`: set data.workers to 1."
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def _end_with_parent() -> None:
    """Where the process that asked for the work is killed, nothing else would end one that waits for more."""

    def wait() -> None:
        if parent := parent_process():
            parent.join()
            os._exit(1)

    Thread(target=wait, daemon=True).start()


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
