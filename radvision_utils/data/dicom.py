"""DICOM: the picture in it, as it is meant to be seen; nothing about the patient enters.

It needs pydicom (`pip install radvision-7b[dicom]`), which is imported when the first such file turns up; only what the
picture needs is read.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from radvision_utils.config import RadVisionError
from radvision_utils.data.pixels import FEW_LEVELS, UnfitImage, by_own_range, check_size

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


def load_dicom(data: bytes, where: str) -> Image.Image:
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
    check_size(int(scan.Columns), int(scan.Rows), where)
    pixels = _decompressed(scan, where)
    if kind not in ("MONOCHROME1", "MONOCHROME2") or pixels.ndim == 3:
        # pydicom gives RGB for every color encoding but palettes, whose indices would pass for gray levels.
        if pixels.ndim != 3 or pixels.dtype != np.uint8:
            raise ValueError("a color encoding that radiographs do not have")
        return Image.fromarray(pixels).convert("L")
    meant = ~_padding(scan, pixels)
    inverted = kind == "MONOCHROME1" or scan.get("PresentationLUTShape", "") == "INVERSE"
    plain = by_own_range(pixels.astype(np.float32), inverted, meant)
    for levels in _as_displayed(scan, pixels):
        # From zero: of a window a million times wider than the picture its levels would all be one.
        shifted = (levels - levels.min()).astype(np.float32)
        picture = by_own_range(shifted, inverted, meant) if np.isfinite(shifted).all() else plain
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
    is_border = padded.mean() < _MOST_PADDED and len(np.unique(pixels[padded])) < FEW_LEVELS
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
        except Exception as error:  # as in `load_dicom`
            raise UnfitImage(
                f"{where} is DICOM compressed as {name}, which its decoder cannot read ({type(error).__name__}): "
                "export it as PNG."
            ) from None
    remedy = "pylibjpeg pylibjpeg-libjpeg" if extended else "radvision-7b[dicom]"
    raise UnfitImage(
        f"{where} is DICOM compressed as {name}: `pip install {remedy}` to read it, or export it as PNG.",
        "DICOM without a decoder",
    )
