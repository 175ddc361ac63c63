"""What a preparation counted: what was dropped and why, how long reports are, how often they are alike."""

from __future__ import annotations

import hashlib
import logging
import statistics
from array import array
from collections import Counter, defaultdict
from typing import Any

from radvision_utils.data.reports import Report, format_report

SPLITS = ("train", "validation", "test")

_LISTED = 20  # uids named for each reason
_HEADINGS = 20

log = logging.getLogger(__name__)


def is_normal(mesh: str) -> bool:
    """Whether the indexers of Open-I found nothing abnormal in the report."""
    return mesh.strip().lower() == "normal"


def headings(mesh: str) -> set[str]:
    """The MeSH headings of a study without their qualifiers: "Opacity/lung/left;Scoliosis" has two."""
    return {part.split("/")[0].strip() for part in mesh.split(";")} - {""}


class Tally:
    """Counts studies as they pass. Keeps some bytes of each, never its text or image."""

    def __init__(self) -> None:
        self.read = 0
        self.splits: dict[str, str] = {}
        self._dropped: dict[str, list[str]] = defaultdict(list)
        self._drop_counts: Counter[str] = Counter()
        self._sentences: Counter[str] = Counter()
        self._touched: Counter[str] = Counter()
        self._words = {"findings": array("I"), "impression": array("I")}
        self._indexed: Counter[str] = Counter()
        self._normal: Counter[str] = Counter()
        self._mesh: Counter[str] = Counter()
        self._targets: dict[str, Counter[bytes]] = {split: Counter() for split in SPLITS}

    def drop(self, uid: str, reason: str) -> None:
        """Count a study that is left out."""
        log.debug("study %s is left out: %s", uid, reason)
        self._drop_counts[reason] += 1
        if len(self._dropped[reason]) < _LISTED:
            self._dropped[reason].append(uid)

    def keep(self, uid: str, split: str, report: Report, mesh: str, sentences: Counter[str]) -> None:
        """Count a study that is kept, with the sentences that its training target lost."""
        self.splits[uid] = split
        self._sentences.update(sentences)
        self._touched.update(sentences.keys())
        for section, words in self._words.items():
            if text := getattr(report, section):
                words.append(len(text.split()))
        self._indexed[split] += bool(mesh)
        self._normal[split] += is_normal(mesh)
        self._mesh.update(headings(mesh))
        self._targets[split][hashlib.sha256(format_report(report).lower().encode()).digest()[:8]] += 1

    def drops(self) -> dict[str, int]:
        """Studies left out by reason, the commonest first."""
        return dict(self._drop_counts.most_common())

    def sizes(self) -> dict[str, int]:
        """Kept studies by split."""
        counts = Counter(self.splits.values())
        return {split: counts[split] for split in SPLITS}

    def summary(self) -> dict[str, Any]:
        """All counts as JSON values."""
        train = self._targets["train"]
        return {
            "counts": {"read": self.read, "kept": len(self.splits), "dropped": self.drops(), "splits": self.sizes()},
            "dropped_uids": {reason: self._dropped[reason] for reason in self.drops()},
            "cleaning": {
                reason: {"sentences": self._sentences[reason], "studies": self._touched[reason]}
                for reason in ("deidentified", "priors")
            },
            "words": {section: _spread(words) for section, words in self._words.items()},
            "normal_share": {
                split: round(self._normal[split] / self._indexed[split], 4) if self._indexed[split] else None
                for split in SPLITS
            },
            "mesh": dict((Counter({k: n for k, n in self._mesh.items() if k != "normal"})).most_common(_HEADINGS)),
            "identical_reports": {
                "within train": train.total() - len(train),
                "validation also in train": sum(n for key, n in self._targets["validation"].items() if key in train),
                "test also in train": sum(n for key, n in self._targets["test"].items() if key in train),
            },
        }


def _spread(words: array[int]) -> dict[str, float] | None:
    if not words:
        return None
    return {"min": min(words), "median": statistics.median(words), "max": max(words)}
