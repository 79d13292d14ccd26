"""`lesion-model`: train a model, ask one about single images, and draw a synthetic archive."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import click

from model.errors import ModelError, RejectedImage
from model.examples import add_examples
from model.hush import hush_tensorflow
from model.labels import CLASSES
from model.options import training_options
from model.studies import add_studies

if TYPE_CHECKING:
    from model.classifier import Classifier
    from model.metadata import PatientMetadata
    from model.starting import StartWeights

#: Larger files are refused unread, as a worker does by default.
MAX_IMAGE_BYTES: Final = 50 * 1024 * 1024
#: Exit code where some images could not be scored.
SOME_FAILED: Final = 1


class _PlainErrors(click.Group):
    """Says a mistake in one sentence and exits with 2."""

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except ModelError as error:
            click.echo(f"lesion-model: {error}", err=True)
            ctx.exit(2)


@click.group(cls=_PlainErrors)
def main() -> None:
    """Train lesion-screen's models, ask them, and draw synthetic archives. Not a medical device."""
    hush_tensorflow()


@main.command()
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.option("--images", default=120, show_default=True, type=click.IntRange(1), help="Sound images.")
@click.option("--broken", default=5, show_default=True, type=click.IntRange(0), help="Files broken on purpose.")
@click.option("--seed", default=0, show_default=True, help="The same seed draws the same archive.")
def synthesize(folder: Path, images: int, broken: int, seed: int) -> None:
    """Draw a synthetic archive into FOLDER: dermoscopy-like images of nobody, with metadata."""
    from model.synthetic import synthesize_archive

    archive = synthesize_archive(folder, images=images, broken=broken, seed=seed)
    reasons = ", ".join(f"{count} {reason}" for reason, count in archive.rejected.items()) or "none"
    click.echo(f"Drew {images} synthetic images and {broken} broken entries into {folder} (broken: {reasons}).")


_model = click.option(
    "--model",
    "folder",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Artifact; else ours.",
)


def _images_of_a_patient(command: Callable[..., None]) -> Callable[..., None]:
    """Add what `predict` and `explain` share."""
    images = click.Path(exists=True, dir_okay=False, path_type=Path)
    for option in (
        click.option("--localization", help="Site of the lesion, in HAM10000's or the ISIC Archive's words."),
        click.option("--sex", help="female or male."),
        click.option("--age", type=click.FloatRange(0, 130), help="Years; the same patient for all images."),
        _model,
        click.argument("images", nargs=-1, required=True, type=images),
    ):
        command = option(command)
    return command


@main.command()
@_images_of_a_patient
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@click.pass_context
def predict(
    context: click.Context,
    images: tuple[Path, ...],
    folder: Path | None,
    age: float | None,
    sex: str | None,
    localization: str | None,
    as_json: bool,
) -> None:
    """Score IMAGES with the shipped model or --model; nothing is stored.

    Exits with 1 where an image could not be scored. For an archive, use `lesion-screen run`.
    """
    from model.artifact import shipped_artifact
    from model.classifier import Classifier
    from model.metadata import PatientMetadata

    patient = PatientMetadata(age=age, sex=sex, localization=localization)
    classifier = Classifier.load(folder or shipped_artifact())
    answers = [{"image": str(path), **_answer(classifier, path, patient)} for path in images]
    for answer in answers:
        click.echo(json.dumps(answer) if as_json else _sentence(answer))
    if not as_json:
        click.echo(f"Model {classifier.digest}. Not a medical device: a person must judge.", err=True)
    if any("rejected" in answer for answer in answers):
        context.exit(SOME_FAILED)


def _answer(classifier: Classifier, path: Path, patient: PatientMetadata) -> dict[str, Any]:
    from model.images import read_image_bytes

    try:
        pixels = classifier.decode(read_image_bytes(path.parent, path.name, max_bytes=MAX_IMAGE_BYTES)).pixels
    except RejectedImage as rejected:
        return {"rejected": rejected.reason.value}
    told = dataclasses.asdict(classifier.classify(pixels[None], [patient])[0])
    # A picture: `lesion-model explain` draws it.
    del told["evidence"]
    return {**told, "probabilities": dict(zip(CLASSES, told["probabilities"], strict=True)), "model": classifier.digest}


