"""Prediction records: reading them, finding one quickly, and the orders and filters that browser and page share."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from radvision_utils.config import RadVisionError

Record = Mapping[str, Any]
_REQUIRED = ("uid", "generated", "reference", "model")


def read_predictions(path: Path) -> list[dict[str, Any]]:
    """The records of a `predictions.jsonl` file, in its order; blank lines are skipped.

    Raises:
        RadVisionError: the file is missing, or a line is no prediction record; the sentence names the line.
    """
    with _opened(path).open(encoding="utf-8") as lines:
        return [_record(line, number, path) for number, line in enumerate(lines, start=1) if line.strip()]


def find_prediction(path: Path, uid: str, split: str, stage: int) -> dict[str, Any] | None:
    """The record of one study and stage, or None; reads as JSON only the lines that hold the uid, for speed.

    Raises:
        RadVisionError: as `read_predictions`, for those lines.
    """
    sign = json.dumps(uid, ensure_ascii=False)
    with _opened(path).open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if sign not in line:
                continue
            record = _record(line, number, path)
            if (record["uid"], record.get("split"), record["model"]["stage"]) == (uid, split, stage):
                return record
    return None


def image_path(record: Record, root: Path) -> Path | None:
    """The file of a record's image under the run folder, or None where the record has none.

    Raises:
        RadVisionError: the path leaves the run folder; a page must not embed files from elsewhere.
    """
    if not record.get("image"):
        return None
    relative = Path(record["image"])
    if relative.is_absolute() or ".." in relative.parts:
        raise RadVisionError(
            f"the image {str(relative)!r} of study {record['uid']} lies outside the run folder: "
            "give a path relative to it."
        )
    return root / relative


def verdict_pairs(record: Record) -> list[tuple[str, str]]:
    """Observation and verdict: by the rules where a record has those, else of a phantom's drawn findings."""
    found: Mapping[str, str] | None = record.get("verdicts")
    if found is not None:
        return list(found.items())
    return [(finding["name"], finding["verdict"]) for finding in record.get("findings") or []]


def by_contradiction(record: Record) -> tuple[float, ...]:
    """Worst first: contradictions, then what was missed or invented, then the lowest label F1."""
    found = [verdict for _, verdict in verdict_pairs(record)]
    wrong = found.count("missed") + found.count("unsupported")
    return (-found.count("contradiction"), -wrong, *by_label_f1(record))


def by_label_f1(record: Record) -> tuple[float, ...]:
    """Lowest label F1 first; studies without one last."""
    score = _score(record, "label_f1")
    return (2.0 if score is None else score, _index(record))


def by_gap(record: Record) -> tuple[float, ...]:
    """Where words agree most and labels least: ROUGE-L less label F1, largest first; studies without either last."""
    words, labels = _score(record, "rouge_l"), _score(record, "label_f1")
    return (2.0 if words is None or labels is None else labels - words, _index(record))


ORDERS: dict[str, Callable[[Record], tuple[float, ...]]] = {
    "index": lambda record: (_index(record),),
    "worst contradiction": by_contradiction,
    "lowest label F1": by_label_f1,
    "ROUGE-L above label F1": by_gap,
}


def fits(record: Record, observation: str = "", verdict: str = "", flag: str = "") -> bool:
    """Whether a record has an observation with a verdict, and a flag; "" asks for nothing."""
    if flag and flag not in (record.get("flags") or []):
        return False
    pairs = verdict_pairs(record)
    return not (observation or verdict) or any(
        observation in ("", name) and verdict in ("", found) for name, found in pairs
    )


def observations(records: Iterable[Record]) -> list[str]:
    """Every observation with a verdict, the most frequent disagreement first."""
    wrong: dict[str, int] = {}
    for record in records:
        for name, verdict in verdict_pairs(record):
            wrong[name] = wrong.get(name, 0) + (verdict != "agree")
    return sorted(wrong, key=lambda name: (-wrong[name], name))


def flags(records: Iterable[Record]) -> list[str]:
    """Every flag that some record has, in alphabetical order."""
    return sorted({flag for record in records for flag in record.get("flags") or []})


def _score(record: Record, name: str) -> float | None:
    value: float | None = (record.get("scores") or {}).get(name)
    return value


def _index(record: Record) -> float:
    index = record.get("index")
    return 0 if index is None else float(index)


def _opened(path: Path) -> Path:
    if path.is_file():
        return path
    run = path.parent.parent.name or "NAME"  # outputs/<run>/evaluation/predictions.jsonl
    raise RadVisionError(f"{path} does not exist: make it with `python -m radvision_utils run --run {run}`.")


def _record(line: str, number: int, path: Path) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise RadVisionError(
            f"line {number} of {path} is no JSON ({error.msg}): delete the file and run the evaluation again."
        ) from error
    missing = [name for name in _REQUIRED if not isinstance(record, dict) or name not in record]
    if missing:
        raise RadVisionError(
            f"line {number} of {path} is no prediction record (it lacks {', '.join(missing)}): "
            "delete the file and run the evaluation again."
        )
    known: dict[str, Any] = record
    return known
