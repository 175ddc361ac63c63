"""Evidence of a run's reports: maps for chosen studies, and on phantoms whether they point at what was drawn.

Writes `evaluation/evidence.jsonl`, a line a study, and the section `evidence` of `metrics.json`. Maps are made for the
worst reports first; where the truth was drawn, also for `VALIDATED` studies drawn by lot, on which the figures rest.
"""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from radvision_utils.config import STAGES, Profile
from radvision_utils.content import fingerprint
from radvision_utils.data.studies import Study, open_prepared
from radvision_utils.environment import forget_peak_memory, open_room
from radvision_utils.evaluation.bootstrap import Bootstrap, figure_text, rounded
from radvision_utils.evaluation.records import Prediction, by_contradiction, read_predictions
from radvision_utils.evidence import confidence
from radvision_utils.evidence.evidence_figures import save_evidence_figures
from radvision_utils.evidence.explain import PartEvidence, explain_passage, occlusion_maps
from radvision_utils.evidence.passage import Kept, Passage, learn_neutral
from radvision_utils.evidence.pointing import (
    audit_figures,
    audit_passage,
    energy_inside,
    estimate,
    hit,
    inside_cells,
    not_validated,
    point_at,
    pointing_figures,
    regions_of,
)
from radvision_utils.files import (
    LIST,
    append_json_lines,
    read_json,
    read_json_lines,
    write_json,
    write_json_lines,
    write_text,
)
from radvision_utils.phantoms.phantom_reports import asserted_pairs, read_findings
from radvision_utils.phantoms.phantom_rows import drawn_regions
from radvision_utils.progress import show_progress
from radvision_utils.report import reporter_of
from radvision_utils.runs import RunFolder

VALIDATED = 60  # phantoms whose maps are compared with what was drawn
_HEADING, _NEXT = "## Evidence and confidence", "## Text metrics"


def add_to_evaluation(profile: Profile, step: str, evidence: int, samples: int) -> None:
    """Maps for `evidence` studies and `samples` drawn reports for each study, where they are not there yet.

    Each puts its lines and its section of `metrics.json`, a sentence of `table.md` and its figures into a copy of the
    evaluation, which takes its place when it is whole. 0 asks for nothing and leaves what is there.

    Args:
        profile: the run's settings.
        step: "evaluation", or "evaluation/validation" for that of another split.
        evidence: studies, the worst first.
        samples: reports for each study.

    Raises:
        RadVisionError: the data or the last stage are missing, or several processes are to sample.
    """
    folder = RunFolder.of(profile).path / step
    predictions = [ours for ours in read_predictions(folder / "predictions.jsonl") if ours.stage == STAGES[-1]]
    for name, asked, make, settings in (
        ("confidence", samples, confidence.confidence_of, [confidence.TEMPERATURE, confidence.CALIBRATED]),
        ("evidence", evidence, evidence_of, [VALIDATED]),
    ):
        metrics = read_json(folder / "metrics.json", {"made_from": dict, "hash": str, "split": str})
        key = fingerprint([metrics["made_from"], metrics["hash"], asked, *settings])
        known = metrics.get(name, {}).get("key") == key and (folder / f"{name}.jsonl").is_file()
        if known or not asked:
            continue
        started = time.perf_counter()
        lines, section, memory = make(profile, metrics, predictions, asked, folder / f"{name}.{key}")
        metrics[name] = {"key": key, **section, "seconds": round(time.perf_counter() - started, 1)}
        metrics["memory"] = metrics.get("memory", {}) | memory
        _publish_with(profile, step, metrics, name, lines)


def _publish_with(
    profile: Profile, step: str, metrics: dict[str, Any], name: str, lines: Iterable[Mapping[str, Any]]
) -> None:
    """Put a copy of the evaluation with these lines and metrics in its place, without what they were made from."""
    run = RunFolder.of(profile)
    final, folder, table = run.path / step, run.partial(step), run.partial(step) / "table.md"

    def left_out(path: str, names: list[str]) -> list[str]:
        made_anew = (f"{name}.", "metrics.json", LIST)
        return [each for each in names if Path(path) == final and each.startswith(made_anew)]

    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(final, folder, ignore=left_out)
    write_json_lines(folder / f"{name}.jsonl", lines)
    write_text(table, with_sentences(table.read_text(encoding="utf-8"), metrics))
    save_evidence_figures(metrics, folder)
    write_json(folder / "metrics.json", metrics)
    run.publish(profile, step)


def with_sentences(page: str, metrics: dict[str, Any]) -> str:
    """`table.md` with a line each for evidence and confidence, in place of older ones."""
    page = re.sub(rf"{_HEADING}\n.*?(?={_NEXT})", "", page, flags=re.DOTALL)
    lines = [f"- {metrics[name]['sentence']}.\n" for name in ("evidence", "confidence") if name in metrics]
    return page.replace(_NEXT, f"{_HEADING}\n\n{''.join(lines)}\n{_NEXT}", 1)


