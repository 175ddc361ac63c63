"""Where studies come from: one function, `open_source`, gives the rows of any source in one schema, one row at a time.

Here are phantoms, the hub and parquet files; layouts of tables beside images are in `tables` and `mimic`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from radvision_utils.config import DataSettings, RadVisionError, project_root
from radvision_utils.data import mimic, tables
from radvision_utils.data.rows import (
    COLUMNS,
    EXTRAS,
    NEEDED,
    Row,
    Source,
    check_columns,
    check_count,
    first_line,
    make_row,
)
from radvision_utils.data.tables import open_i_terms

__all__ = ["COLUMNS", "NEEDED", "Row", "Source", "open_source"]

OPEN_I_HUB = "ykumards/open-i"

_BATCH = 16  # rows; a row of the hub set holds two radiographs of some megabytes


def open_source(source: str, settings: DataSettings, seed: int) -> Source:
    """Open a source of studies and check that it can be read.

    Args:
        source: "phantom", a hub id such as "ykumards/open-i", a parquet file, a folder of parquet files, or a folder in
            the layout of Kaggle's Open-I, of MIMIC-CXR-JPG, of CheXpert Plus, or of one's own with a `radvision.json`.
            A relative path is looked up in the working directory, then in the project.
        settings: `limit` (only the first so many rows), and `phantoms`, `hospital`, `workers` for phantoms.
        seed: of the phantoms, and of splits that are drawn.

    Raises:
        RadVisionError: the source is unknown, empty, unreadable or lacks columns.
    """
    if source == "phantom":
        opened = _open_phantom(settings, seed)
    elif (path := _find(source)) is not None:
        opened = _open_path(source, path, seed)
    elif re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", source) and not source.endswith((".parquet", ".csv")):
        opened = _open_hub(source)
    else:
        raise RadVisionError(
            f"source {source!r} does not exist: give 'phantom', a hub id such as {OPEN_I_HUB!r}, a parquet file, a "
            "folder of parquet files, or a folder with images and tables (Kaggle's Open-I, MIMIC-CXR-JPG, CheXpert "
            f"Plus, or your own with {tables.MAP})."
        )
    return _limited(opened, settings.limit)


def _find(source: str) -> Path | None:
    if not source.strip() or "\0" in source:
        return None
    path = Path(source).expanduser()
    return next((p for p in (path, project_root() / path) if p.exists()), None)


def _limited(source: Source, limit: int | None) -> Source:
    if limit is None:
        return source
    count = None if source.count is None else min(limit, source.count)
    return replace(source, count=count, read=lambda: islice(source.read(), limit))


def _open_phantom(settings: DataSettings, seed: int) -> Source:
    from radvision_utils.data.phantom import phantom_rows

    count = min(settings.phantoms, settings.limit or settings.phantoms)
    return Source(
        name="phantom",
        kind="phantom",
        is_open_i=False,
        citation="Phantom studies drawn by this project: radvision_utils/data/phantom.",
        license="MIT, as this project.",
        count=count,
        read=lambda: phantom_rows(count, settings.hospital, seed, workers=settings.workers),
        split_by="hash of the uid",
    )


def _open_hub(name: str) -> Source:
    import datasets

    try:
        table = datasets.load_dataset(name, split="train", streaming=False)
    except Exception as error:  # the hub client raises the exceptions of several network libraries
        raise RadVisionError(
            f"source {name!r} is no file or folder here and could not be loaded from the hub "
            f"({type(error).__name__}: {first_line(error)}): check the name and the network, or download its parquet "
            "files and give their folder as the source."
        ) from error
    check_columns(table.column_names, f"the hub data set {name}")
    table = table.select_columns([name for name in table.column_names if name in (*COLUMNS, *EXTRAS)])
    if isinstance(table.features.get("img_frontal"), datasets.Image):
        table = table.cast_column("img_frontal", datasets.Image(decode=False))
    check_count(table.num_rows, f"the hub data set {name}")
    return Source(
        name=name,
        kind="hub",
        **open_i_terms(name == OPEN_I_HUB),
        count=table.num_rows,
        read=lambda: (make_row(values) for values in table),
    )


def _open_path(name: str, path: Path, seed: int) -> Source:
    if path.is_file():
        if path.suffix.lower() == ".csv":
            raise RadVisionError(
                f"source {path} is a table: give the folder that holds it and its images, with a {tables.MAP} that "
                "names its columns unless it is Kaggle's Open-I."
            )
        return _open_parquet(name, [path])
    for opened in (tables.open_mapped, tables.open_kaggle, mimic.open_mimic, tables.open_chexpert_plus):
        if (source := opened(name, path, seed)) is not None:
            return source
    files = sorted(path.rglob("*.parquet"))
    if not files:
        raise RadVisionError(
            f"folder {path} holds neither {tables.REPORTS} (Kaggle layout) nor {mimic.METADATA} (MIMIC-CXR-JPG) nor "
            f"{tables.CHEXPERT_PLUS} (CheXpert Plus) nor {tables.MAP} (your own) nor a parquet file: give the folder "
            "that does."
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
                f"{file} cannot be read as parquet ({first_line(error)}): download it again."
            ) from error
        check_columns(columns, str(file))
        schemas.append(set(columns))
    check_count(count, name)
    is_open_i = all(columns.issuperset(COLUMNS) and not columns & set(EXTRAS) for columns in schemas)
    return Source(name=name, kind="parquet", **open_i_terms(is_open_i), count=count, read=lambda: _parquet_rows(files))


def _parquet_rows(files: Sequence[Path]) -> Iterator[Row]:
    for file in files:
        # Without pre_buffer=False pyarrow reads ahead to the end of the file: memory would grow with the collection.
        with pq.ParquetFile(file, pre_buffer=False) as table:
            columns = [name for name in table.schema_arrow.names if name in (*COLUMNS, *EXTRAS)]
            try:
                for batch in table.iter_batches(_BATCH, columns=columns):
                    yield from map(make_row, _values(batch))
            except (pa.ArrowException, OSError) as error:
                raise RadVisionError(f"{file} is damaged ({first_line(error)}): download it again.") from error


def _values(batch: pa.RecordBatch) -> list[dict[str, Any]]:
    try:
        return batch.to_pylist()
    except UnicodeDecodeError:  # texts that are no UTF-8: what cannot be read of them becomes a replacement sign
        columns = [_lenient(column) for column in batch.columns]
        return [dict(zip(batch.schema.names, values, strict=True)) for values in zip(*columns, strict=True)]


def _lenient(column: pa.Array) -> list[Any]:
    if not pa.types.is_string(column.type):
        return column.to_pylist()
    return [None if text is None else text.decode(errors="replace") for text in column.cast(pa.binary()).to_pylist()]
