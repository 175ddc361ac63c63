"""A base is used whole or not at all, its files run no code, and those of the first Qwen2.5-VL are read."""

import json
import re
import shutil
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from radvision_utils import RadVisionError, load_profile
from radvision_utils.environment import choose_device
from radvision_utils.model.base import ATTENTION, load_base, load_processor
from radvision_utils.model.folder import TINY_BASE

TENSORS = load_file(TINY_BASE / "model.safetensors")
few = settings(max_examples=5, deadline=None, derandomize=True)


@pytest.fixture
def folder(tmp_path):
    return Path(shutil.copytree(TINY_BASE, tmp_path / "base"))


def copied(test):
    """Call a property's body with a copy of the tiny base, a new one for each example."""
    with tempfile.TemporaryDirectory() as temporary:
        test(Path(shutil.copytree(TINY_BASE, Path(temporary) / "base")))


def of(folder, quantization="none"):
    return load_profile("tiny", {"model.base": str(folder), "model.quantization": quantization}).model


def load(folder, quantization="none"):
    return load_base(of(folder, quantization), choose_device())


def refusal(call, *arguments):
    with pytest.raises(RadVisionError) as raised:
        call(*arguments)
    assert "\n" not in str(raised.value)
    assert str(raised.value).endswith(".")
    return str(raised.value)


def write(folder, tensors):
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def edit(path, change):
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def tail(name):
    return name.removeprefix("model.").removeprefix("language_model.")


@few
@given(st.sampled_from(sorted(TENSORS)), st.sampled_from(["none", "nf4"]))
def test_a_base_that_lacks_any_one_tensor_is_refused_with_its_name(name, quantization):
    def lacking(folder):
        write(folder, {key: value for key, value in TENSORS.items() if key != name})
        assert f"{tail(name)})" in refusal(load, folder, quantization)

    copied(lacking)


@few
@given(st.sampled_from(sorted(TENSORS)), st.sampled_from(["none", "nf4"]))
def test_a_base_with_any_one_tensor_of_another_shape_is_refused_with_its_name(name, quantization):
    def misshapen(folder):
        write(folder, {**TENSORS, name: torch.zeros(*(size + 1 for size in TENSORS[name].shape))})
        assert re.search(rf"of another shape \(.*{re.escape(tail(name))}", refusal(load, folder, quantization))

    copied(misshapen)


def test_a_tensor_that_the_model_has_no_place_for_is_named(folder):
    write(folder, {**TENSORS, "model.layers.3.mlp.up_proj.weight": torch.zeros(320, 128)})
    assert "1 unexpected" in refusal(load, folder)


def test_rotary_frequencies_and_a_tied_head_may_be_saved_or_not(folder):
    head = {"lm_head.weight": TENSORS["model.embed_tokens.weight"].clone()}
    write(folder, {**TENSORS, **head, "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(16)})
    before, after = (load(path).state_dict() for path in (TINY_BASE, folder))
    assert all(torch.equal(before[name], after[name]) for name in before)


@few
@given(st.integers(0, (TINY_BASE / "model.safetensors").stat().st_size - 1))
def test_a_weights_file_cut_at_any_byte_is_one_sentence(length):
    def cut(folder):
        file = folder / "model.safetensors"
        file.write_bytes(file.read_bytes()[:length])
        assert "cannot be loaded" in refusal(load, folder)

    copied(cut)


@few
@given(st.sampled_from(["config.json", "processor_config.json", "tokenizer.json"]), st.floats(0, 0.99))
def test_a_small_file_cut_anywhere_is_one_sentence(name, part):
    def cut(folder):
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole[: int(len(whole) * part)])
        assert str(folder) in refusal(load_processor, of(folder), 512)

    copied(cut)


def remove(*names):
    return lambda folder: [(folder / name).unlink(missing_ok=True) for name in names]


def in_config(**values):
    return lambda folder: edit(folder / "config.json", lambda config: config.update(values))


def pointer(name):
    text = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3200000\n"
    return lambda folder: (folder / name).write_text(text)


def shard_missing(folder):
    (folder / "model.safetensors").unlink()
    names = dict.fromkeys(TENSORS, "model-00001-of-00002.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (in_config(model_type="qwen2_vl"), "model of the kind 'qwen2_vl'"),
        (in_config(text_config=[]), "cannot be loaded"),
        (pointer("model.safetensors"), r"model\.safetensors is a git-lfs pointer .*`git lfs pull`"),
        (shard_missing, "model-00001-of-00002"),
        (remove("model.safetensors"), "cannot be loaded"),
        (lambda folder: (folder / "adapter_config.json").write_text("{}"), "holds an adapter, not a base"),
    ],
)
def test_what_is_no_whole_base_is_told_in_a_sentence(folder, spoil, said):
    spoil(folder)
    assert re.search(said, refusal(load, folder))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (remove("chat_template.jinja"), "has no chat template"),
        (lambda folder: (folder / "chat_template.jinja").write_text("{% for"), "cannot be loaded: TemplateSyntaxError"),
        (lambda folder: (folder / "chat_template.jinja").write_text("Report."), "does not set one image"),
        (remove("tokenizer.json", "tokenizer_config.json"), "tokenizer"),
        (pointer("tokenizer.json"), "tokenizer.json is a git-lfs pointer"),
        (remove("processor_config.json"), "cannot be loaded"),
    ],
)
def test_a_base_without_a_whole_processor_is_told_in_a_sentence(folder, spoil, said):
    spoil(folder)
    assert said in refusal(load_processor, of(folder), 512)


