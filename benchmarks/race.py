"""Let trainings that cannot know of each other take turns: each in a process of its own, one optimizer step at a time.

Every ratio of the benchmark comes from steps that were made one after the other on the same machine in the same
minutes, over the same studies. Whoever waits computes nothing and gives up the memory that it does not use. A turn is
two optimizer steps, of which the second is measured; in the first turn memory still grows, so that turn does not count.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil
import torch
from datasets import disable_progress_bars
from torch import profiler
from transformers import TrainerCallback, trainer

from benchmarks.breakdown import Breakdown
from radvision_utils.config import Profile, RadVisionError
from radvision_utils.environment import quiet_libraries
from radvision_utils.training.collator import IGNORED

STEPS_A_TURN = 2


@dataclass
class Account:
    """What a training has to show at its end.

    Attributes:
        samples: studies trained on.
        tokens: report tokens in the loss.
        losses: of each optimizer step, nats per report token.
        held_out: loss on validation studies after the last step, nats per report token.
        peak_gib: most memory of tensors in the first step, beside the model: batch, activations, logits, gradients,
            optimizer. Counted by torch, because what the process holds depends more on how malloc rounds.
        once: seconds spent once, before the first step, on what the steps then need not compute.
        breakdown: seconds of the last step by kind of operation.
    """

    samples: int = 0
    tokens: int = 0
    losses: list[float] = field(default_factory=list)
    held_out: float = 0.0
    peak_gib: float = 0.0
    once: float = 0.0
    breakdown: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Step:
    """The measured step of a turn: its seconds, and the peak of memory of the first step of all, as in `Account`."""

    seconds: float
    peak_gib: float


class Turns(TrainerCallback):
    """Stops a training after each turn until it is its turn again, and keeps its account.

    Any `transformers.Trainer` of the process obeys it; another loop calls `count` and `step_done` by itself.
    """

    def __init__(self, connection: Connection) -> None:
        self.connection, self.account = connection, Account()
        self._recording: Any = None
        self._breakdown: Breakdown | None = None
        self._last_turn = False
        self._steps = 0
        self._began = time.perf_counter()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        loader = kwargs["train_dataloader"]
        loader = getattr(loader, "base_dataloader", loader)  # accelerate wraps the one that collates
        collate = loader.collate_fn

        def counted(rows: Any) -> Any:
            batch = collate(rows)
            self.count(batch["labels"])
            return batch

        loader.collate_fn = counted

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **kwargs: Any) -> None:
        if "loss" in logs:
            self.account.losses.append(float(logs["loss"]))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.step_done()

    def count(self, labels: torch.Tensor) -> None:
        """Note a batch's (B, L) labels; the first position of a sequence is predicted by nothing."""
        if self._recording is None:
            self._recording = profiler.profile(activities=[profiler.ProfilerActivity.CPU], profile_memory=True)
            self._recording.start()
        self.account.samples += len(labels)
        self.account.tokens += int((labels[:, 1:] != IGNORED).sum())

    def step_done(self) -> None:
        """At the end of a turn tell the seconds of its last step and wait for the next turn."""
        seconds = time.perf_counter() - self._began
        self._steps += 1
        if self._recording is not None and not self.account.peak_gib:
            self._recording.stop()
            self.account.peak_gib = peak_gib(self._recording)
        if self._breakdown is not None:
            self._breakdown.__exit__(None, None, None)
            self.account.breakdown = self._breakdown.of(seconds)
            self._breakdown = None
        if self._steps % STEPS_A_TURN == 0:
            _libc("malloc_trim", 0)  # whoever waits holds no more than it needs
            self.connection.send(Step(seconds, self.account.peak_gib))
            self._last_turn = self.connection.recv()
            fetch_heap()
        elif self._last_turn:
            self._breakdown = Breakdown()
            self._breakdown.__enter__()
        self._began = time.perf_counter()


