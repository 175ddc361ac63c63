"""Setting text in a picture: wrapped, cut, marked sentences underlined; with the DejaVu fonts that matplotlib ships."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from pathlib import Path

import matplotlib
from PIL import ImageDraw, ImageFont

from radvision_utils.dashboard.content import VERDICTS, Piece
from radvision_utils.dashboard.markup import GLYPH_INK, LIGHT, VERDICT_COLORS

LINE = 45  # height of a line of text, pixels
_SIGN = 38  # width of a glyph behind a marked sentence
_ELLIPSIS = "\N{HORIZONTAL ELLIPSIS}"


@cache
def font(size: int, style: str = "") -> ImageFont.FreeTypeFont:
    """DejaVu Sans of so many pixels; `style` is "" or "-Bold"."""
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    return ImageFont.truetype(str(folder / f"DejaVuSans{style}.ttf"), size)


@dataclass(frozen=True)
class Font:
    """Size, color and weight of a text."""

    size: int
    color: str = LIGHT["ink"]
    style: str = ""


@dataclass(frozen=True)
class _Word:
    """A word and the verdict that it is underlined for; the sign of a verdict has the text ""."""

    text: str
    verdict: str = ""


@dataclass(frozen=True)
class TextBlock:
    """Text wrapped to `width` pixels and cut after `limit` lines.

    Attributes:
        pieces: the text; sentences with a verdict are underlined in its color and followed by its glyph.
        ink: its font.
        width: of a line, pixels.
        limit: lines at most.
        count: whether the last line says how many words were left out.
        step: from line to line, pixels; 0 for the usual.
    """

    pieces: Sequence[Piece]
    ink: Font
    width: int
    limit: int
    count: bool = False
    step: int = 0

    def draw(self, pen: ImageDraw.ImageDraw, x: int, y: int) -> int:
        """Draw at the upper left corner (x, y); returns the height."""
        step = self.step or round(max(LINE, self.ink.size * 1.3))
        lines, more = self._cut(list(self._lines()))
        for number, line in enumerate(lines):
            self._draw_line(pen, line, x, y + number * step)
        if more:
            pen.text((x, y + len(lines) * step), more, LIGHT["muted"], self._face)
        return (len(lines) + bool(more)) * step

    @property
    def _face(self) -> ImageFont.FreeTypeFont:
        return font(self.ink.size, self.ink.style)

    def _cut(self, lines: list[list[_Word]]) -> tuple[list[list[_Word]], str]:
        if len(lines) <= self.limit:
            return lines, ""
        if not self.count:
            return [*lines[: self.limit - 1], [*lines[self.limit - 1], _Word(_ELLIPSIS)]], ""
        lines = lines[: self.limit - 1]
        words = sum(len(piece.text.split()) for piece in self.pieces)
        left_out = words - sum(1 for line in lines for word in line if word.text)
        return lines, f"{_ELLIPSIS} {left_out:,} more words not shown"

    def _lines(self) -> Iterator[list[_Word]]:
        """The first lines, one more than the limit at most; a word wider than a line is broken."""
        count = 0
        for paragraph in self._paragraphs():
            waiting, room = paragraph[::-1], float(self.width)
            line: list[_Word] = []
            while waiting and count <= self.limit:
                word = waiting.pop()
                needed = self._width(word) + (self._space if line else 0)
                if needed <= room:
                    line.append(word)
                    room -= needed
                    continue
                if line:
                    waiting.append(word)
                    if not word.text and len(line) > 1:
                        waiting.append(line.pop())  # a sign stays on the line of its sentence's last word
                else:
                    fits = self._fitting(word.text)
                    line = [_Word(word.text[:fits], word.verdict)]
                    waiting += [_Word(rest, word.verdict)] if (rest := word.text[fits:]) else []
                yield line
                count, line, room = count + 1, [], float(self.width)
            if line and count <= self.limit:
                yield line
                count += 1

    def _paragraphs(self) -> Iterator[list[_Word]]:
        paragraph: list[_Word] = []
        for piece in self.pieces:
            for number, part in enumerate(piece.text.split("\n")):
                if number:
                    yield paragraph
                    paragraph = []
                paragraph += [_Word(word, piece.verdict) for word in part.split()]
            if piece.verdict:
                paragraph.append(_Word("", piece.verdict))
        yield paragraph

    @property
    def _space(self) -> float:
        return self._face.getlength(" ")

    def _width(self, word: _Word) -> float:
        return self._face.getlength(word.text) if word.text else _SIGN

    def _fitting(self, text: str) -> int:
        return next(n for n in range(len(text), 0, -1) if n == 1 or self._face.getlength(text[:n]) <= self.width)

    def _draw_line(self, pen: ImageDraw.ImageDraw, line: list[_Word], x: int, y: int) -> None:
        """Words of one verdict are drawn as one string: only so does text from right to left keep its order."""
        at = float(x)
        for (verdict, is_text), run in groupby(line, key=lambda word: (word.verdict, bool(word.text))):
            if is_text:
                words = " ".join(word.text for word in run)
                width = self._face.getlength(words)
                pen.text((at, y), words, self.ink.color, self._face)
                if verdict:
                    self._underline(pen, verdict, at, at + width, y)
            else:
                width = _SIGN
                middle = (at + _SIGN / 2, y + self.ink.size * 0.6)
                pen.circle(middle, 15, fill=VERDICT_COLORS[verdict])
                pen.text(middle, VERDICTS[verdict], GLYPH_INK, font(22, "-Bold"), anchor="mm")
            at += width + self._space

    def _underline(self, pen: ImageDraw.ImageDraw, verdict: str, start: float, end: float, y: int) -> None:
        y += round(self.ink.size * 1.3)
        dash = 6 if verdict == "agree" else round(end - start) + 1  # dotted for agreement, as in the HTML
        for left in range(round(start), round(end), dash * 2 if verdict == "agree" else dash):
            pen.line((left, y, min(left + dash, round(end)), y), fill=VERDICT_COLORS[verdict], width=3)
