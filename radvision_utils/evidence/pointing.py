"""Do maps point at what was drawn? Pointing game, energy inside, deletion and insertion. No torch.

The rule of the pointing game (Zhang et al., ECCV 2016, arXiv:1608.00507, there with a tolerance of 15 pixels): a visual
token counts as inside if the drawn region covers at least a tenth of its cell, or if its cell holds at least a tenth of
the region; a map hits if its peak is inside. The same rule holds for every map. A random map's expected figure is the
share of tokens inside, which on a coarse grid is no small number: it stands beside.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from radvision_utils.evaluation.bootstrap import Array, Bootstrap, Estimate, share
from radvision_utils.evaluation.table import DRAWN

Inside = NDArray[np.bool_]

TENTH = 0.1
STEPS = 8  # of a deletion or insertion curve


@dataclass(frozen=True)
class Pointed:
    """A lesion that a sentence asserts, and how each map did.

    Attributes:
        study: position among the studies judged.
        finding: its name.
        hit: by map; 1 or 0, between them where several tokens tie for the peak.
        energy: by map, share of its positive part that lies inside, 0 to 1.
        deletion, insertion: by map, (STEPS + 1,) the probability of the sentence against its neutral one, as tokens are
            taken from the image, or put into the neutral image, in the map's order.
    """

    study: int
    finding: str
    hit: dict[str, float]
    energy: dict[str, float]
    deletion: dict[str, Array]
    insertion: dict[str, Array]


def inside_cells(region: NDArray[np.bool_], side: int) -> Inside:
    """(side * side,) which cells of the grid count as inside a region.

    Args:
        region: a square plane over the whole image; its side is at least the grid's.
        side: of the grid.
    """
    rows = np.arange(len(region)) * side // len(region)
    cells = rows[:, None] * side + rows[None, :]
    covered = np.bincount(cells.ravel(), region.ravel().astype(float), side * side)
    return (covered >= TENTH * np.bincount(cells.ravel())) | (covered >= TENTH * max(covered.sum(), 1))


def hit(values: Array, inside: Inside) -> float:
    """Whether a map's peak is inside: 1 or 0, the share inside where several tokens tie."""
    return float(inside[values == values.max()].mean())


def energy_inside(values: Array, inside: Inside) -> float:
    """Share of a map's positive part that lies inside; that of an even map where nothing is positive."""
    positive = np.maximum(values, 0)
    return float(positive[inside].sum() / positive.sum()) if positive.any() else float(inside.mean())


def center_map(side: int) -> Array:
    """(side * side,) higher the nearer to the image's center."""
    line = np.abs(np.arange(side) - (side - 1) / 2)
    return np.asarray(-np.hypot(line[:, None], line[None, :]).round(6).ravel())


def curve_masks(values: Array) -> tuple[Inside, Inside]:
    """(STEPS + 1, V) each: what of the image is kept as tokens are taken away or put in, the highest first."""
    order = np.argsort(-values, kind="stable")
    gone = np.zeros((STEPS + 1, len(values)), bool)
    for step in range(STEPS + 1):
        gone[step, order[: round(step * len(values) / STEPS)]] = True
    return ~gone, gone


def area(curve: Array) -> float:
    """Area under a curve of even steps over 0 to 1."""
    return float((curve[1:] + curve[:-1]).mean() / 2)


def estimate(values: list[tuple[int, float]], bootstrap: Bootstrap) -> Estimate:
    """Mean over lesions or sentences, resampled by study: (study, value) pairs."""
    counts = np.zeros((bootstrap.studies, 2))
    for study, value in values:
        counts[study] += (value, 1)
    return bootstrap.estimate(counts, share, counts[:, 1] > 0)


def not_validated(metrics: Mapping[str, Any]) -> str:
    """What is said of maps where an evaluation has no lesion to hold them against."""
    drawn = any(DRAWN in row for row in metrics["rows"].values())
    return f"maps, not validated, since {'no sentence asserts what' if drawn else 'nothing'} was drawn here"


def pointing_figures(lesions: list[Pointed], bootstrap: Bootstrap) -> dict[str, object]:
    """What `metrics.json` says of the pointing game: by map, by finding, and the curves."""

    def by_map(kind: str, some: list[Pointed]) -> dict[str, dict[str, object]]:
        values: Mapping[str, list[tuple[int, float]]] = {
            name: [(lesion.study, getattr(lesion, kind)[name]) for lesion in some] for name in getattr(some[0], kind)
        }
        return {name: estimate(pairs, bootstrap).to_json() for name, pairs in values.items()}

    def curves(kind: str) -> dict[str, dict[str, object]]:
        return {
            name: {
                "area": estimate([(p.study, area(getattr(p, kind)[name])) for p in lesions], bootstrap).to_json(),
                "curve": np.mean([getattr(p, kind)[name] for p in lesions], axis=0).round(4).tolist(),
            }
            for name in getattr(lesions[0], kind)
        }

    names = sorted({lesion.finding for lesion in lesions})
    return {
        "lesions": len(lesions),
        "hit": by_map("hit", lesions),
        "energy": by_map("energy", lesions),
        "by_finding": {name: by_map("hit", [p for p in lesions if p.finding == name]) for name in names},
        "counts": {name: sum(p.finding == name for p in lesions) for name in names},
        "deletion": curves("deletion"),
        "insertion": curves("insertion"),
    }
