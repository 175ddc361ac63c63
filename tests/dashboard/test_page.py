import re

import pytest

from radvision_utils.config import RadVisionError
from radvision_utils.dashboard.records import read_predictions
from radvision_utils.dashboard.content import FOOTER
from radvision_utils.dashboard.page import anchor, write_page

METRICS = {
    "table": [
        {"row": "Stage 3", "label_f1": 0.5, "label_f1_interval": [0.4, 0.6], "bleu4": 0.2, "studies": 1234},
        {"row": "<b>Constant</b>", "bleu4": 0.1987, "meteor": None},
    ]
}


@pytest.fixture
def page(run_folder):
    records = read_predictions(run_folder / "evaluation/predictions.jsonl")
    return write_page(records, METRICS, run_folder, run_folder / "dashboard/index.html").read_text(encoding="utf-8")


def test_shows_the_last_stage_of_the_test_split_only(page):
    assert re.findall(r"Findings of (\d+) by stage (\d)", page) == [("17", "3"), ("20", "3"), ("31", "3")]
    assert "uid-99" not in page
    assert FOOTER in page


def test_is_one_well_formed_file_that_loads_nothing(page, read_html):
    elements = read_html(page).elements
    links = [a[key] for _, a in elements for key in ("src", "href") if key in a]
    assert links
    assert all(link.startswith(("data:image/", "#")) for link in links)
    (policy,) = [a["content"] for _, a in elements if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; img-src data:;")


def test_every_link_leads_to_a_card(page, read_html):
    elements = read_html(page).elements
    ids = [a["id"] for _, a in elements if "id" in a]
    assert len(ids) == len(set(ids))
    assert {a["href"][1:] for tag, a in elements if tag == "a"} == {"uid-17", "uid-20", "uid-31"} <= set(ids)


def test_images_wait_until_they_are_needed(page, read_html):
    images = [attributes for tag, attributes in read_html(page).elements if tag == "img"]
    assert len(images) == 3
    assert all((a["loading"], a["decoding"]) == ("lazy", "async") for a in images)


def test_table_has_every_column_that_any_row_has(page):
    heads = re.findall(r'<th scope="col">(.*?)</th>', page)
    assert heads == ["Reports by", "Label F1", "Label F1 interval", "BLEU-4", "Studies", "Meteor"]
    rows = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in re.findall(r"<tr>(.*?)</tr>", page)[1:]]
    none = "\N{EN DASH}"
    assert rows[0] == ["Stage 3", "0.500", "0.400 to 0.600", "0.200", "1,234", none]
    assert rows[1] == ["&lt;b&gt;Constant&lt;/b&gt;", none, none, "0.199", none, none]


def test_a_page_without_metrics_has_no_table(run_folder, tmp_path):
    records = read_predictions(run_folder / "evaluation/predictions.jsonl")
    assert "<table" not in write_page(records, {}, run_folder, tmp_path / "index.html").read_text(encoding="utf-8")


def test_anchors_are_safe_and_differ_where_uids_differ():
    uids = ["17", "CXR17_IM-1", "CXR17 IM-1", '"><script>', "قلب", "a_20_b", "a b"]
    anchors = [anchor(uid) for uid in uids]
    assert anchors[0] == "uid-17"
    assert len(set(anchors)) == len(uids)
    assert all(re.fullmatch(r"[A-Za-z0-9_-]+", name) for name in anchors)


def test_no_test_predictions_or_a_missing_image_is_refused(run_folder, tmp_path):
    records = read_predictions(run_folder / "evaluation/predictions.jsonl")
    with pytest.raises(RadVisionError, match="no predictions for the test split"):
        write_page(records[-1:], {}, run_folder, tmp_path / "index.html")
    (run_folder / "data/images/31.png").unlink()
    with pytest.raises(RadVisionError, match=r"31\.png does not exist"):
        write_page(records, {}, run_folder, tmp_path / "index.html")
    assert not (tmp_path / "index.html").exists()
