"""What figures and tables share: size, the line at the foot, colors that color-blind readers can tell apart."""

from __future__ import annotations

from typing import TYPE_CHECKING

from radvision_utils.config import DISCLAIMER

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from IPython.display import HTML
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

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

    with pd.option_context("display.max_colwidth", None):
        html = pd.DataFrame(rows).to_html(index=False, escape=True, justify="left")
    # Notebooks' own sheets set headers and cells to the right; only a style of their own wins over those.
    for cell in ("th", "td"):
        html = html.replace(f"<{cell}>", f'<{cell} style="text-align:left;vertical-align:top">')
    return HTML(html)


def markdown_table(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table in Markdown; a cell may hold anything but a bar."""
    return "".join("| " + " | ".join(line) + " |\n" for line in [heads, ["---"] * len(heads), *lines])


def tidy(axes: Axes) -> None:
    """Take away the frame's upper and right line."""
    axes.spines[["top", "right"]].set_visible(False)
