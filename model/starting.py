"""What the weights of a backbone start from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from model.backbones import BACKBONES
from model.errors import ModelError


@dataclass(frozen=True, slots=True, kw_only=True)
class StartWeights:
    """What each backbone starts from.

    Attributes:
        files: Weights file of single backbones.
        otherwise: What every other one takes: "imagenet", None for random weights, a weights file, or the folder of a
            model to go on from.
    """

    files: Mapping[str, Path] = field(default_factory=dict)
    otherwise: Path | str | None = "imagenet"

    def of(self, backbone: str) -> Path | str | None:
        """What `model.backbones.build_backbone` takes for a backbone, or the folder of a model."""
        return self.files.get(backbone, self.otherwise)

    def name(self, *backbones: str) -> str:
        """Name what some backbones start from: "imagenet", "none", or names of files or folders."""
        names = ["none" if (weights := self.of(one)) is None else Path(weights).name for one in backbones]
        return ", ".join(dict.fromkeys(names))


def parse_weights(told: Sequence[str]) -> StartWeights:
    """Read start weights as people write them: "imagenet", "none", a path, or a backbone, "=" and a file.

    Raises:
        ModelError: One is none of these, or is not there.
    """
    files: dict[str, Path] = {}
    otherwise: Path | str | None = "imagenet"
    for one in told:
        backbone, _, file = one.partition("=")
        if one in ("imagenet", "none"):
            otherwise = None if one == "none" else one
        elif backbone in BACKBONES and Path(file).is_file():
            files[backbone] = Path(file)
        elif Path(one).exists():
            otherwise = Path(one)
        else:
            raise ModelError(
                f"--weights {one} is not imagenet, none, a file or folder that is there, or a backbone, = and a file."
            )
    return StartWeights(files=files, otherwise=otherwise)
