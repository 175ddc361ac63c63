"""BLEU, ROUGE-L and CIDEr-D by pycocoevalcap, the implementation of the field's papers, under two named protocols.

Text metrics come second in this project: a constant "normal" report that never saw an image scores as high on Open-I
as published systems do.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge

from radvision_utils.data.reports import Report

METRICS = ("bleu1", "bleu2", "bleu3", "bleu4", "rouge_l", "cider_d")
R2GEN_TOKENS = 60  # R2Gen cuts its Open-I references to this many


def r2gen_words(text: str) -> str:
    """A text as R2Gen normalizes Open-I reports: lower case, no punctuation, sentences joined by " . ".

    Source: R2Gen, `modules/tokenizers.py`, `clean_report_iu_xray` (Chen et al. 2020, arXiv:2010.16056).
    """
    text = re.sub(r"\.{2,}", ".", text)
    text = re.sub(r"(^|\. )\d\. ", r"\1", text).strip().lower()
    sentences = [re.sub(r"[.,?;*!%^&_+():\-\[\]{}\"'/\\]", "", sentence).strip() for sentence in text.split(". ")]
    return " . ".join(" ".join(sentence.split()) for sentence in sentences if sentence) + " ."


def _r2gen_pair(generated: Report, reference: Report) -> tuple[str, str]:
    words = r2gen_words(reference.findings).split()[:R2GEN_TOKENS]
    return r2gen_words(generated.findings), " ".join(words)


def _raw_pair(generated: Report, reference: Report) -> tuple[str, str]:
    return tuple(" ".join(f"{r.findings} {r.impression}".split()) for r in (generated, reference))  # type: ignore[return-value]


PROTOCOLS: dict[str, Callable[[Report, Report], tuple[str, str]]] = {
    "findings, R2Gen normalization": _r2gen_pair,
    "findings + impression, raw": _raw_pair,
}


@dataclass(frozen=True)
class TextScores:
    """Scores of a set of reports: of the set as a whole, and of each report, by metric name."""

    corpus: dict[str, float]
    each: list[dict[str, float]]


def score_texts(generated: Sequence[Report], references: Sequence[Report], protocol: str) -> TextScores:
    """BLEU-1 to 4, ROUGE-L and CIDEr-D of reports against one reference each.

    BLEU is 0 to 1 and of the whole set (counts are pooled), ROUGE-L is the mean of the studies, 0 to 1; CIDEr-D is the
    mean of the studies, 0 to 10, with word frequencies from these references: it depends on the set.

    Args:
        generated: reports to score, at least one.
        references: the true reports, in the same order.
        protocol: a key of `PROTOCOLS`.
    """
    pairs = [PROTOCOLS[protocol](ours, true) for ours, true in zip(generated, references, strict=True)]
    candidates = {i: [ours] for i, (ours, _) in enumerate(pairs)}
    truths = {i: [true] for i, (_, true) in enumerate(pairs)}
    bleu, bleu_each = Bleu(4).compute_score(truths, candidates, verbose=0)
    rouge, rouge_each = Rouge().compute_score(truths, candidates)
    # pycocoevalcap's "Cider" is CIDEr-D (Vedantam et al. 2015, section 5.3).
    cider, cider_each = Cider().compute_score(truths, candidates)
    corpus = dict(zip(METRICS, [*map(float, bleu), float(rouge), float(cider)], strict=True))
    rows = zip(*bleu_each, rouge_each, cider_each, strict=True)
    return TextScores(corpus, [dict(zip(METRICS, map(float, row), strict=True)) for row in rows])
