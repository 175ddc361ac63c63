"""A report card: one prediction record as HTML, PNG and plain text, the generated report beside the reference.

The card is a pure function of its record and image; it loads no model and no script. Notebooks that are not trusted
lose `<style>`, and JupyterLab then keeps only plain values of plain properties: so `base.css`, a readable card without
a theme, stands in the elements themselves, and `card.css` adds what that leaves open.
"""

from __future__ import annotations

import base64
import difflib
import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from radvision_utils import figures
from radvision_utils.config import DISCLAIMER, RadVisionError
from radvision_utils.dashboard import radiograph
from radvision_utils.dashboard.radiograph import View
from radvision_utils.dashboard.record import (
    AUTHORS,
    HIGH,
    MEDIUM,
    NOT_SUPPORTED,
    SECTIONS,
    Record,
    Sentence,
)
from radvision_utils.data.cleaning import DEIDENTIFIED, PRIORS, clean_section, drop_sentences
from radvision_utils.data.labels import Label
from radvision_utils.data.reports import Report
from radvision_utils.evaluation.records import FLAGS
from radvision_utils.figures import VERDICTS
from radvision_utils.files import write_text

RULES = "rule-based, may be wrong"
NO_HEADINGS = "no headings in the model's text"
STAGES = {
    0: "base, untuned",
    1: "stage 1: vision encoder",
    2: "stage 2: projector",
    3: "stage 3: language model",
}
LABELS_TITLE, DRAWN_TITLE = "Generated against reference", "Generated against what was drawn"
FLAGS_TITLE = "Flags on the generated report"
JUDGES = "another judge: the rules read both texts, this one knows what was drawn and where"
MEANING = (
    "A map shows how much less likely the sentence becomes without each part of the image; the image is the whole "
    "square that the model sees, black margins included."
)
LEVELS = f"High confidence: at least {HIGH:.0%} likely to be right; medium: at least {MEDIUM:.0%}; low: less.".replace(
    "%", " %"
)
_SCORES = {"label_f1": "Label F1", "bleu4": "BLEU-4", "rouge_l": "ROUGE-L", "cider_d": "CIDEr-D"}
_ALONE = (
    "body{margin:0;padding:24px 16px;background:var(--rv-sunk)}.rv-card{margin:0 auto}"
    "@page{size:landscape;margin:12mm}@media print{body{padding:0}}"
)
_OVERLAYS = 24  # maps at most that lie over a radiograph; every further sentence still has its small picture
_THUMB = 80  # pixels of a small picture, more than its 64 in the page: for screens of more pixels
_HERE = Path(__file__).parent
_TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader([_HERE / "templates", _HERE]),
    autoescape=jinja2.select_autoescape(["html", "css"]),
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=jinja2.StrictUndefined,
)
_TEMPLATES.globals.update(
    figures=figures,
    radiograph=radiograph,
    disclaimer=DISCLAIMER,
    rules=RULES,
    levels=LEVELS,
    meaning=MEANING,
    unsupported=NOT_SUPPORTED,
    most_overlays=_OVERLAYS,
)
_GLYPHS = {**VERDICTS, "warning": "!", "": ""}


@dataclass(frozen=True)
class Section:
    """One part of a report as a card shows it: whose it is, which part, its sentences, and a flag on it."""

    author: str
    name: str
    sentences: tuple[Sentence, ...]
    flag: str = ""

    @property
    def samples(self) -> int:
        """How many reports were sampled for the agreement of its sentences."""
        return max((s.confidence.samples for s in self.sentences if s.confidence), default=0)

    def shown(self, least: int) -> list[Sentence]:
        """The sentences that are not below an agreement."""
        return [sentence for sentence in self.sentences if not sentence.below(least)]


@dataclass(frozen=True)
class Chip:
    """An observation or flag, a verdict on it with its sign ("" where there is none), and what else there is to say."""

    words: str
    verdict: str = ""
    detail: str = ""
    sign: str = ""

    @property
    def glyph(self) -> str:
        return _GLYPHS[self.sign]


@dataclass(frozen=True)
class ChipGroup:
    """Chips under a title, and how far they are to be trusted ("" for drawn truth)."""

    title: str
    trust: str
    chips: list[Chip]


