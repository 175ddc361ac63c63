"""Prediction records: reading them, finding one quickly, and the orders and filters that browser and page share."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from radvision_utils.config import RadVisionError
from radvision_utils.dashboard.shapes import misshapen

logger = logging.getLogger(__name__)

Record = Mapping[str, Any]
ASSERTED = "asserted"
LAST_STAGE = 3  # whose reports the evaluation explains
_BESIDE = {"evidence": "evidence.jsonl", "confidence": "confidence.jsonl"}
"""What is known of a study's report beyond its words, by key of its record; files beside the predictions."""
_REQUIRED = ("uid", "generated", "reference", "model")


def read_predictions(path: Path) -> list[dict[str, Any]]:
    """The records of a `predictions.jsonl` file, in its order; blank lines are skipped.

    A report of the last stage carries its lines of `evidence.jsonl` and `confidence.jsonl`, where these lie beside the
    file.

    Raises:
        RadVisionError: the file is missing, or a line is no prediction record; the sentence names the line.
    """
    with _opened(path).open(encoding="utf-8") as lines:
        records = [_record(line, number, path) for number, line in enumerate(lines, start=1) if line.strip()]
    for key in _BESIDE:
        known = {entry["uid"]: entry for entry in _entries(path, key)}
        for record in records:
            _attach(record, key, known.get(record["uid"]))
    return records


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
            if (record["uid"], record.get("split"), record["model"].get("stage")) == (uid, split, stage):
                for key in _BESIDE:
                    _attach(record, key, next((e for e in _entries(path, key, sign) if e["uid"] == uid), None))
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
    """Observation and verdict: by the rules where a record has those, else of a phantom's drawn findings.

    Without a reference there is nothing to judge by: what the report asserts has the verdict "asserted".
    """
    if record["reference"] is None:
        said = (record.get("labels") or {}).get("generated") or {}
        return [(name, ASSERTED) for name, label in said.items() if label.get("status") in ("present", "uncertain")]
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


def _entries(predictions: Path, key: str, sign: str = "") -> Iterator[dict[str, Any]]:
    """The entries of a file beside the predictions, of the lines that hold `sign`; damaged ones are logged."""
    path = predictions.with_name(_BESIDE[key])
    if not path.is_file():
        return
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if sign not in line or not line.strip():
                continue
            try:
                entry = json.loads(line)
                if not isinstance(entry["uid"], str):
                    raise TypeError("uid is no text")
            except (ValueError, KeyError, TypeError) as error:
                logger.warning("line %d of %s is damaged (%s) and is left out", number, path, error)
            else:
                yield entry


def _attach(record: dict[str, Any], key: str, entry: dict[str, Any] | None) -> None:
    if entry is not None and record["model"]["stage"] == LAST_STAGE and record.get("split") == "test":
        record[key] = entry


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
    if field := misshapen(known):
        raise RadVisionError(
            f"line {number} of {path} is no prediction record (its {field} is of the wrong kind): "
            "delete the file and run the evaluation again."
        )
    return known
