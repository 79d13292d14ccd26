"""DICOM pixels: golden values for every syntax and colour, and a reason for every hostile object."""

from __future__ import annotations

import contextlib
import io
import random
import struct
import tracemalloc
import zlib
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pydicom.encaps import encapsulate

from model import dicom, images
from model.dicom_elements import read_elements
from model.dicom_pixels import grey_table, to_rgb
from model.errors import RejectedImage, RejectReason
from model.images import decode_image, decode_measured, encode_image, measure_image
from producer.dicom import SOP_CLASSES
from tests.dicoms import (
    DERMOSCOPY,
    ENDOSCOPY,
    LOSSLESS,
    MULTI_FRAME_TRUE_COLOUR,
    PHOTOGRAPH,
    SECONDARY_CAPTURE,
    STRUCTURED_REPORT,
    SYNTAXES,
    encode_frame,
    make_dicom,
    make_headers,
    write_dicom,
)

WIDTH, HEIGHT = 40, 30


@pytest.fixture(autouse=True)
def _own_filters() -> None:
    # pytest puts its own filters on top of those that the module set when it was imported.
    images.filter_warnings()


def picture(seed: int = 0, width: int = WIDTH, height: int = HEIGHT) -> NDArray[np.uint8]:
    """Draw a smooth picture that no flip, turn or swap of colours leaves as it is."""
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def decoded(data: bytes, frame: int | None = None) -> NDArray[np.int64]:
    """Decode to the picture's own size, so that nothing is interpolated."""
    return decode_image(data, (WIDTH, HEIGHT), frame).astype(np.int64)


def reason_of(data: bytes, frame: int | None = None) -> RejectReason:
    with pytest.raises(RejectedImage) as caught:
        decode_image(data, 32, frame)
    return caught.value.reason


def furthest(one: NDArray[Any], other: NDArray[Any]) -> int:
    return int(np.abs(one.astype(np.int64) - other).max())


@pytest.mark.parametrize("syntax", LOSSLESS)
@pytest.mark.parametrize("planar", [False, True])
def test_rgb_is_what_it_was_in_every_lossless_syntax(syntax: str, *, planar: bool) -> None:
    photometric = "YBR_RCT" if syntax == "jpeg2000_lossless" else "RGB"

    data = make_dicom(picture(), syntax, photometric=photometric, planar=planar)

    assert furthest(decoded(data), picture()) == 0
    assert measure_image(data) == decode_measured(data, 8).shown == (WIDTH, HEIGHT)


@pytest.mark.parametrize("sop_class", sorted(SOP_CLASSES))
def test_every_class_of_photographs_is_read(sop_class: str) -> None:
    assert furthest(decoded(make_dicom(picture(), sop_class=sop_class)), picture()) == 0


def test_both_halves_of_the_program_know_the_same_classes() -> None:
    assert SOP_CLASSES == dicom.SOP_CLASSES
    assert {DERMOSCOPY, PHOTOGRAPH, SECONDARY_CAPTURE, MULTI_FRAME_TRUE_COLOUR} <= SOP_CLASSES


@pytest.mark.parametrize("syntax", ["implicit", "explicit", "big", "deflated", "rle", "jpeg_ls"])
@pytest.mark.parametrize("planar", [False, True])
def test_luminance_and_chrominance_become_rgb(syntax: str, *, planar: bool) -> None:
    # YBR of 8 bits rounds by up to three steps on its way there and back
    assert furthest(decoded(make_dicom(picture(), syntax, photometric="YBR_FULL", planar=planar)), picture()) <= 3


def test_ybr_has_the_values_of_the_standard() -> None:
    # Given pixels in YBR_FULL as PS3.3, C.7.6.3.1.2 has them: black, white, pure red and a grey
    ybr = np.array([[[0, 128, 128], [255, 128, 128], [76, 85, 255], [90, 128, 128]]], np.uint8)

    shown = to_rgb(ybr)

    assert furthest(shown, np.array([[[0, 0, 0], [255, 255, 255], [254, 0, 0], [90, 90, 90]]])) <= 1


