"""Judge a run: reports of the base and of every stage, beside rows that need no model, and whether the image is used.

Writes `evaluation/predictions.jsonl` (the seam to the dashboard), of the last stage also `predictions.csv` and
`rexrank.json`, `table.md`, pictures and, last, `metrics.json`, beside an older evaluation, whose place they take when
all are whole. Another split than test gets a folder of its own below `evaluation/`.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from radvision_utils.config import STAGE_LABELS, STAGES, Profile, RadVisionError
from radvision_utils.content import fingerprint
from radvision_utils.data.studies import SPLITS, open_prepared
from radvision_utils.environment import choose_device, forget_peak_memory, open_room, process_rank, versions
from radvision_utils.evaluation import image_use
from radvision_utils.evaluation.baselines import NEAREST, RANDOM, ROWS, blind_reports, neighbor_reports
from radvision_utils.evaluation.bootstrap import Estimate, rounded
from radvision_utils.evaluation.charts import save_figures
from radvision_utils.evaluation.label_scores import mesh_agreement
from radvision_utils.evaluation.records import (
    CUT,
    Prediction,
    check_texts,
    predictions_csv,
    read_predictions,
    report_labels,
    rexrank_submission,
    study_prediction,
)
from radvision_utils.evaluation.table import (
    ScoredRow,
    Scorer,
    differences,
    figures_of,
    page,
    table_rows,
)
from radvision_utils.evaluation.text_metrics import r2gen_vocabulary
from radvision_utils.evaluation.writing import help_first_process, write_reports
from radvision_utils.files import read_json, write_json, write_json_lines, write_text
from radvision_utils.report import Reporter, WrittenReport, reporter_of
from radvision_utils.runs import RunFolder, asked_to_force, is_current, made_from, now, publish_finished, working

logger = logging.getLogger(__name__)

CARD_SCORES = ("bleu4", "rouge_l", "cider_d")
LAST = STAGES[-1]


@dataclass(frozen=True)
class EvaluationResult:
    """A finished evaluation: its folder and `metrics.json`."""

    folder: Path
    metrics: dict[str, Any]

    @property
    def predictions(self) -> list[Prediction]:
        """The lines of `predictions.jsonl`."""
        return read_predictions(self.folder / "predictions.jsonl")


def evaluate(
    profile: Profile, split: str = "test", force: bool = False, evidence: int = 0, samples: int = 0
) -> EvaluationResult:
    """Write and score reports for a split, or give back the result where nothing has changed.

    Args:
        profile: the run's settings.
        split: "test", "validation" or "train".
        force: also where nothing has changed.
        evidence: add maps of the last stage's reports for so many studies, the worst first; on phantoms also for some
            drawn by lot, whose maps are compared with what was drawn.
        samples: add confidence in every sentence, from so many sampled reports of the last stage for each study.

    Raises:
        RadVisionError: data or a stage is missing or stale, the split has no studies, or a reference is empty or not
            English; the sentence says what to do.
    """
    run, step = RunFolder.of(profile), "evaluation" if split == "test" else f"evaluation/{split}"
    made, force = made_from(profile, step), asked_to_force("evaluation") or force
    if force or not is_current(profile, step):
        with working(run, "evaluation"):
            if process_rank():
                help_first_process(profile, split, profile.evaluation.judged, step)
            elif force or not (publish_finished(profile, step) or is_current(profile, step)):
                _Evaluation(profile, split, step, made).run()
    if (evidence or samples) and not process_rank():
        with working(run, "evaluation"):
            open_room("evidence.study_maps").add_to_evaluation(profile, step, evidence, samples)
    return EvaluationResult(run.path / step, read_json(run.record_path(step)))


class _Evaluation:
    """What the steps of one evaluation share."""

    def __init__(self, profile: Profile, split: str, step: str, made: dict[str, Any]) -> None:
        self.profile, self.split, self.step, self.made, self.seed = profile, split, step, made, profile.seed
        run = RunFolder.of(profile)
        self.folder, self.partial = run.path / step, run.partial(step)
        self.dataset = open_prepared(profile)
        self.studies = list(self.dataset.split(split))
        if not self.studies:
            raise RadVisionError(
                f"the {split} split of run {profile.run!r} has no studies: choose another split, or prepare more data."
            )
        check_texts({study.uid: study.reference for study in self.studies}, "reference")
        self.train = list(self.dataset.split("train"))
        truths = [study.truth for study in self.studies if study.truth is not None]
        self.scorer = Scorer(
            [study.reference for study in self.studies],
            self.seed,
            [study.report for study in self.train],
            truths if len(truths) == len(self.studies) else None,
            [study.mesh if study.truth is None else "" for study in self.studies],  # a phantom's is no annotation
            r2gen_vocabulary(study.reference.findings for study in self.train),
        )
        self.gaps: dict[str, Estimate] = {}
        self.use: dict[str, Any] = {}

    def run(self) -> None:
        started = time.perf_counter()
        shutil.rmtree(self.partial, ignore_errors=True)
        self.partial.mkdir(parents=True)
        blind = blind_reports(
            [study.report for study in self.train],
            [study.reference for study in self.dataset.split("validation")],
            len(self.studies),
            self.seed,
        )
        scored = {row: self.scorer.score(reports) for row, reports in blind.items()}
        predictions: list[Prediction] = []
        forget_peak_memory(choose_device())
        for stage in self.profile.evaluation.judged:
            row, reporter = STAGE_LABELS[stage], reporter_of(self.profile, stage)
            if stage == 0:
                scored[NEAREST] = self.scorer.score(neighbor_reports(reporter, self.train, self.studies))
            scored[row], written = self._stage(reporter, row)
            predictions += self._predictions(stage, scored[row], written)
            logger.info("%s", _line(row, scored[row]))
            memory = open_room("planning.judging").reports_beside(reporter, self.studies)
            del reporter  # before the next model is loaded: two would not fit a card
        metrics = self._metrics(scored)
        metrics["memory"] = {"reports": memory}
        metrics["seconds"] = round(time.perf_counter() - started, 1)
        self._write(metrics, scored, predictions)

    def _stage(self, reporter: Reporter, row: str) -> tuple[ScoredRow, list[WrittenReport]]:
        """Reports and loss of a stage; of the base and the last stage also how they depend on the image."""
        written = write_reports(reporter, self.studies, self.folder / "reports" / fingerprint(self.made))
        losses = image_use.study_losses(reporter, self.studies)
        scored = self.scorer.score([w.report for w in written])
        scored.facts.update(_effort(written), loss=round(float(losses[:, 0].sum() / losses[:, 1].sum()), 4))
        scored.facts["flags"][CUT] = sum(not w.finished for w in written)
        if reporter.stage in (0, LAST):
            self.gaps[row] = image_use.exchanged_gap(reporter, self.studies, losses, self.seed)
        if reporter.stage == LAST:
            self.use = self._image_use(reporter, row, scored, losses)
        return scored, written

    def _image_use(self, reporter: Reporter, row: str, scored: ScoredRow, losses: image_use.Losses) -> dict[str, Any]:
        """Whether the last stage uses the image, asked in every way."""
        drops = image_use.exchange_drops(scored.matrix, self.scorer.matrix, self.scorer.bootstrap, self.seed)
        word, sentence = image_use.verdict(self.gaps[row], drops["any study"])
        beyond = image_use.beyond_labels(scored, self.scorer)
        chosen = image_use.sample(len(self.studies), self.seed)
        some, reports = [self.studies[i] for i in chosen], [scored.reports[i] for i in chosen]
        empty = image_use.empty_images(self.train, self.partial, self.seed)
        use = {
            "verdict": word,
            "sentence": f"{sentence}; {image_use.told_beyond(beyond)}" if word == "yes" else sentence,
            "beyond_labels": beyond.to_json(),
            "row": row,
            "studies": f"gap and exchanged reports: all {len(self.studies)}; others: {len(some)}, drawn by lot",
            "detectable": {
                "loss_gap": rounded(self.gaps[row].detectable),
                "f1_drop": rounded(drops["any study"].detectable),
            },
            "loss_gap": {name: gap.to_json() for name, gap in self.gaps.items()},
            "f1_drop": {name: drop.to_json() for name, drop in drops.items()},
            "without its image": image_use.without_image(reporter, some, reports, losses[chosen], empty, self.seed),
            "mirrored": image_use.mirrored(reporter, some, reports, self.seed),
        }
        if self.profile.model.indication:
            use["without the indication"] = self._without_indication(reporter)
            use["contradicting indication"] = image_use.contradicted(reporter, some, self.seed)
        return use

    def _without_indication(self, reporter: Reporter) -> dict[str, str]:
        """Whether the image is used, asked once more where nothing but the image can tell."""
        bare = [replace(study, indication="") for study in self.studies]
        matrix = self.scorer.score(reporter.report(bare)).matrix
        drops = image_use.exchange_drops(matrix, self.scorer.matrix, self.scorer.bootstrap, self.seed)
        gap = image_use.exchanged_gap(reporter, bare, image_use.study_losses(reporter, bare), self.seed)
        word, sentence = image_use.verdict(gap, drops["any study"])
        return {"verdict": word, "sentence": sentence}

    def _metrics(self, scored: Mapping[str, ScoredRow]) -> dict[str, Any]:
        figures, last = figures_of(scored, self.scorer), STAGE_LABELS[LAST]
        return {
            "made_from": self.made,
            "split": self.split,
            **figures,
            "versions": {**versions(), **figures["versions"]},
            "baselines": {
                row: {
                    "what": what,
                    "report": scored[row].reports[0].to_json() if row not in (RANDOM, NEAREST) else None,
                }
                for row, what in ROWS.items()
            },
            "differences": {last: differences(scored, last)},
            "image_use": self.use,
            "labeler": self._labeler(),
        }

    def _labeler(self) -> dict[str, Any]:
        """How the rule labels do: against the MeSH annotation of all studies, on phantoms against what was drawn."""
        annotated = [
            study
            for split in SPLITS
            for study in self.dataset.split(split)
            if study.mesh and study.mesh != "No Indexing" and study.truth is None  # a phantom's is no annotation
        ]
        facts: dict[str, Any] = {}
        if annotated:
            labels = [report_labels(study.reference) for study in annotated]
            facts["mesh_agreement"] = mesh_agreement(labels, [study.mesh for study in annotated])
            facts["mesh_reports"] = len(annotated)
        if self.scorer.truths is not None:
            drawn = self.scorer.against_drawn(self.scorer.references, self.scorer.truths)
            facts["references_against_drawn"] = {name: estimate.to_json() for name, estimate in drawn.items()}
        return facts

    def _predictions(self, stage: int, scored: ScoredRow, written: Sequence[WrittenReport]) -> list[Prediction]:
        return [
            study_prediction(
                self.profile,
                stage,
                study,
                index,
                ours,
                self.scorer.training,
                scores={name: round(scored.each[index][name], 4) for name in CARD_SCORES},
            )
            for index, (study, ours) in enumerate(zip(self.studies, written, strict=True))
        ]

    def _write(
        self, metrics: dict[str, Any], scored: Mapping[str, ScoredRow], predictions: Sequence[Prediction]
    ) -> None:
        metrics["hash"] = fingerprint([ours.generated.to_json() for ours in predictions])
        metrics["finished"] = now()
        folder = self.partial
        write_json_lines(folder / "predictions.jsonl", (ours.to_json() for ours in predictions))
        last = [ours for ours in predictions if ours.stage == LAST]
        write_text(folder / "predictions.csv", predictions_csv(last))
        write_json(folder / "rexrank.json", rexrank_submission(last))
        write_text(folder / "table.md", page(f"{self.split.capitalize()} split", metrics, scored))
        save_figures(metrics, predictions, folder)
        for split in SPLITS:  # whose evaluations lie within that of the test split
            if (self.folder / split).is_dir():
                shutil.copytree(self.folder / split, folder / split)
        write_json(folder / "metrics.json", metrics)
        RunFolder.of(self.profile).publish(self.profile, self.step)


def _effort(written: Sequence[WrittenReport]) -> dict[str, Any]:
    seconds, tokens = sum(w.seconds for w in written), sum(w.tokens for w in written)
    return {
        "tokens_per_report": round(tokens / len(written), 1),
        "seconds_per_report": round(seconds / len(written), 4),
        "tokens_per_second": round(tokens / seconds, 1),
    }


def _line(row: str, scored: ScoredRow) -> str:
    [line] = table_rows({row: scored.to_json()})
    return f"{row}: " + ", ".join(f"{name} {value}" for name, value in line.items() if name != "row")
