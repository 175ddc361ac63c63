"""A small dashboard of widgets for a notebook: step, sort and filter through the report cards of a run.

It reads plain prediction records and uses only what ipywidgets 7.7 (Colab) and 8.1 both have; one HTML value is
swapped, so a step costs one message to the page and leaves no outputs behind.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import ipywidgets as widgets

from radvision_utils.config import RadVisionError
from radvision_utils.dashboard import records as recorded
from radvision_utils.dashboard.card import ReportCard
from radvision_utils.dashboard.content import VERDICTS, clean
from radvision_utils.dashboard.evidence import most_samples
from radvision_utils.dashboard.panels import WRAP, BlindPanel, OwnImagePanel, ReportOn, ViewPanel, say

_STAGE_LABELS = {0: "base", 1: "stage 1", 2: "stage 2", 3: "stage 3"}


class ReportBrowser(widgets.VBox):
    """Report cards one at a time, by index or study, sorted and filtered, in each training stage.

    Args:
        records: prediction records; those of one study may differ in stage.
        image_root: the run folder, which the records' image paths are relative to, and that keeps `ratings.jsonl`.
        index: the study to begin with, counted from 0 in the order of the records' own index.
        report_on: a live model for images of one's own; without it there is no such button.

    Raises:
        RadVisionError: there are no records, or no study has this index.
    """

    def __init__(
        self,
        records: Iterable[Mapping[str, Any]],
        image_root: Path,
        index: int = 0,
        report_on: ReportOn | None = None,
    ) -> None:
        self._root = image_root
        self._studies = _by_study(records)
        self._uids = list(self._studies)
        if not self._uids:
            raise RadVisionError("there are no prediction records to show: evaluate the run first.")
        last = len(self._uids) - 1
        if not 0 <= index <= last:
            raise RadVisionError(f"there is no study at index {index}: use 0 to {last}.")
        self._listed = self._uids  # those that fit the filter, in the order of the sort
        self._uid = self._uids[index]
        self._stage = max(max(stages) for stages in self._studies.values())
        self._card: ReportCard
        self._settling = False

        self.previous = widgets.Button(description="Previous", icon="arrow-left", layout={"width": "110px"})
        self.next = widgets.Button(description="Next", icon="arrow-right", layout={"width": "110px"})
        self.index = widgets.BoundedIntText(
            min=0, max=last, description="Index", layout={"width": "150px"}, style={"description_width": "44px"}
        )
        self.uid = widgets.Combobox(
            options=self._uids,
            description="Study",
            placeholder="uid",
            continuous_update=False,  # judge a uid when it is entered, not at each key
            layout={"width": "190px"},
            style={"description_width": "44px"},
        )
        self.stage = widgets.ToggleButtons(style={"button_width": "76px"})
        every = [record for stages in self._studies.values() for record in stages.values()]
        self.order = _dropdown("Sort by", list(recorded.ORDERS), "220px")
        self.observation = _dropdown("Observation", recorded.observations(every), "260px", any_=True)
        self.verdict = _dropdown("Verdict", list(VERDICTS), "190px", any_=True)
        self.flag = _dropdown("Flag", recorded.flags(every), "250px", any_=True)
        self.message, self.card = widgets.HTML(), widgets.HTML(layout={"width": "auto"})
        mapped = any(record.get("evidence") for record in every)
        self.view = ViewPanel(self._redraw, mapped, most_samples(every))
        self.rating = BlindPanel(image_root / "ratings.jsonl", self._show_current)

        self.previous.on_click(lambda _: self._step(-1))
        self.next.on_click(lambda _: self._step(1))
        self.index.observe(lambda change: self.show(change["new"]), names="value")
        self.uid.observe(lambda change: self._find(change["new"]), names="value")
        self.stage.observe(lambda change: self._choose_stage(change["new"]), names="value")
        for choice in (self.order, self.observation, self.verdict, self.flag):
            choice.observe(lambda _: self._arrange(), names="value")
        panels: list[widgets.Widget] = [
            widgets.HBox([self.previous, self.next, self.index, self.uid, self.stage], layout=WRAP),
            widgets.HBox([self.order, self.observation, self.verdict, self.flag], layout=WRAP),
            self.view,
            self.rating,
        ]
        if report_on:
            self.own = OwnImagePanel(report_on, lambda: self._stage, self._show_card)
            panels.append(self.own)
        super().__init__([*panels, self.message, self.card])
        self._show_current()

    def show(self, index: int) -> None:
        """Show the study at an index, in the stage last chosen or else the latest that it has.

        A study that the filter leaves out is shown too, and the filter is taken away.
        """
        if self._settling:  # a control set below reports its new value; only the user's changes are steps
            return
        self._uid = self._uids[min(max(index, 0), len(self._uids) - 1)]
        self._show_current()

    def _step(self, by: int) -> None:
        self._uid = self._listed[min(max(self._listed.index(self._uid) + by, 0), len(self._listed) - 1)]
        self._show_current()

    def _show_current(self) -> None:
        if self._uid not in self._listed:
            self._unfilter()
        stages = self._studies[self._uid]
        shown = self._stage if self._stage in stages else max(stages)
        self._settling = True
        try:
            self.index.value, self.uid.value = self._uids.index(self._uid), self._uid
            self.stage.options = [(_STAGE_LABELS.get(stage, f"stage {stage}"), stage) for stage in sorted(stages)]
            self.stage.value = shown
        finally:
            self._settling = False
        place = self._listed.index(self._uid)
        self.previous.disabled, self.next.disabled = place == 0, place == len(self._listed) - 1
        whole = "" if len(self._listed) == len(self._uids) else f", filtered from {len(self._uids)}"
        record = stages[shown]
        self.rating.show(record)
        blind = self.rating.order(record)
        try:
            self._show_card(ReportCard(record, recorded.image_path(record, self._root), blind=blind))
            self.message.value = say(f"{place + 1} of {len(self._listed)} studies{whole}")
        except RadVisionError as error:  # a callback's error would only reach the log: say it, and show the text
            self._show_card(ReportCard(record, blind=blind))
            self.message.value = say(str(error))

    def _show_card(self, card: ReportCard) -> None:
        self._card = card
        self._redraw()

    def _redraw(self) -> None:
        self.card.value = replace(self._card, view=self.view.view).html()

    def _arrange(self) -> None:
        """Sort and filter by the stage that is shown; a choice that no study fits is told and changes nothing."""
        if self._settling:
            return
        found = {uid: stages.get(self._stage) or stages[max(stages)] for uid, stages in self._studies.items()}
        wanted = (self.observation.value, self.verdict.value, self.flag.value)
        fitting = [uid for uid, record in found.items() if recorded.fits(record, *wanted)]
        if not fitting:
            self.message.value = say(f"No study fits this choice; still showing {self._uid}.")
            return
        order = recorded.ORDERS[self.order.value]
        self._listed = sorted(fitting, key=lambda uid: order(found[uid]))
        self._uid = self._listed[0]
        self._show_current()

    def _unfilter(self) -> None:
        self._settling = True
        self.observation.value = self.verdict.value = self.flag.value = ""
        self.order.value = next(iter(recorded.ORDERS))
        self._settling = False
        self._listed = self._uids

    def _find(self, uid: str) -> None:
        if self._settling:
            return
        uid = uid.strip()
        if uid in self._studies:
            self.show(self._uids.index(uid))
        else:
            self.message.value = say(
                f"There is no study {uid!r} among these {len(self._uids)}; still showing {self._uid}."
            )

    def _choose_stage(self, stage: int) -> None:
        if not self._settling:
            self._stage = stage
            self._show_current()


def _dropdown(name: str, values: list[str], width: str, any_: bool = False) -> widgets.Dropdown:
    options = [("any", "")] * any_ + [(value, value) for value in values]
    return widgets.Dropdown(
        options=options,
        value=options[0][1],
        description=name,
        layout={"width": width, "margin": "2px 14px 2px 2px"},
        style={"description_width": "initial"},
    )


def _by_study(records: Iterable[Mapping[str, Any]]) -> dict[str, dict[int, Mapping[str, Any]]]:
    """Records by uid and stage; studies in the order of their index."""
    studies: dict[str, dict[int, Mapping[str, Any]]] = {}
    for record in sorted(records, key=recorded.ORDERS["index"]):
        studies.setdefault(clean(record["uid"]), {})[record["model"]["stage"]] = record
    return studies
