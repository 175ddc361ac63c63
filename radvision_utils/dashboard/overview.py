"""The first screen of the page: whether the model is any good, whether it looks at the image, its worst studies.

Everything here is markup made from `metrics.json` and the shown records; what a metrics file lacks is left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from radvision_utils.dashboard import content
from radvision_utils.dashboard.images import data_uri, open_image
from radvision_utils.dashboard.markup import GLYPH_INK, VERDICT_COLORS, anchor, escape
from radvision_utils.dashboard.records import Record, by_contradiction, image_path, verdict_pairs
from radvision_utils.dashboard.trust import trust_charts
from radvision_utils.evaluation.model_verdict import model_verdict
from radvision_utils.evaluation.table import COLUMNS, FACTS

_MODEL_ROWS = ("base", "after stage")  # how the rows begin that a model of this run wrote
_FIGURES = {column.name: (column.protocol, column.metric) for column in COLUMNS}
_NAMES = {column.name: column.heading for column in COLUMNS} | FACTS
_THUMB = 96  # pixels
_BAR, _ROW, _LABEL = 182, 24, 214  # width and height of a bar with its gap, and of its label; pixels


def overview(records: Sequence[Record], metrics: Mapping[str, Any], run_folder: Path) -> str:
    """The verdict, the answers, the three worst studies, the headline table and the chart of observations."""
    table = metrics.get("table") or []
    answers = [_is_it_good(metrics, records[0]), _image_use(metrics), _disagreement(records)]
    told = f'<p class="told">{escape(words)}</p>' if (words := model_verdict(metrics)) else ""
    return (
        f'{told}<section class="answers" aria-label="In short">{"".join(answers)}</section>'
        f"{_worst(records, run_folder)}"
        f'{_table(metrics, table)}<div class="halves">{_chart(records)}{trust_charts(metrics)}</div>'
    )


def _answer(question: str, value: str, words: str) -> str:
    head = f'<p class="value">{escape(value)}</p>' if value else ""
    return f'<div class="answer"><h2>{escape(question)}</h2>{head}<p>{escape(words)}</p></div>'


def _is_it_good(metrics: Mapping[str, Any], record: Record) -> str:
    question, table = "Is the model any good?", metrics.get("table") or []
    column = next((name for name in _FIGURES if any(_number(row.get(name)) is not None for row in table)), None)
    stage = record["model"]["stage"]
    name = f"after stage {stage}" if stage else "base, untuned"
    ours = next((row for row in table if row["row"] == name), None)
    if column is None or ours is None or (value := _number(ours.get(column))) is None:
        return ""
    rivals = [(_number(row.get(column)), row["row"]) for row in table if not row["row"].startswith(_MODEL_ROWS)]
    best = max(((score, row) for score, row in rivals if score is not None), default=None)
    interval = _interval(metrics, name, column)
    shown = f"{_column_name(column)} {value:.3f}" + (f" ({interval[0]:.2f} to {interval[1]:.2f})" if interval else "")
    if best is None:
        return _answer(question, "Not known", f"{shown}; no baseline was scored.")
    words = f"{shown}; the best baseline, {best[1]}, has {best[0]:.3f}."
    if value <= best[0]:
        return _answer(question, "No better than a baseline", words)
    if interval and interval[0] <= best[0]:
        return _answer(question, "Not clearly better than a baseline", words)
    return _answer(question, "Better than every baseline", words)


def _image_use(metrics: Mapping[str, Any]) -> str:
    use = metrics.get("image_use") or {}
    verdict, why = content.clean(use.get("verdict")), content.clean(use.get("sentence"))
    why = why.removeprefix(f"image used: {verdict}").strip()  # the question stands above it
    why = why[1:-1] if why.startswith("(") and why.endswith(")") else why
    return _answer("Does it look at the image?", _capital(verdict), _capital(why)) if verdict else ""


def _disagreement(records: Sequence[Record]) -> str:
    found = [[verdict for _, verdict in verdict_pairs(record)] for record in records]
    if not any(found):
        return ""
    against = sum("contradiction" in verdicts for verdicts in found)
    agree = sum(all(verdict == "agree" for verdict in verdicts) for verdicts in found)
    words = f"contradict the reference; in {agree:,} nothing disagrees ({content.RULES})."
    return _answer("How often is it wrong?", f"{against:,} of {len(records):,} studies", words)


def _worst(records: Sequence[Record], run_folder: Path) -> str:
    wrong = [r for r in records if any(verdict != "agree" for _, verdict in verdict_pairs(r))]
    if not wrong:
        return ""
    links = []
    for record in sorted(wrong, key=by_contradiction)[:3]:
        lines = "".join(
            f"<li>{_sign(verdict)}{verdict}: {escape(', '.join(names))}</li>"
            for verdict in content.VERDICTS
            if verdict != "agree" and (names := [n.lower() for n, v in verdict_pairs(record) if v == verdict])
        )
        links.append(
            f'<li><a href="#{escape(anchor(record["uid"]))}">{_thumb(record, run_folder)}'
            f"<b>{escape(content.study_title(record))}</b></a><ul>{lines}</ul></li>"
        )
    return (
        f'<section aria-labelledby="worst"><h2 id="worst">The worst studies <small>most contradictions first; '
        f'{content.RULES}</small></h2><ol class="worst">{"".join(links)}</ol></section>'
    )


def _sign(verdict: str) -> str:
    return f'<span class="sign" style="background-color:{VERDICT_COLORS[verdict]}">{content.VERDICTS[verdict]}</span>'


def _thumb(record: Record, run_folder: Path) -> str:
    image = open_image(image_path(record, run_folder))
    if image is None:
        return ""
    image.thumbnail((_THUMB, _THUMB), Image.Resampling.LANCZOS)
    return f'<img src="{data_uri(image, 8_000)}" alt="" width="{image.width}" height="{image.height}">'


def _table(metrics: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows by metrics, with every column that any row has, in the order of appearance."""
    if not rows:
        return ""
    columns = list(dict.fromkeys(key for row in rows for key in row if key != "row"))
    heads = "".join(f'<th scope="col">{_unbroken(_column_name(column))}</th>' for column in columns)
    lines = []
    for row in rows:
        cells = "".join(f"<td>{_cell(metrics, row['row'], column, row.get(column))}</td>" for column in columns)
        kind = ' class="model"' if str(row["row"]).startswith(_MODEL_ROWS) else ""
        lines.append(f'<tr{kind}><th scope="row">{escape(row["row"])}</th>{cells}</tr>')
    return (
        '<section aria-labelledby="results"><h2 id="results">Results <small>95 % intervals below the values; '
        'bold: this run\'s model; rule labels may be wrong</small></h2><div class="wide" tabindex="0" role="group" '
        'aria-label="Results, scrolls sideways">'
        f'<table><thead><tr><th scope="col">Reports by</th>{heads}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div></section>"
    )


