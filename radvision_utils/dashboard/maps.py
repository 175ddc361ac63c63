"""Evidence maps as pictures: tiny ones that a page lays over the radiograph, and small radiographs with their map.

A map keeps the cells that it was measured in: drawn smoother, it would claim to know more than it does.
"""

from __future__ import annotations

import base64
import io

from PIL import Image, ImageDraw

from radvision_utils.dashboard.evidence import EvidenceMap
from radvision_utils.dashboard.markup import STRENGTHS, VIRIDIS

_LEVELS = 16  # shades of a map; more are hardly told apart, and cost bytes
_HATCH = 8  # pixels between the lines over a map that is not supported


def color(value: float, gray: bool = False) -> tuple[int, int, int]:
    """The color of a value of 0 to 1: of viridis, or as dark a gray."""
    place = min(max(value, 0.0), 1.0) * (len(VIRIDIS) - 1)
    low = min(int(place), len(VIRIDIS) - 2)
    ends = [[int(VIRIDIS[i][k : k + 2], 16) for k in (1, 3, 5)] for i in (low, low + 1)]
    red, green, blue = (round(a + (b - a) * (place - low)) for a, b in zip(*ends, strict=True))
    if not gray:
        return red, green, blue
    luma = round(0.299 * red + 0.587 * green + 0.114 * blue)
    return luma, luma, luma


def map_uri(evidence: EvidenceMap) -> str:
    """The map as a PNG data URI of a pixel a cell; where nothing speaks for the sentence it is transparent."""
    width = len(evidence.values[0])
    shades = [_shade(value) for row in evidence.values for value in row]
    picture = Image.new("P", (width, len(evidence.values)))
    picture.putdata(shades)
    colors = [color(shade / (_LEVELS - 1), gray=not evidence.supported) for shade in range(_LEVELS)]
    picture.putpalette([channel for each in colors for channel in each])
    stream = io.BytesIO()
    opaque = bytes(round(255 * shade / (_LEVELS - 1)) for shade in range(_LEVELS))
    picture.save(stream, "PNG", bits=4, transparency=opaque, optimize=True)
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()


def with_map(radiograph: Image.Image, evidence: EvidenceMap, side: int) -> Image.Image:
    """The radiograph, reduced to a square of `side` pixels, under its map; one without support is gray and hatched."""
    picture = squared(radiograph).resize((side, side), Image.Resampling.LANCZOS).convert("RGB")
    cells = _cells(evidence, STRENGTHS["medium"]).resize((side, side), Image.Resampling.NEAREST)
    if not evidence.supported:
        stripes = Image.new("L", (side, side), 0)
        pen = ImageDraw.Draw(stripes)
        for start in range(-side, side, _HATCH):
            pen.line((start, side, start + side, 0), fill=255, width=_HATCH // 2)
        cells.putalpha(Image.composite(cells.getchannel("A"), Image.new("L", (side, side), 0), stripes))
    picture.paste(cells, (0, 0), cells)
    return picture


def squared(image: Image.Image) -> Image.Image:
    """The picture in the middle of a black square, as the model sees it."""
    side = max(image.size)
    square = Image.new("L", (side, side), 0)
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


def thumb_uri(radiograph: Image.Image, evidence: EvidenceMap, side: int) -> str:
    """`with_map` as a JPEG data URI of about two kilobytes."""
    stream = io.BytesIO()
    with_map(radiograph, evidence, side).save(stream, "JPEG", quality=60, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode()


def _cells(evidence: EvidenceMap, strength: float) -> Image.Image:
    """A pixel a cell, as opaque as its value is great."""
    height, width = len(evidence.values), len(evidence.values[0])
    picture = Image.new("RGBA", (width, height))
    for y, row in enumerate(evidence.values):
        for x, value in enumerate(row):
            shade = _shade(value) / (_LEVELS - 1)
            picture.putpixel((x, y), (*color(shade, gray=not evidence.supported), round(255 * strength * shade)))
    return picture


def _shade(value: float) -> int:
    return round(min(value, 1.0) * (_LEVELS - 1))
