"""Damages image files of every kind at random and reads them: each must give a picture or one sentence.

    python tests/fuzz/fuzz_images.py --inputs 100000

Input n of a seed is always the same. They are read in child processes with a limit on memory and a clock, so that a
crash of a decoder, a hang or a bomb is found and named; the last line says how many inputs ran and what was found.
"""

from __future__ import annotations

import argparse
import io
import multiprocessing
import os
import random
import resource
import signal
import struct
import sys
import time
import traceback
import zlib
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image

from radvision_utils.config import RadVisionError
from radvision_utils.data.images import letterbox, load_image
from radvision_utils.data.pixels import UnfitImage

MEMORY = 3 << 30  # bytes of address space; a picture of the largest size allowed needs about one third
SECONDS = 20  # an input that takes longer hangs
BATCH = 2000  # inputs a child process
_BITS_16, _BITS_32 = (0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF), (0, 1, 7000, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF)


def seeds() -> list[bytes]:
    """Good files of every kind that is read."""
    rng = np.random.default_rng(0)
    gray = Image.fromarray(rng.integers(0, 256, (48, 64), dtype=np.uint8))
    deep = Image.fromarray(rng.integers(0, 65536, (48, 64), dtype=np.uint16))
    color, exif = Image.merge("RGB", [gray] * 3), Image.Exif()
    exif[0x0112] = 6
    frames: dict[str, Any] = {"save_all": True, "append_images": [gray.rotate(90), gray.rotate(180)]}
    saved = [
        *((gray, kind, {}) for kind in ("PNG", "JPEG", "TIFF", "BMP", "GIF", "WEBP", "JPEG2000", "PPM")),
        *((color, kind, {}) for kind in ("PNG", "JPEG", "TIFF", "WEBP", "BMP", "JPEG2000")),
        *((gray, kind, frames) for kind in ("PNG", "GIF", "TIFF", "WEBP")),
        *((gray, "TIFF", {"compression": name}) for name in ("tiff_lzw", "tiff_deflate", "packbits", "jpeg")),
        *((deep, "PNG", {}), (deep, "TIFF", {}), (deep, "TIFF", {"tiffinfo": {262: 0}}), (deep, "PPM", {})),
        *((Image.fromarray(np.asarray(gray, np.float32)), "TIFF", {}), (gray.convert("1"), "PNG", {})),
        *((color.quantize(16), "PNG", {}), (color.convert("RGBA"), "PNG", {}), (gray.convert("LA"), "PNG", {})),
        *((color.convert("CMYK"), "JPEG", {}), (color, "JPEG", {"exif": exif, "progressive": True})),
    ]
    return [*(_encoded(image, kind, options) for image, kind, options in saved), *_dicom(np.asarray(deep))]


def _encoded(image: Image.Image, kind: str, options: dict[str, Any]) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def _dicom(pixels: np.ndarray) -> Iterator[bytes]:
    try:
        import pydicom
        from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
        from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
    except ImportError:
        return
    for syntax, photometric in ((ExplicitVRLittleEndian, "MONOCHROME1"), (ImplicitVRLittleEndian, "MONOCHROME2")):
        meta = FileMetaDataset()
        meta.TransferSyntaxUID = syntax
        meta.MediaStorageSOPClassUID = meta.MediaStorageSOPInstanceUID = "1.2.840.10008.5.1.4.1.1.7"
        scan = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
        scan.PatientName, scan.Rows, scan.Columns = "Doe^Jane", *pixels.shape
        scan.SamplesPerPixel, scan.PhotometricInterpretation, scan.PixelRepresentation = 1, photometric, 0
        scan.BitsAllocated, scan.BitsStored, scan.HighBit = 16, 16, 15
        if photometric == "MONOCHROME1":
            scan.WindowCenter, scan.WindowWidth = 30000, 20000
        else:
            table = Dataset()
            table.LUTDescriptor, table.LUTData = [256, 0, 16], np.arange(0, 65536, 256, dtype=np.uint16).tobytes()
            scan.VOILUTSequence = [table]
        scan.PixelData = pixels.tobytes()
        stream = io.BytesIO()
        pydicom.dcmwrite(stream, scan, enforce_file_format=True, little_endian=True, implicit_vr=syntax.is_implicit_VR)
        yield stream.getvalue()