@pytest.mark.parametrize("syntax", ["implicit", "explicit", "big", "deflated"])
def test_two_pixels_share_a_chrominance(syntax: str) -> None:
    # Given a picture whose pixels are the same in pairs
    pairs = np.repeat(picture(width=WIDTH // 2), 2, axis=1)

    assert furthest(decoded(make_dicom(pairs, syntax, photometric="YBR_FULL_422")), pairs) <= 3


def test_the_lossy_jpeg_2000_is_nearly_the_picture() -> None:
    smooth = np.asarray(Image.fromarray(picture(width=8, height=6)).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC))

    for photometric in ("YBR_ICT", "RGB"):
        assert np.abs(decoded(make_dicom(smooth, "jpeg2000", photometric=photometric)) - smooth).mean() < 8


@pytest.mark.parametrize("size", [(WIDTH, HEIGHT), (1200, 900), (901, 333)])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}], ids=str)
def test_a_jpeg_gives_the_pixels_of_the_same_file_in_a_folder(size: tuple[int, int], options: dict[str, Any]) -> None:
    # Given a JPEG, much larger than the network's input or not, with a camera's EXIF
    out = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(picture(width=size[0], height=size[1])).save(out, "JPEG", quality=85, exif=exif, **options)
    data = out.getvalue()

    # If it is a DICOM object's frame, whole or in fragments
    for fragments in (1, 3):
        one = make_dicom(
            picture(width=size[0], height=size[1]),
            "jpeg",
            photometric="YBR_FULL_422",
            encoded=[data],
            fragments=fragments,
        )

        # Then each pixel is the same, and so is the size that is seen
        assert np.array_equal(decode_image(one, 32), decode_image(data, 32))
        assert measure_image(one) == measure_image(data)
        assert decode_measured(one, 8).shown == decode_measured(data, 8).shown


def bare_jpeg(*, rgb: bool) -> bytes:
    """Encode a JPEG that does not say what its three components are, which are numbered 1, 2 and 3."""
    out = io.BytesIO()
    Image.fromarray(picture()).save(out, "JPEG", quality=95, subsampling=0, keep_rgb=rgb)
    data = bytearray(out.getvalue())
    at = 2
    while data[at + 1] != 0xDA:
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        if data[at + 1] in {0xE0, 0xEE}:
            del data[at : at + 2 + length]
            continue
        if data[at + 1] == 0xC0:
            data[at + 10 : at + 19 : 3] = b"\1\2\3"
        at += 2 + length
    data[at + 5 : at + 11 : 2] = b"\1\2\3"
    return bytes(data)


def test_the_header_says_what_a_jpeg_without_a_marker_leaves_open() -> None:
    rgb = make_dicom(picture(), "jpeg", photometric="RGB", encoded=[bare_jpeg(rgb=True)])
    ybr = make_dicom(picture(), "jpeg", photometric="YBR_FULL", encoded=[bare_jpeg(rgb=False)])

    # Then both are the picture; a decoder alone takes the first for YCbCr
    assert np.abs(decoded(rgb) - picture()).mean() < 4
    assert np.abs(decoded(ybr) - picture()).mean() < 4
    assert np.abs(decoded(bare_jpeg(rgb=True)) - picture()).mean() > 30


def test_a_jpegs_own_marker_counts_more_than_the_header() -> None:
    # Given a JPEG with JFIF's marker, which some devices call RGB
    data = encode_frame(picture(), "jpeg")
    assert b"JFIF" in data

    assert np.array_equal(decoded(make_dicom(picture(), "jpeg", photometric="RGB", encoded=[data])), decoded(data))


GREY = np.arange(WIDTH * HEIGHT).reshape(HEIGHT, WIDTH)


@pytest.mark.parametrize("syntax", LOSSLESS)
@pytest.mark.parametrize(("kind", "stored", "shift"), [(np.uint8, 8, 0), (np.uint16, 16, 8), (np.uint16, 12, 4)])
def test_grey_is_shown_over_all_that_can_be_stored(syntax: str, kind: type, stored: int, shift: int) -> None:
    samples: NDArray[Any] = (GREY * 53 % (1 << stored)).astype(kind)

    white_is_high = decoded(make_dicom(samples, syntax, stored=stored))
    white_is_low = decoded(make_dicom(samples, syntax, stored=stored, photometric="MONOCHROME1"))

    assert np.array_equal(white_is_high, np.repeat((samples >> shift)[..., None], 3, axis=2))
    assert np.array_equal(white_is_low, 255 - white_is_high)


