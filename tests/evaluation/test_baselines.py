"""Rows without a model: what they write, that they are seeded, and that they earn what they should."""

import csv
import json

import numpy as np
import pytest

from radvision_utils import Report
from radvision_utils.__main__ import main as command
from radvision_utils.collections.open_i import read_published
from radvision_utils.data.labels import ABNORMAL, label
from radvision_utils.data.reports import line_of_findings
from radvision_utils.evaluation.baselines import (
    BEST_CONSTANT,
    BEST_FINDINGS,
    COMMONEST_FINDING,
    CONSTANT,
    RANDOM,
    best_constant,
    best_findings,
    blind_reports,
    commonest_normal_report,
    nearest,
)
from radvision_utils.evaluation.score import score_file
from radvision_utils.evaluation.text_metrics import R2GEN

CLEAR = Report("The lungs are clear. The heart is normal in size.", "No acute disease.")
QUIET = Report("No pleural effusion or pneumothorax. The lungs are clear.", "Normal chest.")
ILL = Report("There is a left pleural effusion. The heart is enlarged.", "Effusion.")
PACED = Report("There is a pacemaker on the left. The lungs are clear.", "No acute disease.")
TRAIN = [ILL, ILL, ILL, PACED, PACED, CLEAR, CLEAR, QUIET]
VALIDATION = [
    Report("The lungs are clear. No pleural effusion or pneumothorax.", ""),
    Report("The heart is normal in size. The lungs are clear.", ""),
    Report("The lungs are clear. There is a small right effusion. The heart is normal.", ""),
    Report("Low lung volumes. No pneumothorax.", ""),
]


def test_the_constant_report_is_the_commonest_normal_one():
    assert commonest_normal_report(TRAIN) == CLEAR
    assert commonest_normal_report([ILL, PACED, PACED]) == PACED


def test_the_best_constant_is_the_normal_training_report_that_earns_most_on_validation():
    for best, validation in ((CLEAR, CLEAR), (QUIET, QUIET)):
        assert best_constant(TRAIN, [Report(validation.findings, ""), VALIDATION[3]]) == best
    assert best_constant(TRAIN, [ILL, PACED, ILL]) in (CLEAR, QUIET)


def test_without_a_normal_training_report_there_is_still_a_constant():
    assert best_constant([ILL, ILL, PACED], VALIDATION) == ILL


def test_random_reports_are_training_reports_and_follow_the_seed():
    first, again, other = (blind_reports(TRAIN, VALIDATION, 20, seed)[RANDOM] for seed in (1, 1, 2))
    assert first == again != other
    assert set(first) <= set(TRAIN)


def test_every_row_has_a_report_for_every_study():
    rows = blind_reports(TRAIN, VALIDATION, 5, 1)
    blind = (CONSTANT, BEST_CONSTANT, RANDOM, COMMONEST_FINDING, BEST_FINDINGS)
    assert {name: len(reports) for name, reports in rows.items()} == dict.fromkeys(blind, 5)


def test_a_finding_said_of_everyone_is_the_commonest_and_a_set_the_best_on_validation():
    rows = blind_reports(TRAIN, VALIDATION, 2, 1)
    assert rows[COMMONEST_FINDING][0].findings == "Cardiomegaly."  # of the three that are ill, as often as effusion
    assert rows[BEST_FINDINGS][0].findings == "Pleural effusion."
    both = [ILL] * 3 + [CLEAR] * 3
    assert set(best_findings(both)) == {"Cardiomegaly", "Pleural Effusion"}
    assert best_findings([CLEAR, QUIET]) == []
    assert sorted(best_findings([ILL] * 9 + [PACED])) == ["Cardiomegaly", "Pleural Effusion"]


def test_a_line_of_findings_asserts_these_findings_and_no_other():
    for chosen in ([], *[[name] for name in ABNORMAL], list(ABNORMAL)):
        found = label(line_of_findings(chosen))
        assert [name for name in ABNORMAL if found[name].status == "present"] == chosen
        assert all(found[name].status in ("present", "not mentioned") for name in ABNORMAL)
        assert (found["No Finding"].status == "present") == (not chosen or chosen == ["Support Devices"])


