"""What one sees without running anything: a run's executed notebooks and a dashboard of 60 of its studies, to look at.

`python docs/copies.py [RUN]` writes them from a finished run into `docs/notebooks/` (at most 6 MB) and
`docs/dashboard/`. GitHub shows no widgets and little of a card's HTML: in a copy, pictures stand in their place.
"""

from __future__ import annotations

import base64
import io
import re
import shutil
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import nbformat
from PIL import Image

from radvision_utils.cards import predict_beautiful
from radvision_utils.config import RadVisionError
from radvision_utils.dashboard.page import write_page
from radvision_utils.dashboard.record import read_predictions
from radvision_utils.runs import NOTEBOOKS, RunFolder

STUDIES = 60
MOST_BYTES = 6_000_000  # of the notebooks
_COLORS = 64  # of a picture; radiographs and charts look the same, for a third of the bytes
_WIDTH = 1000  # pixels of a picture at most


def write_copies(run: RunFolder, to: Path) -> int:
    """Write the copies of a finished run below a folder; returns the bytes of the notebooks.

    Raises:
        RadVisionError: a notebook was not executed, or the notebooks are larger than `MOST_BYTES`.
    """
    copies = {}
    for name in NOTEBOOKS.values():
        executed = run.notebooks / f"{name}.ipynb"
        if not executed.is_file():
            raise RadVisionError(
                f"{executed} is missing: make it with `python -m radvision_utils run --run {run.run}`."
            )
        notebook = nbformat.read(executed, as_version=4)
        slim(notebook, run)
        copies[executed.name] = notebook
    shutil.rmtree(to / "notebooks", ignore_errors=True)
    (to / "notebooks").mkdir(parents=True)
    for file, notebook in copies.items():
        nbformat.write(notebook, to / "notebooks" / file)
    shown = [record for record in read_predictions(run.predictions) if (record.index or 0) < STUDIES]
    write_page(shown, run.record("evaluation") or {}, run.path, to / "dashboard" / "index.html")
    size = sum(path.stat().st_size for path in (to / "notebooks").iterdir())
    if size > MOST_BYTES:
        raise RadVisionError(
            f"the notebooks in {to} have {size / 1e6:.1f} MB: make their pictures smaller in {Path(__file__).name}."
        )
    return size


def slim(notebook: Any, run: RunFolder) -> None:
    """Take out of an executed notebook what a reader cannot see, make its pictures small, and name no machine."""
    notebook.metadata.pop("widgets", None)
    notebook.metadata.pop("papermill", None)
    for cell in notebook.cells:
        cell.metadata.pop("papermill", None)
        cell["source"] = cell["source"].replace(str(run.path.parent), "outputs")
        for output in cell.get("outputs", []):
            if "text" in output:
                output["text"] = output["text"].replace(str(run.path), f"outputs/{run.run}")
            if "data" in output:
                output["data"] = _small(output["data"], run)


def _small(data: dict[str, Any], run: RunFolder) -> dict[str, Any]:
    """The kinds of an output that GitHub shows; in place of a card its picture."""
    plain, html = str(data.get("text/plain", "")), str(data.get("text/html", ""))
    if study := re.search(r'aria-label="Report card of study ([^"]+)"', html):
        split = "validation" if "(validation split" in plain else "test"
        root = str(run.path.parent)
        card = predict_beautiful(uid=study[1], run=run.run, split=split, output_root=root, before=0)
        with TemporaryDirectory() as folder:
            picture = card.save(Path(folder) / "card.png", width=_WIDTH).read_bytes()
        return {"image/png": _reduced(picture), "text/plain": plain}
    if "image/png" in data:
        return {"image/png": _reduced(base64.b64decode(data["image/png"])), "text/plain": plain}
    kept = {kind: str(data[kind]) for kind in ("text/html", "text/plain") if kind in data}
    return {kind: text.replace(str(run.path), f"outputs/{run.run}") for kind, text in kept.items()}


def _reduced(png: bytes) -> str:
    image = Image.open(io.BytesIO(png)).convert("RGB")
    image.thumbnail((_WIDTH, 4 * _WIDTH), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    image.quantize(_COLORS).save(stream, "PNG", optimize=True)
    return base64.b64encode(stream.getvalue()).decode()


if __name__ == "__main__":
    try:
        here = Path(__file__).parent
        written = write_copies(RunFolder(sys.argv[1] if len(sys.argv) > 1 else "tiny"), here)
        print(f"{written / 1e6:.1f} MB in {here / 'notebooks'}; {here / 'dashboard' / 'index.html'}")
    except RadVisionError as error:
        sys.exit(f"radvision: {error}")
