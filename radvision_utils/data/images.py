"""Pictures: any radiograph file as 8-bit grayscale, and the square that the model sees.

Used alike for preparing data and for reports on images of one's own.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from radvision_utils.config import RadVisionError

MAX_PIXELS = 100_000_000
"""Larger pictures are refused: a few kilobytes can claim to be gigabytes of pixels (decompression bombs)."""

PNG_LEVEL = 1  # of zlib: on Open-I five times faster than the default 6, for files a sixth larger

_PER_WORKER = 64  # pictures that pay for starting a process

T = TypeVar("T")


def load_image(data: bytes | Path) -> Image.Image:
    """A picture as 8-bit grayscale, upright.

    Reads what Pillow reads, and DICOM. 16-bit and floating-point pixels are scaled by their own range, transparency
    lies on black, the EXIF orientation is applied, of an animation the first frame is taken.

    Args:
        data: the encoded bytes of a picture, or its path.

    Returns:
        The picture in mode "L".

    Raises:
        RadVisionError: it cannot be read or decoded, or has more than `MAX_PIXELS` pixels.
    """
    where = "the image" if isinstance(data, bytes) else f"image {data}"
    if not isinstance(data, bytes):
        try:
            data = data.read_bytes()
        except OSError as error:
            raise RadVisionError(f"{where} cannot be read ({error.strerror}): check the path.") from error
    if data[128:132] == b"DICM":
        return _load_dicom(data, where)
    try:
        with Image.open(io.BytesIO(data)) as image:
            _check_size(image.width, image.height, where)
            return _to_gray(ImageOps.exif_transpose(image))
    except RadVisionError:
        raise
    except Exception as error:  # Pillow's decoders raise a dozen kinds for damaged files
        raise RadVisionError(
            f"{where} cannot be decoded ({type(error).__name__}: {error}): give a PNG, JPEG, TIFF or DICOM file that "
            "an image viewer opens."
        ) from error


def letterbox(image: Image.Image, size: int) -> Image.Image:
    """The picture in a black square: scaled by one factor to fit (LANCZOS), centered.

    Args:
        image: of any size, mode "L".
        size: side of the square in pixels.
    """
    scale = size / max(image.size)
    width, height = (max(1, round(side * scale)) for side in image.size)
    square = Image.new("L", (size, size), 0)
    resized = image.resize((width, height), Image.Resampling.LANCZOS)
    square.paste(resized, ((size - width) // 2, (size - height) // 2))
    return square


def _check_size(width: int, height: int, where: str) -> None:
    if width * height > MAX_PIXELS:
        raise RadVisionError(
            f"{where} has {width} x {height} pixels, more than {MAX_PIXELS // 1_000_000} million: reduce it first."
        )


def _to_gray(image: Image.Image) -> Image.Image:
    if image.mode in ("F", "I") or image.mode.startswith("I;16"):
        return _by_own_range(np.asarray(image, dtype=np.float32))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        black = Image.new("RGBA", image.size, (0, 0, 0, 255))
        image = Image.alpha_composite(black, image)
    # CMYK and palettes turn gray correctly only by way of RGB.
    return (image if image.mode in ("L", "1") else image.convert("RGB")).convert("L")


def _by_own_range(pixels: NDArray[np.float32]) -> Image.Image:
    low, high = float(pixels.min()), float(pixels.max())
    if not np.isfinite([low, high]).all():
        raise ValueError("pixels that are no finite numbers")
    scaled = (pixels - low) * (255.0 / (high - low) if high > low else 0.0)
    return Image.fromarray(scaled.round().astype(np.uint8))


def _load_dicom(data: bytes, where: str) -> Image.Image:
    try:
        import pydicom
        from pydicom.pixels import apply_modality_lut, apply_voi_lut
    except ImportError as error:
        raise RadVisionError(f"{where} is DICOM: `pip install radvision-7b[dicom]` to read it.") from error
    try:
        scan: Any = pydicom.dcmread(io.BytesIO(data))
        if int(scan.get("NumberOfFrames", None) or 1) > 1:
            raise RadVisionError(f"{where} has {scan.NumberOfFrames} frames: give a radiograph with one.")
        _check_size(int(scan.Columns), int(scan.Rows), where)
        pixels = scan.pixel_array
        if pixels.ndim == 3:
            return Image.fromarray(pixels.astype(np.uint8)).convert("L")
        pixels = apply_voi_lut(apply_modality_lut(pixels, scan), scan).astype(np.float32)
        if scan.PhotometricInterpretation == "MONOCHROME1":
            pixels = pixels.max() - pixels
        return _by_own_range(pixels)
    except RadVisionError:
        raise
    except Exception as error:  # pydicom leaves damage and missing decoders to whatever exception comes up
        raise RadVisionError(
            f"{where} is DICOM that cannot be decoded ({type(error).__name__}: {str(error).strip()}): export it as PNG."
        ) from error


def store_square(data: bytes, path: Path, size: int) -> str:
    """Write a picture as an 8-bit grayscale PNG square, wholly or not at all.

    Returns:
        16 hex digits of the SHA-256 of its pixels: the same on every machine, which the PNG's own bytes are not.

    Raises:
        RadVisionError: the picture cannot be decoded.
    """
    square = letterbox(load_image(data), size)
    partial = path.with_name(f".{path.name}.partial")
    square.save(partial, format="PNG", compress_level=PNG_LEVEL)
    os.replace(partial, path)
    return hashlib.sha256(square.tobytes()).hexdigest()[:16]


def store_squares(
    jobs: Iterable[tuple[T, bytes, Path]], size: int, workers: int, count: int | None
) -> Iterator[tuple[T, str, str]]:
    """Store many pictures as squares, in parallel, a few ahead of the one that is asked for.

    Args:
        jobs: what the picture belongs to, its encoded bytes, and where to write it.
        size: side of the squares in pixels.
        workers: processes; 0: one a core, 1: this process.
        count: how many jobs to expect, None if unknown; a few do not pay for processes.

    Yields:
        For each job, in order: what it belongs to, the hash of the pixels and "", or "" and why it failed.

    Raises:
        RadVisionError: a process died.
    """
    workers = min(workers or cores(), 1 + (count or _PER_WORKER * 64) // _PER_WORKER)
    if workers == 1:
        yield from ((item, *_try_store(data, path, size)) for item, data, path in jobs)
        return
    # Spawn: a fork would copy the locks of threads (torch, pyarrow) in whatever state they are.
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        ahead: deque[tuple[T, Future[tuple[str, str]]]] = deque()
        try:
            for item, data, path in jobs:
                ahead.append((item, pool.submit(_try_store, data, path, size)))
                if len(ahead) > 4 * workers:
                    yield (ahead[0][0], *ahead.popleft()[1].result())
            while ahead:
                yield (ahead[0][0], *ahead.popleft()[1].result())
        except BrokenProcessPool as error:
            raise RadVisionError(
                "a process that prepares images died, for want of memory or because the script that started it lacks "
                "`if __name__ == '__main__':`: set data.workers to 1."
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def _try_store(data: bytes, path: Path, size: int) -> tuple[str, str]:
    try:
        return store_square(data, path, size), ""
    except RadVisionError as error:
        return "", str(error)


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
