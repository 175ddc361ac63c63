"""The rule-based labels: what a sentence asserts, denies or doubts, and that no text breaks or stalls them."""

import csv
import random
import time
from pathlib import Path

import pytest

from radvision_utils.data.labels import OBSERVATIONS, Label, Mention, compare, find_mentions, label, sentences

SIDES = {"left": ("left",), "right": ("right",), "bilateral": ("left", "right"), "": ()}

with Path(__file__).with_name("label_sentences.csv").open(newline="", encoding="utf-8") as file:
    ROWS = [tuple(row.values()) for row in csv.DictReader(file)]


def said(**labels: Label) -> dict[str, Label]:
    """All 14 labels, "not mentioned" but for those given (`Pleural_Effusion=...`)."""
    given = {name.replace("_", " "): value for name, value in labels.items()}
    return {name: given.get(name, Label("not mentioned")) for name in OBSERVATIONS}


@pytest.mark.parametrize(("text", "observation", "status", "side"), ROWS)
def test_a_sentence_has_the_label_a_reader_gives_it(text: str, observation: str, status: str, side: str) -> None:
    assert label(text)[observation] == Label(status, SIDES[side])


def test_the_sentences_cover_every_observation_and_status() -> None:
    assert len(ROWS) >= 120
    for observation in OBSERVATIONS[1:]:
        statuses = {row[2] for row in ROWS if row[1] == observation}
        assert statuses >= {"present", "absent", "uncertain"}, observation


@pytest.mark.parametrize("text", ["", " \n\t ", "...", "\x00\x01", "\u200f"])
def test_a_text_without_a_word_mentions_nothing(text: str) -> None:
    assert label(text) == said()


def test_present_beats_uncertain_beats_absent() -> None:
    assert label("No effusion. Possible effusion.")["Pleural Effusion"].status == "uncertain"
    assert label("No effusion. Possible effusion. Effusion.")["Pleural Effusion"].status == "present"


def test_sides_are_those_of_the_mentions_that_decide() -> None:
    assert label("No right effusion. Left effusion.")["Pleural Effusion"] == Label("present", ("left",))
    assert label("Left effusion. Right effusion.")["Pleural Effusion"].sides == ("left", "right")


def test_no_finding_allows_support_devices_only() -> None:
    assert label("Left pacemaker. No effusion.")["No Finding"].status == "present"
    assert label("Possible effusion.")["No Finding"].status == "not mentioned"
    assert label("Severe emphysema.")["No Finding"].status == "not mentioned"


def test_a_mention_points_at_its_words_in_the_given_text() -> None:
    text = "\u0130nitial study.\u00a0NO\n\nPleural  effusion on the left."
    (mention,) = find_mentions(text)
    assert text[mention.start : mention.end] == "Pleural  effusion"
    assert (mention.observation, mention.side) == ("Pleural Effusion", "left")
    start, end = sentences(text)[mention.sentence]
    assert start <= mention.start < mention.end <= end


def test_case_does_not_matter() -> None:
    for text, *_ in ROWS:
        assert label(text.upper()) == label(text.lower()) == label(text)


def test_sentences_end_at_stops_and_line_ends_but_not_in_numbers_or_abbreviations() -> None:
    text = "Nodule of 2.5 cm vs. scar.Clear.  1. Dr. XXXX called\nEnd?"
    assert [text[a:b] for a, b in sentences(text)] == [
        "Nodule of 2.5 cm vs. scar.",
        "Clear.",
        "1.",
        "Dr. XXXX called",
        "End?",
    ]


def test_any_text_is_read_and_every_key_is_there() -> None:
    rng = random.Random(7)
    words = ["no", "effusion", "left", "or", ",", ";", ".", "?", "may", "heart", "enlarged", "clear", "\x07", "\u05d0"]
    words += ["is not seen", "with", "(", "[", "\\", "\U0001f600", "\ud800", "and", "lungs", "%s", "\u202e", "XXXX"]
    for _ in range(300):
        text = " ".join(rng.choices(words, k=40))
        assert tuple(label(text)) == OBSERVATIONS
        assert all(0 <= m.start < m.end <= len(text) and m.observation in OBSERVATIONS for m in find_mentions(text))


@pytest.mark.parametrize(
    "unit",
    [
        *(
            "no effusion ",
            "a",
            " ",
            "heart ",
            "no-",
            "may ",
            "pneumonia or ",
            "left, and ",
            "1. ",
            "?",
            "No effusion. ",
        ),
        *("not a b c ", "no effusion\n", "History: effusion. ", "pnuemonia ", "removed tube "),
    ],
)
def test_long_text_takes_linear_time(unit: str) -> None:
    text = (unit * 100_000)[:100_000]
    started = time.process_time()
    label(text)
    assert time.process_time() - started < 2.0  # 0.3 s when measured; a quadratic rule would take minutes


def test_compare_names_what_each_report_asserts() -> None:
    effusion, doubt, denied = Label("present", ("left",)), Label("uncertain"), Label("absent")
    verdicts = compare(
        said(Pleural_Effusion=effusion, Edema=doubt, Pneumonia=denied, Fracture=effusion, Atelectasis=denied),
        said(Pleural_Effusion=doubt, Pneumonia=effusion, Cardiomegaly=doubt, Fracture=denied, Consolidation=denied),
    )
    assert verdicts == {
        "Cardiomegaly": "missed",
        "Edema": "unsupported",
        "Pneumonia": "contradiction",
        "Pleural Effusion": "agree",
        "Fracture": "contradiction",
    }


def test_compare_sees_a_wrong_side_but_not_a_denial_of_the_other_side() -> None:
    left, right, both = Label("present", ("left",)), Label("present", ("right",)), Label("present", ("left", "right"))
    assert compare(said(Atelectasis=left), said(Atelectasis=right)) == {"Atelectasis": "contradiction"}
    assert compare(said(Atelectasis=left), said(Atelectasis=both)) == {"Atelectasis": "agree"}
    not_right = said(Atelectasis=Label("absent", ("right",)))
    assert compare(said(Atelectasis=left), not_right) == {"Atelectasis": "unsupported"}
    assert compare(said(Atelectasis=right), not_right) == {"Atelectasis": "contradiction"}


def test_mention_is_a_plain_record() -> None:
    assert find_mentions("Left effusion.") == [Mention("Pleural Effusion", "present", "left", 5, 13, 0)]
