"""Check a card with the 7B's shape before a run: `python -m radvision_utils gpu-check`, 10 minutes, no download.

Random weights of Qwen2.5-VL-7B, made on the card, go through the product's own code: three stages of a few steps, a
pause and a resume, a reload, reports, a merge, in each number format that the card has. Nothing is learned; memory and
speed are real. Where there is no card, a small shape takes the same way, which shows that the code runs and no more.
"""

from __future__ import annotations

import logging
import os
import shutil
import statistics
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from accelerate.utils.memory import clear_device_cache

from radvision_utils.bases.random import QWEN_7B, random_model_folder
from radvision_utils.config import Profile, RadVisionError, RunPaused, load_profile
from radvision_utils.data.prepare import prepare_dataset
from radvision_utils.data.studies import open_prepared
from radvision_utils.environment import (
    DTYPE_VARIABLE,
    Device,
    choose_device,
    forget_peak_memory,
    peak_memory_gib,
    versions,
)
from radvision_utils.hand_over.export import check_merge
from radvision_utils.hand_over.merge import merge_into_files
from radvision_utils.inference import reporter_of
from radvision_utils.model.adapter import attach_adapter, save_adapter
from radvision_utils.model.audit import audit_fp16
from radvision_utils.model.components import count_parameters, is_adapter
from radvision_utils.model.loading import compute_device, load_base, load_processor
from radvision_utils.runs import RunFolder, now, read_json, write_json
from radvision_utils.training.collator import Collator
from radvision_utils.training.loss import MODEL_INPUTS, mean_report_loss, to_device
from radvision_utils.training.trainer import train_stage

logger = logging.getLogger(__name__)

MINUTES = 10.0
STEPS = 8  # optimizer steps a stage; at 4 studies each more than there are, so that features are cached as in a run
_SETTINGS: dict[str, Any] = {
    "data.source": "phantom",
    "data.phantoms": 32,
    "data.workers": 1,
    "generation.max_new_tokens": 64,
    **{
        f"stage{number}.{name}": value
        for number in (1, 2, 3)
        for name, value in (("max_steps", STEPS), ("epochs", 8.0), ("accumulation", 1), ("validation_studies", 4))
    },
}


@dataclass
class Check:
    """One part of the check: what it is, how it went, what it measured."""

    part: str
    dtype: str
    seconds: float = 0.0
    figures: dict[str, Any] = field(default_factory=dict)
    problem: str = ""  # the sentence of the error that ended it, or why it was left out


def gpu_check(folder: Path, shape: dict[str, Any] | None = None, minutes: float = MINUTES) -> dict[str, Any]:
    """Run all parts; one that fails is recorded with its error, and the next one is tried.

    Args:
        folder: gets `gpu_check.json`; what else is written there is removed again: for the 7B at most about 1.4 GB,
            in stage 3, when its adapter is written beside the one before, two checkpoints and the features.
        shape: a config of Qwen2.5-VL; if None the 7B's, or a small one where there is no card.
        minutes: parts that would begin later are left out.

    Returns:
        What `gpu_check.json` holds.
    """
    started, device = time.perf_counter(), choose_device()
    shape = shape or (read_json(QWEN_7B) if device.kind == "cuda" else small_shape())
    scratch = folder / "scratch"
    shutil.rmtree(scratch, ignore_errors=True)
    checks: list[Check] = []
    try:
        base = random_model_folder(scratch / "base", shape)
        for dtype in _dtypes(device):
            with _computing_in(dtype):
                profile = _profile(scratch, base, dtype)
                for part, work in _parts(profile, shape).items():
                    check = Check(part, dtype)
                    checks.append(check)
                    if time.perf_counter() - started > 60 * minutes:
                        check.problem = f"left out: the {minutes:g} minutes were over"
                    else:
                        _try(check, work)
                shutil.rmtree(RunFolder.of(profile).path, ignore_errors=True)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    record = {
        "device": device.title,
        "weights": "random",
        "shape": {name: shape[name] for name in ("hidden_size", "num_hidden_layers", "vocab_size") if name in shape},
        "ok": not any(check.problem for check in checks),
        "seconds": round(time.perf_counter() - started, 1),
        "checks": [vars(check) for check in checks],
        "versions": versions(),
        "finished": now(),
    }
    write_json(folder / "gpu_check.json", record)
    return record


