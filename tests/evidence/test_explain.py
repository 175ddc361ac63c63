"""Maps: scored in one pass as in many, looking where they should, and refusing what is not there."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from radvision_utils import RadVisionError, Report
from radvision_utils.evidence.explain import (
    Evidence,
    explain_passage,
    explain_report,
    occlusion_maps,
    occlusion_windows,
)
from radvision_utils.evidence.passage import Passage, lay_out, learn_neutral, parts_of, token_places
from radvision_utils.report import reporter_of

REPORT = Report("The lungs are clear. There is a left pleural effusion.", "Left-sided effusion.")


@pytest.fixture(scope="module")
def reporter(trained):
    return reporter_of(trained, 0)  # the base, which reads phantoms; three training steps teach nothing


@pytest.fixture(scope="module")
def studies(dataset):
    return list(dataset.split("train"))


@pytest.fixture(scope="module")
def neutral(reporter, studies):
    return learn_neutral(reporter, studies)


@pytest.fixture(scope="module")
def passage(reporter, neutral, studies):
    return Passage(reporter, neutral, studies[0].image, REPORT)


def log_probability(reporter, image, report, text):
    """Of `text`, which ends the findings of `report`, by a plain pass of the model as training makes it."""
    batch = reporter.collator([SimpleNamespace(uid="1", image=image, report=report, indication="")])
    with torch.no_grad():
        inputs = {k: v for k, v in batch.items() if k not in ("labels", "uids")}
        logits = reporter.model(**inputs, use_cache=False).logits[0, :-1].float().log_softmax(-1)
    targets = batch["labels"][0, 1 - batch["logits_to_keep"] :]
    part = next(part for part in parts_of(report) if part.text == text)
    [places] = token_places(reporter.collator, report, [part])
    return sum(float(logits[at, targets[at]]) for at in places)


def test_a_score_is_what_separate_passes_of_both_sentences_give(reporter, studies, passage):
    known = passage.scores(np.ones((1, 16), bool))[0]
    number = 1
    own, other = passage.layout.parts[number].text, passage.layout.contrasts[number]
    image = studies[0].image
    first = log_probability(reporter, image, REPORT, own)
    second = log_probability(reporter, image, Report(f"The lungs are clear. {other}", "Left."), other)
    assert known[number] == pytest.approx(first - second, abs=1e-3)


def test_the_neutral_sentence_denies_what_the_sentence_asserts(neutral):
    assert "effusion" in neutral.sentence("There is a left pleural effusion.")
    assert neutral.sentence(neutral.normals[0]) == neutral.normals[1]


def test_a_neutral_sentence_sees_nothing_of_the_sentence_that_it_stands_for(passage):
    layout = passage.layout
    branch = layout.line  # the first token of the first branch
    start = layout.places[branch]
    assert layout.sees[branch, :start].all()
    assert not layout.sees[branch, start:branch].any()


def test_what_is_taken_away_tells_nothing(reporter, neutral, studies, passage):
    other = Passage(reporter, neutral, studies[1].image, REPORT)
    nothing, all_of_it = np.zeros((1, 16), bool), np.ones((1, 16), bool)
    assert other.scores(nothing) == pytest.approx(passage.scores(nothing), abs=1e-4)
    assert np.abs(other.scores(all_of_it) - passage.scores(all_of_it)).max() > 0.01


def test_gradients_are_slopes_of_the_scores(passage):
    away = passage.tokens - passage.neutral.tokens
    step = 1e-2
    points = [passage.neutral.tokens + away / 2]
    for sign in (1, -1):
        moved = points[0].clone()
        moved[5] += sign * step * away[5]
        points.append(moved)
    with torch.no_grad():
        known = passage._scores(torch.stack(points)).numpy()
    slopes = (known[1] - known[2]) / (2 * step)
    assert passage.gradients()[:, 5] == pytest.approx(slopes, rel=0.05, abs=1e-3)


@pytest.mark.parametrize(("side", "windows"), [(4, 16), (18, 81), (20, 49)])
def test_every_token_lies_in_one_window(side, windows):
    covered = occlusion_windows(side)
    assert covered.shape == (windows, side * side)
    assert (covered.sum(0) == 1).all()


def test_the_maps_lie_as_the_image_does(reporter, neutral, studies):
    """Token 3 is the upper right corner: there a change of the pixels must show, in spite of the encoder's windows."""
    from radvision_utils.data.images import load_image

    image = load_image(studies[0].image)
    changed = image.copy()
    changed.paste(255, (400, 0, 512, 110))
    moved = (reporter.visual_tokens([changed])[0] - reporter.visual_tokens([image])[0]).norm(dim=-1)
    assert int(moved.argmax()) == 3


def test_every_sentence_has_two_maps_and_a_verdict(passage):
    parts = explain_passage(passage)
    assert [part.text for part in parts] == [
        "The lungs are clear.",
        "There is a left pleural effusion.",
        "Left-sided effusion.",
    ]
    assert {(part.section, part.index) for part in parts} == {("findings", 0), ("findings", 1), ("impression", 0)}
    for part in parts:
        assert part.gradient.shape == part.occlusion.shape == (4, 4)


def test_a_model_that_does_not_look_has_no_supported_map(reporter, neutral, studies):
    passage = Passage(reporter, neutral, studies[0].image, REPORT)
    passage.tokens = neutral.tokens.clone()
    assert not occlusion_maps(passage).any()
    assert not any(part.supported for part in explain_passage(passage))


def test_words_are_explained_without_contrast_and_unknown_ones_are_refused(reporter, neutral, studies):
    found = explain_report(reporter, studies[0].image, REPORT, words="left pleural", neutral=neutral)
    assert isinstance(found, Evidence)
    assert [(part.section, part.index, part.contrast) for part in found.parts] == [("findings", 1, "")]
    with pytest.raises(RadVisionError, match="does not say 'pacemaker'"):
        explain_report(reporter, studies[0].image, REPORT, words="pacemaker", neutral=neutral)


def test_what_training_cuts_off_is_left_out(reporter, studies):
    short = dataclasses.replace(reporter.collator.settings, max_report_tokens=10)
    collator = type(reporter.collator)(reporter.collator.processor, short)
    layout = lay_out(collator, collator.prompt(), REPORT, parts_of(REPORT), [""] * 3)
    assert [part.text for part in layout.parts] == ["The lungs are clear.", "There is a left pleural effusion."]


def test_a_report_without_a_sentence_rests_on_nothing(reporter, neutral, studies):
    assert explain_report(reporter, studies[0].image, Report("", ""), neutral=neutral).parts == ()


def test_the_model_writes_the_report_where_none_is_given(reporter, neutral, studies):
    found = explain_report(reporter, studies[0].image, neutral=neutral)
    assert found.report == reporter.report(studies[0].image)
