"""Reports written in places that are filled anew are those of transformers, and a step can be one CUDA graph."""

from contextlib import contextmanager
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


@pytest.mark.parametrize(
    ("message", "told"),
    [("operation not permitted when stream is capturing", "kernel by kernel"), ("out of memory", "")],
)
def test_where_cuda_takes_no_graph_torch_is_as_it_was(monkeypatch, caplog, message, told):
    """torch stays in the stream of a capture that failed, and before 2.12 its generator in the capture."""
    at = {"stream": SimpleNamespace(device_index=0), "capturing": False}
    mine = at["stream"]

    @contextmanager
    def graph(*_, **__):
        before, at["stream"], at["capturing"] = at["stream"], "of the capture", True
        yield
        at["stream"], at["capturing"] = before, False

    for name in ("CUDAGraph", "graph_pool_handle"):
        monkeypatch.setattr(torch.cuda, name, lambda: None)
    monkeypatch.setattr(torch.cuda, "graph", graph)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: at["stream"])
    monkeypatch.setattr(torch.cuda, "set_stream", lambda stream: at.update(stream=stream))
    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", lambda *_: None, raising=False)

    def step():
        raise torch.OutOfMemoryError(message) if "memory" in message else RuntimeError(message)

    if told:
        assert greedy._captured(step) is None
        assert not at["capturing"]
    else:
        with pytest.raises(torch.OutOfMemoryError):
            greedy._captured(step)
    assert at["stream"] is mine
    assert told in caplog.text
