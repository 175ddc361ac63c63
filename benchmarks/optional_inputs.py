"""What the indication adds, on phantoms of hospital C, where the image cannot tell an opacity's kind: the same chain
twice, about 5 minutes each on two CPU cores.

Run it as `python -m benchmarks.optional_inputs`.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from radvision_utils import evaluate, load_profile, prepare_dataset, train_stage
from radvision_utils.config import STAGES, Profile, RadVisionError
from radvision_utils.data.studies import open_prepared
from radvision_utils.environment import quiet_libraries
from radvision_utils.evaluation.table import DRAWN
from radvision_utils.files import read_json_lines
from radvision_utils.phantoms.phantom_reports import read_findings, truth_findings
from radvision_utils.runs import RunFolder

KINDS = {"consolidation", "atelectasis"}
INPUTS: Mapping[str, dict[str, Any]] = {
    "the image": {},
    "and indication": {"model.indication": True},
}


def kinds_right(profile: Profile) -> tuple[int, int]:
    """Of the test studies with a drawn opacity whose report asserts one of either kind: right ones, and all."""
    truths = {study.uid: study.truth for study in open_prepared(profile).split("test")}
    right = told = 0
    for record in read_json_lines(RunFolder.of(profile).predictions):
        drawn = {name for name, _ in truth_findings(truths[record["uid"]] or "")} & KINDS
        report = record["generated"]
        said = {name for name, _ in read_findings(f"{report['findings']} {report['impression']}")} & KINDS
        if record["model"]["stage"] == max(STAGES) and drawn and len(said) == 1:
            right, told = right + (said == drawn), told + 1
    return right, told


def main() -> None:
    """Train, evaluate and print a row for each choice of inputs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--phantoms", type=int, default=1500)
    parser.add_argument("--only", choices=list(INPUTS), action="append", help="one of the rows")
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    quiet_libraries()
    for name in options.only or INPUTS:
        with tempfile.TemporaryDirectory() as folder:
            settings = {"data.hospital": "C", "data.phantoms": options.phantoms, **INPUTS[name]}
            profile = load_profile("tiny", settings, run="inputs", output_root=str(Path(folder)))
            prepare_dataset(profile)
            for stage in STAGES:
                train_stage(profile, stage)
            metrics = evaluate(profile).metrics
            figures = metrics["rows"]["after stage 3"]
            right, told = kinds_right(profile)
            print(f"{name}: studies wholly right {figures[DRAWN]['study_accuracy']['value']:.3f} of {metrics['n']}")
            print(f"  kind of opacity right {right} of {told}; {metrics['image_use']['sentence']}")
            if bare := metrics["image_use"].get("without the indication"):
                print(f"  asked without the indication: {bare['sentence']}", flush=True)


if __name__ == "__main__":
    try:
        main()
    except RadVisionError as error:
        sys.exit(f"radvision: {error}")
