"""Reports of any text: cleaning, parsing, labeling and choosing settings never fail but in a sentence."""

import json
import string
from collections.abc import Callable
from itertools import product, zip_longest

import pytest

pytest.importorskip("hypothesis", reason="hypothesis is not installed")

from hypothesis import given
from hypothesis import strategies as st

from radvision_utils.__main__ import parse_settings
from radvision_utils.collections.mimic import sections_of
from radvision_utils.config import PROFILES, PROMPT, Profile, RadVisionError, load_profile, settings_of
from radvision_utils.data.cleaning import DEIDENTIFIED, PRIORS, clean_section, drop_sentences, is_english, oddities
from radvision_utils.data.labels import OBSERVATIONS, compare, find_mentions, label, sentences
from radvision_utils.data.parsing import parse_report
from radvision_utils.data.reports import Report, format_report, split_sentences

# Pieces that the rules look for, mixed with anything: random letters alone would hardly ever meet a rule.
PIECES = [
    *(
        "Findings:",
        "IMPRESSION :",
        "**Impression:**",
        "findings",
        "1. ",
        "2) ",
        "12.",
        " 3. ",
        "T12.",
        "2.5 cm",
        "Dr. ",
    ),
    *(
        "vs. ",
        "e.g. ",
        "XXXX",
        "___",
        "stable",
        "unchanged",
        "prior ",
        "has ",
        "been ",
        "no ",
        "without ",
        "and ",
        "or ",
    ),
    *(
        "left ",
        "right ",
        "bilateral ",
        "effusion",
        "pneumothorax",
        "heart ",
        "is ",
        "enlarged",
        "normal",
        "lungs ",
        "clear",
    ),
    *(
        "may represent ",
        "versus ",
        "cannot exclude ",
        "? ",
        "; ",
        ", ",
        ". ",
        ".",
        "..",
        " . ",
        "<b>",
        "</p>",
        "&lt;",
        "&#0;",
    ),
    *("<", ">", "[", "]", "{", "}", "\n", "\t", "\r\n", "\x00", "\u202e", "\u200b", "\ufeff", "İ", "ß", "ﬁ", "🫁", "é"),
]
TEXTS = st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=6)), max_size=40).map("".join)


@given(TEXTS)
def test_cleaning_gives_one_line_of_sentences(text):
    clean = clean_section(text)
    assert clean == " ".join(clean.split())
    assert not any(ord(c) < 32 or c in "\u202e\u200b\ufeff" for c in clean)
    assert clean == "" or clean[-1] in ".!?"
    assert " ".join(split_sentences(clean)) == clean
    assert isinstance(oddities(text), list)


@given(TEXTS, st.sets(st.sampled_from([DEIDENTIFIED, PRIORS])))
def test_dropping_keeps_whole_sentences_and_counts_the_others(text, reasons):
    clean = clean_section(text)
    kept, dropped = drop_sentences(clean, reasons)
    before, after = split_sentences(clean), split_sentences(kept)
    assert set(dropped) <= reasons
    assert len(before) >= sum(dropped.values())
    assert dropped or kept == clean
    assert set(" ".join(after).split()) <= set(clean.split())


@given(TEXTS, TEXTS)
def test_a_cleaned_report_written_and_read_back_is_the_same(findings, impression):
    report = Report(clean_section(findings), clean_section(impression))
    again = parse_report(format_report(report))
    expected = [_as_read(report.findings), _as_read(report.impression)]
    assert [again.findings, again.impression] == expected or not any(expected)


def _as_read(text: str) -> str:
    """What reading takes off the ends and out of a text: the marks of Markdown and a pair of braces around all."""
    return parse_report(f"Findings: {text}").findings


