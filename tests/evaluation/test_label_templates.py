"""Kinds of sentences that turn the sign of a label, over all observations and orders."""

import itertools
import textwrap

import pytest

from radvision_utils.data.labels import ABNORMAL, ASSERTED, OBSERVATIONS, find_mentions, label, says_nothing
from radvision_utils.data.lines import join_lines

WORDS = {
    "Enlarged Cardiomediastinum": "mediastinal widening",
    "Cardiomegaly": "cardiomegaly",
    "Lung Lesion": "lung mass",
    "Lung Opacity": "focal opacity",
    "Edema": "pulmonary edema",
    "Consolidation": "consolidation",
    "Pneumonia": "pneumonia",
    "Atelectasis": "atelectasis",
    "Pneumothorax": "pneumothorax",
    "Pleural Effusion": "pleural effusion",
    "Pleural Other": "pleural thickening",
    "Fracture": "rib fracture",
    "Support Devices": "pacemaker",
}
# Every ordered pair of observations, with the one that follows the second as the third name.
FOLLOWING = dict(zip(ABNORMAL, (*ABNORMAL[1:], ABNORMAL[0]), strict=True))
TRIPLES = [(a, b, c if (c := FOLLOWING[b]) != a else FOLLOWING[c]) for a, b in itertools.permutations(ABNORMAL, 2)]

DENIED_LISTS = [
    "No {}, {} or {} is identified.",
    "No {}, {}, or {} has developed.",
    "No {}, {} or {} can be seen.",
    "There has been no {}, {} or {}.",
    "No {}, {}, {} is noted.",
    "{}, {} or {} is not identified.",
    "{}, {} and {} have been excluded.",
    "Neither {}, {} nor {} is evident.",
    "There is neither {} nor {} nor {}.",
    "The study is negative for {}, {} or {}.",
    "Nothing to suggest {}, {} or {}.",
    "Nothing is seen to suggest {}, {} or {}.",
    "{}, {} and {} are all absent.",
    "Without {}, {}, or {}.",
    "Absent are {}, {} and {}.",
    "{} (-), {} (-), {} (-)",
    "The earlier film showed {}, {} and {} which have resolved.",
    "No {}; no {}; nor is there {}.",
]
PRESENT = [
    "The {} has not resolved.",
    "The {} has not yet completely cleared.",
    "{} has nearly resolved.",
    "Partly resolved {}.",
    "Incompletely resolved {}.",
    "No resolution of the {}.",
    "Without significant interval improvement of the {}.",
    "Follow-up to document clearing of the {}.",
    "No significant change in the {}.",
    "{} (+).",
    "(+) {}",
    "No comparisons, {} is seen.",
    "No lateral view was obtained, {} is present.",
]
UNCERTAIN = [
    "{} must be excluded.",
    "{} must be considered.",
    "{} should first be ruled out.",
    "{} needs to be excluded.",
    "{} cannot be confidently excluded.",
    "{} would be difficult to exclude.",
    "It is hard to exclude {}.",
    "Without comparisons, this may represent {}.",
    "{}, if present, is small.",
    "If any, there is minimal {}.",
    "{}?",
    "? {}",
]
NOT_CLAIMED = [
    "Assessment for {} is limited.",
    "If there is concern for {}, CT is advised.",
    "CT if {} is suspected.",
    "Indication: rule out {}.",
    "INDICATION: Fever. Evaluate for {}. FINDINGS: The aorta is tortuous.",
    "Clinical history: {}.\n\nThe aorta is tortuous.",
    "Reason for exam: {}?",
    "60-year-old woman with known {}.",
    "Unable to assess for {}.",
    "The patient was evaluated for {} last week.",
    "Comparison: radiograph of May for {}. The aorta is tortuous.",
    "Comparison: CT that showed {}.\nFindings: The aorta is tortuous.",
    "Screening for {}.",
    "The study was ordered to look for {}.",
]


def statuses(form: str, *names: str) -> dict[str, str]:
    text = form.format(*(WORDS[name] for name in names))
    return {name: found.status for name, found in label(text[0].upper() + text[1:]).items()}


