"""A card that is small, or stands for a small one: what torch may have, and what one is told where it is too little."""

import re
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from radvision_utils import RadVisionError, load_profile
from radvision_utils.environment import MEMORY_VARIABLE, choose_device
from radvision_utils.model import base as loading
from radvision_utils.planning.cost import find_card, open_card
from radvision_utils.planning.plan import plan_here, what_to_change
from radvision_utils.report import reporter_of
from radvision_utils.runs import Stage
from radvision_utils.training import train as trainer


@pytest.fixture
def card(monkeypatch):
    """A large card that there is not; gives the share of it that torch may have."""
    shares = []
    monkeypatch.delenv(MEMORY_VARIABLE, raising=False)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.current_device", lambda: 0)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda *_: (9, 0))
    monkeypatch.setattr("torch.cuda.get_device_name", lambda *_: "NVIDIA H100 80GB HBM3")
    properties = SimpleNamespace(total_memory=80 * 2**30)
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda *_: properties)
    monkeypatch.setattr("torch.cuda.set_per_process_memory_fraction", lambda share, _: shares.append(share))
    return shares


def test_a_large_card_stands_for_a_smaller_one(card, monkeypatch):
    monkeypatch.setenv(MEMORY_VARIABLE, "14.56")
    device = choose_device()
    assert device.title == "NVIDIA H100 80GB HBM3 under RADVISION_GIB, 14.56 GiB"
    assert card == [pytest.approx(14.56 / 80)]
    assert find_card(device.title) == replace(open_card("h100"), title=device.title.split(",")[0], usable_gib=14.56)
    monkeypatch.delenv(MEMORY_VARIABLE)
    assert choose_device().title == "NVIDIA H100 80GB HBM3, 80.0 GiB"
    assert card[-1] == 1.0


def test_a_cap_above_what_the_card_has_changes_nothing(card, monkeypatch):
    monkeypatch.setenv(MEMORY_VARIABLE, "96")
    assert choose_device().title == "NVIDIA H100 80GB HBM3, 80.0 GiB"
    assert card == [1.0]


@pytest.mark.parametrize("asked", ["much", "0", "-3", "nan", "inf", "14,56"])
def test_a_cap_that_means_nothing_is_refused_on_a_cpu_too(monkeypatch, asked):
    monkeypatch.setenv(MEMORY_VARIABLE, asked)
    with pytest.raises(RadVisionError, match=f"RADVISION_GIB is '{asked}': give GiB such as 14.56, or unset it"):
        choose_device()


def test_on_a_cpu_a_cap_has_no_effect(monkeypatch):
    before = choose_device()
    monkeypatch.setenv(MEMORY_VARIABLE, "0.001")
    assert choose_device() == before


def test_what_to_change_has_the_planners_figures_under_the_cap(card, monkeypatch):
    monkeypatch.setenv(MEMORY_VARIABLE, "6")
    told = what_to_change(load_profile("lingshu-7b"), 3)
    assert re.match(r"stage 3 needs \d+\.\d GiB by arithmetic, and NVIDIA H100 .* has 6\.0: ", told)
    assert "micro_batch" not in told


def test_settings_fit_the_cap_and_not_the_card_behind_it(card, monkeypatch):
    lingshu = load_profile("lingshu-7b")
    monkeypatch.setenv(MEMORY_VARIABLE, "14.56")
    small = plan_here(lingshu, 3, choose_device())
    monkeypatch.delenv(MEMORY_VARIABLE)
    large = plan_here(lingshu, 3, choose_device())
    assert small.memory.total <= 13.56 < large.memory.total
    assert small.step.layers > large.step.layers
    assert small.settings.step_size == large.settings.step_size == 16


@pytest.mark.parametrize(
    "load", [lambda p: reporter_of(p, 0), lambda p: trainer.stage_model(Stage(p, 1), choose_device())]
)
def test_where_memory_ends_while_loading_one_is_told_the_planners_remedy(card, monkeypatch, load):
    def no_memory(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setenv(MEMORY_VARIABLE, "8")
    monkeypatch.setattr(loading, "free_failed_calls", lambda: None)  # asks the card that there is not
    monkeypatch.setattr(loading.Qwen2_5_VLForConditionalGeneration, "from_pretrained", no_memory)
    told = r"memory ended while the model was loaded \(CUDA out of memory.*\): stage 1 needs .* has 8\.0: .*\."
    with pytest.raises(RadVisionError, match=told):
        load(load_profile("tiny"))
