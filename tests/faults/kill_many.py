"""Kill the chain at random points, give the same command again, and compare with a chain that nobody killed.

    python tests/faults/kill_many.py --kills 1000 --seed 7

The chain is small (preparation, three stages with dropout, evaluation, the page; pictures of the losses and figures are
blank), its code is the whole. The kills go
round its steps, by SIGKILL, SIGTERM or SIGINT. Two thirds come just before a random change to the run's files (so also
in the middle of a checkpoint or of a deletion), one third after a random time (so also while a library writes a file).
A step that goes on is often killed again. Every 25th chain goes on to its end, the others to the end of their step.
Each attempt is a process forked from this one, which has loaded the libraries, with random numbers of its own.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import torch
from matplotlib.figure import Figure

from radvision_utils import evaluate, load_profile, prepare_dataset, train_stage
from radvision_utils.cards import write_dashboard
from radvision_utils.content import checksum
from radvision_utils.files import read_json, read_json_lines
from radvision_utils.runs import STEPS, RunFolder
from radvision_utils.training.resume import last_checkpoint

CHAIN = (*STEPS, "dashboard")
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
SAVE_STEPS = 2
SETTINGS = {
    "data.phantoms": 10,
    "data.image_size": 112,
    "data.workers": 1,
    "evaluation.stages": "ends",
    "generation.batch_size": 2,
    "generation.max_new_tokens": 8,
    **{
        f"stage{n}.{key}": value
        for n in (1, 2, 3)
        for key, value in {
            "max_steps": 4,  # two an epoch: the second epoch is interrupted too
            "save_steps": SAVE_STEPS,
            "micro_batch": 2,
            "accumulation": 2,
            "lora_dropout": 0.1,
            "validation_studies": 2,
        }.items()
    },
}
CHANGES = ("os.rename", "os.remove", "os.rmdir", "os.mkdir")
CHECKPOINT, REMOVAL = "checkpoint", "removal"
TIMES = ("seconds", "seconds_per_report", "tokens_per_second", "finished", "versions")


def work(root: Path, steps: tuple[str, ...]) -> None:
    """What is killed: steps of a run, in this process."""
    Figure.savefig = lambda _, path, **__: Path(path).write_text('<svg xmlns="http://www.w3.org/2000/svg"/>')
    os.environ["PATH"] = ""  # no Java is found: METEOR takes half a minute and writes nothing on the way
    profile = load_profile("tiny", SETTINGS, run="r", output_root=str(root), seed=3)
    for step in steps:
        if step == "data":
            prepare_dataset(profile)
        elif step == "evaluation":
            evaluate(profile)
        elif step == "dashboard":
            write_dashboard("r", str(root))
        else:
            train_stage(profile, int(step[-1]))


class Changes:
    """Counts changes to a run's files as they are about to happen; kills the process before number `fatal`."""

    def __init__(self) -> None:
        self.begin("/nowhere")
        sys.addaudithook(self.hook)

    def begin(self, root: Path | str, fatal: int | None = None, by: int = signal.SIGKILL) -> None:
        self.root, self.fatal, self.by = str(root), fatal, by
        self.places: list[str] = []

    def hook(self, event: str, values: tuple) -> None:
        if event == "open":
            path, _, flags = values
            if not isinstance(path, str) or not (isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR)):
                return
        elif event in CHANGES:
            path = str(values[0])
        else:
            return
        relative = values[-1] != -1 and event in ("os.remove", "os.rmdir")  # shutil.rmtree names files in a folder
        if not relative and self.root not in str(path):
            return
        self.places.append(REMOVAL if relative else place(str(path), self.root))
        if len(self.places) - 1 == self.fatal:
            os.kill(os.getpid(), self.by)


CHANGED = Changes()


def place(path: str, root: str) -> str:
    """In which part of the chain a file lies."""
    if "/checkpoints/" in path:
        return CHECKPOINT
    step = path.removeprefix(root).strip("/").split("/")[0].removesuffix(".partial")
    return step if step in CHAIN else "run"