@pytest.mark.parametrize("syntax", LOSSLESS)
def test_a_window_shows_what_the_standard_says(syntax: str) -> None:
    # Given PS3.3's own example of a window: centre 2048 and width 4096, and a narrower one after a rescale
    samples = (GREY * 53 % 4096).astype(np.uint16)
    wide = decoded(make_dicom(samples, syntax, stored=12, WindowCenter="2048", WindowWidth="4096"))
    narrow = decoded(
        make_dicom(
            samples,
            syntax,
            stored=12,
            WindowCenter=["100", "7"],
            WindowWidth=["101", "9"],
            RescaleSlope="0.5",
            RescaleIntercept="-10",
        )
    )

    # Then values are ((x - (c - 0.5)) / (w - 1) + 0.5) of white, and below and above it black and white
    assert furthest(wide[..., 0], ((samples - 2047.5) / 4095 + 0.5) * 255) <= 1
    shown = np.clip((samples * 0.5 - 10 - 99.5) / 100 + 0.5, 0, 1) * 255
    assert np.abs(narrow[..., 0] - shown).max() <= 1
    assert {0, 255} <= set(narrow.ravel().tolist())


def test_samples_with_a_sign_go_from_the_lowest_to_the_highest() -> None:
    samples: NDArray[np.int16] = np.linspace(-32768, 32767, WIDTH * HEIGHT).astype(np.int16).reshape(HEIGHT, WIDTH)

    shown = decoded(make_dicom(samples, signed=True))[..., 0]

    assert (shown[0, 0], shown[-1, -1]) == (0, 255)
    assert (np.diff(shown.ravel()) >= 0).all()
    # And a slope below zero turns them round
    turned = decoded(make_dicom(samples, signed=True, RescaleSlope="-1", RescaleIntercept="0"))[..., 0]
    assert np.array_equal(turned, 255 - shown)


def test_a_jpeg_2000_of_twelve_bits_is_not_brighter_than_its_samples() -> None:
    # Given a table of what 16 bits mean, of which 12 are stored and coded, as Pillow spreads them over all 16
    elements = read_elements(make_dicom((GREY * 53 % 4096).astype(np.uint16), stored=12))
    meant = grey_table(elements, inverted=False)

    # If it is made for what Pillow gives
    spread = dicom._widened(elements, meant, 12)

    # Then the same sample means the same grey
    assert spread is not None
    assert np.array_equal(spread[np.arange(4096) << 4], meant[:4096])


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("syntax", ["explicit", "big", "rle"])
def test_a_palette_is_looked_up(syntax: str, bits: int) -> None:
    # Given 200 colours that begin with the sample 20
    rng = np.random.default_rng(1)
    colours = rng.integers(0, 256, (200, 3)).astype(np.uint16)
    indices = (GREY % 256).astype(np.uint8)
    palettes: dict[str, Any] = {}
    for band, name in enumerate(("Red", "Green", "Blue")):
        words = (colours[:, band] << (bits - 8)).astype(">u2" if syntax == "big" else "<u2")
        palettes[f"{name}PaletteColorLookupTableDescriptor"] = [200, 20, bits]
        palettes[f"{name}PaletteColorLookupTableData"] = words.tobytes()

    shown = decoded(make_dicom(indices, syntax, photometric="PALETTE COLOR", **palettes))

    # Then what lies below and above has the first and the last colour (PS3.3, C.7.6.3.1.5)
    assert np.array_equal(shown, colours[np.clip(indices.astype(int) - 20, 0, 199)])


