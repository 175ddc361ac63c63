"""Faults happen to copies: every test gets the session's prepared data in a run folder of its own."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest

from radvision_utils.runs import RunFolder


@pytest.fixture
def fresh_run(small_profile, dataset, tmp_path):
    """Make a profile whose run holds the prepared data alone: `fresh_run("name", stage1={"max_steps": 4})`."""

    def make(name="run", **changes):
        stages = {key: replace(getattr(small_profile, key), **values) for key, values in changes.items()}
        profile = replace(small_profile, output_root=str(tmp_path / name), **stages)
        shutil.copytree(RunFolder.of(small_profile).data, RunFolder.of(profile).data)
        return profile

    return make
