"""Score reports by everything that needs no model: a stage's, a baseline's or another system's, by the same code.

No torch.

`python -m radvision_utils score FILE` compares with the references in the file; with `--run NAME` with those of a
run's split, of which every study must have a prediction.
"""

from __future__ import annotations

import importlib.metadata
import platform
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from radvision_utils.config import RadVisionError
from radvision_utils.data.reports import Report, is_english
from radvision_utils.data.studies import Study, open_prepared
from radvision_utils.evaluation.bootstrap import RESAMPLES, Bootstrap
from radvision_utils.evaluation.labels import (
    ABNORMAL,
    Label,
    LabelMatrix,
    compare,
    confusion,
    label,
    label_scores,
    observation_scores,
)
from radvision_utils.evaluation.phantom_accuracy import phantom_estimates
from radvision_utils.evaluation.records import (
    FLAGS,
    VERDICTS,
    Pairs,
    flags_of,
    normal_form,
    read_systems,
    report_labels,
)
from radvision_utils.evaluation.table import (
    CONVENTIONS,
    DRAWN,
    RULE_LABELS,
    ScoredRow,
    add_meteor,
    page,
    table_rows,
)
from radvision_utils.evaluation.text_metrics import PROTOCOLS, score_texts, text_estimates
from radvision_utils.runs import RunFolder

SEED = 7


def scoring_versions() -> dict[str, str]:
    """Versions of what the scores depend on; no torch."""
    found = {name: importlib.metadata.version(name) for name in ("numpy", "pycocoevalcap")}
    return {"python": platform.python_version(), **found}


class Scorer:
    """Scores rows on one set of studies.

    Args:
        references: the true reports, untouched.
        seed: of the bootstrap.
        training: training reports, to find copies; none known for another system's predictions.
        truths: what was drawn into each study; phantoms only.
    """

    def __init__(
        self,
        references: Sequence[Report],
        seed: int,
        training: Sequence[Report] = (),
        truths: Sequence[str] | None = None,
    ) -> None:
        self.references, self.truths = list(references), truths
        self.bootstrap = Bootstrap(len(references), seed)
        self.training = {normal_form(report) for report in training}
        self.labels = [report_labels(report) for report in references]
        self.matrix = LabelMatrix.of(self.labels, _without_words(references))

    def score(self, reports: Sequence[Report]) -> ScoredRow:
        """All scores of a row, one report for each study."""
        known = {report: report_labels(report) for report in dict.fromkeys(reports)}
        labels = [known[report] for report in reports]
        matrix = LabelMatrix.of(labels, _without_words(reports))
        texts = {protocol: score_texts(reports, self.references, protocol) for protocol in PROTOCOLS}
        estimates = {RULE_LABELS: label_scores(matrix, self.matrix, self.bootstrap)}
        estimates |= {protocol: text_estimates(scores, self.bootstrap) for protocol, scores in texts.items()}
        if self.truths is not None:
            estimates[DRAWN] = phantom_estimates(reports, self.truths, self.bootstrap)
        facts = {
            **variety(reports),
            "without_observation": sum(not _observations(found) for found in labels),
            "flags": self._count_flags(reports),
            "verdicts": _count_verdicts(labels, self.labels),
            "observations": observation_scores(matrix, self.matrix, self.bootstrap),
            "confusion": confusion(matrix, self.matrix),
        }
        return ScoredRow(list(reports), matrix, estimates, texts, facts)

    def _count_flags(self, reports: Sequence[Report]) -> dict[str, int | None]:
        counts = Counter[str]()
        for report, times in Counter(reports).items():
            counts.update(dict.fromkeys(flags_of(report, self.training), times))
        known = FLAGS if self.training else FLAGS[:-1]  # copies can be told only where the training reports are known
        return {name: counts[name] if name in known else None for name in FLAGS}


def variety(reports: Sequence[Report]) -> dict[str, Any]:
    """How alike the reports are to one another, and how long.

    Returns:
        distinct_reports; commonest_share: of the most frequent report; repeated_share: studies that share their report
        with another study; repeats_itself: share of a report's sequences of four words that stood in it before, mean of
        the reports (Welleck et al. 2019, arXiv:1908.04319); words_per_report; without_headings, empty_reports: counts.
    """
    counts = Counter(reports)
    texts = [f"{report.findings} {report.impression}".lower().split() for report in reports]
    words = [len(text) for text in texts]
    return {
        "distinct_reports": len(counts),
        "commonest_share": round(max(counts.values()) / len(reports), 4),
        "repeated_share": round(sum(times for times in counts.values() if times > 1) / len(reports), 4),
        "repeats_itself": round(sum(map(_repeated, texts)) / len(texts), 4),
        "words_per_report": round(sum(words) / len(words), 1),
        "without_headings": sum(not report.headed for report in reports),
        "empty_reports": words.count(0),
    }


def _repeated(words: Sequence[str]) -> float:
    """Share of the sequences of four words that stood in the text before; near 1 for one sentence over and over."""
    fours = list(zip(words, words[1:], words[2:], words[3:], strict=False))
    return 1 - len(set(fours)) / len(fours) if fours else 0.0


def _observations(labels: Mapping[str, Label]) -> list[str]:
    """The abnormal observations of which a report speaks, be it to deny them."""
    return [name for name in ABNORMAL if labels[name].status != "not mentioned"]


def _without_words(reports: Sequence[Report]) -> list[bool]:
    return [not re.search(r"\w", f"{report.findings}{report.impression}") for report in reports]


