"""Draws schematic lateral chest radiographs, the patient facing left: which kind of opacity is at the back of the base.

Only the findings of hospital C have a place here; both lungs lie over each other, so that a side cannot be told.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from radvision_utils.data.phantom.images import Look, expose
from radvision_utils.data.phantom.reports import Finding
from radvision_utils.data.phantom.scene import HALF, SIZE, Plane, Point, blurred, pixel_grid, smooth, step, texture


def render_lateral(
    look: Look, findings: Sequence[Finding], stream: Callable[[str], np.random.Generator]
) -> NDArray[np.uint8]:
    """Draws the lateral view of a study.

    Args:
        look: exposure and field of view.
        findings: what the study shows; those without a lateral sign change nothing.
        stream: as in `images.render`.

    Returns:
        uint8 of shape (512, 512).
    """
    rng = stream("lateral")
    dx, dy = rng.uniform(-look.shift, look.shift, 2)
    x, y = pixel_grid()
    x, y = x - dx, y - dy
    names = {finding.name for finding in findings}
    breath = rng.uniform(-0.05, 0.05)
    torso, lung = (
        _filled([(px + dx, py + dy + breath * (py > 0.2)) for px, py in points], blur)
        for points, blur in ((_TORSO, 3.0), (_LUNG, 1.5))
    )
    dome = 0.36 + breath + 0.45 * np.clip(x + 0.1, 0, 1) ** 2  # the diaphragm falls towards the back
    heart = _ellipse(x + 0.22, y - 0.10, *((0.34, 0.36) if "cardiomegaly" in names else (0.24, 0.28)))
    air = lung * (1 - 0.75 * heart)
    added = np.zeros_like(x)
    if "pleural effusion" in names:
        fluid = step((y - (dome - 0.05 - 0.35 * np.clip(x + 0.1, 0, 1))) / 0.06) * (x > -0.15)
        air = air * (1 - fluid)
    if "consolidation" in names:
        air = air * (1 - 0.9 * _blob(x, y, rng))
    if "atelectasis" in names:
        added = 0.30 * _bands(x, y, rng) * lung
    vertebrae = 0.6 + 0.4 * np.cos((y + rng.uniform(0, 0.1)) * 2 * np.pi / 0.16)
    back = 0.46 + 0.10 * np.cos(1.6 * y)
    spine = step((0.09 - np.abs(x - back)) / 0.05) * (0.08 + 0.05 * vertebrae)
    front = -0.66 + 0.28 * np.clip(-y, 0, 1) ** 2
    sternum = step((0.03 - np.abs(x - front)) / 0.03) * step((0.35 - y) / 0.1) * step((y + 0.75) / 0.1) * 0.12
    ribs = 0.03 * step(np.cos((y - 0.35 * x) * 2 * np.pi / 0.17) - 0.4) * lung
    soft = torso * (0.50 + 0.12 * step((y - dome) / 0.4) + spine + sternum + ribs) - 0.42 * air + added
    full = Image.fromarray(soft.astype(np.float32)).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    return expose(np.asarray(full, np.float32), look, rng)


# Outlines, the front at x < 0: chest wall, and both lungs over each other.
_TORSO = [
    *((-0.30, -1.4), (-0.26, -0.95), (-0.52, -0.70), (-0.74, -0.30), (-0.80, 0.20), (-0.76, 0.60), (-0.78, 1.5)),
    *((0.66, 1.5), (0.62, 0.70), (0.74, 0.10), (0.74, -0.40), (0.54, -0.80), (0.26, -0.95), (0.22, -1.4)),
]
_LUNG = [
    *((0.02, -0.84), (-0.20, -0.72), (-0.40, -0.48), (-0.56, -0.10), (-0.60, 0.22), (-0.56, 0.38), (-0.35, 0.36)),
    *(
        (-0.10, 0.34),
        (0.15, 0.40),
        (0.38, 0.52),
        (0.54, 0.66),
        (0.60, 0.30),
        (0.58, -0.10),
        (0.44, -0.55),
        (0.24, -0.80),
    ),
]


def _filled(points: Sequence[Point], blur: float) -> Plane:
    outline = (smooth(np.array(points), closed=True) + 1) * (HALF / 2)
    plane = Image.new("L", (HALF, HALF))
    ImageDraw.Draw(plane).polygon([(float(px), float(py)) for px, py in outline], fill=255)
    return blurred(plane, blur)


def _ellipse(x: Plane, y: Plane, rx: float, ry: float, soft: float = 0.5) -> Plane:
    return step((1 - np.sqrt((x / rx) ** 2 + (y / ry) ** 2)) / soft + 0.5)


def _blob(x: Plane, y: Plane, rng: np.random.Generator) -> Plane:
    """A consolidation: one cloud over the back of the base."""
    cx, cy = rng.uniform(0.20, 0.30), rng.uniform(0.10, 0.18)
    blob = _ellipse(x - cx, y - cy, 0.20, 0.17, soft=1.0)
    return blurred(blob, 3.0) * (0.8 + 0.2 * texture(rng, 24))


def _bands(x: Plane, y: Plane, rng: np.random.Generator) -> Plane:
    """An atelectasis: two long plates above the diaphragm, from front to back."""
    bands = np.zeros_like(x)
    for i in range(2):
        middle, slope = 0.18 - 0.16 * i + rng.uniform(-0.02, 0.02), rng.uniform(-0.05, 0.20)
        off = y - middle - slope * x
        bands = np.maximum(bands, step((0.03 - np.abs(off)) / 0.015) * step((0.42 - np.abs(x - 0.05)) / 0.05))
    return blurred(bands, 0.8)
