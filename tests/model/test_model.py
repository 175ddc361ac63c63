"""The base and the adapter: what is 4-bit, what is adapted, what is saved, and that nothing gets lost on the way."""

import json
from dataclasses import replace

import bitsandbytes as bnb
import pytest
import torch
from safetensors.torch import load_file

from radvision_utils import RadVisionError, load_profile
from radvision_utils.environment import Device, choose_device, require_device
from radvision_utils.model.base import (
    WEIGHTS,
    attach_adapter,
    component_of,
    count_parameters,
    is_adapter,
    load_adapter,
    load_base,
    load_processor,
    merge_adapter,
    save_adapter,
)
from radvision_utils.model.folder import TINY_BASE
from radvision_utils.model.stage import select_stage
from radvision_utils.runs import Stage
from radvision_utils.training.collator import Collator
from radvision_utils.training.loss import report_token_losses

LINEARS_PER_LAYER = 7  # q, k, v, o, gate, up, down
LAYERS = 3


@pytest.fixture
def profile():
    return load_profile("tiny")


def losses(model, profile, dataset):
    collator = Collator(load_processor(profile.model, 512), profile.model)
    with torch.no_grad():
        return report_token_losses(model, collator(dataset.split("train")[:2]))[0]


def disturb(model):
    """Give every trained tensor of the adapter a value of its own, as training would."""
    generator = torch.Generator().manual_seed(3)
    for name, parameter in model.named_parameters():
        if is_adapter(name):
            parameter.data += 0.02 * torch.randn(parameter.shape, generator=generator)


def test_exactly_the_language_models_linear_layers_are_4_bit(profile):
    model = load_base(profile.model, choose_device())
    quantized = [name for name, module in model.named_modules() if isinstance(module, bnb.nn.Linear4bit)]
    assert len(quantized) == LAYERS * LINEARS_PER_LAYER
    assert all(name.startswith("model.language_model.layers.") for name in quantized)


def test_quantization_none_leaves_no_4_bit_layer(profile):
    model = load_base(replace(profile.model, quantization="none"), choose_device())
    assert not any(isinstance(module, bnb.nn.Linear4bit) for module in model.modules())


def test_a_4_bit_weight_counts_as_the_numbers_that_it_stands_for(profile):
    device = choose_device()
    whole = count_parameters(load_base(replace(profile.model, quantization="none"), device))
    assert count_parameters(load_base(profile.model, device)) == whole
    assert sum(whole.values()) == sum(t.numel() for t in load_file(TINY_BASE / "model.safetensors").values())


def test_lora_sits_on_all_linear_layers_of_both_towers_with_their_stages_rank():
    profile = load_profile("tiny", {"stage1.lora_rank": 4, "stage3.lora_rank": 6})
    model = attach_adapter(load_base(profile.model, choose_device()), profile)
    ranks = {"vision_encoder": set(), "language_model": set()}
    count = dict.fromkeys(ranks, 0)
    for name, parameter in model.named_parameters():
        if ".lora_A." in name:
            ranks[component_of(name)].add(parameter.shape[0])
            count[component_of(name)] += 1
    assert ranks == {"vision_encoder": {4}, "language_model": {6}}
    assert count == {"vision_encoder": LAYERS * 5, "language_model": LAYERS * LINEARS_PER_LAYER}


def test_a_fresh_adapter_changes_nothing(profile, dataset):
    base = load_base(profile.model, choose_device())
    before = losses(base, profile, dataset)
    assert torch.equal(losses(attach_adapter(base, profile), profile, dataset), before)


def test_whatever_trains_is_float32(profile):
    half = Device("cpu", "", "bfloat16", "")
    model = attach_adapter(load_base(profile.model, half), profile)
    for stage in (1, 2, 3):
        for name in select_stage(model, Stage(profile, stage)):
            assert model.get_parameter(name).dtype == torch.float32, name


def test_the_16_bit_base_is_not_upcast_by_the_adapter(profile):
    half = Device("cpu", "", "bfloat16", "")
    model = attach_adapter(load_base(profile.model, half), profile)
    kinds = {p.dtype for name, p in model.named_parameters() if not is_adapter(name)}
    assert kinds == {torch.bfloat16, torch.uint8}


