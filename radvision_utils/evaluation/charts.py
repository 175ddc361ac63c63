"""Figures of an evaluation: what each stage earned, and of the last one which findings it misses and where text metrics
mislead."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from radvision_utils.config import STAGE_LABELS, STAGES
from radvision_utils.evaluation.records import Prediction
from radvision_utils.evaluation.table import RULE_LABELS
from radvision_utils.figures import (
    BLUE,
    GLYPH_INK,
    GRAY,
    VERDICT_COLORS,
    VERDICTS,
    VERMILION,
    interval_bar,
    new_figure,
    save_figure,
    tidy,
)

STAGE = STAGES[-1]
LAST = STAGE_LABELS[STAGE]


def save_figures(metrics: Mapping[str, Any], predictions: Sequence[Prediction], folder: Path) -> None:
    """Writes every figure into the evaluation's folder."""
    figures = {
        "ladder": show_ladder(metrics),
        "observations": show_observations(metrics),
        "confusion": show_confusion(metrics),
        "agreement": show_agreement(predictions),
        "text_against_labels": show_text_against_labels(predictions),
    }
    if any(ours.findings for ours in predictions):
        figures["verdicts"] = show_verdicts(predictions)
    for name, figure in figures.items():
        save_figure(figure, folder / name)


def show_ladder(metrics: Mapping[str, Any]) -> Figure:
    """Rows of the table as bars: abnormal F1 with its interval, and the loss per report token."""
    names = [row["row"] for row in reversed(metrics["table"])]
    losses = {row["row"]: row.get("loss") for row in metrics["table"]}
    colors = [GRAY if losses[name] is None else BLUE for name in names]
    figure = new_figure(7.6, 3.6)
    left, right = figure.subplots(1, 2, sharey=True)
    scores = [metrics["rows"][name][RULE_LABELS]["micro_f1"] for name in names]
    _bars_with_intervals(left, names, scores, colors)
    left.set(xlabel="rule-label F1 of 13 abnormal observations\n(micro, 95 % interval)", xlim=(0, 1.19))
    left.set_xticks(np.linspace(0, 1, 6))
    known = [losses[name] for name in names]
    bars = right.barh(range(len(names)), [loss or 0.0 for loss in known], color=colors)
    words = ["no model" if loss is None else f"{loss:.2f}" for loss in known]
    right.bar_label(bars, words, padding=4, fontsize=9)
    right.margins(x=0.18)
    tidy(right)
    right.set(xlabel="loss (nats per report token)")
    right.tick_params(left=False)
    return figure


def show_observations(metrics: Mapping[str, Any]) -> Figure:
    """F1 of each of the 13 observations with its interval and support."""
    found = metrics["rows"][LAST]["observations"]
    names = sorted(found, key=lambda name: found[name]["support"])
    figure = new_figure(7.2, 4.6)
    axes = figure.subplots()
    labels = [f"{name} ({found[name]['support']})" for name in names]
    _bars_with_intervals(axes, labels, [found[name] for name in names], [BLUE] * len(names))
    axes.set(xlabel=f"rule-label F1 {LAST} (95 % interval)", xlim=(0, 1.12))
    axes.set_xticks(np.linspace(0, 1, 6))
    axes.set_ylabel(f"observation (references of {metrics['n']} that assert it)")
    if not any(facts["asserted"] for facts in found.values()):
        axes.set_title("no report asserts an observation", fontsize=10)
    return figure


def show_confusion(metrics: Mapping[str, Any]) -> Figure:
    """How many normal and abnormal studies are reported as such."""
    counts = metrics["rows"][LAST]["confusion"]
    names = ("abnormal", "normal")
    table = np.array([[counts[true][said] for said in names] for true in names])
    shares = table / np.maximum(table.sum(1, keepdims=True), 1)
    figure = new_figure(4.6, 3.9)
    axes = figure.subplots()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (true, said), count in np.ndenumerate(table):
        color = "white" if shares[true, said] > 0.6 else "black"
        axes.text(said, true, f"{count}\n{shares[true, said]:.0%}", ha="center", va="center", color=color, fontsize=12)
    axes.set(xticks=(0, 1), yticks=(0, 1), xticklabels=names, yticklabels=names)
    axes.set(xlabel=f"report {LAST} says", ylabel="reference says")
    if empty := metrics["rows"][LAST]["empty_reports"]:
        axes.set_title(f"{empty} of {metrics['n']} reports have no word and stand as normal", fontsize=10)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return figure


