"""Rows of the table, scored by everything that needs no model, and the table itself, for people and for the dashboard.

The same code scores a stage, a baseline and another system's predictions. A model that writes nothing, or the same for
everyone, still gets a row, figures and a page of cards: the verdict on it says first that they are worth nothing. No
torch.
"""

from __future__ import annotations

import importlib.metadata
import platform
from collections import Counter
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from radvision_utils.config import STAGE_LABELS, STAGES, EvaluationSettings, Profile
from radvision_utils.data.labels import ABNORMAL, Label, compare, mesh_labels, says_nothing
from radvision_utils.data.reports import Report
from radvision_utils.environment import open_room
from radvision_utils.evaluation.baselines import NEAREST
from radvision_utils.evaluation.bootstrap import RESAMPLES, Bootstrap, Estimate, figure_text, rounded
from radvision_utils.evaluation.label_scores import (
    FEW,
    LabelMatrix,
    confusion,
    label_scores,
    micro_f1,
    observation_scores,
)
from radvision_utils.evaluation.records import COPIED, CUT, FLAGS, UNKNOWN, flags_of, normal_form, report_labels
from radvision_utils.evaluation.text_metrics import (
    NEEDS_JAVA,
    PROTOCOLS,
    RAW,
    REXRANK,
    REXRANK_TEXTS,
    meteor_scores,
    rexrank_estimates,
    score_texts,
    text_estimates,
    text_pairs,
)
from radvision_utils.figures import markdown_table
from radvision_utils.runs import redo_command

RULE_LABELS = "rule labels, findings + impression"
DRAWN = "drawn truth"  # phantoms only
CARD_PROTOCOL = RAW  # whose text metrics the table and a study's card show
VERDICTS = ("agree", "missed", "unsupported", "contradiction")  # in the order of the table


class Column(NamedTuple):
    """A headline metric: its name in the table, where it stands in `metrics.json`, and its heading for people."""

    name: str
    protocol: str
    metric: str
    heading: str


COLUMNS = (
    Column("abnormal_f1", RULE_LABELS, "micro_f1", "rule-label F1, micro"),
    Column("abnormal_macro_f1", RULE_LABELS, "macro_f1", "rule-label F1, macro"),
    Column("sensitivity", RULE_LABELS, "sensitivity", "sensitivity"),
    Column("specificity", RULE_LABELS, "specificity", "specificity"),
    Column("study_accuracy", DRAWN, "study_accuracy", "studies wholly right"),
    Column("finding_precision", DRAWN, "finding_precision", "finding precision"),
    Column("finding_recall", DRAWN, "finding_recall", "finding recall"),
    Column("bleu4", CARD_PROTOCOL, "bleu4", "BLEU-4"),
    Column("rouge_l", CARD_PROTOCOL, "rouge_l", "ROUGE-L"),
    Column("cider_d", CARD_PROTOCOL, "cider_d", "CIDEr-D"),
)
CONVENTIONS = {
    "uncertain": "counts as positive in reports and references; the metrics that end in _certain count it as negative",
    "macro": f"mean F1 of the observations that references assert; those of fewer than {FEW} count together as one",
    "abnormal": "the text says that something is not normal, be it outside the 13 observations; devices are normal",
    "_abnormal": "metrics that end so are of the studies whose reference is abnormal",
    "interval": "95 %, percentiles of resamples by study; differences are paired by study",
    "R2Gen normalization": "references are cut at 59 words, reports at 60; words seen less than 3 times in training "
    "reports are unknown, where these are given",
    "ReXrank": "the mean of the studies' BLEU-2; a report that is the same for all comes close to published systems",
    "cider_d": "word frequencies of the whole split, also in the resamples; depends on the split",
    "meteor": "METEOR's own aggregate over the split, without interval",
    "score name": "rule-label F1: by this project's rules, not CheXbert",
}
_TEXT_HEADS = {
    **{f"bleu{order}": f"BLEU-{order}" for order in (1, 2, 3, 4)},
    **{"rouge_l": "ROUGE-L", "cider_d": "CIDEr-D", "meteor": "METEOR", **{name: name for name in REXRANK_TEXTS}},
}
FACTS = {
    **{"loss": "loss, nats per token", "distinct_reports": "distinct reports"},
    **{"text_f1": "F1 without the line of findings", "mesh_f1": "F1 against MeSH"},
}

