"""The order in which an epoch takes its studies: by lot, and within each optimizer step by the length of the report."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import Sampler
from transformers import TrainerCallback


class StudyOrder(Sampler[int]):
    """A new random order every epoch; the studies of one optimizer step go from the longest report to the shortest.

    Micro-batches of like lengths hold less padding, and the step is the sum over the same studies as before. Reports
    grouped beyond a step would save little more and make steps of normal studies alone.

    Args:
        lengths: of each study's report.
        step: studies of an optimizer step, over all processes and micro-batches.
        seed: the order depends on it and the epoch alone, so an interrupted epoch goes on with the studies left.
    """

    def __init__(self, lengths: Sequence[int], step: int, seed: int) -> None:
        self.lengths, self.step, self.seed, self.epoch = lengths, step, seed, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed((self.seed << 16) + self.epoch)
        order = torch.randperm(len(self.lengths), generator=generator).tolist()
        for first in range(0, len(order), self.step):
            yield from sorted(order[first : first + self.step], key=lambda study: self.lengths[study], reverse=True)


class EpochOrder(TrainerCallback):
    """Tells an order its epoch. accelerate's own `set_epoch` does not reach it where several processes resume."""

    def __init__(self, order: StudyOrder) -> None:
        self.order = order

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.order.set_epoch(int(state.epoch or 0))
