"""Try what no test can, and print figures: full disks, a dead kernel, 10,000 images, 100,000 reports, odd names.

    python tests/faults/try_many.py [disk inodes hangup kernel lock paths columns rows images]

Each trial prints a line; a fault ends it with what came out instead. Most of the time goes into `rows` and `images`,
whose numbers `--rows 100000` and `--images 10000` set. Disks of a few megabytes need the right to mount.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from kill_many import CHAIN, SETTINGS, Reference, in_child, outcome
from PIL import Image

from radvision_utils.config import project_root

ROOM = "size=1g,nr_inodes=100k"
COMMAND = [sys.executable, "-m", "radvision_utils"]
TOLD = re.compile(r"RadVisionError: .*(could not be written to its end|cannot be worked in|are free: make room)")
# A sentence of 20 words, as varied as those of real reports.
WORDS = (
    "the lungs are clear heart size normal small left pleural effusion without pneumothorax right base opacity nodule"
)


def mounted(place: Path, options: str, again: bool = False) -> bool:
    """A disk in memory with these options, by the system call: not every machine has the program."""
    remount = 32 if again else 0
    return not ctypes.CDLL(None).mount(b"tmpfs", bytes(place), b"tmpfs", remount, options.encode())


def full(reference: Reference, folder: Path, option: str, step_size: int) -> str:
    """Each step on a disk that is full a little later each time, then with room: it must end as on any other disk."""
    told, tries, place = 0, 0, folder / "disk"
    place.mkdir()
    if not mounted(place, "size=1g"):
        return "skipped: mounting is not allowed here"
    try:
        for step in CHAIN:
            room, status = 0, 1
            while status:
                shutil.rmtree(place / "t", ignore_errors=True)
                check(mounted(place, ROOM, again=True), "a disk with room")
                shutil.copytree(reference.before / step, place / "t", ignore=shutil.ignore_patterns("out.txt"))
                log = folder / "out.txt"  # it has room
                log.write_text("")
                (place / "t" / "out.txt").symlink_to(log)
                used = os.statvfs(place)
                bytes_used = (used.f_blocks - used.f_bfree) * used.f_frsize
                limit = max(bytes_used + room, 4096) if option == "size" else used.f_files - used.f_ffree + room
                check(mounted(place, f"{option}={limit}", again=True), "a small disk")
                status = in_child(place / "t", (step,))
                tries, room = tries + 1, room + step_size
                if status:
                    check(mounted(place, ROOM, again=True), "a disk with room")
                    check(bool(TOLD.search(log.read_text(errors="replace"))), f"{step}: {log.read_text()[-1500:]}")
                    told += 1
                    status = in_child(place / "t", (step,)) or 1
                    check(outcome(place / "t", step) == reference.expected[step], f"{step} after a full disk")
    finally:
        ctypes.CDLL(None).umount(bytes(place))
    return f"{told} of {tries} attempts were told in one sentence, and all ended alike with room"


def hangup(reference: Reference, folder: Path) -> str:
    """SIGHUP, as a closed terminal sends it, at ten moments of training."""
    for number in range(10):
        root = folder / f"hangup{number}"
        shutil.copytree(reference.before / "stage1", root)
        fatal = {"fatal": number * len(reference.places["stage1"]) // 10}
        check(in_child(root, ("stage1",), by=signal.SIGHUP, **fatal) == -signal.SIGHUP, "it ends")
        check(in_child(root, ("stage1",)) == 0 and outcome(root, "stage1") == reference.expected["stage1"], "the same")
    return "10 of 10 go on to the same weights"


def kernel(reference: Reference, folder: Path) -> str:
    """Kill the kernel of the first notebook as it works; the same command goes on."""
    settings = [f"--set={key}={value}" for key, value in SETTINGS.items()]
    command = [*COMMAND, "run", "--run", "k", "--output-root", str(folder), *settings]
    environment = os.environ | {"PYTHONPATH": str(project_root())}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment) as run:
        while not (folder / "k" / "stage1.partial").is_dir():
            check(run.poll() is None, "it runs")
            time.sleep(0.2)
        children = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
        os.kill(int(children[-1]), signal.SIGKILL)
        said = run.communicate()[1].strip().splitlines()[-1]
    check(run.returncode == 1 and said.startswith("radvision: the kernel of notebook 02"), said)
    again = subprocess.run(command, capture_output=True, text=True, env=environment)
    check(again.returncode == 0, again.stderr[-1000:])
    return f'"{said[:90]}...", then status 0'


def lock(reference: Reference, folder: Path) -> str:
    """The lock where the file system has none, held and left by others: see test_locks.py."""
    test = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        str(Path(__file__).with_name("test_locks.py")),
    ]
    said = subprocess.run([*test, "--disable-warnings"], capture_output=True, text=True, cwd=project_root()).stdout
    return said.strip().splitlines()[-1]


def paths(reference: Reference, folder: Path) -> str:
    """Output folders with odd names."""
    names = ["with blanks", 'it\'s "quoted"', "日本 é", "n" * 200, "$HOME; touch x", "-dash", "a\tb", "%s {0} [1] *"]
    for name in names:
        shutil.copytree(reference.before / "data", folder / name)
        check(in_child(folder / name, CHAIN) == 0, f"{name}: {(folder / name / 'out.txt').read_text()[-1000:]}")
        for step in CHAIN[:-1]:
            found = outcome(folder / name, step)
            same = {key for key in found if key not in ("files", "noted")}
            check(all(found[key] == reference.expected[step][key] for key in same), f"{name}: {step}")
    return f"{len(names)} of {len(names)} give the same data, weights and reports"


def columns(reference: Reference, folder: Path) -> str:
    """A table of a million columns, as `score` and as a source read it."""
    table = folder / "indiana_reports.csv"
    table.write_text(",".join(f"c{n}" for n in range(1_000_000)) + "\n" + "," * 999_999 + "\n")
    (folder / "indiana_projections.csv").write_text("uid,filename,projection\n")
    parts = []
    for command in ([*COMMAND, "score", str(table)], [*COMMAND, "run", f"--source={folder}", "--run=c"]):
        started = time.monotonic()
        done = subprocess.run([*command, f"--output-root={folder}"], capture_output=True, text=True)
        said = done.stderr.strip().splitlines()[-1]
        check(done.returncode == 1 and said.startswith("radvision: ") and "1,000,000 columns" in said, said[:2000])
        parts.append(f"{time.monotonic() - started:.1f} s")
    return f"one sentence each: score {parts[0]}, source {parts[1]}"


def rows(reference: Reference, folder: Path, count: int = 100_000) -> str:
    """Score a table of so many different reports."""
    rng, table, words = random.Random(1), folder / "rows.csv", WORDS.split()

    def report() -> str:
        said = " ".join(" ".join(rng.choices(words, k=rng.randint(4, 9))).capitalize() + "." for _ in range(6))
        return f"Findings: {said} Impression: No acute disease."

    with table.open("w") as file:
        file.write("uid,prediction,reference\n")
        file.writelines(f"{n},{report()},{report()}\n" for n in range(count))
    return measured([*COMMAND, "score", str(table)], f"{count:,} rows of different reports", 2.0)


def images(reference: Reference, folder: Path, count: int = 10_000) -> str:
    """Report on so many images of one's own in one call."""
    root, own = folder / "images", folder / "own"
    shutil.copytree(reference.before / "evaluation", root)
    own.mkdir()
    for number in range(count):
        rng = random.Random(number)
        Image.frombytes("L", (64, 64), rng.randbytes(64 * 64)).save(own / f"{number:05}.png")
    command = [*COMMAND, "predict", str(own), "--run=r", f"--output-root={root}", f"--to={folder / 'to'}"]
    return measured(command, f"{count:,} images", 4.0)


