"""Reports are kept as they are written, so that an interrupted evaluation goes on, and several processes share it.

Each process appends its batches to a file of its own. A batch is written whole or again, always of the same studies:
how many processes there are, and where one was interrupted, changes no report. (In the 16 bits of a card it may change
which of two words comes that are as likely as each other: a place that is filled anew lies elsewhere in the cache.)
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from radvision_utils.config import Profile
from radvision_utils.content import fingerprint
from radvision_utils.data.parsing import parse_report
from radvision_utils.data.reports import format_report
from radvision_utils.data.studies import Study, open_prepared
from radvision_utils.environment import process_count, process_rank
from radvision_utils.files import append_json_lines, read_json_lines, write_json_lines
from radvision_utils.report import Reporter, WrittenReport, reporter_of
from radvision_utils.runs import RunFolder, is_current, made_from

logger = logging.getLogger(__name__)

Batches = dict[int, list[WrittenReport]]
_KEPT = ("text", "tokens", "finished", "seconds")  # of a report


def write_reports(reporter: Reporter, studies: Sequence[Study], folder: Path) -> list[WrittenReport]:
    """Reports in the order of the studies; those that an earlier call wrote into `folder` are not written again.

    Studies whose references are about as long come into one batch, since a batch takes as many steps as its longest
    report. No reference reaches the model, and with whom a study shares a batch changes no greedy report.

    Of several processes each writes its share, and the first waits for the others.

    Args:
        reporter: the model of a stage.
        studies: all of them, the same at every call with this folder.
        folder: for these studies, this model and this longest report alone.
    """
    size = reporter.profile.generation.batch_size
    order = sorted(range(len(studies)), key=lambda i: len(format_report(studies[i].reference)))
    ordered = [studies[i] for i in order]
    firsts = range(0, len(ordered), size)
    name = f"stage{reporter.stage}-by-{size}"  # batches of another size are others
    line = reporter.profile.model.summary
    done = _read(folder, name, line)
    if done:
        logger.info("%s: the reports of %d of %d batches were there", name, len(done), len(firsts))
    own = folder / f"{name}.{process_rank()}.jsonl"
    write_json_lines(own, _lines(own))  # without the line that a killed process did not finish
    # By number, not by what is left: the processes look at different moments.
    mine = [first for first in firsts[process_rank() :: process_count()] if first not in done]
    written = reporter.write([study for first in mine for study in ordered[first : first + size]])
    for first in mine:
        reports = [next(written) for _ in ordered[first : first + size]]
        append_json_lines(own, {"first": first, "reports": [{key: getattr(w, key) for key in _KEPT} for w in reports]})
    next(written, None)  # lets the progress end
    while process_rank() == 0 and len(done := _read(folder, name, line)) < len(firsts):
        time.sleep(0.5)
    placed = {order[first + k]: report for first, reports in done.items() for k, report in enumerate(reports)}
    return [placed[number] for number in sorted(placed)]


def help_first_process(profile: Profile, split: str, stages: Iterable[int], step: str) -> None:
    """What every process but the first does in an evaluation: its share of the reports, then wait for the figures."""
    studies, key = list(open_prepared(profile).split(split)), fingerprint(made_from(profile, step))
    for stage in stages:
        write_reports(reporter_of(profile, stage), studies, RunFolder.of(profile).path / step / "reports" / key)
    while not is_current(profile, step):
        time.sleep(0.5)


def _lines(path: Path) -> list[dict[str, Any]]:
    report = {"text": str, "tokens": int, "finished": bool, "seconds": float}
    return read_json_lines(path, {"first": int, "reports": [report]}, torn=True) if path.is_file() else []


def _read(folder: Path, name: str, line: bool) -> Batches:
    return {
        batch["first"]: [
            WrittenReport(parse_report(kept["text"], line), **{key: kept[key] for key in _KEPT})
            for kept in batch["reports"]
        ]
        for path in sorted(folder.glob(f"{name}.*.jsonl"))
        for batch in _lines(path)
    }
