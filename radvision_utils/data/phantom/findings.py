"""How each finding is drawn into a phantom radiograph.

Each function changes the densities of the scene and returns where it did so, as a plane of any
scale: the box around the finding is taken from it.
"""

from collections.abc import Callable

import numpy as np
from PIL import ImageDraw

from radvision_utils.data.phantom.reports import Finding
from radvision_utils.data.phantom.scene import (
    SIGN,
    SIZE,
    Body,
    Plane,
    Point,
    Scene,
    blurred,
    difference,
    smooth,
    step,
    texture,
)


def _draw_cardiomegaly(scene: Scene, rng: np.random.Generator, finding: Finding) -> Plane:
    return scene.heart  # drawn with the anatomy; `Body` made it large


def _draw_effusion(scene: Scene, rng: np.random.Generator, finding: Finding) -> Plane:
    side = str(finding.side)
    base = scene.body.base(side)
    height = rng.uniform(0.20, 0.48)
    across = np.clip(np.abs(scene.x) / (0.70 * scene.body.width), 0, 1.1)
    # The meniscus: nearly level in the middle, climbing along the lateral wall.
    level = base + 0.10 - height * (0.45 + 0.55 * across**3)
    fluid = scene.air[side] * step((scene.y - level) / 0.05 + 0.5)
    scene.air[side] -= fluid
    scene.added += 0.05 * fluid
    return fluid


def _draw_pneumothorax(scene: Scene, rng: np.random.Generator, finding: Finding) -> Plane:
    side = str(finding.side)
    outline, on_wall = scene.outline[side]
    hilum = np.array([SIGN[side] * 0.16, 0.12])
    inner = hilum + (outline - hilum) * (rng.uniform(0.66, 0.80), rng.uniform(0.72, 0.82))
    scene.vessel_limits[side] = inner
    free = scene.lung[side] * (1 - scene.mask(inner, blur=1.0)) * (np.abs(scene.x) > 0.14)
    free *= step((scene.body.base(side) + 0.02 - scene.y) / 0.12)
    scene.added -= 0.11 * free
    # The collapsed lung is denser than before.
    scene.added += 0.08 * (scene.lung[side] - free) * (1 - scene.heart)
    edge = inner[6:on_wall]
    scene.line(edge[edge[:, 1] < scene.body.base(side) + 0.02], 3, 95)
    return free


def _draw_consolidation(scene: Scene, rng: np.random.Generator, finding: Finding) -> Plane:
    side = str(finding.side)
    x, y = _centre(scene.body, rng, finding, inset=0.5)
    blob = np.zeros_like(scene.added)
    for dx, dy in rng.normal(0, (0.06, 0.045), (4, 2)):
        r = rng.uniform(0.09, 0.15)
        blob = np.maximum(blob, scene.ellipse(x + dx, y + dy, r * 1.15, r, soft=1.0))
    patches = texture(rng, 24)
    blob = blurred(blob, 3.0) * (0.8 + 0.2 * patches) * scene.air[side] * (1 - scene.heart)
    # Fluid takes the place of air, so that borders of the heart and vessels are lost in it.
    scene.air[side] -= 0.84 * blob
    return blob


def _draw_atelectasis(scene: Scene, rng: np.random.Generator, finding: Finding) -> Plane:
    side = str(finding.side)
    base, sign = scene.body.base(side), SIGN[side]
    bands = np.zeros_like(scene.added)
    for i in range(int(rng.integers(2, 4))):
        y0 = base - 0.07 - 0.09 * i + rng.uniform(-0.01, 0.01)
        # On the left the bands start at the border of the heart.
        x0 = (0.22 if side == "right" else 0.36 - 0.03 * i) + rng.uniform(-0.02, 0.03)
        x1 = 0.66 * scene.body.width - 0.03 * i + rng.uniform(-0.03, 0.03)
        middle, length = sign * (x0 + x1) / 2, (x1 - x0) / 2
        slope, bow = sign * rng.uniform(-0.10, 0.16), rng.uniform(-0.3, 0.2)
        u = scene.x - middle
        off = scene.y - y0 - slope * u - bow * u * u
        band = step((0.027 - np.abs(off)) / 0.014) * step((length - np.abs(u)) / 0.05)
        bands = np.maximum(bands, band)
    bands = blurred(bands, 0.8) * scene.lung[side] * (1 - scene.heart)
    scene.added += 0.26 * bands
    # Less air in the basal lung around the bands.
    scene.air[side] *= 1 - 0.18 * step((scene.y - base + 0.24) / 0.2)
    return bands


