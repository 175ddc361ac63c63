"""How right a report on a phantom is, by what was drawn: read by the phantoms' own words, and by the rule labels.

The two side by side measure the rule labels themselves: their figures on the reference reports should be 1.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from radvision_utils.data.labels import find_mentions
from radvision_utils.data.reports import Report
from radvision_utils.evaluation.bootstrap import Bootstrap, Estimate, share
from radvision_utils.phantoms.scene import SIZE

Pairs = frozenset[tuple[str, str | None]]
# What the rule labels call a drawn finding. They know one name for all devices; reports call a consolidation an
# opacity or pneumonia as well.
_OBSERVED = {
    "cardiomegaly": "Cardiomegaly",
    "pleural effusion": "Pleural Effusion",
    "pneumothorax": "Pneumothorax",
    "consolidation": "Lung Opacity",
    "atelectasis": "Atelectasis",
    "nodule": "Lung Lesion",
    "central venous catheter": "Support Devices",
    "pacemaker": "Support Devices",
}
_SAME = {"Consolidation": "Lung Opacity", "Pneumonia": "Lung Opacity"}

# Nodules come before consolidation: a "nodular opacity" is not an air space opacity.
_MENTIONS: dict[str, str] = {
    "cardiomegaly": r"cardiomegaly"
    r"|\b(?:heart|cardiac|cardiomediastinal)\b.*?\benlarge(?:d|ment)"
    r"|\benlarge(?:d|ment)\b.*?\b(?:heart|cardiac|cardiomediastinal)\b",
    "pleural effusion": r"\beffusions?\b|\bpleural fluid",
    "pneumothorax": r"\bpneumothora(?:x|ces)\b",
    "atelectasis": r"\batelecta\w+(?: opacit\w+)?",
    "nodule": r"\bnodul(?:ar )?(?:es?\b|opacit\w+|densit\w+)",
    "consolidation": r"\bconsolidations?\b|\bair ?space (?:opacit\w+|disease)|\bopacit\w+",
    "central venous catheter": r"\bcentral (?:venous )?(?:catheter|line)|\bpicc\b"
    r"|\b(?:jugular|subclavian) (?:venous )?(?:catheter|line)",
    "pacemaker": r"\bpacemaker|\bpulse generator|\bpacing device",
}
MENTION = re.compile("|".join(f"(?P<f{i}>{p})" for i, p in enumerate(_MENTIONS.values())))
_NAMES = tuple(_MENTIONS)
# The right ventricle is no side of the body.
_SIDE = re.compile(
    r"\bbilateral|\bbibasilar|\bboth\b|\b(?:right|left) and (?:right|left)"
    r"|\b(?:right|left)(?! (?:ventric|atri|heart))"
)
_DENIAL = re.compile(r"\b(?:no|not|without|nor|neither|free of|clear of|negative for|absence of)\b")
_DENIED_AFTER = re.compile(r"\b(?:not|absent|resolved|excluded|ruled out)\b")
_FIGURES = {"study_accuracy": [0, 4], "finding_precision": [1, 3], "finding_recall": [1, 2]}  # columns of `_counts`
_CLAUSE = re.compile(r",|\bbut\b|\bhowever\b|\balthough\b|\bwhile\b|\bwith\b")


def verdicts(report: Report, truth: str) -> list[dict[str, Any]]:
    """What became of each drawn or asserted finding: `{"name", "side", "verdict"}`.

    The verdict is "agree", "missed" (drawn, not asserted with its side) or "unsupported" (asserted, not drawn). What
    was drawn has its "box" too, if the truth has it: left, top, right, bottom as shares of the image's side.
    """
    drawn, said = truth_findings(truth), _read(report)
    boxes = {
        (f["name"], f["side"]): {"box": tuple(round(edge / SIZE, 4) for edge in f["box"])}
        for f in json.loads(truth)["findings"]
        if "box" in f
    }
    rows = [(pair, "agree" if pair in said else "missed") for pair in drawn]
    rows += [(pair, "unsupported") for pair in said - drawn]
    rows.sort(key=lambda row: (row[0][0], row[0][1] or "", row[1]))
    return [
        {"name": name, "side": side or "", "verdict": verdict, **boxes.get((name, side), {})}
        for (name, side), verdict in rows
    ]


def phantom_estimates(reports: Sequence[Report], truths: Sequence[str], bootstrap: Bootstrap) -> dict[str, Estimate]:
    """Agreement of reports with what was drawn, as read by `read_findings`.

    Args:
        reports: one for each study.
        truths: the studies' `truth`, in the same order.
        bootstrap: of these studies.

    Returns:
        study_accuracy: share of studies whose report asserts every drawn finding with its side and nothing else;
        finding_precision, finding_recall: over all (finding, side) pairs. All in 0 to 1, with intervals; the figures by
        the rule labels have the ending "_by_rule_labels".
    """
    readers: dict[str, tuple[Callable[[Report], Pairs], Callable[[str], Pairs]]] = {
        "": (_read, truth_findings),
        "_by_rule_labels": (_labeled_pairs, drawn_pairs),
    }
    return {
        f"{name}{ending}": bootstrap.estimate(counts[:, pair], share)
        for ending, (read, drawn) in readers.items()
        for counts in [_counts(reports, truths, read, drawn)]
        for name, pair in _FIGURES.items()
    }


def _counts(
    reports: Sequence[Report],
    truths: Sequence[str],
    read: Callable[[Report], Pairs],
    drawn_in: Callable[[str], Pairs],
) -> NDArray[np.int64]:
    """(n, 5): wholly right, pairs that agree, pairs drawn, pairs said, 1."""
    rows = []
    for report, truth in zip(reports, truths, strict=True):
        drawn, said = drawn_in(truth), read(report)
        rows.append([drawn == said, len(drawn & said), len(drawn), len(said), 1])
    return np.array(rows, np.int64)


def _read(report: Report) -> Pairs:
    return read_findings(f"{report.findings} {report.impression}")


def _labeled_pairs(report: Report) -> Pairs:
    return asserted_pairs(f"{report.findings}\n{report.impression}")


def asserted_pairs(text: str) -> Pairs:
    """(observation, side) pairs that a text asserts by the rule labels, in the names of `drawn_pairs`."""
    mentions = [m for m in find_mentions(text) if m.status != "absent"]
    pairs = {
        (common_name(mention.observation), side)
        for mention in mentions
        for side in (("left", "right") if mention.side == "bilateral" else (mention.side or None,))
    }
    # "Left effusion" and later "the effusion": the second adds no side.
    return frozenset((name, side) for name, side in pairs if side or not any(n == name and s for n, s in pairs))


def common_name(observation: str) -> str:
    """The observation as which a drawn finding counts, whichever of its names a text has for it."""
    return _SAME.get(observation, observation)


def drawn_pairs(truth: str) -> Pairs:
    """The drawn findings of a study as (observation, side) pairs."""
    return frozenset((_OBSERVED[name], side) for name, side in truth_findings(truth))


def truth_findings(truth: str) -> Pairs:
    """The (name, side) pairs in a study's `truth`, to compare with `read_findings`."""
    return frozenset((f["name"], f["side"]) for f in json.loads(truth)["findings"])


