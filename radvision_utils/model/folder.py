"""The files of a base model: found or fetched, whole, of a Qwen2.5-VL, and never with code of their own."""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.constants import HF_HUB_CACHE
from PIL import Image
from transformers import AutoProcessor, ProcessorMixin

from radvision_utils.config import ModelSettings, RadVisionError
from radvision_utils.environment import is_out_of_memory
from radvision_utils.files import first_line, is_disk_full, write_json
from radvision_utils.progress import download_bar

TINY_BASE = Path(__file__).parent / "tiny_base"
QWEN_7B = Path(__file__).parent / "qwen2_5_vl_7b.json"
SMALL_FILES = (".json", ".jinja", ".txt")  # of a base: settings, tokenizer, processor
RANDOM_WEIGHTS = "random_weights.json"  # stands in a base's folder instead of weights

logger = logging.getLogger(__name__)


def base_path(settings: ModelSettings) -> str:
    """What transformers can load: the embedded folder for "tiny", else the setting itself (hub id or folder)."""
    return str(TINY_BASE) if settings.base == "tiny" else settings.base


def base_folder(settings: ModelSettings, weights: bool = True) -> Path:
    """Where the base's files lie, fetched within sight: the 7B is 15.4 GiB. RadVisionError: they cannot be fetched."""
    base = base_path(settings)
    if Path(base).is_dir():
        return Path(base)
    patterns = [f"*{suffix}" for suffix in SMALL_FILES]
    if weights:
        logger.info("base model %s: fetched from the model hub, unless it lies in %s", base, HF_HUB_CACHE)
        patterns.append("model*.safetensors")
    try:
        return Path(snapshot_download(base, allow_patterns=patterns, tqdm_class=download_bar()))
    except Exception as error:
        if is_disk_full(error):
            raise
        raise RadVisionError(
            f"base model {base!r} is neither a folder here nor could it be fetched from the model hub "
            f"({first_line(error)}): check the name and the network, or give a folder with `--set model.base=PATH`."
        ) from error


def from_pretrained(loader: Any, settings: ModelSettings, **options: Any) -> Any:
    """What a class of transformers loads from the base, once its files are seen to be what they should be.

    Raises:
        RadVisionError: the base cannot be found or fetched, is none of ours, or has damaged files.
    """
    path, folder = base_path(settings), base_folder(settings, weights=loader is not AutoProcessor)
    try:
        _require_qwen(folder)
        if loader is not AutoProcessor:
            return loader.from_pretrained(path, trust_remote_code=False, **options)
        with _processor_of_today(folder) as readable:
            processor = loader.from_pretrained(path if readable == folder else readable, trust_remote_code=False)
        _require_chat(processor, path)
        _require_eyes(processor.image_processor, folder)
        return processor
    except RadVisionError:
        raise
    except Exception as error:  # a damaged file ends in whatever its reader stumbles over
        if is_out_of_memory(error) or is_disk_full(error):
            raise
        raise RadVisionError(
            f"the model folder {folder} cannot be loaded: {what_is_wrong(folder, error)}; get it anew."
        ) from error


# What transformers takes as a request to run code that lies beside a model, or to load yet another model.
_CODE = {"auto_map", "custom_pipelines", "trust_remote_code", "audio_tokenizer"}


def _require_qwen(folder: Path) -> None:
    """Refuse what is no Qwen2.5-VL, what needs code of its own, and an adapter in place of a base."""
    give = "give another with `--set model.base=PATH`"
    if (folder / "adapter_config.json").exists():
        raise RadVisionError(f"{folder} holds an adapter, not a base model: {give}.")
    for file in sorted(folder.glob("*config.json")):
        if found := sorted(_CODE.intersection(_keys(json.loads(file.read_text(encoding="utf-8"))))):
            raise RadVisionError(f"{file} asks for code of its own ({', '.join(found)}), which is never run: {give}.")
    kind = json.loads((folder / "config.json").read_text(encoding="utf-8"))["model_type"]
    if kind != "qwen2_5_vl":
        raise RadVisionError(f"{folder} holds a model of the kind {kind!r}, and only 'qwen2_5_vl' is trained: {give}.")


