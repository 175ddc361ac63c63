"""How the words of a source become what one image can teach: dirt is mended, some sentences are dropped.

Pure functions on text. The rules were made on the 3,851 reports of the Open-I collection and counted there; they, the
finding labels and the text metrics are made for English, so there is also a test of the language.
"""

from __future__ import annotations

import html
import re
from collections import Counter
from collections.abc import Set

from radvision_utils.data.lines import TAG, UNSEEN, join_lines
from radvision_utils.data.reports import split_sentences

DEIDENTIFIED, PRIORS = "deidentified", "priors"
LONGEST = 20_000
"""Characters of a section; a longer text is no report. The longest section of Open-I has 1,054."""
_HEADING = re.compile(r"[*_#]{0,9}\b(findings?|impressions?|conclusions?)\b[ \t*_]*:[ \t*_]*", re.IGNORECASE)

# The number of a point in a list: "1. ", "2.No", "3) ". What stands before it rules out "T12." and "2.5".
_NUMBER = re.compile(r"(?<![\w.,/-])(\d{1,2})\s?[.)](?!\d)\s*(?=[\w(])")
_NAME = 3  # words at most in the name of a body part that heads a list
_NEAR = 200  # characters; more than such a name has

# What stands for a word that was taken out: "XXXX" in Open-I, "___" in MIMIC-CXR, "[** 12-3 **]" in MIMIC-III, and what
# tools of de-identification write ("[REDACTED]", "<NAME>").
_HIDDEN = (
    r"(?:redacted|removed|deleted|omitted|mask(?:ed)?|hidden|blinded|obscured|scrubbed|withheld|protected|private"
    r"|saniti[sz]ed|confidential|de-?id(?:entified)?|anon(?:ymi[sz]ed)?|phi|pii|ssn|mrn|dob|hcw|first|last|middle|full"
    r"|known|of|us|name|lastname|surname|initials|date|birth|time|age|location|address|street|city|state|zip|code|country"
    r"|hospital|organi[sz]ation|institution|clinic|vendor|room|person|patient|relative|physician|doctor|provider"
    r"|radiologist|technologist|profession|dr|mr|mrs|ms|id|number|record|medical|accession|phone|fax|e-?mail|url|contact"
    r"|signature|other)"
)
_IN_BRACKETS = (
    rf"\[\*\*[^\[\]]{{0,200}}\*\*\]|\[[\s._-]*\]|@@\w{{1,40}}@@"
    rf"|[\[<({{]{{1,2}}[\s*]{{0,4}}(?:{_HIDDEN}(?:[\s./_-]?\d{{1,4}})?[\s./_:*-]{{0,8}}){{1,5}}/?[\])>}}]{{1,2}}"
    rf"|(?P<mark>[*#%~$])(?P=mark){{1,2}}(?:{_HIDDEN}[\s_-]?){{1,3}}(?P=mark){{2,3}}"
)
_BRACKETED = re.compile(_IN_BRACKETS, re.IGNORECASE)
_DEIDENTIFIED = re.compile(
    rf"X{{3,}}|(?:_\s?){{3,}}|[*#]{{4,}}|[\u2580-\u25ae]{{2,}}|[\u25cf\ufffd]{{3,}}|\b(?:XX?[/.]){{2}}X|(?:\*\*/){{2}}"
    rf"|\bredacted\b|{_IN_BRACKETS}",
    re.IGNORECASE,
)

# What the image itself shows of the past may stay: "prior granulomatous disease", "clips from previous surgery".
_HISTORY = (
    r"granulo|surg|ectom|cabg|sternot|fusion|fixat|valve|graft|rotator|repair|operat|wound|trauma|injur|fractur"
    r"|infect|inflam|histopl|disease|tb\b|tubercul|avn\b|radiat|irradiat|exposure|vertebropl"
)

# What one image cannot show: earlier studies, and change since then.
_PRIOR = re.compile(
    rf"""\b(?:
      (?: prior | previous )s? \b (?! \s (?:[\w-]+\s){{0,3}} [\w-]* (?:{_HISTORY}) )
    | previously | unchanged | (?:re-?)demonstrated | again | since | no\ longer | not\ significantly\ changed
    | stable | stably | stability | persist(?:s|ed|ent|ently|ence)? | remains? | continue[sd]?\ to
    | (?<! short\ ) (?<! short- ) (?<! appropriate\ ) interval
    | compar(?:ed|ison|isons|able) \b (?! \s (?:to|with) \s (?:the\s)? (?:left|right|contralateral|opposite)\b )
    | similar \s (?: to | from | in\ size | compared | appear\w* )
    | (?: no | without | without\ a | any | significant | overall ) \s (?: significant\s | acute\s )? change
    | improv(?:ed|ing|ement) | worsen(?:ed|ing) | resolved | increasing | decreasing | progress(?:ion|ive|ed)
    | (?: has | have ) \s (?:\w+\s){{0,2}} (?: increased | decreased | cleared | enlarged | developed | changed )
    | (?: has | have ) \s been \s (?:\w+\s)? (?: removed | removal | placed | placement | exchanged | inserted
        | clearing | resolution | development | extubation )
    | (?: increased? | decreased? | reduction ) \s in \s (?:\w+\s)? (?: size | number | prominence | extent )
    | (?: earlier | last | old | outside | recent ) \s (?:\w+\s){{0,2}}
        (?: exam\w* | stud(?:y|ies) | radiograph\w* | imag\w+ | films? | scans? | cts? )
    )\b""",
    re.IGNORECASE | re.VERBOSE,
)
_ENGLISH_WORDS = (
    "the is are of and no in with without there or to within normal clear not has been at this seen by for from on as "
    "was heart lungs lung chest acute right left"
)

