"""Tables as people save them: any usual encoding, separator and quoting, and what a cell of theirs stands for.

One function each says what an empty cell is and which number a study has, for every source alike.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import logging
import re
import unicodedata
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from radvision_utils.config import RadVisionError
from radvision_utils.files import first_line

log = logging.getLogger(__name__)

# What pandas, polars, R, SQL, spreadsheets and people write for nothing: "<NA>", "#N/A", "\\N", "NaN", "not available".
_STATE = "(?:available|applicable|known|(?:un)?specified|done|performed|mentioned|documented|dictated"
_STATE += "|(?:report|provid|giv|stat|record|enter)(?:en|ed))"
_NOTHING = re.compile(
    r"\W*(?:(?:nan|n\W{0,3}a|n/k|nat|nill?|null?|none(?:type)?|missing|empty|blank|void|pending|tb[ad]|class|float|np|numpy|pd"
    r"|data|value|un(?:defined|available|known|specified)|not?\s(?:report|text|data|value|entry|information)"
    rf"|(?:no\s)?(?:report|text|findings|impression)\s(?:not\s)?{_STATE}|(?:not|none)\s(?:yet\s)?{_STATE})(?:\W+|$))*"
    r"|\\N|#[a-z/0]{3,8}[?!]|-?1\.#\w{3,4}",
    re.IGNORECASE,
)
_NOTHINGS = 24  # characters of such words with their signs
_WHOLE = re.compile(r"(\d+)(?:\.0*|,0)")
_UNSEEN = "\ufeff\u200b\u200e\u200f"

_SEPARATORS = ",;\t|"
_TOLD = 40  # columns that a sentence names
_FIRST = 1 << 16  # characters that tell how a table is written; its header has fewer
_MOST_COLUMNS = 10_000
_GZIP = b"\x1f\x8b"
_OTHERS = ("PK\x03\x04", "\udcd0\udccf\x11", "%PDF", "PAR1", "\x89PNG", "\udc89PNG", "<html", "<!DOCTYPE")
_LONGEST_CELL = 10_000_000  # characters; a longer one is a quote that nobody closed
csv.field_size_limit(_LONGEST_CELL)  # of the whole process: there is no other way
# Bytes that are no UTF-8 come as lone surrogates; they are letters of Windows-1252, in which spreadsheets save.
_LETTERS = {0xDC00 + byte: bytes([byte]).decode("cp1252", "replace") for byte in range(0x80, 0x100)}


def given(cell: str | None) -> str | None:
    """A cell, or None where it holds nothing: blanks, or words that stand for nothing ("nan", "<NA>", "NULL")."""
    text = unicodedata.normalize("NFKC", (cell or "").strip().strip(_UNSEEN))
    return None if len(text) <= _NOTHINGS and _NOTHING.fullmatch(text) else cell


def study_number(value: Any) -> str | None:
    """The number or name of a study or patient in its one form: 1, 1.0, "1.0", " 1", "'1" are all "1"; None for none.

    Leading zeros stay: "01" may be another than "1".
    """
    if isinstance(value, Real) and value == value:
        value = str(value if isinstance(value, Integral) else float(value))
    # Spreadsheets mark a text with an apostrophe, or write it as the formula ="1".
    text = unicodedata.normalize("NFKC", value).strip(f"{_UNSEEN}'\"=+ \t\r\n") if isinstance(value, str) else ""
    if not text or (given(text) is None and re.search(r"\w", text)):  # ".." is a name, if an odd one
        return None
    return _WHOLE.sub(r"\1", text) if _WHOLE.fullmatch(text) else text


def open_i_number(name: Any) -> str | None:
    """The number of an Open-I study by the name that R2Gen, ReXrank and MedEvalKit give it, "CXR2384_IM-0942" or a file
    in a folder of that name; other names as `study_number` has them."""
    found = re.match(r"CXR(\d+)_", name) if isinstance(name, str) else None
    return study_number(found[1] if found else name)


def check_columns(present: Sequence[str], where: str, needed: Sequence[str]) -> None:
    """Refuse a table without the columns needed, or with two of one name.

    Raises:
        RadVisionError: the sentence names what is missing and what there is.
    """
    missing = [name for name in needed if name not in present]
    if missing:
        raise RadVisionError(
            f"{where} lacks the column{'s' * (len(missing) > 1)} {', '.join(missing)}; it has "
            f"{', '.join(map(shown, present[:_TOLD])) or 'none'}: give a source with the columns {', '.join(needed)}."
        )
    if twice := [name for name in needed if list(present).count(name) > 1]:
        raise RadVisionError(f"{where} has two columns {twice[0]}: keep one of them.")


def shown(text: str) -> str:
    """A stranger's word as it may stand in a sentence: it must neither steer a terminal nor fill the log."""
    return repr(text[:80]) if len(text) > 80 or not text.isprintable() else text


