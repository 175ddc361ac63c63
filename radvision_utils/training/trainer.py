"""Run one stage: transformers.Trainer underneath, the report loss and the stage's guarantees on top."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from radvision_utils.config import Profile, RadVisionError, StageSettings
from radvision_utils.data.studies import PreparedDataset, open_prepared
from radvision_utils.environment import (
    Device,
    choose_device,
    forget_peak_memory,
    peak_memory_gib,
    seed_everything,
    versions,
)
from radvision_utils.model.adapter import WEIGHTS, attach_adapter, load_adapter, save_adapter
from radvision_utils.model.loading import load_base, load_processor
from radvision_utils.runs import RunFolder, file_hash, is_current, now, read_json_lines, require, step_key, write_json
from radvision_utils.training.collator import Collator
from radvision_utils.training.loss import mean_report_loss, report_token_losses
from radvision_utils.training.progress import StageLog, draw_losses
from radvision_utils.training.stages import STAGES, assert_gradients, check_ledger, select_stage, weight_ledger

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


class ReportTrainer(Trainer):
    """transformers.Trainer with the loss on report tokens; a loss that is no number ends the training at once."""

    def __init__(self, *, model: torch.nn.Module, args: TrainingArguments, collator: Collator, **options: Any) -> None:
        args._n_gpu = min(args.n_gpu, 1)  # several cards in one process would mean DataParallel; use accelerate launch
        super().__init__(model=model, args=args, data_collator=collator, **options)
        # The loss below is already divided by the tokens of the whole accumulated batch.
        self.model_accepts_loss_kwargs = True
        self._loss_shifts_labels = False
        self.remove_callback(PrinterCallback)  # StageLog tells the user, and less often

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: Mapping[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """Sum of the report tokens' losses over the number of report tokens in the whole (accumulated) batch."""
        losses, counts = report_token_losses(model, inputs)
        loss = losses.sum() / (counts.sum() if num_items_in_batch is None else num_items_in_batch)
        if not torch.isfinite(loss):
            raise RadVisionError(
                f"the loss is {loss.item()} at step {self.state.global_step + 1} on studies "
                f"{', '.join(inputs['uids'])}: training stops and keeps the last checkpoint; "
                "try half the learning rate, or look at these studies."
            )
        # Gradients are averaged over processes, tokens were counted over all of them.
        return loss * self.accelerator.num_processes


class GradientCheck(TrainerCallback):
    """Asserts once, at the first optimizer step, that exactly the stage's tensors have gradients."""

    def __init__(self, number: int) -> None:
        self.number, self.done = number, False

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not self.done:
            assert_gradients(kwargs["model"], self.number)
            self.done = True


def train_stage(profile: Profile, stage: int, force: bool = False) -> StageResult:
    """Train stage 1, 2 or 3 of a run, or give back its result where nothing that it depends on has changed.

    Reads `data/` and the stage before; writes `stage<n>/`: `adapter/`, `log.jsonl`, `loss.png` and, last, `stage.json`.
    An interrupted stage goes on from its last checkpoint.

    Raises:
        RadVisionError: the stage before is missing or stale, the machine cannot run the profile, or the loss stopped
            being a number.
    """
    profile.stage(stage)
    folder = RunFolder.of(profile)
    step = f"stage{stage}"
    if not force and is_current(profile, step):
        return StageResult(folder.stage(stage), require(profile, step))
    key = step_key(profile, step)
    dataset = open_prepared(profile)
    device = choose_device()
    _start_or_resume(folder.stage(stage), key, force)
    seed_everything(profile.seed + stage)
    forget_peak_memory(device)

    model = _stage_model(profile, stage, folder, device)
    collator = Collator(load_processor(profile.model, profile.data.image_size), profile.model)
    before, started = weight_ledger(model), time.perf_counter()
    facts = _fit(model, profile, stage, folder.stage(stage), dataset, collator, device)
    moved = check_ledger(before, weight_ledger(model), stage)

    save_adapter(model, folder.adapter(stage))
    parent = require(profile, f"stage{stage - 1}")["hash"] if stage > 1 else None
    record = {
        "stage": stage,
        "component": STAGES[stage].component,
        "key": key,
        "hash": file_hash(folder.adapter(stage) / WEIGHTS),
        "data_hash": dataset.summary["hash"],
        "parent_hash": parent,
        **facts,
        "moved": moved,
        "ledger": {"before": before, "after": weight_ledger(model)},
        "prompt": profile.model.prompt,
        "settings": profile.to_dict()[step],
        "seed": profile.seed,
        "device": device.title,
        "dtype": device.dtype,
        "peak_memory_gib": round(peak_memory_gib(device), 3),
        "seconds": round(time.perf_counter() - started, 1),
        "versions": versions(),
        "finished": now(),
    }
    draw_losses(folder.stage(stage) / "log.jsonl", folder.stage(stage) / "loss.png", STAGES[stage].title)
    write_json(folder.record_path(step), record)
    shutil.rmtree(folder.stage(stage) / "checkpoints", ignore_errors=True)
    folder.note(profile, step, seconds=record["seconds"], device=device.title, versions=record["versions"])
    return StageResult(folder.stage(stage), record)


