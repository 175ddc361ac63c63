"""How the dashboard's HTML is built: escaped elements, the two palettes, the style sheet, whole documents.

Notebooks that are not trusted lose `<style>`, scripts and most attributes, and JupyterLab then keeps only plain values
of plain properties (no `var()`, no `flex-wrap`, no `ch`). So every element carries an inline base that survives this,
a readable light card whose parts wrap, and `card.css` refines it; it needs `!important` to win over inline styles.
"""

from __future__ import annotations

import base64
import hashlib
import html
import re
from functools import cache
from importlib.resources import files
from urllib.parse import quote

LIGHT = {
    "paper": "#ffffff",
    "sunk": "#f3f5f7",
    "ink": "#171c22",
    "muted": "#55606c",
    "line": "#dbe0e6",
    "accent": "#00649c",
}
DARK = {
    "paper": "#14181d",
    "sunk": "#1b2027",
    "ink": "#e7ebef",
    "muted": "#a5afba",
    "line": "#303841",
    "accent": "#6cbdec",
}
WELL = {"well": "#040506", "well-ink": "#c5cdd5"}
"""The image lies on near-black in both themes, as on a reading room's screen."""

# Viridis at twelfths of its range: perceptually uniform, safe for color-blind readers (van der Walt and Smith, CC0).
VIRIDIS = (
    *("#440154", "#481f70", "#443983", "#3b528b", "#31688e", "#287c8e", "#21918c"),
    *("#20a486", "#35b779", "#5ec962", "#90d743", "#c8e020", "#fde725"),
)
STRENGTHS = {"off": 0.0, "faint": 0.35, "medium": 0.6, "strong": 0.85}
"""How opaque the strongest cell of an evidence map lies over the radiograph."""
OVERLAYS = 24
"""Maps at most that lie over a radiograph; every further sentence still has its small picture."""

VERDICT_COLORS = {"contradiction": "#d55e00", "missed": "#e69f00", "unsupported": "#cc79a7", "agree": "#009e73"}
"""Okabe and Ito's colors (jfly.uni-koeln.de/color), told apart by all common kinds of color vision."""
SIGN_COLORS = {**VERDICT_COLORS, "warning": "#f0e442"}
GLYPH_INK = "#07090b"

_FONT = "system-ui,-apple-system,'Segoe UI',Roboto,'Helvetica Neue',Arial,sans-serif"
_PART = "display:inline-block;vertical-align:top;box-sizing:border-box;max-width:100%"


def _share(percent: float, least: int) -> str:
    """A share of the line where the parent is at least `least` pixels wide, else the whole line; no media query."""
    return f"{_PART};width:{percent}%;min-width:{percent}%;width:calc(({least}px - 100%)*999)"