@pytest.mark.parametrize("form", DENIED_LISTS)
def test_a_denial_holds_for_the_whole_list(form):
    for names in TRIPLES:
        found = statuses(form, *names)
        assert {found[name] for name in names} == {"absent"}, names
        assert not [name for name in ABNORMAL if found[name] in ASSERTED]


@pytest.mark.parametrize("join", ["No {}, but {}.", "No {}, the {} is unchanged.", "No {}, stable {}."])
def test_a_denial_ends_where_another_statement_begins(join):
    for first, second in itertools.permutations(ABNORMAL, 2):
        found = statuses(join, first, second)
        assert (found[first], found[second]) == ("absent", "present"), (first, second)


@pytest.mark.parametrize(
    ("form", "status"),
    [
        *((form, "present") for form in PRESENT),
        *((form, "uncertain") for form in UNCERTAIN),
        *((form, "not mentioned") for form in NOT_CLAIMED),
    ],
)
def test_each_observation_is_read_in_its_context(form, status):
    assert {name: statuses(form, name)[name] for name in ABNORMAL} == dict.fromkeys(ABNORMAL, status)


def misspellings(word):
    """The word with each inner letter doubled, left out, or swapped with the next."""
    for n in range(1, len(word) - 1):
        yield word[:n] + word[n] + word[n:]
        yield word[:n] + word[n + 1 :]
        yield word[:n] + word[n + 1] + word[n] + word[n + 2 :]


@pytest.mark.parametrize(
    ("word", "observation"),
    [
        ("pneumothorax", "Pneumothorax"),
        ("cardiomegaly", "Cardiomegaly"),
        ("consolidation", "Consolidation"),
        ("atelectasis", "Atelectasis"),
        ("pneumonia", "Pneumonia"),
        ("effusion", "Pleural Effusion"),
        ("fracture", "Fracture"),
        ("pacemaker", "Support Devices"),
    ],
)
def test_one_wrong_letter_in_a_long_word_is_read(word, observation):
    for wrong in misspellings(word):
        text = f"No change: {wrong} and a left lung nodule."
        first, nodule = find_mentions(text)
        assert (first.observation, first.status) == (observation, "present")
        assert text[first.start : first.end] == wrong
        assert (text[nodule.start : nodule.end], nodule.side) == ("lung nodule", "left")
        assert label(f"No {wrong}.")[observation].status == "absent"


@pytest.mark.parametrize("word", ["injection", "hemithorax", "inspiration", "operation", "traction", "vertebral"])
def test_another_real_word_is_no_misspelling(word):
    assert not find_mentions(f"The {word} is on the left.")


@pytest.mark.parametrize(
    "text", ["Please see above.", "The quick brown fox.", "XXXX", "12", "Compared with yesterday."]
)
def test_a_text_without_a_known_word_is_not_called_normal(text):
    assert {found.status for found in label(text).values()} == {"not mentioned"}
    assert says_nothing(text)


@pytest.mark.parametrize("text", ["Normal chest.", "No acute disease.", "Unremarkable.", "No effusion.", "Pacemaker."])
def test_a_denial_of_disease_is_a_normal_report(text):
    assert label(text)["No Finding"].status == "present"
    assert not says_nothing(text)


REPORT = (
    "The heart is mildly enlarged. No focal consolidation, pleural effusion or acute rib fracture is identified. "
    "Right apical pneumothorax has nearly resolved. Left basilar opacity, which may represent atelectasis or "
    "pneumonia. ETT and left PICC are unchanged."
)


@pytest.mark.parametrize(
    "change",
    [
        *(lambda text, width=width: textwrap.fill(text, width) for width in (40, 60, 78)),
        *(lambda text, mark=mark: "\n".join(mark + s for s in text.split(". ")) for mark in ("", "- ", "\u2022 ")),
        lambda text: "\r\n\r\n".join(text.rstrip(".").split(". ")),
        lambda text: join_lines("\n".join(text.rstrip(".").split(". "))),
    ],
)
def test_labels_are_the_same_whatever_the_line_breaks(change):
    assert label(change(REPORT)) == label(REPORT)
    assert tuple(label(REPORT)) == OBSERVATIONS
