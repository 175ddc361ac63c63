"""How sure one may be of a sentence: its probability, how many sampled reports say the same, calibrated on validation.

Writes `evaluation/confidence.jsonl`, a line a study, and the section `confidence` of `metrics.json`. A sentence is
right if the reference (on phantoms: what was drawn) asserts each finding that it asserts and none that it denies, by
the rule labels. Sentences without an observation are neither right nor wrong and have no confidence; where validation
reports have no others, nothing can be calibrated, and no sentence has one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from radvision_utils.config import STAGES, Profile, RadVisionError
from radvision_utils.data.labels import find_mentions
from radvision_utils.data.studies import Study, open_prepared
from radvision_utils.environment import forget_peak_memory, open_room, process_count
from radvision_utils.evaluation.bootstrap import Array, Bootstrap, divide, figure_text, share
from radvision_utils.evaluation.image_use import sample
from radvision_utils.evaluation.records import Prediction
from radvision_utils.evaluation.writing import write_reports
from radvision_utils.evidence.passage import Part, parts_of, token_places
from radvision_utils.phantoms.phantom_reports import Pairs, asserted_pairs, common_name, drawn_pairs, labeled_pairs
from radvision_utils.report import Reporter, Sampling, reporter_of

TEMPERATURE = 1.0  # the model's own distribution
CALIBRATED = 200  # validation studies at most: few sentences are wrong, and only these teach what to doubt
BINS = 10
COVERAGES = (1.0, 0.95, 0.9, 0.8, 0.7, 0.6, 0.5)  # shares of the asserting sentences that are shown
SURE = 0.8  # the one of them that is told
MOST_UNSUPPORTED = 0.05
RIDGE = 1.0  # one standard deviation of a feature that moves the log-odds by 1 costs half a sentence's nat


@dataclass(frozen=True)
class Claims:
    """What a sentence says: (observation, side) pairs that it asserts, and that it denies; side None: any."""

    asserted: Pairs
    denied: Pairs

    def hold(self, pairs: Pairs) -> bool:
        """Whether all of it agrees with the pairs that another text asserts, or that were drawn."""
        return all(_among(pair, pairs) for pair in self.asserted) and not any(_among(p, pairs) for p in self.denied)


def claims_of(text: str) -> Claims | None:
    """What a sentence says by the rule labels; None if it speaks of no observation."""
    absent = [m for m in find_mentions(text) if m.status == "absent"]
    sides = {"": (None,), "bilateral": ("left", "right")}
    denied = frozenset((common_name(m.observation), side) for m in absent for side in sides.get(m.side, (m.side,)))
    asserted = asserted_pairs(text)
    # "A left effusion, no pneumothorax" denies no effusion, nor does "no right effusion" after a left one.
    denied = frozenset(pair for pair in denied if not _among(pair, asserted))
    return Claims(asserted, denied) if asserted or denied else None


def _among(pair: tuple[str, str | None], pairs: Pairs) -> bool:
    name, side = pair
    return any(other == name and (side is None or there is None or side == there) for other, there in pairs)


@dataclass(frozen=True)
class JudgedSentence:
    """A sentence of a generated report with what is known of it.

    Attributes:
        study: position in the split.
        part: the sentence.
        log_probability: mean over its tokens, nats.
        claims: what it says; None if it speaks of no observation: then the next two say nothing.
        agreement: share of the sampled reports that say the same.
        right: whether the truth says the same.
    """

    study: int
    part: Part
    log_probability: float
    claims: Claims | None
    agreement: float
    right: bool

    @property
    def asserts(self) -> bool:
        """Whether it asserts a finding."""
        return self.claims is not None and bool(self.claims.asserted)


def features(judged: Sequence[JudgedSentence]) -> Array:
    """(n, 3) what confidence is calibrated from: log-probability, agreement, whether a finding is asserted."""
    return np.array([(s.log_probability, s.agreement, s.asserts) for s in judged], float).reshape(-1, 3)


def _rights(judged: Sequence[JudgedSentence]) -> NDArray[np.bool_]:
    return np.array([s.right for s in judged], bool)


def confidence_of(
    profile: Profile, metrics: Mapping[str, Any], predictions: Sequence[Prediction], samples: int, kept: Path
) -> tuple[list[dict[str, Any]], dict[str, Any], dict[str, Any]]:
    """Samples reports of the last stage, `samples` for each study and for at most `CALIBRATED` validation studies.

    Arguments and results are those of `study_maps.evidence_of`.

    Raises:
        RadVisionError: called in several processes.
    """
    if process_count() > 1:
        raise RadVisionError("confidence is computed by one process: run `evaluate --samples` again without torchrun.")
    dataset = open_prepared(profile)
    reporter = reporter_of(profile, STAGES[-1])
    forget_peak_memory(reporter.device)
    validation = list(dataset.split("validation"))
    validation = [validation[i] for i in sample(len(validation), profile.seed)[:CALIBRATED]]
    greedy = write_reports(reporter, validation, kept / "validation")
    validation = [replace(study, report=w.report) for study, w in zip(validation, greedy, strict=True)]
    known = [s for s in judge_sentences(reporter, validation, samples, kept / "validation") if s.claims]
    model = fit_logistic(features(known), _rights(known)) if known else None
    own = {ours.uid: ours.generated for ours in predictions}
    studies = [replace(study, report=own[study.uid]) for study in dataset.split(metrics["split"])]
    judged = judge_sentences(reporter, studies, samples, kept)
    section = {
        "samples": samples,
        "temperature": TEMPERATURE,
        "calibrated_on": {"split": "validation", "studies": len(validation), **(model.to_json() if model else {})},
        **_figures(
            known,
            [s for s in judged if s.claims],
            model,
            [_truth(study) for study in studies],
            Bootstrap(len(studies), profile.seed),
        ),
    }
    memory = open_room("planning.judging").reports_beside(reporter, studies)
    return _lines(studies, judged, model, samples), section, {"samples": memory}


@torch.no_grad()
def judge_sentences(reporter: Reporter, studies: Sequence[Study], samples: int, folder: Path) -> list[JudgedSentence]:
    """Every sentence of the reports, in order; those that training would have cut off are left out.

    Args:
        reporter: the model that wrote them.
        studies: each with what was written as its report.
        samples: how many more reports to draw for each.
        folder: where drawn reports are kept, so that an interrupted call goes on.
    """
    if not any(claims_of(part.text) for study in studies for part in parts_of(study.report)):
        samples = 0  # there is nothing to agree with
    drawn = [
        write_reports(
            reporter.drawing(Sampling(TEMPERATURE, reporter.profile.seed + number)), studies, folder / str(number)
        )
        for number in range(samples)
    ]
    said = [[labeled_pairs(written.report) for written in each] for each in zip(*drawn, strict=True)]
    batches = reporter.in_batches(studies, reporter.token_losses)
    rows = (row for losses, _ in batches for row in losses.double().cpu().numpy())
    judged = []
    for number, (study, row) in enumerate(zip(studies, rows, strict=True)):
        parts, truth = parts_of(study.report), _truth(study)
        for part, places in zip(parts, token_places(reporter.collator, study.report, parts), strict=True):
            if places:
                claims = claims_of(part.text)
                agreement = sum(claims.hold(pairs) for pairs in said[number]) / samples if claims else 0.0
                right = claims is not None and claims.hold(truth)
                judged.append(JudgedSentence(number, part, -float(row[places].mean()), claims, agreement, right))
    return judged


def _truth(study: Study) -> Pairs:
    return labeled_pairs(study.reference) if study.truth is None else drawn_pairs(study.truth)


def _lines(
    studies: Sequence[Study], judged: Sequence[JudgedSentence], model: Logistic | None, samples: int
) -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = [{"uid": study.uid, "samples": samples, "sentences": []} for study in studies]
    sure = model.probabilities(features(judged)).tolist() if model else [None] * len(judged)
    for sentence, probability in zip(judged, sure, strict=True):
        known = sentence.claims is not None
        lines[sentence.study]["sentences"].append(
            {
                "section": sentence.part.section,
                "index": sentence.part.index,
                "text": sentence.part.text,
                "log_probability": round(sentence.log_probability, 4),
                "agreement": round(sentence.agreement * samples) if known else None,
                "confidence": round(probability, 4) if known and model else None,
            }
        )
    return lines


def _figures(
    known: Sequence[JudgedSentence],
    judged: Sequence[JudgedSentence],
    model: Logistic | None,
    truths: Sequence[Pairs],
    bootstrap: Bootstrap,
) -> dict[str, Any]:
    calibration = {}
    if judged:
        study, right, table = np.array([s.study for s in judged]), _rights(judged), features(judged)
        scores = {"calibrated": model.probabilities(table)} if model else {}
        scores |= {"token probability": np.exp(table[:, 0]), "agreement of samples": table[:, 1]}
        calibration = {
            group: calibration_figures({n: v[some] for n, v in scores.items()}, right[some], study[some], bootstrap)
            for group, some in {"all sentences": right | True, "asserting sentences": table[:, 2] > 0}.items()
            if some.any()
        }
    asserting = [s for s in judged if s.asserts] if model else []
    sure = model.probabilities(features(asserting)) if model else np.empty(0)
    curve = coverage_curve(asserting, sure, truths, bootstrap)
    chosen = selected(known, judged, truths, bootstrap)
    told = _sentence(calibration, curve, chosen)
    return {"calibration": calibration, "coverage": curve, "selected": chosen, "sentence": told}


def coverage_curve(
    asserting: Sequence[JudgedSentence], sure: Array, truths: Sequence[Pairs], bootstrap: Bootstrap
) -> list[dict[str, Any]]:
    """What hiding the sentences that one is least sure of costs and gains, for each share that is shown.

    Args:
        asserting: sentences that assert a finding.
        sure: (n,) the confidence in each.
        truths: the true pairs of every study.

    Returns:
        For each of `COVERAGES`: least, the confidence from which on sentences are shown; and `shown_figures`.
    """
    rows = []
    for coverage in COVERAGES if len(asserting) else ():
        least = float(np.sort(sure)[-math.ceil(coverage * len(sure) - 1e-9)])
        rows.append({"least": round(least, 4), **shown_figures(asserting, sure >= least, truths, bootstrap)})
    return rows


def shown_figures(
    asserting: Sequence[JudgedSentence], shown: NDArray[np.bool_], truths: Sequence[Pairs], bootstrap: Bootstrap
) -> dict[str, Any]:
    """Of the asserting sentences the share that is shown, of these the unsupported share, and the share of true
    findings that some shown sentence tells, each with interval."""
    sums = np.zeros((bootstrap.studies, 5))  # shown, asserting, wrong among the shown, told, true
    told: list[set[tuple[str, str | None]]] = [set() for _ in truths]
    for sentence, seen in zip(asserting, shown, strict=True):
        sums[sentence.study] += (seen, 1, seen and not sentence.right, 0, 0)
        if seen and sentence.claims is not None:
            told[sentence.study] |= {p for p in truths[sentence.study] if _among(p, sentence.claims.asserted)}
    sums[:, 3], sums[:, 4] = [len(pairs) for pairs in told], [len(pairs) for pairs in truths]
    columns = {"shown": [0, 1], "unsupported": [2, 0], "told": [3, 4]}
    return {name: bootstrap.estimate(sums[:, pair], share).to_json() for name, pair in columns.items()}


def conformal_threshold(sure: Array, right: NDArray[np.bool_], most: float = MOST_UNSUPPORTED) -> float | None:
    """The least confidence from which on at most a share of the sentences is wrong, one more counted than there are.

    With that one more the share holds on average for sentences that come as these did (conformal selection: Jin and
    Candes 2023, arXiv:2210.01408). None where no confidence is enough.
    """
    order = np.argsort(-sure, kind="stable")
    wrong = np.cumsum(~right[order]) + 1
    last = np.append(sure[order][1:] != sure[order][:-1], True)  # those of equal confidence are shown together
    good = np.flatnonzero((wrong <= most * np.arange(1, len(sure) + 1)) & last[: len(sure)])
    return float(sure[order][good[-1]]) if len(good) else None


def selected(
    known: Sequence[JudgedSentence], judged: Sequence[JudgedSentence], truths: Sequence[Pairs], bootstrap: Bootstrap
) -> dict[str, Any]:
    """Sentences shown by a threshold that is chosen on validation and checked on the studies judged.

    One half of the validation studies calibrates, the other chooses: a threshold chosen on what was fitted is too low.
    """
    calibrating = [s for s in known if s.study % 2 == 0]
    choosing, tested = [s for s in known if s.study % 2 and s.asserts], [s for s in judged if s.asserts]
    if not (calibrating and choosing and tested):
        return {}
    model = fit_logistic(features(calibrating), _rights(calibrating))
    sure, test = (model.probabilities(features(sentences)) for sentences in (choosing, tested))
    least = conformal_threshold(sure, _rights(choosing))
    shown = test >= (np.inf if least is None else least)
    return {
        "most_unsupported": MOST_UNSUPPORTED,
        "least": None if least is None else round(least, 4),
        "chosen_on": len(choosing),
        **shown_figures(tested, shown, truths, bootstrap),
    }


@dataclass(frozen=True)
class Logistic:
    """Logistic regression on standardized features: `weights[0]` is the intercept."""

    mean: Array
    scale: Array
    weights: Array

    def probabilities(self, table: Array) -> Array:
        """(n,) for (n, k) features."""
        x = (table - self.mean) / self.scale
        return np.asarray(1 / (1 + np.exp(-(self.weights[0] + x @ self.weights[1:]))))

    def to_json(self) -> dict[str, list[float]]:
        """The numbers, rounded."""
        return {name: getattr(self, name).round(4).tolist() for name in ("mean", "scale", "weights")}


def fit_logistic(table: Array, right: NDArray[np.bool_]) -> Logistic:
    """Newton's method with a ridge on all weights but the intercept, so that separable data have an answer too.

    Args:
        table: (n, k) features.
        right: (n,)
    """
    mean, scale = table.mean(0), table.std(0)
    scale[scale == 0] = 1
    design = np.column_stack([np.ones(len(table)), (table - mean) / scale])
    ridge = np.diag([1e-3, *[RIDGE] * table.shape[1]])
    weights = np.zeros(design.shape[1])
    for _ in range(50):
        p = 1 / (1 + np.exp(-design @ weights))
        slope = design.T @ (right - p) - ridge @ weights
        step = np.linalg.solve((design.T * (p * (1 - p))) @ design + ridge, slope)
        weights = weights + step
        if np.abs(step).max() < 1e-9:
            break
    return Logistic(mean, scale, weights)


def calibration_figures(
    scores: Mapping[str, Array], right: NDArray[np.bool_], study: NDArray[np.intp], bootstrap: Bootstrap
) -> dict[str, Any]:
    """How well scores in 0 to 1 say how often sentences are right.

    Args:
        scores: name -> (n,).
        right: (n,)
        study: (n,) whose sentence each is; intervals are by study.

    Returns:
        right: the share; ece: for each score the expected calibration error over 10 bins of equal width (Guo et al.
        2017, arXiv:1706.04599), 0 is best; bins: the reliability diagram.
    """
    figures: dict[str, Any] = {"sentences": len(right), "ece": {}, "bins": {}}
    for name, values in scores.items():
        bins = np.minimum((values * BINS).astype(np.intp), BINS - 1)
        sums = np.zeros((bootstrap.studies, BINS, 3))  # in each bin the sentences, those that are right, the scores
        np.add.at(sums, (study, bins), np.stack([np.ones(len(values)), right, values], 1))
        figures["right"] = bootstrap.estimate(sums.sum(1)[:, [1, 0]], share).to_json()
        figures["ece"][name] = bootstrap.estimate(sums.reshape(-1, 3 * BINS), _ece).to_json()
        figures["bins"][name] = [
            {"from": at / BINS, "n": int(n), "score": round(score / n, 4), "right": round(true / n, 4)}
            for at, (n, true, score) in enumerate(sums.sum(0).tolist())
            if n
        ]
    return figures


def _ece(sums: Array) -> Array:
    n, true, score = np.moveaxis(sums.reshape(*sums.shape[:-1], BINS, 3), -1, 0)
    return divide(np.abs(score - true).sum(-1), n.sum(-1))


def _sentence(figures: Mapping[str, Any], curve: Sequence[Mapping[str, Any]], chosen: Mapping[str, Any]) -> str:
    if not figures:
        return "confidence of a sentence: none, since no sentence of the reports speaks of an observation"
    ece = figures["all sentences"]["ece"]
    if "calibrated" not in ece:
        return (
            "confidence of a sentence: none, since no sentence of the validation reports speaks of an observation by "
            "which it could be calibrated"
        )
    error = (
        f"confidence of a sentence: expected calibration error {figure_text(ece['calibrated'])} (token probability "
        f"alone {figure_text(ece['token probability'])})"
    )
    if not curve:
        return f"{error}; none asserts a finding"
    told = f"of sentences that assert a finding {figure_text(curve[0]['unsupported'])} are unsupported"
    told += f", of the surest {SURE:.0%} {figure_text(curve[COVERAGES.index(SURE)]['unsupported'])}"
    if chosen:
        most = f"on validation for at most {MOST_UNSUPPORTED:.0%} unsupported"
        shown, wrong = (figure_text(chosen[name]) for name in ("shown", "unsupported"))
        kept = f"a threshold chosen {most} shows {shown} of them, {wrong} of these unsupported"
        told += f"; {kept if chosen['least'] is not None else f'no confidence is enough {most}'}"
    return f"{told}; {error}"
