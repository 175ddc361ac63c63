"""Tables of any bytes end in lines or one sentence; a table gives the same lines in whatever spelling it comes."""

import csv
import gzip
import io

import pytest

pytest.importorskip("hypothesis", reason="hypothesis is not installed")

from hypothesis import given as over
from hypothesis import strategies as st

from radvision_utils.config import RadVisionError
from radvision_utils.data.cells import csv_columns, csv_lines, given, study_number

CELL = st.text(st.sampled_from("abc XYZ019.,;\t|\"'\n\u00e9\u2019\u00fc"), max_size=12)
LINES = st.lists(st.tuples(st.integers(1, 99).map(str), CELL, CELL), min_size=1, max_size=5)


@over(
    LINES,
    st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp1252"]),
    st.sampled_from(",;\t|"),
    st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
    st.sampled_from(["", "\n\n"]),
    st.sampled_from(["", "\x1a"]),
    st.booleans(),
)
def test_a_table_in_any_spelling_gives_the_same_lines(
    tmp_path_factory, lines, encoding, separator, quoting, before, after, zipped
):
    stream = io.StringIO(newline="")
    stream.write(before)
    csv.writer(stream, delimiter=separator, quoting=quoting).writerows([("uid", "findings", "impression"), *lines])
    path = tmp_path_factory.getbasetemp() / "spelled.csv"
    again = stream.getvalue().strip("\n").splitlines()[0]
    content = f"{stream.getvalue()}{separator * 2}\n{again}\n{after}".encode(encoding)
    path.write_bytes(gzip.compress(content) if zipped else content)
    assert csv_columns(path) == ["uid", "findings", "impression"]
    assert [tuple(line.values()) for line in csv_lines(path)] == lines


@over(st.binary(max_size=300), st.sampled_from(["any.csv", "any.csv.gz"]))
def test_a_table_of_any_bytes_is_read_or_told_in_one_sentence(tmp_path_factory, content, name):
    path = tmp_path_factory.getbasetemp() / name
    path.write_bytes(content)
    told = ""
    try:
        list(csv_lines(path))
    except RadVisionError as error:
        told = str(error)
    assert "\n" not in told


@over(st.integers(0, 10**9))
def test_a_study_has_one_number_however_it_is_written(number):
    texts = (
        f"{number}.0",
        f" {number} ",
        f"'{number}",
        f'="{number}"',
        f"{number},0",
        f"+{number}",
        f"\ufeff{number}\xa0",
    )
    assert {study_number(form) for form in (number, float(number), *texts)} == {str(number)}


WORDS = [
    "nan",
    "<NA>",
    "#N/A",
    "n/a",
    "NULL",
    r"\N",
    "#NAME?",
    "#DIV/0!",
    "not available",
    "(missing)",
    "nan nan",
    " - ",
    *(
        "unknown",
        "np.nan",
        "<missing value>",
        "\uff2e\uff0f\uff21",
        "#SPILL!",
        "1.#QNAN",
        "none given",
        "No report available.",
    ),
    *("not yet reported", "not done", "no data", "no impression given", "Text not provided"),
]


@pytest.mark.parametrize("word", WORDS)
def test_a_word_for_nothing_is_nothing(word):
    assert (given(word), given(word.upper()), given(f" {word}\u200b")) == (None, None, None)
    assert given(f"{word} x1") is not None


def test_a_table_with_columns_without_end_is_told_at_once(tmp_path):
    (tmp_path / "wide.csv").write_text("c," * 100_000)
    with pytest.raises(RadVisionError, match="100,001 columns"):
        csv_columns(tmp_path / "wide.csv")
