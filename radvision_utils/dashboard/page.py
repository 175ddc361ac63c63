"""The dashboard as one HTML file: what the run is worth, then the report cards of the test split.

It loads nothing from anywhere, reads without scripts, prints, and links to each study (`index.html#uid=17`). Its charts
are the figures that the evaluation left as SVG in its folder.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

from markupsafe import Markup
from PIL import Image

from radvision_utils.config import STAGE_LABELS, RadVisionError
from radvision_utils.dashboard import record as records
from radvision_utils.dashboard.card import RULES, ReportCard, document, render, stage_name
from radvision_utils.dashboard.radiograph import jpeg_uri, open_image
from radvision_utils.dashboard.record import AUTHORS, SECTIONS, Record, by_contradiction, image_path, most_samples
from radvision_utils.evaluation.records import clean
from radvision_utils.evaluation.table import COLUMNS, FACTS, capital, model_verdict
from radvision_utils.figures import DARK, LIGHT, VERDICTS
from radvision_utils.files import checked, inside, write_text

_IMAGE_BYTES = 45_000  # of each of some hundred images; a page of 600 studies stays under 40 MB
_MAPPED = 200  # studies with evidence maps at most
_THUMB = 96  # pixels
_AT_ONCE = 12  # cards that are shown; the script brings more as one comes to their end, and knows this number
CHARTS = {
    "ladder": "What each stage earned",
    "agreement": "Agreement by observation",
    "observations": "F1 by observation",
    "text_against_labels": "Words against findings",
    "verdicts": "Findings against what was drawn",
    "pointing": "Do maps point at the lesion?",
    "reliability": "Is confidence what it says?",
    "coverage": "What does hiding sentences cost?",
}
"""The evaluation's figures that the page shows, by the name of their files, and what each answers."""
_INK = (
    f"svg {{ color: {LIGHT['ink']} }} text {{ fill: currentColor }}"
    f"@media screen and (prefers-color-scheme: dark) {{ svg {{ color: {DARK['ink']} }} }}"
)
JUDGES_SENTENCE = (
    "Two judges may disagree: the rules read both texts, take a consolidation for a lung opacity and ask for a side "
    "only where both texts name one; what was drawn is known with kind and side."
)

Answer = tuple[str, str, str]
"""A question that the page begins with, its answer in a few words, and the figures behind it."""


def write_page(shown: Iterable[Record], metrics: Mapping[str, Any], run_folder: Path, path: Path) -> Path:
    """Write the run's dashboard; returns `path`.

    Args:
        shown: prediction records; the page shows the test split's, of the last stage that it has.
        metrics: what the evaluation measured.
        run_folder: the folder that the records' image paths are relative to; the figures lie in its `evaluation/`.
        path: the file to write.

    Raises:
        RadVisionError: no record is of the test split, or an image is missing.
    """
    test = [record for record in shown if record.split == "test"]
    if not test:
        raise RadVisionError(f"there are no predictions for the test split to show in {path}: evaluate the run first.")
    last = max(record.stage for record in test)
    latest = {record.uid: record for record in test if record.stage == last}  # ids occur once
    studies = sorted(latest.values(), key=records.by_index)
    answers = [_is_it_good(metrics, last), _image_use(metrics), _disagreement(studies)]
    overview = {
        "verdict": model_verdict(metrics),
        "answers": [answer for answer in answers if answer],
        "worst": _worst(studies, run_folder),
        "table": _table(metrics),
        "charts": _charts(run_folder / "evaluation"),
        "trust": [s for part in ("evidence", "confidence") if (s := _text((metrics.get(part) or {}).get("sentence")))]
        + [JUDGES_SENTENCE] * any(record.findings for record in studies),
    }
    counted = f"{len(studies):,} test studies"
    return _write(studies, counted, "Reports of the test split", run_folder, path, **overview)


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
    return _write(shown, counted, "Reports", folder, path)


def anchor(uid: str) -> str:
    """The id of a study's card in a page and the fragment that leads to it: `uid=17`."""
    return "uid=" + quote(uid, safe="")


