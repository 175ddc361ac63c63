"""Frozen vision, once: what the vision encoder gives for each image, computed before stage 2 and kept on disk.

Neither stage 2 nor stage 3 changes the vision encoder, so both read the same file, and its blocks leave the card. What
is kept is what enters the projector; that costs a thousandth of a step and is computed anew each time.
"""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from transformers import TrainerCallback
from transformers.modeling_outputs import BaseModelOutputWithPooling

from radvision_utils.config import RadVisionError
from radvision_utils.content import fingerprint
from radvision_utils.data.studies import PreparedDataset, Study
from radvision_utils.environment import choose_device
from radvision_utils.files import is_whole, list_files
from radvision_utils.model.base import compute_device, core_of
from radvision_utils.model.faster import computing
from radvision_utils.progress import show_progress
from radvision_utils.runs import Stage
from radvision_utils.training.collator import Collator, ahead

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Features:
    """What enters the projector.

    Attributes:
        values: (studies, visual tokens, merged patches x width), memory-mapped, in the format the encoder
            computed in.
        rows: which row is whose image's.
        seconds: it took to compute them now; 0 where they were there.
    """

    values: torch.Tensor
    rows: dict[str, int]
    seconds: float

    def of(self, studies: Sequence[Study]) -> torch.Tensor:
        """(studies x visual tokens, merged patches x width), in place of pixel values."""
        return self.values[[self.rows[str(study.image)] for study in studies]].flatten(0, 1)

    @property
    def record(self) -> dict[str, float]:
        """For `stage.json`."""
        return {"gib": round(self.values.numel() * self.values.element_size() / 2**30, 3), "seconds": self.seconds}


