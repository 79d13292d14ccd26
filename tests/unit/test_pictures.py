"""Pictures: thumbnails in the image's proportions, overlays that are clear where the network did not look."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from model.errors import RejectedImage
from model.images import DecodedImage, decode_measured, encode_image
from model.pictures import blend_overlay, draw_overlay, draw_thumbnail


def filled(side: int, value: int, shown: tuple[int, int]) -> DecodedImage:
    return DecodedImage(pixels=np.full((side, side, 3), value, np.uint8), shown=shown)


@pytest.mark.parametrize(
    ("size", "drawn"), [((600, 450), (160, 120)), ((450, 600), (120, 160)), ((9000, 1), (160, 1)), ((5, 5), (160, 160))]
)
def test_a_thumbnail_has_the_proportions_of_its_image(size: tuple[int, int], drawn: tuple[int, int]) -> None:
    data = draw_thumbnail(filled(160, 200, size))

    with Image.open(io.BytesIO(data)) as found:
        assert (found.format, found.size) == ("JPEG", drawn)
        assert abs(found.getpixel((0, 0))[0] - 200) < 3  # type: ignore[index]


def test_an_overlay_is_opaque_where_the_network_looked_and_clear_elsewhere() -> None:
    # Given a map that is high in its upper left corner
    heat = np.zeros((5, 5), np.float32)
    heat[0, 0] = 3.0

    # If it is drawn for a wide image
    pixels = draw_overlay(heat, (24, 18))

    # Then that corner alone is covered, in the colour of the highest
    assert pixels.shape == (18, 24, 4)
    assert tuple(pixels[0, 0]) == (253, 231, 37, 200)
    assert pixels[-1, :, 3].max() == pixels[:, -1, 3].max() == 0


@pytest.mark.parametrize("image_format", ["JPEG", "PNG"])
def test_a_decoded_image_is_measured_as_it_is_seen(image_format: str) -> None:
    # Given an image that EXIF turns by a quarter
    exif = Image.Exif()
    exif[0x0112] = 6
    out = io.BytesIO()
    Image.new("RGB", (400, 300)).save(out, image_format, exif=exif)

    # Then that is said of it, however small it is decoded
    assert decode_measured(out.getvalue(), 8).shown == (300, 400)
    assert decode_measured(encode_image(np.zeros((30, 40, 3), np.uint8), image_format), 8).shown == (40, 30)


def test_an_overlay_laid_over_its_thumbnail_leaves_the_skin_where_it_is_clear() -> None:
    # Given grey skin and a map that is high in its upper left corner
    heat = np.zeros((5, 5), np.float32)
    heat[0, 0] = 3.0
    thumbnail = draw_thumbnail(filled(160, 100, (600, 450)))

    # If they are blended
    pixels = blend_overlay(thumbnail, heat).astype(int)

    # Then the picture is as large as the thumbnail, the corner has the colour of the highest at its opacity, and the
    # rest is the skin
    assert pixels.shape == (120, 160, 3)
    expected = np.array([253, 231, 37]) * 200 / 255 + 100 * 55 / 255
    assert np.abs(pixels[0, 0] - expected).max() <= 2
    assert np.abs(pixels[60:, 80:] - 100).max() <= 2


def test_a_map_without_evidence_for_the_diagnosis_leaves_the_skin_as_it_is() -> None:
    thumbnail = draw_thumbnail(filled(64, 255, (64, 32)))

    assert blend_overlay(thumbnail, np.full((2, 2), -1, np.float32)).min() >= 253


def test_a_broken_thumbnail_is_refused_when_it_is_to_be_blended() -> None:
    thumbnail = draw_thumbnail(filled(8, 0, (8, 8)))

    with pytest.raises(RejectedImage):
        blend_overlay(thumbnail[:40], np.eye(2, dtype=np.float32))
