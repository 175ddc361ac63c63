"""Progress of long work: a bar where somebody watches, a log line now and then where nobody does."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from radvision_utils.environment import in_live_notebook

Progress = Callable[[int, int | None], None]
"""Called with (done, total or None if unknown)."""

_SECONDS = 10.0  # between log lines

log = logging.getLogger(__name__)


@contextmanager
def show_progress(total: int | None, callback: Progress | None = None) -> Iterator[Callable[[int], None]]:
    """Give a function to call with the number of studies done; it shows it.

    Args:
        total: studies to do, None if unknown.
        callback: called instead of showing anything.
    """
    if callback is not None:
        yield lambda done: callback(done, total)
    elif _is_watched():
        from tqdm.auto import tqdm

        with tqdm(total=total, unit="study", mininterval=0.5) as bar:
            yield lambda done: bar.update(done - bar.n) and None
    else:
        yield _logged(total)


def _is_watched() -> bool:
    return sys.stderr.isatty() or in_live_notebook()


def _logged(total: int | None) -> Callable[[int], None]:
    started = last = time.monotonic()

    def step(done: int) -> None:
        nonlocal last
        moment = time.monotonic()
        if moment - last < _SECONDS:
            return
        last, rate = moment, done / (moment - started)
        left = f", {(total - done) / rate:.0f} s left" if total else ""
        log.info("%d%s studies, %.1f/s%s", done, f" of {total}" if total else "", rate, left)

    return step


def download_bar() -> type[Any]:
    """The class of bars for `huggingface_hub.snapshot_download`: shown where somebody watches, else lines of the log.

    The hub's own class is silent here, see `environment.quiet_libraries`.
    """
    from tqdm.auto import tqdm as bar
    from tqdm.std import tqdm as plain

    class Bar(bar if _is_watched() else plain):  # type: ignore[misc]
        last = 0.0

        def __init__(self, *args: Any, name: str = "", disable: bool | None = None, **options: Any) -> None:
            super().__init__(*args, **options)  # without what only the hub's own class understands or obeys

    class Lines(Bar):
        def display(self, *args: Any, **options: Any) -> None:
            moment = time.monotonic()
            if self.unit == "B" and self.n and moment - Lines.last > _SECONDS:  # it counts files in another bar
                Lines.last = moment
                log.info("%.1f of %.1f GiB fetched", self.n / 2**30, self.total / 2**30)

    return Bar if _is_watched() else Lines
