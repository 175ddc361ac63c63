"""RadVision-7B: fine-tune a vision-language model on chest radiographs. Research and education only.

The public interface, loaded when it is first used: importing the package imports no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from radvision_utils.cards import ReportBrowser, predict_beautiful
    from radvision_utils.config import Profile, RadVisionError, load_profile
    from radvision_utils.data.prepare import prepare_dataset
    from radvision_utils.data.reports import Report
    from radvision_utils.data.studies import PreparedDataset, Study
    from radvision_utils.evaluation.evaluate import evaluate
    from radvision_utils.evidence.explain import explain_report
    from radvision_utils.report import Reporter, load_reporter
    from radvision_utils.training.train import train_stage

__all__ = [
    "PreparedDataset",
    "Profile",
    "RadVisionError",
    "Report",
    "ReportBrowser",
    "Reporter",
    "Study",
    "evaluate",
    "explain_report",
    "load_profile",
    "load_reporter",
    "predict_beautiful",
    "prepare_dataset",
    "train_stage",
]

_HOMES = {
    "cards": ("ReportBrowser", "predict_beautiful"),
    "config": ("Profile", "RadVisionError", "load_profile"),
    "data.prepare": ("prepare_dataset",),
    "data.reports": ("Report",),
    "data.studies": ("PreparedDataset", "Study"),
    "evaluation.evaluate": ("evaluate",),
    "evidence.explain": ("explain_report",),
    "report": ("Reporter", "load_reporter"),
    "training.train": ("train_stage",),
}


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(f"radvision_utils.{home}"), name)
    raise AttributeError(f"module 'radvision_utils' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
