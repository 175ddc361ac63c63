"""Findings first: a line of labels that weighs most, stands apart from the text and may be chosen by thresholds."""

import json
import math
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from radvision_utils import RadVisionError, Report, load_profile, train_stage
from radvision_utils.data.images import moved
from radvision_utils.data.labels import ABNORMAL, asserted, label
from radvision_utils.data.parsing import parse_report
from radvision_utils.data.reports import format_report, line_of_findings
from radvision_utils.evaluation.records import Model, Prediction, normal_form, report_labels
from radvision_utils.evaluation.table import Scorer
from radvision_utils.files import read_json
from radvision_utils.model.base import load_processor
from radvision_utils.report import reporter_of
from radvision_utils.runs import RunFolder
from radvision_utils.small_data.decoding import LineChoice, calibrate, limits_of
from radvision_utils.small_data.examples import LINE, PLAIN, following, with_line
from radvision_utils.training.collator import IGNORED, Collator

PLAIN_FIRST = Report("The lungs are clear. The heart is enlarged.", "Cardiomegaly.")
REFERENCE = Report("The lungs are clear. The heart is enlarged. XXXX pacemaker.", "Cardiomegaly.")


def test_a_report_begins_with_the_labels_of_its_reference_and_tells_findings_before_the_rest():
    report = with_line(PLAIN_FIRST, REFERENCE)
    assert report.line == "Cardiomegaly, support device."
    assert report.findings == "The heart is enlarged. The lungs are clear."
    assert format_report(report).startswith("Findings: Cardiomegaly, support device. The heart is enlarged.")
    assert with_line(Report("Clear.", ""), Report("The lungs are clear.", "")).line == "No key finding."


@given(st.sets(st.sampled_from(ABNORMAL)), st.booleans())
def test_a_line_is_read_back_and_other_reports_are_left_alone(chosen, impression):
    report = Report("Low lung volumes. Clear.", "Calm." if impression else "", line=line_of_findings(chosen))
    assert parse_report(format_report(report), line=True) == report
    plain = replace(report, line="")
    assert parse_report(format_report(plain), line=True) == plain


def test_the_line_counts_as_said_and_is_no_part_of_the_text():
    report = Report("The lungs are clear.", "No acute disease.", line="Cardiomegaly.")
    assert report_labels(report)["Cardiomegaly"].status == "present"
    assert normal_form(report) == normal_form(replace(report, line=""))
    scorer = Scorer([Report("The lungs are clear.", "No acute disease.")] * 3, seed=1)
    row = scorer.score([report] * 3)
    assert row.estimates["findings + impression, raw"]["bleu4"].value == pytest.approx(1, abs=1e-6)
    assert row.to_json()["text_f1"] is None  # the text asserts nothing, nor do the references
    assert "text_f1" not in scorer.score([replace(report, line="")] * 3).to_json()


def test_a_record_keeps_the_line_and_one_without_has_no_word_of_it():
    for line in ("Cardiomegaly.", ""):
        report = Report("The lungs are clear.", "", line=line)
        written = Prediction(uid="1", generated=report, reference=None, model=Model("r", 3, "tiny"))
        kept = json.loads(json.dumps(written.to_json()))
        assert ("line" in kept["generated"]) == bool(line)
        assert Prediction.read(kept).generated == report


@pytest.mark.parametrize("named", ["No key finding.", "Cardiomegaly.", "Pleural effusion, atelectasis."])
@pytest.mark.parametrize(
    ("findings", "impression"),
    [
        ("The heart is enlarged. The lungs are clear.", "Cardiomegaly."),
        ("The heart is normal in size. There is a small left pleural effusion.", "Left effusion with atelectasis."),
        ("No pleural effusion or pneumothorax. The lungs are clear.", "No acute disease."),
        ("There is edema. The heart is mildly enlarged.", ""),
    ],
)
def test_a_report_that_follows_its_line_says_what_the_line_says(named, findings, impression):
    report = following(Report(findings, impression, line=named))
    assert asserted(f"{named}\n\n{report.text}") == asserted(named)
    assert bool(report.impression) == bool(impression)
    assert following(report) == report
    denied = label(report.text)
    assert not any(denied[name].status == "absent" for name in asserted(named))


@pytest.fixture
def collator(small_profile):
    settings = replace(small_profile.model, summary=True)
    return Collator(load_processor(settings, 512), settings)


def test_the_line_weighs_most_and_sentences_without_a_finding_least(collator, dataset):
    study = replace(dataset.split("train")[0], report=PLAIN_FIRST, reference=REFERENCE)
    batch = collator([study, dataset.split("train")[1]])
    ids, weights = batch["labels"][0], batch["weights"][0]
    said = {
        weight: collator.tokenizer.decode(ids[(weights == weight) & (ids != IGNORED)]).strip()
        for weight in (LINE, 1.0, PLAIN)
    }
    assert said[LINE] == "Cardiomegaly, support device."
    assert said[PLAIN] == "The lungs are clear."
    assert said[1.0].startswith("Findings: The heart is enlarged. Impression: Cardiomegaly.")
    assert batch["weights"].shape == batch["labels"].shape


@pytest.fixture(scope="module")
def summarized(small_profile, dataset, tmp_path_factory):
    """Three stages of a few steps whose reports begin with a line."""
    root = tmp_path_factory.mktemp("summarized")
    profile = replace(small_profile, output_root=str(root), model=replace(small_profile.model, summary=True))
    shutil.copytree(RunFolder.of(small_profile).data, RunFolder.of(profile).data)
    for stage in (1, 2, 3):
        assert all(math.isfinite(line["loss"]) for line in train_stage(profile, stage).log if "loss" in line)
    return profile


