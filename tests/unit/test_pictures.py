"""Pictures: thumbnails in the image's proportions, overlays that are clear where the network did not look."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from db.pictures import drawn_input, map_path, thumb_path
from model.images import encode_image, glance_size
from model.pictures import OVERLAY_PIXELS, draw_overlay, draw_thumbnail


@pytest.mark.parametrize(
    ("size", "drawn"), [((600, 450), (160, 120)), ((450, 600), (120, 160)), ((9000, 1), (160, 1)), ((5, 5), (160, 160))]
)
def test_a_thumbnail_has_the_proportions_of_its_image(size: tuple[int, int], drawn: tuple[int, int]) -> None:
    data = draw_thumbnail(np.full((160, 160, 3), 200, np.uint8), size)

    with Image.open(io.BytesIO(data)) as found:
        assert (found.format, found.size) == ("JPEG", drawn)
        assert abs(found.getpixel((0, 0))[0] - 200) < 3  # type: ignore[index]


def test_an_overlay_is_opaque_where_the_network_looked_and_clear_elsewhere() -> None:
    # Given a map that is high in its upper left corner
    heat = np.zeros((5, 5), np.float32)
    heat[0, 0] = 3.0

    # If it is drawn for a wide image
    with Image.open(io.BytesIO(draw_overlay(heat, (600, 450)))) as found:
        pixels = np.asarray(found)

    # Then that corner alone is covered, in the colour of the highest
    assert pixels.shape == (OVERLAY_PIXELS * 3 // 4, OVERLAY_PIXELS, 4)
    assert tuple(pixels[0, 0]) == (253, 231, 37, 200)
    assert pixels[-1, :, 3].max() == pixels[:, -1, 3].max() == 0


@pytest.mark.parametrize("image_format", ["JPEG", "PNG"])
def test_a_glance_measures_an_image_as_it_is_seen(image_format: str) -> None:
    # Given an image that EXIF turns by a quarter
    exif = Image.Exif()
    exif[0x0112] = 6
    out = io.BytesIO()
    Image.new("RGB", (40, 30)).save(out, image_format, exif=exif)

    assert glance_size(out.getvalue()) == (30, 40)
    assert glance_size(encode_image(np.zeros((30, 40, 3), np.uint8), image_format)) == (40, 30)


def test_the_input_can_be_read_off_the_names_of_its_pictures() -> None:
    names = [thumb_path("1" * 64), map_path("1" * 64, "a" * 64)]

    assert {drawn_input(name.partition("/")[2]) for name in names} == {"1" * 64}
    assert names[1] != map_path("1" * 64, "b" * 64)