BOLD = ["**{}**\n{}", "**{}:** {}", "__{}__: {}", "***{}*** {}", "<b>{}:</b> {}<br>", "<strong>{}</strong><p>{}</p>"]
LINES = ["{}\n{}", "{}:\n{}", "## {}\n{}", "# {}:\n\n{}", "[{}]\n{}", "<h2>{}</h2>\n{}", "=== {} ===\n{}", "{}.\n{}"]
INLINE = ["{}: {}", "{} : {}", "{}\uff1a{}", "{} - {}", "1. {}: {}", "- {}: {}", "> {}: {}", '"{}": "{}",', "{} {}"]
HEADINGS = [
    ("Findings", "Impression"),
    ("FINDINGS", "IMPRESSION"),
    ("Finding", "Impressions"),
    ("FINDING", "CONCLUSION"),
]
HEADINGS += [("Radiographic Findings", "Final Impression"), ("Key findings", "Impression and Recommendations")]
HEADINGS += [("Finding(s)", "Impression(s)"), ("Findings (PA view)", "Provisional diagnosis")]
HEADINGS += [("FINDINGS OF CHEST X-RAY", "IMPRESSION/CONCLUSION"), ("Section findings", "Section impression")]
HEADINGS += [("Observations", "Assessment"), ("FINDINGS SECTION", "OPINION"), ("Findings", "Diagnosis")]
LINES += ["<dt>{}</dt><dd>{}</dd>", "\u3010{}\u3011\n{}", '<h2 class="x">{}</h2><p>{}</p>']
INLINE += ["({}) {}", "\u201c{}:\u201d {}", "{} :- {}", "{} | {}", "{}:\u2581{}", "{}:\\t{}"]
INLINE += ["{} = {}", "{} -> {}", "{} \u2192 {}", "{}\ufe55 {}", "\\textbf{{{}:}} {}", "A. {}: {}", "II. {}: {}"]
BODIES = [
    " ".join,
    "\n".join,
    *(lambda points, mark=mark: "".join(f"\n{mark} {each}" for each in points) for mark in "-*+•"),
]
BODIES += [
    *(
        lambda points, mark=mark: "".join(f"\n{mark} {each}" for each in points)
        for mark in ("[x]", "\u2705", "\u27a4", "a)", "ii.", "[1]", "#3", "\\item")
    ),
]
BODIES += [lambda points: "".join(f"\n{number}. {each}" for number, each in enumerate(points, start=1))]
BODIES += [
    lambda points: "\n".join(f"- {each.rstrip('.')}" for each in points),
    lambda points: f"{{{' '.join(points)}}}",
]
AROUND = [
    "{}",
    "  {}\n\n",
    "<|im_start|>assistant\n{}<|im_end|>",
    "<s>{}</s>",
    "Here is the report:\n{}",
    "```\n{}\n```",
]
AROUND += ["<think>Findings: an effusion? Impression: not sure.</think>\n{}", "Findings: look.\n</think>\n\n{}"]
AROUND += ["<report>\n{}\n</report>", "<scratchpad>Impression: hm.</scratchpad>\n{}"]
THOUGHTS = [
    "<{0}>{1}</{0}>".format(name, "{}") for name in ("analysis", "thought_process", "seed:think", "inner_monologue")
]
THOUGHTS += ["[THINK]{}[/THINK]", "\u25c1think\u25b7{}\u25c1/think\u25b7", "<|begin_of_thought|>{}<|end_of_thought|>"]
AROUND += [thought.format("Findings: an effusion? Impression: not sure.") + "\n{}" for thought in THOUGHTS]
AROUND += ['<?xml version="1.0"?>\n{}', "{}\n[END OF REPORT]", "{}\\r\\n", '<div class="report">{}</div>']
AROUND += ["<think>Hm.</think><answer>{}</answer>", PROMPT.replace("{", "{{").replace("}", "}}") + "\n{}"]
POINTS = st.lists(
    st.sampled_from(["The heart is normal.", "No effusion.", "2.5 cm nodule (new).", "These findings are old."]),
    min_size=1,
    max_size=3,
)


@given(
    *(POINTS, POINTS, st.sampled_from(HEADINGS), st.sampled_from(BOLD + LINES + INLINE), st.booleans()),
    *(st.sampled_from(BODIES), st.sampled_from(BODIES), st.sampled_from(AROUND)),
)
def test_a_report_is_read_whatever_its_headings_order_and_marks(ours, true, names, style, turned, body, other, around):
    written = [style.format(names[0], body(ours)), style.format(names[1], other(true))]
    text = around.format("\n".join(written[::-1] if turned else written))
    assert parse_report(text) == Report(" ".join(ours), " ".join(true)), text


def test_every_heading_is_read_in_every_style():
    ours, true = "The heart is normal.", "No effusion."
    for names, style in product(HEADINGS, BOLD + LINES + INLINE):
        # Without capitals a mark is needed: "findings" may be a word of a wrapped line.
        for first, second in [names, [name.lower() for name in names]] if ":" in style else [names]:
            text = f"{style.format(first, ours)}\n{style.format(second, true)}"
            assert parse_report(text) == Report(ours, true), text


@given(
    *(POINTS, POINTS, st.sampled_from(HEADINGS), st.booleans(), st.sampled_from(AROUND)),
    *(st.sampled_from(["{}", "**{}**", "{}:"]), st.sampled_from(["| {} |", "{}"])),
)
def test_a_report_is_read_from_a_table_of_two_columns(ours, true, names, turned, around, mark, edges):
    rows = [[mark.format(name) for name in names], ["---", ":-:"], *zip_longest(ours, true, fillvalue="-")]
    text = around.format("\n".join(edges.format(" | ".join(row[::-1] if turned else row)) for row in rows))
    assert parse_report(text) == Report(" ".join(ours), " ".join(true)), text


