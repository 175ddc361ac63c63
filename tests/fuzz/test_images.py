"""A few hundred damaged image files, as `fuzz_images.py` makes them by the hundred thousand."""

import subprocess
import sys
from pathlib import Path


def test_damaged_images_give_a_picture_or_one_sentence():
    command = [sys.executable, str(Path(__file__).with_name("fuzz_images.py")), "--inputs", "300", "--seed", "7"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert " decoded" in done.stdout
    assert "image cannot be decoded" in done.stdout
    assert "0 faults" in done.stdout
