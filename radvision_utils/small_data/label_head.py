"""Findings as a second teacher: a head reads rule labels off the visual tokens while stage 1 or 2 trains.

Where most reports are normal and alike, their words teach an encoder to see next to nothing; which findings a study has
does. The head is thrown away when the stage ends: no adapter holds it, and no report comes from it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from radvision_utils.config import RadVisionError
from radvision_utils.data.labels import ASSERTED, OBSERVATIONS, asserted, label
from radvision_utils.data.studies import PreparedDataset, Study
from radvision_utils.model.base import compute_device
from radvision_utils.model.faster import computing
from radvision_utils.training.collator import Collator
from radvision_utils.training.loss import MODEL_INPUTS, to_device

FEWEST = 10  # training studies that must show a finding; of fewer a head learns the studies, not the finding
Labels = dict[str, torch.Tensor]
"""Study -> (14,) what its reference says of each observation: 1 present or uncertain, 0 not."""


def finding_labels(studies: Sequence[Study]) -> Labels:
    """The rule labels of studies. What is uncertain counts as present, as it does in the judgement (and as in U-Ones of
    Irvin et al. 2019, arXiv:1901.07031)."""
    # Who teaches here judges there.
    return {
        study.uid: torch.tensor([float(found[name].status in ASSERTED) for name in OBSERVATIONS])
        for study in studies
        for found in [label(study.reference.text)]
    }


def shows_finding(study: Study) -> bool:
    """Whether a study's reference asserts any finding, be it an uncertain one."""
    return bool(asserted(study.reference.text))


class LabelHead(nn.Module):
    """One linear layer from mean and maximum of a study's visual tokens to its findings.

    Args:
        width: of a visual token.
        labels: of the training studies; findings that fewer than `FEWEST` of them show are left out.
        share: of a stage's loss, 0 to 1.

    Attributes:
        names: of the findings, K of them.
        weight: (K, 2 x width), from zero: what it is depends on no chance.
        logits: (B, K) of the last pass of the model that it is attached to.

    Raises:
        RadVisionError: no finding is left.
    """

    kept: torch.Tensor
    positive_weight: torch.Tensor

    def __init__(self, width: int, labels: Labels, share: float = 1.0) -> None:
        super().__init__()
        table = torch.stack(list(labels.values()))
        shown, clear = (table == 1).sum(0), (table == 0).sum(0)
        kept = ((shown >= FEWEST) & (clear >= FEWEST)).nonzero().flatten()
        if not len(kept):
            raise RadVisionError(
                f"no finding is in {FEWEST} training reports or more, so that labels teach nothing: "
                "prepare more studies, or set stage1.label_weight and stage2.label_weight to 0."
            )
        self.labels, self.share, self.names = labels, share, [OBSERVATIONS[i] for i in kept]
        self.register_buffer("kept", kept, persistent=False)
        # Positives are few: by the root of the odds they weigh more, and calling everything positive does not pay.
        self.register_buffer("positive_weight", (clear / shown)[kept].sqrt(), persistent=False)
        self.weight = nn.Parameter(torch.zeros(len(kept), 2 * width))
        self.bias = nn.Parameter(torch.zeros(len(kept)))
        self.logits = torch.empty(0)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """(B, V, width) visual tokens to (B, K) logits."""
        tokens = F.layer_norm(tokens.float(), tokens.shape[-1:])
        return F.linear(torch.cat([tokens.mean(1), tokens.amax(1)], 1), self.weight, self.bias)

    def loss(self, uids: Sequence[str]) -> torch.Tensor:
        """Binary cross entropy of the last pass, which was over these studies: mean of the findings, sum of the
        studies."""
        targets = torch.stack([self.labels[uid] for uid in uids]).to(self.kept.device)[:, self.kept]
        each = F.binary_cross_entropy_with_logits(
            self.logits.float(), targets, pos_weight=self.positive_weight, reduction="none"
        )
        return each.mean(1).sum()

    def look(self, model: Any, batch: Mapping[str, Any]) -> None:
        """A pass of vision encoder and projector alone, whatever wraps the model; then there are logits."""
        core = getattr(model, "module", model).get_base_model()

        def forward(pixel_values: torch.Tensor, image_grid_thw: torch.Tensor, **_: Any) -> torch.Tensor:
            found: tuple[torch.Tensor, ...] = core.model.get_image_features(pixel_values, image_grid_thw).pooler_output
            return found[0]

        with computing(core, forward):
            model(**{name: batch[name] for name in MODEL_INPUTS})

    @torch.no_grad()
    def auc(
        self, model: Any, collator: Collator, studies: Sequence[Study], batch_size: int, autocast: Any
    ) -> dict[str, dict[str, float]]:
        """How well it tells studies apart that it has not seen: finding -> positives, area under the ROC curve.

        Left out are findings that all or none of the studies show. Arguments as of `mean_report_loss`.
        """
        was_training, said = model.training, []
        model.eval()
        for first in range(0, len(studies), batch_size):
            batch = to_device(collator(studies[first : first + batch_size]), compute_device(model))
            with autocast():
                self.look(model, batch)
            said.append(self.logits.float())
        model.train(was_training)
        found, logits = {}, torch.cat(said)
        labels = torch.stack(list(finding_labels(studies).values())).to(logits.device)[:, self.kept]
        for column, name in enumerate(self.names):
            shown, clear = (logits[labels[:, column] == value, column] for value in (1, 0))
            if len(shown) and len(clear):
                above = (shown[:, None] > clear).double() + 0.5 * (shown[:, None] == clear)
                found[name] = {"positive": len(shown), "auc": round(above.mean().item(), 3)}
        return found


@contextmanager
def taught_by_labels(model: Any, dataset: PreparedDataset, share: float) -> Iterator[LabelHead]:
    """Within, a head is part of the model, and so of optimizer and checkpoints, and every pass feeds it."""
    head = LabelHead(model.config.get_text_config().hidden_size, finding_labels(dataset.split("train")), share)
    inner = model.get_base_model().model
    made = inner.get_image_features

    # `generate` reads the names of the arguments.
    def image_features(pixel_values: torch.Tensor, image_grid_thw: torch.Tensor, **kwargs: Any) -> Any:
        found = made(pixel_values, image_grid_thw, **kwargs)
        tokens = torch.cat(list(found.pooler_output))
        head.logits = head(tokens.view(len(image_grid_thw), -1, tokens.shape[-1]))
        return found

    model.label_head = head.to(compute_device(model))
    try:
        with computing(inner, image_features, "get_image_features"):
            yield head
    finally:
        del model.label_head
        head.logits = torch.empty(0)  # and with it what autograd keeps
