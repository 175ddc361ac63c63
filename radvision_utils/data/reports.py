"""The words of a study: what a report is, how it is cleaned, written as a training target and read back.

Pure functions on text. The rules were made on the 3,851 reports of the Open-I collection and counted there; cleaning,
finding labels and text metrics are made for English, so there is also a test of the language.
"""

from __future__ import annotations

import html
import json
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Set
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Any

from radvision_utils.data.lines import join_lines

DEIDENTIFIED, PRIORS = "deidentified", "priors"
LONGEST = 20_000
"""Characters of a section; a longer text is no report. The longest section of Open-I has 1,054."""

# Control characters, marks of writing direction and characters without width: unseen, and no part of a report.
_UNSEEN = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff]+")
# Known names only: in "[<The heart is normal.>]" the brackets stand for something else.
_TAG = re.compile(
    r"</?(?:p|br|hr|div|span|b|i|u|em|strong|small|font|a|img|ul|ol|li|h[1-6]|table|tbody|thead|tr|td|th|pre|code|sup"
    r"|sub|html|head|body|title|script|style)(?:\s[^<>]{0,500}=[^<>]{0,500})?\s?/?>",
    re.IGNORECASE,
)

_HEADING = re.compile(r"[*_#]{0,9}\b(findings?|impressions?|conclusions?)\b[ \t*_]*:[ \t*_]*", re.IGNORECASE)

# In texts of any model. What it thought is marked, or ends where its answer begins.
_THINKING = r"[\w:]{0,9}(?:think|thought|reason|reflection|scratchpad|rationale|analysis|monologue|cot\b)\w{0,9}"
_THOUGHT = re.compile(
    rf"(?P<opened><{_THINKING}>|<\|begin_of_thought\|>|\[think\]|\u25c1think\u25b7|<unused94>)"
    rf"|(?P<closed></{_THINKING}>|<\|end_of_thought\|>|\[/think\]|\u25c1/think\u25b7|<unused95>)"
    r"|(?P<answer><(?:final_)?answer>|<\|begin_of_solution\|>|<\|channel\|>final<\|message\|>)",
    re.IGNORECASE,
)
_TOKEN = re.compile(
    r"<\|[\w ]{1,40}\|>(?:(?:assistant|user|system)\b)?|</?s>|</?answer>|\[/?INST\]|<n>|<0x0A>|\[end of report\]"
    r"|<(?:bos|eos|pad|unk|end_of_turn|start_of_turn)>(?:model\b)?|```(?:(?:json|markdown|md|html|xml|te?xt)\b)?",
    re.IGNORECASE,
)
_FINDINGS, _IMPRESSION = (
    "findings?|observations?",
    "impressions?|conclusions?|opinion|summary|assessment|interpretation",
)
_NAMES = rf"{_FINDINGS}|{_IMPRESSION}|(?<!clinical\s)diagnos[ie]s"
# "<findings>", '<findings lang="en">', '<section name="findings">'
_SECTION_TAG = re.compile(rf"""<(/?)(?:\w+\s[^<>]{{0,40}}=["'])?({_NAMES})\b[^<>]{{0,99}}>""", re.IGNORECASE)
_BLOCK_TAG = re.compile(r"</?(?:p|br|hr|div|ul|ol|li|h[1-6]|tr|t[dh]|pre)(?:\s[^<>]{0,500})?/?>", re.IGNORECASE)
_BOLD_TAG = re.compile(r"</?(?:b|strong|em|u|i)>", re.IGNORECASE)
_WHAT = (
    "(?:chest|frontal|pa|ap|lateral|views?|provided|given|x-?ray|radiographs?|image|cxr|film|study|summary"
    "|exam(?:ination)?)"
)
# "Findings (PA view):", but not "Findings (left lung):", of which a word would be lost.
_OF_WHAT = rf"(?:(?:the|this)\s)?(?:{_WHAT}[\ /-]{{0,2}}){{0,4}}{_WHAT}"
# A word for a section, with the marks around it that may make it a heading.
_CANDIDATE = re.compile(
    rf"""(?P<before>(?:^(?:\d{{1,2}}|[A-H]|[IVX]{{1,4}})[.)]\s)?[*_#"'`~=|(\[\]{{}}>\s\u2022\u00ab\u201c-]{{0,9}})
    (?<![^\W_])
    (?:(?:key|main|final|overall|clinical|diagnostic|imag(?:e|ing)|radiograph(?:ic|y)|radiolog(?:ic|ical|y)|chest|x-ray
    |provisional|primary|section|report|generated|predicted)[\ _]){{0,2}}
    (?P<name>{_NAMES})(?:\s?(?:and|&|/)\s?(?:(?P<second>{_NAMES})|recommendations?))?(?:\s(?:section|text))?
    (?:\s?\((?:s|{_OF_WHAT})\)(?=[\W_])|\s\d{{1,2}}(?=\s?:)|(?P<of>\s(?:of|in|on|from)\s{_OF_WHAT}))?
    (?![^\W_]) (?P<after>[*_#"'`~=|)\[\]{{}}>\ :;.\u2192\u2022\u2013\u2014\u00bb\u201d-]{{0,9}}\n?)""",
    re.IGNORECASE | re.MULTILINE | re.VERBOSE,
)
# What stands for a colon or a bracket in other scripts, and what is not seen within words.
_PLAIN: dict[int, int | str | None] = {0xFF01 + n: 0x21 + n for n in range(94)} | {
    ord(sign): ":" for sign in "\ufe55\ufe13\u2236\ua789"
}
# Marks of tokenizers for a blank and a line's end, where a model's words were joined without it.
_PLAIN |= {0x3010: "[", 0x3011: "]", 0x2581: " ", 0x120: " ", 0x10A: "\n"} | dict.fromkeys(
    [0xAD, *range(0x200B, 0x2010), *range(0x2060, 0x2065), 0xFEFF]
)
_BULLET = re.compile(
    r"^(?:[-*+\u2013\u2014]\s|\[[ x]\]\s"
    r"|[>\u2022\u00b7\u2023\u2190-\u21ff\u2460-\u24ff\u25a0-\u27bf\U0001f300-\U0001faff]\s?){1,3}"
)
# Of a list with a line for each point, not of "1. Small heart. 2. Clear lungs."
_LINE_NUMBER = re.compile(r"^(?:\d{1,2}[.)]|\[\d{1,2}\]|\(?[a-h\d]\)|#\d{1,2}|[ivx]{1,4}\.)\s(?!.*\s\d{1,2}[.)]\s)")
_LINE_ENDS = ".!?:;,-/"

