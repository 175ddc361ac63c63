"""A small dashboard of widgets for a notebook: step through the report cards of a run.

It reads plain prediction records and uses only what ipywidgets 7.7 (Colab) and 8.1 both have; one HTML value is
swapped, so a step costs one message to the page and leaves no outputs behind.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import ipywidgets as widgets

from radvision_utils.config import RadVisionError
from radvision_utils.dashboard.card import ReportCard, image_path
from radvision_utils.dashboard.content import clean
from radvision_utils.dashboard.markup import escape

_STAGE_LABELS = {0: "base", 1: "stage 1", 2: "stage 2", 3: "stage 3"}


class ReportBrowser(widgets.VBox):
    """Report cards one at a time: previous and next, by index, by study, and by training stage.

    Args:
        records: prediction records; those of one study may differ in stage.
        image_root: the run folder, which the records' image paths are relative to.
        index: the study to begin with, counted from 0 in the order of the records' own index.

    Raises:
        RadVisionError: there are no records, or no study has this index.
    """

    def __init__(self, records: Iterable[Mapping[str, Any]], image_root: Path, index: int = 0) -> None:
        self._root = image_root
        self._studies = _by_study(records)
        self._uids = list(self._studies)
        if not self._uids:
            raise RadVisionError("there are no prediction records to show: evaluate the run first.")
        last = len(self._uids) - 1
        if not 0 <= index <= last:
            raise RadVisionError(f"there is no study at index {index}: use 0 to {last}.")
        self._at = index
        self._stage = max(max(stages) for stages in self._studies.values())
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
        self.message = widgets.HTML()
        self.card = widgets.HTML(layout={"width": "100%"})

        self.previous.on_click(lambda _: self.show(self._at - 1))
        self.next.on_click(lambda _: self.show(self._at + 1))
        self.index.observe(lambda change: self.show(change["new"]), names="value")
        self.uid.observe(lambda change: self._find(change["new"]), names="value")
        self.stage.observe(lambda change: self._choose_stage(change["new"]), names="value")
        wrap = {"flex_flow": "row wrap", "align_items": "center", "width": "100%"}
        controls = widgets.HBox([self.previous, self.next, self.index, self.uid, self.stage], layout=wrap)
        super().__init__([controls, self.message, self.card])
        self.show(index)

    def show(self, index: int) -> None:
        """Show the study at an index, in the stage last chosen or else the latest that it has."""
        if self._settling:  # a control set below reports its new value; only the user's changes are steps
            return
        self._at = min(max(index, 0), len(self._uids) - 1)
        uid = self._uids[self._at]
        stages = self._studies[uid]
        shown = self._stage if self._stage in stages else max(stages)
        self._settling = True
        try:
            self.index.value, self.uid.value = self._at, uid
            self.stage.options = [(_STAGE_LABELS.get(stage, f"stage {stage}"), stage) for stage in sorted(stages)]
            self.stage.value = shown
        finally:
            self._settling = False
        self.previous.disabled = self._at == 0
        self.next.disabled = self._at == len(self._uids) - 1
        self._draw(stages[shown])

    def _draw(self, record: Mapping[str, Any]) -> None:
        note = f"{self._at + 1} of {len(self._uids)} studies"
        try:
            card = ReportCard(record, image_path(record, self._root)).html()
        except RadVisionError as error:  # a callback's error would only reach the log: say it, and show the text
            note, card = str(error), ReportCard(record).html()
        self._say(note)
        self.card.value = card

    def _find(self, uid: str) -> None:
        if self._settling:
            return
        uid = uid.strip()
        if uid in self._studies:
            self.show(self._uids.index(uid))
        else:
            self._say(f"There is no study {uid!r} among these {len(self._uids)}; still showing {self._uids[self._at]}.")

    def _choose_stage(self, stage: int) -> None:
        if not self._settling:
            self._stage = stage
            self.show(self._at)

    def _say(self, words: str) -> None:
        self.message.value = f'<span role="status" aria-live="polite">{escape(words)}</span>'


def _by_study(records: Iterable[Mapping[str, Any]]) -> dict[str, dict[int, Mapping[str, Any]]]:
    """Records by uid and stage; studies in the order of their index."""
    studies: dict[str, dict[int, Mapping[str, Any]]] = {}
    for record in sorted(records, key=lambda record: record.get("index", 0)):
        studies.setdefault(clean(record["uid"]), {})[record["model"]["stage"]] = record
    return studies
