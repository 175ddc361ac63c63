"""What one sees of a stage while it trains and afterwards: a bar or throttled lines, `log.jsonl`, the loss curve, and
where the time went."""

from __future__ import annotations

import json
import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from radvision_utils.environment import in_live_notebook
from radvision_utils.figures import BLUE, VERMILION, new_figure, tidy
from radvision_utils.runs import read_json_lines, write_text

logger = logging.getLogger(__name__)

_SECONDS_BETWEEN_LINES = 10.0


class Stopwatch:
    """Seconds by part of a piece of work. A part within a part counts for itself alone; what is in none is "other".

    Args:
        started: when the work began, as `time.perf_counter` gives it.
    """

    def __init__(self, started: float) -> None:
        self.started = self._clock = started
        self._part, self._seconds = "other", defaultdict[str, float](float)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Within, the time belongs to the part; it may be entered again and again."""
        outer = self._part
        self._turn_to(name)
        try:
            yield
        finally:
            self._turn_to(outer)

    def record(self) -> dict[str, float]:
        """Seconds of each part so far, in the order in which the parts began."""
        self._turn_to(self._part)
        return {part: round(seconds, 1) for part, seconds in self._seconds.items()}

    def __str__(self) -> str:
        return ", ".join(f"{part} {seconds:.1f}" for part, seconds in self.record().items())

    def _turn_to(self, part: str) -> None:
        now = time.perf_counter()
        self._seconds[self._part] += now - self._clock
        self._part, self._clock = part, now


class StageLog(TrainerCallback):
    """Writes a line of `log.jsonl` at every optimizer step and validation, and tells the user how far it is.

    Of several processes only the first does.

    Args:
        path: the log file; a resumed stage goes on in the same file.
        title: "stage 1".
        batch: studies an optimizer step.
        validate: gives the validation loss in nats per report token.
    """

    def __init__(self, path: Path, title: str, batch: int, validate: Callable[[], float]) -> None:
        self.path, self.title, self.batch, self.validate = path, title, batch, validate
        self.validation_losses: list[float] = []
        self.samples_per_second = 0.0
        self._training_seconds, self._steps, self._validated = 0.0, 0, -1
        self._clock = self._last_line = 0.0
        self._bar: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.begin(state)
        if in_live_notebook():
            from tqdm.auto import tqdm

            self._bar = tqdm(total=state.max_steps, initial=state.global_step, desc=self.title, unit="step")
        self._clock = time.perf_counter()

    def begin(self, state: Any) -> None:
        """Start the log, or take up that of an interrupted stage at the checkpoint's step."""
        if not state.is_world_process_zero:
            return
        if state.global_step == 0:
            write_text(self.path, "")
        else:
            self._forget_steps_after(state.global_step)
        self._validate_if_due(state)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **kwargs: Any) -> None:
        if "loss" not in logs or not state.is_world_process_zero:
            return
        seconds, self._clock = time.perf_counter() - self._clock, time.perf_counter()
        self._training_seconds, self._steps = self._training_seconds + seconds, self._steps + 1
        self.samples_per_second = self.batch * self._steps / self._training_seconds
        self._write(
            step=state.global_step,
            epoch=round(state.epoch, 4),
            loss=logs["loss"],
            learning_rate=logs["learning_rate"],
            grad_norm=logs.get("grad_norm"),
            seconds=round(seconds, 4),
        )
        self._tell(state, logs["loss"])

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            self._validate_if_due(state)
        self._clock = time.perf_counter()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._bar is not None:
            self._bar.close()

    def train_loss(self) -> float:
        """Mean loss of all steps, those before an interruption included."""
        losses = [line["loss"] for line in read_json_lines(self.path, torn=True) if "loss" in line]
        return round(sum(losses) / len(losses), 4)

    def _validate_if_due(self, state: Any) -> None:
        """Before the first step, after each epoch and after the last step; a stage may also pause in between.

        The checkpoint of such a step is older than its validation: killed between the two, a stage resumes here.
        """
        epoch = state.epoch or 0.0
        if (epoch == int(epoch) or state.global_step >= state.max_steps) and state.global_step != self._validated:
            self._validate(state)

    def _validate(self, state: Any) -> None:
        self._validated = state.global_step
        loss = round(self.validate(), 4)
        self.validation_losses.append(loss)
        self._write(step=state.global_step, epoch=round(state.epoch or 0.0, 4), validation_loss=loss)
        logger.info("%s: step %d, validation loss %.3f nats per report token", self.title, state.global_step, loss)

    def _write(self, **line: Any) -> None:
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")

    def _forget_steps_after(self, step: int) -> None:
        """A stage killed between checkpoints repeats some steps: its log must not hold them twice."""
        lines = [line for line in read_json_lines(self.path, torn=True) if line["step"] <= step]
        write_text(self.path, "".join(json.dumps(line) + "\n" for line in lines))
        validated = [line for line in lines if "validation_loss" in line]
        self.validation_losses = [line["validation_loss"] for line in validated]
        self._validated = max((line["step"] for line in validated), default=-1)

    def _tell(self, state: Any, loss: float) -> None:
        if self._bar is not None:
            self._bar.update(state.global_step - self._bar.n)
            self._bar.set_postfix(loss=f"{loss:.3f}", samples_per_s=f"{self.samples_per_second:.1f}")
        elif time.perf_counter() - self._last_line > _SECONDS_BETWEEN_LINES or state.global_step == state.max_steps:
            self._last_line = time.perf_counter()
            left = (state.max_steps - state.global_step) * self.batch / self.samples_per_second
            logger.info(
                "%s: step %d of %d, loss %.3f, %.1f studies/s, %s left",
                self.title,
                state.global_step,
                state.max_steps,
                loss,
                self.samples_per_second,
                f"{left / 60:.0f} min" if left >= 90 else f"{left:.0f} s",
            )


def draw_losses(log: Path, picture: Path, title: str) -> None:
    """Save the training and validation loss of a `log.jsonl` as a figure."""
    lines = read_json_lines(log)
    train = [(line["step"], line["loss"]) for line in lines if "loss" in line]
    held_out = [(line["step"], line["validation_loss"]) for line in lines if "validation_loss" in line]
    figure = new_figure(7, 3.6)
    axes = figure.subplots()
    axes.plot(*zip(*train, strict=True), color=BLUE, alpha=0.35, linewidth=1, label="training, each step")
    axes.plot(*zip(*_smooth(train), strict=True), color=BLUE, linewidth=2, label="training, running mean")
    axes.plot(*zip(*held_out, strict=True), "o-", color=VERMILION, label="validation")
    axes.set(xlabel="optimizer step", ylabel="loss (nats per report token)", title=f"Training the {title}")
    # Single batches with an unknown finding shoot up; the curve is what one wants to read.
    losses = sorted(loss for _, loss in train)
    tallest = max(losses[int(0.98 * (len(losses) - 1))], *(loss for _, loss in held_out))
    axes.set_ylim(0, 1.1 * tallest)
    tidy(axes)
    axes.legend(frameon=False)
    figure.savefig(picture, dpi=120)


def _smooth(points: list[tuple[int, float]]) -> list[tuple[int, float]]:
    width = max(1, len(points) // 20)
    return [
        (points[i][0], sum(loss for _, loss in points[max(0, i - width + 1) : i + 1]) / min(width, i + 1))
        for i in range(len(points))
    ]
