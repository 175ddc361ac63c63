"""What each generated sentence rests on and how far it is to be trusted: words and figures, no markup.

A record may carry what the evaluation found beside its report: `evidence` (a line of `evidence.jsonl`: maps over the
image) and `confidence` (a line of `confidence.jsonl`). Both are joined with the card's own sentences here. What is
damaged is logged and left out; what belongs to other sentences is left out.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from radvision_utils.dashboard.marks import Piece, scrub, sentence_pieces

logger = logging.getLogger(__name__)

HIGH, MEDIUM = 0.9, 0.7  # the least probability of being right that is called high, and medium
_HIGH, _MEDIUM = (f"{round(100 * least)} %" for least in (HIGH, MEDIUM))
WORDS_OF_CONFIDENCE = f"High confidence: at least {_HIGH} likely to be right; medium: at least {_MEDIUM}; low: less."
CALIBRATED = "Calibrated on the validation studies, by rules that may be wrong."
NOT_SUPPORTED = "not supported by occlusion"
OTHER_SIDE = "map on the other side than the sentence says"
MEANING = (
    "A map shows how much less likely the sentence becomes without each part of the image; the image is the whole "
    "square that the model sees, black margins included."
)
_MOST_CELLS = 64  # of a side; a 7B at 512 x 512 has 18
_MIDDLE = 0.05  # of the image's side, on either side of its middle
_ROWS, _COLUMNS = ("upper", "middle", "lower"), ("left", "center", "right")


@dataclass(frozen=True)
class EvidenceMap:
    """How much each cell of the image speaks for a sentence.

    Attributes:
        values: rows of cells from the top, by occlusion, 0 (nothing) to 1 (most).
        supported: whether taking the strongest cells away together matters, and more than taking away any others.
        side_fits: whether the map lies on the side that the sentence names; None where it names none.
        correlation: rank correlation with the map by gradient, -1 to 1; None where it is not known.
    """

    values: tuple[tuple[float, ...], ...]
    supported: bool
    side_fits: bool | None = None
    correlation: float | None = None

    @property
    def where(self) -> str:
        """The place of the strongest cell, "upper left of the image"; the image's left is the patient's right."""
        peak, row, column = max(
            (value, -y, -x) for y, values in enumerate(self.values) for x, value in enumerate(values)
        )
        if peak <= 0:
            return "nowhere in the image"
        up, across = (1 - 2 * row) / (2 * len(self.values)), (1 - 2 * column) / (2 * len(self.values[0]))
        names = (_ROWS[_side(up)], _COLUMNS[_side(across)])
        return ("center" if names == ("middle", "center") else " ".join(names)) + " of the image"

    @property
    def description(self) -> str:
        """The map in words, for who does not see it."""
        doubt = "".join(f", {words}" for words in self.doubts)
        return f"Evidence map: strongest at the {self.where}{doubt}".replace("at the nowhere", "nowhere")

    @property
    def doubts(self) -> list[str]:
        """What speaks against the map."""
        return [NOT_SUPPORTED] * (not self.supported) + [OTHER_SIDE] * (self.side_fits is False)


@dataclass(frozen=True)
class Confidence:
    """How far a sentence is to be trusted.

    Attributes:
        probability: that it is right, calibrated on validation studies, 0 to 1; None where it was not calibrated.
        log_probability: mean over its tokens, in nats.
        agreement: how many of the sampled reports assert its finding; None where it has none.
        samples: how many reports were sampled.
    """

    probability: float | None
    log_probability: float
    agreement: int | None
    samples: int

    @property
    def words(self) -> str:
        """ "high confidence", or "" where it was not calibrated."""
        if self.probability is None:
            return ""
        return (
            "high" if self.probability >= HIGH else "medium" if self.probability >= MEDIUM else "low"
        ) + " confidence"

    @property
    def agreement_words(self) -> str:
        return "" if self.agreement is None else f"{self.agreement} of {self.samples} sampled reports say so"

    @property
    def figures(self) -> str:
        """The numbers behind the words."""
        right = f"{self.percent} likely to be right, " if self.percent else ""
        return f"{right}mean log-probability {self.log_probability:.2f} nats a token"

    @property
    def percent(self) -> str:
        """The calibrated probability, "92 %"; "" where there is none."""
        return "" if self.probability is None else f"{round(100 * self.probability)} %"


@dataclass(frozen=True)
class Sentence:
    """A generated sentence with what is known of it.

    Attributes:
        piece: its text and verdict.
        number: its place in the report, from 1.
        map: what it rests on.
        confidence: how far it is to be trusted.
    """

    piece: Piece
    number: int
    map: EvidenceMap | None = None
    confidence: Confidence | None = None

    @property
    def remarks(self) -> list[str]:
        """What is said under it, in words."""
        sure = [self.confidence.words, self.confidence.agreement_words] if self.confidence else []
        return [words for words in [*sure, *(self.map.doubts if self.map else [])] if words]


def _side(place: float) -> int:
    """Before (0), on (1) or behind (2) the middle of 0 to 1."""
    return 1 if abs(place - 0.5) < _MIDDLE else 2 * (place > 0.5)


def explained_sentences(record: Mapping[str, Any], section: str) -> tuple[Sentence, ...]:
    """The generated sentences of a section, if anything is known of the report beyond its words; else none."""
    if not (record.get("evidence") or record.get("confidence")):
        return ()
    before = len(sentence_pieces(record, "generated", "findings")) if section == "impression" else 0
    maps, sure = _by_place(record, "evidence", section), _by_place(record, "confidence", section)
    found = []
    for index, piece in enumerate(sentence_pieces(record, "generated", section)):
        place = (index, _plain(piece.text))
        found.append(
            Sentence(
                piece,
                before + index + 1,
                _read(record, "map", maps.get(place), lambda raw: _map(raw, record["evidence"])),
                _read(record, "confidence", sure.get(place), lambda raw: _confidence(raw, record["confidence"])),
            )
        )
    return tuple(found) if any(s.map or s.confidence for s in found) else ()


def most_samples(records: Iterable[Mapping[str, Any]]) -> int:
    """The most reports that were sampled for any of the records; 0 where none were."""
    counts = [(record.get("confidence") or {}).get("samples") for record in records if record.get("confidence")]
    return max((count for count in counts if isinstance(count, int) and 0 < count <= 100), default=0)


def _by_place(record: Mapping[str, Any], part: str, section: str) -> dict[tuple[int, str], Mapping[str, Any]]:
    """A part's entries of one section by index and text; those of another report than the card's do not fit it."""
    entries = (record.get(part) or {}).get("sentences")
    places = {}
    for entry in entries if isinstance(entries, list) else []:
        if isinstance(entry, Mapping) and entry.get("section") == section and isinstance(entry.get("index"), int):
            places[entry["index"], _plain(scrub(entry.get("text")))] = entry
    return places


def _plain(text: str) -> str:
    return " ".join(text.split())


def _read(record: Mapping[str, Any], what: str, raw: Mapping[str, Any] | None, read: Any) -> Any:
    """What `read` makes of an entry; None, with a line in the log, where the entry is damaged."""
    if raw is None:
        return None
    try:
        return read(raw)
    except (KeyError, TypeError, ValueError) as error:
        logger.warning(
            "study %s, %s sentence %s: its %s is damaged (%s: %s) and is left out",
            *(scrub(record.get("uid")), scrub(raw["section"]), raw["index"] + 1, what, type(error).__name__, error),
        )
        return None


def _map(raw: Mapping[str, Any], line: Mapping[str, Any]) -> EvidenceMap:
    values = tuple(tuple(map(_number, row)) for row in raw["occlusion"])
    height, width = line["grid"]
    if not (1 <= _number(height) <= _MOST_CELLS and 1 <= _number(width) <= _MOST_CELLS):
        raise ValueError(f"a grid that is not 1 to {_MOST_CELLS} cells a side")
    if [len(row) for row in values] != [width] * height:
        raise ValueError(f"not {height} rows of {width} cells")
    if min(map(min, values)) < 0 or max(map(max, values)) > 1.001:
        raise ValueError("values outside 0 to 1")
    if not isinstance(raw["supported"], bool):
        raise TypeError("`supported` is neither true nor false")
    side, correlation = raw.get("side_consistent"), raw.get("rank_correlation")
    return EvidenceMap(
        values,
        raw["supported"],
        side if isinstance(side, bool) else None,
        None if correlation is None else _number(correlation),
    )


def _confidence(raw: Mapping[str, Any], line: Mapping[str, Any]) -> Confidence:
    probability, agreement, samples = raw.get("confidence"), raw.get("agreement"), line.get("samples") or 0
    if probability is not None and not 0 <= _number(probability) <= 1:
        raise ValueError("a probability outside 0 to 1")
    if agreement is not None and not (isinstance(agreement, int) and 0 <= agreement <= _number(samples)):
        raise ValueError("an agreement that is no count of 0 to the number of samples")
    return Confidence(probability, _number(raw["log_probability"]), agreement, samples)


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{str(value)[:40]!r} is no finite number")
    return float(value)


def below(sentence: Sentence, least: int) -> bool:
    """Whether fewer than `least` sampled reports say so; a sentence that speaks of no finding is never below."""
    agreement = sentence.confidence.agreement if sentence.confidence else None
    return agreement is not None and agreement < least


def hidden_words(count: int, least: int, samples: int) -> str:
    """What is said where sentences are hidden: "2 sentences hidden below 3 of 5"."""
    return f"{count} sentence{'s' * (count != 1)} hidden below {least} of {samples}"
