"""Where studies come from: one function, `open_source`, gives the rows of any source in one schema, one row at a time.

Here are hub data sets, parquet files, Kaggle's Open-I and tables of one's own; what reads phantoms and collections in
layouts of their own stands beside. The schema is that of the hub data set `ykumards/open-i` without its lateral views.
Its `image` is TEXT, the title of the examination ("Xray Chest PA and Lateral"); the picture is the encoded bytes in
`img_frontal`.
"""

from __future__ import annotations

import filecmp
import hashlib
import logging
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from numbers import Real
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from radvision_utils.config import DataSettings, RadVisionError, parse_json
from radvision_utils.content import find_source, is_hub_name
from radvision_utils.data.cells import check_columns, csv_columns, csv_lines, given, shown, study_number
from radvision_utils.environment import open_room
from radvision_utils.files import first_line, inside, of_shape, read_json

log = logging.getLogger(__name__)

Row = dict[str, Any]

COLUMNS = ("uid", "MeSH", "Problems", "image", "indication", "comparison", "findings", "impression", "img_frontal")
NEEDED = ("uid", "findings", "impression", "img_frontal")
"""Columns without which there is nothing to learn from; the others may be missing and are then None."""
EXTRAS = ("truth", "patient", "split")
"""Columns that a source may have beside: a phantom's drawn findings, who was examined, and in which split it is."""

OPEN_I_HUB = "ykumards/open-i"
REPORTS, PROJECTIONS = "indiana_reports.csv", "indiana_projections.csv"
MIMIC, CHEXPERT_PLUS = "mimic-cxr-2.0.0-metadata.csv", "df_chexpert_plus_240401.csv"
MAP = "radvision.json"
"""Of a folder of one's own: says where the table and the images are and what its columns are called. `{"table":
"reports.csv", "images": "png", "uid": "study", "image": "file", "findings": "findings", "impression": "impression"}`,
and if they are there `"patient"`, `"split"` and `"indication"`."""

# What reads a folder in the layout of a collection, by the file that marks it.
_COLLECTIONS = {
    MIMIC: "collections.mimic",
    f"{MIMIC}.gz": "collections.mimic",
    CHEXPERT_PLUS: "collections.chexpert",
}
_OPEN_I: dict[str, Any] = {
    "is_open_i": True,
    "citation": "Demner-Fushman D, Kohli MD, Rosenman MB, et al. Preparing a collection of radiology examinations for "
    "distribution and retrieval. Journal of the American Medical Informatics Association 2016;23(2):304-310.",
    "license": "CC BY-NC-ND 4.0: research only, not commercial. It is used here and never shipped.",
    "split_by": "R2Gen",
}
_MAP_NEEDED = ("table", "uid", "image", "findings", "impression")
_MAP_OPTIONAL = ("images", "patient", "split", "indication")
_SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validate", "validation", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
_SPLIT_WORD = re.compile(rf"({'|'.join(sorted(_SPLIT_NAMES, key=len, reverse=True))}|holdout)(?:set|split|data|s)?")


@dataclass(frozen=True)
class Source:
    """A source of studies, opened and checked.

    Attributes:
        name: what the user asked for: "phantom", a hub id or a path.
        kind: how it is read.
        count: number of rows.
        rows: gives the rows anew, in the source's order, each with `COLUMNS` (and those of `EXTRAS` that the source
            has); absent values are None, and only the row at hand is in memory.
        is_open_i: whether its uids are those of the Open-I collection, so that R2Gen's split applies.
        citation: what to cite; empty if unknown.
        license: terms of use; empty if unknown.
        split_by: what decides a study's split, in words.
    """

    name: str
    kind: Literal["phantom", "hub", "parquet", "kaggle", "table", "mimic", "chexpert-plus"]
    count: int
    rows: Callable[[], Iterator[Row]] = field(repr=False)
    is_open_i: bool = False
    citation: str = ""
    license: str = ""
    split_by: str = "hash of the patient, or of the uid where there is none"


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
        opened = _open_phantoms(settings, seed)
    elif (path := find_source(source)) is not None:
        opened = _open_folder(source, path, seed) if path.is_dir() else _open_file(source, path, seed)
    elif is_hub_name(source):
        opened = _open_hub(source)
    else:
        raise RadVisionError(
            f"source {source!r} does not exist: give 'phantom', a hub id such as {OPEN_I_HUB!r}, a parquet file, a "
            "folder of parquet files, or a folder with images and tables (Kaggle's Open-I, MIMIC-CXR-JPG, CheXpert "
            f"Plus, or your own with {MAP})."
        )
    if not opened.count:
        raise RadVisionError(f"{source} holds no studies: give a source with at least one row.")
    if settings.limit is None:
        return opened
    count = min(settings.limit, opened.count)
    return replace(opened, count=count, rows=lambda: islice(opened.rows(), settings.limit))


