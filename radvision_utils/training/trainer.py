"""transformers.Trainer as this project uses it: the report loss, an order of studies, checks, and what one sees."""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list, gather_object
from bitsandbytes.optim import GlobalOptimManager
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import Sampler
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from radvision_utils.config import RadVisionError, StageSettings
from radvision_utils.data.studies import Study
from radvision_utils.environment import Device, in_live_notebook, process_count, process_rank
from radvision_utils.figures import loss_figure
from radvision_utils.files import read_json_lines, write_json_lines
from radvision_utils.model.base import is_sharded
from radvision_utils.model.greedy import write_greedily
from radvision_utils.model.stage import assert_gradients
from radvision_utils.runs import Stage
from radvision_utils.training.collator import Collator, ImageChanges, ahead
from radvision_utils.training.loss import report_token_losses
from radvision_utils.training.resume import load_trained, save_trained

logger = logging.getLogger(__name__)

_SECONDS_BETWEEN_LINES = 10.0
# What gloo and NCCL say when the process at the other end is gone.
_LOST_WORDS = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Timed out waiting", "NCCL")


@contextmanager
def other_processes_watched(stage: Stage) -> Iterator[None]:
    """Say in one sentence that another process of the training is gone.

    Raises:
        RadVisionError: it is.
    """
    try:
        yield
    except RuntimeError as error:
        if process_count() == 1 or not any(words in str(error) for words in _LOST_WORDS):
            raise
        raise RadVisionError(
            f"stage {stage.number}: process {process_rank()} of {process_count()} lost another one, which was ended or "
            "failed (look above for its reason): all stop; the same command goes on from the last checkpoint, also "
            "with another --num_processes."
        ) from error


class StudyOrder(Sampler[int]):
    """A new random order every epoch; the studies of one optimizer step go from the longest report to the shortest.

    Micro-batches of like lengths hold less padding, and the step is the sum over the same studies as before. Reports
    grouped beyond a step would save little more and make steps of normal studies alone.

    Args:
        lengths: of each study's report.
        step: studies of an optimizer step, over all processes and micro-batches.
        seed: the order depends on it and the epoch alone, so an interrupted epoch goes on with the studies left.
        abnormal: which studies show a finding, and their share of an epoch; None: each study comes once.
    """

    def __init__(
        self, lengths: Sequence[int], step: int, seed: int, abnormal: tuple[Sequence[bool], float] | None = None
    ) -> None:
        self.lengths, self.step, self.seed, self.epoch = lengths, step, seed, 0
        self.abnormal = abnormal if abnormal is not None and 0 < sum(abnormal[0]) < len(lengths) else None

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed((self.seed << 16) + self.epoch)
        order = torch.randperm(len(self.lengths), generator=generator).tolist()
        if self.abnormal is not None:
            order = self._balanced(order, generator)
        for first in range(0, len(order), self.step):
            yield from sorted(order[first : first + self.step], key=lambda study: self.lengths[study], reverse=True)

    def _balanced(self, order: list[int], generator: torch.Generator) -> list[int]:
        """As many studies as before, so many of which show a finding: some of one kind stay away, or come again."""
        shows, share = self.abnormal or ((), 0.0)
        wanted = round(share * len(order))
        chosen: list[int] = []
        for kind, count in ((True, wanted), (False, len(order) - wanted)):
            chosen += islice(cycle(study for study in order if shows[study] is kind), count)
        return [chosen[place] for place in torch.randperm(len(chosen), generator=generator).tolist()]


class EpochOrder(TrainerCallback):
    """Tells what changes with the epoch. accelerate's `set_epoch` reaches no order where several processes resume."""

    def __init__(self, *changing: StudyOrder | ImageChanges) -> None:
        self.changing = changing

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        for each in self.changing:
            each.set_epoch(int(state.epoch or 0))


