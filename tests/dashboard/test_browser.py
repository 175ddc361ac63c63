import json

import pytest

from radvision_utils.config import RadVisionError
from radvision_utils.dashboard.browser import ReportBrowser, uploaded
from radvision_utils.dashboard.card import ReportCard
from radvision_utils.dashboard.record import Record, read_predictions


@pytest.fixture
def records(run_folder):
    return [r for r in read_predictions(run_folder / "evaluation/predictions.jsonl") if r.split == "test"]


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
    browser = ReportBrowser(records, run_folder)
    browser.next.click()
    assert "20.png does not exist" in browser.message.value
    assert "Findings of 20" in browser.card.value


def test_no_records_are_refused(run_folder):
    with pytest.raises(RadVisionError, match="no prediction records"):
        ReportBrowser([], run_folder)


@pytest.fixture
def judged(records, run_folder):
    """The browser with verdicts, flags and scores by study: 17 agrees, 20 misses, 31 contradicts."""
    verdicts = {"17": "agree", "20": "missed", "31": "contradiction"}
    changed = [
        Record.read(
            record.to_json()
            | {
                "verdicts": {"Edema": verdicts[record.uid], "Fracture": "agree"},
                "flags": ["prior study"] if record.uid == "20" else [],
                "scores": {"label_f1": {"17": 1.0, "20": 0.2, "31": 0.4}[record.uid], "rouge_l": 0.9},
            }
        )
        for record in records
    ]
    return ReportBrowser(changed, run_folder)


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        ("index", ["17", "20", "31"]),
        ("worst contradiction", ["31", "20", "17"]),
        ("lowest label F1", ["20", "31", "17"]),
        ("ROUGE-L above label F1", ["20", "31", "17"]),
    ],
)
def test_studies_come_in_the_chosen_order(judged, order, expected):
    judged.order.value = "worst contradiction" if order == "index" else "index"
    judged.order.value = order
    seen = [judged.uid.value]
    while not judged.next.disabled:
        judged.next.click()
        seen.append(judged.uid.value)
    assert seen == expected


def test_a_filter_leaves_only_what_fits(judged):
    judged.verdict.value = "missed"
    assert judged.uid.value == "20"
    assert "1 of 1 studies, filtered from 3" in judged.message.value
    judged.verdict.value = ""
    judged.flag.value = "prior study"
    assert judged.uid.value == "20"
    judged.flag.value = ""
    judged.observation.value = "Fracture"
    judged.verdict.value = "contradiction"
    assert "No study fits" in judged.message.value


def test_a_study_asked_for_by_name_takes_the_filter_away(judged):
    judged.verdict.value = "missed"
    judged.uid.value = "31"
    assert "Findings of 31" in judged.card.value
    assert judged.verdict.value == ""
    assert "3 of 3 studies" in judged.message.value


def test_window_inversion_and_zoom_stay_from_study_to_study_until_reset(browser):
    plain = browser.card.value
    browser.view.invert.value = True
    assert browser.card.value != plain
    browser.view.zoom.value = 2
    browser.next.click()
    assert 'class="rv-stack rv-zoomed"' in browser.card.value
    browser.view.reset.click()
    assert 'class="rv-stack rv-zoomed"' not in browser.card.value
    browser.previous.click()
    assert browser.card.value == plain


def rate(browser, first, second, comment=""):
    browser.rating.scores[0].value, browser.rating.scores[1].value = first, second
    browser.rating.comment.value = comment
    browser.rating.save.click()


def test_blind_mode_hides_whose_text_is_whose_and_keeps_ratings_by_author(browser, run_folder):
    browser.rating.blind.value = True
    assert "Report A" in browser.card.value
    assert "Generated" not in browser.card.value
    rate(browser, 2, None)
    assert "Rate both reports" in browser.rating.message.value
    order = browser.rating.order(browser.rating._record)
    rate(browser, 2, 5, 'good "enough"')
    lines = [json.loads(line) for line in (run_folder / "ratings.jsonl").read_text(encoding="utf-8").splitlines()]
    assert {line["author"]: line["score"] for line in lines} == dict(zip(order, (2, 5), strict=True))
    assert all((line["uid"], line["stage"], line["comment"]) == ("17", 3, 'good "enough"') for line in lines)
    assert "1 study rated" in browser.rating.message.value
    browser.next.click()
    assert browser.rating.scores[0].value is None
    assert browser.rating.comment.value == ""


