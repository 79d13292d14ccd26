"""Random views of training images: geometry and colour, drawn with numpy and applied to a batch by Keras."""

from __future__ import annotations

from typing import Any, Final, Protocol

import keras
import numpy as np
from keras import ops
from numpy.typing import NDArray


class Augmentation(Protocol):
    """How views are made; `draw` is seeded by its generator alone, `apply` is deterministic."""

    def draw(self, generator: np.random.Generator, count: int) -> tuple[NDArray[Any], ...]:
        """Draw the parameters of `count` views."""
        ...

    def apply(self, images: Any, size: int, *drawn: Any) -> Any:
        """Make `(n, size, size, 3)` float32 views in [0, 255] of `(n, h, w, 3)` uint8 images."""
        ...


class Whole:
    """The image as it is, resized."""

    def draw(self, generator: np.random.Generator, count: int) -> tuple[NDArray[Any], ...]:
        """Draw nothing."""
        del generator, count
        return ()

    def apply(self, images: Any, size: int, *drawn: Any) -> Any:
        """Resize with bilinear interpolation."""
        del drawn
        return resize(images, size)


class Crops:
    """Crops of half to all of the area, flips both ways, transposition and colour: the default recipe's.

    One `crop_and_resize` a batch crops, scales and flips.
    """

    def draw(self, generator: np.random.Generator, count: int) -> tuple[NDArray[Any], ...]:
        """Draw boxes, colour matrices and whether the batch is transposed; see `random_crops`."""
        boxes, colours = random_crops(generator, count)
        return boxes, colours, np.asarray(generator.integers(0, 2), bool)

    def apply(self, images: Any, size: int, *drawn: Any) -> Any:
        """Crop, flip, transpose and tint."""
        boxes, colours, turned = drawn
        views = _crop_and_resize(images, boxes, size)
        views = ops.cond(ops.convert_to_tensor(turned), lambda: ops.transpose(views, [0, 2, 1, 3]), lambda: views)
        return _tint(views, colours)


class Turns:
    """Crops of a third to all of the area, turned by any angle, flipped and tinted: for runs of many epochs.

    What lies beyond the border mirrors what lies within.
    """

    def draw(self, generator: np.random.Generator, count: int) -> tuple[NDArray[Any], ...]:
        """Draw `(count, 6)` float32 maps from view to image, both in [-1, 1], and colour matrices."""
        scale = np.sqrt(generator.uniform(0.35, 1.0, count))
        stretch = np.exp(generator.uniform(np.log(3 / 4), np.log(4 / 3), count) / 2)
        angle = generator.uniform(-np.pi, np.pi, count)
        flip = generator.choice((-1.0, 1.0), count)
        shifts = generator.uniform(-1.0, 1.0, (2, count)) * (1.0 - scale)
        across, down = scale * stretch, scale / stretch
        cos, sin = np.cos(angle), np.sin(angle)
        maps = [flip * across * cos, -across * sin, shifts[0], flip * down * sin, down * cos, shifts[1]]
        return np.stack(maps, axis=1).astype(np.float32), _colours(generator, count)

    def apply(self, images: Any, size: int, *drawn: Any) -> Any:
        """Sample each view through its map, and tint it."""
        maps, colours = drawn
        return _tint(_sample(images, maps, size, mirror=True), colours)


class Affine:
    """Rotation by any angle, shift and zoom by up to a tenth, flips both ways: the paper's second recipe."""

    def draw(self, generator: np.random.Generator, count: int) -> tuple[NDArray[Any], ...]:
        """Draw `(count, 6)` float32 maps from view to image, both in [-1, 1]."""
        angle = generator.uniform(-np.pi, np.pi, count)
        zoom = generator.uniform(0.9, 1.1, count)
        flips = generator.choice((-1.0, 1.0), (2, count))
        # 0.1 of the image's width is 0.2 of the interval [-1, 1].
        shifts = generator.uniform(-0.2, 0.2, (2, count))
        cos, sin = np.cos(angle) * zoom, np.sin(angle) * zoom
        maps = [flips[0] * cos, -flips[1] * sin, shifts[0], flips[0] * sin, flips[1] * cos, shifts[1]]
        return (np.stack(maps, axis=1).astype(np.float32),)

    def apply(self, images: Any, size: int, *drawn: Any) -> Any:
        """Resize, then sample each view through its map; beyond the border the nearest pixel goes on."""
        (maps,) = drawn
        return _sample(resize(images, size), maps, size, mirror=False)


AUGMENTATIONS: Final[dict[str, Augmentation]] = {
    "none": Whole(),
    "crops": Crops(),
    "turns": Turns(),
    "affine": Affine(),
}


