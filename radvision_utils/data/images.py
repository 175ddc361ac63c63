"""Pictures: any radiograph file as 8-bit grayscale, and the square that the model sees.

Used alike for preparing data and for reports on images of one's own.
"""

from __future__ import annotations

import hashlib
import io
import os
import warnings
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import ExifTags, Image, ImageOps

from radvision_utils.config import RadVisionError
from radvision_utils.data.dicom import is_dicom, load_dicom
from radvision_utils.data.pixels import UnfitImage, by_own_range, check_size
from radvision_utils.data.views import mirror_symmetry

_FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "GIF", "WEBP", "JPEG2000", "PPM")
"""Of Pillow's forty only those that radiographs come in; others (EPS) would even start foreign programs."""

_PHOTOMETRIC, _WHITE_IS_ZERO = 262, 0  # tag and value in TIFF

PNG_LEVEL = 1  # of zlib: on Open-I five times faster than the default 6, for files a sixth larger

_PER_WORKER = 64  # pictures that pay for starting a process

T = TypeVar("T")


def load_image(data: bytes | Path, size: int | None = None) -> Image.Image:
    """A picture as 8-bit grayscale, upright.

    Reads PNG, JPEG, TIFF, BMP, GIF, WebP, JPEG 2000, PPM and DICOM. 16-bit and floating-point pixels are scaled by
    their own range, transparency lies on black, the EXIF orientation is applied, of an animation the first frame is
    taken.

    Args:
        data: the encoded bytes of a picture, or its path.
        size: side in pixels of the square that it will be letterboxed to; a JPEG many times larger is then decoded at
            reduced scale.

    Returns:
        The picture in mode "L".

    Raises:
        UnfitImage: it cannot be decoded, or has a size that no radiograph has.
        RadVisionError: the file cannot be read.
    """
    where = "the image" if isinstance(data, bytes) else f"image {data}"
    if not isinstance(data, bytes):
        try:
            data = data.read_bytes()
        except OSError as error:
            raise RadVisionError(f"{where} cannot be read ({error.strerror}): check the path.") from error
    return _decode(data, where, size)[0]


def _decode(data: bytes, where: str, size: int | None) -> tuple[Image.Image, tuple[str, ...]]:
    """The picture in mode "L", and what about its file is not as usual."""
    if is_dicom(data):
        return load_dicom(data, where), ()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of pictures that are refused here anyway, and of EXIF
            with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
                check_size(image.width, image.height, where)
                oddities = _oddities(image)
                _decode_reduced(image, size)
                return _to_gray(ImageOps.exif_transpose(image), "inverted" in oddities), oddities
    except RadVisionError:
        raise
    except Image.DecompressionBombError as error:
        raise UnfitImage(f"{where} has far too many pixels: reduce it first.", "image is too large") from error
    except Exception as error:  # Pillow's decoders raise a dozen kinds for damaged files
        raise UnfitImage(
            f"{where} cannot be decoded ({type(error).__name__}: {error}): give a PNG, JPEG, TIFF or DICOM file that "
            "an image viewer opens."
        ) from error


def _decode_reduced(image: Image.Image, size: int | None) -> None:
    """Let a JPEG be decoded at a half, a quarter or an eighth where at least twice the pixels wanted remain each way.

    It takes half the time. On real radiographs the squares differ from those of a full decoding by 0.2 gray levels of
    255 in the mean and 22 at most. A side that does not divide evenly would shift the picture by parts of a pixel.
    """
    for scale in (8, 4, 2):
        wanted = size is not None and max(image.size) >= 2 * scale * size
        if wanted and image.format == "JPEG" and not any(side % scale for side in image.size):
            image.draft(None, (image.width // scale, image.height // scale))
            return


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


def _oddities(image: Image.Image) -> tuple[str, ...]:
    deep = image.mode in ("F", "I") or image.mode.startswith("I;16")
    # Where low values mean white: Pillow turns them for 8 bits only.
    inverted = deep and getattr(image, "tag_v2", {}).get(_PHOTOMETRIC) == _WHITE_IS_ZERO
    found = {
        "CMYK": image.mode == "CMYK",
        "palette": image.mode in ("P", "PA"),
        "transparency": image.has_transparency_data,
        "more than 8 bits": deep,
        "inverted": inverted,
        "turned by EXIF": image.getexif().get(ExifTags.Base.Orientation, 1) != 1,
        "several frames": getattr(image, "is_animated", False),  # n_frames would decode them all
    }
    return tuple(name for name, is_so in found.items() if is_so)


def _to_gray(image: Image.Image, inverted: bool) -> Image.Image:
    if image.mode in ("F", "I") or image.mode.startswith("I;16"):
        levels = np.asarray(image, dtype=np.float32)
        return by_own_range(levels.max() - levels if inverted else levels)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        black = Image.new("RGBA", image.size, (0, 0, 0, 255))
        image = Image.alpha_composite(black, image)
    # CMYK and palettes turn gray correctly only by way of RGB.
    return (image if image.mode in ("L", "1") else image.convert("RGB")).convert("L")


@dataclass(frozen=True)
class Stored:
    """What became of a picture.

    Attributes:
        pixels: 16 hex digits of the SHA-256 of its pixels: the same on every machine, which the PNG's own bytes are
            not. "" where it was not stored.
        symmetry: of the picture with its mirror image, see `views.mirror_symmetry`.
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
    picture, oddities = _decode(data, "the image", size)
    low, high = picture.getextrema()
    if low == high:
        raise UnfitImage("the image is blank, all its pixels are alike: export it again.", "image is blank")
    square = letterbox(picture, size)
    partial = path.with_name(f".{path.name}.partial")
    square.save(partial, format="PNG", compress_level=PNG_LEVEL)
    os.replace(partial, path)
    return Stored(hashlib.sha256(square.tobytes()).hexdigest()[:16], mirror_symmetry(square), oddities)


def store_squares(
    jobs: Iterable[tuple[T, bytes, Path]], size: int, workers: int, count: int | None
) -> Iterator[tuple[T, Stored]]:
    """Store many pictures as squares, in parallel, a few ahead of the one that is asked for.

    Args:
        jobs: what the picture belongs to, its encoded bytes, and where to write it.
        size: side of the squares in pixels.
        workers: processes; 0: one a core, 1: this process.
        count: how many jobs to expect, None if unknown; a few do not pay for processes.

    Yields:
        For each job, in order: what it belongs to, and what became of its picture.

    Raises:
        RadVisionError: a process died.
    """
    workers = min(workers or cores(), 1 + (count or _PER_WORKER * 64) // _PER_WORKER)
    if workers == 1:
        yield from ((item, _try_store(data, path, size)) for item, data, path in jobs)
        return
    # Spawn: a fork would copy the locks of threads (torch, pyarrow) in whatever state they are.
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        ahead: deque[tuple[T, Future[Stored]]] = deque()
        try:
            for item, data, path in jobs:
                ahead.append((item, pool.submit(_try_store, data, path, size)))
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


def _try_store(data: bytes, path: Path, size: int) -> Stored:
    try:
        return store_square(data, path, size)
    except UnfitImage as error:
        return Stored("", reason=error.reason, fault=str(error))


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
