"""Golden pixels for every conversion, and a reason for every refusal."""

from __future__ import annotations

import io
import os
import stat
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from model import images
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


def coarse_image(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (12, 16, 3), np.uint8)
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "L", "I;16", "CMYK"])
@pytest.mark.parametrize("orientation", [1, 6])
def test_a_large_image_of_any_mode_is_resized_as_if_it_had_been_converted_whole(mode: str, orientation: int) -> None:
    # Given an image whose sides are no multiple of anything
    image = coarse_image(1203, 901)
    grey = np.asarray(image.convert("L")).astype(np.uint16) << 8
    stored = Image.fromarray(grey) if mode == "I;16" else image.convert(mode)
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = saved(stored, "JPEG" if mode == "CMYK" else "PNG", exif=exif)

    # If it is decoded, then it is as near as rounding to the slow way
    expected = image.convert("L").convert("RGB") if mode in {"L", "I;16"} else stored.convert("RGB")
    upright = expected.transpose(Image.Transpose.ROTATE_270) if orientation == 6 else expected
    whole = np.asarray(upright.resize((120, 90), Image.Resampling.BILINEAR)).astype(int)
    assert np.abs(decode_image(data, (120, 90)) - whole).mean() < 1.5


def test_a_large_image_is_converted_in_bands(monkeypatch: pytest.MonkeyPatch) -> None:
    # Given that a 16-bit or RGBA image needs several copies to be converted
    sizes = []
    convert = images._to_rgb

    def watch(image: Image.Image) -> Image.Image:
        sizes.append(image.width * image.height)
        return convert(image)

    monkeypatch.setattr(images, "_to_rgb", watch)

    # If a large one is decoded
    decode_image(saved(Image.new("RGBA", (3000, 2500))), 100)

    # Then no copy is larger than a band
    assert max(sizes) <= images._BAND_PIXELS
    assert sum(sizes) == 3000 * 2500


def test_an_ordinary_image_is_resized_exactly_as_in_training() -> None:
    image = coarse_image(600, 450)
    data = saved(image, "JPEG", quality=95)

    whole = Image.open(io.BytesIO(data)).resize((224, 224), Image.Resampling.BILINEAR)

    assert np.array_equal(decode_image(data, 224), np.asarray(whole))


def test_an_extreme_strip_and_an_animation_become_pixels() -> None:
    red = Image.new("RGB", (40, 40), (255, 0, 0))
    moving = saved(red, "PNG", save_all=True, append_images=[Image.new("RGB", (40, 40))])

    assert decode_image(saved(Image.new("RGB", (1, 60_000))), 32).shape == (32, 32, 3)
    assert tuple(decode_image(moving, 32)[16, 16]) == (255, 0, 0)


def test_a_camera_with_two_pictures_in_a_file_shows_the_first_and_is_decoded_small() -> None:
    first = Image.new("RGB", (1600, 1200), (200, 0, 0))
    data = saved(first, "MPO", save_all=True, append_images=[Image.new("RGB", (80, 60))])

    assert decode_image(data, 100)[50, 50, 0] > 190


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


def test_what_pillow_only_warns_about_is_refused() -> None:
    # Given a JPEG whose EXIF block points past its end
    entry = struct.pack("<H", 1) + struct.pack("<HHII", 0x010E, 2, 5000, 9000) + b"\0" * 4
    data = saved(Image.new("RGB", (40, 40)), "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0" + entry)

    assert reason_of(data) is RejectReason.UNREADABLE


def test_a_huge_text_chunk_is_refused_unpacked() -> None:
    text = zlib.compress(b"a" * 80_000_000)
    chunk = b"zTXt" + b"note\0\0" + text
    whole = saved(Image.new("RGB", (40, 40)))
    at = whole.index(b"IDAT") - 4
    bomb = struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))

    assert reason_of(whole[:at] + bomb + whole[at:]) is RejectReason.NOT_AN_IMAGE


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
    os.mknod(root / "socket.jpg", stat.S_IFSOCK | 0o600)
    (root / "link.jpg").symlink_to(tmp_path / "secret.jpg")
    (root / "away").symlink_to(tmp_path)

    assert read_image_bytes(root, "deep/good.jpg", max_bytes=LIMIT) == b"bytes"
    assert read_reason(root, "gone.jpg") is RejectReason.MISSING_IMAGE
    assert read_reason(root, "empty.jpg") is RejectReason.EMPTY_FILE
    assert read_reason(root, "large.jpg") is RejectReason.TOO_LARGE_FILE
    assert read_reason(root, "folder.jpg") is RejectReason.NOT_A_REGULAR_FILE
    assert read_reason(root, "pipe.jpg") is RejectReason.NOT_A_REGULAR_FILE
    assert read_reason(root, "socket.jpg") is RejectReason.NOT_A_REGULAR_FILE
    assert read_reason(root, "link.jpg") is RejectReason.SYMLINK
    assert read_reason(root, "away/secret.jpg") is RejectReason.UNSAFE_PATH
    for unsafe in (
        "../secret.jpg",
        str(tmp_path / "secret.jpg"),
        "deep/../../secret.jpg",
        "a\0.jpg",
        "\ud800.jpg",
        "",
        ".",
    ):
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
