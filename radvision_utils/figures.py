"""What figures and tables share: size, the line at the foot, colors that color-blind readers can tell apart."""

from __future__ import annotations

import os
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from radvision_utils.config import AUTO, DISCLAIMER, settings_of
from radvision_utils.environment import choose_device, in_live_notebook, open_room
from radvision_utils.files import read_json_lines

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from IPython.display import HTML
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from radvision_utils.config import Profile

# Okabe and Ito 2008, Color Universal Design (jfly.uni-koeln.de/color).
BLUE, ORANGE, VERMILION, GREEN, PURPLE, GRAY = "#0072B2", "#E69F00", "#D55E00", "#009E73", "#CC79A7", "#999999"
VERDICTS = {
    "contradiction": "\N{NOT EQUAL TO}",
    "missed": "\N{MINUS SIGN}",
    "unsupported": "+",
    "agree": "\N{CHECK MARK}",
}
"""Each verdict and its glyph, the worst first: the texts deny each other; only the reference says so; only the
generated report says so; both say so."""
VERDICT_COLORS = {"contradiction": VERMILION, "missed": ORANGE, "unsupported": PURPLE, "agree": GREEN}
# Of cards and pages.
_PARTS = ("paper", "sunk", "ink", "muted", "line", "accent")
LIGHT = dict(zip(_PARTS, ("#ffffff", "#f3f5f7", "#171c22", "#55606c", "#dbe0e6", "#00649c"), strict=True))
DARK = dict(zip(_PARTS, ("#14181d", "#1b2027", "#e7ebef", "#a5afba", "#303841", "#6cbdec"), strict=True))
WELL = {"well": "#040506", "well-ink": "#c5cdd5"}
"""The image lies on near-black in both themes, as on a reading room's screen."""
GLASS = "#fafbfb"  # around a radiograph that is inverted
BAND = ("#fdf1c7", "#2b2208")  # ground and ink, in both themes
SIGN_COLORS = {**VERDICT_COLORS, "warning": "#f0e442"}
GLYPH_INK = "#07090b"


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of so many inches, with the disclaimer at its foot; shown as the value of a notebook's cell."""
    # Pyplot teaches a notebook to show figures; closed at once, it is shown only as the value of its cell, and freed.
    from matplotlib import pyplot

    figure = pyplot.figure(figsize=(width, height), layout="constrained", dpi=100)
    pyplot.close(figure)
    figure.supxlabel(DISCLAIMER, fontsize=7, color="#666666")
    return figure


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as `path` with `.png`, to look at, and with `.svg`, for the dashboard: text as text, no ground."""
    import matplotlib

    figure.savefig(path.with_suffix(".png"), dpi=120)
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": path.name}):
        figure.savefig(path.with_suffix(".svg"), transparent=True, metadata={"Date": None})


def text_table(rows: Sequence[Mapping[str, object]]) -> HTML:
    """Rows of texts as a table for a notebook: whole texts, set from the left, escaped."""
    import pandas as pd
    from IPython.display import HTML

    told = [{name: "\N{EN DASH}" if value is None else value for name, value in row.items()} for row in rows]
    with pd.option_context("display.max_colwidth", None):
        html = pd.DataFrame(told).to_html(na_rep="\N{EN DASH}", index=False, escape=True, justify="left")
    # Notebooks' own sheets set headers and cells to the right; only a style of their own wins over those.
    for cell in ("th", "td"):
        html = html.replace(f"<{cell}>", f'<{cell} style="text-align:left;vertical-align:top">')
    return HTML(html)


def settings_table(profile: Profile, meanings: Mapping[str, str]) -> HTML:
    """Some settings by their dotted names, each with its value and with what it means.

    Where the value is "auto" what the planner chooses for this machine stands beside it, with its reason.
    """
    values = settings_of(profile)
    if AUTO in values.values():
        values |= open_room("planning.tables").choices(profile, choose_device())
    return text_table([{"setting": name, "value": values[name], "meaning": words} for name, words in meanings.items()])


def link_to(page: Path) -> HTML:
    """A link to a page of a run, from the notebook that is worked in or from the run's executed copy of it."""
    from IPython.display import HTML

    here = Path.cwd() if in_live_notebook() else page.parent.parent / "notebooks"
    return HTML(f'<a href="{quote(os.path.relpath(page, here))}" target="_blank">{page.name}</a> ({escape(str(page))})')


def markdown_table(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table in Markdown; a cell may hold anything but a bar."""
    return "".join("| " + " | ".join(line) + " |\n" for line in [heads, ["---"] * len(heads), *lines])


def interval_bar(axes: Axes, place: float, figure: Mapping[str, Any], color: str, height: float = 0.8) -> None:
    """A bar from 0 to a figure's value, with its interval and the value behind it; "n/a" where it is not defined."""
    axes.barh([place], [figure["value"] or 0.0], height=height, color=color)
    end, told = 0.0, "n/a"
    if figure["value"] is not None:
        end, told = figure["high"], f"{figure['value']:.2f}"
        axes.plot([figure["low"], end], [place, place], color="black", linewidth=1.2, solid_capstyle="butt")
    axes.text(end + 0.02, place, told, va="center", fontsize=9 if height > 0.5 else 7)


def tidy(axes: Axes) -> None:
    """Take away the frame's upper and right line."""
    axes.spines[["top", "right"]].set_visible(False)


def loss_figure(log: Path, title: str) -> Figure:
    """Training and validation loss of a `log.jsonl`, as far as there are any."""
    lines = read_json_lines(log, torn=True)
    train = [(line["step"], line["loss"]) for line in lines if "loss" in line]
    held_out = [(line["step"], line["validation_loss"]) for line in lines if "validation_loss" in line]
    figure = new_figure(7, 3.6)
    axes = figure.subplots()
    axes.set(xlabel="optimizer step", ylabel="loss (nats per report token)", title=title)
    for points, style, looks in (
        (train, "-", {"color": BLUE, "alpha": 0.35, "linewidth": 1, "label": "training, each step"}),
        (_smooth(train), "-", {"color": BLUE, "linewidth": 2, "label": "training, running mean"}),
        (held_out, "o-", {"color": VERMILION, "label": "validation"}),
    ):
        axes.plot([step for step, _ in points], [loss for _, loss in points], style, **looks)
    # Single batches with an unknown finding shoot up; the curve is what one wants to read.
    losses = sorted(loss for _, loss in train)
    tallest = max([*losses[: 1 + int(0.98 * len(losses))][-1:], *(loss for _, loss in held_out)], default=1.0)
    axes.set_ylim(0, 1.1 * tallest)
    tidy(axes)
    axes.legend(frameon=False)
    return figure


def _smooth(points: list[tuple[int, float]]) -> list[tuple[int, float]]:
    width = max(1, len(points) // 20)
    return [
        (points[i][0], sum(loss for _, loss in points[max(0, i - width + 1) : i + 1]) / min(width, i + 1))
        for i in range(len(points))
    ]
