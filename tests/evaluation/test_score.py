"""Scoring the predictions of any system: without torch, and never on a silently smaller set."""

import csv
import json
import os
import subprocess
import sys

import pytest

from radvision_utils import RadVisionError, evaluate
from radvision_utils.__main__ import main
from radvision_utils.config import project_root
from radvision_utils.data.cleaning import is_english
from radvision_utils.evaluation.score import score_file
from radvision_utils.runs import RunFolder

HEAD = "uid,prediction,reference\n"
GOOD = (
    HEAD + '1,"Findings: Left effusion. Impression: Effusion.",Left effusion.\n2,The heart is normal.,Cardiomegaly.\n'
)


@pytest.fixture
def write(tmp_path):
    def write(text, name="theirs.csv"):
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_a_csv_is_scored_by_all_that_needs_no_model(write):
    metrics, page = score_file(write(GOOD))
    row = metrics["rows"]["theirs"]
    assert metrics["n"] == 2
    assert row["rule labels, findings + impression"]["micro_f1"]["value"] == pytest.approx(2 / 3, abs=1e-4)
    assert row["flags"]["copied from training"] is None  # nobody knows their training reports
    assert "| theirs |" in page


def test_predictions_of_a_run_score_as_its_evaluation_does(trained, tmp_path):
    ours = evaluate(trained)
    metrics, _ = score_file(ours.folder / "predictions.jsonl", RunFolder.of(trained))
    for row in ("base, untuned", "after stage 3"):
        for protocol, figures in metrics["rows"][row].items():
            if protocol in ours.metrics["rows"][row] and "," in protocol:
                values = {name: figure["value"] for name, figure in figures.items()}
                assert values == {n: f["value"] for n, f in ours.metrics["rows"][row][protocol].items()}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (HEAD, "has no studies to score"),
        ("uid,reference\n1,Clear.\n", "lacks the column prediction"),
        ("uid,prediction\n1,Clear.\n", "study 1 in .* has no reference"),
        (HEAD + "1,Clear.,Clear.\n1,Clear.,Clear.\n", "study 1 is there twice"),
        (HEAD + "1,Clear.,Clear.\n2\n", "the prediction of study 2 is empty"),
        (HEAD + "1,,Clear.\n2,,Clear.\n", r"the prediction of study 1 is empty \(2 in all\)"),
        (HEAD + "1,Clear.,...\n", r"the reference of study 1 is empty \(the only one\)"),
        (
            HEAD + "1,El corazón es de tamaño normal y los pulmones sin derrame.,Clear.\n",
            "prediction of study 1 is not Eng",
        ),
        (HEAD + "1,Clear.,心脏大小正常。双肺清晰。\n", "the reference of study 1 is not English"),
    ],
)
def test_what_cannot_be_scored_is_refused_in_one_sentence(text, sentence, write):
    with pytest.raises(RadVisionError, match=sentence):
        score_file(write(text))


def test_of_another_system_a_study_and_two_texts_are_enough(write):
    line = '{"uid": 17, "generated": "Findings: Left effusion.", "reference": "Left effusion.", "model": "X"}'
    metrics, _ = score_file(write(line, "theirs.jsonl"))
    [row] = metrics["table"]
    assert (metrics["n"], row["row"], row["abnormal_f1"]) == (1, "theirs", 1.0)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('{"uid": "1"}\n', "line 1 of .* lacks uid or generated"),
        ('{"uid": "1", "generated": 5, "reference": "Clear."}\n', "neither a text nor findings and impression"),
        ("[1]\n", "line 1 of .* has no usable value"),
        ('{"uid": "", "generated": "Clear."}\n', "line 1 of .* names no study"),
        ('{"uid": 1, "generated": {"text": "Clear."}}\n', "line 1 of .* neither a text nor findings and impression"),
        ('{"uid": 1, "generated": "Clear.", "reference": []}\n', "neither a text nor findings and impression"),
        ("no json\n", "line 1 of .* is not readable JSON"),
    ],
)
def test_a_bad_line_is_named(text, sentence, write):
    with pytest.raises(RadVisionError, match=sentence):
        score_file(write(text, "theirs.jsonl"))


@pytest.mark.parametrize("model", ["lingshu-7b", None, ["a"], 3, {"stage": [1]}, {"stage": "3"}, {"stage": 1e400}])
@pytest.mark.parametrize("report", ["Clear.", {"Findings": ["Clear."], "IMPRESSION": None}, {"findings": "Clear."}])
def test_records_of_other_shapes_are_one_system_of_the_files_name(model, report, write):
    line = {"uid": 1.0, "generated": report, "reference": report, "model": model}
    metrics, _ = score_file(write(json.dumps(line) + "\n", "theirs.jsonl"))
    assert (list(metrics["rows"]), metrics["n"]) == (["theirs"], 1)
    assert metrics["rows"]["theirs"]["words_per_report"] == 1


REXRANK = {
    "CXR17_IM-0001": {
        "section_findings": "Left effusion.",
        "section_impression": None,
        "model_prediction": "Findings: Left effusion. Impression: Effusion.",
    },
    "CXR3_IM-0002": {"findings": "The heart is normal.", "impression": "Normal.", "model_prediction": "Cardiomegaly."},
}
MEDEVALKIT = [
    {"image": [f"{name}/0.png"], **entry, "response": entry["model_prediction"]} for name, entry in REXRANK.items()
]


