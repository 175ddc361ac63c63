"""Small data: labels teach the encoder and leave no trace, images vary but keep sides, findings come often."""

import shutil
from dataclasses import replace

import pytest
import torch

from radvision_utils import RadVisionError, Report, load_profile, load_reporter, train_stage
from radvision_utils.data.labels import OBSERVATIONS
from radvision_utils.environment import choose_device
from radvision_utils.model.base import WEIGHTS, attach_adapter, load_adapter, load_base, load_file
from radvision_utils.model.stage import select_stage
from radvision_utils.planning.cost import read_shape
from radvision_utils.runs import RunFolder, Stage, is_current
from radvision_utils.small_data.examples import Augmentation
from radvision_utils.small_data.label_head import LabelHead, finding_labels
from radvision_utils.training import train as trainer
from radvision_utils.training.trainer import StudyOrder

SHOWN = {"augment": True, "abnormal_share": 0.75}


@pytest.fixture
def teach(small_profile, dataset, tmp_path):
    """Train stage 1 with labels on the session's data, in a run of its own."""

    def make(name="run", data=SHOWN, stop=None, **settings):
        changed = {"label_weight": 0.5, "max_steps": 4, "save_steps": 2, "micro_batch": 4, **settings}
        stages = {"stage1": replace(small_profile.stage1, **changed), "data": replace(small_profile.data, **data)}
        profile = replace(small_profile, output_root=str(tmp_path / name), **stages)
        if not RunFolder.of(profile).data.is_dir():
            shutil.copytree(RunFolder.of(small_profile).data, RunFolder.of(profile).data)
        return profile, train_stage(profile, 1)

    return make


@pytest.mark.parametrize("train", ["lora", "full"])
@pytest.mark.parametrize("weight", [0.5, 1.0])
def test_labels_move_the_vision_encoder_alone_and_their_head_is_thrown_away(teach, train, weight):
    profile, result = teach(train=train, label_weight=weight)
    assert result.record["moved"] == ["vision_encoder.adapter"]
    assert not any("label_head" in name for name in load_file(result.folder / "adapter" / WEIGHTS))
    assert all(0 <= found["auc"] <= 1 for found in result.record["label_auc"].values())
    assert load_reporter(profile.run, 1, profile.output_root).stage == 1


def test_the_head_and_the_changes_of_images_go_on_where_they_were_interrupted(teach, monkeypatch):
    _, whole = teach("whole")

    def stop(self, args, state, control, **kwargs):
        if state.global_step == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(trainer.StageLog, "on_step_end", stop)
        with pytest.raises(KeyboardInterrupt):
            teach("cut")
    _, cut = teach("cut")
    assert cut.record["resumed_from"] == "checkpoint-2"
    assert cut.record["hash"] == whole.record["hash"]
    assert cut.record["label_auc"] == whole.record["label_auc"]


def test_smaller_micro_batches_make_the_same_steps_with_labels(teach, old_torch):
    losses = [
        [
            line["loss"]
            for line in teach(f"by {size}", micro_batch=size, accumulation=8 // size)[1].log
            if "loss" in line
        ]
        for size in (8, 2)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=2e-2 if old_torch else 1e-4)


def test_the_projector_can_be_taught_from_kept_features(teach, small_profile):
    profile, _ = teach(data={"abnormal_share": 0.75})
    profile = replace(profile, stage2=replace(small_profile.stage2, label_weight=1.0, max_steps=None, epochs=1.0))
    record = train_stage(profile, 2).record
    assert record["moved"] == ["projector.adapter"]
    assert record["features"]["gib"] > 0
    assert record["label_auc"]


def test_how_data_is_shown_makes_no_prepared_data_stale(small_profile, dataset):
    assert is_current(replace(small_profile, data=replace(small_profile.data, **SHOWN)), "data")
    assert load_profile("tiny", {"stage2.label_weight": 0.5}).stage2.label_weight == 0.5
    for setting in ({"stage3.label_weight": 0.5}, {"stage2.train": "full"}):  # these stages make no visual tokens
        with pytest.raises(RadVisionError, match="does not exist"):
            load_profile("tiny", setting)


def test_a_positive_weighs_by_the_root_of_the_odds(dataset):
    labels = finding_labels(dataset.split("train"))
    head = LabelHead(8, {**labels, "all": torch.ones(14), "none": torch.zeros(14)})
    table = torch.stack(list(head.labels.values()))[:, head.kept]
    odds = (table == 0).sum(0) / (table == 1).sum(0)
    torch.testing.assert_close(head.positive_weight, odds.sqrt())
    with torch.no_grad():
        head.bias.fill_(50.0)
    head.logits = head(torch.randn(2, 16, 8))
    assert head.loss(["all"] * 2) < 1e-3 < head.loss(["none"] * 2)
    with pytest.raises(RadVisionError, match="no finding is in 10 training reports or more"):
        LabelHead(8, {"1": labels[dataset.split("train")[0].uid]})


def test_what_is_uncertain_teaches_as_what_is_present_does_since_it_is_judged_so(dataset):
    study = dataset.split("train")[0]
    for text in ("There is a pleural effusion.", "There may be a pleural effusion.", "No pleural effusion."):
        [found] = finding_labels([replace(study, reference=Report(text))]).values()
        assert found[OBSERVATIONS.index("Pleural Effusion")] == (not text.startswith("No "))


def test_a_full_vision_encoder_is_saved_and_loaded_whole(small_profile, teach):
    profile, _ = teach(train="full")
    fresh = attach_adapter(load_base(profile.model, choose_device()), profile)
    names = select_stage(fresh, Stage(profile, 1))
    loaded = load_adapter(load_base(profile.model, choose_device()), RunFolder.of(profile).adapter(1))
    saved, moved = dict(loaded.named_parameters()), [n for n in names if "patch_embed" in n or "blocks" in n]
    assert sorted(moved) == sorted(names)
    assert all(not torch.equal(saved[name], fresh.get_parameter(name)) for name in names if "weight" in name)
    sizes = read_shape(profile.model).adapter_tensors(profile)
    assert sum(sizes[1]) == sum(saved[name].numel() for name in names)


def test_an_image_is_changed_anew_each_epoch_and_never_mirrored():
    image = torch.zeros(1, 64, 64, dtype=torch.uint8)
    image[:, 28:36, 4:12] = 200  # a mark on one side
    changes, seen = Augmentation(3), []
    for epoch in range(40):
        changes.set_epoch(epoch)
        seen.append(changes(image, "7"))
        assert torch.equal(changes(image, "7"), seen[-1])
    assert all(now[..., :32].float().sum() > now[..., 32:].float().sum() for now in seen)
    assert len({tuple(now.flatten().tolist()) for now in seen}) == 40
    assert not torch.equal(changes(image, "8"), seen[-1])


@pytest.mark.parametrize(("share", "expected"), [(0.75, 15), (0.0, 0), (1.0, 20), (None, 4)])
def test_findings_come_as_often_as_asked_for(share, expected):
    shows = [number < 4 for number in range(20)]
    order = StudyOrder([5] * 20, 4, seed=1, abnormal=None if share is None else (shows, share))
    first = list(order)
    assert sum(shows[study] for study in first) == expected
    assert len(first) == 20
    order.set_epoch(1)
    assert list(order) != first
    nothing = StudyOrder([5] * 20, 4, seed=1, abnormal=([False] * 20, 0.5))
    assert sorted(nothing) == list(range(20))
