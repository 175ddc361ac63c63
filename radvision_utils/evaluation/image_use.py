"""Is the image used at all? What text metrics cannot tell, by taking the image away, exchanging and mirroring it.

(a) the loss of the true report under its own image and under another study's; (b) reports exchanged between studies;
(c) a blank image and the mean of training images; (d) mirrored images; (e) an indication that contradicts the image,
where the prompt has one. (a) and (b) are of all studies, the others of at most `SAMPLE`. How often the verdict errs is
simulated by `python -m benchmarks.simulations`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps

from radvision_utils.data.images import load_image, mean_image
from radvision_utils.data.labels import ABNORMAL, ASSERTED
from radvision_utils.data.reports import Report, format_report
from radvision_utils.data.studies import Study
from radvision_utils.evaluation.bootstrap import Bootstrap, Estimate, share
from radvision_utils.evaluation.label_scores import LabelMatrix, micro_f1
from radvision_utils.evaluation.records import report_labels
from radvision_utils.evaluation.table import CARD_PROTOCOL, ScoredRow, Scorer
from radvision_utils.evaluation.text_metrics import score_texts
from radvision_utils.report import Reporter

SAMPLE = 200  # studies at most: each pass over them costs a 7B minutes
SMALL_GAP = 0.01  # nats per report token below which a gap is as good as none
SMALL_DROP = 0.05  # F1 below which a drop is as good as none; a smaller one no test split of 600 studies could tell

TOLD = ("Cardiomegaly", "Pneumonia", "Pneumothorax", "Pleural Effusion")  # what an indication may wrongly name

Losses = NDArray[np.float64]
Order = NDArray[np.intp]


def sample(studies: int, seed: int) -> Order:
    """Positions of at most `SAMPLE` studies, in order, drawn without replacement."""
    return np.sort(np.random.default_rng(seed).permutation(studies)[:SAMPLE])


def exchange(studies: int, seed: int) -> Order:
    """Another study for each study, each used once (a derangement); itself where there is only one."""
    order = np.random.default_rng(seed).permutation(studies)
    other = np.empty(studies, np.intp)
    other[order] = np.roll(order, 1)
    return other


@torch.no_grad()
def study_losses(reporter: Reporter, studies: Sequence[Study], images: Sequence[Path] | None = None) -> Losses:
    """Loss of each study's training report, teacher-forced, the model in evaluation mode.

    Args:
        images: files to show instead of the studies' own.

    Returns:
        (n, 2): nats, and tokens they are spread over.
    """
    shown = [s.image for s in studies] if images is None else images
    pictured = [dataclasses.replace(s, image=image) for s, image in zip(studies, shown, strict=True)]
    rows: list[list[float]] = []
    for losses, counts in reporter.in_batches(pictured, reporter.token_losses):
        rows += torch.stack([losses.double().sum(1), counts.double().sum(1)], 1).tolist()
    return np.array(rows)


def loss_gap(own: Losses, other: Losses, bootstrap: Bootstrap) -> Estimate:
    """How much worse the true reports are predicted without their own image, nats per report token."""
    return bootstrap.estimate(np.stack([other[:, 0] - own[:, 0], own[:, 1]], 1), share)


def exchanged_gap(reporter: Reporter, studies: Sequence[Study], own: Losses, seed: int) -> Estimate:
    """The gap between a study's image and another study's.

    Args:
        own: `study_losses` of the same studies under their own images.
    """
    images = [studies[i].image for i in exchange(len(studies), seed)]
    return loss_gap(own, study_losses(reporter, studies, images), Bootstrap(len(studies), seed))


def exchange_drops(
    generated: LabelMatrix, reference: LabelMatrix, bootstrap: Bootstrap, seed: int
) -> dict[str, Estimate]:
    """What abnormal micro F1 loses when every study gets the report of another image.

    Returns:
        "any study": exchanged among all; "same labels": among studies whose references assert the same observations,
        where label F1 can lose nothing, whatever the reports say (see `beyond_labels`); "other labels": with a study
        whose reference asserts others. The last two only for studies that have such a partner.
    """
    n, rng = len(reference.abnormal), np.random.default_rng(seed)
    different = np.arange(n)
    for members in _equal_labels(reference):
        others = np.setdiff1d(np.arange(n), members)
        if len(others):
            different[members] = rng.choice(others, len(members))
    same = _exchange_equal(reference, seed)
    orders = {"any study": exchange(n, seed), "same labels": same, "other labels": different}
    drops = {}
    for name, order in orders.items():
        moved = order != np.arange(n)
        own = micro_f1(generated, reference, bootstrap, moved)
        drops[name] = own.minus(micro_f1(generated.take(order), reference, bootstrap, moved))
    return drops


def _equal_labels(reference: LabelMatrix) -> list[Order]:
    """Positions of the studies whose references assert the same observations, a group each."""
    keys = [row.tobytes() for row in reference.positive]
    return [np.flatnonzero([k == key for k in keys]) for key in dict.fromkeys(keys)]


def _exchange_equal(reference: LabelMatrix, seed: int) -> Order:
    """As `exchange`, among the studies of equal labels."""
    order = np.arange(len(reference.abnormal))
    for members in _equal_labels(reference):
        order[members] = members[exchange(len(members), seed)]
    return order


def beyond_labels(row: ScoredRow, scorer: Scorer) -> Estimate:
    """What ROUGE-L loses when studies whose references assert the same observations exchange their reports.

    A report that says no more of its image than these labels (no side, no place, no extent) loses nothing.
    """
    order = _exchange_equal(scorer.matrix, scorer.seed)
    others = score_texts([row.reports[i] for i in order.tolist()], scorer.references, CARD_PROTOCOL).each
    lost = [own["rouge_l"] - other["rouge_l"] for own, other in zip(row.each, others, strict=True)]
    return scorer.bootstrap.mean(np.array(lost), order != np.arange(len(order)))


def told_beyond(lost: Estimate) -> str:
    """What `beyond_labels` found, in words."""
    more = "more" if lost.interval[0] > 0 else "no more"
    return (
        f"it says {more} of the image than its labels (exchanged among studies of equal labels its reports lose "
        f"{_figure(lost)} ROUGE-L)"
    )


def empty_images(train: Sequence[Study], folder: Path, seed: int) -> dict[str, Path]:
    """Writes `blank.png` (black) and `mean.png` (the mean of training images) and gives their paths."""
    chosen = [train[i].image for i in sample(len(train), seed)]
    mean = mean_image(chosen)
    pictures = {"blank image": Image.new("L", mean.size), "mean image": mean}
    folder.mkdir(parents=True, exist_ok=True)
    paths = {}
    for name, picture in pictures.items():
        paths[name] = folder / f"{name.split()[0]}.png"
        picture.save(paths[name])
    return paths


def without_image(
    reporter: Reporter,
    studies: Sequence[Study],
    reports: Sequence[Report],
    own: Losses,
    images: dict[str, Path],
    seed: int,
) -> dict[str, Any]:
    """For a blank and a mean image: the one report it gives, how many studies get the very same, and the loss gap."""
    bootstrap = Bootstrap(len(studies), seed)
    # As studies: an image of one's own that shows nothing would be refused.
    written = reporter.report([dataclasses.replace(studies[0], image=path, indication="") for path in images.values()])
    return {
        name: {
            "report": format_report(report),
            "same_report_share": round(sum(ours == report for ours in reports) / len(reports), 4),
            "gap": loss_gap(own, study_losses(reporter, studies, [path] * len(studies)), bootstrap).to_json(),
        }
        for (name, path), report in zip(images.items(), written, strict=True)
    }


def mirrored(reporter: Reporter, studies: Sequence[Study], reports: Sequence[Report], seed: int) -> dict[str, Any]:
    """What becomes of the side of a finding when the image is mirrored.

    Returns:
        flipped, kept, lost: of the observations that a report asserts on one side only, those that the report on the
        mirrored image asserts on the other side, on the same, or no longer on one side; flipped_share: with interval.
    """
    sided = [(study, sides) for study, r in zip(studies, reports, strict=True) if (sides := _one_sided(r))]
    counts = {"flipped": 0, "kept": 0, "lost": 0}
    if not sided:
        return {**counts, "flipped_share": {"value": None, "low": None, "high": None, "n": 0}}
    after = reporter.report([ImageOps.mirror(load_image(study.image)) for study, _ in sided])
    each = np.zeros((len(sided), 2))
    for row, ((_, before), now) in enumerate(zip(sided, map(_one_sided, after), strict=True)):
        for name, side in before.items():
            outcome = "lost" if name not in now else "kept" if now[name] == side else "flipped"
            counts[outcome] += 1
            each[row] += (outcome == "flipped", 1)
    return {**counts, "flipped_share": Bootstrap(len(sided), seed).estimate(each, share).to_json()}


def contradicted(reporter: Reporter, studies: Sequence[Study], seed: int) -> dict[str, Any]:
    """How often a text overrules the image: an indication that names a finding which the reference does not assert.

    Returns:
        For indications that contradict, and for the studies' own: share of the reports that assert that finding; and
        their difference, each with interval.
    """
    rng = np.random.default_rng(seed)
    absent = [[n for n in TOLD if report_labels(s.reference)[n].status not in ASSERTED] for s in studies]
    chosen = [(s, str(rng.choice(names))) for s, names in zip(studies, absent, strict=True) if names]
    if not chosen:
        return {}
    bootstrap = Bootstrap(len(chosen), seed)

    def asserting(shown: Sequence[Study]) -> Estimate:
        reports = zip(reporter.report(shown), chosen, strict=True)
        said = [report_labels(report)[name].status in ASSERTED for report, (_, name) in reports]
        return bootstrap.mean(np.array(said))

    told = asserting([dataclasses.replace(s, indication=f"Known {name.lower()}.") for s, name in chosen])
    own = asserting([study for study, _ in chosen])
    figures = {"told of it": told, "own indication": own, "overruled": told.minus(own)}
    return {name: figure.to_json() for name, figure in figures.items()}


def _one_sided(report: Report) -> dict[str, str]:
    """The observations that a report asserts on one side only, and that side."""
    found = report_labels(report)
    asserted = [name for name in ABNORMAL if found[name].status in ASSERTED]
    return {name: found[name].sides[0] for name in asserted if len(found[name].sides) == 1}


def verdict(gap: Estimate, drop: Estimate) -> tuple[str, str]:
    """ "yes", "no" or "not shown", and the sentence that says why.

    Yes: the intervals of the loss gap and of the drop in F1 lie above zero. No: neither does, and both are shown to be
    smaller than what would matter (`SMALL_GAP`, `SMALL_DROP`), at 5 % error. Else it is not shown, and the sentence
    says what the sample could have shown.
    """
    used, told = gap.interval[0] > 0, drop.interval[0] > 0
    if used and told:
        word, seen = "yes", ""
    else:
        no = not used and not told and gap.below(SMALL_GAP) and drop.below(SMALL_DROP)
        word = "no" if no else "not shown"
        seen = f"; a gap of {gap.detectable:.4f} and a drop of {drop.detectable:.4f} would show four times in five"
    return word, (
        f"image used: {word} (loss gap to another study's image {_figure(gap)} nats per token, "
        f"drop of abnormal F1 with exchanged reports {_figure(drop)}{seen})"
    )


def _figure(estimate: Estimate) -> str:
    low, high = estimate.interval
    return f"{estimate.value:.4f} ({low:.4f} to {high:.4f})" if np.isfinite(low) else "not defined"
