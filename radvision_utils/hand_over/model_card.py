"""The model card of an exported run, written from what its steps recorded. A pure function; knows nothing of torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from radvision_utils.config import DISCLAIMER, STAGES, Profile
from radvision_utils.evaluation.table import interval_rows
from radvision_utils.figures import markdown_table

USAGE = """\
import sys
from pathlib import Path
from PIL import Image, ImageOps
from transformers import AutoModelForImageTextToText, AutoProcessor

folder, picture = sys.argv[1:]
model, processor = AutoModelForImageTextToText.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
image = ImageOps.pad(Image.open(picture).convert("L"), ({side}, {side}), Image.Resampling.LANCZOS).convert("RGB")
parts = [{{"type": "image", "image": image}}, {{"type": "text", "text": Path(folder, "prompt.txt").read_text()}}]
words = processor.apply_chat_template([{{"role": "user", "content": parts}}], add_generation_prompt=True)
inputs = processor(text=[words], images=[image], return_tensors="pt")
print(processor.decode(model.generate(**inputs)[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
"""
"""Reports on one PNG or JPEG with transformers, torch and pillow alone; `{side}` is the side of the run's images."""

_TEMPLATE = Path(__file__).with_suffix(".md")
_SETTINGS = ("learning_rate", "epochs", "micro_batch", "accumulation", "optimizer", "weight_decay", "max_grad_norm")
_LORA = ("lora_rank", "lora_alpha", "lora_dropout")


def model_card(profile: Profile, records: Mapping[str, Any], export: Mapping[str, Any]) -> str:
    """The card as Markdown with the hub's front matter, from the template `model_card.md` beside this file.

    Args:
        profile: of the run.
        records: `summary.json` ("data"), `stage.json` ("stage1" to "stage3") and `metrics.json` ("evaluation", if the
            run was evaluated).
        export: what `export.json` holds.
    """
    data, metrics = records["data"], records.get("evaluation")
    stages = [records[f"stage{number}"] for number in STAGES]
    about = ModelCardData(
        license="mit" if data["kind"] == "phantom" else "other",
        language="en",
        library_name="transformers",
        pipeline_tag="image-text-to-text",
        base_model=export["base"] if "/" in export["base"] else None,
        tags=["radiology", "chest-x-ray", "lora"],
    )
    card = ModelCard.from_template(
        about,
        template_path=str(_TEMPLATE),
        run=profile.run,
        disclaimer=DISCLAIMER,
        settings=profile,
        usage=USAGE.format(side=profile.data.image_size),
        source=Path(data["source"]).name if Path(data["source"]).exists() else data["source"],
        data=data,
        counted=lambda counts: ", ".join(f"{name} {count:,}" for name, count in counts.items()),
        stages=stages,
        training=_training(stages),
        metrics=metrics,
        scores=_scores(metrics) if metrics else "",
        used=(metrics or {}).get("image_use", {}).get("sentence", "whether the image is used was not tested"),
        export=export,
    )
    return f"{card}\n"


def _training(stages: Sequence[Mapping[str, Any]]) -> str:
    heads = ["stage", "settings", "steps", "validation loss, nats per token", "machine", "minutes", "peak GiB"]
    lines = []
    for stage in stages:
        names = _SETTINGS if stage["component"] == "projector" else (*_SETTINGS, *_LORA)
        first, *_, last = stage["validation_loss"] * 2
        lines.append(
            [
                f"{stage['stage']} {stage['component'].replace('_', ' ')}",
                ", ".join(f"{name} {stage['settings'][name]}" for name in names if name in stage["settings"]),
                str(stage["steps"]),
                f"{first:.3f} to {last:.3f}",
                f"{stage['device']}, {stage['dtype']}",
                f"{stage['seconds'] / 60:.1f}",
                f"{stage['peak_memory_gib']:.1f}",
            ]
        )
    return markdown_table(heads, lines)


def _scores(metrics: Mapping[str, Any]) -> str:
    rows = interval_rows(metrics)
    heads = ["row", *dict.fromkeys(head for row in rows for head in row if head != "row")]
    return markdown_table(["reports by", *heads[1:]], [[row.get(head, "") for head in heads] for row in rows])