def _open_phantoms(settings: DataSettings, seed: int) -> Source:
    count = min(settings.phantoms, settings.limit or settings.phantoms)
    rows = open_room("phantoms.phantom_rows").phantom_rows
    return Source(
        name="phantom",
        kind="phantom",
        count=count,
        rows=lambda: rows(count, settings.hospital, seed, workers=settings.workers),
        citation="Phantom studies drawn by this project: radvision_utils/phantoms.",
        license="MIT, as this project.",
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
    check_columns(table.column_names, f"the hub data set {name}", NEEDED)
    table = table.select_columns([name for name in table.column_names if name in (*COLUMNS, *EXTRAS)])
    if isinstance(table.features.get("img_frontal"), datasets.Image):
        table = table.cast_column("img_frontal", datasets.Image(decode=False))
    terms, cache = _OPEN_I if name == OPEN_I_HUB else {}, Path(datasets.config.HF_CACHE_HOME)
    return Source(name, "hub", table.num_rows, lambda: (make_row(values, cache) for values in table), **terms)


def _open_file(name: str, path: Path, seed: int) -> Source:
    if path.suffix.lower() == ".csv":
        raise RadVisionError(
            f"source {path} is a table: give the folder that holds it and its images, with a {MAP} that names its "
            "columns unless it is Kaggle's Open-I."
        )
    return _open_parquet(name, [path], path.parent, seed)


def _open_folder(name: str, folder: Path, seed: int) -> Source:
    if (folder / MAP).is_file():
        return _open_mapped(name, folder)
    if (folder / REPORTS).is_file() or (folder / PROJECTIONS).is_file():
        return _open_kaggle(name, folder)
    for marker, room in _COLLECTIONS.items():
        if (folder / marker).is_file():
            source: Source = open_room(room).open_collection(name, folder, seed)
            return source
    # Hidden ones are no tables: "._train.parquet" is what a Mac adds to an archive.
    found = (path for path in folder.rglob("*") if path.suffix.lower() in (".parquet", ".pq"))
    visible = (path for path in found if not any(part.startswith(".") for part in path.relative_to(folder).parts))
    files = sorted(path for path in visible if path.is_file())
    if not files:
        raise RadVisionError(
            f"folder {folder} holds neither {REPORTS} (Kaggle layout) nor {MIMIC} (MIMIC-CXR-JPG) nor {CHEXPERT_PLUS} "
            f"(CheXpert Plus) nor {MAP} (your own) nor a parquet file: give the folder that does."
        )
    return _open_parquet(name, files, folder, seed)


def _open_parquet(name: str, files: Sequence[Path], folder: Path, seed: int) -> Source:
    count, schemas = 0, []
    for file in files:
        try:
            with pq.ParquetFile(file) as table:
                columns = table.schema_arrow.names
                count += table.metadata.num_rows
        except (pa.ArrowException, OSError, ValueError) as error:
            raise RadVisionError(
                f"{file} cannot be read as parquet ({first_line(error)}): download it again."
            ) from error
        check_columns(columns, str(file), NEEDED)
        schemas.append(set(columns))
    is_open_i = all(columns.issuperset(COLUMNS) and not columns & set(EXTRAS) for columns in schemas)
    terms = dict(_OPEN_I) if is_open_i else {}
    splits = _splits_of_names(files, folder)
    if splits:
        absent = [split for split in ("validation", "test") if split not in splits.values()]
        drawn = f"; {' and '.join(absent)} drawn from train by a hash, a tenth each" if absent else ""
        terms["split_by"] = f"the names of the parquet files{drawn}"
    # What judges is read first: of a study that is in two files the first one counts.
    order = sorted(files, key=lambda file: "test validation train".find(splits.get(file) or "train"))
    return Source(name, "parquet", count, lambda: _parquet_rows(order, folder, splits, seed), **terms)


def _splits_of_names(files: Sequence[Path], folder: Path) -> dict[Path, str]:
    """The split that a file's name states, or the folder that it lies in; none where they don't tell files apart.

    So a data set that comes as `train-00000-of-00002.parquet` alone is split like any other. Beside a file that is for
    validation or test, one that states nothing, or training too ("train_val"), is for training.
    """
    named: dict[Path, str] = {}
    for file in files:
        for part in reversed(file.relative_to(folder).with_suffix("").parts):
            words = re.split(r"[^a-z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", "-", part).lower())
            stated = {_SPLIT_NAMES.get(found[1], "test") for word in words if (found := _SPLIT_WORD.fullmatch(word))}
            if stated:
                named[file] = next(split for split in ("train", "test", "validation") if split in stated)
                break
    if set(named.values()) - {"train"}:
        named = {file: named.get(file, "train") for file in files}
    return named if len(set(named.values())) > 1 else {}


