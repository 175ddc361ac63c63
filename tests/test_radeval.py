"""RadEval in an environment of its own: a stand-in with its signatures, and the real one where it is installed."""

import json
import subprocess
import sys

import pytest

from radvision_utils import RadVisionError
from radvision_utils.__main__ import main
from radvision_utils.data.reports import Report
from radvision_utils.hand_over import radeval

# The public names and signatures of radeval 2.2.1.
STAND_IN = """
KEYS = {
    "f1chexbert": [f"f1chexbert_{of}_{mean}_f1" for of in ("5", "all") for mean in ("micro", "macro", "weighted")],
    "radgraph": ["radgraph_simple", "radgraph_partial", "radgraph_complete"],
    "radcliq": ["radcliq_v1"],
    "ratescore": ["ratescore"],
}


class RadEval:
    def __init__(self, metrics=None, openai_api_key=None, gemini_api_key=None, per_sample=False, detailed=False,
                 show_progress=True, cache_dir=None):
        self.keys = [key for name in metrics for key in KEYS[name]]

    def __call__(self, refs, hyps):
        import RadEval  # release 2.2.1 does, by a name that its folder does not have
        same = sum(a == b for a, b in zip(refs, hyps, strict=True)) / len(refs)
        return dict.fromkeys(self.keys, same)
"""
TRUE = [Report("Clear.", "Calm."), Report("Left effusion.", "Effusion.")]


@pytest.fixture
def environment(tmp_path, monkeypatch):
    """Makes a Python that has such a `radeval`."""

    def environment(module):
        (tmp_path / "radeval.py").write_text(module)
        python = tmp_path / "python"
        python.write_text(f'#!/bin/sh\nPYTHONPATH={tmp_path} exec {sys.executable} "$@"\n')
        python.chmod(0o755)
        monkeypatch.setattr(radeval, "environment", lambda: python)
        return python

    return environment


def test_reports_are_handed_over_and_the_figures_of_the_field_come_back(environment):
    environment(STAND_IN)
    scores = radeval.radeval_scores([TRUE[0], Report("Clear.", "")], TRUE)
    assert set(scores) == set(radeval.FIGURES)
    assert set(scores.values()) == {0.5}


def test_score_prints_them_beside_its_own(environment, tmp_path, capsys):
    environment(STAND_IN)
    (tmp_path / "theirs.csv").write_text("uid,prediction,reference\n1,Clear.,Clear.\n")
    out = tmp_path / "out.json"
    assert main(["score", str(tmp_path / "theirs.csv"), "--with", "radeval", "--json", str(out)]) == 0
    assert "CheXbert F1-14, micro" in capsys.readouterr().out
    assert json.loads(out.read_text())["clinical"]["theirs"]["RaTEScore"] == 1


@pytest.mark.parametrize(
    ("module", "told"),
    [
        ("raise ImportError('no torch here')", "no torch here"),
        (STAND_IN.replace('"radcliq_v1"', '"radcliq"'), "did not give radcliq_v1"),
    ],
)
def test_what_goes_wrong_there_is_one_sentence_here(module, told, environment):
    environment(module)
    with pytest.raises(RadVisionError, match=told):
        radeval.radeval_scores(TRUE, TRUE)


def test_without_an_environment_the_sentence_says_how_to_make_it(monkeypatch, tmp_path):
    monkeypatch.setattr(radeval, "project_root", lambda: tmp_path)
    with pytest.raises(RadVisionError, match=r"pip install 'radeval>=2\.2,<3'"):
        radeval.radeval_scores(TRUE, TRUE)


def test_the_real_package_knows_these_metrics_and_keys():
    try:
        python = radeval.environment()
    except RadVisionError as missing:
        pytest.skip(str(missing))
    program = (
        "import sys; from radeval.metrics._registry import get_metric_class as get; "
        "print([key for name in sys.argv[1:] for key in get(name).metric_keys(None)])"
    )
    found = subprocess.run([str(python), "-c", program, *radeval.METRICS], capture_output=True, text=True, check=True)
    assert all(repr(key) in found.stdout for key in radeval.FIGURES.values())
