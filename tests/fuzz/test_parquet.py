"""Parquet of any bytes and types ends in rows or one sentence; files keep their splits; a path never leads outside."""

import datetime
import io
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

pytest.importorskip("hypothesis", reason="hypothesis is not installed")

from hypothesis import given
from hypothesis import strategies as st

from radvision_utils.config import DataSettings, RadVisionError
from radvision_utils.data.sources import COLUMNS, EXTRAS, open_source

SPELLED = {
    "train": ["train", "Train", "TRAINING", "training"],
    "validation": ["val", "valid", "Validation", "dev"],
    "test": ["test", "TEST", "testing", "eval"],
}


def row(uid, /, **changes):
    texts = {"findings": "The lungs are clear.", "impression": "Normal.", "img_frontal": b"picture"}
    return {"uid": uid, "MeSH": "normal", **texts, **changes}


def rows_of(source):
    """The rows, or [] where one sentence says why there are none."""
    rows, told = [], "One sentence."
    try:
        rows = list(open_source(str(source), DataSettings(), 0).rows())
    except RadVisionError as error:
        told = str(error)
    assert "\n" not in told
    assert told.endswith(".")
    return rows


def encoded(rows, **options):
    stream = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), stream, **options)
    return stream.getvalue()


GOOD = [encoded([row(uid) for uid in range(9)], compression=kind) for kind in ("none", "snappy", "zstd", "gzip")]


@given(st.data())
def test_a_damaged_file_gives_rows_or_one_sentence(tmp_path_factory, data):
    content = bytearray(data.draw(st.sampled_from(GOOD) | st.binary(max_size=99), label="file"))
    for _ in range(data.draw(st.integers(0, 4), label="changes")):
        at = data.draw(st.integers(0, max(len(content) - 1, 0)), label="at")
        content[at : at + data.draw(st.sampled_from([0, 1, 4, 10**6]))] = data.draw(st.binary(max_size=4))
    path = tmp_path_factory.getbasetemp() / "damaged.parquet"
    path.write_bytes(bytes(content))
    rows_of(path)


CELLS = st.one_of(
    *(st.text(max_size=9), st.binary(max_size=9), st.integers(-(2**63), 2**63 - 1), st.booleans(), st.floats()),
    *(st.dates(datetime.date(1900, 1, 1)), st.decimals(allow_nan=False, places=2, max_value=10**6, min_value=0)),
    *(st.lists(st.integers(0, 9), max_size=2), st.lists(st.binary(max_size=3), max_size=2)),
    st.fixed_dictionaries({"bytes": st.none() | st.binary(max_size=3), "path": st.none() | st.text(max_size=9)}),
    st.fixed_dictionaries({"bytes": st.text(max_size=3), "path": st.integers(0, 9)}),
)


@given(st.sampled_from([*COLUMNS, *EXTRAS]), CELLS, st.booleans())
def test_a_cell_of_any_type_in_any_column_gives_rows_or_one_sentence(tmp_path_factory, column, cell, second):
    path = tmp_path_factory.getbasetemp() / "typed.parquet"
    path.write_bytes(encoded([row("1", **{column: cell}), *([row("2", **{column: None})] if second else [])]))
    for each in rows_of(path):
        kinds = {"uid": str, "patient": str, "split": str, "truth": str, "img_frontal": bytes}
        assert all(value is None or type(value) is kinds.get(name, str) for name, value in each.items())


@given(st.binary(max_size=9), st.sampled_from([pa.string(), pa.large_string(), pa.string_view()]))
def test_a_text_of_any_bytes_is_read(tmp_path_factory, text, kind):
    raw = pa.array([text + b" The lungs are clear.", None], pa.binary_view() if kind == pa.string_view() else None)
    table = pa.Table.from_pylist([row("1"), row("2")])
    column = table.column_names.index("findings")
    binary = {pa.string(): pa.binary(), pa.large_string(): pa.large_binary()}.get(kind, pa.binary_view())
    path = tmp_path_factory.getbasetemp() / "texts.parquet"
    pq.write_table(table.set_column(column, "findings", raw.cast(binary).view(kind)), path)
    first, second = open_source(str(path), DataSettings(), 0).rows()
    assert first["findings"].strip().endswith("The lungs are clear.")
    assert second["findings"] is None


@given(
    st.permutations([(split, name) for split, names in SPELLED.items() for name in names]).map(lambda all_: all_[:6]),
    st.sampled_from(["{}.parquet", "{}-00000-of-00002.parquet", "data/open_i_{}.parquet", "{}/0000.parquet"]),
    st.booleans(),
)
def test_a_study_stays_in_the_split_that_its_file_states(tmp_path_factory, named, form, images):
    folder = tmp_path_factory.mktemp("splits")
    for number, (_, name) in enumerate(named):
        path = folder / form.format(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded([row(f"{number}-{n}", patient=f"p{number}") for n in range(3)]))
    stated = {split for split, _ in named}
    for each in rows_of(folder) if len(stated) > 1 else []:
        split = named[int(each["uid"].split("-")[0])][0]
        drawn = split == "train" and each["split"] not in stated  # of a split that no file states
        assert each["split"] == split or drawn


PARTS = st.lists(st.sampled_from(["..", ".", "images", "in.png", "out.png", "link", "", "away", "\0"]), max_size=5)


@given(PARTS, st.sampled_from(["/", "\\"]), st.sampled_from(["", "relative", "absolute"]))
def test_the_path_of_a_cell_is_read_inside_the_sources_folder_only(tmp_path_factory, parts, separator, start):
    root = tmp_path_factory.getbasetemp() / "paths"
    source = root / "source"
    if not root.is_dir():
        (source / "images").mkdir(parents=True)
        (root / "out.png").write_bytes(b"secret")
        (source / "images" / "in.png").write_bytes(b"inside")
        os.symlink(root, source / "away")
        os.symlink(root / "out.png", source / "link")
    name = separator.join(["images/in.png" if start == "relative" else "", *parts][start == "" :])
    name = f"{root}/{name}" if start == "absolute" else name
    (source / "a.parquet").write_bytes(encoded([row("1", img_frontal={"bytes": None, "path": name})]))
    [only] = open_source(str(source), DataSettings(), 0).rows()
    assert only["img_frontal"] in (b"inside", None)
    if "\0" not in name and (source / name.replace("\\", "/")).resolve() == source / "images" / "in.png":
        assert only["img_frontal"] == b"inside"
