"""From source rows to a prepared dataset: filter, clean, letterbox, split, write.

Studies stream through: memory does not grow with their images. The result becomes visible as `outputs/<run>/data/`
only when it is whole.
"""

from __future__ import annotations

import hashlib
import logging
import re
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Set
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import pyarrow as pa

from radvision_utils import runs
from radvision_utils.config import DataSettings, Profile, RadVisionError
from radvision_utils.data.images import Stored, letterbox, load_image, store_squares
from radvision_utils.data.language import is_english
from radvision_utils.data.reports import (
    DEIDENTIFIED,
    LONGEST,
    PRIORS,
    Report,
    clean_section,
    drop_sentences,
    oddities,
)
from radvision_utils.data.rows import Row, Source
from radvision_utils.data.sources import open_source
from radvision_utils.data.splits import TWIN, Shared, Verdicts, group_of, split_of
from radvision_utils.data.studies import PreparedDataset, Studies, Study, open_prepared
from radvision_utils.data.summary import DOUBTED, LEFT_OUT, MENDED, REMARKS, Remarks, Tally
from radvision_utils.data.views import LATERAL_BELOW
from radvision_utils.progress import Progress, show_progress
from radvision_utils.runs import working

__all__ = ["PreparedDataset", "Studies", "Study", "letterbox", "load_image", "open_prepared", "prepare_dataset"]

log = logging.getLogger(__name__)

