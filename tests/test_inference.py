"""Reports: the same for one image and for many; bad images are named."""

import dataclasses
import shutil
from dataclasses import replace

import pytest
import torch
from PIL import Image

from radvision_utils import RadVisionError, Report, load_reporter
from radvision_utils import report as inference
from radvision_utils.config import AUTO
from radvision_utils.data.studies import open_prepared
from radvision_utils.environment import choose_device
from radvision_utils.evaluation.image_use import study_losses
from radvision_utils.model import greedy
from radvision_utils.model.base import load_adapter, load_base
from radvision_utils.model.faster import speed_up_lora
from radvision_utils.planning import judging
from radvision_utils.planning.cost import Card
from radvision_utils.report import reporter_of, write_in_stages
from radvision_utils.runs import RunFolder
from radvision_utils.small_data.decoding import Contrast
from radvision_utils.training.loss import report_token_losses


@pytest.fixture(scope="module")
def reporter(trained):
    return reporter_of(trained, 3)


@pytest.fixture(scope="module")
def images(dataset):
    return [study.image for study in dataset.split("train")[:16]]


def test_as_many_reports_as_fit_are_written_at_a_time_and_are_the_same(trained, reporter, images, monkeypatch, caplog):
    auto = replace(trained, generation=replace(trained.generation, batch_size=AUTO))
    caplog.set_level("INFO")
    for gib, size in ((1.8, 8), (40.0, 64)):
        monkeypatch.setattr(judging, "card_here", lambda _, gib=gib: Card("a card", gib))
        other = reporter_of(auto, 3)
        assert other.profile.generation.batch_size == size
        assert f"reports are written {size} at a time, as fit a card" in caplog.text
    assert other.report(images[:3]) == reporter.report(images[:3])


def test_one_image_gives_one_report_and_a_list_gives_a_list(reporter, images):
    one = reporter.report(images[0])
    assert isinstance(one, Report)
    assert reporter.report(images[:1]) == [one]


def test_a_report_does_not_depend_on_its_batch(reporter, images):
    assert len(images) == 16
    assert reporter.report(images) == [reporter.report(image) for image in images]


def test_path_bytes_and_picture_give_the_same_report(reporter, images):
    picture = Image.open(images[0])
    assert (
        reporter.report([images[0], str(images[0]), images[0].read_bytes(), picture])
        == [reporter.report(images[0])] * 4
    )


def test_contrast_follows_what_the_image_adds_and_leaves_implausible_words_alone():
    own, mean = torch.tensor([[0.5, 0.45, 0.05]]).log(), torch.tensor([[0.7, 0.1, 0.2]]).log()
    both = torch.cat([own, mean])
    assert Contrast(0.0)(None, both).argmax(-1).tolist() == [0, 0]
    chosen = Contrast(0.5)(None, both)
    assert chosen.argmax(-1).tolist() == [1, 1]  # the second half follows
    rare = torch.cat([torch.tensor([[0.96, 0.03, 0.01]]), torch.tensor([[0.9, 0.09, 0.01]])]).log()
    assert Contrast(1.0)(None, rare).argmax(-1).tolist() == [0, 0]


def test_a_contrasted_report_does_not_depend_on_its_batch(trained, images):
    contrasted = replace(trained, generation=replace(trained.generation, contrast=0.3))
    reporter = reporter_of(contrasted, 3)
    assert reporter.mean is not None
    assert reporter.report(images[:3]) == [reporter.report(image) for image in images[:3]]


def test_a_picture_of_any_size_and_mode_is_letterboxed(reporter):
    assert reporter.report(Image.linear_gradient("L").resize((900, 300)).convert("RGB")).findings


def test_an_image_that_shows_nothing_is_refused_by_name_but_a_prepared_one_is_taken(reporter, dataset, tmp_path):
    black = tmp_path / "black.png"
    Image.new("L", (300, 300)).save(black)
    with pytest.raises(RadVisionError, match=r"black\.png shows nothing"):
        reporter.report(black)
    with pytest.raises(RadVisionError, match="the image shows nothing"):
        reporter.report(Image.new("L", (300, 300), "white"))
    assert reporter.prepare(dataclasses.replace(dataset.split("test")[0], image=black)).getextrema() == (0, 0)


def test_a_report_ends_by_itself_or_is_marked_unfinished(reporter, images):
    for written in reporter.write(images):
        assert written.finished == (written.tokens < reporter.profile.generation.max_new_tokens)
        assert "<|im_end|>" not in written.text


