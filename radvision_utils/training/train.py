"""Run one stage: the recipe, top to bottom. transformers.Trainer underneath, the stage's guarantees around it."""

from __future__ import annotations

import logging
import shutil
import time
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from accelerate import PartialState
from peft import PeftModel

from radvision_utils.config import Profile, StageSettings
from radvision_utils.data.studies import PreparedDataset, open_prepared
from radvision_utils.environment import (
    Device,
    choose_device,
    forget_peak_memory,
    open_room,
    peak_memory_gib,
    process_rank,
    seed_everything,
    versions,
)
from radvision_utils.model.base import (
    WEIGHTS,
    attach_adapter,
    compute_device,
    load_adapter,
    load_base,
    load_processor,
    loading_in_memory,
    save_adapter,
)
from radvision_utils.model.faster import speed_up_lora
from radvision_utils.model.fp16 import guard_fp16
from radvision_utils.model.stage import STAGES, check_ledger, checkpoint_layers, select_stage, weight_ledger
from radvision_utils.runs import (
    RunFolder,
    file_hash,
    is_current,
    now,
    publish_finished,
    read_json_lines,
    require,
    step_key,
    working,
    write_json,
)
from radvision_utils.training.collator import Collator
from radvision_utils.training.features import VisionLeaves, features_for_pixels, stage_features
from radvision_utils.training.loss import MODEL_INPUTS, mean_report_loss, to_device
from radvision_utils.training.resume import (
    CheckpointMark,
    MemoryBudget,
    Split,
    TimeBudget,
    finished_state,
    last_checkpoint,
    load_trained,
    pause_if_unfinished,
    start_or_resume,
    train_in_memory,
)
from radvision_utils.training.trainer import (
    GradientCheck,
    ReportTrainer,
    StageLog,
    Stopwatch,
    draw_losses,
    let_go,
    other_processes_watched,
    training_arguments,
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StageResult:
    """A finished stage: its folder and what it recorded in `stage.json`."""

    folder: Path
    record: dict[str, Any]

    @property
    def log(self) -> list[dict[str, Any]]:
        """The lines of `log.jsonl`."""
        return read_json_lines(self.folder / "log.jsonl")


def train_stage(profile: Profile, stage: int, force: bool = False) -> StageResult:
    """Train stage 1, 2 or 3 of a run, or give back its result where nothing that it depends on has changed.

    Reads `data/` and the stage before; makes `stage<n>.partial/`: `adapter/`, `log.jsonl`, `loss.png` and, last,
    `stage.json`; then it becomes `stage<n>/`. An interrupted stage goes on from its last checkpoint.

    Raises:
        RunPaused: `max_minutes` are used up; the same call goes on.
        RadVisionError: the stage before is missing or stale, the machine cannot run the profile, another process works
            on the run, the disk or the memory is full, or the loss or the gradient norm stopped being a number.
    """
    profile.stage(stage)
    folder, step, started = RunFolder.of(profile), f"stage{stage}", time.perf_counter()
    if force or not is_current(profile, step):
        key, device = step_key(profile, step), choose_device()
        together = PartialState(cpu=device.kind == "cpu")  # of the processes that `accelerate launch` started
        with working(folder, step):
            if together.is_main_process and (force or not publish_finished(profile, step)):
                folder.record_path(step).unlink(missing_ok=True)
                start_or_resume(folder.partial(step), key, force)
            together.wait_for_everyone()
            if not is_current(profile, step):
                _train(profile, stage, key, device, started)
            together.wait_for_everyone()
    if process_rank() == 0:
        shutil.rmtree(folder.stage(stage) / "checkpoints", ignore_errors=True)  # after a kill too: they are large
    return StageResult(folder.stage(stage), require(profile, step))


def _train(profile: Profile, stage: int, key: str, device: Device, started: float) -> None:
    folder, step = RunFolder.of(profile), f"stage{stage}"
    work = folder.partial(step)
    dataset = open_prepared(profile)
    seed_everything(profile.seed + stage)
    forget_peak_memory(device)
    watch = Stopwatch(started)

    with watch.part("load"):
        model = _stage_model(profile, stage, folder, device)
        collator = Collator(load_processor(profile.model, profile.data.image_size), profile.model)
        sample = to_device(collator(dataset.split("train")[:2]), compute_device(model))
        kept = guard_fp16(model, {name: sample[name] for name in MODEL_INPUTS}, device)
    with watch.part("ledger"):
        before = weight_ledger(model)
    with watch.part("features"):
        features = stage_features(model, profile, stage, dataset, collator, before)
    collator.features = features
    with features_for_pixels(model) if features else nullcontext():
        facts = _fit(model, profile, stage, work, dataset, collator, device, watch)
    if process_rank():
        return  # the first process alone writes
    with watch.part("ledger"):
        after = weight_ledger(model)
    moved = check_ledger(before, after, stage)

    with watch.part("save"):
        save_adapter(model, work / "adapter")
        draw_losses(work / "log.jsonl", work / "loss.png", STAGES[stage].title)
    parent = require(profile, f"stage{stage - 1}")["hash"] if stage > 1 else None
    record = {
        "stage": stage,
        "component": STAGES[stage].component,
        "key": key,
        "hash": file_hash(work / "adapter" / WEIGHTS),
        "data_hash": dataset.summary["hash"],
        "parent_hash": parent,
        **facts,
        "features": features.record if features else None,
        "float32_blocks": kept,
        "moved": moved,
        "ledger": {"before": before, "after": after},
        "prompt": profile.model.prompt,
        "settings": profile.to_dict()[step],
        "seed": profile.seed,
        "device": device.title,
        "dtype": device.dtype,
        "peak_memory_gib": round(peak_memory_gib(device), 3),
        "seconds": round(time.perf_counter() - started, 1),
        "seconds_by_part": watch.record(),
        "versions": versions(),
        "finished": now(),
    }
    logger.info("%s", open_room("planning.tables").beside_measured(record, card=device.kind == "cuda"))
    logger.info("stage %d: seconds by part: %s", stage, watch)
    write_json(work / "stage.json", record)
    folder.publish(profile, step)


def _stage_model(profile: Profile, stage: int, folder: RunFolder, device: Device) -> PeftModel:
    with loading_in_memory(profile, stage):
        base = load_base(profile.model, device)
        model = attach_adapter(base, profile) if stage == 1 else load_adapter(base, folder.adapter(stage - 1))
    names = select_stage(model, profile, stage)
    speed_up_lora(model)
    tensors = dict(model.named_parameters())
    logger.info(
        "stage %d trains the %s: %s (%d tensors, %d parameters). %s, %s (%s).",
        stage,
        STAGES[stage].title,
        STAGES[stage].how,
        len(names),
        sum(tensors[name].numel() for name in names),
        device.title,
        device.dtype,
        device.dtype_reason,
    )
    return model


def _fit(
    model: PeftModel,
    profile: Profile,
    stage: int,
    folder: Path,
    dataset: PreparedDataset,
    collator: Collator,
    device: Device,
    watch: Stopwatch,
) -> dict[str, Any]:
    """Train, with the loss on validation studies before, at each epoch's end and after; what there is to record."""
    whole = profile.stage(stage)
    memory = MemoryBudget(folder / "memory.json", profile, stage)

    def attempt(split: Split) -> dict[str, Any]:
        settings = replace(whole, micro_batch=split.micro_batch, accumulation=split.accumulation)
        return _fit_split(model, profile, settings, stage, folder, dataset, collator, device, watch)

    return {**train_in_memory(memory, model, attempt), "memory_events": memory.events}


def _fit_split(
    model: PeftModel,
    profile: Profile,
    settings: StageSettings,
    stage: int,
    folder: Path,
    dataset: PreparedDataset,
    collator: Collator,
    device: Device,
    watch: Stopwatch,
) -> dict[str, Any]:
    train = dataset.split("train")
    held_out = dataset.split("validation")[: settings.validation_studies]
    model.config.use_cache = False
    checkpoint_layers(model, stage, settings.checkpointed_layers)

    def validate() -> float:
        with watch.part("validation"):
            return mean_report_loss(model, collator, held_out, settings.micro_batch * 2, device.autocast)

    batch = profile.stage(stage).micro_batch * profile.stage(stage).accumulation
    log = StageLog(folder / "log.jsonl", f"stage {stage}", batch, validate)
    trainer = ReportTrainer(
        model=model,
        args=training_arguments(settings, device, folder / "checkpoints", profile.seed + stage),
        collator=collator,
        train_dataset=train,
        callbacks=[GradientCheck(stage), log, TimeBudget(settings.max_minutes, watch.started), CheckpointMark()],
    )
    if collator.features:
        trainer.add_callback(VisionLeaves())
    checkpoint = last_checkpoint(folder / "checkpoints")
    state = finished_state(checkpoint)
    if checkpoint is not None and state is not None:
        load_trained(model, checkpoint)
        log.begin(state)
    else:
        with other_processes_watched(stage), let_go(trainer), watch.part("steps"):
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
            state = trainer.state
        pause_if_unfinished(stage, settings.max_minutes, state)
    return {
        "studies": {"train": len(train), "validation": len(held_out)},
        "steps": state.global_step,
        "resumed_from": checkpoint.name if checkpoint else None,
        "samples_per_second": round(log.samples_per_second, 2),
        "train_loss": log.train_loss(),
        "validation_loss": log.validation_losses,
        "plan": open_room("planning.plan").plan_record(
            profile,
            stage,
            settings,
            len(collator.prompt()),
            max(len(collator.report_ids(study.report)) for study in train),
            cached=collator.features is not None,
            card=device.kind == "cuda",
        ),
    }
