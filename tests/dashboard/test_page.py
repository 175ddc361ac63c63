import base64
import re

import pytest

from radvision_utils.config import DISCLAIMER, RadVisionError
from radvision_utils.dashboard.page import anchor, write_page
from radvision_utils.dashboard.record import Record, read_predictions
from radvision_utils.evaluation.charts import show_agreement, show_verdicts
from radvision_utils.evaluation.table import CARD_PROTOCOL
from radvision_utils.evidence.evidence_figures import save_evidence_figures
from radvision_utils.figures import new_figure, save_figure

LABELS = "rule labels, findings + impression"


def figure(value, low=None, high=None):
    return {"value": value, "low": low, "high": high, "n": 3}


def row_of(*f1, **facts):
    """A row of `metrics.json`: the headline figure, a text metric that is whole, one that is not defined, and facts."""
    texts = {"bleu4": figure(0.1987), "rouge_l": figure(None)}
    return {LABELS: {"micro_f1": figure(*f1)}, CARD_PROTOCOL: texts, **facts}


METRICS = {
    "rows": {"<b>constant</b>": row_of(0.2), "after stage 3": row_of(0.5, 0.4, 0.6, distinct_reports=1234)},
    "image_use": {"verdict": "not shown", "sentence": "image used: not shown (<loss gap> 0.01)"},
}


def records_of(run_folder):
    return read_predictions(run_folder / "evaluation/predictions.jsonl")


@pytest.fixture
def page(run_folder):
    return write_page(records_of(run_folder), METRICS, run_folder, run_folder / "dashboard/index.html").read_text(
        encoding="utf-8"
    )


def test_shows_the_last_stage_of_the_test_split_only(page):
    found = re.findall(r'class="rv-text"[^>]*>Findings of (\d+) by stage (\d)', page)
    assert found == [("17", "3"), ("20", "3"), ("31", "3")]
    assert "uid=99" not in page
    assert DISCLAIMER in page


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
    assert {a["href"][1:] for tag, a in elements if tag == "a"} == {"uid=17", "uid=20", "uid=31"} <= set(ids)


def test_images_of_cards_wait_until_they_are_needed(page, read_html):
    images = [a for tag, a in read_html(page).elements if tag == "img" and a["alt"]]
    assert len(images) == 3
    assert all((a["loading"], a["decoding"]) == ("lazy", "async") for a in images)


def test_table_has_every_column_that_any_row_has_and_intervals(page):
    heads = re.findall(r'<th scope="col">(.*?)</th>', page)
    labels = ["Rule\u2011label F1, micro", "Rule\u2011label F1, macro", "Sensitivity", "Specificity"]
    assert heads == ["Reports by", *labels, "BLEU\u20114", "ROUGE\u2011L", "CIDEr\u2011D", "Distinct reports"]
    rows = [
        re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in re.findall(r"<tr.*?>(.*?)</tr>", page, re.DOTALL)[1:]
    ]
    none = "\N{EN DASH}"
    assert rows[0] == ["&lt;b&gt;constant&lt;/b&gt;", "0.200", *[none] * 3, "0.199", *[none] * 3]
    ours = "0.500<small>0.40\N{EN DASH}0.60</small>"
    assert rows[1] == ["after stage 3", ours, *[none] * 3, "0.199", none, none, "1,234"]


@pytest.mark.parametrize(
    ("ours", "answer"),
    [
        ((0.5, 0.4, 0.6), "Better than every baseline"),
        ((0.3, 0.1, 0.5), "Not clearly better than a baseline"),
        ((0.1, 0.0, 0.2), "No better than a baseline"),
    ],
)
def test_the_first_answer_says_whether_the_model_is_any_good(run_folder, tmp_path, ours, answer):
    metrics = {"rows": {"constant": row_of(0.2), "after stage 3": row_of(*ours)}}
    page = write_page(records_of(run_folder), metrics, run_folder, tmp_path / "index.html").read_text(encoding="utf-8")
    assert f'<p class="value">{answer}</p>' in page


