"""What only a browser can tell: layout at three widths, themes of the hosts, keys. Skipped where there is none."""

import re
import shutil
from dataclasses import replace

import pytest

from radvision_utils.config import project_root
from radvision_utils.dashboard.card import ReportCard
from radvision_utils.dashboard.page import write_page
from radvision_utils.dashboard.record import Record, read_predictions
from radvision_utils.data.labels import OBSERVATIONS, find_mentions
from radvision_utils.evaluation.charts import show_agreement
from radvision_utils.evaluation.table import COLUMNS, FACTS
from radvision_utils.figures import save_figure
from radvision_utils.phantoms.phantom_rows import phantom_row

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium or google-chrome on the path")

OVERFLOWING = """() => [...document.querySelectorAll('.rv-card *')].filter(e => {
  const style = getComputedStyle(e);
  return style.display !== 'inline' && style.overflowX === 'visible' && e.clientWidth > 0
    && e.scrollWidth > e.clientWidth + 1;
}).map(e => e.className)"""
TOPS = "() => [...document.querySelectorAll('.rv-cell')].map(e => Math.round(e.getBoundingClientRect().top))"
POOR_CONTRAST = """() => {
  const pen = document.createElement('canvas').getContext('2d', { willReadFrequently: true });
  const luminance = color => {
    pen.fillStyle = color; pen.fillRect(0, 0, 1, 1);
    const [r, g, b] = [...pen.getImageData(0, 0, 1, 1).data].map(v => v / 255)
      .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = e => { const c = getComputedStyle(e).backgroundColor;
    return c === 'rgba(0, 0, 0, 0)' ? ground(e.parentElement) : c; };
  const poor = [];
  for (const e of document.querySelectorAll('.rv-card *, .page *')) {
    if (![...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim()) || e.closest('svg, option')) continue;
    const pair = [luminance(getComputedStyle(e).color), luminance(ground(e))].sort((a, b) => b - a);
    const contrast = (pair[0] + 0.05) / (pair[1] + 0.05);
    if (contrast < 4.5) poor.push(`${e.className || e.tagName} ${contrast.toFixed(2)}`);
  }
  return poor;
}"""
HOSTS = {
    "plain page": "",
    "JupyterLab light": "document.body.dataset.jpThemeLight = 'true'; set('--jp-layout-color0', '#ffffff')",
    "JupyterLab dark": "document.body.dataset.jpThemeLight = 'false'; set('--jp-layout-color0', '#111111');"
    "set('--jp-content-font-color0', '#ffffff')",
    "VS Code light": "document.body.className = 'vscode-light'; set('--vscode-editor-background', '#ffffff')",
    "VS Code dark": "document.body.className = 'vscode-dark'; set('--vscode-editor-background', '#1e1e1e');"
    "set('--vscode-editor-foreground', '#d4d4d4')",
    "Colab dark": "document.documentElement.setAttribute('theme', 'dark')",
}


def bare(card):
    """The card's HTML as a notebook that is not trusted has it."""
    return re.sub(r"<style>.*?</style>", "", card.html(), flags=re.DOTALL)


@pytest.fixture(scope="module")
def chromium():
    quiet = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=quiet)
        yield browser
        browser.close()


@pytest.fixture
def card(make_record, run_folder):
    long = {"findings": "opacity " * 3000, "impression": "x" * 900, "headed": True}
    findings = [{"name": "pleural effusion", "side": "left", "verdict": v} for v in ("agree", "missed", "unsupported")]
    said = {"status": "present", "sides": ["left", "right"]}
    record = make_record(
        generated=long,
        findings=findings,
        uid="y" * 120,
        verdicts={"Enlarged Cardiomediastinum": "contradiction", "Edema": "agree"},
        labels={author: {"Enlarged Cardiomediastinum": said} for author in ("generated", "reference")},
        mentions={"reference": {"impression": [{"observation": "Edema", "status": "present", "start": 0, "end": 4}]}},
        flags=["prior study", "findings against impression"],
        scores={"label_f1": 0.5, "bleu4": 0.1, "rouge_l": 0.2, "cider_d": 1.0},
    )
    return ReportCard(Record.read(record), run_folder / "data/images/17.png")