_SMALL = f"font-size:14px;color:{LIGHT['muted']}"
_HEADING = f"padding:0;border:0;font-weight:600;color:{LIGHT['ink']}"
# JupyterLab floats <dt> and <dd> at fixed shares of the line: each takes that back.
INLINE = {
    "card": f"max-width:1280px;margin:0;border:1px solid {LIGHT['line']};border-radius:12px;overflow:hidden;"
    f"background-color:{LIGHT['paper']};color:{LIGHT['ink']};font-family:{_FONT};font-size:16px;line-height:1.5;"
    "text-align:start;word-wrap:break-word",
    "head": "padding:20px 24px 18px",
    "title": _share(58, 600),
    "eyebrow": f"margin:0 0 2px;{_SMALL}",
    "study": f"margin:0;{_HEADING};font-size:26px;line-height:1.25",
    "indication": "margin:8px 0 0;max-width:33em;font-size:16px;line-height:1.5",
    "label": f"margin:0 8px 0 0;{_SMALL}",
    "meta": f"{_share(41, 600)};margin:0;font-size:14px;line-height:1.6",
    "fact": "margin:0;padding:0",
    "key": f"display:inline;float:none;width:auto;margin:0 8px 0 0;padding:0;font-weight:400;{_SMALL}",
    "value": "display:inline;float:none;width:auto;margin:0;padding:0",
    "body": f"border-top:1px solid {LIGHT['line']}",
    "well": f"{_share(34, 900)};margin:0;background-color:{WELL['well']};color:{WELL['well-ink']};text-align:center",
    "view": "margin:0",
    "stack": "max-width:512px;margin:0 auto",
    "image": "display:block;width:100%;max-width:512px;height:auto;margin:0 auto",
    # Without the sheet there is nothing to lay over the radiograph, nor to switch: the small pictures remain.
    "map": "display:none",
    "switch": "display:none",
    "switch-name": f"margin:0;font-size:14px;font-weight:600;color:{WELL['well-ink']}",
    "strengths": "margin:0",
    "strength": f"margin:0;font-size:14px;color:{WELL['well-ink']}",
    "scales": "margin:0",
    "scale": "margin:0",
    "scale-name": f"margin:0;font-size:14px;color:{WELL['well-ink']}",
    "how": f"margin:0;font-size:14px;line-height:1.5;color:{WELL['well-ink']}",
    "no-image": f"margin:0;padding:64px 24px;font-size:15px;color:{WELL['well-ink']}",
    "texts": _share(66, 900),
    "row": "margin:0",
    "cell": f"{_share(50, 560)};padding:18px 24px",
    "section": "margin:0",
    "name": f"margin:0 0 6px;{_HEADING};font-size:14px;line-height:1.5",
    "generated": f"color:{LIGHT['accent']}",
    "reference": f"color:{LIGHT['muted']}",
    "flag": f"display:inline-block;margin:0 0 8px;padding:1px 8px;border:1px solid {LIGHT['muted']};"
    f"border-radius:4px;font-size:14px;color:{LIGHT['ink']}",
    "text": "margin:0;max-width:33em;max-height:480px;overflow-y:auto;font-size:16px;line-height:1.55;"
    "white-space:pre-line",
    "sentences": "margin:0;padding:0;max-width:33em;max-height:900px;overflow-y:auto;font-size:16px;line-height:1.5;"
    "list-style:none",
    "sentence": "margin:0 0 10px;list-style:none",
    "words": "margin:0",
    "doubtful": f"font-weight:600;color:{LIGHT['ink']}",
    "remarks": f"margin:0;{_SMALL}",
    "thumb": "display:block;width:64px;height:64px;margin:4px 0 0",
    "hidden": f"margin:0;{_SMALL}",
    "wide": "max-width:100%;overflow-x:auto",
    "numbers": "margin:8px 0 0;border-collapse:collapse;font-size:14px",
    "number": f"padding:4px 16px 4px 0;border-bottom:1px solid {LIGHT['line']};background-color:{LIGHT['paper']};"
    f"text-align:left;vertical-align:top;font-weight:400;color:{LIGHT['ink']}",
    "empty": f"margin:0;font-size:16px;line-height:1.55;color:{LIGHT['muted']}",
    "mark": f"padding:0 0 1px;background-color:transparent;color:{LIGHT['ink']}",
    # Inline, not inline-block: only so can a word joiner keep it on the line of its sentence's last word.
    "sign": f"margin:0 2px 0 5px;padding:1px 5px;border-radius:9px;font-size:13px;font-weight:700;color:{GLYPH_INK}",
    "judged": f"padding:16px 24px 20px;border-top:1px solid {LIGHT['line']}",
    "verdicts": f"{_PART};margin:0 48px 0 0",
    "group": "margin:0 0 14px",
    "tag": f"margin:0 0 0 8px;font-weight:400;{_SMALL}",
    "scores": f"{_PART};margin:0",
    "score": "display:inline-block;margin:0 28px 8px 0",
    "score-name": f"margin:0;padding:0;float:none;width:auto;font-weight:400;{_SMALL}",
    "score-value": "margin:0;padding:0;float:none;width:auto;font-size:20px;font-weight:600;line-height:1.3",
    "note": f"margin:4px 0 0;max-width:33em;{_SMALL}",
    "chips": "margin:0;padding:0;list-style:none",
    "plain-chip": f"display:inline-block;margin:4px 8px 4px 0;padding:3px 12px;border:1px solid {LIGHT['line']};"
    f"border-radius:16px;font-size:15px;line-height:1.5;color:{LIGHT['ink']}",
    # The glyph hangs, so that a chip of several lines keeps its words under each other.
    "chip": f"display:inline-block;max-width:100%;box-sizing:border-box;margin:4px 8px 4px 0;padding:3px 12px 3px 34px;"
    f"border:1px solid {LIGHT['line']};border-radius:16px;font-size:15px;line-height:1.5;text-indent:-30px;"
    f"color:{LIGHT['ink']}",
    "glyph": f"display:inline-block;width:22px;margin:0 8px 0 0;border-radius:11px;font-weight:700;line-height:22px;"
    f"text-align:center;text-indent:0;color:{GLYPH_INK}",
    "verdict": "margin:0;font-weight:600",
    "detail": f"margin:0;{_SMALL}",
    "changes": f"margin:0;padding:12px 24px 14px;border-top:1px solid {LIGHT['line']};font-size:15px;line-height:1.6",
    "summary": f"font-size:14px;font-weight:600;color:{LIGHT['accent']};cursor:pointer",
    "change": "margin:8px 0 0;max-width:42em",
    "ours": f"text-decoration:none;border-bottom:2px solid {VERDICT_COLORS['unsupported']}",
    "theirs": f"text-decoration:line-through;color:{LIGHT['muted']}",
    "foot": f"padding:10px 24px;border-top:1px solid {LIGHT['line']};{_SMALL}",
}
"""The inline base of each class `rv-<key>`."""