@pytest.mark.parametrize("open_question", ["", "; a gap of 0.1 and a drop of 0.2 would show four times in five"])
@pytest.mark.parametrize("beyond", ["", "; it says no more of the image than its labels (0.01 ROUGE-L)"])
def test_why_the_image_counts_as_used_is_told_in_whole_sentences(run_folder, tmp_path, open_question, beyond):
    figures = "loss gap 0.3 (0.2 to 0.4) nats per token, drop of abnormal F1 0.4 (0.0 to 1.0)"
    use = {"verdict": "no", "sentence": f"image used: no ({figures}{open_question}){beyond}"}
    page = write_page(records_of(run_folder), {**METRICS, "image_use": use}, run_folder, tmp_path / "index.html")
    told = re.search(r"Does it look at the image\?</h2><p class=\"value\">No</p><p>(.*?)</p>", page.read_text("utf-8"))[
        1
    ]
    more = [part.removeprefix("; ").capitalize() for part in (open_question, beyond) if part]
    assert told.lower() == ". ".join([figures, *more]).lower() + "."


def test_image_use_and_the_worst_studies_stand_on_the_first_screen(run_folder, tmp_path):
    records = []
    for record in records_of(run_folder):
        bad = record.uid == "31"
        known = {"verdicts": {"Edema": "contradiction" if bad else "agree"}, "flags": ["prior study"] * bad}
        records.append(Record.read({**record.to_json(), **known}))
    save_figure(
        show_agreement([record for record in records if record.split == "test"]), run_folder / "evaluation/agreement"
    )
    page = write_page(records, METRICS, run_folder, tmp_path / "index.html").read_text(encoding="utf-8")
    first_screen = page[: page.index('id="reports"')]
    assert "Not shown</p><p>&lt;loss gap&gt; 0.01" in first_screen
    assert re.findall(r'href="#(uid=\d+)"', first_screen) == ["uid=31"]
    assert "contradiction: edema" in first_screen
    assert "1 of 3 studies</p><p>disagree with the reference in some finding; 1 of them contradict it" in first_screen
    for words in ("Agreement by observation", ">Edema<", ">≠ 1<", ">✓ 2<"):
        assert words in first_screen + drawings(first_screen)
    assert "&#34;Edema&#34;, &#34;contradiction&#34;" in page
    assert '<option value="prior study">' in page


def test_a_page_without_metrics_has_no_table(run_folder, tmp_path):
    assert "<table" not in write_page(records_of(run_folder), {}, run_folder, tmp_path / "index.html").read_text(
        encoding="utf-8"
    )


def test_anchors_are_safe_and_differ_where_uids_differ():
    uids = ["17", "CXR17_IM-1", "CXR17 IM-1", '"><script>', "قلب", "a_20_b", "a b"]
    anchors = [anchor(uid) for uid in uids]
    assert anchors[0] == "uid=17"
    assert len(set(anchors)) == len(uids)
    assert all(re.fullmatch(r"uid=[A-Za-z0-9_.~%-]+", name) for name in anchors)


def test_no_test_predictions_or_a_missing_image_is_refused(run_folder, tmp_path):
    records = records_of(run_folder)
    with pytest.raises(RadVisionError, match="no predictions for the test split"):
        write_page(records[-1:], {}, run_folder, tmp_path / "index.html")
    (run_folder / "data/images/31.png").unlink()
    with pytest.raises(RadVisionError, match=r"31\.png does not exist"):
        write_page(records, {}, run_folder, tmp_path / "index.html")
    assert not (tmp_path / "index.html").exists()


def known(value):
    return {"value": value, "low": value - 0.1, "high": value + 0.1, "n": 3}


LESIONS = {
    "lesions": 74,
    "hit": {"occlusion": known(0.87), "random": known(0.11)},
    "by_finding": {"nodule": {name: known(0.5) for name in ("random", "gradient", "occlusion")}},
    "counts": {"nodule": 74},
    "deletion": {"occlusion": {"curve": [1.0, 0.2], "area": known(0.5)}},
    "insertion": {"occlusion": {"curve": [0.2, 1.0], "area": known(0.5)}},
}
BINS = [{"n": 12, "score": 0.45, "right": 0.5}, {"n": 900, "score": 0.95, "right": 0.9}]
TRUST = {
    "evidence": {"pointing": LESIONS, "sentence": "maps point: <yes>"},
    "confidence": {
        "samples": 5,
        "calibration": {
            "all sentences": {
                "sentences": 912,
                "right": known(0.9),
                "ece": {"calibrated": known(0.131)},
                "bins": {"calibrated": BINS},
            }
        },
        "coverage": [
            {"least": n, "shown": known(1 - n / 10), "told": known(0.8), "unsupported": known(0.2)} for n in (0, 3)
        ],
    },
}


