"""Two processes never work on one run, and a process that is no more holds nobody up."""

import errno
import json
import os
import signal
import socket
import subprocess
import sys

import pytest

from radvision_utils import RadVisionError, prepare_dataset, train_stage
from radvision_utils.runs import RunFolder, working

HOLD = """
import sys, time
from radvision_utils.runs import working
from radvision_utils.runs import RunFolder
with working(RunFolder("r", sys.argv[1]), "stage2"):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that works on run "r"."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_the_second_process_refuses_and_names_the_first(holder, tmp_path):
    told = rf"run 'r' is being worked on by process {holder.pid} on {socket.gethostname()} \(stage2 since .*\): wait"
    with pytest.raises(RadVisionError, match=told), working(RunFolder("r", tmp_path), "data"):
        pass


def test_a_lock_of_a_killed_process_is_taken_over(holder, tmp_path, caplog):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    run = RunFolder("r", tmp_path)
    assert (run.path / "lock.json").is_file()
    with caplog.at_level("INFO"), working(run, "data"):
        assert json.loads((run.path / "lock.json").read_text())["process"] == os.getpid()
    assert f"the lock of process {holder.pid}, which is no more, is taken over" in caplog.text
    assert not (run.path / "lock.json").exists()


def test_a_lock_from_another_machine_is_answered_with_what_to_do(tmp_path):
    path = tmp_path / "r" / "lock.json"
    path.parent.mkdir()
    path.write_text(json.dumps({"process": 1, "host": "elsewhere", "step": "stage1", "since": "yesterday"}))
    told = rf"process 1 on elsewhere \(stage1 since yesterday\), .*: if it is no more, delete {path} and"
    with pytest.raises(RadVisionError, match=told), working(RunFolder("r", tmp_path), "data"):
        pass
    assert path.is_file()


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS])
def test_where_the_file_system_has_no_locks_the_record_of_the_holder_is_believed(holder, tmp_path, monkeypatch, number):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", refuse)
    run = RunFolder("r", tmp_path)
    with pytest.raises(RadVisionError, match=f"is being worked on by process {holder.pid} "), working(run, "data"):
        pass
    holder.kill()
    holder.wait()
    with working(run, "data"):
        assert json.loads((run.path / "lock.json").read_text())["process"] == os.getpid()
    (run.path / "lock.json").write_text('{"process": 1, "host": "elsewhere"}')
    with pytest.raises(RadVisionError, match="process 1 on elsewhere"), working(run, "data"):
        pass


def test_a_step_that_fails_leaves_no_lock(tmp_path):
    with pytest.raises(KeyError), working(RunFolder("r", tmp_path), "data"):
        raise KeyError
    with working(RunFolder("r", tmp_path), "data"):
        pass


def test_of_processes_launched_together_the_first_holds_the_run(tmp_path, monkeypatch):
    run = RunFolder("r", tmp_path)
    with working(run, "stage1"):
        monkeypatch.setenv("RANK", "1")
        with working(run, "stage1"):
            pass
        assert (run.path / "lock.json").is_file()


@pytest.mark.parametrize("step", ["data", "stage1", "evaluation", "evidence"])
def test_every_step_that_writes_takes_the_lock(fresh_run, trained, step):
    from radvision_utils import evaluate

    profile = trained if step in ("evaluation", "evidence") else fresh_run()
    if step == "data":
        RunFolder.of(profile).record_path("data").unlink()
    if step == "evidence":
        evaluate(profile)
    work = {
        "data": prepare_dataset,
        "stage1": lambda p: train_stage(p, 1),
        "evaluation": lambda p: evaluate(p, force=True),
        "evidence": lambda p: evaluate(p, evidence=1),
    }[step]
    with working(RunFolder.of(profile), "other"), pytest.raises(RadVisionError, match="is being worked on by process"):
        work(profile)


def test_a_system_without_locks_imports_the_package_and_says_so_before_it_writes(tmp_path):
    code = (
        "import sys; sys.modules['fcntl'] = None\n"  # as on Windows
        "import radvision_utils as r\n"
        "try: r.prepare_dataset(r.load_profile(run='r', output_root=sys.argv[1]))\n"
        "except r.RadVisionError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True)
    assert done.stdout.startswith("this system cannot lock a run"), done.stderr
    assert "WSL" in done.stdout
    assert not list(tmp_path.iterdir())