def mark_style(verdict: str) -> str:
    """How a sentence behind a verdict is underlined; its ground stays the paper's, so its contrast stays too."""
    kind = "solid" if verdict != "agree" else "dotted"
    return f"border-bottom:2px {kind} {VERDICT_COLORS[verdict]}"


def escape(value: object) -> str:
    """Any value as text that is safe in an element and in a quoted attribute."""
    return html.escape(str(value), quote=True)


def element(tag: str, part: str, *inside: str, style: str = "", **attributes: str) -> str:
    """One HTML element of the card with its class and inline base.

    Args:
        tag: name of the element.
        part: key of `INLINE`; the class is `rv-<part>`.
        inside: markup; text must have gone through `escape`.
        style: declarations of this one element, after those of its part.
        attributes: escaped here; `aria_label` becomes `aria-label`, and `class_` adds classes to the part's own.
    """
    names = {name.rstrip("_").replace("_", "-"): value for name, value in attributes.items()}
    classes = f"rv-{part} {names.pop('class', '')}".strip()
    declarations = ";".join(text for text in (INLINE[part], style) if text)
    rest = "".join(f' {name}="{escape(value)}"' for name, value in names.items())
    start = f'<{tag} class="{escape(classes)}" style="{escape(declarations)}"{rest}>'
    return start if tag == "img" else f"{start}{''.join(inside)}</{tag}>"


def without_inline_styles(markup: str) -> str:
    """Cards for a page that has `shared_style`: a third of the bytes. Texts are escaped, so only tags can match."""
    return re.sub(r' style="[^"]*"', "", markup)


def shared_style() -> str:
    """The inline base and the verdicts' colors as rules of a style sheet, for `without_inline_styles`."""
    rules = [f".rv-{part}{{{declarations}}}" for part, declarations in INLINE.items()]
    for kind, color in SIGN_COLORS.items():
        rules.append(f".rv-glyph.rv-{kind},.rv-sign.rv-{kind}{{background-color:{color}}}")
    rules += [f".rv-mark.rv-{verdict}{{{mark_style(verdict)}}}" for verdict in VERDICT_COLORS]
    return "\n".join(rules)