class ReportTrainer(Trainer):
    """transformers.Trainer with the loss on report tokens and checkpoints that hold what the stage trains.

    It stops at a loss or gradient norm which is no number, before a checkpoint can hold its harm.

    Args:
        abnormal: see `StudyOrder`.
        head: a `small_data.label_head.LabelHead` that is part of the model, where labels teach.
        measured: gives the validation loss at the step where it is asked.
        waiting: the context in which a step waits for its data.
    """

    control: Any  # of transformers' callbacks
    uids: tuple[str, ...] = ()  # of the optimizer step at work

    def __init__(
        self,
        *,
        model: torch.nn.Module,
        args: TrainingArguments,
        collator: Collator,
        abnormal: tuple[Sequence[bool], float] | None = None,
        head: Any = None,
        measured: Callable[[], float] | None = None,
        waiting: Callable[[], AbstractContextManager[Any]] = nullcontext,
        **options: Any,
    ) -> None:
        args._n_gpu = min(args.n_gpu, 1)  # several cards in one process would mean DataParallel; use accelerate launch
        self.abnormal, self.head, self.measured, self.waiting = abnormal, head, measured, waiting
        self._source: Any = None
        self._coming: Any = None
        super().__init__(model=model, args=args, data_collator=collator, **options)
        # The loss below is already divided by the tokens of the whole accumulated batch.
        self.model_accepts_loss_kwargs = True
        self._loss_shifts_labels = False
        self.remove_callback(PrinterCallback)  # StageLog tells the user, and less often

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, *args: Any, **kwargs: Any) -> Any:
        """As in transformers: the micro-batches of an optimizer step, which a card does not wait for."""
        if self._source is not epoch_iterator:
            self._source, self._coming = epoch_iterator, ahead(epoch_iterator, num_batches, self.args.device)
        with self.waiting():
            return super().get_batch_samples(self._coming, num_batches, *args, **kwargs)

    def training_step(self, model: torch.nn.Module, inputs: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """As in transformers; remembers whose studies the step takes."""
        self.uids += tuple(inputs["uids"])
        return super().training_step(model, inputs, *args, **kwargs)

    def log(self, logs: dict[str, Any], *args: Any, **kwargs: Any) -> None:
        """As in transformers, which calls it after each optimizer step and before the step's checkpoint.

        Raises:
            RadVisionError: the gradient norm is infinite or no number.
        """
        norm = logs.get("grad_norm")
        if norm is not None and not math.isfinite(norm):
            self._judge(norm)
            logs = {**logs, "grad_norm": None}
        self.uids = ()
        super().log(logs, *args, **kwargs)

    def _judge(self, norm: float) -> None:
        step, scaler = self.state.global_step, self.accelerator.scaler
        # In float16 an overflow is how the scaler finds its scale: the step is skipped and the scale halved. Below a
        # scale of 1 it is no longer the scale that overflows.
        if self.accelerator.optimizer_step_was_skipped and scaler is not None and scaler.get_scale() >= 1:
            logger.info("step %d skipped: float16 gradients overflowed, loss scale now %g", step, scaler.get_scale())
            return
        uids = gather_object(list(self.uids)) if process_count() > 1 else self.uids
        raise RadVisionError(
            f"the gradient norm is {norm} at step {step} on studies {', '.join(uids)}: training stops and keeps the "
            "last checkpoint; try half the learning rate with --force, or look at these studies."
        )

    def _get_train_sampler(self, train_dataset: Any = None) -> StudyOrder:
        args, collator = self.args, self.data_collator
        lengths = [len(collator.report_ids(collator.target(study))) for study in self.train_dataset]
        step = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        order = StudyOrder(lengths, step, args.seed, self.abnormal)
        self.add_callback(EpochOrder(order, *filter(None, [collator.augmentation])))
        return order

    def _wrap_model(self, model: torch.nn.Module, *args: Any, **kwargs: Any) -> torch.nn.Module:
        """As in transformers; a base that is sharded is made DDP's here, which accelerate refuses."""
        if not is_sharded(model):
            return super()._wrap_model(model, *args, **kwargs)
        frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, frozen)
        # For evaluation it adds autocast and no more.
        return DistributedDataParallel(
            self.accelerator.prepare_model(model, device_placement=False, evaluation_mode=True)
        )

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: Mapping[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """Sum of the report tokens' losses over the number of report tokens in the whole (accumulated) batch; with
        labels, of which each study counts alike, the mean of both losses by the head's share."""
        share, args, parts = self.head.share if self.head else 0.0, self.args, []
        if share < 1:
            losses, counts = report_token_losses(model, inputs)
            if "weights" in inputs:
                losses = losses * inputs["weights"][:, -losses.shape[1] :]
            parts = [(1 - share) * losses.sum() / (counts.sum() if num_items_in_batch is None else num_items_in_batch)]
        else:
            self.head.look(model, inputs)
        if share:
            studies = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
            parts.append(share * self.head.loss(inputs["uids"]) / studies)
        loss = torch.stack(parts).sum()
        if not torch.isfinite(loss):
            raise RadVisionError(
                f"the loss is {loss.item()} at step {self.state.global_step + 1} on studies "
                f"{', '.join(inputs['uids'])}: training stops and keeps the last checkpoint; "
                "try half the learning rate with --force, or look at these studies."
            )
        # Gradients are averaged over processes, tokens were counted over all of them.
        return loss * self.accelerator.num_processes

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """The loss that `StageLog` measured at this step, by which transformers keeps the best checkpoint."""
        measured = [self.measured() if self.measured and self.is_world_process_zero() else 0.0]
        if process_count() > 1:
            broadcast_object_list(measured)
        metrics = {"eval_loss": measured[0]}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _load_best_model(self) -> None:
        load_trained(self.model, Path(self.state.best_model_checkpoint))

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        if self.args.should_save:
            save_trained(self.model, Path(output_dir or self.args.output_dir))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: torch.nn.Module | None = None) -> None:
        load_trained(self.model, Path(resume_from_checkpoint))