def test_the_base_models_own_penalty_of_repetition_is_not_taken_over(reporter, images, monkeypatch):
    expected = reporter.report(images[:4])
    monkeypatch.setattr(reporter.model.generation_config, "repetition_penalty", 5.0)
    assert reporter.report(images[:4]) == expected


def test_where_memory_ends_places_are_halved_for_good_and_reports_stay_the_same(reporter, images, monkeypatch):
    expected, tried = reporter.report(images), []
    step = greedy._Table.step

    def small_memory(table):
        if table.steps == 0:
            tried.append(len(table.tokens))
        # With eight places memory ends when some reports have been given already.
        if tried[-1] > 8 or (tried[-1] == 8 and table.steps > 70):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return step(table)

    monkeypatch.setattr(greedy._Table, "step", small_memory)
    monkeypatch.setattr(reporter, "_batch_size", 32)
    assert reporter.report(images) == expected
    assert tried == [16, 8, 4]
    assert reporter.report(images[:4]) == expected[:4]


def test_memory_for_not_even_one_report_is_one_sentence(reporter, images, monkeypatch):
    def no_memory(table):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(greedy._Table, "step", no_memory)
    monkeypatch.setattr(reporter, "_batch_size", 2)
    with pytest.raises(RadVisionError, match="too small for one report at a time: end other programs"):
        reporter.report(images[:3])


def test_where_memory_ends_losses_of_smaller_batches_are_the_same(reporter, dataset, monkeypatch):
    studies, sizes, token_losses = dataset.split("test")[:7], [], reporter.token_losses
    expected = study_losses(reporter, studies)

    def small_memory(batch):
        sizes.append(len(batch))
        if sizes[-1] > 4:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return token_losses(batch)

    monkeypatch.setattr(reporter, "token_losses", small_memory)
    monkeypatch.setattr(reporter, "_batch_size", 32)
    torch.testing.assert_close(study_losses(reporter, studies), expected, rtol=1e-4, atol=1e-4)
    assert sizes == [7, 3, 3, 1]


def test_weights_unpacked_and_merged_for_a_cpu_give_the_losses_of_training(trained, reporter, dataset):
    model = load_adapter(load_base(trained.model, choose_device()), RunFolder.of(trained).adapter(3)).eval()
    batch = reporter.collator(dataset.split("train")[:4])
    with torch.no_grad():
        merged, trained_losses = report_token_losses(reporter.model, batch)[0], report_token_losses(model, batch)[0]
    torch.testing.assert_close(merged, trained_losses, rtol=1e-4, atol=1e-4)
    kinds = {type(module).__name__ for module in reporter.model.modules()}
    assert "Linear4bit" not in kinds


def test_a_batch_of_prompts_has_no_padding_on_either_side(reporter, images):
    assert reporter.collator.prompts(images)["attention_mask"].all()


def test_a_file_that_is_no_image_is_named(reporter, tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("no picture")
    with pytest.raises(RadVisionError, match=r"notes\.txt"):
        reporter.report(path)


def test_a_stage_that_was_not_trained_is_refused(trained, tmp_path):
    shutil.copytree(trained.output_root, tmp_path / "copy")
    shutil.rmtree(tmp_path / "copy" / "small" / "stage3")
    with pytest.raises(RadVisionError, match="stage3 of run 'small' has not been made"):
        load_reporter("small", 3, str(tmp_path / "copy"))
    with pytest.raises(RadVisionError, match="stage 7 does not exist: choose 1, 2 or 3, or 0 for the untuned base"):
        load_reporter("small", 7, str(tmp_path / "copy"))


def test_stages_are_compared_over_one_base_where_adapters_stay_apart_from_it(trained, monkeypatch):
    studies = open_prepared(trained).split("validation")[:2]
    separate = [reporter_of(trained, stage).report(studies) for stage in (0, 1, 2)]
    loads = []
    load = inference.load_base
    monkeypatch.setattr(inference, "load_base", lambda *given: loads.append(1) or load(*given))
    # As on a card: the adapter is not merged.
    monkeypatch.setattr(inference, "merge_adapter", lambda adapted: speed_up_lora(adapted) or adapted)
    together = write_in_stages(trained, (0, 1, 2), studies)
    assert len(loads) == 1
    assert [[written.report for written in reports] for reports in together] == separate
