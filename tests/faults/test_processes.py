"""Several processes: the same losses as one, each with its own studies; one that dies ends all; any number resumes."""

import os
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from radvision_utils import evaluate, train_stage
from radvision_utils.config import RunPaused, project_root
from radvision_utils.data.reports import Report
from radvision_utils.environment import choose_device
from radvision_utils.files import read_json_lines
from radvision_utils.model.base import is_adapter
from radvision_utils.runs import RunFolder, Stage
from radvision_utils.training.resume import last_checkpoint
from radvision_utils.training.train import stage_model

pytestmark = pytest.mark.slow
STEPS = {"max_steps": 4, "save_steps": 1, "micro_batch": 4, "accumulation": 2}
QUANTIZATION = pytest.mark.parametrize("quantization", ["nf4", "none"])  # whole in each process, or shared by them

# What each process runs: the command line, with a note of whose studies it collates and of how many numbers it holds,
# and a death if asked for.
PROCESS = """
import os, signal, sys
from radvision_utils.__main__ import main
from radvision_utils.training import train as trainer
from radvision_utils.training.collator import Collator

rank, true = os.environ["RANK"], trainer.ReportTrainer.training_step

def noted(self, model, inputs, *args, **kwargs):
    with open(f"{os.environ['NOTES']}.{rank}", "a") as file:
        file.write(" ".join(inputs["uids"]) + "\\n")
    with open(f"{os.environ['NOTES']}.held.{rank}", "w") as file:
        file.write(str(sum((p.to_local() if hasattr(p, "to_local") else p).numel() for p in model.parameters())))
    if os.environ.get("DIES") == f"{rank} at {self.state.global_step}":
        os.kill(os.getpid(), signal.SIGKILL)
    return true(self, model, inputs, *args, **kwargs)

trainer.ReportTrainer.training_step = noted
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture
def launch(tmp_path):
    """Run a verb in two processes, as a user with two cards does; `--multi_gpu` is accelerate's word for them."""
    script = tmp_path / "process.py"
    script.write_text(PROCESS)

    def run(profile, *words, dies=""):
        launcher = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes=2"]
        launcher += ["--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no", "--main_process_port=0"]
        where = ["--run", profile.run, "--output-root", profile.output_root]
        notes = {"NOTES": str(tmp_path / "notes"), "DIES": dies, "OMP_NUM_THREADS": "1"}
        command = [*launcher, str(script), *map(str, words), *where]
        return subprocess.run(command, capture_output=True, text=True, cwd=project_root(), env=os.environ | notes)

    return run


def settings_of(profile, stage):
    changed = {"data.phantoms": profile.data.phantoms, "data.workers": profile.data.workers, "seed": profile.seed}
    changed["model.quantization"] = profile.model.quantization
    for number in range(1, stage + 1):
        changed |= {f"stage{number}.{key}": value for key, value in profile.to_dict()[f"stage{number}"].items()}
    return [
        f"--set={key}={str(value).lower() if isinstance(value, bool) else value}"
        for key, value in changed.items()
        if value is not None
    ]


def losses_of(profile):
    lines = read_json_lines(RunFolder.of(profile).stage(1) / "log.jsonl")
    return torch.tensor([line["loss"] for line in lines if "loss" in line])


@pytest.mark.parametrize(("labels", "quantization"), [(0.0, "nf4"), (0.5, "nf4"), (1.0, "nf4"), (0.5, "none")])
def test_two_processes_train_as_one_each_on_its_own_studies(fresh_run, launch, tmp_path, labels, quantization):
    changes = {"stage1": {**STEPS, "label_weight": labels}, "model": {"quantization": quantization}}
    one, two = fresh_run("one", **changes), fresh_run("two", **changes)
    train_stage(one, 1)
    result = launch(two, "train", "--stage=1", *settings_of(two, 1))
    assert result.returncode == 0, result.stderr[-3000:]
    torch.testing.assert_close(losses_of(two), losses_of(one), rtol=1e-4, atol=1e-5)
    shares = [(tmp_path / f"notes.{rank}").read_text().split() for rank in (0, 1)]
    assert len(shares[0]) == len(shares[1]) == STEPS["max_steps"] * 4
    assert not set(shares[0]) & set(shares[1])
    assert result.stdout.count("step 4, validation loss") == 1
    records = [RunFolder.of(profile).record("stage1") for profile in (one, two)]
    assert records[0]["made_from"] == records[1]["made_from"]
    assert records[0]["validation_loss"] == pytest.approx(records[1]["validation_loss"], abs=1e-3)


