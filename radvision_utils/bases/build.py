"""Build the tiny base and train it on phantoms of hospital A, all its parameters from random weights; or teach its
language model the English of a source.

`python -m radvision_utils build-base` runs it. Nothing of hospital B, which the stages train on, is seen here. The
classes are the 7B's, tokenizer and processor its own. The architecture follows what learned on a CPU: patches of 28 and
full attention, since 16 visual tokens are enough for drawn findings and a finer grid stays at chance for minutes.
"""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jinja2
import torch
from tokenizers import pre_tokenizers, trainers
from transformers import (
    PreTrainedModel,
    ProcessorMixin,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    TrainingArguments,
)

from radvision_utils.bases.random import TEXT_TOKENS, config_with_tokens, greedy, token_numbers
from radvision_utils.config import DISCLAIMER, PROMPT, Profile, RadVisionError, load_profile, unusual_settings
from radvision_utils.content import fingerprint
from radvision_utils.data.prepare import prepare_dataset
from radvision_utils.data.reports import format_report
from radvision_utils.data.studies import PreparedDataset
from radvision_utils.environment import choose_device, seed_everything, versions
from radvision_utils.evaluation.bootstrap import Bootstrap
from radvision_utils.files import read_json, require_writable, write_json, write_text
from radvision_utils.model.base import count_parameters, load_base, load_processor
from radvision_utils.model.faster import patch_embedding_by_matmul
from radvision_utils.model.folder import TINY_BASE
from radvision_utils.phantoms.phantom_reports import phantom_estimates
from radvision_utils.report import Reporter
from radvision_utils.training.collator import Collator
from radvision_utils.training.loss import mean_report_loss
from radvision_utils.training.trainer import ReportTrainer, StageLog

logger = logging.getLogger(__name__)

SEED = 20260101  # of hospital A's studies and the first weights; no run of the notebooks draws these studies
STUDIES, EPOCHS = 9000, 8.0  # drawn, of which 80 % train; passes over them
VOCABULARY = 1024
_CARD = Path(__file__).with_name("base_card.md")
SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)


def build_base(folder: Path) -> dict[str, Any]:
    """Draw hospital A, train, save 16-bit weights with tokenizer, processor and model card, and measure.

    Args:
        folder: where the base goes; replaced when the new one is complete.

    Returns:
        What the model card says, as figures.
    """
    _require_place(folder)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="radvision-base-") as scratch:
        ours = _profile("A", SEED, STUDIES, scratch)
        dataset = prepare_dataset(ours)
        tokenizer = train_tokenizer(_texts(dataset))
        processor = _with_words(load_processor(ours.model, ours.data.image_size), tokenizer)
        seed_everything(SEED)
        model = Qwen2_5_VLForConditionalGeneration(build_config(tokenizer))
        patch_embedding_by_matmul(model)
        model.generation_config = greedy(model.config)
        collator = Collator(processor, ours.model)
        _train(model, collator, dataset, Path(scratch), EPOCHS)
        _save(model, processor, folder)
        trained = time.perf_counter() - started

    figures = {
        "parameters": count_parameters(model),
        "studies": STUDIES,
        "epochs": EPOCHS,
        "seconds": round(trained),
        **measure_base(folder),
    }
    write_text(folder / "README.md", _model_card(figures))
    return figures


