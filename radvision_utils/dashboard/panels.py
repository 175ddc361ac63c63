"""Parts of the notebook browser: the radiograph's window, blind rating, a report on an image of one's own.

Each is a box of widgets that knows nothing of the others; the browser is told through a callback.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ipywidgets as widgets

from radvision_utils.config import RadVisionError
from radvision_utils.dashboard.card import ReportCard
from radvision_utils.dashboard.images import View
from radvision_utils.dashboard.markup import escape
from radvision_utils.dashboard.ratings import SCORES, add_ratings, read_ratings, summary

WRAP = {"flex_flow": "row wrap", "align_items": "center", "width": "100%"}
ReportOn = Callable[[str, bytes | Path, int], ReportCard]
"""Reports on an image of one's own: its name, the file's bytes or path, the stage."""


def say(words: str) -> str:
    """Words of the program or of a record as a line of status."""
    return f'<span role="status" aria-live="polite">{escape(words)}</span>'


class ViewPanel(widgets.HBox):
    """Window, inversion and zoom of the radiograph, its evidence maps, and which sentences are hidden.

    Args:
        changed: called after each change.
        mapped: whether some record has evidence maps; else there is no slider for them.
        samples: how many reports were sampled for the agreement of sentences; 0 leaves out that choice.
    """

    def __init__(self, changed: Callable[[], None], mapped: bool = False, samples: int = 0) -> None:
        self.center = _slider("Center", 0.5, 0.0, 1.0)
        self.width = _slider("Width", 1.0, 0.05, 1.0)
        self.zoom = _slider("Zoom", 1.0, 1.0, 4.0)
        self.invert = widgets.ToggleButton(description="Invert", icon="adjust", layout={"width": "100px"})
        self.reset = widgets.Button(description="Reset view", layout={"width": "100px"})
        self.evidence = _slider("Evidence", 0.0, 0.0, 1.0, label="62px")
        self.agreement = widgets.Dropdown(
            options=[("nothing", 0)] + [(f"below {n} of {samples}", n) for n in range(1, samples + 1)],
            value=0,
            description="Hide sentences",
            layout={"width": "240px"},
            style={"description_width": "initial"},
        )
        self._changed, self._settling = changed, False
        asked = [self.evidence] * mapped + [self.agreement] * (samples > 0)
        for control in (self.center, self.width, self.zoom, self.invert, *asked):
            control.observe(lambda _: self._tell(), names="value")
        self.reset.on_click(lambda _: self._reset())
        super().__init__([self.center, self.width, self.zoom, self.invert, self.reset, *asked], layout=WRAP)

    @property
    def view(self) -> View:
        return View(
            self.center.value,
            self.width.value,
            self.invert.value,
            self.zoom.value,
            map_strength=self.evidence.value,
            least_agreement=self.agreement.value,
        )

    def _reset(self) -> None:
        self._settling = True
        self.center.value, self.width.value, self.zoom.value, self.invert.value = 0.5, 1.0, 1.0, False
        self._settling = False
        self._changed()

    def _tell(self) -> None:
        if not self._settling:
            self._changed()


class BlindPanel(widgets.VBox):
    """Blind rating: which text is whose stays hidden until `blind` is switched off, which sums the ratings up.

    Args:
        path: the `ratings.jsonl` to append to.
        changed: called when blind mode begins or ends.
    """

    def __init__(self, path: Path, changed: Callable[[], None]) -> None:
        self._path, self._salt = path, secrets.token_bytes(8)  # nobody can work out whose report A is
        self._record: Mapping[str, Any] = {}
        self.blind = widgets.ToggleButton(description="Blind rating", icon="eye-slash", layout={"width": "130px"})
        self.scores = [_stars("Report A"), _stars("Report B")]
        self.comment = widgets.Text(placeholder="comment", layout={"width": "260px"})
        self.save = widgets.Button(description="Save rating", icon="check", layout={"width": "130px"})
        self.rating = widgets.HBox([*self.scores, self.comment, self.save], layout={**WRAP, "display": "none"})
        self.message = widgets.HTML()
        self.save.on_click(lambda _: self._save())
        self.blind.observe(lambda change: self._switch(change["new"], changed), names="value")
        super().__init__([widgets.HBox([self.blind, self.message], layout=WRAP), self.rating])

    def order(self, record: Mapping[str, Any]) -> tuple[str, str] | None:
        """Who wrote reports A and B of a record, the same whenever it is shown; None while nothing is hidden."""
        if not self.blind.value:
            return None
        key = f"{record['uid']} {record['model']['stage']}".encode()
        odd = hashlib.blake2b(key, key=self._salt).digest()[0] % 2
        return ("reference", "generated") if odd else ("generated", "reference")

    def show(self, record: Mapping[str, Any]) -> None:
        """Begin with another record: no score, no comment."""
        self._record = record
        for stars in self.scores:
            stars.value = None
        self.comment.value = ""

    def _switch(self, blind: bool, changed: Callable[[], None]) -> None:
        self.rating.layout.display = "flex" if blind else "none"
        self.message.value = say("1 is unusable, 5 as good as it gets.") if blind else self._summed_up()
        changed()

    def _save(self) -> None:
        order, scores = self.order(self._record), tuple(stars.value for stars in self.scores)
        if order is None:
            return
        if None in scores:
            self.message.value = say("Rate both reports from 1 to 5, then save.")
            return
        add_ratings(self._path, self._record, order, scores, self.comment.value.strip())
        rated = len(read_ratings(self._path)) // 2
        self.message.value = say(f"Saved; {rated} {'study' if rated == 1 else 'studies'} rated.")

    def _summed_up(self) -> str:
        rows = summary(read_ratings(self._path))
        if not rows:
            return say("Nothing has been rated yet.")
        names = {"author": "Report", "n": "Rated", "mean": "Mean", "preferred": "Rated higher"}
        heads = "".join(f"<th>{names.get(key, key)}</th>" for key in rows[0])
        lines = [[f"{v:.2f}" if isinstance(v, float) else str(v) for v in row.values()] for row in rows]
        body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in line)}</tr>" for line in lines)
        return f'<table class="rv-ratings" cellpadding="6"><tr>{heads}</tr>{body}</table>'


class OwnImagePanel(widgets.VBox):
    """A report on an image of one's own, uploaded or by its path.

    Args:
        report_on: the live model.
        stage: gives the stage to report with.
        show: is handed the card.
    """

    def __init__(self, report_on: ReportOn, stage: Callable[[], int], show: Callable[[ReportCard], None]) -> None:
        self._report_on, self._stage, self._show = report_on, stage, show
        self.unfold = widgets.ToggleButton(description="Image of my own", icon="upload", layout={"width": "170px"})
        self.upload = widgets.FileUpload(accept=".png,.jpg,.jpeg,.dcm", multiple=False, description="Choose a file")
        self.path = widgets.Text(placeholder="or its path", layout={"width": "320px"})
        self.report = widgets.Button(description="Report on it", icon="file-text", layout={"width": "130px"})
        self.message = widgets.HTML()
        self.form = widgets.HBox([self.upload, self.path, self.report], layout={**WRAP, "display": "none"})
        self.unfold.observe(lambda change: self._switch(change["new"]), names="value")
        self.report.on_click(lambda _: self._run())
        super().__init__([widgets.HBox([self.unfold, self.message], layout=WRAP), self.form])

    def _switch(self, opened: bool) -> None:
        self.form.layout.display = "flex" if opened else "none"

    def _run(self) -> None:
        chosen = self._chosen()
        if chosen is None:
            self.message.value = say("Choose a PNG, JPEG or DICOM file, or give its path.")
            return
        self.report.disabled = True
        self.message.value = say("The model is reading the image.")
        try:
            self._show(self._report_on(*chosen, self._stage()))
            self.message.value = ""
        except RadVisionError as error:  # a callback's error would only reach the log
            self.message.value = say(str(error))
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


def _slider(name: str, value: float, least: float, most: float, label: str = "48px") -> widgets.FloatSlider:
    return widgets.FloatSlider(
        value=value,
        min=least,
        max=most,
        step=0.05,
        description=name,
        continuous_update=False,  # a picture a step would flood a slow connection
        readout_format=".2f",
        layout={"width": "250px"},
        style={"description_width": label},
    )


def _stars(name: str) -> widgets.ToggleButtons:
    return widgets.ToggleButtons(
        options=[(str(score), score) for score in SCORES],
        value=None,
        description=name,
        style={"button_width": "36px", "description_width": "64px"},
    )
