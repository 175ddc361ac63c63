"""Label scores and their intervals: checked by hand on a few reports."""

import numpy as np
import pytest

from radvision_utils import Report
from radvision_utils.data.labels import label
from radvision_utils.evaluation.bootstrap import Bootstrap
from radvision_utils.evaluation.label_scores import (
    LabelMatrix,
    confusion,
    label_scores,
    mesh_agreement,
    observation_scores,
    study_f1,
)
from radvision_utils.evaluation.table import Scorer

TRUE = [label(text) for text in ("Left effusion.", "Cardiomegaly. Possible pneumonia.", "Normal chest.", "Scoliosis.")]
SAID = [label(text) for text in ("Left effusion.", "Cardiomegaly. Left effusion.", "Normal chest.", "Normal chest.")]
NORMAL = [label("The lungs are clear. Normal chest.")] * 4


def matrix(labels):
    return LabelMatrix.of(labels, [False] * len(labels))


@pytest.fixture
def scores():
    return label_scores(matrix(SAID), matrix(TRUE), Bootstrap(4, seed=3))


def test_micro_f1_counts_uncertain_as_positive_and_beside_it_as_negative(scores):
    assert scores["micro_f1"].value == pytest.approx(4 / 6)  # 2 right, 1 invented, 1 missed
    assert scores["micro_f1_certain"].value == pytest.approx(4 / 5)  # the possible pneumonia is not asked for
    assert scores["micro_precision"].value == pytest.approx(2 / 3)
    assert scores["micro_recall"].value == pytest.approx(2 / 3)


def test_macro_f1_counts_what_fewer_than_ten_references_assert_together_as_one(scores):
    assert scores["macro_f1"].value == pytest.approx(4 / 6)  # effusion, cardiomegaly and pneumonia once each: one
    often = label_scores(matrix(SAID * 10), matrix(TRUE * 10), Bootstrap(40, seed=3))
    assert often["macro_f1"].value == pytest.approx((2 / 3 + 1 + 0) / 3)
    some = label_scores(matrix(SAID * 10 + SAID[:1]), matrix(TRUE * 10 + TRUE[:1]), Bootstrap(41, seed=3))
    assert some["macro_f1"].value == pytest.approx((22 / 32 + 1 + 0) / 3)
    mixed = label_scores(matrix(SAID + [SAID[0]] * 9), matrix(TRUE + [TRUE[0]] * 9), Bootstrap(13, seed=3))
    assert mixed["macro_f1"].value == pytest.approx((20 / 21 + 2 / 3) / 2)  # effusion; cardiomegaly with pneumonia


def test_a_finding_outside_the_13_makes_a_study_abnormal(scores):
    assert scores["sensitivity"].value == pytest.approx(2 / 3)
    assert scores["sensitivity"].n == 3
    assert scores["specificity"].value == 1
    assert confusion(matrix(SAID), matrix(TRUE)) == {
        "abnormal": {"abnormal": 2, "normal": 1},
        "normal": {"abnormal": 0, "normal": 1},
    }


def test_a_report_that_asserts_nothing_scores_exactly_zero():
    scores = label_scores(matrix(NORMAL), matrix(TRUE), Bootstrap(4, seed=3))
    assert scores["micro_f1"].to_json() == {"value": 0, "low": 0, "high": 0, "n": 4}
    assert scores["macro_f1"].value == 0


def test_what_is_not_defined_is_null_and_not_zero():
    scores = label_scores(matrix(NORMAL), matrix(NORMAL), Bootstrap(4, seed=3))
    assert scores["micro_f1"].to_json() == {"value": None, "low": None, "high": None, "n": 4}


def test_an_empty_report_is_neither_normal_nor_abnormal():
    nothing = LabelMatrix.of([label("")] * 4, [True] * 4)
    scores = label_scores(nothing, matrix(TRUE), Bootstrap(4, seed=3))
    assert scores["sensitivity"].value == 0


def test_support_of_each_observation(scores):
    found = observation_scores(matrix(SAID), matrix(TRUE), Bootstrap(4, seed=3))
    assert len(found) == 13
    assert (found["Pleural Effusion"]["support"], found["Pleural Effusion"]["asserted"]) == (1, 2)
    assert found["Pneumonia"]["value"] == 0


def test_f1_of_a_study_is_one_where_both_texts_assert_nothing():
    assert study_f1(SAID[2], TRUE[2]) == 1
    assert study_f1(SAID[1], TRUE[1]) == 0.5
    assert study_f1(NORMAL[0], TRUE[0]) == 0


def test_an_interval_covers_the_value_and_narrows_with_studies():
    values = np.tile([0.0, 1.0], 200)
    few, many = Bootstrap(20, seed=1).mean(values[:20]), Bootstrap(400, seed=1).mean(values)
    for estimate in (few, many):
        low, high = estimate.interval
        assert low < 0.5 < high
    assert np.ptp(many.interval) < np.ptp(few.interval) / 3


def test_a_paired_difference_is_sharper_than_two_intervals():
    rng = np.random.default_rng(0)
    hard = rng.normal(size=100)
    bootstrap = Bootstrap(100, seed=1)
    ours, theirs = bootstrap.mean(hard + 0.1), bootstrap.mean(hard)
    assert ours.interval[0] < theirs.interval[1]
    assert ours.minus(theirs).interval == pytest.approx((0.1, 0.1))


def test_agreement_with_mesh_counts_reports():
    labels = [label("Cardiomegaly."), label("Normal heart."), label("Possible cardiomegaly.")]
    found = mesh_agreement(labels, ["Cardiomegaly/mild", "Cardiomegaly", "normal"])["Cardiomegaly"]
    assert found == {"support": 2, "precision": 1.0, "recall": 0.5, "f1": 0.6667, "f1_uncertain": 0.5}


def test_reports_are_judged_by_people_where_people_annotated():
    reports = [Report("Left effusion.", ""), Report("Cardiomegaly.", ""), Report("Cardiomegaly.", "")]
    scorer = Scorer(reports, seed=1, mesh=["Pleural Effusion/left", "normal", "No Indexing"])
    assert scorer.score(reports).to_json()["mesh_f1"] == pytest.approx(2 / 3, abs=1e-4)
    assert "mesh_f1" not in Scorer(reports, seed=1, mesh=["", "", ""]).score(reports).to_json()
