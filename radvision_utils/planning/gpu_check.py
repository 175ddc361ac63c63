"""Check a card with the 7B's shape before a run: `python -m radvision_utils gpu-check`, 10 minutes, no download.

The six notebooks run as a user's would, on random weights of Qwen2.5-VL-7B: first as on a 16 GB card, then in bfloat16
with all of the card. Nothing is learned; memory and speed are real. Where there is no card, a small shape takes the
same way, which shows that the code runs and no more.
"""

from __future__ import annotations

import logging
import multiprocessing
import shutil
import statistics
import subprocess
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from radvision_utils.bases.random import QWEN_7B, random_model_folder
from radvision_utils.config import Profile, RadVisionError, RunPaused, load_profile, project_root
from radvision_utils.data.prepare import prepare_dataset
from radvision_utils.data.studies import open_prepared
from radvision_utils.environment import (
    DTYPE_VARIABLE,
    Device,
    choose_device,
    peak_memory_gib,
    quiet_libraries,
    versions,
)
from radvision_utils.figures import markdown_table
from radvision_utils.files import first_line, read_json, read_json_lines, write_json, write_text
from radvision_utils.hand_over.export import check_merge
from radvision_utils.hand_over.merge import merge_into_files
from radvision_utils.model.base import attach_adapter, is_adapter, load_base, load_processor, save_adapter
from radvision_utils.pipeline import environment_variables, run_notebooks, training_command
from radvision_utils.report import reporter_of
from radvision_utils.runs import RunFolder, now
from radvision_utils.training.collator import Collator
from radvision_utils.training.loss import mean_report_loss
from radvision_utils.training.train import train_stage

logger = logging.getLogger(__name__)