def damaged(files: list[bytes], seed: int, number: int) -> bytes:
    """Input `number`: one of the files after one to eight random changes."""
    rng = random.Random(f"{seed}:{number}")
    data = bytearray(rng.choice(files))
    is_png = data.startswith(b"\x89PNG")
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        if not data:
            break
        # Half of the changes hit the first bytes, where sizes and formats stand.
        at = rng.randrange(min(len(data), rng.choice((64, 400, len(data), len(data)))))
        size = rng.choice((1, 2, 4, 16, 64))
        change = rng.randrange(8)
        if change == 0:
            data[at] ^= 1 << rng.randrange(8)
        elif change == 1:
            data[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
        elif change == 2:
            data[at : at + 2] = struct.pack(rng.choice("<>") + "H", rng.choice(_BITS_16))
        elif change == 3:
            data[at : at + 4] = struct.pack(rng.choice("<>") + "I", rng.choice(_BITS_32))
        elif change == 4:
            del data[at : at + size]
        elif change == 5:
            data[at:at] = rng.randbytes(size)
        elif change == 6:
            other = rng.choice(files)
            start = rng.randrange(len(other))
            data[at : at + size] = other[start : start + size]
        else:
            del data[at:]
    return _with_checksums(bytes(data)) if is_png and rng.random() < 0.7 else bytes(data)


def _with_checksums(data: bytes) -> bytes:
    """A PNG whose chunks have right checksums again: else nearly every change is refused at once."""
    parts, at = [data[:8]], 8
    while at + 12 <= len(data):
        length = struct.unpack(">I", data[at : at + 4])[0]
        chunk = data[at + 4 : at + 8 + length]
        if len(chunk) < 4 + length:
            break
        parts += [data[at : at + 4], chunk, struct.pack(">I", zlib.crc32(chunk))]
        at += 12 + length
    return b"".join([*parts, data[at:]])


class _HangError(BaseException):
    """Not an Exception: what is tested must not swallow it."""


def _alarm(*_: object) -> None:
    raise _HangError


def _read(data: bytes) -> str:
    """What came of an input: "decoded", why it was refused, or "FAULT: ..."."""
    signal.alarm(SECONDS)
    try:
        square = letterbox(load_image(data, 56), 56)
        return "decoded" if (square.mode, square.size) == ("L", (56, 56)) else f"FAULT: {square}"
    except UnfitImage as error:
        bad = "\n" in str(error) and "a line break in the sentence"
        bad = bad or ("Doe^Jane" in str(error) and "the patient in the sentence")
        return f"FAULT: {bad}" if bad else error.reason
    except RadVisionError as error:
        return f"FAULT: {error}"
    except _HangError:
        return "FAULT: hangs"
    except BaseException:
        return f"FAULT: {traceback.format_exc()}"
    finally:
        signal.alarm(0)


def _work(seed: int, first: int, last: int, at: Any, results: Any) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGALRM, _alarm)
    files, counts, faults, slowest = seeds(), Counter[str](), [], (0.0, first)
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())  # libtiff and libjpeg say there what they think
    for number in range(first, last):
        at.value = number
        started = time.perf_counter()
        outcome = _read(damaged(files, seed, number))
        slowest = max(slowest, (time.perf_counter() - started, number))
        if outcome.startswith("FAULT"):
            faults.append(f"input {number}: {outcome}")
            outcome = "FAULT"
        counts[outcome] += 1
    results.put((counts, faults, slowest, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024))


def fuzz(seed: int, inputs: int) -> tuple[Counter[str], list[str], float, float]:
    """Outcomes, faults, seconds of the slowest input and the peak memory of a child in MiB."""
    context = multiprocessing.get_context("spawn")
    counts, faults, slowest, peak = Counter[str](), [], (0.0, 0), 0.0
    first = 0
    while first < inputs:
        at, results, last = context.Value("q", first), context.Queue(), min(inputs, first + BATCH)
        child = context.Process(target=_work, args=(seed, first, last, at, results))
        child.start()
        while child.is_alive() and results.empty():
            child.join(0.05)
        if child.exitcode == 1:
            raise SystemExit("the fuzzer itself failed, see above")
        if child.exitcode not in (None, 0):  # killed by a signal: go on behind the input that did it
            faults.append(f"input {at.value}: the process died ({child.exitcode})")
            last = at.value + 1
            counts["FAULT"] += 1
        else:
            found = results.get()
            child.join()
            counts, faults = counts + found[0], faults + found[1]
            slowest, peak = max(slowest, found[2]), max(peak, found[3])
        first = last
    return counts, faults, slowest[0], peak


def main() -> int:
    """Print what became of the inputs; 1 if there was a fault."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    started = time.monotonic()
    counts, faults, slowest, peak = fuzz(options.seed, options.inputs)
    for outcome, count in counts.most_common():
        print(f"{count:8} {outcome}")
    for fault in faults:
        print(fault)
    print(
        f"{options.inputs} inputs from {len(seeds())} files in {time.monotonic() - started:.0f} s: "
        f"{len(faults)} faults, slowest input {slowest:.2f} s, peak memory {peak:.0f} MiB"
    )
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main())
