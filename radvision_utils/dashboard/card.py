"""A report card: one prediction record as HTML, PNG and plain text, the generated report beside the reference.

The card is a pure function of its record and image; it loads no model and no script, and reads the same in a notebook
that is not trusted, in JupyterLab, VS Code and Colab, and as a file of its own.
"""

from __future__ import annotations

import copy
import os
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from radvision_utils.config import RadVisionError
from radvision_utils.dashboard import content, picture
from radvision_utils.dashboard.images import View, data_uri, open_image, windowed
from radvision_utils.dashboard.maps import squared
from radvision_utils.dashboard.markup import card_style, document, element, escape
from radvision_utils.dashboard.sentences import numbers, overlays, piece_html, sentence_list, sign, switch
from radvision_utils.runs import write_text

IMAGE_BYTES = 100_000
_LONG = 1500  # characters; a longer text may scroll within its column, so the keyboard must reach it
_ALONE = (
    "body{margin:0;padding:24px 16px;background:var(--rv-sunk)}body>.rv-card{margin:0 auto!important}"
    "@page{size:landscape;margin:12mm}@media print{body{padding:0}}"
)


@dataclass(frozen=True)
class ReportCard:
    """A prediction record to look at.

    Attributes:
        record: one line of `predictions.jsonl`.
        image: the radiograph, as a file or encoded bytes; None shows an empty well.
        cached: whether the report was read from a file rather than generated for this card.
        view: window, inversion and zoom of the radiograph and what is shown of its evidence, in the HTML.
        blind: which author is report A and which is B, with everything left out that would tell; None names them.
    """

    record: Mapping[str, Any]
    image: Path | bytes | None = field(default=None, repr=False)
    cached: bool = True
    view: View = field(default_factory=View)
    blind: tuple[str, str] | None = None

    def __str__(self) -> str:
        return self.text()

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, str]:
        return {"text/html": self.html(), "text/plain": self.text()}

    def html(self) -> str:
        """The card with its style sheet, for a notebook or any page.

        Raises:
            RadVisionError: the image is missing or unreadable, or the record does not fit a card.
        """
        return f'<style>{card_style()}</style><div class="rv-theme">{self.article()}</div>'

    def article(self, image_bytes: int = IMAGE_BYTES, **attributes: str) -> str:
        """The card alone, for a page that has the style sheet; `attributes` are its element's, as of `element`."""
        image, rows = open_image(self.image), self._rows()
        return element(
            "article",
            "card",
            _head(self.record, [] if self.blind else content.facts(self.record, self.cached)),
            element("div", "body", self._well(image, image_bytes), self._texts(rows, image)),
            "" if self.blind else _judged(self.record) + numbers(self.record) + _changes(self.record),
            element("footer", "foot", escape(content.FOOTER)),
            aria_label=f"Report card of {content.study_title(self.record).lower()}",
            **attributes,
        )

    def text(self) -> str:
        """The card in plain text, at most 80 columns wide but for words longer than that."""
        record = self.record
        title = ", ".join(filter(None, [content.study_title(record), content.image_title(record).lower()]))
        lines = [title + (f" ({content.place(record)})" if content.place(record) else "")]
        if indication := content.clean(record.get("indication")):
            lines += _filled("Indication: ", indication)
        for key, value in [] if self.blind else content.facts(record, self.cached):
            lines += _filled(f"{key}: ", value)
        for row in self._rows():
            for section in (section for column in row for section in column):
                flag = f" [{section.flag}]" if section.flag else ""
                lines += ["", section.title + flag, *_section_lines(section)]
        return "\n".join([*lines, *([] if self.blind else _judged_lines(record)), "", content.FOOTER])

    def to_dict(self) -> dict[str, Any]:
        """The record as a JSON-like dictionary of its own, with `cached`."""
        return {**copy.deepcopy(dict(self.record)), "cached": self.cached}

    def save(self, path: str | Path, width: int = picture.WIDTH) -> Path:
        """Write the card as a standalone `.html` page or a `.png` picture; returns the path.

        Args:
            path: the file; folders are made.
            width: of a picture, in pixels.

        Raises:
            RadVisionError: the file name ends in neither.
        """
        path = Path(path)
        if path.suffix == ".html":
            write_text(path, document(content.study_title(self.record), card_style() + _ALONE, self.article()))
        elif path.suffix == ".png":
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_name(f".{path.name}.part")
            about = PngInfo()
            about.add_itxt("Title", content.study_title(self.record))
            about.add_itxt("Disclaimer", content.FOOTER)
            drawn = picture.draw_card(self.record, open_image(self.image), self.cached)
            if width != drawn.width:
                drawn = drawn.resize((width, round(drawn.height * width / drawn.width)), Image.Resampling.LANCZOS)
            drawn.save(part, "PNG", pnginfo=about, optimize=True)
            os.replace(part, path)
        else:
            raise RadVisionError(f"a card is saved as .html or .png, not as {path.name!r}: change the file's name.")
        return path

    def _rows(self) -> list[content.Row]:
        return content.blind_rows(self.record, self.blind) if self.blind else content.report_rows(self.record)

    def _well(self, image: Image.Image | None, image_bytes: int) -> str:
        if image is None:
            return element("figure", "well", element("p", "no-image", content.NO_IMAGE))
        explained = [] if self.blind else [s for s in content.explained(self.record) if s.map]
        image = squared(image) if explained else image
        zoomed = self.view.zoom > 1
        size = f"width:{self.view.zoom:.0%};max-width:none" if zoomed else ""
        shown = element(
            "img",
            "image",
            src=data_uri(windowed(image, self.view), image_bytes),
            alt=f"{content.image_title(self.record)} of {content.study_title(self.record).lower()}",
            width=str(image.width),
            height=str(image.height),
            loading="lazy",
            decoding="async",
        )
        zoom = {"class_": "rv-zoomed"} if zoomed else {}
        strength = "" if self.view.map_strength is None else f"--rv-strength:{self.view.map_strength:.2f}"
        style = ";".join(filter(None, [size, strength]))
        stack = element("div", "stack", shown, overlays(explained), style=style, **zoom)
        reach = {"tabindex": "0", "role": "group", "aria_label": "Enlarged radiograph, scrolls"} if zoomed else {}
        view = element("div", "view", stack, style="max-height:640px;overflow:auto" if zoomed else "", **reach)
        meaning = switch(explained, self.view.map_strength is not None) if explained else ""
        return element("figure", "well", view, meaning)

    def _texts(self, rows: list[content.Row], image: Image.Image | None) -> str:
        lines = []
        for row in rows:
            cells = [element("div", "cell", *(self._section(part, image) for part in column)) for column in row]
            lines.append(element("div", "row", *cells))
        return element("div", "texts", *lines)

    def _section(self, section: content.Section, image: Image.Image | None) -> str:
        author = "generated" if section.author == content.AUTHORS["generated"] else "reference"
        name = element("h3", "name", element("span", author, escape(section.author)), " ", escape(section.name))
        flag = element("p", "flag", escape(section.flag)) if section.flag else ""
        if not section.text:
            return element("section", "section", name, flag, element("p", "empty", content.EMPTY))
        reach = {"tabindex": "0", "role": "group", "aria_label": section.title} if len(section.text) > _LONG else {}
        if section.sentences:
            return element("section", "section", name, flag, sentence_list(section, image, self.view, **reach))
        words = element("p", "text", *map(piece_html, section.pieces), dir="auto", **reach)
        return element("section", "section", name, flag, words)


