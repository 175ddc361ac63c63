"""What the fields of a prediction record must be: so a damaged or foreign file gives one sentence and no traceback."""

from __future__ import annotations

from typing import Any

_TEXT, _WHOLE, _NUMBER = (str,), (int,), (int, float)
_ANY_NAME, _NEEDS = "*", "!"
_REPORT = {"findings": _TEXT, "impression": _TEXT, "headed": (bool,)}
_LABELS = {_ANY_NAME: {"status": _TEXT, "sides": [_TEXT], _NEEDS: ("status",)}}
_SPAN = {
    **{"observation": _TEXT, "status": _TEXT, "side": _TEXT, "start": _WHOLE, "end": _WHOLE},
    _NEEDS: ("observation", "status", "side", "start", "end"),
}
_SPANS = {"findings": [_SPAN], "impression": [_SPAN]}
_RECORD: dict[str, Any] = {
    **dict.fromkeys(("uid", "split", "image", "view", "indication", "prompt"), _TEXT),
    "index": _WHOLE,
    "seconds": _NUMBER,
    "generated": _REPORT,
    "reference": _REPORT,
    "labels": {"generated": _LABELS, "reference": _LABELS},
    "verdicts": {_ANY_NAME: _TEXT},
    "mentions": {"generated": _SPANS, "reference": _SPANS},
    "flags": [_TEXT],
    "findings": [{"name": _TEXT, "side": _TEXT, "zone": _TEXT, "verdict": _TEXT, _NEEDS: ("name", "verdict")}],
    "scores": {_ANY_NAME: _NUMBER},
    "model": {"run": _TEXT, "stage": _WHOLE, "base": _TEXT, _NEEDS: ("run", "stage", "base")},
    _NEEDS: ("uid", "generated", "model"),
}
"""A tuple: the types of a value; a list: the shape of each item; a mapping: the shapes of fields, "*" of any other,
"!" the fields that must be there and not null. Others may be null; those not named here are not looked at."""


def misshapen(record: dict[str, Any]) -> str:
    """The first field of a record that no card can show, such as "generated.findings"; "" if there is none."""
    return _wrong(record, _RECORD, "")


def _wrong(value: Any, shape: Any, place: str) -> str:
    if value is None or shape is None:
        return ""
    if isinstance(shape, tuple):
        fits = isinstance(value, shape) and (bool in shape or not isinstance(value, bool))
        return "" if fits else place
    if not isinstance(value, type(shape)):
        return place
    if isinstance(shape, list):
        inside = [(item, shape[0], place) for item in value]
    else:
        lacking = next((name for name in shape.get(_NEEDS, ()) if value.get(name) is None), None)
        if lacking is not None:
            return f"{place}.{lacking}".lstrip(".")
        fields = {name: form for name, form in shape.items() if name not in (_ANY_NAME, _NEEDS)}
        inside = [
            (item, fields.get(name, shape.get(_ANY_NAME)), f"{place}.{name}".lstrip("."))
            for name, item in value.items()
        ]
    return next((found for part in inside if (found := _wrong(*part))), "")
