"""Whether the image is used: found where it is, denied where it is not, and not claimed on thin evidence."""

import numpy as np
import pytest
import torch

from radvision_utils import Report
from radvision_utils.data.labels import label
from radvision_utils.evaluation import image_use
from radvision_utils.evaluation.baselines import image_vectors, neighbor_reports
from radvision_utils.evaluation.bootstrap import Bootstrap, Estimate
from radvision_utils.evaluation.label_scores import LabelMatrix
from radvision_utils.evaluation.table import Scorer
from radvision_utils.report import reporter_of

EFFUSION, HEART, NORMAL = "Left pleural effusion.", "Cardiomegaly.", "The lungs are clear. Normal chest."


def matrix(*texts):
    return LabelMatrix.of([label(text) for text in texts], [False] * len(texts))


def estimate(value, low, high):
    return Estimate(value, 100, np.linspace(low, high, 1001))


@pytest.mark.parametrize("studies", [2, 3, 50])
def test_exchanging_gives_every_study_another_ones_image_once(studies):
    other = image_use.exchange(studies, seed=4)
    assert sorted(other) == list(range(studies))
    assert (other != np.arange(studies)).all()


def test_a_sample_is_in_order_without_repeats_and_no_larger_than_said():
    assert image_use.sample(5, seed=1).tolist() == [0, 1, 2, 3, 4]
    chosen = image_use.sample(1000, seed=1)
    assert len(set(chosen)) == len(chosen) == image_use.SAMPLE
    assert (np.diff(chosen) > 0).all()


def test_reports_that_follow_the_image_lose_by_exchange_but_not_within_equal_labels():
    texts = [EFFUSION, HEART, NORMAL] * 10
    drops = image_use.exchange_drops(matrix(*texts), matrix(*texts), Bootstrap(30, seed=1), seed=1)
    assert drops["any study"].interval[0] > 0
    assert drops["other labels"].value == pytest.approx(1)
    assert drops["same labels"].value == pytest.approx(0)
    assert drops["same labels"].n == 30


def test_reports_that_name_the_side_say_more_than_their_labels_and_those_that_do_not_say_no_more():
    references = [Report(f"There is a small {side} pleural effusion.", "") for side in ("left", "right")] * 10
    scorer = Scorer(references, seed=1)
    sided = image_use.beyond_labels(scorer.score(references), scorer)
    assert sided.interval[0] > 0
    assert image_use.told_beyond(sided).startswith("it says more of the image than its labels (")
    alike = image_use.beyond_labels(scorer.score([Report(EFFUSION, "")] * 20), scorer)
    assert alike.value == 0
    assert image_use.told_beyond(alike).startswith("it says no more of the image than its labels (")


def test_one_report_for_all_loses_nothing_by_exchange():
    texts = [EFFUSION, HEART, NORMAL] * 10
    drops = image_use.exchange_drops(matrix(*[EFFUSION] * 30), matrix(*texts), Bootstrap(30, seed=1), seed=1)
    assert drops["any study"].interval == (0, 0)


@pytest.mark.parametrize(
    ("gap", "drop", "word"),
    [
        (estimate(0.3, 0.2, 0.4), estimate(0.5, 0.4, 0.6), "yes"),
        (estimate(0, 0, 0), estimate(0, 0, 0), "no"),
        (estimate(0.001, -0.002, 0.004), estimate(0.0, -0.01, 0.01), "no"),
        (estimate(0.001, -0.010, 0.0105), estimate(0.0, -0.052, 0.052), "no"),  # below what matters at 5 % error
        (estimate(0.001, -0.010, 0.012), estimate(0.0, -0.01, 0.01), "not shown"),
        (estimate(0.02, -0.05, 0.09), estimate(0.0, -0.2, 0.2), "not shown"),  # too few studies to tell
        (estimate(0.007, 0.005, 0.009), estimate(0, 0, 0), "not shown"),  # a report for all, yet it would know better
        (estimate(0.3, 0.2, 0.4), estimate(np.nan, np.nan, np.nan), "not shown"),  # nothing abnormal in the split
    ],
)
def test_the_verdict_follows_the_intervals(gap, drop, word):
    found, sentence = image_use.verdict(gap, drop)
    assert found == word
    assert sentence.startswith(f"image used: {word} (")
    assert ("would show four times in five" in sentence) == (word != "yes")


