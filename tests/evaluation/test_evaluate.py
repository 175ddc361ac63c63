"""Evaluation: what the table and the records say, that they are stable, and that bad input is refused."""

import dataclasses
import json
import re
import shutil

import pytest

from radvision_utils import RadVisionError, Report, evaluate
from radvision_utils.config import EvaluationSettings
from radvision_utils.evaluation import evaluate as module
from radvision_utils.evaluation.charts import (
    show_confusion,
    show_ladder,
    show_observations,
    show_text_against_labels,
    show_verdicts,
)
from radvision_utils.evaluation.records import FLAGS
from radvision_utils.evaluation.score import score_file
from radvision_utils.evaluation.table import RULE_LABELS, left_out
from radvision_utils.evaluation.text_metrics import PROTOCOLS
from radvision_utils.runs import RunFolder, is_current

LABELS, DRAWN = "rule labels, findings + impression", "drawn truth"
ROWS = [
    *("constant report", "best constant", "random training report", "commonest finding", "best findings"),
    "nearest neighbor",
    *("base, untuned", "after stage 1", "after stage 2", "after stage 3"),
]


@pytest.fixture(scope="module")
def result(trained):
    return evaluate(trained, force=True)


def test_the_table_has_the_rows_that_keep_it_honest(result):
    assert [row["row"] for row in result.metrics["table"]] == ROWS
    assert list(result.metrics["rows"]) == ROWS


def test_every_figure_of_a_protocol_has_value_interval_and_n(result, dataset):
    for row in result.metrics["rows"].values():
        for protocol in (LABELS, DRAWN, *PROTOCOLS):
            for name, figure in row[protocol].items():
                assert {"value", "low", "high", "n"} <= set(figure), (protocol, name)
                if figure["low"] is not None:
                    assert figure["low"] <= figure["value"] + 1e-9
                    assert figure["value"] <= figure["high"] + 1e-9
        assert row[LABELS]["micro_f1"]["n"] == len(dataset.split("test"))


def test_the_constant_rows_find_nothing_and_the_random_row_copies(result, dataset):
    rows = result.metrics["rows"]
    assert rows["best constant"][LABELS]["micro_f1"]["value"] == 0
    assert rows["best constant"]["distinct_reports"] == rows["commonest finding"]["distinct_reports"] == 1
    assert rows["best findings"][LABELS]["micro_f1"]["value"] > 0
    assert rows["random training report"]["flags"]["copied from training"] == len(dataset.split("test"))


def test_the_image_use_has_a_verdict_and_what_it_rests_on(result):
    use = result.metrics["image_use"]
    assert use["verdict"] in ("yes", "no", "not shown")
    assert use["sentence"].startswith(f"image used: {use['verdict']}")
    assert set(use["loss_gap"]) == {"base, untuned", "after stage 3"}
    assert set(use["f1_drop"]) == {"any study", "same labels", "other labels"}
    assert {"without its image", "mirrored", "beyond_labels"} <= set(use)
    assert "Image used: " in (result.folder / "table.md").read_text()


def test_differences_are_to_every_other_row(result):
    assert set(result.metrics["differences"]["after stage 3"]) == set(ROWS) - {"after stage 3"}


def test_the_table_counts_the_flags_of_the_records(result):
    for stage, row in ((0, "base, untuned"), (3, "after stage 3")):
        ours = [flag for prediction in result.predictions if prediction.stage == stage for flag in prediction.flags]
        assert result.metrics["rows"][row]["flags"] == {flag: ours.count(flag) for flag in FLAGS}
    assert "cut at the token limit" in (result.folder / "table.md").read_text()


def test_a_prediction_says_what_both_texts_claim_and_where(result):
    for ours in result.predictions:
        assert set(ours.flags) <= set(FLAGS)
        assert set(ours.verdicts.values()) <= {"agree", "missed", "unsupported", "contradiction"}
        assert 0 <= ours.scores["label_f1"] <= 1
        for author in ("generated", "reference"):
            for section, mentions in ours.mentions[author].items():
                for mention in mentions:
                    assert getattr(getattr(ours, author), section)[mention.start : mention.end]
                    assert mention.observation in ours.labels[author]


def test_the_labels_agree_with_what_was_drawn_into_the_references(result):
    found = result.metrics["labeler"]["references_against_drawn"]
    assert found["study_accuracy_by_rule_labels"]["value"] == 1
    assert "mesh_agreement" not in result.metrics["labeler"]  # a phantom's MeSH is no human annotation


def test_the_folder_holds_pictures_and_a_rexrank_submission(result, dataset):
    names = {path.name for path in result.folder.iterdir()}
    assert {"ladder.png", "observations.png", "confusion.png", "text_against_labels.png", "table.md"} <= names
    assert len(json.loads((result.folder / "rexrank.json").read_text())) == len(dataset.split("test"))


def test_the_table_of_predictions_is_scored_like_the_last_stage(result):
    figures, _ = score_file(result.folder / "predictions.csv")
    rows = figures["rows"]["predictions"], result.metrics["rows"]["after stage 3"]
    first, second = ({name: found["value"] for name, found in row[RULE_LABELS].items()} for row in rows)
    assert first == second


def test_every_study_of_the_split_has_a_record_of_every_stage(result, dataset):
    studies = dataset.split("test")
    found = {(ours.uid, ours.stage) for ours in result.predictions}
    assert found == {(study.uid, stage) for study in studies for stage in range(4)}


