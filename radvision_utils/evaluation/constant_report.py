"""The best report that never looks at an image: composed of common training sentences, chosen on validation.

A constant's corpus BLEU and CIDEr-D need no pass over the references: what each n-gram is worth can be added up
beforehand. So thousands of constants are scored in a second, exactly as pycocoevalcap would score them.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from radvision_utils.data.reports import Report, split_sentences
from radvision_utils.evaluation.finding_labels import label
from radvision_utils.evaluation.text_metrics import corpus_bleu, r2gen_reference, r2gen_words

SENTENCES = 120  # commonest training sentences that a constant may have

Gram = tuple[str, ...]
_SIGMA = 6.0  # of CIDEr-D's length penalty, words


class ConstantScorer:
    """Scores one report given for every study, under the protocol "findings, R2Gen normalization".

    Args:
        references: the true reports, at least one.
    """

    def __init__(self, references: Sequence[Report]) -> None:
        words = [r2gen_reference(report).split() for report in references]
        self._n, self._words = len(words), sum(map(len, words))
        self._grams = [_grams(w) for w in words]
        found = Counter(gram for grams in self._grams for gram in grams)
        self._rarity = {gram: math.log(self._n / count) for gram, count in found.items()}
        self._shared = self._sums(lambda reference, gram, most: 1.0)
        self._lengths = [max(0, len(w) - 1) for w in words]  # CIDEr-D counts pairs of words
        self._norms = [self._norm(grams) for grams in self._grams]
        self._worth: dict[int, dict[Gram, list[float]]] = {}

    def bleu4(self, text: str) -> float:
        """Corpus BLEU-4 of `r2gen_words` text as the report of every study."""
        return self._bleu4(_grams(text.split()), len(text.split()))

    def cider_d(self, text: str) -> float:
        """Mean CIDEr-D of `r2gen_words` text as the report of every study."""
        return self._cider_d(_grams(text.split()), len(text.split()))

    def worth(self, text: str) -> float:
        """The product of the two."""
        grams, words = _grams(text.split()), len(text.split())
        return self._bleu4(grams, words) * self._cider_d(grams, words)

    def _bleu4(self, grams: Counter[Gram], words: int) -> float:
        right = _added(grams, self._shared)
        written = [max(0, words - size) * self._n for size in range(4)]
        return float(corpus_bleu(np.array([*right, *written, words * self._n, self._words], float), 4))

    def _cider_d(self, grams: Counter[Gram], words: int) -> float:
        length = max(0, words - 1)
        if length not in self._worth:
            self._worth[length] = self._sums(functools.partial(self._similarity, length))
        pairs = zip(_added(grams, self._worth[length]), self._norm(grams), strict=True)
        return 10 / 4 / self._n * sum(total / norm for total, norm in pairs if norm)

    def _similarity(self, length: int, reference: int, gram: Gram, most: int) -> float:
        """What one occurrence of an n-gram in a report of this length adds to its similarity to a reference."""
        norm = self._norms[reference][len(gram) - 1]
        penalty = math.exp(-((length - self._lengths[reference]) ** 2) / (2 * _SIGMA**2))
        return self._rarity[gram] ** 2 * most * penalty / norm if norm else 0.0

    def _sums(self, each: Callable[[int, Gram, int], float]) -> dict[Gram, list[float]]:
        """For every n-gram, what 0, 1, 2, ... occurrences of it earn over all references that have as many."""
        tables: dict[Gram, list[float]] = {}
        for reference, grams in enumerate(self._grams):
            for gram, most in grams.items():
                table = tables.setdefault(gram, [])
                table += [0.0] * (most - len(table))
                amount = each(reference, gram, most)
                for times in range(most):
                    table[times] += amount
        return {gram: list(itertools.accumulate(table, initial=0.0)) for gram, table in tables.items()}

    def _norm(self, grams: Counter[Gram]) -> list[float]:
        squares, unseen = [0.0] * 4, math.log(self._n)
        for gram, most in grams.items():
            squares[len(gram) - 1] += (most * self._rarity.get(gram, unseen)) ** 2
        return [math.sqrt(square) for square in squares]


def commonest_normal_report(train: Sequence[Report]) -> Report:
    """The most frequent training report among those that assert nothing abnormal; of equally frequent ones the first.

    Where none is normal it is the most frequent one.
    """
    counts = Counter(train).most_common()
    normal = (report for report, _ in counts if _is_normal([report.findings, report.impression]))
    return next(normal, counts[0][0])


def best_constant(train: Sequence[Report], validation: Sequence[Report]) -> Report:
    """The normal report that earns most on validation as the report of every study, by BLEU-4 times CIDEr-D.

    Its findings begin as a normal training report (the commonest, and the one with the highest BLEU-4) and change by
    exchanging, adding and leaving out sentences, of the `SENTENCES` commonest that assert nothing abnormal, as long as
    that earns more. Its impression is the commonest normal one.

    Args:
        train: training reports, the source of all sentences.
        validation: reference reports to choose by.
    """
    scorer = ConstantScorer(validation)

    @functools.cache
    def words(sentence: str) -> str:
        return r2gen_words(sentence)

    def text(sentences: Iterable[str]) -> str:
        return " ".join(map(words, sentences))

    def worth(sentences: Iterable[str]) -> float:
        return scorer.worth(text(sentences))

    counted = Counter(tuple(split_sentences(report.findings)) for report in train if report.findings)
    common = Counter(sentence for findings, times in counted.items() for sentence in findings * times)
    pool = [sentence for sentence, _ in common.most_common(2 * SENTENCES) if _is_normal([sentence])][:SENTENCES]
    common_first = [findings for findings, _ in counted.most_common() if findings]
    best_first = sorted(common_first, key=lambda findings: scorer.bleu4(text(findings)), reverse=True)
    starts = [start for order in (common_first, best_first) if (start := next(filter(_is_normal, order), None))]
    if not starts:  # no training report is normal
        return commonest_normal_report(train)
    found = [_climb(list(start), pool, worth) for start in dict.fromkeys(starts)]
    impressions = Counter(report.impression for report in train if report.impression)
    impression = next((said for said, _ in impressions.most_common(50) if _is_normal([said])), "")
    return Report(" ".join(max(found, key=worth)), impression)


def _climb(sentences: list[str], pool: Sequence[str], worth: Callable[[Iterable[str]], float]) -> list[str]:
    """The best neighbor of the best neighbor ... until none is better."""
    best = worth(sentences)
    while True:
        score, neighbor = max((worth(neighbor), neighbor) for neighbor in _neighbors(sentences, pool))
        if score <= best + 1e-9:
            return sentences
        best, sentences = score, neighbor


def _neighbors(sentences: list[str], pool: Sequence[str]) -> Iterator[list[str]]:
    new = [sentence for sentence in pool if sentence not in sentences]
    for at in range(len(sentences) + 1):
        before, after = sentences[:at], sentences[at:]
        yield from ([*before, sentence, *after] for sentence in new)
        if after:
            yield before + after[1:]
            yield from ([*before, sentence, *after[1:]] for sentence in new)


def _is_normal(sentences: Iterable[str]) -> bool:
    """Whether they assert nothing abnormal, no device either."""
    found = label(" ".join(sentences))
    device = found["Support Devices"].status in ("present", "uncertain")
    return found["No Finding"].status == "present" and not device


def _grams(words: Sequence[str]) -> Counter[Gram]:
    return Counter(tuple(words[i : i + size]) for size in range(1, 5) for i in range(len(words) - size + 1))


def _added(grams: Counter[Gram], tables: dict[Gram, list[float]]) -> list[float]:
    """Sums over a report's n-grams, by size 1 to 4."""
    sums = [0.0] * 4
    for gram, most in grams.items():
        if table := tables.get(gram):
            sums[len(gram) - 1] += table[min(most, len(table) - 1)]
    return sums
