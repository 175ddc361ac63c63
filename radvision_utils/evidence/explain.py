"""What a sentence of a report rests on: maps over the visual tokens of its image, by gradient and by occlusion.

Both ask how the log-odds of a sentence against a neutral one in its place depend on the image, all words before it
given: what both sentences owe to the image alike cancels. What is taken from the image is replaced by the mean token of
training images at its place. No attention weights are needed, so SDPA and 4-bit weights do.

* Occlusion (Zeiler and Fergus, ECCV 2014, arXiv:1311.2901): by how much the log-odds fall without a window of tokens.
* Gradient (gradient x input: Simonyan et al. 2014, arXiv:1312.6034; against a reference: Shrikumar et al. 2017,
  arXiv:1704.02685, Sundararajan et al. 2017, arXiv:1703.01365): what each token adds, to first order; one backward pass
  a sentence.

`radvision_utils.evidence.study_maps` measures on phantoms whether the maps point at what was drawn.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import numpy as np

from radvision_utils.data.reports import Report
from radvision_utils.data.studies import open_prepared
from radvision_utils.evaluation.bootstrap import Array
from radvision_utils.evidence.passage import Kept, Neutral, Part, Passage, learn_neutral
from radvision_utils.report import ImageLike, Reporter

WINDOWS = 9  # occluded windows along a side at most: 81 passes of the language model for an image of the 7B
RANDOM_SETS = 20  # of tokens, that the check of a map compares with
TOP_SHARE = 8  # the check takes away one token of so many
SMALL_DROP = math.log(2)  # nats: without the map's top tokens the odds must at least halve


@dataclass(frozen=True)
class PartEvidence(Part):
    """What one sentence, or some words, rest on.

    Attributes:
        contrast: the neutral sentence that it was compared with; "" for words.
        gradient: (h, w) nats that each token adds to the log-odds, to first order; negative: it speaks against.
        occlusion: (h, w) nats by which the log-odds fall without each window of tokens; negative: they rise.
        supported: whether taking the occlusion map's top tokens away at once matters, and more than taking away random
            ones (`support`).
    """

    contrast: str
    gradient: Array
    occlusion: Array
    supported: bool


@dataclass(frozen=True)
class Evidence:
    """A report with what its sentences rest on, and the seconds that this took."""

    report: Report
    parts: tuple[PartEvidence, ...]
    seconds: float


def explain_report(
    reporter: Reporter, image: ImageLike, report: Report | None = None, words: str = "", neutral: Neutral | None = None
) -> Evidence:
    """Maps for every sentence of a report on an image, or for some words of it.

    Args:
        reporter: the model.
        image: as `Reporter.report` takes it.
        report: what to explain; the model writes it if left out.
        words: a sentence or a word as it stands in the report; all sentences if left out.
        neutral: from `learn_neutral`, to explain several; else learned from the training split of the reporter's run.

    Raises:
        RadVisionError: the image cannot be read, the run's data are missing, or the words are not in the report.
    """
    started = time.perf_counter()
    if report is None:
        [report] = reporter.report([image])
    if neutral is None:
        neutral = learn_neutral(reporter, open_prepared(reporter.profile).split("train"))
    parts = explain_passage(Passage(reporter, neutral, image, report, words))
    return Evidence(report, parts, round(time.perf_counter() - started, 3))


def explain_passage(passage: Passage) -> tuple[PartEvidence, ...]:
    """Both maps of every part, and whether they pass the check."""
    layout = passage.layout
    if not layout.parts:
        return ()
    occlusion, gradient = occlusion_maps(passage), passage.gradients()
    supported = support(passage, occlusion)
    return tuple(
        PartEvidence(
            **vars(part),
            contrast=contrast,
            gradient=gradient[number].reshape(passage.side, -1),
            occlusion=occlusion[number].reshape(passage.side, -1),
            supported=bool(supported[number]),
        )
        for number, (part, contrast) in enumerate(zip(layout.parts, layout.contrasts, strict=True))
    )


def occlusion_maps(passage: Passage) -> Array:
    """(parts, V) by how much the log-odds fall when the window that a token lies in is replaced, nats."""
    windows = occlusion_windows(passage.side)
    scores = passage.scores(np.concatenate([np.ones_like(windows[:1]), ~windows]))
    drops = scores[:1] - scores[1:]  # (windows, parts)
    return np.asarray(drops.T @ windows)


def occlusion_windows(side: int) -> Kept:
    """(windows, side * side) the tokens of each occluded window: squares of one or more, side by side."""
    width = -(-side // WINDOWS)
    row, column = np.divmod(np.arange(side * side), side)
    number = row // width * -(-side // width) + column // width
    return number == np.unique(number)[:, None]


def top_tokens(values: Array) -> Kept:
    """(V,) the eighth of the tokens where a map is highest."""
    top = np.zeros(len(values), bool)
    top[np.argsort(-values, kind="stable")[: max(1, len(values) // TOP_SHARE)]] = True
    return top


def support(passage: Passage, maps: Array) -> Kept:
    """The check of the maps by occlusion: does it matter more to lose a map's top tokens than to lose random ones?

    Args:
        passage: what the maps are of.
        maps: (parts, V)

    Returns:
        (parts,) whether the log-odds fall by more than `SMALL_DROP` without the map's top tokens, and by more than
        without each of `RANDOM_SETS` random sets of as many.
    """
    tops, places = [top_tokens(values) for values in maps], np.arange(maps.shape[1])
    rng, count = np.random.default_rng(passage.reporter.profile.seed), tops[0].sum()
    sets = [np.isin(places, rng.permutation(len(places))[:count]) for _ in range(RANDOM_SETS)]
    whole, *without = passage.scores(~np.array([places < 0, *tops, *sets]))
    drops = whole - np.array(without)
    top, random = np.diag(drops), drops[len(tops) :]
    return (top > SMALL_DROP) & (top > np.quantile(random, 0.95, axis=0))
