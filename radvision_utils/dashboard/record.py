"""A prediction, joined with all that was found out about its sentences: what the dashboard shows, sorts and filters.

It is read from `predictions.jsonl` and from `evidence.jsonl` and `confidence.jsonl` beside it.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from radvision_utils.config import STAGES, RadVisionError, load_profile
from radvision_utils.data.labels import sentences
from radvision_utils.evaluation.records import (
    Mention,
    Prediction,
    by_contradiction,
    by_index,
    by_label_f1,
    clean,
    read_as,
)
from radvision_utils.figures import VERDICTS
from radvision_utils.files import checked, parse_line, text_lines
from radvision_utils.runs import redo_command

logger = logging.getLogger(__name__)

AUTHORS = ("generated", "reference")
SECTIONS = ("findings", "impression")
HIGH, MEDIUM = 0.9, 0.7  # the least probability of being right that is called high, and medium
NOT_SUPPORTED = "not supported by occlusion"
OTHER_SIDE = "map on the other side than the sentence says"
_MOST_CELLS = 64  # of a map's side; a 7B at 512 x 512 has 18
_MIDDLE = 0.05  # of the image's side, on either side of its middle


@dataclass(frozen=True)
class EvidenceMap:
    """How much each cell of the image speaks for a sentence.

    Attributes:
        grid: how many rows and columns of cells.
        occlusion: rows of cells from the top, by occlusion, 0 (nothing) to 1 (most).
        supported: whether taking the strongest cells away together matters, and more than taking away any others.
        side_consistent: whether the map lies on the side that the sentence names; None where it names none.
        rank_correlation: with the map by gradient, -1 to 1; None where it is not known.

    Raises:
        ValueError: the cells are too many, no grid, or have values outside 0 to 1.
    """

    grid: tuple[int, int]
    occlusion: tuple[tuple[float, ...], ...]
    supported: bool
    side_consistent: bool | None = None
    rank_correlation: float | None = None

    def __post_init__(self) -> None:
        height, width = self.grid
        if not (1 <= height <= _MOST_CELLS and 1 <= width <= _MOST_CELLS):
            raise ValueError(f"a grid that is not 1 to {_MOST_CELLS} cells a side")
        if [len(row) for row in self.occlusion] != [width] * height:
            raise ValueError(f"not {height} rows of {width} cells")
        if not all(0 <= value <= 1.001 for row in self.occlusion for value in row):
            raise ValueError("values outside 0 to 1")

    @property
    def where(self) -> str:
        """The place of the strongest cell, "upper left of the image"; the image's left is the patient's right."""
        peak, up, left = max((v, -y, -x) for y, row in enumerate(self.occlusion) for x, v in enumerate(row))
        if peak <= 0:
            return "nowhere in the image"
        places = ((0.5 - cell) / cells for cell, cells in zip((up, left), self.grid, strict=True))
        row, column = (1 if abs(place - 0.5) < _MIDDLE else 2 * (place > 0.5) for place in places)
        name = f"{('upper', 'middle', 'lower')[row]} {('left', 'center', 'right')[column]}"
        return f"{'center' if name == 'middle center' else name} of the image"

    @property
    def doubts(self) -> list[str]:
        """What speaks against the map."""
        return [NOT_SUPPORTED] * (not self.supported) + [OTHER_SIDE] * (self.side_consistent is False)

    @property
    def summary(self) -> str:
        """Where it is strongest and what speaks against it."""
        where = self.where
        return ", ".join([where if where.startswith("nowhere") else f"at the {where}", *self.doubts])


@dataclass(frozen=True)
class Confidence:
    """How far a sentence is to be trusted.

    Attributes:
        log_probability: mean over its tokens, in nats.
        samples: how many reports were sampled.
        confidence: the probability that it is right, calibrated on validation studies, 0 to 1; None if it was not.
        agreement: how many of the sampled reports assert its finding; None where it has none.

    Raises:
        ValueError: a probability or count that cannot be.
    """

    log_probability: float
    samples: int = 0
    confidence: float | None = None
    agreement: int | None = None

    def __post_init__(self) -> None:
        if self.confidence is not None and not 0 <= self.confidence <= 1:
            raise ValueError("a probability outside 0 to 1")
        if self.agreement is not None and not 0 <= self.agreement <= self.samples:
            raise ValueError("an agreement that is no count of 0 to the number of samples")

    @property
    def level(self) -> str:
        """ "high confidence", or "" where it was not calibrated."""
        if self.confidence is None:
            return ""
        return f"{'high' if self.confidence >= HIGH else 'medium' if self.confidence >= MEDIUM else 'low'} confidence"

    @property
    def percent(self) -> str:
        """The calibrated probability, "92 %"; "" where there is none."""
        return "" if self.confidence is None else f"{round(100 * self.confidence)} %"


_BESIDE: dict[str, tuple[str, type]] = {"evidence": ("map", EvidenceMap), "confidence": ("confidence", Confidence)}
"""What is known of a study's report beyond its words, by the name of its file; and what a sentence has of it."""


