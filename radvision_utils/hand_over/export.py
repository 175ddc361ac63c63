"""Hand a trained run over: its adapter for PEFT, merged 16-bit weights for everything else, and a model card.

`python -m radvision_utils export --run NAME --to DIR` runs it. `DIR/merged` loads with plain transformers and serves
with vLLM; nothing in it needs this project.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi, ModelCard, ModelCardData
from huggingface_hub.errors import HfHubHTTPError

from radvision_utils.config import DISCLAIMER, STAGES, Profile, RadVisionError
from radvision_utils.content import public_name
from radvision_utils.data.studies import open_prepared
from radvision_utils.environment import Device, choose_device, memory_cap
from radvision_utils.evaluation.table import interval_rows
from radvision_utils.figures import markdown_table
from radvision_utils.files import first_line, read_json, require_writable, told_if_unwritable, write_json, write_text
from radvision_utils.hand_over.merge import base_bytes, merge_into_files
from radvision_utils.model.base import WEIGHTS, compute_device, load_adapter, load_base, load_processor
from radvision_utils.model.folder import SMALL_FILES, base_folder, base_path
from radvision_utils.runs import RunFolder, now, require
from radvision_utils.training.collator import IGNORED, Collator
from radvision_utils.training.loss import MODEL_INPUTS, to_device

logger = logging.getLogger(__name__)

TOLERANCE = 0.1  # merged against adapter, relative to merged against base (root mean square of the logits' differences)
_CHECKED = 2  # validation studies whose logits are compared
_TEMPLATE = Path(__file__).with_name("model_card.md")


def export_run(profile: Profile, to: Path, merged: bool = True) -> dict[str, Any]:
    """Write `adapter/`, `merged/`, `README.md` and `export.json` into a new folder; it appears when it is whole.

    Without `merged` there is no such folder, and neither the base nor room for it is needed.

    The adapter is merged into the base's 16-bit files, never into 4-bit weights. The result is loaded again and its
    logits are compared with the adapter's and with the untuned base's.

    Returns:
        What `export.json` holds: where the parts come from, sizes, and the comparison.

    Raises:
        RadVisionError: the run is not finished, `to` is not empty, the disk is full, or the merged model does not
            give the adapter's logits.
    """
    last = require(profile, "stage3")
    require_writable(to, folder=True)
    if to.is_dir() and any(to.iterdir()):
        raise RadVisionError(f"{to} is there and not empty: give --to a folder that does not exist yet.")
    adapter = RunFolder.of(profile).adapter(3)
    record: dict[str, Any] = {
        "run": profile.run,
        "adapter_hash": last["hash"],
        "base": public_name(base_path(profile.model)),
    }
    with told_if_unwritable(to.parent):
        partial = to.with_name(to.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        if merged:
            record |= _merge(profile, adapter, to, partial / "merged")
        _copy_adapter(profile, adapter, partial / "adapter")
        record["finished"] = now()
        write_json(partial / "export.json", record)
        card = model_card(profile, _records(profile), record)
        for folder in (partial, partial / ("merged" if merged else "adapter")):  # what is at the root on the hub
            write_text(folder / "README.md", card)
        if to.is_dir():
            to.rmdir()
        partial.rename(to)
    return record


def _merge(profile: Profile, adapter: Path, to: Path, merged: Path) -> dict[str, Any]:
    """Write the merged model and give what `export.json` says of it."""
    base = base_folder(profile.model)
    _require_disk(to, base_bytes(base) + (adapter / WEIGHTS).stat().st_size)
    collator = Collator(load_processor(profile.model, profile.data.image_size), profile.model)
    merged.mkdir(parents=True)
    logger.info("merging the adapter into %s, tensor by tensor", base)
    counts = merge_into_files(base, adapter, merged)
    _copy_settings(profile, base, collator, merged)
    logger.info("comparing logits of base, adapter and merged model")
    return {
        "tensors": {name: counts[name] for name in ("merged", "replaced", "copied")},
        "gib": round(counts["bytes"] / 2**30, 3),
        "check": check_merge(profile, collator, base, adapter, merged),
    }


def check_merge(profile: Profile, collator: Collator, base: Path, adapter: Path, merged: Path) -> dict[str, Any]:
    """Logits at the report positions of validation studies: merged against adapter, and against the untuned base.

    Adapter and base are in 16 bits here. `over_4_bit` is the adapter over the quantized base that it was trained on:
    what leaving 4-bit changes.

    Returns:
        Root mean squares of the logits' differences; or, where the machine cannot hold the model, `{"skipped": why}`.

    Raises:
        RadVisionError: merged differs from the adapter by more than `TOLERANCE` of what it differs from the base.
    """
    device, gib = choose_device(), base_bytes(base) / 2**30
    free = _free_gib(device)
    if 1.2 * gib > free:
        return {"skipped": f"needs {1.2 * gib:.0f} GiB of memory, {free:.0f} GiB are free"}
    if device.dtype == "float32" and 2.2 * gib > free:
        device = replace(device, dtype="bfloat16", dtype_reason="in float32 the model does not fit this machine")
    studies = open_prepared(profile).split("validation")[:_CHECKED]
    batch = collator(studies)
    whole = replace(profile.model, base=str(base), quantization="none")
    untuned = _report_logits(load_base(whole, device), batch, device)
    tuned = _report_logits(load_adapter(load_base(whole, device), adapter), batch, device)
    given = _report_logits(load_base(replace(whole, base=str(merged)), device), batch, device)
    figures = {"adapter": _rms(given - tuned), "base": _rms(given - untuned)}
    if profile.model.quantization != "none":
        quantized = load_base(replace(profile.model, base=str(base)), device)
        figures["over_4_bit"] = _rms(given - _report_logits(load_adapter(quantized, adapter), batch, device))
    if not figures["adapter"] <= TOLERANCE * figures["base"]:
        raise RadVisionError(
            f"the merged model does not give the adapter's logits: they differ by {figures['adapter']:.4f} (root mean "
            f"square), and from the untuned base's by {figures['base']:.4f}; nothing was exported. Use the adapter of "
            "the run, and please report this with your library versions."
        )
    return {"dtype": device.dtype, "studies": len(studies), "tolerance": TOLERANCE, **figures}


def _report_logits(model: torch.nn.Module, batch: dict[str, Any], device: Device) -> torch.Tensor:
    """(report tokens, vocabulary) float32 on the CPU."""
    inputs = to_device({name: batch[name] for name in MODEL_INPUTS}, compute_device(model))
    with torch.inference_mode(), device.autocast():
        logits = model(**inputs, use_cache=False).logits[:, :-1]
    return logits[batch["labels"][:, 1 - batch["logits_to_keep"] :] != IGNORED].float().cpu()


def _rms(difference: torch.Tensor) -> float:
    return round(difference.pow(2).mean().sqrt().item(), 6)


def _free_gib(device: Device) -> float:
    if device.kind == "cuda":
        cap, free = memory_cap(), torch.cuda.mem_get_info()[0] / 2**30
        return free if cap is None else min(free, cap - torch.cuda.memory_allocated() / 2**30)
    import psutil

    return float(psutil.virtual_memory().available) / 2**30


def push_to_hub(folder: Path, repository: str) -> str:
    """Upload an exported folder: the merged model, where there is one, at the root of the repository and the adapter
    below `adapter/`; else the adapter at the root.

    A repository that does not exist is made private; one that does keeps its visibility.

    Returns:
        The address of the repository.

    Raises:
        RadVisionError: the hub refuses or cannot be reached.
    """
    hub, parts = HfApi(), dict[str, str | None](adapter=None)
    if (folder / "merged").is_dir():
        parts = {"merged": None, "adapter": "adapter"}
    try:
        address = hub.create_repo(repository, private=True, exist_ok=True)
        for name, place in parts.items():
            told = f"{name} weights".capitalize()
            hub.upload_folder(repo_id=repository, folder_path=folder / name, path_in_repo=place, commit_message=told)
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise RadVisionError(
            f"{folder} is written but could not be uploaded to {repository!r} ({first_line(error)}): log in with "
            "`hf auth login`, check the name, and give --push-to-hub again."
        ) from error
    return str(address)


def _require_disk(to: Path, needed: int) -> None:
    there = next(folder for folder in (to.absolute(), *to.absolute().parents) if folder.exists())
    free = shutil.disk_usage(there).free
    if free < needed * 1.02:
        raise RadVisionError(
            f"exporting to {to} needs {needed / 2**30:.1f} GiB of disk and {free / 2**30:.1f} GiB are free: "
            "make room, or give --to a folder on another disk."
        )


def _copy_adapter(profile: Profile, adapter: Path, to: Path) -> None:
    to.mkdir(parents=True)
    shutil.copyfile(adapter / WEIGHTS, to / WEIGHTS)
    settings, base = read_json(adapter / "adapter_config.json"), public_name(base_path(profile.model))
    write_json(to / "adapter_config.json", {**settings, "base_model_name_or_path": base})


def _copy_settings(profile: Profile, base: Path, collator: Collator, to: Path) -> None:
    """Config, tokenizer and processor as the base has them, word for word; greedy generation; the prompt."""
    for file in sorted(base.iterdir()):
        if file.suffix in SMALL_FILES and not file.name.endswith(".index.json"):
            shutil.copyfile(file, to / file.name)
    config = {**read_json(to / "config.json"), "use_cache": True}
    config.pop("_name_or_path", None)  # where the base once lay
    for name in {"dtype", "torch_dtype"}.intersection(config):
        config[name] = "bfloat16" if config[name] == "float32" else config[name]
    write_json(to / "config.json", config)
    path = to / "generation_config.json"
    generation = read_json(path) if path.is_file() else {}
    # What only matters to sampling would make transformers warn at every report; the penalty is left out here too.
    for name in ("temperature", "top_p", "top_k", "repetition_penalty"):
        generation.pop(name, None)
    generation |= {"do_sample": False, "max_new_tokens": profile.generation.max_new_tokens}
    generation |= {"eos_token_id": [collator.end, collator.pad], "pad_token_id": collator.pad}
    write_json(path, generation)
    write_text(to / "prompt.txt", profile.model.prompt)


def _records(profile: Profile) -> dict[str, Any]:
    """What the run's steps recorded, by step; the evaluation only if it belongs to this adapter."""
    records = {step: require(profile, step) for step in ("data", "stage1", "stage2", "stage3")}
    try:
        records["evaluation"] = require(profile, "evaluation")
    except RadVisionError as error:
        logger.info("the model card has no figures of an evaluation: %s", error)
    return records


