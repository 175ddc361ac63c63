"""The report card as a picture, drawn with matplotlib; needs no browser.

All places are in pixels of a picture `WIDTH` wide, from its upper left corner. Every `_draw_*` function gives the place
below what it drew, so that the picture grows downwards, and its height is known at the end.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patches import Circle, FancyBboxPatch, Rectangle
from matplotlib.textpath import text_to_path
from PIL import Image

from radvision_utils.config import DISCLAIMER
from radvision_utils.dashboard.radiograph import Box, open_image, viridis, with_map
from radvision_utils.dashboard.record import Sentence
from radvision_utils.figures import BAND, GLYPH_INK, LIGHT, SIGN_COLORS, VERDICT_COLORS, VERDICTS, WELL
from radvision_utils.files import told_if_unwritable

if TYPE_CHECKING:  # a card saves itself by this module
    from radvision_utils.dashboard.card import Chip, ReportCard, Section

WIDTH = 1152  # 16 inches of 72 points: a point is a pixel, and every width in pixels is a whole picture
MAX_LINES = {"findings": 30, "impression": 14, "report": 46}  # of one section; they bound the picture's height
_PAD, _COLUMN = 28, 384
_RIGHT = 2 * _COLUMN + _PAD  # where the reference's text begins
_MULTIPLES, _ABREAST, _GAP = 12, 6, 18  # small pictures at most, in a line, and pixels between them
_SIDE = (WIDTH - 2 * _PAD - (_ABREAST - 1) * _GAP) // _ABREAST
_ELLIPSIS = "\N{HORIZONTAL ELLIPSIS}"


class _Type(NamedTuple):
    """How a text is set: size and distance of lines in pixels, color and weight."""

    size: float
    step: float
    color: str = LIGHT["ink"]
    weight: str = "normal"


_BODY, _SMALL, _MUTED = _Type(13.5, 22), _Type(12, 19), _Type(12, 19, LIGHT["muted"])
_BOLD = _SMALL._replace(weight="bold")


class _Word(NamedTuple):
    """A word, the verdict that its sentence is underlined for, and whether the verdict's sign follows it."""

    text: str
    verdict: str = ""
    signed: bool = False


def save_picture(card: ReportCard, path: Path, width: int) -> None:
    """Writes the card as PNG or PDF, wholly or not at all.

    Args:
        card: what to draw.
        path: the file, .png or .pdf; folders are made.
        width: of a PNG, in pixels.

    Raises:
        RadVisionError: the image is missing or unreadable, or nothing can be written there.
    """
    part = path.with_name(f".{path.name}.part")
    # Hinted letters are wider than measured, which shows in small pictures.
    with (
        told_if_unwritable(path.parent),
        warnings.catch_warnings(),
        matplotlib.rc_context({"text.hinting": "no_hinting"}),
    ):
        warnings.filterwarnings("ignore", "Glyph")  # a script that the font lacks is drawn as boxes
        kind = path.suffix[1:]
        about = {"Title": card.title, "Subject" if kind == "pdf" else "Disclaimer": DISCLAIMER}
        path.parent.mkdir(parents=True, exist_ok=True)
        draw_card(card).savefig(part, format=kind, dpi=width / 16, metadata=about)
        os.replace(part, path)


def draw_card(card: ReportCard) -> Figure:
    """The card on a light ground, `WIDTH` points wide and of bounded height."""
    pen, image = _Pen(), open_image(card.image)
    top = _draw_head(pen, card)
    pen.rule(0, top)
    texts = len(card.rows[0])
    column = WIDTH // (1 + max(texts, 2))
    y = _draw_rows(pen, card, top, column)
    y = max(y, top + column)
    _draw_image(pen, image, top, y, column)
    if texts > 1:
        pen.box(WIDTH - column, top, column, y - top, LIGHT["sunk"])
    pen.rule(0, y)
    y = _draw_sentences(pen, card, image, y)
    pen.rule(0, y)
    y = _draw_judged(pen, card, y)
    pen.rule(0, y)
    y = pen.flow(_PAD, y + 12, card.foot, _MUTED, WIDTH - 2 * _PAD, 3)
    return pen.finish(y + 12)