def test_a_saved_adapter_gives_identical_losses_when_loaded(profile, dataset, tmp_path):
    model = attach_adapter(load_base(profile.model, choose_device()), profile)
    disturb(model)
    save_adapter(model, tmp_path / "adapter")
    again = load_adapter(load_base(profile.model, choose_device()), tmp_path / "adapter")
    assert torch.equal(losses(again, profile, dataset), losses(model, profile, dataset))


def test_a_saved_adapter_holds_the_projector_and_both_loras_as_safetensors(profile, tmp_path):
    save_adapter(attach_adapter(load_base(profile.model, choose_device()), profile), tmp_path / "adapter")
    saved = load_file(tmp_path / "adapter" / WEIGHTS)
    assert {component_of(name) for name in saved} == {"vision_encoder", "projector", "language_model"}
    assert not list(tmp_path.glob("**/*.bin"))


def test_an_adapter_loads_in_plain_peft(profile, dataset, tmp_path):
    model = attach_adapter(load_base(profile.model, choose_device()), profile)
    disturb(model)
    save_adapter(model, tmp_path / "adapter")
    from peft import PeftModel

    plain = PeftModel.from_pretrained(load_base(profile.model, choose_device()), tmp_path / "adapter")
    torch.testing.assert_close(losses(plain, profile, dataset), losses(model, profile, dataset), rtol=1e-5, atol=1e-5)


def test_merging_into_the_whole_base_keeps_the_losses_and_leaves_the_base(dataset):
    profile = load_profile("tiny", {"model.quantization": "none"})
    base = load_base(profile.model, choose_device())
    untuned = losses(base, profile, dataset)
    model = attach_adapter(base, profile)
    disturb(model)
    tuned = losses(model, profile, dataset)
    merged = losses(merge_adapter(model), profile, dataset)
    torch.testing.assert_close(merged, tuned, rtol=1e-3, atol=1e-3)
    assert (merged - untuned).abs().max() > 0.1


def test_merging_into_4_bit_is_refused(profile):
    model = attach_adapter(load_base(profile.model, choose_device()), profile)
    with pytest.raises(RadVisionError, match="cannot be merged into a 4-bit base without loss"):
        merge_adapter(model)


def test_a_folder_without_adapter_is_named(profile, tmp_path):
    with pytest.raises(RadVisionError, match=r"holds no adapter \(adapter_model.safetensors is missing\)"):
        load_adapter(load_base(profile.model, choose_device()), tmp_path)


def test_an_adapter_of_another_shape_is_refused(profile, tmp_path):
    save_adapter(attach_adapter(load_base(profile.model, choose_device()), profile), tmp_path / "adapter")
    settings = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    settings["r"] = 5
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(settings))
    with pytest.raises(RadVisionError, match="does not fit this base model"):
        load_adapter(load_base(profile.model, choose_device()), tmp_path / "adapter")


def test_patch_embedding_by_matrix_product_equals_the_convolution(profile):
    model = load_base(replace(profile.model, quantization="none"), choose_device())
    embedding = model.model.visual.patch_embed
    pixels = torch.randn(64, 3 * 2 * 28 * 28)
    convolved = type(embedding).forward(embedding, pixels)
    torch.testing.assert_close(embedding(pixels), convolved, rtol=1e-4, atol=1e-4)


def test_the_7b_says_in_one_sentence_that_it_needs_a_card():
    cpu = Device("cpu", "CPU", "float32", "")
    with pytest.raises(RadVisionError, match=r"needs an NVIDIA card with at least 16 GB .* or `--profile tiny`"):
        require_device(load_profile("lingshu-7b").model, cpu)


def test_a_model_folder_that_holds_no_model_is_named(tmp_path):
    settings = load_profile("tiny", {"model.base": str(tmp_path)}).model
    with pytest.raises(RadVisionError, match="cannot be loaded"):
        load_base(settings, choose_device())
