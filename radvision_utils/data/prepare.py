"""From source rows to a prepared dataset: filter, clean, letterbox, split, write, count.

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
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from dataclasses import asdict
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from radvision_utils import files, runs
from radvision_utils.config import DataSettings, Profile, RadVisionError
from radvision_utils.content import checksum, fingerprint, source_content
from radvision_utils.data.cleaning import LONGEST, clean_section, drop_sentences, is_english, oddities
from radvision_utils.data.reports import Report
from radvision_utils.data.sources import Row, Source, open_source, share_of
from radvision_utils.data.storing import LATERAL_BELOW, Stored, store_squares
from radvision_utils.data.studies import SPLITS, PreparedDataset, open_prepared
from radvision_utils.data.tally import DOUBTED, LEFT_OUT, MENDED, REASONS, REMARKS, Remarks, Tally, shared
from radvision_utils.progress import Progress, show_progress
from radvision_utils.runs import working

_TEXTS = (
    *("uid", "split", "group", "image", "pixels", "findings", "impression"),
    *("reference_findings", "reference_impression", "indication", "mesh", "problems", "truth"),
)
_SCHEMA = pa.schema([(name, pa.string()) for name in _TEXTS])
_COUNTED = pa.schema([*_SCHEMA, *((reason, pa.int32()) for reason in REASONS)])  # with the sentences dropped
_NOT_FOUND = "no file at the image's path"
_BATCH = 256  # studies in an Arrow record batch

log = logging.getLogger(__name__)


def prepare_dataset(profile: Profile, progress: Progress | None = None) -> PreparedDataset:
    """Prepare the run's studies, or return them if they are prepared and nothing that they depend on has changed.

    Args:
        profile: its `data` settings and `seed` decide the result; `data.workers` only the time.
        progress: called with (rows read, rows in the source); without it a bar or log lines appear.

    Raises:
        RadVisionError: the source cannot be read, or leaves a split without studies.
    """
    force = runs.asked_to_force("data")
    if not force and runs.is_current(profile, "data"):
        return open_prepared(profile)
    run = runs.RunFolder.of(profile)
    with working(run, "data"):
        runs.publish_finished(profile, "data")
        if force or not runs.is_current(profile, "data"):
            source = open_source(profile.data.source, profile.data, profile.seed)
            _prepare_aside(profile, source, run, progress, force)
    return open_prepared(profile)


def _prepare_aside(
    profile: Profile, source: Source, run: runs.RunFolder, progress: Progress | None, force: bool
) -> None:
    """Prepare in a folder of its own; the pictures that an interrupted preparation of the same studies left count."""
    partial, content = run.partial("data"), source_content(source.name)  # before it is read: it may change meanwhile
    journal = partial / f"stored.{fingerprint([runs.made_from(profile, 'data'), content])}.jsonl"
    if force or not journal.is_file():
        if partial.exists():
            log.info("removing %s, left by a preparation that did not finish", partial)
            shutil.rmtree(partial)
        (partial / "images").mkdir(parents=True)
    try:
        _prepare(profile, source, content, journal, progress)
        run.publish(profile, "data")
    except Exception:
        if not journal.exists():  # all was read, and would be of no more use
            shutil.rmtree(partial, ignore_errors=True)
        raise


def _prepare(profile: Profile, source: Source, content: str | None, journal: Path, progress: Progress | None) -> None:
    """Two passes: the rows one by one, then what only all of them together tell: what two splits share, and counts."""
    started, tally, folder, before = time.monotonic(), Tally(), journal.parent, _stored_before(journal)
    written = folder / "stored.arrow"
    purpose = ", some of which are damaged on purpose" if source.kind == "phantom" else ""
    log.info("preparing %d studies of %s%s", source.count, source.name, purpose)
    with show_progress(source.count, progress) as step, (folder / REMARKS).open("w", encoding="utf-8") as listing:
        remarks = Remarks(listing)
        jobs = (
            (record, before.get(record["image"]) or picture, folder / record["image"])
            for record, picture in _screen(source, profile, remarks, step)
        )
        stored = store_squares(jobs, profile.data.image_size, profile.data.workers, source.count)
        _write_studies(written, _COUNTED, _stored(stored, before, journal, remarks))
        _write_studies(folder / "studies.arrow", _SCHEMA, _staying(written, tally, remarks))
    written.unlink()
    journal.unlink()
    remarks.tell()
    counted = tally.summary(remarks)
    _check_splits(counted["counts"], source, profile.data)
    files.write_json(folder / "split.json", tally.splits)
    seconds = time.monotonic() - started
    summary = {
        "made_from": runs.made_from(profile, "data"),
        "hash": checksum(folder / "studies.arrow"),
        "source": source.name,
        "content": content,
        "kind": source.kind,
        "citation": source.citation,
        "license": source.license,
        "split_by": source.split_by,
        **counted,
        "seconds": round(seconds, 2),
        "studies_per_second": round(counted["counts"]["read"] / seconds, 1),
    }
    files.write_json(folder / "summary.json", summary)


def _screen(
    source: Source, profile: Profile, remarks: Remarks, step: Callable[[int], None]
) -> Iterator[tuple[Row, bytes]]:
    """Records and encoded pictures of the rows that are new, have a picture, and a report with the sections required.

    A test study is never left out for sentences that cleaning drops: nothing trains on it, and a benchmark that sheds
    its awkward studies is another benchmark. A section of it that would be emptied stays as it is.
    """
    unwanted = {reason for reason in REASONS if getattr(profile.data, reason) == "drop"}
    seen: set[str] = set()
    for number, row in enumerate(source.rows(), start=1):
        step(number)
        uid, patient = str(row["uid"] or "").strip(), str(row.get("patient") or "")
        reference = Report(row["findings"] or "", row["impression"] or "")
        fault = _fault(uid, seen, row, reference)
        seen.add(uid)
        if fault:
            detail = f"{row['not_found']} is no file in the source's folder" if fault == _NOT_FOUND else ""
            remarks.add(LEFT_OUT, uid or "(none)", fault, detail)
            continue
        clean = Report(clean_section(reference.findings), clean_section(reference.impression))
        (findings, lost), (impression, lost_too) = (
            drop_sentences(text, unwanted) for text in (clean.findings, clean.impression)
        )
        split = row.get("split") or split_of(patient or uid, source.is_open_i, profile.seed)
        report = Report(findings, impression)
        if split == "test":
            report = Report(findings or clean.findings, impression or clean.impression)
        if fault := _unfit(clean, report, profile.data.required):
            remarks.add(LEFT_OUT, uid, fault)
            continue
        for oddity in oddities(f"{reference.findings}\n{reference.impression}"):
            remarks.add(MENDED, uid, f"report with {oddity}")
        record = {
            "uid": uid,
            "split": split,
            "group": _group_of(patient, profile.seed),
            "image": f"images/{safe_name(uid)}.png",
            "findings": report.findings,
            "impression": report.impression,
            "reference_findings": reference.findings,
            "reference_impression": reference.impression,
            "indication": (row["indication"] or "").strip(),
            "mesh": (row["MeSH"] or "").strip(),
            "problems": (row["Problems"] or "").strip(),
            "truth": row.get("truth"),
        }
        yield record | {reason: lost[reason] + lost_too[reason] for reason in REASONS}, row["img_frontal"]


def _fault(uid: str, seen: Set[str], row: Row, reference: Report) -> str:
    """Why a row cannot be used, as far as that is plain before its report is cleaned; "" if it can."""
    if not uid:
        return "no uid"
    if uid in seen:
        return "uid seen before"
    if not row["img_frontal"]:
        return _NOT_FOUND if row.get("not_found") else "no frontal image"
    if max(len(reference.findings), len(reference.impression)) > LONGEST:
        return f"report longer than {LONGEST:,} characters"
    return ""


def _unfit(clean: Report, report: Report, required: str) -> str:
    """Why the cleaned report, or what is left of it as a training target, is of no use; "" if it is."""
    if missing := _missing(clean, required):
        return f"no {missing}"
    if not is_english(f"{clean.findings} {clean.impression}"):
        return "report is not English"
    missing = _missing(report, required)
    return f"no {missing} left after cleaning" if missing else ""


def _missing(report: Report, required: str) -> str:
    absent = [name for name in ("findings", "impression") if not getattr(report, name)]
    return " and no ".join(absent) if len(absent) == 2 or required == "both" else ""


def _stored_before(journal: Path) -> dict[str, Stored]:
    """What an interrupted preparation noted of the pictures that it stored, or could not store, by their paths."""
    shape = {"image": str, "pixels": str, "symmetry": float, "oddities": [str], "reason": str, "fault": str}
    lines = files.read_json_lines(journal, shape, torn=True) if journal.is_file() else []
    files.write_json_lines(journal, lines)  # without the line that a killed process did not finish
    before = {}
    for line in lines:
        image, mended = line.pop("image"), tuple(line.pop("oddities"))
        path = journal.parent / image
        # A machine that lost its power may have the note without the picture.
        if line["fault"] or (path.is_file() and path.stat().st_size):
            before[image] = Stored(**line, oddities=mended)
    if before:
        log.info("an interrupted preparation goes on: %d pictures are done", len(before))
    return before


def _stored(
    stored: Iterable[tuple[Row, Stored]], before: Mapping[str, Stored], journal: Path, remarks: Remarks
) -> Iterator[Row]:
    """The records whose picture was stored; what became of each is noted for a preparation that goes on."""
    with journal.open("a", encoding="utf-8") as file:
        for record, picture in stored:
            uid, image = record["uid"], record["image"]
            if image not in before:
                file.write(json.dumps({"image": image, **asdict(picture)}) + "\n")
            if picture.fault:
                remarks.add(LEFT_OUT, uid, picture.reason, picture.fault)
                continue
            for oddity in picture.oddities:
                remarks.add(MENDED, uid, f"image: {oddity}")
            if picture.symmetry < LATERAL_BELOW:
                remarks.add(DOUBTED, uid, "frontal image that looks lateral")
            yield {**record, "pixels": picture.pixels}


def _staying(written: Path, tally: Tally, remarks: Remarks) -> Iterator[Row]:
    """The written records, counted, without those whose picture or patient belongs to another split; twins are named.

    What is shared stays in the split that judges (test before validation before train), in whatever order it came; so a
    benchmark never loses a study, and nothing that it asks was trained on.
    """
    with pa.memory_map(str(written)) as file:
        studies = pa.ipc.open_stream(file).read_all()
        pictures, patients = shared(studies, "pixels"), shared(studies, "group")
        for row in (row for batch in studies.to_batches() for row in batch.to_pylist()):
            uid, split, reason = row["uid"], row["split"], ""
            if pictures.get(row["pixels"], split) != split:
                reason = "image also in another split"
            elif patients.get(row["group"], split) != split:
                reason = "patient also in another split"
            if reason:
                remarks.add(LEFT_OUT, uid, reason)
                (written.parent / row["image"]).unlink()
                continue
            if row["pixels"] in pictures:
                remarks.add(DOUBTED, uid, "image of another study too")
            tally.add(row)
            yield row


def _write_studies(path: Path, schema: pa.Schema, records: Iterator[Row]) -> None:
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, schema) as stream:
        while batch := list(islice(records, _BATCH)):
            stream.write_batch(pa.RecordBatch.from_pylist(batch, schema=schema))


def safe_name(uid: str) -> str:
    """A file name for a uid: only [A-Za-z0-9._-], never outside its folder, different for different uids.

    A uid of lower-case letters, digits, ".", "_" and "-" keeps its name. Any other gets a hash, after a capital that
    the plain names cannot have; so "a/b" cannot meet "a_b", nor "A" meet "a" where case does not matter.
    """
    if re.fullmatch(r"[a-z0-9_][a-z0-9._-]{0,79}", uid):
        return uid
    stem = re.sub(r"[^A-Za-z0-9._-]+", "_", uid)[:60].strip("._-") or "uid"
    return f"{stem}-H{hashlib.sha256(uid.encode()).hexdigest()[:12]}"


def _check_splits(counts: Mapping[str, Any], source: Source, settings: DataSettings) -> None:
    empty = [split for split, size in counts["splits"].items() if size == 0]
    if not empty:
        return
    reasons = ", ".join(f"{count} {reason}" for reason, count in counts["dropped"].items()) or "none was left out"
    if counts["read"] == settings.limit:
        remedy = "Raise data.limit"
    else:
        remedy = "Raise data.phantoms" if source.kind == "phantom" else "Give a source with more studies"
    raise RadVisionError(
        f"no study of {source.name} fell to {' and '.join(empty)}: {counts['read']} were read and {counts['kept']} "
        f"kept ({reasons}). {remedy}."
    )


def split_of(uid: str, is_open_i: bool, seed: int) -> str:
    """The split of a study: R2Gen's for Open-I, else 80/10/10 by a seeded hash of the uid.

    Depends on nothing but the uid, so a study keeps its split when others come or go. Open-I studies that R2Gen left
    out (no findings) go to train: nothing that is trained on is ever in the benchmark's test split.

    Args:
        uid: of the study; or of the patient, so that all studies of one fall to the same split.
    """
    if is_open_i:
        return _r2gen().get(uid, "train")
    share = share_of(uid, seed)
    return "train" if share < 0.8 else "validation" if share < 0.9 else "test"


@cache
def _r2gen() -> dict[str, str]:
    ids = json.loads((Path(__file__).parent / "r2gen_split.json").read_text(encoding="utf-8"))
    return {str(uid): split for split in SPLITS for uid in ids[split]}


def _group_of(patient: str, seed: int) -> str:
    """16 hex digits that stand for a patient; "" for "". The number itself goes into no output."""
    return hashlib.sha256(f"patient:{seed}:{patient}".encode(errors="replace")).hexdigest()[:16] if patient else ""
