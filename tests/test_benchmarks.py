"""The benchmark compares equals: the same tokens and losses for everyone, and it refuses to print otherwise."""

import importlib.util
import platform
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks import __main__ as bench
from benchmarks import card, results, shares, simulations
from benchmarks.breakdown import ATTENTION, DEQUANTIZED, ELEMENTWISE, KINDS, PRODUCTS, REST, Breakdown, kind_of
from benchmarks.contenders import (
    ONE_AT_A_TIME,
    OURS,
    PLAIN,
    PLANNED,
    TRAINER,
    TRL,
    ProcessorCollator,
    ours,
    plain_loop,
    trainer_as_it_comes,
    trl_rows,
    trl_sft,
)
from benchmarks.generation import check_same_reports, race_generation
from benchmarks.mini import BATCH, DEEP, ENDING_AT_THE_REPORT, MINI, make_profile, mini_config
from benchmarks.preparation import race_preparation
from benchmarks.race import STEPS_A_TURN, Account, Runner, race
from benchmarks.ratios import Ratio
from benchmarks.training import StageRace, check_same_work, step_memory
from radvision_utils import RadVisionError, load_profile
from radvision_utils.data.prepare import prepare_dataset
from radvision_utils.environment import Device
from radvision_utils.files import read_json
from radvision_utils.model.base import load_processor
from radvision_utils.model.folder import TINY_BASE
from radvision_utils.training.collator import Collator

TURNS = 3
STEPS = TURNS * STEPS_A_TURN


def with_tiny_base(folder, studies, **changes):
    """The benchmark's studies for the tiny base."""
    shutil.copytree(TINY_BASE, folder / "mini")
    (folder / "mini" / "chat_template.jinja").write_text(ENDING_AT_THE_REPORT)
    return make_profile(folder, studies, **{"model.visual_tokens": 16}, **changes)


@pytest.fixture(scope="module")
def profile(tmp_path_factory):
    return with_tiny_base(tmp_path_factory.mktemp("bench"), STEPS * BATCH)


@pytest.fixture(scope="module")
def studies(profile):
    return prepare_dataset(profile).split("train")


@pytest.fixture(scope="module")
def batch(profile, studies):
    """What our collator makes of four studies."""
    return Collator(load_processor(profile.model, 512), profile.model)(studies[:BATCH])


def assert_same_inputs(theirs, ours):
    for name in ("input_ids", "attention_mask", "labels", "mm_token_type_ids", "image_grid_thw"):
        assert torch.equal(theirs[name], ours[name]), name
    torch.testing.assert_close(theirs["pixel_values"], ours["pixel_values"], rtol=0, atol=0.02)


def test_the_epoch_has_exactly_the_studies_of_its_steps(studies):
    assert len(studies) == STEPS * BATCH


def test_peers_that_use_the_processor_train_on_our_tokens(profile, studies, batch):
    assert_same_inputs(ProcessorCollator(profile)(studies[:BATCH]), batch)


def test_trl_trains_on_our_tokens(profile, studies, batch):
    trl = pytest.importorskip("trl.trainer.sft_trainer")
    collate = trl.DataCollatorForVisionLanguageModeling(
        ProcessorCollator(profile).processor, max_length=None, completion_only_loss=True
    )
    rows = trl_rows(profile, studies)
    assert_same_inputs(collate([rows[number] for number in range(BATCH)]), batch)


@pytest.mark.parametrize("change", [{"tokens": 99}, {"samples": 7}, {"held_out": 2.1}])
def test_contenders_that_did_not_do_the_same_are_not_compared(change):
    account = Account(samples=8, tokens=100, losses=[3.0], held_out=2.0)
    check_same_work({OURS: account, PLAIN: account})
    with pytest.raises(RadVisionError, match=f"^{PLAIN} (trained on|reached)"):
        check_same_work({OURS: account, PLAIN: Account(**{**vars(account), **change})})


def test_reports_that_differ_between_a_batch_and_one_by_one_are_refused():
    check_same_reports(["a", "b"], ["a"])
    for theirs in (["b"], [""]):
        with pytest.raises(RadVisionError, match="do not write the same"):
            check_same_reports(theirs if theirs == [""] else ["a"], theirs)


def test_a_ratio_shows_median_and_spread():
    assert str(Ratio.of([2.0, 1.0, 4.0])) == "2.00 (1.00 to 4.00, 3 pairs)"


