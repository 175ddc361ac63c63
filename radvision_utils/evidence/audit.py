"""An audit by finding: does a sentence rest on the place of its finding, on this study, on an image at all?

For a sentence that asserts a finding, by how much its log-odds against a neutral sentence fall when the region of the
finding is taken from the image, when an equal region elsewhere is, when another study of the same finding is shown, a
study of another, or the mean of training images. On phantoms the regions are the drawn ones; elsewhere they are the top
tokens of the sentence's own map, which no truth stands behind: these figures say so.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from radvision_utils.data.labels import asserted
from radvision_utils.data.studies import Study
from radvision_utils.evaluation.bootstrap import Bootstrap, figure_text
from radvision_utils.evidence.explain import TOP_SHARE, occlusion_maps
from radvision_utils.evidence.passage import Kept, Passage
from radvision_utils.evidence.pointing import Inside, estimate

CHANGES = ("region of the finding", "equal region elsewhere", "same finding", "another finding", "mean image")
CHECKED = ("region of the finding, less elsewhere", "another finding, less same finding")


def elsewhere(inside: Inside, rng: np.random.Generator) -> Inside:
    """As many tokens outside of a region, one patch of its form where one fits, else drawn by lot."""
    side = round(len(inside) ** 0.5)
    plane = inside.reshape(side, side)
    moves = [(down, across) for down in range(side) for across in range(side)]
    for at in rng.permutation(len(moves)):
        moved = np.roll(plane, moves[at], axis=(0, 1))
        if not (moved & plane).any():
            return moved.ravel()
    free = np.flatnonzero(~inside)
    chosen = np.zeros_like(inside)
    chosen[rng.permutation(free)[: inside.sum()]] = True
    return chosen


def own_region(values: np.ndarray[Any, Any]) -> Inside:
    """Where no truth was drawn: the top tokens of a sentence's own map."""
    region = np.zeros(len(values), bool)
    region[np.argsort(-values, kind="stable")[: max(1, len(values) // TOP_SHARE)]] = True
    return region


def audit_passage(
    passage: Passage, regions: Mapping[int, tuple[str, Inside]], others: Sequence[Study], rng: np.random.Generator
) -> list[dict[str, Any]]:
    """The sentences of one report.

    Args:
        passage: the report under its image.
        regions: number of the sentence -> its finding, and the tokens inside.
        others: studies whose images may be shown instead.
        rng: draws the equal regions and the other studies.

    Returns:
        For each sentence `{"finding", "falls": {change: nats}}`; without a study to show, a change is left out.
    """
    found = []
    for number, (finding, inside) in regions.items():
        told = set(asserted(passage.layout.parts[number].text))
        pools: dict[str, list[Study]] = {"same finding": [], "another finding": []}
        for other in others:
            pools["same finding" if told & set(asserted(other.reference.text)) else "another finding"].append(other)
        kept = np.array([np.ones_like(inside), ~inside, ~elsewhere(inside, rng), np.zeros_like(inside)])
        own, region, apart, mean = passage.scores(kept)[:, number]
        under = {"region of the finding": region, "equal region elsewhere": apart, "mean image": mean}
        for name, pool in pools.items():
            if pool:
                under[name] = _under(passage, pool[int(rng.integers(len(pool)))], kept[:1])[number]
        found.append({"finding": finding, "falls": {name: round(float(own - s), 4) for name, s in under.items()}})
    return found


@torch.no_grad()
def _under(passage: Passage, other: Study, whole: Kept) -> np.ndarray[Any, Any]:
    """(parts,) the scores of the same report under another study's image."""
    tokens, passage.tokens = passage.tokens, passage.reporter.visual_tokens([other])[0]
    try:
        scores: np.ndarray[Any, Any] = passage.scores(whole)[0]
        return scores
    finally:
        passage.tokens = tokens


def regions_of(passage: Passage) -> dict[int, tuple[str, Inside]]:
    """Where no truth was drawn: for each asserting sentence its first finding and the top tokens of its map."""
    maps = occlusion_maps(passage)
    told = [asserted(part.text) for part in passage.layout.parts]
    return {n: (names[0], own_region(maps[n])) for n, names in enumerate(told) if names}


def audit_figures(
    audited: Sequence[tuple[int, Mapping[str, Any]]], bootstrap: Bootstrap, drawn: bool
) -> dict[str, Any]:
    """What `metrics.json` says of the audit: mean falls of all sentences and of each finding, nats, with intervals.

    Args:
        audited: position of the study, and what `audit_passage` says of a sentence.
        bootstrap: of these studies.
        drawn: whether the regions are those that were drawn.
    """

    def falls(names: Sequence[str]) -> dict[str, Any]:
        some = [(study, told["falls"]) for study, told in audited if told["finding"] in names]
        figures = {
            name: estimate([(study, each[name]) for study, each in some if name in each], bootstrap) for name in CHANGES
        }
        region, apart, same, other, _ = figures.values()
        checked = dict(zip(CHECKED, (region.minus(apart), other.minus(same)), strict=True))
        return {name: figure.to_json() for name, figure in {**figures, **checked}.items()}

    counts = Counter(told["finding"] for _, told in audited)
    figures = {
        "regions": "drawn" if drawn else "the top tokens of the sentence's own map: no truth stands behind them",
        "sentences": len(audited),
        "all": falls(list(counts)),
        "by_finding": {name: falls([name]) for name in sorted(counts)},
        "counts": dict(counts),
    }
    return figures | {"sentence": _sentence(figures)}


def _sentence(figures: Mapping[str, Any]) -> str:
    falls = ", ".join(f"{name} {figure_text(figures['all'][name])}" for name in CHANGES)
    regions = "" if figures["regions"] == "drawn" else f" (regions: {figures['regions']})"
    return f"audit of {figures['sentences']} asserting sentences{regions}, fall of their log-odds: {falls}"


def audit_rows(metrics: Mapping[str, Any]) -> list[dict[str, str]]:
    """The audit as a table: a row a finding, with intervals; findings of fewer than 10 sentences are marked."""
    found = metrics["evidence"].get("audit")
    if found is None:
        return [{"finding": "no sentence asserts one"}]
    rows = {f"{name}{' *' if found['counts'][name] < 10 else ''}": falls for name, falls in found["by_finding"].items()}
    return [
        {"finding": name, **{change: figure_text(falls[change]) for change in CHANGES}}
        for name, falls in {"all": found["all"], **rows}.items()
    ]