def test_no_text_leaves_its_column_and_rows_align_from_900_pixels_on(chromium, card):
    page = chromium.new_page()
    for html in (card.html(), bare(card)):
        page.set_content(f"<!doctype html>{html}")
        for width in (360, 768, 1440):
            page.set_viewport_size({"width": width, "height": 900})
            assert page.evaluate(OVERFLOWING) == []
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            first, second, third, fourth = page.evaluate(TOPS)
            if width == 1440:
                assert first == second < third == fourth
            if width == 360:
                assert first < second < third < fourth
    page.close()


@pytest.mark.parametrize("system", ["light", "dark"])
def test_every_host_and_theme_has_contrast_of_at_least_4_5(chromium, card, system):
    page = chromium.new_page(color_scheme=system)
    for host, script in HOSTS.items():
        page.set_content(f"<!doctype html>{card.html()}")
        page.evaluate(f"() => {{ const set = (n, v) => document.body.style.setProperty(n, v); {script} }}")
        assert page.evaluate(POOR_CONTRAST) == [], host
    page.close()


@pytest.fixture
def page(chromium, run_folder):
    """The standalone page of three studies, from its file; a message or a request beyond it fails."""
    records = []
    for record in read_predictions(run_folder / "evaluation/predictions.jsonl"):
        verdicts = {"Edema": "contradiction" if record.uid == "31" else "agree"}
        scores = {"label_f1": {"17": 1.0, "20": 0.5}.get(record.uid, 0.0)}
        records.append(Record.read({**record.to_json(), "verdicts": verdicts, "scores": scores}))
    save_figure(show_agreement(records), run_folder / "evaluation/agreement")
    path = write_page(records, {}, run_folder, run_folder / "dashboard/index.html")
    page, problems = chromium.new_page(), []
    page.on("console", lambda message: problems.append(message.text))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda request: problems.append(request.url) if request.url.startswith("http") else None)
    page.goto(path.as_uri())
    yield page
    page.close()
    assert problems == []


def shown(page):
    ids = "[...document.querySelectorAll('#cards > :not([hidden])')].map(card => card.id.slice(4))"
    return page.evaluate(ids)


def test_arrow_keys_and_deep_links_lead_through_the_page(page):
    page.goto(page.url + "#uid=20")
    assert page.text_content("#where") == "2 of 3 studies"
    page.keyboard.press("ArrowRight")
    assert page.evaluate("location.hash") == "#uid=31"
    page.wait_for_timeout(100)  # the page looks again for a few frames, as cards take their real height
    assert page.evaluate("document.getElementById('uid=31').getBoundingClientRect().top < innerHeight / 2")
    page.keyboard.press("ArrowLeft")
    assert page.text_content("#where") == "2 of 3 studies"


def test_the_gallery_is_sorted_and_filtered(page):
    assert shown(page) == ["17", "20", "31"]
    page.select_option("#order", label="lowest label F1")
    assert shown(page) == ["31", "20", "17"]
    page.select_option("#verdict", "agree")
    assert shown(page) == ["20", "17"]
    assert page.text_content("#where") == "2 studies (of 3)"
    page.keyboard.press("Escape")
    page.keyboard.press("/")
    page.keyboard.type("findings of 17")
    assert shown(page) == ["17"]
    page.evaluate("location.hash = 'uid=31'")  # a link to a study that the filter leaves out takes the filter away
    page.wait_for_timeout(100)  # the policy of the page forbids to wait for an expression
    assert page.text_content("#where") == "3 of 3 studies"