# The number of a point in a list: "1. ", "2.No", "3) ". What stands before it rules out "T12." and "2.5".
_NUMBER = re.compile(r"(?<![\w.,/-])(\d{1,2})\s?[.)](?!\d)\s*(?=[\w(])")

# Stops that end no sentence. A single capital is an initial, but "I" and "A" do not occur as one in reports.
_ABBREVIATION = re.compile(
    r"(?:^|[\s(])(?:Drs?|Mrs?|Ms|St|vs|e\.g|i\.e|approx|ca|a\.m|p\.m|[B-HJ-Z])\.$", re.IGNORECASE
)
_BREAK = re.compile(r"(?<=[.!?])\s+")

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


@dataclass(frozen=True)
class Report:
    """A radiology report in its two sections; an absent section is the empty text.

    Attributes:
        findings: what is seen.
        impression: what it means.
        headed: whether the text had headings; without any, the whole text stands in `findings`.
        line: of findings, as `line_of_findings` makes it; a model that trained with `model.summary` begins with it.
    """

    findings: str = ""
    impression: str = ""
    headed: bool = True
    line: str = ""

    @property
    def text(self) -> str:
        """Both sections, a blank line between them: the finding labels would take a single break for a wrapped line."""
        return f"{self.findings}\n\n{self.impression}"

    def to_json(self) -> dict[str, Any]:
        """As records keep it; without a line there is no word of one."""
        return {name: value for name, value in vars(self).items() if name != "line" or value}


