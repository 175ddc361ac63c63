"""A model that is no good still gets its table, figures and page, and they say so plainly."""

import ast
import html
import io
import json
import shutil
import zlib

import pytest

from radvision_utils.config import project_root
from radvision_utils.data.parsing import parse_report
from radvision_utils.data.reports import Report
from radvision_utils.evaluation.bootstrap import Bootstrap
from radvision_utils.evaluation.charts import show_confusion, show_observations
from radvision_utils.evaluation.table import Scorer, model_verdict, variety
from radvision_utils.evidence import confidence, study_maps
from radvision_utils.evidence.confidence import JudgedSentence, claims_of
from radvision_utils.evidence.evidence_figures import show_coverage, show_reliability
from radvision_utils.report import Reporter, WrittenReport
from radvision_utils.runs import NOTEBOOKS, RunFolder

NORMAL = "Findings: The heart is normal. No pneumothorax or effusion. Impression: No acute disease."
WEAK = {
    "gibberish": ["qx zzv brrl: xq mmp vrr zxq", "Findings: bl blrp vv Impression: ]] zx"],
    "nothing": [""],
    "one sentence a hundred times": ["There is a left pleural effusion. " * 100],
    "only normal reports": [NORMAL, "Findings: The lungs are clear. Impression: No pneumonia.", "Normal heart size."],
    "no word the labeler knows": ["Findings: The patient is rotated. Impression: See above.", "Two views."],
}
WEAK["a bit of each"] = [text for texts in WEAK.values() for text in texts]
SAID = {
    "gibberish": "names no observation that the rules know in",
    "nothing": "wrote nothing for",
    "one sentence a hundred times": "repeats itself",
    "only normal reports": "asserts no finding in any report",
    "no word the labeler knows": "names no observation that the rules know in",
    "a bit of each": "",
}
NOT_VALIDATED = "maps, not validated, since no sentence asserts what was drawn here"


def write_batch(texts):
    """In the place of what writes for a `Reporter`: one of the texts for each image, no longer than is allowed."""

    def write(reporter, images, *_):
        tokenizer, written = reporter.collator.tokenizer, []
        for image in images:
            text = texts[zlib.crc32(reporter.prepare(image).tobytes()) % len(texts)]
            ids = tokenizer(text)["input_ids"][: reporter.profile.generation.max_new_tokens]
            text = tokenizer.decode(ids, skip_special_tokens=True).strip()
            written.append(WrittenReport(parse_report(text), text, len(ids), False, 0.01))
        return written

    return write


def run_cells(notebook, parameters):
    """Runs every code cell in this process, and gives the notebook's names and what its cells show."""
    names, shown = {}, []
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] != "code":
            continue
        tree = ast.parse("".join(cell["source"]))
        last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, cell["id"], "exec"), names)
        if last is not None:
            shown.append(eval(compile(ast.Expression(last.value), cell["id"], "eval"), names))
        if "parameters" in cell["metadata"].get("tags", []):
            names.update(parameters)
    return names, shown


def words_of(figures):
    for figure in figures:
        figure.savefig(io.BytesIO(), dpi=20)
    return {text.get_text() for figure in figures for axes in figure.axes for text in (*axes.texts, axes.title)}


def not_json(constant):
    pytest.fail(f"metrics.json holds {constant}, which is no JSON")


@pytest.mark.parametrize("kind", WEAK)
def test_the_last_notebooks_run_to_their_end_whatever_the_model_writes(
    kind, trained, small_settings, tmp_path, monkeypatch, capsys
):
    shutil.copytree(RunFolder.of(trained).path, tmp_path / trained.run)
    shutil.rmtree(tmp_path / trained.run / "evaluation", ignore_errors=True)
    for way in ("_refilling", "_write_batch"):
        monkeypatch.setattr(Reporter, way, write_batch(WEAK[kind]))
    monkeypatch.setattr(study_maps, "VALIDATED", 2)
    monkeypatch.setattr(confidence, "CALIBRATED", 4)
    monkeypatch.chdir(project_root())
    overrides = json.dumps({**small_settings, "evaluation.stages": "ends", "evaluation.evidence": 4})
    parameters = {"run": trained.run, "output_root": str(tmp_path), "overrides": overrides, "seed": 11}
    shown = []
    for step in ("evaluation", "evidence"):
        names, more = run_cells(project_root() / "notebooks" / f"{NOTEBOOKS[step]}.ipynb", parameters)
        shown += more
    metrics = json.loads((names["result"].folder / "metrics.json").read_text(), parse_constant=not_json)
    sentence = model_verdict(metrics)
    assert sentence.startswith("This model is no good: it ")
    assert SAID[kind] in sentence
    assert sentence in capsys.readouterr().out
    assert sentence in (names["result"].folder / "table.md").read_text().splitlines()[2]
    written = html.unescape(names["page"].read_text())
    assert sentence in written[written.index("<main") : written.index("In short")]
    words = words_of([value for value in shown if hasattr(value, "savefig")])
    if kind in ("gibberish", "nothing", "no word the labeler knows"):
        assert {"no sentence speaks of an observation", "no sentence has a supported map"} <= words
        assert metrics["confidence"]["sentence"].removeprefix("c") in written  # there it begins with a capital
    if kind not in ("one sentence a hundred times", "a bit of each"):
        assert {
            "no report asserts an observation",
            "no sentence that asserts a finding has a confidence",
            NOT_VALIDATED,
        } <= words


