"""The report card as a picture, drawn with Pillow; needs no browser.

Every `_draw_*` function returns the height that it took, so a block is measured by drawing it on a scratch image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image, ImageDraw

from radvision_utils.dashboard import content
from radvision_utils.dashboard.evidence import Sentence
from radvision_utils.dashboard.maps import with_map
from radvision_utils.dashboard.markup import GLYPH_INK, LIGHT, SIGN_COLORS, WELL
from radvision_utils.dashboard.typesetting import LINE, Font, TextBlock, font

WIDTH = 2400
MAX_LINES = {"findings": 30, "impression": 14, "report": 46}  # of one section; they bound the picture's height
_PAD = 60
_WELL_WIDTH = 800
_COLUMN = (WIDTH - _WELL_WIDTH) // 2
_BODY, _SMALL, _SCORE, _TITLE = 28, 25, 40, 52  # font sizes, pixels
_FOOT = 84
_ABREAST, _MULTIPLES, _GAP, _REMARK = 6, 12, 36, 23  # small multiples in a line and at most, pixels between, font size
_MULTIPLE = (WIDTH - 2 * _PAD - (_ABREAST - 1) * _GAP) // _ABREAST


def draw_card(record: Mapping[str, Any], image: Image.Image | None, cached: bool) -> Image.Image:
    """The card on a light ground, `WIDTH` pixels wide and of bounded height; `image` is the radiograph."""
    nowhere = Image.new("RGB", (1, 1))
    scratch = ImageDraw.Draw(nowhere)
    rows = content.report_rows(record)
    head = _draw_head(scratch, record, cached)
    heights = [max(_draw_stack(scratch, sections, 0, 0) for sections in row) for row in rows]
    body = max(sum(heights), _WELL_WIDTH)
    heights[-1] += body - sum(heights)
    explained = _draw_sentences(nowhere, record, image, 0)
    judged = _draw_judged(scratch, record, 0)

    canvas = Image.new("RGB", (WIDTH, head + body + explained + judged + _FOOT), LIGHT["paper"])
    pen = ImageDraw.Draw(canvas)
    _draw_head(pen, record, cached)
    _rule(pen, 0, head - 2)
    _draw_well(canvas, image, head, body)
    if len(rows[0]) == 2:
        pen.rectangle((WIDTH - _COLUMN, head, WIDTH, head + body - 1), fill=LIGHT["sunk"])
    y = head
    for row, height in zip(rows, heights, strict=True):
        if y > head:
            _rule(pen, _WELL_WIDTH, y)
        for column, sections in enumerate(row):
            _draw_stack(pen, sections, _WELL_WIDTH + column * _COLUMN + _PAD, y)
        y += height
    _rule(pen, 0, y)
    y += _draw_sentences(canvas, record, image, y)
    _rule(pen, 0, y)
    _draw_judged(pen, record, y)
    y = canvas.height - _FOOT
    _rule(pen, 0, y)
    pen.text((_PAD, y + _FOOT // 2), content.FOOTER, LIGHT["muted"], font(_SMALL), anchor="lm")
    return canvas


def _draw_head(pen: ImageDraw.ImageDraw, record: Mapping[str, Any], cached: bool) -> int:
    """The study on the left; what made its report over the reference's column."""
    width = WIDTH - _COLUMN - 2 * _PAD
    y = _PAD - 10
    eyebrow = ", ".join(filter(None, [content.image_title(record), content.place(record)]))
    y += _draw_text(pen, eyebrow, (_PAD, y), Font(_SMALL, LIGHT["muted"]), width, 1)
    y += 8 + _draw_text(pen, content.study_title(record), (_PAD, y), Font(_TITLE, style="-Bold"), width, 2)
    if indication := content.clean(record.get("indication")):
        label = int(font(_SMALL).getlength("Indication")) + 24
        pen.text((_PAD, y + 16), "Indication", LIGHT["muted"], font(_SMALL))
        y += 14 + _draw_text(pen, indication, (_PAD + label, y + 14), Font(_BODY), width - label, 4)
    left, y = y, _PAD - 10
    x, width = WIDTH - _COLUMN + _PAD, _COLUMN - 2 * _PAD - 130
    for key, value in content.facts(record, cached):
        pen.text((x, y), key, LIGHT["muted"], font(_SMALL))
        y += _draw_text(pen, value, (x + 130, y), Font(_SMALL), width, 2)
    return max(left, y) + 40


