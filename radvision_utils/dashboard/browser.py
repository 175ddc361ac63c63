"""A small dashboard of widgets for a notebook: step, sort and filter through the report cards of a run.

It reads plain prediction records and uses only what ipywidgets 7.7 (Colab) and 8.1 both have; one HTML value is
swapped, so a step costs one message to the page and leaves no outputs behind.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import ipywidgets as widgets
from markupsafe import Markup

from radvision_utils.config import RadVisionError
from radvision_utils.dashboard.card import ReportCard, render
from radvision_utils.dashboard.radiograph import WINDOWS, View
from radvision_utils.dashboard.ratings import ERRORS, SCORES, add_ratings, agreement, read_ratings, summary
from radvision_utils.dashboard.record import (
    AUTHORS,
    ORDERS,
    Record,
    by_index,
    fits,
    flags,
    image_path,
    most_samples,
    observations,
)
from radvision_utils.figures import VERDICTS
from radvision_utils.files import write_text

WRAP = {"flex_flow": "row wrap", "align_items": "center", "width": "100%"}
ReportOn = Callable[[str, bytes | Path, int], ReportCard]
"""Reports on an image of one's own: its name, the file's bytes or path, the stage."""


class _Listener:
    """Hears what people change in controls, not what the program sets in them."""

    _setting = False

    def _hear(self, control: widgets.Widget, act: Callable[[Any], None]) -> None:
        control.observe(lambda change: None if self._setting else act(change["new"]), names="value")

    @contextmanager
    def _unheard(self) -> Iterator[None]:
        self._setting = True
        try:
            yield
        finally:
            self._setting = False


class ReportBrowser(_Listener, widgets.VBox):
    """Report cards one at a time, by index or study, sorted and filtered, in each training stage.

    Args:
        records: prediction records; those of one study may differ in stage.
        image_root: the run folder, which the records' image paths are relative to, and that keeps `ratings.jsonl`.
        report_on: a live model for images of one's own; without it there is no such button.

    Raises:
        RadVisionError: there are no records.
    """

    def __init__(self, records: Iterable[Record], image_root: Path, report_on: ReportOn | None = None) -> None:
        self._root = image_root
        self._studies = _by_study(records)
        self._uids = list(self._studies)
        if not self._uids:
            raise RadVisionError("there are no prediction records to show: evaluate the run first.")
        self._listed = self._uids  # those that fit the filter, in the order of the sort
        self._uid = self._uids[0]
        self._stage = max(max(stages) for stages in self._studies.values())
        self._card: ReportCard

        self.previous = _control(widgets.Button, "Previous", 110, icon="arrow-left")
        self.next = _control(widgets.Button, "Next", 110, icon="arrow-right")
        # A slider with the focus steps by the arrow keys.
        self.index = _control(widgets.IntSlider, "Index", 300, "44px", min=0, max=len(self._uids) - 1)
        # A uid is judged when it is entered, not at each key.
        self.uid = _control(
            widgets.Combobox, "Study", 190, "44px", options=self._uids, placeholder="uid", continuous_update=False
        )
        self.stage = widgets.ToggleButtons(style={"button_width": "76px"})
        self.more = _control(widgets.ToggleButton, "More", 100, icon="sliders")
        every = [record for stages in self._studies.values() for record in stages.values()]
        self.order = _dropdown("Sort by", list(ORDERS), 220)
        self.observation = _dropdown("Observation", ["", *observations(every)], 260)
        self.verdict = _dropdown("Verdict", ["", *VERDICTS], 190)
        self.flag = _dropdown("Flag", ["", *flags(every)], 250)
        self.message, self.card = widgets.HTML(), widgets.HTML(layout={"width": "auto"})
        mapped = any(record.evidence for record in every)
        self.view = ViewControls(self._redraw, mapped, most_samples(every))
        self.rating = BlindRating(image_root / "ratings.jsonl", self._switch_blind)

        self.previous.on_click(lambda _: self._step(-1))
        self.next.on_click(lambda _: self._step(1))
        self._hear(self.index, lambda index: self._go(self._uids[index]))
        self._hear(self.uid, self._find)
        self._hear(self.stage, self._choose_stage)
        for choice in (self.order, self.observation, self.verdict, self.flag):
            self._hear(choice, lambda _: self._arrange())
        self._filters = widgets.HBox(
            [self.uid, self.order, self.observation, self.verdict, self.flag], layout={**WRAP, "display": "flex"}
        )
        panels: list[widgets.Widget] = [self._filters, self.view, self.rating]
        if report_on:
            self.own = OwnImage(report_on, lambda: self._stage, self._show_card)
            panels.append(self.own)
        behind = widgets.VBox(panels, layout={"display": "none"})
        self.more.observe(lambda change: _show_if(behind, change["new"]), names="value")
        steps = widgets.HBox([self.previous, self.next, self.index, self.stage, self.more], layout=WRAP)
        super().__init__([steps, behind, self.message, self.card])
        self._show_current()

    def _repr_mimebundle_(self, **kwargs: object) -> dict[str, Any]:
        """Where no widget can live, as in a saved copy, the card stands alone."""
        made: dict[str, Any] = super()._repr_mimebundle_(**kwargs)
        return {**made, "text/html": self.card.value}

    def _switch_blind(self, blind: bool) -> None:
        """While one rates, studies come by lot after the one at hand, and no filter tells whose text is whose."""
        _show_if(self._filters, not blind)
        self._unfilter()
        if blind:
            rest = [uid for uid in self._uids if uid != self._uid]
            self._listed = [self._uid, *random.SystemRandom().sample(rest, len(rest))]
        self._show_current()

    def _step(self, by: int) -> None:
        self._go(self._listed[min(max(self._listed.index(self._uid) + by, 0), len(self._listed) - 1)])

    def _go(self, uid: str) -> None:
        """Show a study, in the stage last chosen or else the latest that it has; a filter that it does not fit ends."""
        self._uid = uid
        self._show_current()

    def _show_current(self) -> None:
        if self._uid not in self._listed:
            self._unfilter()
        stages = self._studies[self._uid]
        shown = self._stage if self._stage in stages else max(stages)
        with self._unheard():
            self.index.value, self.uid.value = self._uids.index(self._uid), self._uid
            self.stage.options = [(f"stage {stage}" if stage else "base", stage) for stage in sorted(stages)]
            self.stage.value = shown
        place = self._listed.index(self._uid)
        self.previous.disabled, self.next.disabled = place == 0, place == len(self._listed) - 1
        whole = "" if len(self._listed) == len(self._uids) else f", filtered from {len(self._uids)}"
        record = stages[shown]
        self.rating.show(record)
        blind = self.rating.order(record)
        try:
            self._show_card(ReportCard(record, image_path(record, self._root), blind=blind))
            self.message.value = _say(f"{place + 1} of {len(self._listed)} studies{whole}")
        except RadVisionError as error:  # a callback's error would only reach the log: say it, and show the text
            self._show_card(ReportCard(record, blind=blind))
            self.message.value = _say(str(error))

    def _show_card(self, card: ReportCard) -> None:
        self._card = card
        self._redraw()

    def _redraw(self) -> None:
        self.card.value = replace(self._card, view=self.view.view).html()

    def _arrange(self) -> None:
        """Sort and filter by the stage that is shown; a choice that no study fits changes nothing."""
        found = {uid: stages.get(self._stage) or stages[max(stages)] for uid, stages in self._studies.items()}
        wanted = (self.observation.value, self.verdict.value, self.flag.value)
        fitting = [uid for uid, record in found.items() if fits(record, *wanted)]
        if not fitting:
            self.message.value = _say(f"No study fits this choice; still showing {self._uid}.")
            return
        order = ORDERS[self.order.value]
        self._listed = sorted(fitting, key=lambda uid: order(found[uid]))
        self._go(self._listed[0])

    def _unfilter(self) -> None:
        with self._unheard():
            self.observation.value = self.verdict.value = self.flag.value = ""
            self.order.value = next(iter(ORDERS))
        self._listed = self._uids

    def _find(self, uid: str) -> None:
        uid = uid.strip()
        if uid in self._studies:
            self._go(uid)
        else:
            self.message.value = _say(
                f"There is no study {uid!r} among these {len(self._uids)}; still showing {self._uid}."
            )

    def _choose_stage(self, stage: int) -> None:
        self._stage = stage
        self._show_current()


def _show_if(panel: widgets.Box, shown: bool) -> None:
    panel.layout.display = "flex" if shown else "none"


def _control(kind: Any, name: str, width: int, label: str = "", **values: Any) -> Any:
    """A widget with its description, so many pixels wide, of which the description takes `label`."""
    if label:
        values["style"] = {"description_width": label}
    return kind(description=name, layout={"width": f"{width}px"}, **values)


def _dropdown(name: str, values: Sequence[str], width: int) -> widgets.Dropdown:
    options = [(value or "any", value) for value in values]
    made: widgets.Dropdown = _control(widgets.Dropdown, name, width, "initial", options=options, value=values[0])
    made.layout.margin = "2px 14px 2px 2px"
    return made


def _by_study(records: Iterable[Record]) -> dict[str, dict[int, Record]]:
    """Records by uid and stage; studies in the order of their index."""
    studies: dict[str, dict[int, Record]] = {}
    for record in sorted(records, key=by_index):
        studies.setdefault(record.uid.strip(), {})[record.stage] = record
    return studies


@contextmanager
def _telling(message: widgets.HTML) -> Iterator[None]:
    """Tell an error, which a callback would only bring to the log."""
    try:
        yield
    except RadVisionError as error:
        message.value = _say(str(error))


def _say(words: str) -> str:
    """Words of the program or of a record as a line of status."""
    return Markup('<span role="status" aria-live="polite">{}</span>').format(words)


class ViewControls(_Listener, widgets.HBox):
    """Window, inversion and zoom of the radiograph, its evidence maps, and which sentences are hidden.

    Args:
        changed: called after each change.
        mapped: whether some record has evidence maps; else there is no slider for them.
        samples: how many reports were sampled for the agreement of sentences; 0 leaves out that choice.
    """

    def __init__(self, changed: Callable[[], None], mapped: bool, samples: int) -> None:
        self.window = _dropdown("Window", list(WINDOWS), 180)
        self.zoom = _slider("Zoom", 1.0, 4.0)
        self.invert = _control(widgets.ToggleButton, "Invert", 100, icon="adjust")
        self.reset = _control(widgets.Button, "Reset view", 100)
        self.evidence = _slider("Evidence", 0.0, 1.0, label="62px")
        least = [("nothing", 0), *((f"below {n} of {samples}", n) for n in range(1, samples + 1))]
        self.agreement = _control(widgets.Dropdown, "Hide sentences", 240, "initial", options=least, value=0)
        asked = [self.evidence] * mapped + [self.agreement] * (samples > 0)
        for control in (self.window, self.zoom, self.invert, *asked):
            self._hear(control, lambda _: changed())
        self.reset.on_click(lambda _: self._reset(changed))
        super().__init__([self.window, self.zoom, self.invert, self.reset, *asked], layout=WRAP)

    @property
    def view(self) -> View:
        return View(
            *WINDOWS[self.window.value],
            self.invert.value,
            self.zoom.value,
            map_strength=self.evidence.value,
            least_agreement=self.agreement.value,
        )

    def _reset(self, changed: Callable[[], None]) -> None:
        with self._unheard():
            self.window.value, self.zoom.value, self.invert.value = "full", 1.0, False
        changed()


class _Folded(widgets.VBox):
    """A switch, what there is to say beside it, and controls that show below while it is on."""

    def __init__(self, switch: widgets.ToggleButton, controls: Sequence[widgets.Widget]) -> None:
        self.message, unfolded = widgets.HTML(), widgets.HBox(controls, layout={**WRAP, "display": "none"})
        switch.observe(lambda change: _show_if(unfolded, change["new"]), names="value")
        super().__init__([widgets.HBox([switch, self.message], layout=WRAP), unfolded])


class BlindRating(_Folded):
    """Blind rating: which text is whose stays hidden until `blind` is switched off, which sums the ratings up.

    Args:
        path: the `ratings.jsonl` to append to.
        changed: told whether blind mode is on, when it begins or ends.
    """

    def __init__(self, path: Path, changed: Callable[[bool], None]) -> None:
        self._path, self._orders = path, dict[tuple[str, int], tuple[str, str]]()
        self._record: Record
        self.blind = _control(widgets.ToggleButton, "Blind rating", 130, icon="eye-slash")
        self.scores = [_stars("Report A"), _stars("Report B")]
        self.errors = [_control(widgets.Dropdown, f"Error in {name}", 220, "initial", options=ERRORS) for name in "AB"]
        self.rater = _control(widgets.Text, "", 160, placeholder="your name")
        self.comment = _control(widgets.Text, "", 260, placeholder="comment")
        self.save = _control(widgets.Button, "Save rating", 130, icon="check")
        super().__init__(self.blind, [self.rater, *self.scores, *self.errors, self.comment, self.save])
        self.save.on_click(lambda _: self._save())
        self.blind.observe(lambda change: self._switch(change["new"], changed), names="value")

    def order(self, record: Record) -> tuple[str, str] | None:
        """Who wrote reports A and B of a record, the same whenever it is shown; None while nothing is hidden."""
        if not self.blind.value:
            return None
        first, second = random.SystemRandom().sample(AUTHORS, 2)
        return self._orders.setdefault((record.uid, record.stage), (first, second))

    def show(self, record: Record) -> None:
        """Begin with another record: no score, no error, no comment."""
        self._record = record
        for stars, error in zip(self.scores, self.errors, strict=True):
            stars.value, error.value = None, ERRORS[0]
        self.comment.value = ""

    def _switch(self, blind: bool, changed: Callable[[bool], None]) -> None:
        with _telling(self.message):
            self.message.value = _say("1 is unusable, 5 as good as it gets.") if blind else self._summed_up()
        changed(blind)

    def _save(self) -> None:
        order, scores = self.order(self._record), tuple(stars.value for stars in self.scores)
        if order is None:
            return
        if None in scores:
            self.message.value = _say("Rate both reports from 1 to 5, then save.")
            return
        with _telling(self.message):
            errors, said = tuple(error.value for error in self.errors), self.comment.value.strip()
            add_ratings(self._path, self._record, order, scores, said, errors, self.rater.value.strip())
            rated = len({(rating["uid"], rating["stage"]) for rating in read_ratings(self._path)})
            self.message.value = _say(f"Saved; {rated} {'study' if rated == 1 else 'studies'} rated.")

    def _summed_up(self) -> str:
        ratings = read_ratings(self._path)
        if not ratings:
            return _say("Nothing has been rated yet.")
        import pandas as pd

        table = self._path.with_suffix(".csv")
        write_text(table, pd.DataFrame(ratings).to_csv(index=False))
        return render("ratings.html", rows=summary(ratings), agreement=agreement(ratings), table=table)


class OwnImage(_Folded):
    """A report on an image of one's own, uploaded or by its path.

    Args:
        report_on: the live model.
        stage: gives the stage to report with.
        show: is handed the card.
    """

    def __init__(self, report_on: ReportOn, stage: Callable[[], int], show: Callable[[ReportCard], None]) -> None:
        self._report_on, self._stage, self._show = report_on, stage, show
        self.unfold = _control(widgets.ToggleButton, "Image of my own", 170, icon="upload")
        self.upload = widgets.FileUpload(accept=".png,.jpg,.jpeg,.dcm", multiple=False, description="Choose a file")
        self.path = _control(widgets.Text, "", 320, placeholder="or its path")
        self.report = _control(widgets.Button, "Report on it", 130, icon="file-text")
        super().__init__(self.unfold, [self.upload, self.path, self.report])
        self.report.on_click(lambda _: self._run())

    def _run(self) -> None:
        chosen = self._chosen()
        if chosen is None:
            self.message.value = _say("Choose a PNG, JPEG or DICOM file, or give its path.")
            return
        self.report.disabled = True
        self.message.value = _say("The model is reading the image.")
        try:
            with _telling(self.message):
                self._show(self._report_on(*chosen, self._stage()))
                self.message.value = ""
        finally:
            self.report.disabled = False

    def _chosen(self) -> tuple[str, bytes | Path] | None:
        if path := self.path.value.strip():
            return Path(path).name, Path(path).expanduser()
        return uploaded(self.upload.value)


def uploaded(value: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> tuple[str, bytes] | None:
    """Name and bytes of the last uploaded file.

    Args:
        value: of a `FileUpload`: ipywidgets 7 has {name: {"content": bytes}}, 8 ({"name", "content": memoryview},).
    """
    if isinstance(value, Mapping):
        files = [(name, entry["content"]) for name, entry in value.items()]
    else:
        files = [(entry["name"], entry["content"]) for entry in value]
    return (files[-1][0], bytes(files[-1][1])) if files else None


def _slider(name: str, least: float, most: float, label: str = "48px") -> widgets.FloatSlider:
    # A picture a step would flood a slow connection: it is drawn where the slider is let go.
    how = {"value": least, "min": least, "max": most, "step": 0.05, "continuous_update": False}
    return _control(widgets.FloatSlider, name, 250, label, readout_format=".2f", **how)


def _stars(name: str) -> widgets.ToggleButtons:
    return widgets.ToggleButtons(
        options=[(str(score), score) for score in SCORES],
        value=None,
        description=name,
        style={"button_width": "36px", "description_width": "64px"},
    )
