"""How far evidence maps and words of confidence are to be trusted, as small charts of the page.

Markup made from the sections `evidence` and `confidence` of `metrics.json`; what they lack is left out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from radvision_utils.dashboard.content import clean
from radvision_utils.dashboard.markup import escape

_ROW, _LABEL, _BAR = 26, 214, 190  # height of a bar with its gap, width of its label and of a full bar; pixels
_LEFT, _TOP, _SIDE, _TALL = 52, 22, 330, 210  # margins and size of a plot's field
_MAPS = {"occlusion": "by occlusion (on the cards)", "gradient": "by gradient"}  # all other rows are controls
_CONTROLS = {"random": "random map", "center": "center of the image"}


def trust_charts(metrics: Mapping[str, Any]) -> str:
    """Whether maps point at what was drawn, whether confidence is calibrated, and what hiding sentences would cost."""
    evidence, confidence = metrics.get("evidence") or {}, metrics.get("confidence") or {}
    return _pointing(evidence) + _reliability(confidence) + _coverage(confidence)


def _pointing(evidence: Mapping[str, Any]) -> str:
    """Bars of how often a map's peak lies in the drawn region, beside what chance and a broken model reach."""
    found = evidence.get("pointing") or {}
    rows = [(name, *shown) for name, figure in (found.get("hit") or {}).items() if (shown := _figure(figure))]
    if not rows:
        told = clean(evidence.get("sentence"))
        return _section("pointing", "Evidence maps", "", _told(told)) if told else ""
    bars = "".join(_bar(row, number * _ROW) for number, row in enumerate(rows))
    width, height = _LABEL + _BAR + 60, len(rows) * _ROW
    note = f"{found.get('lesions', 0):,} drawn lesions that a report asserts; line: 95 % interval"
    chart = (
        f'<svg class="chart" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="How often the strongest cell of a map lies in the drawn region">{bars}</svg>'
    )
    return _section("pointing", "Do maps point at the lesion?", note, chart)


def _reliability(confidence: Mapping[str, Any]) -> str:
    """How often sentences of each confidence were right."""
    figures = (confidence.get("calibration") or {}).get("all sentences") or {}
    points = []
    for part in (figures.get("bins") or {}).get("calibrated") or []:
        said, right, count = _share(part.get("score")), _share(part.get("right")), part.get("n")
        if said is not None and right is not None and isinstance(count, int):
            points.append((said, right, f"{count:,}"))
    if not points:
        told = clean(confidence.get("sentence"))
        return _section("reliability", "Confidence", "", _told(told)) if told else ""
    error = _figure((figures.get("ece") or {}).get("calibrated"))
    note = "sentences of the test split in ten bins; number: sentences; on the dashed line it would be perfect"
    words = f"expected calibration error {error[0]:.3f}{_interval(error)}" if error else ""
    chart = _plot("Reliability diagram", "confidence", "share that was right", points, (0, 1), (0, 1))
    return _section("reliability", "Is confidence what it says?", note, chart + _told(words))


def _coverage(confidence: Mapping[str, Any]) -> str:
    """What hiding sentences below an agreement gains, and what it costs."""
    samples, points = confidence.get("samples"), list[tuple[float, float, str]]()
    for row in confidence.get("coverage") or []:
        told, wrong = (_figure(row.get(name)) for name in ("told", "unsupported"))
        if told and wrong:
            least = row.get("agreement")
            points.append((told[0], wrong[0], f"below {clean(least)} of {clean(samples)}" if least else "none hidden"))
    if not points:
        return ""
    note = "sentences that assert a finding; each point hides those that fewer sampled reports say"
    across, up = _span([right for right, _, _ in points]), _span([high for _, high, _ in points])
    title = "Coverage against unsupported findings"
    chart = _plot(title, "share of true findings still told", "share unsupported", points, across, up)
    return _section("coverage", "What does hiding sentences cost?", note, chart)


def _interval(figure: tuple[float, float | None, float | None]) -> str:
    _, low, high = figure
    return "" if low is None or high is None else f" ({low:.3f} to {high:.3f})"


def _told(words: str) -> str:
    return f'<p class="told">{escape(_capital(words))}.</p>' if words else ""


def _bar(row: tuple[str, float, float | None, float | None], top: int) -> str:
    name, value, low, high = row
    color = "accent" if name in _MAPS else "muted"
    middle, told = top + _ROW / 2, (_MAPS | _CONTROLS).get(name, name)
    parts = [
        f'<text x="{_LABEL - 10}" y="{middle + 4}" text-anchor="end">{escape(clean(told))}</text>',
        f'<rect x="{_LABEL}" y="{top + 5}" width="{value * _BAR:.1f}" height="{_ROW - 10}" fill="var(--rv-{color})"/>',
    ]
    end = value
    if low is not None and high is not None:
        end = high
        ends = f'x1="{_LABEL + low * _BAR:.1f}" x2="{_LABEL + high * _BAR:.1f}" y1="{middle}" y2="{middle}"'
        parts += [
            f'<line {ends} stroke="var(--rv-{ink})" stroke-width="{w}"/>' for ink, w in (("paper", 5), ("ink", 2))
        ]
    parts.append(f'<text x="{_LABEL + end * _BAR + 8:.1f}" y="{middle + 4}">{value:.2f}</text>')
    return f"<g>{''.join(parts)}</g>"


