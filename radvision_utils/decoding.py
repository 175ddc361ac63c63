"""Two ways of writing that are not greedy: findings by thresholds, and words by what an image adds to the mean image.

Greedy writing takes the likeliest line of findings, which on mostly normal studies is nearly always "No key finding.".
With thresholds, chosen once on validation studies and kept in the run, as much is said as pays.
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
from radvision_utils.data.images import mean_image
from radvision_utils.data.labels import asserted
from radvision_utils.data.reports import line_of_findings
from radvision_utils.data.studies import Study, open_prepared
from radvision_utils.model.base import compute_device
from radvision_utils.runs import RunFolder, fingerprint, read_json, require, write_json
from radvision_utils.training.loss import report_token_losses, to_device

logger = logging.getLogger(__name__)

_MEAN_OF = 200  # training images
SETS = 24  # of findings at most, the commonest of the training reports
# Of a finding's frequency in training: how often it is said.
_MULTIPLES = (0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 4.0)
_MOST = 0.6  # of the studies at most
Findings = tuple[str, ...]


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


def finding_chances(
    reporter: Any, images: Sequence[Any], sets: Sequence[Findings]
) -> tuple[list[str], NDArray[np.float64]]:
    """Probability of each finding as the model's first line has it, among these sets: names, and (n, findings)."""
    scores = np.concatenate(list(reporter.in_batches(images, lambda batch: _line_scores(reporter, batch, sets))))
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
    key = fingerprint([stage["hash"], profile.generation.unsupported])
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
def _line_scores(reporter: Any, images: Sequence[Any], sets: Sequence[Findings]) -> NDArray[np.float64]:
    """(images, sets) log probability of each set's line as the beginning of the report."""
    collator, inner = reporter.collator, reporter.core.model
    lines = [collator.beginning(line_of_findings(chosen)) for chosen in sets]
    seen = reporter.visual_tokens(images)
    found: list[NDArray[np.float64]] = []
    for image, tokens in zip(images, seen, strict=True):
        batch = collator.rows([reporter.prompt(image)] * len(lines), lines)
        grid = collator.grid(len(lines))
        repeated = BaseModelOutputWithPooling(pooler_output=(tokens.repeat(len(lines), 1),))
        inner.get_image_features = lambda *_, given=repeated, **__: given
        try:
            losses, _ = report_token_losses(
                reporter.model,
                to_device({**batch, "pixel_values": tokens, "image_grid_thw": grid}, compute_device(reporter.model)),
            )
        finally:
            del inner.get_image_features
        found.append(-losses.double().sum(1).cpu().numpy())
    return np.stack(found)


def calibrate(
    reporter: Any, training: Sequence[Study], validation: Sequence[Study], unsupported: float | None
) -> tuple[LineChoice, dict[str, Any]]:
    """The choice that earns the highest micro F1 of findings on validation studies.

    Each finding is said where the model gives it the highest probability, as often as in the training reports times one
    factor for all findings; a finding that does not raise F1 is left out.

    Args:
        unsupported: at most this share of what is said may be unsupported by the validation reports; None: no limit.

    Returns:
        The choice, and what it rests on: factor, F1 and share of unsupported findings on validation.
    """
    said = [asserted(s.reference.text) for s in training]
    true = [asserted(s.reference.text) for s in validation]
    sets = [chosen for chosen, _ in Counter(said).most_common(SETS)]
    names, chances = finding_chances(reporter, list(validation), sets)
    common = np.array([sum(name in found for found in said) / len(said) for name in names])
    truth = np.array([[name in found for name in names] for found in true])
    positives = sum(len(found) for found in true)
    best: tuple[float, dict[str, Any], dict[str, float]] = (-1.0, {}, {})
    for multiple in _MULTIPLES:
        limits = [np.quantile(chances[:, k], 1 - min(_MOST, multiple * common[k])) for k in range(len(names))]
        hits = chances > np.array(limits)
        right, all_said = (hits & truth).sum(0), hits.sum(0)
        kept: list[int] = []
        for k in np.argsort(-right / np.maximum(all_said, 1)):
            if _f1(right, all_said, [*kept, k], positives) > _f1(right, all_said, kept, positives):
                kept.append(int(k))
        wrong = 1 - right[kept].sum() / max(all_said[kept].sum(), 1)
        score = _f1(right, all_said, kept, positives)
        if score > best[0] and (unsupported is None or wrong <= unsupported):
            facts = {"factor": multiple, "f1": round(score, 4), "unsupported": round(float(wrong), 4)}
            best = score, facts, {names[k]: float(limits[k]) for k in kept}
    return LineChoice(sets, best[2]), {**best[1], "studies": len(validation)}


def _f1(right: NDArray[Any], said: NDArray[Any], kept: Sequence[int], positives: int) -> float:
    return float(2 * right[list(kept)].sum() / max(said[list(kept)].sum() + positives, 1))


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
