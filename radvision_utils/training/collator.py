"""From studies to model inputs: the prompt once, the image as visual tokens, the report as the only labels.

The same class makes the inputs of training and of generation, so that no prompt or image differs between the two.
"""

from __future__ import annotations

import copy
import math
import re
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2.functional import resize
from transformers import ProcessorMixin
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

from radvision_utils.config import ModelSettings, RadVisionError
from radvision_utils.data.reports import Report, format_report
from radvision_utils.data.studies import Study
from radvision_utils.environment import open_room
from radvision_utils.files import checked

IGNORED = -100  # label of a position that the loss skips
_CACHE_BYTES = 1 << 30
_LONGEST_INDICATION = 300  # characters
_MARKS = re.compile(r"<\|[^|]*\|>")
_END: Any = object()
Item = TypeVar("Item")


def ahead(items: Iterator[Item], count: int, device: torch.device) -> Iterator[Item]:
    """The same items; where a card computes, up to `count` of them are made while it computes with those before.

    A thread makes them: another process would hand tensors over in shared memory, of which a container has 64 MiB.
    """
    if device.type != "cuda":  # the thread would take its time from the computing
        yield from items
        return
    thread = ThreadPoolExecutor(1, initializer=torch.cuda.set_device, initargs=(device,))
    coming = deque(thread.submit(next, items, _END) for _ in range(count))
    try:
        while (item := coming.popleft().result()) is not _END:
            coming.append(thread.submit(next, items, _END))
            yield item
    finally:
        thread.shutdown(cancel_futures=True)


class ImageFeatures(Protocol):
    """What a frozen vision encoder gave for images."""

    def of(self, studies: Sequence[Study]) -> torch.Tensor: ...


class ImageChanges(Protocol):
    """What varies the images of training by chance, (1, H, W) uint8 each, another way in each epoch."""

    def set_epoch(self, epoch: int) -> None: ...
    def __call__(self, image: torch.Tensor, uid: str) -> torch.Tensor: ...