@dataclass(frozen=True)
class ReportCard:
    """A prediction record to look at.

    Attributes:
        record: what is shown.
        image: the radiograph, as a file or encoded bytes; None shows an empty place.
        cached: whether the report was read from a file rather than generated for this card.
        view: window, inversion and zoom of the radiograph and what is shown of its evidence, in the HTML.
        blind: which author is report A and which is B, with everything left out that would tell; None names them.
        before: the report of an earlier stage on the same image, which then stands in a column of its own.
    """

    record: Record
    image: Path | bytes | None = field(default=None, repr=False)
    cached: bool = True
    view: View = field(default_factory=View)
    blind: tuple[str, str] | None = None
    before: Record | None = None

    def __str__(self) -> str:
        return self.text()

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, str]:
        return {"text/html": self.html(), "text/plain": self.text()}

    def html(self) -> str:
        """The card with its style sheet, for a notebook or any page.

        Raises:
            RadVisionError: the image is missing or unreadable.
        """
        card = f'<div class="rv-ground">{self.article()}</div>'
        return f'<style>{card_style()}</style><div class="rv-theme">{with_base_inline(card)}</div>'

    def article(self, image_bytes: int = 100_000, **attributes: str) -> Markup:
        """The card alone, for a page with `base_style` and `card_style`; `attributes` are its element's."""
        image = radiograph.open_image(self.image)
        mapped = [s for s in self.told.explained if s.map and image]
        return render(
            "card.html",
            card=self,
            attributes=attributes,
            image=image,
            uri=radiograph.jpeg_uri(radiograph.windowed(image, self.view), image_bytes) if image else "",
            mapped=mapped,
            # They lie over it out of sight until their sentence is pointed at.
            lesions=self.lesions if mapped else [],
            overlays=[(s, radiograph.map_uri(s.map)) for s in mapped if s.map and s.number <= _OVERLAYS],
            thumbs={
                s.number: radiograph.thumb_uri(image, s.map, _THUMB, self.lesions) for s in mapped if s.map and image
            },
        )

    def text(self) -> str:
        """The card in plain text, at most 80 columns wide but for words longer than that."""
        return str(render("card.txt", card=self)).rstrip()

    def to_dict(self) -> dict[str, Any]:
        """The record as a JSON-like dictionary of its own, with `cached`."""
        return {**self.record.to_json(), "cached": self.cached}

    def save(self, path: str | Path, width: int = 2400) -> Path:
        """Write the card as a standalone `.html` page, a `.png` picture or a `.pdf`; returns the path.

        Args:
            path: the file; folders are made.
            width: of a picture, in pixels.

        Raises:
            RadVisionError: the file name ends in none of them.
        """
        path = Path(path)
        if path.suffix == ".html":
            write_text(path, document(self.title, self.article(), _ALONE))
        elif path.suffix in (".png", ".pdf"):
            from radvision_utils.dashboard.picture import save_picture

            save_picture(self, path, width)
        else:
            raise RadVisionError(
                f"a card is saved as .html, .png or .pdf, not as {path.name!r}: change the file's name."
            )
        return path

    @cached_property
    def told(self) -> Record:
        """The record; for a blind card without all that would tell whose report is whose."""
        if not self.blind:
            return self.record
        bare = replace(self.record, labels={}, mentions={}, verdicts=None, flags=(), findings=(), scores={})
        # Words that only people leave in a report, or only its removal of names, would give one away.
        bare = replace(bare, generated=_told_by_anyone(bare.generated), evidence={}, confidence={})
        return replace(bare, reference=_told_by_anyone(bare.reference) if bare.reference else None)

    @property
    def band(self) -> str:
        """What nobody may overlook: that the model has only ever seen drawings; "" where that is not so."""
        return self.record.model.band(own=self.record.reference is None)

    @property
    def lesions(self) -> list[tuple[float, float, float, float]]:
        """Where findings were drawn, as left, top, right and bottom, shares of the image's side; phantoms only."""
        return [finding.box for finding in self.told.findings if finding.box]

    @property
    def tally(self) -> list[tuple[str, int]]:
        """How many findings have each verdict, the worst first: of what was drawn where that is known."""
        found = list(_judged(self.told).values()) if self.told.reference else []
        return [(verdict, found.count(verdict)) for verdict in VERDICTS if verdict in found]

    @property
    def title(self) -> str:
        """ "Study 17", or "Image lungs.png" of an image of one's own, which has no reference."""
        return f"{'Study' if self.record.reference else 'Image'} {self.record.uid.strip()}"

    @property
    def image_title(self) -> str:
        """Kind of the image, without what is seen in it: "Frontal chest radiograph"."""
        return f"{self.record.view} chest radiograph".strip().capitalize()

    @property
    def place(self) -> str:
        """Where the study lies in the data: "test split, index 5"."""
        split, index = self.record.split.strip(), self.record.index
        return ", ".join([f"{split} split"] * bool(split) + [f"index {index}"] * (index is not None))

    @property
    def foot(self) -> str:
        """What made the report, unless the card is blind, and the disclaimer."""
        if self.blind:
            return DISCLAIMER
        model, made = self.record.model, "cached" if self.cached else "generated now"
        if self.record.seconds is not None:
            made += f"{', written' * self.cached} in {self.record.seconds:.2f} s"
        run = f"Run {model.run.strip()}; model {stage_name(model.stage)}; base {model.base_name}; report {made}."
        return f"{run} {DISCLAIMER}"

    @property
    def rows(self) -> list[list[list[Section]]]:
        """What stands side by side, as the sections of each column: findings beside findings, and so on.

        A report without headings stands beside both; a record without a reference (an image of one's own) has one
        column. A blind card has the reports as A and B, without marks or anything else that tells whose they are.
        """
        record = self.told
        authors = self.blind or AUTHORS[: 2 if record.reference else 1]
        titles = ["Report A", "Report B"] if self.blind else [author.capitalize() for author in authors]
        reports = [(title, record, author) for title, author in zip(titles, authors, strict=True)]
        if self.before:
            title = f"After stage {self.before.stage}" if self.before.stage else "Before training"
            reports.insert(0, (title, self.before, "generated"))
        columns = [
            [Section(title, name, of.sentences[author, name]) for name in SECTIONS] for title, of, author in reports
        ]
        headed = [author == "reference" or of.generated.headed for _, of, author in reports]
        if all(headed):
            return [[[section] for section in row] for row in zip(*columns, strict=True)]
        whole = [[Section(column[0].author, "report", _joined(column), NO_HEADINGS)] for column in columns]
        return [[column if told else one for column, one, told in zip(columns, whole, headed, strict=True)]]

    @property
    def sentences_note(self) -> str:
        """What the maps and words of confidence mean; "" where there are none."""
        maps = f"{MEANING} Yellow speaks most for it; gray and striped: {NOT_SUPPORTED}."
        return " ".join([maps] * bool(self.record.evidence) + [LEVELS] * bool(self.record.confidence))

    @cached_property
    def chip_groups(self) -> list[ChipGroup]:
        """What became of each observation that either text asserts, of each drawn finding, and what is odd."""
        record = self.told
        first = [words for words in record.generated.line.rstrip(".").split(",") if words]
        changed = training_changed(self.before, record) if self.before else {}
        asserted = {} if record.reference else record.asserted
        said = [Chip(_sentence_case(name), detail=_sides(label)) for name, label in asserted.items()]
        labels = [_chip(n, verdict, self._detail(n, verdict)) for n, verdict in (record.verdicts or {}).items()]
        drawn = [_chip(f"{finding.side} {finding.name}", finding.verdict) for finding in record.findings]
        odd = [Chip(FLAGS.get(flag, flag.strip()), sign="warning") for flag in record.flags]
        groups = [
            ChipGroup("Said first, as a line of findings", "", [Chip(_sentence_case(words)) for words in first]),
            ChipGroup("Changed by training", "", [_change(name, *pair) for name, pair in changed.items()]),
            ChipGroup("Asserted by the report", RULES, said),
            ChipGroup(LABELS_TITLE, RULES, sorted(labels, key=_worst_first)),
            ChipGroup(DRAWN_TITLE, JUDGES if _judges_differ(record) else "", sorted(drawn, key=_worst_first)),
            ChipGroup(FLAGS_TITLE, RULES, odd),
        ]
        return [group for group in groups if group.chips]

    def _detail(self, name: str, verdict: str) -> str:
        """What the two texts say of an observation, where they contradict each other."""
        labels = [self.record.labels.get(author, {}).get(name) for author in AUTHORS]
        said = [_sides(label) or label.status.strip() for label in labels if label]
        return f"generated: {said[0]}, reference: {said[1]}" if verdict == "contradiction" and len(said) == 2 else ""

    @property
    def scores(self) -> list[tuple[str, str]]:
        """Name and value of the scores that the record has, in a fixed order."""
        scores = self.told.scores
        return [(name, f"{scores[key]:.3f}") for key, name in _SCORES.items() if key in scores]

    @property
    def scores_note(self) -> str:
        """What the scores are not."""
        if "label_f1" in self.record.scores:
            return f"Label F1 is {RULES}. The others count shared words, not clinical accuracy."
        return "Shared words, not clinical accuracy."

    @property
    def changes(self) -> list[tuple[str, list[tuple[str, str]]]]:
        """The `word_changes` of each section in which the two reports differ; none without a reference or blind."""
        ours, theirs = self.record.generated, self.record.reference
        if theirs is None or self.blind:
            return []
        pairs = [(name.capitalize(), getattr(ours, name), getattr(theirs, name)) for name in SECTIONS]
        if not ours.headed:
            whole = [f"{report.findings} {report.impression}" for report in (ours, theirs)]
            pairs = [("Report", whole[0], whole[1])]
        found = [(name, list(word_changes(generated, reference))) for name, generated, reference in pairs]
        return [(name, parts) for name, parts in found if any(found_in != "both" for found_in, _ in parts)]


