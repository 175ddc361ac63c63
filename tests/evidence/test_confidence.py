"""Confidence: what a sentence says, when it is right, and probabilities that are what they say."""

import json

import numpy as np
import pytest

from radvision_utils import evaluate
from radvision_utils.evaluation.bootstrap import Bootstrap
from radvision_utils.evaluation.records import by_contradiction
from radvision_utils.evidence import confidence, study_maps
from radvision_utils.evidence.confidence import (
    JudgedSentence,
    calibration_figures,
    claims_of,
    conformal_threshold,
    coverage_curve,
    fit_logistic,
    selected,
)
from radvision_utils.evidence.evidence_figures import _joined, evidence_rows, show_coverage, show_maps, show_reliability
from radvision_utils.files import read_json_lines
from radvision_utils.phantoms.phantom_reports import asserted_pairs
from radvision_utils.report import Sampling, reporter_of

EFFUSION = frozenset({("Pleural Effusion", "left")})


@pytest.mark.parametrize(
    ("sentence", "pairs", "holds"),
    [
        ("There is a left pleural effusion.", EFFUSION, True),
        ("There is a right pleural effusion.", EFFUSION, False),
        ("There is a pleural effusion.", EFFUSION, True),
        ("There are bilateral pleural effusions.", EFFUSION, False),
        ("No pleural effusion or pneumothorax.", EFFUSION, False),
        ("No pleural effusion or pneumothorax.", frozenset(), True),
        ("No pneumothorax.", EFFUSION, True),
        ("There is a left consolidation.", frozenset({("Lung Opacity", "left")}), True),
    ],
)
def test_a_sentence_holds_where_all_that_it_says_does(sentence, pairs, holds):
    assert claims_of(sentence).hold(pairs) is holds


def test_a_sentence_without_an_observation_claims_nothing():
    assert claims_of("The patient is rotated.") is None


def test_calibration_finds_the_probability_behind_the_features():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(4000, 2))
    right = rng.random(4000) < 1 / (1 + np.exp(-(0.5 + 2 * x[:, 0])))
    model = fit_logistic(x, right)
    assert model.probabilities(np.array([[1.0, 0.0]]))[0] == pytest.approx(1 / (1 + np.exp(-2.5)), abs=0.03)
    known = calibration_figures({"model": model.probabilities(x)}, right, np.arange(4000), Bootstrap(4000, seed=1))
    assert known["ece"]["model"]["value"] < 0.02


def test_calibration_has_an_answer_where_all_are_right_or_features_never_vary():
    alike = np.array([[0.0, 1.0]] * 20)
    assert 0.9 < fit_logistic(alike, np.ones(20, bool)).probabilities(alike)[0] <= 1


def test_the_calibration_error_of_what_is_always_sure_is_its_share_of_errors():
    right = np.array([True, True, True, False])
    known = calibration_figures({"sure": np.ones(4)}, right, np.arange(4), Bootstrap(4, seed=1))
    assert known["ece"]["sure"]["value"] == 0.25
    assert known["bins"]["sure"] == [{"from": 0.9, "n": 4, "score": 1.0, "right": 0.75}]


def judged(study, text, right, log_probability=-0.1, agreement=2 / 3):
    return JudgedSentence(study, None, log_probability, claims_of(text), agreement, right)


def test_hiding_the_least_sure_trades_coverage_for_truth():
    said = [judged(study, "Left effusion.", study != 9) for study in range(10)]
    sure = np.linspace(0.9, 0.1, 10)
    curve = coverage_curve(said, sure, [EFFUSION] * 9 + [frozenset()], Bootstrap(10, seed=1))
    assert [row["shown"]["value"] for row in curve] == pytest.approx([1, 1, 0.9, 0.8, 0.7, 0.6, 0.5])
    assert [row["unsupported"]["value"] for row in curve] == pytest.approx([0.1, 0.1, 0, 0, 0, 0, 0])
    assert curve[0]["told"]["value"] == 1
    assert curve[-1]["told"]["value"] == pytest.approx(5 / 9, abs=1e-4)


@pytest.mark.parametrize("said", [[], ["Left effusion."]])  # a model that only ever writes normal reports; one sentence
def test_coverage_is_drawn_whatever_is_missing(said):
    sentences = [judged(0, text, False) for text in said]
    curve = coverage_curve(sentences, np.full(len(said), 0.5), [frozenset()], Bootstrap(1, seed=1))
    figure = show_coverage({"confidence": {"coverage": curve}})
    figure.canvas.draw()
    assert len(curve) == 7 * len(said)
    texts = {text.get_text() for axes in figure.axes for text in axes.texts}
    assert texts == (set() if said else {"no sentence that asserts a finding has a confidence"})


def test_a_threshold_counts_one_more_wrong_than_there_are_and_ties_together():
    sure, right = np.linspace(1, 0.1, 100), np.ones(100, bool)
    assert conformal_threshold(sure, right, 0.05) == pytest.approx(0.1)
    assert conformal_threshold(sure[:19], right[:19], 0.05) is None  # 1 of 19 is more than 5 %
    right[30:] = False
    assert conformal_threshold(sure, right, 0.05) == pytest.approx(sure[29])
    tied = np.repeat([0.9, 0.5], 50)
    assert conformal_threshold(tied, np.arange(100) < 60, 0.05) == 0.9
    assert conformal_threshold(np.empty(0), np.empty(0, bool)) is None


