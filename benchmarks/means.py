"""What each of the means of profile `tiny-real` brings on real radiographs, and how much lies in the seed.

    python -m benchmarks.means --source FOLDER

Every mean is left out by itself, and the stages of the whole are trained with three seeds on one base. All is judged on
the validation split, so that the test split stays unseen. A tiny model gains nothing from a second core, so there is a
run on each: it takes some two hours on two; given again, it goes on where it was.
"""

from __future__ import annotations

import argparse
import logging
import shutil
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from itertools import repeat
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from radvision_utils.bases.build import base_for_source
from radvision_utils.config import DISCLAIMER, STAGE_LABELS, STAGES, Profile, load_profile
from radvision_utils.data.prepare import prepare_dataset
from radvision_utils.environment import quiet_libraries
from radvision_utils.evaluation.baselines import BEST_FINDINGS, COMMONEST_FINDING, NEAREST
from radvision_utils.evaluation.bootstrap import figure_text
from radvision_utils.evaluation.evaluate import evaluate
from radvision_utils.figures import markdown_table
from radvision_utils.runs import RunFolder, is_current
from radvision_utils.training.train import train_stage

WHOLE, SEEDS = "all means", (23, 24, 25)
_WRITTEN: dict[str, Any] = {"generation.findings": "written"}
# In stage 1 the report loss costs five times as much as labels alone: as many minutes, so fewer epochs.
LEFT_OUT: dict[str, dict[str, Any]] = {
    "labels in stage 1": {"stage1.label_weight": 0.0, "stage1.epochs": 5.0},
    "full training of the vision encoder (LoRA)": {"stage1.train": "lora"},
    "augmentation": {"data.augment": False},
    "more abnormal studies": {"data.abnormal_share": None},
    "the line of findings": {"model.summary": False, **_WRITTEN},
    "thresholds (the line as written)": _WRITTEN,
    "thresholds, with contrast 0.3 in their place": {**_WRITTEN, "generation.contrast": 0.3},
    "the base that learned the source's English": {"model.base": "tiny"},
}
HEADS = ("", "abnormal F1", "over the commonest finding", "image used", "loss gap", "distinct reports", "ROUGE-L")


def main() -> None:
    """Train and judge all of it, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", required=True, help="Open-I: a folder or a parquet file")
    parser.add_argument("--output-root", default="outputs/means", help="folder of the runs")
    options = parser.parse_args()
    _begin()
    root = str(Path(options.output_root).absolute())
    whole = load_profile("tiny-real", run="seed-23", source=options.source, output_root=root)
    base = base_for_source(whole, RunFolder.of(whole).path / "base")
    whole = replace(whole, model=replace(whole.model, base=str(base)))
    metrics = judged(whole)
    lines = [_blind(metrics, row) for row in (COMMONEST_FINDING, BEST_FINDINGS, NEAREST)] + [_line(WHOLE, metrics)]
    others = {f"{WHOLE}, seed {seed}": replace(whole, run=f"seed-{seed}", seed=seed) for seed in SEEDS[1:]}
    for number, (what, changes) in enumerate(LEFT_OUT.items()):
        others[f"without {what}"] = load_profile(
            "tiny-real",
            {"model.base": whole.model.base, **changes},
            run=f"without-{number}",
            source=options.source,
            output_root=root,
        )
    with ProcessPoolExecutor(mp_context=get_context("spawn"), initializer=_begin) as pool:
        lines += map(_line, others, pool.map(judged, others.values(), repeat(whole)))
    print(f"\nvalidation split, {metrics['n']} studies\n\n{markdown_table(HEADS, lines)}\n{DISCLAIMER}")


def _begin() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    quiet_libraries()
    torch.set_num_threads(1)


def judged(profile: Profile, like: Profile | None = None) -> dict[str, Any]:
    """`metrics.json` of the profile on validation; what another run has done with the same settings is taken over."""
    run = RunFolder.of(profile)
    if like is not None and not run.path.exists():
        shutil.copytree(RunFolder.of(like).path, run.path, ignore=shutil.ignore_patterns("base", "evaluation"))
    profile = replace(profile, evaluation=replace(profile.evaluation, stages="ends"))
    prepare_dataset(profile)
    for stage in STAGES:
        train_stage(profile, stage, force=not is_current(profile, f"stage{stage}"))
    return evaluate(profile, split="validation").metrics


def _line(name: str, metrics: Mapping[str, Any]) -> list[str]:
    last, use = STAGE_LABELS[STAGES[-1]], metrics["image_use"]
    over = metrics["differences"][last][COMMONEST_FINDING]["abnormal_f1"]
    told = figure_text(over), use["verdict"], figure_text(use["loss_gap"][last])
    return _blind(metrics, last, name, told)


def _blind(metrics: Mapping[str, Any], row: str, name: str = "", told: Sequence[str] = ("", "", "")) -> list[str]:
    [found] = [line for line in metrics["table"] if line["row"] == row]
    return [
        name or row,
        f"{found['abnormal_f1']:.3f}",
        *told,
        str(found["distinct_reports"]),
        f"{found['rouge_l']:.3f}",
    ]


if __name__ == "__main__":
    main()
