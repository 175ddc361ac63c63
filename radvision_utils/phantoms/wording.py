"""Writes the reports of the phantom studies, clean or as soiled as those of real collections.

A report asserts exactly the findings it is given; how it does so are the habits of a hospital. For each statement there
are the phrasings of hospital A and of hospital B, in which {side} is right or left, {Side} the same capitalized, {zone}
upper, middle or lower.
"""

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from radvision_utils.phantoms.hospitals import FINDINGS, Finding, Habits
from radvision_utils.phantoms.phantom_accuracy import MENTION


class Words(NamedTuple):
    a: tuple[str, ...]
    b: tuple[str, ...]


ASSERTED: dict[str, Words] = {
    "cardiomegaly": Words(
        ("The heart is enlarged.", "The heart is moderately enlarged.", "Heart size is enlarged."),
        ("The cardiac silhouette is enlarged.", "There is cardiomegaly."),
    ),
    "pleural effusion": Words(
        (
            "There is a {side} pleural effusion.",
            "A {side} pleural effusion is present.",
            "Moderate {side} pleural effusion.",
        ),
        ("There is blunting of the {side} costophrenic angle by a pleural effusion.", "{Side}-sided effusion is seen."),
    ),
    "both effusions": Words(
        ("There are bilateral pleural effusions.", "Bilateral pleural effusions are present."),
        ("There are bilateral effusions.", "Pleural effusions are seen on both sides."),
    ),
    "pneumothorax": Words(
        ("There is a {side} pneumothorax.", "A {side} pneumothorax is present."),
        ("{Side}-sided pneumothorax is seen.", "There is a pneumothorax on the {side}."),
    ),
    "consolidation": Words(
        (
            "There is consolidation in the {side} {zone} lung zone.",
            "Focal consolidation is present in the {side} {zone} lung zone.",
            "{Side} {zone} zone consolidation.",
        ),
        (
            "There is an air space opacity in the {side} {zone} lung zone.",
            "{Side} {zone} lung air space opacity is seen.",
        ),
    ),
    "atelectasis": Words(
        ("There is {side} basilar atelectasis.", "Atelectasis is present at the {side} lung base."),
        (
            "There is subsegmental atelectasis at the {side} base.",
            "Linear atelectasis is seen in the {side} lung base.",
        ),
    ),
    "nodule": Words(
        (
            "There is a pulmonary nodule in the {side} {zone} lung zone.",
            "A nodule is present in the {side} {zone} lung zone.",
        ),
        (
            "There is a nodule in the {side} {zone} lung zone.",
            "{Side} {zone} lung nodule is seen.",
            "A round nodular density is seen in the {side} {zone} lung zone.",
        ),
    ),
    "central venous catheter": Words(
        (
            "A {side} central venous catheter is present.",
            "There is a {side} central venous catheter with its tip in the SVC.",
        ),
        ("{Side}-sided central line terminates in the SVC.", "{Side} central line is in place."),
    ),
    "pacemaker": Words(
        ("A {side} pacemaker is present.", "There is a {side} chest pacemaker."),
        ("{Side}-sided pacemaker is in place.", "There is a {side}-sided pacemaker with its tip in the heart."),
    ),
}

ABSENT: dict[str, Words] = {
    "heart": Words(
        ("The heart is normal in size.", "Heart size is normal.", "The heart is not enlarged."),
        (
            "The cardiac silhouette is within normal limits.",
            "The cardiac silhouette is not enlarged.",
            "Normal cardiac silhouette.",
        ),
    ),
    "mediastinum": Words(
        ("The mediastinum is normal.", "The mediastinal contours are normal."),
        ("The mediastinal silhouette is unremarkable.", "Mediastinal contours are unremarkable."),
    ),
    "lungs": Words(
        (
            "The lungs are clear without focal consolidation.",
            "The lungs are clear.",
            "There is no focal consolidation.",
        ),
        ("Both lungs are clear of focal air space opacity.", "No focal air space opacity.", "Both lungs are clear."),
    ),
    "rest of the lungs": Words(
        ("The lungs are otherwise clear.", "The remaining lungs are clear."),
        ("The remainder of the lungs is clear.", "Otherwise both lungs are clear."),
    ),
    "pleura": Words(
        (
            "No pleural effusion or pneumothorax.",
            "There is no pleural effusion or pneumothorax.",
            "No pneumothorax or pleural effusion is seen.",
        ),
        (
            "No effusion or pneumothorax is identified.",
            "The costophrenic angles are sharp without effusion or pneumothorax.",
            "The pleural spaces are free of effusion and pneumothorax.",
        ),
    ),
    "pleural effusion": Words(
        ("No pleural effusion.", "There is no pleural effusion."),
        ("No effusion is identified.", "The costophrenic angles are sharp."),
    ),
    "other effusion": Words(("No {side} pleural effusion.",), ("No {side}-sided effusion.",)),
    "pneumothorax": Words(("No pneumothorax.", "There is no pneumothorax."), ("No pneumothorax is identified.",)),
    "nodule": Words(("No pulmonary nodule.",), ("No lung nodule is identified.",)),
    "pacemaker": Words(("No pacemaker.",), ("No pacemaker is identified.",)),
    "central venous catheter": Words(("No central venous catheter.",), ("No central line is identified.",)),
    "bones": Words(
        ("The bony structures are intact.", "The bones are intact.", "No acute bony abnormality."),
        (
            "The osseous structures are unremarkable.",
            "Visualized osseous structures are intact.",
            "No acute osseous abnormality is identified.",
        ),
    ),
}

CONCLUDED: dict[str, Words] = {
    "cardiomegaly": Words(("Cardiomegaly.", "Enlarged heart."), ("Enlarged cardiac silhouette.",)),
    "pleural effusion": Words(("{Side} pleural effusion.",), ("{Side}-sided effusion.",)),
    "both effusions": Words(("Bilateral pleural effusions.",), ("Bilateral effusions.",)),
    "pneumothorax": Words(("{Side} pneumothorax.",), ("{Side}-sided pneumothorax.",)),
    "consolidation": Words(("{Side} {zone} zone consolidation.",), ("{Side} {zone} lung air space opacity.",)),
    "atelectasis": Words(("{Side} basilar atelectasis.",), ("Subsegmental atelectasis at the {side} base.",)),
    "nodule": Words(("{Side} {zone} lung nodule.",), ("Nodule in the {side} {zone} lung zone.",)),
    "central venous catheter": Words(("{Side} central venous catheter.",), ("{Side}-sided central line in place.",)),
    "pacemaker": Words(("{Side} pacemaker.",), ("{Side}-sided pacemaker in place.",)),
    "nothing acute": Words(
        ("No acute cardiopulmonary abnormality.", "No acute abnormality."),
        ("No acute cardiopulmonary process.", "No acute process."),
    ),
    "normal": Words(
        ("No acute cardiopulmonary abnormality.", "Normal chest.", "Normal chest radiograph."),
        ("No acute cardiopulmonary process.", "No evidence of active disease."),
    ),
}

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
    found = _merge_effusions(findings)

    def say(words: Words, finding: Finding = _NOTHING) -> str:
        own, other = (words.a, words.b) if habits.dialect == "A" else (words.b, words.a)
        pool = own if rng.random() < habits.own_words else other
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

    other = "B" if habits.dialect == "A" else "A"
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
