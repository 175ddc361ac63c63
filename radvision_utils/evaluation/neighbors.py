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
from radvision_utils.inference import Reporter
from radvision_utils.model.loading import compute_device
from radvision_utils.training.loss import to_device


def neighbor_reports(base: Reporter, train: Sequence[Study], studies: Sequence[Study]) -> list[Report]:
    """For each study the report of the closest training image.

    Args:
        base: the untuned base model.
    """
    known = list(train)
    vectors = [image_vectors(base, [study.image for study in group]) for group in (known, studies)]
    return [known[i].report for i in nearest(*vectors)]


@torch.inference_mode()
def image_vectors(base: Reporter, images: Sequence[Path]) -> NDArray[np.float32]:
    """(n, hidden size) the mean of a study's visual tokens, of all its views, as they enter the language model."""

    def vectors(batch: Sequence[Path]) -> NDArray[np.float32]:
        inputs = to_device(base.collator.prompts(batch), compute_device(base.model))
        with base.device.autocast():
            tokens = base.model.get_image_features(inputs["pixel_values"], inputs["image_grid_thw"]).pooler_output
        views = torch.stack([view.float().mean(0) for view in tokens])
        found: NDArray[np.float32] = views.view(-1, base.profile.views, views.shape[-1]).mean(1).cpu().numpy()
        return found

    return np.concatenate(list(base.in_batches(images, vectors)))
