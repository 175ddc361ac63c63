"""Two ways of writing that are not greedy: findings by thresholds, and words by what an image adds to the mean image.

Greedy writing takes the likeliest line of findings, which on mostly normal studies is nearly always "No key finding.".
With limits to its probabilities, fitted once on validation studies and kept in the run, as much is said as pays.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from transformers import LogitsProcessor
from transformers.modeling_outputs import BaseModelOutputWithPooling

from radvision_utils.config import RadVisionError
from radvision_utils.content import fingerprint
from radvision_utils.data.images import mean_image
from radvision_utils.data.labels import asserted
from radvision_utils.data.reports import line_of_findings
from radvision_utils.data.studies import Study, open_prepared
from radvision_utils.files import read_json, write_json
from radvision_utils.model.base import compute_device
from radvision_utils.model.faster import computing
from radvision_utils.runs import RunFolder, require
from radvision_utils.training.loss import report_token_losses, to_device

logger = logging.getLogger(__name__)

_MEAN_OF = 200  # training images
SETS = 24  # of findings at most, the commonest of the training reports
_TEMPERATURES = (1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 5.0, 10.0)
_LIMITS = np.arange(0.05, 0.5, 0.01)  # a finding that is likelier is said
# What a patch shows depends on where its edges lie; a model taught by few studies has not learned that it must not. So
# chances rest on nine views, a third of the tiny model's patch apart.
_STEP = 0.04  # of the side
_VIEWS = [(right, down) for right in (-_STEP, 0, _STEP) for down in (-_STEP, 0, _STEP)]
Findings = tuple[str, ...]
Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class LineChoice:
    """Thresholds of findings.

    Attributes:
        sets: of findings that are scored.
        thresholds: finding -> probability above which it is said; a finding without one never is.
    """

    sets: list[Findings]
    thresholds: dict[str, float]

    def lines(self, reporter: Any, images: Sequence[Any]) -> list[str]:
        """The first line for each image."""
        names, chances = finding_chances(reporter, images, self.sets)
        return [
            line_of_findings([n for n, p in zip(names, row, strict=True) if p > self.thresholds.get(n, np.inf)])
            for row in chances
        ]


def finding_chances(reporter: Any, images: Sequence[Any], sets: Sequence[Findings]) -> tuple[list[str], Numbers]:
    """Probability of each finding as the model's first line has it, among these sets: names, and (n, findings)."""
    found = reporter.in_batches(images, lambda some: _line_scores(reporter, some, sets, _VIEWS))
    scores = np.concatenate(list(found))
    shares = np.exp(scores - scores.max(1, keepdims=True))
    names = sorted({name for chosen in sets for name in chosen})
    holds = np.array([[name in chosen for name in names] for chosen in sets], float)
    return names, shares @ holds / shares.sum(1, keepdims=True)


def thresholds(reporter: Any) -> LineChoice:
    """Which findings reports begin with: as the run keeps it for this stage, else chosen on its validation studies.

    Raises:
        RadVisionError: there are no validation studies.
    """
    profile, run = reporter.profile, RunFolder.of(reporter.profile)
    path, stage = run.thresholds(reporter.stage), require(profile, f"stage{reporter.stage}")
    key = fingerprint([stage["hash"], profile.generation.unsupported, _STEP])
    if not path.is_file() or read_json(path, {"key": str})["key"] != key:
        data = open_prepared(profile)
        train, validation = (list(data.split(name)) for name in ("train", "validation"))
        if not validation:
            raise RadVisionError("thresholds of findings need validation studies: set generation.findings=written.")
        choice, facts = calibrate(reporter, train, validation, profile.generation.unsupported)
        logger.info("findings said first after stage %d, on validation: %s", reporter.stage, facts)
        write_json(path, {"key": key, **facts, **vars(choice)})
    found = read_json(path, {"sets": [list], "thresholds": dict})
    return LineChoice([tuple(chosen) for chosen in found["sets"]], found["thresholds"])


@torch.inference_mode()
def _line_scores(
    reporter: Any, images: Sequence[Any], sets: Sequence[Findings], views: Sequence[tuple[float, float]]
) -> Numbers:
    """(images, sets) log probability of each set's line as the beginning of the report."""
    collator, inner = reporter.collator, reporter.core.model
    lines = [collator.beginning(line_of_findings(chosen)) for chosen in sets]
    seen = reporter.visual_tokens(images, views)
    found: list[Numbers] = []
    for image, tokens in zip(images, seen, strict=True):
        batch = collator.rows([reporter.prompt(image)] * len(lines), lines)
        batch |= {"pixel_values": tokens, "image_grid_thw": collator.grid(len(lines))}
        repeated = BaseModelOutputWithPooling(pooler_output=(tokens.repeat(len(lines), 1),))
        with computing(inner, lambda *_, given=repeated, **__: given, "get_image_features"):
            losses, _ = report_token_losses(reporter.model, to_device(batch, compute_device(reporter.model)))
        found.append(-losses.double().sum(1).cpu().numpy())
    return np.stack(found)


