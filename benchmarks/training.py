"""Training in samples/s and peak memory: each stage against each peer, at equal studies, tokens and loss."""

from __future__ import annotations

import logging
import math
import shutil
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from benchmarks.contenders import ONE_AT_A_TIME, OURS, PEERS, PLAIN, PLANNED, WITHOUT_CACHE, ours
from benchmarks.mini import BATCH, HELD_OUT
from benchmarks.race import Account, Runner, race
from benchmarks.ratios import Ratio
from radvision_utils.config import Profile, RadVisionError, load_profile
from radvision_utils.data.studies import open_prepared
from radvision_utils.planning.cost import open_card, read_shape
from radvision_utils.planning.plan import plan_stage
from radvision_utils.runs import RunFolder

logger = logging.getLogger(__name__)

LOSS_TOLERANCE, LOOP_TOLERANCE = 0.005, 0.05
"""Nats per report token by which losses after the same steps may differ: rounding adds up in another order. The plain
loop gives every study the same weight, where the others, as all Trainers do, give it to every token."""


@dataclass(frozen=True)
class StageRace:
    """A stage trained by every contender in turn.

    Attributes:
        stage: 1, 2 or 3.
        seconds: of each measured step, by contender.
        accounts: by contender.
        once: seconds an image that our stages 2 and 3 spend once on what the frozen vision encoder gives.
    """

    stage: int
    seconds: list[dict[str, float]]
    accounts: dict[str, Account]
    once: float

    def samples_per_second(self, name: str) -> float:
        """Median over the measured steps."""
        return BATCH / statistics.median(step[name] for step in self.seconds)

    def ratio(self, name: str, peer: str, epochs: float = math.inf) -> Ratio:
        """How many times our samples/s are the peer's, step by step.

        Args:
            name: one of ours.
            peer: what it is compared with.
            epochs: over which the features' cost is spread; without them the steps alone are compared.
        """
        once = 0.0 if name == WITHOUT_CACHE else BATCH * self.once / epochs
        return Ratio.of([step[peer] / (step[name] + once) for step in self.seconds])


def race_stage(profile: Profile, stage: int, turns: int, once: float = 0.0) -> StageRace:
    """Train a stage with all contenders in turn.

    Args:
        profile: of `mini`; the stages before are trained.
        stage: 1, 2 or 3.
        turns: of `STEPS_A_TURN` optimizer steps.
        once: seconds an image that the stage before has spent on features which this one reads.

    Raises:
        RadVisionError: a contender failed, or they did not do the same work.
    """
    runners = _contenders(profile, stage, keep_freed=True)
    logger.info("stage %d, %d turns: %s", stage, turns, ", ".join(runner.name for runner in runners))
    seconds, accounts = race(runners, turns)
    check_same_work(accounts)
    images = len(open_prepared(profile).split("train")) + HELD_OUT
    return StageRace(stage, seconds, accounts, max(once, accounts[OURS].once / images))


def step_memory(profile: Profile, stage: int) -> dict[str, Account]:
    """Train a stage for one optimizer step with each contender, one after the other.

    One step is less than a turn, so a contender goes to its end without waiting and gives its account.

    Args:
        profile: with studies for one step; the stages before are trained.
        stage: 1, 2 or 3.

    Raises:
        RadVisionError: a contender failed, or they did not do the same work.
    """
    accounts = {}
    for runner in _contenders(profile, stage, keep_freed=False):
        try:
            runner.start()
            accounts[runner.name] = runner.finish()
        finally:
            runner.stop()
        logger.info("stage %d, %s: %.2f GiB", stage, runner.name, accounts[runner.name].peak_gib)
    check_same_work(accounts)
    return accounts


def _contenders(profile: Profile, stage: int, keep_freed: bool) -> list[Runner]:
    runners = [Runner(name, ours, way, stage, keep_freed) for name, way in our_ways(profile, stage).items()]
    return runners + [Runner(name, train, profile, stage, keep_freed) for name, train in PEERS.items()]


def our_ways(profile: Profile, stage: int) -> dict[str, Profile]:
    """The profile with the peers' micro-batch and checkpointing; with a study at a time; as planned for a T4; and
    without cached features.

    Each trains in a run folder of its own.
    """
    ways = {OURS: profile}
    changes: dict[str, dict[str, Any]] = {
        ONE_AT_A_TIME: {"micro_batch": 1, "accumulation": BATCH},
        PLANNED: planned_for_t4(profile, stage),
    }
    if stage == 3:
        changes[WITHOUT_CACHE] = {"cache_features": False}
    for name, settings in changes.items():
        changed: dict[str, Any] = {f"stage{stage}": replace(profile.stage(stage), **settings)}
        way = replace(profile, run=f"{profile.run}-{len(ways)}", **changed)
        shutil.rmtree(RunFolder.of(way).path, ignore_errors=True)
        shutil.copytree(RunFolder.of(profile).path, RunFolder.of(way).path)
        ways[name] = way
    return ways


def planned_for_t4(profile: Profile, stage: int) -> dict[str, int]:
    """The split of a step and the share of checkpointed layers that the planner finds fastest for the 7B on a T4."""
    plan = plan_stage(load_profile("lingshu-7b"), stage, open_card("t4"))
    if not plan.fits:
        raise RadVisionError(f"stage {stage} of lingshu-7b has no plan that fits a T4: look at `radvision_utils plan`.")
    share = plan.step.layers / read_shape(load_profile("lingshu-7b").model).language.depth
    micro_batch = min(plan.settings.micro_batch, BATCH)
    return {
        "micro_batch": micro_batch,
        "accumulation": BATCH // micro_batch,
        "checkpointed_layers": round(share * read_shape(profile.model).language.depth),
    }


def check_same_work(accounts: Mapping[str, Account]) -> None:
    """That all contenders trained on as many studies and report tokens and reached the same loss.

    Raises:
        RadVisionError: they did not; a ratio of their speeds would mean nothing.
    """
    mine = accounts[OURS]
    for name, theirs in accounts.items():
        for what in ("samples", "tokens"):
            if getattr(theirs, what) != getattr(mine, what):
                raise RadVisionError(
                    f"{name} trained on {getattr(theirs, what)} {what}, {OURS} on {getattr(mine, what)}: "
                    "their speeds cannot be compared; mend the contender in benchmarks/contenders.py."
                )
        tolerance = LOOP_TOLERANCE if name == PLAIN else LOSS_TOLERANCE
        if abs(theirs.held_out - mine.held_out) > tolerance:
            raise RadVisionError(
                f"{name} reached a held-out loss of {theirs.held_out:.4f}, {OURS} {mine.held_out:.4f} nats per token, "
                f"more than {tolerance:g} apart: they did not train alike; mend benchmarks/contenders.py."
            )
