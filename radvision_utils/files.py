"""Files that are whole or not there, are what was written, and hold what they should; each fault is one sentence.

A finished folder has a list with size and checksum of its files, against which they are checked when they are used.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from glob import escape
from pathlib import Path, PurePosixPath
from typing import Any

from radvision_utils.config import RadVisionError, parse_json
from radvision_utils.content import checksum

log = logging.getLogger(__name__)

LIST = "files.json"
"""Lies in the folder of a finished step or whole checkpoint: size and checksum of each of its files, by name."""
_MANY = 200  # files in a folder
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_CLOSED = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST}
_CLOSED |= {errno.ENAMETOOLONG, errno.ELOOP}

# safetensors and torch report a failed write as errors of their own; only their words tell.
_FULL_WORDS = ("No space left on device", "Disk quota exceeded", "File too large", "PytorchStreamWriter failed writing",
               "] . unexpected pos ", "iostream error")  # fmt: skip


class DamagedFile(RadVisionError):
    """A file of a finished step is not what was written."""


def list_files(folder: Path) -> None:
    """Write the list of a folder's files, once the disk holds them. A stage's checkpoints have lists of their own."""
    sync_folder(folder)
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name != LIST and not name.startswith("checkpoints/"):
            found[name] = [path.stat().st_size, checksum(path)]
    write_text(folder / LIST, json.dumps(found))


def checked(path: Path) -> Path:
    """A file that is about to be used, if it is what was written when the folder that holds it was finished.

    It is read once a process. What no list names (images of one's own, what is still being made) is taken as it is.
    Reports and logs (JSON Lines) are used all the same, with a warning: people may have worked on them.

    Raises:
        DamagedFile: it is cut or changed, or a link that leads out of the folder; or the list is damaged.
    """
    folder = next((folder for folder in path.parents[:2] if (folder / LIST).is_file()), None)
    if folder is None or not path.exists():
        return path
    told = _listed(folder / LIST, (folder / LIST).stat().st_mtime_ns).get(path.relative_to(folder).as_posix())
    if not path.resolve().is_relative_to(folder.resolve()):
        raise DamagedFile(f"{path} is a link that leads out of {folder}: put the file itself in its place.")
    if told is not None and told != [path.stat().st_size, checksum(path)]:
        said = f"{path} is cut or damaged, it does not hold what was written: {_remedy(folder)}."
        if path.suffix != ".jsonl":
            raise DamagedFile(said)
        log.warning("%s", said)
    return path


@lru_cache(maxsize=64)
def _listed(path: Path, modified: int) -> dict[str, list[Any]]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (TypeError, ValueError, RecursionError) as error:
        raise DamagedFile(f"{path} is damaged ({first_line(error)}): {_remedy(path.parent)}.") from error


def _remedy(folder: Path) -> str:
    return f"bring back a whole copy, or delete {folder} and give the command that made it again"


def is_whole(folder: Path) -> bool:
    """Whether a folder has a list, and every file of it is as it was written."""
    try:
        names = _listed(folder / LIST, (folder / LIST).stat().st_mtime_ns)
        return all(checked(folder / name).is_file() for name in names)
    except (OSError, ValueError, DamagedFile):
        return False


def inside(folder: Path, name: str, links: bool = False) -> Path | None:
    """The file of that name in a folder; None where there is none, or where the name leads out of the folder.

    Args:
        folder: of a run, which may come from a stranger; or of a source.
        name: relative to the folder.
        links: whether links may lead out of it. In a source they do often, by the will of who laid them.
    """
    relative = PurePosixPath(name.strip().replace("\\", "/"))
    if not relative.parts or relative.is_absolute() or ".." in relative.parts or "\0" in name:
        return None
    path = folder / relative
    try:
        leads_out = not links and not path.resolve().is_relative_to(folder.resolve())
        return path if path.is_file() and not leads_out else None
    except (OSError, RuntimeError):  # a name longer than the file system takes, links in a circle
        return None


def first_line(error: BaseException) -> str:
    """What an exception says, short enough to stand in a sentence of ours; its kind where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".:")[:200]


_MADE_ANEW = "put back a whole copy, or delete it and run the step that writes it"


def read_json(path: Path, shape: Any = object, remedy: str = _MADE_ANEW) -> Any:
    """The JSON value in a file, checked, see `of_shape`.

    Raises:
        RadVisionError: the file is no JSON or of another shape.
    """
    return of_shape(parse_json(checked(path).read_bytes(), str(path), remedy), shape, str(path), remedy)


def read_json_lines(path: Path, shape: Any = dict, torn: bool = False) -> list[dict[str, Any]]:
    """The objects of a JSON Lines file, checked, see `of_shape`.

    Args:
        path: the file.
        shape: of each.
        torn: leave out a last line without its end: the process that appended it was killed meanwhile.

    Raises:
        RadVisionError: a line is no JSON or of another shape; the sentence names it.
    """
    return [parse_line(line, where, shape) for where, line in text_lines(path, torn)]


def parse_line(line: str, where: str, shape: Any = dict) -> dict[str, Any]:
    """The checked object of a line that `text_lines` gave."""
    return dict(of_shape(parse_json(line, where, _MADE_ANEW), shape, where, _MADE_ANEW))


def text_lines(path: Path, torn: bool = False) -> Iterator[tuple[str, str]]:
    """The lines of a text file that are not blank, each behind the words that name it."""
    content = checked(path).read_bytes()
    content = content[: content.rfind(b"\n") + 1] if torn else content
    try:
        text = content.decode(json.detect_encoding(content))
    except UnicodeDecodeError:
        text = content.decode("utf-8", "surrogateescape")  # a line that a crash tore within a letter spoils no other
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield f"line {number} of {path}", line


