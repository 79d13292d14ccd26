"""Golden pixels for every conversion, and a reason for every refusal."""

from __future__ import annotations

import contextlib
import io
import os
import stat
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from model import images
from model.errors import ArchiveUnavailable, RejectedImage, RejectReason
from model.images import decode_image, encode_image, read_image_bytes

LIMIT = 1_000_000


@pytest.fixture(autouse=True)
def _own_filters() -> None:
    # pytest puts its own filters on top of those that the module set when it was imported.
    images.filter_warnings()


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


def quadrants(mode: str, *values: object) -> Image.Image:
    """Four squares of 16 pixels: upper left, upper right, lower left, lower right."""
    image = Image.new(mode, (32, 32))
    for number, value in enumerate(values):
        left, top = number % 2 * 16, number // 2 * 16
        image.paste(value, (left, top, left + 16, top + 16))  # type: ignore[arg-type]
    return image


def decoded_quadrants(data: bytes) -> list[tuple[int, ...]]:
    """The middles of the four squares; the target is as large as the image, so that nothing is interpolated."""
    pixels = decode_image(data, 32)
    return [tuple(map(int, pixels[y, x])) for y in (8, 24) for x in (8, 24)]


def test_a_palette_and_its_transparent_entries_become_rgb_on_white() -> None:
    # Given four colours, one of them transparent and one half so
    image = quadrants("P", 0, 1, 2, 3)
    image.putpalette([10, 20, 30, 200, 100, 0, 0, 0, 255, 0, 128, 255])

    opaque = decoded_quadrants(saved(image))
    with_holes = decoded_quadrants(saved(image, transparency=bytes((255, 0, 128, 255))))

    assert opaque == [(10, 20, 30), (200, 100, 0), (0, 0, 255), (0, 128, 255)]
    assert with_holes == [(10, 20, 30), (255, 255, 255), (127, 127, 255), (0, 128, 255)]


def test_alpha_is_laid_on_white_in_proportion() -> None:
    colours = ((10, 20, 30, 255), (10, 20, 30, 0), (0, 0, 0, 51), (200, 0, 100, 204))

    # Then each is colour · alpha + 255 · (1 - alpha)
    assert decoded_quadrants(saved(quadrants("RGBA", *colours))) == [
        (10, 20, 30),
        (255, 255, 255),
        (204, 204, 204),
        (211, 51, 131),
    ]


