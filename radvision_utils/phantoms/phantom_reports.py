"""Writes reports of phantom studies, clean or as soiled as those of real collections, and reads what reports say.

A report asserts exactly the findings it is given, in the words of a hospital. For each statement
`phrases.json` has the phrasings of hospital A and of hospital B, in which {side} is right or left, {Side} the same
capitalized, {zone} upper, middle or lower.

How right a model's report is, is told by what was drawn: read by the phantoms' own words, and by the rule labels. The
two side by side measure the rule labels themselves: their figures on the reference reports should be 1.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from radvision_utils.data.labels import find_mentions
from radvision_utils.data.reports import Report
from radvision_utils.evaluation.bootstrap import Bootstrap, Estimate, share
from radvision_utils.files import read_json
from radvision_utils.phantoms.hospitals import DEVICES, FINDINGS, Finding, Hospital
from radvision_utils.phantoms.scene import SIZE

# Of asserted findings, of what is absent, of impressions: statement -> hospital -> phrasings.
ASSERTED, ABSENT, CONCLUDED = read_json(Path(__file__).with_name("phrases.json")).values()
_ORGAN = {
    "heart": ("cardiomegaly",),
    "lungs": ("consolidation", "atelectasis", "nodule"),
    "pleura": ("pleural effusion", "both effusions", "pneumothorax"),
    "devices": DEVICES,
}
_NOTHING = Finding("")
# Both hospitals use all phrasings and both orders, in other shares: a model of the one finds the other's reports
# unusual, not foreign, as Lingshu finds those of Open-I.
_OWN = 0.7  # share of sentences in a hospital's own phrasings, and of reports in its own order of organs
_REPEATED = 0.4  # how often the impression names a catheter or pacemaker again
_ORDER = {"A": ("heart", "lungs", "pleura", "bones", "devices"), "B": ("lungs", "pleura", "heart", "devices", "bones")}


def write_report(rng: np.random.Generator, findings: Iterable[Finding], hospital: Hospital) -> tuple[str, str]:
    """Writes Findings and Impression, asserting exactly the given findings.

    Args:
        rng: the source of the choices between phrasings.
        findings: what is to be seen; at most one of a name and side.
        hospital: whose words.

    Returns:
        The two sections, each one paragraph.
    """
    found, other = _merge_effusions(findings), "B" if hospital.dialect == "A" else "A"
    names = {f.name: f.side for f in found}

    def say(words: Mapping[str, Sequence[str]], finding: Finding = _NOTHING) -> str:
        pool = words[hospital.dialect if rng.random() < _OWN else other]
        side = finding.side or ""
        text = pool[int(rng.integers(len(pool)))]
        return text.format(side=side, Side=side.capitalize(), zone=finding.zone or "")

    def denies(name: str) -> bool:
        return bool(rng.random() < hospital.negations.get(name, 0.0))

    def organ(name: str) -> list[str]:
        said = [say(ASSERTED[f.name], f) for f in found if f.name in _ORGAN.get(name, ())]
        if name == "heart":
            return [*(said or [say(ABSENT["heart"])]), say(ABSENT["mediastinum"])]
        if name == "lungs":
            said.append(say(ABSENT["rest of the lungs" if said else "lungs"]))
            if "nodule" not in names and denies("nodule"):
                said.append(say(ABSENT["nodule"]))
            return said
        if name == "pleura" and said:
            side = names.get("pleural effusion")
            if side and denies("other effusion"):
                said.append(say(ABSENT["other effusion"], Finding("", "left" if side == "right" else "right")))
            if "pneumothorax" not in names:
                said.append(say(ABSENT["pneumothorax"]))
            if not {"pleural effusion", "both effusions"} & set(names):
                said.append(say(ABSENT["pleural effusion"]))
            return said
        if name == "devices":
            absent = [d for d in DEVICES if d not in names and denies(d)]
            return said + [say(ABSENT[d]) for d in absent]
        return [say(ABSENT[name])]

    order = _ORDER[hospital.dialect if rng.random() < _OWN else other]
    section = " ".join(sentence for name in order for sentence in organ(name))
    lines = [say(CONCLUDED[f.name], f) for f in found if f.name not in DEVICES or rng.random() < _REPEATED]
    if not found:
        lines = [say(CONCLUDED["normal"])]
    elif all(f.name in DEVICES for f in found):
        lines.insert(0, say(CONCLUDED["nothing acute"]))
    if len(lines) > 1 and rng.random() < hospital.numbered:
        lines = [f"{n}. {line}" for n, line in enumerate(lines, 1)]
    return section, " ".join(lines)


def _merge_effusions(findings: Iterable[Finding]) -> list[Finding]:
    """In the order of `FINDINGS`, with effusions of both sides as one."""
    found = sorted(findings, key=lambda f: FINDINGS.index(f.name))
    effusions = [f for f in found if f.name == "pleural effusion"]
    if len(effusions) < 2:
        return found
    at = found.index(effusions[0])
    return [*found[:at], Finding("both effusions"), *found[at + 2 :]]


_HARMLESS_ADDITIONS: dict[str, tuple[str, ...]] = {
    "prior": (
        "Unchanged from prior.",
        "Compared to XXXX, the appearance is stable.",
        "No change since the previous study.",
    ),
    "blank": ("XXXX XXXX.", "Results were discussed with XXXX.", "Signed by XXXX."),
    "entity": ("Read in &lt; 24 hours.", "Motion artifact &lt; 1 mm."),
}


def soil(rng: np.random.Generator, text: str) -> str:
    """Dirties a section as real collections are dirty; never adds or removes an assertion.

    About 8 % each get an "XXXX" or a sentence on a prior study, and a few doubled stops, double
    spaces and undecoded HTML entities.
    """
    sentences = re.split(r"(?<=[a-z]\.) ", text)
    if rng.random() < 0.08:
        # Only sentences without a finding lose a word: "XXXX pleural effusion" would assert one.
        safe = [i for i, s in enumerate(sentences) if not MENTION.search(s.lower())]
        if safe and rng.random() < 0.5:
            at = safe[int(rng.integers(len(safe)))]
            words = sentences[at].split(" ")
            words[int(rng.integers(len(words)))] = "XXXX"
            sentences[at] = " ".join(words).removesuffix(".") + "."
        else:
            sentences.append(_choose(rng, _HARMLESS_ADDITIONS["blank"]))
    if rng.random() < 0.08:
        at = int(rng.integers(2)) * len(sentences)
        sentences.insert(at, _choose(rng, _HARMLESS_ADDITIONS["prior"]))
    if rng.random() < 0.02:
        sentences.append(_choose(rng, _HARMLESS_ADDITIONS["entity"]))
    if rng.random() < 0.04:
        at = int(rng.integers(len(sentences)))
        sentences[at] = sentences[at].removesuffix(".") + _choose(rng, ("..", ".."))
    return ("  " if rng.random() < 0.04 else " ").join(sentences)


def _choose(rng: np.random.Generator, pool: Sequence[str]) -> str:
    return pool[int(rng.integers(len(pool)))]


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
MENTION = re.compile("|".join(f"(?P<{name.replace(' ', '_')}>{words})" for name, words in _MENTIONS.items()))
# The right ventricle is no side of the body.
_SIDE = re.compile(
    r"\bbilateral|\bbibasilar|\bboth\b|\b(?:right|left) and (?:right|left)"
    r"|\b(?:right|left)(?! (?:ventric|atri|heart))"
)
_DENIAL = re.compile(r"\b(?:no|not|without|nor|neither|free of|clear of|negative for|absence of)\b")
_DENIED_AFTER = re.compile(r"\b(?:not|absent|resolved|excluded|ruled out)\b")
# Of the counts of a study (wholly right, pairs that agree, pairs drawn, pairs said, 1): which over which.
_FIGURES = {"study_accuracy": [0, 4], "finding_precision": [1, 3], "finding_recall": [1, 2]}
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
    estimates: dict[str, Estimate] = {}
    for ending, read, drawn_in in (("", _read, truth_findings), ("_by_rule_labels", labeled_pairs, drawn_pairs)):
        rows = []
        for report, truth in zip(reports, truths, strict=True):
            drawn, said = drawn_in(truth), read(report)
            rows.append([drawn == said, len(drawn & said), len(drawn), len(said), 1])
        counts = np.array(rows, np.int64)
        estimates |= {f"{name}{ending}": bootstrap.estimate(counts[:, of], share) for name, of in _FIGURES.items()}
    return estimates


def _read(report: Report) -> Pairs:
    return read_findings(f"{report.findings} {report.impression}")


def labeled_pairs(report: Report) -> Pairs:
    """`asserted_pairs` of both sections."""
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
        name = str(mention.lastgroup).replace("_", " ")
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
