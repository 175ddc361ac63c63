"""The report in a text that any model wrote: headings in any form, JSON, HTML, Markdown, thoughts before the answer."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import zip_longest
from typing import Any

from radvision_utils.data.lines import TAG, UNSEEN
from radvision_utils.data.reports import LINE_WORDS, NO_FINDING, Report, split_sentences

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
        is_line = said <= {*LINE_WORDS.values(), NO_FINDING}
        return replace(report, line=opening, findings=" ".join(rest)) if is_line else report
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
    text = html.unescape(_TOKEN.sub("\n", UNSEEN.sub(" ", text)))
    text = re.sub(r"\\(?:begin|end)\{\w{1,20}\}|\\item\b", "\n", text)  # of LaTeX
    text = re.sub(r"\\[a-z]{2,20}\*?(?=\{)", "", text)
    text = re.sub(r"</t[dh]>\s*<t[dh]\b[^<>]{0,500}>", " | ", text, flags=re.IGNORECASE)
    text = _SECTION_TAG.sub(lambda tag: "\n" if tag[1] else f"\n{tag[2]}:\n", text)
    text = TAG.sub(" ", _BOLD_TAG.sub("**", _BLOCK_TAG.sub("\n", text)))
    for name in set(re.findall(r"</([a-zA-Z][\w-]{0,30})>", text)):  # <report>, <response>: whatever is closed, too
        text = re.sub(rf"</?{name}>", "\n", text)
    return "\n".join(filter(None, (" ".join(line.split()) for line in text.splitlines())))


def _one_below_the_other(text: str) -> str:
    """A table with findings and impression side by side as two sections; its other columns are no part of a report."""
    lines = text.split("\n")
    rows = [re.sub(r"^\|(.*?)\|?$", r"\1", line).split("|") for line in lines]
    for at, row in enumerate(rows):
        heads = [_CANDIDATE.fullmatch(f"{cell} ") for cell in row]
        if {_section(head) for head in heads if head} < {"findings", "impression"}:
            continue
        end = next((n for n in range(at + 1, len(rows)) if len(rows[n]) != len(row)), len(rows))
        if end > at + 1:
            columns = zip(heads, zip(*rows[at + 1 : end], strict=True), strict=True)
            below = [f"{head['name']}:\n" + "\n".join(cells) for head, cells in columns if head]
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