class Collator:
    """Makes batches. The images are square and of one size, so that prompts are equally long but for the indications.

    Training examples are padded behind the report, prompts for generation on the left.

    Args:
        processor: of the base model.
        settings: prompt, expected visual tokens and longest report.
        features: what training batches hold in place of pixel values; no image is opened then.
    """

    def __init__(
        self, processor: ProcessorMixin, settings: ModelSettings, features: ImageFeatures | None = None
    ) -> None:
        self.processor = processor
        self.features = features
        self.tokenizer = processor.tokenizer
        self.settings = settings
        self.end = self.tokenizer.convert_tokens_to_ids("<|im_end|>")
        self.pad = self.tokenizer.convert_tokens_to_ids("<|endoftext|>")
        self._prompts: dict[str, list[int]] = {}  # by what they ask
        self.prompt()  # an image token in model.prompt is refused before anything else is done
        self.augmentation: ImageChanges | None = None
        self._resized: dict[str, torch.Tensor] = {}

    def augmenting(self, augmentation: ImageChanges) -> Collator:
        """The same, with the images of training batches changed by chance."""
        other = copy.copy(self)
        other.augmentation = augmentation
        return other

    def conversation(self, image: Any, indication: str = "") -> list[dict[str, Any]]:
        """The user's turn on an image, in the words of Qwen's chat format; `process_vision_info` reads its image.

        Args:
            image: a `PIL.Image`, or whatever else stands for it.
            indication: why the examination was made; has a say only with `model.indication`, cut at 300 characters.
        """
        words = self.settings.prompt
        if self.settings.indication:
            # A mark of the chat format in a stranger's text would end our turn.
            said = _MARKS.sub(" ", indication).strip()[:_LONGEST_INDICATION]
            words += f" Indication: {said or 'not given.'}"
        size = self.processor.image_processor.size
        pixels = {"min_pixels": size["shortest_edge"], "max_pixels": size["longest_edge"]}
        turn = [{"type": "image", "image": image, **pixels}, {"type": "text", "text": words}]
        return [{"role": "user", "content": turn}]

    def prompt(self, indication: str = "") -> list[int]:
        """Token numbers of the prompt, a visual token for each place of the image.

        Raises:
            RadVisionError: `model.prompt` holds an image token.
        """
        turns, token = self.conversation(None, indication), self.processor.image_token
        asked = turns[0]["content"][1]["text"]
        if asked not in self._prompts:
            text = self.processor.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
            if text.count(token) != 1:
                raise RadVisionError(f"model.prompt must not contain the image token {token!r}: remove it.")
            self._prompts[asked] = self._ids(text.replace(token, token * self.settings.visual_tokens))
        return self._prompts[asked]

    def target(self, study: Study) -> Report:
        """The report that a study teaches: its own, with `model.summary` begun by a line of its findings."""
        if not self.settings.summary:
            return study.report
        told: Report = open_room("small_data.examples").with_line(study.report, study.reference)
        return told

    def report_ids(self, report: Report) -> list[int]:
        """Token numbers of a report with the end mark; a longer one is cut and then has no end mark to learn."""
        return [*self._ids(format_report(report)), self.end][: self.settings.max_report_tokens]

    def __call__(self, studies: Sequence[Study]) -> dict[str, Any]:
        """A training batch of B studies and L tokens.

        Returns:
            input_ids, attention_mask, mm_token_type_ids, labels: (B, L) int64, padded on the right; pixel_values (or
            features in their place) and image_grid_thw as the processor gives them; logits_to_keep: how many last
            positions have a say in the loss (one before the report to the end); uids: whose studies these are; weights:
            (B, L) of the tokens, with `model.summary`.
        """
        images = self._study_inputs(studies)
        prompts = [self.prompt(study.indication) for study in studies]
        targets = [self.target(study) for study in studies]
        reports = [self.report_ids(target) for target in targets]
        texts = self.rows(prompts, reports)
        return {
            **texts,
            **images,
            "uids": [study.uid for study in studies],
            **({"weights": self._weights(targets, texts["labels"])} if self.settings.summary else {}),
        }

    def rows(self, prompts: Sequence[list[int]], reports: Sequence[list[int]]) -> dict[str, Any]:
        """Of a training batch what is not the image: prompts with reports behind them."""
        length = max(len(prompt) + len(report) for prompt, report in zip(prompts, reports, strict=True))
        ids = torch.full((len(prompts), length), self.pad)
        labels = torch.full((len(prompts), length), IGNORED)
        mask = torch.zeros((len(prompts), length), dtype=torch.int64)
        for row, (prompt, report) in enumerate(zip(prompts, reports, strict=True)):
            start, end = len(prompt), len(prompt) + len(report)
            ids[row, :end] = torch.tensor(prompt + report)
            labels[row, start:end] = torch.tensor(report)
            mask[row, :end] = 1
        keep = length - min(map(len, prompts)) + 1
        return {**self._text_inputs(ids, mask), "labels": labels, "logits_to_keep": keep}

    def beginning(self, line: str) -> list[int]:
        """Token numbers of a report that says no more yet than its line of findings."""
        return self._ids(format_report(Report(line=line)))

    def prompts(
        self, images: Sequence[Any], indications: Sequence[str] = (), begun: Sequence[list[int]] = ()
    ) -> dict[str, Any]:
        """Inputs for generation: the prompt with each image (a path or a prepared `PIL.Image`), and what the report is
        to begin with."""
        inputs = self._image_inputs([self._resized_once(image, None) for image in images])
        prompts = [self.prompt(indication) for indication in indications or [""] * len(images)]
        prompts = [prompt + begins for prompt, begins in zip(prompts, begun, strict=True)] if begun else prompts
        length = max(map(len, prompts))
        # Left: the first word of a report must come right behind its prompt.
        ids = torch.tensor([[self.pad] * (length - len(prompt)) + prompt for prompt in prompts])
        mask = torch.tensor([[0] * (length - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        return {**self._text_inputs(ids, mask), **inputs}

    def describe(self, study: Study) -> list[dict[str, Any]]:
        """The parts of a training example in order: `{"part", "tokens", "text", "in the loss"}`."""
        prompt = self.tokenizer.decode(self.prompt(study.indication))
        before, after = prompt.split(self.processor.image_token * self.settings.visual_tokens)
        report = self.tokenizer.decode(self.report_ids(self.target(study)))
        parts = [
            ("system and user turn", len(self._ids(before)), before),
            ("image", self.settings.visual_tokens, "(visual tokens)"),
            ("prompt", len(self._ids(after)), after),
            ("report", len(self._ids(report)), report),
        ]
        return [
            {"part": part, "tokens": tokens, "text": text, "in the loss": part == "report"}
            for part, tokens, text in parts
        ]

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False).input_ids)

    def _text_inputs(self, ids: torch.Tensor, mask: torch.Tensor) -> dict[str, Any]:
        # Without mm_token_type_ids the model silently falls back to 1-D positions for the image.
        is_image = (ids == self.processor.image_token_id).long()
        return {"input_ids": ids, "attention_mask": mask, "mm_token_type_ids": is_image}

    def _weights(self, targets: Sequence[Report], labels: torch.Tensor) -> torch.Tensor:
        weights, token_weights = torch.ones(labels.shape), open_room("small_data.examples").token_weights
        for row, target in enumerate(targets):
            text = self.tokenizer(format_report(target), add_special_tokens=False, return_offsets_mapping=True)
            places = (labels[row] != IGNORED).nonzero().flatten()[: len(text.input_ids)]
            weights[row, places] = torch.tensor(token_weights(target, text.offset_mapping)[: len(places)])
        return weights

    def _study_inputs(self, studies: Sequence[Study]) -> dict[str, Any]:
        if self.features is None:
            images = [self._resized_once(study.image, str(study.image)) for study in studies]
            if self.augmentation is not None:
                images = [self.augmentation(image, s.uid) for image, s in zip(images, studies, strict=True)]
            return self._image_inputs(images)
        return {"pixel_values": self.features.of(studies), "image_grid_thw": self.grid(len(studies))}

    def grid(self, images: int) -> torch.Tensor:
        """(images, 3) the patches of so many images: one frame, rows, columns."""
        side = math.isqrt(self.settings.visual_tokens) * self.processor.image_processor.merge_size
        return torch.tensor([[1, side, side]] * images)

    def _image_inputs(self, gray: Sequence[torch.Tensor]) -> dict[str, Any]:
        images = [image.expand(3, -1, -1) for image in gray]
        pixels = self.processor.image_processor(images=images, do_resize=False, return_tensors="pt")
        tokens = pixels["image_grid_thw"].prod(1) // self.processor.image_processor.merge_size**2
        if not (tokens == self.settings.visual_tokens).all():
            raise RadVisionError(
                f"an image became {tokens.max().item()} visual tokens instead of {self.settings.visual_tokens}: "
                "prepare the images at data.image_size."
            )
        return {"pixel_values": pixels["pixel_values"], "image_grid_thw": pixels["image_grid_thw"]}

    def _resized_once(self, image: Any, key: str | None) -> torch.Tensor:
        """The image as the processor would resize it, (1, H, W) uint8; decoded and resized once in training."""
        resized = None if key is None else self._resized.get(key)
        if resized is None:
            if not isinstance(image, Image.Image):
                with Image.open(checked(Path(image))) as file:
                    image = file.convert("L")
            resized = self._resize(image.convert("L"))
            if key is not None and (len(self._resized) + 1) * resized.numel() <= _CACHE_BYTES:
                self._resized[key] = resized
        return resized

    def _resize(self, image: Image.Image) -> torch.Tensor:
        if image.width != image.height:
            raise RadVisionError(
                f"an image has {image.width} x {image.height} pixels: prepare the images at data.image_size."
            )
        gray = torch.from_numpy(np.array(image, dtype=np.uint8))[None]
        # The three channels are one, and the processor resizes each alike: resizing one is exact (and tested).
        shape = self.processor.image_processor
        side = smart_resize(
            gray.shape[-2],
            gray.shape[-1],
            factor=shape.patch_size * shape.merge_size,
            min_pixels=shape.size["shortest_edge"],
            max_pixels=shape.size["longest_edge"],
        )
        resized: torch.Tensor = resize(gray, list(side), InterpolationMode.BICUBIC, antialias=True)
        return resized
