"""Prediction records: errors that need no reference to see, and what the cards and ReXrank read."""

import pytest

from radvision_utils import Report
from radvision_utils.evaluation.records import (
    flags_of,
    mention_spans,
    mentioned,
    normal_form,
    report_labels,
    rexrank_submission,
)

TRAINING = {normal_form(Report("The lungs are clear.", "No acute disease."))}


@pytest.mark.parametrize(
    ("findings", "impression", "flags"),
    [
        ("The heart is normal.", "Normal chest.", []),
        ("Left effusion, unchanged from prior.", "Effusion.", ["prior study"]),
        ("The effusion has resolved since XXXX.", "", ["prior study", "de-identification token"]),
        ("No pneumothorax.", "Right pneumothorax.", ["findings against impression"]),
        ("Left pleural effusion.", "Right pleural effusion.", ["findings against impression"]),
        ("Possible effusion.", "Effusion.", []),
        ("The lungs are  clear.", "NO acute disease.", ["copied from training"]),
        ("", "", []),
    ],
)
def test_errors_that_a_report_shows_by_itself_are_flagged(findings, impression, flags):
    assert flags_of(Report(findings, impression), TRAINING) == flags


def test_labels_of_a_record_name_only_what_the_text_mentions():
    labels = report_labels(Report("Left pleural effusion. No pneumothorax.", ""))
    assert mentioned(labels) == {
        "Pneumothorax": {"status": "absent", "sides": []},
        "Pleural Effusion": {"status": "present", "sides": ["left"]},
    }


def test_mentions_are_spans_in_their_own_section():
    report = Report("The heart is normal.", "Small left effusion.")
    [mention] = mention_spans(report)["impression"]
    assert (mention["observation"], mention["status"], mention["side"]) == ("Pleural Effusion", "present", "left")
    assert "effusion" in report.impression[mention["start"] : mention["end"]]


def test_a_rexrank_submission_has_the_fields_that_it_reads():
    record = {
        "uid": "17",
        "split": "test",
        "image": "data/images/17.png",
        "view": "frontal",
        "indication": "Cough.",
        "generated": {"findings": "Clear lungs.", "impression": "Normal.", "headed": True},
        "reference": {"findings": "Lungs are clear.", "impression": "Normal chest."},
    }
    assert rexrank_submission([record])["17"] == {
        "key_image_path": "data/images/17.png",
        "image_path": ["data/images/17.png"],
        "frontal_lateral": ["Frontal"],
        "section_findings": "Lungs are clear.",
        "section_impression": "Normal chest.",
        "report": "Findings: Lungs are clear. Impression: Normal chest.",
        "context": "Indication: Cough.",
        "split": "test",
        "model_prediction": "Findings: Clear lungs. Impression: Normal.",
    }
