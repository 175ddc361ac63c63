"""Do intervals cover what they say, and how often does the verdict on image use err?

`python -m benchmarks.simulations`: reports and references are drawn with known rates, so that the true figures are
known. Minutes on one core; no model.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Callable
from functools import partial

import numpy as np

from radvision_utils.data.labels import ABNORMAL
from radvision_utils.evaluation.bootstrap import Array, Bootstrap
from radvision_utils.evaluation.image_use import exchange, loss_gap, verdict
from radvision_utils.evaluation.label_scores import Flags, LabelMatrix, f1, hits, macro_f1, micro_f1
from radvision_utils.figures import markdown_table

# Shares of references that assert each observation, about those of Open-I's test reports.
RATES = np.array([0.01, 0.09, 0.05, 0.15, 0.01, 0.012, 0.02, 0.08, 0.006, 0.04, 0.012, 0.02, 0.05])
SENSITIVITY, INVENTED = 0.6, 0.4  # of what is there; in the share of the others that each observation's rate makes
STUDIES = (196, 288, 590)
NOISE = 0.04  # nats a token: how much a study's loss differs by chance under another image, about as on Open-I
TOKENS = 40
# Loss gap, and share of the reports that follow the image; the others vary as references do, without a look at it.
CASES = ((0.0, 0.0), (0.005, 0.05), (0.01, 0.1), (0.02, 0.2), (0.05, 0.4))


def draw_labels(rng: np.random.Generator, studies: int) -> tuple[LabelMatrix, LabelMatrix]:
    """What reports and references assert, observation by observation."""
    true = rng.random((studies, len(RATES))) < RATES
    chance = rng.random(true.shape)
    return _matrix(np.where(true, chance < SENSITIVITY, chance < INVENTED * RATES)), _matrix(true)


def _matrix(positive: Flags) -> LabelMatrix:
    return LabelMatrix(positive, positive, np.asarray(positive.any(1)))


def true_sums() -> Array:
    """(39,) right, invented and missed of each observation, a study on average."""
    return np.stack([RATES * SENSITIVITY, (1 - RATES) * INVENTED * RATES, RATES * (1 - SENSITIVITY)], -1).ravel()


def coverage_rows(repeats: int) -> list[list[str]]:
    """For each number of studies and figure: how often its 95 % interval holds the true value, and where it misses."""
    rows = []
    for studies in STUDIES:
        bootstrap, misses = Bootstrap(studies, seed=7), defaultdict(list)
        for repeat in range(repeats):
            said, true = draw_labels(np.random.default_rng([studies, repeat]), studies)
            each, support = hits(said.positive, true.positive).reshape(studies, -1), true.positive.sum(0)
            figures: dict[str, Callable[[Array], Array]] = {
                "micro F1": lambda sums: f1(sums.reshape(*sums.shape[:-1], -1, 3).sum(-2)),
                "macro F1": partial(macro_f1, support=support),
                "macro F1, none pooled": partial(macro_f1, support=support, few=1),
            }
            for name, figure in figures.items():
                estimate, value = bootstrap.estimate(each, figure), float(figure(true_sums()))
                low, high = estimate.interval
                misses[name].append((value < low, value > high, estimate.value - value))
        for name, found in misses.items():
            below, above, bias = np.mean(found, 0)
            shares = (f"{share:.3f}" for share in (1 - below - above, below, above))
            rows.append([str(studies), name, *shares, f"{bias:+.3f}"])
    return rows


def verdict_rows(repeats: int) -> list[list[str]]:
    """For each number of studies and case: how often the image is said to be used, not used, or not shown to be."""
    rows = []
    for studies in (196, 590):
        bootstrap = Bootstrap(studies, seed=7)
        for gap, share in CASES:
            words, seen = [], []
            for repeat in range(repeats):
                rng = np.random.default_rng([studies, repeat])
                true = rng.random((studies, len(ABNORMAL))) < RATES
                varied = rng.random(true.shape) < RATES
                said, true_matrix = _matrix(np.where(rng.random((studies, 1)) < share, true, varied)), _matrix(true)
                own = np.stack([np.ones(studies), np.full(studies, TOKENS)], 1)
                other = own + np.stack([TOKENS * (gap + NOISE * rng.normal(size=studies)), np.zeros(studies)], 1)
                lost = loss_gap(own, other, bootstrap)
                order = exchange(studies, repeat)
                drop = micro_f1(said, true_matrix, bootstrap).minus(micro_f1(said.take(order), true_matrix, bootstrap))
                words.append(verdict(lost, drop)[0])
                seen.append(lost.detectable)
            shares = [f"{words.count(word) / repeats:.3f}" for word in WORDS]
            rows.append([str(studies), f"{gap}", f"{share:.0%}", *shares, f"{np.mean(seen):.4f}"])
    return rows


WORDS = ("yes", "no", "not shown")
TABLES: dict[str, tuple[list[str], Callable[[int], list[list[str]]]]] = {
    "intervals": (["studies", "figure", "covered", "true value below", "above", "bias"], coverage_rows),
    "image use": (
        ["studies", "gap", "follow the image", "yes", "no", "not shown", "gap that would show"],
        verdict_rows,
    ),
}


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.simulations", description=__doc__)
    parser.add_argument("--repeats", type=int, default=1000, help="test sets drawn for each line (default: 1000)")
    options = parser.parse_args()
    for name, (heads, rows) in TABLES.items():
        print(f"{name}, {options.repeats} test sets a line\n\n{markdown_table(heads, rows(options.repeats))}")


if __name__ == "__main__":
    main()