def base_for_source(profile: Profile, folder: Path, epochs: float = EPOCHS) -> Path:
    """The profile's base, its language model and embeddings trained further on the reports of the training split.

    A phantom base knows a few hundred words and spells all others. So it gets a tokenizer of these reports, and an
    embedding for each of its tokens; LoRA over frozen embeddings does not learn a hospital's English. The vision
    encoder and the projector stay as they are, for the stages to train. Made once: a base from the same reports,
    settings and base is given back.

    Args:
        profile: whose data is prepared if it is not yet.
        folder: where the base goes; an older one is replaced when the new one is complete. What is learned from a
            source belongs to its owner: nothing of it is shipped.
        epochs: passes over the training reports.

    Returns:
        The folder.
    """
    _require_place(folder)
    dataset, path = prepare_dataset(profile), folder / "source.json"
    profile = replace(profile, model=replace(profile.model, quantization="none"))
    settings, unusual = profile.model, unusual_settings(profile).items()
    unlike = {name: value for name, value in unusual if name.startswith("model.")}
    key = fingerprint([dataset.summary["hash"], unlike, epochs, profile.seed])
    if path.is_file() and read_json(path, {"key": str})["key"] == key:
        return folder
    seed_everything(profile.seed)
    old, tokenizer = load_processor(settings, profile.data.image_size), train_tokenizer(_texts(dataset))
    processor = _with_words(old, tokenizer)
    model = load_base(settings, choose_device()).float()
    _exchange_words(model, old.tokenizer, tokenizer)
    model.model.language_model.requires_grad_(True)
    logger.info("base: its language model learns the English of %d reports", len(dataset.split("train")))
    with tempfile.TemporaryDirectory(prefix="radvision-base-") as scratch:
        _train(model, Collator(processor, settings), dataset, Path(scratch), epochs, learning_rate=1e-3)
    _save(model, processor, folder)
    write_text(
        folder / "README.md", f"{dataset.summary['source']}: {DISCLAIMER} Made for one's own use; not to be shared.\n"
    )
    write_json(path, {"key": key, "reports": len(dataset.split("train")), "epochs": epochs})
    return folder


def _with_words(old: ProcessorMixin, tokenizer: Qwen2Tokenizer) -> ProcessorMixin:
    """A processor that sees as another one does, and reads and writes by this tokenizer."""
    parts = {"image_processor": old.image_processor, "video_processor": old.video_processor}
    return type(old)(tokenizer=tokenizer, chat_template=old.chat_template, **parts)


def _exchange_words(model: PreTrainedModel, old: Any, new: Qwen2Tokenizer) -> None:
    """Give the model the tokens of another tokenizer, each the mean embedding of how the old one spells it."""
    known, table = old.get_vocab(), model.get_input_embeddings().weight.data
    rows = []
    for token in new.convert_ids_to_tokens(range(len(new))):
        spelling = [known[token]] if token in known else old(new.convert_tokens_to_string([token])).input_ids
        rows.append(table[spelling].mean(0))
    model.resize_token_embeddings(len(new), mean_resizing=False)
    model.get_input_embeddings().weight.data = torch.stack(rows)
    model.tie_weights()
    for name, number in token_numbers(new).items():
        setattr(model.config.text_config if name in TEXT_TOKENS else model.config, name, number)
    model.generation_config = greedy(model.config)


def _require_place(folder: Path) -> None:
    """Refuse a place that cannot be written to, or holds what is no base: an older base goes when the new one comes.

    Raises:
        RadVisionError: so it is.
    """
    require_writable(folder, folder=True)
    if folder.is_dir() and any(folder.iterdir()) and not (folder / "config.json").is_file():
        raise RadVisionError(f"{folder} is there and holds no base: give --to a folder that does not exist yet.")


