"""Notebook 5 in a real JupyterLab: run all, press Next, see another study. Skipped where there is none."""

import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import nbformat
import pytest

from radvision_utils.config import project_root
from radvision_utils.runs import NOTEBOOKS

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
KERNEL_IS_READY = """() => {
  const panel = window.jupyterapp && window.jupyterapp.shell.currentWidget;
  const session = panel && panel.sessionContext && panel.sessionContext.session;
  return session && session.kernel && session.kernel.status === 'idle';
}"""
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium or google-chrome on the path"),
    pytest.mark.skipif(importlib.util.find_spec("jupyterlab") is None, reason="jupyterlab is not installed"),
]


@pytest.fixture
def notebook(trained, tmp_path):
    """A copy of notebook 5, set to the small run, in a folder that has the package beside it."""
    (tmp_path / "radvision_utils").symlink_to(project_root() / "radvision_utils")
    book = nbformat.read(project_root() / "notebooks" / f"{NOTEBOOKS['evaluation']}.ipynb", as_version=4)
    whole = {f"{part}.{key}": v for part, d in trained.to_dict().items() if isinstance(d, dict) for key, v in d.items()}
    settings = {"run": trained.run, "output_root": trained.output_root, "overrides": json.dumps(whole)}
    for cell in book.cells:
        if "parameters" in cell.metadata.get("tags", []):
            cell.source += "\n" + "\n".join(f"{name} = {value!r}" for name, value in settings.items())
            cell.source += f"\nseed = {trained.seed}"
    nbformat.write(book, tmp_path / "five.ipynb")
    return tmp_path / "five.ipynb"


@pytest.fixture
def lab(notebook, tmp_path):
    """A JupyterLab of its own that serves the notebook's folder; gives its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = tmp_path / "settings" / "@jupyterlab" / "notebook-extension" / "tracker.jupyterlab-settings"
    settings.parent.mkdir(parents=True)
    settings.write_text('{"windowingMode": "none"}', encoding="utf-8")  # every cell is in the page, in sight or not
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--ServerApp.port={port}"]
    command += [f"--ServerApp.root_dir={notebook.parent}", "--IdentityProvider.token=", "--ServerApp.port_retries=0"]
    command += ["--ServerApp.password=", "--LabApp.expose_app_in_browser=True"]
    environment = {**os.environ, "JUPYTERLAB_SETTINGS_DIR": str(tmp_path / "settings")}
    with (tmp_path / "lab.log").open("wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=notebook.parent)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(120):
            try:
                urllib.request.urlopen(f"{address}/api", timeout=2).close()
                break
            except (urllib.error.URLError, OSError):
                assert server.poll() is None, (tmp_path / "lab.log").read_text(encoding="utf-8")[-2000:]
                time.sleep(0.5)
        yield address
    finally:
        server.terminate()
        server.wait(timeout=30)


def test_run_all_then_next_shows_another_study(lab):
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1440, "height": 1000})
        page.goto(f"{lab}/lab/tree/five.ipynb")
        page.wait_for_function(KERNEL_IS_READY, timeout=90_000)  # before, the command does nothing
        page.evaluate("void window.jupyterapp.commands.execute('notebook:run-all-cells')")
        card = page.locator(".jupyter-widgets .rv-study").first
        card.wait_for(timeout=240_000)
        before = card.inner_text()
        page.locator("button.jupyter-button:has-text('Next')").click()
        page.wait_for_function(
            "before => document.querySelector('.jupyter-widgets .rv-study').innerText !== before", arg=before
        )
        assert card.inner_text().startswith("Study ")
        pictures = project_root() / "outputs" / "screenshots"
        pictures.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=pictures / "browser-jupyterlab.png")
        browser.close()
