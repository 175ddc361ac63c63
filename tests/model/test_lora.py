"""LoRA computed faster: PEFT's results, gradients and switches, and nothing computed where nothing is added."""

from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from radvision_utils.environment import choose_device
from radvision_utils.model.base import LANGUAGE_LINEARS, attach_adapter, load_base, load_processor
from radvision_utils.model.faster import speed_up_lora
from radvision_utils.model.stage import select_stage
from radvision_utils.runs import Stage
from radvision_utils.training.collator import Collator
from radvision_utils.training.loss import report_token_losses


@pytest.fixture
def batch(small_profile, dataset):
    return Collator(load_processor(small_profile.model, 512), small_profile.model)(dataset.split("train")[:3])


def trained(profile, stage, device=None, language=True):
    """A model whose LoRA changes something; in the language model only if asked."""
    model = attach_adapter(load_base(profile.model, device or choose_device()), profile)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if ".lora_B." in name and (language or ".visual." in name):
            parameter.data = 0.05 * torch.randn(parameter.shape, generator=generator)
    select_stage(model, Stage(profile, stage))
    return model


def losses_and_gradients(model, batch, autocast):
    torch.manual_seed(0)  # of dropout
    with autocast():
        losses, counts = report_token_losses(model, batch)
    (losses.sum() / counts.sum()).backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return losses.detach(), gradients


@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize("quantization", ["nf4", "none"])
@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_losses_and_gradients_are_pefts(small_profile, batch, stage, quantization, dropout):
    profile = replace(small_profile, model=replace(small_profile.model, quantization=quantization))
    profile = replace(profile, **{f"stage{stage}": replace(profile.stage(stage), lora_dropout=dropout)})
    model, autocast = trained(profile, stage).train(), choose_device().autocast
    expected = losses_and_gradients(model, batch, autocast)
    speed_up_lora(model)
    torch.testing.assert_close(losses_and_gradients(model, batch, autocast), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("stage", [1, 3])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_under_autocast_they_are_pefts_to_rounding(small_profile, batch, stage, dtype):
    half = replace(choose_device(), dtype=dtype)
    model = trained(small_profile, stage, half).train()
    expected, slopes = losses_and_gradients(model, batch, half.autocast)
    speed_up_lora(model)
    losses, gradients = losses_and_gradients(model, batch, half.autocast)
    torch.testing.assert_close(losses, expected, rtol=0.02, atol=0.02)
    assert gradients.keys() == slopes.keys()
    for name, gradient in gradients.items():
        assert gradient.dtype == torch.float32
        assert (gradient - slopes[name]).norm() < 0.1 * slopes[name].norm(), name


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_only_lora_that_adds_something_or_trains_is_computed(small_profile, batch, stage):
    model = trained(small_profile, stage, language=False).eval()
    expected = report_token_losses(model, batch)[0].detach()
    speed_up_lora(model)
    computed = set()
    for name, module in model.named_modules():
        if name.endswith(".lora_A.default"):
            module.register_forward_hook(
                lambda *_, name=name: computed.add("visual" if ".visual." in name else "language")
            )
    torch.testing.assert_close(report_token_losses(model, batch)[0], expected)
    assert computed == ({"visual", "language"} if stage == 3 else {"visual"})


def test_a_switched_off_adapter_stays_switched_off(small_profile, batch):
    model = trained(small_profile, 3).eval()
    with torch.no_grad(), model.disable_adapter():
        base = report_token_losses(model, batch)[0]
    speed_up_lora(model)
    with torch.no_grad():
        tuned = report_token_losses(model, batch)[0]
        with model.disable_adapter():
            assert torch.equal(report_token_losses(model, batch)[0], base)
    assert not torch.allclose(tuned, base, atol=1e-2)


def test_other_kinds_of_lora_go_pefts_way(small_profile, batch):
    base = load_base(replace(small_profile.model, quantization="none"), choose_device())
    model = get_peft_model(base, LoraConfig(r=4, target_modules=LANGUAGE_LINEARS, use_dora=True)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_B." in name:
                nn.init.normal_(parameter, std=0.05)
        expected = report_token_losses(model, batch)[0]
        speed_up_lora(model)
        assert torch.equal(report_token_losses(model, batch)[0], expected)
