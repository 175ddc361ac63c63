"""Sentences of a report as HTML: marked for their verdicts, with confidence in words and evidence on the radiograph.

The card works without a script: the sheet shows a sentence's map while the sentence is pointed at or has the focus, as
strongly as the card's own switch says; each sentence has its map as a small picture besides.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from radvision_utils.dashboard import content, evidence, maps
from radvision_utils.dashboard.evidence import Sentence
from radvision_utils.dashboard.images import View
from radvision_utils.dashboard.markup import OVERLAYS, SIGN_COLORS, STRENGTHS, element, escape, mark_style

THUMB = 64  # pixels in the page
_JOINER = "\N{WORD JOINER}"  # keeps a sign on the line of its sentence's last word
_SWITCH = "Evidence on the radiograph"
_HOW = "Point at a generated sentence, or tab to it. "
_HOW_CHOSEN = "The Evidence slider sets the strength. "
_NUMBERS = "Numbers behind the sentences"


def piece_html(piece: content.Piece) -> str:
    """A stretch of a report; a sentence behind a verdict is underlined and followed by its glyph."""
    if not piece.verdict:
        return escape(piece.text)
    why = f"{piece.verdict}: {', '.join(piece.observations)} ({content.RULES})"
    mark = sign("sign", piece.verdict, content.VERDICTS[piece.verdict], title=why, role="img", aria_label=why)
    style = mark_style(piece.verdict)
    return element("mark", "mark", escape(piece.text), class_=f"rv-{piece.verdict}", style=style) + _JOINER + mark


def sign(part: str, kind: str, glyph: str, **attributes: str) -> str:
    """A glyph on its color; `kind` is a verdict or "warning"."""
    style = f"background-color:{SIGN_COLORS[kind]}"
    return element("span", part, glyph, class_=f"rv-{kind}", style=style, **attributes)


def sentence_list(section: content.Section, image: Image.Image | None, view: View, **reach: str) -> str:
    """The sentences of a section one under the other, those below the view's agreement left out and counted.

    Args:
        section: has `sentences`.
        image: the radiograph, for the small pictures; None leaves them out.
        view: which sentences to hide.
        reach: attributes that make a long list reachable by keyboard.
    """
    shown = [sentence for sentence in section.sentences if not evidence.below(sentence, view.least_agreement)]
    hidden = len(section.sentences) - len(shown)
    samples = max((s.confidence.samples for s in section.sentences if s.confidence), default=0)
    note = evidence.hidden_words(hidden, view.least_agreement, samples) if hidden else ""
    items = [_sentence(sentence, image) for sentence in shown]
    return element("ol", "sentences", *items, dir="auto", **reach) + element("p", "hidden", note, role="status")


def _sentence(sentence: Sentence, image: Image.Image | None) -> str:
    parts = [element("span", "words", piece_html(sentence.piece))]
    sure = sentence.confidence
    if sentence.remarks:
        first, *others = map(escape, sentence.remarks)
        if sure and sure.words.startswith("low"):
            first = element("strong", "doubtful", first)
        parts.append(element("p", "remarks", "; ".join([first, *others]), **({"title": sure.figures} if sure else {})))
    if sentence.map and image:
        side = str(THUMB)
        source = maps.thumb_uri(image, sentence.map, round(THUMB * 1.25))  # for screens of more pixels
        parts.append(
            element("img", "thumb", src=source, alt=sentence.map.description, width=side, height=side, loading="lazy")
        )
    about: dict[str, str] = {"class_": f"rv-s{sentence.number}", "tabindex": "0"} if sentence.map and image else {}
    if sure and sure.agreement is not None:
        about["data_agreement"] = str(sure.agreement)
    return element("li", "sentence", *parts, **about)


def overlays(sentences: Sequence[Sentence]) -> str:
    """The maps that lie over the radiograph, out of sight until their sentence is pointed at."""
    return "".join(
        element(
            "img",
            "map",
            src=maps.map_uri(s.map),
            alt="",
            width="0",
            height="0",
            loading="lazy",
            class_=f"rv-m{s.number}" + (" rv-unsupported" if not s.map.supported else ""),
        )
        for s in sentences
        if s.map and s.number <= OVERLAYS
    )


def switch(sentences: Sequence[Sentence], chosen: bool) -> str:
    """How strongly maps lie over the radiograph, "off" at first, and what their colors mean.

    Args:
        sentences: some with a map.
        chosen: the strength was chosen outside of the card: no switch, only the meaning of the colors.
    """
    buttons = [
        element(
            "label",
            "strength",
            f'<input type="radio" name="map" value="{name}"{" checked" if name == "off" else ""}>',
            f"<span>{name}</span>",
        )
        for name in STRENGTHS
    ]
    scale = element("span", "scale-name", "least") + element("span", "scale") + element("span", "scale-name", "most")
    doubted = any(s.map and not s.map.supported for s in sentences)
    words = _HOW + _HOW_CHOSEN * chosen + evidence.MEANING + " Gray and hatched: not supported by occlusion." * doubted
    inside = [element("p", "switch-name", _SWITCH), "" if chosen else element("div", "strengths", *buttons)]
    # Radio buttons belong together within their form only, so two cards of a study do not meddle with each other;
    # the method "dialog" sends nothing anywhere.
    return element(
        "form", "switch", *inside, element("p", "scales", scale), element("p", "how", words), method="dialog",
        role="group", aria_label=_SWITCH,
    )  # fmt: skip


def numbers(record: Mapping[str, Any]) -> str:
    """The figures behind the words, folded until they are asked for; "" where there are none."""
    sentences = content.explained(record)
    if not sentences:
        return ""
    columns: dict[str, list[str]] = {}
    if any(s.confidence for s in sentences):
        sure = [s.confidence for s in sentences]
        columns["Likely right"] = [c.percent if c else "" for c in sure]
        columns["Sampled reports"] = [
            f"{c.agreement} of {c.samples}" if c and c.agreement is not None else "" for c in sure
        ]
        columns["Nats a token"] = [f"{c.log_probability:.2f}" if c else "" for c in sure]
    if any(s.map for s in sentences):
        maps_ = [s.map for s in sentences]
        columns["Evidence map"] = [m.description.removeprefix("Evidence map: ") if m else "" for m in maps_]
        likeness = [m.correlation if m else None for m in maps_]
        columns["Rank correlation with the gradient's map"] = ["" if c is None else f"{c:.2f}" for c in likeness]
    lines = []
    for sentence, *cells in zip(sentences, *columns.values(), strict=True):
        words = element("th", "number", escape(sentence.piece.text), scope="row")
        values = (element("td", "number", escape(cell) or "\N{EN DASH}") for cell in cells)
        lines.append(f"<tr>{words}{''.join(values)}</tr>")
    head = "".join(element("th", "number", escape(name), scope="col") for name in ("Sentence", *columns))
    table = element("table", "numbers", f"<thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody>")
    notes = [evidence.WORDS_OF_CONFIDENCE, evidence.CALIBRATED] if record.get("confidence") else []
    notes += [evidence.MEANING] if record.get("evidence") else []
    note = element("p", "note", " ".join(notes))
    reach = {"tabindex": "0", "role": "group", "aria_label": f"{_NUMBERS}, scrolls sideways"}
    wide = element("div", "wide", table, **reach)
    return element("details", "changes", element("summary", "summary", _NUMBERS), note, wide)
