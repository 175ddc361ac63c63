"""The check of a card, on a CPU with a small shape: every part runs through the product's own code and is told."""

import json
import weakref

import bitsandbytes as bnb
import pytest
import torch

from radvision_utils import gpu_check as module
from radvision_utils.bases.random import random_base, random_model_folder
from radvision_utils.config import load_profile
from radvision_utils.environment import choose_device
from radvision_utils.gpu_check import check_table, gpu_check, small_shape
from radvision_utils.model.components import component_of, count_parameters
from radvision_utils.model.loading import load_base, load_processor, quantization_config

PARTS = 8


@pytest.fixture
def hurried(monkeypatch):
    """The check in one number format, with two steps a stage."""
    quick = {f"stage{n}.max_steps": 2 for n in (1, 2, 3)} | {f"stage{n}.micro_batch": 2 for n in (1, 2, 3)}
    quick |= {"data.phantoms": 16, "generation.max_new_tokens": 8, "generation.batch_size": 4}
    monkeypatch.setattr(module, "_SETTINGS", module._SETTINGS | quick)
    monkeypatch.setattr(module, "_dtypes", lambda device: ["float32"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return random_model_folder(tmp_path_factory.mktemp("random"), small_shape(), seed=5)


@pytest.fixture
def settings(folder):
    return load_profile("tiny", {"model.base": str(folder), "model.visual_tokens": 324}).model


def test_every_part_runs_and_leaves_figures_but_no_weights(hurried, tmp_path):
    record = gpu_check(tmp_path)
    assert record["ok"], [check["problem"] or check["part"] for check in record["checks"]]
    assert len(record["checks"]) == PARTS
    figures = {check["part"]: check["figures"] for check in record["checks"]}
    assert figures["stage 1, vision encoder"]["moved"] == ["vision_encoder.adapter"]
    assert figures["stage 2, projector"]["studies_per_second"] > 0
    assert figures["stage 3, paused and resumed"]["resumed_from"] == "checkpoint-1"
    assert figures["reload"]["loss"] == pytest.approx(figures["reload"]["loss_before"], rel=0.01)
    assert figures["reports"]["tokens"] == 4 * 8
    merge = figures["merge, one layer of each tower"]["check"]
    assert merge["adapter"] < 0.1 * merge["base"]
    assert [path.name for path in tmp_path.iterdir()] == ["gpu_check.json"]
    assert json.loads((tmp_path / "gpu_check.json").read_text()) == record
    assert len(check_table(record).splitlines()) == PARTS + 2


def test_a_part_that_fails_is_told_and_does_not_stop_the_others(hurried, tmp_path, monkeypatch):
    def broken(profile):
        raise RuntimeError("out of paper\nand ink")

    monkeypatch.setattr(module, "_load", broken)
    monkeypatch.setattr(module, "_stage", broken)
    record = gpu_check(tmp_path)
    first, *others = record["checks"]
    assert not record["ok"]
    assert first["problem"] == "RuntimeError: out of paper"
    assert "in broken" in first["figures"]["traceback"]
    assert not others[-1]["problem"]
    assert "| RuntimeError: out of paper |" in check_table(record)


def test_parts_after_the_time_is_over_are_left_out_and_named(hurried, tmp_path):
    record = gpu_check(tmp_path, minutes=0.0)
    assert {check["problem"] for check in record["checks"]} == {"left out: the 0 minutes were over"}


def test_random_weights_are_the_same_each_time_and_wholly_there(settings):
    first, again = (load_base(settings, choose_device()) for _ in range(2))
    named = dict(first.named_parameters()) | dict(first.named_buffers())
    assert not any(tensor.is_meta for tensor in named.values())
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))


def test_the_random_model_is_the_one_that_transformers_builds(settings):
    from transformers import Qwen2_5_VLForConditionalGeneration

    model = load_base(settings, choose_device())
    plain = Qwen2_5_VLForConditionalGeneration(model.config)
    assert count_parameters(model) == count_parameters(plain)
    buffers = dict(model.named_buffers())
    assert all(torch.equal(buffers[name], buffer) for name, buffer in plain.named_buffers())


def test_only_the_language_models_linears_of_the_random_model_are_4_bit(settings):
    model = load_base(settings, choose_device())
    packed = [name for name, parameter in model.named_parameters() if parameter.dtype == torch.uint8]
    assert len(packed) == 2 * 7
    assert {component_of(name) for name in packed} == {"language_model"}
    assert model.is_quantized


def test_the_16_bits_of_a_packed_layer_are_gone_before_the_next_is_made(folder, settings, monkeypatch):
    from radvision_utils.bases import random as made

    originals, like, fill = [], made._like, made._fill

    def pack(parameter, value):
        if isinstance(parameter, bnb.nn.Params4bit):
            originals.append(weakref.ref(value.untyped_storage()))
        return like(parameter, value)

    def look(*arguments):
        assert all(original() is None for original in originals)
        fill(*arguments)

    monkeypatch.setattr(made, "_like", pack)
    monkeypatch.setattr(made, "_fill", look)
    random_base(folder, torch.float32, quantization_config(settings, choose_device()), "cpu")
    assert len(originals) == 2 * 7


def test_a_random_folder_is_small_and_has_a_processor_that_fits(folder, settings):
    assert sum(path.stat().st_size for path in folder.iterdir()) < 1e6
    assert load_processor(settings, 512)
