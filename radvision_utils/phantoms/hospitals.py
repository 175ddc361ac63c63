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


class Finding(NamedTuple):
    """A finding; side is right, left or None, zone is upper, middle, lower or None."""

    name: str
    side: str | None = None
    zone: str | None = None


@dataclass(frozen=True)
class Habits:
    """How a hospital words its reports; the weights are probabilities in 0..1.

    Both hospitals use all phrasings and both orders, in other shares: a model of the one finds the other's reports
    unusual, not foreign, as Lingshu finds those of Open-I.

    Attributes:
        dialect: "A" or "B", the phrasings and the order of organs that are its own.
        own_words: share of sentences in its own phrasings; the others are of the other dialect.
        own_order: share of reports in its own order of organs; the others are in the other's.
        numbered: how often an impression of two or more sentences is numbered.
        negations: how often the absence of a finding is named beside the routine sentences.
        device_in_impression: how often a catheter or pacemaker is repeated in the impression.
    """

    dialect: str
    own_words: float = 0.7
    own_order: float = 0.7
    numbered: float = 0.2
    negations: Mapping[str, float] | None = None
    device_in_impression: float = 0.4


@dataclass(frozen=True, kw_only=True)
class Hospital:
    """How a hospital's radiographs look, what is seen in them, and how it reports.

    Attributes:
        name: key in `HOSPITALS`.
        rates: relative frequency of each finding among the abnormal studies; absent means never.
        habits: the wording of the reports.
        normal: share of studies without a finding, 0..1.
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

    name: str
    rates: Mapping[str, float]
    habits: Habits
    normal: float = 0.4
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
        name="A",
        rates={n: r for n, r in _COMMON.items() if n not in ("nodule", "pacemaker")},
        habits=Habits(
            dialect="A",
            negations={"nodule": 0.25, "pacemaker": 0.2, "central venous catheter": 0.1, "other effusion": 0.2},
        ),
    ),
    "B": Hospital(
        name="B",
        # Pacemakers where A has ports, and a few nodules, which A never draws.
        rates={n: r for n, r in _COMMON.items() if n != "central venous catheter"} | {"pacemaker": 1.1, "nodule": 0.1},
        habits=Habits(
            dialect="B",
            numbered=0.6,
            negations={"nodule": 0.1, "pacemaker": 0.05, "central venous catheter": 0.05, "other effusion": 0.2},
        ),
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
        name="C",
        rates={"consolidation": 1.0, "atelectasis": 1.0, "cardiomegaly": 0.4, "pleural effusion": 0.4},
        habits=Habits(dialect="A", negations={"other effusion": 0.2}),
        ambiguous=True,
    ),
}
