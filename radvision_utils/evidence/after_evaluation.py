"""What a finished evaluation may be asked for beyond its scores: evidence and confidence."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from radvision_utils.config import STAGES, Profile
from radvision_utils.evaluation.records import read_predictions
from radvision_utils.evidence.confidence import add_confidence
from radvision_utils.evidence.evidence_figures import save_evidence_figures
from radvision_utils.evidence.study_maps import add_evidence
from radvision_utils.runs import write_json, write_text

_HEADING, _NEXT = "## Evidence and confidence", "## Text metrics"


def add_to_evaluation(metrics: dict[str, Any], profile: Profile, folder: Path, evidence: int, samples: int) -> None:
    """Maps for `evidence` studies and `samples` drawn reports for each study, where they are not there yet.

    Puts the sections into `metrics` and `metrics.json`, two lines into `table.md`, and draws the figures. 0 asks for
    nothing and leaves what is there.

    Raises:
        RadVisionError: the data or the last stage are missing, or several processes are to sample.
    """
    predictions = [ours for ours in read_predictions(folder / "predictions.jsonl") if ours.stage == STAGES[-1]]
    changed = bool(samples) and add_confidence(metrics, predictions, profile, folder, samples)
    if changed:
        write_json(folder / "metrics.json", metrics)  # what comes next may be interrupted
    changed |= bool(evidence) and add_evidence(metrics, predictions, profile, folder, evidence)
    if changed:
        table = folder / "table.md"
        write_text(table, with_sentences(table.read_text(encoding="utf-8"), metrics))
        save_evidence_figures(metrics, folder)
        write_json(folder / "metrics.json", metrics)


def with_sentences(page: str, metrics: dict[str, Any]) -> str:
    """`table.md` with a line each for evidence and confidence, in place of older ones."""
    page = re.sub(rf"{_HEADING}\n.*?(?={_NEXT})", "", page, flags=re.DOTALL)
    lines = [f"- {metrics[name]['sentence']}.\n" for name in ("evidence", "confidence") if name in metrics]
    return page.replace(_NEXT, f"{_HEADING}\n\n{''.join(lines)}\n{_NEXT}", 1)
