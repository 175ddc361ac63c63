"""The copies that docs show: small, without widgets, and silent about the machine that made them."""

import base64
import importlib.util
import io
import json

import nbformat
import numpy as np
import pytest
from PIL import Image

from radvision_utils import RadVisionError, evaluate
from radvision_utils.config import project_root
from radvision_utils.runs import NOTEBOOKS, RunFolder

spec = importlib.util.spec_from_file_location("copies", project_root() / "docs" / "copies.py")
copies = importlib.util.module_from_spec(spec)
spec.loader.exec_module(copies)


@pytest.fixture
def run(trained):
    """The small run with executed notebooks of one cell: a large picture, a widget and a path of this machine."""
    evaluate(trained)
    run = RunFolder.of(trained)
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (300, 1500, 3), np.uint8)).save(stream, "PNG")
    picture = {"image/png": base64.b64encode(stream.getvalue()).decode(), "text/plain": "<Figure>"}
    widget = {"application/vnd.jupyter.widget-view+json": {"model_id": "1"}, "text/plain": f"in {run.path}"}
    outputs = [nbformat.v4.new_output("display_data", data) for data in (picture, widget)]
    outputs.append(nbformat.v4.new_output("stream", text=f"{run.path}\n"))
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1", outputs=outputs)])
    run.notebooks.mkdir(exist_ok=True)
    for name in NOTEBOOKS.values():
        nbformat.write(notebook, run.notebooks / f"{name}.ipynb")
    return run


def test_copies_are_small_and_name_no_machine(run, tmp_path):
    assert copies.write_copies(run, tmp_path) < copies.MOST_BYTES
    for name in NOTEBOOKS.values():
        text = (tmp_path / "notebooks" / f"{name}.ipynb").read_text(encoding="utf-8")
        assert str(run.path) not in text
        [picture, widget, _] = json.loads(text)["cells"][0]["outputs"]
        assert "widget-view" not in json.dumps(widget)
        image = Image.open(io.BytesIO(base64.b64decode("".join(picture["data"]["image/png"]))))
        assert image.width <= 1000
    assert (tmp_path / "dashboard" / "index.html").read_text(encoding="utf-8").count("<article") > 1


def test_copies_that_are_too_large_are_refused(run, tmp_path, monkeypatch):
    monkeypatch.setattr(copies, "MOST_BYTES", 1000)
    with pytest.raises(RadVisionError, match="make their pictures smaller"):
        copies.write_copies(run, tmp_path)