def small_model(folder, model=MINI):
    """The settings of a model of the benchmark, of which only the configuration is there."""
    mini_config(ProcessorCollator(load_profile()).processor.tokenizer, model).save_pretrained(folder)
    ranks = {f"stage{number}.lora_rank": 2 for number in (1, 2, 3)}
    return load_profile("tiny", {"model.base": str(folder), "model.visual_tokens": 324, **ranks})


@pytest.mark.parametrize(
    ("model", "shares_of", "apart"),
    [(MINI, shares.compute_shares, 0.1), (DEEP, shares.compute_shares, 0.1), (DEEP, shares.memory_shares, 0.11)],
)
def test_the_small_models_have_the_proportions_of_the_7b(tmp_path, model, shares_of, apart):
    ours, theirs = shares_of(small_model(tmp_path, model)), shares_of(shares.seven_b())
    for part, share in theirs.items():
        assert abs(ours[part] - share) < apart, part


def test_the_vision_encoder_has_the_7bs_share_of_a_step(tmp_path):
    mini, theirs = small_model(tmp_path), shares.compute_shares(shares.seven_b())
    of_mini, of_7b = shares.vision_share_of_operations(mini), shares.vision_share_of_operations(shares.seven_b())
    assert abs(of_mini - of_7b) < 0.05
    # The vision encoder trains in stage 1: forward, again, and backward, where the decoder's weights get no gradient.
    assert of_7b > theirs["vision encoder"]


def test_prepared_squares_are_those_of_the_plain_loop(tmp_path):
    assert race_preparation(tmp_path, "PNG", rounds=1, count=4).difference == 0
    assert 0 < race_preparation(tmp_path, "JPEG", rounds=1, count=4).difference < 0.5


def test_results_name_the_processor_and_no_host():
    text = results.machine("python -m benchmarks")
    assert "cores" in text
    assert platform.node() not in text


def test_the_table_of_a_stage_has_steps_features_memory_and_verdict():
    seconds = [{OURS: 2.0, PLAIN: 6.0, TRAINER: 4.0, TRL: 3.0}] * 2
    accounts = {name: Account(8, 100, [3.0], 2.0, peak_gib=1.0) for name in (OURS, PLAIN, TRAINER, TRL)}
    lines = results.training(StageRace(3, seconds, accounts, once=0.75)).splitlines()
    assert len(lines) == 5
    # 4 studies x 0.75 s for features over 3 epochs make a step of 2 s one of 3.
    assert "| plain loop | 3.00 (3.00 to 3.00, 2 pairs) | 2.00 | 0.67 | 2.00 | 2.5: met | 1.00, 1.00 |" in lines[2]
    assert lines[4].endswith("2: not met | 1.00, 1.00 |")


def test_the_table_of_seconds_divides_the_loops_by_ours_kind_by_kind(tmp_path):
    mini = small_model(tmp_path)
    kinds = dict.fromkeys(KINDS, 1.0)
    accounts = {PLANNED: Account(breakdown=kinds), PLAIN: Account(breakdown=kinds | {PRODUCTS: 3.0})}
    races = [StageRace(stage, [], accounts, once=0.0) for stage in (1, 2, 3)]
    lines = results.breakdown(races, mini).splitlines()
    assert len(lines) == 2 + 2 * 3
    assert lines[3].startswith(f"| 2 | {PLANNED} | 1.25 | 0.25 | 0.25 |")
    assert lines[4].startswith("| 2 | loop / ours | 1.40 | 3.00 | 1.00 |")


@pytest.mark.parametrize(
    ("operation", "kind"),
    [
        ("addmm", PRODUCTS),
        ("gemm_4bit", PRODUCTS),
        ("_scaled_dot_product_flash_attention_for_cpu_backward", ATTENTION),
        ("dequantize_4bit", DEQUANTIZED),
        ("silu_backward", ELEMENTWISE),
    ],
)
def test_an_operation_has_a_kind(operation, kind):
    assert kind_of(operation) == kind


def test_the_seconds_of_a_step_are_told_apart_forward_and_backward():
    x, weight = torch.randn(64, 512, requires_grad=True), torch.randn(512, 512)
    with Breakdown() as breakdown:
        torch.nn.functional.silu(x @ weight).sum().backward()
    seconds = breakdown.of(whole=10.0)
    assert list(seconds) == list(KINDS)
    assert sum(seconds.values()) == pytest.approx(10.0)
    assert seconds[PRODUCTS] > 0
    assert seconds[ELEMENTWISE] > 0
    assert seconds[ATTENTION] == seconds[DEQUANTIZED] == 0
    assert seconds[REST] > 9