@contextmanager
def let_go(trainer: ReportTrainer) -> Iterator[ReportTrainer]:
    """Within, the trainer; however that ends, it then holds no model and no optimizer, and the model nothing of it.

    Both would stay in memory until Python's garbage collector happens to run, since the libraries below make circles:
    accelerate stores its autocast, which holds the model, in `model.forward`, and bitsandbytes' `load_state_dict`
    leaves a function that holds itself and the optimizer. The embeddings would stay for good: transformers enters them
    in a list of bitsandbytes' from which nothing is taken.
    """
    model, exceptions = trainer.model, GlobalOptimManager.get_instance()
    try:
        yield trainer
    finally:
        # The next trainer of this model must find it as it was, or it would compute without autocast.
        for name in ("forward", "_original_forward", "_is_accelerate_prepared"):
            model.__dict__.pop(name, None)
        if trainer.optimizer is not None:
            trainer.optimizer.state.clear()
            trainer.optimizer.param_groups.clear()
        own = set(model.modules())
        exceptions.module_weight_config_triple[:] = [
            e for e in exceptions.module_weight_config_triple if e[0] not in own
        ]
        trainer.__dict__.clear()


class GradientCheck(TrainerCallback):
    """Asserts once, at the first optimizer step, that exactly the stage's tensors have gradients."""

    def __init__(self, stage: Stage) -> None:
        self.stage, self.done = stage, False

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not self.done:
            assert_gradients(kwargs["model"], self.stage)
            self.done = True


def training_arguments(settings: StageSettings, device: Device, folder: Path, seed: int) -> TrainingArguments:
    """The stage's settings in transformers' words."""
    if "tensorboard" in settings.report_to:  # else its files would go with the checkpoints
        os.environ.setdefault("TENSORBOARD_LOGGING_DIR", str(folder.parent.parent / "tensorboard"))
    asked = "steps" if settings.eval_steps else "epoch"
    validated = settings.patience is not None or settings.report_to != "none"
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
        ddp_find_unused_parameters=False,  # whatever trains has gradients: GradientCheck asserts it
        bf16=device.dtype == "bfloat16",
        fp16=device.dtype == "float16",
        use_cpu=device.kind == "cpu",
        eval_strategy=asked if validated else "no",
        eval_steps=settings.eval_steps,
        save_strategy="steps" if settings.patience is None else asked,
        save_steps=settings.save_steps if settings.patience is None else settings.eval_steps or settings.save_steps,
        load_best_model_at_end=settings.patience is not None,
        metric_for_best_model="eval_loss",
        greater_is_better=False,
        logging_steps=1,
        logging_nan_inf_filter=False,
        report_to=settings.report_to.split(","),
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=device.kind == "cuda",
        label_names=["labels"],
        seed=seed,
        data_seed=seed,
    )


