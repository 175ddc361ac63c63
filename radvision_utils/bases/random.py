"""A base with random weights, made on the spot: the 7B's shape, memory and speed without a download.

`random_model_folder` writes a folder of a few hundred kilobytes: config and processor, no weights. `load_base` fills it
tensor by tensor on the device, 4-bit layers quantized as they come, so that neither the host nor the card ever holds
the 16-bit model. The same config gives the same weights on the same kind of device.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import torch
from transformers import (
    AutoProcessor,
    BitsAndBytesConfig,
    GenerationConfig,
    PreTrainedModel,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2Tokenizer,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
)
from transformers.quantizers import AutoHfQuantizer

from radvision_utils.files import read_json, write_json
from radvision_utils.model.base import ATTENTION
from radvision_utils.model.folder import QWEN_7B, RANDOM_WEIGHTS, TINY_BASE

_TOKENS = {
    "bos_token_id": "<|endoftext|>",
    "eos_token_id": "<|im_end|>",
    "pad_token_id": "<|endoftext|>",
    "image_token_id": "<|image_pad|>",
    "video_token_id": "<|video_pad|>",
    "vision_start_token_id": "<|vision_start|>",
    "vision_end_token_id": "<|vision_end|>",
}
TEXT_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")  # in the config of the language model
# Of Qwen2.5-VL: the least and the most pixels that an image is scaled to, and 2 x 2 patches of 14 to a visual token.
_SEES = {"size": {"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 1280}, "patch_size": 14, "merge_size": 2}
# The chat format of Qwen2.5-VL for text and images: a system turn if none is given, then user and assistant turns.
CHAT_TEMPLATE = (TINY_BASE / "chat_template.jinja").read_text(encoding="utf-8")


def build_processor(tokenizer: Qwen2Tokenizer, chat_template: str = CHAT_TEMPLATE) -> Qwen2_5_VLProcessor:
    """The 7B's processor around a tokenizer with Qwen's special tokens, and with a chat template in jinja2."""
    return Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(**copy.deepcopy(_SEES)),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(**copy.deepcopy(_SEES)),
        chat_template=chat_template,
    )


def token_numbers(tokenizer: Qwen2Tokenizer) -> dict[str, int]:
    """The numbers of the special tokens, by their names in a config."""
    return {name: tokenizer.convert_tokens_to_ids(word) for name, word in _TOKENS.items()}


def config_with_tokens(config: dict[str, Any], tokenizer: Qwen2Tokenizer) -> Qwen2_5_VLConfig:
    """A config as in a `config.json` of Qwen2.5-VL, in the hub's flat layout or in transformers', with these tokens."""
    numbers = token_numbers(tokenizer)
    values = {**copy.deepcopy(config), **numbers}
    if "text_config" in values:
        values["text_config"] |= {name: numbers[name] for name in TEXT_TOKENS}
    return Qwen2_5_VLConfig(**values)


def random_model_folder(folder: Path, config: dict[str, Any] | None = None) -> Path:
    """Write what `load_base` and `load_processor` need of a base with random weights; give it as `model.base`.

    The tokenizer is the tiny base's: its words are the first of the config's vocabulary, the others never occur.

    Args:
        folder: made if it is not there.
        config: as in a `config.json` of Qwen2.5-VL; the 7B's if None. Its token numbers are replaced.

    Returns:
        The folder.
    """
    tokenizer = AutoProcessor.from_pretrained(TINY_BASE).tokenizer
    shape = config_with_tokens(read_json(QWEN_7B) if config is None else config, tokenizer)
    folder.mkdir(parents=True, exist_ok=True)
    shape.save_pretrained(folder)
    build_processor(tokenizer).save_pretrained(folder)
    write_json(folder / RANDOM_WEIGHTS, {})
    return folder


def random_base(
    folder: Path, dtype: torch.dtype, quantization: BitsAndBytesConfig | None, device: str
) -> PreTrainedModel:
    """The model of a `random_model_folder`, as `from_pretrained` would give one with weights.

    At no time is more than one 16-bit tensor alive beyond the model itself (for the 7B 1.1 GB, its embeddings).

    Args:
        folder: holds `config.json` and `RANDOM_WEIGHTS`.
        dtype: of all weights that are not quantized.
        quantization: of the linears that it does not skip; None: of none.
        device: "cpu" or "cuda:0".
    """
    config = Qwen2_5_VLConfig.from_pretrained(folder)
    config._attn_implementation, config.dtype = ATTENTION, dtype
    with torch.device("meta"):
        model = Qwen2_5_VLForConditionalGeneration(config)
    quantizer = None if quantization is None else AutoHfQuantizer.from_config(quantization, pre_quantized=False)
    if quantizer is not None:
        quantizer.preprocess_model(model=model, device_map={"": device})
    generator = torch.Generator(device).manual_seed(0)
    deviation = config.get_text_config().initializer_range
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            value = torch.empty(parameter.shape, dtype=dtype, device=device)
            _fill(value, name, type(module).__name__, deviation, generator)
            setattr(module, name, _like(parameter, value))
            del value  # packed into 4 bits, its 16 bits must go before the next is made
        if any(True for _ in module.buffers(recurse=False)):  # rotary frequencies, which no checkpoint holds
            model._init_weights(module.to_empty(device=device, recurse=False))
    model.tie_weights()
    if quantizer is not None:
        quantizer.postprocess_model(model)
        model.hf_quantizer = quantizer
    model.generation_config = greedy(config)
    return model


def greedy(config: Qwen2_5_VLConfig) -> GenerationConfig:
    """How a model of such a config writes: the likeliest word, to the end of the turn or of the text."""
    text = config.get_text_config()
    ends = [text.eos_token_id, text.pad_token_id]
    return GenerationConfig(
        do_sample=False, bos_token_id=text.bos_token_id, eos_token_id=ends, pad_token_id=text.pad_token_id
    )


def _fill(value: torch.Tensor, name: str, kind: str, deviation: float, generator: torch.Generator) -> None:
    if name == "bias":
        value.zero_()
    elif "Norm" in kind:
        value.fill_(1.0)
    else:
        value.normal_(0.0, deviation, generator=generator)


def _like(parameter: torch.nn.Parameter, value: torch.Tensor) -> torch.nn.Parameter:
    """The value as the module wants it: a 4-bit parameter quantizes when it is moved to its device."""
    if isinstance(parameter, bnb.nn.Params4bit):
        whole: Any = bnb.nn.Params4bit(value, requires_grad=False, **vars(parameter))
        return whole.to(value.device)
    return torch.nn.Parameter(value, requires_grad=False)
