"""How our own cost grows: with the image's resolution, the micro-batch, and the number of studies.

    python -m benchmarks.growth

prints the 7B's growth, by the planner's arithmetic; `python -m benchmarks` measures the model in small.
"""

from __future__ import annotations

import io
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from benchmarks.contenders import OURS, ours
from benchmarks.mini import make_profile
from benchmarks.race import Runner, Step
from benchmarks.shares import tflop
from radvision_utils.config import Profile, load_profile
from radvision_utils.data.prepare import prepare_dataset
from radvision_utils.environment import choose_device
from radvision_utils.figures import markdown_table
from radvision_utils.model.base import load_base, load_processor
from radvision_utils.phantoms.phantom_rows import phantom_row
from radvision_utils.planning.cost import open_card
from radvision_utils.planning.plan import StagePlan, plan_run
from radvision_utils.training.collator import Collator
from radvision_utils.training.features import open_features
from radvision_utils.training.train import train_stage

logger = logging.getLogger(__name__)

_STEPS = 3  # of which the second is measured
_QUICK = {f"stage{number}.validation_studies": 1 for number in (1, 2, 3)}  # a stage validates before its first step
_DIFFERENT = 64  # phantoms that the studies are made from


Row = dict[str, str]


def by_resolution(folder: Path, sides: Sequence[int]) -> list[Row]:
    """Stage 1, which computes everything there is, one study at a time, at other image sizes."""
    rows = []
    for side in sides:
        tokens = round(side / 28) ** 2
        profile = make_profile(
            folder,
            _STEPS,
            **{"data.image_size": side, "model.visual_tokens": tokens, **_QUICK, "stage1.micro_batch": 1},
        )
        profile = replace(profile, run=f"side-{side}")
        prepare_dataset(profile)
        step = _run(profile, 1)
        row = {"pixels a side": str(side), "visual tokens": str(tokens), "seconds a study": f"{step.seconds:.2f}"}
        row |= {"peak GiB": f"{step.peak_gib:.2f}", "TFLOP planned": f"{tflop(profile, 1, ours=True):.3f}"}
        rows.append(_told(row))
    return rows


def by_batch(folder: Path, sizes: Sequence[int]) -> list[Row]:
    """Stage 3 with features cached, so many studies at once."""
    whole = make_profile(folder, _STEPS * max(sizes), **_QUICK, **{f"stage{n}.max_steps": 2 for n in (1, 2)})
    whole = replace(whole, run="batches")
    prepare_dataset(whole)
    for stage in (1, 2):
        train_stage(whole, stage)
    rows = []
    for size in sizes:
        profile = replace(whole, stage3=replace(whole.stage3, micro_batch=size))
        step = _run(profile, 3, keep_freed=False)  # of the largest, ten times what is in use would not fit
        speed, peak = f"{size / step.seconds:.2f}", f"{step.peak_gib:.2f}"
        rows.append(_told({"studies at once": str(size), "studies/s": speed, "peak GiB": peak}))
    return rows


def _told(row: Row) -> Row:
    logger.info(", ".join(f"{name} {figure}" for name, figure in row.items()))
    return row


def _run(profile: Profile, stage: int, keep_freed: bool = True) -> Step:
    """The second step of a stage in a process of its own, which is then ended."""
    runner = Runner(OURS, ours, profile, stage, keep_freed)
    try:
        runner.start()
        return runner.step()
    finally:
        runner.stop()


def by_studies(folder: Path, counts: Sequence[int]) -> list[Row]:
    """Preparation and vision features with the embedded tiny base, for so many studies of small pictures."""
    device, rows = choose_device(), []
    for count in counts:
        folder.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(list(_studies(count))), folder / f"{count}.parquet", row_group_size=256)
        profile = load_profile(
            "tiny", {"data.image_size": 224}, run=f"studies-{count}", source=str(folder / f"{count}.parquet"),
            output_root=str(folder),
        )  # fmt: skip
        began = time.perf_counter()
        studies = prepare_dataset(profile, progress=lambda *_: None).split("train")
        prepared = time.perf_counter()
        collator = Collator(load_processor(profile.model, profile.data.image_size), profile.model)
        model = load_base(profile.model, device)
        loaded = time.perf_counter()
        features = open_features(model, collator, studies, folder / f"features-{count}", "x", 8)
        seconds = time.perf_counter() - loaded
        row = {
            "studies": f"{count:,}",
            "preparation s": f"{prepared - began:.1f}",
            "studies/s": f"{count / (prepared - began):.0f}",
            "features s": f"{seconds:.1f}",
            "images/s": f"{len(studies) / seconds:.0f}",
            "features MiB": f"{features.values.numel() * features.values.element_size() / 2**20:.1f}",
        }
        rows.append(_told(row))
    return rows