def model_card(profile: Profile, records: Mapping[str, Any], export: Mapping[str, Any]) -> str:
    """The card as Markdown with the hub's front matter, from the template `model_card.md` beside this file.

    Args:
        profile: of the run.
        records: `summary.json` ("data"), `stage.json` ("stage1" to "stage3") and `metrics.json` ("evaluation", if the
            run was evaluated).
        export: what `export.json` holds.
    """
    data, metrics = records["data"], records.get("evaluation")
    stages: list[dict[str, Any]] = [records[f"stage{number}"] for number in STAGES]
    stages = [{**stage, "settings": {**stage["settings"], **stage["chosen"]}} for stage in stages]
    about = ModelCardData(
        license="mit" if data["kind"] == "phantom" else "other",
        language="en",
        library_name="transformers" if "check" in export else "peft",
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
        source=public_name(data["source"]),
        data=data,
        counted=lambda counts: ", ".join(f"{name} {count:,}" for name, count in counts.items()),
        stages=stages,
        metrics=metrics,
        scores=_scores(metrics) if metrics else "",
        export=export,
    )
    return f"{card}\n"


def _scores(metrics: Mapping[str, Any]) -> str:
    rows = interval_rows(metrics)
    return markdown_table(["reports by", *list(rows[0])[1:]], [list(row.values()) for row in rows])
