"""The score that labels give: F1 over the 13 abnormal observations, with intervals.

"Uncertain" counts as positive, in reports and references alike, and the same figures with uncertain as negative stand
beside it. It is called rule-label F1: it is not CheXbert's.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from radvision_utils.data.labels import ABNORMAL, ASSERTED, OBSERVATIONS, Label, mesh_labels
from radvision_utils.evaluation.bootstrap import Array, Bootstrap, Estimate, divide, share

Flags = NDArray[np.bool_]
FEW = 10  # references: the F1 of what fewer assert is biased low, and its interval holds the true one too seldom


@dataclass(frozen=True)
class LabelMatrix:
    """Labels of n reports.

    Attributes:
        positive: (n, 13) present or uncertain.
        certain: (n, 13) present.
        abnormal: (n,) the text says that something is not normal, be it outside the 13; devices alone are normal.
    """

    positive: Flags
    certain: Flags
    abnormal: Flags

    @classmethod
    def of(cls, labels: Sequence[Mapping[str, Label]], empty: Sequence[bool]) -> LabelMatrix:
        """The matrix of labels; `empty` says which texts say nothing, and are neither normal nor abnormal."""
        statuses = np.array([[found[name].status for name in ABNORMAL] for found in labels])
        certain, doubtful = statuses == "present", statuses == "uncertain"
        normal = np.array([found["No Finding"].status == "present" for found in labels])
        return cls(certain | doubtful, certain, ~normal & ~np.array(empty, bool))

    def take(self, order: NDArray[np.intp]) -> LabelMatrix:
        """The reports in another order."""
        return LabelMatrix(self.positive[order], self.certain[order], self.abnormal[order])


def hits(generated: Flags, reference: Flags) -> NDArray[np.int64]:
    """(n, 13, 3) true positives, false positives and false negatives of each study and observation."""
    return np.stack([generated & reference, generated & ~reference, ~generated & reference], -1).astype(np.int64)


def f1(sums: Array) -> Array:
    """F1 from (..., 3) sums of hits; NaN where nothing is positive on either side."""
    return divide(2 * sums[..., 0], 2 * sums[..., 0] + sums[..., 1] + sums[..., 2])


def macro_f1(sums: Array, support: NDArray[np.int64], few: int = FEW) -> Array:
    """Mean F1 of the observations; those of fewer references than `few` count together as one, of none not at all.

    Args:
        sums: (..., 39) of the hits of 13 observations.
        support: (13,) references that assert each.
    """
    sums = sums.reshape(*sums.shape[:-1], len(support), 3)
    rare = (support > 0) & (support < few)
    each = [f1(sums[..., support >= few, :]), f1(sums[..., rare, :].sum(-2))[..., None]]
    with warnings.catch_warnings():  # a resample without any positive has no mean
        warnings.simplefilter("ignore", RuntimeWarning)
        return np.asarray(np.nanmean(np.concatenate(each, -1), -1))


def label_scores(generated: LabelMatrix, reference: LabelMatrix, bootstrap: Bootstrap) -> dict[str, Estimate]:
    """Headline figures of the labels.

    Returns:
        micro_f1, macro_f1, micro_precision, micro_recall (uncertain positive); micro_f1_certain, macro_f1_certain
        (uncertain negative); micro_f1_abnormal, macro_f1_abnormal (the studies whose reference is abnormal);
        sensitivity and specificity of "abnormal". Macro: see `macro_f1`, by the references of these studies.
    """
    scores = {
        **_f1_pair(generated.positive, reference.positive, bootstrap, ""),
        **_f1_pair(generated.certain, reference.certain, bootstrap, "_certain"),
        **_f1_pair(generated.positive, reference.positive, bootstrap, "_abnormal", reference.abnormal),
    }
    pooled = hits(generated.positive, reference.positive).sum(1)
    scores["micro_precision"] = bootstrap.estimate(np.stack([pooled[:, 0], pooled[:, 0] + pooled[:, 1]], 1), share)
    scores["micro_recall"] = bootstrap.estimate(np.stack([pooled[:, 0], pooled[:, 0] + pooled[:, 2]], 1), share)
    scores["sensitivity"] = bootstrap.mean(generated.abnormal, reference.abnormal)
    scores["specificity"] = bootstrap.mean(~generated.abnormal, ~reference.abnormal)
    return scores


def micro_f1(
    generated: LabelMatrix, reference: LabelMatrix, bootstrap: Bootstrap, among: Flags | None = None
) -> Estimate:
    """Micro F1 over the 13 observations, uncertain positive."""
    return bootstrap.estimate(hits(generated.positive, reference.positive).sum(1), f1, among)


def _f1_pair(
    generated: Flags, reference: Flags, bootstrap: Bootstrap, suffix: str, among: Flags | None = None
) -> dict[str, Estimate]:
    counts = hits(generated, reference)
    support = (reference if among is None else reference[among]).sum(0)
    macro = functools.partial(macro_f1, support=support)
    return {
        f"micro_f1{suffix}": bootstrap.estimate(counts.sum(1), f1, among),
        f"macro_f1{suffix}": bootstrap.estimate(counts.reshape(len(counts), -1), macro, among),
    }


def observation_scores(
    generated: LabelMatrix, reference: LabelMatrix, bootstrap: Bootstrap
) -> dict[str, dict[str, Any]]:
    """F1 of each of the 13 observations with its interval, `support` (references that assert it) and `asserted`
    (reports that do)."""
    counts = hits(generated.positive, reference.positive)
    return {
        name: {
            **bootstrap.estimate(counts[:, i], f1).to_json(),
            "support": int(reference.positive[:, i].sum()),
            "asserted": int(generated.positive[:, i].sum()),
        }
        for i, name in enumerate(ABNORMAL)
    }


def confusion(generated: LabelMatrix, reference: LabelMatrix) -> dict[str, dict[str, int]]:
    """Studies by what the reference says (outer) and what the report says (inner): "abnormal" or "normal"."""
    sides = {"abnormal": True, "normal": False}
    return {
        true: {
            said: int(((reference.abnormal == is_true) & (generated.abnormal == is_said)).sum())
            for said, is_said in sides.items()
        }
        for true, is_true in sides.items()
    }


def study_f1(generated: Mapping[str, Label], reference: Mapping[str, Label]) -> float:
    """F1 over the 13 observations of one study, uncertain positive; 1.0 where neither text asserts any."""
    said, true = ({name for name in ABNORMAL if labels[name].status in ASSERTED} for labels in (generated, reference))
    return round(2 * len(said & true) / (len(said) + len(true)), 4) if said or true else 1.0


def mesh_agreement(labels: Sequence[Mapping[str, Label]], mesh: Sequence[str]) -> dict[str, dict[str, float]]:
    """How labels agree with annotations of the same reports.

    Args:
        labels: of each report, by `label`.
        mesh: each report's annotation; left out are those without and "No Indexing" beforehand.

    Returns:
        observation -> support (reports annotated with it), precision, recall, f1 ("present" as positive) and
        f1_uncertain (uncertain as positive too); 0 where there is nothing to be right about.
    """
    true = [mesh_labels(text) for text in mesh]
    return {
        name: _agreement([found[name].status for found in labels], [name in t for t in true]) for name in OBSERVATIONS
    }


def _agreement(statuses: Sequence[str], true: Sequence[bool]) -> dict[str, float]:
    scores: dict[str, float] = {"support": sum(true)}
    for positive, ending in (({"present"}, ""), ({"present", "uncertain"}, "_uncertain")):
        said = [status in positive for status in statuses]
        hits = sum(a and b for a, b in zip(said, true, strict=True))
        if not ending:
            scores["precision"] = round(hits / max(sum(said), 1), 4)
            scores["recall"] = round(hits / max(sum(true), 1), 4)
        scores[f"f1{ending}"] = round(2 * hits / max(sum(said) + sum(true), 1), 4)
    return scores