def metrics_of(reports, references, used="yes", blind="Normal chest."):
    scorer = Scorer(references, seed=1)
    rows = {"constant report": [Report(blind, "")] * len(references), "after stage 3": reports}
    return {
        "n": len(references),
        "rows": {name: scorer.score(given).to_json() for name, given in rows.items()},
        "baselines": {"constant report": {}},
        "image_use": {"row": "after stage 3", "verdict": used},
    }


EFFUSION, HEART, CLEAR = (Report(t, "") for t in ("Left pleural effusion.", "Cardiomegaly.", "No effusion is seen."))
TRUE = [EFFUSION, HEART, CLEAR] * 4


def test_a_good_model_gets_a_neutral_sentence():
    assert model_verdict(metrics_of(TRUE, TRUE)) == (
        "This model has no plain fault: 3 distinct reports for 12 studies; image used: yes; "
        "rule-label F1 1.000 against 0.000 of the constant report, which sees no image."
    )


@pytest.mark.parametrize(
    ("reports", "changes", "said"),
    [
        ([EFFUSION] * 12, {}, "wrote the same report for 12 of 12 studies"),
        ([EFFUSION] * 11 + [HEART], {}, "wrote the same report for 11 of 12 studies"),
        (TRUE, {"used": "no"}, "does not use the image"),
        ([HEART, CLEAR, EFFUSION] * 4, {}, "earns no more than reports without a model"),
        (TRUE, {"blind": "Left effusion and cardiomegaly."}, ""),
        ([Report("Heart is large. " * 9, ""), *TRUE[1:]], {}, ""),
        ([Report(f"{r.findings} " * 9, "") for r in TRUE], {}, "repeats itself (86% of a report stood in it before)"),
    ],
)
def test_each_plain_fault_is_named_and_one_odd_report_is_none(reports, changes, said):
    sentence = model_verdict(metrics_of(reports, TRUE, **changes))
    assert said in sentence
    assert sentence.startswith("This model is no good" if said else "This model has no plain fault")


def test_of_other_systems_predictions_nothing_is_said():
    assert model_verdict({"rows": metrics_of(TRUE, TRUE)["rows"]}) == ""


def test_a_sentence_over_and_over_and_a_loop_of_words_are_told_from_a_report():
    shares = [variety([Report(text, "")])["repeats_itself"] for text in ("No effusion. " * 100, "the heart " * 50)]
    assert min(shares) > 0.95
    assert variety([parse_report(NORMAL), Report("", "")])["repeats_itself"] == 0


@pytest.mark.parametrize("text", ["", "Normal chest."])
def test_one_normal_study_without_a_word_of_it_is_scored_and_drawn(text):
    metrics = metrics_of([Report(text, "")], [Report("The lungs are clear.", "")])
    words = words_of([show_observations(metrics), show_confusion(metrics)])
    assert "no report asserts an observation" in words
    assert ("1 of 1 reports have no word and stand as normal" in words) == (not text)
    assert model_verdict(metrics).startswith("This model is no good")


def test_without_claims_in_validation_nothing_is_calibrated_and_agreement_is_drawn():
    said = [JudgedSentence(0, None, -0.1, claims_of("Left effusion."), 2 / 3, True)]
    figures = confidence._figures([], said, None, [frozenset()], Bootstrap(1, seed=1))
    assert "no sentence of the validation reports speaks of an observation" in figures["sentence"]
    metrics = {"confidence": {"samples": 3, **figures}}
    assert "all sentences: 1, 100% right" in words_of([show_reliability(metrics), show_coverage(metrics)])
