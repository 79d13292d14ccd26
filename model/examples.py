"""Examples: what the help of each command of `lesion-model` ends with; a test parses every one of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

    import click

#: Command to its examples, without the program's name; "" is the program itself.
EXAMPLES: Final[Mapping[str, tuple[str, ...]]] = {
    "": ("synthesize archive", "predict lesion.jpg --age 55 --sex female --localization back"),
    "synthesize": ("synthesize archive --images 120 --broken 5",),
    "predict": ("predict lesion.jpg --age 55 --sex female --localization back", "predict lesion.jpg --json"),
    "explain": ("explain lesion.jpg --out explained",),
    "card": ("card",),
    "restate": ("restate artifact --out stated --explanation deletion.json",),
    "evaluate": ("evaluate ham10000 --plots plots",),
    "deletion-test": ("deletion-test ham10000 --images 150",),
    "summary": ("summary MobileNetV2",),
    "recipes": ("recipes",),
    "train": ("train ham10000 --run run --out artifact",),
    "cross-validate": ("cross-validate ham10000 --run run", "cross-validate ham10000 --run run --fold 0"),
    "tables": (
        "tables ham10000 --out tables --table 7 --backbone MobileNetV2",
        "tables ham10000 --out tables --split leaky --budget paper --large whole",
    ),
    "ablate": (
        "ablate ham10000 --run ablation",
        "ablate ham10000 --run ablation --form as-coded --fold 0 --stages 2x96 --images 1000",
    ),
    "curves": ("curves run --out curves.png",),
}


def add_examples(program: click.Group) -> None:
    """End the help of the program, and of each of its commands, with its examples.

    Args:
        program: `lesion-model`.

    Raises:
        KeyError: If a command has none.
    """
    for name, command in {"": program, **program.commands}.items():
        lines = [f"  lesion-model {example}" for example in EXAMPLES[name]]
        # The mark keeps click from filling the lines.
        command.epilog = "\n".join(["\b", "Examples:" if len(lines) > 1 else "Example:", *lines])
