"""`lesion-model`: train a model, ask one about single images, and draw a synthetic archive."""

from __future__ import annotations

import dataclasses
import json
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from model.errors import ModelError, RejectedImage
from model.labels import CLASSES

if TYPE_CHECKING:
    from model.classifier import Classifier
    from model.metadata import PatientMetadata

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


@main.command()
@click.argument("images", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--model", "folder", type=click.Path(exists=True, file_okay=False, path_type=Path), help="Artifact.")
@click.option("--age", type=click.FloatRange(0, 130), help="Years; the same patient for all images.")
@click.option("--sex", help="female or male.")
@click.option("--localization", help="Site of the lesion, in HAM10000's or the ISIC Archive's words.")
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
        pixels = classifier.decode(read_image_bytes(path.parent, path.name, max_bytes=MAX_IMAGE_BYTES))
    except RejectedImage as rejected:
        return {"rejected": rejected.reason.value}
    (prediction,) = classifier.classify(pixels[None], [patient])
    probabilities = dict(zip(CLASSES, prediction.probabilities, strict=True))
    return {**dataclasses.asdict(prediction), "probabilities": probabilities, "model": classifier.digest}


def _sentence(answer: dict[str, Any]) -> str:
    if "rejected" in answer:
        return f"{answer['image']}: rejected ({answer['rejected']})"
    rank = "prioritised" if answer["prioritised"] else "not prioritised"
    referral = f", referred ({answer['refer_reason']})" if answer["referred"] else ""
    score, confidence = answer["malignant_score"], answer["confidence"]
    return f"{answer['image']}: {answer['diagnosis']} {confidence:.3f}, malignant score {score:.3f}, {rank}{referral}"


@main.command()
@click.argument("data", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder of the new artifact.")
@click.option("--run", required=True, type=click.Path(path_type=Path), help="Folder of checkpoint and curves.")
@click.option("--weights", default="imagenet", show_default=True, help="Backbone weights: imagenet, or a file.")
@click.option("--name", default="MobileNetV2 with soft attention", show_default=True, help="Name of the model.")
@click.option("--describe-data", default="HAM10000", show_default=True, help="Data, licence, attribution for the card.")
@click.option("--epochs", default=16, show_default=True, type=click.IntRange(1))
@click.option("--input-size", default=160, show_default=True, type=click.IntRange(32, 1024), help="Pixels.")
@click.option("--fold", default=0, show_default=True, type=click.IntRange(0, 4), help="Lesions held out to judge by.")
def train(
    data: Path,
    out: Path,
    run: Path,
    weights: str,
    name: str,
    describe_data: str,
    epochs: int,
    input_size: int,
    fold: int,
) -> None:
    """Train on DATA (HAM10000's layout), calibrate on held-out lesions and write an artifact.

    A run that was stopped goes on from its last epoch in the same --run folder.
    """
    from model.build import BuildConfig, build_model
    from model.network import NetworkConfig
    from model.package import package_model
    from model.training import TrainingConfig

    if out.exists():
        raise ModelError("The artifact's folder exists already: name a new one.")
    config = BuildConfig(
        network=NetworkConfig(input_size=input_size), training=TrainingConfig(epochs=epochs), fold=fold
    )
    built = build_model(data, config, weights=weights, run=run, report=_report_epoch)
    manifest = package_model(built, out, name=name, data=describe_data, git_commit=_commit())
    click.echo(f"Balanced accuracy on held-out lesions: {manifest.metrics['balanced_accuracy']:.3f}")
    click.echo(f"Wrote model {manifest.digest} to {out}; its card is MODEL_CARD.md there.")


def _report_epoch(row: dict[str, float]) -> None:
    click.echo(f"epoch {row['epoch']:.0f}: loss {row['loss']:.4f}, {row['seconds']:.0f} s")


def _commit() -> str:
    command = ["git", "rev-parse", "HEAD"]
    try:
        found = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return "unknown"
    return found.stdout.strip() if found.returncode == 0 else "unknown"
