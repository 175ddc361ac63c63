"""The stage on which a phantom is drawn: a body, the planes of its picture, and the tools for both.

Anatomy is placed in body coordinates: x and y in -1..1 over the image, x = 0 the midline, the
patient's right at x < 0. A plane holds brightness between 0 (air) and 1 (metal).
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from radvision_utils.phantoms.hospitals import Finding

SIZE = 512
HALF = SIZE // 2  # soft structures are drawn at this size and enlarged: nothing in them is sharper
SIGN = {"right": -1.0, "left": 1.0}

Plane = NDArray[np.float32]
Points = NDArray[np.float64]
Box = tuple[int, int, int, int]
Point = tuple[float, float]


class Body:
    """The anatomy of one study and the mapping from body coordinates to pixels."""

    def __init__(self, rng: np.random.Generator, zoom: float, shift: float, findings: Sequence[Finding]) -> None:
        self.zoom = zoom * rng.uniform(0.94, 1.05)
        self.angle = np.deg2rad(rng.normal(0, 1.6))
        self.shift = rng.uniform(-shift, shift, 2)
        self.width = rng.uniform(0.93, 1.07)
        self.breath = rng.uniform(-0.05, 0.07)
        self.top = rng.uniform(-0.03, 0.03)
        self.ribs = int(rng.integers(8, 11))
        self.build = rng.uniform(0.0, 1.0)  # thin to stout
        self.heart = rng.uniform(0.88, 1.08)
        enlargement = rng.uniform(1.4, 1.56)  # drawn always: the stream stays in step
        self.apex = rng.uniform(-0.03, 0.03)
        names = {f.name for f in findings}
        if "cardiomegaly" in names:
            self.heart = enlargement * (0.97 + 0.03 * self.heart)
        # Collapsed lung pulls its diaphragm up.
        self.lift = {side: 0.06 * any(f.name == "atelectasis" and f.side == side for f in findings) for side in SIGN}

    def pixels(self, points: Points, size: int) -> list[Point]:
        c, s = np.cos(self.angle) * self.zoom, np.sin(self.angle) * self.zoom
        moved = points @ np.array([[c, s], [-s, c]]) + self.shift
        return [(float(x), float(y)) for x, y in (moved + 1) * (size / 2)]

    def grid(self) -> tuple[Plane, Plane]:
        """Body coordinates x and y of the pixels of a plane."""
        line = (np.arange(HALF, dtype=np.float32) + 0.5) / (HALF / 2) - 1
        c, s = (np.float32(np.cos(self.angle) / self.zoom), np.float32(np.sin(self.angle) / self.zoom))
        dx, dy = np.meshgrid(line - np.float32(self.shift[0]), line - np.float32(self.shift[1]))
        return c * dx + s * dy, c * dy - s * dx

    def base(self, side: str) -> float:
        """y of the top of the diaphragm's dome."""
        return 0.38 + self.breath - self.lift[side] + (0.055 if side == "left" else 0.0)

    def wall(self, y: float | Points) -> Points:
        """Distance of the inner chest wall from the midline at height y."""
        ys = np.array([-0.80, -0.74, -0.60, -0.40, -0.10, 0.20, 0.60]) + self.top
        return np.asarray(self.width * np.interp(y, ys, [0.20, 0.38, 0.53, 0.62, 0.69, 0.72, 0.72]))

    def lung(self, side: str) -> tuple[Points, int]:
        """Outline of a lung, and how many of its points lie on the chest wall, apex first."""
        base, w = self.base(side), self.width
        ys = np.array([-0.72, -0.60, -0.42, -0.15, 0.15, base, base + 0.17]) + self.top * 0.5
        apex = [(0.13 * w, -0.70 + self.top), (0.26 * w, -0.80 + self.top)]
        wall = [(float(self.wall(y)), float(y)) for y in ys]
        floor = [(0.60, 0.075), (0.47, 0.01), (0.34, 0.0), (0.22, 0.045), (0.12, 0.10)]
        medial = [(0.12, 0.10), (0.13, -0.2), (0.11, -0.45)]
        points = [*apex, *wall, *((x * w, base + dy) for x, dy in floor), *((x * w, y) for x, y in medial)]
        curve = smooth(np.array(points), closed=True)
        curve[:, 0] *= SIGN[side]
        return curve, 6 * (len(apex) + len(wall) - 1)


