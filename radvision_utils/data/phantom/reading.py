"""Reads the findings that a phantom-style report asserts, to score it against what was drawn."""

import html
import re
from collections.abc import Iterable

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
_CLAUSE = re.compile(r",|\bbut\b|\bhowever\b|\balthough\b|\bwhile\b|\bwith\b")


def read_findings(text: str) -> frozenset[tuple[str, str | None]]:
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
