"""What files and sources hold, in a few hex digits: with these, damage is noticed, and a source is known anywhere.

XXH3 reads as fast as the memory gives; it tells faults, and nobody is kept by it from forging a file.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import xxhash

from radvision_utils.config import project_root

_TABLES = (".parquet", ".pq", ".csv", ".tsv", ".gz", ".json", ".jsonl")


def checksum(path: Path) -> str:
    """16 hex digits of the file's content (XXH3, 64 bits); read once a process while size and time stay the same.

    Measured on one core: 5 GiB/s of a file that the system still holds in memory, so 3 s for 15 GiB; else it takes as
    long as the disk needs to read.
    """
    state = path.stat()
    return _checksum(path, state.st_size, state.st_mtime_ns)


@cache
def _checksum(path: Path, size: int, modified: int) -> str:
    digest = xxhash.xxh3_64()
    with path.open("rb", buffering=0) as stream:
        while block := stream.read(1 << 18):
            digest.update(block)
    return digest.hexdigest()


def is_hub_name(source: str) -> bool:
    """Whether a source that is no path here can be a data set of the hub: `owner/name`."""
    named = re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", source)
    return named is not None and not source.endswith((".parquet", ".csv"))


def find_source(source: str) -> Path | None:
    """The file or folder that a source names, in the working directory or else in the project."""
    if not source.strip() or "\0" in source:
        return None
    path = Path(source).expanduser()
    return next((p for p in (path, project_root() / path) if p.exists()), None)


def public_name(path: str) -> str:
    """A path as others may know it: its last part. What is none (`tiny`, `phantom`, a name of the hub) stays."""
    return path if is_hub_name(path) and not Path(path).exists() else re.split(r"[/\\]", path.rstrip("/\\"))[-1]


@cache
def parameter_count(base: str) -> int | None:
    """How many numbers the weights of a base hold, by the heads of its files; None of one that is no folder here."""
    folder = Path(__file__).parent / "model" / "tiny_base" if base == "tiny" else Path(base)
    heads = []
    for file in folder.glob("*.safetensors") if folder.is_dir() else ():
        with file.open("rb") as stream:
            heads.append(json.loads(stream.read(int.from_bytes(stream.read(8), "little"))))
    shapes = [entry["shape"] for head in heads for name, entry in head.items() if name != "__metadata__"]
    return sum(map(math.prod, shapes)) or None


def source_content(source: str) -> str | None:
    """Fingerprint of what a source holds, wherever it lies; None where it cannot be reached.

    Of a file every byte counts. Of a folder the names and sizes of all files count and every byte of its tables
    (parquet, CSV, JSON), but not of images and reports in files of their own: a collection has hundreds of thousands.
    One that is exchanged for another of the same name and size is not noticed; `--force` prepares anew. Of a data set
    of the hub the commit counts. Phantoms are drawn by this project.
    """
    path = find_source(source)
    if source == "phantom" or path is None:
        return source if source == "phantom" else _commit(source) if is_hub_name(source) else None
    if path.is_file():
        return checksum(path)
    digest = hashlib.sha256()
    for file in _files(path):
        told = checksum(file) if file.suffix.lower() in _TABLES else ""
        digest.update(f"{file.relative_to(path).as_posix()}\0{file.stat().st_size}\0{told}\n".encode(errors="replace"))
    return digest.hexdigest()[:16]


def _files(folder: Path) -> Iterator[Path]:
    """All files below a folder but hidden ones, in the order of their names; links are followed, each folder once."""
    seen = set()
    for place, folders, names in os.walk(folder, followlinks=True):
        seen.add(os.path.realpath(place))
        inner = sorted(name for name in folders if not name.startswith("."))
        folders[:] = [name for name in inner if os.path.realpath(os.path.join(place, name)) not in seen]
        yield from (file for name in sorted(names) if name[0] != "." and (file := Path(place, name)).is_file())


@cache
def _commit(name: str) -> str | None:
    """The commit that a data set of the hub is at; without the network, the one that was last fetched."""
    from huggingface_hub import HfApi
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.file_download import repo_folder_name

    try:
        return HfApi().dataset_info(name, timeout=10).sha
    except Exception:  # the hub client raises the exceptions of several network libraries
        fetched = Path(HF_HUB_CACHE) / repo_folder_name(repo_id=name, repo_type="dataset") / "refs" / "main"
        return fetched.read_text(encoding="utf-8").strip() if fetched.is_file() else None


def fingerprint(value: Any) -> str:
    """16 hex digits of the SHA-256 of a JSON value; equal values have equal fingerprints."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
