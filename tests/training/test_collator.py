"""Model inputs: one prompt everywhere, loss on the report alone, images as the processor makes them."""

import time
from dataclasses import replace

import pytest
import torch
from PIL import Image
from qwen_vl_utils import process_vision_info

from radvision_utils import RadVisionError, Report, load_profile
from radvision_utils.config import PROMPT
from radvision_utils.model.base import load_processor
from radvision_utils.training.collator import IGNORED, Collator, ahead


@pytest.fixture(scope="module")
def collator():
    settings = load_profile("tiny").model
    return Collator(load_processor(settings, 512), settings)


@pytest.fixture(scope="module")
def batch(collator, dataset):
    return collator(dataset.split("train")[:4])


def test_labels_are_the_report_with_its_end_mark_and_nothing_else(collator, dataset, batch):
    for study, labels in zip(dataset.split("train")[:4], batch["labels"], strict=True):
        text = collator.tokenizer.decode(labels[labels != IGNORED])
        assert text == f"Findings: {study.report.findings} Impression: {study.report.impression}<|im_end|>"


def test_prompt_and_image_carry_no_labels(collator, batch):
    start = len(collator.prompt())
    assert (batch["labels"][:, :start] == IGNORED).all()
    assert (batch["labels"][:, start] != IGNORED).all()


def test_padding_stands_on_the_right_and_is_masked(batch):
    lengths = batch["attention_mask"].sum(1)
    for row, length in enumerate(lengths):
        assert batch["attention_mask"][row, :length].all()
        assert not batch["attention_mask"][row, length:].any()
        assert (batch["labels"][row, length:] == IGNORED).all()


def test_logits_are_kept_from_one_position_before_the_report_to_the_end(collator, batch):
    assert batch["logits_to_keep"] == batch["input_ids"].shape[1] - len(collator.prompt()) + 1


def test_training_and_generation_have_the_same_prompt(collator, dataset, batch):
    prompts = collator.prompts([study.image for study in dataset.split("train")[:4]])
    start = prompts["input_ids"].shape[1]
    for name in ("input_ids", "mm_token_type_ids"):
        assert torch.equal(prompts[name], batch[name][:, :start])
    assert torch.equal(prompts["pixel_values"], batch["pixel_values"])


def test_ids_and_pixels_equal_those_of_the_processor_called_the_usual_way(collator, dataset):
    processor, image = collator.processor, Image.open(dataset.split("train")[0].image).convert("RGB")
    turn = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": PROMPT}]}
    text = processor.apply_chat_template([turn], add_generation_prompt=True, tokenize=False)
    usual = processor(text=[text], images=[image], return_tensors="pt")
    ours = collator.prompts([dataset.split("train")[0].image])
    for name in ("input_ids", "attention_mask", "mm_token_type_ids", "image_grid_thw"):
        assert torch.equal(ours[name], usual[name].to(ours[name].dtype)), name
    torch.testing.assert_close(ours["pixel_values"], usual["pixel_values"], rtol=0, atol=1e-6)


def test_a_second_look_at_an_image_gives_the_same_pixels(collator, dataset):
    studies = dataset.split("train")[:2]
    assert torch.equal(collator(studies)["pixel_values"], collator(studies)["pixel_values"])


def test_a_report_that_is_too_long_loses_its_end_never_the_image(dataset):
    settings = replace(load_profile("tiny").model, max_report_tokens=8)
    collator = Collator(load_processor(settings, 512), settings)
    study = replace(dataset.split("train")[0], report=Report("The lungs are clear. " * 50, "Normal."))
    batch = collator([study])
    assert (batch["mm_token_type_ids"] == 1).sum() == settings.visual_tokens
    assert (batch["labels"] != IGNORED).sum() == 8
    assert collator.end not in batch["labels"]


def test_the_parts_of_an_example_add_up_to_its_tokens(collator, dataset):
    study = dataset.split("train")[0]
    parts = collator.describe(study)
    assert sum(part["tokens"] for part in parts) == collator([study])["input_ids"].shape[1]
    assert [part["part"] for part in parts if part["in the loss"]] == ["report"]


def test_an_image_of_another_size_than_prepared_is_refused(collator, dataset):
    with pytest.raises(RadVisionError, match=r"512 x 256 pixels: prepare the images at data.image_size"):
        collator.prompts([Image.new("L", (512, 256))])


def test_a_wrong_number_of_visual_tokens_is_told_with_the_right_one():
    settings = replace(load_profile("tiny").model, visual_tokens=324)
    with pytest.raises(RadVisionError, match=r"becomes 16 visual tokens .*--set model.visual_tokens=16"):
        load_processor(settings, 512)


def test_a_prompt_with_an_image_token_is_refused():
    settings = replace(load_profile("tiny").model, prompt="Look: <|image_pad|>")
    with pytest.raises(RadVisionError, match=r"model.prompt must not contain the image token"):
        Collator(load_processor(settings, 512), settings)


class Kept:
    """Features of a frozen vision encoder, all zero."""

    def of(self, studies):
        return torch.zeros(len(studies) * 16, 8)


@pytest.mark.parametrize("features", [None, Kept()])
@pytest.mark.parametrize("indication", [False, True])
def test_every_tensor_of_a_batch_can_be_pinned(dataset, features, indication):
    settings = replace(load_profile("tiny").model, indication=indication)
    collator = Collator(load_processor(settings, 512), settings, features)
    studies = [replace(study, indication="cough " * n) for n, study in enumerate(dataset.split("train")[:3])]
    for batch in (collator(studies), collator.prompts([s.image for s in studies], [s.indication for s in studies])):
        assert_owned(batch)


def assert_owned(batch):
    """Pinning copies a tensor into one of its strides, which must not share memory between elements."""
    for name, tensor in batch.items():
        if isinstance(tensor, torch.Tensor):
            assert torch.equal(torch.empty_strided(tensor.size(), tensor.stride()).copy_(tensor), tensor), name


def test_the_fields_own_reader_of_conversations_gives_the_collators_pixels(collator, dataset):
    shape = collator.processor.image_processor
    for study in dataset.split("train")[:3]:
        with Image.open(study.image) as image:
            images, _ = process_vision_info(collator.conversation(image), image_patch_size=shape.patch_size)
        theirs = shape(images=images, return_tensors="pt")["pixel_values"]
        ours = collator.prompts([study.image])["pixel_values"]
        gray_level = 1 / 255 / min(shape.image_std)
        assert theirs.shape == ours.shape
        assert (theirs - ours).abs().max() < 1.01 * gray_level  # two libraries round what they resize
        assert ((theirs - ours).abs() > 0.01 * gray_level).float().mean() < 0.02


def test_for_a_card_batches_are_made_ahead_in_their_order_and_a_fault_comes_where_it_was(monkeypatch):
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    card, made = torch.device("cuda", 0), []

    def numbers(last):
        for number in range(last):
            made.append(number)
            yield number
        raise RadVisionError("image 5 cannot be read.")

    coming = ahead(numbers(5), 2, card)
    assert next(coming) == 0
    assert next(coming) == 1
    while len(made) < 4:  # 2 and 3 are made without being asked for
        time.sleep(0.01)
    assert [next(coming), next(coming), next(coming)] == [2, 3, 4]
    with pytest.raises(RadVisionError, match=r"^image 5 cannot be read\.$"):
        next(coming)
    assert list(ahead(iter("abc"), 2, card)) == list("abc")
    assert list(ahead(iter(()), 2, card)) == []
