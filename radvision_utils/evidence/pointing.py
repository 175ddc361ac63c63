"""Do maps point at what was drawn, and does a sentence rest on the place of its finding?

Maps are judged by the pointing game, energy inside, deletion and insertion. The rule of the pointing game (Zhang et
al., ECCV 2016, arXiv:1608.00507, there with a tolerance of 15 pixels): a visual token counts as inside if the drawn
region covers at least a tenth of its cell, or if its cell holds at least a tenth of the region; a map hits if its peak
is inside. The same rule holds for every map. A random map's expected figure is the share of tokens inside, which on a
coarse grid is no small number: it stands beside.

The audit takes a sentence that asserts a finding: by how much its log-odds against a neutral sentence fall when the
region of the finding is taken from the image, when an equal region elsewhere is, when another study of the same finding
is shown, a study of another, or the mean of training images. On phantoms the regions are the drawn ones; elsewhere they
are the top tokens of the sentence's own map, which no truth stands behind: these figures say so.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from radvision_utils.data.labels import asserted
from radvision_utils.data.studies import Study
from radvision_utils.evaluation.bootstrap import Array, Bootstrap, Estimate, figure_text, share
from radvision_utils.evaluation.table import DRAWN
from radvision_utils.evidence.explain import PartEvidence, top_tokens
from radvision_utils.evidence.passage import Kept, Passage

Regions = Mapping[int, tuple[str, Kept]]
"""Number of a sentence -> the finding that it asserts, and the tokens inside its region."""
Told = Sequence[tuple[int, Mapping[str, Any]]]
"""Position of a study, and what is known of a sentence of its report."""

MAPS = ("occlusion", "gradient")
TENTH = 0.1
STEPS = 8  # of a deletion or insertion curve
CHANGES = ("region of the finding", "equal region elsewhere", "same finding", "another finding", "mean image")
CHECKED = ("region of the finding, less elsewhere", "another finding, less same finding")


def inside_cells(region: Kept, side: int) -> Kept:
    """(side * side,) which cells of the grid count as inside a region.

    Args:
        region: a square plane over the whole image; its side is at least the grid's.
        side: of the grid.
    """
    rows = np.arange(len(region)) * side // len(region)
    cells = rows[:, None] * side + rows[None, :]
    covered = np.bincount(cells.ravel(), region.ravel().astype(float), side * side)
    return (covered >= TENTH * np.bincount(cells.ravel())) | (covered >= TENTH * max(covered.sum(), 1))


def hit(values: Array, inside: Kept) -> float:
    """Whether a map's peak is inside: 1 or 0, the share inside where several tokens tie."""
    return float(inside[values == values.max()].mean())


def energy_inside(values: Array, inside: Kept) -> float:
    """Share of a map's positive part that lies inside; that of an even map where nothing is positive."""
    positive = np.maximum(values, 0)
    return float(positive[inside].sum() / positive.sum()) if positive.any() else float(inside.mean())


def center_map(side: int) -> Array:
    """(side * side,) higher the nearer to the image's center."""
    line = np.abs(np.arange(side) - (side - 1) / 2)
    return np.asarray(-np.hypot(line[:, None], line[None, :]).round(6).ravel())


def curve_masks(values: Array) -> tuple[Kept, Kept]:
    """(STEPS + 1, V) each: what of the image is kept as tokens are taken away or put in, the highest first."""
    place = np.argsort(np.argsort(-values, kind="stable"))
    gone = place < np.array([round(step * len(values) / STEPS) for step in range(STEPS + 1)])[:, None]
    return ~gone, gone


def area(curve: Array) -> float:
    """Area under a curve of even steps over 0 to 1."""
    return float((curve[1:] + curve[:-1]).mean() / 2)


def estimate(values: list[tuple[int, float]], bootstrap: Bootstrap) -> Estimate:
    """Mean over lesions or sentences, resampled by study: (study, value) pairs."""
    counts = np.zeros((bootstrap.studies, 2))
    for study, value in values:
        counts[study] += (value, 1)
    return bootstrap.estimate(counts, share, counts[:, 1] > 0)


def not_validated(metrics: Mapping[str, Any]) -> str:
    """What is said of maps where an evaluation has no lesion to hold them against."""
    drawn = any(DRAWN in row for row in metrics["rows"].values())
    return f"maps, not validated, since {'no sentence asserts what' if drawn else 'nothing'} was drawn here"