@pytest.mark.slow
def test_every_contender_reaches_our_loss_in_every_stage(profile, studies):
    contenders = {OURS: ours, PLAIN: plain_loop, TRAINER: trainer_as_it_comes}
    if importlib.util.find_spec("trl"):
        contenders[TRL] = trl_sft
    for stage in (1, 2, 3):
        rounds, accounts = race([Runner(name, train, profile, stage) for name, train in contenders.items()], TURNS)
        check_same_work(accounts)
        assert accounts[TRAINER].losses == pytest.approx(accounts[OURS].losses, abs=1e-3)
        assert len(rounds) == TURNS - 2
        for account in accounts.values():
            assert account.samples == STEPS * BATCH
            assert account.peak_gib > 0
            assert account.breakdown[PRODUCTS] > 0
    assert 0 < shares.vision_share_of_seconds(profile, steps=2) < 1
    assert race_generation(profile, rounds=1).ratio.pairs == 1


@pytest.mark.slow
def test_the_memory_of_one_step_is_measured_for_every_contender(tmp_path):
    pytest.importorskip("trl")
    profile = with_tiny_base(tmp_path, BATCH, **{"stage1.warmup_ratio": 0.0})
    prepare_dataset(profile)
    accounts = step_memory(profile, 1)
    assert list(accounts) == [OURS, ONE_AT_A_TIME, PLANNED, PLAIN, TRAINER, TRL]
    assert all(account.peak_gib > 0 and account.samples == BATCH for account in accounts.values())
    assert accounts[ONE_AT_A_TIME].peak_gib < accounts[OURS].peak_gib < accounts[TRAINER].peak_gib
    assert results.memory({1: accounts}).count(" GiB |") == 1


FIGURES = {"studies/s": 4.0, "GiB": 9.0, "share of peak": 0.05, "idle": 0.6, "held-out": 2.0, "note": ""}


def test_the_page_of_a_card_has_every_measurement_and_compares_everyone_at_his_best():
    about = {"format": "bfloat16", "stage": 3}
    rows = [
        {**about, "contender": OURS, "micro-batch": "auto", **FIGURES},
        {**about, "contender": OURS, "micro-batch": 4, **FIGURES, "studies/s": 12.0},
        {**about, "contender": TRAINER, "micro-batch": 4, **FIGURES, "studies/s": 3.0},
        {**about, "contender": TRAINER, "micro-batch": 8, **FIGURES, "idle": None},
        {**about, "contender": TRAINER, "micro-batch": 16, "GiB": 14.0, "note": "OutOfMemoryError: CUDA | 2 GiB"},
        {**about, "contender": TRL, "note": "left out: trl is not installed"},
        {**about, "who writes": OURS, "at a time": 32, "tokens/s": 1500.0, "as ours": None},
        {**about, "who writes": "model.generate", "at a time": 32, "tokens/s": 300.0, "as ours": 0.97},
    ]
    record = {"device": "an H100, 79.1 GiB", "machine": "cores; torch 2.\n", "rows": rows}
    page = card.card_page(record)
    assert "| bfloat16 | 3 | RadVision | auto | 4 | 9 | 5% | 60% | 2 |  |" in page
    assert "| bfloat16 | 3 | transformers.Trainer | 8 | 4 | 9 | 5% |  | 2 |  |" in page
    assert "OutOfMemoryError: CUDA / 2 GiB |" in page
    assert "| bfloat16 | 3 | transformers.Trainer | 3.00 |" in page
    assert "| model.generate | 32 | 300 |  |  |  | 97% |  |" in page
    assert "- Unsloth: left out: wants transformers" in page
    assert page.count(" is not installed") == 1


def test_on_a_card_the_command_measures_the_card_alone(tmp_path, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(bench, "RESULTS", tmp_path / "RESULTS.md")
    monkeypatch.setattr(bench, "choose_device", lambda: Device("cuda", "an H100, 79.1 GiB", "bfloat16", ""))
    record = {"device": "an H100, 79.1 GiB", "machine": "", "rows": []}
    monkeypatch.setattr(card, "measure_card", lambda folder, minutes: asked.append(minutes) or record)
    assert bench.main(["--minutes", "3"]) == 0
    assert asked == [3.0]
    assert "# On a card: an H100, 79.1 GiB" in capsys.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} == {"CARD.json", "CARD.md"}


