"""DICOM as hospitals write it: odd display tags lose no study, and values that are no picture do not flatten it."""

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from radvision_utils.data.images import load_image
from radvision_utils.data.pixels import UnfitImage

pydicom = pytest.importorskip("pydicom", reason="pydicom is not installed")
from pydicom.dataset import FileDataset, FileMetaDataset  # noqa: E402
from pydicom.encaps import encapsulate  # noqa: E402
from pydicom.uid import ExplicitVRLittleEndian, JPEGExtended12Bit, JPEGLosslessSV1, JPEGLSLossless  # noqa: E402

_Y, _X = np.mgrid[0:96, 0:96]
CHEST = (900 + 1400 * np.cos(_X / 9) ** 2 * np.cos(_Y / 30) ** 2 + 4 * _X).astype(np.uint16)


def scan(pixels=CHEST, stored=12, syntax=ExplicitVRLittleEndian):
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = syntax
    meta.MediaStorageSOPClassUID = meta.MediaStorageSOPInstanceUID = "1.2.840.10008.5.1.4.1.1.7"
    found = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    found.Rows, found.Columns = pixels.shape[:2]
    found.SamplesPerPixel, found.PhotometricInterpretation = 1, "MONOCHROME2"
    found.PixelRepresentation = int(pixels.dtype.kind == "i")
    found.BitsAllocated, found.BitsStored, found.HighBit = 8 * pixels.itemsize, stored, stored - 1
    found.PixelData = pixels.tobytes()
    return found


def encoded(found):
    stream = io.BytesIO()
    pydicom.dcmwrite(stream, found, enforce_file_format=True)
    return stream.getvalue()


def shown(found):
    return np.asarray(load_image(encoded(found)), dtype=float)


def alike(picture, pixels=CHEST):
    return np.corrcoef(picture.ravel(), pixels.ravel())[0, 1]


# As they stand in a file: pydicom would not write most of these.
NUMBER = st.one_of(
    st.sampled_from([b"", b"0", b"-0", b"1", b"nan", b"inf", b"-1e300", b"1e-300", b"abc", b"1,5", b"\\", b"2000\\7 "]),
    st.floats(allow_nan=True, width=32).map(lambda value: f"{value:.8g}".encode()),
    st.binary(max_size=16),
)
WORD = st.one_of(st.sampled_from([b"", b"LINEAR", b"sigmoid ", b"IDENTITY", b"LOG", b"\\"]), st.binary(max_size=16))
ODD = {
    (0x0028, 0x1050): (b"DS", NUMBER),
    (0x0028, 0x1051): (b"DS", NUMBER),
    (0x0028, 0x1052): (b"DS", NUMBER),
    (0x0028, 0x1053): (b"DS", NUMBER),
    (0x0028, 0x1056): (b"CS", WORD),
    (0x0028, 0x0008): (b"IS", st.sampled_from([b"", b"0", b"1", b"-1", b"x", b"1.0"])),
    (0x0028, 0x0120): (b"US", st.binary(max_size=4)),
    (0x0028, 0x0121): (b"US", st.binary(max_size=4)),
    (0x2050, 0x0020): (b"CS", WORD),
}


def with_tags(tags):
    """A file that holds these values, byte for byte."""
    elements = b"".join(
        tag[0].to_bytes(2, "little")
        + tag[1].to_bytes(2, "little")
        + kind
        + len(value + b" " * (len(value) % 2)).to_bytes(2, "little")
        + value
        + b" " * (len(value) % 2)
        for tag, (kind, value) in sorted(tags.items())
    )
    whole, pixels = encoded(scan()), b"\xe0\x7f\x10\x00OW"
    at = whole.rindex(pixels)
    return whole[:at] + elements + whole[at:]


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.fixed_dictionaries({}, optional={tag: st.tuples(st.just(kind), at) for tag, (kind, at) in ODD.items()}))
def test_a_chest_stays_a_chest_whatever_its_display_tags_say(tags):
    picture = np.asarray(load_image(with_tags(tags)), dtype=float)
    assert len(np.unique(picture)) >= 64
    assert abs(alike(picture)) > 0.8


@pytest.mark.parametrize("kind", [None, "", "monochrome2 ", "MONOCHROME", "MONOCHROME_2", "GRAYSCALE", "UNKNOWN"])
def test_without_a_known_photometric_interpretation_high_values_are_white(kind):
    found = scan()
    if kind is None:
        del found.PhotometricInterpretation
    else:
        found.PhotometricInterpretation = kind
    assert (shown(found) == shown(scan())).all()


@pytest.mark.parametrize("kind", ["MONOCHROME1", "monochrome 1", "MONOCHROME_1", "MONOCHROME-1"])
def test_low_values_are_white_where_the_header_says_so_in_any_spelling(kind):
    found = scan()
    found.PhotometricInterpretation = kind
    assert alike(shown(found)) < -0.99


@pytest.mark.parametrize("shift", [0, 2, 4])
def test_values_that_stand_higher_than_their_bits_are_read_whole(shift):
    found = scan(CHEST << shift)
    found.HighBit = 11 + shift
    assert alike(shown(found)) > 0.99


