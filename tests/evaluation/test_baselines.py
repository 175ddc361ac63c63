"""Rows without a model: what they write, that they are seeded, and that they earn what they should."""

import numpy as np
import pytest

from radvision_utils import RadVisionError, Report
from radvision_utils.evaluation.baselines import (
    BEST_CONSTANT,
    CONSTANT,
    RANDOM,
    blind_reports,
    main,
    nearest,
)
from radvision_utils.evaluation.constant_report import ConstantScorer, best_constant, commonest_normal_report
from radvision_utils.evaluation.score import score_file
from radvision_utils.evaluation.text_metrics import PROTOCOLS, r2gen_words, score_texts

R2GEN = next(iter(PROTOCOLS))
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


@pytest.mark.parametrize("report", [*VALIDATION, Report("the the the lungs the lungs", "")])
def test_a_constant_is_scored_exactly_as_pycocoevalcap_would(report):
    scorer = ConstantScorer(VALIDATION)
    text = r2gen_words(report.findings)
    corpus = score_texts([report] * len(VALIDATION), VALIDATION, R2GEN).corpus
    assert scorer.bleu4(text) == pytest.approx(corpus["bleu4"], abs=1e-9)
    assert scorer.cider_d(text) == pytest.approx(corpus["cider_d"], abs=1e-9)


def test_the_best_constant_is_normal_and_earns_no_less_than_any_training_report():
    best = best_constant(TRAIN, VALIDATION)
    scorer = ConstantScorer(VALIDATION)

    def worth(report):
        return scorer.worth(r2gen_words(report.findings))

    assert "effusion." not in best.findings.replace("No pleural effusion", "")
    assert "pacemaker" not in best.findings
    assert worth(best) >= max(worth(CLEAR), worth(QUIET))


def test_without_a_normal_training_report_there_is_still_a_constant():
    assert best_constant([ILL, ILL, PACED], VALIDATION) == ILL


def test_random_reports_are_training_reports_and_follow_the_seed():
    first, again, other = (blind_reports(TRAIN, VALIDATION, 20, seed)[RANDOM] for seed in (1, 1, 2))
    assert first == again != other
    assert set(first) <= set(TRAIN)


def test_every_row_has_a_report_for_every_study():
    rows = blind_reports(TRAIN, VALIDATION, 5, 1)
    assert {name: len(reports) for name, reports in rows.items()} == {CONSTANT: 5, BEST_CONSTANT: 5, RANDOM: 5}


def test_the_nearest_is_by_angle_and_not_by_length():
    train = np.array([[1, 0], [0, 1], [-1, 0]], np.float32)
    assert nearest(train, np.array([[0.1, 5], [-9, 1], [0, 0]], np.float32)).tolist() == [1, 2, 0]


@pytest.mark.slow
def test_published_text_metrics_need_no_image(open_i, tmp_path):
    """A fixed normal report scores as published systems do on R2Gen's 590 test studies, and finds nothing."""
    out = tmp_path / "constant.csv"
    main([str(open_i / "reports.csv"), str(open_i / "r2gen_split.json"), str(out)])
    metrics, _ = score_file(out)
    row = metrics["rows"]["constant"]
    assert metrics["n"] == 590
    assert 0.19 <= row[R2GEN]["bleu4"]["value"] <= 0.21
    assert 0.35 <= row[R2GEN]["rouge_l"]["value"] <= 0.42
    assert 0.41 <= row[R2GEN]["cider_d"]["value"] <= 0.46
    assert row["rule labels, findings + impression"]["micro_f1"]["value"] == 0


def test_a_missing_table_is_named(tmp_path):
    with pytest.raises(RadVisionError, match=r"nothing\.csv is not a file"):
        main([str(tmp_path / "nothing.csv"), str(tmp_path / "split.json"), str(tmp_path / "out.csv")])