def _parquet_rows(files: Sequence[Path], folder: Path, splits: Mapping[Path, str], seed: int) -> Iterator[Row]:
    absent = [split for split in ("validation", "test") if split not in splits.values()]
    for file in files:
        for row in _rows_of(file, folder):
            stated = splits.get(file)
            if stated and row.get("split") and row["split"] != stated:
                raise RadVisionError(
                    f"study {shown(str(row['uid']))} is in split {row['split']!r}, but {file.name} says {stated!r}: "
                    "rename the file or mend the column."
                )
            if stated == "train":
                share = share_of(str(row.get("patient") or row["uid"]), seed)
                stated = next((split for n, split in enumerate(absent, start=1) if share < n / 10), stated)
            yield {**row, "split": stated} if stated else row


def _rows_of(file: Path, folder: Path) -> Iterator[Row]:
    # Without pre_buffer=False pyarrow reads ahead to the end of the file: memory would grow with the collection.
    with pq.ParquetFile(file, pre_buffer=False) as table:
        columns = [name for name in table.schema_arrow.names if name in (*COLUMNS, *EXTRAS)]
        try:
            # One at a time: of several, all could be one large value that the file holds once. It takes 0.1 ms a row.
            for batch in table.iter_batches(1, columns=columns):
                for row in range(batch.num_rows):
                    cells = (_value(column[row]) for column in batch.columns)
                    yield make_row(dict(zip(batch.schema.names, cells, strict=True)), file.parent, folder)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise RadVisionError(f"{file} is damaged ({first_line(error)}): download it again.") from error


def _value(cell: pa.Scalar) -> Any:
    """The value of a cell; what is no UTF-8 in a text becomes a replacement sign."""
    try:
        return cell.as_py()
    except UnicodeDecodeError:
        if isinstance(cell, pa.StructScalar):
            return {name: _value(inner) for name, inner in cell.items()}
        if isinstance(cell, pa.DictionaryScalar):
            return _value(cell.value)
        if not isinstance(cell, pa.BinaryScalar):
            raise
        return cell.as_buffer().to_pybytes().decode(errors="replace")


def _open_kaggle(name: str, folder: Path) -> Source:
    for file, needed in (
        (REPORTS, ("uid", "findings", "impression")),
        (PROJECTIONS, ("uid", "filename", "projection")),
    ):
        if not (folder / file).is_file():
            raise RadVisionError(f"folder {folder} lacks {file}: the Kaggle layout has it beside the other table.")
        check_columns(csv_columns(folder / file), str(folder / file), needed)
    count = sum(1 for _ in csv_lines(folder / REPORTS))
    frontal = _frontal_images(folder)
    return Source(name, "kaggle", count, lambda: _kaggle_rows(folder, frontal), **_OPEN_I)


def _kaggle_rows(folder: Path, frontal: Mapping[str, list[tuple[str, Path | None]]]) -> Iterator[Row]:
    for line in csv_lines(folder / REPORTS):
        yield add_picture(make_row(line), *frontal.get(study_number(line["uid"]) or "", ()))


