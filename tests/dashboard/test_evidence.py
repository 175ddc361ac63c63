"""Evidence and confidence of sentences on the card; what a browser makes of them is tested in test_in_chromium."""

import base64
import copy
import io
import json
import logging
import re

import pytest
from PIL import Image

from radvision_utils.dashboard import page as page_module
from radvision_utils.dashboard.browser import ReportBrowser
from radvision_utils.dashboard.card import ReportCard
from radvision_utils.dashboard.page import write_page
from radvision_utils.dashboard.picture import draw_card
from radvision_utils.dashboard.radiograph import View, map_uri, viridis
from radvision_utils.dashboard.record import EvidenceMap, Record, find_prediction, most_samples, read_predictions

HOSTILE = "\"'><script>alert(1)</script><img src=x onerror=alert(1)>"


def card_of(source, *args, **kwargs):
    return ReportCard(Record.read(source), *args, **kwargs)


@pytest.fixture
def image(run_folder):
    return run_folder / "data/images/17.png"


def texts_of(html):
    return re.findall(r'<span class="rv-words"[^>]*>(.*?)</span>', html)


def test_each_generated_sentence_has_its_map_in_words_and_as_a_small_picture(explained, image, read_html):
    card = card_of(explained, image)
    assert texts_of(card.article()) == ["The heart is enlarged.", "No effusion.", "Cardiomegaly."]
    small = [a for tag, a in read_html(card.article()).elements if a.get("class", "").startswith("rv-thumb")]
    assert [a["alt"] for a in small] == [
        "Evidence map: strongest at the upper left of the image",
        "Evidence map: strongest at the lower right of the image, not supported by occlusion",
        "Evidence map: strongest nowhere in the image",
    ]
    assert all(len(a["src"]) < 4000 for a in small)
    assert "evidence: upper left of the image" in card.text()


def test_confidence_is_told_in_words_with_the_number_on_demand(explained, image):
    html = card_of(explained, image).article()
    assert "medium confidence; not supported by occlusion" in html
    assert re.search(r"<strong[^>]*>low confidence</strong>; only 1 of 5 sampled reports say so", html)
    assert 'title="40 % likely to be right, mean log-probability -1.50 nats a token"' in html
    folded = html[html.index("Numbers behind the sentences") :]
    assert "High confidence: at least 90 % likely to be right; medium: at least 70 %; low: less." in folded
    assert ">40 %</td>" in folded


def test_a_sentence_without_calibration_makes_no_claim(explained, image):
    explained["confidence"]["sentences"][0]["confidence"] = None
    assert [s.confidence.level for s in Record.read(explained).explained] == ["", "medium confidence", "low confidence"]


def test_maps_lie_over_the_radiograph_only_when_they_are_asked_for(explained, image, read_html):
    elements = read_html(card_of(explained, image).article()).elements
    chosen = [a["value"] for tag, a in elements if tag == "input" and "checked" in a]
    assert chosen == ["off"]
    over = [a for _, a in elements if a.get("class", "").startswith("rv-map")]
    assert len(over) == 3
    assert all(a["alt"] == "" and (a["width"], a["height"]) == ("0", "0") for a in over)
    bare = read_html(card_of(explained, image).html()).elements
    hidden = [a["style"] for _, a in bare if a.get("class", "").startswith("rv-map")]
    assert hidden == ["display: none"] * 3  # where the style sheet is stripped
    assert [("rv-unsupported" in a["class"]) for a in over] == [False, True, False]
    assert all(len(a["src"]) < 1000 for a in over)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"occlusion": [[1.0, 0.2]]}, "not 2 rows of 2 cells"),
        ({"occlusion": [[1.0, 0.2], [0.1]]}, "not 2 rows of 2 cells"),
        ({"occlusion": [[1.0, float("nan")], [0.1, 0.0]]}, "occlusion is of the wrong kind"),
        ({"occlusion": [[1.0, "<b>"], [0.1, 0.0]]}, "occlusion is of the wrong kind"),
        ({"occlusion": [[1.0, -0.2], [0.1, 0.0]]}, "outside 0 to 1"),
        ({"occlusion": None}, "occlusion is of the wrong kind"),
        ({"supported": "no"}, "supported is of the wrong kind"),
    ],
)
def test_a_damaged_map_is_logged_and_the_card_does_without_it(explained, image, caplog, change, reason):
    explained["evidence"]["sentences"][0].update(change)
    with caplog.at_level(logging.WARNING):
        html = card_of(explained, image).article()
    assert texts_of(html) == ["The heart is enlarged.", "No effusion.", "Cardiomegaly."]
    assert len(re.findall('class="rv-thumb"', html)) == 2
    assert "study 17, findings sentence 1: its map is damaged" in caplog.text
    assert reason in caplog.text


@pytest.mark.parametrize("grid", [None, [0, 2], [2, 2000], "ab", [2]])
def test_a_damaged_grid_leaves_out_every_map(explained, image, grid):
    explained["evidence"]["grid"] = grid
    html = card_of(explained, image).article()
    assert "rv-thumb" not in html
    assert "rv-switch" not in html
    assert "low confidence" in html


