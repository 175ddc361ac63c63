"""predict_beautiful: cached where it can be, live where it must, and a bad index is answered with the valid range."""

import json
import re
import shutil
import time

import pytest

from radvision_utils import RadVisionError, ReportBrowser, cards, evaluate, predict_beautiful
from radvision_utils.dashboard.card import training_changed
from radvision_utils.data.studies import open_prepared
from radvision_utils.runs import RunFolder


@pytest.fixture(scope="module")
def run(trained):
    evaluate(trained)
    return {"run": trained.run, "output_root": trained.output_root}


def test_a_cached_card_loads_no_model(run, monkeypatch):
    monkeypatch.setattr(cards, "_generate", lambda *_: pytest.fail("generated"))
    card = predict_beautiful(index=0, **run)
    assert card.cached
    assert card.record.model.stage == 3


def test_a_cached_card_renders_within_100_ms(run):
    predict_beautiful(index=0, **run).html()  # imports, and the style sheet, are there once

    def seconds():
        started = time.perf_counter()
        predict_beautiful(index=1, **run).html()
        return time.perf_counter() - started

    assert min(seconds() for _ in range(5)) < 0.1


def test_the_browser_reports_on_an_image_of_ones_own(run, dataset):
    browser = ReportBrowser(**run)
    browser.own.path.value = str(dataset.split("validation")[0].image)
    browser.own.report.click()
    assert browser.own.message.value == ""
    assert f"Image {dataset.split('validation')[0].image.name}" in browser.card.value
    assert "generated now in" in browser.card.value
    browser.own.path.value = "nowhere.png"
    browser.own.report.click()
    assert "nowhere.png does not exist" in browser.own.message.value


def test_a_study_without_a_cached_report_is_reported_now(run):
    card = predict_beautiful(index=1, split="train", **run)
    assert not card.cached
    assert card.record.generated.findings
    assert (card.record.index, card.record.split) == (1, "train")


def test_evidence_is_computed_when_it_is_asked_for_and_only_then(run):
    assert not predict_beautiful(index=0, **run).record.evidence
    card = predict_beautiful(index=0, stage=1, evidence=True, **run)
    sentences = card.record.evidence["sentences"]
    assert [s["text"] for s in sentences if s["section"] == "findings"]
    assert card.article().count("Evidence map: strongest") == len(sentences)


def test_uid_and_index_lead_to_the_same_card(run, dataset):
    uid = dataset.split("test")[1].uid
    assert predict_beautiful(uid=uid, **run).record == predict_beautiful(index=1, **run).record


def test_a_bad_index_is_answered_with_the_valid_range(run, dataset):
    last = len(dataset.split("test")) - 1
    with pytest.raises(RadVisionError, match=rf"index 999 does not exist: .* 0 to {last}\."):
        predict_beautiful(index=999, **run)
    with pytest.raises(RadVisionError, match="study 999999 is not in the test split"):
        predict_beautiful(uid=999999, **run)
    with pytest.raises(RadVisionError, match="split 'exam' does not exist"):
        predict_beautiful(split="exam", **run)


def test_predictions_of_an_older_model_are_not_shown_as_this_ones(run, trained, tmp_path):
    shutil.copytree(RunFolder.of(trained).path, tmp_path / trained.run)
    record = RunFolder(trained.run, tmp_path).record_path("evaluation")
    record.write_text(record.read_text().replace('"stage3": "', '"stage3": "0'))
    (record.parent / "files.json").unlink()  # what it lists is no longer as it was written
    assert not predict_beautiful(index=0, run=trained.run, output_root=str(tmp_path)).cached


def test_the_browser_needs_predictions_and_says_how_to_get_them(run, trained, tmp_path):
    assert ReportBrowser(**run).index.value == 0
    with pytest.raises(RadVisionError, match="python -m radvision_utils run"):
        ReportBrowser(run="nothing", output_root=str(tmp_path))


def test_the_dashboard_is_one_page_with_a_card_a_study(run, dataset):
    page = cards.write_dashboard(**run).read_text()
    assert page.count("<article") == len(dataset.split("test"))


def test_the_report_before_training_stands_in_the_same_card(run):
    card = predict_beautiful(index=0, before=0, **run)
    assert card.before.model.stage == 0
    assert card.before.uid == card.record.uid
    assert "Before training" in card.html()
    assert "Drawn phantoms, no patients, a model of 1.6 million parameters." in card.html()


def test_phantoms_worth_a_look_come_first_in_the_test_split_alone(dataset):
    def findings(split):
        return [len(json.loads(study.truth)["findings"]) for study in dataset.split(split)]

    assert findings("test") == sorted(findings("test"), key=lambda count: abs(count - 2))
    uids = [int(study.uid) for study in dataset.split("train")]
    assert uids == sorted(uids)


def test_what_a_stage_changed_is_counted_over_many_studies_and_shown_on_those_that_changed(trained):
    changes = cards.compare_stages(trained, 0, 1, studies=6)
    counts = list(map(int, re.findall(r"\d+", changes.sentence)))
    assert counts[0] == min(6, len(open_prepared(trained).split("validation")))
    assert all(training_changed(card.before, card.record) for card in changes.cards)
    assert bool(changes.cards) == any(counts[1:])
    assert changes.sentence in changes._repr_mimebundle_()["text/html"]
