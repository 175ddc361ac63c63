"""Is reading texts linear in their length? The worst of many repeated patterns, by length, for each function.

python tests/fuzz/time_texts.py
"""

from __future__ import annotations

import time
from collections.abc import Callable

from radvision_utils.collections.mimic import sections_of
from radvision_utils.data.cleaning import DEIDENTIFIED, PRIORS, clean_section, drop_sentences, is_english, oddities
from radvision_utils.data.labels import find_mentions, label
from radvision_utils.data.parsing import parse_report
from radvision_utils.data.reports import split_sentences

LENGTHS = (12_500, 25_000, 50_000, 100_000)  # characters
PATTERNS = [
    *(
        "a",
        " ",
        ".",
        ". ",
        "1",
        "1.",
        "1. a ",
        "1) ",
        "a 5. ",
        "a b c d 1. ",
        "ABC. ",
        "Dr. ",
        "X",
        "_",
        "*",
        "#",
        "\n",
    ),
    *(
        "\t ",
        "[]",
        "<",
        "<p ",
        "<a href=",
        "&",
        "&lt;",
        ",",
        ": ",
        "- ",
        "? ",
        ";",
        "Findings: ",
        "findings ",
        "has ",
        "{",
        "<think>",
        "**Findings**\n",
        "- A\n",
    ),
    *(
        "prior ",
        "no significant ",
        "old and ",
        "The lungs are clear. ",
        "no effusion and mild edema, ",
        "no or ",
        "left ",
    ),
    *(
        "heart ",
        "may represent ",
        "no change in effusion or ",
        "effusion on the left and right ",
        "\n A:",
        "\n \n",
        "el la ",
    ),
]
FUNCTIONS: dict[str, Callable[[str], object]] = {
    "label": label,
    "find_mentions": find_mentions,
    "clean_section": clean_section,
    "drop_sentences": lambda text: drop_sentences(text, {DEIDENTIFIED, PRIORS}),
    "split_sentences": split_sentences,
    "parse_report": parse_report,
    "oddities": oddities,
    "is_english": is_english,
    "sections_of": sections_of,
}


def seconds(function: Callable[[str], object], pattern: str, length: int) -> float:
    """The best of two, since the first may find a cold cache."""
    text = (pattern * length)[:length]
    times = []
    for _ in range(2):
        started = time.perf_counter()
        function(text)
        times.append(time.perf_counter() - started)
    return min(times)


def main() -> None:
    """Print a line a function: seconds by length for the pattern that takes longest, and the growth per doubling."""
    print(f"{'function':18}" + "".join(f"{length:>10,}" for length in LENGTHS) + "  growth  slowest pattern")
    for name, function in FUNCTIONS.items():
        worst = max(PATTERNS, key=lambda pattern: seconds(function, pattern, LENGTHS[1]))
        found = [seconds(function, worst, length) for length in LENGTHS]
        growth = (found[-1] / found[0]) ** (1 / (len(LENGTHS) - 1))
        print(f"{name:18}" + "".join(f"{value:10.3f}" for value in found) + f"{growth:8.2f}  {worst!r}", flush=True)


if __name__ == "__main__":
    main()