def in_child(
    root: Path, steps: tuple[str, ...], by: int = signal.SIGKILL, fatal: int | None = None, after: float | None = None
) -> int:
    """Do the steps in a forked process; its exit status, where a signal ended it the negative of that."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    status = 1
    try:
        with (root / "out.txt").open("a") as out:
            os.dup2(out.fileno(), 1)
            os.dup2(out.fileno(), 2)
        signal.signal(signal.SIGINT, signal.default_int_handler)  # who starts us in the background ignores it
        torch.seed(), random.seed(), np.random.seed()  # the fork's would be the same in every attempt
        CHANGED.begin(root / "r", fatal, by)
        if after is not None:
            timer = threading.Timer(after, os.kill, (os.getpid(), by))
            timer.daemon = True
            timer.start()
        work(root, steps)
        status = 0
    except KeyboardInterrupt:
        status = -signal.SIGINT
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status) if status >= 0 else _end_by(-status)
    return status


def _end_by(number: int) -> None:
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


def outcome(root: Path, step: str) -> dict:
    """All of a step that must not depend on interruptions."""
    run = RunFolder("r", root)
    if step == "dashboard":
        page = (run.dashboard / "index.html").read_text(encoding="utf-8")
        return {"files": os.listdir(run.dashboard), "page": re.sub(r"[\d.]+ s\b", "", page)}
    # A lock that a killed process left stays until another step takes it over.
    found: dict = {"files": sorted(p.name for p in run.path.iterdir() if p.name != "lock.json")}
    found["files"] += sorted(p.name for p in (run.path / step).iterdir() if not p.name.startswith("."))
    found["noted"] = sorted(read_json(run.path / "run.json")["steps"])
    if step == "data":
        found["data"] = [read_json(run.data / "summary.json")["hash"], read_json(run.data / "split.json")]
    elif step == "evaluation":
        found["predictions"] = [without_times(line) for line in read_json_lines(run.predictions)]
        found["metrics"] = without_times(read_json(run.evaluation / "metrics.json"))
    else:
        record, folder = run.record(step), run.path / step
        found["weights"] = checksum(folder / "adapter" / "adapter_model.safetensors")
        found["losses"] = [record["validation_loss"], record["train_loss"], record["ledger"]["after"]]
        found["log"] = [without_times(line) for line in read_json_lines(folder / "log.jsonl")]
    return found


def without_times(value):
    """A record without what the clock says."""
    if isinstance(value, dict):
        return {key: without_times(item) for key, item in value.items() if key not in TIMES}
    return [without_times(item) for item in value] if isinstance(value, list) else value


def repeated_steps(root: Path) -> int:
    """Optimizer steps that were made and will be made again."""
    most = 0
    for partial in (root / "r").glob("stage*.partial"):
        log = partial / "log.jsonl"
        steps = [line["step"] for line in read_json_lines(log, torn=True)] if log.is_file() else []
        checkpoint = last_checkpoint(partial / "checkpoints")
        kept = int(checkpoint.name.partition("-")[2]) if checkpoint else 0
        most = max(most, max(steps, default=0) - kept)
    return most


class Reference:
    """A chain that nobody kills, step by step: what it changes, how long it takes, and what comes out."""

    def __init__(self, folder: Path) -> None:
        self.before, root = folder / "before", folder / "whole"
        root.mkdir()
        self.places: dict[str, list[str]] = {}
        self.seconds: dict[str, float] = {}
        self.expected: dict[str, dict] = {}
        for step in CHAIN:
            shutil.copytree(root, self.before / step)
            CHANGED.begin(root / "r")
            work(root, (step,))  # in this process, so that all forked from it have loaded everything
            self.places[step], self.expected[step] = CHANGED.places, outcome(root, step)
            started = time.monotonic()
            shutil.copytree(self.before / step, folder / f"again-{step}")
            if in_child(folder / f"again-{step}", (step,)):
                raise SystemExit((folder / f"again-{step}" / "out.txt").read_text())
            self.seconds[step] = time.monotonic() - started
        gc.freeze()


def kill_many(kills: int, seed: int, folder: Path) -> dict:
    """Kill `kills` times; what came of it."""
    torch.set_num_threads(1)
    rng, started = random.Random(seed), time.monotonic()
    reference = Reference(folder)
    result: dict = {
        "kills": 0,
        "by": Counter(),
        "where": Counter(),
        "whole_chains": 0,
        "repeated_steps": 0,
        "failed": [],
    }
    trial = 0
    while result["kills"] < kills:
        step = CHAIN[trial % len(CHAIN)]
        # Some go on to the end of the chain, the others to the end of the step, with what it started from.
        steps = CHAIN[CHAIN.index(step) :] if trial % 25 == 0 else (step,)
        root = folder / f"trial{trial}"
        shutil.copytree(reference.before / step, root)
        attempts = [_choose(rng, reference, step)]
        while rng.random() < 0.75:
            most = max(len(reference.places[step]) // 2, 1)
            attempts.append({"fatal": rng.randrange(most), "by": rng.choice(SIGNALS)})
        for number, how in enumerate([*attempts, {}]):
            status = in_child(root, steps, **how)
            if status < 0:
                result["kills"] += 1
                part = reference.places[step][how["fatal"]] if "fatal" in how else "any time"
                result["where"][f"{step}: {part if number == 0 else 'again'}"] += 1
                result["by"][signal.Signals(-status).name] += 1
                result["repeated_steps"] = max(result["repeated_steps"], repeated_steps(root))
            elif status:
                break
        what = f"trial {trial} {'+'.join(steps)} {attempts}"
        if status:
            result["failed"].append(f"{what}: {(root / 'out.txt').read_text()[-2000:]}")
        else:
            result["failed"] += _differences(root, steps, reference, what)
            result["whole_chains"] += len(steps) > 1
        shutil.rmtree(root)
        trial += 1
        print(f"{result['kills']} of {kills} kills, {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
    result["where"] = dict(sorted(result["where"].items()))
    result["seconds"] = round(time.monotonic() - started)
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    result["processor_seconds"] = round(sum(each.ru_utime + each.ru_stime for each in used))
    return result


def _choose(rng: random.Random, reference: Reference, step: str) -> dict:
    by = rng.choice(SIGNALS)
    if rng.random() < 1 / 3:
        return {"after": rng.uniform(0.02, 0.98) * reference.seconds[step], "by": by}
    places = reference.places[step]
    part = rng.choice(sorted(set(places)))  # a log has more lines than a record has writes: each part alike
    return {"fatal": rng.choice([number for number, where in enumerate(places) if where == part]), "by": by}


def _differences(root: Path, steps: tuple[str, ...], reference: Reference, what: str) -> list[str]:
    found = []
    for step in steps:
        got, expected = outcome(root, step), reference.expected[step]
        if len(steps) > 1 and step != "dashboard":  # later steps added theirs
            got |= {key: expected[key] for key in ("files", "noted")}
        found += [f"{what}: {step} {key} differ" for key in expected if got[key] != expected[key]]
    return found


def main() -> int:
    """Print what came of it; 0 if every chain ended alike."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--keep", type=Path, default=None, help="leave the folders there")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp()) if options.keep is None else options.keep
    folder.mkdir(exist_ok=True)
    try:
        result = kill_many(options.kills, options.seed, folder)
    finally:
        if options.keep is None:
            shutil.rmtree(folder, ignore_errors=True)
    print(json.dumps(result, indent=2))
    good = not result["failed"] and result["repeated_steps"] <= SAVE_STEPS
    print(
        "every chain ended with the same data, weights, predictions, metrics and page"
        if good
        else "NOT all ended alike"
    )
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
