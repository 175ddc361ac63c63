"""Run one stage: the recipe, top to bottom. transformers.Trainer underneath, the stage's guarantees around it."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from peft import PeftModel
from transformers import EarlyStoppingCallback, TrainerState

from radvision_utils.config import Profile, StageSettings
from radvision_utils.content import checksum, fingerprint
from radvision_utils.data.studies import PreparedDataset, Study, open_prepared
from radvision_utils.environment import (
    Device,
    choose_device,
    conditions,
    forget_peak_memory,
    is_out_of_memory,
    open_room,
    peak_memory_gib,
    process_count,
    process_rank,
    seed_everything,
)
from radvision_utils.figures import loss_figure
from radvision_utils.files import first_line, read_json_lines, write_json
from radvision_utils.model.base import (
    WEIGHTS,
    attach_adapter,
    compute_device,
    load_adapter,
    load_base,
    load_processor,
    loading_in_memory,
    save_adapter,
    trained_tensors,
)
from radvision_utils.model.faster import compiled_layers, keep_dequantized, speed_up_lora
from radvision_utils.model.fp16 import guard_fp16
from radvision_utils.model.stage import check_ledger, checkpoint_layers, select_stage, weight_ledger
from radvision_utils.runs import Stage, asked_to_force, is_current, made_from, now
from radvision_utils.training.collator import Collator
from radvision_utils.training.features import VisionLeaves, features_for_pixels, stage_features
from radvision_utils.training.loss import MODEL_INPUTS, mean_report_loss, report_token_losses, to_device
from radvision_utils.training.resume import (
    CheckpointMark,
    MemoryBudget,
    Split,
    TimeBudget,
    being_made,
    finished_state,
    last_checkpoint,
    load_trained,
    pause_if_unfinished,
    train_in_memory,
)
from radvision_utils.training.trainer import (
    GradientCheck,
    ReportTrainer,
    StageLog,
    Stopwatch,
    begin_report,
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


def train_stage(profile: Profile, stage: int, force: bool = False, model: PeftModel | None = None) -> StageResult:
    """Train stage 1, 2 or 3 of a run, or give back its result where nothing that it depends on has changed.

    Reads `data/` and the stage before; makes `stage<n>.partial/`: `adapter/`, `log.jsonl`, `loss.png` and, last,
    `stage.json`; then it becomes `stage<n>/`. An interrupted stage goes on from its last checkpoint.

    Args:
        profile: the run's settings.
        stage: 1, 2 or 3.
        force: also where nothing has changed, or where checkpoints of other settings are there, which it gives up.
        model: the base with the adapter of the stage before, as `stage_model` gives it; loaded if there is none.

    Raises:
        RunPaused: `max_minutes` are used up; the same call goes on.
        RadVisionError: the stage before is missing or stale, checkpoints of other settings are there, the machine
            cannot run the profile, another process works on the run, the disk or the memory is full, or the loss or
            the gradient norm stopped being a number.
    """
    profile.stage(stage)  # there is no training of stage 0
    this, watch = Stage(profile, stage), Stopwatch()
    force = asked_to_force(this.step) or force
    if force or not is_current(profile, this.step):
        with being_made(this, force) as due:
            if due:
                _train(this, watch, model)
    if process_rank() == 0:
        shutil.rmtree(this.folder / "checkpoints", ignore_errors=True)  # after a kill too: they are large
    return StageResult(this.folder, this.record())


def _train(stage: Stage, watch: Stopwatch, model: PeftModel | None) -> None:
    device, dataset = choose_device(), open_prepared(stage.profile)
    train, validation = dataset.split("train"), dataset.split("validation")
    # Where a setting is "auto" the planner puts what fits the card; an optimizer step takes the same studies.
    plan = open_room("planning.plan").plan_here(stage.profile, stage.number, device)
    asked, stage = stage, Stage(plan.profile, stage.number)
    seed_everything(stage.profile.seed + stage.number)
    forget_peak_memory(device)

    # Load the 4-bit base with the one adapter, and choose which part of it trains.
    with watch.part("load"):
        model = stage_model(stage, device) if model is None else model
        select_stage(model, stage)
        _tell(stage, model, device, plan.chosen)
        speed_up_lora(model)
        if plan.copied:
            keep_dequantized(model)

        # Studies become prompt, image and report; only the report carries loss.
        collator = Collator(load_processor(stage.profile.model, stage.profile.data.image_size), stage.profile.model)
        sample = to_device(collator(train[:2]), compute_device(model))
        float32_blocks = guard_fp16(model, {name: sample[name] for name in MODEL_INPUTS}, device)

    # Every weight has a fingerprint: at the end only the stage's may differ.
    with watch.part("ledger"):
        before = weight_ledger(model)

    # A frozen vision encoder is computed once for each image.
    with watch.part("features"):
        collator.features = features = stage_features(model, stage, dataset, collator, before)

    # Train, in micro-batches that fit the memory.
    held_out, memory = validation[: stage.settings.validation_studies], MemoryBudget(stage)
    with features_for_pixels(model) if features else nullcontext(), _taught(stage, model, dataset) as head:
        fit = _Fit(stage, device, model, collator, train, held_out, watch, plan, head)
        facts = train_in_memory(memory, model, fit.attempt)

    # Prove that nothing else has moved, then save.
    with watch.part("ledger"):
        after = weight_ledger(model)
    moved = check_ledger(before, after, stage)
    if process_rank():
        return  # the first process alone writes
    with watch.part("save"):
        save_adapter(model, stage.work / "adapter")
        loss_figure(stage.work / "log.jsonl", f"Training the {stage.title}").savefig(stage.work / "loss.png", dpi=120)
    facts |= {"memory_events": memory.events, "features": features.record if features else None, "moved": moved}
    facts |= {"float32_blocks": float32_blocks, "ledger": {"before": before, "after": after}, "chosen": plan.chosen}
    _publish(asked, facts, device, watch)


def stage_model(stage: Stage, device: Device) -> PeftModel:
    """The base with the adapter that the stage goes on with: a fresh one for stage 1, else that of the stage before.

    Raises:
        RadVisionError: the base cannot be loaded, or its adapter is missing.
    """
    with loading_in_memory(stage.profile, stage.number):
        base = load_base(stage.profile.model, device, shard=process_count() > 1)
        return load_adapter(base, stage.parent.adapter) if stage.parent else attach_adapter(base, stage.profile)


def _taught(stage: Stage, model: PeftModel, dataset: PreparedDataset) -> Any:
    """The context in which finding labels teach, by a head that it gives; where the settings ask for none, none."""
    if not stage.label_weight:
        return nullcontext()
    return open_room("small_data.label_head").taught_by_labels(model, dataset, stage.label_weight)


def _tell(stage: Stage, model: PeftModel, device: Device, chosen: dict[str, Any]) -> None:
    sizes = [parameter.numel() for parameter in trained_tensors(model).values()]
    told = f"{stage.title}: {stage.how} ({len(sizes)} tensors, {sum(sizes)} parameters)"
    where = f"{device.title}, {device.dtype} ({device.dtype_reason})"
    logger.info("stage %d trains the %s. %s.", stage.number, told, where)
    if chosen:
        logger.info("stage %d: %s", stage.number, ", ".join(f"{name} {value}" for name, value in chosen.items()))


def _publish(stage: Stage, facts: dict[str, Any], device: Device, watch: Stopwatch) -> None:
    """Write `stage.json`, which makes the stage whole, and put the stage in its place."""
    profile, made = stage.profile, made_from(stage.profile, stage.step)
    record = {
        "stage": stage.number,
        "component": stage.component,
        "key": fingerprint(made),  # two stages with one key were made from the same
        "made_from": made,
        "hash": checksum(stage.work / "adapter" / WEIGHTS),
        **facts,
        "settings": profile.to_dict()[stage.step],
        "seed": profile.seed,
        **conditions(device),
        "peak_memory_gib": round(peak_memory_gib(device), 3),
        "seconds": watch.seconds,
        "seconds_by_part": watch.record(),
        "finished": now(),
    }
    logger.info("%s", open_room("planning.tables").beside_measured(record, card=device.kind == "cuda"))
    logger.info("stage %d: seconds by part: %s", stage.number, watch)
    write_json(stage.work / "stage.json", record)
    stage.run.publish(profile, stage.step)


# Minutes of steps, by plan, from which compiling should pay. Not measured: it should take about one (76 to 90 s for the
# whole 7B in writing, on an H100), and spare a tenth where 16 studies at a time keep the card at work; more at 4.
_EARNED = 10


@dataclass(frozen=True)
class _Fit:
    """What all attempts to train a stage share, however many studies they take at a time."""

    stage: Stage
    device: Device
    model: PeftModel
    collator: Collator
    train: Sequence[Study]
    held_out: Sequence[Study]  # of validation, as many as are measured
    watch: Stopwatch
    plan: Any  # a `planning.plan.StagePlan`
    head: Any  # a `small_data.label_head.LabelHead`, where labels teach

    def attempt(self, split: Split) -> dict[str, Any]:
        """Train in such micro-batches, from the last checkpoint on where there is one; what there is to record."""
        stage, model, collator, work = self.stage, self.model, self.collator, self.stage.work
        settings = replace(stage.settings, micro_batch=split.micro_batch, accumulation=split.accumulation)
        model.config.use_cache = False
        checkpoint_layers(model, stage, settings.checkpointed_layers)

        # Before the first step, after each epoch and after the last step.
        def validate() -> tuple[float, str]:
            with self.watch.part("validation"):
                loss = mean_report_loss(model, collator, self.held_out, settings.micro_batch * 2, self.device.autocast)
                return loss, begin_report(model, collator, self.held_out[0], self.device.autocast)

        step = stage.settings.step_size
        log = StageLog(work / "log.jsonl", f"stage {stage.number}", step, validate, settings.eval_steps)
        checkpoint = last_checkpoint(work / "checkpoints")
        state = finished_state(checkpoint)
        if checkpoint is not None and state is not None:  # killed after the last step
            load_trained(model, checkpoint.with_name(Path(state.best_model_checkpoint or checkpoint).name))
            log.begin(state)
        else:
            state = self._take_steps(settings, log, checkpoint)
        return self._facts(settings, log, checkpoint, state)

    def _take_steps(self, settings: StageSettings, log: StageLog, checkpoint: Path | None) -> TrainerState:
        """The stage's steps by transformers.Trainer, all of them or those behind a checkpoint."""
        stage, collator = self.stage, self.collator
        budget = TimeBudget(settings.max_minutes, self.watch.started)
        seed, data = stage.profile.seed + stage.number, stage.profile.data
        if data.augment:
            collator = collator.augmenting(open_room("small_data.examples").Augmentation(seed))
        trainer = ReportTrainer(
            model=self.model,
            args=training_arguments(settings, self.device, stage.work / "checkpoints", seed),
            collator=collator,
            abnormal=self._abnormal(),
            head=self.head,
            measured=lambda: log.validation_losses[-1],
            waiting=lambda: self.watch.part("waiting for data"),
            train_dataset=self.train,
            eval_dataset=self.held_out,
            callbacks=[
                GradientCheck(stage),
                log,
                budget,
                CheckpointMark(),
                *([] if settings.patience is None else [EarlyStoppingCallback(settings.patience)]),
                *([VisionLeaves()] if collator.features else []),
            ],
        )
        with other_processes_watched(stage), let_go(trainer), self._compiled(settings), self.watch.part("steps"):
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
            state = trainer.state
        pause_if_unfinished(stage, state, budget)
        return state

    def _abnormal(self) -> tuple[list[bool], float] | None:
        """Which studies show a finding, and their share of what is shown; None where that is left as it is."""
        share = self.stage.profile.data.abnormal_share
        if share is None:
            return None
        return list(map(open_room("small_data.label_head").shows_finding, self.train)), share

    def _facts(
        self, settings: StageSettings, log: StageLog, checkpoint: Path | None, state: TrainerState
    ) -> dict[str, Any]:
        """What `stage.json` says of the steps, with the memory that the planner reckons for them."""
        model, collator = self.model, self.collator
        size, autocast = settings.micro_batch * 2, self.device.autocast
        return {
            "studies": {"train": len(self.train), "validation": len(self.held_out)},
            "steps": state.global_step,
            "resumed_from": checkpoint.name if checkpoint else None,
            "samples_per_second": round(log.samples_per_second, 2),
            "train_loss": log.train_loss(),
            "validation_loss": log.validation_losses,
            "best": {"step": state.best_global_step, "loss": state.best_metric} if settings.patience else None,
            "label_auc": self.head.auc(model, collator, self.held_out, size, autocast) if self.head else None,
            "plan": self.plan.record(
                settings,
                len(collator.prompt()),
                max(len(collator.report_ids(collator.target(study))) for study in self.train),
                cached=collator.features is not None,
                card=self.device.kind == "cuda",
            ),
        }

    @contextmanager
    def _compiled(self, settings: StageSettings) -> Iterator[None]:
        """Within, the layers train as compiled code where that is asked for or pays, and where it works."""
        seconds = self.plan.usual.seconds(self.plan.card)  # of a micro-batch; NaN where that is not known
        minutes = settings.shown(len(self.train)) / settings.micro_batch * seconds / 60
        # A card of the T4's age computes for seconds at a micro-batch, and does not wait for Python.
        able = self.device.kind == "cuda" and self.device.dtype == "bfloat16" and process_count() == 1
        auto, earned = settings.compile == "auto" and able, minutes >= _EARNED
        if auto and not earned:
            logger.info("stage %d: %.0f minutes of steps would not earn compiled layers", self.stage.number, minutes)
        if not (settings.compile == "always" or (auto and earned)):
            yield
            return
        with ExitStack() as compiled, self.watch.part("compile"):
            batch = to_device(self.collator(self.train[: settings.micro_batch]), compute_device(self.model))
            try:
                compiled.enter_context(compiled_layers(self.model))
                with self.device.autocast():
                    report_token_losses(self.model.train(), batch)[0].sum().backward()
                told = "train as compiled code"
            except Exception as error:
                if is_out_of_memory(error):
                    raise
                compiled.close()
                told = f"cannot be compiled ({first_line(error)}) and train as they are"
            self.model.zero_grad(set_to_none=True)
            logger.info("stage %d: the layers %s", self.stage.number, told)
            del batch
            yield
