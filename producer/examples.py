"""Examples: what the help of each command of `lesion-screen` ends with; a test runs every one of them."""

from collections.abc import Mapping
from typing import Final

import click

#: Command to its examples, without the program's name; "" is the program itself.
EXAMPLES: Final[Mapping[str, tuple[str, ...]]] = {
    "": ("run ham10000 --out results", "status --watch"),
    "run": (
        "run ham10000 --out results",
        "run archive --metadata list.csv --columns image=file,age=years,sex=gender,localization=site",
    ),
    "submit": (
        "submit 'dicomweb://pacs.example/dicom-web?Modality=XC' --dry-run",
        "submit s3://bucket/prefix --name spring --priority 1",
    ),
    "status": ("status", "status 3 --watch"),
    "up": ("up --workers 2",),
    "down": ("down",),
    "serve": ("serve --workers 2",),
    "doctor": ("doctor", "doctor --quick --json"),
    "resume": ("resume 3", "resume 3 --workers 2"),
    "pause": ("pause 3",),
    "cancel": ("cancel 3",),
    "retry": ("retry 3", "retry 3 --reason missing_image"),
    "export": ("export 3 --out results.csv", "export 3 --format parquet --out results.parquet"),
    "verify": ("verify 3 --rehash", "verify --audit --head 5f70bf18a086007016e948b04aed3b82"),
    "forget": ("forget P-0417", "forget - --yes < reference.txt"),
    "purge": ("purge --older-than 365d",),
    "label": ("label 3 diagnoses.csv --problems odd.csv",),
    "train": (
        "train --data ham10000 --promote gate",
        "train --labels-from-ledger --from 90778549 --wait",
    ),
    "runs": ("runs list", "runs log 2"),
    "runs list": ("runs list --json",),
    "runs show": ("runs show 2",),
    "runs cancel": ("runs cancel 2",),
    "runs log": ("runs log 2",),
    "models": ("models list", 'models promote 90778549 --why "better on melanoma"'),
    "models list": ("models list --json",),
    "models show": ("models show 90778549",),
    "models promote": ('models promote 90778549 --why "better on melanoma"',),
    "models rollback": ('models rollback --why "refers too many"',),
    "rescreen": ("rescreen 3", "rescreen 3 --model 90778549"),
    "changes": ("changes 3 --from 90778549 --to 1c0ffee2 --out changes.csv",),
    "drift": ("drift 3", 'drift 3 --accept --why "as this clinic has always been"'),
    "report": ("report 3 --out worklist", "report 3 --out worklist --all --budget 200 --prevalence 0.01"),
    "dicom": (
        "dicom 3 --out reports --overlays",
        "dicom 3 --send dicomweb://pacs.hospital.example/dicom-web",
    ),
}


def add_examples(command: click.Command, name: str = "") -> None:
    """End the help of a command, and of those below it, with its examples.

    Args:
        command: A command or a group.
        name: What it is called, without the program's name.

    Raises:
        KeyError: If a command has none.
    """
    lines = [f"  lesion-screen {example}" for example in EXAMPLES[name]]
    # The mark keeps click from filling the lines.
    command.epilog = "\n".join(["\b", "Examples:" if len(lines) > 1 else "Example:", *lines])
    if isinstance(command, click.Group):
        for word, below in command.commands.items():
            add_examples(below, f"{name} {word}".strip())