def point_at(
    passage: Passage, parts: Sequence[PartEvidence], regions: Regions, rng: np.random.Generator
) -> list[dict[str, Any]]:
    """How the maps of a report's sentences do, each against the drawn region of its finding.

    Args:
        passage: the report under its image.
        parts: its sentences with their maps.
        regions: of those that are judged.
        rng: draws the random maps.

    Returns:
        For each region, by map: hit, 1 or 0, between them where several tokens tie for the peak; energy, the share of
        the map's positive part that lies inside; deletion and insertion, (STEPS + 1,) the probability of the sentence
        against its neutral one, as tokens are taken from the image, or put into the neutral image, in the map's order.
    """
    found = []
    for number, (_, inside) in regions.items():
        maps = {name: getattr(parts[number], name).ravel() for name in MAPS}
        maps |= {"random": rng.random(len(inside)), "center": center_map(passage.side)}
        masks = np.concatenate([mask for values in maps.values() for mask in curve_masks(values)])
        preferred = np.split(1 / (1 + np.exp(-passage.scores(masks)[:, number])), 2 * len(maps))
        curves = [curve.tolist() for curve in preferred]
        even = {"random": float(inside.mean())}  # expected, not one draw
        told: dict[str, Any] = {"hit": {name: hit(values, inside) for name, values in maps.items()} | even}
        told["energy"] = {name: energy_inside(maps[name], inside) for name in MAPS} | even
        told["deletion"] = dict(zip(maps, curves[::2], strict=True))
        told["insertion"] = dict(zip(maps, curves[1::2], strict=True))
        found.append(told)
    return found


def pointing_figures(lesions: Told, bootstrap: Bootstrap) -> dict[str, object]:
    """What `metrics.json` says of the pointing game: by map, by finding, and the curves.

    Args:
        lesions: what `point_at` says of each, and its "finding".
        bootstrap: of the studies.
    """

    def by_map(kind: str, finding: str = "") -> dict[str, dict[str, object]]:
        some = [(study, told[kind]) for study, told in lesions if finding in ("", told["finding"])]
        return {
            name: estimate([(study, values[name]) for study, values in some], bootstrap).to_json()
            for name in some[0][1]
        }

    def curves(kind: str) -> dict[str, dict[str, object]]:
        drawn = [(study, {name: np.array(curve) for name, curve in told[kind].items()}) for study, told in lesions]
        return {
            name: {
                "area": estimate([(study, area(each[name])) for study, each in drawn], bootstrap).to_json(),
                "curve": np.mean([each[name] for _, each in drawn], axis=0).round(4).tolist(),
            }
            for name in drawn[0][1]
        }

    counts = Counter(told["finding"] for _, told in lesions)
    return {
        "lesions": len(lesions),
        "hit": by_map("hit"),
        "energy": by_map("energy"),
        "by_finding": {name: by_map("hit", name) for name in sorted(counts)},
        "counts": {name: counts[name] for name in sorted(counts)},
        "deletion": curves("deletion"),
        "insertion": curves("insertion"),
    }


def elsewhere(inside: Kept, rng: np.random.Generator) -> Kept:
    """As many tokens outside of a region, one patch of its form where one fits, else drawn by lot."""
    side = round(len(inside) ** 0.5)
    plane = inside.reshape(side, side)
    moves = list(np.ndindex(side, side))
    for at in rng.permutation(len(moves)):
        moved = np.roll(plane, moves[at], axis=(0, 1))
        if not (moved & plane).any():
            return moved.ravel()
    free = np.flatnonzero(~inside)
    chosen = np.zeros_like(inside)
    chosen[rng.permutation(free)[: inside.sum()]] = True
    return chosen


def regions_of(parts: Sequence[PartEvidence]) -> dict[int, tuple[str, Kept]]:
    """Where no truth was drawn: for each asserting sentence its first finding and the top tokens of its own map."""
    told = [(asserted(part.text), top_tokens(part.occlusion.ravel())) for part in parts]
    return {number: (names[0], top) for number, (names, top) in enumerate(told) if names}


def audit_passage(
    passage: Passage, regions: Regions, others: Sequence[Study], rng: np.random.Generator
) -> list[dict[str, Any]]:
    """The sentences of one report.

    Args:
        passage: the report under its image.
        regions: of the sentences that are audited.
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
                under[name] = passage.scores(kept[:1], pool[int(rng.integers(len(pool)))])[0, number]
        found.append({"finding": finding, "falls": {name: round(float(own - s), 4) for name, s in under.items()}})
    return found


def audit_figures(audited: Told, bootstrap: Bootstrap, drawn: bool) -> dict[str, Any]:
    """What `metrics.json` says of the audit: mean falls of all sentences and of each finding, nats, with intervals.

    Args:
        audited: what `audit_passage` says of each sentence.
        bootstrap: of the studies.
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
