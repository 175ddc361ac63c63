"""transformers.Trainer as this project uses it: the report loss, its own order of studies, and checks on the way."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from bitsandbytes.optim import GlobalOptimManager
from transformers import PrinterCallback, TrainerCallback, TrainingArguments

from radvision_utils.config import RadVisionError, StageSettings
from radvision_utils.environment import Device
from radvision_utils.training.checkpoints import load_trained, save_trained
from radvision_utils.training.collator import Collator
from radvision_utils.training.guards import GuardedTrainer
from radvision_utils.training.loss import report_token_losses
from radvision_utils.training.order import EpochOrder, StudyOrder
from radvision_utils.training.stages import assert_gradients


class ReportTrainer(GuardedTrainer):
    """transformers.Trainer with the loss on report tokens, which ends at once where it is no number, and with
    checkpoints that hold what the stage trains."""

    def __init__(self, *, model: torch.nn.Module, args: TrainingArguments, collator: Collator, **options: Any) -> None:
        args._n_gpu = min(args.n_gpu, 1)  # several cards in one process would mean DataParallel; use accelerate launch
        super().__init__(model=model, args=args, data_collator=collator, **options)
        # The loss below is already divided by the tokens of the whole accumulated batch.
        self.model_accepts_loss_kwargs = True
        self._loss_shifts_labels = False
        self.remove_callback(PrinterCallback)  # StageLog tells the user, and less often

    def _get_train_sampler(self, train_dataset: Any = None) -> StudyOrder:
        args, collator = self.args, self.data_collator
        lengths = [len(collator.report_ids(study.report)) for study in self.train_dataset]
        step = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        order = StudyOrder(lengths, step, args.seed)
        self.add_callback(EpochOrder(order))
        return order

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

    def __init__(self, number: int) -> None:
        self.number, self.done = number, False

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not self.done:
            assert_gradients(kwargs["model"], self.number)
            self.done = True


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
        ddp_find_unused_parameters=False,  # whatever trains has gradients: GradientCheck asserts it
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
