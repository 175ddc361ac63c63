"""Radiographs in DICOM as 8-bit grayscale. Only what the picture needs is read: nothing about the patient enters.

Needs pydicom (`pip install radvision-7b[dicom]`), which is imported when the first DICOM file turns up.
"""

from __future__ import annotations

import io
import warnings
from typing import Any

import numpy as np
from PIL import Image

from radvision_utils.config import RadVisionError
from radvision_utils.data.pixels import UnfitImage, by_own_range, check_size

_TAGS = (
    *("SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration", "NumberOfFrames", "Rows", "Columns"),
    *("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation"),
    *("ModalityLUTSequence", "RescaleIntercept", "RescaleSlope", "VOILUTSequence", "VOILUTFunction"),
    *("WindowCenter", "WindowWidth", "ExtendedOffsetTable", "ExtendedOffsetTableLengths", "PixelData"),
)
_GRAY = ("MONOCHROME1", "MONOCHROME2")


def is_dicom(data: bytes) -> bool:
    """Whether the bytes are a DICOM file, by the mark behind its preamble."""
    return data[128:132] == b"DICM"


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
            return _pixels(pydicom.dcmread(io.BytesIO(data), specific_tags=list(_TAGS)), where)
    except RadVisionError:
        raise
    except Exception as error:  # pydicom leaves damage and missing decoders to whatever exception comes up
        # "from None": a traceback of the cause would quote the file, too.
        raise UnfitImage(
            f"{where} is DICOM that cannot be decoded ({type(error).__name__}): export it as PNG."
        ) from None


def _pixels(scan: Any, where: str) -> Image.Image:
    from pydicom.pixels import apply_modality_lut, apply_voi_lut

    frames, kind = int(scan.get("NumberOfFrames", None) or 1), scan.PhotometricInterpretation
    if frames > 1:
        raise UnfitImage(f"{where} has {frames} frames: give a radiograph with one.", "image has several frames")
    check_size(int(scan.Columns), int(scan.Rows), where)
    pixels = scan.pixel_array
    if kind not in _GRAY:
        # pydicom gives RGB for every color encoding but palettes, whose indices would pass for gray levels.
        if pixels.ndim != 3 or pixels.dtype != np.uint8:
            raise ValueError("a color encoding that radiographs do not have")
        return Image.fromarray(pixels).convert("L")
    levels = apply_voi_lut(apply_modality_lut(pixels, scan), scan).astype(np.float32)
    return by_own_range(levels.max() - levels if kind == "MONOCHROME1" else levels)