def word_changes(generated: str, reference: str) -> Iterator[tuple[str, str]]:
    """The two texts as one, in reading order: words after who says them, "both", "generated" or "reference"."""
    ours, theirs = generated.split(), reference.split()
    old, new = ([word.strip(".,;:").lower() for word in words] for words in (theirs, ours))
    for kind, a, b, c, d in difflib.SequenceMatcher(None, old, new).get_opcodes():
        if kind != "equal" and a < b:
            yield "reference", " ".join(theirs[a:b])
        if c < d:
            yield "both" if kind == "equal" else "generated", " ".join(ours[c:d])


def stage_name(stage: int) -> str:
    """A stage in words."""
    return STAGES.get(stage, f"stage {stage}")


def render(template: str, **values: Any) -> Markup:
    """A template of this folder; in HTML every value that is not markup itself is escaped."""
    return Markup(_TEMPLATES.get_template(template).render(values))


@cache
def base_style() -> Markup:
    """The style sheet of a readable card without a theme."""
    return render("base.css")


@cache
def card_style() -> Markup:
    """The style sheet of the cards beyond `base_style`: themes of every host, layout, evidence."""
    return render("card.css")


def document(title: str, body: Markup, style: str, script: str = "") -> Markup:
    """A whole HTML page around cards that loads nothing.

    Args:
        title: of the page.
        body: its markup.
        style: rules beyond those of the cards.
        script: the only one that its content policy lets run.
    """
    sheets = Markup("\n").join([base_style(), card_style(), Markup(style)])
    allowed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return render("document.html", title=title, body=body, style=sheets, script=Markup(script), allowed=allowed)