@main.command()
@_images_of_a_patient
@click.option("--out", required=True, type=click.Path(file_okay=False, path_type=Path), help="Folder of the PNGs.")
@click.pass_context
def explain(
    context: click.Context,
    images: tuple[Path, ...],
    folder: Path | None,
    age: float | None,
    sex: str | None,
    localization: str | None,
    out: Path,
) -> None:
    """Show where a model looked in IMAGES: NAME-explained.png has the image, its attention and Grad-CAM side by side.

    Whether a map says what the model uses is another question: `lesion-model deletion-test` asks it. Exits with 1
    where an image could not be read.
    """
    from model.artifact import shipped_artifact
    from model.explain import Explainer, explain_image
    from model.images import read_image_bytes
    from model.metadata import PatientMetadata
    from model.plots import plot_overlays, write_figure

    if len({path.stem for path in images}) < len(images):
        raise click.UsageError("Two images have one name, and so would their PNGs: explain them apart.")
    explainer = Explainer.load(folder or shipped_artifact())
    patient = PatientMetadata(age=age, sex=sex, localization=localization)
    out.mkdir(parents=True, exist_ok=True)
    rejected = False
    for path in images:
        try:
            data = read_image_bytes(path.parent, path.name, max_bytes=MAX_IMAGE_BYTES)
            pixels, maps = explain_image(explainer, data, patient)
        except RejectedImage as error:
            rejected = True
            click.echo(f"{path}: not explained ({error.reason.value})")
            continue
        target = out / f"{path.stem}-explained.png"
        write_figure(plot_overlays(pixels, maps), target)
        click.echo(f"{path}: {target}")
    if rejected:
        context.exit(SOME_FAILED)


def _sentence(answer: dict[str, Any]) -> str:
    if "rejected" in answer:
        return f"{answer['image']}: rejected ({answer['rejected']})"
    rank = "prioritised" if answer["prioritised"] else "not prioritised"
    referral = f", referred ({answer['refer_reason']})" if answer["referred"] else ""
    score, confidence = answer["malignant_score"], answer["confidence"]
    return f"{answer['image']}: {answer['diagnosis']} {confidence:.3f}, malignant score {score:.3f}, {rank}{referral}"


@main.command()
@_model
def card(folder: Path | None) -> None:
    """Print a model's card."""
    from model.artifact import shipped_artifact
    from model.card import read_card

    click.echo(read_card(folder or shipped_artifact()))


@main.command()
@click.argument("data", type=click.Path(exists=True, file_okay=False, path_type=Path))
@_model
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@click.option(
    "--plots",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for confusion.png, roc.png and reliability.png.",
)
def evaluate(data: Path, folder: Path | None, as_json: bool, plots: Path | None) -> None:
    """Judge a model on labelled images.

    DATA is a folder in HAM10000's layout; every figure stands with its 95 % interval by lesion.
    """
    from rich.console import Console
    from rich.progress import Progress

    from model.artifact import shipped_artifact
    from model.card import evaluation_tables
    from model.classifier import Classifier
    from model.dataset import read_labels
    from model.errors import TrainingDataError
    from model.evaluation import evaluate_verdicts
    from model.judging import judge_images

    rows = read_labels(data)
    if not rows:
        raise TrainingDataError("The data folder names no image.")
    classifier = Classifier.load(folder or shipped_artifact())
    with Progress(console=Console(stderr=True)) as bars:
        scoring = bars.add_task("Scoring", total=len(rows))
        verdicts = judge_images(classifier, rows, lambda count: bars.advance(scoring, count))
    if plots is not None:
        from model.plots import write_evaluation

        write_evaluation(verdicts, plots)
    found = evaluate_verdicts(verdicts)
    click.echo(found.model_dump_json(indent=1) if as_json else evaluation_tables(found))
    training = classifier.manifest.training
    click.echo(
        f"Model {classifier.digest} was trained on: {training.data.rstrip('.')}. On images it was trained on these "
        "figures are too good; those of its card are on lesions held out.",
        err=True,
    )


@main.command()
@click.argument("data", type=click.Path(exists=True, file_okay=False, path_type=Path))
@_model
@click.option("--images", "count", default=150, show_default=True, type=click.IntRange(2), help="Of as many lesions.")
@click.option("--fill", type=click.Choice(["border", "blur"]), default="border", help="What is put where it deletes.")
@click.option("--seed", default=0, show_default=True, help="Which images, and which random orders.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def deletion_test(
    data: Path, folder: Path | None, count: int, fill: Literal["border", "blur"], seed: int, as_json: bool
) -> None:
    """Ask whether a model's maps point at what it uses: delete what they mark, and see its diagnosis fall.

    On lesions of DATA's gate set (HAM10000's layout), which no model trained on.
    """
    from rich.console import Console
    from rich.progress import Progress

    from model.artifact import shipped_artifact
    from model.card import explanation_section
    from model.classifier import Classifier
    from model.dataset import read_labels
    from model.deletion import choose_images, run_deletion_test
    from model.errors import TrainingDataError
    from model.explain import Explainer

    rows = choose_images(read_labels(data), count, seed=seed)
    if not rows:
        raise TrainingDataError("The data folder has no lesion of the gate set: give one with more lesions.")
    source = folder or shipped_artifact()
    classifier, explainer = Classifier.load(source), Explainer.load(source)
    with Progress(console=Console(stderr=True)) as bars:
        deleting = bars.add_task("Deleting", total=len(rows))
        found = run_deletion_test(
            classifier, explainer, rows, fill=fill, seed=seed, on_image=lambda: bars.advance(deleting)
        )
    click.echo(found.model_dump_json(indent=1) if as_json else explanation_section(classifier.manifest, found))