def test_processes_share_a_decoder_without_quantization_and_save_the_adapter_that_one_saves(
    fresh_run, launch, tmp_path
):
    few = {"max_steps": 2, "validation_studies": 1}
    one = fresh_run("one", stage1=few, stage2=few, stage3=STEPS, model={"quantization": "none"})
    for stage in (1, 2):
        train_stage(one, stage)
    two = replace(one, output_root=str(tmp_path / "two"))
    shutil.copytree(RunFolder.of(one).path, RunFolder.of(two).path)
    train_stage(one, 3)
    result = launch(two, "train", "--stage=3", *settings_of(two, 3))
    assert result.returncode == 0, result.stderr[-3000:]

    numbers = {name: p.numel() for name, p in stage_model(Stage(one, 3), choose_device()).named_parameters()}
    shared = sum(n for name, n in numbers.items() if "language_model.layers." in name and not is_adapter(name))
    held = [int((tmp_path / f"notes.held.{rank}").read_text()) for rank in (0, 1)]
    assert held == [sum(numbers.values()) - shared // 2] * 2

    alone, together = (RunFolder.of(profile).record("stage3") for profile in (one, two))
    assert together["ledger"]["before"] == alone["ledger"]["before"]
    assert together["moved"] == ["language_model.adapter"]
    folders = [RunFolder.of(profile).adapter(3) for profile in (one, two)]
    assert len({(folder / "adapter_config.json").read_text() for folder in folders}) == 1
    adapters = [load_file(folder / "adapter_model.safetensors") for folder in folders]
    torch.testing.assert_close(adapters[1], adapters[0], rtol=1e-4, atol=1e-5)


@QUANTIZATION
def test_a_process_that_dies_ends_all_and_one_process_goes_on(fresh_run, launch, quantization):
    changes = {"stage1": STEPS, "model": {"quantization": quantization}}
    whole, cut = fresh_run("whole", **changes), fresh_run("cut", **changes)
    train_stage(whole, 1)
    result = launch(cut, "train", "--stage=1", *settings_of(cut, 1), dies="1 at 2")
    assert result.returncode != 0
    assert "radvision: stage 1: process 0 of 2 lost another one" in result.stderr
    assert last_checkpoint(RunFolder.of(cut).partial("stage1") / "checkpoints").name == "checkpoint-2"
    assert train_stage(cut, 1).record["resumed_from"] == "checkpoint-2"
    torch.testing.assert_close(losses_of(cut), losses_of(whole), rtol=1e-4, atol=1e-5)


@QUANTIZATION
def test_two_processes_go_on_with_what_one_began(fresh_run, launch, quantization):
    model = {"quantization": quantization}
    whole, cut = fresh_run("whole", stage1=STEPS, model=model), fresh_run("cut", stage1=STEPS, model=model)
    train_stage(whole, 1)
    with pytest.raises(RunPaused):
        train_stage(replace(cut, stage1=replace(cut.stage1, max_minutes=0.0)), 1)
    result = launch(cut, "train", "--stage=1", *settings_of(cut, 1))
    assert result.returncode == 0, result.stderr[-3000:]
    assert RunFolder.of(cut).record("stage1")["resumed_from"] == "checkpoint-1"
    torch.testing.assert_close(losses_of(cut), losses_of(whole), rtol=1e-4, atol=1e-5)


def test_two_processes_that_died_in_the_second_epoch_go_on_as_if_they_had_not(fresh_run, launch):
    longer = {**STEPS, "max_steps": 7, "accumulation": 4}  # four steps an epoch
    whole, cut = fresh_run("whole", stage1=longer), fresh_run("cut", stage1=longer)
    assert launch(whole, "train", "--stage=1", *settings_of(whole, 1)).returncode == 0
    assert launch(cut, "train", "--stage=1", *settings_of(cut, 1), dies="0 at 6").returncode != 0
    result = launch(cut, "train", "--stage=1", *settings_of(cut, 1))
    assert result.returncode == 0, result.stderr[-3000:]
    records = [RunFolder.of(profile).record("stage1") for profile in (whole, cut)]
    assert records[1]["resumed_from"] == "checkpoint-6"
    assert records[1]["hash"] == records[0]["hash"]


def test_two_processes_pause_together_and_go_on(fresh_run, launch):
    whole, cut = fresh_run("whole", stage1=STEPS), fresh_run("cut", stage1={**STEPS, "max_minutes": 0.0})
    train_stage(whole, 1)
    paused = launch(cut, "train", "--stage=1", *settings_of(cut, 1))
    assert paused.returncode == 0, paused.stderr[-3000:]
    assert "stopped at step 1 of 4" in paused.stdout
    cut = replace(cut, stage1=replace(cut.stage1, max_minutes=None))
    result = launch(cut, "train", "--stage=1", *settings_of(cut, 1))
    assert result.returncode == 0, result.stderr[-3000:]
    assert RunFolder.of(cut).record("stage1")["resumed_from"] == "checkpoint-1"
    torch.testing.assert_close(losses_of(cut), losses_of(whole), rtol=1e-4, atol=1e-5)


def test_two_processes_write_the_reports_that_one_writes(trained, launch):
    one = evaluate(trained, force=True)
    expected = [ours.generated for ours in one.predictions]
    result = launch(trained, "evaluate", "--force")
    assert result.returncode == 0, result.stderr[-3000:]
    assert [Report(**line["generated"]) for line in read_json_lines(RunFolder.of(trained).predictions)] == expected
    assert not (RunFolder.of(trained).evaluation / "reports").exists()
