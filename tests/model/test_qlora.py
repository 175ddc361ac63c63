"""QLoRA for real, on a CPU: NF4 weights, paged 8-bit AdamW, checkpointing; what was trained is what is loaded."""

import itertools
import shutil
import subprocess
import sys
from dataclasses import replace

import bitsandbytes as bnb
import pytest
import torch
from safetensors.torch import load_file

from radvision_utils import RadVisionError, train_stage
from radvision_utils.config import RunPaused
from radvision_utils.data.studies import open_prepared
from radvision_utils.environment import DTYPE_VARIABLE, Device, choose_device
from radvision_utils.model import base as loading
from radvision_utils.model.base import WEIGHTS, is_adapter, load_adapter, load_base, load_processor
from radvision_utils.model.folder import TINY_BASE
from radvision_utils.runs import RunFolder
from radvision_utils.training import train as trainer
from radvision_utils.training.collator import Collator
from radvision_utils.training.loss import MODEL_INPUTS

FRESH = """
import sys, torch
from safetensors.torch import save_file
from radvision_utils.data.studies import open_prepared
from radvision_utils.environment import choose_device
from radvision_utils.model.base import load_adapter
from radvision_utils.model.base import load_base, load_processor
from radvision_utils.runs import RunFolder
from radvision_utils.training.collator import Collator
from radvision_utils.training.loss import MODEL_INPUTS
root, run, to = sys.argv[1:]
folder = RunFolder(run, root)
profile = folder.profile()
batch = Collator(load_processor(profile.model, 512), profile.model)(open_prepared(profile).split("validation")[:2])
found = {}
for stage in (1, 2, 3):
    model = load_adapter(load_base(profile.model, choose_device()), folder.adapter(stage)).eval()
    with torch.inference_mode():
        found[str(stage)] = model(**{name: batch[name] for name in MODEL_INPUTS}, use_cache=False).logits
save_file(found, to)
"""


def logits(model, profile):
    collator = Collator(load_processor(profile.model, 512), profile.model)
    batch = collator(open_prepared(profile).split("validation")[:2])
    with torch.inference_mode():
        return model(**{name: batch[name] for name in MODEL_INPUTS}, use_cache=False).logits


@pytest.fixture(scope="module")
def watched(small_profile, dataset, tmp_path_factory):
    """A run of two steps a stage; of each the live model's logits, formats and optimizer state when it was saved."""
    few = {"max_steps": 2, "save_steps": 2, "micro_batch": 4, "checkpointed_layers": None}
    stages = {f"stage{n}": replace(small_profile.stage(n), **few) for n in (1, 2, 3)}
    profile = replace(small_profile, run="watched", output_root=str(tmp_path_factory.mktemp("watched")), **stages)
    shutil.copytree(RunFolder.of(small_profile).data, RunFolder.of(profile).data)
    seen = []

    def save(model, folder):
        model.eval()
        formats = {name: parameter.dtype for name, parameter in model.named_parameters()}
        linears = [m for m in model.modules() if isinstance(m, bnb.nn.Linear4bit)]
        layers = [m for m in model.modules() if getattr(m, "gradient_checkpointing", False)]
        state = torch.load(next(folder.parent.glob("checkpoints/*/optimizer.pt")), weights_only=True)
        seen.append((logits(model, profile), formats, len(linears), len(layers), state))
        trainer_save(model, folder)

    trainer_save = trainer.save_adapter
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "save_adapter", save)
        for stage in (1, 2, 3):
            train_stage(profile, stage)
    return profile, seen


def test_a_fresh_process_computes_the_very_logits_of_the_trained_models(watched, tmp_path):
    profile, seen = watched
    words = [profile.output_root, profile.run, tmp_path / "logits.safetensors"]
    subprocess.run([sys.executable, "-c", FRESH, *map(str, words)], check=True, capture_output=True)
    found = load_file(tmp_path / "logits.safetensors")
    assert [torch.equal(found[str(stage)], seen[stage - 1][0]) for stage in (1, 2, 3)] == [True] * 3


def test_each_stage_changes_the_logits(watched):
    profile, seen = watched
    untuned = logits(load_base(profile.model, choose_device()), profile)
    states = [untuned, *(stage[0] for stage in seen)]
    assert all((a - b).abs().max() > 0.01 for a, b in itertools.pairwise(states))


