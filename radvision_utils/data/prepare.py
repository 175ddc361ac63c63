"""From source rows to a prepared dataset: filter, clean, letterbox, split, write.

Studies stream through: memory does not grow with their images. The result becomes visible as `outputs/<run>/data/`
only when it is whole.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from radvision_utils import runs
from radvision_utils.config import DataSettings, Profile, RadVisionError
from radvision_utils.data.images import letterbox, load_image, store_squares
from radvision_utils.data.reports import DEIDENTIFIED, PRIORS, Report, clean_section, drop_sentences
from radvision_utils.data.sources import Row, Source, open_source
from radvision_utils.data.studies import PreparedDataset, Studies, Study, open_prepared
from radvision_utils.data.summary import SPLITS, Tally
from radvision_utils.progress import Progress, show_progress

__all__ = ["PreparedDataset", "Studies", "Study", "letterbox", "load_image", "open_prepared", "prepare_dataset"]

log = logging.getLogger(__name__)

_TEXTS = (
    *("uid", "split", "image", "pixels", "findings", "impression"),
    *("reference_findings", "reference_impression", "indication", "mesh", "problems", "truth"),
)
_SCHEMA = pa.schema([(name, pa.string()) for name in _TEXTS])
_BATCH = 256  # studies in an Arrow record batch


def prepare_dataset(profile: Profile, progress: Progress | None = None) -> PreparedDataset:
    """Prepare the run's studies, or return them if they are prepared and nothing that they depend on has changed.

    Args:
        profile: its `data` settings and `seed` decide the result; `data.workers` only the time.
        progress: called with (rows read, rows in the source or None); without it a bar or log lines appear.

    Raises:
        RadVisionError: the source cannot be read, or leaves a split without studies.
    """
    if runs.is_current(profile, "data"):
        return open_prepared(profile)
    run = runs.RunFolder.of(profile)
    source = open_source(profile.data.source, profile.data, profile.seed)
    partial = run.path / "data.partial"
    if partial.exists():
        log.info("removing %s, left by a preparation that did not finish", partial)
        shutil.rmtree(partial)
    (partial / "images").mkdir(parents=True)
    try:
        summary = _prepare(profile, source, partial, progress)
        if run.data.exists():
            shutil.rmtree(run.data)
        partial.rename(run.data)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    run.note(profile, "data", seconds=summary["seconds"], studies=summary["counts"]["kept"])
    return open_prepared(profile)


def _prepare(profile: Profile, source: Source, folder: Path, progress: Progress | None) -> dict[str, Any]:
    started, tally, settings = time.monotonic(), Tally(), profile.data
    log.info("preparing %s studies of %s", "the" if source.count is None else source.count, source.name)
    with show_progress(source.count, progress) as step:

        def split(uid: str) -> str:
            return split_of(uid, source.is_open_i, profile.seed)

        candidates = _screen(_counted(source.rows(), tally, step), settings, tally, split)
        jobs = ((candidate, candidate.picture, folder / candidate.image) for candidate in candidates)
        stored = store_squares(jobs, settings.image_size, settings.workers, source.count)
        _write_studies(folder / "studies.arrow", _kept(stored, tally))
    for reason, count in tally.drops().items():
        log.info("left out %d: %s", count, reason)
    _check_splits(tally, source, settings)
    runs.write_json(folder / "split.json", tally.splits)
    seconds = time.monotonic() - started
    summary = {
        "key": runs.step_key(profile, "data"),
        "hash": runs.file_hash(folder / "studies.arrow"),
        "source": source.name,
        "kind": source.kind,
        "citation": source.citation,
        "license": source.license,
        "split_by": "R2Gen" if source.is_open_i else "hash of the uid",
        **tally.summary(),
        "seconds": round(seconds, 2),
        "studies_per_second": round(tally.read / seconds, 1),
    }
    runs.write_json(folder / "summary.json", summary)
    return summary


@dataclass(frozen=True)
class _Candidate:
    """A study whose text is good; its picture is not yet decoded."""

    uid: str
    split: str
    image: str  # path in the data folder
    picture: bytes
    report: Report
    reference: Report
    sentences: Counter[str]  # dropped from the report, by reason
    row: Row


def _counted(rows: Iterable[Row], tally: Tally, step: Callable[[int], None]) -> Iterator[Row]:
    for row in rows:
        tally.read += 1
        step(tally.read)
        yield row


def _screen(
    rows: Iterable[Row], settings: DataSettings, tally: Tally, split_of_uid: Callable[[str], str]
) -> Iterator[_Candidate]:
    """The rows that are new, have a picture and the sections required.

    A test study is never left out for its words: nothing trains on it, and a benchmark that sheds its awkward studies
    is another benchmark. A section of it that cleaning would empty stays as it is.
    """
    unwanted = {name for name in (DEIDENTIFIED, PRIORS) if getattr(settings, name) == "drop"}
    seen: set[str] = set()
    for row in rows:
        uid = "" if row["uid"] is None else str(row["uid"]).strip()
        reference = Report(row["findings"] or "", row["impression"] or "")
        clean = Report(clean_section(reference.findings), clean_section(reference.impression))
        (findings, lost), (impression, lost_too) = (
            drop_sentences(text, unwanted) for text in (clean.findings, clean.impression)
        )
        split = split_of_uid(uid)
        report = Report(findings, impression)
        if split == "test":
            report = Report(findings or clean.findings, impression or clean.impression)
        if not uid:
            tally.drop("(none)", "no uid")
        elif uid in seen:
            tally.drop(uid, "uid seen before")
        elif not row["img_frontal"]:
            tally.drop(uid, "no frontal image")
        elif missing := _missing(clean, settings.required):
            tally.drop(uid, f"no {missing}")
        elif missing := _missing(report, settings.required):
            tally.drop(uid, f"no {missing} left after cleaning")
        else:
            image = f"images/{safe_name(uid)}.png"
            yield _Candidate(uid, split, image, row["img_frontal"], report, reference, lost + lost_too, row)
        seen.add(uid)


def _missing(report: Report, required: str) -> str:
    absent = [name for name in ("findings", "impression") if not getattr(report, name)]
    return " and no ".join(absent) if len(absent) == 2 or required == "both" else ""


def _kept(stored: Iterable[tuple[_Candidate, str, str]], tally: Tally) -> Iterator[dict[str, str | None]]:
    """The records of the candidates whose picture was stored."""
    for candidate, pixels, error in stored:
        if error:
            log.warning("study %s: %s", candidate.uid, error)
            tally.drop(candidate.uid, "image cannot be decoded")
            continue
        row, mesh = candidate.row, (candidate.row["MeSH"] or "").strip()
        tally.keep(candidate.uid, candidate.split, candidate.report, mesh, candidate.sentences)
        yield {
            "uid": candidate.uid,
            "split": candidate.split,
            "image": candidate.image,
            "pixels": pixels,
            "findings": candidate.report.findings,
            "impression": candidate.report.impression,
            "reference_findings": candidate.reference.findings,
            "reference_impression": candidate.reference.impression,
            "indication": (row["indication"] or "").strip(),
            "mesh": mesh,
            "problems": (row["Problems"] or "").strip(),
            "truth": row.get("truth"),
        }


def _write_studies(path: Path, records: Iterator[dict[str, str | None]]) -> None:
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, _SCHEMA) as stream:
        while batch := list(islice(records, _BATCH)):
            stream.write_batch(pa.RecordBatch.from_pylist(batch, schema=_SCHEMA))


def safe_name(uid: str) -> str:
    """A file name for a uid: only [A-Za-z0-9._-], never outside its folder, different for different uids.

    A uid of lower-case letters, digits, ".", "_" and "-" keeps its name. Any other gets a hash, after a capital that
    the plain names cannot have; so "a/b" cannot meet "a_b", nor "A" meet "a" where case does not matter.
    """
    if re.fullmatch(r"[a-z0-9_][a-z0-9._-]{0,79}", uid):
        return uid
    stem = re.sub(r"[^A-Za-z0-9._-]+", "_", uid)[:60].strip("._-") or "uid"
    return f"{stem}-H{hashlib.sha256(uid.encode()).hexdigest()[:12]}"


def split_of(uid: str, is_open_i: bool, seed: int) -> str:
    """The split of a study: R2Gen's for Open-I, else 80/10/10 by a seeded hash of the uid.

    Depends on nothing but the uid, so a study keeps its split when others come or go. Open-I studies that R2Gen left
    out (no findings) go to train: nothing that is trained on is ever in the benchmark's test split.
    """
    if is_open_i:
        return _r2gen().get(uid, "train")
    share = int.from_bytes(hashlib.sha256(f"{seed}:{uid}".encode()).digest()[:8], "big") / 2**64
    return "train" if share < 0.8 else "validation" if share < 0.9 else "test"


@cache
def _r2gen() -> dict[str, str]:
    ids = json.loads((Path(__file__).parent / "r2gen_split.json").read_text(encoding="utf-8"))
    return {str(uid): split for split in SPLITS for uid in ids[split]}


def _check_splits(tally: Tally, source: Source, settings: DataSettings) -> None:
    empty = [split for split, size in tally.sizes().items() if size == 0]
    if not empty:
        return
    reasons = ", ".join(f"{count} {reason}" for reason, count in tally.drops().items()) or "none was left out"
    if settings.limit is not None and tally.read == settings.limit:
        remedy = "Raise data.limit"
    else:
        remedy = "Raise data.phantoms" if source.kind == "phantom" else "Give a source with more studies"
    raise RadVisionError(
        f"no study of {source.name} fell to {' and '.join(empty)}: {tally.read} were read and {len(tally.splits)} kept "
        f"({reasons}). {remedy}."
    )
