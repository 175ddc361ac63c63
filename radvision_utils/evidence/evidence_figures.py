"""Figures of evidence and confidence: maps on radiographs, where they point, and what a probability is worth."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from radvision_utils.evaluation.bootstrap import Array, figure_text
from radvision_utils.evaluation.records import read_predictions
from radvision_utils.evidence.pointing import not_validated
from radvision_utils.figures import BLUE, GRAY, GREEN, ORANGE, VERMILION, interval_bar, new_figure, save_figure, tidy
from radvision_utils.files import checked, read_json_lines
from radvision_utils.phantoms.phantom_reports import asserted_pairs

_COLORS = {"occlusion": BLUE, "gradient": ORANGE, "center": GREEN, "random": GRAY}
_COVERAGE = (("shown", "value"), ("unsupported", "value"), ("unsupported", "low"), ("unsupported", "high"))
_SCORES = {"calibrated": BLUE, "token probability": ORANGE, "agreement of samples": GREEN}
_LEAST = 20  # sentences of a dot
_SHOWN = 3  # studies with maps


def save_evidence_figures(metrics: Mapping[str, Any], folder: Path) -> None:
    """Writes the figures for which `metrics` has what they need into the evaluation's folder."""
    figures: dict[str, Figure] = {}
    if "evidence" in metrics:
        figures |= {"maps": show_maps(folder), "pointing": show_pointing(metrics), "deletion": show_curves(metrics)}
    if "confidence" in metrics:
        figures |= {"reliability": show_reliability(metrics), "coverage": show_coverage(metrics)}
    for name, figure in figures.items():
        save_figure(figure, folder / name)


def show_maps(folder: Path) -> Figure:
    """Radiograph, gradient map and occlusion map of a supported sentence of each of the first explained studies.

    Args:
        folder: of an evaluation, with `evidence.jsonl` and `predictions.jsonl`.
    """
    predictions = {ours.uid: ours for ours in read_predictions(folder / "predictions.jsonl")}
    found = _supported(read_json_lines(folder / "evidence.jsonl"))[:_SHOWN]
    figure = new_figure(8.4, 2.45 * max(len(found), 1) + 0.3)
    if not found:
        return _say(figure, "no sentence has a supported map")
    grid, kinds = figure.subplots(len(found), 3, squeeze=False), ("radiograph", "gradient", "occlusion")
    for axes, kind in zip(grid[0], kinds, strict=True):
        axes.set_title(kind, fontsize=9)
    for row, (uid, sentence) in zip(grid, found, strict=True):
        ours = predictions[uid]
        run = folder.parent if ours.split == "test" else folder.parent.parent
        picture = np.asarray(Image.open(checked(run / ours.image)).convert("L"))
        for axes, kind in zip(row, kinds, strict=True):
            axes.imshow(picture, cmap="gray", extent=(0, 1, 1, 0))
            if kind != "radiograph":
                values = np.array(sentence[kind])
                # See-through where the map is low: the radiograph stays readable.
                axes.imshow(values, cmap="viridis", vmin=0, vmax=1, alpha=0.5 * np.sqrt(values), extent=(0, 1, 1, 0))
                for box in (found.box for found in ours.findings if found.box):
                    left, top, right, bottom = box
                    outline = Rectangle(
                        (left, top), right - left, bottom - top, fill=False, color="white", linestyle="--"
                    )
                    axes.add_patch(outline)
            axes.set(xticks=(), yticks=())
        row[0].set_ylabel(textwrap.fill(f"study {uid}: {sentence['text']}", 30), fontsize=8)
    scale = figure.colorbar(
        ScalarMappable(Normalize(0, 1), "viridis"), ax=grid, shrink=0.5, label="speaks for the sentence"
    )
    scale.set_ticks([0, 1], labels=["least", "most"])
    return figure


def _say(figure: Figure, words: str) -> Figure:
    """Words where there is nothing to draw."""
    axes = figure.subplots()
    axes.text(0.5, 0.5, words, ha="center")
    axes.set_axis_off()
    return figure