def evidence_record(uid: str, parts: Sequence[PartEvidence], seconds: float) -> dict[str, Any]:
    """One line of `evidence.jsonl`; maps are cut at 0 and scaled to a maximum of 1."""
    return {
        "uid": uid,
        "grid": list(parts[0].occlusion.shape) if parts else [],
        "sentences": [
            {
                "section": part.section,
                "index": part.index,
                "text": part.text,
                "contrast": part.contrast,
                "gradient": _scaled(part.gradient),
                "occlusion": _scaled(part.occlusion),
                "supported": part.supported,
                "side_consistent": side_consistent(part.text, part.occlusion),
                "rank_correlation": rounded(rank_correlation(part.gradient, part.occlusion)),
            }
            for part in parts
        ],
        "seconds": round(seconds, 3),
    }


def _scaled(values: NDArray[np.float64]) -> list[list[float]]:
    positive = np.maximum(values, 0)
    rows: list[list[float]] = (positive / positive.max() if positive.any() else positive).round(3).tolist()
    return rows


def side_consistent(text: str, values: NDArray[np.float64]) -> bool | None:
    """Whether a map lies mostly on the side that the sentence names; the patient's right is the image's left.

    None where the sentence asserts nothing on one side only, or nothing in the map is positive.
    """
    sides = {side for _, side in asserted_pairs(text)}
    positive = np.maximum(values, 0)
    half = values.shape[1] // 2
    left, right = float(positive[:, :half].sum()), float(positive[:, -half:].sum())
    if len(sides) != 1 or None in sides or left == right:
        return None
    return (left > right) == (sides == {"right"})


