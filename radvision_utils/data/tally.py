"""What is counted and remarked of studies while a dataset is prepared: some bytes of each, never its text or image."""

from __future__ import annotations

import hashlib
import json
import logging
import statistics
from array import array
from collections import Counter
from collections.abc import Mapping
from typing import Any, TextIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from radvision_utils.data.cells import shown
from radvision_utils.data.cleaning import DEIDENTIFIED, PRIORS
from radvision_utils.data.reports import Report, format_report
from radvision_utils.data.studies import SPLITS

LEFT_OUT, MENDED, DOUBTED = "left out", "mended", "in doubt"
"""What became of a study with a fault: it is not used; it is used without the fault; it is used as it is."""
REMARKS = "remarks.jsonl"
REASONS = (DEIDENTIFIED, PRIORS)

_LISTED = 20  # uids named for each reason
_HEADINGS = 20

log = logging.getLogger(__name__)


def shared(studies: pa.Table, column: str) -> dict[str, str]:
    """What several studies have, and the split in which it may stay: test before validation before train.

    Args:
        studies: with the columns `split` and `column`.
        column: names pictures or patients by 16 hex digits; "" is nothing.
    """
    # As numbers: the texts, grouped, would take ten times the memory.
    texts = (text for chunk in studies[column].chunks for text in chunk.to_pylist())
    keys = np.fromiter((int(text or "0", 16) for text in texts), np.uint64, len(studies))
    met, inverse, counts = np.unique(keys, return_inverse=True, return_counts=True)
    last = np.zeros(len(met), int)
    np.maximum.at(last, inverse, pc.index_in(studies["split"], value_set=pa.array(SPLITS)).to_numpy())
    return {f"{met[n]:016x}": SPLITS[last[n]] for n in np.flatnonzero(counts > 1) if met[n]}


class Tally:
    """Counts studies as they pass. Keeps some bytes of each, never its text or image."""

    def __init__(self) -> None:
        self.splits: dict[str, str] = {}
        self._cleaning = {reason: {"sentences": 0, "studies": 0} for reason in REASONS}
        self._words = {"findings": array("I"), "impression": array("I")}
        self._indexed: Counter[str] = Counter()
        self._normal: Counter[str] = Counter()
        self._mesh: Counter[str] = Counter()
        self._targets = {split: array("Q") for split in SPLITS}  # 64 bits of each report's hash

    def add(self, row: Mapping[str, Any]) -> None:
        """Count a prepared study; `REASONS` name how many sentences its training target lost."""
        split, mesh = row["split"], row["mesh"]
        self.splits[row["uid"]] = split
        for section, words in self._words.items():
            if row[section]:
                words.append(len(row[section].split()))
        for reason, counts in self._cleaning.items():
            counts["sentences"] += row[reason]
            counts["studies"] += row[reason] > 0
        self._indexed[split] += bool(mesh)
        self._normal[split] += mesh.lower() == "normal"  # the indexers of Open-I found nothing abnormal
        # Without qualifiers: "Opacity/lung/left;Scoliosis" has two headings.
        self._mesh.update(dict.fromkeys((part.split("/")[0].strip() for part in mesh.split(";")), 1))
        target = format_report(Report(row["findings"], row["impression"])).lower()
        self._targets[split].append(int.from_bytes(hashlib.sha256(target.encode()).digest()[:8], "big"))

    def summary(self, remarks: Remarks) -> dict[str, Any]:
        """All counts as JSON values."""
        train, validation, test = (np.asarray(self._targets[split], dtype=np.uint64) for split in SPLITS)
        dropped = remarks.counts(LEFT_OUT)
        mesh = [(name, count) for name, count in self._mesh.most_common() if name not in ("", "normal")]
        return {
            "counts": {
                "read": len(self.splits) + sum(dropped.values()),
                "kept": len(self.splits),
                "dropped": dropped,
                "splits": {split: list(self.splits.values()).count(split) for split in SPLITS},
            },
            "dropped_uids": remarks.uids(LEFT_OUT),
            "mended": remarks.counts(MENDED),
            "mended_uids": remarks.uids(MENDED),
            "doubted": remarks.counts(DOUBTED),
            "doubted_uids": remarks.uids(DOUBTED),
            "cleaning": self._cleaning,
            "words": {section: _spread(words) for section, words in self._words.items()},
            "normal_share": {
                split: round(self._normal[split] / self._indexed[split], 4) if self._indexed[split] else None
                for split in SPLITS
            },
            "mesh": dict(mesh[:_HEADINGS]),
            "identical_reports": {
                "within train": len(train) - len(np.unique(train)),
                "validation also in train": int(np.isin(validation, train).sum()),
                "test also in train": int(np.isin(test, train).sum()),
            },
        }


def _spread(words: array[int]) -> dict[str, float] | None:
    return {"min": min(words), "median": statistics.median(words), "max": max(words)} if words else None


class Remarks:
    """What is odd about studies: counted by reason, the first few named in the log, all written to a file.

    Args:
        listing: gets a JSON line for each remark: uid, what became of the study, reason, and details where there are.
    """

    def __init__(self, listing: TextIO) -> None:
        self._listing = listing
        self._counts: dict[str, Counter[str]] = {kind: Counter() for kind in (LEFT_OUT, MENDED, DOUBTED)}
        self._uids: dict[tuple[str, str], list[str]] = {}
        self._details: dict[tuple[str, str], str] = {}

    def add(self, kind: str, uid: str, reason: str, detail: str = "") -> None:
        """Note a remark on a study; the log tells the first `detail` of each reason."""
        self._counts[kind][reason] += 1
        named = self._uids.setdefault((kind, reason), [])
        if len(named) < _LISTED:
            named.append(uid)
        if detail:
            self._details.setdefault((kind, reason), f"; of study {shown(uid)}: {detail}")
        line = {"uid": uid, "became": kind, "reason": reason, **({"detail": detail} if detail else {})}
        self._listing.write(json.dumps(line, ensure_ascii=True) + "\n")

    def counts(self, kind: str) -> dict[str, int]:
        """Studies by reason, the commonest first."""
        return dict(self._counts[kind].most_common())

    def uids(self, kind: str) -> dict[str, list[str]]:
        """The first uids by reason."""
        return {reason: self._uids[kind, reason] for reason in self.counts(kind)}

    def tell(self) -> None:
        """One log line for each reason, with the first uids."""
        for kind in self._counts:
            for reason, count in self.counts(kind).items():
                named = ", ".join(map(shown, self._uids[kind, reason]))
                more = f", {count - _LISTED} more in data/{REMARKS}" if count > _LISTED else ""
                detail = self._details.get((kind, reason), "")
                log.info("%s %d: %s (study %s%s)%s", kind, count, reason, named, more, detail)