def _draw_nodule(scene: Scene, rng: np.random.Generator, finding: Finding) -> Plane:
    x, y = _centre(scene.body, rng, finding, inset=0.6)
    radius = rng.uniform(15, 26) / (SIZE / 2) / scene.body.zoom
    nodule = scene.ellipse(x, y, radius, radius * rng.uniform(0.9, 1.1), soft=0.4)
    scene.added += 0.34 * nodule
    return nodule


_TURN = np.linspace(0, 2 * np.pi, 40)


def _draw_catheter(scene: Scene, rng: np.random.Generator, finding: Finding) -> Plane:
    sign = SIGN[str(finding.side)]
    # An implanted port: the line alone is a pixel wide where the tiny model looks, which never learned to see it.
    port = (sign * rng.uniform(0.46, 0.54), rng.uniform(-0.44, -0.36))
    tip = (-0.10 + rng.uniform(-0.01, 0.01), rng.uniform(-0.02, 0.12))
    cava = [(-0.115, -0.22), tip]
    if rng.random() < 0.5:  # by the jugular vein
        entry = [(0.36 * sign, -0.70), (0.23 * sign, -0.82), (0.17 * sign, -0.60)]
    else:  # by the subclavian vein
        entry = [(0.46 * sign, -0.56), (0.30 * sign, -0.62)]
    bend = [(0.10 * sign, -0.44)] if sign > 0 else [(-0.125, -0.42)]
    path = smooth(np.array([port, *entry, *bend, *cava]), closed=False)
    before = scene.lines.copy()
    scene.line(path, 6, 175)
    draw = ImageDraw.Draw(scene.lines)
    for radius, shade in ((0.072, 225), (0.032, 150)):
        ring = np.stack([np.cos(_TURN), np.sin(_TURN)], 1) * radius + np.array(port)
        draw.polygon(scene.body.pixels(ring, SIZE), fill=shade)
    return difference(scene.lines, before)


def _draw_pacemaker(scene: Scene, rng: np.random.Generator, finding: Finding) -> Plane:
    sign = SIGN[str(finding.side)]
    x, y = sign * rng.uniform(0.50, 0.56), rng.uniform(-0.50, -0.42)
    w, h, turn = rng.uniform(0.095, 0.12), rng.uniform(0.085, 0.105), rng.uniform(-0.3, 0.3)
    # A superellipse: a box with round corners.
    round_x, round_y = (np.sign(f) * np.abs(f) ** 0.45 for f in (np.cos(_TURN), np.sin(_TURN)))
    c, s = np.cos(turn), np.sin(turn)
    box = np.stack([x + w * round_x * c - h * round_y * s, y + w * round_x * s + h * round_y * c], 1)
    down = scene.body.breath
    path = [
        (x, y - h),
        (0.36 * sign, -0.62),
        (0.12 * sign, -0.48),
        (-0.105, -0.22),
        (-0.10, 0.08 + down),
        (0.02, 0.27 + down),
        (0.24 * min(scene.body.heart, 1.2), 0.34 + down),
    ]
    before = scene.lines.copy()
    scene.line(smooth(np.array(path), closed=False), 4, 170)
    draw = ImageDraw.Draw(scene.lines)
    draw.polygon(scene.body.pixels(box, SIZE), fill=235)
    centre = np.array([x, y])
    draw.polygon(scene.body.pixels(centre + (box - centre) * 0.72, SIZE), fill=190)
    return difference(scene.lines, before)


DRAW: dict[str, Callable[[Scene, np.random.Generator, Finding], Plane]] = {
    "cardiomegaly": _draw_cardiomegaly,
    "pleural effusion": _draw_effusion,
    "pneumothorax": _draw_pneumothorax,
    "consolidation": _draw_consolidation,
    "atelectasis": _draw_atelectasis,
    "nodule": _draw_nodule,
    "central venous catheter": _draw_catheter,
    "pacemaker": _draw_pacemaker,
}


def _centre(body: Body, rng: np.random.Generator, finding: Finding, inset: float) -> Point:
    """A place in the finding's zone: inset 0..1 from the mediastinum to the chest wall."""
    zone, side = str(finding.zone), str(finding.side)
    top, base = -0.68 + body.top, body.base(side)
    share = {"upper": 0.22, "middle": 0.54, "lower": 0.84}[zone] + rng.uniform(-0.04, 0.04)
    y = top + share * (base - top)
    inner = 0.16
    if zone == "lower":
        # Beside the heart, not behind it.
        inner = 0.20 if side == "right" else min(0.36 * body.heart, 0.42)
    outer = float(body.wall(y)) - 0.10
    return SIGN[side] * (inner + (outer - inner) * (inset + rng.uniform(-0.2, 0.2))), y
