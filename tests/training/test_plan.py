"""The plan: its memory against the measured memory of training steps, its counts against what is known, its advice.

Measured is the CPU allocator's own account of one step of a stage (torch.profiler, temporaries inside operators
included) on top of what is alive before it: weights, optimizer state, the batch.
"""

import gc
import json
import re
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import bitsandbytes
import numpy as np
import pytest
import torch
from PIL import Image
from torch.profiler import ProfilerActivity, profile
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from benchmarks.race import peak_gib
from radvision_utils import RadVisionError, load_profile
from radvision_utils.__main__ import main, parse_settings
from radvision_utils.data.reports import Report
from radvision_utils.environment import Device, choose_device
from radvision_utils.figures import settings_table
from radvision_utils.files import read_json
from radvision_utils.model.base import attach_adapter, count_parameters, load_base, load_processor
from radvision_utils.model.faster import speed_up_lora
from radvision_utils.model.folder import QWEN_7B
from radvision_utils.model.stage import checkpoint_layers, select_stage
from radvision_utils.planning.cost import Card, Lengths, find_card, longest, open_card, read_shape
from radvision_utils.planning.plan import copied_from, first_change, plan_run, plan_stage
from radvision_utils.planning.step import GIB, ON_CPU, Numbers, Step
from radvision_utils.planning.tables import beside_measured, cost_here, cost_line, plan_table
from radvision_utils.runs import RunFolder, Stage
from radvision_utils.training.collator import Collator
from radvision_utils.training.features import features_for_pixels
from radvision_utils.training.loss import report_token_losses

T4 = open_card("t4")
FOUR_AT_A_TIME = {
    f"stage{n}.{key}": value
    for n in (1, 2, 3)
    for key, value in {"micro_batch": 4, "checkpointed_layers": None}.items()
}
BFLOAT16 = Device("cpu", "", "bfloat16", "")
# The parts that matter in the 7B, small: a vocabulary of thousands, an MLP four times as wide, windows of three sizes.
MIDDLE = {
    "vision_config": {
        "depth": 4,
        "hidden_size": 160,
        "num_heads": 4,
        "intermediate_size": 428,
        "patch_size": 14,
        "window_size": 112,
        "fullatt_block_indexes": [1, 3],
        "out_hidden_size": 256,
    },
    "text_config": {
        "hidden_size": 256,
        "num_hidden_layers": 4,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "intermediate_size": 1024,
        "vocab_size": 8192,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6]},
    },
    "tie_word_embeddings": False,
    "image_token_id": 8000,
    "video_token_id": 8001,
    "vision_start_token_id": 8002,
    "vision_end_token_id": 8003,
}


def storages(tensors):
    """Bytes of the tensors, each storage once."""
    return sum({tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in tensors}.values())


def held_by(model, optimizer, batch):
    """Bytes of everything that is alive between two steps."""
    tensors = [*model.parameters(), *model.buffers(), *filter(torch.is_tensor, batch.values())]
    for parameter in model.parameters():
        states = [state for state in (getattr(parameter, "quant_state", None),) if state is not None]
        for state in [*states, *(state.state2 for state in states)]:
            tensors += [value for value in vars(state).values() if torch.is_tensor(value)]
    for state in optimizer.state.values():
        tensors += [value for value in state.values() if torch.is_tensor(value)]
    return storages(tensors)


def measured_peak(profile_, stage, batch, layers, device, cached=False):
    """Bytes before a step of a stage, after a first one that made the optimizer's state, and those it takes at most."""
    model = attach_adapter(load_base(profile_.model, device), profile_).train()
    select_stage(model, Stage(profile_, stage))
    speed_up_lora(model)
    checkpoint_layers(model, Stage(profile_, stage), layers)
    optimizer = bitsandbytes.optim.PagedAdamW8bit([p for p in model.parameters() if p.requires_grad], lr=1e-3)

    def step():
        with device.autocast():
            losses, counts = report_token_losses(model, batch)
        (losses.sum() / counts.sum()).backward()
        del losses
        optimizer.step()
        optimizer.zero_grad()

    with features_for_pixels(model) if cached else nullcontext():
        step()
        before = held_by(model, optimizer, batch)
        gc.collect()  # what earlier models left would be counted as freed by this step
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
            step()
    return before, peak_gib(recorded) * GIB


