"""float16 holds what it can: a block that would overflow is found, named and computed in float32."""

import math
import shutil
from dataclasses import replace

import pytest
import torch

from radvision_utils.environment import DTYPE_VARIABLE, Device, choose_device
from radvision_utils.files import read_json, write_json
from radvision_utils.model.base import attach_adapter, load_base, load_processor
from radvision_utils.model.fp16 import MARGIN, audit_fp16, guard_fp16, keep_in_float32
from radvision_utils.model.stage import select_stage
from radvision_utils.report import reporter_of
from radvision_utils.runs import RunFolder, Stage
from radvision_utils.training import train as trainer
from radvision_utils.training.collator import Collator
from radvision_utils.training.loss import MODEL_INPUTS

HALF = Device("cpu", "CPU", "float16", "")
LAST = "model.visual.blocks.2"


@pytest.fixture(scope="module")
def batch(small_profile, dataset):
    whole = Collator(load_processor(small_profile.model, 512), small_profile.model)(dataset.split("train")[:2])
    return {name: whole[name] for name in MODEL_INPUTS}


def planted(profile, device, factor=3e4):
    """The tiny model with a last vision block that writes far too large numbers, which the merger's norm takes back."""
    base = load_base(replace(profile.model, quantization="none"), device)
    base.model.visual.blocks[2].mlp.down_proj.weight.data *= factor
    return attach_adapter(base, profile)


def logits(model, batch, device):
    with torch.no_grad(), device.autocast():
        return model(**batch, use_cache=False).logits.float()


def test_each_block_of_both_towers_has_a_row_with_its_largest_activation(small_profile, batch):
    model = load_base(small_profile.model, choose_device())
    rows = audit_fp16(model, batch)
    towers = [f"model.visual.blocks.{n}" for n in range(3)] + [f"model.language_model.layers.{n}" for n in range(3)]
    assert [row["block"] for row in rows] == [*towers[:3], "model.visual.merger", *towers[3:]]
    assert all(0 < row["largest"] < 65504 / MARGIN and not row["near"] for row in rows)


def test_a_figure_is_the_largest_number_that_a_layer_takes_or_gives(small_profile, batch):
    model = load_base(small_profile.model, choose_device())
    model.model.visual.blocks[1].mlp.down_proj.register_forward_hook(lambda layer, inputs, output: output * 0 + 1e3)
    rows = audit_fp16(model, batch)
    assert rows[0]["largest"] < 500
    assert 1e3 <= rows[1]["largest"] < 2e3  # the residual adds to it


def test_a_planted_overflow_is_found_where_it_was_planted(small_profile, batch):
    cpu = choose_device()
    rows = audit_fp16(planted(small_profile, cpu), batch)
    near = [row["block"] for row in rows if row["near"]]
    assert near == [LAST, "model.visual.merger"]
    assert all(math.isfinite(row["largest"]) for row in rows)


def test_without_the_guard_it_overflows_and_with_it_the_logits_are_right(small_profile, batch):
    expected = logits(planted(small_profile, choose_device()), batch, choose_device())
    model = planted(small_profile, HALF)
    assert not torch.isfinite(logits(model, batch, HALF)).all()
    kept = guard_fp16(model, batch, HALF)
    assert LAST in kept
    assert all(".visual." in name for name in kept)
    torch.testing.assert_close(logits(model, batch, HALF), expected, rtol=0.05, atol=0.2)


def test_a_guarded_block_still_trains(small_profile, batch):
    model = planted(small_profile, HALF)
    guard_fp16(model, batch, HALF)
    chosen = select_stage(model, Stage(small_profile, 1))
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    with HALF.autocast():
        loss = model(**batch, use_cache=False).logits.float().pow(2).mean()
    loss.backward()
    assert all(torch.isfinite(model.get_parameter(name).grad).all() for name in chosen)


def test_a_4_bit_block_can_be_kept_in_float32_too(small_profile, batch):
    model = load_base(small_profile.model, Device("cpu", "CPU", "bfloat16", ""))
    before = model.model.language_model.layers[1].mlp.up_proj
    keep_in_float32(model, ["model.language_model.layers.1"])
    seen = {}
    before.register_forward_hook(lambda module, inputs, output: seen.update(dtype=output.dtype))
    assert torch.isfinite(logits(model, batch, Device("cpu", "CPU", "bfloat16", ""))).all()
    assert seen["dtype"] == torch.float32


def test_nothing_is_kept_where_nothing_overflows_or_the_device_does_not_need_it(small_profile, batch):
    assert guard_fp16(load_base(replace(small_profile.model, quantization="none"), HALF), batch, HALF) == []
    assert guard_fp16(planted(small_profile, choose_device()), batch, choose_device()) == []


def test_a_stage_asks_for_the_audit_with_its_own_model_and_number_format(small_profile, dataset, tmp_path, monkeypatch):
    asked = []

    def guard(model, batch, device):
        asked.append((device.dtype, set(batch)))
        raise ZeroDivisionError

    profile = replace(small_profile, output_root=str(tmp_path))
    shutil.copytree(RunFolder.of(small_profile).data, RunFolder.of(profile).data)
    monkeypatch.setenv(DTYPE_VARIABLE, "float16")
    monkeypatch.setattr(trainer, "guard_fp16", guard)
    with pytest.raises(ZeroDivisionError):
        trainer.train_stage(profile, 1)
    assert asked == [("float16", set(MODEL_INPUTS))]


def test_reports_keep_in_float32_what_training_kept(trained, tmp_path, monkeypatch):
    assert RunFolder.of(trained).record("stage3")["float32_blocks"] == []
    profile = replace(trained, output_root=str(tmp_path))
    shutil.copytree(RunFolder.of(trained).path, RunFolder.of(profile).path)
    path = RunFolder.of(profile).record_path("stage3")
    write_json(path, read_json(path) | {"float32_blocks": [LAST]})
    (path.parent / "files.json").unlink()  # it lists the record as it was written
    monkeypatch.setenv(DTYPE_VARIABLE, "float16")
    blocks = reporter_of(profile, 3).model.model.visual.blocks
    assert [block.mlp.up_proj.weight.dtype for block in blocks] == [torch.float16, torch.float16, torch.float32]