def calibrate(
    reporter: Any, training: Sequence[Study], validation: Sequence[Study], unsupported: float | None
) -> tuple[LineChoice, dict[str, Any]]:
    """The choice that earns the highest micro F1 of findings that can be expected.

    Args:
        unsupported: at most this share of what is said may be unsupported by the validation reports; None: no limit.

    Returns:
        The choice, and what it rests on, with F1 and share of unsupported findings on validation.
    """
    said = [asserted(s.reference.text) for s in training]
    true = [asserted(s.reference.text) for s in validation]
    sets = [chosen for chosen, _ in Counter(said).most_common(SETS)]
    names, chances = finding_chances(reporter, list(validation), sets)
    common = np.array([sum(name in found for found in said) / len(said) for name in names])
    truth = np.array([[name in found for name in names] for found in true])
    limits, facts = limits_of(chances, truth, common, unsupported)
    chosen = {name: float(limit) for name, limit in zip(names, limits, strict=True) if limit < 1}
    return LineChoice(sets, chosen), {**facts, "studies": len(true)}


def limits_of(
    chances: Numbers, truth: NDArray[np.bool_], common: Numbers, unsupported: float | None = None
) -> tuple[Numbers, dict[str, float]]:
    """Above which probability each finding is to be said.

    A model taught by few studies is too sure, and of batches with many abnormal ones says too much. So the log odds are
    divided by the one temperature that fits best, and shifted until the mean of each finding is its frequency. Then one
    limit for all findings gives the highest F1 that these probabilities expect (Lipton et al. 2014, arXiv:1402.1892).
    What each finding earns on its few positives has no say: that would mostly be luck.

    Args:
        chances: (n, K) probabilities.
        truth: (n, K) what is so.
        common: (K,) how often each finding is in the training reports.
        unsupported: as of `calibrate`.

    Returns:
        (K,) limits, infinite if none keeps to `unsupported`; temperature, limit, and F1 and share of unsupported
        findings on these studies.
    """
    odds = _log_odds(chances.clip(1e-9, 1 - 1e-9))
    fits = {t: _probability(odds / t + _shifts(odds / t, common)) for t in _TEMPERATURES}
    temperature = max(fits, key=lambda t: float(np.log(np.where(truth, fits[t], 1 - fits[t])).sum()))
    fitted, best, limits, facts = fits[temperature], -1.0, np.full(len(common), np.inf), {}
    for limit in _LIMITS:
        hits = fitted > limit
        right, said = (hits & truth).sum(), max(hits.sum(), 1)
        wrong, expected = (hits & ~truth).sum() / said, fitted[hits].sum() / (said + fitted.sum())
        if expected > best and (unsupported is None or wrong <= unsupported):
            best, f1 = expected, 2 * right / (said + truth.sum())
            limits = _probability((_log_odds(limit) - _shifts(odds / temperature, common)) * temperature)
            facts = {"temperature": temperature, "limit": limit, "f1": f1, "unsupported": wrong}
    return limits, {name: round(float(value), 4) for name, value in facts.items()}


def _shifts(odds: Numbers, common: Numbers) -> Numbers:
    """What is to be added to each finding's log odds for its mean probability to be `common`; by bisection."""
    low, high = np.full(len(common), -50.0), np.full(len(common), 50.0)
    for _ in range(50):
        middle = (low + high) / 2
        much = _probability(odds + middle).mean(0) > common
        low, high = np.where(much, low, middle), np.where(much, middle, high)
    return low


def _probability(odds: Numbers) -> Numbers:
    return 1 / (1 + np.exp(-odds))


def _log_odds(share: Any) -> Any:
    return np.log(share) - np.log1p(-share)


def nothing_in_particular(reporter: Any) -> Image.Image:
    """The mean of training images, as the model takes it."""
    some = open_prepared(reporter.profile).split("train")[:_MEAN_OF]
    prepared: Image.Image = reporter.prepare(mean_image([study.image for study in some]))
    return prepared


class Contrast(LogitsProcessor):
    """Prefers the words that an image makes likelier than the mean image does, among those plausible for the image.

    After contrastive decoding (Li et al. 2023, arXiv:2210.15097) and its use against reports that ignore the image
    (Leng et al. 2024, arXiv:2311.16922).

    Args:
        share: of the mean image's log probability that is taken off.
    """

    def __init__(self, share: float) -> None:
        self.share = share

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """(2 x B, V) scores, those with the mean image in the second half, which goes the first half's way."""
        own, mean = scores.float().log_softmax(-1).chunk(2)
        unlikely = own < own.amax(-1, keepdim=True) + math.log(0.1)
        chosen = (own - self.share * mean).masked_fill(unlikely, -math.inf)
        return torch.cat([chosen, chosen])