@pytest.mark.parametrize("published", [REXRANK, MEDEVALKIT], ids=["ReXrank", "MedEvalKit"])
def test_files_of_rexrank_and_medevalkit_are_read_as_they_are_published(published, write):
    metrics, page = score_file(write(json.dumps(published), "theirs.json"))
    row = metrics["rows"]["theirs"]
    assert metrics["n"] == 2
    assert row["rule labels, findings + impression"]["micro_f1"]["value"] == pytest.approx(2 / 3, abs=1e-4)
    assert row["BLEU-2 as ReXrank computes it"]["findings"]["n"] == 2
    assert "BLEU-2 as ReXrank computes it" in page


def test_the_two_tables_of_medevalkit_are_read_together(write):
    write("study_id,report\nstudy_1,Findings: Clear. Impression: Calm..\n", "ground_truth.csv")
    metrics, _ = score_file(write("study_id,report\nstudy_1,Clear.\n", "predictions.csv"))
    assert metrics["n"] == 1


def test_a_table_of_medevalkit_without_the_other_is_refused(write):
    path = write("Study_ID,report\nstudy_1,Clear.\n", "predictions.csv")
    with pytest.raises(RadVisionError, match="has no references: put MedEvalKit's"):
        score_file(path)
    write("study_id,text\nstudy_1,Clear.\n", "ground_truth.csv")
    with pytest.raises(RadVisionError, match=r"ground_truth.csv lacks the column report"):
        score_file(path)


def test_a_study_without_a_prediction_is_named(write):
    with pytest.raises(RadVisionError, match=r"study CXR3_IM-0002 of .* has neither model_prediction nor response"):
        score_file(write(json.dumps({**REXRANK, "CXR3_IM-0002": {"findings": "Clear."}}), "theirs.json"))


def test_the_file_for_rexrank_that_an_evaluation_writes_scores_as_its_last_stage(trained):
    ours = evaluate(trained)
    metrics, _ = score_file(ours.folder / "rexrank.json")
    name = "BLEU-2 as ReXrank computes it"
    theirs, own = metrics["rows"]["rexrank"][name], ours.metrics["rows"]["after stage 3"][name]
    assert {table: f["value"] for table, f in theirs.items()} == {table: f["value"] for table, f in own.items()}


@pytest.fixture
def theirs(trained, dataset, write):
    """Writes a CSV with a prediction for each study of the test split, changed by a function of the rows."""

    def theirs(change=lambda rows: rows):
        rows = change([{"uid": study.uid, "generated": "Left effusion."} for study in dataset.split("test")])
        return write("".join(json.dumps(row) + "\n" for row in rows), "theirs.jsonl")

    return theirs


def test_a_runs_references_may_be_used_instead(trained, dataset, theirs):
    metrics, _ = score_file(theirs(), RunFolder.of(trained))
    assert metrics["n"] == len(dataset.split("test"))
    assert "drawn truth" in metrics["rows"]["theirs"]


def test_an_unknown_study_and_a_missing_one_are_refused(trained, dataset, theirs):
    with pytest.raises(RadVisionError, match=r"a prediction for study 999999, which is not in the test split \(1 such"):
        score_file(theirs(lambda rows: [*rows, {"uid": 999999, "generated": "Clear."}]), RunFolder.of(trained))
    first = dataset.split("test")[0].uid
    with pytest.raises(RadVisionError, match=f"no prediction for study {first} of the test split"):
        score_file(theirs(lambda rows: rows[1:]), RunFolder.of(trained))


def test_score_and_label_import_no_torch(write, tmp_path):
    program = "import sys; sys.modules['torch'] = None; from radvision_utils.__main__ import main; sys.exit(main())"
    for words in (["score", write(GOOD), "--json", tmp_path / "out.json"], ["label", "Small left effusion."]):
        command = [sys.executable, "-c", program, *map(str, words)]
        # Without Java on the path: METEOR's would take seconds.
        result = subprocess.run(
            command, capture_output=True, text=True, cwd=project_root(), env=os.environ | {"PATH": ""}
        )
        assert result.returncode == 0, result.stderr
    assert json.loads((tmp_path / "out.json").read_text())["n"] == 2


def test_label_prints_the_14_labels(capsys):
    assert main(["label", "Cannot exclude pneumonia. Small left effusion. No pneumothorax."]) == 0
    lines = [line.split("  ") for line in capsys.readouterr().out.splitlines()]
    said = {line[0]: line[-1].strip() for line in lines}
    assert len(said) == 14
    assert (said["Pneumonia"], said["Pleural Effusion"], said["Pneumothorax"]) == (
        "uncertain",
        "present left",
        "absent",
    )


@pytest.mark.parametrize(("text", "sentence"), [(" . ", "the text is empty"), ("心脏大小正常", "is not English")])
def test_label_refuses_what_it_cannot_read(text, sentence, capsys):
    assert main(["label", text]) == 1
    assert sentence in capsys.readouterr().err


def test_real_reports_pass_for_english(open_i):
    with (open_i / "reports.csv").open(newline="", encoding="utf-8") as file:
        odd = [row["uid"] for row in csv.DictReader(file) if not is_english(f"{row['findings']} {row['impression']}")]
    assert odd == []


@pytest.mark.parametrize(
    "text",
    [
        "Le cœur est de taille normale. Les poumons sont clairs, sans épanchement.",
        "Das Herz ist normal groß. Kein Pneumothorax und kein Erguss.",
        "Сердце не увеличено. Лёгкие чистые.",
    ],
)
def test_other_languages_do_not(text):
    assert not is_english(text)
