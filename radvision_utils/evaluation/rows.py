"""One row of the table: reports for a set of studies, scored by everything that needs no model. No torch.

The same code scores a stage, a baseline and another system's predictions.
"""

from __future__ import annotations

import importlib.metadata
import platform
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from radvision_utils.data.reports import Report
from radvision_utils.evaluation.bootstrap import Bootstrap, Estimate
from radvision_utils.evaluation.finding_labels import Label, compare
from radvision_utils.evaluation.label_scores import ABNORMAL, LabelMatrix, confusion, label_scores, observation_scores
from radvision_utils.evaluation.phantom_accuracy import phantom_estimates
from radvision_utils.evaluation.records import FLAGS, VERDICTS, flags_of, normal_form, report_labels
from radvision_utils.evaluation.text_metrics import PROTOCOLS, TextScores, score_texts, text_estimates

RULE_LABELS = "rule labels, findings + impression"
DRAWN = "drawn truth"  # phantoms only


def scoring_versions() -> dict[str, str]:
    """Versions of what the scores depend on; no torch."""
    found = {name: importlib.metadata.version(name) for name in ("numpy", "pycocoevalcap")}
    return {"python": platform.python_version(), **found}


@dataclass(frozen=True)
class ScoredRow:
    """A row with its scores.

    Attributes:
        reports: one for each study.
        matrix: their labels.
        estimates: protocol -> metric -> estimate.
        texts: text scores by protocol.
        facts: what has no interval: variety, lengths, flags, verdicts, observations, confusion.
    """

    reports: list[Report]
    matrix: LabelMatrix
    estimates: dict[str, dict[str, Estimate]]
    texts: dict[str, TextScores]
    facts: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """As `metrics.json` has it: the protocols, then the facts."""
        protocols = {
            protocol: {name: estimate.to_json() for name, estimate in estimates.items()}
            for protocol, estimates in self.estimates.items()
        }
        return {**protocols, **self.facts}


class Scorer:
    """Scores rows on one set of studies.

    Args:
        references: the true reports, untouched.
        seed: of the bootstrap.
        training: training reports, to find copies; none known for another system's predictions.
        truths: what was drawn into each study; phantoms only.
    """

    def __init__(
        self,
        references: Sequence[Report],
        seed: int,
        training: Sequence[Report] = (),
        truths: Sequence[str] | None = None,
    ) -> None:
        self.references, self.truths = list(references), truths
        self.bootstrap = Bootstrap(len(references), seed)
        self.training = {normal_form(report) for report in training}
        self.labels = [report_labels(report) for report in references]
        self.matrix = LabelMatrix.of(self.labels, _without_words(references))

    def score(self, reports: Sequence[Report]) -> ScoredRow:
        """All scores of a row, one report for each study."""
        known = {report: report_labels(report) for report in dict.fromkeys(reports)}
        labels = [known[report] for report in reports]
        matrix = LabelMatrix.of(labels, _without_words(reports))
        texts = {protocol: score_texts(reports, self.references, protocol) for protocol in PROTOCOLS}
        estimates = {RULE_LABELS: label_scores(matrix, self.matrix, self.bootstrap)}
        estimates |= {protocol: text_estimates(scores, self.bootstrap) for protocol, scores in texts.items()}
        if self.truths is not None:
            estimates[DRAWN] = phantom_estimates(reports, self.truths, self.bootstrap)
        facts = {
            **variety(reports),
            "without_observation": sum(not _observations(found) for found in labels),
            "flags": self._count_flags(reports),
            "verdicts": _count_verdicts(labels, self.labels),
            "observations": observation_scores(matrix, self.matrix, self.bootstrap),
            "confusion": confusion(matrix, self.matrix),
        }
        return ScoredRow(list(reports), matrix, estimates, texts, facts)

    def _count_flags(self, reports: Sequence[Report]) -> dict[str, int | None]:
        counts = Counter[str]()
        for report, times in Counter(reports).items():
            counts.update(dict.fromkeys(flags_of(report, self.training), times))
        known = FLAGS if self.training else FLAGS[:-1]  # copies can be told only where the training reports are known
        return {name: counts[name] if name in known else None for name in FLAGS}


def variety(reports: Sequence[Report]) -> dict[str, Any]:
    """How alike the reports are to one another, and how long.

    Returns:
        distinct_reports; commonest_share: of the most frequent report; repeated_share: studies that share their report
        with another study; repeats_itself: share of a report's sequences of four words that stood in it before, mean of
        the reports (Welleck et al. 2019, arXiv:1908.04319); words_per_report; without_headings, empty_reports: counts.
    """
    counts = Counter(reports)
    texts = [f"{report.findings} {report.impression}".lower().split() for report in reports]
    words = [len(text) for text in texts]
    return {
        "distinct_reports": len(counts),
        "commonest_share": round(max(counts.values()) / len(reports), 4),
        "repeated_share": round(sum(times for times in counts.values() if times > 1) / len(reports), 4),
        "repeats_itself": round(sum(map(_repeated, texts)) / len(texts), 4),
        "words_per_report": round(sum(words) / len(words), 1),
        "without_headings": sum(not report.headed for report in reports),
        "empty_reports": words.count(0),
    }


def _repeated(words: Sequence[str]) -> float:
    """Share of the sequences of four words that stood in the text before; near 1 for one sentence over and over."""
    fours = list(zip(words, words[1:], words[2:], words[3:], strict=False))
    return 1 - len(set(fours)) / len(fours) if fours else 0.0


def _observations(labels: Mapping[str, Label]) -> list[str]:
    """The abnormal observations of which a report speaks, be it to deny them."""
    return [name for name in ABNORMAL if labels[name].status != "not mentioned"]


def _without_words(reports: Sequence[Report]) -> list[bool]:
    return [not re.search(r"\w", f"{report.findings}{report.impression}") for report in reports]


def _count_verdicts(generated: Sequence[Mapping[str, Any]], reference: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    counts = Counter(
        verdict
        for ours, true in zip(generated, reference, strict=True)
        for name, verdict in compare(ours, true).items()
        if name != "No Finding"  # a normal study called abnormal, or the reverse, shows in the findings already
    )
    return {name: counts[name] for name in VERDICTS}
