"""Small real things, made once for the session: a prepared run of phantoms, trained for a few steps in every stage."""

from __future__ import annotations

import gc
import logging
import os
from pathlib import Path

import pytest
import torch

# Several tests may share the cores; threads that wait for each other by spinning make that many times slower.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

try:
    from hypothesis import settings
except ImportError:
    pass
else:  # Everyone's tests try the same inputs; `pytest tests/fuzz --hypothesis-profile=default` tries new ones.
    settings.register_profile("same", derandomize=True)
    settings.load_profile("same")

OPEN_I = Path(__file__).resolve().parents[2] / "shared" / "data" / "open-i"
SMALL = {
    "data.phantoms": 72,
    "data.workers": 1,
    "generation.max_new_tokens": 96,
    **{f"stage{n}.{key}": value for n in (1, 2, 3) for key, value in (("max_steps", 3), ("validation_studies", 4))},
}


def pytest_collection_modifyitems(items):
    """The module that takes longest comes first: else one worker ends with it while the other waits."""
    items.sort(key=lambda item: item.path.name != "test_chain.py")


def pytest_collection_finish():
    """What is imported by now stays: the garbage collection before each load of a model need not look at it again."""
    gc.freeze()


@pytest.fixture(scope="session")
def old_torch() -> bool:
    """Whether this is the torch of constraints-floor.txt, which rounds, compiles and keeps a little otherwise."""
    return tuple(map(int, torch.__version__.split(".")[:2])) < (2, 9)


@pytest.fixture(autouse=True)
def log_of_one_test():
    """What a command or a notebook's first cell sets for the log ends with the test, as its captured output does."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture(scope="session", autouse=True)
def without_java():
    """METEOR's Java takes seconds to start: one test of test_text_metrics.py starts it, as does the chain."""
    from radvision_utils.evaluation import table

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(table, "meteor_scores", lambda sets: [None] * len(sets))
        yield


@pytest.fixture(scope="session")
def open_i() -> Path:
    """The folder with real Open-I studies, which the project may use and may not ship."""
    if not (OPEN_I / "open-i-mini.parquet").is_file():
        pytest.skip(f"real Open-I studies are not there ({OPEN_I}); their license forbids shipping them")
    return OPEN_I


@pytest.fixture(scope="session")
def small_settings() -> dict[str, object]:
    """What makes a run small, as overrides."""
    return dict(SMALL)


@pytest.fixture(scope="session")
def small_profile(tmp_path_factory):
    """A tiny profile of 72 phantoms and three optimizer steps a stage."""
    from radvision_utils import load_profile

    return load_profile("tiny", SMALL, run="small", output_root=str(tmp_path_factory.mktemp("outputs")), seed=11)


@pytest.fixture(scope="session")
def dataset(small_profile):
    """Its prepared dataset."""
    from radvision_utils import prepare_dataset

    return prepare_dataset(small_profile)


@pytest.fixture(scope="session")
def trained(small_profile, dataset):
    """Its three stages, trained: the profile, for whoever needs a whole run."""
    from radvision_utils import train_stage

    for stage in (1, 2, 3):
        train_stage(small_profile, stage)
    return small_profile
