"""Frozen vision, once: the same losses and weights as without, and computed anew when anything changed."""

import shutil
from collections import namedtuple
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from radvision_utils import RadVisionError, train_stage
from radvision_utils.environment import choose_device
from radvision_utils.model.base import WEIGHTS, attach_adapter, is_adapter, load_base, load_processor
from radvision_utils.model.stage import select_stage, weight_ledger
from radvision_utils.runs import RunFolder, Stage, is_current
from radvision_utils.training import features as module
from radvision_utils.training.collator import Collator
from radvision_utils.training.features import VisionLeaves, features_for_pixels, open_features, stage_features
from radvision_utils.training.loss import report_token_losses


@pytest.fixture(scope="module")
def model(small_profile):
    """Its adapter as if trained: all tensors away from where they start."""
    model = attach_adapter(load_base(small_profile.model, choose_device()), small_profile)
    generator = torch.Generator().manual_seed(3)
    for name, parameter in model.named_parameters():
        if is_adapter(name):
            parameter.data += 0.02 * torch.randn(parameter.shape, generator=generator)
    return model


@pytest.fixture
def collator(small_profile):
    return Collator(load_processor(small_profile.model, 512), small_profile.model)


@pytest.fixture
def open_all(model, collator, dataset, tmp_path):
    def open_them(key="a"):
        return open_features(model, collator, dataset.split("train"), tmp_path / "features", key, 5)

    return open_them


def gradients(model, batch):
    losses, _ = report_token_losses(model, batch)
    losses.sum().backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return losses, found


@pytest.mark.parametrize("stage", [2, 3])
def test_losses_and_gradients_are_those_of_the_images(model, collator, dataset, small_profile, open_all, stage):
    select_stage(model, Stage(small_profile, stage))
    studies = [dataset.split("train")[i] for i in (7, 0, 30)]
    plain, plain_gradients = gradients(model, collator(studies))
    collator.features = open_all()
    with features_for_pixels(model):
        losses, found = gradients(model, collator(studies))
    torch.testing.assert_close(losses, plain, rtol=1e-5, atol=1e-5)
    assert found.keys() == plain_gradients.keys()
    for name in found:
        torch.testing.assert_close(found[name], plain_gradients[name], rtol=1e-3, atol=1e-4, msg=name)
    torch.testing.assert_close(gradients(model, Collator(collator.processor, collator.settings)(studies))[0], plain)


def test_a_batch_of_features_has_the_grid_of_its_images_and_opens_none(collator, dataset, open_all, monkeypatch):
    studies = dataset.split("train")[:2]
    plain = collator(studies)
    collator.features = open_all()
    monkeypatch.setattr(Collator, "_resize", lambda *_: pytest.fail("opened an image"))
    batch = collator(studies)
    assert torch.equal(batch["image_grid_thw"], plain["image_grid_thw"])
    assert {name for name in batch if not torch.is_tensor(batch[name]) or batch[name].shape != plain[name].shape} == {
        "pixel_values",
        "logits_to_keep",
        "uids",
    }


def test_a_second_opening_reads_and_another_key_replaces(open_all, tmp_path, monkeypatch):
    first = open_all()
    with monkeypatch.context() as patch:
        patch.setattr(module, "_compute", lambda *_: pytest.fail("computed again"))
        again = open_all()
    assert torch.equal(again.values, first.values)
    assert (first.seconds > 0, again.seconds) == (True, 0.0)
    open_all("b")
    assert sorted(path.name for path in (tmp_path / "features").iterdir()) == ["b.float32.bin", "files.json"]


@pytest.mark.parametrize("cut", [True, False])
def test_damaged_features_are_told_and_computed_anew(open_all, tmp_path, cut, caplog):
    whole = open_all().values.clone()
    path = tmp_path / "features" / "a.float32.bin"
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)
        file.truncate(path.stat().st_size if cut else whole.nbytes)
    again = open_all()
    assert torch.equal(again.values, whole)
    assert again.seconds > 0
    assert "is damaged: the features are computed anew" in caplog.text