def lengths_of(profile_, batch):
    report = batch["logits_to_keep"] - 1
    image = profile_.model.visual_tokens
    return Lengths(image, batch["input_ids"].shape[1] - image - report, report)


def assert_planned(profile_, stage, batch, layers, cached=False, device=None, numbers=ON_CPU):
    device = device or choose_device()
    settings = replace(profile_.stage(stage), micro_batch=len(batch["input_ids"]), checkpointed_layers=layers)
    asked = replace(profile_, **{f"stage{stage}": settings})
    lengths = lengths_of(profile_, batch)
    planned = Step(read_shape(profile_.model), asked, stage, lengths, cached, numbers).memory()
    before, taken = measured_peak(profile_, stage, batch, layers, device, cached)
    assert planned.total * GIB == pytest.approx(before + taken, rel=0.10)
    # In a small model the weights hide much of the rest: each by itself.
    always = sum(planned.parts[part] for part in ("weights", "trainables", "optimizer")) * GIB
    inputs = storages(filter(torch.is_tensor, batch.values()))
    assert always == pytest.approx(before - inputs, rel=0.02)
    assert planned.total * GIB - always - inputs == pytest.approx(taken, rel=0.15)


def tiny_batch(profile_, count, features=None):
    draw = np.random.default_rng(0)
    words = ["the", "heart", "is", "normal", "lungs", "are", "clear", "no", "effusion", "."]
    studies = [
        SimpleNamespace(
            uid=str(i),
            image=Image.fromarray(draw.integers(0, 255, (512, 512), dtype=np.uint8)),
            report=Report(" ".join(draw.choice(words, 30 - 2 * i)), "Normal chest."),
            indication="",
        )
        for i in range(count)
    ]
    batch = Collator(load_processor(profile_.model, 512), profile_.model, features)(studies)
    return {key: value.clone() if torch.is_tensor(value) else value for key, value in batch.items()}