def _draw_well(canvas: Image.Image, image: Image.Image | None, top: int, height: int) -> None:
    pen = ImageDraw.Draw(canvas)
    pen.rectangle((0, top, _WELL_WIDTH - 1, top + height - 1), fill=WELL["well"])
    if image is None:
        middle = (_WELL_WIDTH // 2, top + height // 2)
        pen.text(middle, content.NO_IMAGE, WELL["well-ink"], font(_BODY), anchor="mm")
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
        bold = font(_SMALL, "-Bold")
        color = LIGHT["accent"] if section.author == content.AUTHORS["generated"] else LIGHT["muted"]
        pen.text((x, y), section.author, color, bold)
        pen.text((x + bold.getlength(section.author + " "), y), section.name, LIGHT["ink"], bold)
        y += LINE + 6
        if section.flag:
            right = x + int(font(_SMALL).getlength(section.flag)) + 28
            pen.rounded_rectangle((x, y, right, y + 44), radius=8, outline=LIGHT["muted"], width=2)
            pen.text((x + 14, y + 22), section.flag, LIGHT["ink"], font(_SMALL), anchor="lm")
            y += 62
        empty = (content.Piece(content.EMPTY),)
        ink = Font(_BODY, LIGHT["ink"] if section.text else LIGHT["muted"])
        block = TextBlock(section.pieces if section.text else empty, ink, width, MAX_LINES[section.name], count=True)
        y += block.draw(pen, x, y) + 36
    return y - top + _PAD - 50


def _draw_sentences(canvas: Image.Image, record: Mapping[str, Any], image: Image.Image | None, top: int) -> int:
    """What each generated sentence rests on, as small multiples, with how far it is to be trusted."""
    sentences = content.explained(record)
    if not sentences:
        return 0
    pen, bold, y = ImageDraw.Draw(canvas), font(_SMALL, "-Bold"), top + 40
    pen.text((_PAD, y), content.SENTENCES_TITLE, LIGHT["ink"], bold)
    left_out = f" {len(sentences) - _MULTIPLES} more sentences not shown." if len(sentences) > _MULTIPLES else ""
    x = _PAD + int(bold.getlength(content.SENTENCES_TITLE)) + 20
    note = content.sentences_note(record) + left_out
    y += _draw_text(pen, note, (x, y), Font(_SMALL, LIGHT["muted"]), WIDTH - _PAD - x, 3) + 18
    for first in range(0, min(len(sentences), _MULTIPLES), _ABREAST):
        heights = []
        for place, sentence in enumerate(sentences[first : min(first + _ABREAST, _MULTIPLES)]):
            heights.append(_draw_sentence(canvas, sentence, image, _PAD + place * (_MULTIPLE + _GAP), y))
        y += max(heights) + 36
    return y - top


def _draw_sentence(canvas: Image.Image, sentence: Sentence, image: Image.Image | None, x: int, top: int) -> int:
    pen, y = ImageDraw.Draw(canvas), top
    if sentence.map and image:
        canvas.paste(with_map(image, sentence.map, _MULTIPLE), (x, y))
        y += _MULTIPLE + 14
    y += TextBlock((sentence.piece,), Font(_SMALL), _MULTIPLE, 4).draw(pen, x, y)
    for remark in sentence.remarks:
        doubtful = remark.startswith("low")
        ink = Font(_REMARK, LIGHT["ink" if doubtful else "muted"], "-Bold" if doubtful else "")
        y += TextBlock((content.Piece(remark),), ink, _MULTIPLE, 2, step=34).draw(pen, x, y)
    return y - top


def _draw_judged(pen: ImageDraw.ImageDraw, record: Mapping[str, Any], top: int) -> int:
    """Chips in groups, and the scores under the reference's column or, without chips, on the left."""
    groups = [
        (title, trust, [(c.verdict, c.glyph, c.words, c.verdict, c.detail) for c in chips])
        for title, trust, chips in content.chip_groups(record)
    ]
    if flags := content.flag_words(record):
        chips = [("warning", content.FLAG_GLYPH, words, "", "") for words in flags]
        groups.append((content.FLAGS_TITLE, content.RULES, chips))
    y = top + 40
    for title, trust, chips in groups:
        bold = font(_SMALL, "-Bold")
        pen.text((_PAD, y), title, LIGHT["ink"], bold)
        pen.text((_PAD + bold.getlength(title) + 20, y), trust, LIGHT["muted"], font(_SMALL))
        y += 54 + _draw_chips(pen, chips, y + 54) + 32
    scores = content.score_values(record)
    if scores:
        x = left = WIDTH - _COLUMN + _PAD if groups else _PAD
        for name, value in scores:
            pen.text((x, top + 40), name, LIGHT["muted"], font(_SMALL))
            pen.text((x, top + 76), value, LIGHT["ink"], font(_SCORE, "-Bold"))
            x += 176
        note = Font(_SMALL, LIGHT["muted"])
        y = max(y, top + 132 + _draw_text(pen, content.scores_note(record), (left, top + 140), note, 680, 3))
    return y - top + 12 if groups or scores else 0


def _draw_chips(pen: ImageDraw.ImageDraw, chips: Sequence[tuple[str, str, str, str, str]], top: int) -> int:
    """Chips of (sign, glyph, words, verdict, detail), in as many lines as they need."""
    x, y, height = _PAD, top, 60
    for sign, glyph, words, verdict, detail in chips:
        texts = [(words, "ink", ""), (verdict, "ink", "-Bold"), (detail, "muted", "")]
        shown = [(text, color, font(_SMALL, style)) for text, color, style in texts if text]
        start = 66 if glyph else 24
        width = start + sum(int(face.getlength(text)) + 18 for text, _, face in shown) + 10
        if x > _PAD and x + width > WIDTH - _COLUMN - _PAD:
            x, y = _PAD, y + height + 16
        pen.rounded_rectangle((x, y, x + width, y + height), radius=height // 2, outline=LIGHT["line"], width=2)
        if glyph:
            pen.ellipse((x + 9, y + 9, x + 51, y + 51), fill=SIGN_COLORS[sign])
            pen.text((x + 30, y + 30), glyph, GLYPH_INK, font(_SMALL, "-Bold"), anchor="mm")
        at = x + start
        for text, color, face in shown:
            pen.text((at, y + 30), text, LIGHT[color], face, anchor="lm")
            at += int(face.getlength(text)) + 18
        x += width + 16
    return y - top + height


def _draw_text(pen: ImageDraw.ImageDraw, text: str, where: tuple[int, int], ink: Font, width: int, limit: int) -> int:
    return TextBlock((content.Piece(text),), ink, width, limit).draw(pen, *where)


def _rule(pen: ImageDraw.ImageDraw, x: int, y: int) -> None:
    pen.line((x, y, WIDTH, y), fill=LIGHT["line"], width=2)
