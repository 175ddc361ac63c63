"""The loss of every stage and of the evaluation: negative log-likelihood of the report's tokens, nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F

from radvision_utils.data.studies import Study
from radvision_utils.model.base import compute_device
from radvision_utils.model.faster import computing
from radvision_utils.training.collator import IGNORED, Collator, ahead

MODEL_INPUTS = ("input_ids", "attention_mask", "mm_token_type_ids", "pixel_values", "image_grid_thw", "logits_to_keep")

_CHUNK_BYTES = 128 << 20  # of float32 logits at a time: 220 tokens of a vocabulary of 152,000
_SCALE = 1024.0  # float16 has nothing between 0 and 6e-8, where most of the vocabulary's probabilities lie


def report_token_losses(model: torch.nn.Module, batch: Mapping[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss of every report token of a collated batch.

    Logits are made at the report's own tokens only, some of them at a time, and never kept: with 152,000 words in the
    vocabulary they would be most of the activation memory.

    Returns:
        (B, R) nats, 0 where the report has ended, and (B, R) bool, which positions count.
    """
    # The logits at one position predict the next token; those at the last predict nothing that is known.
    targets = batch["labels"][:, 1 - batch["logits_to_keep"] :]
    unwrapped = getattr(model, "module", model)  # DDP's
    with _losses_for_logits(unwrapped, targets), _last_feed_forward_at(unwrapped, batch["logits_to_keep"]):
        losses: torch.Tensor = model(**{name: batch[name] for name in MODEL_INPUTS}, use_cache=False).logits
    return losses, targets != IGNORED


def _losses_for_logits(model: Any, targets: torch.Tensor) -> AbstractContextManager[None]:
    """Within, the model gives (B, R) losses in place of (B, R + 1, V) logits.

    The head is exchanged, not called from outside, so that whatever wraps the model (PEFT, DDP, FSDP, autocast) sees
    one forward pass as always.
    """
    head = model.get_output_embeddings()

    def forward(hidden: torch.Tensor) -> torch.Tensor:
        counts = targets != IGNORED
        losses = torch.zeros(targets.shape, device=hidden.device)
        chosen, wanted = hidden[:, :-1][counts], targets[counts]
        if head.weight.requires_grad:  # in no stage; where the tiny base itself is trained
            logits = F.linear(chosen, head.weight).float()
            losses[counts] = F.cross_entropy(logits, wanted, reduction="none")
        else:
            losses[counts] = _TokenLosses.apply(chosen, head.weight, wanted)
        return losses

    return computing(head, forward)


def _last_feed_forward_at(model: Any, positions: int) -> AbstractContextManager[None]:
    """Within, the decoder's last feed-forward network is computed at so many last positions alone.

    No other position of the last layer is read by anything. It is 3 % of the 7B's work on a sample of usual length. Not
    where the layer is checkpointed: it would be computed again outside.
    """
    layer = model.get_decoder().layers[-1]
    if layer.gradient_checkpointing and layer.training:
        return nullcontext()
    compute = layer.mlp.forward

    def forward(hidden: torch.Tensor) -> torch.Tensor:
        return F.pad(compute(hidden[:, -positions:]), (0, 0, hidden.shape[1] - positions, 0))

    return computing(layer.mlp, forward)


class _TokenLosses(torch.autograd.Function):
    """Cross entropy of a frozen linear head: (N, H), (V, H) and (N,) to (N,), with float32 softmax.

    The gradient of each chunk's hidden states is computed while its logits are there, as in Liger's fused linear cross
    entropy (Hsu et al. 2024): no logits are kept for the backward pass, and none are computed twice.
    """

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        losses = torch.empty(len(hidden), device=hidden.device)
        gradient = torch.empty(hidden.shape, device=hidden.device) if ctx.needs_input_grad[0] else None
        rows = max(1, _CHUNK_BYTES // (4 * len(weight)))
        for first in range(0, len(hidden), rows):
            chunk = slice(first, first + rows)
            into = None if gradient is None else gradient[chunk]
            losses[chunk] = _chunk_losses(hidden[chunk], weight, targets[chunk, None], into)
        if gradient is not None:
            ctx.save_for_backward(gradient)
        ctx.dtype = hidden.dtype
        return losses

    @staticmethod
    def backward(ctx: Any, *slopes: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return (slopes[0][:, None] * gradient).to(ctx.dtype), None, None


def _chunk_losses(
    hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, gradient: torch.Tensor | None
) -> torch.Tensor:
    """Losses (N,) of (N, H) with targets (N, 1); their gradient goes into `gradient`.

    What is as wide as the vocabulary ends here, before the next chunk begins.
    """
    logs = F.log_softmax(F.linear(hidden, weight).float(), 1)
    losses = -logs.gather(1, targets).squeeze(1)
    if gradient is not None:
        slope = logs.exp_()  # softmax minus one at the target
        slope.scatter_add_(1, targets, slope.new_full(targets.shape, -1.0))
        gradient.copy_(slope.mul_(_SCALE).to(weight.dtype) @ weight).div_(_SCALE)
    return losses


@torch.no_grad()
def mean_report_loss(
    model: torch.nn.Module, collator: Collator, studies: Sequence[Study], batch_size: int, autocast: Any
) -> float:
    """Mean loss over all report tokens of the studies, nats per token, the model in evaluation mode meanwhile.

    Args:
        autocast: a function that gives the context to compute in (`Device.autocast`).
    """
    was_training = model.training
    model.eval()
    total, count, device = 0.0, 0, compute_device(model)
    parts = (studies[first : first + batch_size] for first in range(0, len(studies), batch_size))
    for batch in ahead(map(collator, parts), 2, device):
        with autocast():
            losses, counts = report_token_losses(model, to_device(batch, device))
        total, count = total + losses.sum().item(), count + int(counts.sum())
    model.train(was_training)
    return total / count


def to_device(batch: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """The batch with its tensors on `device`."""
    return {key: value.to(device) if isinstance(value, torch.Tensor) else value for key, value in batch.items()}