def _figure(figure: Any) -> tuple[float, float | None, float | None] | None:
    """Value and interval of a figure, each None where it is not defined."""
    if not isinstance(figure, Mapping):
        return None
    value, low, high = (_share(figure.get(name)) for name in ("value", "low", "high"))
    return None if value is None else (value, low, high)


def _share(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1 else None


def _section(name: str, title: str, note: str, inside: str) -> str:
    small = f" <small>{escape(note)}</small>" if note else ""
    return f'<section aria-labelledby="{name}"><h2 id="{name}">{title}{small}</h2>{inside}</section>'


def _capital(words: str) -> str:
    return words[:1].upper() + words[1:]


def _span(values: Sequence[float]) -> tuple[float, float]:
    """Tenths around the values within 0 to 1, so many fifths wide that quarters of it are round numbers."""
    low, high = math.floor(min(values) * 10), math.ceil(max(values) * 10)
    width = max(2, high - low + (high - low) % 2)
    low = max(0, min(low, 10 - width))
    return low / 10, (low + width) / 10


def _plot(
    title: str,
    right: str,
    up: str,
    points: Sequence[tuple[float, float, str]],
    span_right: tuple[float, float],
    span_up: tuple[float, float],
) -> str:
    """A line through points of a field, with the diagonal on which both are equal where the spans are.

    Args:
        title: what it shows, for who does not see it.
        right: what the horizontal axis is.
        up: what the vertical axis is.
        points: right, up and a label, in order.
        span_right: lowest and highest value of the horizontal axis.
        span_up: of the vertical axis.
    """

    def at(x: float, y: float) -> tuple[float, float]:
        return _LEFT + x * _SIDE, _TOP + (1 - y) * _TALL

    (x0, x1), (y0, y1) = span_right, span_up
    parts = []
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        (x, bottom), (left, y) = at(tick, 0), at(0, tick)
        parts.append(f'<line x1="{left}" x2="{left + _SIDE}" y1="{y}" y2="{y}" stroke="var(--rv-line)"/>')
        parts.append(f'<text x="{left - 8}" y="{y + 4}" text-anchor="end">{y0 + tick * (y1 - y0):.2f}</text>')
        parts.append(f'<text x="{x}" y="{bottom + 18}" text-anchor="middle">{x0 + tick * (x1 - x0):.2f}</text>')
    if span_right == span_up:
        (left, bottom), (end, top) = at(0, 0), at(1, 1)
        ends = f'x1="{left}" y1="{bottom}" x2="{end}" y2="{top}"'
        parts.append(f'<line {ends} stroke="var(--rv-muted)" stroke-dasharray="4 4"/>')
    places = [(*at((x - x0) / (x1 - x0), (y - y0) / (y1 - y0)), label) for x, y, label in points]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y, _ in places)
    parts.append(f'<polyline points="{line}" fill="none" stroke="var(--rv-accent)" stroke-width="2"/>')
    labeled: list[tuple[float, float]] = []
    for x, y, label in places:
        parts.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="var(--rv-accent)"><title>{escape(label)}</title></circle>'
        )
        if all(abs(x - there) > 90 or abs(y - height) > 14 for there, height in labeled):
            # Curves rise to the right: the lower right of a point is free, near the edge the upper left.
            inside = x < _LEFT + _SIDE * 0.7
            anchor = f'x="{x + 8 if inside else x - 8:.1f}" text-anchor="{"start" if inside else "end"}"'
            halo = 'paint-order="stroke" stroke="var(--rv-paper)" stroke-width="4"'  # readable on a line
            parts.append(f'<text {anchor} y="{y + 16 if inside else y - 6:.1f}" {halo}>{escape(label)}</text>')
            labeled.append((x, y))
    bottom = _TOP + _TALL + 40
    parts.append(f'<text x="{_LEFT + _SIDE / 2}" y="{bottom}" text-anchor="middle">{escape(right)}</text>')
    size = f'viewBox="0 0 {_LEFT + _SIDE + 40} {bottom + 8}"'
    chart = f'<svg class="chart" {size} role="img" aria-label="{escape(title)}">{"".join(parts)}</svg>'
    return f'<p class="axis">{escape(up)}</p>{chart}'
