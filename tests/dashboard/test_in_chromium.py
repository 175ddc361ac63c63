"""What only a browser can tell: layout at three widths, themes of the hosts, keys. Skipped where there is none."""

import re
import shutil

import pytest

from radvision_utils.dashboard.card import ReportCard
from radvision_utils.dashboard.records import read_predictions
from radvision_utils.dashboard.page import write_page

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium or google-chrome on the path")

OVERFLOWING = """() => [...document.querySelectorAll('.rv-card *')].filter(e => {
  const style = getComputedStyle(e);
  return style.display !== 'inline' && style.overflowX === 'visible' && e.clientWidth > 0
    && e.scrollWidth > e.clientWidth + 1;
}).map(e => e.className)"""
TOPS = "() => [...document.querySelectorAll('.rv-cell')].map(e => Math.round(e.getBoundingClientRect().top))"
WORST_CONTRAST = """() => {
  const pen = document.createElement('canvas').getContext('2d', { willReadFrequently: true });
  const luminance = color => {
    pen.fillStyle = color; pen.fillRect(0, 0, 1, 1);
    const [r, g, b] = [...pen.getImageData(0, 0, 1, 1).data].map(v => v / 255)
      .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = e => { const c = getComputedStyle(e).backgroundColor;
    return c === 'rgba(0, 0, 0, 0)' ? ground(e.parentElement) : c; };
  return Math.min(...[...document.querySelectorAll('.rv-card *')].filter(e => e.textContent).map(e => {
    const pair = [luminance(getComputedStyle(e).color), luminance(ground(e))].sort((a, b) => b - a);
    return (pair[0] + 0.05) / (pair[1] + 0.05);
  }));
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
    return ReportCard(make_record(generated=long, findings=findings, uid="y" * 120), run_folder / "data/images/17.png")


def test_no_text_leaves_its_column_and_rows_align_from_900_pixels_on(chromium, card):
    page = chromium.new_page()
    for html in (card.html(), re.sub(r"<style>.*?</style>", "", card.html(), flags=re.DOTALL)):
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
        assert page.evaluate(WORST_CONTRAST) >= 4.5, host
    page.close()


def test_arrow_keys_and_deep_links_lead_through_the_page(chromium, run_folder):
    path = run_folder / "dashboard/index.html"
    write_page(read_predictions(run_folder / "evaluation/predictions.jsonl"), {}, run_folder, path)
    page = chromium.new_page()
    problems = []
    page.on("console", lambda message: problems.append(message.text))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.goto(f"{path.as_uri()}#uid-20")
    assert page.text_content("#where") == "2 of 3 studies"
    page.keyboard.press("ArrowRight")
    assert page.evaluate("location.hash") == "#uid-31"
    page.wait_for_timeout(100)  # the page looks again for a few frames, as cards take their real height
    assert page.evaluate("document.getElementById('uid-31').getBoundingClientRect().top < innerHeight / 2")
    page.keyboard.press("ArrowLeft")
    assert page.text_content("#where") == "2 of 3 studies"
    assert problems == []
    page.close()