class _Pen:
    """Draws on a figure whose height is not known yet."""

    def __init__(self) -> None:
        self._figure = Figure(figsize=(16, 1), dpi=72, facecolor=LIGHT["paper"])
        self._axes = self._figure.add_axes((0, 0, 1, 1))
        self._axes.set_axis_off()

    def finish(self, height: float) -> Figure:
        self._figure.set_size_inches(16, height / 72)
        self._axes.set(xlim=(0, WIDTH), ylim=(height, 0), aspect="auto")
        return self._figure

    def text(self, x: float, y: float, words: str, kind: _Type, align: Any = "left") -> float:
        """Words on the line `y`; the place behind them."""
        self._axes.text(x, y, words, fontsize=kind.size, color=kind.color, weight=kind.weight, ha=align,
                        family="DejaVu Sans", parse_math=False, zorder=3)  # fmt: skip
        return x + _width(words, kind)

    def lines(self, x: float, y: float, found: Sequence[Sequence[_Word]], kind: _Type) -> float:
        """Lines of words one under the other; the place below them."""
        for line in found:
            at, base = x, y + kind.size
            for words in _runs(line):
                end = self.text(at, base, " ".join(word.text for word in words), kind)
                if verdict := words[0].verdict:
                    self._underline(at, end, base + 4, verdict)
                if words[-1].signed:
                    end = self.sign(end + 12, base - 4.5, 7.5, VERDICT_COLORS[verdict], VERDICTS[verdict])
                at = end + _width(" ", kind)
            y += kind.step
        return y

    def flow(
        self,
        x: float,
        y: float,
        text: str | Sequence[Sentence],
        kind: _Type,
        width: float,
        most: int,
        count: bool = False,
    ) -> float:
        """Words wrapped to a width and cut after `most` lines; with `count` the last says how many are left."""
        found = [Sentence(text)] if isinstance(text, str) else text
        lines = list(islice(_wrapped(found, kind, width), most + 1))
        if len(lines) <= most:
            return self.lines(x, y, lines, kind)
        shown, last = lines[: most - 1], lines[most - 1]
        if not count:
            return self.lines(x, y, [*shown, [*last, _Word(_ELLIPSIS)]], kind)
        left = _Word(
            f"{_ELLIPSIS} {sum(len(s.text.split()) for s in found) - sum(map(len, shown)):,} more words not shown"
        )
        return self.lines(x, self.lines(x, y, shown, kind), [[left]], kind._replace(color=LIGHT["muted"]))

    def sign(self, x: float, y: float, radius: float, color: str, glyph: str) -> float:
        self._axes.add_patch(Circle((x, y), radius, facecolor=color, edgecolor="none", zorder=2))
        self.text(x, y + 0.5 * radius, glyph, _Type(1.4 * radius, 0, GLYPH_INK, "bold"), "center")
        return x + radius

    def box(self, x: float, y: float, width: float, height: float, color: str) -> None:
        self._axes.add_patch(Rectangle((x, y), width, height, facecolor=color, edgecolor="none", zorder=0))

    def frame(self, x: float, y: float, width: float, height: float, radius: float, color: str) -> None:
        style = f"round,pad=0,rounding_size={radius}"
        self._axes.add_patch(FancyBboxPatch((x, y), width, height, style, facecolor="none", edgecolor=color, zorder=1))

    def rule(self, x: float, y: float) -> None:
        self._axes.plot([x, WIDTH], [y, y], color=LIGHT["line"], linewidth=1, zorder=1)

    def image(self, picture: Image.Image, x: float, y: float, width: float, height: float) -> None:
        where = (x, x + width, y + height, y)
        self._axes.imshow(np.asarray(picture.convert("RGB")), extent=where, interpolation="lanczos", zorder=1)

    def _underline(self, start: float, end: float, y: float, verdict: str) -> None:
        style = (0, (1, 1)) if verdict == "agree" else "-"  # dotted for agreement, as in the page
        self._axes.plot([start, end], [y, y], color=VERDICT_COLORS[verdict], linewidth=1.5, linestyle=style, zorder=2)


def _runs(line: Sequence[_Word]) -> Iterator[list[_Word]]:
    """A line's stretches of one sentence; each is set as one string, so that right-to-left text keeps its order."""
    run: list[_Word] = []
    for word in line:
        if run and (run[-1].signed or run[-1].verdict != word.verdict):
            yield run
            run = []
        run.append(word)
    yield from [run] if run else []