def test_a_rating_that_cannot_be_kept_is_told_and_stays_in_the_form(browser, run_folder):
    (run_folder / "ratings.jsonl").mkdir()
    browser.rating.blind.value = True
    rate(browser, 3, 3, "both alike")
    assert "cannot be worked in" in browser.rating.message.value
    assert browser.rating.comment.value == "both alike"


def test_ratings_are_summed_up_by_author_once_unblinded(browser):
    browser.rating.blind.value = True
    assert "Mean" not in browser.rating.message.value
    for _ in range(2):
        ours = browser.rating.order(browser.rating._record).index("generated")
        rate(browser, *((2, 5) if ours == 0 else (5, 2)))
        browser.next.click()
    browser.rating.blind.value = False
    assert "<td>Generated</td><td>2</td><td>2.00</td><td>0</td><td>0</td>" in browser.rating.message.value
    assert "<td>Reference</td><td>2</td><td>5.00</td><td>2</td><td>0</td>" in browser.rating.message.value
    assert "Generated" in browser.card.value


def test_an_image_of_ones_own_is_reported_on_by_the_model_at_hand(records, run_folder, make_record):
    asked = []

    def report_on(name, image, stage):
        asked.append((name, image, stage))
        if name == "broken.png":
            raise RadVisionError("broken.png cannot be read: give a PNG.")
        return ReportCard(Record.read(make_record(uid=name, reference=None)), cached=False)

    browser = ReportBrowser(records, run_folder, report_on=report_on)
    browser.own.report.click()
    assert "Choose a PNG" in browser.own.message.value
    browser.stage.value = 0
    browser.own.path.value = "/somewhere/lungs.png"
    browser.own.report.click()
    assert "Image lungs.png" in browser.card.value
    assert (asked[0][0], str(asked[0][1]), asked[0][2]) == ("lungs.png", "/somewhere/lungs.png", 0)
    browser.own.path.value = "broken.png"
    browser.own.report.click()
    assert "cannot be read" in browser.own.message.value
    browser.next.click()
    assert "Findings of 20" in browser.card.value
    assert not hasattr(ReportBrowser(records, run_folder), "own")


def test_uploads_of_both_widget_generations_are_read():
    seven = {"a.png": {"metadata": {"name": "a.png"}, "content": b"pixels"}}
    eight = ({"name": "a.png", "type": "image/png", "content": memoryview(b"pixels")},)
    assert uploaded(seven) == uploaded(eight) == ("a.png", b"pixels")
    assert uploaded({}) is uploaded(()) is None


def test_one_row_of_controls_stands_before_the_card_and_the_rest_behind_more(browser):
    steps, behind, *_ = browser.children
    assert browser.more in steps.children
    assert behind.layout.display == "none"
    browser.more.value = True
    assert behind.layout.display == "flex"


def test_a_named_window_spreads_its_gray_levels_and_sends_the_card_once(browser):
    sent = []
    browser.card.observe(lambda change: sent.append(change["new"]), names="value")
    browser.view.window.value = "lung"
    assert len(sent) == 1
    assert (browser.view.view.center, browser.view.view.width) == (0.35, 0.6)


def test_a_saved_copy_shows_the_card_where_no_widget_can_live(browser):
    assert "Findings of 17 by stage 3." in browser._repr_mimebundle_()["text/html"]


def test_blind_rating_offers_no_filter_and_brings_every_study_by_lot(judged):
    judged.verdict.value = "missed"
    judged.rating.blind.value = True
    assert judged._filters.layout.display == "none"
    seen = {judged.uid.value}
    while not judged.next.disabled:
        judged.next.click()
        seen.add(judged.uid.value)
    assert seen == {"17", "20", "31"}
    judged.rating.blind.value = False
    assert judged._filters.layout.display == "flex"


def test_ratings_of_several_raters_end_with_their_agreement_and_a_table(browser, run_folder):
    browser.rating.blind.value = True
    for name in ("Ann", "Bo"):
        browser.rating.rater.value = name
        browser.rating.errors[0].value = "finding missed"
        rate(browser, 2, 5)
    browser.rating.blind.value = False
    assert "2 pairs of ratings of one report, 100% equal" in browser.rating.message.value
    lines = (run_folder / "ratings.csv").read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith("uid,run,stage,author,shown_as,score,error,rater")
    assert len(lines) == 5
    assert sum("finding missed,Ann" in line for line in lines) == 1