def _head(record: Mapping[str, Any], facts: list[tuple[str, str]]) -> str:
    eyebrow = ", ".join(filter(None, [content.image_title(record), content.place(record)]))
    title = [
        element("p", "eyebrow", escape(eyebrow)),
        element("h2", "study", escape(content.study_title(record)), dir="auto"),
    ]
    if indication := content.clean(record.get("indication")):
        words = element("span", "label", "Indication") + f'<bdi dir="auto">{escape(indication)}</bdi>'
        title.append(element("p", "indication", words))
    pairs = [
        element("div", "fact", element("dt", "key", escape(key)), element("dd", "value", escape(value), dir="auto"))
        for key, value in facts
    ]
    made = element("dl", "meta", *pairs) if pairs else ""
    return element("header", "head", element("div", "title", *title), made)


def _judged(record: Mapping[str, Any]) -> str:
    groups = [
        _group(title, trust, [_chip(chip) for chip in chips]) for title, trust, chips in content.chip_groups(record)
    ]
    if flags := content.flag_words(record):
        chips = [element("li", "chip", sign("glyph", "warning", content.FLAG_GLYPH), escape(words)) for words in flags]
        groups.append(_group(content.FLAGS_TITLE, content.RULES, chips))
    parts = [element("div", "verdicts", *groups)] if groups else []
    if scores := content.score_values(record):
        pairs = [
            element("div", "score", element("dt", "score-name", name), element("dd", "score-value", value))
            for name, value in scores
        ]
        note = element("p", "note", content.scores_note(record))
        parts.append(element("section", "scores", element("dl", "fact", *pairs), note))
    return element("div", "judged", *parts) if parts else ""


