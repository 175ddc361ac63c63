"""A report card: one prediction record as HTML, PNG and plain text, the generated report beside the reference.

The card is a pure function of its record and image; it loads no model and no script, and reads the same in a notebook
that is not trusted, in JupyterLab, VS Code and Colab, and as a file of its own.
"""

from __future__ import annotations

import base64
import copy
import io
import json
import os
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

from radvision_utils.config import RadVisionError
from radvision_utils.dashboard import content, picture
from radvision_utils.dashboard.markup import VERDICT_COLORS, card_style, document, element, escape
from radvision_utils.runs import write_text

IMAGE_SIDE = 512  # pixels; more is not seen at the width of a card
IMAGE_BYTES = 100_000
_LONG = 1500  # characters; a longer text may scroll within its column, so the keyboard must reach it
_ALONE = (
    "body{margin:0;padding:24px 16px;background:var(--rv-sunk)}body>.rv-card{margin:0 auto!important}"
    "@page{size:landscape;margin:12mm}@media print{body{padding:0}}"
)
_REQUIRED = ("uid", "generated", "reference", "model")


@dataclass(frozen=True)
class ReportCard:
    """A prediction record to look at.

    Attributes:
        record: one line of `predictions.jsonl`.
        image: the radiograph, as a file or encoded bytes; None shows an empty well.
        cached: whether the report was read from a file rather than generated for this card.
    """

    record: Mapping[str, Any]
    image: Path | bytes | None = field(default=None, repr=False)
    cached: bool = True

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

    def article(self, anchor: str = "", image_bytes: int = IMAGE_BYTES) -> str:
        """The card alone, for a page that has the style sheet; `anchor` is its id there."""
        attributes = {"id": anchor} if anchor else {}
        return element(
            "article",
            "card",
            _head(self.record, self.cached),
            element("div", "body", self._well(image_bytes), _texts(self.record)),
            _judged(self.record),
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
        for key, value in content.facts(record, self.cached):
            lines += _filled(f"{key}: ", value)
        for row in content.report_rows(record):
            for section in (*row.generated, *row.reference):
                flag = f" [{section.flag}]" if section.flag else ""
                lines += ["", section.title + flag, *_filled("  ", section.text or content.EMPTY)]
        if scores := content.score_values(record):
            lines += ["", "   ".join(f"{name} {value}" for name, value in scores), content.SCORES_NOTE]
        if chips := content.chips(record):
            lines += ["", content.FINDINGS_TITLE, *(f"  {c.glyph} {c.words}: {c.verdict}" for c in chips)]
        return "\n".join([*lines, "", content.FOOTER])

    def to_dict(self) -> dict[str, Any]:
        """The record as a JSON-like dictionary of its own, with `cached`."""
        return {**copy.deepcopy(dict(self.record)), "cached": self.cached}

    def save(self, path: str | Path) -> Path:
        """Write the card as a standalone `.html` page or a `.png` picture; returns the path.

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
            drawn.save(part, "PNG", pnginfo=about)
            os.replace(part, path)
        else:
            raise RadVisionError(f"a card is saved as .html or .png, not as {path.name!r}: change the file's name.")
        return path

    def _well(self, image_bytes: int) -> str:
        image = open_image(self.image)
        if image is None:
            inside = element("p", "no-image", content.NO_IMAGE)
        else:
            inside = element(
                "img",
                "image",
                src=data_uri(image, image_bytes),
                alt=f"{content.image_title(self.record)} of {content.study_title(self.record).lower()}",
                width=str(image.width),
                height=str(image.height),
                loading="lazy",
                decoding="async",
            )
        return element("figure", "well", inside)


def read_predictions(path: Path) -> list[dict[str, Any]]:
    """The records of a `predictions.jsonl` file, in its order; blank lines are skipped.

    Raises:
        RadVisionError: the file is missing, or a line is no prediction record; the sentence names the line.
    """
    if not path.is_file():
        run = path.parent.parent.name or "NAME"  # outputs/<run>/evaluation/predictions.jsonl
        raise RadVisionError(f"{path} does not exist: make it with `python -m radvision_utils run --run {run}`.")
    records = []
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except json.JSONDecodeError as error:
                raise RadVisionError(
                    f"line {number} of {path} is no JSON ({error.msg}): delete the file and run the evaluation again."
                ) from error
            missing = [name for name in _REQUIRED if not isinstance(record, dict) or name not in record]
            if missing:
                raise RadVisionError(
                    f"line {number} of {path} is no prediction record (it lacks {', '.join(missing)}): "
                    "delete the file and run the evaluation again."
                )
            records.append(record)
    return records


def image_path(record: Mapping[str, Any], root: Path) -> Path | None:
    """The file of a record's image under the run folder, or None where the record has none.

    Raises:
        RadVisionError: the path leaves the run folder; a page must not embed files from elsewhere.
    """
    if not record.get("image"):
        return None
    relative = Path(record["image"])
    if relative.is_absolute() or ".." in relative.parts:
        raise RadVisionError(
            f"the image {str(relative)!r} of study {record['uid']} lies outside the run folder: "
            "give a path relative to it."
        )
    return root / relative


def open_image(source: Path | bytes | None) -> Image.Image | None:
    """A radiograph as an 8-bit grayscale picture of at most `IMAGE_SIDE` pixels a side.

    Raises:
        RadVisionError: the file is missing, or it is no image.
    """
    if source is None:
        return None
    where = "the image given as bytes" if isinstance(source, bytes) else f"the image {source}"
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as opened:
            image = opened.convert("L")
    except FileNotFoundError as error:
        raise RadVisionError(f"{where} does not exist: prepare the run's data again, or give another path.") from error
    except (UnidentifiedImageError, OSError) as error:
        raise RadVisionError(f"{where} cannot be read ({error}): give a PNG or JPEG file.") from error
    image.thumbnail((IMAGE_SIDE, IMAGE_SIDE), Image.Resampling.LANCZOS)
    return image


def data_uri(image: Image.Image, limit: int) -> str:
    """The picture as a JPEG data URI of at most about `limit` bytes, as good as fits."""
    encoded = b""
    for quality in (90, 82, 72, 60, 45, 30):
        stream = io.BytesIO()
        image.save(stream, "JPEG", quality=quality, optimize=True)
        encoded = base64.b64encode(stream.getvalue())
        if len(encoded) <= limit:
            break
    return "data:image/jpeg;base64," + encoded.decode()


def _head(record: Mapping[str, Any], cached: bool) -> str:
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
        for key, value in content.facts(record, cached)
    ]
    return element("header", "head", element("div", "title", *title), element("dl", "meta", *pairs))


def _texts(record: Mapping[str, Any]) -> str:
    rows = []
    for row in content.report_rows(record):
        cells = [
            element("div", "cell", *map(_section, sections), class_=f"rv-of-{sections[0].author.lower()}")
            for sections in (row.generated, row.reference)
        ]
        rows.append(element("div", "row", *cells))
    return element("div", "texts", *rows)


def _section(section: content.Section) -> str:
    name = element(
        "h3", "name", element("span", section.author.lower(), escape(section.author)), " ", escape(section.name)
    )
    flag = element("p", "flag", escape(section.flag)) if section.flag else ""
    if not section.text:
        return element("section", "section", name, flag, element("p", "empty", content.EMPTY))
    reach = {"tabindex": "0", "role": "group", "aria_label": section.title} if len(section.text) > _LONG else {}
    return element("section", "section", name, flag, element("p", "text", escape(section.text), dir="auto", **reach))


def _judged(record: Mapping[str, Any]) -> str:
    parts = []
    if chips := content.chips(record):
        items = [
            element(
                "li",
                "chip",
                element("span", "glyph", chip.glyph, style=f"background-color:{VERDICT_COLORS[chip.verdict]}"),
                escape(chip.words),
                element("span", "verdict", chip.verdict),
                class_=f"rv-{chip.verdict}",
            )
            for chip in chips
        ]
        title = element("h3", "name", content.FINDINGS_TITLE)
        parts.append(element("section", "findings", title, element("ul", "chips", *items)))
    if scores := content.score_values(record):
        pairs = [
            element("div", "score", element("dt", "score-name", name), element("dd", "score-value", value))
            for name, value in scores
        ]
        note = element("p", "note", content.SCORES_NOTE)
        parts.append(element("section", "scores", element("dl", "fact", *pairs), note))
    return element("div", "judged", *parts) if parts else ""


def _filled(start: str, text: str) -> list[str]:
    """Lines of at most 80 columns; the text's own line breaks are kept."""
    lines: list[str] = []
    for paragraph in text.splitlines():
        lines += textwrap.wrap(paragraph, 80, initial_indent=start, subsequent_indent="  ")
    return lines
