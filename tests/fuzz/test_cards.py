"""A card of any record: its HTML is well-formed and holds every text as text, or one sentence says what is wrong."""

import json
from html.parser import HTMLParser
from typing import Any

import pytest

pytest.importorskip("hypothesis", reason="hypothesis is not installed")

from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from radvision_utils.config import RadVisionError
from radvision_utils.dashboard.card import FLAGS, ReportCard
from radvision_utils.dashboard.record import AUTHORS, ORDERS, Record, find_prediction, read_predictions
from radvision_utils.data.labels import OBSERVATIONS, compare, label
from radvision_utils.data.reports import Report
from radvision_utils.evaluation.records import mention_spans, mentioned
from radvision_utils.figures import VERDICTS

HOSTILE = [
    "<script>alert(1)</script>",
    "\"'><img src=x onerror=alert(1)>",
    "</style>",
    "<!--",
    "]]>",
    "&amp;",
    "\u202e",
    "\x00",
]
TEXTS = st.one_of(
    st.text(max_size=60), st.lists(st.sampled_from([*HOSTILE, "Left effusion. ", "Clear lungs.\n"])).map("".join)
)
ALLOWED = {
    *(
        "style",
        "div",
        "article",
        "header",
        "footer",
        "section",
        "figure",
        "img",
        "p",
        "span",
        "mark",
        "bdi",
        "h2",
        "h3",
    ),
    *(
        "dl",
        "dt",
        "dd",
        "ul",
        "li",
        "ins",
        "del",
        "details",
        "summary",
        "label",
        "input",
        "button",
        "a",
        "br",
        "figcaption",
    ),
    *("table", "thead", "tbody", "tr", "th", "td", "caption", "small", "b", "strong", "em", "svg", "path", "rect", "g"),
}


class Reader(HTMLParser):
    """Checks that elements nest, that none is foreign and none carries a handler."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in ALLOWED, tag
        assert not [name for name, _ in attrs if name.startswith("on")]
        if tag not in ("img", "input", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_comment(self, data: str) -> None:
        raise AssertionError(f"a comment: {data}")


def check(html: str) -> None:
    reader = Reader()
    reader.feed(html)
    reader.close()
    assert not reader.open


def plain(found: object) -> Any:
    """What JSON keeps of data classes."""
    return json.loads(json.dumps(found, default=vars))


@st.composite
def records(draw: st.DrawFn) -> dict[str, Any]:
    """A record as the evaluation writes it, but for its texts, which are anything."""
    ours, theirs = Report(draw(TEXTS), draw(TEXTS), draw(st.booleans())), Report(draw(TEXTS), draw(TEXTS))
    labels = [label(f"{report.findings}\n{report.impression}") for report in (ours, theirs)]
    return {
        "uid": draw(TEXTS),
        "split": draw(TEXTS),
        "index": draw(st.integers(0, 999)),
        "image": None,
        "view": draw(TEXTS),
        "indication": draw(st.none() | TEXTS),
        "generated": vars(ours),
        "reference": draw(st.just({"findings": theirs.findings, "impression": theirs.impression}) | st.none()),
        "labels": {author: plain(mentioned(found)) for author, found in zip(AUTHORS, labels, strict=True)},
        "verdicts": {**compare(*labels), **draw(st.dictionaries(TEXTS, st.sampled_from(list(VERDICTS)), max_size=2))},
        "mentions": {"generated": plain(mention_spans(ours)), "reference": plain(mention_spans(theirs))},
        "flags": draw(st.lists(st.sampled_from(list(FLAGS)) | TEXTS, max_size=3)),
        "findings": [{"name": draw(TEXTS), "side": draw(st.none() | TEXTS), "verdict": "agree"}],
        "scores": {"label_f1": draw(st.none() | st.floats(0, 1)), "bleu4": draw(st.none() | st.floats(0, 1))},
        "model": {"run": draw(TEXTS), "stage": draw(st.integers(0, 3)), "base": draw(TEXTS)},
        "prompt": draw(TEXTS),
        "seconds": draw(st.floats(0, 1e6)),
    }


@given(records())
def test_any_texts_give_well_formed_html_without_foreign_elements(record):
    card = ReportCard(Record.read(record))
    check(card.html())
    assert "\x00" not in card.html()
    assert "\x00" not in card.text()
    for order in ORDERS.values():
        assert order(card.record) == order(card.record)


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 9) | st.floats() | TEXTS,
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from([*OBSERVATIONS[:2], "x"]), inner, max_size=2)
    ),
    max_leaves=4,
)


@settings(phases=[Phase.generate])  # shrinking a record takes minutes
@given(records(), st.data())
def test_a_record_with_a_value_of_any_kind_gives_a_card_or_one_sentence(tmp_path_factory, record, data):
    place = data.draw(st.sampled_from(sorted(record)), label="place")
    record[place] = data.draw(ANYTHING, label="value")
    path = tmp_path_factory.mktemp("records") / "predictions.jsonl"
    path.write_text(json.dumps(record), encoding="utf-8")
    try:
        [read] = read_predictions(path)
        card = ReportCard(read)
        html, text = card.html(), card.text()
        find_prediction(path, read.uid, "test", 3)
    except RadVisionError as error:
        text, html = str(error), ""
    check(html)
    assert "Traceback" not in text