def _supported(lines: Sequence[Mapping[str, Any]]) -> list[tuple[str, Mapping[str, Any]]]:
    """For each study that has one its first supported sentence that asserts a finding."""
    each = (
        (line["uid"], [s for s in line["sentences"] if s["supported"] and asserted_pairs(s["text"])]) for line in lines
    )
    return [(uid, sentences[0]) for uid, sentences in each if sentences]


def show_pointing(metrics: Mapping[str, Any]) -> Figure:
    """The pointing game: every map over all lesions, and the two maps against chance by finding."""
    figure = new_figure(8, 3.8)
    if (found := metrics["evidence"].get("pointing")) is None:
        return _say(figure, not_validated(metrics))
    left, right = figure.subplots(1, 2)
    names = sorted(found["hit"], key=lambda name: found["hit"][name]["value"])
    for place, name in enumerate(names):
        interval_bar(left, place, found["hit"][name], _COLORS.get(name, GRAY))
    left.set(yticks=range(len(names)), yticklabels=names, xlim=(0, 1.22))
    left.set(xlabel=f"peak inside the drawn region\n(share of {found['lesions']} lesions, 95 % interval)")
    findings = sorted(found["by_finding"], key=lambda name: found["counts"][name])
    for place, finding in enumerate(findings):
        for shift, name in enumerate(("random", "gradient", "occlusion")):
            interval_bar(right, place + 0.27 * (shift - 1), found["by_finding"][finding][name], _COLORS[name], 0.25)
    right.set(
        yticks=range(len(findings)), yticklabels=[f"{n} ({found['counts'][n]})" for n in findings], xlim=(0, 1.22)
    )
    right.set(xlabel="by finding (lesions)")
    for name in ("occlusion", "gradient", "random"):
        right.barh([0], [0], color=_COLORS[name], label=name)
    right.legend(frameon=False, ncols=3, fontsize=8, loc="lower right", bbox_to_anchor=(1, 1))
    for axes in (left, right):
        axes.set_xticks(np.linspace(0, 1, 6))
        tidy(axes)
    return figure


def show_curves(metrics: Mapping[str, Any]) -> Figure:
    """What becomes of a sentence as its image is taken away, or put into a neutral image, in the order of a map."""
    figure = new_figure(9, 3.6)
    if (found := metrics["evidence"].get("pointing")) is None:
        return _say(figure, not_validated(metrics))
    for axes, kind, words in zip(
        figure.subplots(1, 2, sharey=True), ("deletion", "insertion"), ("taken away", "put in"), strict=True
    ):
        for name, curve in found[kind].items():
            at = np.linspace(0, 1, len(curve["curve"]))
            label = f"{name}, area {curve['area']['value']:.2f}"
            style = {"linestyle": "--"} if name == "gradient" else {}  # it often lies on that of occlusion
            axes.plot(at, curve["curve"], color=_COLORS[name], marker="o", markersize=3, label=label, **style)
        axes.set(xlabel=f"share of visual tokens {words}, the map's highest first", title=kind, ylim=(-0.03, 1.03))
        axes.legend(frameon=False, fontsize=8)
        tidy(axes)
    figure.axes[0].set_ylabel("probability of the sentence\nagainst its neutral one")
    return figure


