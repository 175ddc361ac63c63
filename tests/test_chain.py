"""The chain as users run it: the six notebooks through papermill, and real radiographs from end to end."""

import json
import os
import re
import subprocess
import sys

import pytest

from radvision_utils import load_profile, load_reporter, predict_beautiful, prepare_dataset, train_stage
from radvision_utils.__main__ import main
from radvision_utils.config import DISCLAIMER, project_root
from radvision_utils.evaluation.evaluate import evaluate
from radvision_utils.runs import NOTEBOOKS, STEPS, RunFolder


def radvision(*arguments, timeout=600):
    command = [sys.executable, "-m", "radvision_utils", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, cwd=project_root())


@pytest.fixture(scope="module")
def chain(tmp_path_factory, small_settings):
    root = tmp_path_factory.mktemp("chain")
    settings = [f"--set={key}={json.dumps(value)}" for key, value in small_settings.items()]
    return root, [*settings, "--run", "chain", "--output-root", root]


@pytest.fixture(scope="module")
def finished(chain):
    root, words = chain
    result = radvision("run", *words)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return root / "chain", words, result.stdout + result.stderr


def test_the_six_notebooks_leave_a_whole_run(finished):
    folder, _, told = finished
    for step in STEPS:
        assert RunFolder("chain", folder.parent).record(step), step
    for name in NOTEBOOKS.values():
        assert (folder / "notebooks" / f"{name}.ipynb").is_file()
    assert (folder / "dashboard" / "index.html").is_file()
    assert str(folder / "dashboard" / "index.html") in told


def test_a_run_says_in_a_dozen_lines_what_it_did_and_came_to_and_keeps_the_rest_in_a_log(finished):
    folder, _, told = finished
    first, second, *lines = told.splitlines()
    assert first.startswith("Profile tiny, run chain, on CPU")
    assert second.split() == ["Log", str(folder / "run.log")]
    for number, (line, name) in enumerate(zip(lines, NOTEBOOKS.values(), strict=False), start=1):
        assert re.fullmatch(rf"{number} of {len(NOTEBOOKS)}  {name} +\d+\.\d min", line)
    assert re.match(r"Abnormal F1 \d\.\d{3} -> \d\.\d{3}, image used: [a-z ]+$", lines[len(NOTEBOOKS)])
    assert len(lines) == len(NOTEBOOKS) + 5
    assert lines[-1] == DISCLAIMER
    assert "after stage 3" in (folder / "run.log").read_text(encoding="utf-8")


def test_executed_notebooks_show_something_after_every_cell_that_computes(finished):
    folder, _, _ = finished
    for name in NOTEBOOKS.values():
        cells = json.loads((folder / "notebooks" / f"{name}.ipynb").read_text())["cells"]
        pictures = sum("image/png" in o.get("data", {}) for c in cells for o in c.get("outputs", []))
        tables = sum("text/html" in o.get("data", {}) for c in cells for o in c.get("outputs", []))
        assert pictures >= 1, name
        assert tables >= 2, name
        assert not any(o["output_type"] == "error" for c in cells for o in c.get("outputs", []))


def test_a_second_run_skips_everything(finished, caplog):
    _, words, _ = finished
    with caplog.at_level("INFO"):
        assert main(["run", *map(str, words)]) == 0
    assert caplog.text.count("finished and unchanged, skipped") == len(NOTEBOOKS)


def test_a_changed_stage_is_named_with_the_command_when_a_later_notebook_is_run_alone(finished, capsys):
    _, words, _ = finished
    assert main(["run", *map(str, words), "--set", "stage1.learning_rate=0.1", "--from", "3"]) == 1
    error = capsys.readouterr().err
    assert "notebook 03_stage2_projector stopped" in error
    assert "stage1 of run 'chain' was made with stage1.learning_rate 0.002 (you ask for 0.1)" in error
    assert "--from 3" in error
    assert "stage1.learning_rate=0.1" in error


def test_one_notebook_runs_by_papermill_from_its_folder_as_the_chain_does_from_the_root(
    finished, small_settings, tmp_path
):
    folder, _, _ = finished
    notebook = project_root() / "notebooks" / "03_stage2_projector.ipynb"
    given = {"run": "chain", "output_root": str(folder.parent), "overrides": json.dumps(small_settings)}
    options = [word for key, value in given.items() for word in ("-r", key, value)]
    command = [sys.executable, "-m", "papermill", str(notebook), str(tmp_path / "out.ipynb"), *options]
    result = subprocess.run(
        command,
        cwd=project_root() / "notebooks",
        capture_output=True,
        text=True,
        env=os.environ | {"RADVISION_HEADLESS": "1"},
    )
    assert result.returncode == 0, result.stderr[-3000:]


def test_the_command_line_reports_on_one_own_image_what_another_process_does(finished):
    folder, _, _ = finished
    image = next((folder / "data" / "images").iterdir())
    result = radvision("predict", image, "--run", "chain", "--output-root", folder.parent)
    assert result.returncode == 0, result.stderr
    report = load_reporter("chain", output_root=str(folder.parent)).report(image)
    said = f"Findings: {report.findings} Impression: {report.impression}"
    assert " ".join(said.split()) in " ".join(result.stdout.split())
    assert result.stdout.rstrip().endswith("Research and education only. Not a medical device.")


def test_real_radiographs_go_through_preparation_all_stages_and_reports(open_i, small_settings, tmp_path):
    changes = {**small_settings, "data.limit": 64, **{f"stage{n}.max_steps": 2 for n in (1, 2, 3)}}
    source = str(open_i / "open-i-mini.parquet")
    profile = load_profile("tiny", changes, run="open-i", source=source, output_root=str(tmp_path))
    dataset = prepare_dataset(profile)
    assert dataset.summary["split_by"] == "R2Gen"
    for stage in (1, 2, 3):
        assert train_stage(profile, stage).record["steps"] == 2
    result = evaluate(profile)
    assert result.metrics["n"] == len(dataset.split("test")) > 0
    assert "study_accuracy" not in result.metrics["table"][0]
    card = predict_beautiful(index=0, run="open-i", output_root=str(tmp_path))
    assert card.record.reference.findings == dataset.split("test")[0].reference.findings