def small_shape() -> dict[str, Any]:
    """The 7B's config, narrow and two layers deep: what a CPU can do in a minute."""
    shape: dict[str, Any] = read_json(QWEN_7B)
    shape |= {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 2, "num_key_value_heads": 1}
    shape |= {"num_hidden_layers": 2, "vocab_size": 2048}
    shape["vision_config"] |= {"depth": 2, "hidden_size": 160, "num_heads": 2, "intermediate_size": 320}
    shape["vision_config"] |= {"out_hidden_size": 256, "fullatt_block_indexes": [1]}
    return shape


def check_table(record: dict[str, Any]) -> str:
    """The checks as a Markdown table, for people and the README."""
    lines = [
        ["part", "format", "result", "GiB measured", "GiB planned", "studies/s", "tokens/s", "seconds"],
        ["---"] * 8,
    ]
    for check in record["checks"]:
        figures = check["figures"]
        cells = (figures.get(name) for name in ("gib", "planned_gib", "studies_per_second", "tokens_per_second"))
        result = check["problem"] or figures.get("result", "done")
        numbers = ["" if cell is None else f"{cell:.2f}" for cell in cells]
        lines.append([check["part"], check["dtype"], result, *numbers, f"{check['seconds']:.0f}"])
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def _dtypes(device: Device) -> list[str]:
    """The format that a run would use, first, and the other 16-bit one where the hardware has it."""
    if device.kind == "cpu":
        return ["float32", "bfloat16"]
    return ["bfloat16", "float16"] if device.dtype == "bfloat16" else [device.dtype]


@contextmanager
def _computing_in(dtype: str) -> Iterator[None]:
    before = os.environ.get(DTYPE_VARIABLE)
    os.environ[DTYPE_VARIABLE] = dtype
    try:
        yield
    finally:
        os.environ.pop(DTYPE_VARIABLE)
        if before is not None:
            os.environ[DTYPE_VARIABLE] = before


def _profile(scratch: Path, base: Path, dtype: str) -> Profile:
    settings = _SETTINGS | {"model.base": str(base)}
    return load_profile("lingshu-7b", settings, run=dtype, output_root=str(scratch))


def _parts(profile: Profile, shape: dict[str, Any]) -> dict[str, Callable[[], dict[str, Any]]]:
    return {
        "load in 4-bit": lambda: _load(profile),
        "largest activations": lambda: _activations(profile),
        "stage 1, vision encoder": lambda: _stage(profile, 1),
        "stage 2, projector": lambda: _stage(profile, 2),
        "stage 3, paused and resumed": lambda: _paused_stage(profile),
        "reload": lambda: _reload(profile),
        "reports": lambda: _reports(profile),
        "merge, one layer of each tower": lambda: _merge(profile, shape),
    }


def _try(check: Check, work: Callable[[], dict[str, Any]]) -> None:
    started, device = time.perf_counter(), choose_device()
    clear_device_cache(garbage_collection=True)  # the part before may have left cycles that hold a model
    forget_peak_memory(device)
    logger.info("%s, %s", check.part, check.dtype)
    try:
        check.figures = work()
    except Exception as error:  # whatever a card or its libraries raise is what this check is there to find
        check.problem = f"{type(error).__name__}: {(str(error).strip().splitlines() or ['no message'])[0]}"
        check.figures = {"traceback": traceback.format_exc()}
        logger.warning("%s", check.problem)
    check.figures.setdefault("gib", round(peak_memory_gib(device), 3))
    check.seconds = round(time.perf_counter() - started, 1)


def _load(profile: Profile) -> dict[str, Any]:
    device = choose_device()
    model = load_base(profile.model, device)
    return {"parameters": count_parameters(model), "weights_gib": round(_weights_gib(model), 3)}


def _activations(profile: Profile) -> dict[str, Any]:
    """How near the blocks come to the end of float16; random weights say little of trained ones."""
    device, dataset = choose_device(), prepare_dataset(profile)
    model = load_base(profile.model, device)
    collator = Collator(load_processor(profile.model, profile.data.image_size), profile.model)
    batch = to_device(collator(dataset.split("train")[:1]), compute_device(model))
    with device.autocast():
        rows = audit_fp16(model, {name: batch[name] for name in MODEL_INPUTS})
    worst = max(rows, key=lambda row: row["largest"])
    return {"result": f"{worst['share']:.1%} of float16, in {worst['block']}", "blocks": rows}


def _weights_gib(model: torch.nn.Module) -> float:
    total = 0
    for parameter in model.parameters():
        total += parameter.nbytes
        state = getattr(parameter, "quant_state", None)
        if state is not None:  # the block scales of 4-bit weights, themselves in 8 bits
            total += state.absmax.nbytes
    return total / 2**30


