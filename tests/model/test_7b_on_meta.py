"""The 7B without its weights: on `meta` tensors, every count that the documents state."""

import json

import pytest
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import ModulesToSaveWrapper
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
from transformers.integrations.bitsandbytes import replace_with_bnb_linear

from radvision_utils import load_profile
from radvision_utils.config import project_root
from radvision_utils.environment import Device
from radvision_utils.hand_over.merge import hub_name, module_name
from radvision_utils.model.base import (
    NOT_QUANTIZED,
    attach_adapter,
    component_of,
    count_parameters,
    quantization_config,
)
from radvision_utils.model.stage import select_stage
from radvision_utils.planning.cost import read_shape
from radvision_utils.runs import Stage
from radvision_utils.small_data.label_head import LabelHead

CONFIG = project_root() / "radvision_utils" / "model" / "qwen2_5_vl_7b.json"


def build():
    with torch.device("meta"):
        return Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(**json.loads(CONFIG.read_text())))


def test_the_components_have_the_parameters_of_the_7b():
    counts = count_parameters(build())
    assert sum(counts.values()) == 8_292_166_656
    assert counts["vision_encoder"] == 630_470_400 + 1_505_280
    assert counts["projector"] == 44_574_464


@pytest.fixture(scope="module")
def adapted():
    return attach_adapter(build(), load_profile("lingshu-7b"))


@pytest.mark.parametrize(
    ("stage", "component", "parameters", "tensors"),
    [
        (1, "vision_encoder", 11_151_360, 32 * 5 * 2),
        (2, "projector", 44_574_464, 5),
        (3, "language_model", 40_370_176, 28 * 7 * 2),
    ],
)
def test_each_stage_trains_exactly_its_component(adapted, stage, component, parameters, tensors):
    names = select_stage(adapted, Stage(load_profile("lingshu-7b"), stage))
    assert {component_of(name) for name in names} == {component}
    assert len(names) == tensors
    assert sum(adapted.get_parameter(name).numel() for name in names) == parameters


def test_all_of_the_7bs_vision_encoder_can_train_and_a_label_head_reads_its_tokens():
    profile = load_profile("lingshu-7b", {"stage1.train": "full", "stage1.label_weight": 1.0})
    model = attach_adapter(build(), profile)
    names = select_stage(model, Stage(profile, 1))
    assert sum(model.get_parameter(name).numel() for name in names) == 630_470_400 + 1_505_280
    assert sum(read_shape(profile.model).adapter_tensors(profile)[1]) == 630_470_400 + 1_505_280
    with torch.device("meta"):
        labels = {str(number): torch.tensor([float(number % 2)] * 14, device="cpu") for number in range(40)}
        with torch.device("cpu"):
            head = LabelHead(model.config.get_text_config().hidden_size, labels)
        assert head.to("meta")(torch.empty(2, 324, 3584)).shape == (2, 14)


def test_lora_sits_on_the_intended_linears_and_nothing_else_is_adapted(adapted):
    vision = [f"attn.{name}" for name in ("qkv", "proj")] + [f"mlp.{name}_proj" for name in ("gate", "up", "down")]
    language = [f"self_attn.{name}_proj" for name in "qkvo"] + [f"mlp.{name}_proj" for name in ("gate", "up", "down")]
    intended = {f"model.visual.blocks.{n}.{name}" for n in range(32) for name in vision}
    intended |= {f"model.language_model.layers.{n}.{name}" for n in range(28) for name in language}
    modules = dict(adapted.get_base_model().named_modules())
    assert {name for name, module in modules.items() if isinstance(module, BaseTunerLayer)} == intended
    replaced = [name for name, module in modules.items() if isinstance(module, ModulesToSaveWrapper)]
    assert replaced == ["model.visual.merger"]


def test_names_on_disk_are_those_of_the_hub():
    # 729 tensors and 16,584,333,312 bytes: the index of Qwen2.5-VL-7B-Instruct.
    parameters = dict(build().named_parameters())
    names = {hub_name(name): name for name in parameters}
    assert len(names) == 729
    assert sum(2 * parameter.numel() for parameter in parameters.values()) == 16_584_333_312
    assert {name.split(".")[0] for name in names} == {"visual", "model", "lm_head"}
    assert "model.layers.27.self_attn.q_proj.bias" in names
    assert "visual.merger.mlp.2.weight" in names
    assert all(module_name(key) == name for key, name in names.items())


def test_the_4_bit_layers_are_the_language_models_linears_and_no_others():
    settings = quantization_config(load_profile("lingshu-7b").model, Device("cuda", "", "float16", ""))
    with torch.device("meta"):
        model = replace_with_bnb_linear(build(), list(NOT_QUANTIZED), quantization_config=settings)
    quantized = [name for name, module in model.named_modules() if type(module).__name__ == "Linear4bit"]
    assert len(quantized) == 28 * 7
    assert {component_of(name + ".") for name in quantized} == {"language_model"}


def test_a_512_pixel_image_becomes_324_tokens():
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

    height, width = smart_resize(512, 512, factor=28, min_pixels=56 * 56, max_pixels=28 * 28 * 1280)
    assert (height, width) == (504, 504)
    assert (height // 28) * (width // 28) == load_profile("lingshu-7b").model.visual_tokens
