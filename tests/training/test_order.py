"""The order of studies: random, the same again after an interruption, and with little padding in a micro-batch."""

import itertools

import pytest
import torch

from radvision_utils.training.trainer import StudyOrder

LENGTHS = [(37 * i) % 101 + 20 for i in range(400)]


@pytest.fixture
def order():
    return StudyOrder(LENGTHS, 16, seed=23)


def padded(order, size):
    batches = [order[i : i + size] for i in range(0, len(order), size)]
    return sum(len(batch) * max(LENGTHS[study] for study in batch) for batch in batches)


def test_an_epoch_takes_every_study_once_and_each_epoch_in_its_own_order(order):
    first = list(order)
    assert sorted(first) == list(range(len(LENGTHS))) == list(range(len(order)))
    assert first != sorted(first)
    order.set_epoch(1)
    assert list(order) != first
    order.set_epoch(0)
    torch.manual_seed(5)  # whatever else draws numbers
    assert list(order) == first


def test_the_studies_of_a_step_are_random_but_stand_by_length(order):
    steps = [list(order)[i : i + 16] for i in range(0, len(LENGTHS), 16)]
    assert all(LENGTHS[a] >= LENGTHS[b] for step in steps for a, b in itertools.pairwise(step))
    middles = [sum(LENGTHS[study] for study in step) / 16 for step in steps]
    assert max(middles) - min(middles) < 45  # of a spread of 100: no step has all the long reports
    assert {frozenset(step) for step in steps} == {
        frozenset(step) for step in (list(StudyOrder([0] * 400, 16, 23))[i : i + 16] for i in range(0, 400, 16))
    }


def test_micro_batches_of_like_lengths_hold_a_third_of_the_padding(order):
    mixed = list(StudyOrder([0] * len(LENGTHS), 16, seed=23))
    assert padded(list(order), 4) - sum(LENGTHS) < (padded(mixed, 4) - sum(LENGTHS)) / 2.5
