"""The model: a Qwen2.5-VL whose language model is NF4 and all else in 16 bits, and the one adapter around it.

The adapter is LoRA on vision encoder and language model, and the projector in full. It is attached once, before stage
1; a stage only chooses which part of it has gradients. So what a stage saves is complete and loads in any PEFT program.
"""

from __future__ import annotations

import os
import re
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from transformers import (
    AutoProcessor,
    BitsAndBytesConfig,
    PreTrainedModel,
    ProcessorMixin,
    Qwen2_5_VLForConditionalGeneration,
    core_model_loading,
)

from radvision_utils.config import ModelSettings, Profile, RadVisionError
from radvision_utils.content import public_name
from radvision_utils.environment import Device, free_failed_calls, is_out_of_memory, open_room, require_device
from radvision_utils.files import checked, first_line, read_json
from radvision_utils.model.faster import attention_by_window_length, patch_embedding_by_matmul
from radvision_utils.model.folder import RANDOM_WEIGHTS, base_path, from_pretrained, require_whole, what_is_wrong

COMPONENTS = ("vision_encoder", "projector", "language_model")

# Full paths of the linear layers that carry LoRA. The patch embedding and the embeddings stay as they are.
VISION_LINEARS = r"model\.visual\.blocks\.\d+\.(attn\.(qkv|proj)|mlp\.(gate_proj|up_proj|down_proj))"
LANGUAGE_LINEARS = (
    r"model\.language_model\.layers\.\d+\.(self_attn\.(q_proj|k_proj|v_proj|o_proj)|mlp\.(gate_proj|up_proj|down_proj))"
)
LABEL_HEAD = "label_head"  # what labels teach through; no part of the adapter, and gone when the stage ends
PROJECTOR, VISION_ENCODER = "merger", "visual"  # the one is the last part of the other


def component_of(name: str) -> str:
    """The component that a parameter or module name of the model, plain or inside a PEFT wrapper, belongs to.

    Raises:
        ValueError: the name belongs to no component of a Qwen2.5-VL.
    """
    if re.search(r"(^|\.)visual\.([\w.]+\.)?merger\.", name):
        return "projector"
    if re.search(r"(^|\.)visual\.", name):
        return "vision_encoder"
    if re.search(r"(^|\.)(language_model|lm_head)\.", name):
        return "language_model"
    raise ValueError(f"{name!r} is not a parameter of a Qwen2.5-VL")


def is_adapter(name: str) -> bool:
    """Whether a parameter of a PEFT model is part of the adapter: a LoRA matrix, or of a copy that trains in full."""
    return ".lora_A." in name or ".lora_B." in name or ".modules_to_save." in name


def trained_tensors(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that have gradients, by their names in the model."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def count_parameters(model: nn.Module) -> dict[str, int]:
    """Number of parameters of each component, those of an attached adapter included; works on `meta` tensors."""
    counts: Counter[str] = Counter(dict.fromkeys(COMPONENTS, 0))
    for name, parameter in model.named_parameters():
        counts[component_of(name)] += _numbers(parameter)
    return dict(counts)


def parameter_table(model: nn.Module) -> list[dict[str, Any]]:
    """What of each component is there, is 4-bit, belongs to the adapter and trains now: a row a component."""
    rows: dict[str, Counter[str]] = {component: Counter() for component in COMPONENTS}
    for name, parameter in model.named_parameters():
        kinds = {"parameters": True, "in 4 bits": hasattr(parameter, "quant_state")}
        kinds |= {"in the adapter": is_adapter(name), "train now": parameter.requires_grad}
        rows[component_of(name)].update({kind: _numbers(parameter) * so for kind, so in kinds.items()})
    return [{"component": component.replace("_", " "), **counts} for component, counts in rows.items()]


def _numbers(parameter: nn.Parameter) -> int:
    # A 4-bit weight stores two numbers in a byte; its quantization state knows the true shape.
    state = getattr(parameter, "quant_state", None)
    return int(state.shape.numel()) if state is not None else parameter.numel()


# Full paths: shorter names are silently ignored, and the vision tower and the merger would be quantized too.
NOT_QUANTIZED = ("model.visual", "lm_head")
ATTENTION = "sdpa"  # part of torch on every device; FlashAttention 2 needs an Ampere card and a package of its own


def quantization_config(settings: ModelSettings, device: Device) -> BitsAndBytesConfig | None:
    """NF4 with double quantization (Dettmers et al. 2023, QLoRA, section 3), or None."""
    if settings.quantization == "none":
        return None
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=device.torch_dtype(),
        llm_int8_skip_modules=list(NOT_QUANTIZED),
    )


