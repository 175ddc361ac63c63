"""The report card as a picture, drawn with Pillow and the DejaVu fonts that matplotlib ships; needs no browser.

Every `_draw_*` function returns the height that it took, so a block is measured by drawing it on a scratch image.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib
from PIL import Image, ImageDraw, ImageFont

from radvision_utils.dashboard import content
from radvision_utils.dashboard.markup import GLYPH_INK, LIGHT, VERDICT_COLORS, WELL

WIDTH = 2400
MAX_LINES = {"findings": 30, "impression": 14, "report": 46}  # of one section; they bound the picture's height
_PAD = 60
_WELL_WIDTH = 800
_COLUMN = (WIDTH - _WELL_WIDTH) // 2
_BODY, _SMALL, _SCORE, _TITLE = 28, 25, 40, 52  # font sizes, pixels
_LINE = 45  # height of a line of text
_FOOT = 84
_ELLIPSIS = "\N{HORIZONTAL ELLIPSIS}"


def draw_card(record: Mapping[str, Any], image: Image.Image | None, cached: bool) -> Image.Image:
    """The card on a light ground, `WIDTH` pixels wide and under 4,000 high; `image` is the radiograph."""
    scratch = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    rows = content.report_rows(record)
    head = _draw_head(scratch, record, cached)
    heights = [max(_draw_stack(scratch, sections, 0, 0) for sections in (r.generated, r.reference)) for r in rows]
    body = max(sum(heights), _WELL_WIDTH)
    heights[-1] += body - sum(heights)
    judged = _draw_judged(scratch, record, 0)

    canvas = Image.new("RGB", (WIDTH, head + body + judged + _FOOT), LIGHT["paper"])
    pen = ImageDraw.Draw(canvas)
    _draw_head(pen, record, cached)
    _rule(pen, 0, head - 2)
    _draw_well(canvas, image, head, body)
    pen.rectangle((WIDTH - _COLUMN, head, WIDTH, head + body - 1), fill=LIGHT["sunk"])
    y = head
    for row, height in zip(rows, heights, strict=True):
        if y > head:
            _rule(pen, _WELL_WIDTH, y)
        _draw_stack(pen, row.generated, _WELL_WIDTH + _PAD, y)
        _draw_stack(pen, row.reference, WIDTH - _COLUMN + _PAD, y)
        y += height
    _rule(pen, 0, y)
    _draw_judged(pen, record, y)
    y = canvas.height - _FOOT
    _rule(pen, 0, y)
    pen.text((_PAD, y + _FOOT // 2), content.FOOTER, LIGHT["muted"], _font(_SMALL), anchor="lm")
    return canvas


def _draw_head(pen: ImageDraw.ImageDraw, record: Mapping[str, Any], cached: bool) -> int:
    """The study on the left; what made its report over the reference's column."""
    width = WIDTH - _COLUMN - 2 * _PAD
    y = _PAD - 10
    eyebrow = ", ".join(filter(None, [content.image_title(record), content.place(record)]))
    y += _draw_text(pen, eyebrow, _PAD, y, _SMALL, LIGHT["muted"], width=width, limit=1)
    y += 8 + _draw_text(pen, content.study_title(record), _PAD, y, _TITLE, style="-Bold", width=width, limit=2)
    if indication := content.clean(record.get("indication")):
        label = int(_font(_SMALL).getlength("Indication")) + 24
        pen.text((_PAD, y + 16), "Indication", LIGHT["muted"], _font(_SMALL))
        y += 14 + _draw_text(pen, indication, _PAD + label, y + 14, _BODY, width=width - label, limit=4)
    left, y = y, _PAD - 10
    for key, value in content.facts(record, cached):
        pen.text((WIDTH - _COLUMN + _PAD, y), key, LIGHT["muted"], _font(_SMALL))
        y += _draw_text(pen, value, WIDTH - _COLUMN + _PAD + 130, y, _SMALL, width=_COLUMN - 2 * _PAD - 130, limit=2)
    return max(left, y) + 40