HALF = 0.5  # of the reports, or of their words
MOST = 0.9  # of the reports; on a set of mostly normal studies a good model too writes some report very often


@dataclass(frozen=True)
class ScoredRow:
    """A row with its scores.

    Attributes:
        reports: one for each study.
        matrix: their labels.
        estimates: protocol -> metric -> estimate.
        each: text metrics of each report, by `CARD_PROTOCOL`.
        facts: what has no interval: variety, lengths, flags, verdicts, observations, confusion.
    """

    reports: list[Report]
    matrix: LabelMatrix
    estimates: dict[str, dict[str, Estimate]]
    each: list[dict[str, float]]
    facts: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """As `metrics.json` has it: the protocols, then the facts."""
        protocols = {
            protocol: {name: estimate.to_json() for name, estimate in estimates.items()}
            for protocol, estimates in self.estimates.items()
        }
        return {**protocols, **self.facts}


class Scorer:
    """Scores rows on one set of studies.

    Args:
        references: the true reports, untouched.
        seed: of the bootstrap.
        training: training reports, to find copies; none known for another system's predictions.
        truths: what was drawn into each study; phantoms only.
        mesh: human annotation of each study, "" where there is none. The rules that make the labels also teach where
            labels teach; by the annotation somebody else judges.
        known: the words that R2Gen would know, see `r2gen_vocabulary`; all if left out.
    """

    def __init__(
        self,
        references: Sequence[Report],
        seed: int,
        training: Sequence[Report] = (),
        truths: Sequence[str] | None = None,
        mesh: Sequence[str] = (),
        known: Set[str] | None = None,
    ) -> None:
        self.references, self.seed, self.truths, self.known = list(references), seed, truths, known
        self.bootstrap = Bootstrap(len(references), seed)
        self.training = frozenset(normal_form(report) for report in training)
        self.labels, self.matrix = _labeled(references)
        self.annotated = np.array([bool(text) and text != "No Indexing" for text in mesh], bool)
        said = np.array([[name in mesh_labels(text) for name in ABNORMAL] for text in mesh], bool)
        self.by_people = (
            LabelMatrix(said, said, np.array([row.any() for row in said])) if self.annotated.any() else None
        )

    def score(self, reports: Sequence[Report]) -> ScoredRow:
        """All scores of a row, one report for each study."""
        labels, matrix = _labeled(reports)
        texts = {protocol: score_texts(reports, self.references, protocol, self.known) for protocol in PROTOCOLS}
        estimates = {RULE_LABELS: label_scores(matrix, self.matrix, self.bootstrap)}
        estimates |= {protocol: text_estimates(scores, self.bootstrap) for protocol, scores in texts.items()}
        estimates[REXRANK] = rexrank_estimates(reports, self.references, self.bootstrap)
        if self.truths is not None:
            estimates[DRAWN] = self.against_drawn(reports, self.truths)
        facts = {
            **variety(reports),
            "without_observation": sum(all(found[n].status == "not mentioned" for n in ABNORMAL) for found in labels),
            "flags": self._count_flags(reports),
            "verdicts": _count_verdicts(labels, self.labels),
            "observations": observation_scores(matrix, self.matrix, self.bootstrap),
            "confusion": confusion(matrix, self.matrix),
        }
        if self.by_people is not None:
            facts["mesh_f1"] = rounded(micro_f1(matrix, self.by_people, self.bootstrap, self.annotated).value)
        if any(report.line for report in reports):
            _, bare = _labeled([replace(report, line="") for report in reports])
            facts["text_f1"] = rounded(micro_f1(bare, self.matrix, self.bootstrap).value)
        return ScoredRow(list(reports), matrix, estimates, texts[CARD_PROTOCOL].each, facts)

    def against_drawn(self, reports: Sequence[Report], truths: Sequence[str]) -> dict[str, Estimate]:
        """How right reports on phantoms are, by what was drawn."""
        room = open_room("phantoms.phantom_reports")
        found: dict[str, Estimate] = room.phantom_estimates(reports, truths, self.bootstrap)
        return found

    def _count_flags(self, reports: Sequence[Report]) -> dict[str, int | None]:
        counts = Counter[str]()
        for report, times in Counter(reports).items():
            counts.update(dict.fromkeys(flags_of(report, self.training), times))
        # Who only reads a report cannot tell whether it was cut, nor a copy without the training reports.
        unknown = {CUT} if self.training else {CUT, COPIED, UNKNOWN}
        return {name: None if name in unknown else counts[name] for name in FLAGS}


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


