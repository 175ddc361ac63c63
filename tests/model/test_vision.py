"""The vision encoder made faster: same outputs and gradients as transformers' own, in fewer attention calls."""

import copy
import json
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from transformers import Qwen2_5_VLConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionTransformerPretrainedModel

from radvision_utils.config import project_root
from radvision_utils.model.faster import attention_by_window_length, patch_embedding_by_matmul

CONFIG = project_root() / "radvision_utils" / "model" / "qwen2_5_vl_7b.json"


@pytest.fixture(scope="module")
def towers():
    """The 7B's vision encoder with its windows, 8 narrow blocks deep: as it comes, and with windows batched."""
    config = Qwen2_5_VLConfig(**json.loads(CONFIG.read_text())).vision_config
    config.depth, config.hidden_size, config.num_heads, config.intermediate_size, config.out_hidden_size = (
        8,
        32,
        2,
        48,
        24,
    )
    config._attn_implementation = "sdpa"
    torch.manual_seed(0)
    plain = Qwen2_5_VisionTransformerPretrainedModel(config)
    ours = copy.deepcopy(plain)
    attention_by_window_length(SimpleNamespace(model=SimpleNamespace(visual=ours)))
    return plain, ours


def run(tower, grids):
    """Output, and gradients with respect to the pixels and the first block's weights."""
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randn(sum(h * w for _, h, w in grids), 1176, generator=generator).requires_grad_()
    output = tower(pixels, grid_thw=torch.tensor(grids)).pooler_output
    output.square().sum().backward()
    weights = tower.blocks[0].attn.qkv.weight
    result = output.detach(), pixels.grad, weights.grad
    weights.grad = None
    return result


@pytest.mark.parametrize(
    "grids",
    [
        [(1, 36, 36)],  # 504 x 504: windows of 64, 32 and 16 patches
        [(1, 36, 36)] * 3,
        [(1, 16, 16)],  # windows of 64 alone
        [(1, 20, 10)],  # not square
        [(1, 2, 4), (1, 36, 12), (1, 18, 26)],  # several sizes, one smaller than a window
    ],
)
def test_batched_windows_give_the_same_outputs_and_gradients(towers, grids):
    for ours, plain in zip(run(towers[1], grids), run(towers[0], grids), strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-5)


def test_an_image_of_504_pixels_takes_an_eighth_of_the_attention_calls(towers, monkeypatch):
    calls, original = [], F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *a, **k: (calls.append(1), original(*a, **k))[1])
    counts = []
    for tower in towers:
        for images in (1, 4):
            calls.clear()
            with torch.no_grad():
                tower(torch.randn(images * 1296, 1176), grid_thw=torch.tensor([[1, 36, 36]] * images))
            counts.append(len(calls))
    # 7 blocks with 25 windows, 1 that attends to the whole; the 7B has four times as many: 704 against 88.
    assert counts == [7 * 25 + 1, 4 * (7 * 25 + 1), 7 * 3 + 1, 7 * 3 + 1]


def test_windows_met_first_while_writing_reports_can_be_trained_through(towers):
    grid = torch.tensor([[1, 12, 20]])
    with torch.inference_mode():
        towers[1](torch.randn(240, 1176), grid_thw=grid)
    towers[1](torch.randn(240, 1176), grid_thw=grid).pooler_output.sum().backward()
    assert towers[1].blocks[0].attn.qkv.weight.grad.abs().sum() > 0
    towers[1].zero_grad(set_to_none=True)


def test_patch_embedding_by_matrix_product_equals_the_convolution(towers):
    tower = copy.deepcopy(towers[0])
    pixels = torch.randn(64, 1176)
    convolved = tower.patch_embed(pixels)
    patch_embedding_by_matmul(SimpleNamespace(model=SimpleNamespace(visual=tower)))
    torch.testing.assert_close(tower.patch_embed(pixels), convolved, rtol=1e-4, atol=1e-4)
