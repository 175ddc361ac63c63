"""Optional model-based metrics of other groups: RadGraph, CheXbert, RaTEScore, GREEN.

Nothing of them is imported unless asked for. They download their models and pin older versions of transformers: where
one does not run beside this project, score `predictions.jsonl` in an environment of its own, which needs no torch of
ours. Written from the packages' own code and documentation (radgraph 0.1.18, f1chexbert 0.0.2, RaTEScore 0.6.0,
green_score), not run by our tests, which have no network.
"""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from radvision_utils.config import RadVisionError
from radvision_utils.data.reports import Report
from radvision_utils.evaluation.bootstrap import Bootstrap

CLINICAL = "clinical models, findings + impression"
HEADING = "## Clinical models"


class ClinicalModel(NamedTuple):
    """A metric: its name in `metrics.json`, the module it needs, what installs it, and how it scores each study."""

    metric: str
    module: str
    package: str
    score: Callable[[list[str], list[str]], Sequence[float]]


def _radgraph(generated: list[str], references: list[str]) -> Sequence[float]:
    from radgraph import F1RadGraph

    scorer = F1RadGraph(reward_level="partial", model_type="radgraph-xl")
    each: Sequence[float] = scorer(hyps=generated, refs=references)[1]
    return each


def _chexbert(generated: list[str], references: list[str]) -> Sequence[float]:
    """F1 of each study over the 14 observations, uncertain positive; 1.0 where neither text asserts any."""
    from f1chexbert import F1CheXbert

    scorer = F1CheXbert()
    said, true = (np.array([scorer.get_label(text) for text in texts]) for texts in (generated, references))
    total = said.sum(1) + true.sum(1)
    each: Sequence[float] = np.where(total > 0, 2 * (said & true).sum(1) / np.maximum(total, 1), 1.0).tolist()
    return each


def _ratescore(generated: list[str], references: list[str]) -> Sequence[float]:
    from RaTEScore import RaTEScore

    each: Sequence[float] = RaTEScore().compute_score(generated, references)
    return each


def _green(generated: list[str], references: list[str]) -> Sequence[float]:
    from green_score import GREEN

    with tempfile.TemporaryDirectory() as folder:
        scorer = GREEN("StanfordAIMI/GREEN-radllama2-7b", output_dir=folder)
        each: Sequence[float] = scorer(references, generated)[2]
    return each


MODELS = (
    ClinicalModel("radgraph_xl_f1", "radgraph", "radgraph", _radgraph),
    ClinicalModel("chexbert_study_f1", "f1chexbert", "f1chexbert", _chexbert),
    ClinicalModel("ratescore", "RaTEScore", "RaTEScore", _ratescore),
    ClinicalModel("green", "green_score", "green_score", _green),
)


def add_clinical_scores(
    rows: Mapping[str, dict[str, Any]],
    reports: Mapping[str, Sequence[Report]],
    references: Sequence[Report],
    seed: int,
) -> str:
    """Puts the mean over studies of every metric whose package is installed into rows of `metrics.json`, in place.

    Args:
        rows: all rows; those that `reports` names get figures, or a note of what they need.

    Returns:
        The section for people, with one line that says what to install.

    Raises:
        RadVisionError: an installed package failed.
    """
    bootstrap = Bootstrap(len(references), seed)
    present = [model for model in MODELS if importlib.util.find_spec(model.module) is not None]
    missing = [model for model in MODELS if model not in present]
    lines = []
    for name, generated in reports.items():
        scores = {model.metric: bootstrap.mean(_scored(model, generated, references)).to_json() for model in present}
        notes = {model.metric: {"value": None, "note": f"n/a (needs {model.package})"} for model in missing}
        rows[name][CLINICAL] = {**scores, **notes}
        figures = [f"{m} {f['value']:.3f} ({f['low']:.3f} to {f['high']:.3f})" for m, f in scores.items()]
        lines += [f"- {name}: {', '.join(figures)}"] if figures else []
    if missing:
        lines.append(f"Not installed: `pip install {' '.join(model.package for model in missing)}` adds the others.")
    return f"{HEADING}\n\n" + "\n".join(lines) + "\n"


def _scored(model: ClinicalModel, generated: Sequence[Report], references: Sequence[Report]) -> NDArray[np.float64]:
    ours, true = ([f"{r.findings} {r.impression}".strip() for r in reports] for reports in (generated, references))
    try:
        return np.array(model.score(ours, true), np.float64)
    except Exception as error:  # their code, their models, their downloads: anything can come
        cause = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise RadVisionError(
            f"{model.package} is installed but failed ({cause}): score predictions.jsonl in an environment of its own, "
            "with `python -m radvision_utils score predictions.jsonl --clinical-models`."
        ) from error
