"""The radiograph of a card: opened, windowed as on a reading screen, under its evidence maps, packed into the page.

A map keeps the cells that it was measured in: drawn smoother, it would claim to know more than it does.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, UnidentifiedImageError

from radvision_utils.config import RadVisionError
from radvision_utils.dashboard.record import EvidenceMap
from radvision_utils.data.images import letterbox

IMAGE_SIDE = 512  # pixels; more is not seen at the width of a card
WINDOWS = {"full": (0.5, 1.0), "lung": (0.35, 0.6), "soft tissue": (0.5, 0.6), "bone": (0.65, 0.6)}
"""Center and width of the gray levels that are told apart best for what a window is named after; as in page.css."""
STRENGTHS = {"off": 0.0, "faint": 0.35, "medium": 0.6, "strong": 0.85}
"""How opaque the strongest cell of an evidence map lies over the radiograph."""
OUTLINE = "#f5f7fa"  # of what was drawn
Box = tuple[float, float, float, float]
"""Left, top, right and bottom, as shares of the image's side."""
_SHADES = 16  # of a map; more are hardly told apart, and cost bytes
_STRIPE = 4  # pixels between and of the lines over a map that is not supported


@dataclass(frozen=True)
class View:
    """How a radiograph and its report are looked at.

    Attributes:
        center: the gray level shown as middle gray, 0 (black) to 1 (white).
        width: the range of gray levels around it that is spread from black to white, above 0, up to 1.
        invert: white for black.
        zoom: enlargement beside the report, 1 to 4; larger than its place it scrolls.
        map_strength: how opaque evidence maps lie over it, 0 (off) to 1; None leaves that to a switch in the card.
        least_agreement: sentences that fewer sampled reports assert are hidden, and counted; 0 hides none.
    """

    center: float = 0.5
    width: float = 1.0
    invert: bool = False
    zoom: float = 1.0
    map_strength: float | None = None
    least_agreement: int = 0


def open_image(source: Path | bytes | None) -> Image.Image | None:
    """A radiograph as the model sees it: an 8-bit grayscale square, of at most `IMAGE_SIDE` pixels a side.

    Raises:
        RadVisionError: the file is missing, or it is no image.
    """
    if source is None:
        return None
    where = "the image given as bytes" if isinstance(source, bytes) else f"the image {source}"
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as opened:
            return letterbox(opened.convert("L"), min(IMAGE_SIDE, max(opened.size)))
    except FileNotFoundError as error:
        raise RadVisionError(f"{where} does not exist: prepare the run's data again, or give another path.") from error
    except (UnidentifiedImageError, OSError) as error:
        raise RadVisionError(f"{where} cannot be read ({error}): give a PNG or JPEG file.") from error


def windowed(image: Image.Image, view: View) -> Image.Image:
    """An 8-bit grayscale picture through the view's window; its zoom is the page's business."""
    low = view.center - view.width / 2
    levels = [min(max((level / 255 - low) / view.width, 0.0), 1.0) for level in range(256)]
    return image.point([round(255 * (1 - level if view.invert else level)) for level in levels])


def jpeg_uri(image: Image.Image, limit: int) -> str:
    """The picture as a JPEG data URI of at most about `limit` bytes, as good as fits."""
    uri = ""
    for quality in (90, 82, 72, 60, 45, 30):
        uri = _uri(image, "jpeg", quality=quality)
        if len(uri) <= limit:
            break
    return uri


def map_uri(found: EvidenceMap) -> str:
    """The map as a PNG data URI of a pixel a cell; where nothing speaks for the sentence it is transparent."""
    image = Image.fromarray(_shades(found))
    image.putpalette(viridis(found.supported)[:, :3].tobytes())
    return _uri(image, "png", bits=4, transparency=np.linspace(0, 255, _SHADES).round().astype(np.uint8).tobytes())


def with_map(radiograph: Image.Image, found: EvidenceMap, side: int, lesions: Sequence[Box] = ()) -> Image.Image:
    """The radiograph, reduced to `side` pixels a side, under its map; one without support is gray and striped.

    What was drawn of a phantom's `lesions` is outlined.
    """
    picture = radiograph.resize((side, side), Image.Resampling.LANCZOS).convert("RGB")
    shades = _shades(found)
    cells = viridis(found.supported)[shades]
    cells[..., 3] = (255 * STRENGTHS["medium"] / (_SHADES - 1) * shades).round()
    over = Image.fromarray(cells).resize((side, side), Image.Resampling.NEAREST)
    opaque = over.getchannel("A")
    if not found.supported:
        diagonal = np.add.outer(np.arange(side), np.arange(side)) // _STRIPE % 2
        opaque = Image.fromarray(np.asarray(opaque) * diagonal.astype(np.uint8))
    picture.paste(over.convert("RGB"), (0, 0), opaque)
    for box in lesions:
        ImageDraw.Draw(picture).rectangle(
            [edge * (side - 1) for edge in box], outline=OUTLINE, width=max(1, side // 160)
        )
    return picture


def thumb_uri(radiograph: Image.Image, found: EvidenceMap, side: int, lesions: Sequence[Box] = ()) -> str:
    """`with_map` as a JPEG data URI of about two kilobytes."""
    return _uri(with_map(radiograph, found, side, lesions), "jpeg", quality=60)


@cache
def viridis(colorful: bool = True) -> np.ndarray:
    """The shades of a map from lowest to highest, RGBA in bytes: viridis, or for no support as dark a gray."""
    shades = matplotlib.colormaps["viridis"](np.linspace(0, 1, _SHADES), bytes=True)
    if not colorful:
        shades[:, :3] = (shades[:, :3] @ (0.299, 0.587, 0.114)).round()[:, None]
    return shades


def _shades(found: EvidenceMap) -> np.ndarray:
    """The shade of each cell, 0 to `_SHADES` - 1."""
    return (np.minimum(found.occlusion, 1.0) * (_SHADES - 1)).round().astype(np.uint8)


def _uri(image: Image.Image, kind: str, **how: Any) -> str:
    stream = io.BytesIO()
    image.save(stream, kind, optimize=True, **how)
    return f"data:image/{kind};base64," + base64.b64encode(stream.getvalue()).decode()
