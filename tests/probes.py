"""Images that show no skin, and belong before a person: a grey card, a page of text, a lesion's mask, noise, a cat."""

from collections.abc import Callable
from importlib.resources import as_file, files
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Pixels: TypeAlias = NDArray[np.uint8]
#: As HAM10000's images are published.
WIDTH, HEIGHT = 600, 450
WORDS = ("the", "patient", "lesion", "margin", "of", "report", "and", "biopsy", "was", "examined", "histology", "on")


def grey_card(generator: np.random.Generator) -> Pixels:
    """A uniform card under even light, with a sensor's noise; 18 % grey and lighter and darker ones."""
    shade = generator.uniform(60, 220)
    noise = generator.normal(0, 2, (HEIGHT, WIDTH, 1))
    return np.clip(shade + noise, 0, 255).astype(np.uint8).repeat(3, axis=2)


def page_of_text(generator: np.random.Generator) -> Pixels:
    """Black lines on paper."""
    page = Image.new("RGB", (WIDTH, HEIGHT), (int(generator.integers(235, 256)),) * 3)
    pen, size = ImageDraw.Draw(page), int(generator.integers(12, 26))
    for top in range(20, HEIGHT - 30, size + 6):
        line = " ".join(generator.choice(WORDS, 14))
        pen.text((25, top), line, fill=(20, 20, 20), font=ImageFont.load_default(size))
    return np.asarray(page)


def lesion_mask(generator: np.random.Generator) -> Pixels:
    """A white blob on black, as segmentations of lesions are published (ISIC 2018, task 1)."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    middle = generator.uniform(0.35, 0.65, 2) * (HEIGHT, WIDTH)
    down, right = rows - middle[0], columns - middle[1]
    angle, wanted = np.arctan2(down, right), generator.uniform(60, 200)
    # An outline that wavers a little, the more slowly the more.
    for waves in range(2, 7):
        depth, turn = generator.uniform(0, 0.3) / waves, generator.uniform(0, 2 * np.pi)
        wanted = wanted * (1 + depth * np.cos(waves * angle + turn))
    return np.where(np.hypot(down, right) < wanted, 255, 0).astype(np.uint8)[..., None].repeat(3, axis=2)


def noise(generator: np.random.Generator) -> Pixels:
    """Every pixel drawn for itself."""
    return generator.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)


def photographs() -> dict[str, Pixels]:
    """Give scikit-image's pictures by name: of a cat ("chelsea"), the moon, a retina, stained tissue, text and more."""
    with as_file(files("skimage") / "data") as folder:
        paths = sorted([*folder.glob("*.png"), *folder.glob("*.jpg")])
        return {path.stem: np.asarray(Image.open(path).convert("RGB")) for path in paths}


def view_of(photo: Pixels, generator: np.random.Generator) -> Pixels:
    """A part of a photograph, half to all of its sides, mirrored or not, at HAM10000's size."""
    height, width, _ = photo.shape
    share = generator.uniform(0.5, 1)
    top, left = (int(generator.uniform(0, (1 - share) * side)) for side in (height, width))
    part = photo[top : top + int(share * height), left : left + int(share * width)]
    if generator.random() < 0.5:
        part = part[:, ::-1]
    return np.asarray(Image.fromarray(np.ascontiguousarray(part)).resize((WIDTH, HEIGHT)))


DRAWN: Final[dict[str, Callable[[np.random.Generator], Pixels]]] = {
    "grey card": grey_card,
    "page of text": page_of_text,
    "lesion mask": lesion_mask,
    "noise": noise,
}