@lru_cache(maxsize=8192)
def _width(words: str, kind: _Type) -> float:
    if words == " ":
        return _width("x x", kind) - 2 * _width("x", kind)
    font = FontProperties(family="DejaVu Sans", size=kind.size, weight=kind.weight)
    width: float = text_to_path.get_text_width_height_descent(words, font, ismath=False)[0]
    return width


def _wrapped(found: Sequence[Sentence], kind: _Type, width: float) -> Iterator[list[_Word]]:
    """Lines of words."""
    line, room = list[_Word](), width
    for word in _words(found, kind, width):
        needed = _width(word.text, kind) + (22 if word.signed else 0) if word else 0
        if word is None or (line and needed > room):
            yield line
            line, room = [], width
        if word:
            line.append(word)
            room -= needed + _width(" ", kind)
    if line:
        yield line


def _words(found: Sequence[Sentence], kind: _Type, width: float) -> Iterator[_Word | None]:
    """The words in order, one that is wider than a line in parts; None at a line break."""
    for sentence in found:
        words = re.findall(r"\n|\S+", (sentence.before + sentence.text).rstrip())
        for place, word in enumerate(words, start=1):
            while len(word) > 1 and _width(word, kind) > width:
                fits = next(n for n in range(len(word), 0, -1) if n == 1 or _width(word[:n], kind) <= width)
                yield _Word(word[:fits], sentence.verdict)
                word = word[fits:]
            last = bool(sentence.verdict) and place == len(words)
            yield None if word == "\n" else _Word(word, sentence.verdict, last)


def _draw_head(pen: _Pen, card: ReportCard) -> float:
    """The study on the left; what made its report over the reference's column."""
    width = 2 * _COLUMN - 2 * _PAD
    eyebrow = ", ".join(filter(None, [card.image_title, card.place]))
    y = pen.flow(_PAD, 22, eyebrow, _MUTED, width, 1)
    y = pen.flow(_PAD, y + 2, card.title, _Type(25, 32, weight="bold"), width, 2)
    if card.record.indication.strip():
        end = pen.text(_PAD, y + 6 + _BODY.size, "Indication", _MUTED) + 10
        y = pen.flow(end, y + 6, card.record.indication, _BODY, width + _PAD - end, 4)
    right = 22.0
    for verdict, count in card.tally:
        end = pen.sign(_RIGHT + 10, right + 10, 10, VERDICT_COLORS[verdict], VERDICTS[verdict])
        pen.text(end + 8, right + 15, f"{count} {verdict}", _BOLD)
        right += 26
    y = max(y, right) + 18
    if card.band:
        pen.box(0, y, WIDTH, 34, BAND[0])
        pen.text(_PAD, y + 22, card.band, _BOLD._replace(color=BAND[1]))
        y += 34
    return y


def _draw_image(pen: _Pen, image: Image.Image | None, top: float, bottom: float, column: float) -> None:
    pen.box(0, top, column, bottom - top, WELL["well"])
    if image is None:
        pen.text(column / 2, (top + bottom) / 2, "No image", _BODY._replace(color=WELL["well-ink"]), "center")
    else:
        pen.image(image, 0, top, column, column)


def _draw_rows(pen: _Pen, card: ReportCard, y: float, column: float) -> float:
    pad = _PAD if column == _COLUMN else _PAD / 2
    for number, row in enumerate(card.rows):
        if number:
            pen.rule(column, y)
        y = max(
            _draw_column(pen, part, (place + 1) * column + pad, y, column - 2 * pad) for place, part in enumerate(row)
        )
    return y


def _draw_column(pen: _Pen, sections: Sequence[Section], x: float, y: float, width: float) -> float:
    """Sections one under the other."""
    for section in sections:
        y += 20
        color = LIGHT["accent" if section.author == "Generated" else "muted"]
        end = pen.text(x, y + _BOLD.size, section.author, _BOLD._replace(color=color))
        pen.text(end + 4, y + _BOLD.size, section.name, _BOLD)
        y += 24
        if section.flag:
            pen.frame(x, y, _width(section.flag, _SMALL) + 14, 22, 4, LIGHT["muted"])
            pen.text(x + 7, y + 15, section.flag, _SMALL)
            y += 30
        if section.sentences:
            y = pen.flow(x, y, section.sentences, _BODY, width, MAX_LINES[section.name], count=True)
        else:
            y = pen.flow(x, y, "(empty)", _BODY._replace(color=LIGHT["muted"]), width, 1)
    return y + 18