# Function words of Spanish, Portuguese, French, Italian, German and Dutch that are no words of an English report.
_FOREIGN_WORDS = (
    "el la los las del una con sin por y se os um uma com sem não e ao le les des du une et est avec sans pas dans il "
    "lo gli di della che non senza der die das und ist mit ohne kein keine keinen nicht den dem ein eine im het een "
    "van geen zonder met"
)
_ENGLISH, _FOREIGN = frozenset(_ENGLISH_WORDS.split()), frozenset(_FOREIGN_WORDS.split())


def clean_section(text: str | None) -> str:
    """A section without the dirt of the collection: one line of sentences, each ended by a stop.

    Mends white space, control characters, HTML entities and tags ("&lt;", "<BR>"), brackets, stray stops (". .", ".."),
    the numbering of points, stops without a space behind them, headings inside the section, and a lower-case beginning.
    What has no letter is empty.
    """
    text = TAG.sub(" ", _BRACKETED.sub(" XXXX ", html.unescape(UNSEEN.sub(" ", text or ""))))
    text = _HEADING.sub(" ", re.sub(r"[\[\]]|[<>](?!\s?\d)", " ", UNSEEN.sub(" ", text)))
    text = join_lines(text)
    if not re.search(r"[^\W\d_]", text):
        return ""
    text = re.sub(r"(?<=[a-z)])\.(?=[A-Z][a-z])", ". ", _without_numbers(text))
    text = re.sub(r"\s+([.,;:?!])", r"\1", text)
    text = re.sub(r"([.!?])(?:\s*\.)+", r"\1", text)
    text = re.sub(r"^[\s.,;:-]+", "", text).rstrip(" ,;:-")
    if text and text[-1] not in ".!?":
        text += "."
    return " ".join(s[0].upper() + s[1:] for s in split_sentences(text))


def oddities(text: str) -> list[str]:
    """What `clean_section` takes out of an untouched section that no report should hold, in words."""
    found = {"HTML tags": TAG.search(html.unescape(text)), "control characters": UNSEEN.search(text)}
    return [name for name, match in found.items() if match]


def _without_numbers(text: str) -> str:
    """Points of a list as sentences. A number counts as one after a stop, at the start, or if it continues the list;
    and a 1 after the name of a body part ("Chest 1. No acute findings").

    So "on right rib 4. The small" keeps its 4, and "Cardiomegaly 2. Low volumes" becomes two sentences.
    """
    parts: list[str] = []
    end = last = 0
    for match in _NUMBER.finditer(text):
        # Not the whole text before: in a long text full of numbers that would be looked at again for each.
        near, number = text[max(end, match.start() - _NEAR) : match.start()].rstrip(), int(match[1])
        fresh = (near or (parts[-1] if parts else ""))[-1:] in ".:;?!"
        named = number == 1 and len(re.split(r"[.:;?!]\s", near)[-1].split()) <= _NAME
        if not (fresh or named or number == last + 1):
            continue
        before = text[end : match.start()].rstrip()
        parts.append(before if fresh else f"{before}.")
        end, last = match.end(), number
    return " ".join([*filter(None, parts), text[end:]])


def drop_sentences(text: str, reasons: Set[str]) -> tuple[str, Counter[str]]:
    """A cleaned section without the sentences that an image cannot teach.

    Args:
        text: a cleaned section.
        reasons: any of "deidentified" (a word was taken out: XXXX in any case, ___, [** **], [REDACTED]) and "priors"
            (refers to an earlier study, or to change since then).

    Returns:
        The text that is left, and how many sentences went for each reason. A sentence with both counts as
        "deidentified".
    """
    kept, dropped = [], Counter[str]()
    for sentence in split_sentences(text):
        if DEIDENTIFIED in reasons and _DEIDENTIFIED.search(sentence):
            dropped[DEIDENTIFIED] += 1
        elif PRIORS in reasons and _PRIOR.search(sentence):
            dropped[PRIORS] += 1
        else:
            kept.append(sentence)
    return " ".join(kept), dropped


def is_english(text: str) -> bool:
    """Whether a report reads as English; texts without letters and short ones in Latin script pass."""
    letters = [c for c in text if c.isalpha()]
    if letters and sum(not c.isascii() for c in letters) > 0.3 * len(letters):
        return False
    words = re.findall(r"[^\W\d_]+", text.lower())
    foreign = sum(word in _FOREIGN for word in words)
    return foreign < 2 or foreign <= sum(word in _ENGLISH for word in words)
