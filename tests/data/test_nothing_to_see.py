"""A picture in which nothing can be seen is refused before a model is asked, by the check that preparation has too."""

import io

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from radvision_utils.config import project_root
from radvision_utils.data.images import load_square
from radvision_utils.data.pixels import UnfitImage
from radvision_utils.data.storing import store_square

RANDOM = np.random.default_rng(5)
SHAPE = (300, 240)
CHEST = np.hypot(*np.mgrid[-150:150, -120:120])
CHEST /= CHEST.max()  # from 0 in the middle to 1 in the corners


def eight_bit(levels):
    return Image.fromarray(np.asarray(levels).round().clip(0, 255).astype(np.uint8))


def sixteen_bit(levels):
    return Image.fromarray(np.asarray(levels).astype(np.uint16))


def with_hot_pixels(levels, count=40):
    levels = np.array(levels)
    levels.ravel()[RANDOM.choice(levels.size, count, replace=False)] = RANDOM.integers(0, 255, count)
    return levels


def transparent(levels):
    return Image.merge("LA", [eight_bit(levels), Image.new("L", SHAPE[::-1], 0)])


def centered(levels, margin):
    return np.pad(levels, margin)


NOTHING = {
    "black": eight_bit(np.zeros(SHAPE)),
    "white": eight_bit(np.full(SHAPE, 255)),
    "gray": eight_bit(np.full(SHAPE, 90)),
    "white in a black frame": eight_bit(centered(np.full(SHAPE, 255), 80)),
    "gray with noise": eight_bit(RANDOM.normal(128, 1, SHAPE)),
    "black with hot pixels": eight_bit(with_hot_pixels(np.zeros(SHAPE))),
    "gray with hot pixels": eight_bit(with_hot_pixels(np.full(SHAPE, 128))),
    "a letter on black": eight_bit(centered(255 * CHEST[:20, :20], 200)),
    "a chest that is wholly transparent": transparent(255 * CHEST),
    "16 bits of one level": sixteen_bit(np.full(SHAPE, 900)),
    "16 bits of three levels": sixteen_bit(RANDOM.integers(899, 902, (1500, 1500))),
    "two colors": eight_bit(255 * (CHEST > 0.5)).quantize(2),
}
SOMETHING = {
    "noise": eight_bit(RANDOM.integers(0, 256, SHAPE)),
    "a chest": eight_bit(255 * CHEST),
    "its negative": eight_bit(255 - 255 * CHEST),
    "a faint one": eight_bit(120 + 20 * CHEST),
    "a dark one": eight_bit(20 * CHEST),
    "a small one in a black frame": eight_bit(centered(255 * CHEST, 600)),
    "a narrow one": eight_bit(np.tile(255 * CHEST[:, :40], (8, 1))),
    "one in 16 bits": sixteen_bit(1000 + 300 * CHEST),
    "one in a palette": eight_bit(255 * CHEST).quantize(32),
    "one in color": eight_bit(255 * CHEST).convert("RGB"),
}


def encoded(picture):
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    return stream.getvalue()


@pytest.mark.parametrize("name", NOTHING)
def test_what_shows_nothing_is_refused_alike_in_preparation_and_by_a_model(name, tmp_path):
    path = tmp_path / "mine.png"
    path.write_bytes(encoded(NOTHING[name]))
    for image in (path, path.read_bytes(), NOTHING[name]):
        with pytest.raises(UnfitImage, match=r"shows nothing.*export it again") as caught:
            load_square(image, 224)
        assert "\n" not in str(caught.value)
    with pytest.raises(UnfitImage) as stored:
        store_square(path.read_bytes(), tmp_path / "square.png", 224)
    assert stored.value.reason == caught.value.reason == "image shows nothing"
    with pytest.raises(UnfitImage, match=r"image .*mine\.png shows nothing"):
        load_square(path, 224)


@pytest.mark.parametrize("name", SOMETHING)
def test_what_shows_something_passes_and_so_does_its_square(name, tmp_path):
    square = load_square(encoded(SOMETHING[name]), 224)
    assert load_square(square, 224).tobytes() == square.tobytes()
    store_square(encoded(SOMETHING[name]), tmp_path / "square.png", 224)
    assert Image.open(tmp_path / "square.png").tobytes() == square.tobytes()


def test_no_real_radiograph_is_refused(open_i):
    batches = pq.ParquetFile(open_i / "open-i-mini.parquet").iter_batches(16, columns=["img_frontal"])
    pictures = [row["img_frontal"] for row in next(batches).to_pylist()]
    others = sorted(path for path in (project_root().parent / "shared/data/extra").rglob("*.jpg"))
    for picture in [*pictures, *others]:
        load_square(picture["bytes"] if isinstance(picture, dict) else picture, 512)
