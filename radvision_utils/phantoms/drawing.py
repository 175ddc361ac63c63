"""Draws schematic frontal chest radiographs: findings, then the anatomy around them, then the look of a hospital.

`scene` holds the body and the planes. The function of a finding changes their densities and returns where it did so, as
a plane of any scale: the box around the finding is taken from it.
"""

from collections.abc import Callable, Sequence
from functools import cache
from math import cos, pi, sin

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from radvision_utils.phantoms.hospitals import Finding, Hospital
from radvision_utils.phantoms.scene import (
    HALF,
    SIGN,
    SIZE,
    Body,
    Box,
    Plane,
    Point,
    Points,
    Scene,
    blurred,
    box_of,
    smooth,
    softened,
    step,
    texture,
)

Stream = Callable[[str], np.random.Generator]


def render(look: Hospital, findings: Sequence[Finding], stream: Stream) -> tuple[NDArray[np.uint8], list[Box]]:
    """Draws one radiograph.

    Args:
        look: exposure and field of view.
        findings: what to draw.
        stream: gives an independent random generator for each purpose, so that leaving out a
            finding changes nothing else in the picture.

    Returns:
        The image, uint8 of shape (512, 512), and a box (x0, y0, x1, y1) for each finding.
    """
    scene, regions = draw_findings(look, findings, stream)
    soft = _soft_tissue(scene) + _bones(scene) + scene.added
    picture = np.asarray(Image.fromarray(soft).resize((SIZE, SIZE), Image.Resampling.BICUBIC), np.float32)
    picture = picture + 0.19 * _vessels(scene, stream("anatomy"))
    if scene.lines.getbbox():
        # A line adds to what lies behind it, up to white.
        metal = softened(scene.lines)
        picture = picture + metal * (1.0 - 0.8 * np.clip(picture, 0, 1))
    return _expose(picture, look, stream("look")), [box_of(r) for r in regions]


def draw_findings(look: Hospital, findings: Sequence[Finding], stream: Stream) -> tuple[Scene, list[Plane]]:
    """The body with its findings, as in `render`, and the region of each finding."""
    scene = Scene(Body(stream("body"), look.zoom, look.shift, findings))
    return scene, [_DRAW[f.name](scene, stream(f"{f.name}/{f.side}"), f) for f in findings]


def _soft_tissue(scene: Scene) -> Plane:
    x, y, body = scene.x, scene.y, scene.body
    torso = scene.mask(_torso(body.width, body.build), blur=2.0)
    thick = blurred(torso, 14.0)
    value = torso * (0.30 + 0.26 * thick + 0.03 * body.build)
    # Right and left dome, then the abdomen below them.
    value += torso * 0.20 * step((y - 0.30 - body.breath) / 0.5)
    middle = np.exp(-((x / 0.17) ** 2))
    value += torso * (0.14 * middle)
    air = np.maximum(scene.air["right"], scene.air["left"])
    air = air * (0.62 + 0.38 * blurred(air, 9.0))
    heart = scene.heart
    value -= 0.50 * air * (1 - 0.84 * heart)
    value += 0.07 * heart
    knob = scene.ellipse(0.12 * body.width, -0.32 + body.top, 0.085, 0.10, soft=0.35)
    value += 0.16 * knob * scene.air["left"] * (1 - heart)
    for side, sign in SIGN.items():
        hilum = scene.ellipse(sign * 0.17, -0.03 + 0.04 * sign * -1, 0.11, 0.17, soft=1.4)
        value += 0.10 * hilum * scene.air[side]
    trachea = step((0.034 - np.abs(x - 0.008)) / 0.03) * step((-0.25 - y) / 0.1)
    value -= 0.07 * trachea * torso
    stomach = scene.ellipse(0.36, body.base("left") + 0.20, 0.13, 0.07, soft=0.8)
    value -= 0.10 * stomach * (1 - scene.lung["left"])
    return value


def _torso(width: float, build: float) -> Points:
    chest = (0.84 + 0.07 * build) * width
    half = [
        (0.26, -1.5),
        (0.25, -1.02),
        (0.33, -0.90),
        (0.62, -0.83),
        (0.92, -0.74),
        (1.25, -0.55),
        (1.3, -0.20),
        (0.97, -0.22),
        (chest, 0.05),
        (chest, 0.55),
        (chest + 0.02, 1.6),
    ]
    right = [(-px, py) for px, py in half]
    return smooth(np.array(half + right[::-1]), closed=True)


