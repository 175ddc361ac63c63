"""Which sentences stand behind a verdict, and which words two texts do not share; words only, no markup."""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from radvision_utils.evaluation.finding_labels import sentences

WORST_FIRST = ("contradiction", "missed", "unsupported", "agree")


@dataclass(frozen=True)
class Piece:
    """A stretch of a text: a sentence behind verdicts, or what lies between ("" and ()).

    Attributes:
        text: as written, without control characters.
        verdict: the worst of its verdicts.
        observations: those that have this verdict.
    """

    text: str
    verdict: str = ""
    observations: tuple[str, ...] = ()


@dataclass(frozen=True)
class Change:
    """Words that both texts share ("both"), or that only one has ("generated", "reference")."""

    text: str
    found_in: str


def scrub(value: object) -> str:
    """Text without control characters (a terminal would obey them); None is ""."""
    text = "" if value is None else str(value)
    return "".join(c for c in text if c in "\n\t" or unicodedata.category(c) != "Cc")


def marked_text(record: Mapping[str, Any], author: str, section: str) -> tuple[Piece, ...]:
    """A section of the "generated" or "reference" report in pieces; a record without mentions gives one.

    A sentence is marked for a verdict where it says what the whole report was taken to say of the observation: in a
    report that is read as "enlarged heart", the sentence that calls the heart normal is not what the verdict rests on.
    """
    pieces, at = [], 0
    text = _section_text(record, author, section)
    for start, end, sentence in _read_sentences(record, author, section):
        if sentence.verdict:
            pieces += [Piece(scrub(text[at:start])), sentence]
            at = end
    pieces.append(Piece(scrub(text[at:])))
    return tuple(piece for piece in _stripped(pieces) if piece.text)


def sentence_pieces(record: Mapping[str, Any], author: str, section: str) -> tuple[Piece, ...]:
    """The sentences of a section one by one, each with its verdict or ""; the blanks between them are left out."""
    return tuple(sentence for _, _, sentence in _read_sentences(record, author, section))


def word_changes(generated: str, reference: str) -> list[Change]:
    """The two texts as one, word by word: what both say and what only one says, in reading order."""
    ours, theirs = generated.split(), reference.split()
    old, new = ([word.strip(".,;:").lower() for word in words] for words in (theirs, ours))
    changes = []
    for kind, a, b, c, d in difflib.SequenceMatcher(None, old, new).get_opcodes():
        if kind == "equal":
            changes.append(Change(" ".join(ours[c:d]), "both"))
            continue
        if a < b:
            changes.append(Change(" ".join(theirs[a:b]), "reference"))
        if c < d:
            changes.append(Change(" ".join(ours[c:d]), "generated"))
    return changes


def _section_text(record: Mapping[str, Any], author: str, section: str) -> str:
    return str((record.get(author) or {}).get(section) or "")


def _read_sentences(record: Mapping[str, Any], author: str, section: str) -> list[tuple[int, int, Piece]]:
    """Start, end and piece of every sentence."""
    text = _section_text(record, author, section)
    mentions = ((record.get("mentions") or {}).get(author) or {}).get(section) or []
    behind = [(m, verdict) for m in mentions if (verdict := _verdict_behind(record, author, m))]
    found = []
    for start, end in sentences(text):
        inside = [(m["observation"], verdict) for m, verdict in behind if start <= m["start"] < end]
        worst = min((verdict for _, verdict in inside), key=WORST_FIRST.index, default="")
        names = tuple(dict.fromkeys(scrub(name) for name, verdict in inside if verdict == worst))
        found.append((start, end, Piece(scrub(text[start:end]), worst, names)))
    return found


def _verdict_behind(record: Mapping[str, Any], author: str, mention: Mapping[str, Any]) -> str:
    """The verdict that this mention is behind, or ""."""
    name = mention["observation"]
    verdict: str = (record.get("verdicts") or {}).get(name, "")
    if verdict not in WORST_FIRST or {"missed": "reference", "unsupported": "generated"}.get(verdict, author) != author:
        return ""
    label = ((record.get("labels") or {}).get(author) or {}).get(name)
    return verdict if label is None or label["status"] == mention["status"] else ""


def _stripped(pieces: list[Piece]) -> list[Piece]:
    """The pieces without blanks before the first word and after the last."""
    first, last = pieces[0], pieces[-1]
    if len(pieces) == 1:
        return [Piece(first.text.strip(), first.verdict, first.observations)]
    return [Piece(first.text.lstrip()), *pieces[1:-1], Piece(last.text.rstrip())]
