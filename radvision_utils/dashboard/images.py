"""The radiograph of a card: opened, windowed as on a reading screen, and packed into the page."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from radvision_utils.config import RadVisionError

IMAGE_SIDE = 512  # pixels; more is not seen at the width of a card


@dataclass(frozen=True)
class View:
    """How a radiograph and its report are looked at.

    Attributes:
        center: the gray level shown as middle gray, 0 (black) to 1 (white).
        width: the range of gray levels around it that is spread from black to white, above 0, up to 1.
        invert: white for black.
        zoom: enlargement in the well, 1 to 4; larger than the well it scrolls.
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
    """A radiograph as an 8-bit grayscale picture of at most `IMAGE_SIDE` pixels a side.

    Raises:
        RadVisionError: the file is missing, or it is no image.
    """
    if source is None:
        return None
    where = "the image given as bytes" if isinstance(source, bytes) else f"the image {source}"
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as opened:
            image = opened.convert("L")
    except FileNotFoundError as error:
        raise RadVisionError(f"{where} does not exist: prepare the run's data again, or give another path.") from error
    except (UnidentifiedImageError, OSError) as error:
        raise RadVisionError(f"{where} cannot be read ({error}): give a PNG or JPEG file.") from error
    image.thumbnail((IMAGE_SIDE, IMAGE_SIDE), Image.Resampling.LANCZOS)
    return image


def windowed(image: Image.Image, view: View) -> Image.Image:
    """An 8-bit grayscale picture through the view's window; its zoom is the page's business."""
    low = view.center - view.width / 2
    levels = [min(max((level / 255 - low) / view.width, 0.0), 1.0) for level in range(256)]
    return image.point([round(255 * (1 - level if view.invert else level)) for level in levels])


def data_uri(image: Image.Image, limit: int) -> str:
    """The picture as a JPEG data URI of at most about `limit` bytes, as good as fits."""
    encoded = b""
    for quality in (90, 82, 72, 60, 45, 30):
        stream = io.BytesIO()
        image.save(stream, "JPEG", quality=quality, optimize=True)
        encoded = base64.b64encode(stream.getvalue())
        if len(encoded) <= limit:
            break
    return "data:image/jpeg;base64," + encoded.decode()
