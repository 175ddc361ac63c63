"""The benchmark's tables as Markdown, and what they were measured on."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from benchmarks import shares
from benchmarks.breakdown import KINDS
from benchmarks.contenders import ONE_AT_A_TIME, OURS, PEERS, PLAIN, PLANNED, TRAINER, TRL
from benchmarks.generation import Generation
from benchmarks.mini import BATCH
from benchmarks.preparation import Preparation
from benchmarks.race import Account
from benchmarks.training import StageRace, planned_for_t4
from radvision_utils.config import STAGES, Profile
from radvision_utils.data.storing import cores
from radvision_utils.environment import choose_device, versions
from radvision_utils.figures import markdown_table

Row = Mapping[str, str]
TARGETS = {PLAIN: 2.5, TRAINER: 1.5, TRL: 2.0}  # samples/s in stages 2 and 3
TARGET_GENERATION, TARGET_PREPARATION = 6.0, 1.7
EPOCHS_ON_FEATURES = 3  # of lingshu-7b: one of stage 2 and two of stage 3 read the same features


def table(rows: Sequence[Row]) -> str:
    """Rows as a Markdown table; the columns are those of all rows, in the order of their first appearance."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    return markdown_table(names, [[row.get(name, "") for name in names] for row in rows])


def machine(command: str) -> str:
    """Processor, cores, card, versions, date and command; no name of a host."""
    found = versions() | {"trl": _version("trl")}
    libraries = ", ".join(f"{name} {number}" for name, number in found.items())
    date = datetime.now(timezone.utc).strftime("%Y-%m-%d")
    device = choose_device()
    card = f", {device.title}" if device.kind == "cuda" else ""
    return f"{_processor()}, {cores()} cores{card}; {date}; `{command}`. {libraries}.\n"


def proportions(name: str, profile: Profile) -> str:
    """A small model beside the 7B."""
    rows = []
    for what, function in (("compute", shares.compute_shares), ("activation memory", shares.memory_shares)):
        for model, whose in ((name, profile), ("7B", shares.seven_b())):
            parts = {part: f"{share:.0%}" for part, share in function(whose).items()}
            rows.append({"share of": what, "model": model, **parts})
    return table(rows)


def vision_share(profile: Profile) -> str:
    """How much of a step the vision encoder takes, of `mini` and of the 7B."""
    ours, theirs = (f"{shares.vision_share_of_operations(model):.0%}" for model in (profile, shares.seven_b()))
    return (
        f"In a step of stage 1, as the plain loop takes it, the vision encoder has {theirs} of the 7B's "
        f"operations and {ours} of `mini`'s, which take {shares.vision_share_of_seconds(profile):.0%} of its seconds.\n"
    )


def training(race: StageRace) -> str:
    """A line for each of our ways against each peer."""
    ways = [name for name in race.accounts if name not in PEERS]
    rows = []
    for way in ways:
        for peer in PEERS:
            spread = race.ratio(way, peer)
            row = {
                "stage": str(race.stage),
                "ours": way,
                "against": peer,
                "times as fast, steps": str(spread),
                "ours, studies/s": f"{race.samples_per_second(way):.2f}",
                "theirs": f"{race.samples_per_second(peer):.2f}",
            }
            if race.stage > 1:
                row["with features, 3 epochs"] = f"{race.ratio(way, peer, EPOCHS_ON_FEATURES).median:.2f}"
                row["target"] = _verdict(spread.median, TARGETS[peer])
            mine, other = race.accounts[way].peak_gib, race.accounts[peer].peak_gib
            row["peak GiB, ours and theirs"] = f"{mine:.2f}, {other:.2f}"
            rows.append(row)
    return table(rows)


def same_work(races: Sequence[StageRace]) -> str:
    """What every contender trained on and where it ended."""
    return table(
        [
            {
                "stage": str(race.stage),
                "contender": name,
                "studies": str(account.samples),
                "report tokens": str(account.tokens),
                "mean training loss": f"{sum(account.losses) / len(account.losses):.4f}",
                "held-out loss": f"{account.held_out:.4f}",
            }
            for race in races
            for name, account in race.accounts.items()
        ]
    )


