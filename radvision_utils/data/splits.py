"""Which split a study belongs to, and that neither a patient nor a picture is ever in two of them."""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

SPLITS = ("train", "validation", "test")

IMAGE_ELSEWHERE, PATIENT_ELSEWHERE = "image also in another split", "patient also in another split"
TWIN = "image of another study too"


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


def share_of(text: str, seed: int) -> float:
    """A number from 0 to 1 that depends on nothing but the text and the seed, evenly spread over texts."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{text}".encode(errors="replace")).digest()[:8], "big") / 2**64


@cache
def _r2gen() -> dict[str, str]:
    ids = json.loads((Path(__file__).parent / "r2gen_split.json").read_text(encoding="utf-8"))
    return {str(uid): split for split in SPLITS for uid in ids[split]}


class Places:
    """In which splits something is met: pictures, or patients. Nine bytes are kept each time."""

    def __init__(self) -> None:
        self._keys = array("Q")  # 64 bits of a hash
        self._splits = array("B")

    def add(self, key: str, split: str) -> None:
        """Note that it was met in a split.

        Args:
            key: up to 16 hex digits; "" is nothing.
        """
        if key:
            self._keys.append(int(key, 16))
            self._splits.append(SPLITS.index(split))

    def repeated(self) -> set[int]:
        """What was met more than once."""
        keys, counts = np.unique(np.asarray(self._keys, dtype=np.uint64), return_counts=True)
        return set(keys[counts > 1].tolist())

    def parted(self) -> dict[int, str]:
        """What was met in several splits, and in which one it may stay."""
        keys, splits = np.asarray(self._keys, dtype=np.uint64), np.asarray(self._splits)
        _, inverse = np.unique(keys, return_inverse=True)
        first, last = np.full(len(keys), len(SPLITS)), np.full(len(keys), -1)
        np.minimum.at(first, inverse, splits)
        np.maximum.at(last, inverse, splits)
        torn = np.flatnonzero((first != last)[inverse])
        return {int(keys[n]): SPLITS[last[inverse[n]]] for n in torn}


class Shared:
    """Finds what two splits share: the same picture under two uids, or a patient whom the source put into both.

    What is shared stays in the split that judges (test before validation before train), in whatever order it came; so
    a benchmark never loses a study, and nothing that it asks was trained on.
    """

    def __init__(self) -> None:
        self._images, self._patients = Places(), Places()

    def add(self, split: str, pixels: str, group: str) -> None:
        """Note a kept study."""
        self._images.add(pixels, split)
        self._patients.add(group, split)

    def judge(self) -> Verdicts:
        """What the studies share, once all have been noted."""
        return Verdicts(self._images.repeated(), self._images.parted(), self._patients.parted())


@dataclass(frozen=True)
class Verdicts:
    """Which pictures are there twice, and where pictures and patients of several splits may stay."""

    twins: set[int]
    images: dict[int, str]
    patients: dict[int, str]

    def __bool__(self) -> bool:
        return bool(self.twins or self.patients)

    def must_leave(self, row: Mapping[str, str]) -> str:
        """Why a study must leave its split, or ""."""
        if self.images.get(int(row["pixels"], 16), row["split"]) != row["split"]:
            return IMAGE_ELSEWHERE
        if row["group"] and self.patients.get(int(row["group"], 16), row["split"]) != row["split"]:
            return PATIENT_ELSEWHERE
        return ""

    def is_twin(self, row: Mapping[str, str]) -> bool:
        """Whether another study has the same picture."""
        return int(row["pixels"], 16) in self.twins


def group_of(patient: str, seed: int) -> str:
    """16 hex digits that stand for a patient; "" for "". The number itself goes into no output."""
    return hashlib.sha256(f"patient:{seed}:{patient}".encode(errors="replace")).hexdigest()[:16] if patient else ""