def test_keys_invert_window_hide_the_texts_and_explain_themselves(page):
    look = "getComputedStyle(document.querySelector('#cards img')).filter"
    assert "invert(0)" in page.evaluate(look)
    page.keyboard.press("i")
    assert "invert(1)" in page.evaluate(look)
    page.keyboard.press("w")
    assert page.text_content("#window") == "Window: lung"
    assert "contrast(1.167)" in page.evaluate(look)
    texts = "getComputedStyle(document.querySelector('#cards .rv-texts')).visibility"
    page.keyboard.press("ArrowRight")
    page.keyboard.press("r")
    assert page.evaluate(texts) == "hidden"
    page.keyboard.press("r")
    assert page.evaluate(texts) == "visible"
    page.keyboard.press("?")
    assert page.is_visible("#keys")
    page.keyboard.press("Escape")
    assert not page.is_visible("#keys")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_every_width(page, scheme):
    page.emulate_media(color_scheme=scheme)
    for width in (360, 768, 1440):
        page.set_viewport_size({"width": width, "height": 900})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate(OVERFLOWING) == []
    assert page.evaluate(POOR_CONTRAST) == []


def test_the_table_of_results_needs_no_scrolling_on_a_desktop(chromium, run_folder):
    row: dict = dict.fromkeys(FACTS, 0.4567)
    for column in COLUMNS:
        row.setdefault(column.protocol, {})[column.metric] = {"value": 0.4567, "low": 0.3, "high": 0.5}
    metrics = {"rows": {"random training report": row, "after stage 3": row}}
    path = write_page(
        read_predictions(run_folder / "evaluation/predictions.jsonl"), metrics, run_folder, run_folder / "x.html"
    )
    page = chromium.new_page(viewport={"width": 1440, "height": 900})
    page.goto(path.as_uri())
    assert page.evaluate("document.querySelectorAll('thead th').length") == 1 + len(COLUMNS) + len(FACTS)
    assert page.evaluate("(e => e.scrollWidth <= e.clientWidth)(document.querySelector('.wide'))")
    page.close()


CUT_IN_CHARTS = """() => [...document.querySelectorAll('text')].filter(text => {
  const own = text.getBoundingClientRect(), chart = text.closest('svg').getBoundingClientRect();
  return own.left < chart.left || own.right > chart.right || own.top < chart.top || own.bottom > chart.bottom;
}).map(text => text.textContent)"""


def test_no_chart_cuts_the_name_of_an_observation(chromium, run_folder):
    records = read_predictions(run_folder / "evaluation/predictions.jsonl")
    judged = [replace(record, verdicts=dict.fromkeys(OBSERVATIONS, "agree")) for record in records]
    save_figure(show_agreement(judged), run_folder / "evaluation/agreement")
    page = chromium.new_page(viewport={"width": 1440, "height": 900})
    page.goto((run_folder / "evaluation/agreement.svg").as_uri())
    assert page.evaluate("document.querySelectorAll('text').length") >= len(OBSERVATIONS)
    assert page.evaluate(CUT_IN_CHARTS) == []
    page.close()


OVER = "getComputedStyle(document.querySelector('.rv-m{}')).opacity"


@pytest.fixture
def explained_card(explained, run_folder):
    return ReportCard(Record.read(explained), run_folder / "data/images/17.png")


def settled(page, number):
    page.wait_for_timeout(200)  # the map fades in
    return float(page.evaluate(OVER.format(number)))


def test_a_map_shows_while_its_sentence_is_pointed_at_or_focused_and_only_when_switched_on(chromium, explained_card):
    page = chromium.new_page(viewport={"width": 1440, "height": 900})
    page.set_content(f"<!doctype html>{explained_card.html()}")
    page.hover(".rv-s1")
    assert settled(page, 1) == 0  # off at first
    page.get_by_role("radio", name="strong").check(force=True)
    page.hover(".rv-s2")
    assert (settled(page, 1), settled(page, 2)) == (0, 0.85)
    page.mouse.move(1, 1)
    page.keyboard.press("Tab")  # from the switch to the first sentence
    assert page.evaluate("document.activeElement.classList.contains('rv-s1')")
    assert (settled(page, 1), settled(page, 2)) == (0.85, 0)
    radiograph, over = (page.locator(f".rv-{part}").first.bounding_box() for part in ("image", "map"))
    assert radiograph == over
    page.close()