@dataclass(frozen=True)
class Sentence:
    """A sentence of a report with what is known of it.

    Attributes:
        text: as written.
        before: the blanks and line breaks between the sentence before and this one.
        number: its place in the report, from 1.
        verdict: the worst of the verdicts that rest on it, or "".
        observations: those that have this verdict.
        map: what a generated sentence rests on.
        confidence: how far a generated sentence is to be trusted.
    """

    text: str
    before: str = ""
    number: int = 1
    verdict: str = ""
    observations: tuple[str, ...] = ()
    map: EvidenceMap | None = None
    confidence: Confidence | None = None

    @property
    def explained(self) -> bool:
        """Whether anything is known of it beyond its words."""
        return bool(self.map or self.confidence)

    @property
    def remarks(self) -> list[str]:
        """What speaks against it, in words; nothing of a sentence that is likely right and said by every sample."""
        remarks = self.map.doubts if self.map else []
        if sure := self.confidence:
            doubtful = sure.agreement is not None and sure.agreement < sure.samples
            said = f"{'only ' * doubtful}{sure.agreement} of {sure.samples} sampled reports say so" if doubtful else ""
            level = "" if sure.level.startswith("high") else sure.level
            remarks = [words for words in (level, said) if words] + remarks
        return remarks

    def below(self, least: int) -> bool:
        """Whether fewer than `least` sampled reports say so; a sentence that asserts no finding is never below."""
        agreement = self.confidence.agreement if self.confidence else None
        return agreement is not None and agreement < least


@dataclass(frozen=True, kw_only=True)
class Record(Prediction):
    """A prediction with what `evidence.jsonl` and `confidence.jsonl` know of its report."""

    evidence: dict[str, Any] = field(default_factory=dict)
    confidence: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, prediction: Prediction) -> Record:
        """A prediction of whose sentences nothing is known yet."""
        return cls(**vars(prediction))

    @cached_property
    def sentences(self) -> dict[tuple[str, str], tuple[Sentence, ...]]:
        """The sentences of every report by author and section."""
        found: dict[tuple[str, str], tuple[Sentence, ...]] = {}
        for author in AUTHORS:
            number = 0
            for section in SECTIONS:
                found[author, section] = tuple(self._read_sentences(author, section, number))
                number += len(found[author, section])
        return found

    @property
    def explained(self) -> list[Sentence]:
        """The generated sentences of the sections of which anything is known beyond their words."""
        sections = [self.sentences["generated", section] for section in SECTIONS]
        return [sentence for found in sections if any(s.explained for s in found) for sentence in found]

    def _read_sentences(self, author: str, section: str, number: int) -> Iterator[Sentence]:
        text, end = getattr(getattr(self, author), section, ""), 0
        behind = [
            (m, v) for m in self.mentions.get(author, {}).get(section, ()) if (v := self._verdict_behind(author, m))
        ]
        known = {of: self._known(part, section) if author == "generated" else {} for part, (of, _) in _BESIDE.items()}
        for index, (start, stop) in enumerate(sentences(text)):
            inside = [(m.observation, verdict) for m, verdict in behind if start <= m.start < stop]
            worst = min((verdict for _, verdict in inside), key=list(VERDICTS).index, default="")
            place = (index, " ".join(text[start:stop].split()))
            yield Sentence(
                text[start:stop],
                text[end:start] if index else "",
                number + index + 1,
                worst,
                tuple(dict.fromkeys(name for name, verdict in inside if verdict == worst)),
                **{of: found.get(place) for of, found in known.items()},
            )
            end = stop

    def _verdict_behind(self, author: str, mention: Mention) -> str:
        """The verdict that rests on this mention, or "".

        A sentence is behind a verdict where it says what the whole report was taken to say of the observation: in a
        report that is read as "enlarged heart", the sentence that calls the heart normal is not.
        """
        verdict = (self.verdicts or {}).get(mention.observation, "")
        if {"missed": "reference", "unsupported": "generated"}.get(verdict, author) != author:
            return ""
        label = self.labels.get(author, {}).get(mention.observation)
        return verdict if label is None or label.status == mention.status else ""

    def _known(self, part: str, section: str) -> dict[tuple[int, str], Any]:
        """Maps or confidences of a section by a sentence's index and text: those of another report do not fit its own.

        A damaged one is left out, with a line in the log.
        """
        line, (name, kind) = getattr(self, part), _BESIDE[part]
        entries = line.get("sentences")
        found: dict[tuple[int, str], Any] = {}
        for entry in entries if isinstance(entries, list) else []:
            index = entry.get("index") if isinstance(entry, Mapping) and entry.get("section") == section else None
            if not isinstance(index, int):
                continue
            try:
                found[index, " ".join(clean(entry.get("text")).split())] = read_as(kind, {**line, **entry})
            except ValueError as error:
                where = f"study {self.uid}, {section} sentence {index + 1}"
                logger.warning("%s: its %s is damaged (%s) and is left out", where, name, error)
        return found


