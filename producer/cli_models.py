"""The commands of `lesion-screen` about models: labels, training runs, versions and what another version changes."""

from pathlib import Path
from typing import Any

import click

# Nothing else is imported here, see `producer.cli`.

_json = click.option("--json", "as_json", is_flag=True, help="Print JSON alone.")
_batch = click.argument("batch", type=click.IntRange(1, 2**63 - 1))


def model_commands() -> list[click.Command]:
    """List the commands that `producer.cli` adds to its own.

    Returns:
        Commands and groups.
    """
    return [label, train, runs, models, rescreen, changes, drift]


@click.command()
@_batch
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--problems", type=click.Path(path_type=Path), help="File to list every line in that was not used.")
@_json
def label(batch: int, file: Path, problems: Path | None, as_json: bool) -> int:
    """Feed confirmed diagnoses back.

    FILE is a CSV about BATCH's images, with the columns image_id, dx, dx_type, who and when.
    """
    from producer import labelling

    return labelling.label(batch, file, problems=problems, as_json=as_json)


@click.command()
@_batch
@click.option("--accept", is_flag=True, help="Compare later batches of its model with BATCH.")
@click.option("--why", help="With --accept: the reason, which the audit trail keeps.")
@_json
def drift(batch: int, accept: bool, why: str | None, as_json: bool) -> int:
    """Show how unlike BATCH is to what its model was judged on.

    Age, body site, malignant score and distance, as population stability indices. Of an archive that is always a
    little different, the first batch that was found good may be accepted as the site's own reference.
    """
    if accept != bool(why):
        raise click.UsageError('Give --accept and --why "the reason" together.')
    from producer import drift as command

    return command.show_drift(batch, accept=accept, why=why, as_json=as_json)


@click.group()
def models() -> None:
    """List models, promote one, or go back."""


_why = click.option("--why", required=True, help="The reason, which the audit trail keeps.")


@models.command("list")
@_json
def list_models(as_json: bool) -> int:
    """List the models, the active one among them."""
    from producer import versions

    return versions.show_models(as_json=as_json)


@models.command("show")
@click.argument("model")
def show_model(model: str) -> int:
    """Print everything known of MODEL as JSON.

    MODEL is its digest, or the first six digits of it or more.
    """
    from producer import versions

    return versions.show_model(model)


@models.command("promote")
@click.argument("model")
@_why
def promote_model(model: str, why: str) -> int:
    """Let new batches take MODEL.

    MODEL is its digest, or the first six digits of it or more.
    """
    from producer import versions

    return versions.promote(model, why)


@models.command("rollback")
@_why
def roll_back_model(why: str) -> int:
    """Go back to the model that was active before."""
    from producer import versions

    return versions.roll_back(why)


@click.command()
@_batch
@click.option("--model", help="By the first digits of its digest; the active one by default.")
def rescreen(batch: int, model: str | None) -> int:
    """Screen BATCH again with another model.

    The archive becomes a batch of that model, which waits behind all other work.
    """
    from producer import versions

    return versions.rescreen(batch, model)


@click.command()
@_batch
@click.option("--from", "before", required=True, help="A model, by the first digits of its digest.")
@click.option("--to", "after", required=True, help="The other model.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="A CSV file for all of them.")
@_json
def changes(batch: int, before: str, after: str, out: Path | None, as_json: bool) -> int:
    """List where two models differ on BATCH.

    What is newly prioritised comes first, by its new score; each model is taken at its own operating point.
    """
    from producer import versions

    return versions.show_changes(batch, before, after, out=out, as_json=as_json)


@click.command()
@click.option("--recipe", default="default", show_default=True, help="See `lesion-model recipes`.")
@click.option("--backbone", help="Another backbone than the recipe's.")
@click.option("--input-size", type=click.IntRange(32, 1024), help="Another input size in pixels.")
@click.option("--stages", help='Epochs and sizes in turn, such as "4x128,8x224".')
@click.option("--data", type=click.Path(path_type=Path), help="A folder in HAM10000's layout.")
@click.option("--labels-from-ledger", is_flag=True, help="Learn from the confirmed diagnoses of the ledger.")
@click.option("--from", "parent", help="A model to go on from, by the first digits of its digest.")
@click.option("--weights", default="imagenet", show_default=True, help="Without --from: imagenet, none, or a file.")
@click.option("--cross-validate", is_flag=True, help="Judge on all five folds; six times as long.")
@click.option("--promote", type=click.Choice(["never", "gate"]), default="never", show_default=True)
@click.option("--wait", is_flag=True, help="Wait for the end; without WORKER_BROKER_URL it is waited for anyway.")
@_json
def train(
    stages: str | None,
    data: Path | None,
    labels_from_ledger: bool,
    parent: str | None,
    weights: str,
    wait: bool,
    as_json: bool,
    **fields: Any,
) -> int:
    """Train a model, and let the gate judge it.

    With --promote gate it becomes the active one if the gate can exclude that it is worse.
    """
    if (data is None) != labels_from_ledger:
        raise click.UsageError("Give a folder with --data, or --labels-from-ledger.")
    from producer import training

    # The training worker runs in another folder.
    fields |= {"stages": stages, "data": None if data is None else str(data.absolute())}
    fields["weights"] = weights if weights in {"imagenet", "none"} else str(Path(weights).absolute())
    return training.train(fields, parent=parent, wait=wait, as_json=as_json)


_run = click.argument("run", type=click.IntRange(1, 2**63 - 1))


@click.group()
def runs() -> None:
    """List training runs, show one, or cancel it."""


@runs.command("list")
@_json
def list_runs(as_json: bool) -> int:
    """List the training runs, newest first."""
    from producer import training

    return training.show_runs(as_json=as_json)


@runs.command("show")
@_run
def show_run(run: int) -> int:
    """Print everything known of RUN as JSON."""
    from producer import training

    return training.show_run(run)


@runs.command("cancel")
@_run
def cancel_run(run: int) -> int:
    """Stop RUN at its next step."""
    from producer import training

    return training.cancel(run)


@runs.command("log")
@_run
@_json
def log_run(run: int, as_json: bool) -> int:
    """Print what happened in RUN."""
    from producer import training

    return training.show_log(run, as_json=as_json)
