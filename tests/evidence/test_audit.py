"""The audit by finding: equal regions, other studies, and figures that say what they rest on."""

import numpy as np
import pytest

from radvision_utils import Report
from radvision_utils.evaluation.bootstrap import Bootstrap
from radvision_utils.evidence.explain import explain_passage, top_tokens
from radvision_utils.evidence.passage import Passage, learn_neutral
from radvision_utils.evidence.pointing import (
    CHANGES,
    CHECKED,
    audit_figures,
    audit_passage,
    audit_rows,
    elsewhere,
    regions_of,
)
from radvision_utils.report import reporter_of

REPORT = Report("The lungs are clear. There is a left pleural effusion.", "Left-sided effusion.")


@pytest.mark.parametrize("size", [1, 3, 6, 9])
def test_the_region_elsewhere_is_as_large_and_apart(size):
    inside = np.zeros(16, bool)
    inside[:size] = True
    for seed in range(5):
        other = elsewhere(inside, np.random.default_rng(seed))
        assert not (other & inside).any()
        assert other.sum() == min(size, 16 - size)


def test_without_a_drawn_truth_the_region_is_the_top_of_the_map():
    assert np.flatnonzero(top_tokens(np.arange(16.0))).tolist() == [14, 15]


@pytest.fixture(scope="module")
def passage(trained, dataset):
    reporter, studies = reporter_of(trained, 0), list(dataset.split("train"))
    return Passage(reporter, learn_neutral(reporter, studies), studies[0].image, REPORT)


def test_every_change_is_made_to_a_sentence_that_asserts_a_finding_and_the_image_stays(passage, dataset):
    regions = regions_of(explain_passage(passage))
    assert [finding for finding, _ in regions.values()] == ["Pleural Effusion"] * 2
    before = passage.scores(np.ones((1, 16), bool))
    found = audit_passage(passage, regions, list(dataset.split("train"))[1:], np.random.default_rng(1))
    assert [set(told["falls"]) for told in found] == [set(CHANGES)] * 2
    assert (passage.scores(np.ones((1, 16), bool)) == before).all()
    whole = {n: (finding, np.ones(16, bool)) for n, (finding, _) in regions.items()}
    for told in audit_passage(passage, whole, [], np.random.default_rng(1)):
        assert told["falls"]["region of the finding"] == told["falls"]["mean image"]
        assert "same finding" not in told["falls"]  # there is no other study


def test_figures_are_by_finding_and_say_whether_regions_were_drawn():
    falls = dict(zip(CHANGES, (3.0, 0.5, 1.0, 2.0, 4.0), strict=True))
    told = [(0, {"finding": "nodule", "falls": falls}), (1, {"finding": "atelectasis", "falls": falls})]
    figures = audit_figures(told, Bootstrap(2, seed=1), drawn=True)
    assert figures["all"]["region of the finding"]["value"] == 3
    assert [figures["all"][name]["value"] for name in CHECKED] == [2.5, 1]
    assert figures["counts"] == {"nodule": 1, "atelectasis": 1}
    assert "no truth stands behind them" not in figures["sentence"]
    assert "no truth stands behind them" in audit_figures(told, Bootstrap(2, seed=1), drawn=False)["sentence"]
    rows = audit_rows({"evidence": {"audit": figures}})
    assert [row["finding"] for row in rows] == ["all", "atelectasis *", "nodule *"]
    assert audit_rows({"evidence": {}}) == [{"finding": "no sentence asserts one"}]