def test_what_a_threshold_shows_is_wrong_as_seldom_as_it_says():
    rng, wrong = np.random.default_rng(1), []
    for _ in range(300):
        sure = rng.random(400)
        right = rng.random(400) < 0.6 + 0.4 * sure
        least = conformal_threshold(sure[:200], right[:200], 0.1)
        shown = sure[200:] >= (np.inf if least is None else least)
        wrong.append((~right[200:])[shown].mean() if shown.any() else 0.0)
    assert np.mean(wrong) <= 0.11


def test_the_threshold_is_chosen_on_other_studies_than_those_that_calibrate():
    rng = np.random.default_rng(2)

    def sentences():
        drawn = enumerate(-rng.random(300))
        return [judged(n, "Left effusion.", bool(x > -0.5 or rng.random() < 0.3), log_probability=x) for n, x in drawn]

    known, tested = sentences(), sentences()
    found = selected(known, tested, [EFFUSION] * 300, Bootstrap(300, seed=1))
    assert found["chosen_on"] == 150
    assert 0.3 < found["shown"]["value"] < 0.8
    assert found["unsupported"]["low"] <= 0.05
    assert selected(known, [], [], Bootstrap(1, seed=1)) == {}


def test_drawn_reports_are_the_same_again_whatever_was_drawn_before(trained, dataset):
    reporter = reporter_of(trained, 0).drawing(Sampling(1.0, seed=3))
    images = [study.image for study in dataset.split("train")][:3]
    first = reporter.report(images)
    assert reporter.report(images[2]) == reporter.report(images[2])
    assert reporter.report(images) == first
    assert reporter.drawing(Sampling(1.0, seed=4)).report(images) != first


@pytest.fixture(scope="module")
def result(trained):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study_maps, "VALIDATED", 4)
        patch.setattr(confidence, "CALIBRATED", 4)
        yield evaluate(trained, evidence=2, samples=2)


def test_every_sentence_of_every_study_has_a_confidence_or_none_to_have(result):
    lines = {line["uid"]: line for line in read_json_lines(result.folder / "confidence.jsonl")}
    for record in result.predictions:
        if record.stage == 3:
            told = lines[record.uid]["sentences"]
            for sentence in told:
                assert sentence["text"] in getattr(record.generated, sentence["section"])
                assert sentence["log_probability"] <= 0
                assert (sentence["agreement"] is None) == (claims_of(sentence["text"]) is None)
                if sentence["agreement"] is not None:
                    assert 0 <= sentence["agreement"] <= 2
                    assert 0 < sentence["confidence"] < 1


def test_maps_are_written_for_the_worst_studies_and_join_with_their_reports(result):
    own = {r.uid: r for r in result.predictions if r.stage == 3}
    lines = read_json_lines(result.folder / "evidence.jsonl")
    assert [line["uid"] for line in lines[:2]] == [r.uid for r in sorted(own.values(), key=by_contradiction)[:2]]
    for line in lines:
        for sentence in line["sentences"]:
            assert sentence["text"] in getattr(own[line["uid"]].generated, sentence["section"])
            for kind in ("gradient", "occlusion"):
                values = np.array(sentence[kind])
                assert values.shape == tuple(line["grid"]) == (4, 4)
                assert values.min() >= 0
                assert values.max() in (0, 1)


def test_metrics_and_table_say_what_maps_and_confidence_are_worth(result):
    assert {"key", "studies", "seconds", "agreement", "sentence"} <= set(result.metrics["evidence"])
    assert {"calibration", "coverage", "selected", "temperature", "seconds"} <= set(result.metrics["confidence"])
    page = (result.folder / "table.md").read_text()
    assert page.count("## Evidence and confidence") == 1
    for name in ("evidence", "confidence"):
        assert result.metrics[name]["sentence"] in page
    json.dumps(result.metrics)


def test_asked_again_nothing_is_computed(result, trained, monkeypatch):
    monkeypatch.setattr(study_maps, "VALIDATED", 4)
    monkeypatch.setattr(confidence, "CALIBRATED", 4)
    monkeypatch.setattr(study_maps, "reporter_of", lambda *_: pytest.fail("explained again"))
    monkeypatch.setattr(confidence, "reporter_of", lambda *_: pytest.fail("sampled again"))
    assert evaluate(trained, evidence=2, samples=2).metrics["evidence"] == result.metrics["evidence"]


