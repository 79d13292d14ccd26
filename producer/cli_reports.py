"""The command of `lesion-screen` that writes reports for people."""

from pathlib import Path

import click

# Nothing else is imported here, see `producer.cli`.


def _share(_context: click.Context, _option: click.Parameter, value: float | None) -> float | None:
    if value is not None and not 0 < value < 1:
        raise click.BadParameter("give a share between 0 and 1, such as 0.01.")
    return value


@click.command()
@click.argument("batch", type=click.IntRange(1, 2**63 - 1))
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), required=True, help="The folder to write.")
@click.option(
    "--all", "draw_all", is_flag=True, help="Have every image drawn, not only what was prioritised or referred."
)
@click.option("--budget", type=click.IntRange(1, 1_000_000), help="Lesions that are read a day.")
@click.option(
    "--prevalence",
    type=float,
    callback=_share,
    help="Share of melanoma among the lesions, such as 0.01: says how many the budget is expected to cover.",
)
@click.option("--top", type=click.IntRange(1), default=100_000, show_default=True, help="Lesions to rank at most.")
@click.option("--workers", type=click.IntRange(0, 256), help="With --all: worker processes to start here.")
def report(
    batch: int,
    out: Path,
    draw_all: bool,
    budget: int | None,
    prevalence: float | None,
    top: int,
    workers: int | None,
) -> int:
    """Write BATCH as a worklist to read in a browser.

    A folder of pages that needs no network: lesions ranked by their worst image, with thumbnails, attention and
    filters, what could not be assessed, and an overview. Open index.html in it.
    """
    if prevalence is not None and budget is None:
        raise click.UsageError("Give --budget with --prevalence.")
    from producer import reporting
    from producer.site import ReportOptions

    options = ReportOptions(out=out, top=top, budget=budget, prevalence=prevalence)
    return reporting.report(batch, options, draw_all=draw_all, workers=workers)
