"""What every source has in common: the schema of a row, what is checked of it, and how tables are read.

The schema is that of the hub data set `ykumards/open-i` without its lateral views. Its `image` is TEXT, the title of
the examination ("Xray Chest PA and Lateral"); the picture is the encoded bytes in `img_frontal`.
"""

from __future__ import annotations

import csv
import gzip
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Literal, TextIO

from radvision_utils.config import RadVisionError

Row = dict[str, Any]

COLUMNS = (
    "uid",
    "MeSH",
    "Problems",
    "image",
    "indication",
    "comparison",
    "findings",
    "impression",
    "img_frontal",
)
NEEDED = ("uid", "findings", "impression", "img_frontal")
"""Columns without which there is nothing to learn from; the others may be missing and are then None."""
EXTRAS = ("truth", "patient", "split")
"""Columns that a source may have beside: a phantom's drawn findings, who was examined, and in which split it is."""

_SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validate", "validation", "dev"), "validation"),
    "test": "test",
}


@dataclass(frozen=True)
class Source:
    """A source of studies, opened and checked.

    Attributes:
        name: what the user asked for: "phantom", a hub id or a path.
        kind: how it is read.
        is_open_i: whether its uids are those of the Open-I collection, so that R2Gen's split applies.
        citation: what to cite; empty if unknown.
        license: terms of use; empty if unknown.
        count: number of rows, None if unknown.
        split_by: what decides a study's split, in words.
    """

    name: str
    kind: Literal["phantom", "hub", "parquet", "kaggle", "table", "mimic", "chexpert-plus"]
    is_open_i: bool
    citation: str
    license: str
    count: int | None
    read: Callable[[], Iterator[Row]] = field(repr=False)
    split_by: str = "hash of the patient, or of the uid where there is none"

    def rows(self) -> Iterator[Row]:
        """The rows in the source's order, each with `COLUMNS` (and those of `EXTRAS` that the source has).

        Only the row at hand is in memory. Absent values are None.
        """
        return self.read()


def make_row(values: Mapping[str, Any]) -> Row:
    """A row in the schema. An image may come as `{"bytes": ..., "path": ...}`, as the datasets library stores it.

    Raises:
        RadVisionError: a value has a type that its column cannot have, or a split has an unknown name.
    """
    row = {name: values.get(name) for name in COLUMNS}
    if isinstance(row["uid"], float):  # pandas makes a column of whole numbers with gaps one of floats
        row["uid"] = int(row["uid"]) if row["uid"].is_integer() else None
    for column, value in row.items():
        if column == "img_frontal":
            row[column] = value = value.get("bytes") if isinstance(value, dict) else value
            _check_type(row["uid"], column, value, (bytes,), "the bytes of an image file")
        elif column == "uid":
            _check_type(value, column, value, (str, int), "a text or a whole number")
        else:
            _check_type(row["uid"], column, value, (str,), "a text")
    for name in EXTRAS:
        if name in values:
            row[name] = values[name]
    if row.get("split"):
        row["split"] = split_name(str(row["split"]), row["uid"])
    return row


def _check_type(uid: Any, column: str, value: Any, kinds: tuple[type, ...], wanted: str) -> None:
    if value is not None and (not isinstance(value, kinds) or isinstance(value, bool)):
        raise RadVisionError(f"study {uid} has {type(value).__name__} in {column}: it must hold {wanted}.")


def split_name(name: str, uid: Any) -> str:
    """ "train", "validation" or "test" for the names in use: "val", "valid", "validate", "dev" ...

    Raises:
        RadVisionError: it is none of them.
    """
    if name.strip().lower() not in _SPLIT_NAMES:
        raise RadVisionError(f"study {uid} is in split {name!r}: use train, validation or test.")
    return _SPLIT_NAMES[name.strip().lower()]


def check_columns(present: Sequence[str], where: str, needed: Sequence[str] = NEEDED) -> None:
    """Refuse a table without the columns needed.

    Raises:
        RadVisionError: the sentence names what is missing and what there is.
    """
    missing = [name for name in needed if name not in present]
    if missing:
        raise RadVisionError(
            f"{where} lacks the column{'s' * (len(missing) > 1)} {', '.join(missing)}; it has "
            f"{', '.join(present) or 'none'}: give a source with the columns {', '.join(needed)}."
        )


def check_count(count: int, where: str) -> None:
    """Refuse a source without rows.

    Raises:
        RadVisionError: there are none.
    """
    if count == 0:
        raise RadVisionError(f"{where} holds no studies: give a source with at least one row.")


@contextmanager
def _table(path: Path, errors: str) -> Iterator[TextIO]:
    opened = gzip.open if path.suffix == ".gz" else open
    try:
        with opened(path, "rt", encoding="utf-8-sig", errors=errors, newline="") as stream:
            yield stream
    except (UnicodeDecodeError, csv.Error, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise RadVisionError(f"{path} is not a CSV table in UTF-8 ({first_line(error)}): download it again.") from error


def csv_columns(path: Path) -> list[str]:
    """The header of a table, `.csv` or `.csv.gz`.

    Raises:
        RadVisionError: the file is damaged.
    """
    with _table(path, "replace") as stream:
        return next(csv.reader(stream), [])


def csv_lines(path: Path) -> Iterator[dict[str, str]]:
    """The lines of a table, `.csv` or `.csv.gz`, by column; a line that is too short has "" in the others.

    Raises:
        RadVisionError: it is no UTF-8 table.
    """
    with _table(path, "strict") as stream:
        yield from csv.DictReader(stream, restval="")


def inside(folder: Path, name: str) -> Path | None:
    """The file of that name in a folder; None where there is none, or where the name leads out of the folder."""
    relative = PurePosixPath(name.strip().replace("\\", "/"))
    if not relative.parts or relative.is_absolute() or ".." in relative.parts or "\0" in name:
        return None
    path = folder / relative
    return path if path.is_file() else None


def first_line(error: Exception) -> str:
    """What an exception says, in one line."""
    return (str(error).strip().splitlines() or ["no details"])[0].rstrip(".:")[:200]
