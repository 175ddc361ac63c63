"""`python -m benchmarks`: every table, an hour and a half on two cores and 24 GB; `--quick`: minutes, nothing written.

On a machine with a card it measures the card and nothing else, in 20 minutes (`card.py`).
"""

from __future__ import annotations

import argparse
import importlib.util
import logging
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from radvision_utils.config import DISCLAIMER, RadVisionError
from radvision_utils.environment import choose_device, quiet_libraries
from radvision_utils.files import write_text
from radvision_utils.planning.cost import TYPICAL_REPORT

RESULTS = Path(__file__).parent / "RESULTS.md"


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    turns: int  # of each contender in each stage; the first and the last are not counted
    rounds: int  # of generation and preparation
    tokens: int  # a report, in generation
    pictures: int  # a round of preparation
    stages: tuple[int, ...]  # whose memory is measured
    sides: tuple[int, ...]
    batches: tuple[int, ...]
    studies: tuple[int, ...]


FULL = Size(
    turns=6,
    rounds=4,
    tokens=TYPICAL_REPORT,
    pictures=256,
    stages=(1, 2, 3),
    sides=(224, 336, 448, 512, 672, 896),
    batches=(1, 2, 4, 8, 16, 32),
    studies=(250, 1000, 4000, 16000),
)
QUICK = Size(turns=3, rounds=1, tokens=8, pictures=32, stages=(1,), sides=(224,), batches=(1,), studies=(250,))


def main(arguments: list[str] | None = None) -> int:
    """Measure and print; 1 with one sentence if a contender failed or did not do the same work."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Speed and memory against others.")
    parser.add_argument("--quick", action="store_true", help="a minute or two, to see that it runs; writes nothing")
    parser.add_argument("--only", choices=sorted(PARTS), help="one part")
    parser.add_argument("--minutes", type=float, default=20.0, help="that a card is measured (default: 20)")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    quiet_libraries()
    size = QUICK if options.quick else FULL
    whole = not options.quick and not options.only
    command = "python -m benchmarks" + " --quick" * options.quick + (f" --only {options.only}" if options.only else "")
    try:
        with tempfile.TemporaryDirectory(prefix="radvision-bench-") as scratch:
            if choose_device().kind == "cuda":
                from benchmarks.card import measure_card, write_card

                print(write_card(measure_card(Path(scratch), options.minutes), RESULTS.parent))
                return 0
            parts = [PARTS[options.only]] if options.only else list(PARTS.values())
            text = _page(command, size, Path(scratch), parts)
    except RadVisionError as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 1
    if whole:
        write_text(RESULTS, text)
    return 0


_EXPLAINED = """Every contender trains the same component of `mini` from the same weights: NF4, `PagedAdamW8bit`,
float32, four studies an optimizer step, the same studies in every step; each in a process of its own, two steps at a
time in turn, the second measured, the first turn not counted. The plain loop takes one study at a time; it and
transformers.Trainer make the logits of every token. TRL scores in tiles: on a CPU every token, on a card with Triton
those of the report. All peers checkpoint every layer. "RadVision" is `train_stage` with that and their micro-batch;
"one study at a time" has a micro-batch of one; "as planned for a T4" takes the micro-batch and the checkpointed layers
that `radvision_utils plan` finds fastest for the 7B on that card.

With the 7B's vocabulary at a 56th of its width, logits weigh more in `mini` than in the 7B, in memory above all: peers
that keep those of every token look worse here than there. For memory see `mini deep`, below.

In stages 1 and 2 the peers carry no LoRA in the language model, where it is still zero; ours carries it and does not
compute it.