def _group(title: str, trust: str, chips: list[str]) -> str:
    tag = element("span", "tag", trust) if trust else ""
    return element("section", "group", element("h3", "name", title, tag), element("ul", "chips", *chips))


def _chip(chip: content.Chip) -> str:
    if not chip.verdict:
        detail = [element("span", "detail", escape(chip.detail))] if chip.detail else []
        return element("li", "plain-chip", " ".join([escape(chip.words), *detail]))
    parts = [sign("glyph", chip.verdict, chip.glyph) + escape(chip.words), element("span", "verdict", chip.verdict)]
    parts += [element("span", "detail", escape(chip.detail))] if chip.detail else []
    return element("li", "chip", " ".join(parts))


def _changes(record: Mapping[str, Any]) -> str:
    """The word differences, folded until they are asked for."""
    lines = []
    for name, changes in content.changes(record):
        words = [
            {"both": escape, "generated": _ours, "reference": _theirs}[change.found_in](change.text)
            for change in changes
        ]
        lines.append(element("p", "change", element("span", "label", escape(name)), " ".join(words), dir="auto"))
    if not lines:
        return ""
    key = element("p", "note", _ours("only in the generated report"), " ", _theirs("only in the reference"))
    return element("details", "changes", element("summary", "summary", content.CHANGES_TITLE), key, *lines)


def _ours(words: str) -> str:
    return element("ins", "ours", escape(words))


def _theirs(words: str) -> str:
    return element("del", "theirs", escape(words))


def _section_lines(section: content.Section) -> list[str]:
    if not section.sentences:
        return _filled("  ", "".join(map(_signed, section.pieces)) or content.EMPTY)
    lines = []
    for sentence in section.sentences:
        where = [f"evidence: {sentence.map.where}"] if sentence.map else []
        remarks = "; ".join([*sentence.remarks, *where])
        lines += _filled("  ", _signed(sentence.piece) + (f" ({remarks})" if remarks else ""))
    return lines


def _signed(piece: content.Piece) -> str:
    return f"{piece.text} [{content.VERDICTS[piece.verdict]}]" if piece.verdict else piece.text


def _judged_lines(record: Mapping[str, Any]) -> list[str]:
    lines = []
    for title, trust, chips in content.chip_groups(record):
        lines += ["", title + (f" ({trust})" if trust else "")]
        for chip in chips:
            judged = f"{chip.glyph} {chip.words}: {chip.verdict}" if chip.verdict else chip.words
            lines += _filled("  ", judged + (f" ({chip.detail})" if chip.detail else ""))
    if flags := content.flag_words(record):
        lines += ["", f"{content.FLAGS_TITLE} ({content.RULES})", *(f"  {content.FLAG_GLYPH} {flag}" for flag in flags)]
    if scores := content.score_values(record):
        lines += [
            "",
            "   ".join(f"{name} {value}" for name, value in scores),
            *_filled("", content.scores_note(record)),
        ]
    return lines


def _filled(start: str, text: str) -> list[str]:
    """Lines of at most 80 columns; the text's own line breaks are kept."""
    lines: list[str] = []
    for paragraph in text.splitlines():
        lines += textwrap.wrap(paragraph, 80, initial_indent=start, subsequent_indent="  ")
    return lines
