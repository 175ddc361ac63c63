"""Who is compared: this project, and what people use instead, each as its documentation would have it.

All train the same components of the same model from the same weights, over the same studies, with the same optimizer,
schedule, 4-bit weights and gradient checkpointing of every layer, in float32 on a CPU. The three others read prepared
images and let the processor make pixels and tokens of them at every step.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import bitsandbytes
import torch
from datasets import Dataset, Image, List
from peft.tuners.lora import LoraLayer
from PIL import Image as Pictures
from transformers import (
    AutoProcessor,
    Qwen2_5_VLForConditionalGeneration,
    Trainer,
    TrainingArguments,
    get_scheduler,
)

from benchmarks.mini import BATCH
from benchmarks.race import Turns
from radvision_utils.bases.random import random_base
from radvision_utils.config import Profile
from radvision_utils.data.reports import format_report
from radvision_utils.data.studies import Study, open_prepared
from radvision_utils.environment import Device, choose_device, seed_everything
from radvision_utils.model.base import (
    ATTENTION,
    attach_adapter,
    component_of,
    load_adapter,
    load_processor,
    quantization_config,
)
from radvision_utils.model.folder import RANDOM_WEIGHTS, base_path
from radvision_utils.model.stage import select_stage
from radvision_utils.runs import RunFolder, Stage
from radvision_utils.training.collator import IGNORED, Collator
from radvision_utils.training.loss import mean_report_loss
from radvision_utils.training.train import train_stage
from radvision_utils.training.trainer import StudyOrder

OURS, PLAIN, TRAINER, TRL = "RadVision", "plain loop", "transformers.Trainer", "TRL SFTTrainer"
ONE_AT_A_TIME, PLANNED = "RadVision, one study at a time", "RadVision, as planned for a T4"
WITHOUT_CACHE = "RadVision, features not cached"


def ours(profile: Profile, stage: int, turns: Turns) -> float:
    """`train_stage`, as the notebooks call it."""
    record = train_stage(profile, stage, force=True).record
    turns.account.once = (record["features"] or {"seconds": 0.0})["seconds"]
    loss: float = record["validation_loss"][-1]
    return loss


def plain_loop(profile: Profile, stage: int, turns: Turns, at_once: int = 1) -> float:
    """The loop of the field's notebooks: one study at a time, gradients accumulated, logits of every token."""
    settings, device = profile.stage(stage), choose_device()
    model = load_peer(profile, stage)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.train()
    collate = ProcessorCollator(profile)
    studies = in_our_order(profile, stage)
    group = settings.step_size
    steps = settings.max_steps or len(studies) // group
    studies *= -(-steps * group // len(studies))  # epochs
    optimizer = bitsandbytes.optim.PagedAdamW8bit(
        [p for p in model.parameters() if p.requires_grad], lr=settings.learning_rate, weight_decay=0.0
    )
    scheduler = get_scheduler(settings.schedule, optimizer, _warmup(settings.warmup_ratio, steps), steps)
    scaler = torch.amp.GradScaler(device.kind, enabled=device.dtype == "float16")
    for step in range(steps):
        total = 0.0
        firsts = range(step * group, (step + 1) * group, at_once)
        batches = [collate(studies[first : first + at_once]) for first in firsts]
        # Notebooks divide by the number of studies, which gives short reports more weight than all others do here: the
        # losses could not be compared. The work is the same.
        tokens = [int((batch["labels"] != IGNORED).sum()) for batch in batches]
        for batch, count in zip(batches, tokens, strict=True):
            turns.count(batch["labels"])
            with device.autocast():
                loss = model(**batch.to(model.device), use_cache=False).loss * count / sum(tokens)
            scaler.scale(loss).backward()
            total += loss.item()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.max_grad_norm)
        scaler.step(optimizer)
        scaler.update()
        scheduler.step()
        optimizer.zero_grad()
        turns.step_done()
        turns.account.losses.append(total)
    return held_out_loss(model, profile, device)


def trainer_as_it_comes(profile: Profile, stage: int, turns: Turns) -> float:
    """transformers.Trainer with the processor in the collator and the model's own loss."""
    device = choose_device()
    model = load_peer(profile, stage)
    trainer = Trainer(
        model=model,
        args=TrainingArguments(**_arguments(profile, stage, device), remove_unused_columns=False),
        data_collator=ProcessorCollator(profile),
        train_dataset=in_our_order(profile, stage),
    )
    trainer.train()
    return held_out_loss(model, profile, device)


def trl_sft(profile: Profile, stage: int, turns: Turns, **options: Any) -> float:
    """TRL's SFTTrainer on a prompt-completion data set: its own collation, loss on the completion, no truncation.

    Args:
        options: of `SFTConfig`.
    """
    from trl import SFTConfig, SFTTrainer

    device = choose_device()
    model = load_peer(profile, stage)
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(**_arguments(profile, stage, device), max_length=None, **options),
        train_dataset=trl_rows(profile, in_our_order(profile, stage)),
        processing_class=AutoProcessor.from_pretrained(base_path(profile.model)),
    )
    # It rounds what trains to bfloat16 where the base is 4-bit. The comparison is at equal precision.
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    trainer.train()
    return held_out_loss(model, profile, device)


def trl_rows(profile: Profile, studies: Sequence[Study]) -> Dataset:
    """Studies as TRL's documentation has data for a vision-language model."""
    rows = [
        {
            "images": [str(study.image)],
            "prompt": [{"role": "user", "content": profile.model.prompt}],
            "completion": [{"role": "assistant", "content": format_report(study.report)}],
        }
        for study in studies
    ]
    return Dataset.from_list(rows).cast_column("images", List(Image()))


