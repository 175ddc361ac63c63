"""BLEU, ROUGE-L and CIDEr-D by pycocoevalcap, the implementation of the field's papers, under two named protocols.

Text metrics come second in this project: a constant "normal" report that never saw an image scores nearly as high
on Open-I as published systems do.
"""

from __future__ import annotations

import functools
import logging
import math
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocoevalcap.bleu.bleu_scorer import BleuScorer
from pycocoevalcap.cider.cider_scorer import CiderScorer, cook_refs, cook_test
from pycocoevalcap.meteor.meteor import Meteor
from pycocoevalcap.rouge.rouge import Rouge

from radvision_utils.data.reports import Report
from radvision_utils.evaluation.bootstrap import Array, Bootstrap, Estimate

logger = logging.getLogger(__name__)

NEEDS_JAVA = "n/a (needs Java)"
METRICS = ("bleu1", "bleu2", "bleu3", "bleu4", "rouge_l", "cider_d")
R2GEN_TOKENS = 60  # R2Gen's longest report; a reference has one token less, after the mark of its beginning
SEEN = 3  # times in the training split; R2Gen knows no rarer word
_LIST = (". 2. ", ". 3. ", ". 4. ", ". 5. ", " 2. ", " 3. ", " 4. ", " 5. ")
# What R2Gen's pattern "[.,?;*!%^&_+():-\[\]{}]" takes off with the quotes and slashes: ":-\[" is a range, not a hyphen.
_TAKEN_OFF = re.compile(r"[.,?;*!%^&_+():<=>@\[\]{}\"'/\\]")


def r2gen_words(text: str) -> str:
    """A text as R2Gen normalizes Open-I reports: lower case, no punctuation but hyphens, sentences joined by " . ".

    Source: R2Gen, `modules/tokenizers.py`, `clean_report_iu_xray` (Chen et al. 2020, arXiv:2010.16056).
    """
    for _ in range(3):
        text = text.replace("..", ".")
    text = text.replace("1. ", "")
    for number in _LIST:
        text = text.replace(number, ". ")
    words = " . ".join(_TAKEN_OFF.sub("", sentence) for sentence in text.strip().lower().split(". ")).split()
    return " ".join([*words, "."]) if set(words) - {"."} else ""  # R2Gen's lone stop would match the reference's


def r2gen_vocabulary(training: Iterable[str]) -> frozenset[str]:
    """The words that R2Gen knows after these findings; all others are one word to it."""
    counts = Counter(word for text in training for word in r2gen_words(text).split())
    return frozenset(word for word, times in counts.items() if times >= SEEN)


R2GEN, RAW = "findings, R2Gen normalization", "findings + impression, raw"
PROTOCOLS = (R2GEN, RAW)
REXRANK = "BLEU-2 as ReXrank computes it"
REXRANK_TEXTS: dict[str, Callable[[Report], str]] = {
    "findings": lambda report: report.findings,
    "findings + impression": lambda report: f"Findings: {report.findings} Impression: {report.impression}",
}


def rexrank_estimates(
    generated: Sequence[Report], references: Sequence[Report], bootstrap: Bootstrap
) -> dict[str, Estimate]:
    """BLEU-2 of ReXrank's two tables, the mean of the studies: of the findings, and of the whole report.

    It says little of the image: `constant` prints what one report earns that is said of every study.
    """
    pairs = list(zip(generated, references, strict=True))
    return {
        name: bootstrap.mean(np.array([sentence_bleu2(text(ours), text(true)) for ours, true in pairs]))
        for name, text in REXRANK_TEXTS.items()
    }


@functools.lru_cache(maxsize=1 << 14)
def _grams(text: str) -> tuple[int, Counter[str], Counter[tuple[str, str]]]:
    """Words of a text, and how often each word and each pair comes, split as CXR-Report-Metric does."""
    words = [word for word in text.lower().replace(".", " .").split(" ") if word]
    return len(words), Counter(words), Counter(pairwise(words))


def sentence_bleu2(generated: str, reference: str) -> float:
    """BLEU-2 of one report, 0 to 1; a precision of 0 counts as a tenth of a hit.

    Source: rajpurkarlab/CXR-Report-Metric, `run_eval.py`, with fast-bleu 0.0.90 and its smoothing 1.
    """
    (n, words, pairs), (m, true_words, true_pairs) = _grams(generated), _grams(reference)
    if not (right := (words & true_words).total()):
        return 0.0
    precision = right / n * ((pairs & true_pairs).total() or 0.1) / max(n - 1, 1)
    return math.sqrt(precision) * math.exp(min(0.0, 1 - m / n))


@dataclass(frozen=True)
class TextScores:
    """Scores of a set of reports, of which `text_estimates` gives the figures.

    Attributes:
        each: of each report, by metric name.
        bleu_counts: (n, 10) what each report adds to corpus BLEU: right and written n-grams for n = 1 to 4, words
            written, words of the reference.
    """

    each: list[dict[str, float]]
    bleu_counts: NDArray[np.int64]