def drawings(page):
    """The SVG of all charts of a page."""
    found = re.findall(r"data:image/svg\+xml;base64,([^\"]+)", page)
    return "".join(base64.b64decode(chart).decode() for chart in found)


def written(run_folder, metrics):
    path = write_page(records_of(run_folder), metrics, run_folder, run_folder / "dashboard/index.html")
    return path.read_text(encoding="utf-8")


@pytest.fixture
def trusted(run_folder):
    """A run whose evaluation left the figures of evidence and confidence."""
    (run_folder / "evaluation/evidence.jsonl").write_text("", encoding="utf-8")
    save_evidence_figures(TRUST, run_folder / "evaluation")
    return run_folder


def test_the_page_says_how_far_maps_and_confidence_are_to_be_trusted(trusted, read_html):
    page = written(trusted, TRUST)
    read_html(page)
    for words in ("Do maps point at the lesion?", "(share of 74 lesions, 95 % interval)", ">0.87<", "error 0.131"):
        assert words in page + drawings(page)
    assert "the surest first" in drawings(page)
    assert "Maps point: &lt;yes&gt;." in page


def test_charts_are_images_that_say_what_they_show_and_stay_small(trusted, read_html):
    save_figure(show_verdicts([]), trusted / "evaluation/verdicts")
    page = written(trusted, TRUST)
    charts = [a for tag, a in read_html(page).elements if tag == "img" and a.get("class") == "chart"]
    assert len(charts) == 4
    assert "stroke: currentColor" in drawings(page)  # the ink of the page's theme
    assert "#000000" not in drawings(page)
    assert all(a["alt"] and a["src"].startswith("data:image/svg+xml") and len(a["src"]) < 120_000 for a in charts)


def test_a_drawing_from_a_stranger_brings_no_element_into_the_page(run_folder, read_html):
    path = run_folder / "evaluation/ladder"
    save_figure(new_figure(3, 2), path)
    svg = path.with_suffix(".svg").read_text(encoding="utf-8")
    bad = '<script>alert(2)</script><a href="https://x.org"><path d="M0 0" onclick="alert(3)"/></a>'
    path.with_suffix(".svg").write_text(svg.replace("</svg>", f"{bad}</svg>"), encoding="utf-8")
    elements = read_html(written(run_folder, {})).elements
    assert [tag for tag, _ in elements].count("script") == 1
    assert not any(key.startswith("on") for _, attributes in elements for key in attributes)
    assert {"svg", "path"}.isdisjoint(tag for tag, _ in elements)


def test_maps_that_nothing_drawn_could_validate_are_called_so(run_folder):
    page = written(run_folder, {"evidence": {"sentence": "maps: <not validated>, since nothing was drawn here"}})
    assert "Maps: &lt;not validated&gt;, since nothing was drawn here." in page
    assert "Do maps point" not in page


def test_a_run_without_figures_has_a_page_without_charts(run_folder):
    assert "svg" not in written(run_folder, METRICS)


def test_every_disagreement_counts_as_wrong_not_the_contradictions_alone(run_folder):
    verdicts = {"17": "missed", "20": "contradiction", "31": "agree"}
    records = [
        Record.read({**r.to_json(), "verdicts": {"Edema": verdicts.get(r.uid, "agree")}})
        for r in records_of(run_folder)
    ]
    page = write_page(records, {}, run_folder, run_folder / "x.html").read_text(encoding="utf-8")
    assert "2 of 3 studies</p><p>disagree with the reference in some finding; 1 of them contradict it" in page


def test_the_page_of_a_model_of_drawings_begins_with_saying_so(run_folder):
    def drawn(record):
        model = {**record.to_json()["model"], "phantoms": True, "parameters": 1_595_840}
        return Record.read({**record.to_json(), "model": model})

    page = write_page(map(drawn, records_of(run_folder)), METRICS, run_folder, run_folder / "x.html").read_text()
    assert "Drawn phantoms, no patients, a model of 1.6 million parameters." in page[: page.index('class="answers"')]
