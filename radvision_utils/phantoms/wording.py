"""Writes the reports of the phantom studies, clean or as soiled as those of real collections.

A report asserts exactly the findings it is given; how it does so are the habits of a hospital. For each statement
`phrases.json` has the phrasings of hospital A and of hospital B, in which {side} is right or left, {Side} the same
capitalized, {zone} upper, middle or lower.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from radvision_utils.phantoms.hospitals import FINDINGS, Finding, Habits
from radvision_utils.phantoms.phantom_accuracy import MENTION
from radvision_utils.runs import read_json

# Of asserted findings, of what is absent, of impressions: statement -> hospital -> phrasings.
ASSERTED, ABSENT, CONCLUDED = read_json(Path(__file__).with_name("phrases.json")).values()
_ORGAN: dict[str, tuple[str, ...]] = {
    "lungs": ("consolidation", "atelectasis", "nodule"),
    "devices": ("central venous catheter", "pacemaker"),
}
_DEVICES = _ORGAN["devices"]
_NOTHING = Finding("")
_ORDER = {"A": ("heart", "lungs", "pleura", "bones", "devices"), "B": ("lungs", "pleura", "heart", "devices", "bones")}


def write_report(rng: np.random.Generator, findings: Iterable[Finding], habits: Habits) -> tuple[str, str]:
    """Writes Findings and Impression, asserting exactly the given findings.

    Args:
        rng: the source of the choices between phrasings.
        findings: what is to be seen; at most one of a name and side.
        habits: the hospital's habits.

    Returns:
        The two sections, each one paragraph.
    """
    found, other = _merge_effusions(findings), "B" if habits.dialect == "A" else "A"

    def say(words: Mapping[str, Sequence[str]], finding: Finding = _NOTHING) -> str:
        pool = words[habits.dialect if rng.random() < habits.own_words else other]
        side = finding.side or ""
        text = pool[int(rng.integers(len(pool)))]
        return text.format(side=side, Side=side.capitalize(), zone=finding.zone or "")

    def denies(name: str) -> bool:
        return bool(rng.random() < (habits.negations or {}).get(name, 0.0))

    def organ(name: str) -> list[str]:
        by_name = {f.name: f for f in found}
        said = [say(ASSERTED[f.name], f) for f in found if f.name in _ORGAN.get(name, ())]
        if name == "heart":
            size = ASSERTED["cardiomegaly"] if "cardiomegaly" in by_name else ABSENT["heart"]
            return [say(size), say(ABSENT["mediastinum"])]
        if name == "lungs":
            said.append(say(ABSENT["rest of the lungs" if said else "lungs"]))
            if "nodule" not in by_name and denies("nodule"):
                said.append(say(ABSENT["nodule"]))
            return said
        if name == "pleura":
            effusion = by_name.get("pleural effusion") or by_name.get("both effusions")
            air = by_name.get("pneumothorax")
            if effusion is None and air is None:
                return [say(ABSENT["pleura"])]
            said = [say(ASSERTED[f.name], f) for f in (effusion, air) if f]
            if effusion and effusion.side and denies("other effusion"):
                opposite = "left" if effusion.side == "right" else "right"
                said.append(say(ABSENT["other effusion"], Finding("", opposite)))
            if air is None:
                said.append(say(ABSENT["pneumothorax"]))
            if effusion is None:
                said.append(say(ABSENT["pleural effusion"]))
            return said
        if name == "devices":
            absent = [d for d in _DEVICES if d not in by_name and denies(d)]
            return said + [say(ABSENT[d]) for d in absent]
        return [say(ABSENT[name])]

    order = _ORDER[habits.dialect if rng.random() < habits.own_order else other]
    section = " ".join(sentence for name in order for sentence in organ(name))
    lines = [
        say(CONCLUDED[f.name], f) for f in found if f.name not in _DEVICES or rng.random() < habits.device_in_impression
    ]
    if not found:
        lines = [say(CONCLUDED["normal"])]
    elif all(f.name in _DEVICES for f in found):
        lines.insert(0, say(CONCLUDED["nothing acute"]))
    if len(lines) > 1 and rng.random() < habits.numbered:
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