def _keys(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        yield from value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _keys(inner)


@contextmanager
def _processor_of_today(folder: Path) -> Iterator[Path]:
    """A folder whose image processor transformers 5 reads: a copy where it is written as in the first Qwen2.5-VL."""
    given = {f.name: json.loads(f.read_text(encoding="utf-8")) for f in sorted(folder.glob("*processor_config.json"))}
    mended = {name: _image_processor_of_today(values) for name, values in given.items()}
    if mended == given:
        yield folder
        return
    with tempfile.TemporaryDirectory() as copy:
        for file in folder.iterdir():
            if file.suffix in SMALL_FILES:
                shutil.copyfile(file, Path(copy) / file.name)
        for name, values in mended.items():
            write_json(Path(copy) / name, values)
        yield Path(copy)


# Saved by some with what they last called it with; what is handed in says how it lies.
_OF_A_CALL = {"input_data_format", "data_format", "return_tensors", "device"}


def _image_processor_of_today(values: Any) -> Any:
    if not isinstance(values, dict):
        return values
    values = {key: _image_processor_of_today(value) for key, value in values.items() if key not in _OF_A_CALL}
    if str(values.get("image_processor_type")).startswith("Qwen2_5_VLImageProcessor"):
        values["image_processor_type"] = "Qwen2VLImageProcessor"
    size = values.get("size")
    if isinstance(size, dict):
        names = {"min_pixels": "shortest_edge", "max_pixels": "longest_edge"}
        values["size"] = {names.get(key, key): value for key, value in size.items() if value is not None}
    return values


def _require_chat(processor: ProcessorMixin, base: str) -> None:
    """The tokenizer knows the marks of Qwen's chat format, the chat template sets one image, its size is in pixels."""
    words = processor.tokenizer.get_vocab()
    lacking = [word for word in ("<|im_end|>", "<|endoftext|>", processor.image_token) if word not in words]
    copy = "copy the missing files from the model that it was made of"
    sees = processor.image_processor
    edges = [sees.size[name] if sees.size else None for name in ("shortest_edge", "longest_edge")]
    pixels = all(isinstance(edge, int) and 0 < edge < 1e9 for edge in edges)
    if not (type(sees).__name__.startswith("Qwen2") and pixels):
        raise RadVisionError(
            f"the image processor of {base} is not that of Qwen2.5-VL, whose size is shortest_edge and longest_edge "
            f"in pixels: {copy}."
        )
    if lacking:
        raise RadVisionError(f"the tokenizer of {base} is missing or of another model, {lacking[0]!r} is none: {copy}.")
    processor.chat_template = processor.chat_template or processor.tokenizer.chat_template
    if not processor.chat_template:
        raise RadVisionError(f"{base} has no chat template (chat_template.jinja): {copy}.")
    turn = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Report."}]}
    said = processor.apply_chat_template([turn], add_generation_prompt=True, tokenize=False)
    if said.count(processor.image_token) != 1:
        raise RadVisionError(f"the chat template of {base} does not set one image in a turn with one: {copy}.")


def _require_eyes(sees: Any, folder: Path) -> None:
    """The image processor cuts a picture into the patches that the model takes, of numbers around zero."""
    meant = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("vision_config", {})
    for name, ours in (("patch_size", ""), ("temporal_patch_size", ""), ("spatial_merge_size", "merge_size")):
        if (cuts := getattr(sees, ours or name)) != meant.get(name, cuts):
            raise RadVisionError(
                f"{folder} has {name} {meant[name]} in config.json and {cuts!r} in its processor's: copy the latter's "
                "files from the model that it was made of."
            )
    white = sees(images=[Image.new("RGB", (56, 56), "white")], return_tensors="pt")["pixel_values"]
    if not white.abs().max() < 10:
        raise RadVisionError(
            f"the image processor of {folder} makes {white.abs().max():g} of white: mend its image_mean, image_std, "
            "do_rescale and rescale_factor."
        )


def what_is_wrong(folder: Path, error: BaseException) -> str:
    """What a reader of the folder's files says, or that one of them has not been fetched."""
    for file in sorted(path for path in folder.iterdir() if path.is_file()):
        with file.open("rb") as opened:
            if opened.read(23) == b"version https://git-lfs":
                return f"{file.name} is a git-lfs pointer and not the file, which `git lfs pull` fetches"
    return f"{type(error).__name__}: {first_line(error)}"


def require_whole(what: str, missing: Collection[str], unexpected: Collection[str], misfits: Collection[str]) -> None:
    """Refuse weights that leave something at random or are left out; rotary frequencies are computed by the model.

    Raises:
        RadVisionError: tensors are missing, unexpected or of another shape.
    """
    kinds = {"missing": missing, "unexpected": unexpected, "of another shape": misfits}
    told = []
    for kind, names in kinds.items():
        found = sorted(name for name in names if not name.endswith("inv_freq"))
        if found:
            told.append(f"{len(found)} {kind} ({', '.join(found[:3])}{', ...' if len(found) > 3 else ''})")
    if told:
        raise RadVisionError(f"the tensors of {what} are not those of its config, {'; '.join(told)}: fetch it again.")
