"""What strangers give us is data and never code, paths stay in their folders, and local sources need no network."""

import ast
import contextlib
import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest
import torch

from radvision_utils import RadVisionError, load_profile, train_stage
from radvision_utils.config import ModelSettings, project_root
from radvision_utils.dashboard.record import Record, image_path
from radvision_utils.data.reports import Report
from radvision_utils.data.studies import Studies
from radvision_utils.environment import choose_device
from radvision_utils.evaluation.records import Model
from radvision_utils.files import list_files
from radvision_utils.model.base import load_adapter, load_base, load_processor
from radvision_utils.model.folder import TINY_BASE
from radvision_utils.runs import RunFolder

PICKLES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
RUNNERS = {"eval", "exec", "__import__"}


def code_of(path: Path) -> ast.Module:
    if path.suffix == ".py":
        return ast.parse(path.read_text(encoding="utf-8"))
    cells = [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    lines = "\n".join("".join(cell["source"]) for cell in cells).splitlines()
    return ast.parse("\n".join("" if line.lstrip().startswith(("%", "!")) else line for line in lines))


def dangers(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = {alias.name.split(".")[0] for alias in node.names} if isinstance(node, ast.Import) else set()
            names |= {(node.module or "").split(".")[0]} if isinstance(node, ast.ImportFrom) else set()
            yield from sorted(names & PICKLES)
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        options = {word.arg: ast.unparse(word.value) for word in node.keywords}
        if called in RUNNERS or called == "os.system" or options.get("shell") == "True":
            yield called
        if called == "torch.load" and options.get("weights_only") != "True":
            yield "torch.load"
        if options.get("trust_remote_code", "False") != "False" or options.get("allow_pickle", "False") != "False":
            yield called
        if called.endswith("yaml.load"):
            yield called


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from joblib import load",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path, allow_pickle=True)",
        "AutoModel.from_pretrained(name, trust_remote_code=True)",
        "eval(text)",
        "subprocess.run(text, shell=True)",
    ],
)
def test_the_scan_below_sees_what_it_looks_for(code):
    assert list(dangers(ast.parse(code)))


def test_nothing_unpickles_or_runs_text_or_trusts_remote_code():
    files = [*(project_root() / "radvision_utils").rglob("*.py"), *(project_root() / "notebooks").glob("*.ipynb")]
    assert len(files) > 60
    found = {str(path): list(dangers(code_of(path))) for path in files}
    assert {path: names for path, names in found.items() if names} == {}


class Trap:
    """Unpickled, it writes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return (Path.write_text, (self.marker, "a stranger's code ran"))


def plant(path: Path, marker: Path) -> None:
    path.write_bytes(pickle.dumps(Trap(marker)))


def test_the_trap_works(tmp_path):
    plant(tmp_path / "trap.pkl", tmp_path / "marker")
    pickle.loads((tmp_path / "trap.pkl").read_bytes())
    assert (tmp_path / "marker").is_file()


def test_pickles_in_an_adapter_folder_are_refused_or_left_alone(trained, tmp_path):
    folder, marker = tmp_path / "adapter", tmp_path / "marker"
    shutil.copytree(RunFolder.of(trained).adapter(1), folder)
    for name in ("adapter_model.bin", "pytorch_model.bin", "training_args.bin", "optimizer.pt"):
        plant(folder / name, marker)
    load_adapter(load_base(trained.model, choose_device()), folder)
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(RadVisionError, match=r"adapter_model\.safetensors is missing"):
        load_adapter(load_base(trained.model, choose_device()), folder)
    assert not marker.exists()


def test_a_base_in_a_pickle_or_with_code_of_its_own_is_not_run(tmp_path):
    folder, marker = tmp_path / "base", tmp_path / "marker"
    shutil.copytree(TINY_BASE, folder)
    (folder / "evil.py").write_text(f"open({str(marker)!r}, 'w').write('ran')\nclass Any: pass\n")
    for name, kinds in (
        ("config.json", ("AutoConfig", "AutoModelForImageTextToText")),
        ("processor_config.json", ("AutoProcessor",)),
        ("tokenizer_config.json", ("AutoTokenizer",)),
    ):
        path = folder / name
        if path.is_file():
            known = json.loads(path.read_text())
            path.write_text(json.dumps({**known, "auto_map": dict.fromkeys(kinds, "evil.Any")}))
    settings = ModelSettings(base=str(folder))
    for load in (lambda: load_base(settings, choose_device()), lambda: load_processor(settings, 512)):
        with pytest.raises(RadVisionError, match=r"config\.json asks for code of its own \(auto_map\)"):
            load()
    for path in folder.glob("*config.json"):
        shutil.copyfile(TINY_BASE / path.name, path)
    (folder / "model.safetensors").unlink()
    plant(folder / "pytorch_model.bin", marker)
    with pytest.raises(RadVisionError, match="cannot be loaded"):
        load_base(settings, choose_device())
    assert not marker.exists()


def test_pickles_in_a_checkpoint_are_not_run(small_profile, dataset, tmp_path, small_settings):
    overrides = {**small_settings, "stage1.save_steps": 1, "stage1.max_steps": 2, "stage1.optimizer": "adamw_torch"}
    profile = load_profile("tiny", overrides, run="small", output_root=str(tmp_path), seed=small_profile.seed)
    shutil.copytree(RunFolder.of(small_profile).data, RunFolder.of(profile).data)
    stopped = tmp_path / "stopped"

    class Stop(BaseException):
        pass

    from transformers import Trainer

    whole, marker = Trainer._maybe_log_save_evaluate, tmp_path / "marker"

    def stop_after_a_save(self, *args, **kwargs):
        whole(self, *args, **kwargs)
        stopped.write_text(self.args.output_dir)
        raise Stop

    Trainer._maybe_log_save_evaluate = stop_after_a_save
    try:
        with pytest.raises(Stop):
            train_stage(profile, 1)
    finally:
        Trainer._maybe_log_save_evaluate = whole
    checkpoint = Path(stopped.read_text()) / "checkpoint-1"
    planted = [path for path in checkpoint.iterdir() if path.suffix in (".pt", ".pth", ".bin")]
    assert {"optimizer.pt", "rng_state.pth"} <= {path.name for path in planted}
    for path in planted:
        plant(path, marker)
    list_files(checkpoint)
    with contextlib.suppress(Exception):  # it may refuse, in whatever words; it must not run what it reads
        train_stage(profile, 1)
    assert not marker.exists()


def test_torch_refuses_our_trap_where_weights_only_is_asked_for(tmp_path):
    plant(tmp_path / "optimizer.pt", tmp_path / "marker")
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "optimizer.pt", weights_only=True)
    assert not (tmp_path / "marker").exists()


OUTSIDE = ["../../etc/passwd", "/etc/passwd", "data/../../secret.png", "..", "data/images/../../../x.png"]


@pytest.mark.parametrize("name", OUTSIDE)
def test_an_image_of_a_prediction_cannot_lie_outside_the_run(tmp_path, name):
    with pytest.raises(RadVisionError, match="outside the run folder"):
        image_path(
            Record(uid="1", generated=Report(), reference=None, model=Model("tiny", 3, "tiny"), image=name), tmp_path
        )


@pytest.mark.parametrize("name", [*OUTSIDE, "", "images/none.png"])
def test_an_image_of_a_prepared_study_cannot_lie_outside_its_folder(dataset, tmp_path, name):
    shutil.copytree(dataset.folder, tmp_path / "data")
    path = tmp_path / "data" / "studies.arrow"
    with pa.memory_map(str(path)) as source:
        rows = pa.ipc.open_stream(source).read_all().to_pylist()
    table = pa.Table.from_pylist([{**row, "image": name} for row in rows])
    (tmp_path / "secret.png").write_bytes(b"")
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
        stream.write_table(table)
    list_files(tmp_path / "data")
    with pytest.raises(RadVisionError, match="prepare the data again"):
        Studies(tmp_path / "data", "train")[0]


BLOCK = """
import os, socket
def _check(address, family=None):
    host = address[0] if isinstance(address, tuple) else ""
    if host and host not in ("localhost", "::1", "0.0.0.0", socket.gethostname()) and not host.startswith("127."):
        with open(os.environ["TRIED"], "a") as tried:
            tried.write(str(address) + "\\n")
        raise OSError("the network is blocked: " + str(address))
