"""Greedy writing of many texts at a time: a place whose text has ended is given to the next one that waits.

The tensors of a step keep their shape and their place in memory, so a card repeats it as one CUDA graph. Python takes
113 ms to launch the 2,650 kernels of a step of the 7B, and an H100 works 19 of them.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch

from radvision_utils.environment import is_out_of_memory
from radvision_utils.files import first_line
from radvision_utils.model.base import compute_device

logger = logging.getLogger(__name__)


@torch.no_grad()
def write_greedily(
    core: Any,
    prompts: Callable[[int, int], Mapping[str, torch.Tensor]],
    count: int,
    *,
    places: int,
    room: int,
    longest: int,
    ends: Collection[int],
    autocast: Callable[[], Any],
) -> Iterator[tuple[int, list[int], float]]:
    """Continue prompts by their likeliest tokens, and give each text as soon as it has ended.

    Args:
        core: a Qwen2.5-VL, with or without LoRA in its layers, in evaluation mode.
        prompts: gives inputs of the prompts from the first number to before the second, padded on the left.
        count: of the prompts.
        places: texts that are written at a time.
        room: tokens that the longest prompt takes.
        longest: tokens that a text may have.
        ends: tokens that end one.
        autocast: the context to compute in; there must be none around.

    Yields:
        The prompt's number, the tokens of the text with the one that ended it, and the seconds that it took, a pass
        being shared by the texts that took part.
    """
    table, begun = _Table(core, places, room, longest, autocast), 0
    at: dict[int, int] = {}  # place -> number of the text there
    texts: dict[int, list[int]] = {}
    seconds: dict[int, float] = {}
    clock = time.perf_counter()
    while begun < count or at:
        free = [place for place in range(places) if place not in at]
        # A pass over prompts takes a card as long as some steps, whether there is one of them or eight.
        if begun < count and len(free) >= max(1, places // 4):
            taken = free[: count - begun]
            at |= zip(taken, range(begun, begun + len(taken)), strict=True)
            tokens = dict(zip(taken, table.fill(taken, prompts(begun, begun + len(taken))), strict=True))
            begun += len(taken)
        else:
            tokens = dict(enumerate(table.step()))
        share, clock = (time.perf_counter() - clock) / len(at), time.perf_counter()
        for place, number in list(at.items()):
            seconds[number] = seconds.get(number, 0.0) + share
            text = texts.setdefault(number, [])
            text += [tokens[place]] if place in tokens else []
            if place in tokens and (text[-1] in ends or len(text) == longest):
                del at[place]
                yield number, texts.pop(number), seconds.pop(number)


class _Table:
    """What the model has read and written in each place.

    It is the model's cache, of keys and values: a place has `room` columns for its prompt, filled from the right, and a
    ring of columns in which every step takes the next one, for all places alike. A text is over before the ring comes
    round to its beginning, so a place may be filled anew at any step.
    """

    graphs = True  # until CUDA takes none: it is not asked again

    def __init__(self, core: Any, places: int, room: int, longest: int, autocast: Callable[[], Any]) -> None:
        self.core, self.room, self.ring, self.autocast = core, room, max(longest - 1, 1), autocast
        self.device = device = compute_device(core)
        self.kept: list[tuple[torch.Tensor, torch.Tensor]] = []  # of each layer, (places, heads, columns, width)
        self.tokens = torch.zeros(places, 1, dtype=torch.int64, device=device)  # that a step reads
        self.positions = torch.zeros(3, places, 1, dtype=torch.int64, device=device)
        self.seen = torch.zeros(places, 1, 1, room + self.ring, dtype=torch.bool, device=device)
        self.column = torch.tensor([room], device=device)
        self.filled: torch.Tensor | None = None  # the places whose prompts are being read
        self.graph: Any = None
        self.steps = 0

    def fill(self, places: Sequence[int], inputs: Mapping[str, torch.Tensor]) -> list[int]:
        """Read prompts into places, whatever was there; the first token of each text."""
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        grid = inputs["image_grid_thw"]
        positions, _ = self.core.model.get_rope_index(
            ids, inputs["mm_token_type_ids"], image_grid_thw=grid, attention_mask=mask
        )
        counts, length = mask[:, None, None, :].bool(), ids.shape[1]
        # Padding sees itself: where a row sees nothing, the attention may be no number.
        sees = torch.ones(length, length, dtype=torch.bool).tril() & counts | torch.eye(length, dtype=torch.bool)
        self.filled = torch.tensor(places, device=self.device)
        image = {"pixel_values": inputs["pixel_values"].to(self.device), "image_grid_thw": grid.to(self.device)}
        first = self._next(*(given.to(self.device) for given in (ids, sees, positions)), **image)
        self.seen[self.filled] = False
        self.seen[self.filled, ..., self.room - length : self.room] = counts.to(self.device)
        self.tokens[self.filled] = first
        self.positions[:, self.filled] = positions[..., -1:].to(self.device) + 1
        self.filled = None
        return first.flatten().tolist()

    def step(self) -> list[int]:
        """The next token in every place, also where the text has ended."""
        # What is done once only was done by the first step.
        if self.steps == 1 and self.device.type == "cuda" and _Table.graphs:
            self.graph = _captured(self._step)
            _Table.graphs = self.graph is not None
        if self.graph is None:
            self._step()
        else:
            self.graph.replay()
        self.steps += 1
        return self.tokens.flatten().tolist()

    def _step(self) -> None:
        self.seen.index_fill_(-1, self.column, True)
        self.tokens.copy_(self._next(self.tokens, self.seen, self.positions))
        self.positions += 1
        self.column.sub_(self.room - 1).remainder_(self.ring).add_(self.room)

    def _next(self, ids: torch.Tensor, sees: torch.Tensor, positions: torch.Tensor, **image: Any) -> torch.Tensor:
        masks = {"full_attention": sees, "sliding_attention": sees}
        with self.autocast():
            # By its place: the cache has another name from transformers 5.24 on.
            hidden = self.core.model(ids, masks, positions, self, use_cache=True, **image)[0]
            return self.core.lm_head(hidden[:, -1:]).float().argmax(-1)

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, layer: int, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What a layer asks its cache: keep these, and give all to attend to."""
        if layer == len(self.kept):
            size = (len(self.tokens), keys.shape[1], self.seen.shape[-1], keys.shape[3])
            self.kept.append((keys.new_zeros(size), values.new_zeros(size)))
        for kept, new in zip(self.kept[layer], (keys, values), strict=True):
            if self.filled is None:
                kept.index_copy_(2, self.column, new)
            else:
                kept[self.filled, :, self.room - new.shape[2] : self.room] = new
        return self.kept[layer] if self.filled is None else (keys, values)

    def get_seq_length(self, *_: Any) -> int:
        """What older transformers ask, for positions that are given here."""
        return 0


def _captured(step: Callable[[], None]) -> Any:
    """The step as one launch, without taking it; None where that fails."""
    graph, pool, stream = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle(), torch.cuda.current_stream()
    try:
        with torch.cuda.graph(graph, pool, capture_error_mode="thread_local"):
            step()
    except RuntimeError as error:
        torch.cuda.set_stream(stream)  # torch stays in the stream of a capture that failed
        if is_out_of_memory(error):
            raise
        # Before 2.12 torch also goes on as if it captured, and neither empties its cache nor draws numbers for dropout.
        with suppress(RuntimeError, AttributeError):
            torch._C._cuda_endAllocateToPool(stream.device_index, pool)
        with suppress(RuntimeError), torch.cuda.graph(torch.cuda.CUDAGraph()):
            pass
        logger.warning("writing goes on kernel by kernel, since CUDA took no graph of a step: %s", first_line(error))
        return None
    return graph
