"""The check of a card: on a CPU its whole way with a small shape; on a card (`-m card`) the 7B, 3B and their memory."""

import json
import time
import weakref

import bitsandbytes as bnb
import pytest
import torch

from radvision_utils.bases.random import random_base, random_model_folder
from radvision_utils.config import load_profile
from radvision_utils.environment import choose_device
from radvision_utils.model.base import component_of, count_parameters, load_base, load_processor, quantization_config
from radvision_utils.planning import gpu_check as module
from radvision_utils.planning.gpu_check import TOLERANCE, Part, check_table, gpu_check, run_parts, small_shape

CHAIN = ["data", "stage 1", "stage 2", "stage 3", "evaluation", "reload", "reports"]
ONCE = ["merge, one layer of each tower", "Qwen2.5-VL-3B", "two processes"]


@pytest.fixture
def hurried(monkeypatch):
    """The check with two steps of two studies in each stage."""
    quick = {f"stage{n}.max_steps": 2 for n in (1, 2, 3)} | {f"stage{n}.micro_batch": 2 for n in (1, 2, 3)}
    monkeypatch.setattr(module, "_SETTINGS", module._SETTINGS | quick)


@pytest.fixture(scope="module")
def on_card(tmp_path_factory):
    """What the whole check found on this card, by part and format."""
    if not torch.cuda.is_available():
        pytest.skip("no NVIDIA card here")
    checks = gpu_check(tmp_path_factory.mktemp("card"), minutes=30)["checks"]
    return {(check["part"], check["dtype"]): check for check in checks}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return random_model_folder(tmp_path_factory.mktemp("random"), small_shape())


@pytest.fixture
def settings(folder):
    return load_profile("tiny", {"model.base": str(folder), "model.visual_tokens": 324}).model


def fails():
    raise RuntimeError("out of paper\nand ink")


def test_parts_that_need_a_failed_part_are_not_run_and_the_others_are():
    ran = []
    parts = [Part(name, lambda name=name: ran.append(name) or {}, needs) for name, needs in [("a", ""), ("c", "b")]]
    parts.insert(1, Part("b", fails, "a"))
    parts += [Part("d", lambda: ran.append("d") or {}, "c"), Part("e", lambda: ran.append("e") or {}, "a")]
    checks = {check["part"]: check for check in run_parts(parts, "float32", time.perf_counter() + 60)}
    assert ran == ["a", "e"]
    assert checks["b"]["problem"] == "RuntimeError: out of paper"
    assert "in fails" in checks["b"]["figures"]["traceback"]
    assert checks["c"]["not_run"] == checks["d"]["not_run"] == "not run: needs b"
    assert not checks["e"]["problem"]


def test_parts_after_the_time_is_over_are_left_out_and_named(tmp_path):
    record = gpu_check(tmp_path, minutes=0.0)
    assert {check["not_run"].split(":")[0] for check in record["checks"]} <= {"left out", "not run"}
    assert record["checks"][0]["not_run"] == "left out: the time was over"
    assert "| left out: the time was over |" in check_table(record)


def test_memory_beyond_the_tolerance_is_marked_on_a_card_only():
    figures = {"measured": 9.0, "planned": 8.0, "within": {"maps": {"measured": 8.2, "planned": 8.0}, "samples": {}}}
    check = {"part": "stage 1", "dtype": "float16", "seconds": 3.0, "problem": "", "not_run": "", "figures": figures}
    first, maps, samples = check_table({"checks": [check], "cards": 1}).splitlines()[2:]
    assert "| 9.00 | 8.00 | +12.5%, beyond 5% |" in first
    assert "| 8.20 | 8.00 | +2.5% |" in maps
    assert samples.startswith("| stage 1: samples | float16 |  |  |  |  |")
    assert "%" not in check_table({"checks": [check], "cards": 0})


@pytest.mark.slow
def test_the_whole_check_runs_and_leaves_figures_but_no_weights(hurried, tmp_path):
    record = gpu_check(tmp_path)
    assert record["ok"], [check["problem"] or check["part"] for check in record["checks"]]
    assert [check["part"] for check in record["checks"]] == CHAIN + ONCE
    figures = {check["part"]: check["figures"] for check in record["checks"]}
    assert figures["stage 1"]["moved"] == ["vision_encoder.adapter"]
    assert figures["stage 2"]["studies_per_second"] > 0
    assert figures["stage 3"]["resumed_from"] == "checkpoint-1"
    assert figures["reload"]["loss"] == pytest.approx(figures["reload"]["loss_before"], rel=0.01)
    assert figures["reports"]["tokens"] > 0
    assert set(figures["evaluation"]["within"]) == {"reports", "maps", "samples"}
    merge = figures["merge, one layer of each tower"]["check"]
    assert merge["adapter"] < 0.1 * merge["base"]
    assert figures["Qwen2.5-VL-3B"]["moved"] == ["vision_encoder.adapter"]
    assert record["checks"][-1]["not_run"] == "not run: no card"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["gpu_check.json", "gpu_check.md"]
    assert json.loads((tmp_path / "gpu_check.json").read_text()) == record
    assert (tmp_path / "gpu_check.md").read_text() == check_table(record)


@pytest.mark.slow
def test_a_notebook_that_fails_is_kept_and_what_needs_its_stage_is_not_run(hurried, tmp_path, monkeypatch):
    too_fast = module._SETTINGS | {"stage2.learning_rate": 1e30, "stage2.max_steps": 3}  # the last loss is no number
    monkeypatch.setattr(module, "_SETTINGS", too_fast)
    record = gpu_check(tmp_path)
    checks = {check["part"]: check for check in record["checks"]}
    assert not record["ok"]
    assert "notebook 03_stage2_projector stopped" in checks["stage 2"]["problem"]
    waiting = {name for name, check in checks.items() if check["not_run"] == "not run: needs stage 2"}
    assert waiting == {"stage 3", "evaluation", "reload", "reports", "two processes"}
    assert not any(checks[name]["problem"] for name in ("stage 1", "merge, one layer of each tower", "Qwen2.5-VL-3B"))
    kept = {path.name for path in (tmp_path / "notebooks-float32").iterdir()}
    assert "03_stage2_projector.partial.ipynb" in kept
    assert not (tmp_path / "scratch").exists()


@pytest.mark.card
@pytest.mark.parametrize("part", CHAIN + ONCE)
def test_on_a_card_every_part_goes_well_in_every_format(on_card, part):
    for (name, _), check in on_card.items():
        if name == part:
            assert not check["problem"]
            assert check["not_run"] in ("", "not run: one card")


@pytest.mark.card
def test_on_a_card_memory_is_what_was_planned(on_card):
    compared = 0
    for check in on_card.values():
        for figures in (check["figures"], *check["figures"].get("within", {}).values()):
            if figures.get("planned"):
                assert figures["measured"] == pytest.approx(figures["planned"], rel=TOLERANCE), check["part"]
                compared += 1
    assert compared >= 3


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
