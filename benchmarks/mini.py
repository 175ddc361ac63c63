"""`mini`: a Qwen2.5-VL with the 7B's proportions that takes a step in seconds on a CPU, `mini deep`, and their studies.

What a step of the 7B pays for is kept: 512 x 512 pixels in patches of 14, 324 visual tokens, windows of 112, the
vocabulary, the width of the decoder's feed-forward layers. The hidden size is a 56th, there are fewer layers, and the
weights are random. `shares` says how close it comes.

`mini` is for speed: its shares of operations are near the 7B's, and so is the vision encoder's share of the seconds.
`mini deep` is for memory: with the 7B's 32 blocks and their feed-forward width, activations are shared out as there.
One model cannot be both on a CPU: so many blocks, narrow enough for their share of the operations, take far too large
a share of the seconds, element by element.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from transformers import (
    AutoProcessor,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
)

from radvision_utils.bases.build import build_config
from radvision_utils.bases.random import CHAT_TEMPLATE, build_processor
from radvision_utils.config import Profile, load_profile
from radvision_utils.data.prepare import split_of
from radvision_utils.model.folder import TINY_BASE
from radvision_utils.phantoms.phantom_rows import phantom_row

SEED = 7
VOCABULARY = 152_064  # the 7B's, with its unused rows; the tiny base's tokenizer knows the phantoms' words only
IMAGE_SIZE, VISUAL_TOKENS = 512, 324
BATCH = 4  # studies an optimizer step, for every contender
# The line break that Qwen sets after a turn is no token of the report: without it, every contender's own way of masking
# the prompt leaves the same tokens in the loss.
ENDING_AT_THE_REPORT = CHAT_TEMPLATE.replace(
    "<|im_end|>\n{% endfor %}", "<|im_end|>{% if message['role'] != 'assistant' %}\n{% endif %}{% endfor %}"
)
HELD_OUT = 4  # validation studies whose loss is compared, and test studies
MINI, DEEP = "mini", "mini deep"
_VISION = {
    MINI: {"depth": 8, "hidden_size": 192, "num_heads": 4, "intermediate_size": 512},
    DEEP: {"depth": 32, "hidden_size": 16, "num_heads": 1, "intermediate_size": 3420},
}
_DECODER_LAYERS = {MINI: 12, DEEP: 14}


def mini_config(tokenizer: Qwen2Tokenizer, model: str) -> Qwen2_5_VLConfig:
    """The tiny base's configuration with the dimensions of `mini` or `mini deep`."""
    config = build_config(tokenizer)
    for name, value in {
        **_VISION[model],
        "patch_size": 14,
        "window_size": 112,
        "fullatt_block_indexes": list(range(7, _VISION[model]["depth"], 8)),  # one in eight, as in the 7B
        "out_hidden_size": 64,
    }.items():
        setattr(config.vision_config, name, value)
    for name, value in {
        "hidden_size": 64,
        "num_hidden_layers": _DECODER_LAYERS[model],
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "intermediate_size": 18944,
        "vocab_size": VOCABULARY,
        "tie_word_embeddings": False,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]},
    }.items():
        setattr(config.text_config, name, value)
    config.text_config.layer_types = ["full_attention"] * config.text_config.num_hidden_layers
    config.tie_word_embeddings = False
    return config


def save_mini(folder: Path, model: str) -> None:
    """Write model (16-bit, as the 7B comes) and processor, random but reproducible, for `from_pretrained`."""
    tokenizer = AutoProcessor.from_pretrained(TINY_BASE).tokenizer
    torch.manual_seed(SEED)
    network = Qwen2_5_VLForConditionalGeneration(mini_config(tokenizer, model))
    with torch.no_grad():
        # Words that the tokenizer lacks are never written, like the unused rows of the 7B's vocabulary. The others are
        # told apart well enough for the loss to fall in a few steps, so that equal losses mean something.
        network.lm_head.weight[: len(tokenizer)] *= 5
        network.lm_head.weight[len(tokenizer) :] = 0
    network.to(torch.bfloat16).save_pretrained(folder)
    build_processor(tokenizer, chat_template=ENDING_AT_THE_REPORT).save_pretrained(folder)


def make_profile(folder: Path, train: int, model: str = MINI, /, **changes: Any) -> Profile:
    """Draw studies, save the model, and give the settings that train one on the other for one epoch.

    Args:
        folder: everything is written below it.
        train: training studies, a multiple of `BATCH`.
        model: `MINI` or `DEEP`.
        changes: settings by their dotted names.
    """
    rows = _studies({"train": train, "validation": HELD_OUT, "test": HELD_OUT})
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), folder / "studies.parquet")
    base = folder / model.replace(" ", "-")
    if not base.is_dir():
        save_mini(base, model)
    stages = {
        "micro_batch": BATCH,
        "accumulation": 1,
        "checkpointed_layers": None,  # all, as the peers do
        "epochs": 1.0,
        "validation_studies": HELD_OUT,
        # In the 7B LoRA of rank 16 is 0.6 % of the decoder's parameters and 1.8 % of the vision encoder's. At a 56th of
        # the width the same rank would be a fifth of the work.
        "lora_rank": 2,
        "lora_alpha": 4,
        "learning_rate": 3e-3,  # of so few steps
        "lora_dropout": 0.0,  # the only chance in a step: without it all contenders must reach the same loss
    }
    settings = {
        "data.workers": 1,
        "model.base": str(base),
        "model.visual_tokens": VISUAL_TOKENS,
        **{f"stage{number}.{key}": value for number in (1, 2, 3) for key, value in stages.items()},
        **changes,
    }
    return load_profile(
        "tiny", settings, run="mini", source=str(folder / "studies.parquet"), output_root=str(folder), seed=SEED
    )


def _studies(sizes: dict[str, int]) -> list[dict[str, Any]]:
    """Phantoms that fall to the splits in these numbers."""
    left, rows, number = dict(sizes), [], 0
    while any(left.values()):
        number += 1
        split = split_of(uid := f"phantom-{number}", False, SEED)
        if left[split]:
            left[split] -= 1
            row = phantom_row(number, "B", SEED, dirt=False)
            rows.append({name: row[name] for name in ("findings", "impression", "img_frontal")} | {"uid": uid})
    return rows
