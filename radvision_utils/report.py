"""Write reports: base model plus a stage's adapter, images in, reports out, in batches.

`load_reporter(run, stage)` gives a `Reporter`; stage 0 is the untuned base.
"""

from __future__ import annotations

import copy
import itertools
import logging
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, overload

import torch
from accelerate.utils.memory import clear_device_cache
from peft import PeftModel
from PIL import Image
from transformers import LogitsProcessorList, PreTrainedModel

from radvision_utils.config import Profile, RadVisionError
from radvision_utils.data.images import letterbox, load_image, load_square, moved
from radvision_utils.data.parsing import parse_report
from radvision_utils.data.reports import Report, format_report, line_of_findings
from radvision_utils.data.studies import Study
from radvision_utils.environment import Device, choose_device, is_out_of_memory, open_room
from radvision_utils.model.base import (
    compute_device,
    core_of,
    load_adapter,
    load_base,
    load_processor,
    loading_in_memory,
    merge_adapter,
)
from radvision_utils.model.faster import keep_dequantized, speed_up_lora
from radvision_utils.model.fp16 import keep_in_float32
from radvision_utils.model.greedy import write_greedily
from radvision_utils.progress import Progress, show_progress
from radvision_utils.runs import RunFolder, Stage
from radvision_utils.training.collator import Collator
from radvision_utils.training.loss import report_token_losses, to_device

logger = logging.getLogger(__name__)

ImageLike = Image.Image | Path | str | bytes | Study
Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class WrittenReport:
    """A report with how it came about."""

    report: Report
    text: str  # as the model wrote it; with findings by thresholds without the sentences that contradict these
    tokens: int
    finished: bool  # False: the longest allowed report ended it, not the model
    seconds: float  # its share of the batch's time


@dataclass(frozen=True)
class Sampling:
    """Words drawn by lot: the temperature that divides the logits, and a seed. Equal images give equal reports."""

    temperature: float
    seed: int