def anchor(uid: object) -> str:
    """The id of a study's card in a page and the fragment that leads to it: `uid=17`."""
    return "uid=" + quote(str(uid), safe="")


def read_style(name: str) -> str:
    """The text of a style sheet or script that lies beside this module."""
    return (files(__package__) / name).read_text(encoding="utf-8")


@cache
def card_style() -> str:
    """The style sheet of the cards: the palettes under the themes of every host, then `card.css`."""
    light, dark = _variables(LIGHT), _variables(DARK)
    jupyter = ("var(--jp-layout-color0,{paper})", "var(--jp-content-font-color0,{ink})")
    code = ("var(--vscode-editor-background,{paper})", "var(--vscode-editor-foreground,{ink})")
    rules = [
        f".rv-theme{{{light}{_variables(WELL)}--rv-glyph:{GLYPH_INK}}}",
        f"@media (prefers-color-scheme:dark){{.rv-theme{{{dark}}}}}",
        f"html[theme=light] .rv-theme{{{light}}}",  # Colab
        f"html[theme=dark] .rv-theme{{{dark}}}",
        # A host's paper is used only where the host also says whether it is light: muted text depends on it.
        f'[data-jp-theme-light="true"] .rv-theme{{{light}{_follow(LIGHT, *jupyter)}}}',
        f'[data-jp-theme-light="false"] .rv-theme{{{dark}{_follow(DARK, *jupyter)}}}',
        f"body.vscode-light .rv-theme,body.vscode-high-contrast-light .rv-theme{{{light}{_follow(LIGHT, *code)}}}",
        f"body.vscode-dark .rv-theme,body.vscode-high-contrast:not(.vscode-high-contrast-light) .rv-theme"
        f"{{{dark}{_follow(DARK, *code)}}}",
        f"@media print{{.rv-theme.rv-theme.rv-theme{{{light}}}}}",
        *_map_rules(),
    ]
    return "\n".join([*rules, read_style("card.css")])


def document(title: str, style: str, body: str, script: str = "") -> str:
    """A whole HTML page that loads nothing: its content policy allows only what is written in it."""
    allowed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    policy += f"; script-src 'sha256-{allowed}'" if script else ""
    code = f"<script>{script}</script>\n" if script else ""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(policy)}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(title)}</title>\n<style>\n{style}\n</style>\n</head>\n"
        f'<body class="rv-theme">\n{body}\n{code}</body>\n</html>\n'
    )


def _map_rules() -> list[str]:
    """While a sentence is pointed at or has the focus, its map lies over the radiograph, as the switch says."""
    rules = [
        f".rv-card:has(.rv-strength [value={name}]:checked){{--rv-strength:{strength}}}"
        for name, strength in STRENGTHS.items()
    ]
    rules += [
        f".rv-card:has(.rv-s{n}:is(:hover,:focus)) .rv-m{n}{{opacity:var(--rv-strength,0)}}"
        for n in range(1, OVERLAYS + 1)
    ]
    return [*rules, f".rv-card .rv-scale{{background-image:linear-gradient(to right,{','.join(VIRIDIS)})}}"]


def _variables(palette: dict[str, str]) -> str:
    return "".join(f"--rv-{name}:{color};" for name, color in palette.items())


def _follow(palette: dict[str, str], paper: str, ink: str) -> str:
    """Paper and ink of the host, with shade and lines mixed from the two so that they fit any theme."""
    paper, ink = paper.format(**palette), ink.format(**palette)
    return (
        f"--rv-paper:{paper};--rv-ink:{ink};"
        f"--rv-sunk:color-mix(in srgb,{ink} 4%,{paper});--rv-line:color-mix(in srgb,{ink} 16%,{paper});"
    )
