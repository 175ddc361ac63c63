"""Where studies come from: one function, `open_source`, gives the rows of any source in one schema, one row at a time.

A row has the columns of the hub data set `ykumards/open-i`. Its `image` is TEXT, the title of the examination ("Xray
Chest PA and Lateral"); the pictures are the encoded bytes in `img_frontal` and `img_lateral`.
"""

from __future__ import annotations

import csv
import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from radvision_utils.config import DataSettings, RadVisionError, project_root

Row = dict[str, Any]

log = logging.getLogger(__name__)

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
    "img_lateral",
)
NEEDED = ("uid", "findings", "impression", "img_frontal")
"""Columns without which there is nothing to learn from; the others may be missing and are then None."""

OPEN_I_HUB = "ykumards/open-i"
OPEN_I_CITATION = (
    "Demner-Fushman D, Kohli MD, Rosenman MB, et al. Preparing a collection of radiology examinations for distribution "
    "and retrieval. Journal of the American Medical Informatics Association 2016;23(2):304-310."
)
OPEN_I_LICENSE = "CC BY-NC-ND 4.0: research only, not commercial. It is used here and never shipped."

_BATCH = 16  # rows; a row of the hub set holds two radiographs of some megabytes
_REPORTS, _PROJECTIONS = "indiana_reports.csv", "indiana_projections.csv"


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
    """

    name: str
    kind: Literal["phantom", "hub", "parquet", "kaggle"]
    is_open_i: bool
    citation: str
    license: str
    count: int | None
    read: Callable[[], Iterator[Row]] = field(repr=False)

    def rows(self) -> Iterator[Row]:
        """The rows in the source's order, each with `COLUMNS` (and `truth` if the source has it).

        Only the row at hand is in memory. Absent values are None.
        """
        return self.read()


def open_source(source: str, settings: DataSettings, seed: int) -> Source:
    """Open a source of studies and check that it can be read.

    Args:
        source: "phantom", a hub id such as "ykumards/open-i", a parquet file, a folder of parquet files, or a folder
            in the Kaggle layout. A relative path is looked up in the working directory, then in the project.
        settings: `limit` (only the first so many rows), and `phantoms`, `hospital`, `workers` for phantoms.
        seed: of the phantoms.

    Raises:
        RadVisionError: the source is unknown, empty, unreadable or lacks columns.
    """
    if source == "phantom":
        opened = _open_phantom(settings, seed)
    elif (path := _find(source)) is not None:
        opened = _open_path(source, path)
    elif re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", source) and not source.endswith((".parquet", ".csv")):
        opened = _open_hub(source)
    else:
        raise RadVisionError(
            f"source {source!r} does not exist: give 'phantom', a hub id such as {OPEN_I_HUB!r}, a parquet file, a "
            "folder of parquet files, or a folder in the Kaggle layout."
        )
    return _limited(opened, settings.limit)


def _find(source: str) -> Path | None:
    if not source.strip():
        return None
    path = Path(source).expanduser()
    return next((p for p in (path, project_root() / path) if p.exists()), None)


def _limited(source: Source, limit: int | None) -> Source:
    if limit is None:
        return source
    count = None if source.count is None else min(limit, source.count)
    values = {**vars(source), "count": count, "read": lambda: islice(source.read(), limit)}
    return Source(**values)


def _open_phantom(settings: DataSettings, seed: int) -> Source:
    from radvision_utils.data.phantom import phantom_rows

    count = min(settings.phantoms, settings.limit or settings.phantoms)
    return Source(
        name="phantom",
        kind="phantom",
        is_open_i=False,
        citation="Phantom studies drawn by this project: radvision_utils/data/phantom.py.",
        license="MIT, as this project.",
        count=count,
        read=lambda: phantom_rows(count, settings.hospital, seed, workers=settings.workers),
    )


def _open_hub(name: str) -> Source:
    import datasets

    try:
        table = datasets.load_dataset(name, split="train", streaming=False)
    except Exception as error:  # the hub client raises the exceptions of several network libraries
        raise RadVisionError(
            f"source {name!r} is no file or folder here and could not be loaded from the hub "
            f"({type(error).__name__}: {_first_line(error)}): check the name and the network, or download its parquet "
            "files and give their folder as the source."
        ) from error
    _check_columns(table.column_names, f"the hub data set {name}")
    for column in ("img_frontal", "img_lateral"):
        if isinstance(table.features.get(column), datasets.Image):
            table = table.cast_column(column, datasets.Image(decode=False))
    _check_count(table.num_rows, f"the hub data set {name}")
    open_i = name == OPEN_I_HUB
    return Source(
        name=name,
        kind="hub",
        is_open_i=open_i,
        citation=OPEN_I_CITATION if open_i else "",
        license=OPEN_I_LICENSE if open_i else "",
        count=table.num_rows,
        read=lambda: (_row(values) for values in table),
    )


def _open_path(name: str, path: Path) -> Source:
    if path.is_file():
        if path.suffix.lower() == ".csv":
            raise RadVisionError(f"source {path} is one table of the Kaggle layout: give the folder that holds it.")
        return _open_parquet(name, [path])
    if (path / _REPORTS).is_file() or (path / _PROJECTIONS).is_file():
        return _open_kaggle(name, path)
    files = sorted(path.rglob("*.parquet"))
    if not files:
        raise RadVisionError(
            f"folder {path} holds neither {_REPORTS} (Kaggle layout) nor a parquet file: give the folder that does."
        )
    return _open_parquet(name, files)


def _open_parquet(name: str, files: Sequence[Path]) -> Source:
    count, schemas = 0, []
    for file in files:
        try:
            with pq.ParquetFile(file) as table:
                columns = table.schema_arrow.names
                count += table.metadata.num_rows
        except (pa.ArrowException, OSError) as error:
            raise RadVisionError(
                f"{file} cannot be read as parquet ({_first_line(error)}): download it again."
            ) from error
        _check_columns(columns, str(file))
        schemas.append(set(columns))
    _check_count(count, name)
    open_i = all(columns.issuperset(COLUMNS) and "truth" not in columns for columns in schemas)
    return Source(
        name=name,
        kind="parquet",
        is_open_i=open_i,
        citation=OPEN_I_CITATION if open_i else "",
        license=OPEN_I_LICENSE if open_i else "",
        count=count,
        read=lambda: _parquet_rows(files),
    )


def _parquet_rows(files: Sequence[Path]) -> Iterator[Row]:
    for file in files:
        with pq.ParquetFile(file) as table:
            columns = [name for name in table.schema_arrow.names if name in (*COLUMNS, "truth")]
            try:
                for batch in table.iter_batches(_BATCH, columns=columns):
                    yield from (_row(values) for values in batch.to_pylist())
            except (pa.ArrowException, OSError) as error:
                raise RadVisionError(f"{file} is damaged ({_first_line(error)}): download it again.") from error


def _open_kaggle(name: str, folder: Path) -> Source:
    for file, needed in (
        (_REPORTS, ("uid", "findings", "impression")),
        (_PROJECTIONS, ("uid", "filename", "projection")),
    ):
        if not (folder / file).is_file():
            raise RadVisionError(f"folder {folder} lacks {file}: the Kaggle layout has it beside the other table.")
        _check_columns(_csv_columns(folder / file), str(folder / file), needed)
    count = sum(1 for _ in _csv_lines(folder / _REPORTS))
    _check_count(count, str(folder / _REPORTS))
    images = _image_files(folder)
    if not images:
        place = folder / "images" / "images_normalized"
        raise RadVisionError(f"folder {folder} holds no images: put the PNG or JPEG files into {place}.")
    return Source(
        name=name,
        kind="kaggle",
        is_open_i=True,
        citation=OPEN_I_CITATION,
        license=OPEN_I_LICENSE,
        count=count,
        read=lambda: _kaggle_rows(folder, images),
    )


def _csv_columns(path: Path) -> list[str]:
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as stream:
        return next(csv.reader(stream), [])


def _csv_lines(path: Path) -> Iterator[dict[str, str]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            yield from csv.DictReader(stream, restval="")
    except (UnicodeDecodeError, csv.Error) as error:
        raise RadVisionError(f"{path} is not a CSV table in UTF-8 ({error}): download it again.") from error


def _image_files(folder: Path) -> dict[str, Path]:
    """Images by the part of their name before the first dot: copies differ in "x.dcm.png", "x.png", "x.jpg"."""
    root = folder / "images" if (folder / "images").is_dir() else folder
    kinds = (".png", ".jpg", ".jpeg")
    return {p.name.split(".")[0]: p for p in sorted(root.rglob("*")) if p.suffix.lower() in kinds}


def _kaggle_rows(folder: Path, images: dict[str, Path]) -> Iterator[Row]:
    views: dict[tuple[str, str], Path] = {}
    absent = 0
    for line in _csv_lines(folder / _PROJECTIONS):
        file = images.get(line["filename"].split(".")[0])
        if file is None:
            absent += 1
        else:
            views.setdefault((line["uid"], line["projection"].strip().lower()), file)
    if absent:
        log.warning("%d images named in %s are not in %s", absent, _PROJECTIONS, folder)
    for line in _csv_lines(folder / _REPORTS):
        row = _row(line)
        for view in ("frontal", "lateral"):
            file = views.get((line["uid"], view))
            row[f"img_{view}"] = file.read_bytes() if file else None
        yield row


def _row(values: Mapping[str, Any]) -> Row:
    """A row in the schema. An image may come as `{"bytes": ..., "path": ...}`, as the datasets library stores it."""
    row = {name: values.get(name) for name in COLUMNS}
    if isinstance(row["uid"], float):  # pandas makes a column of whole numbers with gaps one of floats
        row["uid"] = int(row["uid"]) if row["uid"].is_integer() else None
    for column in ("img_frontal", "img_lateral"):
        picture = row[column]
        row[column] = picture = picture.get("bytes") if isinstance(picture, dict) else picture
        if not isinstance(picture, bytes | None):
            raise RadVisionError(
                f"study {row['uid']} has {type(picture).__name__} in {column}: it must hold the bytes of an image file."
            )
    if "truth" in values:
        row["truth"] = values["truth"]
    return row


def _check_columns(present: Sequence[str], where: str, needed: Sequence[str] = NEEDED) -> None:
    missing = [name for name in needed if name not in present]
    if missing:
        raise RadVisionError(
            f"{where} lacks the column{'s' * (len(missing) > 1)} {', '.join(missing)}; it has "
            f"{', '.join(present) or 'none'}: give a source with the columns {', '.join(needed)}."
        )


def _check_count(count: int, where: str) -> None:
    if count == 0:
        raise RadVisionError(f"{where} holds no studies: give a source with at least one row.")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["no details"])[0].rstrip(".:")[:200]
