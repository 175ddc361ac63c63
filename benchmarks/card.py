"""What one card makes of it: this project and its peers on the 7B's shape, random weights, in twenty minutes.

`python -m benchmarks` on a card. Each contender has a process of its own for each number format, loads the model anew
for every micro-batch and goes on to the next larger one until that fails or is slower. A figure is written down as soon
as it is there: whoever is ended by the clock keeps what it has shown.
"""

from __future__ import annotations

import contextlib
import gc
import importlib.util
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from transformers import TrainerCallback, trainer

from benchmarks.contenders import (
    OURS,
    PLAIN,
    TRAINER,
    TRL,
    ProcessorCollator,
    load_peer,
    ours,
    plain_loop,
    trainer_as_it_comes,
    trl_sft,
)
from benchmarks.mini import ENDING_AT_THE_REPORT, HELD_OUT, make_profile
from benchmarks.race import Account
from benchmarks.results import machine
from radvision_utils.bases.random import random_model_folder
from radvision_utils.config import AUTO, DISCLAIMER, Profile, profile_from_dict, project_root
from radvision_utils.data.prepare import prepare_dataset
from radvision_utils.data.studies import open_prepared
from radvision_utils.environment import (
    DTYPE_VARIABLE,
    MEMORY_VARIABLE,
    choose_device,
    forget_peak_memory,
    peak_memory_gib,
    quiet_libraries,
)
from radvision_utils.figures import markdown_table
from radvision_utils.files import append_json_lines, first_line, read_json, read_json_lines, write_json, write_text
from radvision_utils.model.base import load_processor
from radvision_utils.planning.cost import Lengths, find_card, read_shape
from radvision_utils.planning.step import Step
from radvision_utils.report import Reporter, reporter_of
from radvision_utils.runs import RunFolder
from radvision_utils.training import train
from radvision_utils.training.collator import Collator

COMPILED, LIGER, UNSLOTH, WRITING = "RadVision, compiled", "TRL + Liger", "Unsloth", "writing"
STEPS, STEP = 2, 16  # optimizer steps, the first to warm up, and their studies, unless a micro-batch has more
STUDIES = 2 * STEP  # of an epoch: features of the frozen encoder are computed once and read, as in a run
SIZES = (4, 8, 16, 32)
FORMATS = (("float16", "14.56"), ("bfloat16", ""))  # as a T4, and with all of the card
_TRAINING = {"lora_rank": 16, "lora_alpha": 32, "learning_rate": 1e-4, "warmup_ratio": 0.0}
_TRAINING |= {"epochs": float(STEPS), "max_steps": STEPS, "batch": STEP}
_TRAINING |= dict.fromkeys(("micro_batch", "accumulation", "checkpointed_layers"), AUTO)  # peers checkpoint every layer
_TRAINED = (
    "format",
    "stage",
    "contender",
    "micro-batch",
    "studies/s",
    "GiB",
    "share of peak",
    "idle",
    "held-out",
    "note",
)
_WRITTEN = "format", "who writes", "at a time", "tokens/s", "ms a word", "GiB", "start, s", "as ours", "note"

Row = dict[str, Any]
Train = Callable[[Profile, int, Any], float]


def _ours_compiled(profile: Profile, stage: int, turns: Any) -> float:
    settings: Any = {f"stage{stage}": replace(profile.stage(stage), compile="always")}
    return ours(replace(profile, **settings), stage, turns)


def _trl_with_liger(profile: Profile, stage: int, turns: Any) -> float:
    return trl_sft(profile, stage, turns, use_liger_kernel=True)


@dataclass(frozen=True)
class Contender:
    """Who trains, what it takes, and its own micro-batches beside `SIZES` (None: the planner's), or alone."""

    train: Train
    needs: tuple[str, ...] = ()
    own: tuple[int | None, ...] = ()
    alone: bool = False


CONTENDERS = {
    OURS: Contender(ours),
    COMPILED: Contender(_ours_compiled, own=(None,), alone=True),  # it takes a minute or two to compile
    PLAIN: Contender(plain_loop, own=(1,)),
    TRAINER: Contender(trainer_as_it_comes),
    TRL: Contender(trl_sft, ("trl",)),
    LIGER: Contender(_trl_with_liger, ("trl", "liger_kernel")),
}
LEFT_OUT = {UNSLOTH: "left out: wants transformers <= 5.17, datasets < 5 and trl <= 1.15, an environment of its own"}


