"""Reports written in places that are filled anew are those of transformers, and a step can be one CUDA graph."""

from types import SimpleNamespace

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from radvision_utils.model import greedy
from radvision_utils.model.greedy import write_greedily
from radvision_utils.report import reporter_of

LONGEST = 60


@pytest.fixture(scope="module", params=[0, 3])
def reporter(trained, request):
    return reporter_of(trained, request.param)


@pytest.fixture(scope="module")
def pictures(reporter, dataset):
    return [reporter.prepare(study) for study in dataset.split("train")[:11]]


@pytest.fixture(scope="module")
def begun(reporter):
    """What the reports begin with: prompts of several lengths."""
    words = reporter.collator.beginning("The heart is normal in size. The lungs are clear.")
    return [words[: k % 5] for k in range(11)]


@pytest.fixture(scope="module")
def expected(reporter, pictures, begun):
    ends = [reporter.collator.end, reporter.collator.pad]
    found = []
    for picture, words in zip(pictures, begun, strict=True):
        inputs = reporter.collator.prompts([picture], begun=[words])
        output = reporter.model.generate(
            **inputs,
            max_new_tokens=LONGEST,
            do_sample=False,
            repetition_penalty=1.0,
            eos_token_id=ends,
            pad_token_id=ends[1],
        )
        found.append(output[0, inputs["input_ids"].shape[1] :].tolist())
    return found


def texts(reporter, pictures, begun, places, room):
    ends = (reporter.collator.end, reporter.collator.pad)
    return {
        number: text
        for number, text, _ in write_greedily(
            reporter.core,
            lambda first, last: reporter.collator.prompts(pictures[first:last], begun=begun[first:last]),
            len(pictures),
            places=places,
            room=room,
            longest=LONGEST,
            ends=ends,
            autocast=reporter.device.autocast,
        )
    }


@pytest.mark.parametrize("places", [1, 4, 11])
@pytest.mark.parametrize("more", [0, 7])
def test_texts_are_those_of_generate_one_by_one(reporter, pictures, begun, expected, places, more):
    room = len(reporter.collator.prompt()) + max(map(len, begun)) + more
    assert texts(reporter, pictures, begun, places, room) == dict(enumerate(expected))
    # Longer than a turn of the ring in all, so that columns were used again.
    assert sum(map(len, expected)) > 4 * LONGEST


def test_a_recorded_step_writes_the_same_texts(reporter, pictures, begun, expected, monkeypatch):
    """As a CUDA graph, a record knows tensors by their memory, and nothing of what Python does between them."""
    step, nothing = greedy._Table.step, torch.zeros(())

    def recorded(table):
        if table.steps != 1:
            return step(table)
        record = make_fx(lambda _: table._step())(nothing)  # this takes the step
        table.graph, table.steps = SimpleNamespace(replay=lambda: record(nothing)), 2
        return table.tokens.flatten().tolist()

    monkeypatch.setattr(greedy._Table, "step", recorded)
    room = len(reporter.collator.prompt()) + max(map(len, begun))
    assert texts(reporter, pictures, begun, 4, room) == dict(enumerate(expected))
