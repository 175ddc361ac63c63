"""What can be found in a phantom, and the hospitals that differ in it.

A is what the tiny base model has seen; B looks and words things differently and is what the stages are trained on; C is
A with opacities whose kind the image cannot tell.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

FINDINGS: tuple[str, ...] = (
    "cardiomegaly",
    "pleural effusion",
    "pneumothorax",
    "consolidation",
    "atelectasis",
    "nodule",
    "central venous catheter",
    "pacemaker",
)
DEVICES = FINDINGS[-2:]


class Finding(NamedTuple):
    """A finding.

    Attributes:
        name: one of `FINDINGS`.
        side: right, left or None.
        zone: upper, middle, lower or None.
        box: (x0, y0, x1, y1) in pixels of the 512x512 image; None until it is drawn.
    """

    name: str
    side: str | None = None
    zone: str | None = None
    box: tuple[int, int, int, int] | None = None


@dataclass(frozen=True, kw_only=True)
class Hospital:
    """How a hospital's radiographs look, what is seen in them, and how it reports.

    Attributes:
        dialect: "A" or "B", the phrasings and the order of organs that are its own.
        rates: relative frequency of each finding among the abnormal studies; absent means never.
        negations: how often the absence of a finding is named beside the routine sentences, 0..1.
        numbered: how often an impression of two or more sentences is numbered, 0..1.
        ambiguous: whether consolidation and atelectasis look alike. Which it is, the indication says: this is where
            that optional input can be seen to matter.
        contrast: factor of the exposure curve around mid grey (1 is nominal).
        gamma: exponent of the exposure curve; above 1 is darker.
        brightness: added after contrast, in 0..1 of full scale.
        noise: standard deviation of the detector noise, in 0..1 of full scale.
        collimation: greatest width of the black borders, as a fraction of the image.
        zoom: factor of the field of view; below 1 shows more of the body.
        shift: greatest shift of the body, as a fraction of half the image.
        marker: whether a side marker letter is burnt in.
    """

    dialect: str
    rates: Mapping[str, float]
    negations: Mapping[str, float]
    numbered: float = 0.2
    ambiguous: bool = False
    contrast: float = 1.0
    gamma: float = 1.0
    brightness: float = 0.0
    noise: float = 0.012
    collimation: float = 0.0
    zoom: float = 1.0
    shift: float = 0.03
    marker: bool = False


_COMMON = dict.fromkeys(FINDINGS, 1.0)
HOSPITALS: dict[str, Hospital] = {
    "A": Hospital(
        dialect="A",
        rates={n: r for n, r in _COMMON.items() if n not in ("nodule", "pacemaker")},
        negations={"nodule": 0.25, "pacemaker": 0.2, "central venous catheter": 0.1, "other effusion": 0.2},
    ),
    "B": Hospital(
        dialect="B",
        # Pacemakers where A has ports, and a few nodules, which A never draws.
        rates={n: r for n, r in _COMMON.items() if n != "central venous catheter"} | {"pacemaker": 1.1, "nodule": 0.1},
        negations={"nodule": 0.1, "pacemaker": 0.05, "central venous catheter": 0.05, "other effusion": 0.2},
        numbered=0.6,
        contrast=0.72,
        gamma=1.3,
        brightness=-0.07,
        noise=0.015,
        collimation=0.07,
        zoom=0.93,
        shift=0.06,
        marker=True,
    ),
    "C": Hospital(
        dialect="A",
        rates={"consolidation": 1.0, "atelectasis": 1.0, "cardiomegaly": 0.4, "pleural effusion": 0.4},
        negations={"other effusion": 0.2},
        ambiguous=True,
    ),
}