def _draw_sentences(pen: _Pen, card: ReportCard, image: Image.Image | None, y: float) -> float:
    """What each generated sentence rests on, as small pictures, with how far it is to be trusted."""
    found = card.told.explained
    if not found:
        return y
    y += 20
    end = pen.text(_PAD, y + _BOLD.size, "Sentence by sentence", _BOLD) + 10
    left_out = f" {len(found) - _MULTIPLES} more sentences not shown." if len(found) > _MULTIPLES else ""
    y = pen.flow(end, y, card.sentences_note + left_out, _MUTED, WIDTH - _PAD - end, 3) + 10
    if card.record.evidence:
        pen.text(_PAD, y + 10, "least", _MUTED)
        pen.image(Image.fromarray(viridis()[None]), _PAD + 36, y + 1, 120, 10)
        end = pen.text(_PAD + 164, y + 10, "most", _MUTED)
        pen.text(end + 18, y + 10, "Outlined: what was drawn." if card.lesions else "", _MUTED)
        y += 24
    for first in range(0, min(len(found), _MULTIPLES), _ABREAST):
        shown = enumerate(found[first : min(first + _ABREAST, _MULTIPLES)])
        y = (
            max(_draw_sentence(pen, s, image, card.lesions, _PAD + place * (_SIDE + _GAP), y) for place, s in shown)
            + 16
        )
    return y


def _draw_sentence(
    pen: _Pen, sentence: Sentence, image: Image.Image | None, lesions: Sequence[Box], x: float, y: float
) -> float:
    if sentence.map and image:
        pen.image(with_map(image, sentence.map, 2 * _SIDE, lesions), x, y, _SIDE, _SIDE)
        y += _SIDE + 8
    y = pen.flow(x, y, [sentence], _SMALL, _SIDE, 4)
    for remark in sentence.remarks:
        kind = _Type(11, 16, LIGHT["ink"], "bold") if remark.startswith("low") else _Type(11, 16, LIGHT["muted"])
        y = pen.flow(x, y, remark, kind, _SIDE, 2)
    return y


def _draw_judged(pen: _Pen, card: ReportCard, y: float) -> float:
    """Chips in groups, and the scores under the reference's column or, without chips, on the left."""
    if not (card.chip_groups or card.scores):
        return y
    right = y = y + 20
    for group in card.chip_groups:
        end = pen.text(_PAD, y + _BOLD.size, group.title, _BOLD)
        pen.text(end + 10, y + _BOLD.size, group.trust, _MUTED)
        y = _draw_chips(pen, group.chips, y + 25) + 18
    if card.scores:
        x = left = _RIGHT if card.chip_groups else _PAD
        for name, value in card.scores:
            pen.text(x, right + _MUTED.size, name, _MUTED)
            pen.text(x, right + 38, value, _Type(19, 24, weight="bold"))
            x += 84
        right = pen.flow(left, right + 50, card.scores_note, _MUTED, _COLUMN - 2 * _PAD, 3) + 18
    return max(y, right)


def _draw_chips(pen: _Pen, chips: Sequence[Chip], y: float) -> float:
    """Chips side by side, in as many lines as they need; one that is too wide is cut."""
    x, height, most = float(_PAD), 28, _RIGHT - _PAD - 2 * _PAD
    for chip in chips:
        parts = [(chip.words, _SMALL), (chip.verdict, _BOLD), (chip.detail, _MUTED)]
        shown = [(_cut(words, kind, most - 200), kind) for words, kind in parts if words.strip()]
        start = 32 if chip.sign else 12
        width = start + sum(_width(words, kind) + 8 for words, kind in shown) + 4
        if x > _PAD and x + width > _PAD + most:
            x, y = _PAD, y + height + 8
        pen.frame(x, y, width, height, height / 2, LIGHT["line"])
        if chip.sign:
            pen.sign(x + 15, y + height / 2, 10, SIGN_COLORS[chip.sign], chip.glyph)
        at = x + start
        for words, kind in shown:
            at = pen.text(at, y + height / 2 + 4.5, words, kind) + 8
        x += width + 8
    return y + height


def _cut(words: str, kind: _Type, width: float) -> str:
    """Words in one line, with an ellipsis where they would be wider."""
    [line, *more] = islice(_wrapped([Sentence(words)], kind, width), 2)
    return " ".join(word.text for word in line) + (_ELLIPSIS if more else "")
