"""The hand-over: what is exported works without this project, says what the adapter says, and tells what it is."""

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from huggingface_hub import ModelCard
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from radvision_utils import RadVisionError
from radvision_utils.__main__ import main
from radvision_utils.config import DISCLAIMER, PROMPT, project_root
from radvision_utils.data.studies import open_prepared
from radvision_utils.environment import choose_device
from radvision_utils.evaluation.table import COLUMNS
from radvision_utils.files import read_json
from radvision_utils.hand_over import export
from radvision_utils.hand_over.export import export_run, model_card, push_to_hub
from radvision_utils.hand_over.merge import merge_into_files
from radvision_utils.model.base import load_adapter, load_base, load_processor
from radvision_utils.model.folder import TINY_BASE
from radvision_utils.report import Reporter
from radvision_utils.runs import RunFolder
from radvision_utils.training.collator import Collator
from radvision_utils.training.loss import MODEL_INPUTS

# What a fresh environment with transformers, torch, torchvision and pillow does not have.
BLOCKED = ("radvision_utils", "peft", "bitsandbytes", "accelerate", "datasets", "pandas", "qwen_vl_utils")


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory):
    # A copy that nobody has evaluated, whatever other tests did with the run.
    bare = replace(trained, output_root=str(tmp_path_factory.mktemp("runs")))
    shutil.copytree(RunFolder.of(trained).path, RunFolder.of(bare).path, ignore=shutil.ignore_patterns("evaluation"))
    folder = tmp_path_factory.mktemp("exported") / "given"
    record = export_run(bare, folder)
    return folder, record


@pytest.fixture(scope="module")
def script(exported):
    """What the model card shows of how to use the merged weights."""
    return re.search(r"```python\n(.*?)```", (exported[0] / "README.md").read_text(), re.DOTALL)[1]


@pytest.fixture(scope="module")
def whole(trained):
    """The run's model settings without quantization."""
    return replace(trained.model, quantization="none")


@pytest.fixture(scope="module")
def batch(trained):
    collator = Collator(load_processor(trained.model, 512), trained.model)
    batch = collator(open_prepared(trained).split("test")[:2])
    return {name: batch[name] for name in MODEL_INPUTS}


def logits(model, batch):
    with torch.inference_mode():
        return model(**batch, use_cache=False).logits


def without_the_project(code, *arguments, cwd):
    """Run code in a process that can import none of `BLOCKED` and reach no network."""
    wall = (
        "import socket, sys\n"
        f"sys.modules.update(dict.fromkeys({BLOCKED}))\n"
        "socket.socket.connect = lambda *a: (_ for _ in ()).throw(AssertionError('network'))\n"
    )
    command = [sys.executable, "-c", wall + code, *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=cwd)
    assert result.returncode == 0, result.stderr[-2000:]
    return result.stdout


def test_merged_weights_give_the_adapters_logits_in_plain_transformers(exported, trained, whole, batch, tmp_path):
    tensors = {name: value for name, value in batch.items() if isinstance(value, torch.Tensor)}
    save_file(tensors, tmp_path / "batch.safetensors")
    without_the_project(
        "import torch; from safetensors.torch import load_file, save_file\n"
        "from transformers import AutoModelForImageTextToText\n"
        "folder, kept, scratch = sys.argv[1:]\n"
        "model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)\n"
        "inputs = load_file(scratch + '/batch.safetensors')\n"
        "with torch.inference_mode(): logits = model(**inputs, logits_to_keep=int(kept)).logits\n"
        "save_file({'logits': logits}, scratch + '/logits.safetensors')\n",
        exported[0] / "merged",
        batch["logits_to_keep"],
        tmp_path,
        cwd=tmp_path,
    )
    given = load_file(tmp_path / "logits.safetensors")["logits"]
    base = load_base(whole, choose_device())
    untuned = logits(base, batch)
    tuned = logits(load_adapter(base, RunFolder.of(trained).adapter(3)), batch)
    # bfloat16 keeps 8 bits of each merged weight; what three stages of three steps changed is much more.
    assert (given - tuned).pow(2).mean().sqrt() < 0.05 * (given - untuned).pow(2).mean().sqrt()
    torch.testing.assert_close(given, tuned, rtol=0, atol=0.1)