def random_crops(generator: np.random.Generator, count: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Draw crops and colour changes for `count` images.

    Returns:
        Boxes `(count, 4)` float32 as `crop_and_resize` takes them (area 0.5 to 1, aspect 3/4 to 4/3, flipped both
        ways at random), and colour matrices `(count, 3, 3)` float32: brightness, saturation and a per-channel gain.
    """
    area = generator.uniform(0.5, 1.0, count)
    aspect = np.exp(generator.uniform(np.log(3 / 4), np.log(4 / 3), count))
    height = np.minimum(np.sqrt(area / aspect), 1.0)
    width = np.minimum(np.sqrt(area * aspect), 1.0)
    top = generator.uniform(0.0, 1.0 - height)
    left = generator.uniform(0.0, 1.0 - width)
    rows = np.stack([top, top + height], axis=1)
    columns = np.stack([left, left + width], axis=1)
    flips = generator.integers(0, 2, (2, count)).astype(bool)
    rows[flips[0]] = rows[flips[0], ::-1]
    columns[flips[1]] = columns[flips[1], ::-1]
    boxes = np.stack([rows[:, 0], columns[:, 0], rows[:, 1], columns[:, 1]], axis=1)
    return boxes.astype(np.float32), _colours(generator, count)


def _colours(generator: np.random.Generator, count: int) -> NDArray[np.float32]:
    brightness = generator.uniform(0.85, 1.15, count)[:, None, None]
    saturation = generator.uniform(0.8, 1.2, count)[:, None, None]
    gains = generator.uniform(0.93, 1.07, (count, 1, 3))
    grey = np.full((3, 3), 1 / 3)
    colours = brightness * (saturation * np.eye(3) + (1 - saturation) * grey) * gains
    return np.asarray(colours, np.float32)


def _tint(views: Any, colours: Any) -> Any:
    return ops.clip(ops.einsum("nhwc,ncd->nhwd", views, colours), 0.0, 255.0)


def resize(images: Any, size: int) -> Any:
    """Resize `(n, h, w, 3)` images to `(n, size, size, 3)` float32, bilinearly and without smoothing."""
    return ops.image.resize(ops.cast(images, "float32"), (size, size))


def _crop_and_resize(images: Any, boxes: Any, size: int) -> Any:
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        return tf.image.crop_and_resize(images, boxes, tf.range(tf.shape(images)[0]), (size, size))
    # The same, as two products of matrices: what an accelerator is made for.
    _, height, width, _ = images.shape
    down = _between(boxes[:, 0], boxes[:, 2], height, size)
    across = _between(boxes[:, 1], boxes[:, 3], width, size)
    rows = ops.einsum("nsh,nhwc->nswc", down, ops.cast(images, "float32"))
    return ops.einsum("ntw,nswc->nstc", across, rows)


def _between(first: Any, last: Any, length: int, size: int) -> Any:
    """Weigh `length` pixels for `size` places from `first` to `last`, in shares of the length: `(n, size, length)`."""
    steps = ops.arange(size, dtype="float32") / max(size - 1, 1)
    places = (first[:, None] + (last - first)[:, None] * steps) * (length - 1)
    return ops.relu(1.0 - ops.abs(places[:, :, None] - ops.arange(length, dtype="float32")))


def _sample(images: Any, maps: Any, size: int, *, mirror: bool) -> Any:
    """Sample `(n, size, size, 3)` views of `(n, h, w, 3)` images bilinearly.

    Args:
        images: Numbers of any type.
        maps: `(n, 6)` float32 a, b, c, d, e, f: the view's (x, y) lies at (a x + b y + c, d x + e y + f) of the image,
            all in [-1, 1] from the first pixel's middle to the last one's.
        size: Height and width of the views.
        mirror: Whether the image is mirrored beyond its border; else its last pixel goes on.
    """
    height, width = images.shape[1:3]
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        return tf.raw_ops.ImageProjectiveTransformV3(
            images=tf.cast(images, tf.float32),
            transforms=_pixel_maps(maps, size, height, width),
            output_shape=tf.constant([size, size]),
            fill_value=tf.constant(0.0),
            interpolation="BILINEAR",
            fill_mode="REFLECT" if mirror else "NEAREST",
        )
    a, b, c, d, e, f = (column[:, None, None] for column in ops.unstack(maps, axis=1))
    steps = ops.linspace(-1.0, 1.0, size)
    x = (a * steps + b * steps[:, None] + c + 1.0) * (width - 1) / 2
    y = (d * steps + e * steps[:, None] + f + 1.0) * (height - 1) / 2
    return _interpolate(images, _inside(x, width, mirror=mirror), _inside(y, height, mirror=mirror))


def _pixel_maps(maps: Any, size: int, height: int, width: int) -> Any:
    """Return maps from the view's pixels to the image's, `(n, 8)`, as `ImageProjectiveTransformV3` takes them."""
    a, b, c, d, e, f = ops.unstack(maps, axis=1)
    across, down = (width - 1) / (size - 1), (height - 1) / (size - 1)
    x0 = (width - 1) / 2 * (1 + c - a - b)
    y0 = (height - 1) / 2 * (1 + f - d - e)
    zeros = ops.zeros_like(a)
    return ops.stack([a * across, b * across, x0, d * down, e * down, y0, zeros, zeros], axis=1)


def _inside(places: Any, length: int, *, mirror: bool) -> Any:
    if mirror:
        # As "abcd" goes on in "dcba|abcd|dcba", whose pixels' middles lie half a pixel from the mirror.
        places = ops.abs(ops.mod(places + 0.5 + length, 2.0 * length) - length) - 0.5
    return ops.clip(places, 0.0, length - 1.0)


def _interpolate(images: Any, x: Any, y: Any) -> Any:
    left, top = ops.floor(x), ops.floor(y)
    right, below = ops.minimum(left + 1, images.shape[2] - 1.0), ops.minimum(top + 1, images.shape[1] - 1.0)
    rows = ops.arange(images.shape[0])[:, None, None]

    def pixels(down: Any, across: Any) -> Any:
        return ops.cast(images[rows, ops.cast(down, "int32"), ops.cast(across, "int32")], "float32")

    share, fall = (x - left)[..., None], (y - top)[..., None]
    upper = pixels(top, left) * (1 - share) + pixels(top, right) * share
    lower = pixels(below, left) * (1 - share) + pixels(below, right) * share
    return upper * (1 - fall) + lower * fall
