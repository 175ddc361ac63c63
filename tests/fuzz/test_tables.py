"""Tables of any bytes end in lines or one sentence; a table gives the same lines in whatever spelling it comes."""

import csv
import io

import pytest

pytest.importorskip("hypothesis", reason="hypothesis is not installed")

from hypothesis import given
from hypothesis import strategies as st

from radvision_utils.config import RadVisionError
from radvision_utils.data.cells import csv_columns, csv_lines, study_number

CELL = st.text(st.sampled_from("abc XYZ019.,;\t|\"'\n\u00e9\u2019\u00fc"), max_size=12)
LINES = st.lists(st.tuples(st.integers(1, 99).map(str), CELL, CELL), min_size=1, max_size=5)


@given(
    LINES,
    st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "cp1252"]),
    st.sampled_from(",;\t|"),
    st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
)
def test_a_table_in_any_spelling_gives_the_same_lines(tmp_path_factory, lines, encoding, separator, quoting):
    stream = io.StringIO(newline="")
    csv.writer(stream, delimiter=separator, quoting=quoting).writerows([("uid", "findings", "impression"), *lines])
    path = tmp_path_factory.getbasetemp() / "spelled.csv"
    path.write_bytes(stream.getvalue().encode(encoding))
    assert csv_columns(path) == ["uid", "findings", "impression"]
    assert [tuple(line.values()) for line in csv_lines(path)] == lines


@given(st.binary(max_size=300), st.sampled_from(["any.csv", "any.csv.gz"]))
def test_a_table_of_any_bytes_is_read_or_told_in_one_sentence(tmp_path_factory, content, name):
    path = tmp_path_factory.getbasetemp() / name
    path.write_bytes(content)
    told = ""
    try:
        list(csv_lines(path))
    except RadVisionError as error:
        told = str(error)
    assert "\n" not in told


@given(st.integers(0, 10**9))
def test_a_study_has_one_number_however_it_is_written(number):
    assert {study_number(form) for form in (number, float(number), f"{number}.0", f" {number} ")} == {str(number)}