def _bones(scene: Scene) -> Plane:
    body = scene.body
    planes = [Image.new("L", (HALF, HALF)) for _ in range(2)]
    pens = [ImageDraw.Draw(p) for p in planes]

    def band(pen: ImageDraw.ImageDraw, points: Points, width: int, value: int) -> None:
        # A tube: its cortex is brighter than its middle.
        line = body.pixels(points, HALF)
        pen.line(line, fill=value, width=width)
        pen.line(line, fill=int(value * 0.62), width=width - 3)

    t = np.linspace(0, 1, 14)
    spacing = 1.16 / body.ribs
    for i in range(body.ribs):
        for sign in SIGN.values():
            y = -0.78 + body.top + i * spacing + (0.10 + 0.012 * i) * t**2 - 0.06 * np.sin(np.pi * t)
            reach = body.wall(y[-1]) + 0.02
            x = 0.07 + (reach - 0.07) * np.sin(t * np.pi / 2) ** 0.9
            band(pens[0], np.stack([sign * x, y], 1), 9, 255)
            if i < body.ribs - 2:
                front = np.stack([sign * (reach - (reach - 0.30) * t**1.3), y[-1] + 0.03 + 0.20 * t], 1)
                band(pens[1], front, 8, 150)
    for sign in SIGN.values():
        clavicle = [(0.07, -0.60), (0.22, -0.66), (0.45, -0.745), (0.66, -0.73), (0.82, -0.75)]
        points = smooth(np.array(clavicle), closed=False) + np.array([0, body.top])
        band(pens[1], points * (sign, 1), 11, 255)
        scapula = np.array([(0.80, -0.62), (0.72, -0.40), (0.66, -0.10), (0.70, -0.02)])
        band(pens[1], smooth(scapula, closed=False) * (sign * body.width, 1), 6, 130)
    # Ribs show against air and drown in the mediastinum and the abdomen.
    seen = 0.35 + 0.65 * np.maximum(scene.lung["right"], scene.lung["left"]) * (1 - 0.7 * scene.heart)
    bones = 0.115 * blurred(planes[0], 1.0) * seen + 0.10 * blurred(planes[1], 1.0)
    vertebrae = 0.6 + 0.4 * np.cos((scene.y + body.top) * 2 * np.pi / 0.145)
    spine = step((0.085 - np.abs(scene.x)) / 0.05) * (0.02 + 0.025 * vertebrae)
    arms = [
        np.maximum(
            scene.ellipse(sign * 0.97, -0.60, 0.10, 0.12, soft=0.5),
            scene.ellipse(sign * 1.10, -0.25, 0.07, 0.42, soft=0.6),
        )
        for sign in SIGN.values()
    ]
    return bones + spine + 0.09 * (arms[0] + arms[1])


def _vessels(scene: Scene, rng: np.random.Generator) -> Plane:
    jitter = iter(rng.uniform(-1, 1, 2400).tolist())
    course: list[Point] = []  # three points for each vessel
    widths: list[float] = []

    def grow(x: float, y: float, angle: float, length: float, width: float) -> None:
        bend = angle + 0.25 * next(jitter)
        half = 0.5 * length
        middle = (x + half * cos(angle), y + half * sin(angle))
        end = (middle[0] + half * cos(bend), middle[1] + half * sin(bend))
        course.extend([(x, y), middle, end])
        widths.append(width)
        if width > 1.3:
            for turn in (0.38, -0.38):
                way = bend + turn + 0.25 * next(jitter)
                grow(*end, way, length * (0.72 + 0.12 * next(jitter)), width * 0.68)

    for sign in SIGN.values():
        for direction in (-1.35, -0.8, -0.25, 0.3, 0.8, 1.25):
            angle = direction + 0.15 * next(jitter)
            hilum = (sign * 0.16, -0.02 - 0.04 * sign + 0.05 * direction)
            way = angle if sign > 0 else pi - angle
            grow(*hilum, way, 0.19 + 0.03 * next(jitter), 5.5)
    plane = Image.new("L", (SIZE, SIZE))
    pen = ImageDraw.Draw(plane)
    pixels = scene.body.pixels(np.array(course), SIZE)
    for i, width in enumerate(widths):
        line = pixels[3 * i : 3 * i + 3]
        pen.line(line, fill=int(60 + 24 * width), width=max(1, round(width)))
    field = np.maximum(scene.air["right"], scene.air["left"]) * (1 - 0.8 * scene.heart)
    for side, limit in scene.vessel_limits.items():
        field = field * np.where(scene.x * SIGN[side] > 0, scene.mask(limit, blur=1.0), 1)
    large = Image.fromarray(field.astype(np.float32)).resize((SIZE, SIZE), Image.Resampling.BILINEAR)
    return softened(plane) * np.asarray(large)


def _expose(picture: Plane, look: Hospital, rng: np.random.Generator) -> NDArray[np.uint8]:
    """The picture as the hospital's machine records it."""
    picture = picture + rng.normal(0, 0.015)
    if look.marker:
        picture = _with_marker(picture, look, rng)
    picture = np.clip(picture, 0, 1)
    if look.gamma != 1:
        picture **= look.gamma
    picture = 0.5 + look.contrast * (picture - 0.5) + look.brightness
    picture = picture + look.noise * rng.standard_normal(picture.shape, np.float32)
    if look.collimation:
        left, top, right, bottom = (SIZE * rng.uniform(0, look.collimation, 4)).astype(int)
        field = np.full_like(picture, 0.02)
        inside = np.s_[top : SIZE - bottom, left : SIZE - right]
        field[inside] = picture[inside]
        picture = field
    return (np.clip(picture, 0, 1) * 255).astype(np.uint8)


def _with_marker(picture: Plane, look: Hospital, rng: np.random.Generator) -> Plane:
    letter = "R" if rng.random() < 0.5 else "L"
    glyph = _glyph(letter)
    edge = int(look.collimation * SIZE) + 8
    x = edge if letter == "R" else SIZE - edge - glyph.shape[1]
    y = edge + int(rng.integers(0, 40))
    picture = picture.copy()
    spot = np.s_[y : y + glyph.shape[0], x : x + glyph.shape[1]]
    picture[spot] = np.maximum(picture[spot], glyph)
    return picture


@cache
def _glyph(letter: str) -> Plane:
    plane = Image.new("L", (32, 40))
    ImageDraw.Draw(plane).text((4, -2), letter, fill=250, font=ImageFont.load_default(36))
    return np.asarray(plane, np.float32) / np.float32(255)


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
    ring = np.stack([np.cos(_TURN), np.sin(_TURN)], 1)
    return scene.device(path, 6, 175, [(ring * 0.072 + np.array(port), 225), (ring * 0.032 + np.array(port), 150)])


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
    centre = np.array([x, y])
    plates = [(box, 235), (centre + (box - centre) * 0.72, 190)]
    return scene.device(smooth(np.array(path), closed=False), 4, 170, plates)


_DRAW: dict[str, Callable[[Scene, np.random.Generator, Finding], Plane]] = {
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