PEERS = {PLAIN: plain_loop, TRAINER: trainer_as_it_comes, TRL: trl_sft}


class ProcessorCollator:
    """Batches as the model cards show them: the processor makes text and image into inputs, the prompt is masked."""

    def __init__(self, profile: Profile) -> None:
        self.processor = AutoProcessor.from_pretrained(base_path(profile.model))
        self.question = profile.model.prompt
        self.prompt_tokens = 0

    def __call__(self, studies: Sequence[Study]) -> Any:
        images = [Pictures.open(study.image).convert("RGB") for study in studies]
        talks = [self._talk(format_report(study.report)) for study in studies]
        texts = [self.processor.apply_chat_template(talk, tokenize=False) for talk in talks]
        batch = self.processor(text=texts, images=images, padding=True, return_tensors="pt")
        labels = batch["input_ids"].clone()
        labels[batch["attention_mask"] == 0] = IGNORED
        labels[:, : self._prompt_length(images[0])] = IGNORED  # all images have one size, all prompts one length
        batch["labels"] = labels
        return batch

    def prompts(self, images: Sequence[Path]) -> Any:
        """Inputs for a report on each."""
        return self._prompts([Pictures.open(image).convert("RGB") for image in images])

    def _prompts(self, images: Sequence[Pictures.Image]) -> Any:
        talk = self._talk("")[:1]
        text = self.processor.apply_chat_template(talk, tokenize=False, add_generation_prompt=True)
        return self.processor(text=[text] * len(images), images=list(images), return_tensors="pt")

    def _prompt_length(self, image: Pictures.Image) -> int:
        if not self.prompt_tokens:
            self.prompt_tokens = self._prompts([image]).input_ids.shape[1]
        return self.prompt_tokens

    def _talk(self, report: str) -> list[dict[str, Any]]:
        question = [{"type": "image"}, {"type": "text", "text": self.question}]
        return [
            {"role": "user", "content": question},
            {"role": "assistant", "content": [{"type": "text", "text": report}]},
        ]


def in_our_order(profile: Profile, stage: int) -> list[Study]:
    """The training studies as our stage takes them, so that everyone's optimizer steps hold the same studies."""
    studies, settings = open_prepared(profile).split("train"), profile.stage(stage)
    collator = Collator(load_processor(profile.model, profile.data.image_size), profile.model)
    lengths = [len(collator.report_ids(study.report)) for study in studies]
    order = StudyOrder(lengths, settings.step_size, profile.seed + stage)
    return [studies[number] for number in order]


def held_out_loss(model: Any, profile: Profile, device: Device) -> float:
    """The loss that `train_stage` records at its end, of a model trained otherwise; nats per report token."""
    collator = Collator(load_processor(profile.model, profile.data.image_size), profile.model)
    studies = open_prepared(profile).split("validation")
    return mean_report_loss(model, collator, studies, BATCH, device.autocast)


def load_peer(profile: Profile, stage: int) -> Any:
    """The model as transformers loads it, with the adapter that our stage begins with; "stage" 4 is after the last."""
    device, path = choose_device(), Path(base_path(profile.model))
    seed_everything(profile.seed + stage)
    dtype, quantization = device.torch_dtype(), quantization_config(profile.model, device)
    place = "cuda:0" if device.kind == "cuda" else "cpu"
    if (path / RANDOM_WEIGHTS).is_file():
        base = random_base(path, dtype, quantization, place)
    else:
        base = Qwen2_5_VLForConditionalGeneration.from_pretrained(
            path,
            dtype=dtype,
            quantization_config=quantization,
            attn_implementation=ATTENTION,
            device_map={"": place},
        )
    for module in base.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):  # or the first step after an evaluation fails on some CPUs
            module.support_avx512bf16_for_cpu = False
    base.requires_grad_(False)
    folder = RunFolder.of(profile)
    model = attach_adapter(base, profile) if stage == 1 else load_adapter(base, folder.adapter(stage - 1))
    if stage < 3:
        without_language_lora(model)
    if stage < 4:
        select_stage(model, Stage(profile, stage))
    return model


def without_language_lora(model: Any) -> None:
    """Take the language model's LoRA away: until stage 3 it is zero, and who trains another part would attach none."""
    for name, layer in list(model.named_modules()):
        if isinstance(layer, LoraLayer) and component_of(f"{name}.") == "language_model":
            model.set_submodule(name, layer.base_layer)


def _arguments(profile: Profile, stage: int, device: Device) -> dict[str, Any]:
    """Our stage's settings in transformers' words."""
    settings = profile.stage(stage)
    return {
        "output_dir": str(RunFolder.of(profile).path / "peers"),
        "learning_rate": settings.learning_rate,
        "num_train_epochs": settings.epochs,
        "max_steps": settings.max_steps or -1,
        "per_device_train_batch_size": settings.micro_batch,
        "gradient_accumulation_steps": settings.accumulation,
        "warmup_steps": settings.warmup_ratio,  # below 1 it is a share of all steps
        "lr_scheduler_type": settings.schedule,
        "weight_decay": settings.weight_decay,
        "max_grad_norm": settings.max_grad_norm,
        "optim": settings.optimizer,
        "gradient_checkpointing": True,
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
        "bf16": device.dtype == "bfloat16",
        "fp16": device.dtype == "float16",
        "use_cpu": device.kind == "cpu",
        "save_strategy": "no",
        "logging_steps": 1,
        "report_to": "none",
        "disable_tqdm": True,
        "train_sampling_strategy": "sequential",  # the studies come in our order
        "seed": profile.seed + stage,
    }


def _warmup(share: float, steps: int) -> int:
    return int(-(-share * steps // 1))