def begin_report(model: Any, collator: Collator, study: Study, autocast: Any) -> str:
    """What the model writes on a study as it is by now, greedily and at most 80 tokens; it draws no lot.

    "" where several processes train: each may hold only a part of the model.
    """
    if process_count() > 1:
        return ""
    batch, length, was_training = collator([study]), len(collator.prompt(study.indication)), model.training
    inputs = {name: batch[name][:, :length] for name in ("input_ids", "attention_mask", "mm_token_type_ids")}
    inputs |= {name: batch[name] for name in ("pixel_values", "image_grid_thw")}  # of features in their place, too
    model.eval()
    [(_, ids, _)] = write_greedily(
        model.get_base_model(),
        lambda *_: inputs,
        1,
        places=1,
        room=length,
        longest=80,
        ends=(collator.end, collator.pad),
        autocast=autocast,
    )
    model.train(was_training)
    return " ".join(collator.tokenizer.decode(ids, skip_special_tokens=True).split())


class Stopwatch:
    """Seconds by part of a piece of work, from now on. A part within a part counts for itself alone; what is in none is
    "other"."""

    def __init__(self) -> None:
        self.started = self._clock = time.perf_counter()
        self._part, self._seconds = "other", defaultdict[str, float](float)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Within, the time belongs to the part; it may be entered again and again."""
        outer = self._part
        self._turn_to(name)
        try:
            yield
        finally:
            self._turn_to(outer)

    @property
    def seconds(self) -> float:
        """Since the work began."""
        return round(time.perf_counter() - self.started, 1)

    def record(self) -> dict[str, float]:
        """Seconds of each part so far, in the order in which the parts began."""
        self._turn_to(self._part)
        return {part: round(seconds, 1) for part, seconds in self._seconds.items()}

    def __str__(self) -> str:
        return ", ".join(f"{part} {seconds:.1f}" for part, seconds in self.record().items())

    def _turn_to(self, part: str) -> None:
        now = time.perf_counter()
        self._seconds[self._part] += now - self._clock
        self._part, self._clock = part, now


class StageLog(TrainerCallback):
    """Writes a line of `log.jsonl` at every optimizer step and validation, and tells the user how far it is.

    Of several processes all measure, since each may hold a share of the weights alone, and the first writes.

    Args:
        path: the log file; a resumed stage goes on in the same file.
        title: "stage 1".
        batch: studies an optimizer step.
        validate: gives the validation loss in nats per report token, and what the model writes by now on one validation
            study, always the same; "" where that is not asked.
        every: optimizer steps between validations; None: only before the first step and after each epoch.
    """

    def __init__(
        self, path: Path, title: str, batch: int, validate: Callable[[], tuple[float, str]], every: int | None = None
    ) -> None:
        self.path, self.title, self.batch, self.validate, self.every = path, title, batch, validate, every
        self.validation_losses: list[float] = []
        self.samples_per_second = 0.0
        self._training_seconds, self._steps, self._validated = 0.0, 0, -1
        self._clock = self._last_line = 0.0
        self._bar: Any = None
        self._curve: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.begin(state)
        if in_live_notebook():
            from tqdm.auto import tqdm

            self._bar = tqdm(total=state.max_steps, initial=state.global_step, desc=self.title, unit="step")
            self._draw()
        self._clock = time.perf_counter()

    def begin(self, state: Any) -> None:
        """Start the log, or take up that of an interrupted stage at the checkpoint's step."""
        if process_rank() == 0:
            if state.global_step == 0:
                write_json_lines(self.path, [])
            else:
                self._forget_steps_after(state.global_step)
        self._validate_if_due(state)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **kwargs: Any) -> None:
        if "loss" not in logs or not state.is_world_process_zero:
            return
        seconds, self._clock = time.perf_counter() - self._clock, time.perf_counter()
        self._training_seconds, self._steps = self._training_seconds + seconds, self._steps + 1
        self.samples_per_second = self.batch * self._steps / self._training_seconds
        self._write(
            step=state.global_step,
            epoch=round(state.epoch, 4),
            loss=logs["loss"],
            learning_rate=logs["learning_rate"],
            grad_norm=logs.get("grad_norm"),
            seconds=round(seconds, 4),
        )
        self._tell(state, logs["loss"])

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.every and state.global_step % self.every == 0:
            self._validate(state)
            self._clock = time.perf_counter()

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._validate_if_due(state)
        self._clock = time.perf_counter()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._bar is not None:
            self._bar.close()
            self._draw()

    def train_loss(self) -> float:
        """Mean loss of all steps, those before an interruption included."""
        losses = [line["loss"] for line in read_json_lines(self.path, torn=True) if "loss" in line]
        return round(sum(losses) / len(losses), 4)

    def _validate_if_due(self, state: Any) -> None:
        """Before the first step, after each epoch and after the last step; a stage may also pause in between.

        The checkpoint of such a step is older than its validation: killed between the two, a stage resumes here.
        """
        epoch = state.epoch or 0.0
        due = [(epoch == int(epoch) or state.global_step >= state.max_steps) and state.global_step != self._validated]
        if process_count() > 1:
            broadcast_object_list(due)  # the first process alone has read the log
        if due[0]:
            self._validate(state)

    def _validate(self, state: Any) -> None:
        self._validated = state.global_step
        loss, report = self.validate()
        loss = round(loss, 4)
        if not math.isfinite(loss):
            raise RadVisionError(
                f"the validation loss is {loss} at step {state.global_step} of {self.title}: the weights are no longer "
                "of use and the stage is not kept; begin it anew with --force and half the learning rate."
            )
        self.validation_losses.append(loss)
        if process_rank():
            return
        written = {"report": report} if report else {}
        self._write(step=state.global_step, epoch=round(state.epoch or 0.0, 4), validation_loss=loss, **written)
        logger.info("%s: step %d, validation loss %.3f nats per report token", self.title, state.global_step, loss)
        if report:
            logger.info("%s: step %d, the first validation study reads: %s", self.title, state.global_step, report)

    def _draw(self) -> None:
        """The curves so far, in the place of those before: for who watches."""
        from IPython.display import display

        figure = loss_figure(self.path, self.title)
        if self._curve is None:
            self._curve = display(figure, display_id=True)
        else:
            self._curve.update(figure)

    def _write(self, **line: Any) -> None:
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")

    def _forget_steps_after(self, step: int) -> None:
        """A stage killed between checkpoints repeats some steps: its log must not hold them twice."""
        lines = [line for line in read_json_lines(self.path, {"step": int}, torn=True) if line["step"] <= step]
        write_json_lines(self.path, lines)
        validated = [line for line in lines if "validation_loss" in line]
        self.validation_losses = [line["validation_loss"] for line in validated]
        self._validated = max((line["step"] for line in validated), default=-1)

    def _tell(self, state: Any, loss: float) -> None:
        step, last, rate = state.global_step, state.max_steps, self.samples_per_second
        due = time.perf_counter() - self._last_line > _SECONDS_BETWEEN_LINES
        if self._bar is not None:
            self._bar.update(step - self._bar.n)
            self._bar.set_postfix(loss=f"{loss:.3f}", samples_per_s=f"{rate:.1f}")
            if due:
                self._draw()
        elif due or step == last:
            seconds = (last - step) * self.batch / rate
            left = f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
            told = f"step {step} of {last}, loss {loss:.3f}, {rate:.1f} studies/s, {left} left"
            logger.info("%s: %s", self.title, told)
        self._last_line = time.perf_counter() if due else self._last_line