def show_text_against_labels(predictions: Sequence[Prediction]) -> Figure:
    """ROUGE-L against label F1, a point a study: at the lower right text metrics praise what is wrong."""
    scores = [r.scores for r in predictions if r.stage == STAGE and "rouge_l" in r.scores]
    x, y = (np.array([score[name] for score in scores], float) for name in ("rouge_l", "label_f1"))
    figure = new_figure(6.4, 4.2)
    axes = figure.subplots()
    # Many studies share a label F1: moved apart a little, always the same way, so that points do not hide others.
    shift = np.random.default_rng(0).uniform(-0.02, 0.02, len(y))
    axes.scatter(x, y + shift, s=22, color=BLUE, alpha=0.75, linewidths=0)
    axes.axvspan(0.5, 1.03, ymax=0.5 / 1.12 + 0.05, color=VERMILION, alpha=0.08, linewidth=0)
    axes.text(1.01, 0.46, "similar words,\nwrong findings", ha="right", va="top", fontsize=9, color=VERMILION)
    axes.set(xlabel=f"ROUGE-L, stage {STAGE}", ylabel="label F1 of the study", xlim=(-0.03, 1.03), ylim=(-0.06, 1.06))
    tidy(axes)
    return figure


def show_agreement(predictions: Sequence[Prediction]) -> Figure:
    """For each observation, in how many studies the report agrees with the reference by the rules, or how not."""
    judged = [(ours.verdicts or {}).items() for ours in predictions if ours.stage == STAGE]
    counts = Counter(pair for pairs in judged for pair in pairs)
    return _stacked(
        counts, f"studies, stage {STAGE}; rule-based, may be wrong", "neither report asserts an observation"
    )


def show_verdicts(predictions: Sequence[Prediction]) -> Figure:
    """For each finding, how often reports agree with what was drawn, miss it, or assert it without reason."""
    drawn = [ours.findings for ours in predictions if ours.stage == STAGE]
    counts = Counter((finding.name, finding.verdict) for findings in drawn for finding in findings)
    return _stacked(counts, f"findings of the split, stage {STAGE}", "no finding was drawn or asserted here")


def _stacked(counts: Mapping[tuple[str, str], int], xlabel: str, none: str) -> Figure:
    """A bar a name, of its counts by verdict; the verdict's glyph and the count stand in each part that has room."""
    sums: Counter[str] = Counter()
    for (name, _), count in counts.items():
        sums[name] += count
    names = sorted(sums, key=lambda name: (sums[name], name))
    figure = new_figure(7.2, 1.1 + 0.34 * max(len(names), 1))
    axes = figure.subplots()
    left = [0] * len(names)
    kinds = {kind for _, kind in counts}
    for verdict, glyph in ((verdict, glyph) for verdict, glyph in VERDICTS.items() if verdict in kinds):
        widths = [counts.get((name, verdict), 0) for name in names]
        bars = axes.barh(names, widths, left=left, color=VERDICT_COLORS[verdict], label=f"{glyph} {verdict}")
        words = [f"{glyph} {n}" if n >= 0.06 * max(sums.values()) else "" for n in widths]
        axes.bar_label(bars, words, label_type="center", fontsize=9, color=GLYPH_INK)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    if names:
        axes.bar_label(bars, [str(sums[name]) for name in names], padding=4, fontsize=9)
        axes.margins(x=0.08)
        axes.legend(frameon=False, ncols=len(VERDICTS), loc="lower right", bbox_to_anchor=(1, 1))
    else:
        axes.text(0.5, 0.5, none, ha="center", transform=axes.transAxes)
    axes.set(xlabel=xlabel)
    tidy(axes)
    return figure


def _bars_with_intervals(
    axes: Axes, names: Sequence[str], figures: Sequence[Mapping[str, Any]], colors: Sequence[str]
) -> None:
    """Bars from 0 with their intervals, the value at the right end; "n/a" where it is not defined."""
    for place, (figure, color) in enumerate(zip(figures, colors, strict=True)):
        interval_bar(axes, place, figure, color)
    axes.set(yticks=range(len(names)), yticklabels=names)
    tidy(axes)