def _draw_well(canvas: Image.Image, image: Image.Image | None, top: int, height: int) -> None:
    pen = ImageDraw.Draw(canvas)
    pen.rectangle((0, top, _WELL_WIDTH - 1, top + height - 1), fill=WELL["well"])
    if image is None:
        middle = (_WELL_WIDTH // 2, top + height // 2)
        pen.text(middle, content.NO_IMAGE, WELL["well-ink"], _font(_BODY), anchor="mm")
        return
    scale = _WELL_WIDTH / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    enlarged = image.resize(size, Image.Resampling.LANCZOS).convert("RGB")
    canvas.paste(enlarged, ((_WELL_WIDTH - size[0]) // 2, top))


def _draw_stack(pen: ImageDraw.ImageDraw, sections: Sequence[content.Section], x: int, top: int) -> int:
    """Sections of one column, one under the other."""
    width = _COLUMN - 2 * _PAD
    y = top + _PAD - 14
    for section in sections:
        bold = _font(_SMALL, "-Bold")
        color = LIGHT["accent"] if section.author == "Generated" else LIGHT["muted"]
        pen.text((x, y), section.author, color, bold)
        pen.text((x + bold.getlength(section.author + " "), y), section.name, LIGHT["ink"], bold)
        y += _LINE + 6
        if section.flag:
            right = x + int(_font(_SMALL).getlength(section.flag)) + 28
            pen.rounded_rectangle((x, y, right, y + 44), radius=8, outline=LIGHT["muted"], width=2)
            pen.text((x + 14, y + 22), section.flag, LIGHT["ink"], _font(_SMALL), anchor="lm")
            y += 62
        text, color = (section.text, LIGHT["ink"]) if section.text else (content.EMPTY, LIGHT["muted"])
        y += _draw_text(pen, text, x, y, _BODY, color, width=width, limit=MAX_LINES[section.name], count=True) + 36
    return y - top + _PAD - 50


def _draw_judged(pen: ImageDraw.ImageDraw, record: Mapping[str, Any], top: int) -> int:
    """Finding chips, and the scores under the reference's column or, without chips, on the left."""
    chips, scores = content.chips(record), content.score_values(record)
    y = top + 40
    below = y
    if chips:
        pen.text((_PAD, y), content.FINDINGS_TITLE, LIGHT["ink"], _font(_SMALL, "-Bold"))
        below = y + 54 + _draw_chips(pen, chips, y + 54)
    if scores:
        x = left = WIDTH - _COLUMN + _PAD if chips else _PAD
        for name, value in scores:
            pen.text((x, y), name, LIGHT["muted"], _font(_SMALL))
            pen.text((x, y + 36), value, LIGHT["ink"], _font(_SCORE, "-Bold"))
            x += 200
        note = _draw_text(pen, content.SCORES_NOTE, left, y + 92, _SMALL, LIGHT["muted"], width=680, limit=2)
        below = max(below, y + 92 + note)
    return below - top + 36 if chips or scores else 0


def _draw_chips(pen: ImageDraw.ImageDraw, chips: Sequence[content.Chip], top: int) -> int:
    x, y, height = _PAD, top, 60
    plain, bold = _font(_SMALL), _font(_SMALL, "-Bold")
    for chip in chips:
        words = int(plain.getlength(chip.words))
        width = 66 + words + 18 + int(bold.getlength(chip.verdict)) + 28
        if x > _PAD and x + width > WIDTH - _COLUMN - _PAD:
            x, y = _PAD, y + height + 16
        pen.rounded_rectangle((x, y, x + width, y + height), radius=height // 2, outline=LIGHT["line"], width=2)
        pen.ellipse((x + 9, y + 9, x + 51, y + 51), fill=VERDICT_COLORS[chip.verdict])
        pen.text((x + 30, y + 30), chip.glyph, GLYPH_INK, bold, anchor="mm")
        pen.text((x + 66, y + 30), chip.words, LIGHT["ink"], plain, anchor="lm")
        pen.text((x + 66 + words + 18, y + 30), chip.verdict, LIGHT["ink"], bold, anchor="lm")
        x += width + 16
    return y - top + height


def _draw_text(
    pen: ImageDraw.ImageDraw,
    text: str,
    x: int,
    y: int,
    size: int,
    color: str = LIGHT["ink"],
    *,
    width: int,
    limit: int,
    style: str = "",
    count: bool = False,
) -> int:
    """Text wrapped to `width` and cut after `limit` lines; with `count`, the last line says how much was left out."""
    font, step = _font(size, style), round(max(_LINE, size * 1.3))
    lines = list(_wrapped(text, font, width, limit + 1))
    more = ""
    if len(lines) > limit and count:
        lines = lines[: limit - 1]
        left_out = len(text.split()) - sum(len(line.split()) for line in lines)
        more = f"{_ELLIPSIS} {left_out:,} more words not shown"
    elif len(lines) > limit:
        lines = [*lines[: limit - 1], lines[limit - 1] + _ELLIPSIS]
    for number, line in enumerate(lines):
        pen.text((x, y + number * step), line, color, font)
    if more:
        pen.text((x, y + len(lines) * step), more, LIGHT["muted"], font)
    return (len(lines) + bool(more)) * step


def _wrapped(text: str, font: ImageFont.FreeTypeFont, width: int, limit: int) -> Iterator[str]:
    """The first `limit` lines of a text; a word wider than a line is broken."""
    count = 0
    for paragraph in text.splitlines():
        words = paragraph.split()[::-1]
        line = ""
        while words and count < limit:
            word = words.pop()
            longer = f"{line} {word}".strip()
            if font.getlength(longer) <= width:
                line = longer
                continue
            if not line:
                fits = next(n for n in range(len(word), 0, -1) if n == 1 or font.getlength(word[:n]) <= width)
                line, rest = word[:fits], word[fits:]
                words += [rest] if rest else []
            else:
                words.append(word)
            yield line
            count, line = count + 1, ""
        if line and count < limit:
            yield line
            count += 1


def _rule(pen: ImageDraw.ImageDraw, x: int, y: int) -> None:
    pen.line((x, y, WIDTH, y), fill=LIGHT["line"], width=2)


@cache
def _font(size: int, style: str = "") -> ImageFont.FreeTypeFont:
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    return ImageFont.truetype(str(folder / f"DejaVuSans{style}.ttf"), size)
