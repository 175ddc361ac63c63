import pytest

from radvision_utils.config import RadVisionError
from radvision_utils.dashboard.browser import ReportBrowser
from radvision_utils.dashboard.records import read_predictions


@pytest.fixture
def records(run_folder):
    return [r for r in read_predictions(run_folder / "evaluation/predictions.jsonl") if r["split"] == "test"]


@pytest.fixture
def browser(records, run_folder):
    return ReportBrowser(records, run_folder)


def test_begins_with_the_first_study_in_its_last_stage(browser):
    assert "Findings of 17 by stage 3." in browser.card.value
    assert browser.previous.disabled
    assert "1 of 3 studies" in browser.message.value


def test_next_and_previous_swap_the_card(browser):
    browser.next.click()
    assert "Findings of 20 by stage 3." in browser.card.value
    assert (browser.index.value, browser.uid.value) == (1, "20")
    browser.next.click()
    browser.next.click()
    assert "Findings of 31" in browser.card.value
    assert browser.next.disabled
    browser.previous.click()
    assert "Findings of 20" in browser.card.value


def test_an_index_or_a_uid_leads_to_its_study(browser):
    browser.index.value = 2
    assert "Findings of 31" in browser.card.value
    browser.uid.value = " 17 "
    assert "Findings of 17" in browser.card.value
    assert browser.index.value == 0
    assert browser.uid.value == "17"


def test_an_unknown_uid_is_answered_and_the_card_stays(browser):
    before = browser.card.value
    browser.uid.value = "<b>4711</b>"
    assert "There is no study" in browser.message.value
    assert "&lt;b&gt;4711" in browser.message.value
    assert browser.card.value == before


def test_the_stage_is_kept_from_study_to_study_where_it_exists(browser):
    assert browser.stage.options == (("base", 0), ("stage 3", 3))
    browser.stage.value = 0
    assert "Findings of 17 by stage 0." in browser.card.value
    browser.next.click()
    assert "Findings of 20 by stage 0." in browser.card.value
    browser.next.click()
    assert browser.stage.options == (("stage 3", 3),)
    assert "Findings of 31 by stage 3." in browser.card.value
    browser.previous.click()
    assert browser.stage.value == 0


def test_one_step_sends_the_card_once(browser):
    sent = []
    browser.card.observe(lambda change: sent.append(change["new"]), names="value")
    browser.next.click()
    assert len(sent) == 1


def test_a_missing_image_is_told_and_the_text_still_shown(records, run_folder):
    (run_folder / "data/images/20.png").unlink()
    browser = ReportBrowser(records, run_folder, index=1)
    assert "20.png does not exist" in browser.message.value
    assert "Findings of 20" in browser.card.value


def test_no_records_and_no_such_index_are_refused(records, run_folder):
    with pytest.raises(RadVisionError, match="no prediction records"):
        ReportBrowser([], run_folder)
    with pytest.raises(RadVisionError, match="use 0 to 2"):
        ReportBrowser(records, run_folder, index=3)
