"""Pictures of a screened image for a worklist: what the network saw, small, and what spoke for its diagnosis."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from model.images import DecodedImage, decode_image, encode_image, measure_image, resize_map

#: How opaque an overlay is where the map is highest, of 255: the skin stays visible.
_MOST_OPAQUE: Final = 200

#: Viridis at nine even steps (van der Walt and Smith 2015), which is read with any colour vision.
_VIRIDIS: Final = np.array(
    [
        *([68, 1, 84], [71, 44, 122], [59, 81, 139], [44, 113, 142], [33, 144, 141]),
        *([39, 173, 129], [92, 200, 99], [170, 220, 50], [253, 231, 37]),
    ]
)


def _colour_table() -> NDArray[np.uint8]:
    shares, steps = np.linspace(0, 1, 256), np.linspace(0, 1, len(_VIRIDIS))
    colours = [np.interp(shares, steps, _VIRIDIS[:, channel]) for channel in range(3)]
    return np.stack([*colours, shares * _MOST_OPAQUE], axis=1).round().astype(np.uint8)


#: `(256, 4)` uint8: colour and opacity of a share in 255ths.
_COLOURS: Final = _colour_table()


def draw_thumbnail(image: DecodedImage) -> bytes:
    """Draw what the network saw in the image's own proportions; nothing is decoded a second time.

    Args:
        image: The network's input, and the image's size, of which only the ratio counts.

    Returns:
        A JPEG whose longest side is the input's.
    """
    return encode_image(image.pixels, size=fit_size(image.shown, max(image.pixels.shape[:2])))


def draw_overlay(heat: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Draw which places speak for a diagnosis, to be laid over the image; a worklist's page draws the same.

    Args:
        heat: `(h, w)` float32; what is below 0 speaks against it, and is not drawn.
        size: Width and height in pixels.

    Returns:
        `(height, width, 4)` uint8 RGB with opacity: viridis, and clear where the map is low, so that the skin is seen.
    """
    return _COLOURS[np.rint(spread_map(heat, size) * 255).astype(np.uint8)]


def blend_overlay(thumbnail: bytes, heat: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Lay over a thumbnail which places speak for the diagnosis.

    Args:
        thumbnail: As `draw_thumbnail` made it.
        heat: `(h, w)` float32, see `draw_overlay`.

    Returns:
        `(height, width, 3)` uint8 RGB, as large as the thumbnail.

    Raises:
        RejectedImage: If the thumbnail is broken.
    """
    size = measure_image(thumbnail)
    layer = draw_overlay(heat, size).astype(np.float32)
    opacity = layer[..., 3:] / 255
    return np.rint(decode_image(thumbnail, size) * (1 - opacity) + layer[..., :3] * opacity).astype(np.uint8)


def fit_size(size: tuple[int, int], longest: int) -> tuple[int, int]:
    """Scale a width and height so that the longer one is `longest`, and neither is less than 1."""
    scale = longest / max(size)
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def spread_map(heat: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
    """Spread a map over an image, as shares of its largest value.

    Args:
        heat: `(h, w)`; what is below 0 counts as 0.
        size: Width and height of the image in pixels.

    Returns:
        `(height, width)` float32 in [0, 1]; 0 everywhere where the map is.
    """
    spread = np.maximum(resize_map(np.maximum(heat, 0), size), 0)
    return spread / np.maximum(spread.max(), np.finfo(np.float32).tiny)