@pytest.fixture(scope="module")
def middle(tmp_path_factory):
    """A function from settings to a profile of a random model of middle size, with the 7B's dropout."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("middle")
    Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(**MIDDLE)).save_pretrained(folder)
    alone = {f"stage{n}.{key}": 1 for n in (1, 2, 3) for key in ("micro_batch", "accumulation")}

    def make(**settings):
        names = {"model.base": str(folder), "model.visual_tokens": 100, "model.quantization": "nf4"}
        return load_profile("lingshu-7b", {**names, **alone, **settings})

    return make


def middle_batch(count=2, text=40, report=60):
    ids = torch.randint(0, 7000, (count, 100 + text + report), generator=torch.Generator().manual_seed(0))
    ids[:, 10:110] = 8000
    mask, labels = torch.ones_like(ids), torch.full_like(ids, -100)
    labels[:, -report:] = ids[:, -report:]
    for row in range(count):
        mask[row, ids.shape[1] - 3 * row :] = 0
        labels[row, ids.shape[1] - 3 * row :] = -100
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "mm_token_type_ids": (ids == 8000).long(),
        "labels": labels,
        "logits_to_keep": report + 1,
        "pixel_values": torch.randn(count * 400, 3 * 2 * 14 * 14),
        "image_grid_thw": torch.tensor([[1, 20, 20]] * count),
    }


@pytest.mark.parametrize("layers", [None, 0])
@pytest.mark.parametrize("count", [8, 2])
@pytest.mark.parametrize("quantization", ["nf4", "none"])
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_planned_memory_is_that_of_the_tiny_model(stage, quantization, count, layers):
    tiny = load_profile("tiny", {"model.quantization": quantization})
    assert_planned(tiny, stage, tiny_batch(tiny, count), layers)


@pytest.mark.parametrize("layers", [None, 0])
@pytest.mark.parametrize("stage", [2, 3])
def test_planned_memory_is_that_of_training_on_cached_features(stage, layers):
    tiny = load_profile("tiny")
    features = SimpleNamespace(of=lambda studies: torch.randn(len(studies) * 16, 4 * 96))
    assert_planned(tiny, stage, tiny_batch(tiny, 8, features), layers, cached=True)


@pytest.mark.parametrize(("stage", "layers"), [(1, None), (1, 0), (2, None), (2, 0), (3, None), (3, 0), (3, 2)])
def test_planned_memory_is_that_of_a_model_with_the_7bs_proportions(middle, stage, layers):
    assert_planned(middle(), stage, middle_batch(), layers)


@pytest.mark.parametrize(("stage", "layers"), [(1, None), (2, 0), (3, None), (3, 0)])
def test_planned_memory_is_that_of_16_bit_weights_under_autocast(middle, stage, layers, monkeypatch):
    # As on a card. PEFT asks only whether CUDA's autocast is on, and would cast everything to float32 here. Without
    # dropout, whose masks are bytes on a card and float32 here.
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *_: True)
    plain = {"stage1.lora_dropout": 0.0, "stage3.lora_dropout": 0.0}
    try:
        assert_planned(middle(**plain), stage, middle_batch(), layers, device=BFLOAT16, numbers=Numbers(2, 2, 0.0))
    finally:
        torch.set_autocast_enabled("cpu", False)  # autocast restores what it was told: that it had been on


def test_counts_are_those_of_the_7b_and_of_the_tiny_model():
    lingshu = load_profile("lingshu-7b")
    shape = read_shape(lingshu.model)
    assert shape.parameters == 8_292_166_656
    trained = {stage: sum(sizes) for stage, sizes in shape.adapter_tensors(lingshu).items()}
    assert trained == {1: 11_151_360, 2: 44_574_464, 3: 40_370_176}
    tiny = load_profile("tiny")
    base = load_base(tiny.model, choose_device())
    assert read_shape(tiny.model).parameters == sum(count_parameters(base).values())


def test_weights_of_the_7b_take_the_known_gib():
    lingshu = load_profile("lingshu-7b", FOUR_AT_A_TIME | {"stage1.accumulation": 4})
    memory = Step(read_shape(lingshu.model), lingshu, 1, longest(lingshu)).memory()
    assert memory.parts["weights"] == pytest.approx(6.43, abs=0.01)
    assert memory.total == pytest.approx(sum(memory.parts.values()))


@pytest.mark.parametrize(
    ("stage", "layers", "cached", "tflop"),
    [(1, 28, False, 25.3), (2, 28, False, 21.8), (3, 28, False, 21.7), (3, 0, True, 13.4)],
)
def test_operations_of_a_sample_of_500_tokens_are_the_known_ones(stage, layers, cached, tflop):
    lingshu = load_profile("lingshu-7b", {f"stage{stage}.checkpointed_layers": layers})
    step = Step(read_shape(lingshu.model), lingshu, stage, Lengths(324, 58, 118), cached)
    assert step.tflop() == pytest.approx(tflop, rel=0.02)


def test_a_t4_dequantizes_for_about_a_third_of_a_second_in_every_micro_batch():
    # forward, backward, and again in the checkpointed layers
    step = plan_stage(load_profile("lingshu-7b"), 3, T4).step
    assert 3 * step.dequantizing_seconds(T4) == pytest.approx(0.3, abs=0.05)


def test_the_7b_fits_a_t4_as_its_profile_is_set():
    for plan in plan_run(load_profile("lingshu-7b"), T4):
        assert plan.fits
        assert plan.memory.total + 1 <= T4.usable_gib


@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize("card", ["t4", "l4", "a100", "h100", "t4 x2"])
def test_what_the_planner_chooses_fits_is_no_slower_and_makes_the_same_optimizer_step(stage, card):
    plan = plan_stage(load_profile("lingshu-7b"), stage, open_card(card))
    assert plan.memory.total + 1 <= plan.card.usable_gib
    assert plan.hours <= plan_stage(load_profile("lingshu-7b", FOUR_AT_A_TIME), stage, open_card(card)).hours
    assert plan.settings.micro_batch * plan.settings.accumulation == plan.settings.step_size == 16
    assert plan.settings.accumulation % plan.card.count == 0
    assert plan.profile.data.image_size == 512


def test_the_planner_leaves_alone_what_is_a_number_and_says_what_it_chose_and_why():
    lingshu = load_profile("lingshu-7b", {"stage3.micro_batch": 2, "stage3.checkpointed_layers": 28})
    chosen = plan_stage(lingshu, 3, T4).chosen
    assert chosen == {"accumulation": 8, "dequantized": False, "why": chosen["why"]}
    assert re.fullmatch(r"\d\.\d of 14\.6 GiB by plan on NVIDIA T4", chosen["why"])
    with pytest.raises(RadVisionError, match=r"stage3\.micro_batch and accumulation cannot share the 16 studies of"):
        plan_stage(load_profile("lingshu-7b", {"stage3.micro_batch": 3}), 3, T4)


def test_what_is_chosen_for_this_machine_stands_in_the_notebooks_table_with_its_reason():
    lingshu = load_profile("lingshu-7b")
    table = settings_table(lingshu, {"stage3.micro_batch": "", "stage3.epochs": "", "generation.batch_size": ""}).data
    assert re.search(r"auto: \d+ \(\d+\.\d of 14\.6 GiB by plan on NVIDIA T4, for which this CPU stands\)", table)
    assert "auto: 32 (on NVIDIA T4" in table
    assert ">2.0<" in table


def test_where_memory_is_plentiful_4_bit_weights_are_kept_in_16_bits_too_and_the_plan_says_from_how_much(capsys):
    lingshu = load_profile("lingshu-7b")
    for stage in (1, 2, 3):
        gib = copied_from(lingshu, stage, open_card("h100"))
        small, large = (
            plan_stage(lingshu, stage, replace(open_card("h100"), usable_gib=each)) for each in (gib - 1, gib)
        )
        assert (small.copied, large.copied) == (False, True)
        more = 2 * large.step.shape.language.linear_weights / GIB
        assert large.memory.parts["weights"] - small.memory.parts["weights"] == pytest.approx(more)
        assert large.hours <= small.hours
    assert not any(plan.copied for plan in plan_run(lingshu, T4))
    assert not any(plan.copied for plan in plan_run(load_profile("lingshu-7b", {"model.quantization": "none"}), T4))
    main(["plan", "--gpu", "h100"])
    assert f"dequantized once, from 70 GiB, 69 GiB, {gib} GiB on (stages)" in capsys.readouterr().out


def test_where_nothing_fits_the_planner_takes_what_needs_least():
    plan = plan_stage(load_profile("lingshu-7b"), 3, Card("a small card", 6.0))
    assert (plan.settings.micro_batch, plan.step.layers) == (1, 28)
    assert not plan.fits


def test_what_saves_memory_saves_it_in_the_plan():
    shape = read_shape(load_profile("lingshu-7b").model)

    def total(cached=False, report=320, **settings):
        changes = {f"stage3.{name}": value for name, value in settings.items()}
        lingshu = load_profile("lingshu-7b", FOUR_AT_A_TIME | {"stage3.accumulation": 4} | changes)
        return Step(shape, lingshu, 3, Lengths(324, 58, report), cached).memory().total

    assert total(checkpointed_layers=28) < total(checkpointed_layers=14) < total(checkpointed_layers=0)
    assert total(micro_batch=1) < total(micro_batch=2) < total(micro_batch=8)
    assert total(cached=True) < total(cached=False)
    assert total(report=71) < total(report=320)


@pytest.mark.parametrize(
    ("settings", "gib", "first"),
    [
        ({"stage3.cache_features": False}, 9.0, "stage3.cache_features=true"),
        ({"data.augment": True}, 9.0, "data.augment=false"),
        ({"model.quantization": "none"}, 12.0, "model.quantization=nf4"),
        ({"stage3.checkpointed_layers": 0}, 14.56, "stage3.checkpointed_layers=null"),
        ({"stage3.micro_batch": 16, "stage3.accumulation": 1}, 10.0, "stage3.micro_batch=8 and stage3.accumulation=2"),
        ({"stage3.micro_batch": 1, "stage3.accumulation": 16}, 7.02, "data.image_size="),
    ],
)
def test_advice_comes_in_order_and_helps(settings, gib, first):
    settings = FOUR_AT_A_TIME | settings
    lingshu, card = load_profile("lingshu-7b", settings), Card("a card", gib)
    assert not plan_stage(lingshu, 3, card).fits
    sentence = first_change(plan_stage(lingshu, 3, card))
    advice = re.search(r": set (.*), which needs", sentence).group(1)
    assert advice.startswith(first)
    changed = load_profile("lingshu-7b", {**settings, **parse_settings(advice.split(" and "))})
    assert plan_stage(changed, 3, card).fits


def test_where_nothing_fits_the_advice_is_a_larger_card():
    assert re.search(
        r"does not fit with any setting .* take a card with at least \d+ GiB\.$",
        first_change(plan_stage(load_profile("lingshu-7b"), 1, Card("a small card", 6.0))),
    )


def test_a_stage_that_fits_by_plan_but_ran_out_of_memory_is_told_what_frees_some():
    assert "set stage1.micro_batch=2 and stage1.accumulation=8" in first_change(
        plan_stage(load_profile("lingshu-7b", FOUR_AT_A_TIME), 1, T4)
    )


def test_a_card_that_torch_names_is_recognized_with_the_memory_that_it_has():
    assert find_card("Tesla T4, 14.7 GiB") == replace(T4, title="Tesla T4", usable_gib=14.7)
    assert find_card("NVIDIA A100-SXM4-80GB, 79.2 GiB").peak_tflops == open_card("a100").peak_tflops
    assert find_card("Radeon, 16.0 GiB") == Card("Radeon", 16.0)
    assert find_card("CPU, 2 cores") is None


@pytest.mark.parametrize(
    ("title", "name"),
    [
        ("NVIDIA GeForce RTX 4090, 23.6 GiB", "4090"),
        ("NVIDIA A10G, 22.0 GiB", "a10g"),
        ("NVIDIA L40S, 44.4 GiB", "l40s"),
        ("NVIDIA L4, 22.0 GiB", "l4"),
    ],
)
def test_a_device_is_the_card_of_its_name(title, name):
    assert find_card(title).peak_tflops == open_card(name).peak_tflops


def test_a_laptops_card_is_not_taken_for_the_card_of_its_number():
    assert find_card("NVIDIA GeForce RTX 4090 Laptop GPU, 15.7 GiB").peak_tflops == 0


@pytest.mark.parametrize(
    ("said", "name"),
    [
        ("rtx3090", "3090"),
        ("RTX 4090", "4090"),
        ("NVIDIA GeForce RTX 4090", "4090"),
        ("A10G", "a10g"),
        ("L40S", "l40s"),
        ("Tesla-T4", "t4"),
    ],
)
def test_a_card_is_understood_as_people_write_it(said, name):
    assert open_card(said) == open_card(name)


@pytest.mark.parametrize("said", ["T4 x2", "t4x2", "NVIDIA T4 X 2"])
def test_two_cards_train_in_half_the_time_each_with_the_memory_of_one(said):
    lingshu, card = load_profile("lingshu-7b"), open_card(said)
    for two, one in zip(plan_run(lingshu, card), plan_run(lingshu, T4), strict=True):
        assert two.hours == pytest.approx(one.hours / 2)
        assert two.memory == one.memory
        assert two.settings.accumulation % 2 == 0


def test_the_command_prints_every_part_and_says_that_it_is_arithmetic(capsys):
    assert main(["plan", "--gpu", "t4"]) == 0
    page = capsys.readouterr().out
    for word in ("weights", "optimizer", "activations", "context", "checkpointed_layers", "not measured", "on disk"):
        assert word in page
    assert max(map(len, page.split("\n\n")[1].splitlines())) < 100


def test_the_cost_of_a_run_is_said_in_a_line_with_its_share_of_kaggles_week_where_kaggle_has_the_card():
    lingshu = load_profile("lingshu-7b")
    assert cost_line(lingshu, T4) == "3.3 h, 13.4 of 14.6 GiB, 25 GiB of disk, 11% of Kaggle's 30 hours a week"
    assert "11% of Kaggle's" in cost_here(lingshu, "Tesla T4, 14.6 GiB")
    assert "Kaggle" not in cost_line(lingshu, open_card("h100"))
    assert cost_here(lingshu, "CPU, 2 cores") == ""


def test_a_card_that_is_too_small_is_told_so_with_the_remedy(capsys):
    assert main(["plan", "--gib", "6"]) == 0
    page = capsys.readouterr().out
    assert page.count("does not fit") >= 3
    assert "take a card with at least" in page


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--gib", "0"], "a card with 0 GiB does not exist"),
        (["--gib", "-3"], "a card with -3 GiB does not exist"),
        (["--gib", "nan"], "a card with nan GiB does not exist"),
        (["--gpu", "t5"], "card 't5' is not known: choose one of t4, p100"),
        (["--set", "stage1.micro_batch=0"], "must be at least 1"),
    ],
)
def test_nonsense_is_answered_with_one_sentence(arguments, sentence, capsys):
    assert main(["plan", *arguments]) == 1
    error = capsys.readouterr().err
    assert error.startswith("radvision: ")
    assert sentence in error
    assert len(error.splitlines()) == 1


def test_a_folder_without_a_configuration_is_refused(tmp_path):
    with pytest.raises(RadVisionError, match=r"config.json does not exist"):
        read_shape(load_profile("lingshu-7b", {"model.base": str(tmp_path)}).model)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(RadVisionError, match=r"is not the configuration of a Qwen2\.5-VL"):
        read_shape(load_profile("lingshu-7b", {"model.base": str(tmp_path)}).model)


def test_a_base_that_is_made_anew_in_its_folder_is_planned_as_it_is_now(tmp_path):
    config, model = tmp_path / "config.json", load_profile("lingshu-7b", {"model.base": str(tmp_path)}).model
    values = read_json(QWEN_7B)
    for depth in (28, 4):
        config.write_text(json.dumps(values | {"num_hidden_layers": depth}))
        assert read_shape(model).language.depth == depth


def test_planning_needs_no_torch():
    code = "import sys; from radvision_utils.__main__ import main; main(['plan']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


def test_the_table_for_notebooks_has_a_column_a_stage():
    plans = plan_run(load_profile("lingshu-7b"), T4)
    table = plan_table(plans[1:])
    assert list(table[0]) == ["", "stage 2", "stage 3"]
    assert {row[""] for row in table} >= {"weights, GiB", "total, GiB", "time likely"}


def test_a_trained_stage_records_its_plan_beside_what_was_measured(trained):
    for stage in (1, 2, 3):
        record = RunFolder.of(trained).record(f"stage{stage}")
        assert 0 < record["plan"]["tensors"] < record["peak_memory_gib"]
        assert "on a CPU is not the same thing" in beside_measured(record, card=False)
    card = beside_measured({"stage": 1, "plan": {"tensors": 9.0}, "peak_memory_gib": 10.0}, card=True)
    assert card == "stage 1: memory by plan 9.00 GiB of tensors, measured 10.00 (-10%)"
