"""One text whatever its line breaks: wrapped, with CRLF, with bullets, with a statement a line and no stops."""

import textwrap

import pytest

from radvision_utils.data.cleaning import clean_section
from radvision_utils.data.lines import join_lines, statement_lines

SENTENCES = [
    "The heart is mildly enlarged and the mediastinum is not widened",
    "There is a small left-sided pleural effusion with adjacent atelectasis at the base of the left lower lobe",
    "No pneumothorax, focal consolidation or acute fracture is seen",
    "ETT and NGT in place",
    "A nodule of 2.5 cm projects over the XXXX XXXX rib",
    "Lungs are otherwise clear",
]
TEXT = " ".join(f"{sentence}." for sentence in SENTENCES)


@pytest.mark.parametrize("width", [30, 40, 57, 78, 100])
@pytest.mark.parametrize("ending", ["\n", "\r\n", "\n   ", " \n"])
@pytest.mark.parametrize("case", [str, str.upper, str.lower])
def test_wrapping_changes_nothing(width, ending, case):
    assert join_lines(textwrap.fill(case(TEXT), width).replace("\n", ending)) == case(TEXT)


@pytest.mark.parametrize("words", [1, 2, 3, 5, 8])
def test_lines_of_a_few_words_each_change_nothing(words):
    split = TEXT.split()
    lines = [" ".join(split[n : n + words]) for n in range(0, len(split), words)]
    joined = join_lines("\n".join(lines))
    assert [joined[a:b] for a, b in statement_lines(joined)] == [joined]
    assert words == 1 or joined == TEXT


@pytest.mark.parametrize("mark", ["", "- ", "* ", "\u2022 ", "\u2022", "  - "])
@pytest.mark.parametrize("stop", ["", "."])
@pytest.mark.parametrize("order", [1, -1])
def test_statements_on_lines_of_their_own_end_with_stops(mark, stop, order):
    lines = [f"{mark}{sentence}{stop}" for sentence in SENTENCES[::order]]
    assert join_lines("\n".join(lines)).rstrip(".") == ". ".join(SENTENCES[::order])
    assert len(statement_lines("\n".join(lines))) == len(lines)


def test_points_that_are_wrapped_themselves_stay_whole():
    points = [textwrap.fill(s, 50, initial_indent="- ", subsequent_indent="  ") for s in SENTENCES]
    assert join_lines("\n".join(points)) == ". ".join(SENTENCES)


def test_numbers_and_blank_lines_part_points():
    assert join_lines("1. No effusion\n2. Clear lungs") == "1. No effusion. 2. Clear lungs"
    assert join_lines("No effusion\n\nclear lungs") == "No effusion. clear lungs"
    assert join_lines("A nodule of\n2.5 cm") == "A nodule of 2.5 cm"


def test_small_letters_alone_do_not_join_short_lines():
    assert join_lines("no effusion\nlungs clear\nheart is normal in size") == (
        "no effusion. lungs clear. heart is normal in size"
    )


def test_cleaning_reads_through_line_breaks():
    assert clean_section("Small left\neffusion\nLungs clear\n- No fracture") == (
        "Small left effusion. Lungs clear. No fracture."
    )


@pytest.mark.parametrize("text", ["", "\n", " \r\n\t", "-", "- ", "\u2022\n\u2022"])
def test_nothing_stays_nothing(text):
    assert join_lines(text).strip("-") == ""