def read_findings(text: str) -> Pairs:
    """Reads what a phantom-style report asserts; what it denies or leaves out is not in the answer.

    Args:
        text: one or both sections, in the words of either hospital.

    Returns:
        (name, side) pairs: side is "right", "left", or None where the finding has none or the text
        does not say. "Bilateral" gives both sides.
    """
    text = re.sub(r"\s+", " ", html.unescape(text).lower().replace("airspace", "air space"))
    asserted: set[tuple[str, str | None]] = set()
    for sentence in re.split(r"[.;:\n]", text):
        clauses = _CLAUSE.split(sentence)
        for i, clause in enumerate(clauses):
            # "No effusion, pneumothorax, or nodule": the "or" carries the denial over commas.
            listed = any(c.strip().startswith(("or ", "nor ")) for c in clauses[i:])
            denied = listed and any(_DENIAL.search(c) for c in clauses[:i])
            asserted.update(() if denied else _read_clause(clause))
    return frozenset(asserted)


def _read_clause(clause: str) -> Iterable[tuple[str, str | None]]:
    mentions = list(MENTION.finditer(clause))
    sides = list(_SIDE.finditer(clause))
    free = list(sides)
    for i, mention in enumerate(mentions):
        name = _NAMES[int(str(mention.lastgroup)[1:])]
        start = mentions[i - 1].end() if i else 0
        end = mentions[i + 1].start() if i + 1 < len(mentions) else len(clause)
        # A side belongs to the mention after it, else to the one before it, else to its neighbours.
        before = [s for s in free if start <= s.start() < mention.end()]
        after = [s for s in free if mention.end() <= s.start() < end]
        side = before[-1] if before else after[0] if after else None
        if side is not None:
            free.remove(side)
        elif sides:
            side = ([s for s in sides if s.start() < mention.start()] or sides)[-1]
        denial = _DENIAL.search(clause)
        if (denial and denial.start() < mention.end()) or _DENIED_AFTER.search(clause, mention.end(), end):
            continue
        if name == "cardiomegaly" or side is None:
            yield name, None
        elif side.group() in ("right", "left"):
            yield name, side.group()
        else:
            yield from ((name, "right"), (name, "left"))
