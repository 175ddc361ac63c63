"""Stages: each moves its own component alone, checkpointing changes no gradient, resuming changes nothing."""

import itertools
import json
import math
import shutil
import warnings
from contextlib import suppress
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch.utils.checkpoint import checkpoint
from transformers import TrainerCallback

from radvision_utils import RadVisionError, load_profile, train_stage
from radvision_utils.config import AUTO, RunPaused
from radvision_utils.environment import choose_device
from radvision_utils.files import read_json_lines
from radvision_utils.model.base import WEIGHTS, attach_adapter, component_of, is_adapter, load_base, load_processor
from radvision_utils.model.faster import compiled_layers
from radvision_utils.model.stage import (
    assert_gradients,
    check_ledger,
    checkpoint_layers,
    select_stage,
    weight_ledger,
)
from radvision_utils.planning import plan
from radvision_utils.planning.cost import Card
from radvision_utils.runs import RunFolder, Stage
from radvision_utils.training import loss
from radvision_utils.training import train as trainer
from radvision_utils.training import trainer as steps
from radvision_utils.training.collator import Collator, ahead
from radvision_utils.training.loss import mean_report_loss, report_token_losses
from radvision_utils.training.trainer import Stopwatch

FULL = "{component}.adapter"


def backward(model, batch):
    losses, counts = report_token_losses(model, batch)
    (losses.sum() / counts.sum()).backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return gradients


@pytest.fixture
def batch(small_profile, dataset):
    collator = Collator(load_processor(small_profile.model, 512), small_profile.model)
    return collator(dataset.split("train")[:3])


@pytest.fixture
def model(small_profile):
    return attach_adapter(load_base(small_profile.model, choose_device()), small_profile).train()


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_stage_gives_gradients_to_its_component_alone(model, small_profile, batch, stage):
    chosen = select_stage(model, Stage(small_profile, stage))
    assert {component_of(name) for name in chosen} == {Stage(small_profile, stage).component}
    assert set(backward(model, batch)) == set(chosen)


@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize("layers", [None, 1])
def test_gradient_checkpointing_changes_no_gradient(model, small_profile, batch, stage, layers):
    select_stage(model, Stage(small_profile, stage))
    checkpoint_layers(model, Stage(small_profile, stage), 0)
    plain = backward(model, batch)
    checkpoint_layers(model, Stage(small_profile, stage), layers)
    for name, gradient in backward(model, batch).items():
        torch.testing.assert_close(gradient, plain[name], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("stage", "layers", "blocks", "decoder"),
    [
        (1, None, [True] * 3, [True] * 3),
        (1, 2, [True] * 3, [True, True, False]),
        (1, 0, [False] * 3, [False] * 3),
        (2, None, [False] * 3, [True] * 3),
        (3, 1, [False] * 3, [True, False, False]),
    ],
)
def test_the_first_decoder_layers_are_checkpointed_and_vision_only_where_it_trains(
    model, small_profile, stage, layers, blocks, decoder
):
    checkpoint_layers(model, Stage(small_profile, stage), layers)
    inner = model.get_base_model().model
    assert [block.gradient_checkpointing for block in inner.visual.blocks] == blocks
    assert [layer.gradient_checkpointing for layer in inner.language_model.layers] == decoder


