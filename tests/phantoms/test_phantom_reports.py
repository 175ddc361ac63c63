"""How right a report on a phantom is: what was missed, what was invented, and two readers that agree."""

import json

from radvision_utils import Report
from radvision_utils.evaluation.bootstrap import Bootstrap
from radvision_utils.phantoms.phantom_reports import phantom_estimates, verdicts

TRUTH = json.dumps({"findings": [{"name": "pleural effusion", "side": "left"}, {"name": "cardiomegaly", "side": None}]})


def test_verdicts_name_what_was_missed_and_what_was_invented():
    report = Report("There is a right pleural effusion. The heart is enlarged.", "Cardiomegaly.")
    assert verdicts(report, TRUTH) == [
        {"name": "cardiomegaly", "side": "", "verdict": "agree"},
        {"name": "pleural effusion", "side": "left", "verdict": "missed"},
        {"name": "pleural effusion", "side": "right", "verdict": "unsupported"},
    ]


def test_a_study_is_right_only_if_every_finding_and_side_is():
    right = Report("There is a left pleural effusion. The heart is enlarged.", "")
    silent = Report("The lungs are clear.", "Normal chest.")
    found = phantom_estimates([right, silent], [TRUTH, TRUTH], Bootstrap(2, seed=1))
    expected = {"study_accuracy": 0.5, "finding_precision": 1.0, "finding_recall": 0.5}
    assert {name: found[name].value for name in expected} == expected


def test_both_readers_agree_on_what_is_right():
    right = Report("There is a left pleural effusion. The heart is enlarged.", "")
    wrong = Report("There is a right pleural effusion. The heart is enlarged.", "")
    found = phantom_estimates([right, wrong], [TRUTH, TRUTH], Bootstrap(2, seed=1))
    for ending in ("", "_by_rule_labels"):
        assert found[f"study_accuracy{ending}"].value == 0.5
        assert found[f"finding_recall{ending}"].value == 0.75