def _frontal_images(folder: Path) -> dict[str, list[tuple[str, Path | None]]]:
    """For each study the names of its frontal images, and the file of each that is there."""
    images = _image_files(folder)
    if not images:
        place = folder / "images" / "images_normalized"
        raise RadVisionError(f"folder {folder} holds no images: put the PNG or JPEG files into {place}.")
    frontal: dict[str, list[tuple[str, Path | None]]] = {}
    absent, doubled = [], []
    for line in csv_lines(folder / PROJECTIONS):
        name, uid = line["filename"].strip().replace("\\", "/"), study_number(line["uid"])
        files = _meant(name, images.get(_stem(name), []))
        if not files:
            absent.append(name)
        if len(files) > 1:
            doubled.append(f"{files[0]} and {files[1]}")
        if line["projection"].strip().lower() == "frontal" and uid:
            frontal.setdefault(uid, []).append((name, files[0] if files else None))
    if doubled:
        raise RadVisionError(
            f"{len(doubled)} images named in {folder / PROJECTIONS} could be either of two different files, such as "
            f"{doubled[0]}: keep one of each."
        )
    if absent:
        named = ", ".join(absent[:3])
        log.warning("%d images named in %s are not in %s, such as %s", len(absent), PROJECTIONS, folder, named)
    return frontal


def _image_files(folder: Path) -> dict[str, list[Path]]:
    """Images by their name without folder and endings."""
    root = folder / "images" if (folder / "images").is_dir() else folder
    images: dict[str, list[Path]] = {}
    for path in sorted(root.rglob("*")):
        if path.suffix.lower() in (".png", ".jpg", ".jpeg") and not path.name.startswith("."):
            images.setdefault(_stem(path.name), []).append(path)
    return images


def _stem(name: str) -> str:
    # Copies differ in "x.dcm.png", "x.png", "x.jpg", in capitals and, from a Mac, in how accents are written; other
    # dots belong to the name.
    name = unicodedata.normalize("NFC", name).rpartition("/")[2].strip(" '\"").casefold()
    return re.sub(r"(?:\.(?:dcm|dicom|png|jpe?g))+$", "", name)


def _meant(name: str, files: Sequence[Path]) -> list[Path]:
    """The files that a name can mean: those that end in just that name if there are, and equal ones once."""
    files = [file for file in files if f"/{file.as_posix()}".endswith(f"/{name}")] or files
    return [file for n, file in enumerate(files) if not any(filecmp.cmp(file, f, shallow=False) for f in files[:n])]


def _open_mapped(name: str, folder: Path) -> Source:
    told = f"it needs texts for {', '.join(_MAP_NEEDED)}, and may have {', '.join(_MAP_OPTIONAL)}"
    columns = read_json(folder / MAP, dict, told)
    of_shape(columns, dict.fromkeys((*_MAP_NEEDED, *columns), str), str(folder / MAP), told)
    if wrong := [key for key in columns if key not in (*_MAP_NEEDED, *_MAP_OPTIONAL)]:
        raise RadVisionError(f"{folder / MAP} has no use for {shown(wrong[0])}: {told}.")
    table = inside(folder, columns["table"], links=True)
    if table is None:
        raise RadVisionError(f"{folder / MAP} names the table {columns['table']!r}, which is not in {folder}.")
    images = Path(columns.get("images", ""))
    if images.is_absolute() or ".." in images.parts or not (folder / images).is_dir():
        raise RadVisionError(f"{folder / MAP} names the images' folder {str(images)!r}, which is not in {folder}.")
    named = [column for key, column in columns.items() if key not in ("table", "images")]
    check_columns(csv_columns(table), str(table), named)
    count = sum(1 for _ in csv_lines(table))
    terms: dict[str, Any] = {"split_by": f"column {columns['split']} of the table"} if "split" in columns else {}
    return Source(name, "table", count, lambda: _mapped_rows(folder, table, columns), **terms)


