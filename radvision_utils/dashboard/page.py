"""The dashboard as one HTML file: the run, its headline table, and the report cards of the test split.

It loads nothing from anywhere, reads without scripts, prints, and links to each study (`index.html#uid-17`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from radvision_utils.config import RadVisionError
from radvision_utils.dashboard import content
from radvision_utils.dashboard.card import ReportCard, image_path
from radvision_utils.dashboard.markup import card_style, document, escape, read_style
from radvision_utils.runs import write_text

_IMAGE_BYTES = 45_000  # of each of some hundred images; a page of 590 studies stays under 30 MB

# Left and right step through the cards; the bar's buttons do the same. Without it the bar is not shown.
_SCRIPT = """
(function () {
  var cards = Array.prototype.slice.call(document.querySelectorAll('.rv-card'));
  var bar = document.getElementById('bar'), where = document.getElementById('where');
  if (!cards.length) return;
  var list = document.querySelector('.studies'), at = -1;
  function mark(index) {
    at = index;
    where.textContent = (at < 0 ? cards.length : (at + 1) + ' of ' + cards.length) + ' studies';
  }
  function reveal(times) {
    // Cards out of sight have an estimated height: look again once those on the way have their own.
    cards[at].scrollIntoView({ block: 'start' });
    if (times) requestAnimationFrame(function () { reveal(times - 1); });
  }
  function show(index) {
    list.open = false;
    mark(index);
    cards[at].focus({ preventScroll: true });
    reveal(3);
  }
  function go(step) {
    show(Math.min(Math.max(at + step, 0), cards.length - 1));
    history.replaceState(null, '', '#' + cards[at].id);
  }
  function follow() {
    var index = cards.findIndex(function (card) { return '#' + card.id === location.hash; });
    if (index >= 0) show(index);
  }
  cards.forEach(function (card) { card.tabIndex = -1; });
  document.addEventListener('keydown', function (event) {
    if (event.altKey || event.ctrlKey || event.metaKey || event.shiftKey) return;
    if (/^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName)) return;
    if (event.key === 'ArrowRight') { event.preventDefault(); go(1); }
    if (event.key === 'ArrowLeft') { event.preventDefault(); go(-1); }
  });
  document.getElementById('previous').addEventListener('click', function () { go(-1); });
  document.getElementById('next').addEventListener('click', function () { go(1); });
  window.addEventListener('hashchange', follow);
  bar.hidden = false;
  mark(-1);
  follow();
})();
"""


def write_page(records: Iterable[Mapping[str, Any]], metrics: Mapping[str, Any], run_folder: Path, path: Path) -> Path:
    """Write the run's dashboard; returns `path`.

    Args:
        records: prediction records; the page shows the test split's, of the last stage that it has.
        metrics: what the evaluation measured; `metrics["table"]` is a list of dictionaries with "row" and any metrics.
        run_folder: the folder that the records' image paths are relative to.
        path: the file to write.

    Raises:
        RadVisionError: no record is of the test split, or an image is missing.
    """
    test = [record for record in records if record.get("split") == "test"]
    if not test:
        raise RadVisionError(f"there are no predictions for the test split to show in {path}: evaluate the run first.")
    last = max(record["model"]["stage"] for record in test)
    latest = {record["uid"]: record for record in test if record["model"]["stage"] == last}  # ids occur once
    shown = sorted(latest.values(), key=lambda record: record.get("index", 0))
    title = f"RadVision-7B: run {content.clean(shown[0]['model']['run'])}"
    body = "\n".join(
        [
            '<main class="page">',
            _header(title, shown),
            _table(metrics.get("table") or []),
            '<section aria-labelledby="reports">',
            '<h2 id="reports">Reports of the test split</h2>',
            _contents(shown),
            *(_card(record, run_folder) for record in shown),
            "</section>",
            f'<footer class="page-foot">{escape(content.FOOTER)}</footer>',
            "</main>",
        ]
    )
    write_text(path, document(title, f"{card_style()}\n{read_style('page.css')}", body, _SCRIPT))
    return path


def anchor(uid: object) -> str:
    """The id of a study's card: `uid-17`; any character but letters, digits and `-` becomes `_<hex>_`."""
    return "uid-" + re.sub(r"[^A-Za-z0-9-]", lambda match: f"_{ord(match[0]):x}_", str(uid))


def _header(title: str, shown: Sequence[Mapping[str, Any]]) -> str:
    model = shown[0]["model"]
    facts = [
        ("Base model", content.clean(model["base"])),
        ("Model", content.stage_words(model["stage"])),
        ("Test studies", f"{len(shown):,}"),
    ]
    if seconds := [record["seconds"] for record in shown if record.get("seconds") is not None]:
        facts.append(("Time for a report", f"{sum(seconds) / len(seconds):.2f} s"))
    pairs = "".join(f"<div><dt>{escape(key)}</dt><dd>{escape(value)}</dd></div>" for key, value in facts)
    return (
        f'<header class="page-head"><h1>{escape(title)}</h1>'
        f'<p class="lead">{escape(content.FOOTER)}</p><dl class="summary">{pairs}</dl></header>'
    )


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows by metrics, with every column that any row has, in the order of appearance."""
    if not rows:
        return ""
    columns = list(dict.fromkeys(key for row in rows for key in row if key != "row"))
    heads = "".join(f'<th scope="col">{escape(_column_name(column))}</th>' for column in columns)
    lines = [
        f'<tr><th scope="row">{escape(row["row"])}</th>'
        + "".join(f"<td>{escape(_cell(row.get(column)))}</td>" for column in columns)
        + "</tr>"
        for row in rows
    ]
    return (
        '<section aria-labelledby="results"><h2 id="results">Results</h2>'
        '<div class="wide" tabindex="0" role="group" aria-label="Results, scrolls sideways">'
        f'<table><thead><tr><th scope="col">Reports by</th>{heads}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div></section>"
    )


def _column_name(column: str) -> str:
    return content.SCORES.get(column) or column.replace("_", " ").capitalize().replace(" f1", " F1")


def _cell(value: object) -> str:
    if value is None:
        return "\N{EN DASH}"
    if isinstance(value, float):
        return f"{value:.3f}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if isinstance(value, list | tuple):
        return " to ".join(_cell(part) for part in value)
    return str(value)


def _contents(shown: Sequence[Mapping[str, Any]]) -> str:
    links = "".join(f'<a href="#{anchor(r["uid"])}">{escape(content.clean(r["uid"]))}</a>' for r in shown)
    return (
        '<nav aria-label="Studies"><div id="bar" class="bar" hidden>'
        '<button id="previous" type="button">Previous</button><button id="next" type="button">Next</button>'
        '<span id="where" role="status"></span><span class="hint">or the keys \N{LEFTWARDS ARROW} '
        "\N{RIGHTWARDS ARROW}</span></div>"
        f'<details class="studies"><summary>All {len(shown):,} studies by uid</summary>'
        f"<div>{links}</div></details></nav>"
    )


def _card(record: Mapping[str, Any], run_folder: Path) -> str:
    card = ReportCard(record, image_path(record, run_folder))
    return card.article(anchor=anchor(record["uid"]), image_bytes=_IMAGE_BYTES)