def measure_card(
    folder: Path,
    minutes: float = 20.0,
    formats: Sequence[tuple[str, str]] = FORMATS,
    sizes: Sequence[int] = SIZES,
    **changes: Any,
) -> Row:
    """Run everything, one process after the other.

    Args:
        folder: everything is written below it; a base that lies in `card/` of it is used, else one of the 7B's shape
            with random weights is made there.
        minutes: what would begin later is left out, what is at work then is ended.
        formats: number formats, each with the GiB that torch may have; "": all.
        sizes: micro-batches.
        changes: settings by their dotted names.

    Returns:
        What `CARD.json` holds.
    """
    ends = time.monotonic() + 60 * minutes
    base = folder / "card" if (folder / "card").is_dir() else random_model_folder(folder / "card")
    (base / "chat_template.jinja").write_text(ENDING_AT_THE_REPORT, encoding="utf-8")
    stages = {f"stage{n}.{name}": value for n in (1, 2, 3) for name, value in _TRAINING.items()}
    whole = make_profile(folder, STUDIES, "card", **{"generation.max_new_tokens": 64, **stages, **changes})
    prepare_dataset(whole, progress=lambda *_: None)
    peers = [name for name in CONTENDERS if name != OURS]
    jobs = [(form, name, 3) for name in (OURS, WRITING, *peers) for form in formats]
    first = len(jobs)
    jobs += [(form, name, 1) for name in peers if name != COMPILED for form in formats]  # if there is time
    rows: list[Row] = []
    for number, ((dtype, gib), name, stage) in enumerate(jobs):
        mine = replace(whole, run=dtype)
        if not RunFolder.of(mine).path.is_dir():
            shutil.copytree(RunFolder.of(whole).path, RunFolder.of(mine).path)
        about = {"format": f"{dtype}, {gib} GiB" if gib else dtype, "contender": name, "stage": stage}
        job = folder / f"{dtype}-{name}-{stage}.json"
        write_json(job, {**about, "profile": mine.to_dict(), "sizes": list(sizes)})
        # At most twice a fair share, or the first format would leave no time for the second.
        seconds = (ends - time.monotonic()) * min(1.0, 2 / max(1, first - number))
        note = _in_a_process(job, name, {DTYPE_VARIABLE: dtype, MEMORY_VARIABLE: gib}, seconds)
        found = job.with_suffix(".jsonl")
        rows += read_json_lines(found, torn=True) if found.is_file() else []
        rows += [{**about, "note": note}] if note else []
    return {"device": choose_device().title, "machine": machine("python -m benchmarks"), "rows": rows}


def _in_a_process(job: Path, name: str, variables: Mapping[str, str], seconds: float) -> str:
    """Let a job be done; what there is to say where it was not, or not to its end."""
    needs = CONTENDERS[name].needs if name in CONTENDERS else ()
    lacking = next((need for need in needs if not importlib.util.find_spec(need)), None)
    if lacking or seconds <= 0:
        return f"left out: {lacking} is not installed" if lacking else "left out: the time was over"
    command, environment = [sys.executable, "-m", "benchmarks.card", str(job)], {**os.environ, **variables}
    try:
        done = subprocess.run(
            command, env=environment, cwd=project_root(), capture_output=True, text=True, timeout=seconds, check=False
        )
    except subprocess.TimeoutExpired:
        return "ended by the clock"
    return (done.stderr.strip().splitlines() or ["it died without a word"])[-1][:200] if done.returncode else ""


def run_job(job: Path) -> None:
    """In a process of its own: what one contender does in one format, a line in `<job>.jsonl` for each measurement."""
    asked = read_json(job, {"contender": str, "stage": int, "profile": dict, "sizes": list})
    quiet_libraries()
    whole, name = profile_from_dict(asked["profile"]), asked["contender"]
    about = {key: asked[key] for key in ("format", "contender")}
    # What the model writes at each validation of ours is for who watches, and no peer does it.
    train.begin_report = lambda *_, **__: ""
    if name == WRITING:
        for row in writing(RunFolder.of(whole).profile(), asked["sizes"]):  # with what stage 3 was last trained with
            append_json_lines(job.with_suffix(".jsonl"), {**about, **row})
        return
    contender, stage = CONTENDERS[name], asked["stage"]
    runs = [(stage, size) for size in (*contender.own, *(() if contender.alone else asked["sizes"]))]
    if name == OURS:  # its stages 1 and 2 make what all others begin stage 3 with
        runs = [(1, None), (2, None), (3, None), *runs]
    best = 0.0
    for number, size in runs:
        row = training(contender.train, whole, number, size)
        append_json_lines(job.with_suffix(".jsonl"), {**about, "stage": number, **row})
        speed = row.get("studies/s", 0.0)
        if size and (row["note"] or speed < best):
            break
        best = speed if size else 0.0