ROW, CELLS = "<tr><td>{}</td></tr>", '</td>\n<td class="x">'


@given(
    *(POINTS, POINTS, st.sampled_from(HEADINGS), st.permutations([0, 1, 2, 3]), st.sampled_from(AROUND)),
    *(st.integers(2, 4), st.sampled_from([("| {} |", " | "), ("{}", "|"), (ROW, CELLS), (ROW.upper(), "</TH><TH>")])),
)
def test_a_report_is_read_from_a_table_with_further_columns(ours, true, names, order, around, width, style):
    rows = [[*names, "Study", "Technique"], *zip_longest(ours, true, ["CXR 17"], ["PA view"], fillvalue="-")]
    shown, (row, cells) = [place for place in order if place < width], style
    text = around.format("\n".join(row.format(cells.join(each[place] for place in shown)) for each in rows))
    assert parse_report(text) == Report(" ".join(ours), " ".join(true)), text


@given(POINTS, POINTS, st.booleans(), st.booleans(), st.booleans(), st.data())
def test_a_report_in_json_is_read(ours, true, turned, nested, listed, data):
    names = data.draw(st.sampled_from([("Findings", "impression"), ("section_findings", "section_impression")]))
    both = dict(zip(names, (ours, true) if listed else (" ".join(ours), " ".join(true)), strict=True))
    both = dict(reversed(both.items())) if turned else both
    for text in (json.dumps({"report": both} if nested else both), json.dumps(both, indent=2)):
        assert parse_report(f"```json\n{text}\n```") == Report(" ".join(ours), " ".join(true))
        if not (listed or turned):
            assert parse_report(text[:-8]).findings == " ".join(ours)  # cut at the token limit


@given(st.text("aeno -*.,;:!?()\n\t", max_size=80), st.text("aeno -*.,;:!?()\n\t", max_size=80))
def test_reading_a_report_loses_no_letter(ours, true):
    def letters(*texts):
        return [character for text in texts for character in text if character.isalpha()]

    for text in (ours, f"Findings: {ours}\nImpression: {true}", f"{ours}\n**Impression**\n{true}"):
        report = parse_report(text)
        wanted = [*ours] if text is ours else [*ours, *true]
        assert letters(report.findings, report.impression) == letters(*wanted)


@given(st.one_of(TEXTS, st.text()))
def test_any_text_of_a_model_is_read(text):
    report = parse_report(text)
    assert report.headed or report.impression == ""
    assert "\n" not in report.findings + report.impression


@given(st.one_of(TEXTS, st.text()))
def test_the_labeler_never_fails_and_its_spans_lie_in_the_text(text):
    found = label(text)
    assert tuple(found) == OBSERVATIONS
    spans = sentences(text)
    for mention in find_mentions(text):
        start, end = spans[mention.sentence]
        assert start <= mention.start < mention.end <= end <= len(text)
    assert set(compare(found, found).values()) <= {"agree"}
    assert isinstance(is_english(text), bool)


@given(TEXTS)
def test_sections_of_a_mimic_report_hold_only_what_was_written(text):
    for _, body in sections_of(f" FINAL REPORT\n {text}\n IMPRESSION:  Normal.\n"):
        assert body in f" FINAL REPORT\n {text}\n IMPRESSION:  Normal.\n"


VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=6,
)
NAMES = st.one_of(st.sampled_from(list(settings_of(PROFILES["tiny"]))), st.text(string.printable, max_size=20))


def one_sentence(act: Callable[[], Profile]) -> Profile | None:
    """The profile, or None where it was refused in the one way that users shall see."""
    told = ""
    try:
        profile: Profile | None = act()
    except RadVisionError as error:
        profile, told = None, str(error)
    assert "\n" not in told
    return profile


@given(st.dictionaries(NAMES, VALUES, max_size=4))
def test_any_overrides_give_a_profile_or_one_sentence(overrides):
    profile = one_sentence(lambda: load_profile("tiny", overrides))
    if profile is not None:
        assert json.loads(json.dumps(profile.to_dict())) == profile.to_dict()
        assert set(settings_of(profile)) == set(settings_of(PROFILES["tiny"]))


@given(st.one_of(st.text(), st.builds(json.dumps, VALUES)))
def test_any_text_of_overrides_gives_a_profile_or_one_sentence(text):
    one_sentence(lambda: load_profile("tiny", text))


@given(st.lists(st.one_of(st.text(), st.builds("{}={}".format, NAMES, st.text())), max_size=3))
def test_any_words_after_set_give_a_profile_or_one_sentence(words):
    one_sentence(lambda: load_profile("tiny", parse_settings(words)))