def open_features(
    model: Any,
    collator: Collator,
    studies: Sequence[Study],
    folder: Path,
    key: str,
    batch_size: int,
) -> Features:
    """The features of all studies: read where they are, else computed into `folder`, where they replace older ones.

    Args:
        model: whose vision encoder is frozen.
        collator: makes the pixel values.
        studies: training studies and those of validation that are measured.
        folder: `features/` of the run.
        key: changes with the vision encoder's weights, the studies and the image processing.
        batch_size: images at a time.

    Raises:
        RadVisionError: the disk has no room for them.
    """
    started, seconds = time.perf_counter(), 0.0
    path = next(folder.glob(f"{key}.*.bin"), None)
    if path is not None and not is_whole(folder):
        logger.warning("%s is damaged: the features are computed anew", path)
        path = None
    if path is None:
        path = _compute(model, collator, studies, folder, key, batch_size)
        seconds = round(time.perf_counter() - started, 1)
    dtype = getattr(torch, path.suffixes[-2][1:])
    values = torch.from_file(str(path), shared=False, size=path.stat().st_size // dtype.itemsize, dtype=dtype)
    width = 4 * model.config.vision_config.hidden_size
    rows = {str(study.image): row for row, study in enumerate(studies)}
    return Features(values.view(len(studies), -1, width), rows, seconds)


def stage_features(
    model: Any, stage: Stage, dataset: PreparedDataset, collator: Collator, ledger: Mapping[str, str]
) -> Features | None:
    """The features for a stage whose vision encoder is frozen, None where they are not kept (`Profile.keeps_features`).

    Args:
        ledger: of the model's weights, as `weight_ledger` gives it.

    Raises:
        RadVisionError: the disk has no room for them.
    """
    profile, train = stage.profile, dataset.split("train")
    if not profile.keeps_features(stage.number, len(train)):
        return None
    # Validation as far as either stage measures it: both read the same file.
    measured = max(profile.stage2.validation_studies, profile.stage3.validation_studies)
    studies = [*train, *dataset.split("validation")[:measured]]
    key = fingerprint(
        [
            {part: digest for part, digest in ledger.items() if part.startswith("vision_encoder")},
            collator.processor.image_processor.to_dict(),
            dataset.summary["hash"],
            len(studies),
            choose_device().dtype,
        ]
    )
    return open_features(model, collator, studies, stage.run.features, key, stage.settings.micro_batch)


@contextmanager
def features_for_pixels(model: Any) -> Iterator[None]:
    """Within, the model takes the projector's inputs where it took pixel values, and runs the projector alone."""
    inner, home = core_of(model).model, compute_device(model)

    # `generate` reads the names of the arguments.
    def image_features(pixel_values: torch.Tensor, image_grid_thw: Any, **_: Any) -> BaseModelOutputWithPooling:
        patches = pixel_values.view(-1, inner.visual.config.hidden_size)
        return BaseModelOutputWithPooling(pooler_output=(inner.visual.merger(patches),))

    # Not visual.forward: pixel values are cast to 16 bits on their way there, which features need not survive.
    try:
        with computing(inner, image_features, "get_image_features"):
            yield
    finally:
        inner.visual.blocks.to(home)


class VisionLeaves(TrainerCallback):
    """The vision encoder's blocks wait in the machine's memory while the card trains; `features_for_pixels` ends it."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # Not before: the Trainer puts the whole model on the card.
        if args.device.type == "cuda":
            core_of(kwargs["model"]).model.visual.blocks.to("cpu")
            torch.cuda.empty_cache()


def _compute(
    model: Any,
    collator: Collator,
    studies: Sequence[Study],
    folder: Path,
    key: str,
    batch_size: int,
) -> Path:
    """Write them, each process its part; the file gets its name when it is whole."""
    together, partial = PartialState(), folder / f"{key}.partial"
    encode = _encoder(model)
    example = encode(collator.prompts([studies[0].image]))
    size = example.numel() * example.element_size()
    if together.is_main_process:
        logger.info("the vision encoder is frozen: its features of %d images are computed once", len(studies))
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        need, free = size * len(studies), shutil.disk_usage(folder).free
        if need > free:
            raise RadVisionError(
                f"the vision encoder's features need {need / 2**30:.1f} GiB in {folder}, where {free / 2**30:.1f} GiB "
                "are free: make room, or set stage2.cache_features and stage3.cache_features to false."
            )
        with partial.open("wb") as file:
            file.truncate(need)
    together.wait_for_everyone()
    share = -(-len(studies) // together.num_processes)
    first = min(share * together.process_index, len(studies))
    last, done = min(first + share, len(studies)), 0
    with partial.open("r+b") as file, show_progress(last - first) as step:
        file.seek(first * size)
        parts = (studies[start : min(start + batch_size, last)] for start in range(first, last, batch_size))
        inputs = (collator.prompts([study.image for study in part]) for part in parts)
        for given in ahead(inputs, 2, compute_device(model)):
            file.write(encode(given).cpu().contiguous().view(torch.uint8).numpy().tobytes())
            step(done := done + len(given["image_grid_thw"]))
        file.flush()
        os.fsync(file.fileno())
    together.wait_for_everyone()
    path = folder / f"{key}.{str(example.dtype).removeprefix('torch.')}.bin"
    if together.is_main_process:
        partial.rename(path)
        list_files(folder)
    together.wait_for_everyone()
    return path


def _encoder(model: Any) -> Callable[[Mapping[str, torch.Tensor]], torch.Tensor]:
    """A function from a collator's images to (images, visual tokens, merged patches x width)."""
    visual, home, device = core_of(model).model.visual, compute_device(model), choose_device()
    merged = visual.config.hidden_size * visual.config.spatial_merge_size**2

    @torch.no_grad()
    def encode(inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        was_training = visual.training
        visual.eval()
        try:
            # Behind the projector transformers brings the tokens from the order of windows back to that of the image;
            # a projector that only joins patches lets what would have entered it through, in that order.
            with computing(visual.merger, lambda patches: patches.view(-1, merged)), device.autocast():
                pixels = inputs["pixel_values"].to(home, visual.dtype)
                features = visual(pixels, grid_thw=inputs["image_grid_thw"].to(home)).pooler_output
        finally:
            visual.train(was_training)
        return features.view(len(inputs["image_grid_thw"]), -1, merged)

    return encode
