"""Rows that keep the table honest: reports that need no look at the image, and those of the most similar image."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from radvision_utils.data.labels import ASSERTED, asserted, label
from radvision_utils.data.reports import Report, line_of_findings
from radvision_utils.data.studies import Study
from radvision_utils.evaluation.text_metrics import bleu4_times_cider_d

if TYPE_CHECKING:  # whose module imports torch, which a score does without
    from radvision_utils.report import ImageLike, Reporter

CONSTANT = "constant report"
BEST_CONSTANT = "best constant"
RANDOM = "random training report"
COMMONEST_FINDING = "commonest finding"
BEST_FINDINGS = "best findings"
NEAREST = "nearest neighbor"
CANDIDATES = 50  # commonest normal training reports that the best constant is chosen from
ROWS = {
    CONSTANT: "the most frequent normal training report, for every study",
    BEST_CONSTANT: f"of the {CANDIDATES} most frequent normal training reports the one that earns most BLEU-4 times "
    "CIDEr-D on validation, for every study",
    RANDOM: "a training report drawn at random for each study",
    COMMONEST_FINDING: "the finding that most training reports assert, said of every study",
    BEST_FINDINGS: "the set of findings that earns the highest label F1 on validation, said of every study",
    NEAREST: "the report of the training image closest in the base's vision encoder (mean token, cosine)",
}


def blind_reports(
    train: Sequence[Report], validation: Sequence[Report], studies: int, seed: int
) -> dict[str, list[Report]]:
    """The rows that never look at an image, one report for each of so many studies; `validation` chooses the best."""
    drawn = np.random.default_rng(seed).integers(len(train), size=studies)
    return {
        CONSTANT: [commonest_normal_report(train)] * studies,
        BEST_CONSTANT: [best_constant(train, validation)] * studies,
        RANDOM: [train[i] for i in drawn],
        COMMONEST_FINDING: [Report(line_of_findings([name for name, _ in _counts(train).most_common(1)]))] * studies,
        BEST_FINDINGS: [Report(line_of_findings(best_findings(validation)))] * studies,
    }


def best_findings(validation: Sequence[Report]) -> list[str]:
    """The findings that earn the highest micro F1 when they are said of every one of these references.

    Of sets of one size the commonest findings earn most, so that no other sets need be tried.
    """
    counts = _counts(validation)
    ranked, total = [name for name, _ in counts.most_common()], sum(counts.values())

    def earned(size: int) -> float:
        right = sum(counts[name] for name in ranked[:size])
        return 2 * right / max(size * len(validation) + total, 1)

    return ranked[: max(range(1, len(ranked) + 1), key=earned, default=0)]


def _counts(reports: Sequence[Report]) -> Counter[str]:
    """How many reports assert each observation."""
    return Counter(name for report in reports for name in asserted(report.text))


def commonest_normal_report(train: Sequence[Report]) -> Report:
    """The most frequent training report among those that assert nothing abnormal; of equally frequent ones the first.

    Where none is normal it is the most frequent one.
    """
    return next(_normal_reports(train), Counter(train).most_common(1)[0][0])


def best_constant(train: Sequence[Report], validation: Sequence[Report]) -> Report:
    """Of the `CANDIDATES` commonest normal reports the one that earns most as the report of every validation study.

    What it earns is BLEU-4 times CIDEr-D of its findings under R2Gen's normalization. Without a normal training report
    it is the most frequent one.
    """

    def worth(report: Report) -> float:
        return bleu4_times_cider_d([report] * len(validation), validation)

    candidates: dict[str, Report] = {}
    for report in islice(_normal_reports(train), CANDIDATES):
        candidates.setdefault(report.findings, report)  # only findings are scored
    return max(candidates.values(), key=worth, default=commonest_normal_report(train))


def _normal_reports(train: Sequence[Report]) -> Iterator[Report]:
    """The different training reports that assert nothing abnormal, no device either; the commonest first."""
    for report, _ in Counter(train).most_common():
        found = label(f"{report.findings} {report.impression}")
        device = found["Support Devices"].status in ASSERTED
        if found["No Finding"].status == "present" and not device:
            yield report


def nearest(train: NDArray[np.float32], images: NDArray[np.float32]) -> NDArray[np.intp]:
    """For each row of `images` the row of `train` with the largest cosine; of equal ones the first."""
    unit = [matrix / np.maximum(np.linalg.norm(matrix, axis=1, keepdims=True), 1e-12) for matrix in (train, images)]
    return np.argmax(unit[1] @ unit[0].T, axis=1)


def neighbor_reports(base: Reporter, train: Sequence[Study], studies: Sequence[Study]) -> list[Report]:
    """For each study the report of the training image that looks most alike to the vision encoder of the base."""
    vectors = [image_vectors(base, group) for group in (train, studies)]
    return [train[i].report for i in nearest(*vectors)]


def image_vectors(base: Reporter, images: Sequence[ImageLike]) -> NDArray[np.float32]:
    """(n, hidden size) the mean of an image's visual tokens, as they enter the language model."""
    means = base.in_batches(images, lambda batch: base.visual_tokens(batch).mean(1).cpu().numpy())
    vectors: NDArray[np.float32] = np.concatenate(list(means))
    return vectors