def _stage(profile: Profile, number: int) -> dict[str, Any]:
    result = train_stage(profile, number)
    record = result.record
    seconds = [line["seconds"] for line in result.log if "loss" in line][1:]  # the first step warms up
    batch = profile.stage(number).micro_batch * profile.stage(number).accumulation
    if number > 1:  # no stage reads an adapter before its parent's: 0.4 GB each for the 7B
        shutil.rmtree(RunFolder.of(profile).adapter(number - 1))
    return {
        "gib": record["peak_memory_gib"],
        "planned_gib": record["plan"]["tensors"],
        "studies_per_second": round(batch / statistics.median(seconds), 3),
        "losses": record["validation_loss"],
        "moved": record["moved"],
        "memory_events": record.get("memory_events", []),
        "resumed_from": record["resumed_from"],
    }


def _paused_stage(profile: Profile) -> dict[str, Any]:
    """Stage 3, stopped after its first step and gone on with from the checkpoint: 8-bit optimizer state and all."""
    hurried = replace(profile, stage3=replace(profile.stage3, max_minutes=0.0))
    try:
        train_stage(hurried, 3)
        raise RadVisionError("the stage did not pause: max_minutes had no effect.")
    except RunPaused:
        figures = _stage(profile, 3)
    if not figures["resumed_from"]:
        raise RadVisionError("the stage began anew instead of going on from its checkpoint.")
    return figures | {"result": f"resumed from {figures['resumed_from']}"}


def _reload(profile: Profile) -> dict[str, Any]:
    """The saved adapter over a base loaded anew gives the loss that the trained model had."""
    reporter = reporter_of(profile, 3)
    studies = open_prepared(profile).split("validation")[: profile.stage3.validation_studies]
    size = profile.stage3.micro_batch * 2
    loss = mean_report_loss(reporter.model, reporter.collator, studies, size, reporter.device.autocast)
    trained = RunFolder.of(profile).record("stage3")["validation_loss"][-1]  # type: ignore[index]  # trained above
    if not abs(loss - trained) <= 0.01 * trained:
        raise RadVisionError(f"the reloaded model has loss {loss:.4f}, the trained one had {trained:.4f}.")
    return {"result": f"loss {loss:.4f}, before saving {trained:.4f}", "loss": loss, "loss_before": trained}


def _reports(profile: Profile) -> dict[str, Any]:
    reporter = reporter_of(profile, 3)
    studies = open_prepared(profile).split("train")[: profile.generation.batch_size]
    images = [study.image for study in studies]
    list(reporter.write(images[:1]))  # warms up
    started = time.perf_counter()
    tokens = sum(written.tokens for written in reporter.write(images))
    seconds = time.perf_counter() - started
    return {
        "result": f"{len(images)} at a time",
        "tokens_per_second": round(tokens / seconds, 1),
        "reports_per_second": round(len(images) / seconds, 3),
        "tokens": tokens,
    }


def _merge(profile: Profile, shape: dict[str, Any]) -> dict[str, Any]:
    """Merge at the 7B's widths but one layer deep: the whole 16-bit model would take 16 GB of disk."""
    folder = Path(profile.model.base).parent / "merge"
    shallow = {**shape, "num_hidden_layers": 1, "intermediate_size": min(2048, shape["intermediate_size"])}
    shallow |= {"vocab_size": min(2048, shape["vocab_size"])}
    shallow["vision_config"] = {**shape["vision_config"], "depth": 1, "fullatt_block_indexes": [0]}
    whole = replace(profile.model, base=str(random_model_folder(folder / "random", shallow)), quantization="none")
    base, adapter, merged = (folder / name for name in ("base", "adapter", "merged"))
    try:
        model = load_base(whole, replace(choose_device(), dtype=_sixteen_bit()))
        model.save_pretrained(base)
        tuned = attach_adapter(model, profile)
        generator = torch.Generator().manual_seed(1)
        for name, parameter in tuned.named_parameters():
            if is_adapter(name):  # a fresh adapter changes nothing
                parameter.data += 0.02 * torch.randn(parameter.shape, generator=generator).to(parameter.device)
        save_adapter(tuned, adapter)
        merged.mkdir()
        merge_into_files(base, adapter, merged)
        shutil.copyfile(base / "config.json", merged / "config.json")
        collator = Collator(load_processor(profile.model, profile.data.image_size), profile.model)
        check = check_merge(profile, collator, base, adapter, merged)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return {
        "result": f"logits differ by {check['adapter']:.4f}, from the base's by {check['base']:.4f}",
        "check": check,
    }


def _sixteen_bit() -> str:
    dtype = choose_device().dtype
    return "bfloat16" if dtype == "float32" else dtype
