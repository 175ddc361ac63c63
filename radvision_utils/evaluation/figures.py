"""Figures of an evaluation: what each stage earned, and which findings are still missed or invented."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from radvision_utils.figures import BLUE, GRAY, ORANGE, VERMILION, new_figure, tidy


def show_ladder(metrics: Mapping[str, Any]) -> Figure:
    """Rows of the table as bars: studies wholly right (phantoms) or ROUGE-L, and the loss per report token."""
    table = list(reversed(metrics["table"]))
    drawn = all("study_accuracy" in row for row in table)
    key, label = ("study_accuracy", "studies wholly right (share)") if drawn else ("rouge_l", "ROUGE-L (0 to 1)")
    figure = new_figure(9, 3.0)
    left, right = figure.subplots(1, 2, sharey=True)
    names = [row["row"] for row in table]
    colors = [BLUE if "loss" in row else GRAY for row in table]
    _bars(left, names, [row[key] for row in table], colors, "{:.2f}")
    left.set(xlabel=label, xlim=(0, 1))
    _bars(right, names, [row.get("loss") for row in table], colors, "{:.2f}")
    right.set(xlabel="loss (nats per report token)")
    right.tick_params(left=False)
    return figure


def show_verdicts(predictions: Sequence[Mapping[str, Any]], stage: int = 3) -> Figure:
    """For each finding, how often a stage's reports agree with what was drawn, miss it, or assert it without reason."""
    counts = Counter(
        (finding["name"], finding["verdict"])
        for record in predictions
        if record["model"]["stage"] == stage
        for finding in record["findings"]
    )
    names = sorted({name for name, _ in counts}, reverse=True)
    figure = new_figure(9, 0.8 + 0.36 * max(len(names), 1))
    axes = figure.subplots()
    left = [0] * len(names)
    for verdict, color, hatch in (("agree", BLUE, ""), ("missed", ORANGE, "//"), ("unsupported", VERMILION, "..")):
        widths = [counts[name, verdict] for name in names]
        axes.barh(names, widths, left=left, color=color, hatch=hatch, edgecolor="white", label=verdict)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    axes.set(xlabel=f"findings in the test split, stage {stage}")
    if not names:
        axes.text(0.5, 0.5, "no drawn findings: these are not phantoms", ha="center", transform=axes.transAxes)
    axes.legend(frameon=False, ncols=3, loc="lower right", bbox_to_anchor=(1, 1))
    tidy(axes)
    return figure


def _bars(axes: Axes, names: Sequence[str], values: Sequence[float | None], colors: Sequence[str], form: str) -> None:
    bars = axes.barh(names, [value or 0.0 for value in values], color=colors)
    axes.bar_label(bars, [form.format(v) if v is not None else "no model" for v in values], padding=4, fontsize=9)
    axes.margins(x=0.18)
    tidy(axes)
