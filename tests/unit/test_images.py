"""Golden pixels for every conversion, and a reason for every refusal."""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from model.errors import ArchiveUnavailable, RejectedImage, RejectReason
from model.images import decode_image, encode_image, read_image_bytes

LIMIT = 1_000_000


def saved(image: Image.Image, image_format: str = "PNG", **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, image_format, **options)
    return out.getvalue()


def reason_of(data: bytes) -> RejectReason:
    with pytest.raises(RejectedImage) as caught:
        decode_image(data, 32)
    return caught.value.reason


@pytest.mark.parametrize(
    ("image", "pixel"),
    [
        (Image.new("RGB", (40, 40), (10, 20, 30)), (10, 20, 30)),
        (Image.new("L", (40, 40), 77), (77, 77, 77)),
        (Image.new("RGBA", (40, 40), (10, 20, 30, 0)), (255, 255, 255)),
        (Image.new("RGBA", (40, 40), (0, 0, 0, 128)), (127, 127, 127)),
        (Image.new("LA", (40, 40), (50, 255)), (50, 50, 50)),
        (Image.new("1", (40, 40), 1), (255, 255, 255)),
        (Image.new("P", (40, 40), 0), (0, 0, 0)),
        (Image.new("I;16", (40, 40), 0x1234), (0x12, 0x12, 0x12)),
    ],
    ids=["rgb", "grey", "transparent", "half transparent", "grey alpha", "bilevel", "palette", "16 bit"],
)
def test_each_mode_of_a_png_becomes_the_stated_rgb(image: Image.Image, pixel: tuple[int, int, int]) -> None:
    assert tuple(decode_image(saved(image), 32)[16, 16]) == pixel


def test_a_cmyk_jpeg_becomes_rgb() -> None:
    red = Image.new("CMYK", (40, 40), (0, 255, 255, 0))

    pixel = decode_image(saved(red, "JPEG", quality=95), 32)[16, 16]

    assert pixel[0] > 240
    assert max(pixel[1], pixel[2]) < 15


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int) -> None:
    # Given an upright image, red above and blue below, stored turned as a camera would
    upright = Image.new("RGB", (40, 40), (200, 0, 0))
    upright.paste((0, 0, 200), (0, 20, 40, 40))
    back = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright.transpose(back[orientation]) if orientation in back else upright
    exif = Image.Exif()
    exif[0x0112] = orientation

    pixels = decode_image(saved(stored, "JPEG", quality=95, exif=exif), 32)

    # Then it stands upright again
    assert pixels[4, 16, 0] > 180
    assert pixels[28, 16, 2] > 180


def test_a_large_jpeg_is_resized_as_if_it_had_been_decoded_whole() -> None:
    generator = np.random.default_rng(0)
    coarse = Image.fromarray(generator.integers(0, 256, (12, 16, 3), np.uint8))
    image = coarse.resize((1600, 1200), Image.Resampling.BICUBIC)
    data = saved(image, "JPEG", quality=95)

    drafted = decode_image(data, 160).astype(int)
    whole = np.asarray(Image.open(io.BytesIO(data)).resize((160, 160), Image.Resampling.BILINEAR)).astype(int)

    assert np.abs(drafted - whole).mean() < 1.5


def png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")


def test_a_bomb_is_refused_by_its_header(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image.Image, "load", lambda _: pytest.fail("decoded"))

    assert reason_of(png_header(9000, 9000)) is RejectReason.TOO_MANY_PIXELS
    assert reason_of(png_header(14_000, 14_000)) is RejectReason.TOO_MANY_PIXELS