def test_the_dozen_lines_of_the_card_write_the_same_report(exported, script, trained, whole, tmp_path):
    study = open_prepared(trained).split("test")[0]
    written = without_the_project(script, exported[0] / "merged", study.image, cwd=tmp_path)
    device = replace(choose_device(), dtype="bfloat16")  # as the script computes: in the format of the weights
    model = load_base(replace(whole, base=str(exported[0] / "merged")), device)
    collator = Collator(load_processor(trained.model, 512), trained.model)
    expected = next(Reporter(model, collator, trained, 0, device).write([study.image])).text
    assert written.strip() == expected
    assert len(script.splitlines()) <= 12


def test_the_script_prepares_a_picture_of_any_shape_as_training_did(tmp_path):
    from PIL import Image, ImageOps

    from radvision_utils.data.images import letterbox

    picture = Image.radial_gradient("L").resize((320, 240))  # pads 64 on each side; an odd margin may shift by a pixel
    padded = ImageOps.pad(picture, (512, 512), Image.Resampling.LANCZOS)
    assert padded.tobytes() == letterbox(picture, 512).tobytes()


def test_merged_files_have_the_names_shapes_and_format_of_the_base(exported):
    def layout(path):
        with safe_open(path, "pt") as file:
            return {key: (file.get_slice(key).get_shape(), file.get_slice(key).get_dtype()) for key in file.keys()}  # noqa: SIM118

    merged = layout(exported[0] / "merged" / "model.safetensors")
    assert merged == layout(TINY_BASE / "model.safetensors")
    assert {kind for _, kind in merged.values()} == {"BF16"}
    assert all(key.startswith(("model.layers.", "model.norm.", "model.embed_tokens.", "visual.")) for key in merged)


def test_every_linear_layer_was_merged_and_the_projector_replaced(exported):
    assert exported[1]["tensors"] == {"merged": 3 * 7 + 3 * 5, "replaced": 5, "copied": 39}


def test_a_base_in_several_files_is_merged_file_by_file(exported, trained, tmp_path):
    base, merged = tmp_path / "base", tmp_path / "merged"
    AutoModelForImageTextToText.from_pretrained(TINY_BASE).save_pretrained(base, max_shard_size="1MB")
    assert len(list(base.glob("*.safetensors"))) > 2
    merged.mkdir()
    counts = merge_into_files(base, RunFolder.of(trained).adapter(3), merged)
    shutil.copy(base / "config.json", merged)
    index = read_json(merged / "model.safetensors.index.json")
    assert index["metadata"]["total_size"] == counts["bytes"]
    assert index["weight_map"] == read_json(base / "model.safetensors.index.json")["weight_map"]
    whole = load_file(exported[0] / "merged" / "model.safetensors")
    for file in merged.glob("*.safetensors"):
        for key, value in load_file(file).items():
            assert torch.equal(value, whole.pop(key)), key
    assert not whole


def test_the_adapter_loads_in_plain_peft(exported, trained, whole, batch):
    model = PeftModel.from_pretrained(load_base(whole, choose_device()), exported[0] / "adapter")
    own = load_adapter(load_base(whole, choose_device()), RunFolder.of(trained).adapter(3))
    assert torch.equal(logits(model, batch), logits(own, batch))


def test_reports_are_greedy_and_the_prompt_lies_beside_the_weights(exported):
    settings = read_json(exported[0] / "merged" / "generation_config.json")
    assert settings["do_sample"] is False
    assert settings["max_new_tokens"] == 96
    assert (exported[0] / "merged" / "prompt.txt").read_text() == PROMPT