@pytest.mark.parametrize("agreement", [7, -1, "<b>", 2.5])
def test_an_impossible_agreement_is_logged_and_left_out(explained, image, caplog, agreement):
    explained["confidence"]["sentences"][0]["agreement"] = agreement
    assert Record.read(explained).sentences["generated", "findings"][0].confidence is None
    assert "its confidence is damaged" in caplog.text


@pytest.mark.parametrize("entry", [{"sentences": "x"}, {"sentences": [3, None]}, {}, {"sentences": [{}]}])
def test_entries_of_another_shape_leave_the_plain_card(explained, image, entry):
    plain = {key: value for key, value in explained.items() if key not in ("evidence", "confidence")}
    explained["evidence"] = explained["confidence"] = entry
    assert card_of(explained, image).article() == card_of(plain, image).article()


def test_evidence_of_another_report_is_not_shown_on_this_one(explained, image):
    explained["generated"]["findings"] = "The heart is normal. No effusion."
    html = card_of(explained, image).article()
    assert len(re.findall('class="rv-thumb"', html)) == 2
    assert html.count(">95 %</td>") == 0


def test_hostile_text_in_evidence_stays_text(explained, image, read_html):
    explained["generated"]["findings"] = f"{HOSTILE}. No effusion."
    first = explained["evidence"]["sentences"][0]
    first["text"] = explained["confidence"]["sentences"][0]["text"] = f"{HOSTILE}."
    explained["evidence"]["uid"] = explained["confidence"]["uid"] = HOSTILE
    explained["confidence"]["sentences"][0]["agreement"] = HOSTILE
    page = read_html(card_of(explained, image).article())
    assert not any(tag == "script" for tag, _ in page.elements)
    assert not any("onerror" in attributes for _, attributes in page.elements)
    assert any("alert(1)" in text for text in page.text)


def test_places_are_named_by_the_halves_of_the_image():
    def where(size, y, x):
        values = [[0.0] * size for _ in range(size)]
        values[y][x] = 1.0
        return EvidenceMap((size, size), tuple(map(tuple, values)), True).where

    assert where(4, 0, 3) == "upper right of the image"
    assert where(4, 2, 1) == "lower left of the image"
    assert where(18, 17, 9) == "lower center of the image"
    assert where(18, 9, 2) == "middle left of the image"
    assert where(1, 0, 0) == "center of the image"


def test_colors_run_through_viridis_and_gray_keeps_their_lightness():
    ends = [viridis()[shade, :3].tobytes().hex() for shade in (0, 15)]
    assert ends in (["440154", "fde724"], ["440154", "fde725"])  # matplotlib's rounding differs by version
    grays = viridis(False)[:, :3].tolist()
    assert all(red == green == blue for red, green, blue in grays)
    assert grays == sorted(grays)


def test_an_18_by_18_map_costs_less_than_a_kilobyte_and_keeps_its_cells():
    values = tuple(tuple((x * 7 + y * 3) % 18 / 17 for x in range(18)) for y in range(18))
    uri = map_uri(EvidenceMap((18, 18), values, True))
    assert len(uri) < 1000
    with Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))) as picture:
        pixels = picture.convert("RGBA")
    assert pixels.size == (18, 18)
    assert pixels.getpixel((5, 5))[3] == round(255 * round(values[5][5] * 15) / 15)
    assert pixels.getpixel((0, 0))[3] == 0


def test_sentences_below_a_chosen_agreement_are_hidden_and_counted(explained, image):
    card = card_of(explained, image, view=View(least_agreement=3))
    html = card.article()
    assert texts_of(html) == ["The heart is enlarged.", "No effusion."]  # the second asserts nothing: never hidden
    assert html.count("1 sentence hidden below 3 of 5") == 1
    assert "Cardiomegaly." in card.text()


def test_blind_cards_show_neither_evidence_nor_confidence(explained, image):
    html = card_of(explained, image, blind=("generated", "reference")).article()
    for words in ("rv-thumb", "rv-map", "rv-switch", "confidence", "sampled"):
        assert words not in html


def drawn_texts(figure):
    return [text.get_text() for text in figure.axes[0].texts]


def test_the_picture_has_small_multiples_of_the_sentences(explained, image):
    plain = {key: value for key, value in explained.items() if key not in ("evidence", "confidence")}
    with_maps, without = (draw_card(card_of(source, image)) for source in (explained, plain))
    assert with_maps.get_figheight() > without.get_figheight() + 2
    for words in ("Sentence by sentence", "medium confidence", "not supported by occlusion", "least", "most"):
        assert words in drawn_texts(with_maps)
    multiples = with_maps.axes[0].images[2:]  # after the radiograph and the color bar
    assert len(multiples) == 3
    colored = [bool((m.get_array().max(-1) - m.get_array().min(-1)).max() > 60) for m in multiples]
    assert colored == [True, False, False]  # without support gray; the third rests on nothing


