"""A large JPEG is decoded at reduced scale: nearly the same square, and the same one whoever makes it."""

import io

import numpy as np
import pytest
from PIL import Image

from radvision_utils.data.images import letterbox, load_image
from radvision_utils.data.storing import store_square
from radvision_utils.phantoms.phantom_rows import draw


def encoded(side, kind="JPEG"):
    pixels, _ = draw(5, "B", 3)
    large = np.asarray(Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC), dtype=np.float32)
    noise = np.random.default_rng(0).normal(0, 4, large.shape)
    stream = io.BytesIO()
    Image.fromarray((large + noise).clip(0, 255).astype(np.uint8)).save(
        stream, kind, **{"quality": 92} if kind == "JPEG" else {}
    )
    return stream.getvalue()


def square(data, size=None):
    return np.asarray(letterbox(load_image(data, size), 256), dtype=np.int16)


def test_a_square_from_a_reduced_jpeg_differs_by_less_than_half_a_gray_level():
    jpeg = encoded(1024)
    assert load_image(jpeg, 256).size == (512, 512)
    differences = np.abs(square(jpeg, 256) - square(jpeg))
    assert 0 < differences.mean() < 0.5
    assert differences.max() < 8


@pytest.mark.parametrize(
    "data",
    [encoded(1008), encoded(1025), encoded(1024, "PNG")],
    ids=["not twice the pixels wanted", "sides that do not divide", "no JPEG"],
)
def test_every_other_picture_is_decoded_in_full(data):
    assert load_image(data, 256).size == load_image(data).size


def test_preparation_and_reports_on_own_images_see_the_same_pixels(tmp_path):
    jpeg = encoded(1024)
    store_square(jpeg, tmp_path / "square.png", 256)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "square.png")), square(jpeg, 256))


def test_an_open_i_jpeg_keeps_its_pixels_within_a_gray_level(open_i):
    differences = []
    for path in sorted((open_i / "images").glob("*.jpg")):
        with Image.open(path) as image:
            wide = max(image.size) >= 1024 and not any(side % 2 for side in image.size)
        if wide:
            differences.append(np.abs(square(path, 256) - square(path)).mean())
    assert len(differences) >= 3
    assert max(differences) < 0.5
