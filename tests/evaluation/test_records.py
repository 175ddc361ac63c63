"""Prediction records: errors that need no reference to see, and what the cards and ReXrank read."""

import pytest

from radvision_utils import Report
from radvision_utils.data.labels import Label
from radvision_utils.evaluation.records import (
    DrawnFinding,
    Model,
    Prediction,
    flags_of,
    mention_spans,
    mentioned,
    normal_form,
    report_labels,
    rexrank_submission,
)

MODEL = Model("tiny", 3, "tiny")
KNOWN = (
    "heart normal chest left effusion unchanged from prior has resolved since pneumothorax right pleural possible edema"
)
TRAINING = frozenset([normal_form(Report("The lungs are clear.", "No acute disease.")), f"is and eff {KNOWN}"])


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
        ("The lungs are clear. " * 3, "", ["repeats itself"]),
        ("No effusion and no effusion and no effusion and no eff", "", ["repeats itself"]),
        ("1. No effusion. 2. No effusion. 3. No effusion.", "", ["repeats itself"]),
        ("Hyper" + "lucent" * 12, "", ["repeats itself", "unknown word"]),
        ("No effusion. No edema.", "No effusion. No edema. No effusion.", []),
        ("The heart is normal with its le.", "", ["unknown word"]),
        ("", "", []),
    ],
)
def test_errors_that_a_report_shows_by_itself_are_flagged(findings, impression, flags):
    assert flags_of(Report(findings, impression), TRAINING) == flags


def test_a_report_that_was_cut_is_flagged():
    assert flags_of(Report("The lungs are", ""), TRAINING, finished=False) == ["cut at the token limit"]


def test_labels_of_a_record_name_only_what_the_text_mentions():
    labels = report_labels(Report("Left pleural effusion. No pneumothorax.", ""))
    assert mentioned(labels) == {"Pneumothorax": Label("absent"), "Pleural Effusion": Label("present", ("left",))}


def test_mentions_are_spans_in_their_own_section():
    report = Report("The heart is normal.", "Small left effusion.")
    [mention] = mention_spans(report)["impression"]
    assert (mention.observation, mention.status, mention.side) == ("Pleural Effusion", "present", "left")
    assert "effusion" in report.impression[mention.start : mention.end]


def test_a_rexrank_submission_has_the_fields_that_it_reads():
    ours = Prediction(
        uid="17",
        split="test",
        image="data/images/17.png",
        view="frontal",
        indication="Cough.",
        generated=Report("Clear lungs.", "Normal."),
        reference=Report("Lungs are clear.", "Normal chest."),
        model=MODEL,
    )
    assert rexrank_submission([ours])["17"] == {
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


@pytest.mark.parametrize("reference", [Report("Lungs are clear.", ""), None])
def test_a_prediction_that_was_written_is_read_as_it_was(reference):
    report = Report("Left effusion.", "", headed=False)
    ours = Prediction(
        uid="17",
        index=0,
        generated=report,
        reference=reference,
        labels={"generated": mentioned(report_labels(report))},
        mentions={"generated": mention_spans(report)},
        flags=("x",),
        findings=(DrawnFinding(name="effusion", verdict="agree"),),
        model=MODEL,
    )
    assert Prediction.read(ours.to_json()) == ours