def _studies(count: int) -> Iterator[dict[str, Any]]:
    """Studies whose pictures all differ, from a few phantoms shifted and brightened; drawing thousands would take
    longer than what is measured."""
    originals = [phantom_row(number, "B", 0, dirt=False) for number in range(_DIFFERENT)]
    pixels = [np.asarray(Image.open(io.BytesIO(row["img_frontal"])).resize((256, 256))) for row in originals]  # type: ignore[arg-type]
    for number in range(count):
        row, shift = originals[number % _DIFFERENT], number // _DIFFERENT
        moved = np.roll(pixels[number % _DIFFERENT], (shift % 17 - 8, shift // 17 % 17 - 8), (0, 1))
        buffer = io.BytesIO()
        Image.fromarray(moved).save(buffer, "JPEG", quality=90)
        texts = {name: str(row[name]) for name in ("findings", "impression")}
        yield {"uid": f"study-{number}", **texts, "img_frontal": buffer.getvalue()}


def _planned(gpu: str, stage: int, **settings: Any) -> StagePlan:
    profile = load_profile("lingshu-7b", settings)
    return StagePlan(profile, stage, open_card(gpu))


def _one_at_a_time(stage: int) -> dict[str, Any]:
    one = {"micro_batch": 1, "accumulation": 16, "checkpointed_layers": None}
    return {f"stage{stage}.{name}": value for name, value in one.items()}


def planned_by_batch(sizes: Sequence[int] = (1, 2, 4, 8, 16, 32)) -> list[Row]:
    """Stage 3 of the 7B on an H100, an optimizer step of as many studies throughout."""
    rows = []
    for size in sizes:
        split = {"stage3.micro_batch": size, "stage3.accumulation": max(sizes) // size, "stage3.batch": max(sizes)}
        row = {"studies at once": str(size)}
        for told, layers in (("every layer checkpointed", None), ("none", 0)):
            plan = _planned("h100", 3, **split, **{"stage3.checkpointed_layers": layers})
            speed = size / plan.usual.seconds(plan.card)
            row |= {f"GiB, {told}": f"{plan.memory.total:.1f}", f"studies/s, {told}": f"{speed:.1f}"}
        rows.append(row)
    return rows


def planned_by_resolution(sides: Sequence[int] = (224, 336, 448, 504, 672, 1008)) -> list[Row]:
    """Stages 1 and 3 of the 7B on a T4."""
    rows = []
    for side in sides:
        tokens = (side // 28) ** 2
        row = {"pixels a side": str(side), "visual tokens": str(tokens)}
        for stage in (1, 3):
            size = {"data.image_size": side, "model.visual_tokens": tokens}
            plan = _planned("t4", stage, **_one_at_a_time(stage), **size)
            row[f"GiB, stage {stage}"] = f"{plan.memory.total:.1f}"
            row[f"TFLOP, stage {stage}"] = f"{plan.usual.tflop():.1f}"
        rows.append(row)
    return rows


def planned_by_cards(counts: Sequence[int] = (1, 2, 4, 8)) -> tuple[list[Row], list[Row]]:
    """T4s that each hold the whole 4-bit base, and L4s that share the decoder of one without quantization."""
    whole = _planned("l4", 3, **_one_at_a_time(3), **{"model.quantization": "none"})
    language, minutes = whole.step.shape.language, 60 * whole.hours
    decoder = 2 * (language.linear_weights + language.other_weights - language.width) / 2**30
    copied, shared = [], []
    for count in counts:
        plans = plan_run(load_profile("lingshu-7b"), replace(open_card("t4"), count=count))
        times = {f"stage {plan.stage}, min": f"{60 * plan.hours:.0f}" for plan in plans}
        copied.append({"T4s": str(count), "GiB on each": f"{max(plan.memory.total for plan in plans):.1f}", **times})
        # Each keeps its share, and two layers are whole at a time: one computes, the next is on its way.
        away = decoder * (1 - 1 / count)
        each = whole.memory.total - away + min(away, 2 * decoder / language.depth)
        row = {"L4s": str(count), "GiB on each": f"{each:.1f}", "GiB received a micro-batch": f"{2 * away:.1f}"}
        shared.append({**row, "stage 3, min": f"{minutes / count:.0f}"})
    return copied, shared


def main() -> None:
    """Print the 7B's growth by arithmetic."""
    copied, shared = planned_by_cards()
    tables = {
        "stage 3 on an H100, by the studies that are computed at once": planned_by_batch(),
        "one study at a time, every layer checkpointed, by resolution": planned_by_resolution(),
        "the profile's epochs on Open-I by the number of T4s (DDP, 4 bits)": copied,
        "stage 3 by the number of L4s (FSDP2, no quantization, one study at a time)": shared,
    }
    for title, rows in tables.items():
        print(f"\n{title}\n\n{markdown_table([*rows[0]], [list(row.values()) for row in rows])}")


if __name__ == "__main__":
    main()