Peak: tensors of a step, beside the model. With features: what they cost once is spread over the three epochs of
lingshu-7b that read them. Freed memory is kept for the next tensor, for everyone, as a card's allocator does; who waits
for a turn gives it up, and has it back before the turn begins.
"""


_WHERE = """Where the seconds go, in a further step whose operations were timed one by one (the product of a 4-bit
layer's forward pass is one of them with its dequantization; ours had read its studies before). The wider a model, the
more of its time are products, and the nearer the ratio comes to that of the operations:
"""


_DEEP = """Here activations are shared out nearly as in the 7B. Speed is not measured with this model, because so many
narrow blocks spend their time otherwise than wide ones. One optimizer step of four studies, as above: the peak of its
tensors beside the model.
"""


_AT_ONCE = """With so many studies at once freed memory cannot be kept: every large tensor is fetched from the system
anew, which a card would not do. What counts here is the peak.

"""


Part = Callable[[Size, Path], Iterator[str]]


def _page(command: str, size: Size, scratch: Path, parts: list[Part]) -> str:
    from benchmarks.results import machine

    pieces = [f"# Benchmark\n\n{machine(command)}\nRatios: median of pairs (least to greatest). {DISCLAIMER}\n"]
    print(pieces[0])
    for part in parts:
        for piece in part(size, scratch):
            print(piece, flush=True)
            pieces.append(piece)
    return "\n".join(pieces)


def _preparation(size: Size, scratch: Path) -> Iterator[str]:
    from benchmarks import results
    from benchmarks.preparation import race_preparation

    outcome = [race_preparation(scratch / "preparation", kind, size.rounds, size.pictures) for kind in ("JPEG", "PNG")]
    yield f"## Preparation\n\n{results.preparation(outcome)}"


def _training(size: Size, scratch: Path) -> Iterator[str]:
    from benchmarks import results
    from benchmarks.generation import race_generation
    from benchmarks.mini import BATCH, MINI, make_profile
    from benchmarks.race import STEPS_A_TURN
    from benchmarks.training import StageRace, race_stage
    from radvision_utils.config import STAGES
    from radvision_utils.data.prepare import prepare_dataset

    _require_trl()
    profile = make_profile(scratch, size.turns * STEPS_A_TURN * BATCH, **{"generation.max_new_tokens": size.tokens})
    prepare_dataset(profile)
    yield f"## The model `mini` beside the 7B\n\n{results.proportions(MINI, profile)}\n{results.vision_share(profile)}"
    yield _EXPLAINED
    races: list[StageRace] = []
    for stage in STAGES:
        races.append(race_stage(profile, stage, size.turns, races[-1].once if races else 0.0))
        yield f"## Stage {stage}\n\n{results.training(races[-1])}"
    yield f"Same work, same loss:\n\n{results.same_work(races)}"
    yield f"{_WHERE}\n{results.breakdown(races, profile)}"
    yield f"What the 7B would gain by operations alone, by arithmetic:\n\n{results.arithmetic()}"
    yield f"## Generation\n\n{results.generation(race_generation(profile, size.rounds))}"


def _memory(size: Size, scratch: Path) -> Iterator[str]:
    from benchmarks import results
    from benchmarks.mini import BATCH, DEEP, make_profile
    from benchmarks.training import step_memory
    from radvision_utils.config import STAGES
    from radvision_utils.data.prepare import prepare_dataset

    _require_trl()
    at_once = {f"stage{stage}.warmup_ratio": 0.0 for stage in STAGES}  # the first step of a warm-up changes nothing
    profile = make_profile(scratch / "memory", BATCH, DEEP, **at_once)
    prepare_dataset(profile)
    yield f"## Memory, with the model `{DEEP}`\n\n{results.proportions(DEEP, profile)}\n{_DEEP}"
    yield results.memory({stage: step_memory(profile, stage) for stage in size.stages})


def _require_trl() -> None:
    if importlib.util.find_spec("trl") is None:
        raise RadVisionError("TRL, one of the peers, is not installed: `pip install -e .[bench]`, or `make bench`.")


def _growth(size: Size, scratch: Path) -> Iterator[str]:
    from benchmarks import growth, results

    yield f"## How cost grows\n\n{results.table(growth.by_resolution(scratch, size.sides))}"
    yield _AT_ONCE + results.table(growth.by_batch(scratch, size.batches))
    yield results.table(growth.by_studies(scratch / "many", size.studies))


PARTS: dict[str, Part] = {
    "preparation": _preparation,
    "training": _training,
    "memory": _memory,
    "growth": _growth,
}


if __name__ == "__main__":
    sys.exit(main())