def rank_correlation(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """Spearman's rank correlation of two maps, -1 to 1; NaN where one is even."""
    return float(pd.DataFrame({"one": one.ravel(), "other": other.ravel()}).corr("spearman").loc["one", "other"])


def evidence_of(
    profile: Profile, metrics: Mapping[str, Any], predictions: Sequence[Prediction], count: int, kept: Path
) -> tuple[list[dict[str, Any]], dict[str, Any], dict[str, Any]]:
    """Explains the reports of the last stage.

    Args:
        profile: the run's settings.
        metrics: of a finished evaluation.
        predictions: of its last stage.
        count: how many studies to explain, the worst first; phantoms drawn by lot come on top.
        kept: where lines are kept, so that an interrupted call goes on.

    Returns:
        The lines of `evidence.jsonl`, what `metrics.json` says of them, and its memory, planned and measured.
    """
    work = _Work(profile, metrics["split"], predictions, count)
    lines = work.explain(kept.with_name(f"{kept.name}.jsonl"))
    memory: dict[str, Any] = {}
    if work.longest[0]:  # not where all maps had been made before
        chosen = [work.studies[line["uid"]] for line in lines]
        memory["maps"] = open_room("planning.judging").maps_beside(work.reporter, chosen, *work.longest)
    figures: dict[str, Any] = {"agreement": agreement(lines, profile.seed)}
    audits = {line["uid"]: line["audit"] for line in lines if line.get("audit")}
    if audits:
        told = [(work.audited.index(uid), sentence) for uid, audit in audits.items() for sentence in audit]
        bootstrap = Bootstrap(len(work.audited), profile.seed)
        if work.judged:
            work.judge_shuffled(audits)
            figures["pointing"] = pointing_figures(told, bootstrap)
        figures["audit"] = audit_figures(told, bootstrap, drawn=bool(work.judged))
    said = [_sentence(figures, not_validated(metrics)), figures.get("audit", {}).get("sentence", "")]
    figures["sentence"] = "; ".join(filter(None, said))
    return lines, {"asked": count, "studies": len(lines), **figures}, memory


class _Work:
    """What the steps of explaining a split share."""

    def __init__(self, profile: Profile, split: str, predictions: Sequence[Prediction], count: int) -> None:
        self.seed = profile.seed
        dataset = open_prepared(profile)
        self.train = dataset.split("train")
        self.studies: dict[str, Study] = {study.uid: study for study in dataset.split(split)}
        self.reports = {ours.uid: ours.generated for ours in predictions}
        drawn = [uid for uid, study in self.studies.items() if study.truth and json.loads(study.truth)["findings"]]
        lot = np.random.default_rng(self.seed).permutation(len(drawn))[:VALIDATED]
        self.judged = [drawn[i] for i in sorted(lot)]
        worst = [ours.uid for ours in sorted(predictions, key=by_contradiction)[:count]]
        self.chosen = list(dict.fromkeys([*worst, *self.judged]))
        self.audited = self.judged or self.chosen  # whose sentences are audited
        self.longest = (0, 0)  # tokens behind the prompt, and of these scored
        self.reporter = reporter_of(profile, STAGES[-1])
        forget_peak_memory(self.reporter.device)
        self.neutral = learn_neutral(self.reporter, self.train)

    def explain(self, partial: Path) -> list[dict[str, Any]]:
        """The lines of `evidence.jsonl`; those that an interrupted call left in `partial` are not made again."""
        there = read_json_lines(partial, {"uid": str}, torn=True) if partial.is_file() else []
        write_json_lines(partial, there)
        done = {line["uid"]: line for line in there}
        with show_progress(len(self.chosen)) as step:
            for number, uid in enumerate(self.chosen, 1):
                if uid not in done:
                    done[uid] = self._explain(uid)
                    append_json_lines(partial, done[uid])
                step(number)
        return [done[uid] for uid in self.chosen]

    def _explain(self, uid: str) -> dict[str, Any]:
        started = time.perf_counter()
        passage = self._passage(uid)
        parts = explain_passage(passage)
        line = evidence_record(uid, parts, time.perf_counter() - started)
        if parts:
            behind = len(passage.layout.ids) - len(self.reporter.prompt(self.studies[uid]))
            self.longest = max(self.longest, (behind, len(passage.layout.scored)))
            if uid in self.audited:
                line["audit"] = self._audit(passage, parts, uid)
        return line

    def _passage(self, uid: str) -> Passage:
        return Passage(self.reporter, self.neutral, self.studies[uid], self.reports[uid])

    def _audit(self, passage: Passage, parts: Sequence[PartEvidence], uid: str) -> list[dict[str, Any]]:
        """What `audit_passage` says of the sentences, and, where the truth was drawn, `point_at` of their maps."""
        others = [study for other, study in self.studies.items() if other != uid]
        regions = self._drawn(passage, uid) if self.judged else regions_of(parts)
        seed = [self.seed, self.audited.index(uid)]
        audit = audit_passage(passage, regions, others, np.random.default_rng([*seed, 1]))
        if not self.judged:
            return audit
        pointed = point_at(passage, parts, regions, np.random.default_rng(seed))
        return [{**falls, **told} for falls, told in zip(audit, pointed, strict=True)]

    def _drawn(self, passage: Passage, uid: str) -> dict[int, tuple[str, Kept]]:
        """For each drawn finding the first sentence that asserts it: part number -> its name and the cells inside.

        A sentence on both sides has both regions. Later sentences say again what the words before them said.
        """
        regions = drawn_regions(int(uid), str(self.studies[uid].truth))
        left = set(regions)
        found = {}
        for number, part in enumerate(passage.layout.parts):
            told = sorted((pair for pair in read_findings(part.text) if pair in left), key=str)
            if told:
                left -= set(told)
                region = np.any([inside_cells(regions[pair], passage.side) for pair in told], axis=0)
                found[number] = (told[0][0], region)
        return found

    def judge_shuffled(self, audits: Mapping[str, list[dict[str, Any]]]) -> None:
        """Adds how maps of the model with shuffled weights do (Adebayo et al. 2018, arXiv:1810.03292)."""
        shuffle_weights(self.reporter.model, self.seed)
        self.neutral = learn_neutral(self.reporter, self.train)
        for uid, audit in audits.items():
            passage = self._passage(uid)
            maps = {"occlusion": occlusion_maps(passage), "gradient": passage.gradients()}
            for told, (number, (_, inside)) in zip(audit, self._drawn(passage, uid).items(), strict=True):
                for name, values in maps.items():
                    told["hit"][f"{name}, shuffled weights"] = hit(values[number], inside)
                    told["energy"][f"{name}, shuffled weights"] = energy_inside(values[number], inside)


@torch.no_grad()
def shuffle_weights(model: torch.nn.Module, seed: int) -> None:
    """Gives every weight tensor its own numbers in another order, in place; 4-bit ones in pairs, as they are stored."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        order = torch.randperm(parameter.numel(), generator=generator).to(parameter.device)
        parameter.data = parameter.data.flatten()[order].view(parameter.shape)


def agreement(lines: Sequence[Mapping[str, Any]], seed: int) -> dict[str, Any]:
    """How the maps of asserting sentences agree, whether their side is right, and how many sentences are supported."""
    bootstrap = Bootstrap(max(len(lines), 1), seed)
    told = [(i, s, bool(asserted_pairs(s["text"]))) for i, line in enumerate(lines) for s in line["sentences"]]
    kinds = {
        "rank_correlation": [(i, s["rank_correlation"]) for i, s, asserts in told if asserts and s["rank_correlation"]],
        "side_consistent": [(i, s["side_consistent"]) for i, s, _ in told if s["side_consistent"] is not None],
        "supported, asserting": [(i, s["supported"]) for i, s, asserts in told if asserts],
        "supported, other": [(i, s["supported"]) for i, s, asserts in told if not asserts],
    }
    return {name: {**estimate(pairs, bootstrap).to_json(), "sentences": len(pairs)} for name, pairs in kinds.items()}


def _sentence(figures: Mapping[str, Any], unproven: str) -> str:
    if "pointing" not in figures:

        def told(name: str) -> str:
            return figure_text(figures["agreement"][name])

        return (
            f"{unproven}: supported by occlusion {told('supported, asserting')} "
            f"of sentences that assert a finding, {told('supported, other')} of others; the two maps agree by "
            f"rank correlation {told('rank_correlation')}, side right {told('side_consistent')}"
        )
    hits, lesions = figures["pointing"]["hit"], figures["pointing"]["lesions"]
    maps = ", ".join(f"{name} {figure_text(figure)}" for name, figure in hits.items())
    return f"peak of the map in the drawn region, {lesions} lesions: {maps}"