def test_it_is_trained_over_4_bit_weights_under_checkpointing(watched):
    for _, formats, linears, checkpointed, _ in watched[1]:
        assert linears == 3 * 7
        assert sum(kind == torch.uint8 for kind in formats.values()) == 3 * 7
        assert checkpointed > 0


def test_the_optimizer_keeps_8_bit_state_for_large_tensors_and_32_bit_state_for_small_ones(watched):
    moments = [state for *_, optimizer in watched[1] for state in optimizer["state"].values()]
    moments = [state | state.get("__bnb_optimizer_quant_state__", {}) for state in moments]
    large = [m["state1"] for m in moments if m["state1"].numel() > 4096]
    small = [m["state1"] for m in moments if m["state1"].numel() < 4096]
    assert {m.dtype for m in large} == {torch.uint8}
    assert {m.dtype for m in small} == {torch.float32}
    # The projector's matrices among them, 384 x 384 and 128 x 384, use the code's whole range.
    assert sum(m.unique().numel() > 16 for m in large) >= 2


def test_8_bit_state_survives_a_pause(watched, tmp_path):
    profile = watched[0]
    other = replace(profile, output_root=str(tmp_path))
    shutil.copytree(RunFolder.of(profile).path, RunFolder.of(other).path)
    shutil.rmtree(RunFolder.of(other).stage(2))
    with pytest.raises(RunPaused):
        train_stage(replace(other, stage2=replace(other.stage2, max_minutes=0.0)), 2)
    result = train_stage(other, 2)
    assert result.record["resumed_from"] == "checkpoint-1"
    assert result.record["hash"] == RunFolder.of(profile).record("stage2")["hash"]


def test_the_projector_is_in_the_saved_adapter_as_it_was_trained(watched):
    folder = RunFolder.of(watched[0])
    base = load_file(TINY_BASE / "model.safetensors")
    before, after = (load_file(folder.adapter(n) / WEIGHTS) for n in (1, 2))
    names = [name for name in after if ".merger." in name]
    assert len(names) == 5
    for name in names:
        untrained = base["visual.merger." + name.split(".merger.")[1]].float()
        assert torch.equal(before[name], untrained)
        assert not torch.equal(after[name], untrained)


def test_in_16_bit_the_base_stays_16_bit_and_what_trains_is_float32(watched, small_profile, tmp_path, monkeypatch):
    monkeypatch.setenv(DTYPE_VARIABLE, "bfloat16")
    profile = replace(watched[0], output_root=str(tmp_path))
    shutil.copytree(RunFolder.of(small_profile).data, RunFolder.of(profile).data)
    formats = {}

    def look(model, folder):
        formats.update({name: parameter.dtype for name, parameter in model.named_parameters()})
        save(model, folder)

    save = trainer.save_adapter
    monkeypatch.setattr(trainer, "save_adapter", look)
    assert train_stage(profile, 1).record["dtype"] == "bfloat16"
    assert {kind for name, kind in formats.items() if is_adapter(name)} == {torch.float32}
    assert {kind for name, kind in formats.items() if not is_adapter(name)} == {torch.bfloat16, torch.uint8}


def test_each_process_loads_onto_its_own_card(small_profile, monkeypatch):
    given = {}
    monkeypatch.setattr(loading, "from_pretrained", lambda *_, **options: given.update(options) or 1 / 0)
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(ZeroDivisionError):
        load_base(small_profile.model, Device("cuda", "", "float16", ""))
    assert given["device_map"] == {"": "cuda:1"}


def test_an_adapter_loaded_to_go_on_is_float32_over_a_16_bit_base(watched):
    half = Device("cpu", "", "bfloat16", "")
    model = load_adapter(load_base(watched[0].model, half), RunFolder.of(watched[0]).adapter(2))
    assert {p.dtype for name, p in model.named_parameters() if is_adapter(name)} == {torch.float32}


def test_an_unknown_number_format_is_refused(monkeypatch):
    monkeypatch.setenv(DTYPE_VARIABLE, "int8")
    with pytest.raises(RadVisionError, match="RADVISION_DTYPE is 'int8': give float16, bfloat16 or float32"):
        choose_device()