def csv_columns(path: Path) -> list[str]:
    """The header of a table, see `csv_lines`.

    Raises:
        RadVisionError: the file is damaged.
    """
    with _rows(path) as rows:
        return _header(rows, path)


def csv_lines(path: Path) -> Iterator[dict[str, str]]:
    """The lines of a table, `.csv` or `.csv.gz`, by column; a line that is too short has "" in the others.

    Encoding (UTF-8, UTF-16, Windows-1252) and separator (comma, semicolon, tab, bar) are told from the file itself.

    Raises:
        RadVisionError: it is damaged, a quote stays open, or a line has more cells than the header.
    """
    told = False
    with _rows(path) as rows:
        columns = _header(rows, path)
        for row in rows:
            if not any(cell.strip(" \x1a\0") for cell in row):  # where a spreadsheet ends, and files of old DOS
                continue
            if row[: len(columns)] == columns:  # of a second table that was put behind the first
                continue
            if any(cell.strip() for cell in row[len(columns) :]):
                raise RadVisionError(
                    f"{path} has {len(row)} cells up to line {rows.line_num} where its header has {len(columns)}: put "
                    "texts that hold the separator in quotes."
                )
            cells = [cell if cell.isascii() else cell.translate(_LETTERS) for cell in row[: len(columns)]]
            if not told and cells != row[: len(columns)]:
                told = True
                log.warning(
                    "%s is not in UTF-8 (line %d): read as Windows-1252; if letters look wrong, save it as UTF-8",
                    path,
                    rows.line_num,
                )
            yield dict(zip(columns, cells + [""] * (len(columns) - len(cells)), strict=True))


def _header(rows: Any, path: Path) -> list[str]:
    cells: list[str] = next((row for row in rows if row), [])
    if len(cells) > _MOST_COLUMNS:
        raise RadVisionError(
            f"{path} has {len(cells):,} columns: a table of studies has a line for each, not a column."
        )
    return [cell.translate(_LETTERS).strip().strip(_UNSEEN) for cell in cells]


@contextmanager
def _rows(path: Path) -> Iterator[Any]:
    """A csv reader of the file, before its header."""
    rows: Any = None
    try:
        with path.open("rb") as file, gzip.open(file) if file.peek(2)[:2] == _GZIP else file as binary:
            stream = io.TextIOWrapper(binary, _encoding(binary.peek(_FIRST)), "surrogateescape", newline="")
            start = stream.read(_FIRST)
            if start.startswith(_OTHERS):
                raise csv.Error("it is a workbook or another kind of file")
            stream.seek(0)
            if named := re.match(r'"?sep=([,;\t|])"?\r?\n', start):  # a line for Excel, before the header
                stream.readline()
            rows = csv.reader(stream, delimiter=named[1] if named else _separator(start), strict=True)
            yield rows
    except (csv.Error, UnicodeError) as error:
        where = f" (line {rows.line_num})" if rows else ""
        raise RadVisionError(
            f"{path} is not a CSV table{where}: {first_line(error)}; look for a quote that is not closed or not "
            "doubled, or save it anew as CSV in UTF-8."
        ) from error
    except (OSError, EOFError, zlib.error) as error:
        raise RadVisionError(f"{path} is not a CSV table ({first_line(error)}): get the file anew.") from error


def _encoding(start: bytes) -> str:
    if start.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        return "utf-32"
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    # Without its mark UTF-16 still shows: every second byte of a header in Latin letters is zero.
    low, high = start[1:200:2].count(0), start[0:200:2].count(0)
    return "utf-8-sig" if abs(low - high) <= len(start[:200]) // 4 else "utf-16-le" if low > high else "utf-16-be"


def _separator(start: str) -> str:
    """The separator that parts the header into the most cells."""

    def cells(separator: str) -> int:
        try:
            return len(next(csv.reader(io.StringIO(start.lstrip("\r\n"), newline=""), delimiter=separator), []))
        except csv.Error:
            return 0

    return max(_SEPARATORS, key=cells)