def _write(studies: Sequence[Record], counted: str, heading: str, folder: Path, path: Path, **overview: Any) -> Path:
    shown, mapped = _bounded(studies)
    model, times = studies[0].model, [record.seconds for record in studies if record.seconds is not None]
    facts = [f"base model {model.base_name}", stage_name(model.stage), counted]
    facts += [f"{sum(times) / len(times):.2f} s a report"] if times else []
    title = f"RadVision-7B: run {model.run.strip()}"
    judged = any(record.reference for record in studies)  # else there is one order only
    body = render(
        "page.html",
        title=title,
        band=model.band(own=not judged),
        facts="; ".join(facts),
        heading=heading,
        judged=judged,
        orders=list(records.ORDERS) if judged else [],
        choices={
            "observation": ("Observation", records.observations(studies)),
            "verdict": ("Verdict", [v for v in VERDICTS if any(records.fits(r, verdict=v) for r in studies)]),
            "flag": ("Flag", records.flags(studies)),
        },
        samples=most_samples(studies),
        has_maps=any(record.evidence for record in shown),
        mapped=mapped,
        studies=[(anchor(record.uid), record.uid.strip()) for record in studies],
        cards=_cards(shown, folder),
        **({"verdict": "", "answers": [], "worst": [], "table": None, "charts": [], "trust": []} | overview),
    )
    here = Path(__file__).parent
    style, script = ((here / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    write_text(path, document(title, body, style, script))
    return path


def _bounded(studies: Sequence[Record]) -> tuple[list[Record], str]:
    """The studies with evidence maps on the worst only, so that the page stays small, and what that left out."""
    mapped = [record for record in studies if record.evidence]
    if len(mapped) <= _MAPPED:
        return list(studies), ""
    kept = {record.uid for record in sorted(mapped, key=by_contradiction)[:_MAPPED]}
    bare = [record if record.uid in kept else replace(record, evidence={}) for record in studies]
    return bare, f"{_MAPPED} worst of the {len(mapped):,}"


def _cards(studies: Sequence[Record], folder: Path) -> Iterable[Markup]:
    """The cards with what the script sorts and filters by."""
    ranks: dict[str, list[str]] = {record.uid: [] for record in studies}
    for order in records.ORDERS.values():
        for rank, record in enumerate(sorted(studies, key=order)):
            ranks[record.uid].append(str(rank))
    for place, record in enumerate(studies):
        asked = {
            "id": anchor(record.uid),
            **({"hidden": ""} if place >= _AT_ONCE else {}),
            "data-said": _said(record),
            "data-ranks": " ".join(ranks[record.uid]),
            "data-verdicts": json.dumps(record.verdict_pairs),
            "data-flags": json.dumps(record.flags),
        }
        yield ReportCard(record, image_path(record, folder)).article(_IMAGE_BYTES, **asked)


def _said(record: Record) -> str:
    """What a search finds: the words of a study and its reports but for what these deny, and the names of findings."""
    parts = [ReportCard(record).title, record.indication, *record.asserted, *(found.name for found in record.findings)]
    for author in AUTHORS:
        report = record.generated if author == "generated" else record.reference
        for section in SECTIONS:
            text = getattr(report, section, "")
            mentions = record.mentions.get(author, {}).get(section, ())
            for denied in sorted((m for m in mentions if m.status == "absent"), key=lambda m: -m.start):
                text = text[: denied.start] + text[denied.end :]
            parts.append(text)
    return " ".join(" ".join(parts).lower().split())


def _is_it_good(metrics: Mapping[str, Any], stage: int) -> Answer | None:
    """By the headline metric, the first of the table's."""
    question, (_, protocol, metric, heading) = "Is the model any good?", COLUMNS[0]
    figures = {name: row[protocol][metric] for name, row in metrics.get("rows", {}).items()}
    ours = figures.get(STAGE_LABELS.get(stage, ""))
    if ours is None or (value := ours["value"]) is None:
        return None
    rivals = [(f["value"], name) for name, f in figures.items() if name not in STAGE_LABELS.values()]
    best = max((rival for rival in rivals if rival[0] is not None), default=None)
    interval = _interval(ours)
    shown = f"{capital(heading)} {value:.3f}" + (f" ({interval[0]:.2f} to {interval[1]:.2f})" if interval else "")
    if best is None:
        return question, "Not known", f"{shown}; no baseline was scored."
    words = f"{shown}; the best baseline, {best[1]}, has {best[0]:.3f}."
    if value <= best[0]:
        return question, "No better than a baseline", words
    if interval and interval[0] <= best[0]:
        return question, "Not clearly better than a baseline", words
    return question, "Better than every baseline", words


def _image_use(metrics: Mapping[str, Any]) -> Answer | None:
    use = metrics.get("image_use") or {}
    verdict, why = clean(use.get("verdict")).strip(), clean(use.get("sentence")).strip()
    why = why.removeprefix(f"image used: {verdict}").strip()  # the question stands above it
    parts = why.removeprefix("(").split("; ")  # the figures in brackets, and what they leave open
    parts = [part.removesuffix(")") if part.count(")") > part.count("(") else part for part in parts]
    why = ". ".join(map(capital, parts))
    return ("Does it look at the image?", capital(verdict), f"{why}.") if verdict else None


def _disagreement(studies: Sequence[Record]) -> Answer | None:
    found = [[verdict for _, verdict in record.verdict_pairs] for record in studies]
    if not any(found):
        return None
    wrong = sum(any(verdict != "agree" for verdict in verdicts) for verdicts in found)
    against = sum("contradiction" in verdicts for verdicts in found)
    words = f"disagree with the reference in some finding; {against:,} of them contradict it ({RULES})."
    return "How often is it wrong?", f"{wrong:,} of {len(studies):,} studies", words


def _worst(studies: Sequence[Record], folder: Path) -> list[dict[str, Any]]:
    """The three worst studies: where their cards are, a small image, and the observations of each verdict."""
    wrong = [r for r in studies if any(verdict != "agree" for _, verdict in r.verdict_pairs)]
    found = []
    for record in sorted(wrong, key=by_contradiction)[:3]:
        names = {
            v: [n.lower() for n, verdict in record.verdict_pairs if verdict == v] for v in VERDICTS if v != "agree"
        }
        title, image = ReportCard(record).title, open_image(image_path(record, folder))
        if image:
            image.thumbnail((_THUMB, _THUMB), Image.Resampling.LANCZOS)
        uri = jpeg_uri(image, 8_000) if image else ""
        found.append({"href": f"#{anchor(record.uid)}", "title": title, "image": uri, "names": names})
    return found


def _table(metrics: Mapping[str, Any]) -> dict[str, Any] | None:
    """Rows by metrics and facts, all that any row has; a cell is a value with its interval."""
    rows = metrics.get("rows", {})
    columns = [column for column in COLUMNS if any(column.protocol in row for row in rows.values())]
    facts = list(dict.fromkeys(fact for row in rows.values() for fact in FACTS if fact in row))
    lines = []
    for name, row in rows.items():
        figures = [row.get(column.protocol, {}).get(column.metric, {}) for column in columns]
        figures += [{"value": row.get(fact)} for fact in facts]
        cells = [(_cell(figure.get("value")), _interval(figure)) for figure in figures]
        lines.append({"name": name, "model": name in STAGE_LABELS.values(), "cells": cells})
    heads = [*(column.heading for column in columns), *(FACTS[fact] for fact in facts)]
    names = [capital(head).replace("-", "\N{NON-BREAKING HYPHEN}") for head in heads]
    return {"heads": names, "lines": lines} if rows else None


def _text(value: object) -> str:
    words = capital(clean(value).strip())
    return words if not words or words.endswith(".") else f"{words}."


def _cell(value: float | None) -> str:
    if value is None:
        return "\N{EN DASH}"
    return f"{value:,}" if isinstance(value, int) else f"{value:.3f}"


def _interval(figure: Mapping[str, Any]) -> tuple[float, float] | None:
    """The 95 % interval of a figure, or None where it has none."""
    return None if figure.get("low") is None else (figure["low"], figure["high"])


def _charts(folder: Path) -> list[tuple[str, str, str]]:
    """The evaluation's figures that lie in its folder: name, what it answers, and the drawing as a data URI.

    As an image a drawing from a stranger runs no script and loads nothing. What is drawn in black takes the color of
    the page's text.
    """
    found = []
    for name, title in CHARTS.items():
        if path := inside(folder, f"{name}.svg"):
            svg = checked(path).read_text(encoding="utf-8", errors="replace").replace("</style>", _INK + "</style>", 1)
            drawing = base64.b64encode(re.sub("#000000|#666666", "currentColor", svg).encode()).decode()
            found.append((name, title, f"data:image/svg+xml;base64,{drawing}"))
    return found