def score_texts(
    generated: Sequence[Report], references: Sequence[Report], protocol: str, known: Set[str] | None = None
) -> TextScores:
    """BLEU-1 to 4, ROUGE-L and CIDEr-D of reports against one reference each.

    BLEU and ROUGE-L are 0 to 1; CIDEr-D is 0 to 10, with word frequencies from these references: it depends on the set.

    Args:
        generated: reports to score, at least one.
        references: the true reports, in the same order.
        protocol: one of `PROTOCOLS`.
        known: see `r2gen_vocabulary`; all words if left out.
    """
    pairs = text_pairs(generated, references, protocol, known)
    scorer = _bleu_scorer(pairs)
    _, bleu = scorer.compute_score(option="closest", verbose=0)
    rouge = [Rouge().calc_score([ours], [true]) for ours, true in pairs]
    rows = zip(*bleu, rouge, _cider_d(pairs)[1], strict=True)
    counts = [[*c["correct"], *c["guess"], c["testlen"], c["reflen"][0]] for c in scorer.ctest]
    return TextScores([dict(zip(METRICS, map(float, row), strict=True)) for row in rows], np.array(counts))


def bleu4_times_cider_d(generated: Sequence[Report], references: Sequence[Report]) -> float:
    """The product of two figures of reports by the protocol `R2GEN`, without the cost of the others."""
    pairs = text_pairs(generated, references, R2GEN)
    bleu, _ = _bleu_scorer(pairs).compute_score(option="closest", verbose=0)
    cider, _ = _cider_d(pairs)
    return float(bleu[3] * cider)


def _bleu_scorer(pairs: Sequence[tuple[str, str]]) -> BleuScorer:
    scorer = BleuScorer(n=4)
    for ours, true in pairs:
        scorer += (ours, [true])
        scorer.crefs.clear()  # the n-grams of a reference, some 30 KB, have been compared
    return scorer


def _cider_d(pairs: Sequence[tuple[str, str]]) -> tuple[float, Array]:
    """Of the set and of each report; pycocoevalcap's "Cider" is CIDEr-D (Vedantam et al. 2015, section 5.3)."""
    scorer = CiderScorer(n=4)
    scorer.ctest = _Cooked(cook_test, [ours for ours, _ in pairs])
    scorer.crefs = _Cooked(cook_refs, [[true] for _, true in pairs])
    scorer.document_frequency = Counter()
    score: tuple[float, Array] = scorer.compute_score()
    return score


@dataclass(frozen=True)
class _Cooked:
    """N-grams of texts, counted as they are asked for: those of 100,000 reports would fill gigabytes."""

    cook: Callable[[Any], Any]
    texts: Sequence[Any]

    def __len__(self) -> int:
        return len(self.texts)

    def __iter__(self) -> Iterator[Any]:
        return map(self.cook, self.texts)


def text_estimates(scores: TextScores, bootstrap: Bootstrap) -> dict[str, Estimate]:
    """The metrics of the whole set with intervals. BLEU pools the counts of the studies, anew in every resample; the
    others are means of the studies, and CIDEr-D keeps the word frequencies of the whole set."""
    estimates = {
        f"bleu{order}": bootstrap.estimate(scores.bleu_counts, functools.partial(corpus_bleu, order=order))
        for order in (1, 2, 3, 4)
    }
    for name in ("rouge_l", "cider_d"):
        estimates[name] = bootstrap.mean(np.array([each[name] for each in scores.each]))
    return estimates


def corpus_bleu(sums: Array, order: int) -> Array:
    """BLEU from (..., 10) sums of `TextScores.bleu_counts`, smoothed as pycocoevalcap does."""
    tiny, small = 1e-15, 1e-9
    right, written = sums[..., :order], sums[..., 4 : 4 + order]
    score = np.prod((right + tiny) / (written + small), axis=-1) ** (1 / order)
    ratio = (sums[..., 8] + tiny) / (sums[..., 9] + small)
    return np.asarray(score * np.exp(np.minimum(0, 1 - 1 / ratio)))


def text_pairs(
    generated: Sequence[Report], references: Sequence[Report], protocol: str, known: Set[str] | None = None
) -> list[tuple[str, str]]:
    """(report, reference) as the protocol compares them."""

    def read(report: Report, tokens: int) -> str:
        if protocol == RAW:
            return " ".join(report.text.split())
        words = r2gen_words(report.findings).split()[:tokens]
        return " ".join(words if known is None else (word if word in known else "<unk>" for word in words))

    pairs = zip(generated, references, strict=True)
    return [(read(ours, R2GEN_TOKENS), read(true, R2GEN_TOKENS - 1)) for ours, true in pairs]


def meteor_scores(sets: Sequence[Sequence[tuple[str, str]]]) -> list[float | None]:
    """METEOR 1.5 of each set of (report, reference) pairs; None for all where there is no Java that runs it.

    It is METEOR's own aggregate, no mean of studies: it gets no interval. One Java process scores all sets; starting
    it takes seconds.
    """
    if shutil.which("java") is None:
        return [None] * len(sets)
    try:
        scorer = Meteor()
        texts = [
            [{i: [_without_bars(text)] for i, text in enumerate(side)} for side in zip(*s, strict=True)] for s in sets
        ]
        return [float(scorer.compute_score(true, ours)[0]) for ours, true in texts]
    except (OSError, ValueError) as error:  # Java is there, but METEOR's answer is no number: too little memory, say
        logger.warning("METEOR is left out: Java is installed, but its METEOR did not answer (%s)", error)
        return [None] * len(sets)


def _without_bars(text: str) -> str:
    return " ".join(text.replace("|||", " ").split())  # METEOR's own mark between texts