def test_dicom_without_a_picture_is_told():
    found = scan()
    del found.PixelData
    with pytest.raises(UnfitImage, match="is DICOM without a picture"):
        shown(found)


def test_of_several_windows_the_first_that_shows_the_picture_is_taken():
    found, other = scan(), scan()
    found.WindowCenter, found.WindowWidth = [-5000, 1500], [10, 1200]
    other.WindowCenter, other.WindowWidth = 1500, 1200
    assert (shown(found) == shown(other)).all()
    assert not (shown(found) == shown(scan())).all()


def test_a_window_without_end_leaves_the_picture_its_gray_levels():
    found = scan()
    found.WindowCenter, found.WindowWidth = 2000, 1e9
    assert abs(shown(found) - shown(scan())).max() <= 1


def test_three_samples_are_one_gray_picture_whatever_the_header_calls_them():
    found = scan(np.repeat((CHEST >> 4).astype(np.uint8)[..., None], 3, axis=2), stored=8)
    found.SamplesPerPixel, found.PlanarConfiguration = 3, 0
    assert shown(found).shape == CHEST.shape
    assert alike(shown(found), CHEST) > 0.99


def test_a_presentation_that_is_inverse_is_shown_inverted_and_only_once():
    found = scan()
    found.PresentationLUTShape = "INVERSE"
    inverted = shown(found)
    assert abs(inverted + shown(scan()) - 255).max() <= 1
    found.PhotometricInterpretation = "MONOCHROME1"
    assert (shown(found) == inverted).all()


@pytest.mark.parametrize("marked", [True, False])
@pytest.mark.parametrize("value", [-32768, 32767])
@pytest.mark.parametrize("window", [None, (0, 65535)])
def test_padding_leaves_the_chest_its_gray_levels(value, marked, window):
    pixels = CHEST.astype(np.int16)
    pixels[:20] = value
    found = scan(pixels, stored=16)
    if marked:
        found.add_new(0x00280120, "SS", value)
    if window:
        found.WindowCenter, found.WindowWidth = window
    assert len(np.unique(shown(found)[20:])) > 200
    assert alike(shown(found)[20:], CHEST[20:]) > 0.99


@pytest.mark.parametrize("share", [0.0001, 0.0015])
def test_defect_pixels_leave_the_chest_its_gray_levels(share):
    rng = np.random.default_rng(3)
    pixels, count = CHEST.copy(), int(share * CHEST.size) + 1
    places = rng.choice(CHEST.size, count, replace=False)
    pixels.ravel()[places] = rng.integers(5000, 65535, count)
    good = np.ones(CHEST.size, bool)
    good[places] = False
    picture = shown(scan(pixels, stored=16)).ravel()[good]
    assert len(np.unique(picture)) > 100
    assert alike(picture, CHEST.ravel()[good]) > 0.99


def test_jpeg_ls_is_read_to_the_last_bit():
    pytest.importorskip("gdcm", reason="python-gdcm, of the extra dicom, is not installed")
    from pydicom.data import get_testdata_file

    names = ("MR_small.dcm", "MR_small_jpeg_ls_lossless.dcm")
    plain, compressed = (np.asarray(load_image(Path(get_testdata_file(name)))) for name in names)
    assert (plain == compressed).all()


@pytest.mark.parametrize(
    ("syntax", "sentence"),
    [
        (JPEGLosslessSV1, r"compressed as JPEG Lossless.*pip install radvision-7b\[dicom\]"),
        (JPEGLSLossless, r"compressed as JPEG-LS.*pip install radvision-7b\[dicom\]"),
        (JPEGExtended12Bit, r"compressed as JPEG Extended.*pip install pylibjpeg pylibjpeg-libjpeg"),
    ],
)
def test_a_compression_that_nothing_installed_reads_is_named_with_its_package(syntax, sentence, monkeypatch):
    from pydicom.pixels.decoders.base import Decoder

    monkeypatch.setattr(Decoder, "is_available", property(lambda self: False))
    found = scan(syntax=syntax)
    found.PixelData = encapsulate([b"\xff\xd8\xff\xc3" + b"\0" * 60 + b"\xff\xd9"])
    found["PixelData"].is_undefined_length = True
    with pytest.raises(UnfitImage, match=sentence):
        shown(found)


@pytest.mark.parametrize(("syntax", "name"), [(JPEGLosslessSV1, "JPEG Lossless"), (JPEGLSLossless, "JPEG-LS")])
def test_pixels_that_their_decoder_cannot_read_are_told_with_the_compression(syntax, name):
    pytest.importorskip("gdcm", reason="python-gdcm is not installed")
    found = scan(syntax=syntax)
    found.PixelData = encapsulate([b"\xff\xd8\xff\xc3" + b"\0" * 60 + b"\xff\xd9"])
    found["PixelData"].is_undefined_length = True
    with pytest.raises(UnfitImage, match=f"compressed as {name}.*, which its decoder cannot read"):
        shown(found)


def test_a_private_compression_is_not_quoted():
    found = scan(syntax="1.2.3.4.5.6789")
    with pytest.raises(UnfitImage) as caught:
        load_image(encoded(found))
    assert "6789" not in str(caught.value)