def test_chosen_findings_begin_the_report_and_their_thresholds_stay_in_the_run(summarized, dataset):
    scored = replace(summarized, generation=replace(summarized.generation, findings="scored", max_new_tokens=12))
    images = [study.image for study in dataset.split("test")[:5]]
    reporter = reporter_of(scored, 3)
    kept = RunFolder.of(scored).thresholds(3)
    assert set(read_json(kept)) >= {"key", "f1", "temperature", "limit", "unsupported", "sets", "thresholds", "studies"}
    written = list(reporter.write(images))
    assert [each.report.line for each in written] == reporter.choice.lines(reporter, images)
    before = kept.stat().st_mtime_ns
    assert [each.report for each in reporter_of(scored, 3).write(images)] == [each.report for each in written]
    assert kept.stat().st_mtime_ns == before


def test_a_threshold_says_a_finding_of_everyone_or_of_no_one(summarized, dataset):
    reporter = reporter_of(summarized, 3)
    images = [study.image for study in dataset.split("test")[:3]]
    sets = [(), ("Cardiomegaly",), ("Pleural Effusion",)]
    assert LineChoice(sets, {"Cardiomegaly": -1.0}).lines(reporter, images) == ["Cardiomegaly."] * 3
    assert LineChoice(sets, {"Cardiomegaly": 1.0}).lines(reporter, images) == ["No key finding."] * 3


def test_a_limit_on_unsupported_findings_is_kept_on_validation(summarized, dataset):
    train, validation = (list(dataset.split(name)) for name in ("train", "validation"))
    reporter = reporter_of(summarized, 3)
    _, free = calibrate(reporter, train, validation, None)
    assert free["f1"] > 0
    _, strict = calibrate(reporter, train, validation, free["unsupported"])
    assert strict["unsupported"] <= free["unsupported"]


def test_limits_do_not_hang_on_how_sure_a_model_is_or_how_much_it_says():
    random = np.random.default_rng(0)
    odds = random.normal(-2.5, 2.0, (400, 3))
    truth = random.random(odds.shape) < 1 / (1 + np.exp(-odds / 1.25))
    sure, surer = 1 / (1 + np.exp(-odds)), 1 / (1 + np.exp(-2 * odds - 1))
    limits, facts = limits_of(sure, truth, truth.mean(0))
    others, other_facts = limits_of(surer, truth, truth.mean(0))
    assert ((sure > limits) == (surer > others)).all()
    assert other_facts == {**facts, "temperature": 2 * facts["temperature"]}


def test_a_finding_that_a_model_does_not_tell_is_said_of_no_one():
    random = np.random.default_rng(0)
    truth = random.random((400, 2)) < [0.3, 0.05]
    chances = np.stack([np.where(truth[:, 0], 0.8, 0.1), random.uniform(0.04, 0.06, 400)], 1)
    limits, _ = limits_of(chances, truth, truth.mean(0))
    assert ((chances > limits) == np.stack([truth[:, 0], np.zeros(400, bool)], 1)).all()
    assert np.isinf(limits_of(np.full((9, 1), 0.5), np.zeros((9, 1), bool), np.array([0.9]), 0.5)[0]).all()


def test_a_moved_image_goes_right_and_down_with_black_behind_it():
    image = moved(Image.new("L", (100, 100), 200), 0.1, 0.2)
    assert image.getbbox() == (10, 20, 100, 100)


def test_an_image_without_anything_has_a_line_too(summarized, dataset, tmp_path):
    Image.new("L", (512, 512)).save(tmp_path / "black.png")
    black = replace(dataset.split("test")[0], image=tmp_path / "black.png")
    reporter = reporter_of(summarized, 3)
    assert LineChoice([(), ("Cardiomegaly",)], {"Cardiomegaly": -1.0}).lines(reporter, [black]) == ["Cardiomegaly."]
    assert torch.equal(reporter.visual_tokens([black], [(0.5, 0.5)]), reporter.visual_tokens([black]))


def test_a_line_is_scored_as_the_loss_scores_it(summarized, dataset):
    from radvision_utils.small_data.decoding import _line_scores

    reporter, study = reporter_of(summarized, 3), dataset.split("test")[0]
    [scores] = _line_scores(reporter, [study], [(), ("Cardiomegaly",)], [(0.0, 0.0)])
    line = reporter.collator.beginning("Cardiomegaly.")
    batch = reporter.collator.rows([reporter.prompt(study)], [line])
    pixels = reporter.collator.prompts([study.image])
    with torch.no_grad():
        logits = (
            reporter.model(**{**pixels, **{k: v for k, v in batch.items() if k in pixels}}).logits[0].log_softmax(-1)
        )
    start = len(reporter.prompt(study)) - 1
    expected = sum(logits[start + place, token].item() for place, token in enumerate(line))
    assert scores[1] == pytest.approx(expected, abs=1e-3)


def test_the_settings_are_off_where_nobody_asked():
    profile = load_profile("tiny")
    assert not profile.model.summary
    assert profile.generation.findings == "written"
    with pytest.raises(RadVisionError, match="must be one of written, scored"):
        load_profile("tiny", {"generation.findings": "guessed"})
    assert asserted("The heart is enlarged.") == ("Cardiomegaly",)