class Runner:
    """A contender in its own process.

    Args:
        name: of the contender.
        train: what the process does: trains a stage of the profile for an epoch, stopped by `Turns` at each step, and
            returns the held-out loss.
        profile: the settings.
        stage: 1, 2 or 3.
        keep_freed: see `keep_freed_memory`.
    """

    def __init__(
        self,
        name: str,
        train: Callable[[Profile, int, Turns], float],
        profile: Profile,
        stage: int,
        keep_freed: bool = True,
    ) -> None:
        self.name = name
        # Forked from a server that has imported the libraries and computed nothing: starting takes no seconds.
        context = get_context("forkserver")
        context.set_forkserver_preload(["radvision_utils.training.train", "trl"])
        self.connection, self._theirs = context.Pipe()
        arguments = (self._theirs, train, profile, stage, keep_freed)
        self.process = context.Process(target=_serve, args=arguments, daemon=True)

    def start(self) -> None:
        """Load the model and begin with the first turn."""
        self.process.start()
        self._theirs.close()

    def step(self) -> Step:
        """The turn in progress, which is the first, or was allowed by `go`, when it is done."""
        step: Step = self._receive()
        return step

    def go(self, last: bool = False) -> None:
        """Let the next turn, or what follows the last, begin. In the last turn every operation is timed by itself."""
        self.connection.send(last)

    def finish(self) -> Account:
        """The account, after the last turn has been allowed to end."""
        account: Account = self._receive()
        self.process.join()
        return account

    def stop(self) -> None:
        """End the process, whatever it does."""
        if self.process.pid is not None:
            self.process.terminate()
            self.process.join()

    def _receive(self) -> Any:
        try:
            message = self.connection.recv()
        except EOFError as error:
            raise RadVisionError(
                f"contender {self.name!r} died without a word: there may be too little memory."
            ) from error
        if isinstance(message, str):
            raise RadVisionError(f"contender {self.name!r} failed:\n{message}")
        return message


def race(runners: Sequence[Runner], turns: int) -> tuple[list[dict[str, float]], dict[str, Account]]:
    """Let the runners train, a turn at a time.

    Args:
        runners: trainings of `turns` times `STEPS_A_TURN` optimizer steps.
        turns: at least 3.

    Returns:
        The seconds of each runner for each turn but the first, in which memory grows, and the last, whose operations
        are timed one by one; and their accounts.
    """
    rounds: list[dict[str, float]] = []
    try:
        for number in range(turns):
            seconds = {}
            # Who comes first changes, so that nobody always follows the same other. They start one after the other:
            # together their peaks might not fit.
            for runner in (*runners[number % len(runners) :], *runners[: number % len(runners)]):
                runner.go(last=number == turns - 1) if number else runner.start()
                seconds[runner.name] = runner.step().seconds
            rounds.append(seconds)
        accounts = {}
        for runner in runners:
            runner.go()
            accounts[runner.name] = runner.finish()
    finally:
        for runner in runners:
            runner.stop()
    return rounds[1:-1], accounts


def keep_freed_memory() -> None:
    """Let this process keep the memory of freed tensors for the next, as a card's allocator does.

    glibc returns large tensors to the system and gets them anew, page by page: on a CPU that takes longer than an
    activation function on them, for every contender, and a card knows nothing of the kind. The price is that twice to
    ten times the memory in use is held.
    """
    _libc("mallopt", -4, 0)  # M_MMAP_MAX: nothing is mapped by itself
    _libc("mallopt", -1, -1)  # M_TRIM_THRESHOLD: nothing is returned


def fetch_heap() -> None:
    """Take back from the system, before a turn, what `malloc_trim` gave up at the end of the last one.

    Else the steps would fetch it page by page, and on a virtual machine, which may have to get it from its host, that
    can take longer than the step: most for who uses most memory. Where the system is no Linux nothing is done, nor
    where it has not that much left: of a heap full of holes a step needs only a part.
    """
    maps, left = Path("/proc/self/maps"), psutil.virtual_memory().available
    for line in maps.read_text(encoding="utf-8").splitlines() if maps.is_file() else []:
        if line.endswith("[heap]"):
            start, end = (int(bound, 16) for bound in line.split()[0].split("-"))
            if end - start < left:
                _libc("madvise", start, end - start, 23)  # MADV_POPULATE_WRITE, of Linux 5.14; an older one refuses


def _libc(name: str, *arguments: int) -> None:
    """Call a function of the C library where it has one: these are of Linux and glibc."""
    function = getattr(ctypes.CDLL(None), name, None)
    if function is not None:
        function(*map(ctypes.c_long, arguments))


def _serve(
    connection: Connection, train: Callable[[Profile, int, Turns], float], profile: Profile, stage: int, keep: bool
) -> None:
    if keep:
        keep_freed_memory()
    quiet_libraries()
    disable_progress_bars()
    # Trainers print their losses, the profiler what it does: the account has it, and errors come by the connection.
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    try:
        turns = Turns(connection)
        # A callback of every Trainer that this process makes: contenders run as their users write them.
        trainer.DEFAULT_CALLBACKS.append(turns)
        turns.account.held_out = train(profile, stage, turns)
        connection.send(turns.account)
    except BaseException:
        connection.send(traceback.format_exc())
        raise


def peak_gib(recorded: Any) -> float:
    """The most that was allocated at a time since a `torch.profiler` with `profile_memory` began to record; GiB."""
    events = [event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"]
    changes = (event.nbytes() for event in sorted(events, key=lambda event: event.start_ns()))
    return max(itertools.accumulate(changes), default=0) / 2**30