def test_a_palette_that_is_not_there_is_refused() -> None:
    assert reason_of(make_dicom(GREY.astype(np.uint8), photometric="PALETTE COLOR")) is RejectReason.UNSUPPORTED_FORMAT


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize("offsets", [True, False])
@pytest.mark.parametrize("fragments", [1, 3])
def test_each_frame_is_found(syntax: str, fragments: int, *, offsets: bool) -> None:
    # Given three frames, with and without a table of where they begin, whole and in fragments
    # A frame of run lengths is one fragment (PS3.5, A.4.2)
    fragments = 1 if syntax == "rle" else fragments
    many = [picture(seed) for seed in range(3)]
    photometric = {"jpeg": "YBR_FULL_422", "jpeg2000": "YBR_ICT", "jpeg2000_lossless": "YBR_RCT"}.get(syntax, "RGB")
    data = make_dicom(
        many,
        syntax,
        photometric=photometric,
        offsets=offsets,
        fragments=fragments,
        sop_class=MULTI_FRAME_TRUE_COLOUR,
    )

    # Then each is nearest to its own picture
    for frame in (1, 2, 3):
        far = [float(np.abs(decoded(data, frame) - other).mean()) for other in many]
        assert int(np.argmin(far)) == frame - 1
        assert far[frame - 1] < 15
    # And nobody gets the first one for all of them
    assert reason_of(data) is RejectReason.UNSUPPORTED_FORMAT
    assert reason_of(data, 4) is RejectReason.TRUNCATED
    assert reason_of(data, 0) is RejectReason.TRUNCATED


def test_extended_offsets_say_where_frames_begin() -> None:
    # Given two frames of two fragments each, whose pieces begin like pictures themselves
    many = [picture(seed) for seed in range(2)]
    encoded = [encode_frame(one, "jpeg") for one in many]
    data = make_dicom(many, "jpeg", photometric="YBR_FULL_422", encoded=encoded, offsets=False, fragments=2)
    # Each fragment has eight bytes before it, and the frame is filled up to an even length
    second = len(encoded[0]) + len(encoded[0]) % 2 + 16
    extended = make_dicom(
        many,
        "jpeg",
        photometric="YBR_FULL_422",
        encoded=encoded,
        offsets=False,
        fragments=2,
        ExtendedOffsetTable=struct.pack("<2Q", 0, second),
        ExtendedOffsetTableLengths=struct.pack("<2Q", *map(len, encoded)),
    )

    assert [np.array_equal(decoded(extended, n), decoded(data, n)) for n in (1, 2)] == [True, True]


def test_a_large_frame_is_reduced_like_a_large_png() -> None:
    large = picture(width=1203, height=905)

    for syntax in ("explicit", "rle", "big"):
        shown = decode_image(make_dicom(large, syntax), 64)
        assert np.array_equal(shown, decode_image(encode_image(large, "PNG"), 64))


def test_what_a_header_claims_is_not_allocated() -> None:
    # Given a header of 65 535 by 65 535 pixels, one of 50 megapixels that are not there, and a bomb of zeros
    huge = make_dicom(picture(), Rows=1)
    claims = {
        RejectReason.TOO_MANY_PIXELS: resized(huge, 65535, 65535),
        RejectReason.TRUNCATED: resized(huge, 7000, 7000),
        RejectReason.TOO_COSTLY: bomb(),
    }
    for reason, data in claims.items():
        tracemalloc.start()
        assert reason_of(data) is reason
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()

        # Then nothing near that was taken
        assert peak < 300_000_000 if reason is RejectReason.TOO_COSTLY else peak < 5_000_000


def resized(data: bytes, rows: int, columns: int) -> bytes:
    """Let a header claim another size."""
    changed = bytearray(data)
    for element, number in ((0x10, rows), (0x11, columns)):
        at = data.index(struct.pack("<HH2sH", 0x28, element, b"US", 2))
        changed[at + 8 : at + 10] = struct.pack("<H", number)
    return bytes(changed)