def of_shape(value: Any, shape: Any, where: str, remedy: str) -> Any:
    """The JSON value, if it is as `shape` says: a type, `{key: shape}` of what must be there, or `[shape of each]`.

    Raises:
        RadVisionError: it is not; the sentence names the place.
    """
    if (place := _misfit(value, shape, "")) is not None:
        raise RadVisionError(f"{where} has no usable {place.lstrip('.') or 'value'}: {remedy}.")
    return value


def _misfit(value: Any, shape: Any, place: str) -> str | None:
    """Where a value is not of a shape."""
    if isinstance(shape, Mapping):
        inner = [(key, each, value.get(key)) for key, each in shape.items()] if isinstance(value, dict) else None
    elif isinstance(shape, list):
        inner = [(n, shape[0], each) for n, each in enumerate(value)] if isinstance(value, list) else None
    else:
        fits = isinstance(value, (int, float) if shape is float else shape)
        inner = [] if fits and (not isinstance(value, bool) or shape in (bool, object)) else None
    if inner is None:
        return place
    return next((at for key, each, v in inner if (at := _misfit(v, each, f"{place}.{key}")) is not None), None)


def write_json_lines(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Write a JSON Lines file so that it is either wholly there or not at all."""
    write_text(path, "".join(_json_line(record) for record in records))


def append_json_lines(path: Path, *records: Mapping[str, Any]) -> None:
    """Add to a JSON Lines file: they are on the disk when this returns.

    Of a process killed meanwhile a torn last line may stay: `read_json_lines(path, torn=True)` leaves it out, and
    nothing may be appended to it. Raises what `write_text` does.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with told_if_unwritable(path.parent), path.open("a", encoding="utf-8") as stream:
        stream.write("".join(_json_line(record) for record in records))
        stream.flush()
        os.fsync(stream.fileno())


def _json_line(record: Mapping[str, Any]) -> str:
    return json.dumps(record, ensure_ascii=False) + "\n"


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON file so that it is either wholly there or not at all."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text file so that it is either wholly there or not at all.

    Raises:
        RadVisionError: the disk is full, or the folder does not take it.
    """
    with told_if_unwritable(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        for leftover in path.parent.glob(f".{escape(path.name)}.*.*"):  # of processes that were killed as they wrote
            process = leftover.name.split(".")[-2]
            if process.isdecimal() and not is_alive(int(process)):
                leftover.unlink(missing_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.{os.getpid()}.")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as stream:
                stream.write(text)
                stream.flush()
                os.fsync(stream.fileno())
            os.chmod(name, 0o644)
            os.replace(name, path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
        sync_folder(path.parent, deep=False)


def require_writable(path: Path, folder: bool = False) -> None:
    """Refuse, before the work whose result goes there, a file or new `folder` that cannot be written.

    Raises:
        RadVisionError: so it is.
    """
    try:
        if path.exists() and not (path.is_dir() if folder else path.is_file()):
            raise FileExistsError(f"what is there is no {'folder' if folder else 'file'}")
        path.parent.mkdir(parents=True, exist_ok=True)
        tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.{os.getpid()}.").close()
    except OSError as error:
        raise RadVisionError(f"nothing can be written to {path} ({first_line(error)}): give another path.") from error


def sync_folder(folder: Path, deep: bool = True) -> None:
    """Wait until the disk holds the names in a folder and, if `deep`, every file below it."""
    with os.scandir(folder) as entries:  # one at a time: a folder of images may hold hundreds of thousands
        for number, entry in enumerate(entries if deep else ()):
            if number == _MANY:
                os.sync()  # all that the machine has to write, once: thousands of files one by one take seconds
                return
            if entry.is_dir(follow_symlinks=False):
                sync_folder(Path(entry.path))
            else:
                _sync(entry.path)
    _sync(folder)


def _sync(path: str | Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def is_alive(process: Any) -> bool:
    """Whether a process of this machine has this number."""
    if not isinstance(process, int) or not 0 < process < 2**31:
        return False
    try:
        os.kill(process, 0)
    except OSError as error:
        return isinstance(error, PermissionError)
    return True


@contextmanager
def told_if_unwritable(folder: Path) -> Iterator[None]:
    """Say in a sentence that the disk is full, or that a file in the folder may not be written.

    Raises:
        RadVisionError: so it is.
    """
    try:
        yield
    except RadVisionError:
        raise  # told already, by who was nearer
    except Exception as error:
        unmade = isinstance(error, FileNotFoundError) and not folder.is_dir()
        if unmade or (isinstance(error, OSError) and error.errno in _CLOSED):
            raise RadVisionError(
                f"{folder} cannot be worked in ({first_line(error)}): mend the permissions, or give another folder."
            ) from error
        if not is_disk_full(error):
            raise
        there = next(path for path in (folder, *folder.parents) if path.is_dir())
        room = os.statvfs(there)
        left = f"{room.f_bavail * room.f_frsize / 2**30:.1f} GiB"
        if room.f_files:  # some file systems have as many as there is room
            left += f" and {room.f_favail:,} inodes"
        raise RadVisionError(
            f"a file in {folder} could not be written to its end ({first_line(error)}; {left} are free): "
            "make room and give the same command again; what was finished before is whole."
        ) from error


def is_disk_full(error: BaseException) -> bool:
    """Whether an error means that the disk, the quota or the largest file size was reached."""
    if isinstance(error, OSError) and error.errno in _FULL:
        return True
    return any(words in str(error) for words in _FULL_WORDS)
