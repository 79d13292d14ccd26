"""Architectures by name: those of the recipes, and the ten rows of the paper's Table 8."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Final

from model.backbones import BACKBONES, LAST, BackboneName
from model.network import BesideConfig, NetworkConfig


def paper_network(backbone: BackboneName, *, metadata: bool = True, cut: str | None = None) -> NetworkConfig:
    """Describe a network as the paper's notebooks build it.

    Where the notebooks state a total of parameters, this is theirs to the last one.

    Args:
        backbone: A key of `BACKBONES`.
        metadata: Whether it has the metadata branch.
        cut: A cut of the backbone; None takes the notebooks'.
    """
    row = BACKBONES[backbone]
    return NetworkConfig(
        backbone=backbone,
        attention="as-coded",
        metadata="paper" if metadata else "none",
        input_size=row.input_size,
        cut=cut or row.paper_cut,
        head="flatten",
    )


def default_network(backbone: BackboneName, *, least_size: int = 0, beside: tuple[int, ...] = ()) -> NetworkConfig:
    """Describe our own network on a backbone.

    Args:
        backbone: A key of `BACKBONES`.
        least_size: Height and width in pixels where its ImageNet weights were trained at less.
        beside: Heights and widths of further networks of this kind, beside it.
    """
    size = max(BACKBONES[backbone].input_size, least_size)
    others = tuple(BesideConfig(backbone=backbone, input_size=one) for one in beside)
    return NetworkConfig(backbone=backbone, input_size=size, beside=others, intermediate=True)


def recipe_network(recipe: str, backbone: BackboneName) -> NetworkConfig:
    """Describe the network that a recipe trains on a backbone.

    Args:
        recipe: A key of `model.recipes.RECIPES`.
        backbone: A key of `BACKBONES`.
    """
    return _RECIPE_NETWORKS[recipe](backbone)


_RECIPE_NETWORKS: Final[Mapping[str, Callable[[BackboneName], NetworkConfig]]] = {
    "default": partial(default_network, least_size=288),
    "pair": partial(default_network, least_size=288, beside=(224,)),
    "accelerated": default_network,
    "frozen": default_network,
    "paper-metadata": paper_network,
    "paper-augmented": partial(paper_network, metadata=False),
}


def _table_8() -> dict[str, NetworkConfig]:
    cuts = ("[:270]", "[:266]", "[:260]", "[:251]", "[:246]", "[:240]", "[:230]")
    rows = {cut: paper_network("MobileNetV3Large", cut=cut) for cut in cuts}
    plain = paper_network("MobileNetV3Large", metadata=False, cut=LAST)
    return rows | {
        "[:246] + Dense(512)": rows["[:246]"].model_copy(update={"hidden": 512}),
        "[:230] without metadata": paper_network("MobileNetV3Large", metadata=False, cut="[:230]"),
        "plain": plain.model_copy(update={"attention": "none"}),
    }


#: The paper's Table 8: seven cuts of MobileNetV3Large in ten rows. It does not say where the Dense(512) stands (here:
#: before the classifier) nor what "plain" leaves out (here: attention and metadata). On the 1x1 maps of [:230],
#: [:251], [:266] and [:270] attention is the constant 16, so those rows test none.
TABLE_8: Final[Mapping[str, NetworkConfig]] = _table_8()