def test_what_a_sample_would_show_is_found_in_four_cases_of_five():
    rng = np.random.default_rng(1)
    bootstrap = Bootstrap(200, seed=1)
    lost = [bootstrap.mean(rng.normal(size=200)) for _ in range(200)]
    shift = np.mean([each.detectable for each in lost])
    assert np.mean([each.interval[0] + shift > 0 for each in lost]) == pytest.approx(0.8, abs=0.08)


@pytest.fixture(scope="module")
def reporter(trained):
    return reporter_of(trained, 3)


@pytest.fixture(scope="module")
def studies(dataset):
    return list(dataset.split("train"))[:8]


def test_a_model_whose_image_is_replaced_by_a_constant_gets_no(trained, studies):
    blind = reporter_of(trained, 3)
    blind.collator._resize = lambda image: torch.full((1, 224, 224), 90, dtype=torch.uint8)
    reports = blind.report([study.image for study in studies])
    gap = image_use.exchanged_gap(blind, studies, image_use.study_losses(blind, studies), seed=1)
    labels = [label(f"{report.findings} {report.impression}") for report in reports]
    said = LabelMatrix.of(labels, [False] * len(labels))
    true = matrix(*[f"{s.reference.findings} {s.reference.impression}" for s in studies])
    drops = image_use.exchange_drops(said, true, Bootstrap(len(studies), seed=1), seed=1)
    assert image_use.verdict(gap, drops["any study"])[0] == "no"


def test_losses_are_those_that_training_measures(reporter, studies):
    from radvision_utils.training.loss import mean_report_loss

    losses = image_use.study_losses(reporter, studies)
    expected = mean_report_loss(reporter.model, reporter.collator, studies, 8, reporter.device.autocast)
    assert losses[:, 0].sum() / losses[:, 1].sum() == pytest.approx(expected, rel=1e-5)


def test_another_image_changes_the_loss(reporter, studies):
    own = image_use.study_losses(reporter, studies)
    other = image_use.study_losses(reporter, studies, [study.image for study in studies[::-1]])
    assert (own[:, 1] == other[:, 1]).all()
    assert not np.allclose(own[:, 0], other[:, 0])


def test_blank_and_mean_images_are_written_and_reported_on(reporter, studies, tmp_path):
    images = image_use.empty_images(studies, tmp_path, seed=1)
    own = image_use.study_losses(reporter, studies)
    reports = reporter.report([study.image for study in studies])
    found = image_use.without_image(reporter, studies, reports, own, images, seed=1)
    assert set(found) == {"blank image", "mean image"}
    assert all(path.is_file() for path in images.values())
    assert all(0 <= facts["same_report_share"] <= 1 and facts["report"] for facts in found.values())


def test_a_mirrored_image_is_asked_for_only_where_a_report_names_one_side(reporter, studies):
    without = [Report("The lungs are clear.", "Normal chest.")] * len(studies)
    assert image_use.mirrored(reporter, studies, without, seed=1)["flipped_share"]["n"] == 0
    sided = [Report("There is a left pleural effusion.", "Left effusion."), *without[1:]]
    found = image_use.mirrored(reporter, studies, sided, seed=1)
    assert found["flipped"] + found["kept"] + found["lost"] == 1


def test_the_nearest_neighbor_of_a_training_image_is_itself(trained, studies):
    base = reporter_of(trained, 0)
    assert image_vectors(base, [study.image for study in studies]).shape[0] == len(studies)
    assert neighbor_reports(base, studies, studies) == [study.report for study in studies]