def test_an_interrupted_computation_is_begun_anew(open_all, tmp_path, monkeypatch):
    whole = open_all().values.clone()
    calls = iter(range(3))

    def stop(encode):
        def stopping(studies):
            if next(calls, None) is None:
                raise KeyboardInterrupt
            return encode(studies)

        return stopping

    with monkeypatch.context() as patch:
        original = module._encoder
        patch.setattr(module, "_encoder", lambda *arguments: stop(original(*arguments)))
        with pytest.raises(KeyboardInterrupt):
            open_all("b")
    assert [path.name for path in (tmp_path / "features").iterdir()] == ["b.partial"]
    assert torch.equal(open_all("b").values, whole)


def test_a_full_disk_is_named_with_the_way_out(open_all, monkeypatch):
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: namedtuple("Usage", "free")(1000))
    with pytest.raises(
        RadVisionError, match=r"need \d\.\d GiB in .*set stage2.cache_features and stage3.cache_features"
    ):
        open_all()


def test_the_vision_blocks_leave_a_card_only_and_come_back(model, monkeypatch):
    moves = []
    monkeypatch.setattr(model.get_base_model().model.visual.blocks, "to", lambda place: moves.append(str(place)))
    arguments = namedtuple("Arguments", "device")
    for kind, expected in (("cpu", []), ("cuda", ["cpu"])):
        moves.clear()
        monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
        with features_for_pixels(model):
            VisionLeaves().on_train_begin(arguments(torch.device(kind)), None, None, model=model)
            assert moves == expected
        assert moves == [*expected, str(next(model.parameters()).device)]


def test_a_trial_of_a_few_steps_and_stage_1_compute_what_they_need_as_they_go(model, collator, dataset, small_profile):
    ledger = weight_ledger(model)
    whole = replace(small_profile, stage1=replace(small_profile.stage1, max_steps=None))
    assert stage_features(model, Stage(small_profile, 2), dataset, collator, ledger) is None
    assert stage_features(model, Stage(whole, 1), dataset, collator, ledger) is None


def test_of_images_that_change_by_chance_nothing_is_kept(model, collator, dataset, small_profile):
    changing = replace(
        small_profile,
        data=replace(small_profile.data, augment=True),
        stage2=replace(small_profile.stage2, max_steps=None, epochs=1.0),
    )
    assert stage_features(model, Stage(changing, 2), dataset, collator, weight_ledger(model)) is None


def copy_of(profile, folder, cache):
    """Data and stage 1 of a run in another folder, with whole epochs of stages 2 and 3 to train."""
    settings = {"max_steps": None, "epochs": 1.0, "cache_features": cache}
    other = replace(
        profile,
        output_root=str(folder),
        stage2=replace(profile.stage2, **settings),
        stage3=replace(profile.stage3, **settings),
    )
    for part in ("data", "stage1"):
        shutil.copytree(RunFolder.of(profile).path / part, RunFolder.of(other).path / part)
    return other


def test_stages_2_and_3_end_with_the_same_weights_with_and_without_and_share_one_file(trained, tmp_path):
    cached, plain = (copy_of(trained, tmp_path / str(cache), cache) for cache in (True, False))
    for stage in (2, 3):
        ours, theirs = train_stage(cached, stage), train_stage(plain, stage)
        assert theirs.record["features"] is None
        assert ours.record["features"]["gib"] > 0
        assert (ours.record["features"]["seconds"] > 0) == (stage == 2)
        for line, other in zip(ours.log, theirs.log, strict=True):
            for name in {"loss", "validation_loss"} & line.keys():
                assert line[name] == pytest.approx(other[name], rel=1e-3)
        weights = [load_file(RunFolder.of(p).adapter(stage) / WEIGHTS) for p in (cached, plain)]
        for name in weights[0]:
            torch.testing.assert_close(weights[0][name], weights[1][name], rtol=0, atol=2e-3, msg=name)
    assert is_current(plain, "stage3")
    assert is_current(replace(plain, stage3=replace(plain.stage3, cache_features=True)), "stage3")
    assert not is_current(replace(plain, data=replace(plain.data, augment=True)), "stage3")
