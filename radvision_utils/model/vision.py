"""The vision encoder computed faster than transformers does without FlashAttention: same weights, same results.

Each function exchanges how some modules of one model compute; names, parameters and what is saved stay as they are.
"""

from __future__ import annotations

import functools
import itertools
from typing import Any

import torch
import torch.nn.functional as F
from transformers import PreTrainedModel
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import apply_rotary_pos_emb_vision

from radvision_utils.model.components import compute_by


def speed_up_vision(model: PreTrainedModel) -> None:
    """Patch embedding by one matrix product, windows of equal length in one attention call.

    Args:
        model: a Qwen2.5-VL without adapter.
    """
    patch_embedding_by_matmul(model)
    # FlashAttention takes windows of all lengths in one call by itself.
    if model.model.visual.config._attn_implementation == "sdpa":
        attention_by_window_length(model)


def patch_embedding_by_matmul(model: PreTrainedModel) -> None:
    """Compute the patch embedding as the matrix product that it is: its Conv3d has stride = kernel = one patch.

    Same weights, same result to rounding; a training step of the tiny model on a CPU takes a seventh of the time.
    """
    compute_by(model.model.visual.patch_embed, _ByMatmul)


class _ByMatmul:
    """Before `Qwen2_5_VisionPatchEmbed`."""

    proj: torch.nn.Conv3d

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        weight = self.proj.weight.flatten(1)
        return F.linear(pixels.to(weight.dtype), weight)


def attention_by_window_length(model: PreTrainedModel) -> None:
    """One attention call for all windows of a length, where transformers makes one for each window of each image.

    An image of 504 x 504 pixels has 25 windows of 64, 32 or 16 patches in each of the 7B's 28 windowed blocks, and 4
    blocks attend to it as a whole: 704 calls for one image and 704 more for each further one; here 88 for any number.
    """
    for block in model.model.visual.blocks:
        compute_by(block.attn, _ByWindowLength)


class _ByWindowLength:
    """Before `Qwen2_5_VLVisionAttention`."""

    qkv: torch.nn.Linear
    proj: torch.nn.Linear
    num_heads: int
    scaling: float

    def forward(
        self,
        hidden_states: torch.Tensor,
        cu_seqlens: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        **_: Any,
    ) -> torch.Tensor:
        """(patches, width) in and out; `cu_seqlens`: where windows begin and end."""
        patches = hidden_states.shape[0]
        query, key, value = self.qkv(hidden_states).view(patches, 3, self.num_heads, -1).unbind(1)
        query, key = apply_rotary_pos_emb_vision(query, key, *position_embeddings)
        groups, order = _windows_by_length(tuple(cu_seqlens.tolist()), cu_seqlens.device)
        attended = []
        for group in groups:
            # (windows, heads, patches of a window, width of a head)
            q, k, v = (part[group].transpose(1, 2) for part in (query, key, value))
            out = F.scaled_dot_product_attention(q, k, v, scale=self.scaling)
            attended.append(out.transpose(1, 2).flatten(0, 1))
        together = attended[0] if len(groups) == 1 else torch.cat(attended)[order]
        projected: torch.Tensor = self.proj(together.reshape(patches, -1))
        return projected


@functools.lru_cache(maxsize=64)  # two kinds of blocks, and as many batch sizes as a run has
def _windows_by_length(bounds: tuple[int, ...], device: torch.device) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Which patches form the windows of each length, and how to put the results back.

    Args:
        bounds: where each window begins, and the end of the last.

    Returns:
        For each length (windows, length) patch numbers; and for each patch its place among the groups' patches.
    """
    starts: dict[int, list[int]] = {}
    for start, end in itertools.pairwise(bounds):
        starts.setdefault(end - start, []).append(start)
    with torch.inference_mode(False):  # what is kept from writing reports must do for training too
        groups = [torch.tensor(first)[:, None] + torch.arange(length) for length, first in starts.items()]
        order = torch.argsort(torch.cat([group.flatten() for group in groups]))
        return [group.to(device) for group in groups], order.to(device)