def test_reentrant_checkpointing_would_leave_the_first_block_untrained_and_that_is_caught(model, small_profile, batch):
    select_stage(model, Stage(small_profile, 1))
    checkpoint_layers(model, Stage(small_profile, 1), None)
    # Nothing that enters it needs a gradient, so re-entrant checkpointing gives its LoRA none, and training goes on.
    first = model.get_base_model().model.visual.blocks[0]
    first._gradient_checkpointing_func = partial(checkpoint, use_reentrant=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says so too, in a line that is easily overlooked
        report_token_losses(model, batch)[0].sum().backward()
    with pytest.raises(
        RadVisionError, match=r"stage 1 trains the vision encoder only, but .*blocks\.0\..* no gradient"
    ):
        assert_gradients(model, Stage(small_profile, 1))


def test_a_tensor_that_gets_no_gradient_is_caught_before_the_first_step(model, small_profile, batch):
    chosen = select_stage(model, Stage(small_profile, 1))
    report_token_losses(model, batch)[0].sum().backward()
    assert_gradients(model, Stage(small_profile, 1))
    model.get_parameter(chosen[0]).grad = None
    with pytest.raises(
        RadVisionError, match=rf"stage 1 trains the vision encoder only, but .* {chosen[0]} has no grad"
    ):
        assert_gradients(model, Stage(small_profile, 1))


def test_nothing_before_the_language_model_is_recorded_in_stage_3(model, small_profile, batch):
    select_stage(model, Stage(small_profile, 3))
    features = model.get_base_model().model.visual(batch["pixel_values"], grid_thw=batch["image_grid_thw"])
    assert not features.pooler_output.requires_grad


def test_a_ledger_tells_what_moved_and_refuses_what_should_not_have(model, small_profile):
    before = weight_ledger(model)
    parameter = next(p for name, p in model.named_parameters() if is_adapter(name) and "merger" in name)
    parameter.data += 1
    assert check_ledger(before, weight_ledger(model), Stage(small_profile, 2)) == ["projector.adapter"]
    with pytest.raises(RadVisionError, match=r"should have changed vision_encoder.adapter only, but projector.adapter"):
        check_ledger(before, weight_ledger(model), Stage(small_profile, 1))


def test_each_stage_records_that_only_its_part_moved(trained):
    for stage in (1, 2, 3):
        record = RunFolder.of(trained).record(f"stage{stage}")
        assert record["moved"] == [f"{Stage(trained, stage).component}.adapter"]
        assert record["steps"] == 3
        assert all(math.isfinite(loss) for loss in record["validation_loss"])


def test_a_stage_starts_from_the_weights_of_the_stage_before(trained):
    records = [RunFolder.of(trained).record(f"stage{n}") for n in (1, 2, 3)]
    for earlier, later in itertools.pairwise(records):
        assert later["ledger"]["before"] == earlier["ledger"]["after"]
        assert later["made_from"][f"stage{earlier['stage']}"] == earlier["hash"]


def test_the_log_has_every_step_and_the_figure_is_there(trained):
    folder = RunFolder.of(trained).stage(1)
    steps = [line["step"] for line in read_json_lines(folder / "log.jsonl") if "loss" in line]
    assert steps == [1, 2, 3]
    assert (folder / "loss.png").stat().st_size > 5000
    assert not (folder / "checkpoints").exists()


def test_a_finished_stage_is_not_trained_again(trained, monkeypatch):
    monkeypatch.setattr(trainer, "load_base", lambda *_: pytest.fail("trained again"))
    assert train_stage(trained, 2).record["stage"] == 2


def test_a_stage_without_its_parent_is_refused_with_the_command(small_profile, dataset, tmp_path):
    lonely = replace(small_profile, run="lonely", output_root=str(tmp_path))
    with pytest.raises(RadVisionError, match=r"data of run 'lonely' has not been made .*: make it with `python -m"):
        train_stage(lonely, 1)
    changed = replace(small_profile, stage1=replace(small_profile.stage1, learning_rate=0.5))
    with pytest.raises(RadVisionError, match=r"stage1 of run 'small' (was made with stage1.learning_rate|has not)"):
        train_stage(changed, 2)


def test_an_unknown_stage_is_refused(small_profile):
    with pytest.raises(RadVisionError, match="stage 4 does not exist: choose 1, 2 or 3"):
        train_stage(small_profile, 4)


def copy_run(profile, folder, parts=("data",), **changes):
    """The same data in another run folder, so that stages can be trained differently."""
    other = replace(profile, output_root=str(folder), **changes)
    for part in parts:
        shutil.copytree(RunFolder.of(profile).path / part, RunFolder.of(other).path / part)
    return other


def test_a_loss_that_is_no_number_stops_with_step_and_studies(small_profile, dataset, tmp_path):
    wild = replace(small_profile.stage1, learning_rate=1e12, warmup_ratio=0.0, max_grad_norm=0.0, max_steps=8)
    profile = copy_run(small_profile, tmp_path, stage1=wild)
    with pytest.raises(
        RadVisionError, match=r"the (loss|gradient norm) is (nan|inf) at step \d+ on studies \d+, .*: tr"
    ):
        train_stage(profile, 1)
    assert RunFolder.of(profile).record("stage1") is None


def test_a_stage_that_ends_before_its_learning_rate_begins_says_so(small_profile, dataset, tmp_path):
    profile = copy_run(small_profile, tmp_path, stage1=replace(small_profile.stage1, max_steps=1))
    with pytest.raises(RadVisionError, match=r"stage 1 has changed nothing, .* set stage1\.warmup_ratio=0"):
        train_stage(profile, 1)
    settings = replace(profile.stage1, warmup_ratio=0.0)
    assert train_stage(replace(profile, stage1=settings), 1, force=True).record["steps"] == 1


def test_accumulation_gives_the_same_step_as_one_large_batch(trained, tmp_path):
    losses = []
    for name, micro, times in (("one", 8, 1), ("four", 2, 4)):
        settings = replace(trained.stage2, micro_batch=micro, accumulation=times, optimizer="adamw_torch")
        profile = copy_run(trained, tmp_path / name, ("data", "stage1"), stage2=settings)
        losses.append([line["loss"] for line in train_stage(profile, 2).log if "loss" in line])
    torch.testing.assert_close(torch.tensor(losses[0]), torch.tensor(losses[1]), rtol=1e-3, atol=1e-4)


def test_a_stage_whose_data_are_made_ahead_has_the_same_losses(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    for module in (steps, loss):  # a thread makes them, as where there is a card
        monkeypatch.setattr(module, "ahead", lambda items, count, _: ahead(items, count, torch.device("cuda", 0)))
    settings = replace(trained.stage1, micro_batch=2, accumulation=4, eval_steps=2)
    profile = copy_run(trained, tmp_path / "ahead", stage1=settings)
    found = train_stage(profile, 1)
    monkeypatch.undo()
    assert found.record["seconds_by_part"]["waiting for data"] >= 0
    again = train_stage(copy_run(trained, tmp_path / "plain", stage1=settings), 1)
    assert [line.get("loss") for line in found.log] == [line.get("loss") for line in again.log]
    assert found.record["hash"] == again.record["hash"]


@pytest.mark.parametrize("backend", ["aot_eager", "none that there is"])
def test_compiled_layers_give_the_same_losses_and_a_stage_goes_on_without_them(
    trained, tmp_path, monkeypatch, caplog, backend
):
    caplog.set_level("INFO", "radvision_utils")
    monkeypatch.setattr(trainer, "compiled_layers", lambda model: compiled_layers(model, backend))
    settings = replace(trained.stage2, compile="always")
    result = train_stage(copy_run(trained, tmp_path, ("data", "stage1"), stage2=settings), 2)
    before = RunFolder.of(trained)
    plain = [line["loss"] for line in read_json_lines(before.stage(2) / "log.jsonl") if "loss" in line]
    found = [line["loss"] for line in result.log if "loss" in line]
    torch.testing.assert_close(torch.tensor(found), torch.tensor(plain), rtol=1e-3, atol=1e-4)
    if backend == "aot_eager":
        assert "stage 2: the layers train as compiled code" in caplog.text
    else:
        assert "stage 2: the layers cannot be compiled" in caplog.text
        assert result.record["hash"] == before.record("stage2")["hash"]


def test_a_small_and_a_large_card_make_the_same_steps_and_one_goes_on_where_the_other_stopped(
    trained, tmp_path, monkeypatch, caplog
):
    caplog.set_level("INFO")
    auto = {"micro_batch": AUTO, "accumulation": AUTO, "checkpointed_layers": AUTO}

    def train(run, *cards):
        profile = copy_run(
            trained, tmp_path / run, ("data", "stage1", "stage2"), stage3=replace(trained.stage3, **auto)
        )
        for gib in cards:
            monkeypatch.setattr(plan, "card_here", lambda _, gib=gib: Card("a card", gib))
            brief = {"max_minutes": None if gib == cards[-1] else 0.0}
            with suppress(RunPaused):
                result = train_stage(replace(profile, stage3=replace(profile.stage3, **brief)), 3)
        assert result.record["settings"]["micro_batch"] == AUTO
        assert RunFolder.of(profile).profile().stage3.micro_batch == AUTO  # and another card may choose anew
        return result.record, [line["loss"] for line in result.log if "loss" in line]

    (small, losses), (large, same), (both, also) = train("small", 1.79), train("large", 4.0), train("both", 1.79, 4.0)
    assert small["chosen"]["why"] == "0.8 of 1.8 GiB by plan on a card"
    assert small["chosen"]["micro_batch"] < large["chosen"]["micro_batch"] == both["chosen"]["micro_batch"] == 8
    assert f"stage 3: micro_batch {small['chosen']['micro_batch']}, accumulation" in caplog.text
    assert both["resumed_from"] == "checkpoint-1"
    assert small["made_from"] == large["made_from"] == RunFolder.of(trained).record("stage3")["made_from"]
    assert losses == pytest.approx(same, rel=1e-3)
    assert also == pytest.approx(same, rel=1e-3)


def test_mean_loss_does_not_depend_on_the_batch_size(small_profile, dataset):
    model = load_base(small_profile.model, choose_device())
    collator = Collator(load_processor(small_profile.model, 512), small_profile.model)
    studies = dataset.split("train")[:6]
    means = [mean_report_loss(model, collator, studies, size, choose_device().autocast) for size in (1, 4, 6)]
    assert max(means) - min(means) < 1e-4


def test_a_profile_of_the_7b_is_complete():
    profile = load_profile("lingshu-7b")
    assert json.dumps(profile.to_dict())
    assert all(profile.stage(n).optimizer == "paged_adamw_8bit" for n in (1, 2, 3))
    assert WEIGHTS.endswith(".safetensors")


def test_the_seconds_of_the_parts_are_those_of_the_stage(trained):
    for stage in (1, 2, 3):
        record = RunFolder.of(trained).record(f"stage{stage}")
        parts = record["seconds_by_part"]
        assert {"load", "ledger", "features", "validation", "steps", "save"} <= set(parts)
        assert sum(parts.values()) == pytest.approx(record["seconds"], abs=0.1 * (len(parts) + 1))


def test_a_part_within_a_part_counts_for_itself_alone(monkeypatch):
    moments = iter([0.0, 1.0, 4.0, 6.0, 7.0, 9.0])  # of entering and leaving, and of the record
    monkeypatch.setattr("radvision_utils.training.trainer.time.perf_counter", lambda: next(moments))
    watch = Stopwatch()
    with watch.part("steps"), watch.part("validation"):
        pass
    assert watch.record() == {"other": 3.0, "steps": 4.0, "validation": 2.0}


def test_each_validation_shows_what_the_model_writes_by_now_and_changes_no_weight(
    small_profile, dataset, tmp_path, caplog
):
    caplog.set_level("INFO")
    watched = replace(small_profile.stage1, max_steps=4, eval_steps=2)
    result = train_stage(copy_run(small_profile, tmp_path / "watched", stage1=watched), 1)
    validated = [line for line in result.log if "validation_loss" in line]
    assert [line["step"] for line in validated] == [0, 2, 4]
    assert all(line["report"] for line in validated)
    assert sum("the first validation study reads" in message for message in caplog.messages) == 3
    plain = replace(small_profile.stage1, max_steps=4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "begin_report", lambda *_: "")
        unwatched = train_stage(copy_run(small_profile, tmp_path / "plain", stage1=plain), 1)
    assert result.record["hash"] == unwatched.record["hash"]


@pytest.mark.parametrize("stage", [2, 3])
def test_a_stage_that_reads_kept_features_writes_its_report_from_them(trained, stage):
    lines = [line for line in read_json_lines(RunFolder.of(trained).stage(stage) / "log.jsonl") if "report" in line]
    assert len(lines) == len(RunFolder.of(trained).record(f"stage{stage}")["validation_loss"])


def test_with_patience_a_stage_that_gets_no_better_ends_and_keeps_its_best_checkpoint(small_profile, dataset, tmp_path):
    worse = replace(
        small_profile.stage1,
        **{"max_steps": 8, "eval_steps": 1, "patience": 2},
        **{"learning_rate": 0.1, "warmup_ratio": 0.0, "schedule": "constant_with_warmup"},
    )
    result = train_stage(copy_run(small_profile, tmp_path, stage1=worse), 1)
    losses = {line["step"]: line["validation_loss"] for line in result.log if "validation_loss" in line}
    best = result.record["best"]
    asked = {step: loss for step, loss in losses.items() if step}
    assert best == {"step": min(asked, key=asked.get), "loss": min(asked.values())}
    assert result.record["steps"] < 8
    saved = train_stage(
        copy_run(small_profile, tmp_path / "to the best", stage1=replace(worse, patience=None, max_steps=best["step"])),
        1,
    )
    assert saved.record["hash"] == result.record["hash"]


def test_the_curves_go_where_report_to_says(small_profile, dataset, tmp_path, monkeypatch):
    told = []

    class Board(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **kwargs):
            told.append(logs)

    monkeypatch.setattr(
        "transformers.trainer.get_reporting_integration_callbacks", lambda names: [Board] if "board" in names else []
    )
    settings = replace(small_profile.stage1, max_steps=2, eval_steps=1, report_to="board")
    train_stage(copy_run(small_profile, tmp_path, stage1=settings), 1)
    assert {"loss", "eval_loss"} <= {name for logs in told for name in logs}
