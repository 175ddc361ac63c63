"""Pictures: any radiograph file as 8-bit grayscale, and the square that the model sees.

Used alike for preparing data and for reports on images of one's own.
"""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from radvision_utils.config import RadVisionError
from radvision_utils.data.pixels import UnfitImage, by_own_range, check_size
from radvision_utils.files import checked

LEAST_GRAYS = 8
"""Gray levels that a picture must have and span, black left aside, for something to be seen; a radiograph has 100."""

# Of Pillow's forty formats only those that radiographs come in; others (EPS) would even start foreign programs.
_FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "GIF", "WEBP", "JPEG2000", "PPM")
_PHOTOMETRIC, _WHITE_IS_ZERO = 262, 0  # tag and value in TIFF


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
        RadVisionError: the file cannot be read, or is a prepared study's and no longer as it was written.
    """
    where = "the image" if isinstance(data, bytes) else f"image {data}"
    if not isinstance(data, bytes):
        try:
            data = checked(data).read_bytes()
        except OSError as error:
            raise RadVisionError(f"{where} cannot be read ({error.strerror}): check the path.") from error
    return decode(data, where, size)[0]


def decode(data: bytes, where: str, size: int | None) -> tuple[Image.Image, tuple[str, ...]]:
    """The picture in mode "L", and what about its file is not as usual."""
    if is_dicom(data):
        from radvision_utils.data.dicom import load_dicom  # few sources need it

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
        unknown = isinstance(error, UnidentifiedImageError)  # it names an address in memory
        told = "it is no picture of a known kind" if unknown else f"{type(error).__name__}: {error}"
        raise UnfitImage(
            f"{where} cannot be decoded ({told}): give a PNG, JPEG, TIFF or DICOM file that an image viewer opens."
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


def is_dicom(data: bytes) -> bool:
    """Whether the bytes are a DICOM file, by the mark behind its preamble."""
    return data[128:132] == b"DICM"


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
        return by_own_range(np.asarray(image, dtype=np.float32), inverted)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        black = Image.new("RGBA", image.size, (0, 0, 0, 255))
        image = Image.alpha_composite(black, image)
    # CMYK and palettes turn gray correctly only by way of RGB.
    return (image if image.mode in ("L", "1") else image.convert("RGB")).convert("L")


def load_square(image: bytes | Path | Image.Image, size: int) -> Image.Image:
    """What a model is shown of a radiograph: gray, upright, letterboxed. The square of a square is the same.

    Args:
        image: as for `load_image`, or a picture of any mode.
        size: side of the square in pixels.

    Raises:
        UnfitImage: it cannot be decoded, has a size that no radiograph has, or shows nothing.
        RadVisionError: the file cannot be read.
    """
    if isinstance(image, Image.Image):
        return square_of(_to_gray(image, False), size, "the image")
    return square_of(load_image(image, size), size, "the image" if isinstance(image, bytes) else f"image {image}")


def square_of(picture: Image.Image, size: int, where: str) -> Image.Image:
    square = letterbox(picture, size)
    # Reducing blends the few levels of a picture into many, and averages noise away.
    if _shows_nothing(picture) or _shows_nothing(square):
        raise UnfitImage(
            f"{where} shows nothing, nearly all its pixels are alike: export it again and look at it first.",
            "image shows nothing",
        )
    return square


def _shows_nothing(picture: Image.Image) -> bool:
    """Whether hardly any pixel is other than black, or 98 % of those that are have nearly the same level."""
    counts = np.array(picture.histogram())[1:]  # black is what lies around a picture, too
    up_to = counts.cumsum()
    first, last = np.searchsorted(up_to, [0.01 * up_to[-1], 0.99 * up_to[-1]])
    few = np.count_nonzero(counts[first : last + 1]) < LEAST_GRAYS  # a span of fewer holds fewer
    return bool(few or up_to[-1] < 0.01 * picture.width * picture.height)


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


def mean_image(paths: list[Path]) -> Image.Image:
    """The mean of images of one size."""
    total: Any = sum(np.array(load_image(path), np.float64) for path in paths)
    return Image.fromarray((total / len(paths)).round().astype(np.uint8))


def moved(image: Image.Image, right: float, down: float) -> Image.Image:
    """The image moved by shares of its sides, with black behind it."""
    by = (1, 0, -right * image.width, 0, 1, -down * image.height)
    return image.transform(image.size, Image.Transform.AFFINE, by)
