"""Pictures: any radiograph file as 8-bit grayscale, and the square that the model sees.

Used alike for preparing data and for reports on images of one's own. DICOM needs pydicom
(`pip install radvision-7b[dicom]`), which is imported when the first such file turns up; only what the picture needs is
read of it: nothing about the patient enters.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from pathlib import Path
from threading import Thread
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from radvision_utils.config import RadVisionError
from radvision_utils.files import checked

MAX_PIXELS = 50_000_000
"""Larger pictures are refused: a few kilobytes can claim to be gigabytes of pixels (decompression bombs). The largest
detectors have some 20 million."""
MIN_SIDE = 32
"""Pixels; a picture with a shorter side is a thumbnail or a placeholder, and no radiograph."""
LEAST_GRAYS = 8
"""Gray levels that a picture must have and span, black left aside, for something to be seen; a radiograph has 100."""
PNG_LEVEL = 1  # of zlib: on Open-I five times faster than the default 6, for files a sixth larger
LATERAL_BELOW = 0.6
"""Mirror symmetry under which a picture counts as lateral: below it are 0.7 % of 1,338 frontal images of Open-I (some
mislabeled or turned) and 81 % of 1,284 lateral ones; of another 1,464 frontal ones 0.8 %."""

# Of Pillow's forty formats only those that radiographs come in; others (EPS) would even start foreign programs.
_FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "GIF", "WEBP", "JPEG2000", "PPM")
_PHOTOMETRIC, _WHITE_IS_ZERO = 262, 0  # tag and value in TIFF
_DICOM_TAGS = (
    *("SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration", "NumberOfFrames", "Rows", "Columns"),
    *("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation"),
    *("ModalityLUTSequence", "RescaleIntercept", "RescaleSlope", "VOILUTSequence", "VOILUTFunction"),
    *("WindowCenter", "WindowWidth", "PresentationLUTShape", "PixelPaddingValue", "PixelPaddingRangeLimit"),
    *("ExtendedOffsetTable", "ExtendedOffsetTableLengths", "PixelData"),
)

# Least and greatest size of a value that means something; others are taken out, and what is usual holds.
_DICOM_NUMBERS = (
    ("NumberOfFrames", 1, 2**31),
    ("RescaleSlope", 1e-6, 1e6),
    ("RescaleIntercept", 0, 2**24),
    ("WindowCenter", 0, 2**40),
    ("WindowWidth", 0, 2**40),
    ("PixelPaddingValue", 0, 2**32),
    ("PixelPaddingRangeLimit", 0, 2**32),
)
_DICOM_WORDS = {
    "VOILUTFunction": ("LINEAR", "LINEAR_EXACT", "SIGMOID"),
    "PresentationLUTShape": ("IDENTITY", "INVERSE"),
}
_JPEG_EXTENDED = "1.2.840.10008.1.2.4.51"
_MOST_PADDED = 0.9  # of the pixels; where more have the value of padding, it is that of the picture
_FEW_LEVELS = 16  # gray levels; a border has fewer, a radiograph more

_SIDE, _SHIFT = 64, 6  # pixels of the picture compared with its mirror image; how far the chest may lie from its middle
_EDGE = 8  # pixels left and right that are not compared: arms, markers, collimation
_COLUMNS = (np.arange(_EDGE, _SIDE - _EDGE) - np.arange(-_SHIFT, _SHIFT + 1)[:, None]) % _SIDE

_PER_WORKER = 64  # pictures that pay for starting a process

T = TypeVar("T")
R = TypeVar("R")


class UnfitImage(RadVisionError):
    """A picture that cannot be used.

    Attributes:
        reason: the kind of fault in a few words, the same for all pictures that have it; they are counted by it.
    """

    def __init__(self, sentence: str, reason: str = "image cannot be decoded") -> None:
        super().__init__(sentence)
        self.reason = reason


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
    return _decode(data, where, size)[0]


def _decode(data: bytes, where: str, size: int | None) -> tuple[Image.Image, tuple[str, ...]]:
    """The picture in mode "L", and what about its file is not as usual."""
    if is_dicom(data):
        return _load_dicom(data, where), ()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of pictures that are refused here anyway, and of EXIF
            with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
                _check_size(image.width, image.height, where)
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


def _load_dicom(data: bytes, where: str) -> Image.Image:
    """A DICOM radiograph as it is meant to be seen: modality and VOI lookup tables (or window) applied, MONOCHROME1
    inverted.

    Args:
        data: the file's bytes.
        where: names the file in an error.

    Returns:
        The picture in mode "L".

    Raises:
        UnfitImage: the file has no single picture of a sensible size that can be decoded. The sentence quotes nothing
            from the file but sizes: a value that cannot be read may be a name. Or pydicom is missing.
    """
    try:
        import pydicom
    except ImportError as error:
        raise UnfitImage(
            f"{where} is DICOM: `pip install radvision-7b[dicom]` to read it.", "DICOM without pydicom"
        ) from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pydicom's warnings quote the values that they are about
            return _dicom_pixels(pydicom.dcmread(io.BytesIO(data), specific_tags=list(_DICOM_TAGS)), where)
    except RadVisionError:
        raise
    except Exception as error:  # pydicom leaves damage and missing decoders to whatever exception comes up
        # "from None": a traceback of the cause would quote the file, too.
        raise UnfitImage(
            f"{where} is DICOM that cannot be decoded ({type(error).__name__}): export it as PNG."
        ) from None


def _dicom_pixels(scan: Any, where: str) -> Image.Image:
    if "PixelData" not in scan:  # a written report, a PDF, a directory
        raise UnfitImage(f"{where} is DICOM without a picture: give a radiograph.", "DICOM without a picture")
    _drop_odd_values(scan)
    frames, kind = int(scan.get("NumberOfFrames", 1)), scan.PhotometricInterpretation
    if frames > 1:
        raise UnfitImage(f"{where} has {frames} frames: give a radiograph with one.", "image has several frames")
    _check_size(int(scan.Columns), int(scan.Rows), where)
    pixels = _decompressed(scan, where)
    if kind not in ("MONOCHROME1", "MONOCHROME2") or pixels.ndim == 3:
        # pydicom gives RGB for every color encoding but palettes, whose indices would pass for gray levels.
        if pixels.ndim != 3 or pixels.dtype != np.uint8:
            raise ValueError("a color encoding that radiographs do not have")
        return Image.fromarray(pixels).convert("L")
    meant = ~_padding(scan, pixels)
    inverted = kind == "MONOCHROME1" or scan.get("PresentationLUTShape", "") == "INVERSE"
    plain = _by_own_range(pixels.astype(np.float32), inverted, meant)
    for levels in _as_displayed(scan, pixels):
        # From zero: of a window a million times wider than the picture its levels would all be one.
        shifted = (levels - levels.min()).astype(np.float32)
        picture = _by_own_range(shifted, inverted, meant) if np.isfinite(shifted).all() else plain
        # A window beside the picture leaves it black and white.
        if picture.entropy() >= plain.entropy() / 2:
            return picture
    return plain


def _drop_odd_values(scan: Any) -> None:
    """Take out of a DICOM header what says nothing: display values that are empty, no numbers or out of all bounds."""
    for name, least, most in _DICOM_NUMBERS:
        found = _numbers(scan, name)
        if name in scan and not (found and all(least <= abs(value) <= most for value in found)):
            del scan[name]
    for name, usual in (("RescaleSlope", 1), ("RescaleIntercept", 0)):
        if ("RescaleSlope" in scan or "RescaleIntercept" in scan) and name not in scan:
            setattr(scan, name, usual)
    for name, known in _DICOM_WORDS.items():
        word = _word(scan, name)
        if name in scan and word not in known:
            del scan[name]
        elif name in scan:
            setattr(scan, name, word)
    if int(scan.get("NumberOfFrames", 1)) < 1:
        del scan.NumberOfFrames
    kind = _word(scan, "PhotometricInterpretation")
    if scan.get("SamplesPerPixel", 1) == 1 and "PALETTE" not in kind:  # "MONOCHROME 1", "GRAYSCALE", nothing
        kind = "MONOCHROME1" if re.match(r"MONOCHROME\W?_?1", kind) else "MONOCHROME2"
    scan.PhotometricInterpretation = kind


def _numbers(scan: Any, name: str) -> list[float]:
    try:
        value = scan.get(name)
        values = [float(each) for each in ([value] if isinstance(value, (int, float, str)) else value)]
    except Exception:  # pydicom reads a value when it is asked for
        return []
    return values if np.isfinite(values).all() else []


def _word(scan: Any, name: str) -> str:
    try:
        return str(scan.get(name) or "").strip(" \0").upper()
    except Exception:
        return ""


def _as_displayed(scan: Any, pixels: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """The pixels in each way that the header asks for, the one to prefer first: lookup table, windows, as measured."""
    from pydicom.pixels import apply_modality_lut, apply_voi, apply_windowing

    try:
        measured = apply_modality_lut(pixels, scan)
    except Exception:  # a damaged lookup table
        return
    if scan.get("VOILUTSequence"):
        with suppress(Exception):
            yield apply_voi(measured, scan)
    # A width of 1 or less is refused by pydicom, as is a window without its other half.
    for number in range(len(_numbers(scan, "WindowWidth"))):
        with suppress(Exception), np.errstate(all="ignore"):
            yield apply_windowing(measured, scan, index=number)
    yield measured


def _padding(scan: Any, pixels: NDArray[Any]) -> NDArray[np.bool_]:
    """Which pixels lie outside of what was taken, by the header; none where that would leave no picture."""
    ends = [value for name in ("PixelPaddingValue", "PixelPaddingRangeLimit") for value in _numbers(scan, name)]
    if "PixelPaddingValue" not in scan or not ends:
        return np.zeros(pixels.shape, bool)
    # Some files give a negative value as if it had no sign.
    around = 1 << 8 * pixels.dtype.itemsize
    low, high = (value - around if value > np.iinfo(pixels.dtype).max else value for value in (min(ends), max(ends)))
    padded: NDArray[np.bool_] = (pixels >= min(low, high)) & (pixels <= max(low, high))
    # A range that holds many levels has the picture in it.
    is_border = padded.mean() < _MOST_PADDED and len(np.unique(pixels[padded])) < _FEW_LEVELS
    return padded & is_border


def _decompressed(scan: Any, where: str) -> NDArray[Any]:
    """The pixels as stored. A compression that nothing installed can read is named with the package that can."""
    from pydicom.pixels import get_decoder
    from pydicom.uid import UID_dictionary

    syntax = scan.file_meta.TransferSyntaxUID
    if not syntax.is_compressed or syntax.is_deflated:
        allocated, stored, high = (int(scan.get(name) or 0) for name in ("BitsAllocated", "BitsStored", "HighBit"))
        if 0 < stored <= high < allocated:  # 12 bits at the upper end of 16: pydicom takes the lower ones
            scan.BitsStored = high + 1
        return np.asarray(scan.pixel_array)
    # The name is pydicom's; a syntax that it does not know would be quoted from the file.
    name = syntax.name.split(",")[0].split(" (")[0] if syntax in UID_dictionary else "an unknown way"
    try:
        able = get_decoder(syntax).is_available
    except NotImplementedError:
        able = False
    # Neither GDCM nor Pillow reads the 12 bits of JPEG Extended; the one that does is under the GPL.
    extended = syntax == _JPEG_EXTENDED
    if extended and int(scan.BitsStored) > 8:
        able = get_decoder(syntax).is_available and "pylibjpeg" in get_decoder(syntax).available_plugins
    if able:
        try:
            return np.asarray(scan.pixel_array)
        except Exception as error:  # as in `_load_dicom`
            raise UnfitImage(
                f"{where} is DICOM compressed as {name}, which its decoder cannot read ({type(error).__name__}): "
                "export it as PNG."
            ) from None
    remedy = "pylibjpeg pylibjpeg-libjpeg" if extended else "radvision-7b[dicom]"
    raise UnfitImage(
        f"{where} is DICOM compressed as {name}: `pip install {remedy}` to read it, or export it as PNG.",
        "DICOM without a decoder",
    )


def _check_size(width: int, height: int, where: str) -> None:
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
        return _by_own_range(np.asarray(image, dtype=np.float32), inverted)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        black = Image.new("RGBA", image.size, (0, 0, 0, 255))
        image = Image.alpha_composite(black, image)
    # CMYK and palettes turn gray correctly only by way of RGB.
    return (image if image.mode in ("L", "1") else image.convert("RGB")).convert("L")


def _by_own_range(levels: NDArray[np.float32], inverted: bool, meant: NDArray[np.bool_] | None = None) -> Image.Image:
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
        if _distinct(rest) < _FEW_LEVELS:
            break
        whole = rest
    aside = len(whole) // 200
    middle = whole[aside : len(whole) - aside]
    scattered = middle[-1] - middle[0] < (whole[-1] - whole[0]) / 2 and _distinct(middle) >= _FEW_LEVELS
    kept = middle if scattered else whole
    return float(kept[0]), float(kept[-1])


def _distinct(ordered: NDArray[np.float32]) -> int:
    return 1 + int(np.count_nonzero(np.diff(ordered)))


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
        return _square(_to_gray(image, False), size, "the image")
    return _square(load_image(image, size), size, "the image" if isinstance(image, bytes) else f"image {image}")


def _square(picture: Image.Image, size: int, where: str) -> Image.Image:
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
    picture, oddities = _decode(data, "the image", size)
    square = _square(picture, size, "the image")
    partial = path.with_name(f".{path.name}.partial")
    square.save(partial, format="PNG", compress_level=PNG_LEVEL)
    os.replace(partial, path)
    return Stored(hashlib.sha256(square.tobytes()).hexdigest()[:16], mirror_symmetry(square), oddities)


def store_squares(
    jobs: Iterable[tuple[T, bytes | Stored, Path]], size: int, workers: int, count: int | None
) -> Iterator[tuple[T, Stored]]:
    """Store many pictures as squares, in parallel, a few ahead of the one that is asked for.

    Args:
        jobs: what the picture belongs to, its encoded bytes or what became of it before, and where to write it.
        size: side of the squares in pixels.
        workers: processes; 0: one a core, 1: this process.
        count: how many jobs to expect, None if unknown; a few do not pay for processes.

    Yields:
        For each job, in order: what it belongs to, and what became of its picture.

    Raises:
        RadVisionError: a process died.
    """
    workers = min(workers or cores(), 1 + (count or _PER_WORKER * 64) // _PER_WORKER)
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
