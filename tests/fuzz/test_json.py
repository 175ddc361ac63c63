"""Whatever bytes or values stand in a record, each of its readers gives a result or one sentence."""

import json

import pytest

pytest.importorskip("hypothesis", reason="hypothesis is not installed")

from hypothesis import example, given
from hypothesis import strategies as st

from radvision_utils.collections.open_i import published_split
from radvision_utils.config import DataSettings, RadVisionError, load_profile, parse_json
from radvision_utils.dashboard import ratings, record
from radvision_utils.data.sources import open_source
from radvision_utils.evaluation import records, score
from radvision_utils.files import is_whole
from radvision_utils.planning.cost import study_counts
from radvision_utils.runs import STEPS, RunFolder, Stage, is_current, working
from radvision_utils.training.resume import _begun, finished_state


def lock(folder):
    with working(RunFolder("r", folder), "data"):
        pass


def steps(folder):
    profile = load_profile(run="r", output_root=str(folder))
    return [is_current(profile, step) for step in STEPS], study_counts(profile)


READERS = {  # by the file they read, in a folder that holds run "r"
    "r/run.json": lambda folder: RunFolder("r", folder).profile(),
    "r/data/summary.json": steps,
    "r/stage1/stage.json": lambda folder: RunFolder("r", folder).record("stage1"),
    "r/evaluation/metrics.json": lambda folder: RunFolder("r", folder).record("evaluation"),
    "r/lock.json": lock,
    "r/evaluation/predictions.jsonl": lambda folder: record.read_predictions(RunFolder("r", folder).predictions),
    "ours.jsonl": lambda folder: records.read_predictions(folder / "ours.jsonl"),
    "theirs.jsonl": lambda folder: score._read_systems(folder / "theirs.jsonl"),
    "theirs.json": lambda folder: score._read_systems(folder / "theirs.json"),
    "r/stage1.partial/begun.json": lambda folder: _begun(Stage(load_profile(run="r", output_root=str(folder)), 1)),
    "ratings.jsonl": lambda folder: ratings.read_ratings(folder / "ratings.jsonl"),
    "split.json": lambda folder: published_split(folder / "split.json"),
    "source/radvision.json": lambda folder: open_source(str(folder / "source"), DataSettings(), 0),
    "files.json": is_whole,
    "trainer_state.json": finished_state,
}
KEYS = ["uid", "generated", "reference", "model", "stage", "index", "image", "made_from", "hash", "profile", "steps"]
KEYS += ["name", "run", "data", "counts", "splits", "train", "by_uid", "table", "global_step", "process", "host"]
KEYS += ["author"]
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9) | st.sampled_from(["a\0b", "\ud800"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=6),
    max_leaves=12,
)
TEXTS = st.builds(json.dumps, VALUES, ensure_ascii=st.just(True))
BYTES = st.binary(max_size=200) | st.builds(str.encode, TEXTS, st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]))
LONG, DEEP, HALF = b'{"index": ' + b"9" * 5000 + b"}", b"[" * 100_000, b'{"uid": "\\ud800"}'


@pytest.mark.parametrize("name", READERS)
@given(content=BYTES)
@example(content=LONG)
@example(content=DEEP)
@example(content=HALF)
@example(content=b"\xff\xfe\n")
def test_any_bytes_are_read_or_told_in_one_sentence(tmp_path_factory, name, content):
    folder = tmp_path_factory.getbasetemp() / "any" / name.replace("/", "-")
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    told = "One sentence."
    try:
        READERS[name](folder)
    except RadVisionError as error:
        told = str(error)
    assert "\n" not in told
    assert told.endswith(".")


@given(VALUES)
def test_what_is_read_is_what_was_written_and_can_be_written_again(value):
    text = json.dumps(value)
    try:
        read = parse_json(text.encode("utf-16"), "a", "b")
    except RadVisionError:
        return
    assert json.dumps(read) == text
    json.dumps(read, ensure_ascii=False).encode()