PIXELS = {"min_pixels": 50176, "max_pixels": 50176}


@pytest.mark.parametrize("kind", ["Qwen2_5_VLImageProcessor", "Qwen2_5_VLImageProcessorFast", "Qwen2VLImageProcessor"])
@pytest.mark.parametrize("size", [PIXELS, {"shortest_edge": 50176, "longest_edge": 50176}, {**PIXELS, "width": None}])
@pytest.mark.parametrize("alone", [True, False], ids=["preprocessor_config.json", "processor_config.json"])
def test_a_processor_of_any_release_gives_the_same_pixels(folder, kind, size, alone):
    def as_then(values):
        values["image_processor"].update(image_processor_type=kind, size=dict(size))

    file = folder / "processor_config.json"
    edit(file, as_then)
    if alone:
        values = json.loads(file.read_text())["image_processor"] | {"processor_class": "Qwen2_5_VLProcessor"}
        (folder / "preprocessor_config.json").write_text(json.dumps(values))
        file.unlink()
    image = torch.randint(0, 256, (3, 512, 512), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    before, after = (load_processor(of(path), 512).image_processor([image]) for path in (TINY_BASE, folder))
    assert torch.equal(torch.as_tensor(before["pixel_values"]), torch.as_tensor(after["pixel_values"]))


@pytest.mark.parametrize("value", ["channels_last", "cuda", None, 7])
def test_what_a_processor_was_once_called_with_changes_nothing(folder, value):
    names = ["input_data_format", "data_format", "return_tensors", "device"]
    edit(folder / "processor_config.json", lambda values: values["image_processor"].update(dict.fromkeys(names, value)))
    image = torch.randint(0, 256, (3, 224, 224), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    before, after = (load_processor(of(path), 512).image_processor([image]) for path in (TINY_BASE, folder))
    assert torch.equal(torch.as_tensor(before["pixel_values"]), torch.as_tensor(after["pixel_values"]))


@pytest.mark.parametrize(
    "changes",
    [
        {"size": {"height": 224, "width": 224}},
        {"size": 224},
        {"size": {"shortest_edge": "50176", "longest_edge": "50176"}},
        {"image_processor_type": "CLIPImageProcessor"},
    ],
)
def test_an_image_processor_of_another_kind_is_told_in_a_sentence(folder, changes, old_torch):
    edit(folder / "processor_config.json", lambda values: values["image_processor"].update(changes))
    told = refusal(load_processor, of(folder), 512)
    # The oldest transformers refuses some of them itself.
    assert "the image processor of" in told or (old_torch and "cannot be loaded: " in told)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"patch_size": 16}, "has patch_size 28 in config.json and 16 in its processor's"),
        ({"merge_size": 4}, "has spatial_merge_size 2 in config.json and 4 in"),
        ({"temporal_patch_size": 1}, "has temporal_patch_size 2 in config.json and 1 in"),
        ({"do_rescale": False}, "of white: mend its image_mean"),
        ({"image_std": [0, 0, 0]}, "makes inf of white"),
        ({"image_mean": [float("nan")] * 3}, "makes nan of white"),
        ({"image_mean": "0.5"}, "cannot be loaded: TypeError"),
        ({"rescale_factor": 0}, "cannot be loaded: ZeroDivisionError"),
        ({"size": {"shortest_edge": 10**12, "longest_edge": 10**12}}, "is not that of Qwen2.5-VL"),
        ({"size": {"shortest_edge": -1, "longest_edge": -1}}, "is not that of Qwen2.5-VL"),
    ],
)
def test_an_image_processor_that_makes_other_numbers_than_the_model_takes_is_told(folder, changes, said):
    edit(folder / "processor_config.json", lambda values: values["image_processor"].update(changes))
    assert said in refusal(load_processor, of(folder), 512)


@pytest.mark.parametrize("name", ["config.json", "processor_config.json", "tokenizer_config.json"])
@pytest.mark.parametrize("where", [[], ["deeper"]])
@pytest.mark.parametrize("key", ["auto_map", "trust_remote_code", "audio_tokenizer"])
def test_a_file_that_asks_for_code_is_refused_and_the_code_not_run(folder, name, where, key):
    (folder / "beside.py").write_text(f"open({str(folder / 'ran')!r}, 'w')\nclass Any: pass\n")
    request = {key: dict.fromkeys(("AutoConfig", "AutoProcessor", "AutoTokenizer"), "beside.Any")}
    for step in where:
        request = {step: [request]}
    edit(folder / name, lambda values: values.update(request))
    for call, arguments in ((load, [folder]), (load_processor, [of(folder), 512])):
        assert f"{name} asks for code of its own ({key})" in refusal(call, *arguments)
    assert not (folder / "ran").exists()


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append.__globals__ }}",
        "{{ cycler.__init__.__globals__.os.system('id') }}",
        "{{ raise_exception.__globals__['__builtins__'] }}",
        "{% set _ = messages.clear() %}",
    ],
)
def test_a_chat_template_cannot_reach_out_of_its_sandbox(folder, template):
    whole = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").write_text(template + whole)
    assert "SecurityError" in refusal(load_processor, of(folder), 512)


def test_a_config_cannot_choose_an_attention_of_the_hub(folder):
    def choose(values):
        for part in (values, values["vision_config"], values.get("text_config", values)):
            part["attn_implementation"] = part["_attn_implementation"] = "somebody/kernel"

    edit(folder / "config.json", choose)
    config = load(folder).config
    parts = (config, config.vision_config, config.text_config)
    assert {part._attn_implementation for part in parts} == {ATTENTION}
