"""An adapter is used whole or not at all, and of its config only four numbers: nothing in it runs or stalls."""

import json
import re
import shutil
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig
from safetensors.torch import load_file, save_file

from radvision_utils import RadVisionError, load_profile
from radvision_utils.environment import choose_device
from radvision_utils.hand_over.merge import merge_into_files
from radvision_utils.model.base import WEIGHTS, attach_adapter, load_adapter, load_base, save_adapter
from radvision_utils.model.folder import TINY_BASE

few = settings(max_examples=5, deadline=None, derandomize=True)
PLAIN = load_profile("tiny", {"model.quantization": "none"})


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "adapter"
    save_adapter(attach_adapter(load_base(PLAIN.model, choose_device()), PLAIN), folder)
    return folder


def refusal(saved, spoil):
    """The sentence that refuses a copy of the adapter after something was done to it."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(shutil.copytree(saved, Path(temporary) / "adapter"))
        spoil(folder)
        with pytest.raises(RadVisionError) as raised:
            load_adapter(load_base(PLAIN.model, choose_device()), folder)
    assert "\n" not in str(raised.value)
    assert str(raised.value).endswith(".")
    return str(raised.value)


def tensors(change):
    def spoil(folder):
        found = load_file(folder / WEIGHTS)
        save_file(change(found), folder / WEIGHTS)

    return spoil


def config(**values):
    def spoil(folder):
        file = folder / "adapter_config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **values}))

    return spoil


@few
@given(st.data())
def test_an_adapter_that_lacks_any_one_tensor_is_refused_with_its_name(saved, data):
    name = data.draw(st.sampled_from(sorted(load_file(saved / WEIGHTS))))
    said = refusal(saved, tensors(lambda found: {key: value for key, value in found.items() if key != name}))
    assert f"1 missing ({name})" in said


@few
@given(st.data())
def test_an_adapter_with_any_one_tensor_of_another_shape_or_without_numbers_is_refused(saved, data):
    name = data.draw(st.sampled_from(sorted(load_file(saved / WEIGHTS))))
    wider = refusal(saved, tensors(lambda found: {**found, name: torch.zeros(*(n + 1 for n in found[name].shape))}))
    assert f"1 of another shape ({name})" in wider
    bad = data.draw(st.sampled_from([float("nan"), float("inf")]))
    said = refusal(saved, tensors(lambda found: {**found, name: torch.full_like(found[name], bad)}))
    assert re.search(rf"1 tensors hold no numbers .*{re.escape(name)}", said)


@few
@given(st.floats(0, 0.999), st.sampled_from([WEIGHTS, "adapter_config.json"]))
def test_an_adapter_cut_at_any_byte_is_one_sentence(saved, part, name):
    whole = (saved / name).read_bytes()
    assert refusal(saved, lambda folder: (folder / name).write_bytes(whole[: int(len(whole) * part)]))


def test_keys_as_other_releases_prefix_them_are_refused(saved):
    said = refusal(saved, tensors(lambda found: {key.replace("language_model.", ""): v for key, v in found.items()}))
    assert "missing" in said
    assert "unexpected" in said


OURS = ("r", "lora_alpha", "base_model_name_or_path", "peft_version", "inference_mode", "auto_mapping")
KEYS = sorted(key for key in LoraConfig().to_dict() if key not in OURS)


@pytest.mark.parametrize("key", [*KEYS, "auto_mapping", "auto_map", "trust_remote_code", "modules"])
def test_any_other_value_of_any_key_is_refused_with_the_key(saved, key):
    assert key in refusal(saved, config(**{key: {"a": "beside.evil"}})) or key.endswith("_pattern")


STALLS = r"((a+)+)+$"


@pytest.mark.parametrize(
    "values",
    [
        {"target_modules": STALLS},
        {"exclude_modules": STALLS},
        {"layers_pattern": STALLS},
        {"rank_pattern": {STALLS: 16}},
        {"alpha_pattern": {STALLS: 16}},
        {"r": 10**9},
        {"r": -1},
        {"r": True},
        {"lora_alpha": "16"},
        {"megatron_config": {"a": 1}, "megatron_core": "outputs.shared.evil"},
    ],
)
def test_no_pattern_number_or_module_of_a_stranger_reaches_peft(saved, values, monkeypatch):
    monkeypatch.setattr("radvision_utils.model.base.PeftModel", lambda *_: pytest.fail("PEFT was given it"))
    assert refusal(saved, config(**values))


def test_a_merge_matches_no_pattern_of_a_stranger(saved, tmp_path):
    folder = Path(shutil.copytree(saved, tmp_path / "adapter"))
    config(alpha_pattern={STALLS: 16})(folder)
    with pytest.raises(RadVisionError, match="no usable alpha_pattern"):
        merge_into_files(TINY_BASE, folder, tmp_path)


def test_empty_keys_of_another_release_of_peft_change_nothing(saved, tmp_path):
    folder = Path(shutil.copytree(saved, tmp_path / "adapter"))
    config(of_next_year=None, also_next_year=False)(folder)
    model = load_adapter(load_base(PLAIN.model, choose_device()), folder)
    assert model.peft_config["default"].r == PLAIN.stage3.lora_rank
