"""A base that speaks a source's English: its language has learned, its eyes are as they were, it is made once."""

from dataclasses import replace

import pytest

from radvision_utils.__main__ import main as command
from radvision_utils.bases import build
from radvision_utils.config import ModelSettings, load_profile
from radvision_utils.environment import choose_device
from radvision_utils.model.base import load_base
from radvision_utils.model.folder import TINY_BASE
from radvision_utils.runs import RunFolder


def weights(folder):
    settings = ModelSettings(base=str(folder), quantization="none")
    return {name: p.detach().clone() for name, p in load_base(settings, choose_device()).named_parameters()}


def test_the_language_model_learns_the_reports_and_the_rest_stays(small_profile, dataset, tmp_path, monkeypatch):
    profile = replace(small_profile, model=replace(small_profile.model, summary=True))
    folder = build.base_for_source(profile, tmp_path / "base", epochs=0.3)
    before, after = weights(TINY_BASE), weights(folder)
    moved = {name for name in before if not before[name].equal(after[name])}
    assert {name.split(".")[1] for name in moved} == {"language_model"}
    assert any("embed_tokens" in name for name in moved)
    assert RunFolder.of(profile).data.is_dir()
    monkeypatch.setattr(build, "_train", lambda *_, **__: pytest.fail("made again"))
    assert build.base_for_source(profile, folder, epochs=0.3) == folder


def test_a_base_for_a_source_needs_a_folder_of_its_own(capsys):
    assert command(["build-base", "--source", "phantom"]) == 1
    assert "add --to DIR" in capsys.readouterr().err


def test_the_profile_for_real_radiographs_has_all_means():
    profile = load_profile("tiny-real")
    assert (profile.stage1.train, profile.stage1.label_weight, profile.model.summary) == ("full", 1.0, True)
    assert profile.data.augment
    assert profile.data.abnormal_share