def training(contender: Train, whole: Profile, stage: int, size: int | None) -> Row:
    """Two optimizer steps of a stage at a micro-batch; None: what the planner chooses."""
    batch = max(STEP, size or 0)
    split: Any = {"batch": batch, "micro_batch": size, "accumulation": batch // size} if size else {}
    settings: Any = {f"stage{stage}": replace(whole.stage(stage), **split)}
    mine = replace(whole, **settings)
    if contender is plain_loop:
        contender = partial(plain_loop, at_once=size or 1)
    turns, note, held_out = CardTurns(), "", None
    with _callback_of_trainers(turns):
        try:
            held_out = round(contender(mine, stage, turns), 4)
        except Exception as error:  # most of all want of memory; what was measured before counts
            note = f"{type(error).__name__}: {first_line(error)}"
        finally:
            turns.stop_watching()
    gc.collect()
    torch.cuda.empty_cache()
    row = {"micro-batch": size or AUTO, "GiB": turns.gib or None, "held-out": held_out, "note": note}
    if len(turns.seconds) < STEPS:
        return row
    speed, card = batch / turns.seconds[-1], find_card(choose_device().title)
    share = speed * _useful_tflop(mine, stage) / card.peak_tflops if card and card.peak_tflops else None
    idle = None if turns.busy is None else max(0.0, 1 - turns.busy / turns.seconds[-1])
    return {**row, "studies/s": speed, "share of peak": share, "idle": idle}


def _useful_tflop(whole: Profile, stage: int) -> float:
    """10^12 operations of a study that an exact method cannot do without: nothing twice, no frozen vision encoder."""
    collator = Collator(load_processor(whole.model, whole.data.image_size), whole.model)
    reports = [len(collator.report_ids(collator.target(study))) for study in open_prepared(whole).split("train")]
    image, settings = whole.model.visual_tokens, replace(whole.stage(stage), checkpointed_layers=0)
    changed: Any = {f"stage{stage}": settings}
    lengths = Lengths(image, len(collator.prompt()) - image, round(statistics.mean(reports)))
    return Step(read_shape(whole.model), replace(whole, **changed), stage, lengths, cached=stage > 1).tflop()


@contextlib.contextmanager
def _callback_of_trainers(turns: CardTurns) -> Iterator[None]:
    """Within, every `transformers.Trainer` that is made obeys it: contenders run as their users write them."""
    trainer.DEFAULT_CALLBACKS.append(turns)
    try:
        yield
    finally:
        trainer.DEFAULT_CALLBACKS.remove(turns)


class CardTurns(TrainerCallback):
    """Seconds of each optimizer step, the peak of memory, and how long the card was at work in the first step.

    Of as many studies the second step's work takes as long; to watch it would slow it down.
    """

    def __init__(self) -> None:
        self.account, self.seconds, self.gib = Account(), list[float](), 0.0
        self.busy: float | None = None
        self._watch: Any = None
        self._began = 0.0

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._begin()  # what ours does between two epochs, or before the first, is no part of a step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.step_done()

    def count(self, labels: torch.Tensor) -> None:
        """What a loop that is no Trainer calls with each batch's labels: the first begins the first step."""
        if not self._began:
            self._begin()

    def _begin(self) -> None:
        if not self._began:
            forget_peak_memory(choose_device())
            if torch.cuda.is_available():
                self._watch = profile(activities=[ProfilerActivity.CUDA])
                self._watch.__enter__()
        self._began = _clock()

    def step_done(self) -> None:
        """At the end of each optimizer step."""
        self.seconds.append(_clock() - self._began)
        if self._watch is not None:
            watch = self._watch
            self.stop_watching()
            self.busy = sum(event.self_device_time_total for event in watch.key_averages()) / 1e6
        self.gib = peak_memory_gib(choose_device())
        self._began = _clock()

    def stop_watching(self) -> None:
        """Also after a step that failed: no second profiler could begin."""
        if self._watch is not None:
            self._watch.__exit__(None, None, None)
            self._watch = None


def _clock() -> float:
    """Seconds, once the card has done what it was asked."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def writing(whole: Profile, sizes: Sequence[int]) -> Iterator[Row]:
    """Reports by `Reporter` and by `model.generate` as it comes, one at a time and the most of `sizes`."""
    images = [study.image for study in open_prepared(whole).split("train")]
    reporter = reporter_of(whole, 3)
    texts: dict[int, list[str]] = {}
    for size in (1, max(sizes)):
        one = replace(whole, generation=replace(whole.generation, batch_size=size))
        writer = Reporter(reporter.model, reporter.collator, one, 3, reporter.device)

        def write(writer: Reporter = writer, size: int = size) -> list[tuple[str, int]]:
            return [(report.text, report.tokens) for report in writer.write(images[:size], lambda *_: None)]

        row, texts[size] = _timed(write, size)
        yield {"who writes": OURS, **row}
    del reporter, writer, write
    gc.collect()
    model, collate = load_peer(whole, 4), ProcessorCollator(whole)
    model.eval()
    for size in (1, max(sizes)):
        row, theirs = _timed(partial(_generate, model, collate, images[:size], whole), size)
        same = sum(map(str.__eq__, theirs, texts[size])) / size
        yield {"who writes": "model.generate", **row, "as ours": same}


def _generate(model: Any, collate: ProcessorCollator, images: Sequence[Path], whole: Profile) -> list[tuple[str, int]]:
    inputs, most = collate.prompts(images).to(model.device), whole.generation.max_new_tokens
    with torch.inference_mode(), choose_device().autocast():
        output = model.generate(**inputs, max_new_tokens=most, do_sample=False, repetition_penalty=1.0)
    rows = output[:, inputs.input_ids.shape[1] :]
    pad = collate.processor.tokenizer.pad_token_id
    texts = collate.processor.batch_decode(rows, skip_special_tokens=True)
    return [(text.strip(), int((row != pad).sum())) for text, row in zip(texts, rows, strict=True)]


def _timed(write: Callable[[], list[tuple[str, int]]], size: int) -> tuple[Row, list[str]]:
    """The second of two calls; what the first takes longer is the start."""
    forget_peak_memory(choose_device())
    began = _clock()
    write()
    first, again = _clock() - began, _clock()
    reports = write()
    seconds, tokens = _clock() - again, sum(tokens for _, tokens in reports)
    row = {"at a time": size, "tokens/s": tokens / seconds, "ms a word": 1000 * seconds / max(t for _, t in reports)}
    return row | {"GiB": peak_memory_gib(choose_device()), "start, s": first - seconds}, [text for text, _ in reports]


def card_page(record: Row) -> str:
    """The figures as Markdown, with how many times as fast ours at its best is."""
    rows = [row for row in record["rows"] if "who writes" not in row]
    written = [row for row in record["rows"] if "who writes" in row]
    return "\n".join(
        [
            f"# On a card: {record['device']}\n",
            f"Weights of the 7B's shape, random. {record['machine']}",
            _EXPLAINED,
            markdown_table(_TRAINED, [[_cell(row, name) for name in _TRAINED] for row in rows]),
            *(f"- {name}: {why}" for name, why in LEFT_OUT.items()),
            "\nAt its best micro-batch ours is so many times as fast as the others at theirs:\n",
            markdown_table(["format", "stage", "contender", "times"], _times(rows)),
            "Reports of as many words, greedily; the first call is not counted:\n",
            markdown_table(_WRITTEN, [[_cell(row, name) for name in _WRITTEN] for row in written]),
            DISCLAIMER,
        ]
    )


_EXPLAINED = f"""Everyone trains the same component from the same weights on the same studies, {STEP} of them an
optimizer step (32 where the micro-batch has 32), without dropout; the second of two steps is measured. Peers checkpoint
every layer, as their guides do; ours checkpoints what the planner finds, and `auto` is its micro-batch. Share of peak:
of operations that an exact method cannot do without. Idle: share of the time with no kernel at work. Held-out: nats a
report token of {HELD_OUT} studies, equal where everyone did the same.
"""


def _times(rows: Sequence[Row]) -> list[list[str]]:
    best: dict[tuple[str, int, str], float] = {}
    for row in rows:
        key = row["format"], row["stage"], row["contender"]
        best[key] = max(best.get(key, 0.0), row.get("studies/s") or 0.0)
    told = []
    for (form, stage, name), speed in best.items():
        mine = best.get((form, stage, OURS))
        if mine and speed and name != OURS:
            told.append([form, str(stage), name, f"{mine / speed:.2f}"])
    return told


def _cell(row: Mapping[str, Any], name: str) -> str:
    value = row.get(name)
    if value is None or isinstance(value, str | int):
        return "" if value is None else str(value).replace("|", "/")
    return f"{value:.0%}" if name in ("share of peak", "idle", "as ours") else f"{value:.4g}"


def write_card(record: Row, to: Path) -> str:
    """Write `CARD.json` and `CARD.md` there; gives the page."""
    write_json(to / "CARD.json", record)
    write_text(to / "CARD.md", page := card_page(record))
    return page


if __name__ == "__main__":
    run_job(Path(sys.argv[1]))