def _mapped_rows(folder: Path, table: Path, columns: Mapping[str, str]) -> Iterator[Row]:
    images = folder / columns.get("images", "")
    texts = {key: column for key, column in columns.items() if key not in ("table", "images", "image")}
    for line in csv_lines(table):
        name = given(line[columns["image"]]) or ""
        values = {key: line[column] for key, column in texts.items()}
        yield add_picture(make_row(values), (name, inside(images, name, links=True)))


def add_picture(row: Row, *named: tuple[str, Path | None]) -> Row:
    """The row with the first picture whose file is there; where none is, with the name that was looked for first."""
    name, file = next((each for each in named if each[1]), named[0] if named else ("", None))
    try:
        row["img_frontal"] = file.read_bytes() if file else None
    except OSError:  # it is there and may not be read
        row["img_frontal"] = None
    return row if row["img_frontal"] is not None or not name else {**row, "not_found": name}


def make_row(values: Mapping[str, Any], *folders: Path) -> Row:
    """A row in the schema; cells that stand for nothing are None, numbers of studies and patients in their one form.

    An image may come as `{"bytes": ..., "path": ...}`, as the datasets library stores it, or as a list of such, of
    which the first counts. Without bytes its path is read inside of the source's folders, never outside.

    Args:
        values: the cells by column.
        folders: where a path may lead, the likelier first.

    Raises:
        RadVisionError: a value has a type that its column cannot have, or a split has an unknown name.
    """
    row = {name: values.get(name) for name in COLUMNS}
    _check_type(row["uid"], "uid", row["uid"], (str, Real), "a text or a whole number")
    row["uid"] = study_number(row["uid"])
    for column in COLUMNS[1:-1]:
        _check_type(row["uid"], column, row[column], (str,), "a text")
        row[column] = given(row[column])
    row |= {name: values[name] for name in EXTRAS if name in values}
    if (truth := row.get("truth")) is not None:
        where = f"the column truth of study {shown(str(row['uid']))}"
        ours = "what was drawn into a phantom; rename yours"
        _check_type(row["uid"], "truth", truth, (str,), ours)
        of_shape(parse_json(truth, where, f"it holds {ours}"), {"findings": [{"name": str}]}, where, f"it holds {ours}")
    if "patient" in row:
        row["patient"] = study_number(row["patient"])
    if row.get("split") is not None:
        row["split"] = split_name(str(row["split"]), row["uid"]) if given(str(row["split"])) else None
    image = row["img_frontal"]
    if isinstance(image, list) and all(isinstance(each, dict | bytes | None) for each in image):
        image = next(filter(None, image), None)
    path = image.get("path") if isinstance(image, dict) else None
    row["img_frontal"] = image.get("bytes") if isinstance(image, dict) else image
    _check_type(row["uid"], "img_frontal", row["img_frontal"], (bytes,), "the bytes of an image file")
    if row["img_frontal"] is None and isinstance(path, str) and given(path):
        return add_picture(row, (path, _kept_within(path, folders)))
    return row


def _kept_within(name: str, folders: Sequence[Path]) -> Path | None:
    """The file that a table's path means if it lies in one of the folders, links followed."""
    for folder in folders:
        try:
            path = (folder / name.replace("\\", "/")).resolve()
            if path.is_relative_to(folders[-1].resolve()) and path.is_file():
                return path
        except (OSError, ValueError, RuntimeError):  # too long, a NUL, links in a circle
            continue
    return None


def _check_type(uid: Any, column: str, value: Any, kinds: tuple[type, ...], wanted: str) -> None:
    if value is not None and (not isinstance(value, kinds) or isinstance(value, bool)):
        raise RadVisionError(f"study {shown(str(uid))} has {type(value).__name__} in {column}: it must hold {wanted}.")


def split_name(name: str, uid: Any) -> str:
    """ "train", "validation" or "test" for the names in use: "val", "valid", "validate", "dev" ...

    Raises:
        RadVisionError: it is none of them.
    """
    if name.strip().lower() not in _SPLIT_NAMES:
        raise RadVisionError(f"study {shown(str(uid))} is in split {name[:40]!r}: use train, validation or test.")
    return _SPLIT_NAMES[name.strip().lower()]


def share_of(text: str, seed: int) -> float:
    """A number from 0 to 1 that depends on nothing but the text and the seed, evenly spread over texts."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{text}".encode(errors="replace")).digest()[:8], "big") / 2**64
