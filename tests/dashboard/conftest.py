"""Prediction records and their images, as the evaluation writes them."""

import copy
import json
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw

RECORD = {
    "uid": "17",
    "split": "test",
    "index": 5,
    "image": "data/images/17.png",
    "view": "frontal",
    "indication": "Cough.",
    "generated": {"findings": "The heart is enlarged.", "impression": "Cardiomegaly.", "headed": True},
    "reference": {"findings": "The heart is normal in size.", "impression": "No acute disease."},
    "labels": {},
    "scores": {"bleu4": 0.2137, "rouge_l": 0.4, "cider_d": None},
    "model": {"run": "tiny", "stage": 3, "base": "tiny"},
    "prompt": "Report, please.",
    "seconds": 0.12,
}


class _Reader(HTMLParser):
    """Checks that elements nest, and keeps elements and text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in ("img", "input", "meta"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


@pytest.fixture
def read_html() -> Callable[[str], _Reader]:
    def read(html: str) -> _Reader:
        reader = _Reader()
        reader.feed(html)
        assert not reader.open
        return reader

    return read


@pytest.fixture
def make_record() -> Callable[..., dict[str, Any]]:
    def make(stage: int = 3, **changes: Any) -> dict[str, Any]:
        record = copy.deepcopy(RECORD) | changes
        record["model"]["stage"] = stage
        return record

    return make


@pytest.fixture
def explained(make_record: Callable[..., dict[str, Any]]) -> dict[str, Any]:
    """A record with evidence and confidence of its three generated sentences; the second map lacks support."""
    texts = [
        ("findings", 0, "The heart is enlarged."),
        ("findings", 1, "No effusion."),
        ("impression", 0, "Cardiomegaly."),
    ]
    maps = [[[1.0, 0.2], [0.1, 0.0]], [[0.0, 0.5], [0.2, 1.0]], [[0.0, 0.0], [0.0, 0.0]]]
    known = [(0.95, 5, -0.05), (0.75, None, -0.2), (0.4, 1, -1.5)]
    record = make_record(
        generated={"findings": "The heart is enlarged.  No effusion.", "impression": "Cardiomegaly.", "headed": True}
    )
    places = [{"section": section, "index": index, "text": text} for section, index, text in texts]
    record["evidence"] = {
        "uid": "17",
        "grid": [2, 2],
        "sentences": [
            {**place, "gradient": values, "occlusion": values, "supported": number != 1, "side_consistent": None}
            for number, (place, values) in enumerate(zip(places, maps, strict=True))
        ],
        "seconds": 0.4,
    }
    record["confidence"] = {
        "uid": "17",
        "samples": 5,
        "sentences": [
            {**place, "confidence": probability, "agreement": agreement, "log_probability": nats}
            for place, (probability, agreement, nats) in zip(places, known, strict=True)
        ],
    }
    return record


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """A run with three test studies, two stages each but for the last, and a training study."""
    folder = tmp_path / "outputs" / "tiny"
    (folder / "data/images").mkdir(parents=True)
    lines = []
    for index, (uid, stages) in enumerate({"17": (0, 3), "20": (0, 3), "31": (3,)}.items()):
        image = Image.new("L", (512, 512))
        ImageDraw.Draw(image).ellipse((90, 90, 420, 420), fill=120 + 20 * index)
        image.save(folder / f"data/images/{uid}.png")
        for stage in stages:
            record = copy.deepcopy(RECORD) | {"uid": uid, "index": index, "image": f"data/images/{uid}.png"}
            record["model"]["stage"] = stage
            record["generated"]["findings"] = f"Findings of {uid} by stage {stage}."
            lines.append(json.dumps(record))
    lines.append(json.dumps(copy.deepcopy(RECORD) | {"uid": "99", "split": "train", "index": 9}))
    (folder / "evaluation").mkdir()
    (folder / "evaluation/predictions.jsonl").write_text("\n".join(lines) + "\n\n", encoding="utf-8")
    return folder
