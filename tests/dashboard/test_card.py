import io
import itertools
import json
import re
from pathlib import Path

import pytest
from PIL import Image

from radvision_utils.config import DISCLAIMER, RadVisionError, project_root
from radvision_utils.dashboard.card import (
    DRAWN_TITLE,
    FLAGS_TITLE,
    JUDGES,
    LABELS_TITLE,
    NO_HEADINGS,
    RULES,
    ReportCard,
    card_style,
)
from radvision_utils.dashboard.picture import draw_card
from radvision_utils.dashboard.radiograph import View, windowed
from radvision_utils.dashboard.record import Record, find_prediction, image_path, read_predictions
from radvision_utils.data.labels import find_mentions, label
from radvision_utils.evaluation.records import clean
from radvision_utils.figures import DARK, GLYPH_INK, LIGHT, SIGN_COLORS, VERDICTS, WELL
from radvision_utils.phantoms.phantom_rows import phantom_row

HOSTILE = "\"'><script>alert(1)</script></article><img src=x onerror=alert(1)> &lt;b&gt; & \x1b[31m"


def card_of(source, *args, **kwargs):
    return ReportCard(Record.read(source), *args, **kwargs)


def luminance(color: str) -> float:
    channels = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a: str, b: str) -> float:
    """Contrast ratio of WCAG 2, 1 to 21."""
    light, dark = sorted((luminance(a), luminance(b)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def mixed(ink: str, paper: str, share: float) -> str:
    pairs = [(int(ink[i : i + 2], 16), int(paper[i : i + 2], 16)) for i in (1, 3, 5)]
    return "#" + "".join(f"{round(share * a + (1 - share) * b):02x}" for a, b in pairs)


def headings(html: str) -> list[str]:
    return [re.sub(r"<[^>]+>", "", h) for h in re.findall(r"<h3[^>]*>(.*?)</h3>", html)]


# Papers of JupyterLab, VS Code and a warm custom theme, in light; of JupyterLab and three of VS Code in dark.
@pytest.mark.parametrize(
    ("palette", "hosts"),
    [(LIGHT, ("#ffffff", "#f8f8f8", "#fdf6e3")), (DARK, ("#111111", "#1e1e1e", "#1f1f1f", "#272822"))],
)
def test_text_has_contrast_of_at_least_4_5_on_every_ground(palette, hosts):
    papers = [palette["paper"], palette["sunk"], *hosts, *(mixed(palette["ink"], host, 0.04) for host in hosts)]
    for text, paper in itertools.product(("ink", "muted", "accent"), papers):
        assert contrast(palette[text], paper) >= 4.5, (text, paper)


def test_image_well_and_glyphs_have_contrast_of_at_least_4_5():
    assert contrast(WELL["well-ink"], WELL["well"]) >= 4.5
    assert luminance(WELL["well"]) < 0.01
    for color in SIGN_COLORS.values():
        assert contrast(GLYPH_INK, color) >= 4.5


def test_style_sheets_take_every_color_from_the_palettes():
    for sheet in ("base.css", "card.css", "page.css"):
        text = (project_root() / "radvision_utils/dashboard" / sheet).read_text(encoding="utf-8")
        assert not re.search(r"#[0-9a-f]{3,8}\b|rgba?\(", text), sheet
    for host in ("--jp-layout-color0", "--vscode-editor-background", "prefers-color-scheme: dark", "html[theme=dark]"):
        assert host in card_style()


def test_findings_stand_beside_findings_and_impression_beside_impression(make_record):
    html = card_of(make_record()).html()
    expected = ["Generated findings", "Reference findings", "Generated impression", "Reference impression"]
    assert headings(html) == expected
    rows = html.split('class="rv-row"')[1:]
    assert [len(re.findall('class="rv-cell', row)) for row in rows] == [2, 2]


def test_a_report_without_headings_is_shown_whole_with_a_flag(make_record):
    record = make_record(generated={"findings": "a shirt on a hanger", "impression": "", "headed": False})
    card = card_of(record)
    assert headings(card.html()) == ["Generated report", "Reference findings", "Reference impression"]
    for text in (card.html(), card.text()):
        assert "a shirt on a hanger" in text
    assert NO_HEADINGS in card.text()
    assert "no headings in the model&#39;s text" in card.html()


def test_an_empty_section_says_so(make_record):
    card = card_of(make_record(generated={"findings": "", "impression": None, "headed": True}))
    assert card.html().count("(empty)") == card.text().count("(empty)") == 2


def test_nothing_from_a_record_becomes_markup(make_record, read_html):
    report = {"findings": HOSTILE, "impression": HOSTILE, "headed": True}
    record = make_record(
        uid=HOSTILE,
        split=HOSTILE,
        view=HOSTILE,
        indication=HOSTILE,
        generated=report,
        reference=report,
        model={"run": HOSTILE, "stage": 3, "base": HOSTILE},
        findings=[{"name": HOSTILE, "side": HOSTILE, "verdict": "agree"}],
        verdicts={HOSTILE: "missed"},
        flags=[HOSTILE],
    )
    harmless = {"findings": "a b", "impression": "a b", "headed": True}
    plain = read_html(
        card_of(
            make_record(
                generated=harmless,
                reference=harmless,
                findings=[{"name": "n", "side": "left", "verdict": "agree"}],
                verdicts={"n": "missed"},
                flags=["f"],
            )
        ).article()
    )
    hostile = read_html(card_of(record).article())
    assert [tag for tag, _ in hostile.elements] == [tag for tag, _ in plain.elements]
    assert [set(attributes) for _, attributes in hostile.elements] == [set(a) for _, a in plain.elements]
    shown = clean(HOSTILE).strip()
    assert sum(shown.lower() in text.lower() for text in hostile.text) >= 10
    assert "\x1b" not in card_of(record).text()


def test_right_to_left_text_finds_its_own_direction(make_record, read_html):
    record = make_record(reference={"findings": "القلب طبيعي الحجم", "impression": ""})
    texts = [a for tag, a in read_html(card_of(record).article()).elements if a.get("class") == "rv-text"]
    assert texts
    assert all(attributes["dir"] == "auto" for attributes in texts)


def test_card_is_a_labelled_article_whose_alt_text_gives_nothing_away(make_record, run_folder, read_html):
    card = card_of(make_record(), run_folder / "data/images/17.png")
    elements = read_html(card.article()).elements
    assert elements[0][0] == "article"
    assert elements[0][1]["aria-label"] == "Report card of study 17"
    (image,) = [attributes for tag, attributes in elements if tag == "img"]
    assert image["alt"] == "Frontal chest radiograph of study 17"
    assert image["src"].startswith("data:image/")


def test_embedded_image_is_small_even_when_it_is_all_noise(make_record):
    stream = io.BytesIO()
    Image.effect_noise((1024, 1024), 80).save(stream, "PNG")
    html = card_of(make_record(), stream.getvalue()).article()
    assert len(html) < 110_000
    assert 'width="512" height="512"' in html


def test_card_reads_without_style_sheet_script_or_variables(make_record, run_folder):
    html = card_of(make_record(), run_folder / "data/images/17.png").html()
    bare = re.sub(r"<style>.*?</style>", "", html, flags=re.DOTALL)
    assert "<script" not in bare
    assert "var(" not in bare
    assert f"background-color: {LIGHT['paper']};color: {LIGHT['ink']}" in bare


def test_head_and_foot_say_which_study_and_what_made_the_report(make_record):
    text = " ".join(card_of(make_record(stage=0), cached=False).text().split())
    for words in ("Study 17", "Indication: Cough.", "base, untuned", "generated now in 0.12 s", DISCLAIMER):
        assert words in text
    assert "cached, written in 0.12 s" in " ".join(card_of(make_record()).text().split())
    assert "stage 3: language model" in card_of(make_record()).html()


def test_scores_are_shown_where_they_are_present(make_record):
    text = card_of(make_record()).text()
    assert "BLEU-4 0.214   ROUGE-L 0.400" in text
    assert "CIDEr-D" not in text


def test_finding_chips_name_their_verdict_in_glyph_and_word(make_record):
    findings = [{"name": "nodule", "side": "left", "verdict": v} for v in ("agree", "missed", "unsupported")]
    html = card_of(make_record(findings=findings, verdicts={"Left Nodule": "contradiction"})).html()
    for verdict, glyph in VERDICTS.items():
        assert re.search(rf">{re.escape(glyph)}</span>Left nodule <span[^>]*>{verdict}<", html)


def test_the_findings_that_a_report_says_first_are_chips_unless_the_card_is_blind(make_record):
    record = make_record(generated={"findings": "Clear.", "impression": "", "line": "Cardiomegaly, pleural effusion."})
    assert "Said first" in card_of(record).html()
    assert re.search(r"Cardiomegaly.*Pleural effusion", card_of(record).html(), re.DOTALL)
    assert "Pleural effusion" not in card_of(record, blind=("reference", "generated")).article()


def test_an_unknown_verdict_is_refused(make_record):
    for record in (
        make_record(findings=[{"name": "nodule", "side": None, "verdict": "maybe"}]),
        make_record(verdicts={"Lung Lesion": "maybe"}),
    ):
        with pytest.raises(RadVisionError, match=r"'maybe'.*contradiction, missed, unsupported, agree"):
            card_of(record).html()


def test_notebook_gets_html_and_plain_text(make_record):
    bundle = card_of(make_record())._repr_mimebundle_()
    assert set(bundle) == {"text/html", "text/plain"}
    assert max(map(len, bundle["text/plain"].splitlines())) <= 80


def test_dictionary_is_a_copy_with_the_origin_of_the_report(make_record):
    card = card_of(make_record(), cached=False)
    made = card.to_dict()
    assert made["cached"] is False
    assert Record.read(made) == card.record
    made["generated"]["findings"] = "changed"
    assert card.to_dict()["generated"]["findings"] != "changed"


def test_saved_page_stands_alone(make_record, run_folder, tmp_path, read_html):
    path = card_of(make_record(), run_folder / "data/images/17.png").save(tmp_path / "cards/card.html")
    page = path.read_text(encoding="utf-8")
    read_html(page)
    assert DISCLAIMER in page
    assert not re.search(r"(src|href)=\"(?!data:)", page)
    assert "default-src 'none'" in page


def test_saved_picture_carries_the_footer(make_record, run_folder, tmp_path):
    card = card_of(make_record(), run_folder / "data/images/17.png")
    with Image.open(card.save(tmp_path / "card.png")) as saved:
        assert saved.width == 2400
        assert saved.info["Disclaimer"] == DISCLAIMER
        foot = saved.crop((0, saved.height - 80, saved.width, saved.height)).convert("L")
    assert foot.getextrema()[0] < 128
    assert [path.name for path in tmp_path.glob("*card*")] == ["card.png"]


def test_saved_pdf_carries_title_and_disclaimer_and_one_page(make_record, tmp_path):
    card = card_of(make_record())
    given = card.save(tmp_path / "card.pdf").read_bytes()
    assert given.startswith(b"%PDF")
    assert f"({DISCLAIMER})".encode() in given
    assert given.count(b"/Type /Page ") == 1


def drawn_texts(figure):
    return [text.get_text() for text in figure.axes[0].texts]


def test_a_very_long_report_makes_a_bounded_picture_that_says_what_it_left_out(make_record):
    words = "opacity " * 5000 + "x" * 3000
    report = {"findings": words, "impression": words, "headed": True}
    figure = draw_card(card_of(make_record(generated=report, reference=report, uid="y" * 500)))
    assert figure.get_size_inches()[1] * 72 < 2000
    assert len([text for text in drawn_texts(figure) if re.fullmatch(r"… 4,\d{3} more words not shown", text)]) == 4


def test_no_verdict_is_lost_at_the_end_of_a_line_of_the_picture_nor_any_text_beyond_its_edge(judged):
    for words in range(1, 12):
        text = "Left effusion" + " again" * words + "."
        judged["generated"] = {"findings": text, "impression": "", "headed": True}
        judged["mentions"]["generated"] = {"findings": [m._asdict() for m in find_mentions(text)][:1]}
        figure = draw_card(card_of(judged))
        assert drawn_texts(figure).count(VERDICTS["contradiction"]) == 4  # the corner, both sentences and the chip
        boxes = [text.get_window_extent() for text in figure.axes[0].texts]
        assert all(box.x0 >= 0 and box.x1 <= figure.bbox.x1 for box in boxes)


def test_nothing_in_a_picture_is_taken_for_a_formula(make_record, tmp_path):
    report = {"findings": "Costs $5 and $x_{1}$ \\frac.", "impression": "", "headed": True}
    card = card_of(make_record(generated=report))
    assert "Costs $5 and $x_{1}$ \\frac." in drawn_texts(draw_card(card))
    assert card.save(tmp_path / "card.png").stat().st_size > 5000


def test_a_card_is_not_saved_under_an_unknown_ending(make_record, tmp_path):
    with pytest.raises(RadVisionError, match=r"\.html, \.png or \.pdf"):
        card_of(make_record()).save(tmp_path / "card.docx")


def test_a_missing_or_unreadable_image_is_named(make_record, tmp_path):
    with pytest.raises(RadVisionError, match=r"nowhere\.png does not exist"):
        card_of(make_record(), tmp_path / "nowhere.png").html()
    with pytest.raises(RadVisionError, match="cannot be read"):
        card_of(make_record(), b"no image").html()


@pytest.mark.parametrize("image", ["../secret.png", "/etc/secret.png"])
def test_an_image_outside_the_run_is_refused(make_record, image):
    with pytest.raises(RadVisionError, match="outside the run folder"):
        image_path(Record.read(make_record(image=image)), Path("run"))


def test_predictions_are_read_in_order_without_blank_lines(run_folder):
    records = read_predictions(run_folder / "evaluation/predictions.jsonl")
    assert [record.uid for record in records] == ["17", "17", "20", "20", "31", "99"]


def test_one_prediction_is_found_among_those_of_other_stages_and_splits(run_folder):
    path = run_folder / "evaluation/predictions.jsonl"
    assert find_prediction(path, "20", "test", 0).generated.findings == "Findings of 20 by stage 0."
    assert find_prediction(path, "20", "test", 1) is None
    assert find_prediction(path, "20", "train", 0) is None
    assert find_prediction(path, "99", "train", 3).index == 9


@pytest.mark.parametrize(
    ("line", "what"), [("{broken", "not readable JSON"), ("[]", "no usable value"), ("{}", "lacks uid")]
)
def test_a_bad_line_of_predictions_is_named(tmp_path, make_record, line, what):
    path = tmp_path / "predictions.jsonl"
    path.write_text(json.dumps(make_record()) + f"\n{line}\n", encoding="utf-8")
    with pytest.raises(RadVisionError, match=rf"line 2 of .*{what}"):
        read_predictions(path)


def test_missing_predictions_name_the_command_that_makes_them(tmp_path):
    with pytest.raises(RadVisionError, match="python -m radvision_utils run --profile tiny --run mine --output-root"):
        read_predictions(tmp_path / "mine" / "evaluation" / "predictions.jsonl")


JUDGED = {
    "generated": {
        "findings": "The heart is normal in size. Left effusion. No pneumothorax.",
        "impression": "Large heart.",
    },
    "reference": {"findings": "The heart is enlarged. Right effusion.", "impression": "Opacity."},
    "verdicts": {"Cardiomegaly": "agree", "Pleural Effusion": "contradiction", "Lung Opacity": "missed"},
    "flags": ["findings against impression"],
    "scores": {"label_f1": 0.4, "rouge_l": 0.5},
}


@pytest.fixture
def judged(make_record):
    """A record as the evaluation writes it, with labels, mentions and verdicts of the rules."""
    record = make_record(**JUDGED)
    record["generated"]["headed"] = True
    for part in ("labels", "mentions"):
        record[part] = {}
    for author in ("generated", "reference"):
        report = record[author]
        labels = label(f"{report['findings']}\n{report['impression']}")
        record["labels"][author] = {n: {"status": x.status, "sides": list(x.sides)} for n, x in labels.items()}
        record["mentions"][author] = {
            s: [m._asdict() for m in find_mentions(report[s])] for s in ("findings", "impression")
        }
    return record


def test_sentences_behind_a_verdict_are_marked_with_its_glyph(judged):
    marks = re.findall(r'<mark class="rv-mark rv-mark-(\w+)"[^>]*>(.*?)</mark>', card_of(judged).article())
    assert marks == [
        ("contradiction", "Left effusion."),
        ("agree", "The heart is enlarged."),
        ("contradiction", "Right effusion."),
        ("agree", "Large heart."),
        ("missed", "Opacity."),
    ]
    text = card_of(judged).text()
    assert "Left effusion. [\N{NOT EQUAL TO}] No pneumothorax." in text
    assert "Large heart. [\N{CHECK MARK}]" in text


def test_disagreement_comes_first_and_says_what_each_text_says(judged):
    text = card_of(judged).text()
    lines = text[text.index("Generated against reference") :].splitlines()[:4]
    assert lines[0] == "Generated against reference (rule-based, may be wrong)"
    assert lines[1].endswith("Pleural effusion: contradiction (generated: left, reference: right)")
    assert [line.split(": ")[1] for line in lines[2:]] == ["missed", "agree"]


def test_all_that_rules_found_is_labeled_as_such(judged):
    html = card_of(judged).article()
    for title in (LABELS_TITLE, FLAGS_TITLE):
        assert re.search(rf"{title}<span[^>]*>{RULES}</span>", html)
    assert f"Label F1 is {RULES}" in html
    assert "findings and impression contradict each other" in html
    drawn = card_of({**judged, "findings": [{"name": "nodule", "side": "left", "verdict": "missed"}]}).article()
    assert f"{DRAWN_TITLE}</h3>" in drawn


def test_word_differences_are_folded_until_asked_for(judged, read_html):
    html = card_of(judged).article()
    assert "<details" in html
    assert "open" not in [key for tag, a in read_html(html).elements if tag == "details" for key in a]
    differences = html[html.index("<details") :]
    assert re.findall(r"<ins[^>]*>(.*?)</ins>", differences)[1:] == [
        "normal in size. Left",
        "No pneumothorax.",
        "Large heart.",
    ]
    assert re.findall(r"<del[^>]*>(.*?)</del>", differences)[1:] == ["enlarged. Right", "Opacity."]


def test_equal_reports_have_no_word_differences(make_record):
    report = {"findings": "Clear.", "impression": "Normal.", "headed": True}
    assert "<details" not in card_of(make_record(generated=report, reference=report)).article()


def test_spans_that_do_not_fit_the_text_and_odd_records_still_draw(judged):
    judged["mentions"]["generated"]["findings"] += [
        {"observation": "Lung Opacity", "status": "present", "side": "", "start": 9000, "end": 9010}
    ]
    judged["mentions"]["reference"] = None
    judged["labels"] = None
    assert "Left effusion." in card_of(judged).text()


def test_a_blind_card_tells_nothing_of_whose_text_is_whose(judged):
    html = card_of(judged, blind=("reference", "generated")).article()
    assert headings(html) == ["Report A findings", "Report B findings", "Report A impression", "Report B impression"]
    assert html.index("The heart is enlarged.") < html.index("The heart is normal")
    for word in ("generated", "stage", "Label F1", "<mark", "<details", "contradiction"):
        assert word not in re.sub(r' class="[^"]*"', "", html), word


def test_a_blind_picture_and_text_tell_no_more(judged):
    card = card_of(judged, blind=("reference", "generated"))
    for texts in (card.text(), " ".join(drawn_texts(draw_card(card)))):
        assert "The heart is enlarged." in texts
        for word in ("Generated", "stage", "Label F1", "contradiction", *VERDICTS.values()):
            assert word not in texts, word


def test_an_image_of_ones_own_has_one_column(make_record):
    record = make_record(uid="lungs.png", reference=None)
    assert headings(card_of(record).html()) == ["Generated findings", "Generated impression"]
    assert card_of(record).text().startswith("Image lungs.png")


def test_window_and_inversion_change_the_picture_and_zoom_lets_it_scroll(make_record, run_folder):
    path = run_folder / "data/images/17.png"
    plain, gray = card_of(make_record(), path).article(), Image.new("L", (1, 1), 102)
    assert windowed(gray, View()).getpixel((0, 0)) == 102
    assert windowed(gray, View(invert=True)).getpixel((0, 0)) == 153
    assert windowed(gray, View(center=0.4, width=0.2)).getpixel((0, 0)) in (127, 128)
    assert card_of(make_record(), path, view=View(invert=True)).article() != plain
    zoomed = card_of(make_record(), path, view=View(zoom=2)).article()
    assert "width:200%" in zoomed
    assert "overflow:auto" in zoomed


def test_a_small_picture_for_a_readme_stays_under_300_kb(make_record, tmp_path):
    row = phantom_row(148)
    path = card_of(make_record(), row["img_frontal"]).save(tmp_path / "card.png", width=1000)
    assert path.stat().st_size < 300_000
    with Image.open(path) as picture_:
        assert picture_.width == 1000


DRAWN_MODEL = {"run": "tiny", "stage": 3, "base": "tiny", "phantoms": True, "parameters": 1_595_840}
BAND = "Drawn phantoms, no patients, a model of 1.6 million parameters."


def test_a_model_of_drawings_says_so_on_every_card_and_picture(make_record):
    card = card_of(make_record(model=DRAWN_MODEL))
    for text in (card.article(), " ".join(card.text().split()), " ".join(drawn_texts(draw_card(card)))):
        assert BAND in text
    own = card_of(make_record(model=DRAWN_MODEL, reference=None)).article()
    assert "has only ever seen drawings" in own
    assert "of a real radiograph means nothing" in own
    assert "rv-band" not in card_of(make_record()).article()


def test_a_tiny_model_of_real_radiographs_says_so_too_and_a_large_one_needs_not(make_record):
    real = {**DRAWN_MODEL, "phantoms": False}
    assert "Real radiographs, a tiny model of 1.6 million parameters" in card_of(make_record(model=real)).article()
    assert "rv-band" not in card_of(make_record(model={**real, "parameters": 8_292_166_656})).article()


def test_the_corner_of_a_card_has_its_verdict_and_the_foot_what_made_it(make_record):
    html = card_of(make_record(verdicts={"Edema": "missed", "Fracture": "agree", "Pneumonia": "agree"})).article()
    head, foot = html[: html.index("</header>")], html[html.index("<footer") :]
    assert re.findall(r"</span>(\d \w+)</span>", head) == ["1 missed", "2 agree"]
    assert "cached, written in" not in head
    assert "cached, written in 0.12 s" in foot


def test_a_report_before_training_stands_in_the_same_card_with_what_changed(make_record):
    def drawn(*pairs):
        return [{"name": name, "side": "left", "verdict": verdict} for name, verdict in pairs]

    before = Record.read(make_record(stage=0, findings=drawn(("nodule", "missed"), ("effusion", "unsupported"))))
    card = card_of(make_record(findings=drawn(("nodule", "agree"))), before=before)
    assert headings(card.article())[:3] == ["Before training findings", "Generated findings", "Reference findings"]
    changed = card.text()[card.text().index("Changed by training") :].splitlines()[1:3]
    assert changed == [
        "  \N{CHECK MARK} Left nodule: agree (before: missed)",
        "  \N{CHECK MARK} Left effusion: no longer said (before: unsupported)",
    ]
    boxes = [text.get_window_extent() for text in draw_card(card).axes[0].texts]
    assert all(box.x0 >= 0 and box.x1 <= 1152 for box in boxes)


def test_two_judges_that_disagree_are_explained(make_record):
    missed = [{"name": "nodule", "side": "left", "verdict": "missed"}]
    assert JUDGES in card_of(make_record(verdicts={"Lung Lesion": "agree"}, findings=missed)).article()
    assert JUDGES not in card_of(make_record(verdicts={"Lung Lesion": "missed"}, findings=missed)).article()


def test_no_word_of_a_blind_card_is_one_that_only_people_leave(make_record):
    report = {"findings": "The heart is enlarged. Discussed with XXXX. Unchanged from prior.", "impression": "Normal.."}
    html = card_of(make_record(reference=report), blind=("reference", "generated")).article()
    for words in ("XXXX", "prior", "Normal.."):
        assert words not in html
    assert "The heart is enlarged." in html
