"""Random views of training images: geometry and colour, drawn with numpy and applied to a batch in TensorFlow."""

from __future__ import annotations

from typing import Any, Final, Protocol

import numpy as np
import tensorflow as tf
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
        return tf.image.resize(images, (size, size))


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
        views = tf.image.crop_and_resize(images, boxes, tf.range(tf.shape(images)[0]), (size, size))
        views = tf.cond(turned, lambda: tf.transpose(views, [0, 2, 1, 3]), lambda: views)
        return tf.clip_by_value(tf.einsum("nhwc,ncd->nhwd", views, colours), 0.0, 255.0)


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
        resized = tf.image.resize(images, (size, size))
        half = (size - 1) / 2
        # From [-1, 1] to pixels: x_in = a x + b y + c, about the centre of the image.
        a, b, c, d, e, f = tf.unstack(maps, axis=1)
        x0 = half * (1 + c - a - b)
        y0 = half * (1 + f - d - e)
        zeros = tf.zeros_like(a)
        return tf.raw_ops.ImageProjectiveTransformV3(
            images=resized,
            transforms=tf.stack([a, b, x0, d, e, y0, zeros, zeros], axis=1),
            output_shape=tf.constant([size, size]),
            fill_value=tf.constant(0.0),
            interpolation="BILINEAR",
            fill_mode="NEAREST",
        )


AUGMENTATIONS: Final[dict[str, Augmentation]] = {"none": Whole(), "crops": Crops(), "affine": Affine()}


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
    brightness = generator.uniform(0.85, 1.15, count)[:, None, None]
    saturation = generator.uniform(0.8, 1.2, count)[:, None, None]
    gains = generator.uniform(0.93, 1.07, (count, 1, 3))
    grey = np.full((3, 3), 1 / 3)
    colours = brightness * (saturation * np.eye(3) + (1 - saturation) * grey) * gains
    return boxes.astype(np.float32), colours.astype(np.float32)