def read_predictions(path: Path) -> list[Record]:
    """The records of a `predictions.jsonl` file, in its order; blank lines are skipped.

    A report of the last stage carries its lines of `evidence.jsonl` and `confidence.jsonl`, where these lie beside the
    file.

    Raises:
        RadVisionError: the file is missing, or a line is no prediction record; the sentence names the line.
    """
    return list(_records(path))


def find_prediction(path: Path, uid: str, split: str, stage: int) -> Record | None:
    """The record of one study and stage, or None; reads as JSON only the lines that hold the uid, for speed.

    Raises:
        RadVisionError: as `read_predictions`, for those lines.
    """
    found = _records(path, json.dumps(uid, ensure_ascii=False))
    return next((r for r in found if (r.uid, r.split, r.stage) == (clean(uid), split, stage)), None)


def image_path(record: Record, root: Path) -> Path | None:
    """The file of a record's image under the run folder, or None where the record has none.

    Raises:
        RadVisionError: the path, or a link, leaves the run folder: a page must not embed files from elsewhere. Or the
            image is damaged.
    """
    if not record.image:
        return None
    relative, path = Path(record.image), root / record.image
    if relative.is_absolute() or ".." in relative.parts or not path.resolve().is_relative_to(root.resolve()):
        raise RadVisionError(
            f"the image {str(relative)!r} of study {record.uid} lies outside the run folder: "
            "give a path relative to it."
        )
    return checked(path)


def by_gap(record: Record) -> tuple[float, ...]:
    """Where words agree most and labels least: ROUGE-L less label F1, largest first; studies without either last."""
    words, labels = record.scores.get("rouge_l"), record.scores.get("label_f1")
    return (2.0 if words is None or labels is None else labels - words, by_index(record))


ORDERS: dict[str, Callable[[Record], Any]] = {
    "index": by_index,
    "worst contradiction": by_contradiction,
    "lowest label F1": by_label_f1,
    "ROUGE-L above label F1": by_gap,
}


def fits(record: Record, observation: str = "", verdict: str = "", flag: str = "") -> bool:
    """Whether a record has an observation with a verdict, and a flag; "" asks for nothing."""
    if flag and flag not in record.flags:
        return False
    return not (observation or verdict) or any(
        observation in ("", name) and verdict in ("", found) for name, found in record.verdict_pairs
    )


def observations(records: Iterable[Record]) -> list[str]:
    """Every observation with a verdict, the most frequent disagreement first."""
    wrong: dict[str, int] = {}
    for record in records:
        for name, verdict in record.verdict_pairs:
            wrong[name] = wrong.get(name, 0) + (verdict != "agree")
    return sorted(wrong, key=lambda name: (-wrong[name], name))


def flags(records: Iterable[Record]) -> list[str]:
    """Every flag that some record has, in alphabetical order."""
    return sorted({flag for record in records for flag in record.flags})


def most_samples(records: Iterable[Record]) -> int:
    """The most reports that were sampled for any of the records; 0 where none were."""
    counts = [record.confidence.get("samples") for record in records]
    return max((count for count in counts if isinstance(count, int) and 0 < count <= 100), default=0)


def _records(path: Path, sign: str = "") -> Iterator[Record]:
    """The records of the lines that hold `sign`."""
    if not path.is_file():
        run = path.parent.parent  # outputs/<run>/evaluation/predictions.jsonl
        command = redo_command(load_profile(run=run.name, output_root=str(run.parent)), "data")
        raise RadVisionError(f"{path} does not exist: make it with `{command}`.")
    known: dict[str, Any] = {part: dict(_entries(path.with_name(f"{part}.jsonl"), sign)) for part in _BESIDE}
    for where, line in text_lines(path):
        if sign not in line:
            continue
        record = Record.read(parse_line(line, where), where)
        if record.stage == STAGES[-1] and record.split == "test":
            record = replace(record, **{part: entries.get(record.uid, {}) for part, entries in known.items()})
        yield record


def _entries(path: Path, sign: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Study and entry of the lines that hold `sign` of a file beside the predictions; damaged ones are logged."""
    for where, line in text_lines(path) if path.is_file() else ():
        try:
            if sign in line:
                entry = parse_line(line, where, {"uid": str})
                yield clean(entry["uid"]), entry
        except RadVisionError as error:
            logger.warning("left out: %s", error)