class _ShardedDecoder(Qwen2_5_VLForConditionalGeneration):
    """A base of whose decoder layers each of several processes holds a share (FSDP2); of all else it holds the whole.

    The layers are cut while they have no values yet (`meta`): transformers then reads a share from disk and no more.
    """

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        decoder = self.model.language_model
        whole = {*decoder.embed_tokens.parameters(), *decoder.norm.parameters()}
        for module in (*decoder.layers, decoder):
            fully_shard(module, ignored_params=whole)
        self.__class__ = Qwen2_5_VLForConditionalGeneration  # its name tells transformers what files call the tensors


def is_sharded(model: nn.Module) -> bool:
    """Whether this process holds a share of the decoder alone: all processes must compute at the same time."""
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


def load_base(settings: ModelSettings, device: Device, shard: bool = False) -> PreTrainedModel:
    """The untuned base in evaluation mode with all gradients off.

    Args:
        settings: of the model.
        device: where it computes.
        shard: whether processes that train together share a decoder that is not quantized. Not in float16, where
            layers may have to change to float32.

    Raises:
        RadVisionError: no card for a large base, or the base cannot be found or downloaded or does not load whole.
    """
    require_device(settings, device)
    free_failed_calls()
    # One process computes on one card. "auto" would spread one model over all cards and break several processes.
    place = f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if device.kind == "cuda" else "cpu"
    path, dtype, quantization = base_path(settings), device.torch_dtype(), quantization_config(settings, device)
    shard = shard and quantization is None and dtype is not torch.float16
    if shard and not hasattr(core_model_loading, "DtensorShardOperation"):
        raise RadVisionError(
            "several processes share a base without quantization from transformers 5.15 on: install that, or set "
            "model.quantization=nf4."
        )
    if (Path(path) / RANDOM_WEIGHTS).is_file():
        model = open_room("bases.random").random_base(Path(path), dtype, quantization, place)
    else:
        if quantization is not None:
            # transformers 5.3 reads 16-bit weights with threads, faster than they are quantized, so that much of the
            # model waits in memory; later versions read them one by one of themselves.
            os.environ.setdefault("HF_DEACTIVATE_ASYNC_LOAD", "1")
        model, report = from_pretrained(
            _ShardedDecoder if shard else Qwen2_5_VLForConditionalGeneration,
            settings,
            dtype=dtype,
            quantization_config=quantization,
            attn_implementation=ATTENTION,
            device_map={"": place},
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # transformers' own error does not name them
        )
        _require_loaded(f"the base model {path}", model, report)
    _settle_4_bit_layers(model)
    patch_embedding_by_matmul(model)
    attention_by_window_length(model)
    model.requires_grad_(False)
    model.config.use_cache = True
    model.eval()
    return model


def _require_loaded(what: str, model: nn.Module, report: Mapping[str, Any]) -> None:
    """Every tensor of the config was read, in its shape.

    Args:
        report: transformers' on loading the model. Where there is quantization it does not know the shapes.
    """
    misfits = {key if isinstance(key, str) else key[0] for key in report["mismatched_keys"]}
    with torch.device("meta"):
        shapes = {n: t.shape for n, t in type(model)(model.config).named_parameters(remove_duplicate=False)}
    for name, tensor in model.named_parameters():
        if getattr(tensor, "quant_state", tensor).shape != shapes[name]:
            misfits.add(name)
    require_whole(what, report["missing_keys"], report["unexpected_keys"], misfits)