def test_two_cards_of_one_study_are_switched_apart(chromium, explained_card):
    page = chromium.new_page()
    page.set_content(f"<!doctype html>{explained_card.html() * 2}")
    page.get_by_role("radio", name="faint").first.check(force=True)
    page.keyboard.press("Enter")  # sends no form anywhere
    assert page.evaluate("[...document.querySelectorAll('input:checked')].map(e => e.value)") == ["faint", "off"]
    page.close()


def test_without_its_style_sheet_the_card_shows_small_pictures_and_no_switch(chromium, explained_card):
    page = chromium.new_page()
    page.set_content(f"<!doctype html>{bare(explained_card)}")
    assert page.locator(".rv-thumb").first.is_visible()
    assert not page.locator(".rv-switch").is_visible()
    assert not page.locator(".rv-map").first.is_visible()
    page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_card_with_evidence_fits_every_width_with_contrast(chromium, explained_card, scheme):
    page = chromium.new_page(color_scheme=scheme)
    page.set_content(f"<!doctype html>{explained_card.html()}")
    page.evaluate("document.querySelectorAll('details').forEach(e => { e.open = true; })")
    for width in (360, 768, 1440):
        page.set_viewport_size({"width": width, "height": 900})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate(OVERFLOWING) == []
    assert page.evaluate(POOR_CONTRAST) == []
    page.close()


@pytest.fixture
def explained_page(chromium, explained, run_folder):
    """The page of two studies with evidence."""
    records = [
        Record.read({**explained, "uid": uid, "index": n, "image": f"data/images/{uid}.png"})
        for n, uid in enumerate(("17", "20"))
    ]
    path = write_page(records, {}, run_folder, run_folder / "dashboard/index.html")
    page = chromium.new_page()
    page.goto(path.as_uri())
    yield page
    page.close()


def test_one_key_or_switch_sets_the_evidence_of_all_cards(explained_page):
    chosen = "[...document.querySelectorAll('#cards input:checked')].map(e => e.value)"
    explained_page.keyboard.press("e")
    assert explained_page.evaluate(chosen) == ["faint", "faint"]
    explained_page.get_by_role("radio", name="strong").first.check(force=True)
    assert explained_page.evaluate(chosen) == ["strong", "strong"]
    assert explained_page.text_content("#evidence") == "Evidence: strong"
    explained_page.keyboard.press("e")  # from the switch, which has the focus
    assert explained_page.evaluate(chosen) == ["off", "off"]


def test_hidden_sentences_are_counted_in_each_card_and_for_the_page(explained_page):
    visible = "[...document.querySelectorAll('#cards .rv-sentence')].filter(e => e.offsetHeight).length"
    assert explained_page.evaluate(visible) == 6
    explained_page.keyboard.press("ArrowRight")
    explained_page.select_option("#least", "3")
    assert explained_page.evaluate(visible) == 4
    assert (
        explained_page.text_content("#where") == "1 of 2 studies; 2 sentences hidden below 3 of 5"
    )  # the place is kept
    assert explained_page.locator("text=1 sentence hidden below 3 of 5").count() == 2
    explained_page.click("text=Clear")
    explained_page.wait_for_timeout(100)
    assert explained_page.evaluate(visible) == 6
    assert explained_page.text_content("#where") == "2 studies"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pictures_to_look_at_are_left_in_outputs(chromium, run_folder, card, scheme):
    folder = project_root() / "outputs" / "screenshots"
    folder.mkdir(parents=True, exist_ok=True)
    dashboard = write_page(
        read_predictions(run_folder / "evaluation/predictions.jsonl"), {}, run_folder, run_folder / "index.html"
    )
    for name, path in {"card": card.save(run_folder / "card.html"), "page": dashboard}.items():
        for width in (360, 768, 1440):
            page = chromium.new_page(color_scheme=scheme, viewport={"width": width, "height": 900})
            page.goto(path.as_uri())
            taken = page.screenshot(path=folder / f"{name}-{width}-{scheme}.png", full_page=name == "card")
            page.close()
            assert taken.startswith(b"\x89PNG")