def png(colour_type: int, depth: int, pixels: list[bytes], *, before: bytes = b"") -> bytes:
    """Write a PNG of four squares from the bytes of one pixel each."""
    rows = b"".join(
        b"\0" + pixels[row // 16 * 2] * 16 + pixels[row // 16 * 2 + 1] * 16 for row in range(32)
    )  # filter 0
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", 32, 32, depth, colour_type, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + before + png_chunk(b"IDAT", zlib.compress(rows)) + png_chunk(b"IEND", b"")


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def test_sixteen_bits_a_sample_lose_their_lower_byte_whatever_the_colours() -> None:
    grey = [struct.pack(">H", value) for value in (0x0000, 0x12FF, 0x80FF, 0xFFFF)]
    colour = [struct.pack(">3H", value, 0x01FF, 0xFE00) for value in (0x0000, 0x12FF, 0x80FF, 0xFFFF)]
    alpha = [struct.pack(">2H", 0x20FF, value) for value in (0xFFFF, 0x0000)] * 2

    assert decoded_quadrants(png(0, 16, grey)) == [(0,) * 3, (0x12,) * 3, (0x80,) * 3, (255,) * 3]
    assert decoded_quadrants(png(2, 16, colour)) == [(high, 1, 254) for high in (0, 0x12, 0x80, 255)]
    assert decoded_quadrants(png(4, 16, alpha)) == [(0x20,) * 3, (255,) * 3] * 2


def test_one_bit_and_grey_with_alpha_become_rgb() -> None:
    assert decoded_quadrants(saved(quadrants("1", 0, 1, 1, 0))) == [(0,) * 3, (255,) * 3, (255,) * 3, (0,) * 3]
    assert decoded_quadrants(saved(quadrants("LA", (50, 255), (50, 0), (0, 51), (255, 255)))) == [
        (50,) * 3,
        (255,) * 3,
        (204,) * 3,
        (255,) * 3,
    ]


#: Inks of four squares, and what they show on white paper: 255 · (1 - ink) · (1 - black).
INKS = [(0, 255, 255, 0), (255, 0, 0, 0), (0, 0, 0, 255), (51, 102, 0, 51)]
SHOWN = [(255, 0, 0), (0, 255, 255), (0, 0, 0), (163, 122, 204)]


@pytest.mark.parametrize("adobe", [True, False], ids=["Adobe's marker", "no marker"])
def test_a_cmyk_jpeg_becomes_rgb_from_the_inverted_inks_that_every_program_writes(*, adobe: bool) -> None:
    data = saved(quadrants("CMYK", *INKS), "JPEG", quality=100)
    at = data.index(b"\xff\xee\x00\x0eAdobe")
    given = data if adobe else data[:at] + data[at + 16 :]

    assert np.abs(np.array(decoded_quadrants(given)) - SHOWN).max() <= 2


def test_a_ycck_jpeg_becomes_rgb() -> None:
    # Given Adobe's other form: the inverted inks of red, a cyan, in YCbCr, and no black
    red = Image.merge("CMYK", [Image.new("L", (32, 32), 255 - value) for value in (179, 171, 0, 255)])
    data = bytearray(saved(red, "JPEG", quality=100))
    transform = data.index(b"\xff\xee\x00\x0eAdobe") + 15
    assert data[transform] == 0
    data[transform] = 2

    assert np.abs(np.array(decoded_quadrants(bytes(data))) - (255, 0, 0)).max() <= 4


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

    def watch(image: Image.Image, *table: Any) -> Image.Image:
        sizes.append(image.width * image.height)
        return convert(image, *table)

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


@pytest.mark.parametrize(("width", "height"), [(41, 30_011), (30_011, 41), (900, 1201)])
def test_a_strip_that_is_resized_in_bands_is_what_it_is_in_one(
    width: int, height: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given images of more pixels than a band has, too narrow for averaging, one of them lying on its side
    monkeypatch.setattr(images, "_WHOLE_PIXELS", 0)
    generator = np.random.default_rng(0)
    image = Image.fromarray(generator.integers(0, 256, (height, width, 3), np.uint8))
    turned = Image.Exif()
    turned[0x0112] = 6

    # If they are decoded
    upright = decode_image(saved(image), (300, 100)).astype(int)
    sideways = decode_image(saved(image, exif=turned), (100, 300)).astype(int)

    # Then they are, to a rounding, what Pillow makes of them at once
    whole = image.resize((300, 100), Image.Resampling.BILINEAR)
    assert np.abs(upright - np.asarray(whole)).max() <= 1
    assert np.abs(sideways - np.asarray(whole.transpose(Image.Transpose.ROTATE_270))).max() <= 1


def test_a_jpeg_that_ends_within_a_pixel_is_resized_in_bands_as_in_one(monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a JPEG of which a quarter of each side is no whole number of pixels
    data = saved(coarse_image(1601, 4001), "JPEG")
    once = decode_image(data, 200).astype(int)

    # If it is resized in bands
    monkeypatch.setattr(images, "_WHOLE_PIXELS", 0)

    # Then nothing moves
    assert np.abs(decode_image(data, 200) - once).max() <= 1


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
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    content = png_chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + header + content


def test_a_bomb_is_refused_by_its_header(monkeypatch: pytest.MonkeyPatch) -> None:
    wide = jpeg_of(65_000, 65_000)
    monkeypatch.setattr(Image.Image, "load", lambda _: pytest.fail("decoded"))

    # 50, 81, 100 and 196 megapixels: Pillow itself warns from 89 and refuses from 179 on
    for side in (7072, 9000, 10_000, 14_000):
        assert reason_of(png_header(side, side)) is RejectReason.TOO_MANY_PIXELS
    # And a line longer than a JPEG's may be, however few its pixels
    assert reason_of(png_header(65_536, 1)) is RejectReason.TOO_MANY_PIXELS
    assert reason_of(png_header(1, 65_536)) is RejectReason.TOO_MANY_PIXELS
    assert reason_of(wide) is RejectReason.TOO_MANY_PIXELS


def jpeg_of(width: int, height: int) -> bytes:
    """A JPEG that claims other sides than it has."""
    data = saved(Image.new("RGB", (40, 40)), "JPEG")
    at = data.index(b"\xff\xc0") + 5
    return data[:at] + struct.pack(">HH", height, width) + data[at + 4 :]


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


#: EXIF that says "turned by 90 degrees" first, and then goes wrong in some way.
TURNED = struct.pack("<HHII", 0x0112, 3, 1, 6)
DAMAGED_EXIF = {
    "points past its end": b"II*\0\x08\0\0\0"
    + struct.pack("<H", 2)
    + TURNED
    + struct.pack("<HHII", 270, 2, 5000, 9000),
    "is cut off": b"II*\0\x08\0\0\0" + struct.pack("<H", 9) + TURNED + b"\x0e\x01",
    "has no entries": b"II*\0\x08\0\0\0",
    "is no EXIF": b"nothing of the kind",
    "points at itself": b"II*\0\x08\0\0\0" + struct.pack("<H", 1) + TURNED + struct.pack("<I", 8),
    "has an orientation of many numbers": b"II*\0\x08\0\0\0" + struct.pack("<HHHII", 1, 0x0112, 3, 9, 8) + bytes(20),
    "has an orientation in words": b"II*\0\x08\0\0\0" + struct.pack("<HHHI4s", 1, 0x0112, 2, 4, b"abc") + bytes(4),
    "is empty": b"",
}


@pytest.mark.parametrize("damage", DAMAGED_EXIF)
@pytest.mark.parametrize("image_format", ["JPEG", "PNG"])
def test_damaged_exif_costs_no_picture(damage: str, image_format: str) -> None:
    # Given a sound picture, red above and blue below
    upright = Image.new("RGB", (40, 40), (200, 0, 0))
    upright.paste((0, 0, 200), (0, 20, 40, 40))

    # If what describes it is damaged
    pixels = decode_image(saved(upright, image_format, exif=b"Exif\0\0" + DAMAGED_EXIF[damage]), 32)

    # Then it is shown as it lies, or turned where that could still be read
    assert {int(pixels[y, x].argmax()) for y, x in ((4, 16), (28, 16), (16, 4), (16, 28))} <= {0, 2}
    assert pixels.max() > 180


def test_a_camera_file_whose_second_picture_is_damaged_shows_the_first() -> None:
    first = Image.new("RGB", (64, 48), (200, 0, 0))
    data = bytearray(saved(first, "MPO", save_all=True, append_images=[Image.new("RGB", (64, 48))]))
    at = data.index(b"MPF\0") + 4
    data[at : at + 40] = b"\xff" * 40

    assert decode_image(bytes(data), 32)[16, 16, 0] > 190


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


def seed_files() -> dict[str, bytes]:
    """One small file of every kind that is decoded, each with a description of itself."""
    noise = Image.fromarray(np.random.default_rng(7).integers(0, 256, (24, 32, 3), np.uint8))
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a lesion"
    return {
        "JPEG": saved(noise, "JPEG", exif=exif),
        "progressive JPEG": saved(noise, "JPEG", progressive=True, exif=exif, icc_profile=b"profile" * 9),
        "CMYK JPEG": saved(noise.convert("CMYK"), "JPEG"),
        "two pictures": saved(noise, "MPO", save_all=True, append_images=[noise], exif=exif),
        "PNG": saved(noise, "PNG", exif=exif),
        "RGBA PNG": saved(noise.convert("RGBA"), "PNG", exif=exif),
        "palette PNG": saved(noise.quantize(16), "PNG", transparency=b"\x80" * 16),
        "animated PNG": saved(noise, "PNG", save_all=True, append_images=[noise.convert("L").convert("RGB")]),
    }


SEEDS = seed_files()


def with_right_checksums(data: bytes) -> bytes:
    """Mend the checksums of a PNG, so that damage reaches what lies behind them."""
    if not data.startswith(b"\x89PNG"):
        return data
    mended, at = bytearray(data), 8
    while at + 12 <= len(data):
        end = at + 8 + int.from_bytes(data[at : at + 4], "big")
        mended[end : end + 4] = struct.pack(">I", zlib.crc32(data[at + 4 : end]))[: max(len(data) - end, 0)]
        at = end + 4
    return bytes(mended)


def outcome(data: bytes) -> str:
    """Decode, and let nothing pass but pixels and a rejection."""
    try:
        assert decode_image(data, 16).shape == (16, 16, 3)
    except RejectedImage as rejected:
        return rejected.reason.value
    return "pixels"


@pytest.mark.parametrize("kind", SEEDS)
def test_two_thousand_bit_flips_end_in_pixels_or_a_rejection(kind: str) -> None:
    generator = np.random.default_rng(7)
    whole = SEEDS[kind]
    outcomes = set()
    for number in range(2000):
        damaged = bytearray(whole)
        damaged[int(generator.integers(len(whole)))] ^= 1 << int(generator.integers(8))
        outcomes.add(outcome(with_right_checksums(bytes(damaged)) if number % 2 else bytes(damaged)))
    assert len(outcomes) > 1
    assert "pixels" in outcomes


@pytest.mark.parametrize("kind", SEEDS)
def test_a_file_cut_off_anywhere_ends_in_pixels_or_a_rejection(kind: str) -> None:
    whole = SEEDS[kind]

    outcomes = {outcome(whole[:length]) for length in range(len(whole))}

    assert "truncated" in outcomes


@given(data=st.data(), kind=st.sampled_from(sorted(SEEDS)))
@settings(max_examples=300, deadline=None)
def test_no_splice_of_sound_files_raises_anything_but_a_rejection(data: st.DataObject, kind: str) -> None:
    # Given a sound file, a stretch of which is replaced by a stretch of another, by noise or by nothing
    whole = SEEDS[kind]
    first, last = sorted(data.draw(st.tuples(st.integers(0, len(whole)), st.integers(0, len(whole)))))
    other = data.draw(st.sampled_from([*SEEDS.values(), b""]))
    start, end = sorted(data.draw(st.tuples(st.integers(0, len(other)), st.integers(0, len(other)))))
    middle = data.draw(st.one_of(st.just(other[start:end]), st.binary(max_size=64)))

    # Then it is pixels or a rejection
    outcome(with_right_checksums(whole[:first] + middle + whole[last:]))


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


def test_a_file_swapped_after_submit_is_not_followed(tmp_path: Path) -> None:
    # Given a file and a folder that were found sound, and a secret beside the archive
    root = tmp_path / "archive"
    (root / "deep").mkdir(parents=True)
    (root / "deep" / "a.jpg").write_bytes(b"pixels")
    (tmp_path / "away").mkdir()
    (tmp_path / "away" / "a.jpg").write_bytes(b"secret")
    assert read_image_bytes(root, "deep/a.jpg", max_bytes=LIMIT) == b"pixels"

    # If the file becomes a link, and then its folder does
    (root / "deep" / "a.jpg").unlink()
    (root / "deep" / "a.jpg").symlink_to(tmp_path / "away" / "a.jpg")
    assert read_reason(root, "deep/a.jpg") is RejectReason.SYMLINK
    (root / "deep").rename(tmp_path / "old")
    (root / "deep").symlink_to(tmp_path / "away")

    # Then neither is followed
    assert read_reason(root, "deep/a.jpg") is RejectReason.UNSAFE_PATH


def test_a_device_is_not_read() -> None:
    # A folder with devices in it is on every machine; to make one takes root.
    assert read_reason(Path("/dev"), "zero") is RejectReason.NOT_A_REGULAR_FILE


#: Text made of what leads out of a folder, and of names that are there.
_ways = st.lists(
    st.sampled_from(
        ["..", ".", "/", "//", "~", "\\", "a.jpg", "deep", "b.jpg", "away", "link.jpg", "secret.jpg", "\0"]
    ),
    max_size=9,
).map("".join)


@given(way=st.one_of(_ways, _ways.map(lambda way: f"/{way}"), st.text(max_size=60)))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=400, deadline=None)
def test_whatever_a_path_says_only_what_lies_below_the_root_is_read(tmp_path: Path, way: str) -> None:
    # Given two files in an archive, a secret beside it, and links to the secret and its folder
    root = tmp_path / "archive"
    if not root.exists():
        (root / "deep").mkdir(parents=True)
        for place in (root / "a.jpg", root / "deep" / "b.jpg"):
            place.write_bytes(b"inside")
        (tmp_path / "secret.jpg").write_bytes(b"secret")
        (root / "link.jpg").symlink_to(tmp_path / "secret.jpg")
        (root / "away").symlink_to(tmp_path)

    # Then any path is refused or leads inside
    with contextlib.suppress(RejectedImage):
        assert read_image_bytes(root, way, max_bytes=LIMIT) == b"inside"