# Observations in a line's words, the commonest of Open-I first; the finding labels read each of them as itself.
_WORDS = {
    "Cardiomegaly": "cardiomegaly",
    "Pleural Effusion": "pleural effusion",
    "Atelectasis": "atelectasis",
    "Lung Opacity": "lung opacity",
    "Support Devices": "support device",
    "Enlarged Cardiomediastinum": "enlarged mediastinum",
    "Lung Lesion": "lung nodule",
    "Edema": "pulmonary edema",
    "Consolidation": "consolidation",
    "Pneumonia": "pneumonia",
    "Pneumothorax": "pneumothorax",
    "Pleural Other": "pleural thickening",
    "Fracture": "fracture",
}

_NOTHING = "no key finding"


def line_of_findings(observations: Collection[str]) -> str:
    """A sentence that asserts these observations and no more: "Cardiomegaly, atelectasis."."""
    line = ", ".join(words for name, words in _WORDS.items() if name in observations) or _NOTHING
    return f"{line.capitalize()}."


def clean_section(text: str | None) -> str:
    """A section without the dirt of the collection: one line of sentences, each ended by a stop.

    Mends white space, control characters, HTML entities and tags ("&lt;", "<BR>"), brackets, stray stops (". .", ".."),
    the numbering of points, stops without a space behind them, headings inside the section, and a lower-case beginning.
    What has no letter is empty.
    """
    text = _TAG.sub(" ", _BRACKETED.sub(" XXXX ", html.unescape(_UNSEEN.sub(" ", text or ""))))
    text = _HEADING.sub(" ", re.sub(r"[\[\]]|[<>](?!\s?\d)", " ", _UNSEEN.sub(" ", text)))
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
    found = {"HTML tags": _TAG.search(html.unescape(text)), "control characters": _UNSEEN.search(text)}
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


def split_sentences(text: str) -> list[str]:
    """The sentences of a cleaned section. "Dr.", "vs.", "2.5 cm" and "1. " end none."""
    sentences: list[list[str]] = []
    for piece in filter(None, _BREAK.split(text.strip())):
        before = sentences[-1] if sentences else [""]
        if _ABBREVIATION.search(before[-1]) or (len(before) == 1 and re.fullmatch(r"\d{1,2}\.", before[0])):
            before.append(piece)
        else:
            sentences.append([piece])
    return [" ".join(pieces) for pieces in sentences]


def has_hidden_word(text: str) -> bool:
    """Whether a word was taken out of a text by de-identification: XXXX in any case, ___, [** **], [REDACTED]."""
    return bool(_DEIDENTIFIED.search(text))


def drop_sentences(text: str, reasons: Set[str]) -> tuple[str, Counter[str]]:
    """A cleaned section without the sentences that an image cannot teach.

    Args:
        text: a cleaned section.
        reasons: any of "deidentified" (a word was taken out, see `has_hidden_word`) and "priors" (refers to an
            earlier study, or to change since then).

    Returns:
        The text that is left, and how many sentences went for each reason. A sentence with both counts as
        "deidentified".
    """
    kept, dropped = [], Counter[str]()
    for sentence in split_sentences(text):
        if DEIDENTIFIED in reasons and has_hidden_word(sentence):
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


def format_report(report: Report) -> str:
    """The report as one text, the training target: "Findings: ... Impression: ...". An empty section has no heading."""
    findings = " ".join(filter(None, (report.line, report.findings)))
    if not report.headed:
        return findings
    sections = (("Findings", findings), ("Impression", report.impression))
    return " ".join(f"{heading}: {text}" for heading, text in sections if text)


