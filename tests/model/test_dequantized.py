"""4-bit weights kept in 16 bits too: the very numbers that bitsandbytes computes with, and nothing unproved."""

from dataclasses import replace

import bitsandbytes
import pytest
import torch

from radvision_utils import train_stage
from radvision_utils.environment import Device, choose_device
from radvision_utils.model.base import load_base, load_processor
from radvision_utils.model.faster import keep_dequantized, speed_up_lora
from radvision_utils.model.fp16 import keep_in_float32
from radvision_utils.model.stage import weight_ledger
from radvision_utils.planning import plan
from radvision_utils.planning.cost import read_shape
from radvision_utils.training.collator import Collator
from tests.model.test_lora import losses_and_gradients, trained
from tests.training.test_trainer import copy_run

BFLOAT16 = Device("cpu", "", "bfloat16", "")


@pytest.fixture
def batch(small_profile, dataset):
    return Collator(load_processor(small_profile.model, 512), small_profile.model)(dataset.split("train")[:3])


def layers_of(model):
    return [module for module in model.modules() if isinstance(module, bitsandbytes.nn.Linear4bit)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_gives_what_it_gave_bit_for_bit_and_so_does_its_gradient(dtype, bias):
    torch.manual_seed(0)
    layer = bitsandbytes.nn.Linear4bit(
        192, 320, bias=bias, compute_dtype=dtype, quant_type="nf4", compress_statistics=True
    )
    layer = layer.to(dtype).to("cpu")
    layer.support_avx512bf16_for_cpu = False
    x = torch.randn(5, 7, 192, dtype=dtype, requires_grad=True)

    def results():
        output = layer(x)
        (slope,) = torch.autograd.grad(output.float().square().sum(), x)
        with torch.no_grad():
            return output.detach(), slope, layer(x), layer(x[:1, :1])

    expected = results()
    keep_dequantized(layer)
    weight = layer.weight
    assert torch.equal(weight.dequantized, bitsandbytes.functional.dequantize_4bit(weight.data, weight.quant_state))
    assert weight.dequantized.dtype == dtype
    assert all(map(torch.equal, results(), expected))
    assert not [name for name in layer.state_dict() if "dequantized" in name]


@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize("device", [choose_device(), BFLOAT16], ids=["float32", "bfloat16"])
def test_a_stage_has_the_same_losses_and_gradients(small_profile, batch, stage, device):
    model = trained(small_profile, stage, device).train()
    speed_up_lora(model)
    expected = losses_and_gradients(model, batch, device.autocast)
    keep_dequantized(model)
    assert len(layers_of(model)) == 7 * model.config.text_config.num_hidden_layers
    torch.testing.assert_close(losses_and_gradients(model, batch, device.autocast), expected, rtol=0, atol=0)


def test_a_block_kept_in_float32_is_computed_from_its_4_bit_weights(small_profile):
    model = load_base(small_profile.model, BFLOAT16)
    layer = model.model.language_model.layers[1].mlp.up_proj
    keep_in_float32(model, ["model.language_model.layers.1"])
    x = torch.randn(3, layer.in_features)
    expected = layer(x)
    keep_dequantized(model)
    assert torch.equal(layer(x), expected)
    assert not torch.equal(torch.nn.functional.linear(x, layer.weight.dequantized.float(), layer.bias), expected)


def test_the_ledger_has_the_same_digits_and_sees_a_copy_that_has_moved(small_profile):
    model = load_base(small_profile.model, choose_device())
    before = weight_ledger(model)
    keep_dequantized(model)
    assert weight_ledger(model) == before
    layers_of(model)[3].weight.dequantized[5, 7] += 1e-3
    changed = {part for part, digits in weight_ledger(model).items() if digits != before[part]}
    assert changed == {"language_model.base"}


def test_a_stage_trained_with_copies_is_the_stage_trained_without(small_profile, dataset, tmp_path, monkeypatch):
    here, records = plan.plan_here, []
    for copied in (False, True):
        monkeypatch.setattr(plan, "plan_here", lambda *at, copied=copied: replace(here(*at), copied=copied))
        records.append(train_stage(copy_run(small_profile, tmp_path / str(copied)), 1).record)
    without, record = records
    assert [each["chosen"].get("dequantized", False) for each in records] == [False, True]
    assert record["ledger"]["before"] == without["ledger"]["before"]
    assert record["hash"] == without["hash"]
    copies = 4 * read_shape(small_profile.model).language.linear_weights / 2**30
    assert record["plan"]["weights"] - without["plan"]["weights"] == pytest.approx(copies, abs=2e-4)