def test_broken_and_foreign_files_are_refused_with_their_reason() -> None:
    lesion = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
    whole = encode_image(lesion)

    assert reason_of(whole[: len(whole) // 2]) is RejectReason.TRUNCATED
    assert reason_of(encode_image(lesion, "PNG")[:-400]) is RejectReason.TRUNCATED
    assert reason_of(b"<html></html>") is RejectReason.NOT_AN_IMAGE
    assert reason_of(os.urandom(2000)) is RejectReason.NOT_AN_IMAGE
    for other in ("GIF", "TIFF", "BMP", "WEBP"):
        assert reason_of(encode_image(lesion, other)) is RejectReason.UNSUPPORTED_FORMAT
    assert reason_of(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n") is RejectReason.UNSUPPORTED_FORMAT


@given(st.binary(max_size=400), st.sampled_from([b"", b"\xff\xd8\xff\xe0", b"\x89PNG\r\n\x1a\n"]))
def test_no_bytes_raise_anything_but_a_rejection(tail: bytes, head: bytes) -> None:
    with pytest.raises(RejectedImage):
        decode_image(head + tail, 32)


@pytest.mark.parametrize("image_format", ["JPEG", "PNG"])
def test_a_thousand_bit_flips_end_in_pixels_or_a_rejection(image_format: str) -> None:
    generator = np.random.default_rng(7)
    whole = encode_image(generator.integers(0, 256, (24, 32, 3), np.uint8), image_format)
    outcomes = set()
    for _ in range(1000):
        damaged = bytearray(whole)
        damaged[int(generator.integers(len(whole)))] ^= 1 << int(generator.integers(8))
        try:
            assert decode_image(bytes(damaged), 16).shape == (16, 16, 3)
            outcomes.add("pixels")
        except RejectedImage as rejected:
            outcomes.add(rejected.reason.value)
    assert len(outcomes) > 1


def read_reason(root: Path, relative: str) -> RejectReason:
    with pytest.raises(RejectedImage) as caught:
        read_image_bytes(root, relative, max_bytes=LIMIT)
    assert str(caught.value) == caught.value.reason.value
    return caught.value.reason


def test_only_regular_files_below_the_root_are_read(tmp_path: Path) -> None:
    root = tmp_path / "archive"
    (root / "deep").mkdir(parents=True)
    (tmp_path / "secret.jpg").write_bytes(b"secret")
    (root / "deep" / "good.jpg").write_bytes(b"bytes")
    (root / "empty.jpg").touch()
    (root / "large.jpg").write_bytes(b"x" * (LIMIT + 1))
    (root / "folder.jpg").mkdir()
    os.mkfifo(root / "pipe.jpg")
    (root / "link.jpg").symlink_to(tmp_path / "secret.jpg")
    (root / "away").symlink_to(tmp_path)

    assert read_image_bytes(root, "deep/good.jpg", max_bytes=LIMIT) == b"bytes"
    assert read_reason(root, "gone.jpg") is RejectReason.MISSING_IMAGE
    assert read_reason(root, "empty.jpg") is RejectReason.EMPTY_FILE
    assert read_reason(root, "large.jpg") is RejectReason.TOO_LARGE_FILE
    assert read_reason(root, "folder.jpg") is RejectReason.NOT_A_REGULAR_FILE
    assert read_reason(root, "pipe.jpg") is RejectReason.NOT_A_REGULAR_FILE
    assert read_reason(root, "link.jpg") is RejectReason.SYMLINK
    assert read_reason(root, "away/secret.jpg") is RejectReason.UNSAFE_PATH
    for unsafe in ("../secret.jpg", str(tmp_path / "secret.jpg"), "deep/../../secret.jpg", "a\0.jpg", "", "."):
        assert read_reason(root, unsafe) is RejectReason.UNSAFE_PATH


def test_a_root_that_is_away_rejects_nobody(tmp_path: Path) -> None:
    (tmp_path / "unmounted").mkdir()

    for root in (tmp_path / "gone", tmp_path / "unmounted"):
        with pytest.raises(ArchiveUnavailable):
            read_image_bytes(root, "a.jpg", max_bytes=LIMIT)


@given(st.text(max_size=60))
def test_no_path_string_reads_what_is_not_there(relative: str) -> None:
    with pytest.raises((RejectedImage, ArchiveUnavailable)):
        read_image_bytes(Path(__file__).parent / "no such folder", relative, max_bytes=LIMIT)
