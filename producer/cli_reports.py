"""The command of `lesion-screen` that writes reports for people."""

from pathlib import Path

import click
from click.core import ParameterSource

# Nothing else is imported here, see `producer.cli`.


def _share(_context: click.Context, _option: click.Parameter, value: float | None) -> float | None:
    if value is not None and not 0 < value < 1:
        raise click.BadParameter("give a share between 0 and 1, such as 0.01.")
    return value


@click.command()
@click.argument("batch", type=click.IntRange(1, 2**63 - 1), required=False)
@click.option("--model", help='Instead of BATCH: a model, by the first digits of its digest, or "active".')
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
    batch: int | None,
    model: str | None,
    out: Path,
    draw_all: bool,
    budget: int | None,
    prevalence: float | None,
    top: int,
    workers: int | None,
) -> int:
    """Write BATCH as a worklist to read in a browser, or the evaluation of a model.

    A folder of pages that needs no network: lesions ranked by their worst image, with thumbnails, evidence and
    filters, what could not be assessed, and an overview. Open index.html in it.

    With --model: how well the model does, for whom, and where confirmed diagnoses contradict it. Open evaluation.html.
    """
    if (batch is None) == (model is None):
        raise click.UsageError("Give either BATCH or --model.")
    if model is not None:
        _refuse_beside_model()
    if prevalence is not None and budget is None:
        raise click.UsageError("Give --budget with --prevalence.")
    from producer import reporting
    from producer.site import ReportOptions

    if model is not None:
        return reporting.report_model(model, out)
    options = ReportOptions(out=out, top=top, budget=budget, prevalence=prevalence)
    return reporting.report(batch or 0, options, draw_all=draw_all, workers=workers)


def _refuse_beside_model() -> None:
    context = click.get_current_context()
    for name in ("draw_all", "budget", "prevalence", "top", "workers"):
        if context.get_parameter_source(name) is not ParameterSource.DEFAULT:
            raise click.UsageError("--model takes --out alone; the other options are about a batch.")
