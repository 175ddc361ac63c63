"""95 % intervals by resampling studies, for every figure that is a function of sums over studies.

Means, F1 and corpus BLEU are all such functions: a row of counts a study is enough, and a resample is a weighted sum.
Every estimate of one `Bootstrap` uses the same resamples, so that differences between rows are paired.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Statistic = Callable[[Array], Array]
"""From sums (..., k) of the counts of the studies to the figure (...); NaN where it is not defined."""

RESAMPLES = 1000
_PART = 1 << 24  # draws of a study


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % interval (percentiles of the resamples) and the studies it rests on.

    Attributes:
        value: NaN where it is not defined.
        n: studies that count.
        draws: (resamples,) the figure in each resample.
    """

    value: float
    n: int
    draws: Array

    @property
    def interval(self) -> tuple[float, float]:
        """2.5th and 97.5th percentile of the defined draws; NaN where there is none."""
        defined = self.draws[~np.isnan(self.draws)]
        if not len(defined) or np.isnan(self.value):
            return np.nan, np.nan
        low, high = np.percentile(defined, (2.5, 97.5))
        return float(low), float(high)

    @property
    def detectable(self) -> float:
        """The difference from zero that such a sample shows in four cases of five; NaN where it is not defined."""
        return 2.8 * float(np.std(self.draws[~np.isnan(self.draws)])) if np.isfinite(self.interval[0]) else np.nan

    def below(self, margin: float) -> bool:
        """Whether the figure is below a margin, at 5 % error: a test of equivalence has two such."""
        return bool(np.isfinite(self.interval[1])) and float(np.nanpercentile(self.draws, 95)) <= margin

    def to_json(self) -> dict[str, Any]:
        """`{"value", "low", "high", "n"}`, rounded to 4 digits; None for what is not defined."""
        low, high = self.interval
        return {"value": rounded(self.value), "low": rounded(low), "high": rounded(high), "n": self.n}

    def minus(self, other: Estimate) -> Estimate:
        """The paired difference to an estimate of the same `Bootstrap`."""
        return Estimate(self.value - other.value, min(self.n, other.n), self.draws - other.draws)


class Bootstrap:
    """Resamples of a set of studies, drawn once.

    Args:
        studies: how many there are.
        seed: the same seed gives the same resamples.
    """

    def __init__(self, studies: int, seed: int) -> None:
        shares, rng = np.full(studies, 1 / studies), np.random.default_rng(seed)
        self.studies = studies
        # In parts and bytes: as one table of numbers 100,000 studies would take 800 MB, twice.
        sizes = [len(part) for part in np.array_split(np.arange(RESAMPLES), 1 + studies * RESAMPLES // _PART)]
        self._weights = [rng.multinomial(studies, shares, size).astype(np.uint8) for size in sizes]

    def estimate(self, counts: NDArray[Any], statistic: Statistic, among: NDArray[np.bool_] | None = None) -> Estimate:
        """A figure of the studies.

        Args:
            counts: (studies, k) what each study adds to the sums.
            statistic: the figure as a function of the sums.
            among: (studies,) which studies count; all if left out.
        """
        counts = np.asarray(counts, np.float64)
        n = self.studies
        if among is not None:
            counts, n = counts * among[:, None], int(among.sum())
        value = float(statistic(counts.sum(0)))
        sums = np.concatenate([part.astype(np.float64) @ counts for part in self._weights])
        return Estimate(value, n, np.asarray(statistic(sums), np.float64))

    def mean(self, values: NDArray[Any], among: NDArray[np.bool_] | None = None) -> Estimate:
        """The mean of one number a study."""
        values = np.asarray(values, np.float64)
        return self.estimate(np.stack([values, np.ones_like(values)], 1), share, among)


def share(sums: Array) -> Array:
    """First sum over second; NaN where the second is 0."""
    return divide(sums[..., 0], sums[..., 1])


def divide(above: Array, below: Array) -> Array:
    """`above / below`, NaN where `below` is 0."""
    return np.divide(above, below, out=np.full(np.shape(above), np.nan), where=np.asarray(below) > 0)


def rounded(value: float) -> float | None:
    """4 digits after the point; None for NaN."""
    return None if np.isnan(value) else round(float(value), 4)


def figure_text(figure: Mapping[str, Any]) -> str:
    """What `Estimate.to_json` gave, for people: "0.450 (0.373 to 0.524)"."""
    if figure["value"] is None:
        return "n/a"
    return f"{figure['value']:.3f} ({figure['low']:.3f} to {figure['high']:.3f})"