class Reporter:
    """A model that writes reports, greedily.

    Args:
        model: the base, with or without an adapter, in evaluation mode.
        collator: makes the same prompts as in training.
        profile: image size, batch size, longest report.
        stage: whose adapter the model carries; 0 for none.
        device: where it computes.
    """

    def __init__(
        self, model: PreTrainedModel | PeftModel, collator: Collator, profile: Profile, stage: int, device: Device
    ) -> None:
        profile = open_room("planning.judging").reports_here(profile, device)
        self.model, self.collator, self.profile, self.stage, self.device = model, collator, profile, stage, device
        self.sampling: Sampling | None = None
        self.mean: Image.Image | None = None  # what each image is contrasted with, if generation.contrast asks for it
        # Of the findings that a report begins with, a `small_data.decoding.LineChoice`; None: the model writes them.
        self.choice: Any = None
        self._batch_size = profile.generation.batch_size
        model.eval()
        model.config.use_cache = True

    def drawing(self, sampling: Sampling) -> Reporter:
        """The same model, drawing its words by lot."""
        other = copy.copy(self)
        other.sampling = sampling
        return other

    @overload
    def report(self, images: ImageLike) -> Report: ...  # type: ignore[overload-overlap]  # a path is a sequence too
    @overload
    def report(self, images: Sequence[ImageLike]) -> list[Report]: ...
    def report(self, images: ImageLike | Sequence[ImageLike]) -> Report | list[Report]:
        """Report on one image or several: a `PIL.Image`, a path (PNG, JPEG, DICOM), the bytes of such a file, a study.

        Where the model was trained with indications, only a study can give one.

        Raises:
            RadVisionError: an image cannot be read, or shows nothing; the sentence names it.
        """
        if isinstance(images, (Image.Image, Path, str, bytes, Study)):
            return next(self.write([images])).report
        return [written.report for written in self.write(images)]

    def write(self, images: Sequence[ImageLike], progress: Progress | None = None) -> Iterator[WrittenReport]:
        """Reports in the order of the images; `progress` is told what would be shown otherwise.

        Raises:
            RadVisionError: an image cannot be read or shows nothing, or not even one fits in the memory.
        """
        if self.sampling is None and self.mean is None:
            # A place is given to the next image as soon as its report has ended.
            written = self._halving(images, lambda rest, places: ((one, 1) for one in self._refilling(rest, places)))
        else:
            written = itertools.chain.from_iterable(self.in_batches(images, self._write_batch))
        with show_progress(len(images), progress) as step:
            for done, report in enumerate(written, 1):
                yield report
                step(done)

    def _refilling(self, images: Sequence[ImageLike], places: int) -> Iterator[WrittenReport]:
        begun: list[list[int]] = []

        def prompts(first: int, last: int) -> dict[str, Any]:
            inputs, beginnings = self._inputs(images[first:last])
            begun.extend(beginnings)
            return inputs

        # Of the lines that there can be, that of no finding or that of all is the longest.
        lines = [line_of_findings(some) for some in ((), self.choice.thresholds)] if self.choice else []
        beginning = max((len(self.collator.beginning(line)) for line in lines), default=0)
        ready: dict[int, WrittenReport] = {}
        given = 0
        for number, ids, seconds in write_greedily(
            self.core,
            prompts,
            len(images),
            places=places,
            room=max(len(self.prompt(image)) for image in images) + beginning,
            longest=self.profile.generation.max_new_tokens,
            ends=(self.collator.end, self.collator.pad),
            autocast=self.device.autocast,
        ):
            ready[number] = self._written(begun[number], ids, seconds)
            while given in ready:
                yield ready.pop(given)
                given += 1

    def in_batches(self, items: Sequence[Item], work: Callable[[Sequence[Item]], Result]) -> Iterator[Result]:
        """What `work` makes of the items, `generation.batch_size` at a time and in their order.

        Where memory ends, batches are halved from then on.

        Raises:
            RadVisionError: not even one item fits in the memory.
        """
        return self._halving(items, lambda rest, size: [(work(rest[:size]), size)])

    def _halving(
        self, items: Sequence[Item], work: Callable[[Sequence[Item], int], Iterable[tuple[Result, int]]]
    ) -> Iterator[Result]:
        """Results of `work`, which gets what is left and how many to do at a time, and says how many each is for."""
        done = 0
        while done < len(items):
            size, failed = min(self._batch_size, len(items) - done), False
            try:
                for result, count in work(items[done:], size):
                    yield result
                    done += count
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                failed = True
            if failed:  # not in the handler: there the error still holds the tensors
                clear_device_cache(garbage_collection=True)
                if size == 1:
                    raise RadVisionError(
                        "the memory is too small for one report at a time: end other programs, or lower "
                        "generation.max_new_tokens."
                    )
                self._batch_size = size // 2
                logger.warning("too little memory for %d reports at a time; now %d", size, self._batch_size)

    def token_losses(self, studies: Sequence[Study]) -> tuple[torch.Tensor, torch.Tensor]:
        """The losses of a batch's reports, teacher-forced, as `report_token_losses` gives them."""
        batch = to_device(self.collator(studies), compute_device(self.model))
        with self.device.autocast():
            return report_token_losses(self.model, batch)

    @property
    def core(self) -> Any:
        """The Qwen2.5-VL itself, inside whatever carries its adapter."""
        return core_of(self.model)

    @torch.no_grad()
    def visual_tokens(
        self, images: Sequence[ImageLike], views: Sequence[tuple[float, float]] = ((0.0, 0.0),)
    ) -> torch.Tensor:
        """(n, V, D) what the projector gives the language model for each image, float32, mean of the views.

        The tokens lie row by row: the encoder works in windows, and puts its tokens back in order before it ends.
        A view is the image moved right and down by shares of its sides.
        """
        squares, tokens = [self.prepare(image) for image in images], []
        for view in views:
            shown = self.collator.prompts([moved(square, *view) for square in squares])
            inputs = to_device(shown, compute_device(self.core))
            with self.device.autocast():
                found = self.core.model.get_image_features(inputs["pixel_values"], inputs["image_grid_thw"])
            tokens.append(torch.stack(list(found.pooler_output)).float())
        mean = torch.stack(tokens).mean(0)
        return mean.view(len(images), -1, mean.shape[-1])

    def prepare(self, image: ImageLike) -> Image.Image:
        """An image as the model was trained on them: read, gray, letterboxed to `data.image_size`.

        Of a study it is taken as it was prepared.

        Raises:
            RadVisionError: an image cannot be read or shows nothing.
        """
        size = self.profile.data.image_size
        if isinstance(image, Study):
            return letterbox(load_image(image.image, size), size)
        return load_square(Path(image) if isinstance(image, str) else image, size)

    def prompt(self, image: ImageLike) -> list[int]:
        """Token numbers of the prompt for an image; a study brings its indication."""
        return self.collator.prompt(image.indication if isinstance(image, Study) else "")

    def _inputs(self, images: Sequence[ImageLike], other: Image.Image | None = None) -> tuple[dict[str, Any], Any]:
        """Prompts with the images, and as many again with the other one, if any; what their reports begin with."""
        squares = [self.prepare(image) for image in images]
        indications = [image.indication if isinstance(image, Study) else "" for image in images]
        lines = self.choice.lines(self, images) if self.choice else []
        begun = [self.collator.beginning(line) for line in lines] or [[]] * len(images)
        if other is not None:
            squares, indications, begun = squares + [other] * len(squares), indications * 2, begun * 2
        return self.collator.prompts(squares, indications, begun), begun[: len(images)]

    @torch.inference_mode()
    def _write_batch(self, images: Sequence[ImageLike]) -> list[WrittenReport]:
        start = time.perf_counter()
        inputs, begun = self._inputs(images, self.mean)
        share = self.profile.generation.contrast
        contrast = [] if self.mean is None else [open_room("small_data.decoding").Contrast(share)]
        with self.device.autocast(), self._lot(images[0]) as lot:
            output: Any = self.model.generate(
                **to_device(inputs, compute_device(self.model)),
                max_new_tokens=self.profile.generation.max_new_tokens,
                **lot,
                logits_processor=LogitsProcessorList(contrast),
                repetition_penalty=1.0,  # Qwen's own 1.05 shuns words said before, and reports say "no" again and again
                pad_token_id=self.collator.pad,
                eos_token_id=[self.collator.end, self.collator.pad],
            )
        rows = output[: len(images), inputs["input_ids"].shape[1] :].tolist()
        seconds = (time.perf_counter() - start) / len(images)
        return [self._written(beginning, row, seconds) for beginning, row in zip(begun, rows, strict=True)]

    def _written(self, beginning: list[int], row: list[int], seconds: float) -> WrittenReport:
        stops = [i for i, token in enumerate(row) if token in (self.collator.end, self.collator.pad)]
        ids = row[: stops[0]] if stops else row
        text = self.collator.tokenizer.decode(beginning + ids, skip_special_tokens=True).strip()
        report = parse_report(text, self.profile.model.summary)
        if self.choice:
            report = open_room("small_data.examples").following(report)
            text = format_report(report)
        return WrittenReport(report, text, len(ids), bool(stops), seconds)

    @contextmanager
    def _lot(self, image: ImageLike) -> Iterator[dict[str, Any]]:
        """How `generate` chooses words. A batch is drawn alike whatever was written before it."""
        if self.sampling is None:
            yield {"do_sample": False}
            return
        devices = [torch.cuda.current_device()] if self.device.kind == "cuda" else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(self.sampling.seed + zlib.crc32(self.prepare(image).tobytes()))
            yield {"do_sample": True, "temperature": self.sampling.temperature, "top_k": 0, "top_p": 1.0}