@pytest.mark.slow
def test_six_hundred_studies_open_within_two_seconds_and_forty_megabytes(chromium, make_record, run_folder):
    (run_folder / "data/images/600.png").write_bytes(phantom_row(148)["img_frontal"])
    records = [
        Record.read(make_record(uid=str(n), index=n, image="data/images/600.png", verdicts={"Edema": "missed"}))
        for n in range(600)
    ]
    path = write_page(records, {}, run_folder, run_folder / "dashboard/index.html")
    assert path.stat().st_size < 40_000_000
    page = chromium.new_page()
    page.goto(path.as_uri())
    loaded = page.evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd")
    assert loaded < 2000, f"{loaded:.0f} ms"
    page.close()


def labeled(record):
    """With the labels and mentions of its two reports, as the evaluation writes them."""
    found = {}
    for author in ("generated", "reference"):
        spans = {part: find_mentions(record[author][part]) for part in ("findings", "impression")}
        found[author] = {part: [m._asdict() for m in mentions] for part, mentions in spans.items()}
    return Record.read({**record, "mentions": found})


@pytest.fixture
def long_page(chromium, make_record, run_folder):
    """The page of thirty studies, of which the last has a pneumothorax and all others deny one."""
    records = [
        labeled(
            make_record(
                uid=str(n),
                index=n,
                image="data/images/17.png",
                generated={
                    "findings": "No pneumothorax." if n < 29 else "Left pneumothorax.",
                    "impression": "",
                    "headed": True,
                },
                reference={"findings": "There is no pneumothorax.", "impression": ""},
            )
        )
        for n in range(30)
    ]
    path = write_page(records, {}, run_folder, run_folder / "dashboard/index.html")
    page = chromium.new_page(viewport={"width": 1440, "height": 900})
    page.goto(path.as_uri())
    yield page
    page.close()


def test_cards_come_as_one_gets_to_them_and_a_link_leads_to_any(long_page):
    long_page.wait_for_timeout(100)
    assert len(shown(long_page)) == 12
    long_page.evaluate("document.getElementById('more').scrollIntoView()")
    long_page.wait_for_timeout(300)
    assert len(shown(long_page)) > 12
    long_page.evaluate("location.hash = 'uid=28'")
    long_page.wait_for_timeout(300)
    assert "28" in shown(long_page)
    assert long_page.evaluate("document.getElementById('uid=28').getBoundingClientRect().top < innerHeight / 2")


def test_search_finds_those_that_have_it_and_says_when_nothing_matches(long_page):
    long_page.fill("#search", "pneumothorax")
    assert shown(long_page) == ["29"]
    long_page.fill("#search", "no pneumothorax")
    assert long_page.text_content("#where").startswith("30 studies")
    long_page.fill("#search", "zebra")
    assert long_page.text_content("#where") == "no studies match (of 30)"


def test_a_link_to_a_study_that_is_not_there_is_answered(long_page):
    long_page.goto(long_page.url + "#uid=4711")
    long_page.wait_for_timeout(100)
    assert long_page.text_content("#where") == "There is no 4711 on this page; it shows 30 studies"


