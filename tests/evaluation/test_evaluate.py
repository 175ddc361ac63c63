"""Evaluation: what the table says, that it is stable, and that the text metrics are those of the field."""

import json
import math

import pytest
import sacrebleu

from radvision_utils import Report, evaluate
from radvision_utils.evaluation import evaluate as module
from radvision_utils.evaluation.figures import show_ladder, show_verdicts
from radvision_utils.evaluation.phantom_accuracy import phantom_accuracy, verdicts
from radvision_utils.evaluation.text_metrics import PROTOCOLS, r2gen_words, score_texts
from radvision_utils.runs import RunFolder

RAW = "findings + impression, raw"
TRUTH = json.dumps({"findings": [{"name": "pleural effusion", "side": "left"}, {"name": "cardiomegaly", "side": None}]})


@pytest.fixture(scope="module")
def result(trained):
    return evaluate(trained)


def test_the_table_has_the_constant_report_the_base_and_all_stages(result):
    rows = ["constant report", "base, untuned", "after stage 1", "after stage 2", "after stage 3"]
    assert [row["row"] for row in result.table] == rows


def test_every_study_of_the_split_has_a_record_of_every_stage(result, dataset):
    studies = dataset.split("test")
    found = {(record["uid"], record["model"]["stage"]) for record in result.predictions}
    assert found == {(study.uid, stage) for study in studies for stage in range(4)}


def test_the_reference_in_a_record_is_the_untouched_text(result, dataset):
    by_uid = {study.uid: study for study in dataset.split("test")}
    for record in result.predictions:
        assert record["reference"]["findings"] == by_uid[record["uid"]].reference.findings


def test_image_paths_are_relative_to_the_run_and_exist(result, trained):
    for record in result.predictions:
        assert (RunFolder.of(trained).path / record["image"]).is_file()


def test_a_second_evaluation_computes_nothing(result, trained, monkeypatch):
    monkeypatch.setattr(module, "reporter_of", lambda *_: pytest.fail("evaluated again"))
    assert evaluate(trained).metrics == result.metrics


def test_evaluating_again_gives_the_same_figures(result, trained):
    again = evaluate(trained, force=True)
    effort = ("seconds_per_report", "tokens_per_second")
    strip = {name: {k: v for k, v in row.items() if k not in effort} for name, row in again.metrics["rows"].items()}
    before = {name: {k: v for k, v in row.items() if k not in effort} for name, row in result.metrics["rows"].items()}
    assert strip == before


def test_the_figures_draw_a_row_each(result):
    assert len(show_ladder(result.metrics).axes) == 2
    assert show_verdicts(result.predictions).axes


def reports(*texts):
    return [Report(text, "") for text in texts]


GENERATED = reports("the heart is normal in size", "there is a small left effusion today", "lungs are clear")
REFERENCE = reports("the heart is enlarged in size", "there is a large left effusion", "the lungs are clear")


def test_bleu_equals_sacrebleu():
    ours = score_texts(GENERATED, REFERENCE, RAW).corpus
    theirs = sacrebleu.corpus_bleu(
        [r.findings for r in GENERATED],
        [[r.findings for r in REFERENCE]],
        tokenize="none",
        smooth_method="none",
        force=True,
    )
    assert math.isclose(ours["bleu4"], theirs.score / 100, abs_tol=1e-6)


def test_identical_reports_score_one():
    scores = score_texts(REFERENCE, REFERENCE, RAW).corpus
    assert scores["bleu4"] == pytest.approx(1, abs=1e-6)
    assert scores["rouge_l"] == pytest.approx(1)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_an_empty_report_scores_zero_and_does_not_fail(protocol):
    scores = score_texts(reports("", "", ""), REFERENCE, protocol).corpus
    assert scores["rouge_l"] == 0
    assert scores["cider_d"] == 0


def test_r2gen_words_are_lower_case_without_punctuation_or_numbering():
    text = "1. Heart size, normal. 2. No pneumothorax/effusion.. Clear."
    assert r2gen_words(text) == "heart size normal . no pneumothoraxeffusion . clear ."


def test_verdicts_name_what_was_missed_and_what_was_invented():
    report = Report("There is a right pleural effusion. The heart is enlarged.", "Cardiomegaly.")
    assert verdicts(report, TRUTH) == [
        {"name": "cardiomegaly", "side": "", "verdict": "agree"},
        {"name": "pleural effusion", "side": "left", "verdict": "missed"},
        {"name": "pleural effusion", "side": "right", "verdict": "unsupported"},
    ]


def test_a_study_is_right_only_if_every_finding_and_side_is():
    right = Report("There is a left pleural effusion. The heart is enlarged.", "")
    silent = Report("The lungs are clear.", "Normal chest.")
    scores = phantom_accuracy([right, silent], [TRUTH, TRUTH])
    assert scores == {"study_accuracy": 0.5, "finding_precision": 1.0, "finding_recall": 0.5}