def load_reporter(run: str = "tiny", stage: int = 3, output_root: str = "outputs") -> Reporter:
    """The model of a finished stage of a run; stage 0 is the untuned base.

    Raises:
        RadVisionError: no such run or stage, or this machine cannot run it.
    """
    return reporter_of(RunFolder(run, output_root).profile(), stage)


def reporter_of(profile: Profile, stage: int, base: PreTrainedModel | None = None) -> Reporter:
    """As `load_reporter`, for a profile at hand.

    Args:
        base: as `_base_again` gives it, in place of loading one.

    Raises:
        RadVisionError: the stage is missing, unfinished or made with other settings.
    """
    chosen = Stage(profile, stage)
    if stage:
        chosen.record()
    device = choose_device()
    collator = Collator(load_processor(profile.model, profile.data.image_size), profile.model)
    with loading_in_memory(profile, stage):
        model = _load_model(profile, stage, device, base)
    keep_in_float32(model, _float32_blocks(profile, stage) if device.dtype == "float16" else [])
    reporter = Reporter(model, collator, profile, stage, device)
    if stage and profile.model.summary and profile.generation.findings == "scored":
        reporter.choice = open_room("small_data.decoding").thresholds(reporter)
    if stage and profile.generation.contrast:
        reporter.mean = open_room("small_data.decoding").nothing_in_particular(reporter)
    return reporter


def _load_model(
    profile: Profile, stage: int, device: Device, base: PreTrainedModel | None
) -> PreTrainedModel | PeftModel:
    model = load_base(profile.model, device) if base is None else base
    # A CPU would unpack the 4-bit weights and add LoRA anew for every token: it is nearly twice as fast with both done
    # once, and float32 holds the same weights. In the 16 bits of a card the sums would be rounded.
    once = device.kind == "cpu"
    if once and getattr(model, "is_quantized", False):
        model.dequantize()
    elif open_room("planning.judging").copied_here(profile, device):
        keep_dequantized(model)
    if not stage:
        return model
    adapted = load_adapter(model, RunFolder.of(profile).adapter(stage))
    if once:
        return merge_adapter(adapted)
    speed_up_lora(adapted)
    return adapted


def _float32_blocks(profile: Profile, stage: int) -> list[str]:
    record = RunFolder.of(profile).record(f"stage{stage or 1}") or {}
    blocks: list[str] = record.get("float32_blocks", [])
    return blocks


def _base_again(reporter: Reporter) -> PreTrainedModel | None:
    """The base under a reporter that is done, as it was loaded; None where its weights or blocks are no longer that."""
    if reporter.device.dtype == "float16" and _float32_blocks(reporter.profile, reporter.stage):
        return None
    if isinstance(reporter.model, PeftModel):
        base: PreTrainedModel = reporter.model.unload()
        return base
    return None if reporter.stage else reporter.model


def write_in_stages(profile: Profile, stages: Sequence[int], studies: Sequence[Study]) -> list[list[WrittenReport]]:
    """Of several stages on the same studies, a list a stage, one model at a time; raises what `reporter_of` does."""
    found, base = [], None
    for stage in stages:
        reporter = reporter_of(profile, stage, base)
        found.append(list(reporter.write(studies)))
        base = _base_again(reporter)
        del reporter  # before another base is loaded
    return found