def test_a_very_long_report_keeps_the_picture_bounded_and_says_what_is_left_out(explained, image):
    sentence = explained["evidence"]["sentences"][0]
    explained["generated"]["findings"] = " ".join([sentence["text"]] * 400)
    explained["evidence"]["sentences"] = [{**sentence, "index": index} for index in range(400)]
    figure = draw_card(card_of(explained, image))
    assert figure.get_figheight() * 72 < 2500
    assert "389 more sentences not shown." in " ".join(drawn_texts(figure))


@pytest.fixture
def known_run(run_folder, explained):
    """A run whose evaluation has both files, each with a damaged line."""
    report = {key: explained["generated"][key] for key in ("findings", "impression")}
    lines = (run_folder / "evaluation/predictions.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines if line]
    for record in records:
        record["generated"].update(report)
    text = "".join(json.dumps(record) + "\n" for record in records)
    (run_folder / "evaluation/predictions.jsonl").write_text(text, encoding="utf-8")
    for part in ("evidence", "confidence"):
        other = {**copy.deepcopy(explained[part]), "uid": "99"}
        content = "{torn\n" + "".join(json.dumps(entry) + "\n" for entry in (explained[part], other)) + '["17"]\n'
        (run_folder / f"evaluation/{part}.jsonl").write_text(content, encoding="utf-8")
    return run_folder


def test_files_beside_the_predictions_are_joined_with_the_last_stage(known_run, explained, caplog):
    path = known_run / "evaluation/predictions.jsonl"
    found = {(r.uid, r.model.stage): r.evidence or None for r in read_predictions(path)}
    assert found.pop(("17", 3)) == explained["evidence"]
    assert set(found.values()) == {None}  # other stages, other studies, and the training study 99
    assert "line 1 of" in caplog.text
    assert find_prediction(path, "17", "test", 3).confidence == explained["confidence"]
    assert not find_prediction(path, "17", "test", 0).evidence


def test_the_page_offers_evidence_only_where_there_is_some(known_run, tmp_path):
    records = read_predictions(known_run / "evaluation/predictions.jsonl")
    page = write_page(records, {}, known_run, tmp_path / "index.html").read_text(encoding="utf-8")
    assert '<button id="evidence"' in page
    assert '<option value="5">below 5 of 5</option>' in page
    bare = [Record.read({**r.to_json(), "evidence": None, "confidence": None}) for r in records]
    page = write_page(bare, {}, known_run, tmp_path / "index.html").read_text(encoding="utf-8")
    assert '<button id="evidence"' not in page
    assert 'id="least"' not in page


def test_a_page_of_many_studies_keeps_the_maps_of_the_worst_and_says_so(explained, run_folder, monkeypatch):
    monkeypatch.setattr(page_module, "_MAPPED", 1)
    verdicts = {"17": "agree", "20": "contradiction"}
    records = [
        Record.read({**explained, "uid": uid, "index": n, "verdicts": {"Edema": verdict}})
        for n, (uid, verdict) in enumerate(verdicts.items())
    ]
    page = write_page(records, {}, run_folder, run_folder / "index.html").read_text(encoding="utf-8")
    assert page.count('class="rv-thumb"') == 3
    assert page.index('id="uid=20"') < page.index('class="rv-thumb"')
    assert "Evidence maps are on the 1 worst of the 2 studies that have some" in page


def test_the_browser_sets_strength_and_hides_sentences(known_run):
    records = [r for r in read_predictions(known_run / "evaluation/predictions.jsonl") if r.split == "test"]
    browser = ReportBrowser(records, known_run)
    assert "--rv-strength:0.00" in browser.card.value
    browser.view.evidence.value = 0.5
    assert "--rv-strength:0.50" in browser.card.value
    browser.view.agreement.value = 3
    assert "1 sentence hidden below 3 of 5" in browser.card.value
    browser.next.click()
    assert "hidden below" not in browser.card.value
    assert most_samples(records) == 5
    bare = ReportBrowser([r for r in records if r.uid != "17"], known_run)
    assert bare.view.evidence not in bare.view.children
    assert bare.view.agreement not in bare.view.children


def test_what_is_likely_right_and_said_by_every_sample_needs_no_remark(explained):
    assert [s.remarks for s in Record.read(explained).explained] == [
        [],
        ["medium confidence", "not supported by occlusion"],
        ["low confidence", "only 1 of 5 sampled reports say so"],
    ]


def test_what_was_drawn_of_a_phantom_is_outlined_on_its_maps(explained, image):
    drawn = [{"name": "nodule", "side": "left", "verdict": "missed", "box": [0.5, 0.25, 0.75, 0.5]}]
    plain, card = card_of(explained, image), card_of({**explained, "findings": drawn}, image)
    assert 'style="left:50.0%;top:25.0%;width:25.0%;height:25.0%"' in card.article()
    assert "Outlined: what was drawn." in card.article()
    assert "Outlined: what was drawn." in drawn_texts(draw_card(card))
    small = [re.findall(r'class="rv-thumb" src="([^"]+)"', each.article()) for each in (plain, card)]
    assert all(a != b for a, b in zip(*small, strict=True))
    assert "rv-lesion" not in plain.article()
