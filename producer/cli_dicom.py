"""The command of `lesion-screen` that gives verdicts back as DICOM objects."""

from pathlib import Path

import click

# Nothing else is imported here, see `producer.cli`.


@click.command()
@click.argument("batch", type=click.IntRange(1, 2**63 - 1))
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="The folder to write files into.")
@click.option("--send", "pacs", help="The PACS to store them in: dicomweb://HOST:PORT/PATH.")
@click.option("--overlays", is_flag=True, help="Also where the network looked, as Secondary Captures.")
@click.option("--deidentify", is_flag=True, help="Take out who the patients are (PS3.15, Basic Profile).")
def dicom(batch: int, out: Path | None, pacs: str | None, overlays: bool, deidentify: bool) -> int:
    """Write BATCH's verdicts as DICOM objects, or store them in a PACS.

    A Structured Report (TID 1500) an image, marked as unverified and not for diagnosis, in the study of its source.
    The same verdict is always the same object, so that writing or sending again makes no second one.

    With --deidentify identifiers are replaced, consistently but not as in the archive: references to the sources lead
    only to sources that were de-identified with the same key.
    """
    if out is None and pacs is None:
        raise click.UsageError("Give --out or --send, or both.")
    from producer import returning

    options = returning.ReturnOptions(out=out, pacs=pacs, overlays=overlays, deidentify=deidentify)
    return returning.give_back(batch, options)