def test_nothing_exported_names_a_place_on_this_machine(exported, trained):
    for path in exported[0].rglob("*"):
        if path.suffix in (".json", ".md", ".txt", ".jinja"):
            text = path.read_text()
            for place in (str(project_root()), trained.output_root, str(Path.home()) + "/"):
                assert place not in text, path


def test_a_folder_that_is_not_empty_is_refused_and_left_alone(trained, tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(RadVisionError, match="is there and not empty: give --to a folder that does not exist yet"):
        export_run(trained, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_merge_that_lost_the_adapter_is_not_handed_over(trained, tmp_path, monkeypatch):
    def forgetful(base, adapter, to):
        shutil.copyfile(base / "model.safetensors", to / "model.safetensors")
        return {"merged": 0, "replaced": 0, "copied": 0, "bytes": 0}

    monkeypatch.setattr(export, "merge_into_files", forgetful)
    with pytest.raises(RadVisionError, match="the merged model does not give the adapter's logits"):
        export_run(trained, tmp_path / "given")
    assert not (tmp_path / "given").exists()


def test_a_disk_without_room_is_noticed_before_anything_is_written(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(export.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    with pytest.raises(RadVisionError, match=r"needs 0\.0 GiB of disk and 0\.0 GiB are free: make room"):
        export_run(trained, tmp_path / "given")
    assert not list(tmp_path.iterdir())


def test_an_adapter_is_never_merged_into_quantized_files(trained, tmp_path):
    shutil.copytree(TINY_BASE, tmp_path / "base")
    config = read_json(tmp_path / "base" / "config.json") | {"quantization_config": {"load_in_4bit": True}}
    (tmp_path / "base" / "config.json").write_text(json.dumps(config))
    with pytest.raises(RadVisionError, match="is stored quantized, and merging into quantized weights loses"):
        merge_into_files(tmp_path / "base", RunFolder.of(trained).adapter(3), tmp_path)


def test_an_adapter_of_another_base_is_refused(trained, tmp_path):
    adapter = tmp_path / "adapter"
    shutil.copytree(RunFolder.of(trained).adapter(3), adapter)
    tensors = load_file(adapter / "adapter_model.safetensors")
    name = next(name for name in tensors if "layers.0.self_attn.q_proj.lora_A" in name)
    save_file(tensors | {name: tensors[name][:, :-1].contiguous()}, adapter / "adapter_model.safetensors")
    with pytest.raises(RadVisionError, match=r"q_proj.weight is \(128, 128\) there and \(128, 127\) in the adapter"):
        merge_into_files(TINY_BASE, adapter, tmp_path)
    deeper = {key.replace("layers.2.", "layers.9."): value for key, value in tensors.items()}
    save_file(deeper, adapter / "adapter_model.safetensors")
    with pytest.raises(RadVisionError, match=r"does not fit the base .*layers\.9\..* is not there"):
        merge_into_files(TINY_BASE, adapter, tmp_path)


class Hub:
    """Stands in for huggingface_hub.HfApi."""

    calls: ClassVar[list] = []
    problem: ClassVar[Exception | None] = None

    def create_repo(self, repository, **options):
        if self.problem:
            raise self.problem
        self.calls.append(("create", repository, options))
        return f"https://hub.invalid/{repository}"

    def upload_folder(self, **options):
        self.calls.append(("upload", options["repo_id"], options))


def test_uploading_makes_a_private_repository_that_loads_from_its_root(exported, monkeypatch):
    monkeypatch.setattr("radvision_utils.hand_over.export.HfApi", Hub)
    monkeypatch.setattr(Hub, "calls", [])
    assert push_to_hub(exported[0], "me/model") == "https://hub.invalid/me/model"
    (_, _, made), (_, _, weights), (_, _, adapter) = Hub.calls
    assert made["private"] is True
    assert (weights["folder_path"], weights["path_in_repo"]) == (exported[0] / "merged", None)
    assert (adapter["folder_path"], adapter["path_in_repo"]) == (exported[0] / "adapter", "adapter")


def test_an_adapter_alone_needs_no_base_and_is_what_is_uploaded_unless_more_is_asked_for(
    trained, tmp_path, monkeypatch
):
    monkeypatch.setattr("radvision_utils.hand_over.export.HfApi", Hub)
    monkeypatch.setattr(Hub, "calls", [])
    monkeypatch.setattr(export, "base_folder", lambda profile: pytest.fail("the base was looked for"))
    words = ["export", "--run", trained.run, "--output-root", trained.output_root, "--to"]
    assert main([*words, str(tmp_path / "kept"), "--adapter-only"]) == 0
    assert not Hub.calls
    assert main([*words, str(tmp_path / "given"), "--push-to-hub", "me/adapter"]) == 0
    (_, _, made), (_, _, adapter) = Hub.calls
    assert made["private"] is True
    assert (adapter["folder_path"], adapter["path_in_repo"]) == (tmp_path / "given" / "adapter", None)
    for folder in ("kept", "given"):
        assert {path.name for path in (tmp_path / folder).iterdir()} == {"adapter", "README.md", "export.json"}
    card = (tmp_path / "given" / "adapter" / "README.md").read_text()
    assert ModelCard(card).data.to_dict()["library_name"] == "peft"
    assert "This is an adapter for PEFT, without its base." in card
    assert "PeftModel.from_pretrained" in card
    assert "merged" not in card


def test_nothing_is_uploaded_unless_asked_and_a_refusal_is_one_sentence(trained, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("radvision_utils.hand_over.export.HfApi", Hub)
    monkeypatch.setattr(Hub, "calls", [])
    monkeypatch.setattr(export, "check_merge", lambda *_: {"skipped": "not here"})
    words = ["export", "--run", trained.run, "--output-root", trained.output_root]
    assert main([*words, "--to", str(tmp_path / "a")]) == 0
    assert not Hub.calls
    monkeypatch.setattr(Hub, "problem", OSError("no token\nmore"))
    assert main([*words, "--to", str(tmp_path / "b"), "--push-to-hub", "me/model", "--merged"]) == 1
    error = capsys.readouterr().err
    assert "is written but could not be uploaded to 'me/model' (no token): log in with" in error
    assert len(error.splitlines()) == 1


def test_the_card_of_an_unevaluated_run_says_so(exported):
    card = (exported[0] / "README.md").read_text()
    assert "This adapter has not been evaluated" in card
    assert (exported[0] / "merged" / "README.md").read_text() == card


def test_the_card_tells_data_training_figures_and_what_it_is_not_for(exported, trained):
    figure = {"value": 0.5, "low": 0.4, "high": 0.6, "n": 9}
    row = {}
    for column in COLUMNS:
        row.setdefault(column.protocol, {})[column.metric] = figure
    metrics = {"split": "test", "n": 9, "rows": {"constant report": row, "after stage 3": row}}
    metrics["image_use"] = {"sentence": "image used: no (loss gap 0.00)"}
    records = {step: RunFolder.of(trained).record(step) for step in ("data", "stage1", "stage2", "stage3")}
    licensed = records["data"] | {"kind": "hub", "license": "CC BY-NC-ND 4.0", "citation": "Demner-Fushman"}
    card = model_card(trained, {**records, "data": licensed, "evaluation": metrics}, exported[1])
    assert ModelCard(card).data.license == "other"
    for text in (
        DISCLAIMER,
        PROMPT,
        "CC BY-NC-ND 4.0",
        "Demner-Fushman",
        "may forbid commercial use and derivatives",
        f"train {records['data']['counts']['splits']['train']}",
        "learning_rate 0.002",
        "| constant report | 0.500 (0.400 to 0.600) |",
        "**Image used: no (loss gap 0.00).**",
        "Not for the care of any person",
        f"torch {torch.__version__.split('+')[0]}",
    ):
        assert text in card, text


def test_the_documents_show_the_script_that_is_tested(script):
    assert script in (project_root() / "docs" / "hand-over.md").read_text(encoding="utf-8")