@main.command()
@click.argument("backbone")
@click.option("--recipe", default="default", show_default=True, help="See `lesion-model recipes`.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def summary(backbone: str, recipe: str, as_json: bool) -> None:
    """State what a recipe's network on BACKBONE costs: parameters, and multiply-adds an image."""
    from rich.console import Console

    from model.recipes import configure
    from model.summary import summarise_network

    network = configure(recipe, backbone=backbone).network
    with Console(stderr=True).status(f"Building {backbone}"):
        figures = summarise_network(network)
    stated = {"recipe": recipe, **figures.model_dump()}
    click.echo(json.dumps(stated) if as_json else "\n".join(f"{name}: {value}" for name, value in stated.items()))


@main.command()
def recipes() -> None:
    """List the named recipes."""
    from model.recipes import RECIPES

    for name, recipe in RECIPES.items():
        click.echo(f"{name}: {recipe.summary}")


@main.command()
@training_options
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder of the new artifact.")
@click.option("--name", help="Name of the model; else that of its backbone.")
@click.option("--describe-data", default="HAM10000", show_default=True, help="Data, licence, attribution for the card.")
@click.option(
    "--fold",
    type=click.IntRange(0, 4),
    help="Hold this fold out and take every figure from it, instead of cross-validating and training on all.",
)
def train(
    data: Path,
    run: Path,
    weights: StartWeights,
    out: Path,
    name: str | None,
    describe_data: str,
    fold: int | None,
    **choices: Any,
) -> None:
    """Train on DATA (HAM10000's layout), calibrate on lesions held out and write an artifact.

    Trains six times: on four fifths of the lesions, for each fifth, and on all of them; --fold trains once. A run
    that was stopped goes on from its last epoch in the same --run folder. With KERAS_BACKEND=jax it trains and stops
    there, and needs no TensorFlow: take the --run folder to where TensorFlow is.
    """
    from model.build import Workshop, can_pack
    from model.dataset import read_labels
    from model.progress import TrainingBars
    from model.recipes import configure

    if out.exists():
        raise ModelError("The artifact's folder exists already: name a new one.")
    config = configure(**choices)
    with TrainingBars() as bars:
        workshop = Workshop(read_labels(data), config, weights=weights, run=run, report=bars.show)
        built = workshop.build(fold) if can_pack() else None
        if built is None:
            workshop.train_parts(fold)
    if built is None:
        click.echo("Trained. The same command judges and packs on TensorFlow: without KERAS_BACKEND, with this --run.")
        return
    from model.package import package_model, program_commit

    name = name or f"{config.network.backbones} with soft attention"
    manifest = package_model(built, out, name=name, data=describe_data, git_commit=program_commit())
    click.echo(f"Balanced accuracy on held-out lesions: {built.evaluation.balanced_accuracy:.3f}")
    click.echo(f"Wrote model {manifest.digest} to {out}; its card is MODEL_CARD.md there.")


@main.command()
@training_options
@click.option("--fold", "folds", multiple=True, type=click.IntRange(0, 4), help="Only these folds; may be repeated.")
def cross_validate(data: Path, run: Path, weights: StartWeights, folds: tuple[int, ...], **choices: Any) -> None:
    """Train on four fifths of DATA's lesions and judge the last fifth, five times over; prints the figures as JSON."""
    from model.build import Workshop
    from model.dataset import read_labels
    from model.evaluation import evaluate_out_of_fold
    from model.progress import TrainingBars
    from model.recipes import configure
    from model.splits import FOLDS

    config = configure(**choices)
    with TrainingBars() as bars:
        workshop = Workshop(read_labels(data), config, weights=weights, run=run, report=bars.show)
        judges = folds or range(FOLDS)
        workshop.insist_on_judges(judges)
        held_out = workshop.cross_validate(judges)
    _, evaluation = evaluate_out_of_fold(held_out)
    click.echo(evaluation.model_dump_json(indent=1))


add_studies(main)
add_examples(main)
