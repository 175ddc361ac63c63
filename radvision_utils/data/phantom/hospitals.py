"""The hospitals of the phantoms.

A is what the tiny base model has seen; B looks and words things differently and is what the stages are trained on; C is
A with opacities whose kind the image cannot tell.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from radvision_utils.data.phantom.images import Look
from radvision_utils.data.phantom.reports import FINDINGS, Habits


@dataclass(frozen=True, kw_only=True)
class Hospital(Look):
    """How a hospital's radiographs look, what is seen in them, and how it reports.

    The exposure and the field of view are the fields of `Look`.

    Attributes:
        name: key in `HOSPITALS`.
        rates: relative frequency of each finding among the abnormal studies; absent means never.
        habits: the wording of the reports.
        normal: share of studies without a finding, 0..1.
        ambiguous: whether consolidation and atelectasis look alike. Which it is, the indication says: this is where
            that optional input can be seen to matter.
    """

    name: str
    rates: Mapping[str, float]
    habits: Habits
    normal: float = 0.4
    ambiguous: bool = False


_COMMON = dict.fromkeys(FINDINGS, 1.0)
HOSPITALS: dict[str, Hospital] = {
    "A": Hospital(
        name="A",
        rates={n: r for n, r in _COMMON.items() if n not in ("nodule", "pacemaker")},
        habits=Habits(
            dialect="A",
            negations={
                "nodule": 0.25,
                "pacemaker": 0.2,
                "central venous catheter": 0.1,
                "other effusion": 0.2,
            },
        ),
    ),
    "B": Hospital(
        name="B",
        # Pacemakers where A has ports, and a few nodules, which A never draws.
        rates={n: r for n, r in _COMMON.items() if n != "central venous catheter"} | {"pacemaker": 1.1, "nodule": 0.1},
        habits=Habits(
            dialect="B",
            numbered=0.6,
            negations={
                "nodule": 0.1,
                "pacemaker": 0.05,
                "central venous catheter": 0.05,
                "other effusion": 0.2,
            },
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
