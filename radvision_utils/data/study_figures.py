"""Figures of a prepared dataset: studies with their reports, report lengths, commonest findings."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from radvision_utils.data.studies import SPLITS, PreparedDataset, Study
from radvision_utils.figures import BLUE, GREEN, ORANGE, new_figure, tidy
from radvision_utils.files import checked

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLORS = {"train": BLUE, "validation": ORANGE, "test": GREEN}
_COLUMNS = 3  # radiographs side by side
_SIDE = 3.6  # inches, of a radiograph
_LINE = 0.145  # inches, of a line of text
_LETTERS = 55  # in a line


def show_studies(studies: Sequence[Study]) -> Figure:
    """A grid of radiographs, each with its uid, MeSH headings and report under it. Long reports end in "...".

    Args:
        studies: a dozen at most is readable.
    """
    columns = max(1, min(_COLUMNS, len(studies)))
    captions = [_caption(study) for study in studies]
    lines = sum(max(map(len, captions[first : first + columns])) + 1 for first in range(0, len(studies), columns))
    rows = -(-len(studies) // columns)
    figure = new_figure(columns * (_SIDE + 0.15), rows * (_SIDE + 0.3) + lines * _LINE + 0.3)
    for place, (study, caption) in enumerate(zip(studies, captions, strict=True), start=1):
        axes = figure.add_subplot(rows, columns, place, anchor="N", xticks=[], yticks=[])
        with Image.open(checked(study.image)) as image:
            axes.imshow(np.asarray(image), cmap="gray", vmin=0, vmax=255)
        axes.spines[:].set_visible(False)
        axes.set_title(f"study {study.uid} ({study.split})", fontsize=9, loc="left", pad=4)
        axes.set_xlabel("\n".join(caption), fontsize=7.5, loc="left", linespacing=1.2, multialignment="left")
    return figure


def _caption(study: Study) -> list[str]:
    headings = [part.strip().split("/") for part in study.mesh.split(";")]
    mesh = ", ".join(head + (f" ({', '.join(qualifiers)})" if qualifiers else "") for head, *qualifiers in headings)
    texts = (("MeSH", mesh, 4), ("Findings", study.report.findings, 9), ("Impression", study.report.impression, 5))
    return [
        line
        for label, text, most in texts
        for line in textwrap.wrap(f"{label}: {text or 'none'}", _LETTERS, max_lines=most, placeholder=" ...")
    ]


def show_lengths(dataset: PreparedDataset) -> Figure:
    """Histograms of the words in each section of the training targets, by split."""
    figure = new_figure(9, 3.4)
    for place, section in enumerate(("findings", "impression"), start=1):
        axes = figure.add_subplot(1, 2, place)
        words = {split: _words(dataset, split, section) for split in SPLITS}
        longest = int(max(counts.max(initial=0) for counts in words.values()))
        # Bins as wide as a whole number of words: others would hold now more, now fewer lengths, and look like a comb.
        bins = np.arange(0, longest + 31, max(1, -(-longest // 30))).tolist()
        for split, counts in words.items():
            # As shares of the split: train has several times more studies than the others.
            share = np.full(len(counts), 100 / max(1, len(counts)))
            label = f"{split} ({len(counts)})"
            axes.hist(counts, bins, weights=share, histtype="step", linewidth=1.5, color=_COLORS[split], label=label)
        axes.set_xlim(0, longest + 1)
        axes.set_title(section.capitalize(), loc="left", fontsize=10)
        axes.set_xlabel("length (words)")
        axes.set_ylabel("studies (% of split)")
        tidy(axes)
    figure.axes[-1].legend(title="split (studies)", frameon=False, fontsize=8, title_fontsize=8)
    return figure


def _words(dataset: PreparedDataset, split: str, section: str) -> np.ndarray:
    lengths = [len(getattr(study.report, section).split()) for study in dataset.split(split)]
    return np.array([length for length in lengths if length], dtype=int)


def show_findings(dataset: PreparedDataset) -> Figure:
    """The commonest MeSH headings as bars, with the share of normal studies in each split."""
    kept, mesh = dataset.summary["counts"]["kept"], dataset.summary["mesh"]
    normal = {split: share for split, share in dataset.summary["normal_share"].items() if share is not None}
    names = [*(f"normal, {split}" for split in normal), *mesh]
    shares = [*(100 * share for share in normal.values()), *(100 * count / kept for count in mesh.values())]
    colors = [*(_COLORS[split] for split in normal), *["#8c8c8c"] * len(mesh)]
    figure = new_figure(7.5, 0.24 * len(names) + 1.2)
    axes = figure.add_subplot()
    bars = axes.barh(names, shares, color=colors, height=0.75)
    axes.bar_label(bars, fmt="%.0f%%", padding=3, fontsize=7)
    axes.invert_yaxis()
    axes.margins(x=0.08, y=0.01)
    axes.tick_params(axis="y", labelsize=8, length=0)
    axes.set_xlabel("studies (% of all; normal: % of the split)")
    axes.set_title(f"MeSH headings of {kept} studies", loc="left", fontsize=10)
    tidy(axes)
    return figure