def _settle_4_bit_layers(model: Any) -> None:
    for module in model.modules():
        # On CPUs with AVX512-BF16 bitsandbytes repacks 4-bit weights at the first evaluation forward, and the next
        # training step fails on a view of a leaf variable. Its own switch turns the repacking off.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
        # bitsandbytes quantizes with it, and later it only makes a circle of layer and weight (`compute_by`).
        for weight in module.parameters(recurse=False):
            if hasattr(weight, "quant_state"):
                weight.module = None


def load_processor(settings: ModelSettings, image_size: int) -> ProcessorMixin:
    """Tokenizer and image processor of the base.

    The tiny base's processor reduces a stored image to 224 x 224; the 7B's keeps it, rounded to multiples of 28.

    Raises:
        RadVisionError: the base cannot be found, its tokenizer or chat template is missing, or an image does not become
            `settings.visual_tokens` tokens.
    """
    processor = from_pretrained(AutoProcessor, settings)
    patches = processor.image_processor.get_number_of_image_patches(image_size, image_size, {})
    tokens = patches // processor.image_processor.merge_size**2
    if tokens != settings.visual_tokens:
        raise RadVisionError(
            f"an image of {image_size} x {image_size} becomes {tokens} visual tokens with base {settings.base!r}, but "
            f"model.visual_tokens is {settings.visual_tokens}: set `--set model.visual_tokens={tokens}`."
        )
    return processor


def core_of(model: Any) -> Any:
    """The Qwen2.5-VL itself, inside whatever carries its adapter; its modules have the same names with and without."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def compute_device(model: torch.nn.Module) -> torch.device:
    """Where the model's inputs belong."""
    return next(model.parameters()).device


WEIGHTS = "adapter_model.safetensors"
# PEFT notes the base's class where an adapter has no task.
_OF_QWEN = {
    "base_model_class": Qwen2_5_VLForConditionalGeneration.__name__,
    "parent_library": Qwen2_5_VLForConditionalGeneration.__module__,
}


def lora_config(profile: Profile) -> LoraConfig:
    """LoRA (Hu et al. 2021) of stage 1's rank on the vision encoder and of stage 3's rank on the language model.

    Where stage 1 trains the vision encoder in full there is a copy of all of it, as otherwise of the projector alone.
    """
    vision, language = profile.stage1, profile.stage3
    lora = (vision.lora_rank, vision.lora_alpha) if vision.train == "lora" else ()
    return _lora(language.lora_rank, language.lora_alpha, *lora)


def _lora(rank: int, alpha: int, *vision: int) -> LoraConfig:
    """`vision`: rank and alpha of its LoRA; without them the whole of it is saved."""
    return LoraConfig(
        r=rank,
        lora_alpha=alpha,
        rank_pattern={VISION_LINEARS: vision[0]} if vision else {},
        alpha_pattern={VISION_LINEARS: vision[1]} if vision else {},
        lora_dropout=0.0,  # each stage sets the dropout of its own component, see `stage.select_stage`
        target_modules=f"({VISION_LINEARS}|{LANGUAGE_LINEARS})" if vision else LANGUAGE_LINEARS,
        modules_to_save=[PROJECTOR if vision else VISION_ENCODER],
        bias="none",
    )


def attach_adapter(base: PreTrainedModel, profile: Profile) -> PeftModel:
    """The base with a fresh adapter that changes nothing yet: LoRA's B is zero, the projector a copy."""
    torch.manual_seed(profile.seed)
    return _trainable_in_float32(get_peft_model(base, lora_config(profile)))