def parse_report(text: str, line: bool = False) -> Report:
    """The report in a text that any model wrote; the inverse of `format_report`, and tolerant of much else.

    What a model thought before its answer, marks of chat formats, HTML and Markdown are taken off, JSON is unfolded.
    Headings may be in any case and order, marked or on a line of their own without a colon; one may be missing (what
    stands before "Impression:" is then the findings) or come twice (its texts are joined). Words before "Findings:",
    such as "Here is the report:", are left out, as are braces and the empty "Findings: {}" of a prompt that is echoed.
    Lines of a list become sentences. With `line`, a first sentence that is a line of findings stands by itself.
    """
    if line:
        report = parse_report(text)
        opening, *rest = split_sentences(report.findings) or [""]
        said = {part.strip().lower() for part in opening.rstrip(".").split(",")}
        return (
            replace(report, line=opening, findings=" ".join(rest)) if said <= {*_WORDS.values(), _NOTHING} else report
        )
    text = _one_below_the_other(_as_lines(_unfolded(_answer(text))))
    headings = [found for found in _CANDIDATE.finditer(text) if _is_heading(found)]
    has_lines, first = "\n" in text, headings[0].start() if headings else len(text)
    sections: dict[str, list[str]] = {"findings": [], "impression": []}
    for found, after in zip_longest(headings, headings[1:]):
        body = text[found.end() : after.start() if after else len(text)]
        sections[_section(found)].append(_tidy(body, has_lines))
    findings, impression = (" ".join(filter(None, parts)) for parts in sections.values())
    before = _tidy(text[:first], has_lines)
    if not any(_section(found) == "findings" for found in headings):
        findings = before
    if before and not (findings or impression):
        return Report(_tidy(text, has_lines), "", headed=False)
    # Under "Findings and Impression" nothing tells the two apart.
    return Report(findings, impression, any(not found["second"] for found in headings) or bool(impression))


def _answer(text: str) -> str:
    """What a model answered, without what it thought before."""
    kept, end, thinking = [], 0, False
    for mark in _THOUGHT.finditer(text):
        if not thinking:
            kept.append(text[end : mark.start()])
        if mark.lastgroup == "answer" or (mark.lastgroup == "closed" and not thinking):  # opened in the prompt
            kept.clear()
        thinking, end = mark.lastgroup == "opened", mark.end()
    return " ".join(kept if thinking else [*kept, text[end:]])


def _unfolded(text: str) -> str:
    """JSON that holds a report as lines of "key: value"; any other text as it is."""
    for opening, closing in ("{}", "[]", '""'):
        start, end = text.find(opening), text.rfind(closing) + 1
        try:
            values = json.loads(text[start:end], strict=False)
            if isinstance(values, str):
                # Written as JSON twice; of a text that only quotes a word there is more around it.
                return text if (text[:start] + text[end:]).strip() else _unfolded(values)
            lines = "\n".join(_json_lines(values))
        except (ValueError, RecursionError):  # cut off, or no JSON: its keys are headings all the same
            continue
        if _CANDIDATE.search(lines):
            return f"{text[:start]}\n{lines}\n{text[end:]}"
    return text


def _json_lines(value: dict[str, Any] | list[Any]) -> Iterator[str]:
    pairs: Iterable[tuple[str, Any]] = value.items() if isinstance(value, dict) else (("", inner) for inner in value)
    if isinstance(value, dict) and (
        named := [v for v in value.values() if re.fullmatch(_NAMES, str(v), re.IGNORECASE)]
    ):
        pairs = [
            (named[0], ""),
            *(("", inner) for inner in value.values() if inner != named[0]),
        ]  # {"section": ..., "text":
    for key, inner in pairs:
        name = re.sub(r"_|(?<=[a-z])(?=[A-Z])", " ", key)  # "section_findings", "reportFindings"
        name = "" if name.lower() in ("", "text") or name.isdecimal() else f"{name}: "
        if isinstance(inner, dict | list):
            yield name
            yield from _json_lines(inner)
        else:
            yield f"- {name}{'' if inner is None else inner}"


