"""The dashboard as one HTML file: what the run is worth, then the report cards of the test split.

It loads nothing from anywhere, reads without scripts, prints, and links to each study (`index.html#uid=17`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from radvision_utils.config import RadVisionError
from radvision_utils.dashboard import content, records
from radvision_utils.dashboard.card import ReportCard
from radvision_utils.dashboard.evidence import most_samples
from radvision_utils.dashboard.markup import (
    anchor,
    card_style,
    document,
    escape,
    read_style,
    shared_style,
    without_inline_styles,
)
from radvision_utils.dashboard.overview import overview
from radvision_utils.dashboard.records import Record
from radvision_utils.runs import write_text

_IMAGE_BYTES = 45_000  # of each of some hundred images; a page of 600 studies stays under 40 MB
_MAPPED = 200  # studies with evidence maps at most
_KEYS = {
    "\N{LEFTWARDS ARROW} \N{RIGHTWARDS ARROW}": "previous and next study",
    "i": "invert the radiographs",
    "w": "next window (gray levels) of the radiographs",
    "e": "evidence maps on the radiographs: off, faint, medium, strong; point at a sentence or tab to it",
    "r": "hide the texts to read the radiograph first; then reveal those of the study at hand",
    "/": "search and filter",
    "?": "this list",
}


def write_page(shown: Iterable[Record], metrics: Mapping[str, Any], run_folder: Path, path: Path) -> Path:
    """Write the run's dashboard; returns `path`.

    Args:
        shown: prediction records; the page shows the test split's, of the last stage that it has.
        metrics: what the evaluation measured; `metrics["table"]` is a list of dictionaries with "row" and any metrics.
        run_folder: the folder that the records' image paths are relative to.
        path: the file to write.

    Raises:
        RadVisionError: no record is of the test split, or an image is missing.
    """
    test = [record for record in shown if record.get("split") == "test"]
    if not test:
        raise RadVisionError(f"there are no predictions for the test split to show in {path}: evaluate the run first.")
    last = max(record["model"]["stage"] for record in test)
    latest = {record["uid"]: record for record in test if record["model"]["stage"] == last}  # ids occur once
    studies = sorted(latest.values(), key=records.ORDERS["index"])
    above = overview(studies, metrics, run_folder)
    return _write(studies, f"{len(studies):,} test studies", above, "Reports of the test split", run_folder, path)


def write_own_page(shown: Sequence[Record], folder: Path, path: Path) -> Path:
    """Write the page of reports on images of one's own, which have no reference; returns `path`.

    Args:
        shown: one or more prediction records.
        folder: the folder that the records' image paths are relative to.
        path: the file to write.

    Raises:
        RadVisionError: an image is missing.
    """
    counted = f"{len(shown):,} image{'s' * (len(shown) != 1)} without reference reports"
    return _write(shown, counted, "", "Reports", folder, path)


def _write(studies: Sequence[Record], counted: str, above: str, heading: str, folder: Path, path: Path) -> Path:
    title = f"RadVision-7B: run {content.clean(studies[0]['model']['run'])}"
    studies, note = _bounded(studies)
    body = "\n".join(
        [
            '<main class="page">',
            _header(title, counted, studies),
            above,
            '<section aria-labelledby="reports">',
            f'<h2 id="reports">{heading}</h2>',
            _filters(studies),
            note,
            _bar(studies),
            '<div id="cards">',
            *_cards(studies, folder),
            "</div></section>",
            f'<footer class="page-foot">{escape(content.FOOTER)}</footer>',
            "</main>",
            _help(),
        ]
    )
    style = "\n".join([shared_style(), card_style(), read_style("page.css")])
    write_text(path, document(title, style, body, read_style("page.js")))
    return path


def _bounded(studies: Sequence[Record]) -> tuple[Sequence[Record], str]:
    """The records, with maps for the worst studies only, and a note on it: a page of hundreds must stay light."""
    mapped = [record for record in studies if record.get("evidence")]
    if len(mapped) <= _MAPPED:
        return studies, ""
    kept = {record["uid"] for record in sorted(mapped, key=records.by_contradiction)[:_MAPPED]}
    left = [r if r["uid"] in kept else {k: v for k, v in r.items() if k != "evidence"} for r in studies]
    words = f"Evidence maps are on the {_MAPPED} worst of the {len(mapped):,} studies that have some"
    return left, f'<p class="told">{words}; predict_beautiful shows those of every study.</p>'


def _header(title: str, counted: str, studies: Sequence[Record]) -> str:
    model = studies[0]["model"]
    facts = [
        f"base model {content.clean(model['base'])}",
        content.stage_words(model["stage"]),
        counted,
    ]
    if seconds := [record["seconds"] for record in studies if record.get("seconds") is not None]:
        facts.append(f"{sum(seconds) / len(seconds):.2f} s a report")
    return (
        f'<header class="page-head"><h1>{escape(title)}</h1><p class="lead">{escape("; ".join(facts))}. '
        f"<strong>{escape(content.FOOTER)}</strong></p></header>"
    )


def _filters(studies: Sequence[Record]) -> str:
    """Search, sort and filter; a script shows them, since without it they would do nothing."""
    verdicts = [v for v in content.VERDICTS if any(records.fits(record, verdict=v) for record in studies)]
    chosen = [
        _choice("observation", "Observation", records.observations(studies)),
        _choice("verdict", "Verdict", verdicts),
        _choice("flag", "Flag", records.flags(studies)),
        _least_agreement(most_samples(studies)),
    ]
    judged = any(record["reference"] for record in studies)  # else there is one order only
    orders = "".join(f'<option value="{n}">{escape(order)}</option>' for n, order in enumerate(records.ORDERS))
    return (
        '<form id="filters" class="filters" hidden><label>Search <input id="search" type="search" '
        f'placeholder="{"uid" if judged else "name"} or words"></label>'
        + f'<label>Sort by <select id="order">{orders}</select></label>' * judged
        + "".join(chosen)
        + '<button type="reset">Clear</button></form>'
    )


def _choice(name: str, label: str, values: Sequence[str]) -> str:
    if not values:
        return ""
    options = "".join(f'<option value="{escape(value)}">{escape(value)}</option>' for value in values)
    return f'<label>{label} <select id="{name}"><option value="">any</option>{options}</select></label>'


def _least_agreement(samples: int) -> str:
    if not samples:
        return ""
    options = "".join(f'<option value="{n}">below {n} of {samples}</option>' for n in range(1, samples + 1))
    return (
        f'<label>Hide sentences <select id="least" data-samples="{samples}"><option value="0">nothing hidden</option>'
        f"{options}</select></label>"
    )


def _bar(studies: Sequence[Record]) -> str:
    mapped = any(record.get("evidence") for record in studies)
    buttons = "".join(
        f'<button id="{name}" type="button"{extra}>{words}</button>'
        for name, words, extra in [
            ("previous", "Previous", ""),
            ("next", "Next", ""),
            ("invert", "Invert", ' aria-pressed="false"'),
            ("window", "Window: full", ""),
            *[("evidence", "Evidence: off", "")] * mapped,
            ("veil", "Hide texts", ' aria-pressed="false"'),
            ("help", "Keys", ""),
        ]
    )
    things, called = ("studies", "uid") if studies[0]["reference"] else ("images", "name")
    links = "".join(f'<a href="#{escape(anchor(r["uid"]))}">{escape(content.clean(r["uid"]))}</a>' for r in studies)
    return (
        f'<nav aria-label="Studies"><div id="bar" class="bar" hidden>{buttons}'
        f'<span id="where" role="status" data-things="{things}"></span>'
        f'</div><details class="studies"><summary>All {len(studies):,} {things} by {called}</summary>'
        f"<div>{links}</div></details></nav>"
    )


def _cards(studies: Sequence[Record], run_folder: Path) -> Iterable[str]:
    ranks: dict[str, list[str]] = {record["uid"]: [] for record in studies}
    for order in records.ORDERS.values():
        for rank, record in enumerate(sorted(studies, key=order)):
            ranks[record["uid"]].append(str(rank))
    for record in studies:
        card = ReportCard(record, records.image_path(record, run_folder))
        yield without_inline_styles(
            card.article(
                _IMAGE_BYTES,
                id=anchor(record["uid"]),
                data_ranks=" ".join(ranks[record["uid"]]),
                data_verdicts=json.dumps(records.verdict_pairs(record)),
                data_flags=json.dumps(record.get("flags") or []),
            )
        )


def _help() -> str:
    lines = "".join(
        f"<div><dt><kbd>{escape(key)}</kbd></dt><dd>{escape(words)}</dd></div>" for key, words in _KEYS.items()
    )
    return (
        f'<dialog id="keys" aria-labelledby="keys-title"><h2 id="keys-title">Keys</h2><dl>{lines}</dl>'
        '<form method="dialog"><button>Close</button></form></dialog>'
    )
