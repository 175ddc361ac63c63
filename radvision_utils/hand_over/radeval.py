"""Clinical scores by other people's models: reports are handed to `radeval` 2.x in an environment of its own.

RadEval (Xu et al., EMNLP 2025 demos; MIT) bundles CheXbert, RadGraph, RadCliQ and RaTEScore, and needs versions of the
libraries that this project is not tested with. So it is never imported here: a file is written, it reads it there and
writes its answer. It downloads its models from the hub when it first runs.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from radvision_utils.config import RadVisionError, project_root
from radvision_utils.data.reports import Report
from radvision_utils.files import read_json, write_json

METRICS = ("f1chexbert", "radgraph", "radcliq", "ratescore")
# What the field reports -> its key in RadEval's answer.
FIGURES = {
    "CheXbert F1-14, micro": "f1chexbert_all_micro_f1",
    "CheXbert F1-14, macro": "f1chexbert_all_macro_f1",
    "CheXbert F1-5, micro": "f1chexbert_5_micro_f1",
    "CheXbert F1-5, macro": "f1chexbert_5_macro_f1",
    "RadGraph F1 (partial)": "radgraph_partial",
    "RadCliQ-v1 (lower is better)": "radcliq_v1",
    "RaTEScore": "ratescore",
}
# Release 2.2.1 calls its own folder RadEval in places, which a file system that knows capitals does not have.
PROGRAM = """
import json, sys
import radeval
sys.modules["RadEval"] = radeval
with open(sys.argv[1], encoding="utf-8") as file:
    task = json.load(file)
scores = radeval.RadEval(metrics=task["metrics"], show_progress=False)(refs=task["refs"], hyps=task["hyps"])
with open(sys.argv[2], "w", encoding="utf-8") as file:
    json.dump({name: float(value) for name, value in scores.items()}, file)
"""


def environment() -> Path:
    """The Python that has `radeval`.

    Raises:
        RadVisionError: it is not there; the sentence says how to make it.
    """
    folder = project_root() / ".venv-radeval"
    if not (python := folder / "bin" / "python").exists():
        raise RadVisionError(
            f"radeval has no environment at {folder}: make it by Python 3.11 or newer with `python -m venv "
            f"{folder}` and `{python} -m pip install 'radeval>=2.2,<3'`."
        )
    return python


def radeval_scores(generated: Sequence[Report], references: Sequence[Report]) -> dict[str, float]:
    """The figures of `FIGURES` for reports against references, findings and impression as one text.

    Args:
        generated: reports to score.
        references: in the same order.

    Raises:
        RadVisionError: there is no such environment, or RadEval failed; the sentence has its last line.
    """
    python = environment()
    texts = [[f"{report.findings} {report.impression}".strip() for report in some] for some in (references, generated)]
    with tempfile.TemporaryDirectory(prefix="radvision-radeval-") as scratch:
        task, answer = Path(scratch, "task.json"), Path(scratch, "answer.json")
        write_json(task, {"metrics": METRICS, "refs": texts[0], "hyps": texts[1]})
        command = [str(python), "-c", PROGRAM, str(task), str(answer)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=scratch, check=False)
        if done.returncode or not answer.is_file():
            last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
            raise RadVisionError(f"radeval failed in {python} ({last}): run `{python} -c 'import radeval'` to see why.")
        scores = read_json(answer, remedy="score again")
    if missing := [key for key in FIGURES.values() if key not in scores]:
        raise RadVisionError(
            f"radeval did not give {', '.join(missing)}: install radeval 2.2 in {python.parent.parent}."
        )
    return {name: round(scores[key], 4) for name, key in FIGURES.items()}