def _count_verdicts(generated: Sequence[Mapping[str, Any]], reference: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    counts = Counter(
        verdict
        for ours, true in zip(generated, reference, strict=True)
        for name, verdict in compare(ours, true).items()
        if name != "No Finding"  # a normal study called abnormal, or the reverse, shows in the findings already
    )
    return {name: counts[name] for name in VERDICTS}


def score_file(path: Path, run: RunFolder | None = None, split: str = "test") -> tuple[dict[str, Any], str]:
    """The figures of `metrics.json` for every system in a file of predictions, and the page for people.

    Args:
        path: `.jsonl` (one system a stage) or `.csv` (one system).
        run: whose references to compare with, instead of those in the file.
        split: of the run.

    Raises:
        RadVisionError: the file cannot be read; a study is unknown, missing or there twice; a text is empty or not
            English. Nothing is scored then.
    """
    systems = read_systems(path)
    studies = list(open_prepared(run.profile()).split(split)) if run else None
    reports: dict[str, list[Report]] = {}
    references: list[Report] = []
    for name, pairs in systems.items():
        where = f"{path}, {name}" if len(systems) > 1 else str(path)
        predictions, true = _matched(pairs, studies, where, split)
        if references and list(true.values()) != references:
            raise RadVisionError(f"{where} has other studies than the first system in the file: score it alone.")
        references, reports[name] = list(true.values()), [predictions[uid] for uid in true]
    scorer = Scorer(references, SEED, truths=_truths(studies))
    scored = {name: scorer.score(given) for name, given in reports.items()}
    rows = {name: row.to_json() for name, row in scored.items()}
    add_meteor(rows, reports, references)
    metrics = {
        "predictions": path.name,
        "n": len(references),
        "seed": SEED,
        "resamples": RESAMPLES,
        "versions": scoring_versions(),
        "conventions": CONVENTIONS,
        "rows": rows,
        "table": table_rows(rows),
    }
    return metrics, page(path.name, metrics, scored)


def label_lines(text: str) -> str:
    """The 14 labels of a text, a line each.

    Raises:
        RadVisionError: the text has no words or is not English.
    """
    if not re.search(r"\w", text):
        raise RadVisionError("the text is empty: give a report or a sentence of one, in quotes.")
    if not is_english(text):
        raise RadVisionError("the text is not English: the rules are made for English reports.")
    return "\n".join(f"{name:28}{' '.join([found.status, *found.sides])}" for name, found in label(text).items())


def _truths(studies: Iterable[Study] | None) -> list[str] | None:
    truths = [study.truth for study in studies or () if study.truth is not None]
    return truths or None


def _matched(
    pairs: Pairs, studies: list[Study] | None, where: str, split: str
) -> tuple[dict[str, Report], dict[str, Report]]:
    """Predictions and references by uid, the latter in the order of scoring; both complete and fit to be scored."""
    predictions = {uid: prediction for uid, (prediction, _) in pairs.items()}
    if studies is None:
        without = [uid for uid, (_, reference) in pairs.items() if reference is None]
        if without:
            raise RadVisionError(f"study {without[0]} in {where} has no reference: add it, or name its run with --run.")
        true = {uid: reference for uid, (_, reference) in pairs.items() if reference is not None}
    else:
        true = {study.uid: study.reference for study in studies}
        unknown = [uid for uid in predictions if uid not in true]
        missing = [uid for uid in true if uid not in predictions]
        if unknown:
            raise RadVisionError(
                f"{where} has a prediction for study {unknown[0]}, which is not in the {split} split "
                f"({len(unknown)} such): take it out, or name the split it belongs to."
            )
        if missing:
            raise RadVisionError(
                f"{where} has no prediction for study {missing[0]} of the {split} split ({len(missing)} of {len(true)} "
                "missing): the scores would be those of a smaller set."
            )
    if not true:
        raise RadVisionError(f"{where} has no studies to score.")
    check_not_empty(
        predictions, "prediction", "write the report, or a word such as 'None' where the system wrote nothing."
    )
    check_english(predictions, "prediction")
    check_references(true)
    return predictions, true


def check_english(reports: Mapping[str, Report], what: str) -> None:
    """Refuses reports that are not English.

    Args:
        reports: by uid.
        what: "reference" or "prediction".

    Raises:
        RadVisionError: the sentence names the first such study and how many there are.
    """
    odd = [uid for uid, report in reports.items() if not is_english(f"{report.findings} {report.impression}")]
    if odd:
        raise RadVisionError(
            f"the {what} of study {odd[0]} is not English ({_how_many(odd)}): the metrics and the finding labels are "
            "made for English reports; translate the texts first."
        )


def check_not_empty(reports: Mapping[str, Report], what: str, then: str) -> None:
    """Refuses reports without a word.

    Raises:
        RadVisionError: the sentence names the first such study and ends with what to do (`then`).
    """
    odd = [uid for uid, report in reports.items() if not re.search(r"\w", f"{report.findings} {report.impression}")]
    if odd:
        raise RadVisionError(f"the {what} of study {odd[0]} is empty ({_how_many(odd)}): {then}")


def check_references(references: Mapping[str, Report]) -> None:
    """Both checks for the true reports.

    Raises:
        RadVisionError: a reference is empty or not English.
    """
    check_not_empty(references, "reference", "a study without a true report cannot be scored; leave it out knowingly.")
    check_english(references, "reference")


def _how_many(odd: list[str]) -> str:
    return f"{len(odd)} in all" if len(odd) > 1 else "the only one"