T4_GIB = "14.56"  # that torch can use of a 16 GB card
TOLERANCE = 0.05  # of measured memory over planned
_STEPS = 5  # optimizer steps of 4 studies: more studies than there are, so that features are cached as in a run
_SETTINGS: dict[str, Any] = {
    "data.limit": 24,
    "data.phantoms": 24,
    "data.workers": 1,
    "generation.max_new_tokens": 32,
    **{
        f"stage{number}.{name}": value
        for number in (1, 2, 3)
        for name, value in (("max_steps", _STEPS), ("epochs", 8.0), ("batch", 4), ("validation_studies", 4))
    },
}
# A small shape on a CPU shows that the code runs, which takes a small image.
_SMALL = {"data.image_size": 224, "model.visual_tokens": 64, "generation.max_new_tokens": 8, "generation.batch_size": 4}
# Where Qwen2.5-VL-3B differs from the 7B.
_QWEN_3B = {"hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36, "max_window_layers": 70}
_QWEN_3B |= {"num_attention_heads": 16, "num_key_value_heads": 2, "vocab_size": 151936, "tie_word_embeddings": True}

Figures = dict[str, Any]


@dataclass(frozen=True)
class Part:
    """Something to check: its work gives figures or raises; it waits for the part whose result it needs."""

    name: str
    work: Callable[[], Figures]
    needs: str = ""


def gpu_check(folder: Path, source: str = "phantom", minutes: float = 10.0) -> dict[str, Any]:
    """Run all parts; one that fails is recorded with its error, those that need it are not run, others are.

    Args:
        folder: gets `gpu_check.json`, `gpu_check.md` and, where a notebook failed, the executed notebooks; what else is
            written there is removed again: for the 7B at most about 2 GB.
        source: of the studies, as for a run.
        minutes: parts that would begin later are left out.

    Returns:
        What `gpu_check.json` holds.
    """
    started, (device, cards) = time.perf_counter(), _apart(_machine)
    shape = read_json(QWEN_7B) if cards else small_shape()
    scratch = folder / "scratch"
    for left in (scratch, *folder.glob("notebooks-*")):  # by an earlier check
        shutil.rmtree(left, ignore_errors=True)
    checks: list[Figures] = []
    try:
        base = random_model_folder(scratch / "base", shape)
        settings = _SETTINGS | {"model.base": str(base)} | ({} if cards else _SMALL)
        for dtype, gib in _formats(device, cards):
            profile = load_profile("lingshu-7b", settings, run=dtype, source=source, output_root=str(scratch))
            parts = _chain(profile)
            if not checks:  # what does not depend on the number format
                parts += [
                    Part("merge, one layer of each tower", partial(_apart, _merge, profile, shape), "data"),
                    Part("Qwen2.5-VL-3B", partial(_apart, _tied, profile, shape, bool(cards))),
                    Part("two processes", partial(_two_processes, profile, len(cards)), "stage 3"),
                ]
            with environment_variables({DTYPE_VARIABLE: dtype, "RADVISION_GIB": gib}):
                ran = run_parts(parts, f"{dtype}, {gib} GiB" if gib else dtype, started + 60 * minutes)
            checks += ran
            run = RunFolder.of(profile)
            if any(check["problem"] for check in ran) and run.notebooks.is_dir():
                run.notebooks.rename(folder / f"notebooks-{dtype}")
            shutil.rmtree(run.path, ignore_errors=True)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    record = {
        "device": device.title,
        "cards": len(cards),
        "weights": "random",
        "shape": {name: shape[name] for name in ("hidden_size", "num_hidden_layers", "vocab_size")},
        "ok": not any(check["problem"] for check in checks),
        "seconds": round(time.perf_counter() - started, 1),
        "checks": checks,
        "versions": versions(),
        "finished": now(),
    }
    write_json(folder / "gpu_check.json", record)
    write_text(folder / "gpu_check.md", check_table(record))
    return record


def run_parts(parts: Sequence[Part], dtype: str, deadline: float) -> list[Figures]:
    """Run parts in order, but none whose need was not met and none after `deadline`, in `perf_counter`'s seconds.

    Returns:
        How each went: its `seconds` and `figures`, the `problem` that ended it, or why it was `not_run`.
    """
    checks: list[Figures] = []
    missing: dict[str, str] = {}  # a part without its result, and what it was for want of
    for part in parts:
        check: Figures = {"part": part.name, "dtype": dtype, "seconds": None, "figures": {}}
        check |= {"problem": "", "not_run": ""}
        if part.needs in missing:
            missing[part.name] = missing[part.needs]
            check["not_run"] = f"not run: needs {missing[part.name]}"
        elif time.perf_counter() > deadline:
            missing[part.name] = part.name
            check["not_run"] = "left out: the time was over"
        else:
            logger.info("%s, %s", part.name, dtype)
            check |= _tried(part.work)
            if check["problem"]:
                missing[part.name] = part.name
        checks.append(check)
    return checks


def _tried(work: Callable[[], Figures]) -> Figures:
    started, problem = time.perf_counter(), ""
    try:
        figures = work()
    except Exception as error:  # whatever a card or its libraries raise is what this check is there to find
        problem, figures = f"{type(error).__name__}: {first_line(error)}", {"traceback": traceback.format_exc()}
        logger.warning("%s", problem)
    seconds = round(time.perf_counter() - started, 1)
    return {"seconds": seconds, "problem": problem, "not_run": figures.pop("not_run", ""), "figures": figures}


def small_shape() -> dict[str, Any]:
    """The 7B's config, narrow and two layers deep: what a CPU can do in a minute."""
    shape: dict[str, Any] = read_json(QWEN_7B)
    shape |= {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 2, "num_key_value_heads": 1}
    shape |= {"num_hidden_layers": 2, "vocab_size": 2048}
    shape["vision_config"] |= {"depth": 2, "hidden_size": 160, "num_heads": 2, "intermediate_size": 320}
    shape["vision_config"] |= {"out_hidden_size": 256, "fullatt_block_indexes": [1]}
    return shape


def check_table(record: Mapping[str, Any]) -> str:
    """The checks as a Markdown table, for people and the README."""
    heads = ["part", "format", "result", "GiB measured", "GiB planned", "off", "studies/s", "tokens/s"]
    rows = [row for check in record["checks"] for row in _rows(check, bool(record["cards"]))]
    return markdown_table([*heads, "seconds", "of which"], rows)


def _rows(check: Mapping[str, Any], on_card: bool) -> Iterator[list[str]]:
    """A part's row, and one for each thing within it whose memory was measured apart."""
    figures = check["figures"]
    result = (check["problem"] or check["not_run"] or figures.get("result", "")).replace("|", "/")
    seconds = "" if check["seconds"] is None else f"{check['seconds']:.0f}"
    spent = figures.get("spent", {})
    if spent:
        spent = {**spent, "all else": check["seconds"] - sum(spent.values())}
    of_which = ", ".join(f"{what} {part:.0f}" for what, part in spent.items())
    yield [check["part"], check["dtype"], result, *_numbers(figures, on_card), seconds, of_which]
    for name, inner in figures.get("within", {}).items():
        yield [f"{check['part']}: {name}", check["dtype"], "", *_numbers(inner, on_card), "", ""]


def _numbers(figures: Figures, on_card: bool) -> list[str]:
    """Memory measured, planned, and by how much it is off; speed. A process on a CPU holds much that no plan counts."""
    cells = [figures.get(name) for name in ("measured", "planned", "studies_per_second", "tokens_per_second")]
    measured, planned, *speeds = ("" if cell is None else f"{cell:.2f}" for cell in cells)
    off = cells[0] / cells[1] - 1 if cells[0] and cells[1] and on_card else None
    marked = "" if off is None else f"{off:+.1%}" + (f", beyond {TOLERANCE:.0%}" if abs(off) > TOLERANCE else "")
    return [measured, planned, marked, *speeds]


def _machine() -> tuple[Device, list[float]]:
    """The device, and the GiB of each card."""
    cards = [torch.cuda.get_device_properties(card) for card in range(torch.cuda.device_count())]
    return choose_device(), [card.total_memory / 2**30 for card in cards]


def _formats(device: Device, cards: Sequence[float]) -> list[tuple[str, str]]:
    """Number formats, each with the GiB that torch may allocate; "": all."""
    if not cards:
        return [("float32", "")]
    small = ("float16", T4_GIB if cards[0] > float(T4_GIB) else "")
    return [small, ("bfloat16", "")] if device.dtype == "bfloat16" else [small]


def _chain(profile: Profile) -> list[Part]:
    """The six notebooks, and what their last stage can do."""
    return [
        Part("data", partial(_notebook, profile, 1)),
        Part("stage 1", partial(_stage, profile, 1), "data"),
        Part("stage 2", partial(_stage, profile, 2), "stage 1"),
        Part("stage 3", partial(_paused_stage, profile), "stage 2"),
        Part("evaluation", partial(_evaluation, profile), "stage 3"),
        Part("reload", partial(_apart, _reload, profile), "stage 3"),
        Part("reports", partial(_apart, _reports, profile), "stage 3"),
    ]


def _apart(work: Callable[..., Any], *arguments: Any) -> Any:
    """The work's result, from a process of its own: memory and cap are then that part's alone."""
    context = multiprocessing.get_context("spawn")  # a fork would take over a card that is in use
    with ProcessPoolExecutor(1, context, initializer=quiet_libraries) as pool:
        return pool.submit(work, *arguments).result()


def _notebook(profile: Profile, number: int) -> Figures:
    run_notebooks(profile, first=number, last=number)
    return {"result": f"notebook {number:02d}"}


def _stage(profile: Profile, number: int) -> Figures:
    return _notebook(profile, number + 1) | _stage_figures(profile, number)


def _stage_figures(profile: Profile, number: int) -> Figures:
    run, chosen = RunFolder.of(profile), profile.stage(number)
    record = read_json(run.record_path(f"stage{number}"))
    seconds = [line["seconds"] for line in read_json_lines(run.stage(number) / "log.jsonl") if "loss" in line]
    return {
        "measured": record["peak_memory_gib"],  # GiB
        "planned": record["plan"]["tensors"],
        "studies_per_second": chosen.step_size / statistics.median(seconds[1:] or seconds),
        "spent": record["seconds_by_part"],
        **{name: record[name] for name in ("validation_loss", "moved", "memory_events", "resumed_from")},
    }


def _paused_stage(profile: Profile) -> Figures:
    """Stage 3, stopped after its first step and gone on with from the checkpoint: 8-bit optimizer state and all."""
    with suppress(RunPaused):
        run_notebooks(replace(profile, stage3=replace(profile.stage3, max_minutes=0.0)), first=4, last=4)
        raise RadVisionError("the stage did not pause: max_minutes had no effect.")
    figures = _stage(profile, 3)
    if not figures["resumed_from"]:
        raise RadVisionError("the stage began anew instead of going on from its checkpoint.")
    return figures | {"result": f"notebook 04, resumed from {figures['resumed_from']}"}


def _evaluation(profile: Profile) -> Figures:
    """Notebooks 05 and 06, with seconds and memory of each thing that it does with the model."""
    _notebook(profile, 5)
    figures = _notebook(profile, 6)
    metrics: Figures = read_json(RunFolder.of(profile).record_path("evaluation"))
    sections = {"reports": metrics, "maps": metrics.get("evidence", {}), "samples": metrics.get("confidence", {})}
    figures["spent"] = {name: section["seconds"] for name, section in sections.items() if "seconds" in section}
    return {**figures, "within": {name: metrics["memory"].get(name, {}) for name in sections}}


def _reload(profile: Profile) -> Figures:
    """The saved adapter over a base loaded anew gives the loss that the trained model had."""
    reporter = reporter_of(profile, 3)
    studies = open_prepared(profile).split("validation")[: profile.stage3.validation_studies]
    loss = mean_report_loss(reporter.model, reporter.collator, studies, 4, reporter.device.autocast)
    trained = read_json(RunFolder.of(profile).record_path("stage3"))["validation_loss"][-1]
    if not abs(loss - trained) <= 0.01 * trained:
        raise RadVisionError(f"the reloaded model has loss {loss:.4f}, the trained one had {trained:.4f}.")
    return {"result": f"loss {loss:.4f}, before saving {trained:.4f}", "loss": loss, "loss_before": trained}


def _reports(profile: Profile) -> Figures:
    """A whole batch of reports, on training studies as often as it takes."""
    reporter = reporter_of(profile, 3)
    size = reporter.profile.generation.batch_size
    images = [study.image for study in open_prepared(profile).split("train")]
    batch = [images[i % len(images)] for i in range(size)]
    list(reporter.write(batch[:1]))  # warms up
    started = time.perf_counter()
    tokens = sum(written.tokens for written in reporter.write(batch))
    seconds = time.perf_counter() - started
    return {
        "result": f"{size} at a time",
        "measured": peak_memory_gib(choose_device()),
        "tokens_per_second": tokens / seconds,
        "tokens": tokens,
    }


def _merge(profile: Profile, shape: dict[str, Any]) -> Figures:
    """Merge at the 7B's widths but one layer deep: the whole 16-bit model would take 16 GB of disk."""
    folder = Path(profile.model.base).parent / "merge"
    shallow = {**shape, "num_hidden_layers": 1, "intermediate_size": min(2048, shape["intermediate_size"])}
    shallow |= {"vocab_size": min(2048, shape["vocab_size"])}
    shallow["vision_config"] = {**shape["vision_config"], "depth": 1, "fullatt_block_indexes": [0]}
    whole = replace(profile.model, base=str(random_model_folder(folder / "random", shallow)), quantization="none")
    base, adapter, merged = (folder / name for name in ("base", "adapter", "merged"))
    device = choose_device()
    model = load_base(whole, replace(device, dtype="bfloat16") if device.dtype == "float32" else device)
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
    shutil.rmtree(folder)
    result = f"logits differ by {check['adapter']:.4f}, from the base's by {check['base']:.4f}"
    return {"result": result, "check": check}


def _tied(profile: Profile, shape: dict[str, Any], whole: bool) -> Figures:
    """A model whose head is its embeddings: loading, stage 1 (float16 may skip the first steps), a report."""
    tied = {**shape, **_QWEN_3B} if whole else {**shape, "tie_word_embeddings": True}
    tied["vision_config"] = {**shape["vision_config"], "out_hidden_size": tied["hidden_size"]}
    base = random_model_folder(Path(profile.model.base).parent / "tied", tied)
    model, stage1 = replace(profile.model, base=str(base)), replace(profile.stage1, warmup_ratio=0.0, max_steps=3)
    other = replace(profile, run="tied", model=model, stage1=stage1)
    prepare_dataset(other)
    train_stage(other, 1)
    figures = _stage_figures(other, 1)  # of the stage alone: the report comes after it
    report = next(reporter_of(other, 1).write([open_prepared(other).split("train")[0].image]))
    shutil.rmtree(RunFolder.of(other).path)
    return figures | {"result": f"stage 1 moved it, a report of {report.tokens} tokens"}


def _two_processes(profile: Profile, cards: int) -> Figures:
    """Stage 3 on two cards, in place of the stage that was trained on one."""
    if cards < 2:
        return {"not_run": "not run: one card" if cards else "not run: no card"}
    command = [*training_command(profile, "stage3", 2), "--force"]
    done = subprocess.run(command, cwd=project_root(), capture_output=True, text=True, check=False)
    if done.returncode:
        told = [line for line in done.stderr.splitlines() if line.startswith("radvision: ")]
        raise RadVisionError((told or done.stderr.strip().splitlines() or ["accelerate told nothing"])[-1])
    return _stage_figures(profile, 3)
