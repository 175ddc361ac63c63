"""The loss of every stage and of the evaluation: negative log-likelihood of the report's tokens, nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from radvision_utils.model.loading import compute_device
from radvision_utils.training.collator import IGNORED, Collator, TrainingStudy

MODEL_INPUTS = ("input_ids", "attention_mask", "mm_token_type_ids", "pixel_values", "image_grid_thw", "logits_to_keep")


def report_token_losses(model: torch.nn.Module, batch: Mapping[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss of every report token of a collated batch.

    Logits are made at the report's positions only: with 152,000 words in the vocabulary, those of the prompt and the
    image would be most of the activation memory.

    Returns:
        (B, R) nats, 0 where the report has ended, and (B, R) bool, which positions count.
    """
    logits = model(**{name: batch[name] for name in MODEL_INPUTS}, use_cache=False).logits
    # The logits at one position predict the next token; those at the last predict nothing that is known.
    targets = batch["labels"][:, 1 - batch["logits_to_keep"] :]
    losses = F.cross_entropy(
        logits[:, :-1].float().flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="none"
    )
    return losses.view(targets.shape), targets != IGNORED


@torch.no_grad()
def mean_report_loss(
    model: torch.nn.Module, collator: Collator, studies: Sequence[TrainingStudy], batch_size: int, autocast: Any
) -> float:
    """Mean loss over all report tokens of the studies, nats per token, the model in evaluation mode meanwhile.

    Args:
        autocast: a function that gives the context to compute in (`Device.autocast`).
    """
    was_training = model.training
    model.eval()
    total, count = 0.0, 0
    for first in range(0, len(studies), batch_size):
        chosen = [studies[i] for i in range(first, min(first + batch_size, len(studies)))]
        batch = to_device(collator(chosen), compute_device(model))
        with autocast():
            losses, counts = report_token_losses(model, batch)
        total, count = total + losses.sum().item(), count + int(counts.sum())
    model.train(was_training)
    return total / count


def to_device(batch: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """The batch with its tensors on `device`."""
    return {key: value.to(device) if isinstance(value, torch.Tensor) else value for key, value in batch.items()}