def _guarded(name):
    whole = getattr(socket.socket, name)
    def call(self, address, *rest):
        _check(address)
        return whole(self, address, *rest)
    setattr(socket.socket, name, call)
for name in ("connect", "connect_ex"):
    _guarded(name)
_find = socket.getaddrinfo
def getaddrinfo(host, port, *rest, **options):
    _check((host.decode() if isinstance(host, bytes) else host or "", port))
    return _find(host, port, *rest, **options)
socket.getaddrinfo = getaddrinfo
"""


@pytest.fixture
def without_network(tmp_path):
    """Runs Python where every connection but to this machine fails and is noted, in child processes too."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(BLOCK)
    tried = tmp_path / "tried.txt"
    offline = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE")  # so that an attempt is seen
    environment = {key: value for key, value in os.environ.items() if key not in offline}
    environment |= {"TRIED": str(tried), "HF_HOME": str(tmp_path / "home")}
    environment["PYTHONPATH"] = os.pathsep.join([str(tmp_path / "site"), str(project_root())])

    def run(*arguments: object, timeout: float = 600) -> tuple[subprocess.CompletedProcess[str], str]:
        command = [sys.executable, *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=environment)
        return done, tried.read_text() if tried.is_file() else ""

    return run


def test_the_block_stops_and_notes_a_connection(without_network):
    done, tried = without_network("-c", "import urllib.request as u; u.urlopen('http://192.0.2.1')")
    assert done.returncode != 0
    assert "192.0.2.1" in tried


def test_preparing_training_and_reporting_from_a_local_source_touch_no_network(without_network, tmp_path):
    code = (
        "import sys, radvision_utils as r\n"
        "s = {'data.phantoms': 60, 'data.workers': 1, 'generation.max_new_tokens': 8}\n"
        "s |= {'stage1.max_steps': 3, 'stage1.validation_studies': 2}\n"
        "p = r.load_profile('tiny', s, run='offline', output_root=sys.argv[1])\n"
        "d = r.prepare_dataset(p); r.train_stage(p, 1)\n"
        "print(r.load_reporter('offline', 1, sys.argv[1]).report(d.split('test')[0].image))\n"
    )
    done, tried = without_network("-c", code, tmp_path / "outputs")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Report(" in done.stdout
    assert tried == ""


@pytest.mark.slow
def test_the_whole_chain_from_a_local_source_touches_no_network(without_network, tmp_path, small_settings):
    settings = [f"--set={key}={json.dumps(value)}" for key, value in small_settings.items()]
    done, tried = without_network(
        "-m", "radvision_utils", "run", *settings, "--run", "offline", "--output-root", tmp_path / "outputs"
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert (tmp_path / "outputs" / "offline" / "dashboard" / "index.html").is_file()
    assert tried == ""