_TEXTS = (
    *("uid", "split", "group", "image", "pixels", "findings", "impression"),
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
    with working(run, "data"):
        if not runs.publish_finished(profile, "data"):
            source = open_source(profile.data.source, profile.data, profile.seed)
            _prepare_anew(profile, source, run, progress)
    return open_prepared(profile)


def _prepare_anew(profile: Profile, source: Source, run: runs.RunFolder, progress: Progress | None) -> None:
    partial = run.partial("data")
    if partial.exists():
        log.info("removing %s, left by a preparation that did not finish", partial)
        shutil.rmtree(partial)
    (partial / "images").mkdir(parents=True)
    try:
        _prepare(profile, source, partial, progress)
        run.publish(profile, "data")
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _prepare(profile: Profile, source: Source, folder: Path, progress: Progress | None) -> None:
    started, tally, shared = time.monotonic(), Tally(), Shared()
    log.info("preparing %s studies of %s", "the" if source.count is None else source.count, source.name)
    with show_progress(source.count, progress) as step, (folder / REMARKS).open("w", encoding="utf-8") as listing:
        remarks = Remarks(listing)
        candidates = _screen(_counted(source.rows(), tally, step), profile, source.is_open_i, remarks)
        jobs = ((candidate, candidate.picture, folder / candidate.image) for candidate in candidates)
        stored = store_squares(jobs, profile.data.image_size, profile.data.workers, source.count)
        _write_studies(folder / "studies.arrow", _kept(stored, tally, shared, remarks))
        if verdicts := shared.judge():
            _part_splits(folder, _unwanted(profile.data), tally, verdicts, remarks)
    remarks.tell()
    _check_splits(tally, remarks, source, profile.data)
    runs.write_json(folder / "split.json", tally.splits)
    seconds = time.monotonic() - started
    summary = {
        "key": runs.step_key(profile, "data"),
        "hash": runs.file_hash(folder / "studies.arrow"),
        "source": source.name,
        "kind": source.kind,
        "citation": source.citation,
        "license": source.license,
        "split_by": source.split_by,
        **tally.summary(remarks),
        "seconds": round(seconds, 2),
        "studies_per_second": round(tally.read / seconds, 1),
    }
    runs.write_json(folder / "summary.json", summary)


@dataclass(frozen=True)
class _Candidate:
    """A study whose text is good; its picture is not yet decoded."""

    uid: str
    split: str
    group: str  # stands for the patient
    image: str  # path in the data folder
    picture: bytes  # encoded
    report: Report
    reference: Report
    sentences: Counter[str]  # dropped from the report, by reason
    row: Row


def _counted(rows: Iterable[Row], tally: Tally, step: Callable[[int], None]) -> Iterator[Row]:
    for row in rows:
        tally.read += 1
        step(tally.read)
        yield row


def _screen(rows: Iterable[Row], profile: Profile, is_open_i: bool, remarks: Remarks) -> Iterator[_Candidate]:
    """The rows that are new, have a picture, and a report with the sections required.

    A test study is never left out for sentences that cleaning drops: nothing trains on it, and a benchmark that sheds
    its awkward studies is another benchmark. A section of it that would be emptied stays as it is.
    """
    settings, unwanted = profile.data, _unwanted(profile.data)
    seen: set[str] = set()
    for row in rows:
        uid = "" if row["uid"] is None else str(row["uid"]).strip()
        reference = Report(row["findings"] or "", row["impression"] or "")
        if fault := _fault(uid, seen, row, reference):
            remarks.add(LEFT_OUT, uid or "(none)", fault)
            seen.add(uid)
            continue
        seen.add(uid)
        clean = Report(clean_section(reference.findings), clean_section(reference.impression))
        (findings, lost), (impression, lost_too) = (
            drop_sentences(text, unwanted) for text in (clean.findings, clean.impression)
        )
        patient = str(row.get("patient") or "")
        split = row.get("split") or split_of(patient or uid, is_open_i, profile.seed)
        report = Report(findings, impression)
        if split == "test":
            report = Report(findings or clean.findings, impression or clean.impression)
        if missing := _missing(clean, settings.required):
            remarks.add(LEFT_OUT, uid, f"no {missing}")
        elif not is_english(f"{clean.findings} {clean.impression}"):
            remarks.add(LEFT_OUT, uid, "report is not English")
        elif missing := _missing(report, settings.required):
            remarks.add(LEFT_OUT, uid, f"no {missing} left after cleaning")
        else:
            for oddity in oddities(f"{reference.findings}\n{reference.impression}"):
                remarks.add(MENDED, uid, f"report with {oddity}")
            image, group = f"images/{safe_name(uid)}.png", group_of(patient, profile.seed)
            picture = row["img_frontal"]
            yield _Candidate(uid, split, group, image, picture, report, reference, lost + lost_too, row)


def _unwanted(settings: DataSettings) -> set[str]:
    return {name for name in (DEIDENTIFIED, PRIORS) if getattr(settings, name) == "drop"}


def _fault(uid: str, seen: Set[str], row: Row, reference: Report) -> str:
    """Why a row cannot be used, as far as that is plain before its report is cleaned; "" if it can."""
    if not uid:
        return "no uid"
    if uid in seen:
        return "uid seen before"
    if not row["img_frontal"]:
        return "no frontal image"
    if max(len(reference.findings), len(reference.impression)) > LONGEST:
        return f"report longer than {LONGEST:,} characters"
    return ""


def _missing(report: Report, required: str) -> str:
    absent = [name for name in ("findings", "impression") if not getattr(report, name)]
    return " and no ".join(absent) if len(absent) == 2 or required == "both" else ""


def _kept(
    stored: Iterable[tuple[_Candidate, Stored]], tally: Tally, shared: Shared, remarks: Remarks
) -> Iterator[dict[str, str | None]]:
    """The records of the candidates whose picture was stored."""
    for candidate, picture in stored:
        uid, row = candidate.uid, candidate.row
        if picture.fault:
            remarks.add(LEFT_OUT, uid, picture.reason, picture.fault)
            continue
        for oddity in picture.oddities:
            remarks.add(MENDED, uid, f"image: {oddity}")
        if picture.symmetry < LATERAL_BELOW:
            remarks.add(DOUBTED, uid, "frontal image that looks lateral")
        shared.add(candidate.split, picture.pixels, candidate.group)
        mesh = (row["MeSH"] or "").strip()
        tally.keep(uid, candidate.split, candidate.report, mesh, candidate.sentences)
        yield {
            "uid": uid,
            "split": candidate.split,
            "group": candidate.group,
            "image": candidate.image,
            "pixels": picture.pixels,
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


def _part_splits(folder: Path, unwanted: Set[str], tally: Tally, verdicts: Verdicts, remarks: Remarks) -> None:
    """Take out of the written studies those whose picture or patient belongs to another split; name other twins."""
    written, parted = folder / "studies.arrow", folder / "parted.arrow"

    def staying() -> Iterator[dict[str, str | None]]:
        with pa.memory_map(str(written)) as file, pa.ipc.open_stream(file) as batches:
            for row in (row for batch in batches for row in batch.to_pylist()):
                if reason := verdicts.must_leave(row):
                    tally.forget(*_counted_of(row, unwanted))
                    remarks.add(LEFT_OUT, row["uid"], reason)
                    (folder / row["image"]).unlink()
                    continue
                if verdicts.is_twin(row):
                    remarks.add(DOUBTED, row["uid"], TWIN)
                yield row

    _write_studies(parted, staying())
    parted.replace(written)


def _counted_of(row: Row, unwanted: Set[str]) -> tuple[str, str, Report, str, Counter[str]]:
    """What `Tally.keep` was told of a written study. What cleaning dropped is not written: it is dropped once more."""
    sections = [clean_section(row[f"reference_{name}"]) for name in ("findings", "impression")]
    sentences = sum((drop_sentences(text, unwanted)[1] for text in sections), Counter[str]())
    return row["uid"], row["split"], Report(row["findings"], row["impression"]), row["mesh"], sentences


def safe_name(uid: str) -> str:
    """A file name for a uid: only [A-Za-z0-9._-], never outside its folder, different for different uids.

    A uid of lower-case letters, digits, ".", "_" and "-" keeps its name. Any other gets a hash, after a capital that
    the plain names cannot have; so "a/b" cannot meet "a_b", nor "A" meet "a" where case does not matter.
    """
    if re.fullmatch(r"[a-z0-9_][a-z0-9._-]{0,79}", uid):
        return uid
    stem = re.sub(r"[^A-Za-z0-9._-]+", "_", uid)[:60].strip("._-") or "uid"
    return f"{stem}-H{hashlib.sha256(uid.encode()).hexdigest()[:12]}"


def _check_splits(tally: Tally, remarks: Remarks, source: Source, settings: DataSettings) -> None:
    empty = [split for split, size in tally.sizes().items() if size == 0]
    if not empty:
        return
    reasons = (
        ", ".join(f"{count} {reason}" for reason, count in remarks.counts(LEFT_OUT).items()) or "none was left out"
    )
    if settings.limit is not None and tally.read == settings.limit:
        remedy = "Raise data.limit"
    else:
        remedy = "Raise data.phantoms" if source.kind == "phantom" else "Give a source with more studies"
    raise RadVisionError(
        f"no study of {source.name} fell to {' and '.join(empty)}: {tally.read} were read and {len(tally.splits)} kept "
        f"({reasons}). {remedy}."
    )
