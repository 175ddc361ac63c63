"""What a preparation counted: what was left out, mended or doubted and why, how long reports are, how often alike."""

from __future__ import annotations

import hashlib
import json
import logging
import statistics
from array import array
from collections import Counter
from collections.abc import Iterable
from typing import Any, TextIO

import numpy as np

from radvision_utils.data.reports import Report, format_report
from radvision_utils.data.splits import SPLITS

LEFT_OUT, MENDED, DOUBTED = "left out", "mended", "in doubt"
"""What became of a study with a fault: it is not used; it is used without the fault; it is used as it is."""
REMARKS = "remarks.jsonl"

_LISTED = 20  # uids named for each reason
_HEADINGS = 20
_LONGEST_UID = 80  # characters in a log line

log = logging.getLogger(__name__)


def is_normal(mesh: str) -> bool:
    """Whether the indexers of Open-I found nothing abnormal in the report."""
    return mesh.strip().lower() == "normal"


def headings(mesh: str) -> set[str]:
    """The MeSH headings of a study without their qualifiers: "Opacity/lung/left;Scoliosis" has two."""
    return {part.split("/")[0].strip() for part in mesh.split(";")} - {""}


class Remarks:
    """What is odd about studies: counted by reason, the first few named in the log, all written to a file.

    Args:
        listing: gets a JSON line for each remark: uid, what became of the study, reason, and details where there are.
    """

    def __init__(self, listing: TextIO) -> None:
        self._listing = listing
        self._counts: dict[str, Counter[str]] = {kind: Counter() for kind in (LEFT_OUT, MENDED, DOUBTED)}
        self._uids: dict[tuple[str, str], list[str]] = {}

    def add(self, kind: str, uid: str, reason: str, detail: str = "") -> None:
        """Note a remark on a study; `detail` is a sentence for the log."""
        self._counts[kind][reason] += 1
        named = self._uids.setdefault((kind, reason), [])
        if len(named) < _LISTED:
            named.append(uid)
            if detail:
                log.warning("study %s is %s: %s", _shown(uid), kind, detail)
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
                named = ", ".join(map(_shown, self._uids[kind, reason]))
                more = f", {count - _LISTED} more in data/{REMARKS}" if count > _LISTED else ""
                log.info("%s %d: %s (study %s%s)", kind, count, reason, named, more)


def _shown(uid: str) -> str:
    # A uid is a stranger's text: it must neither steer a terminal nor fill the log.
    shown = uid if uid.isprintable() else json.dumps(uid)
    return shown if len(shown) <= _LONGEST_UID else f"{shown[:_LONGEST_UID]}..."


class Tally:
    """Counts studies as they pass. Keeps some bytes of each, never its text or image."""

    def __init__(self) -> None:
        self.read = 0
        self.splits: dict[str, str] = {}
        self._sentences: Counter[str] = Counter()
        self._touched: Counter[str] = Counter()
        self._words = {"findings": array("I"), "impression": array("I")}
        self._indexed: Counter[str] = Counter()
        self._normal: Counter[str] = Counter()
        self._mesh: Counter[str] = Counter()
        self._targets = {split: array("Q") for split in SPLITS}  # 64 bits of each report's hash

    def keep(self, uid: str, split: str, report: Report, mesh: str, sentences: Counter[str]) -> None:
        """Count a study that is kept, with the sentences that its training target lost."""
        self.splits[uid] = split
        for section, words in self._words.items():
            if text := getattr(report, section):
                words.append(len(text.split()))
        self._targets[split].append(_hash(report))
        self._count(split, mesh, sentences, 1)

    def forget(self, uid: str, split: str, report: Report, mesh: str, sentences: Counter[str]) -> None:
        """Take back what `keep` counted."""
        del self.splits[uid]
        for section, words in self._words.items():
            if text := getattr(report, section):
                words.remove(len(text.split()))
        self._targets[split].remove(_hash(report))
        self._count(split, mesh, sentences, -1)

    def _count(self, split: str, mesh: str, sentences: Counter[str], one: int) -> None:
        self._sentences.update({reason: one * count for reason, count in sentences.items()})
        self._touched.update(dict.fromkeys(sentences, one))
        self._indexed[split] += one * bool(mesh)
        self._normal[split] += one * is_normal(mesh)
        self._mesh.update(dict.fromkeys(headings(mesh), one))

    def sizes(self) -> dict[str, int]:
        """Kept studies by split."""
        counts = Counter(self.splits.values())
        return {split: counts[split] for split in SPLITS}

    def summary(self, remarks: Remarks) -> dict[str, Any]:
        """All counts as JSON values."""
        train, validation, test = (np.asarray(self._targets[split], dtype=np.uint64) for split in SPLITS)
        dropped = remarks.counts(LEFT_OUT)
        return {
            "counts": {"read": self.read, "kept": len(self.splits), "dropped": dropped, "splits": self.sizes()},
            "dropped_uids": remarks.uids(LEFT_OUT),
            "mended": remarks.counts(MENDED),
            "mended_uids": remarks.uids(MENDED),
            "doubted": remarks.counts(DOUBTED),
            "doubted_uids": remarks.uids(DOUBTED),
            "cleaning": {
                reason: {"sentences": self._sentences[reason], "studies": self._touched[reason]}
                for reason in ("deidentified", "priors")
            },
            "words": {section: _spread(words) for section, words in self._words.items()},
            "normal_share": {
                split: round(self._normal[split] / self._indexed[split], 4) if self._indexed[split] else None
                for split in SPLITS
            },
            "mesh": _commonest(self._mesh),
            "identical_reports": {
                "within train": len(train) - len(np.unique(train)),
                "validation also in train": int(np.isin(validation, train).sum()),
                "test also in train": int(np.isin(test, train).sum()),
            },
        }


def _hash(report: Report) -> int:
    return int.from_bytes(hashlib.sha256(format_report(report).lower().encode()).digest()[:8], "big")


def _commonest(mesh: Counter[str]) -> dict[str, int]:
    return dict(
        Counter({name: count for name, count in mesh.items() if count and name != "normal"}).most_common(_HEADINGS)
    )


def _spread(words: Iterable[int]) -> dict[str, float] | None:
    counts = list(words)
    if not counts:
        return None
    return {"min": min(counts), "median": statistics.median(counts), "max": max(counts)}
