"""The report of the training image that looks most alike to the base's vision encoder: a row of the table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from radvision_utils.data.reports import Report
from radvision_utils.data.studies import Study
from radvision_utils.evaluation.baselines import nearest
from radvision_utils.explain.neutral import visual_tokens
from radvision_utils.report import Reporter


def neighbor_reports(base: Reporter, train: Sequence[Study], studies: Sequence[Study]) -> list[Report]:
    """For each study the report of the closest training image.

    Args:
        base: the untuned base model.
    """
    known = list(train)
    vectors = [image_vectors(base, [study.image for study in group]) for group in (known, studies)]
    return [known[i].report for i in nearest(*vectors)]


def image_vectors(base: Reporter, images: Sequence[Path]) -> NDArray[np.float32]:
    """(n, hidden size) the mean of an image's visual tokens, as they enter the language model."""
    means = base.in_batches(images, lambda batch: visual_tokens(base, batch).mean(1))
    vectors: NDArray[np.float32] = torch.cat(list(means)).cpu().numpy()
    return vectors