def load_adapter(base: PreTrainedModel, folder: Path) -> PeftModel:
    """The base with a saved adapter.

    Raises:
        RadVisionError: the folder holds no adapter, not a whole one or not the one that was written there, one for
            another base or one that is not ours.
    """
    if not (folder / WEIGHTS).is_file():
        raise RadVisionError(f"{folder} holds no adapter ({WEIGHTS} is missing): run the stage that writes it.")
    try:
        tensors = load_file(checked(folder / WEIGHTS))
        config = read_lora(folder)
        ranks = {int(value.shape[0]) for name, value in tensors.items() if name.endswith("lora_A.weight")}
        asked, there = max([config.r, *(config.rank_pattern or {}).values()]), max(ranks, default=0)
        if asked > there:  # before memory is taken for it
            raise ValueError(f"a rank in adapter_config.json is above that of its tensors, {there}")
        if damaged := [name for name, value in tensors.items() if not torch.isfinite(value).all()]:
            raise ValueError(f"{len(damaged)} tensors hold no numbers (NaN or infinity), first {damaged[0]}")
        model = PeftModel(base, config)
        wanted = get_peft_model_state_dict(model, save_embedding_layers=False)
        missing, unexpected = wanted.keys() - tensors.keys(), tensors.keys() - wanted.keys()
        misfits = {name for name in wanted.keys() & tensors.keys() if wanted[name].shape != tensors[name].shape}
        require_whole(f"the adapter in {folder}, which does not fit this base model,", missing, unexpected, misfits)
        set_peft_model_state_dict(model, tensors)
    except RadVisionError:
        raise
    except Exception as error:  # a damaged file ends in whatever its reader stumbles over
        if is_out_of_memory(error):
            raise
        raise RadVisionError(
            f"the adapter in {folder} does not fit this base model: {what_is_wrong(folder, error)}."
        ) from error
    return _trainable_in_float32(model)


def read_lora(folder: Path) -> LoraConfig:
    """An adapter's numbers. RadVisionError: its config says more, and some of its words name modules to import."""
    path, ours = checked(folder / "adapter_config.json"), "use the adapter of a run of your own"
    given = read_json(path, {"r": int, "lora_alpha": int, "rank_pattern": dict, "alpha_pattern": dict}, ours)
    patterns = ["rank_pattern", "alpha_pattern"] if given["rank_pattern"] or given["alpha_pattern"] else []
    given = read_json(path, {name: {VISION_LINEARS: int} for name in patterns}, ours)
    numbers = given["r"], given["lora_alpha"], *(given[name][VISION_LINEARS] for name in patterns)
    if min(numbers) < 1:
        raise RadVisionError(f"a rank or an alpha in {path} is below 1: {ours}.")
    config = _lora(*numbers)
    # What PEFT notes of the base, of itself and of the use, which nothing here reads.
    noted = ("base_model_name_or_path", "peft_version", "inference_mode")
    written = {**config.to_dict(), **{key: given.get(key) for key in noted}}
    written["auto_mapping"] = _OF_QWEN if given.get("auto_mapping") else None
    # Another release of PEFT has keys that this one lacks; empty, they ask for nothing.
    if other := sorted(k for k, value in given.items() if value != written.get(k) and (value or k in written)):
        raise RadVisionError(f"{path} asks for what this project does not write ({', '.join(other[:3])}): {ours}.")
    return config


def save_adapter(model: PeftModel, folder: Path) -> None:
    """Write the whole adapter as safetensors; `folder` is replaced only when the new one is complete."""
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    # The folder is handed on: no path of this machine, which PEFT also puts into a README without other content.
    base = public_name(str(model.get_base_model().name_or_path))
    model.peft_config[model.active_adapter].base_model_name_or_path = base
    # save_embedding_layers="auto" would look the base up on the hub; the adapter has no embeddings.
    model.save_pretrained(str(partial), safe_serialization=True, save_embedding_layers=False)
    (partial / "README.md").unlink(missing_ok=True)
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


@contextmanager
def loading_in_memory(profile: Profile, stage: int) -> Iterator[None]:
    """Say what to change where memory ends while a stage's model is loaded; stage 0, the base, counts as the first.

    Raises:
        RadVisionError: it ended.
    """
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        told = f"memory ended while the model was loaded ({first_line(error)})"
        raise RadVisionError(f"{told}: {open_room('planning.plan').what_to_change(profile, max(stage, 1))}") from error