def with_base_inline(markup: str) -> str:
    """Markup with the rules of `base_style` in its elements. Texts are escaped, so only tags can match."""

    def inline(match: re.Match[str]) -> str:
        rules = [_base_rules()[name] for name in match[1].split() if name in _base_rules()]
        return f'class="{match[1]}" style="{";".join([*rules, *([match[2]] if match[2] else [])])}"'

    return re.sub(r'class="([^"]*)"(?: style="([^"]*)")?', inline, markup)


@cache
def _base_rules() -> dict[str, str]:
    found = re.findall(r"^\.([\w-]+) \{(.*?)\}", base_style(), re.MULTILINE | re.DOTALL)
    return {name: ";".join(rule.strip() for rule in body.split(";") if rule.strip()) for name, body in found}


def _joined(sections: Sequence[Section]) -> tuple[Sentence, ...]:
    """The sections of a report as one text."""
    first, second = (section.sentences for section in sections)
    return first + tuple(replace(s, before="\n") if first and not n else s for n, s in enumerate(second))


def _judges_differ(record: Record) -> bool:
    """Whether the rules find no fault where what was drawn shows one, or the reverse."""
    if record.verdicts is None or not record.findings:
        return False
    by_rules, by_truth = record.verdicts.values(), [finding.verdict for finding in record.findings]
    return (set(by_rules) <= {"agree"}) != (set(by_truth) <= {"agree"})


def _told_by_anyone(report: Report) -> Report:
    """Without what tells a person's report: words taken out when it was de-identified, earlier studies, odd stops."""
    texts = (clean_section(text) for text in (report.findings, report.impression))
    findings, impression = (drop_sentences(text, {DEIDENTIFIED, PRIORS})[0] for text in texts)
    return Report(findings, impression)


def _judged(record: Record) -> dict[str, str]:
    """Verdict by finding: of what was drawn or asserted on a phantom, else by the rules."""
    if record.findings:
        return {f"{finding.side} {finding.name}".strip(): finding.verdict for finding in record.findings}
    return {name: verdict for name, verdict in record.verdict_pairs if name != "No Finding"}


def training_changed(before: Record, after: Record) -> dict[str, tuple[str, str]]:
    """The findings whose verdict differs between two reports on an image: before and after, "" where none says it."""
    old, new = _judged(before), _judged(after)
    pairs = {name: (old.get(name, ""), new.get(name, "")) for name in [*new, *old]}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def _chip(name: str, verdict: str, detail: str = "") -> Chip:
    return Chip(_sentence_case(name), verdict, detail, verdict)


def _change(name: str, old: str, new: str) -> Chip:
    """A finding whose verdict changed; one that neither report asserts any more was unsupported before."""
    return Chip(_sentence_case(name), new or "no longer said", f"before: {old or 'not said'}", new or "agree")


def _sentence_case(words: str) -> str:
    words = words.strip()
    return words[:1].upper() + words[1:].lower()


def _sides(label: Label) -> str:
    """The sides on which something is present; "" for present without one; else the status."""
    if label.status == "present":
        return " and ".join(side.strip() for side in label.sides)
    return label.status.strip()


def _worst_first(chip: Chip) -> int:
    return list(VERDICTS).index(chip.verdict)
