"""What a file would cost is known before a decoder is asked."""

from __future__ import annotations

import io
import struct
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from model.errors import RejectedImage, RejectReason
from model.headers import coefficient_bytes
from model.images import decode_image


def saved(mode: str, size: tuple[int, int], image_format: str = "JPEG", **options: object) -> bytes:
    out = io.BytesIO()
    Image.new(mode, size).save(out, image_format, **options)
    return out.getvalue()


def is_too_costly(data: bytes, size: int = 32) -> bool:
    with pytest.raises(RejectedImage) as caught:
        decode_image(data, size)
    return caught.value.reason is RejectReason.TOO_COSTLY


@pytest.mark.parametrize(
    ("mode", "subsampling", "samples"), [("RGB", 0, 3), ("RGB", 1, 2), ("RGB", 2, 1.5), ("L", 0, 1), ("CMYK", 0, 4)]
)
def test_a_progressive_jpeg_is_held_as_coefficients(mode: str, subsampling: int, samples: float) -> None:
    progressive = saved(mode, (320, 160), progressive=True, subsampling=subsampling)

    assert coefficient_bytes(progressive) == 2 * 320 * 160 * samples
    # And no other file is
    assert coefficient_bytes(saved(mode, (320, 160), subsampling=subsampling)) == 0
    assert coefficient_bytes(saved("RGB", (320, 160), "PNG")) == 0
    assert coefficient_bytes(b"") == 0


def test_a_baseline_jpeg_of_one_component_a_scan_is_held_too() -> None:
    # Given an ordinary JPEG whose first scan claims to hold one of three components
    data = bytearray(saved("RGB", (320, 160), subsampling=0))
    data[data.index(b"\xff\xda") + 4] = 1

    assert coefficient_bytes(bytes(data)) == 2 * 320 * 160 * 3


def test_a_progressive_jpeg_that_would_be_held_twice_is_refused_by_its_header() -> None:
    # Given 49 megapixels, held as 294 MB of coefficients; and a strip that cannot be decoded smaller
    assert is_too_costly(saved("RGB", (7000, 7000), progressive=True, subsampling=0))
    assert is_too_costly(saved("RGB", (763, 65_500), progressive=True, subsampling=0), 400)

    # Then an ordinary progressive one of the same size is not
    assert decode_image(saved("L", (7000, 7000), progressive=True), 32).shape == (32, 32, 3)


def jpeg_with(segments: bytes) -> bytes:
    small = saved("RGB", (16, 16))
    return small[:2] + segments + small[2:]


def segment(marker: int, content: bytes) -> bytes:
    return bytes((0xFF, marker)) + struct.pack(">H", len(content) + 2) + content


def test_a_jpeg_that_is_all_description_is_refused() -> None:
    # Given blocks of EXIF, which Pillow would join one by one, colour profiles, tiny comments and padding
    exif = segment(0xE1, b"Exif\0\0" + b"M" * 65_000)
    profile = segment(0xE2, b"ICC_PROFILE\0\1\1" + b"M" * 65_000)
    assert decode_image(jpeg_with(exif), 16).shape == (16, 16, 3)

    for many in (exif * 200, profile * 200, segment(0xFE, b"") * 20_000, b"\xff" * 20_000):
        assert is_too_costly(jpeg_with(many))


def test_a_jpeg_of_very_many_scans_is_refused() -> None:
    # Given a progressive JPEG whose last scan is there again and again
    data = saved("RGB", (64, 64), progressive=True)
    last = data[data.rindex(b"\xff\xda") : -2]
    assert decode_image(data[:-2] + last * 20 + data[-2:], 16).shape == (16, 16, 3)

    assert is_too_costly(data[:-2] + last * 100 + data[-2:])
    # And the same with arithmetic coding (table B.1: SOF10)
    assert is_too_costly(data[:-2].replace(b"\xff\xc2", b"\xff\xca", 1) + last * 100 + data[-2:])


def test_a_baseline_jpeg_is_one_scan_and_no_decoder_reads_another() -> None:
    # Given an ordinary JPEG whose only scan is there again and again, which costs nothing as nobody follows it
    data = saved("RGB", (64, 64))
    scan = data[data.rindex(b"\xff\xda") : -2]
    many = data[:-2] + scan * 100 + data[-2:]
    assert coefficient_bytes(many) == 0

    with pytest.raises(RejectedImage) as caught:
        decode_image(many, 16)

    assert caught.value.reason is RejectReason.TRUNCATED


def test_a_png_cut_into_very_many_chunks_is_refused() -> None:
    data = saved("RGB", (16, 16), "PNG")
    at = data.index(b"IDAT") - 4
    note = struct.pack(">I", 3) + b"tEXta\0b" + struct.pack(">I", zlib.crc32(b"tEXta\0b"))
    assert decode_image(data[:at] + note * 1000 + data[at:], 16).shape == (16, 16, 3)

    assert is_too_costly(data[:at] + note * 60_000 + data[at:])


@given(
    st.binary(max_size=300),
    st.sampled_from([b"\xff\xd8", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xc2", b"\xff\xd8\xff\xc0"]),
)
def test_any_bytes_have_a_cost(tail: bytes, head: bytes) -> None:
    assert coefficient_bytes(head + tail) >= 0