def bomb() -> bytes:
    data = make_dicom(picture(), "deflated")
    start = 144 + struct.unpack_from("<I", data, 140)[0]
    stream = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    zeros = struct.pack("<HH2sHI", 9, 1, b"OB", 0, 130_000_000) + bytes(130_000_000)
    return data[:start] + stream.compress(zeros) + stream.flush()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"Rows": None}, RejectReason.UNREADABLE),
        ({"Columns": 0}, RejectReason.UNREADABLE),
        ({"BitsAllocated": None}, RejectReason.UNREADABLE),
        ({"BitsAllocated": 1}, RejectReason.UNSUPPORTED_FORMAT),
        ({"BitsAllocated": 32}, RejectReason.UNSUPPORTED_FORMAT),
        ({"BitsAllocated": 64}, RejectReason.UNSUPPORTED_FORMAT),
        ({"BitsStored": 9}, RejectReason.UNREADABLE),
        ({"BitsStored": 0}, RejectReason.UNREADABLE),
        ({"HighBit": 8}, RejectReason.UNREADABLE),
        ({"SamplesPerPixel": 1}, RejectReason.UNREADABLE),
        ({"SamplesPerPixel": 4}, RejectReason.UNREADABLE),
        ({"PhotometricInterpretation": None}, RejectReason.UNREADABLE),
        ({"PhotometricInterpretation": "CMYK"}, RejectReason.UNSUPPORTED_FORMAT),
        ({"PhotometricInterpretation": "YBR_PARTIAL_422"}, RejectReason.UNSUPPORTED_FORMAT),
        ({"NumberOfFrames": "0"}, RejectReason.UNREADABLE),
        ({"NumberOfFrames": "-3"}, RejectReason.UNREADABLE),
        ({"SOPClassUID": ENDOSCOPY}, RejectReason.UNSUPPORTED_FORMAT),
        ({"SOPClassUID": None}, RejectReason.UNSUPPORTED_FORMAT),
        ({"PixelData": None}, RejectReason.NOT_AN_IMAGE),
        ({"BitsAllocated": 16, "BitsStored": 16, "HighBit": 15}, RejectReason.TRUNCATED),
    ],
    ids=str,
)
def test_a_header_that_makes_no_sense_is_refused_with_a_reason(change: dict[str, Any], reason: RejectReason) -> None:
    dataset = plain_dataset()
    for name, value in change.items():
        if value is None:
            delattr(dataset, name)
        else:
            setattr(dataset, name, value)
    if "SOPClassUID" in change:
        dataset.SOPClassUID = change["SOPClassUID"] or "1.2.3"

    assert reason_of(write_dicom(dataset)) is reason


def plain_dataset() -> Any:
    dataset = make_headers()
    dataset.Rows, dataset.Columns, dataset.SamplesPerPixel = HEIGHT, WIDTH, 3
    dataset.PhotometricInterpretation, dataset.PlanarConfiguration = "RGB", 0
    dataset.BitsAllocated = dataset.BitsStored = 8
    dataset.HighBit, dataset.PixelRepresentation = 7, 0
    dataset.PixelData = picture().tobytes()
    dataset["PixelData"].VR = "OB"
    return dataset


def test_bytes_in_words_with_the_big_end_first_are_not_swapped() -> None:
    # Given bytes that are written as words, the second pixel of each before the first (PS3.5, 8.1.1)
    dataset = plain_dataset()
    dataset.PixelData = np.frombuffer(picture().tobytes(), "<u2").astype(">u2").tobytes()
    dataset["PixelData"].VR = "OW"

    assert furthest(decoded(write_dicom(dataset, "big")), picture()) == 0


def test_a_frame_that_is_only_claimed_is_cut_off() -> None:
    data = make_dicom(picture(), NumberOfFrames="5")

    assert furthest(decoded(data, 1), picture()) == 0
    assert reason_of(data, 5) is RejectReason.TRUNCATED
    assert reason_of(make_dicom(picture(), "rle", NumberOfFrames="5"), 2) is RejectReason.TRUNCATED


@pytest.mark.parametrize("uid", ["1.2.840.10008.1.2.4.57", "1.2.840.10008.1.2.4.201", "1.2.840.10008.1.2.4.100"])
def test_a_syntax_that_is_not_read_is_unsupported(uid: str) -> None:
    dataset = plain_dataset()
    dataset.PixelData = encapsulate([b"pieces"])
    dataset["PixelData"].is_undefined_length = True

    assert reason_of(write_dicom(dataset, uid)) is RejectReason.UNSUPPORTED_FORMAT


def test_a_report_is_no_image() -> None:
    assert reason_of(write_dicom(make_headers(sop_class=STRUCTURED_REPORT))) is RejectReason.NOT_AN_IMAGE