def show_reliability(metrics: Mapping[str, Any]) -> Figure:
    """How often sentences of a confidence are right: on the diagonal, a probability is what it says."""
    groups = metrics["confidence"]["calibration"]
    figure = new_figure(3.9 * max(len(groups), 1), 3.9)
    if not groups:
        return _say(figure, "no sentence speaks of an observation")
    ordered = sorted(groups.items(), key=lambda item: item[0] != "asserting sentences")
    for axes, (group, found) in zip(figure.subplots(1, len(groups), squeeze=False)[0], ordered, strict=True):
        axes.plot([0, 1], [0, 1], color=GRAY, linewidth=1, linestyle="--")
        for name, bins in found["bins"].items():
            for score, right, n in _joined(bins):
                low, high = _wilson(right, n)
                axes.plot([score, score], [low, high], color=_SCORES[name], linewidth=1.2, alpha=0.6)
                axes.scatter(score, right, s=10 + 200 * n / found["sentences"], color=_SCORES[name], alpha=0.8)
            axes.scatter([], [], s=24, color=_SCORES[name], label=f"{name}, error {found['ece'][name]['value']:.3f}")
        axes.set(xlabel="confidence", ylabel="share of sentences that are right")
        axes.set(xlim=(-0.03, 1.05), ylim=(-0.03, 1.05))
        axes.set_title(f"{group}: {found['sentences']}, {found['right']['value']:.0%} right", fontsize=10)
        axes.legend(frameon=False, fontsize=8, loc="lower right")
        tidy(axes)
    figure.axes[0].text(0, 1.02, f"a dot is {_LEAST} sentences or more, larger for more; 95 % intervals", fontsize=7)
    return figure


def _joined(bins: Sequence[Mapping[str, Any]]) -> list[tuple[float, float, int]]:
    """Score, share that is right and number of sentences of bins that are joined until each holds enough."""
    groups: list[Array] = []
    for each in bins:
        sums = np.array([each["n"] * each["score"], each["n"] * each["right"], each["n"]])
        if groups and groups[-1][2] < _LEAST:
            groups[-1] += sums
        else:
            groups.append(sums)
    if len(groups) > 1 and groups[-1][2] < _LEAST:
        groups[-2:] = [groups[-2] + groups[-1]]
    return [(score / n, right / n, int(n)) for score, right, n in groups]


def _wilson(share: float, n: int) -> tuple[float, float]:
    """The 95 % interval of a share of n (Wilson 1927)."""
    z = 1.96
    middle, half = share + z * z / (2 * n), z * (share * (1 - share) / n + z * z / (4 * n * n)) ** 0.5
    return (middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n)


def show_coverage(metrics: Mapping[str, Any]) -> Figure:
    """What hiding the sentences that one is least sure of costs in true findings, and gains in unsupported ones."""
    found = metrics["confidence"]
    curve, chosen = [row for row in found["coverage"] if row["unsupported"]["value"] is not None], found.get("selected")
    figure = new_figure(5.6, 4.0)
    if not curve:
        return _say(figure, "no sentence that asserts a finding has a confidence")
    axes = figure.subplots()
    x, y, low, high = ([row[name][at] for row in curve] for name, at in _COVERAGE)
    axes.plot(x, y, color=VERMILION, marker="o", label="unsupported, of the sentences shown")
    axes.fill_between(x, low, high, color=VERMILION, alpha=0.15, linewidth=0)
    if curve[0]["told"]["value"] is not None:  # some study has a finding
        missing = [1 - row["told"]["value"] for row in curve]
        axes.plot(x, missing, color=BLUE, marker="s", label="true findings not told")
    if chosen and chosen["unsupported"]["value"] is not None:
        label = f"chosen on validation for at most {chosen['most_unsupported']:.0%}"
        axes.plot(chosen["shown"]["value"], chosen["unsupported"]["value"], "*", color=GRAY, markersize=11, label=label)
    axes.set(xlabel="share of asserting sentences that is shown, the surest first", ylabel="share", ylim=(0, None))
    axes.legend(frameon=False, fontsize=8)
    tidy(axes)
    return figure


def evidence_rows(metrics: Mapping[str, Any]) -> list[dict[str, str]]:
    """The pointing game as a table for a notebook: a row a map, with intervals."""
    if (found := metrics["evidence"].get("pointing")) is None:
        return [{"map": not_validated(metrics)}]
    return [
        {
            "map": name,
            "peak in the drawn region": figure_text(found["hit"][name]),
            "energy inside": figure_text(found["energy"][name]) if name in found["energy"] else "",
            **{
                f"area, {kind}": figure_text(found[kind][name]["area"]) if name in found[kind] else ""
                for kind in ("deletion", "insertion")
            },
        }
        for name in found["hit"]
    ]
