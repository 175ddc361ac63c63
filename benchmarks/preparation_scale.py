"""Does preparation stream? Time and peak memory for 1,000, 10,000 and 50,000 studies, and what MIMIC-CXR would take.

    python -m benchmarks.preparation_scale

The studies are phantoms reduced to 64 x 64 pixels, each told apart by a few pixels, in a parquet file with row groups
of 500; every size is prepared in a process of its own. Decoding is measured apart, on a picture of MIMIC-CXR's usual
size.
"""

from __future__ import annotations

import argparse
import io
import re
import resource
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from radvision_utils import load_profile, prepare_dataset
from radvision_utils.data.images import load_image
from radvision_utils.data.storing import cores, store_square
from radvision_utils.phantoms.phantom_rows import phantom_row

SIZES = (1000, 10_000, 50_000)
MIMIC_IMAGES, MIMIC_SIZE = 377_110, (2544, 3056)  # Johnson et al. 2019; the commonest size
_DRAWN, _GROUP, _SIDE = 200, 500, 64


def write_source(path: Path, count: int) -> None:
    """A parquet file of `count` different studies."""
    drawn = []
    for uid in range(1, _DRAWN + 1):
        row = phantom_row(uid, dirt=False)
        small = load_image(row["img_frontal"]).resize((_SIDE, _SIDE))  # type: ignore[arg-type]
        drawn.append((row, np.asarray(small)))
    writer = None
    for first in range(0, count, _GROUP):
        table = pa.Table.from_pylist(list(_rows(drawn, first, min(count, first + _GROUP))))
        writer = writer or pq.ParquetWriter(path, table.schema)
        writer.write_table(table)
    if writer:
        writer.close()


def _rows(drawn: list[tuple[dict[str, object], np.ndarray]], first: int, last: int) -> Iterator[dict[str, object]]:
    for number in range(first, last):
        row, pixels = drawn[number % len(drawn)]
        marked = pixels.copy()
        marked[0, :32] = [255 * (number >> bit & 1) for bit in range(32)]
        stream = io.BytesIO()
        Image.fromarray(marked).save(stream, "PNG", compress_level=1)
        yield {**row, "uid": str(number), "img_frontal": stream.getvalue()}


def prepare(source: Path, folder: Path) -> dict[str, float]:
    """Seconds, studies kept and peak memory (MiB) of preparing a source in this process."""
    profile = load_profile(
        "tiny", {"data.image_size": 56, "data.workers": 1}, source=str(source), output_root=str(folder)
    )
    before = _peak()
    started = time.perf_counter()
    data = prepare_dataset(profile, progress=lambda done, total: None)
    seconds = time.perf_counter() - started
    return {"kept": data.summary["counts"]["kept"], "seconds": seconds, "before": before, "peak": _peak()}


def _peak() -> float:
    # Of this process alone: ru_maxrss would begin with the memory of the process that started it.
    status = Path("/proc/self/status")
    if status.is_file():
        return float(re.search(r"VmHWM:\s+(\d+) kB", status.read_text())[1]) / 1024  # type: ignore[index]
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20)  # macOS: bytes


def seconds_of_a_large_image(folder: Path, repeats: int = 8) -> float:
    """To decode, reduce and store a JPEG of MIMIC-CXR's usual size, in one process."""
    chest = load_image(phantom_row(1, dirt=False)["img_frontal"]).resize(MIMIC_SIZE)  # type: ignore[arg-type]
    noise = np.random.default_rng(0).normal(0, 4, MIMIC_SIZE[::-1])
    stream = io.BytesIO()
    Image.fromarray((np.asarray(chest) + noise).clip(0, 255).astype(np.uint8)).save(stream, "JPEG", quality=95)
    started = time.perf_counter()
    for _ in range(repeats):
        store_square(stream.getvalue(), folder / "large.png", 512)
    return (time.perf_counter() - started) / repeats


def main() -> None:
    """Print the table and the lines below it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    options = parser.parse_args()
    results = {}
    print(f"{'studies':>8}{'seconds':>10}{'studies/s':>11}{'peak, MiB':>11}{'grown by, MiB':>15}")
    for size in options.sizes:
        with tempfile.TemporaryDirectory() as name:
            source = Path(name) / "studies.parquet"
            write_source(source, size)
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
                found = results[size] = process.submit(prepare, source, Path(name) / "outputs").result()
        rate = size / found["seconds"]
        grown = found["peak"] - found["before"]
        print(f"{size:8}{found['seconds']:10.1f}{rate:11.0f}{found['peak']:11.0f}{grown:15.0f}", flush=True)
    peaks = [found["peak"] for found in results.values()]
    print(f"peak memory: largest {max(peaks) / min(peaks) - 1:.1%} above smallest")
    with tempfile.TemporaryDirectory() as name:
        large = seconds_of_a_large_image(Path(name))
    last = results[max(results)]
    rest = last["seconds"] / max(results)
    print(
        f"a JPEG of {MIMIC_SIZE[0]} x {MIMIC_SIZE[1]} pixels takes {large:.3f} s, all else {rest:.4f} s a study; "
        f"MIMIC-CXR's {MIMIC_IMAGES:,} images: {MIMIC_IMAGES * (large + rest) / 3600:.1f} h on one core, "
        f"{MIMIC_IMAGES * (large / cores() + rest) / 3600:.1f} h on this machine's {cores()}"
    )


if __name__ == "__main__":
    main()