def _column_name(column: str) -> str:
    return _capital(_NAMES.get(column, column.replace("_", " ")))


def _capital(words: str) -> str:
    return words[:1].upper() + words[1:]


def _unbroken(name: str) -> str:
    return escape(name).replace("-", "\N{NON-BREAKING HYPHEN}")


def _cell(metrics: Mapping[str, Any], row: str, column: str, value: object) -> str:
    if value is None or value == "":
        return "\N{EN DASH}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    number = _number(value)
    if number is None:
        return escape(value)
    interval = _interval(metrics, row, column)
    below = f"<small>{interval[0]:.2f}\N{EN DASH}{interval[1]:.2f}</small>" if interval else ""
    return f"{number:.3f}{below}"


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _interval(metrics: Mapping[str, Any], row: str, column: str) -> tuple[float, float] | None:
    """The 95 % interval of a cell of the table, or None where it has none."""
    protocol, metric = _FIGURES.get(column, ("", ""))
    figure = (((metrics.get("rows") or {}).get(row) or {}).get(protocol) or {}).get(metric)
    if not isinstance(figure, Mapping):
        return None
    low, high = _number(figure.get("low")), _number(figure.get("high"))
    return None if low is None or high is None else (low, high)


def _chart(records: Sequence[Record]) -> str:
    """A bar an observation, of studies by verdict; the glyph and the count stand in each part that has room."""
    counts: dict[str, Counter[str]] = {}
    for record in records:
        for name, verdict in verdict_pairs(record):
            counts.setdefault(name, Counter())[verdict] += 1
    if not counts:
        return ""
    order = sorted(counts, key=lambda name: (-counts[name].total(), name))
    scale = _BAR / max(count.total() for count in counts.values())
    bars = "".join(_bar(name, counts[name], scale, number * _ROW) for number, name in enumerate(order))
    legend = "".join(f"<li>{_sign(verdict)}{verdict}</li>" for verdict in content.VERDICTS)
    width, height = _LABEL + _BAR + 40, len(order) * _ROW
    return (
        '<section aria-labelledby="observations"><h2 id="observations">By observation '
        f'<small>studies; {content.RULES}</small></h2><ul class="legend">{legend}</ul>'
        f'<svg class="chart" viewBox="0 0 {width} {height}" role="img" aria-label="Studies by observation and verdict">'
        f"{bars}</svg></section>"
    )


def _bar(name: str, count: Counter[str], scale: float, top: int) -> str:
    said = ", ".join(f"{count[verdict]} {verdict}" for verdict in content.VERDICTS if count[verdict])
    parts, left = [], float(_LABEL)
    for verdict, glyph in content.VERDICTS.items():
        width = count[verdict] * scale
        if not width:
            continue
        parts.append(
            f'<rect x="{left:.1f}" y="{top + 3}" width="{width:.1f}" height="{_ROW - 6}" '
            f'fill="{VERDICT_COLORS[verdict]}" stroke="var(--rv-paper)"/>'
        )
        if width >= 34:
            middle = f'x="{left + width / 2:.1f}" y="{top + _ROW / 2 + 4:.1f}" text-anchor="middle" fill="{GLYPH_INK}"'
            parts.append(f"<text {middle}>{glyph} {count[verdict]}</text>")
        left += width
    label = f'<text x="{_LABEL - 10}" y="{top + _ROW / 2 + 4}" text-anchor="end">{escape(content.clean(name))}</text>'
    total = f'<text x="{left + 8:.1f}" y="{top + _ROW / 2 + 4}">{count.total()}</text>'
    return f"<g><title>{escape(content.clean(name))}: {said}</title>{label}{''.join(parts)}{total}</g>"