def _start_or_resume(folder: Path, key: str, force: bool) -> None:
    """Leave checkpoints of this very stage in place, and nothing else."""
    marker = folder / "checkpoints" / "key.txt"
    if force or not marker.is_file() or marker.read_text() != key:
        shutil.rmtree(folder, ignore_errors=True)
        marker.parent.mkdir(parents=True)
        marker.write_text(key)


def _stage_model(profile: Profile, stage: int, folder: RunFolder, device: Device) -> PeftModel:
    base = load_base(profile.model, device)
    model = attach_adapter(base, profile) if stage == 1 else load_adapter(base, folder.adapter(stage - 1))
    names = select_stage(model, profile, stage)
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
) -> dict[str, Any]:
    """Train, with the loss on validation studies before, at each epoch's end and after; what there is to record."""
    settings = profile.stage(stage)
    train = dataset.split("train")
    held_out = dataset.split("validation")[: settings.validation_studies]
    model.config.use_cache = False

    def validate() -> float:
        return mean_report_loss(model, collator, held_out, settings.micro_batch * 2, device.autocast)

    log = StageLog(folder / "log.jsonl", f"stage {stage}", settings.micro_batch * settings.accumulation, validate)
    trainer = ReportTrainer(
        model=model,
        args=training_arguments(settings, device, folder / "checkpoints", profile.seed + stage),
        collator=collator,
        train_dataset=train,
        callbacks=[GradientCheck(stage), log],
    )
    checkpoint = get_last_checkpoint(str(folder / "checkpoints"))
    outcome = trainer.train(resume_from_checkpoint=checkpoint)
    return {
        "studies": {"train": len(train), "validation": len(held_out)},
        "steps": outcome.global_step,
        "resumed_from": Path(checkpoint).name if checkpoint else None,
        "samples_per_second": round(log.samples_per_second, 2),
        "train_loss": round(outcome.training_loss, 4),
        "validation_loss": log.validation_losses,
    }


def training_arguments(settings: StageSettings, device: Device, folder: Path, seed: int) -> TrainingArguments:
    """The stage's settings in transformers' words."""
    return TrainingArguments(
        output_dir=str(folder),
        learning_rate=settings.learning_rate,
        num_train_epochs=settings.epochs,
        max_steps=settings.max_steps or -1,
        per_device_train_batch_size=settings.micro_batch,
        gradient_accumulation_steps=settings.accumulation,
        warmup_steps=settings.warmup_ratio,  # below 1 it is a share of all steps
        lr_scheduler_type=settings.schedule,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        optim=settings.optimizer,
        gradient_checkpointing=settings.checkpointing,
        # Re-entrant checkpointing gives a LoRA whose inputs need no gradient (stage 1's first block) none at all.
        gradient_checkpointing_kwargs={"use_reentrant": False} if settings.checkpointing else None,
        bf16=device.dtype == "bfloat16",
        fp16=device.dtype == "float16",
        use_cpu=device.kind == "cpu",
        save_strategy="steps",
        save_steps=settings.save_steps,
        save_total_limit=2,
        logging_steps=1,
        logging_nan_inf_filter=False,
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=device.kind == "cuda",
        label_names=["labels"],
        seed=seed,
        data_seed=seed,
    )