def measured(command: list[str], what: str, most: float) -> str:
    """A command's seconds, memory and open files."""
    started, files, peak = time.monotonic(), 0, 0
    environment = os.environ | {"PYTHONPATH": str(project_root()), "PATH": ""}
    with (
        tempfile.TemporaryFile("w+") as out,
        subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=environment) as run,
    ):
        pid = 0
        while not pid:
            if (seen := Path(f"/proc/{run.pid}")).is_dir():
                files = max(files, len(list((seen / "fd").iterdir())))
                # Of the program alone: getrusage begins with the memory of the process that started it.
                peak = max(peak, *map(int, re.findall(r"VmHWM:\s+(\d+)", (seen / "status").read_text())), 0)
            time.sleep(0.5)
            pid, status, used = os.wait4(run.pid, os.WNOHANG)
        run.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        check(run.returncode == 0, out.read()[-2000:])
    gib, worked = peak / 2**20, used.ru_utime + used.ru_stime
    check(gib < most, f"{gib:.1f} GiB")
    took = f"{time.monotonic() - started:.0f} s, {worked:.0f} s of a processor"
    return f"{what}: {took}, peak {gib:.2f} GiB, {files} files open at most"


def check(good: bool, what: str) -> None:
    if not good:
        raise SystemExit(f"NOT as it should be: {what}")


TRIALS: dict[str, Callable[..., str]] = {
    "disk": lambda *a: full(*a, "size", 100_000),
    "inodes": lambda *a: full(*a, "nr_inodes", 3),
    **{each.__name__: each for each in (hangup, kernel, lock, paths, columns, rows, images)},
}


def main() -> int:
    """Run the trials that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trials", nargs="*", choices=[[], *TRIALS], default=[])
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--images", type=int, default=10_000)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        reference = Reference(Path(name))
        for trial in options.trials or TRIALS:
            folder = Path(name) / trial
            folder.mkdir()
            count = [vars(options)[trial]] if trial in ("rows", "images") else []
            print(f"{trial}: {TRIALS[trial](reference, folder, *count)}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