@pytest.mark.parametrize("validated", [0, 2])  # those drawn by lot, whose maps are judged, are not made again either
def test_an_interrupted_explanation_goes_on_where_it_was(result, trained, monkeypatch, validated):
    monkeypatch.setattr(study_maps, "VALIDATED", validated)
    done = []
    record = study_maps.evidence_record

    def interrupted(uid, *rest):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(uid)
        return record(uid, *rest)

    monkeypatch.setattr(study_maps, "evidence_record", interrupted)
    with pytest.raises(KeyboardInterrupt):
        evaluate(trained, evidence=3)
    monkeypatch.setattr(study_maps, "evidence_record", lambda uid, *rest: done.append(uid) or record(uid, *rest))
    again = evaluate(trained, evidence=3)
    assert len(done) == len(set(done)) == again.metrics["evidence"]["studies"] >= 3


@pytest.mark.parametrize("added", [{"samples": 3}, {"evidence": 4}])
def test_killed_while_they_are_added_the_evaluation_is_as_it_was_and_the_same_command_adds_them(
    result, trained, monkeypatch, added
):
    monkeypatch.setattr(study_maps, "VALIDATED", 0)
    monkeypatch.setattr(confidence, "CALIBRATED", 4)
    known = evaluate(trained)
    before = {path: path.read_bytes() for path in known.folder.iterdir() if path.is_file()}

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(study_maps, "save_evidence_figures", stop)
        with pytest.raises(KeyboardInterrupt):
            evaluate(trained, **added)
    assert {path: path.read_bytes() for path in before} == before
    assert evaluate(trained).metrics == known.metrics
    metrics = evaluate(trained, **added).metrics
    assert metrics.get("evidence", {}).get("asked") == 4 or metrics["confidence"]["samples"] == 3
    kept = "confidence" if "evidence" in added else "evidence"
    assert metrics[kept] == known.metrics[kept]
    kinds = {path.suffix for path in known.folder.glob("*.*")}
    assert kinds <= {".csv", ".json", ".jsonl", ".md", ".png", ".svg"}  # nothing that they were made from


def test_shuffled_weights_are_the_same_numbers_elsewhere(trained):
    import torch

    model = reporter_of(trained, 3).model
    before = [parameter.clone() for parameter in model.parameters()]
    study_maps.shuffle_weights(model, seed=1)
    moved = 0
    for old, new in zip(before, model.parameters(), strict=True):
        assert torch.equal(old.flatten().sort().values, new.flatten().sort().values)
        moved += not torch.equal(old, new)
    assert moved > len(before) / 2


def test_maps_of_shuffled_weights_are_judged_by_the_lesion_that_they_are_of(trained, result, monkeypatch, tmp_path):
    monkeypatch.setattr(study_maps, "shuffle_weights", lambda *_: None)  # the same model: the same figures
    last = [ours for ours in result.predictions if ours.stage == 3]
    work = study_maps._Work(trained, "test", last, count=3)
    lines = work.explain(tmp_path / "kept.jsonl")
    audits = {line["uid"]: line["audit"] for line in reversed(lines) if line.get("audit")}
    assert len(audits) > 1
    work.judge_shuffled(audits)
    for told in (lesion for audit in audits.values() for lesion in audit):
        for kind in ("hit", "energy"):
            for name in ("occlusion", "gradient"):
                assert told[kind][f"{name}, shuffled weights"] == pytest.approx(told[kind][name], abs=1e-6)


def test_figures_are_drawn(result):
    assert show_maps(result.folder).axes
    if "pointing" in result.metrics["evidence"]:
        assert evidence_rows(result.metrics)[0]["map"] == "occlusion"


def test_asserted_pairs_use_the_names_of_drawn_findings():
    assert asserted_pairs("There is a left consolidation.") == {("Lung Opacity", "left")}


def test_without_validation_studies_sentences_have_no_confidence_but_an_agreement(trained, result, monkeypatch):
    monkeypatch.setattr(confidence, "CALIBRATED", 0)
    metrics = evaluate(trained, samples=1).metrics["confidence"]
    assert metrics["sentence"].startswith("confidence of a sentence: none, since no sentence of the validation reports")
    lines = read_json_lines(result.folder / "confidence.jsonl")
    known = [s for line in lines for s in line["sentences"] if s["agreement"] is not None]
    assert known
    assert all(sentence["confidence"] is None for sentence in known)


def test_bins_of_a_reliability_plot_are_joined_until_each_holds_twenty_sentences():
    bins = [{"n": n, "score": at / 10, "right": at / 10} for at, n in enumerate((3, 30, 5, 16, 40, 2))]
    joined = _joined(bins)
    assert [n for _, _, n in joined] == [33, 21, 42]
    assert sum(n * right for _, right, n in joined) == pytest.approx(sum(b["n"] * b["right"] for b in bins))


def test_sentences_that_assert_something_come_first_in_the_reliability_plot():
    known = {"value": 0.9, "low": 0.8, "high": 1.0}
    group = {"sentences": 40, "right": known, "ece": {"calibrated": known}}
    group["bins"] = {"calibrated": [{"n": 40, "score": 0.9, "right": 0.9}]}
    figure = show_reliability({"confidence": {"calibration": {"all sentences": group, "asserting sentences": group}}})
    assert [axes.get_title()[:9] for axes in figure.axes] == ["asserting", "all sente"]
    assert all(len(line.get_xdata()) == 2 for axes in figure.axes for line in axes.lines)  # intervals and diagonal only