def breakdown(races: Sequence[StageRace], profile: Profile) -> str:
    """Where the seconds of a step of stages 2 and 3 go: the loop's and ours, and the ratio by each kind alone."""
    rows: list[Row] = []
    for race in races[1:]:
        layers = planned_for_t4(profile, race.stage)["checkpointed_layers"]
        operations = {
            PLAIN: shares.tflop(profile, race.stage, ours=False),
            PLANNED: shares.tflop(profile, race.stage, ours=True, layers=layers),
        }
        seconds = {name: race.accounts[name].breakdown for name in operations}
        whole = {name: sum(kinds.values()) for name, kinds in seconds.items()}
        for name, kinds in seconds.items():
            cells = {kind: f"{value / BATCH:.2f}" for kind, value in kinds.items()}
            row = {"stage": str(race.stage), "contender": name, "seconds a study": f"{whole[name] / BATCH:.2f}"}
            rows.append(row | cells | {"TFLOP by arithmetic": f"{operations[name]:.3f}"})
        ratios = {kind: f"{seconds[PLAIN][kind] / seconds[PLANNED][kind]:.2f}" for kind in KINDS}
        row = {"stage": str(race.stage), "contender": "loop / ours"}
        row["seconds a study"] = f"{whole[PLAIN] / whole[PLANNED]:.2f}"
        rows.append(row | ratios | {"TFLOP by arithmetic": f"{operations[PLAIN] / operations[PLANNED]:.2f}"})
    return table(rows)


def arithmetic() -> str:
    """What the 7B would gain, stage by stage, by operations and by the planner's seconds on a T4."""
    rows = []
    whose = shares.seven_b()
    for stage in STAGES:
        planned = planned_for_t4(whose, stage)
        ways = {
            PLAIN: shares.Way(ours=False, micro_batch=1),
            TRAINER: shares.Way(ours=False, micro_batch=BATCH),
            OURS: shares.Way(ours=True, micro_batch=BATCH),
            ONE_AT_A_TIME: shares.Way(ours=True, micro_batch=1),
            PLANNED: shares.Way(True, planned["micro_batch"], planned["checkpointed_layers"]),
        }
        seconds = {name: shares.t4_seconds(whose, stage, way) for name, way in ways.items()}
        for name, way in ways.items():
            row = {
                "stage": str(stage),
                "contender": name,
                "TFLOP a study": f"{shares.tflop(whose, stage, ours=way.ours, layers=way.layers):.1f}",
                "seconds a study on a T4": f"{seconds[name]:.2f}",
            }
            if way.ours:
                row["times as fast as loop, Trainer"] = (
                    f"{seconds[PLAIN] / seconds[name]:.2f}, {seconds[TRAINER] / seconds[name]:.2f}"
                )
            rows.append(row)
    return table(rows)


def generation(result: Generation) -> str:
    """Reports per second."""
    row = {
        "ours": f"{result.batch} at a time",
        "against": "one at a time",
        "times as fast": str(result.ratio),
        "ours, reports/s": f"{result.ours:.2f}",
        "theirs": f"{result.plain:.2f}",
        "tokens a report": str(result.tokens),
        "target": _verdict(result.ratio.median, TARGET_GENERATION),
        "if words took no time": f"{result.limit:.2f}",
    }
    return table([row])


def preparation(results: Sequence[Preparation]) -> str:
    """Images per second."""
    return table(
        [
            {
                "pictures": result.format,
                "times as fast as the plain loop": str(result.ratio),
                "ours, images/s": f"{result.ours:.1f}",
                "theirs": f"{result.plain:.1f}",
                "mean difference, gray levels": f"{result.difference:.2f}",
                "target": _verdict(result.ratio.median, TARGET_PREPARATION),
            }
            for result in results
        ]
    )


def memory(accounts: Mapping[int, Mapping[str, Account]]) -> str:
    """Peak memory of a step by contender, a column a stage."""
    names = dict.fromkeys(name for of_stage in accounts.values() for name in of_stage)
    rows = []
    for name in names:
        peaks = {
            f"stage {stage}, GiB": f"{of_stage[name].peak_gib:.2f}" if name in of_stage else ""
            for stage, of_stage in accounts.items()
        }
        rows.append({"contender": name, **peaks})
    return table(rows)


def _verdict(ratio: float, target: float) -> str:
    return f"{target:g}: {'met' if ratio >= target else 'not met'}"


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "absent"


def _processor() -> str:
    """The processor's model."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine() or os.name
