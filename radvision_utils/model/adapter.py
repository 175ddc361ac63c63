"""The one adapter of a run: LoRA on vision encoder and language model, the projector in full.

It is attached once, before stage 1, with all its parts; a stage only chooses which part has gradients. So the adapter
that a stage saves is complete and loads in any PEFT program.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel

from radvision_utils.config import Profile, RadVisionError
from radvision_utils.model.components import LANGUAGE_LINEARS, PROJECTOR, VISION_LINEARS

WEIGHTS = "adapter_model.safetensors"


def lora_config(profile: Profile) -> LoraConfig:
    """LoRA (Hu et al. 2021) of stage 1's rank on the vision encoder and of stage 3's rank on the language model."""
    vision, language = profile.stage1, profile.stage3
    return LoraConfig(
        r=language.lora_rank,
        lora_alpha=language.lora_alpha,
        rank_pattern={VISION_LINEARS: vision.lora_rank},
        alpha_pattern={VISION_LINEARS: vision.lora_alpha},
        lora_dropout=0.0,  # each stage sets the dropout of its own component, see training.stages
        target_modules=f"({VISION_LINEARS}|{LANGUAGE_LINEARS})",
        modules_to_save=[PROJECTOR],
        bias="none",
    )


def attach_adapter(base: PreTrainedModel, profile: Profile) -> PeftModel:
    """The base with a fresh adapter that changes nothing yet: LoRA's B is zero, the projector a copy."""
    torch.manual_seed(profile.seed)
    return _trainable_in_float32(get_peft_model(base, lora_config(profile)))


def load_adapter(base: PreTrainedModel, folder: Path) -> PeftModel:
    """The base with a saved adapter.

    Raises:
        RadVisionError: the folder holds no adapter, or one for another base.
    """
    if not (folder / WEIGHTS).is_file():
        raise RadVisionError(f"{folder} holds no adapter ({WEIGHTS} is missing): run the stage that writes it.")
    try:
        model = PeftModel.from_pretrained(base, str(folder), is_trainable=True)
    except (RuntimeError, ValueError) as error:
        raise RadVisionError(f"the adapter in {folder} does not fit this base model: {error}") from error
    return _trainable_in_float32(model)


def save_adapter(model: PeftModel, folder: Path) -> None:
    """Write the whole adapter as safetensors; `folder` is replaced only when the new one is complete."""
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    # save_embedding_layers="auto" would look the base up on the hub; the adapter has no embeddings.
    model.save_pretrained(str(partial), safe_serialization=True, save_embedding_layers=False)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def merge_adapter(model: PeftModel) -> PreTrainedModel:
    """The base with the adapter's weights added in. Only into 16- or 32-bit weights: merging into 4-bit loses them.

    Raises:
        RadVisionError: the language model is quantized.
    """
    if getattr(model.get_base_model(), "is_quantized", False):
        raise RadVisionError(
            "an adapter cannot be merged into a 4-bit base without loss: load it with model.quantization=none first."
        )
    merged: PreTrainedModel = model.merge_and_unload()
    return merged


def _trainable_in_float32(model: PeftModel) -> PeftModel:
    # AdamW loses small updates in 16 bits, and a GradScaler refuses 16-bit gradients. PEFT upcasts LoRA by itself,
    # the projector's copy it leaves in the base's format.
    for name, parameter in model.named_parameters():
        if ".modules_to_save." in name:
            parameter.data = parameter.data.float()
    model.requires_grad_(False)
    return model
