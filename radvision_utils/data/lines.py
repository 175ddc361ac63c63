"""What a text says whatever its line breaks: lines that were wrapped are one, points of a list are many.

Reports come wrapped at some width, with a statement a line and no stops, or with bullets; labels and cleaning read all
of them through these two functions.
"""

from __future__ import annotations

import re
from itertools import pairwise

_LINE_END = re.compile(r"\r\n?|[\n\v\f\x1c-\x1e\x85\u2028\u2029]")
_MARK = r"\s*(?:[-*\u2013\u2014](?=\s)|[\u2022\u00b7\u25aa\u25e6\u25cf\u25a0])\s*"
_BULLET = re.compile(rf"(?:{_MARK}|\s*\(?\d{{1,2}}[.)](?!\d))(?=\s*\S)")

# A line that ends in one of these goes on in the next.
_GOES_ON = re.compile(
    r"(?:[,:/&(-]|\b(?:the|a|an|of|and|or|nor|no|in|on|at|with|without|to|for|from|by|as|than|is|are|was|were|be|been|has"
    r"|have|may|could|not|which|that|this|there|its|both|between|within|over|near|into|versus|vs\.?|Dr\.))$",
    re.IGNORECASE,
)
_NARROWEST = 40  # columns: text is hardly ever wrapped at fewer


def statement_lines(text: str) -> list[tuple[int, int]]:
    """Spans of what stands on lines of its own in an untouched text: wrapped lines are one, points of a list are many.

    "There is no pleural\\neffusion." is one; "No effusion\\nLungs clear" and "- no effusion\\n- clear" are two. What
    tells: blank lines, bullets, stops, a small letter after a capital one, whether the next word had still fitted in.
    """
    ends = [*(match.span() for match in _LINE_END.finditer(text)), (len(text), len(text))]
    spans: list[tuple[int, int]] = []
    paragraph: list[tuple[int, int]] = []
    start = 0
    for end, following in ends:
        line = text[start:end]
        if paragraph and (not line.strip() or _BULLET.match(line)):
            spans += _joined(text, paragraph)
            paragraph = []
        if line.strip():
            paragraph.append((start, end))
        start = following
    return spans + _joined(text, paragraph)


def _joined(text: str, lines: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The lines of a paragraph, those that wrapping cut put together again."""
    if len(lines) < 2:
        return lines
    raw = [text[start:end].rstrip() for start, end in lines]
    width = max(map(len, raw))
    pairs = list(pairwise(raw))
    filled = (len(a) + 1 + len(b.split(maxsplit=1)[0]) > width for a, b in pairs)
    # Where the last sentence has a stop the others have too, unless "Clear" follows a line without one.
    listed = any(a[-1] not in ".!?" and b.split(maxsplit=1)[0].istitle() and not a.isupper() for a, b in pairs)
    wrapped = not listed and (raw[-1][-1] in ".!?" or (width >= _NARROWEST and all(filled)))
    spans, begun = [lines[0]], re.sub(_MARK, "", raw[0], count=1)
    for span, (before, line) in zip(lines[1:], pairs, strict=True):
        if sentence_begun := re.split(r"[.!?]\s+", before)[1:]:
            begun = sentence_begun[-1]
        if _continues(begun.lstrip()[:1], before, line.lstrip(), wrapped):
            spans[-1] = (spans[-1][0], span[1])
        else:
            spans.append(span)
            begun = line
    return spans


def _continues(begun: str, before: str, line: str, wrapped: bool) -> bool:
    """Whether a line goes on with the sentence that began with this letter and of which `before` is the last line."""
    if _GOES_ON.search(before):
        return True
    if before[-1] in ".!?;":
        return False
    first = line.split(maxsplit=1)[0]
    if first[0].islower() and begun.isupper():
        return True
    # "Kerley" begins a sentence sooner than it continues one; "XXXX", "PICC" and "2.5" tell nothing.
    return wrapped and not first.istitle()


def join_lines(text: str) -> str:
    """A text on one line, whatever its line breaks and bullets; a line that says something of its own gets a stop."""
    spans = statement_lines(text)
    raw = (re.sub(r"(?<=\w-)\s*[\r\n]\s*", "", text[start:end]) for start, end in spans)  # "right-\nsided"
    lines = [" ".join(re.sub(rf"^{_MARK}", "", line).split()) for line in raw]
    *others, last = [line for line in lines if line] or [""]
    return " ".join([*(line if line[-1] in ".!?:;," else f"{line}." for line in others), last])


# Control characters, marks of writing direction and characters without width: unseen, and no part of a report.
UNSEEN = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff]+")

# Known names only: in "[<The heart is normal.>]" the brackets stand for something else.
TAG = re.compile(
    r"</?(?:p|br|hr|div|span|b|i|u|em|strong|small|font|a|img|ul|ol|li|h[1-6]|table|tbody|thead|tr|td|th|pre|code|sup"
    r"|sub|html|head|body|title|script|style)(?:\s[^<>]{0,500}=[^<>]{0,500})?\s?/?>",
    re.IGNORECASE,
)