def test_the_reference_in_a_record_is_the_untouched_text(result, dataset):
    by_uid = {study.uid: study for study in dataset.split("test")}
    for ours in result.predictions:
        assert ours.reference.findings == by_uid[ours.uid].reference.findings


def test_image_paths_are_relative_to_the_run_and_exist(result, trained):
    for ours in result.predictions:
        assert (RunFolder.of(trained).path / ours.image).is_file()


def test_a_second_evaluation_computes_nothing(result, trained, monkeypatch):
    monkeypatch.setattr(module, "reporter_of", lambda *_: pytest.fail("evaluated again"))
    assert evaluate(trained).metrics == result.metrics
    by_sevens = dataclasses.replace(trained.generation, batch_size=7)  # it changes no report
    assert evaluate(dataclasses.replace(trained, generation=by_sevens)).metrics == result.metrics


def test_another_split_has_a_folder_of_its_own(result, trained, dataset):
    before = (result.folder / "metrics.json").read_bytes()
    other = evaluate(trained, split="validation")
    assert other.folder == result.folder / "validation"
    assert other.metrics["n"] == len(dataset.split("validation"))
    assert (result.folder / "metrics.json").read_bytes() == before


def timeless(value):
    if isinstance(value, dict):
        times = ("seconds", "finished", "seconds_per_report", "tokens_per_second")
        return {key: timeless(inner) for key, inner in value.items() if key not in times}
    return [timeless(inner) for inner in value] if isinstance(value, list) else value


def test_a_killed_one_leaves_the_older_whole_and_its_reports_give_the_same_json_but_for_times(
    result, trained, monkeypatch, caplog
):
    lines = [timeless(ours.to_json()) for ours in result.predictions]
    validation = evaluate(trained, split="validation").metrics["hash"]
    before = {path: path.read_bytes() for path in result.folder.rglob("*") if path.is_file()}

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "save_figures", stop)
        with pytest.raises(KeyboardInterrupt):
            evaluate(trained, force=True)
    assert {path: path.read_bytes() for path in before} == before
    assert is_current(trained, "evaluation")
    with caplog.at_level("INFO"):
        again = evaluate(trained, force=True)
    found = re.findall(r"the reports of (\d+) of (\d+) batches were there", caplog.text)
    assert [done == batches for done, batches in found] == [True] * 4  # the base and three stages
    assert timeless(again.metrics) == timeless(result.metrics)
    assert [timeless(ours.to_json()) for ours in again.predictions] == lines
    assert evaluate(trained, split="validation").metrics["hash"] == validation
    assert not (again.folder / "reports").exists()
    assert not RunFolder.of(trained).partial("evaluation").exists()


@pytest.mark.parametrize("killed_at", ["evaluation.before", "evaluation.partial", "while it was removed"])
def test_one_that_is_whole_but_not_in_its_place_is_put_there_and_not_made_again(
    result, trained, monkeypatch, killed_at
):
    known, run = evaluate(trained).metrics, RunFolder.of(trained)
    if killed_at == "while it was removed":
        shutil.copytree(result.folder, run.before("evaluation"))
    else:
        result.folder.rename(result.folder.with_name(killed_at))
    monkeypatch.setattr(module, "reporter_of", lambda *_: pytest.fail("evaluated again"))
    assert evaluate(trained).metrics == known
    assert not run.before("evaluation").exists()


def test_a_split_without_studies_is_refused(trained, monkeypatch):
    monkeypatch.setattr("radvision_utils.data.studies.Studies.__iter__", lambda self: iter(()), raising=False)
    with pytest.raises(RadVisionError, match="the validation split of run 'small' has no studies"):
        evaluate(trained, split="validation", force=True)


@pytest.mark.parametrize(
    ("text", "sentence"), [("", "is empty"), ("El corazón y los pulmones son normales.", "not Eng")]
)
def test_a_reference_that_cannot_be_scored_is_refused(trained, monkeypatch, text, sentence):
    from radvision_utils.data.studies import Studies

    study = Studies._study
    monkeypatch.setattr(
        Studies, "_study", lambda self, row: dataclasses.replace(study(self, row), reference=Report(text, ""))
    )
    with pytest.raises(RadVisionError, match=sentence):
        evaluate(trained, force=True)


def test_the_figures_draw_a_row_each(result):
    assert len(show_ladder(result.metrics).axes) == 2
    assert len(show_observations(result.metrics).axes[0].get_yticklabels()) == 13
    assert show_confusion(result.metrics).axes
    assert show_text_against_labels(result.predictions).axes
    assert show_verdicts(result.predictions).axes


def test_rows_that_are_not_asked_for_appear_nowhere_and_are_named_with_their_command(trained):
    ends = dataclasses.replace(trained, evaluation=EvaluationSettings(stages="ends", evidence=0))
    few = evaluate(ends, split="validation", force=True)
    models = [row["row"] for row in few.metrics["table"] if row["row"].startswith(("base", "after"))]
    assert models == ["base, untuned", "after stage 3"]
    assert {ours.stage for ours in few.predictions} == {0, 3}
    assert "after stage 1" not in (few.folder / "table.md").read_text()
    assert few.metrics["memory"]["reports"]["planned"] > 0
    assert few.metrics["memory"]["reports"]["measured"] is None
    told = [list(row.values()) for row in left_out(ends)]
    assert [what for what, _ in told] == ["reports after stage 1 and 2", "maps of the 12 worst reports"]
    assert told[0][1].count("--set evaluation.") == 1  # all stages are the default; what else was asked for stays
    assert "--set evaluation.evidence=0" in told[0][1]
    assert left_out(trained) == []
