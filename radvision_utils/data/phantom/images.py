"""Draws schematic frontal chest radiographs: anatomy, then findings, then the look of a hospital.

`phantom.scene` holds the body and the planes, `phantom.findings` what a finding changes in them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from math import cos, pi, sin

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from radvision_utils.data.phantom.findings import DRAW
from radvision_utils.data.phantom.reports import Finding
from radvision_utils.data.phantom.scene import (
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
)


@dataclass(frozen=True, kw_only=True)
class Look:
    """Exposure and field of view.

    Attributes:
        contrast: factor of the exposure curve around mid grey (1 is nominal).
        gamma: exponent of the exposure curve; above 1 is darker.
        brightness: added after contrast, in 0..1 of full scale.
        noise: standard deviation of the detector noise, in 0..1 of full scale.
        collimation: greatest width of the black borders, as a fraction of the image.
        zoom: factor of the field of view; below 1 shows more of the body.
        shift: greatest shift of the body, as a fraction of half the image.
        marker: whether a side marker letter is burnt in.
    """

    contrast: float = 1.0
    gamma: float = 1.0
    brightness: float = 0.0
    noise: float = 0.012
    collimation: float = 0.0
    zoom: float = 1.0
    shift: float = 0.03
    marker: bool = False


def render(
    look: Look,
    findings: Sequence[Finding],
    stream: Callable[[str], np.random.Generator],
) -> tuple[NDArray[np.uint8], list[Box]]:
    """Draws one radiograph.

    Args:
        look: exposure and field of view.
        findings: what to draw.
        stream: gives an independent random generator for each purpose, so that leaving out a
            finding changes nothing else in the picture.

    Returns:
        The image, uint8 of shape (512, 512), and a box (x0, y0, x1, y1) for each finding.
    """
    body = Body(stream("body"), look.zoom, look.shift, findings)
    scene = Scene(body)
    regions = [DRAW[f.name](scene, stream(f"{f.name}/{f.side}"), f) for f in findings]
    anatomy = stream("anatomy")
    soft = _soft_tissue(scene) + _bones(scene) + scene.added
    picture = np.asarray(Image.fromarray(soft).resize((SIZE, SIZE), Image.Resampling.BICUBIC), np.float32)
    picture = picture + 0.19 * _vessels(scene, anatomy)
    if scene.lines.getbbox():
        # A line adds to what lies behind it, up to white.
        metal = softened(scene.lines)
        picture = picture + metal * (1.0 - 0.8 * np.clip(picture, 0, 1))
    return expose(picture, look, stream("look")), [box_of(r) for r in regions]


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
    for limit in scene.vessel_limits.values():
        side = np.sign(limit[:, 0].mean())
        field = field * np.where(scene.x * side > 0, scene.mask(limit, blur=1.0), 1)
    large = Image.fromarray(field.astype(np.float32)).resize((SIZE, SIZE), Image.Resampling.BILINEAR)
    return softened(plane) * np.asarray(large)


def expose(picture: Plane, look: Look, rng: np.random.Generator) -> NDArray[np.uint8]:
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


def _with_marker(picture: Plane, look: Look, rng: np.random.Generator) -> Plane:
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