def _as_lines(text: str) -> str:
    """A text without marks of chat formats and HTML, bold type as in Markdown; no line is empty."""
    text = re.sub(r"(?:\\r)?\\n|\\t(?![a-z])|<!\[CDATA\[|\]\]>", "\n", text.translate(_PLAIN))
    text = re.sub(r"<\|box_start\|>[^<]{0,80}<\|box_end\|>", "", text)  # where Qwen's models see it
    text = html.unescape(_TOKEN.sub("\n", _UNSEEN.sub(" ", text)))
    text = re.sub(r"\\(?:begin|end)\{\w{1,20}\}|\\item\b", "\n", text)  # of LaTeX
    text = re.sub(r"\\[a-z]{2,20}\*?(?=\{)", "", text)
    text = _SECTION_TAG.sub(lambda tag: "\n" if tag[1] else f"\n{tag[2]}:\n", text)
    text = _TAG.sub(" ", _BOLD_TAG.sub("**", _BLOCK_TAG.sub("\n", text)))
    for name in set(re.findall(r"</([a-zA-Z][\w-]{0,30})>", text)):  # <report>, <response>: whatever is closed, too
        text = re.sub(rf"</?{name}>", "\n", text)
    return "\n".join(filter(None, (" ".join(line.split()) for line in text.splitlines())))


def _one_below_the_other(text: str) -> str:
    """A table of two columns, findings and impression, as two sections."""
    lines = text.split("\n")
    rows = [re.sub(r"^\|(.*?)\|?$", r"\1", line).split("|") for line in lines]
    for at, row in enumerate(rows):
        heads = [_CANDIDATE.fullmatch(f"{cell} ") for cell in row]
        if len(row) == 2 and heads[0] and heads[1] and _section(heads[0]) != _section(heads[1]):
            end = next((n for n in range(at + 1, len(rows)) if len(rows[n]) != 2), len(rows))
            if end > at + 1:
                columns = zip(*rows[at + 1 : end], strict=True)
                below = [
                    f"{head['name']}:\n" + "\n".join(cells) for head, cells in zip(heads, columns, strict=True) if head
                ]
                return "\n".join([*lines[:at], *below, *lines[end:]])
    return text


def _is_heading(found: re.Match[str]) -> bool:
    """Whether one of the words for a section is its heading, not a word of a sentence."""
    text, before, after = found.string, found["before"], found["after"]
    near = text[max(0, found.start() - 2) : found.start()].rstrip(" ")
    starts_line = not near or near.endswith("\n") or "\n" in before
    if re.search(r"[:=>\u2192]", after):
        return starts_line or not found["of"]
    capital, marked = text[found.end("before")].isupper(), bool(before.strip())
    if marked and after.strip(" \n.\"'") and not after.startswith((" -", "-")):
        return starts_line or "(" not in before  # "**Findings**", "[FINDINGS]"
    if starts_line and (after.endswith("\n") or found.end() == len(text)):
        return capital or marked or not near.strip() or (near.strip()[-1] in ".!?:" and after.endswith("\n"))
    if starts_line and after.startswith((" - ", " \u2013 ", " \u2014 ", "\u2014", "; ", " | ")):
        return True
    goes_on = re.match(r"[A-Z](?:[a-z]|\s)|\d", text[found.end() : found.end() + 2])  # "FINDINGS The lungs are clear."
    return capital and after in (" ", " {") and bool(goes_on) and (starts_line or near.endswith((".", "!", "?")))


def _section(found: re.Match[str]) -> str:
    return "findings" if re.search(_FINDINGS, f"{found['name']} {found['second']}".lower()) else "impression"


def _tidy(text: str, has_lines: bool) -> str:
    """A section in one line, without the marks of Markdown, JSON and lists; with lines, each ends a sentence where the
    next does not go on with it.
    """
    tidied: list[str] = []
    for line in re.sub(r"\*\*|`|\{\s*\}\.?", " ", text).splitlines():
        bare = _BULLET.sub("", line.strip())
        bare = _LINE_NUMBER.sub("", bare) if has_lines else bare
        is_point = bare != line.strip()
        bare = " ".join(bare.split()).strip(" *_#\"'{},|\u201c\u201d")
        if not re.search(r"\w", bare):
            continue
        if tidied and tidied[-1][-1] not in _LINE_ENDS and (is_point or bare[0].isupper()):
            tidied[-1] += "."
        tidied.append(bare)
    if tidied and has_lines and tidied[-1][-1] not in _LINE_ENDS:
        tidied[-1] += "."
    return " ".join(tidied)