class Scene:
    """The picture in the making: soft densities at half size, fine lines at full size."""

    def __init__(self, body: Body) -> None:
        self.body = body
        self.x, self.y = body.grid()
        self.outline = {side: body.lung(side) for side in SIGN}
        self.lung = {s: self.mask(self.outline[s][0], blur=1.2) for s in SIGN}
        self.air = {s: self.lung[s].copy() for s in SIGN}
        self.added = np.zeros((HALF, HALF), np.float32)
        self.vessel_limits: dict[str, Points] = {}
        self.lines = Image.new("L", (SIZE, SIZE))
        self.heart = self.mask(self._heart(), blur=2.0)

    def mask(self, points: Points, blur: float) -> Plane:
        plane = Image.new("L", (HALF, HALF))
        ImageDraw.Draw(plane).polygon(self.body.pixels(points, HALF), fill=255)
        return blurred(plane, blur)

    def line(self, points: Points, width: int, value: int) -> None:
        ImageDraw.Draw(self.lines).line(self.body.pixels(points, SIZE), fill=value, width=width, joint="curve")

    def device(self, path: Points, width: int, value: int, plates: Sequence[tuple[Points, int]]) -> Plane:
        """Draws a line and, over it, plates of an outline and a brightness; returns where that changed the lines."""
        before = np.asarray(self.lines, np.float32)
        self.line(path, width, value)
        for outline, shade in plates:
            ImageDraw.Draw(self.lines).polygon(self.body.pixels(outline, SIZE), fill=shade)
        return np.abs(np.asarray(self.lines, np.float32) - before)

    def ellipse(self, x: float, y: float, rx: float, ry: float, soft: float = 0.5) -> Plane:
        """1 inside, 0 outside, falling over the fraction `soft` of the radius."""
        r = np.sqrt(((self.x - x) / rx) ** 2 + ((self.y - y) / ry) ** 2)
        return step((1 - r) / soft + 0.5)

    def _heart(self) -> Points:
        k, down = self.body.heart * self.body.width, self.body.breath + self.body.apex * 0.5
        tall = 1 + 0.45 * (self.body.heart - 1)
        points = [
            (-0.09, -0.16),
            (-0.15, 0.04),
            (-0.185, 0.22),
            (-0.14, 0.40),
            (0.05, 0.46),
            (0.28, 0.46),
            (0.41, 0.40 + self.body.apex),
            (0.425, 0.30 + self.body.apex),
            (0.37, 0.15 + self.body.apex),
            (0.265, 0.02),
            (0.19, -0.10),
            (0.14, -0.20),
        ]
        shape = np.array([(x * k, 0.42 + (y - 0.42) * tall + down) for x, y in points])
        return smooth(shape, closed=True)


def step(value: NDArray[np.floating]) -> Plane:
    """Smooth step from 0 to 1 over 0..1."""
    value = np.clip(value, 0, 1).astype(np.float32, copy=False)
    return value * value * (3 - 2 * value)


def smooth(points: Points, closed: bool) -> Points:
    """A Catmull-Rom curve through the points, six steps from each to the next."""
    if closed:
        padded = np.concatenate([points[-1:], points, points[:2]])
    else:
        padded = np.concatenate([points[:1], points, points[-1:]])
    p0, p1, p2, p3 = (padded[i : len(padded) - 3 + i, None] for i in range(4))
    t = (np.arange(6) / 6)[None, :, None]
    curve = 0.5 * (2 * p1 + (p2 - p0) * t + (2 * p0 - 5 * p1 + 4 * p2 - p3) * t**2 + (3 * p1 - p0 - 3 * p2 + p3) * t**3)
    flat = curve.reshape(-1, 2)
    return flat if closed else np.concatenate([flat, points[-1:]])


def blurred(plane: Image.Image | Plane, radius: float) -> Plane:
    if not isinstance(plane, Image.Image):
        plane = Image.fromarray((np.clip(plane, 0, 1) * 255).astype(np.uint8))
    return np.asarray(plane.filter(ImageFilter.GaussianBlur(radius)), np.float32) / np.float32(255)


def softened(plane: Image.Image) -> Plane:
    """Takes the steps off drawn lines, in a third of the time of a Gaussian blur."""
    return np.asarray(plane.filter(ImageFilter.BoxBlur(1)), np.float32) / np.float32(255)


def texture(rng: np.random.Generator, cells: int) -> Plane:
    coarse = Image.fromarray(rng.random((cells, cells), np.float32))
    return np.asarray(coarse.resize((HALF, HALF), Image.Resampling.BICUBIC))


def strong_part(region: Plane) -> NDArray[np.bool_]:
    """What is more than 30 % of the region's maximum: the finding without the haze around it."""
    return np.asarray(region > 0.3 * region.max())


def box_of(region: Plane) -> Box:
    """The box around the strong part of a region, in pixels of the full image."""
    strong = strong_part(region)
    scale = SIZE // region.shape[0]
    ys, xs = np.flatnonzero(strong.any(axis=1)), np.flatnonzero(strong.any(axis=0))
    return (int(xs[0]) * scale, int(ys[0]) * scale, (int(xs[-1]) + 1) * scale, (int(ys[-1]) + 1) * scale)