def with_elements(elements: bytes) -> bytes:
    """Put elements before the pixels of an explicit object."""
    data = make_dicom(picture())
    at = data.index(struct.pack("<HH2s", 0x28, 2, b"US"))
    return data[:at] + elements + data[at:]


def test_private_tags_and_nested_sequences_are_passed_over() -> None:
    undefined = struct.pack("<HH2sHI", 0x0021, 0x1001, b"SQ", 0, 0xFFFFFFFF)
    item, item_end = struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF), struct.pack("<HHI", 0xFFFE, 0xE00D, 0)
    end = struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
    inner = struct.pack("<HH2sH", 0x28, 0x10, b"US", 2) + b"\1\0"
    unknown = struct.pack("<HH2sHI", 0x0021, 0x1003, b"UN", 0, 0xFFFFFFFF)
    implicit = struct.pack("<HHI", 0x28, 0x10, 2) + b"\1\0"
    nested = undefined + item + inner + undefined + item + inner + item_end + end + item_end + end
    unknown += item + implicit + item_end + end

    # Rows of an icon within a sequence are not the image's
    assert furthest(decoded(with_elements(nested + unknown)), picture()) == 0


def test_wrong_lengths_and_endless_nesting_are_refused() -> None:
    giant = struct.pack("<HH2sHI", 0x0021, 0x1010, b"OB", 0, 0xFFFFFFF0)
    deep = (
        struct.pack("<HH2sHI", 0x0021, 0x1001, b"SQ", 0, 0xFFFFFFFF) + struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF)
    ) * 5000
    many = struct.pack("<HH2sH", 0x0021, 0x1010, b"US", 0) * 600_000

    assert reason_of(with_elements(giant)) is RejectReason.TRUNCATED
    assert reason_of(with_elements(deep)) is RejectReason.TOO_COSTLY
    assert reason_of(with_elements(many)) is RejectReason.TOO_COSTLY
    assert reason_of(with_elements(struct.pack("<HH2sH", 0x0021, 0x1010, b"\0\1", 2))) is RejectReason.UNREADABLE


def test_a_jpeg_2000_of_another_size_than_its_header_is_refused() -> None:
    # Given a codestream of 16 by 16 pixels under a header that says otherwise, whose limits were checked
    small = encode_frame(picture(width=16, height=16), "jpeg2000_lossless")
    for syntax, encoded in (("jpeg2000", small), ("jpeg_ls", encode_frame(picture(width=16, height=16), "jpeg_ls"))):
        photometric = "YBR_RCT" if syntax == "jpeg2000" else "RGB"
        assert reason_of(make_dicom(picture(), syntax, photometric=photometric, encoded=[encoded])) is (
            RejectReason.UNREADABLE
        )


def test_whatever_is_cut_or_flipped_is_pixels_or_a_reason() -> None:
    # Given an object in every syntax, small
    generator = random.Random(5)
    tiny = picture(width=12, height=10)
    kinds = {"jpeg": "YBR_FULL_422", "jpeg2000": "YBR_ICT", "jpeg2000_lossless": "YBR_RCT"}
    outcomes = set()
    for syntax in SYNTAXES:
        data = make_dicom([tiny, tiny[::-1]], syntax, photometric=kinds.get(syntax, "RGB"))
        for _ in range(250):
            broken = bytearray(data)
            for _ in range(generator.choice((0, 1, 4, 30))):
                broken[generator.randrange(132, len(broken))] = generator.randrange(256)
            spoiled = bytes(broken[: generator.choice((len(broken), generator.randrange(132, len(broken))))])
            # Then nothing else ever comes out of it
            try:
                shown = decode_image(spoiled, 8, generator.choice((None, 1, 2)))
                outcomes.add("pixels")
                assert shown.shape == (8, 8, 3)
            except RejectedImage as rejected:
                outcomes.add(rejected.reason)
            with contextlib.suppress(RejectedImage):
                measure_image(spoiled, 2)
    # And both happened
    assert "pixels" in outcomes
    assert {RejectReason.TRUNCATED, RejectReason.UNREADABLE, RejectReason.UNSUPPORTED_FORMAT} <= outcomes
