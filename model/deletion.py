"""The deletion test: whether a map points at what the model uses (Petsiuk, Das & Saenko 2018, RISE, section 4.1).

The pixels a map marks highest are deleted first; the sooner the probability of the diagnosis falls, the better the map
has found what the model uses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Final, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from model.bootstrap import DRAWS, Interval, LesionBootstrap, take_interval
from model.classifier import Classifier
from model.dataset import LabelledImage, read_image
from model.explain import Explainer
from model.images import blur_image, resize_map
from model.report import Explanation, MapFigures
from model.splits import in_gate_set

#: What deleted pixels become.
Fill: TypeAlias = Literal["border", "blur"]
#: Maps images `(n, s, s, 3)` uint8 to the probability of one class, `(n,)`.
Score: TypeAlias = Callable[[NDArray[np.uint8]], NDArray[np.float64]]

#: Deletions, of equal shares of the pixels: the map of a 160-pixel network has 25 places, and finer steps say no more.
STEPS: Final = 10
#: Random orders an image is deleted in; their areas are averaged.
RANDOM_ORDERS: Final = 5
#: Width of the border whose colour stands for skin, and the blur's deviation, as shares of the image's side: both leave
#: nothing of a lesion's structure.
BORDER_SHARE: Final = 1 / 16
BLUR_SHARE: Final = 1 / 8


def choose_images(rows: Sequence[LabelledImage], count: int, *, seed: int = 0) -> list[LabelledImage]:
    """Choose up to so many images of the gate set, which no model trained on, each of another lesion."""
    first = {row.lesion_id: row for row in reversed(rows) if in_gate_set(row.lesion_id)}
    lesions = sorted(first)
    drawn = np.random.default_rng(seed).permutation(len(lesions))[:count]
    return [first[lesions[index]] for index in drawn]


def delete_pixels(pixels: NDArray[np.uint8], fill: Fill) -> NDArray[np.uint8]:
    """Return an image of which everything is deleted.

    Args:
        pixels: `(s, s, 3)` uint8 RGB.
        fill: "border" gives the median colour of the image's border, which is skin where a lesion is photographed in
            the middle; "blur" gives the image without its structure.
    """
    side = len(pixels)
    if fill == "blur":
        return blur_image(pixels, side * BLUR_SHARE)
    width = max(1, round(side * BORDER_SHARE))
    inside = np.zeros((side, side), bool)
    inside[width:-width, width:-width] = True
    return np.broadcast_to(np.median(pixels[~inside], axis=0).astype(np.uint8), pixels.shape)


def order_pixels(
    heat: NDArray[np.floating] | None, shape: tuple[int, int], side: int, generator: np.random.Generator
) -> NDArray[np.intp]:
    """Order the pixels by a map, the highest first.

    Where the map does not decide, as Grad-CAM does not where it is 0, a random map of the same shape does: in the
    order of the pixels an image would be deleted from its top.

    Args:
        heat: `(h, w)`, or `(side, side)`; None orders at random: by the random map alone, so that deleted places are
            of the same size and smoothness as a map's. Single pixels at random would be another kind of damage.
        shape: `(h, w)` of the random map.
        side: Height and width of the image.
        generator: Draws the random map.

    Returns:
        `(side * side,)` indices of flattened pixels.
    """
    drawn = generator.permutation(np.arange(shape[0] * shape[1], dtype=np.float32)).reshape(shape)
    chance = resize_map(drawn, (side, side)).ravel()
    if heat is None:
        return np.argsort(-chance, kind="stable")
    return np.lexsort((-chance, -resize_map(heat.astype(np.float32), (side, side)).ravel()))


def centre_heat(side: int) -> NDArray[np.float32]:
    """Give the map that is highest in the middle and knows nothing of the model: `(side, side)` float32."""
    offsets = np.arange(side, dtype=np.float32) - (side - 1) / 2
    return -np.hypot(offsets[:, None], offsets[None, :])


def deletion_areas(
    score: Score, pixels: NDArray[np.uint8], deleted: NDArray[np.uint8], orders: Iterable[NDArray[np.intp]]
) -> NDArray[np.float64]:
    """Area under the probability as more and more pixels are deleted, by the trapezoid rule over the share deleted.

    Args:
        score: Probability of the diagnosis.
        pixels: `(s, s, 3)` uint8.
        deleted: The same with everything deleted, from `delete_pixels`.
        orders: k orders from `order_pixels`.

    Returns:
        `(k,)` areas in [0, 1].
    """
    whole, none = score(np.stack([pixels, deleted]))
    areas = []
    for order in orders:
        stages = _delete_stages(pixels, deleted, order)
        curve = np.concatenate([[whole], score(stages), [none]])
        areas.append(np.trapezoid(curve, dx=1 / STEPS))
    return np.array(areas)


def _delete_stages(pixels: NDArray[np.uint8], deleted: NDArray[np.uint8], order: NDArray[np.intp]) -> NDArray[np.uint8]:
    """Delete 1 to STEPS - 1 tenths: `(STEPS - 1, s, s, 3)`."""
    stages = np.repeat(pixels.reshape(1, -1, 3), STEPS - 1, axis=0)
    flat = deleted.reshape(-1, 3)
    for step, stage in enumerate(stages, start=1):
        gone = order[: round(len(order) * step / STEPS)]
        stage[gone] = flat[gone]
    return stages.reshape(-1, *pixels.shape)


def run_deletion_test(
    classifier: Classifier,
    explainer: Explainer,
    rows: Sequence[LabelledImage],
    *,
    fill: Fill = "border",
    draws: int = DRAWS,
    seed: int = 0,
    on_image: Callable[[], None] = lambda: None,
) -> Explanation:
    """Compare the maps of a model with Grad-CAM, with random orders and with the order from the middle outwards.

    Args:
        classifier: The model, whose calibrated posterior of its first diagnosis is watched.
        explainer: The same model's.
        rows: At least one image.
        fill: What deleted pixels become.
        draws: Bootstrap draws.
        seed: Seed of the random orders and of the bootstrap.
        on_image: Called after each image.

    Raises:
        RejectedImage: An image cannot be read.
    """
    generator = np.random.default_rng(seed)
    areas = []
    for row in rows:
        areas.append(_judge_image(classifier, explainer, row, fill, generator))
        on_image()
    by_order = {name: np.array([one[name] for one in areas]) for name in areas[0]}
    return compare_orders(by_order, [row.lesion_id for row in rows], fill=fill, draws=draws, seed=seed)


def _judge_image(
    classifier: Classifier, explainer: Explainer, row: LabelledImage, fill: Fill, generator: np.random.Generator
) -> dict[str, float]:
    pixels = classifier.decode(read_image(row), row.frame).pixels
    maps = explainer.explain(pixels[None], [row.patient])
    diagnosis = int(maps.diagnoses[0])

    def score(images: NDArray[np.uint8]) -> NDArray[np.float64]:
        said = classifier.classify(images, [row.patient] * len(images))
        return np.array([one.probabilities[diagnosis] for one in said])

    side, grid = len(pixels), maps.grad_cam[0].shape
    heats = {"grad_cam": maps.grad_cam[0], "centre": centre_heat(side)}
    if maps.evidence is not None:
        heats = {"evidence": maps.evidence[0], **heats}
    if maps.attention is not None:
        heats = {"attention": maps.attention[0], **heats}
    wanted = [*heats.values(), *([None] * RANDOM_ORDERS)]
    orders = [order_pixels(heat, grid, side, generator) for heat in wanted]
    found = deletion_areas(score, pixels, delete_pixels(pixels, fill), orders)
    areas = dict(zip(heats, found.tolist(), strict=False))
    return {**areas, "random": float(found[-RANDOM_ORDERS:].mean())}


def compare_orders(
    areas: dict[str, NDArray[np.float64]],
    lesion_ids: Sequence[str],
    *,
    fill: Fill = "border",
    draws: int = DRAWS,
    seed: int = 0,
) -> Explanation:
    """Compare orders on the same images, each difference with its interval by lesion, image by image.

    Args:
        areas: `(n,)` areas by order; "random" must be among them.
        lesion_ids: Lesion of each image.
        fill: What deleted pixels became.
        draws: Bootstrap draws.
        seed: Seed of the bootstrap.
    """
    bootstrap = LesionBootstrap(lesion_ids, draws=draws, seed=seed)
    images = bootstrap.sum(np.ones((len(lesion_ids), 1)))[:, 0]

    def interval(values: NDArray[np.float64]) -> Interval:
        return take_interval(values.mean(), bootstrap.sum(values[:, None])[:, 0] / images)

    attention = areas.get("attention")
    figures = {
        name: MapFigures(
            area=interval(values),
            less_than_random=interval(areas["random"] - values),
            attention_minus=None if attention is None or name == "attention" else interval(attention - values),
        )
        for name, values in areas.items()
        if name != "random"
    }
    return Explanation(images=len(lesion_ids), maps=figures, random=interval(areas["random"]), fill=fill)