def test_the_nearest_is_by_angle_and_not_by_length():
    train = np.array([[1, 0], [0, 1], [-1, 0]], np.float32)
    assert nearest(train, np.array([[0.1, 5], [-9, 1], [0, 0]], np.float32)).tolist() == [1, 2, 0]


@pytest.mark.slow
def test_published_text_metrics_need_no_image(open_i, tmp_path):
    """A fixed normal report scores nearly as published systems do on R2Gen's 590 test studies, and finds nothing."""
    out, files = tmp_path / "constant.csv", [open_i / "reports.csv", open_i / "r2gen_split.json"]
    assert command(["constant", *map(str, files), "--to", str(out)]) == 0
    metrics, _ = score_file(out, training=[r.findings for r in read_published(files)["train"].values()])
    row = metrics["rows"]["constant"]
    assert metrics["n"] == 590
    assert 0.15 <= row[R2GEN]["bleu4"]["value"] <= 0.17
    assert 0.36 <= row[R2GEN]["rouge_l"]["value"] <= 0.39
    assert 0.47 <= row[R2GEN]["cider_d"]["value"] <= 0.51
    assert row["rule labels, findings + impression"]["micro_f1"]["value"] == 0


PARTS = {"1": "train", "2": "train", "3": "train", "4": "val", "5": "test", "6": "test"}


def tables(folder, parts=PARTS):
    (folder / "reports.csv").write_text(
        "uid,findings,impression\n"
        + "".join(f"{n},The lungs are clear.,{'Calm' if n > 2 else 'Normal'}.\n" for n in range(1, 7))
    )
    (folder / "split.json").write_text(json.dumps({"by_uid": parts}))
    return [str(folder / name) for name in ("reports.csv", "split.json")]


def test_the_command_tells_what_a_constant_earns_and_writes_it_as_score_reads_it(tmp_path, capsys):
    out = tmp_path / "out.csv"
    assert command(["constant", *tables(tmp_path), "--to", str(out)]) == 0
    assert "said of all 2 test studies" in (page := capsys.readouterr().out)
    assert len([line for line in page.splitlines() if line.startswith(("| of ", "| commonest"))]) == 3
    with out.open(newline="") as file:
        written = [(row["uid"], row["prediction"]) for row in csv.DictReader(file)]
    assert written == [(uid, "Findings: The lungs are clear. Impression: Normal.") for uid in ("5", "6")]
    assert command(["score", str(out), "--train", *tables(tmp_path)]) == 0
    assert "ReXrank" in capsys.readouterr().out


def test_r2gens_annotation_alone_is_enough(tmp_path, capsys):
    entries = [{"id": f"CXR{n}_IM-{n}", "report": "The lungs are clear.", "image_path": []} for n in range(1, 7)]
    parts = {"train": entries[:3], "val": entries[3:4], "test": entries[4:]}
    (tmp_path / "annotation.json").write_text(json.dumps(parts))
    assert command(["constant", str(tmp_path / "annotation.json")]) == 0
    page = capsys.readouterr().out
    assert "1.000" in page
    assert "findings + impression" not in page  # it holds no impressions


@pytest.mark.parametrize(
    ("parts", "told"),
    [({"1": "train", "4": "val"}, "no report of the test part"), ({"1": "dev"}, "is no split"), (["1"], "is no split")],
)
def test_a_split_that_cannot_be_used_is_named(parts, told, tmp_path, capsys):
    assert command(["constant", *tables(tmp_path, parts)]) == 1
    assert told in capsys.readouterr().err


def test_a_missing_table_is_named(tmp_path, capsys):
    assert command(["constant", *(str(tmp_path / name) for name in ("nothing.csv", "split.json"))]) == 1
    assert "nothing.csv is not a file" in capsys.readouterr().err