def test_ours_is_measured_as_compiled_code_too(monkeypatch):
    asked = []
    monkeypatch.setattr(card, "ours", lambda profile, stage, _: asked.append(profile.stage(stage).compile) or 2.0)
    assert card.CONTENDERS[card.COMPILED].train(load_profile(), 3, None) == 2.0
    assert asked == ["always"]


def test_who_lacks_a_library_or_time_is_left_out_of_a_card_with_the_reason(tmp_path, monkeypatch):
    monkeypatch.setattr(card.importlib.util, "find_spec", lambda name: name != "liger_kernel")
    left_out = card._in_a_process(tmp_path / "job.json", card.LIGER, {}, seconds=9)
    assert left_out == "left out: liger_kernel is not installed"
    assert card._in_a_process(tmp_path / "job.json", PLAIN, {}, seconds=-1) == "left out: the time was over"


@pytest.mark.parametrize("name", [OURS, PLAIN, TRAINER, TRL])
def test_a_contender_is_measured_at_a_micro_batch_of_its_own_or_says_what_failed(tmp_path, name):
    if name == TRL:
        pytest.importorskip("trl")
    changed = {"stage1.max_steps": card.STEPS, "stage1.epochs": 2.0, "stage1.warmup_ratio": 0.0}
    profile = with_tiny_base(tmp_path, 8, **changed)
    prepare_dataset(profile)
    settings = replace(profile.stage1, accumulation=1)
    row = card.training(card.CONTENDERS[name].train, replace(profile, stage1=settings), 1, 16)
    assert row["note"] == ""
    assert row["studies/s"] > 0
    assert row["held-out"] > 0
    failed = card.training(lambda *_: 1 / 0, profile, 1, 16)
    assert failed["note"] == "ZeroDivisionError: division by zero"


@pytest.mark.slow
def test_one_command_writes_table_and_json_of_every_contender_on_a_card(tmp_path):
    shutil.copytree(TINY_BASE, tmp_path / "card")
    tiny = {"model.visual_tokens": 16, "generation.max_new_tokens": 8}
    record = card.measure_card(tmp_path, formats=[("float32", "")], sizes=(8, 16), **tiny)
    page = card.write_card(record, tmp_path / "out")
    assert read_json(tmp_path / "out" / "CARD.json") == record
    assert (tmp_path / "out" / "CARD.md").read_text() == page
    trained = [row for row in record["rows"] if "who writes" not in row]
    assert {row["contender"] for row in trained} == set(card.CONTENDERS)
    ours = [(row["stage"], row["micro-batch"]) for row in trained if row["contender"] == OURS]
    assert ours[:4] == [(1, "auto"), (2, "auto"), (3, "auto"), (3, 8)]
    measured = [row for row in trained if not row["note"].startswith("left out")]
    assert not [row["note"] for row in measured if row["note"]]
    losses = {row["held-out"] for row in measured if row["stage"] == 3}
    assert max(losses) - min(losses) < 0.01
    written = [row for row in record["rows"] if "who writes" in row]
    assert [(row["who writes"], row["at a time"]) for row in written] == [
        (name, size) for name in (OURS, "model.generate") for size in (1, 16)
    ]
    assert all(row["as ours"] > 0.9 for row in written[2:])


def test_simulations_print_a_line_for_every_figure_and_case(monkeypatch):
    monkeypatch.setattr(simulations, "STUDIES", (60,))
    rows = simulations.coverage_rows(repeats=2)
    assert [row[1] for row in rows] == ["micro F1", "macro F1", "macro F1, none pooled"]
    rows = simulations.verdict_rows(repeats=2)
    assert len(rows) == 2 * len(simulations.CASES)
    assert all(sum(map(float, row[3:6])) == pytest.approx(1) for row in rows)


def test_a_simulated_report_is_as_right_as_its_rates_say():
    said, true = simulations.draw_labels(np.random.default_rng(1), 200_000)
    counts = simulations.hits(said.positive, true.positive).mean(0).ravel()
    assert counts == pytest.approx(simulations.true_sums(), abs=0.002)
