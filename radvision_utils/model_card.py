"""The model card of an exported run, written from what its steps recorded. A pure function; knows nothing of torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from radvision_utils.config import DISCLAIMER, STAGES, Profile
from radvision_utils.evaluation.table import interval_rows

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

_SETTINGS = ("learning_rate", "epochs", "micro_batch", "accumulation", "optimizer", "weight_decay", "max_grad_norm")
_LORA = ("lora_rank", "lora_alpha", "lora_dropout")


def model_card(profile: Profile, records: Mapping[str, Any], export: Mapping[str, Any]) -> str:
    """The card as Markdown with the hub's front matter.

    Args:
        profile: of the run.
        records: `summary.json` ("data"), `stage.json` ("stage1" to "stage3"), `metrics.json` ("evaluation", if the run
            was evaluated) and `run.json` ("run").
        export: what `export.json` holds.
    """
    return "\n".join(
        [
            _front_matter(records["data"], export),
            f"# {profile.run}: reports from chest radiographs\n\n**{DISCLAIMER}**\n",
            _what(profile, export),
            _use(profile),
            _purpose(),
            _data(profile, records["data"]),
            _training(records),
            _evaluation(records.get("evaluation")),
            _merge(export),
            _environment(records),
        ]
    )


def _front_matter(data: Mapping[str, Any], export: Mapping[str, Any]) -> str:
    license_ = "mit" if data["kind"] == "phantom" else "other"
    base = f"base_model: {export['base']}\n" if "/" in export["base"] else ""
    return (
        f"---\nlicense: {license_}\nlanguage: en\nlibrary_name: transformers\npipeline_tag: image-text-to-text\n{base}"
        "tags:\n- radiology\n- chest-x-ray\n- lora\n---\n"
    )


def _what(profile: Profile, export: Mapping[str, Any]) -> str:
    return f"""A Qwen2.5-VL, fine-tuned from `{export["base"]}` by RadVision-7B in three stages (vision encoder,
projector, language model) to write *Findings* and *Impression* from one frontal chest radiograph. There are merged
16-bit weights ({export["gib"]:.2f} GiB) and, in `adapter/`, the same as an adapter for PEFT.

Prompt, word for word, in training and use:

    {profile.model.prompt}
"""


def _use(profile: Profile) -> str:
    side = profile.data.image_size
    usage = USAGE.format(side=side)
    return f"""## Use

```python
{usage}```

The image is gray, scaled to fit {side} x {side} with LANCZOS and padded with black; other preparation is untested. With
vLLM: `vllm serve FOLDER --override-generation-config '{{"temperature": 0}}'`, the image prepared alike and the prompt
above in one user turn, image first. Reports are written greedily.
"""


def _purpose() -> str:
    return """## What it is for, and what not

For research and education: how a vision-language model is fine-tuned, what its figures are worth, where it errs.

Not for the care of any person: no diagnosis, triage, second reading or draft of a clinical report. Not for lateral
views, other body parts, other modalities, children, or populations and machines unlike those of its data. It sees one
image, no indication and no earlier study, and it may state findings that are not there and miss those that are.
"""


def _data(profile: Profile, data: Mapping[str, Any]) -> str:
    splits = ", ".join(f"{name} {count:,}" for name, count in data["counts"]["splits"].items())
    dropped = ", ".join(f"{what} {count:,}" for what, count in data["counts"]["dropped"].items()) or "nothing"
    source = Path(data["source"]).name if Path(data["source"]).exists() else data["source"]
    limits = (
        "The studies are drawings with known findings. Nothing about real radiographs follows from figures on them."
        if data["kind"] == "phantom"
        else "The license of the data may forbid commercial use and derivatives; whoever passes these weights on has "
        "to settle what that means for them. The base model's license applies besides."
    )
    return f"""## Data

- Source: `{source}`. {data["citation"] or "No citation is known."}
- License: {data["license"] or "unknown; ask whoever gave the data."} {limits}
- Studies: {data["counts"]["read"]:,} read, {data["counts"]["kept"]:,} kept (dropped: {dropped}).
- Split by {data["split_by"]}: {splits}. Nothing was trained on validation or test.
- Target sentences with hidden words: {profile.data.deidentified}; on earlier studies: {profile.data.priors}.
"""


def _training(records: Mapping[str, Any]) -> str:
    rows = []
    for number in STAGES:
        stage = records[f"stage{number}"]
        settings = stage["settings"]
        names = _SETTINGS if number == 2 else (*_SETTINGS, *_LORA)
        losses = stage["validation_loss"]
        rows.append(
            {
                "stage": f"{number} {stage['component'].replace('_', ' ')}",
                "settings": ", ".join(f"{name} {settings[name]}" for name in names if name in settings),
                "steps": str(stage["steps"]),
                "validation loss, nats per token": f"{losses[0]:.3f} to {losses[-1]:.3f}" if losses else "",
                "machine": f"{stage['device']}, {stage['dtype']}",
                "minutes": f"{stage['seconds'] / 60:.1f}",
                "peak GiB": f"{stage['peak_memory_gib']:.1f}",
            }
        )
    return f"## Training\n\n{_table(rows)}\nSeed {records['stage3']['seed']}. Loss on the report's tokens only.\n"


def _evaluation(metrics: Mapping[str, Any] | None) -> str:
    if metrics is None:
        return "## Evaluation\n\nThis adapter has not been evaluated: nothing is known of how well it reports.\n"
    used = metrics.get("image_use", {}).get("sentence", "whether the image is used was not tested")
    return f"""## Evaluation

The adapter over the base it was trained on, {metrics["split"]} split, {metrics["n"]} studies; in brackets 95 %
bootstrap intervals by study. The first rows need no trained model, some never see the image.

{_table([{"reports by": row.pop("row"), **row} for row in interval_rows(metrics)])}
**{used[0].upper() + used[1:]}.**

Rule-label F1 is this project's rule-based labeler and no CheXbert. Text metrics reward the usual wording: a constant
report earns much of them.
"""


def _merge(export: Mapping[str, Any]) -> str:
    check, head = (
        export["check"],
        "## The merged weights\n\nEach product was made in float32 and rounded to 16 bits once.",
    )
    if "skipped" in check:
        return f"{head} **Not compared with the adapter's logits**: {check['skipped']}.\n"
    over = f"; from the adapter over the 4-bit base {check['over_4_bit']:.4f}" if "over_4_bit" in check else ""
    return f"""{head}
Root mean square of the logits' differences at the report tokens of {len(check["studies"])} validation studies
({check["dtype"]}): from the adapter over the same base {check["adapter"]:.4f}, from the untuned base
{check["base"]:.4f}{over}. Scores above were measured with the adapter and may differ slightly here.
"""


def _environment(records: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in records["stage3"]["versions"].items())
    return f"## Environment\n\n{versions}. Trained until {records['stage3']['finished']}.\n"


def _table(rows: Sequence[Mapping[str, str]]) -> str:
    heads = list(rows[0])
    lines = [heads, ["---"] * len(heads), *([row.get(head, "") for head in heads] for row in rows)]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)
