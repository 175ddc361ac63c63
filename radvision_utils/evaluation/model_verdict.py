"""What is plainly wrong with a model, in one sentence from the run's own numbers. No torch.

A model that writes nothing, or the same for everyone, still gets a table, figures and a page of cards: this says first
that they are worth nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from radvision_utils.evaluation.baselines import NEAREST
from radvision_utils.evaluation.rows import RULE_LABELS

HALF = 0.5  # of the reports, or of their words
MOST = 0.9  # of the reports; on a set of mostly normal studies a good model too writes some report very often


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
    rival = _best_blind(metrics)
    if rival is not None and score is not None:
        best, name = rival
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
    repeated, unnamed = row.get("repeats_itself", 0), row.get("without_observation", 0)  # older evaluations lack them
    same = round(row["commonest_share"] * n)
    if same > max(1, MOST * n):
        faults.append(f"wrote the same report for {same} of {n} studies")
    if repeated > HALF:
        faults.append(f"repeats itself ({repeated:.0%} of a report stood in it before)")
    if unnamed > HALF * n:
        faults.append(f"names no observation that the rules know in {unnamed} of {n} reports")
    elif not any(found["asserted"] for found in row["observations"].values()):
        faults.append("asserts no finding in any report")
    return faults


def _best_blind(metrics: Mapping[str, Any]) -> tuple[float, str] | None:
    """The highest rule-label F1 of the rows that see no image, and whose it is."""
    rows = [(metrics["rows"][name], name) for name in metrics["baselines"] if name != NEAREST]
    known = [(score, name) for row, name in rows if (score := row[RULE_LABELS]["micro_f1"]["value"]) is not None]
    return max(known, default=None)