def test_print_gives_the_overview_and_the_chosen_cards(long_page):
    long_page.emulate_media(media="print")
    printed = "[...document.querySelectorAll('.rv-card')].filter(e => e.offsetHeight).map(e => e.id)"
    assert long_page.evaluate(printed) == []
    long_page.goto(long_page.url + "#uid=20")
    long_page.wait_for_timeout(100)
    long_page.keyboard.press("p")
    assert long_page.evaluate(printed) == ["uid=20"]


def test_the_picture_stays_in_view_while_one_reads(chromium, make_record, run_folder):
    long = {"findings": " ".join(f"Sentence {n} of many." for n in range(80)), "impression": "", "headed": True}
    card = ReportCard(Record.read(make_record(generated=long, reference=long)), run_folder / "data/images/17.png")
    page = chromium.new_page(viewport={"width": 1440, "height": 700})
    page.set_content(f"<!doctype html>{card.html()}<p style='height: 2000px'>")
    page.evaluate("document.querySelectorAll('.rv-text').forEach(e => { e.style.maxHeight = 'none'; })")
    page.evaluate("scrollTo(0, 400)")
    assert page.evaluate("document.querySelector('.rv-image').getBoundingClientRect().top") == 0
    page.close()


def test_inversion_turns_the_surroundings_of_the_picture_too(page):
    ground = "getComputedStyle(document.querySelector('#cards .rv-well')).backgroundColor"
    dark = page.evaluate(ground)
    page.keyboard.press("i")
    assert page.evaluate(ground) != dark
    assert page.evaluate(POOR_CONTRAST) == []


def test_ticks_in_a_text_are_round(chromium, make_record):
    verdicts = {"Cardiomegaly": "agree"}
    said = {"findings": [{"observation": "Cardiomegaly", "status": "present", "start": 0, "end": 5}]}
    record = make_record(verdicts=verdicts, mentions={"generated": said})
    page = chromium.new_page()
    page.set_content(f"<!doctype html>{ReportCard(Record.read(record)).html()}")
    width, height = page.evaluate(
        "(r => [r.width, r.height])(document.querySelector('.rv-sign').getBoundingClientRect())"
    )
    assert abs(width - height) < 3
    page.close()


@pytest.fixture
def before_card(make_record, run_folder):
    drawn = [{"name": "nodule", "side": "left", "verdict": "missed"}]
    model = {"run": "tiny", "stage": 3, "base": "tiny", "phantoms": True, "parameters": 1_595_840}
    before = Record.read(make_record(stage=0, findings=drawn))
    record = make_record(model=model, findings=[{**drawn[0], "verdict": "agree"}])
    return ReportCard(Record.read(record), run_folder / "data/images/17.png", before=before)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_card_with_the_report_before_training_fits_every_width_with_contrast(chromium, before_card, scheme):
    page = chromium.new_page(color_scheme=scheme)
    for html in (before_card.html(), bare(before_card)):
        page.set_content(f"<!doctype html>{html}")
        for width in (360, 768, 1440):
            page.set_viewport_size({"width": width, "height": 900})
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            assert page.evaluate(OVERFLOWING) == []
    page.set_content(f"<!doctype html>{before_card.html()}")
    assert page.evaluate(POOR_CONTRAST) == []
    tops = page.evaluate(
        "[...document.querySelectorAll('.rv-third')].map(e => Math.round(e.getBoundingClientRect().top))"
    )
    assert tops[0] == tops[1] == tops[2]
    page.close()


def test_a_study_that_one_steps_to_stands_below_the_bar_however_many_lines_that_takes(page):
    for width in (360, 768, 1440):
        page.set_viewport_size({"width": width, "height": 900})
        page.wait_for_timeout(100)
        page.goto(page.url.partition("#")[0] + "#uid=20")
        page.keyboard.press("ArrowRight")
        page.wait_for_timeout(100)
        nav, card = (page.locator(part).bounding_box() for part in ("nav", "[id='uid=31']"))
        assert card["y"] >= (nav["y"] + nav["height"] if width > 600 else 0) - 1
        page.keyboard.press("ArrowLeft")
