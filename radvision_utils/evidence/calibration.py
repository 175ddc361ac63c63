"""Probabilities that are what they say: logistic calibration, reliability, expected calibration error. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from radvision_utils.evaluation.bootstrap import Array, Bootstrap, divide, share

BINS = 10
RIDGE = 1.0  # one standard deviation of a feature that moves the log-odds by 1 costs half a sentence's nat


@dataclass(frozen=True)
class Logistic:
    """Logistic regression on standardized features: `weights[0]` is the intercept."""

    mean: Array
    scale: Array
    weights: Array

    def probabilities(self, features: Sequence[Sequence[float]] | Array) -> Array:
        """(n,) for (n, k) features."""
        x = (np.asarray(features, float) - self.mean) / self.scale
        return np.asarray(1 / (1 + np.exp(-(self.weights[0] + x @ self.weights[1:]))))

    def to_json(self) -> dict[str, list[float]]:
        """The numbers, rounded."""
        return {name: getattr(self, name).round(4).tolist() for name in ("mean", "scale", "weights")}


def fit_logistic(features: Sequence[Sequence[float]], right: Sequence[bool]) -> Logistic:
    """Newton's method with a ridge on all weights but the intercept, so that separable data have an answer too."""
    x, y = np.asarray(features, float), np.asarray(right, float)
    mean, scale = x.mean(0), x.std(0)
    scale[scale == 0] = 1
    design = np.column_stack([np.ones(len(x)), (x - mean) / scale])
    ridge = np.diag([1e-3, *[RIDGE] * x.shape[1]])
    weights = np.zeros(design.shape[1])
    for _ in range(50):
        p = 1 / (1 + np.exp(-design @ weights))
        slope = design.T @ (y - p) - ridge @ weights
        step = np.linalg.solve((design.T * (p * (1 - p))) @ design + ridge, slope)
        weights = weights + step
        if np.abs(step).max() < 1e-9:
            break
    return Logistic(mean, scale, weights)


def calibration_figures(
    scores: Mapping[str, Array], right: NDArray[np.bool_], study: NDArray[np.intp], bootstrap: Bootstrap
) -> dict[str, Any]:
    """How well scores in 0 to 1 say how often sentences are right.

    Args:
        scores: name -> (n,).
        right: (n,)
        study: (n,) whose sentence each is; intervals are by study.

    Returns:
        right: the share; ece: for each score the expected calibration error over 10 bins of equal width (Guo et al.
        2017, arXiv:1706.04599), 0 is best; auroc: how well it ranks right above wrong; bins: the reliability diagram.
    """
    shares = _by_study(np.stack([right, np.ones_like(right)], 1), study, bootstrap.studies)
    return {
        "sentences": len(right),
        "right": bootstrap.estimate(shares, share).to_json(),
        "ece": {
            name: bootstrap.estimate(_bin_sums(v, right, study, bootstrap.studies), _ece).to_json()
            for name, v in scores.items()
        },
        "auroc": {name: auroc(values, right) for name, values in scores.items()},
        "bins": {name: _bins(values, right) for name, values in scores.items()},
    }


def auroc(values: Array, right: NDArray[np.bool_]) -> float | None:
    """Chance that a right sentence has the higher score than a wrong one, ties counted half; None without both."""
    good, bad = values[right], np.sort(values[~right])
    if not len(good) or not len(bad):
        return None
    below = (np.searchsorted(bad, good, "left") + np.searchsorted(bad, good, "right")) / 2
    return round(float(below.mean() / len(bad)), 4)


def _bin_of(values: Array) -> NDArray[np.intp]:
    return np.minimum((values * BINS).astype(np.intp), BINS - 1)


def _by_study(rows: NDArray[Any], study: NDArray[np.intp], studies: int) -> Array:
    sums = np.zeros((studies, rows.shape[1]))
    np.add.at(sums, study, rows)
    return sums


def _bin_sums(values: Array, right: NDArray[np.bool_], study: NDArray[np.intp], studies: int) -> Array:
    """(studies, 2 * BINS): in each bin the sum of score less right, then the number of sentences."""
    bins = np.eye(BINS)[_bin_of(values)]
    return _by_study(np.concatenate([bins * (values - right)[:, None], bins], 1), study, studies)


def _ece(sums: Array) -> Array:
    return divide(np.abs(sums[..., :BINS]).sum(-1), sums[..., BINS:].sum(-1))


def _bins(values: Array, right: NDArray[np.bool_]) -> list[dict[str, float]]:
    place = _bin_of(values)
    return [
        {
            "from": number / BINS,
            "n": int((place == number).sum()),
            "score": round(float(values[place == number].mean()), 4),
            "right": round(float(right[place == number].mean()), 4),
        }
        for number in range(BINS)
        if (place == number).any()
    ]
