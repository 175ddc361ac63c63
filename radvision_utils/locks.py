"""Work on a run: one process at a time, and a full disk told in one sentence. Knows nothing of torch.

The lock is `outputs/<run>/lock.json`, which names its holder. The operating system's lock on that file ends with the
process however it ends, so a lock left by a killed process is seen to be stale.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from radvision_utils.config import RadVisionError
from radvision_utils.environment import process_rank
from radvision_utils.runs import RunFolder, now

log = logging.getLogger(__name__)

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# safetensors and torch report a failed write as errors of their own; only their words tell.
_FULL_WORDS = ("No space left on device", "Disk quota exceeded", "File too large", "PytorchStreamWriter failed writing")


@contextmanager
def working(run: RunFolder, step: str) -> Iterator[None]:
    """Hold the run while a step writes to it. Of several processes that were launched together the first holds it.

    Raises:
        RadVisionError: another process works on the run; the sentence names it. Or the disk is full.
    """
    with _told_if_full(run), _locked(run, step):
        yield


@contextmanager
def _locked(run: RunFolder, step: str) -> Iterator[None]:
    if process_rank():
        yield
        return
    path = run.path / "lock.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = _acquire(path, run.run)
    try:
        holder = {"process": os.getpid(), "host": socket.gethostname(), "step": step, "since": now()}
        for leftover in run.path.glob(
            ".run.json.*"
        ):  # of a process killed as it wrote: whoever holds the run writes it
            leftover.unlink(missing_ok=True)
        os.ftruncate(handle, 0)
        os.pwrite(handle, (json.dumps(holder) + "\n").encode(), 0)
        yield
    finally:
        path.unlink(missing_ok=True)  # while it is still held: nobody else's lock can be removed
        os.close(handle)


def _acquire(path: Path, run: str) -> int:
    """An open, locked handle of the lock file.

    Raises:
        RadVisionError: another process holds it, or may hold it on another machine.
    """
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        free = _flock(handle)
        holder = _holder(handle)
        if free and os.fstat(handle).st_nlink == 0:
            os.close(handle)  # its holder ended, and removed it, between our opening and our locking it
            continue
        ours = holder.get("host") in (None, socket.gethostname())
        if free is None:  # a file system without locks
            free = not (ours and _alive(holder.get("process")))
        if free and ours:
            if holder:
                log.info("the lock of process %s, which is no more, is taken over", holder.get("process"))
            return handle
        os.close(handle)
        who = f"process {holder.get('process', '(unknown)')} on {holder.get('host', 'this machine')}"
        what = f"{holder.get('step', 'a step')} since {holder.get('since', 'just now')}"
        if free:
            raise RadVisionError(
                f"run {run!r} was being worked on by {who} ({what}), which cannot be seen from "
                f"{socket.gethostname()}: if it is no more, delete {path} and give the same command again."
            )
        raise RadVisionError(
            f"run {run!r} is being worked on by {who} ({what}): wait until it ends, or use another name with --run."
        )


def _flock(handle: int) -> bool | None:
    """Whether the handle could be locked; None where the file system has no locks."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK, errno.EINVAL):
            return None
        raise
    return True


def _holder(handle: int) -> dict[str, Any]:
    """Who wrote the lock; empty where nobody did, or not to the end."""
    try:
        holder = json.loads(os.pread(handle, 4096, 0))
    except ValueError:
        return {}
    return holder if isinstance(holder, dict) else {}


def _alive(process: Any) -> bool:
    if not isinstance(process, int):
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


@contextmanager
def _told_if_full(run: RunFolder) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if not is_disk_full(error):
            raise
        there = next(folder for folder in (run.path, *run.path.parents) if folder.is_dir())
        free = shutil.disk_usage(there).free / 2**30
        raise RadVisionError(
            f"a file in {run.path} could not be written to its end ({_first_line(error)}; {free:.1f} GiB are free): "
            "make room and give the same command again; what was finished before is whole."
        ) from error


def is_disk_full(error: BaseException) -> bool:
    """Whether an error means that the disk, the quota or the largest file size was reached."""
    if isinstance(error, OSError) and error.errno in _FULL:
        return True
    return any(words in str(error) for words in _FULL_WORDS)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