def _labeled(reports: Sequence[Report]) -> tuple[list[dict[str, Label]], LabelMatrix]:
    """The labels of each report and their matrix; what is said again is read once."""
    known = {r: (report_labels(r), says_nothing(f"{r.findings} {r.impression}")) for r in dict.fromkeys(reports)}
    labels, silent = zip(*(known[report] for report in reports), strict=True)
    return list(labels), LabelMatrix.of(labels, silent)


def _count_verdicts(generated: Sequence[Mapping[str, Any]], reference: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    counts = Counter(
        verdict
        for ours, true in zip(generated, reference, strict=True)
        for name, verdict in compare(ours, true).items()
        if name != "No Finding"  # a normal study called abnormal, or the reverse, shows in the findings already
    )
    return {name: counts[name] for name in VERDICTS}


def table_rows(rows: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rows of `metrics.json` as the table has them: `{"row": name, metric: value, ...}`."""
    return [
        {
            "row": name,
            **{c.name: row[c.protocol][c.metric]["value"] for c in COLUMNS if c.protocol in row},
            **{fact: row[fact] for fact in FACTS if fact in row},
        }
        for name, row in rows.items()
    ]


def left_out(profile: Profile) -> list[dict[str, str]]:
    """What the settings keep out of an evaluation, each with the command that adds it to the run."""
    asked, usual = profile.evaluation, EvaluationSettings()
    away = [str(stage) for stage in STAGES if stage not in asked.judged]
    missing = {
        f"reports after stage {' and '.join(away)}": ("stages", bool(away)),
        f"maps of the {usual.evidence} worst reports": ("evidence", not asked.evidence),
        f"confidence from {usual.samples} samples a study": ("samples", not asked.samples),
    }

    def command(setting: str) -> str:
        more = replace(asked, **{setting: getattr(usual, setting)})
        return redo_command(replace(profile, evaluation=more), "evaluation")

    return [{"left out": what, "added by": command(setting)} for what, (setting, absent) in missing.items() if absent]


def interval_rows(metrics: Mapping[str, Any]) -> list[dict[str, str]]:
    """The table with intervals, for a notebook: `{"row": name, heading: "0.450 (0.373 to 0.524)"}`."""
    return [
        {"row": name, **{c.heading: figure_text(row[c.protocol][c.metric]) for c in COLUMNS if c.protocol in row}}
        for name, row in metrics["rows"].items()
    ]


def differences(scored: Mapping[str, ScoredRow], row: str) -> dict[str, dict[str, dict[str, Any]]]:
    """A row minus every other row, paired by study: other row -> column -> value, low, high, n."""
    return {
        other: {
            column.name: _estimate(scored[row], column).minus(_estimate(scored[other], column)).to_json()
            for column in COLUMNS
            if column.protocol in scored[row].estimates
        }
        for other in scored
        if other != row
    }


def headline_table(scored: Mapping[str, ScoredRow], rows: Mapping[str, Mapping[str, Any]]) -> str:
    """The table with intervals. Bold: better than every other row by a paired interval that excludes zero."""
    columns = [c for c in COLUMNS if c.protocol in next(iter(scored.values())).estimates]
    facts = {name: heading for name, heading in FACTS.items() if any(name in row for row in rows.values())}
    lines = []
    for name, row in rows.items():
        cells = [figure_text(row[c.protocol][c.metric]) for c in columns]
        cells = [f"**{t}**" if _wins(scored, name, c) else t for t, c in zip(cells, columns, strict=True)]
        lines.append([name, *cells, *(str(row.get(fact, "")) for fact in facts)])
    return markdown_table(["reports by", *(c.heading for c in columns), *facts.values()], lines)


def figures_of(scored: Mapping[str, ScoredRow], scorer: Scorer) -> dict[str, Any]:
    """What `metrics.json` says of rows, whoever wrote their reports."""
    rows = {name: row.to_json() for name, row in scored.items()}
    _add_meteor(rows, scored, scorer)
    return {
        "n": len(scorer.references),
        "seed": scorer.seed,
        "resamples": RESAMPLES,
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in ("numpy", "pycocoevalcap")},
        },
        "conventions": CONVENTIONS,
        "rows": rows,
        "table": table_rows(rows),
    }


def _add_meteor(rows: Mapping[str, dict[str, Any]], scored: Mapping[str, ScoredRow], scorer: Scorer) -> None:
    """Puts METEOR into every row and protocol, in place; `NEEDS_JAVA` where there is none."""
    places = [(row, protocol) for row in rows for protocol in PROTOCOLS]
    true, known = scorer.references, scorer.known
    values = meteor_scores([text_pairs(scored[row].reports, true, protocol, known) for row, protocol in places])
    for (row, protocol), value in zip(places, values, strict=True):
        figure: dict[str, Any] = {"value": value, "low": None, "high": None, "n": len(true)}
        rows[row][protocol]["meteor"] = figure if value is not None else figure | {"note": NEEDS_JAVA}


def page(title: str, metrics: Mapping[str, Any], scored: Mapping[str, ScoredRow]) -> str:
    """`table.md`: the verdict, the headline table, the image's use, other text metrics, errors, conventions."""
    rows = metrics["rows"]
    told = [f"**{sentence}**\n"] if (sentence := model_verdict(metrics)) else []
    parts = [f"# {title}, {metrics['n']} studies\n", *told, headline_table(scored, rows)]
    parts.append(
        "In brackets 95 % intervals by study. Bold: above every other row, the paired interval of each difference "
        f"excluding zero. Text metrics: {CARD_PROTOCOL}.\n"
    )
    if "image_use" in metrics:
        parts.append(f"**{capital(metrics['image_use']['sentence'])}.**\n")
    parts.append("## Text metrics\n\nTheir intervals, and those of the labels by observation, stand in the JSON.\n")
    parts += [f"### {capital(protocol)}\n\n{_text_table(rows, protocol)}" for protocol in (*PROTOCOLS, REXRANK)]
    parts.append(f"## Errors that matter\n\n{_error_table(rows)}")
    parts.append(
        "## Conventions\n\n" + "".join(f"- {name}: {text}.\n" for name, text in metrics["conventions"].items())
    )
    return "\n".join(parts)


def _text_table(rows: Mapping[str, Mapping[str, Any]], protocol: str) -> str:
    names = list(next(iter(rows.values()))[protocol])
    lines = [[name, *(_value(row[protocol][metric]) for metric in names)] for name, row in rows.items()]
    return markdown_table(["reports by", *(_TEXT_HEADS[name] for name in names)], lines)


def _error_table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    lines = [
        [name, *(row["verdicts"][verdict] for verdict in VERDICTS), *(row["flags"].get(flag) for flag in FLAGS)]
        for name, row in rows.items()
    ]
    texts = [["n/a" if cell is None else str(cell) for cell in line] for line in lines]
    return markdown_table(["reports by", *VERDICTS, *FLAGS], texts) + (
        "\nThe first four count findings against the reference, the others reports.\n"
    )


def _value(figure: Mapping[str, Any]) -> str:
    return figure.get("note", "n/a") if figure["value"] is None else f"{figure['value']:.3f}"


def capital(words: str) -> str:
    """Words with a capital at their beginning, the others as they are."""
    return words[:1].upper() + words[1:]


def _estimate(row: ScoredRow, column: Column) -> Estimate:
    return row.estimates[column.protocol][column.metric]


def _wins(scored: Mapping[str, ScoredRow], name: str, column: Column) -> bool:
    mine = _estimate(scored[name], column)
    others = [_estimate(row, column) for other, row in scored.items() if other != name]
    defined = [other for other in others if not np.isnan(other.value)]
    return bool(defined) and all(mine.minus(other).interval[0] > 0 for other in defined)


def result_lines(metrics: Mapping[str, Any]) -> str:
    """What a run came to, in two lines: F1 before and after with the use of the image, and the verdict on the model."""
    before, after = (_value(metrics["rows"][STAGE_LABELS[n]][RULE_LABELS]["micro_f1"]) for n in (0, STAGES[-1]))
    used = metrics["image_use"]["verdict"]
    return f"Abnormal F1 {before} -> {after}, image used: {used}\n{model_verdict(metrics)}"


def model_verdict(metrics: Mapping[str, Any]) -> str:
    """One sentence on the model of the last stage: its plain faults, or that it has none of them.

    Args:
        metrics: of an evaluation; of other systems' predictions nothing is said ("").
    """
    use = metrics.get("image_use") or {}
    row = (metrics.get("rows") or {}).get(use.get("row"))
    if not row:
        return ""
    n, score = metrics["n"], row[RULE_LABELS]["micro_f1"]["value"]
    faults = _faults_of_texts(row, n)
    told = [f"{row['distinct_reports']} distinct reports for {n} studies", f"image used: {use['verdict']}"]
    if use["verdict"] == "no":
        faults.append("does not use the image")
    blind = [name for name in metrics["baselines"] if name != NEAREST]
    earned = [(metrics["rows"][name][RULE_LABELS]["micro_f1"]["value"], name) for name in blind]
    known = [(value, name) for value, name in earned if value is not None]
    if known and score is not None:
        best, name = max(known)
        told.append(f"rule-label F1 {score:.3f} against {best:.3f} of the {name}, which sees no image")
        if score <= best:
            faults.append(f"earns no more than reports without a model ({told[-1]})")
    if not faults:
        return f"This model has no plain fault: {'; '.join(told)}."
    listed = " and ".join(filter(None, [", ".join(faults[:-1]), faults[-1]]))
    return f"This model is no good: it {listed}; do not read its cards as findings."


def _faults_of_texts(row: Mapping[str, Any], n: int) -> list[str]:
    """What its texts alone show, whatever the references say."""
    if row["empty_reports"] > HALF * n:
        return [f"wrote nothing for {row['empty_reports']} of {n} studies"]
    faults = []
    same, repeated, unnamed = round(row["commonest_share"] * n), row["repeats_itself"], row["without_observation"]
    if same > max(1, MOST * n):
        faults.append(f"wrote the same report for {same} of {n} studies")
    if repeated > HALF:
        faults.append(f"repeats itself ({repeated:.0%} of a report stood in it before)")
    if (cut := row["flags"].get(CUT) or 0) > HALF * n:
        faults.append(f"reaches the token limit in {cut} of {n} reports")
    if unnamed > HALF * n:
        faults.append(f"names no observation that the rules know in {unnamed} of {n} reports")
    elif not any(found["asserted"] for found in row["observations"].values()):
        faults.append("asserts no finding in any report")
    return faults