def _save(model: PreTrainedModel, processor: ProcessorMixin, folder: Path) -> None:
    """Write 16-bit weights and processor; an older folder goes when the new one is complete."""
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    model.to(torch.bfloat16).save_pretrained(partial)
    processor.save_pretrained(partial)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def measure_base(folder: Path) -> dict[str, dict[str, float]]:
    """How well a saved base, loaded as everyone loads it, reports on hospitals A and B, on studies new to it."""
    figures, device = {}, choose_device()
    with tempfile.TemporaryDirectory(prefix="radvision-base-") as scratch:
        for hospital in ("A", "B"):
            # Another seed than the training's: no drawing repeats.
            profile = _profile(hospital, SEED + 1, 600, scratch, **{"model.base": str(folder.resolve())})
            dataset, model = prepare_dataset(profile), load_base(profile.model, device)
            collator = Collator(load_processor(profile.model, profile.data.image_size), profile.model)
            studies = [study for name in ("train", "validation", "test") for study in dataset.split(name)]
            loss = mean_report_loss(model, collator, studies, 32, device.autocast)
            written = Reporter(model, collator, profile, 0, device).write([study.image for study in studies])
            reports, truths = [each.report for each in written], [str(study.truth) for study in studies]
            right = phantom_estimates(reports, truths, Bootstrap(len(studies), SEED))
            estimates = {name: round(estimate.value, 4) for name, estimate in right.items()}
            figures[hospital] = {"test_studies": len(studies), "loss": round(loss, 4), **estimates}
    return figures


def _profile(hospital: str, seed: int, studies: int, root: str, **changes: Any) -> Profile:
    changes |= {"data.hospital": hospital, "data.phantoms": studies, "model.quantization": "none"}
    return load_profile("tiny", changes, run=f"base-{hospital}", seed=seed, output_root=root)


def _texts(dataset: PreparedDataset) -> list[str]:
    """What the tokenizer learns its words from: the training reports, and the prompt often enough to be compact."""
    reports = [format_report(study.report) for study in dataset.split("train")]
    return reports + [PROMPT, "system\nYou are a helpful assistant.", "user\n", "assistant\n"] * 200


def _train(
    model: PreTrainedModel,
    collator: Collator,
    dataset: PreparedDataset,
    scratch: Path,
    epochs: float,
    learning_rate: float = 2e-3,
) -> None:
    device = choose_device()
    held_out = dataset.split("validation")[:200]
    batch = 16

    def validate() -> tuple[float, str]:
        return mean_report_loss(model, collator, held_out, 32, device.autocast), ""

    log = StageLog(scratch / "log.jsonl", "base", batch, validate)
    arguments = TrainingArguments(
        output_dir=str(scratch / "checkpoints"),
        per_device_train_batch_size=batch,
        num_train_epochs=epochs,
        learning_rate=learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=40,
        adam_beta1=0.9,
        adam_beta2=0.95,
        weight_decay=0.05,
        max_grad_norm=1.0,
        optim="adamw_torch",
        use_cpu=device.kind == "cpu",
        save_strategy="no",
        logging_steps=1,
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        label_names=["labels"],
        seed=SEED,
    )
    model.config.use_cache = False
    trainer = ReportTrainer(
        model=model, args=arguments, collator=collator, train_dataset=dataset.split("train"), callbacks=[log]
    )
    trainer.train()


def train_tokenizer(texts: Iterable[str]) -> Qwen2Tokenizer:
    """A byte-level BPE in Qwen's manner (Qwen's own pre-tokenizer and special tokens), learned from `texts`."""
    learner = Qwen2Tokenizer().backend_tokenizer  # its words are replaced
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    learner.train_from_iterator(texts, trainer)
    state = json.loads(learner.to_str())["model"]
    return Qwen2Tokenizer(
        vocab=state["vocab"],
        merges=[tuple(pair) for pair in state["merges"]],
        eos_token="<|im_end|>",
        additional_special_tokens=list(SPECIAL_TOKENS),
    )


def build_config(tokenizer: Qwen2Tokenizer) -> Qwen2_5_VLConfig:
    """The architecture, which stands in the embedded base's `config.json`, with the tokens of this tokenizer."""
    values = read_json(TINY_BASE / "config.json")
    values["text_config"]["vocab_size"] = len(tokenizer)
    return config_with_tokens({**values, "dtype": "float32"}, tokenizer)


def _model_card(figures: dict[str, Any]) -> str:
    template = jinja2.Template(_CARD.read_text(encoding="utf-8"), trim_blocks=True, keep_trailing_newline=True)
    return template.render(figures, versions=versions(), disclaimer=DISCLAIMER)
