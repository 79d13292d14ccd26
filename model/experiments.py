"""Runs named trainings at a chosen budget, each once, and keeps what came out."""

from __future__ import annotations

import gc
import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias, TypeVar

import keras
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from model.artifact import replace_file
from model.backbones import LEAST_SIZES, BackboneName
from model.bootstrap import Interval, LesionBootstrap
from model.build import BuildConfig, Workshop
from model.calibration import posterior
from model.crossfit import HeldOut
from model.dataset import LabelledImage
from model.errors import TrainingDiverged
from model.measures import measure, take_intervals
from model.network import NetworkConfig
from model.paper import TABLE_1
from model.recipes import configure
from model.splits import FOLDS, LEAKY, assign_folds, choose_part, leaky_folds
from model.starting import StartWeights
from model.training import CHECKPOINT, CURVES, Progress, TrainingConfig

_Thing = TypeVar("_Thing")

Split: TypeAlias = Literal["lesion", "leaky"]

#: Of an experiment's images so many are trained on at least: four folds of five, less the tenth that the plateau
#: schedule watches.
_TRAINED_SHARE: Final = 0.7


class Budget(BaseModel):
    """How much an experiment may cost; None is what the recipe says.

    Attributes:
        epochs: Passes over the images.
        size: Height and width of the images in pixels; a backbone that needs more has its least.
        images: Images to train on and to judge, together; see `model.splits.choose_part`.
        steps: Steps an epoch at most.
        folds: How many of the five folds are judged, each by a training of its own.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    epochs: int | None = None
    size: int | None = None
    images: int | None = None
    steps: int | None = None
    folds: int = 1

    def __str__(self) -> str:
        """Say it in words."""
        epochs = "the recipe's epochs" if self.epochs is None else f"{self.epochs} epoch{'s'[: self.epochs != 1]}"
        steps = "" if self.steps is None else f" of at most {self.steps} step{'s'[: self.steps != 1]}"
        size = "the paper's image size" if self.size is None else f"{self.size} px"
        images = "all images" if self.images is None else f"about {self.images} images"
        return f"{epochs}{steps}, {size}, {images}, {self.folds} of {FOLDS} folds judged"


#: By name: to see that everything runs; what two cores do in minutes for a small network; what the paper did.
BUDGETS: Final[Mapping[str, Budget]] = {
    "smoke": Budget(epochs=1, size=64, images=150, steps=3),
    "small": Budget(epochs=2, size=96, images=1000),
    "paper": Budget(),
}

#: What a large network may have where nothing accelerates it; the images are judged at the size of the others.
ONE_STEP: Final = Budget(epochs=1, images=150, steps=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Experiment:
    """One training that is to be compared with others.

    Attributes:
        name: For people; no two experiments have the same.
        recipe: A key of `model.recipes.RECIPES`.
        network: Architecture.
    """

    name: str
    recipe: str
    network: NetworkConfig


class Finding(BaseModel):
    """What came out of an experiment.

    Attributes:
        experiment: Its name.
        network: Architecture, its image size included.
        weights: What the backbone started from: "imagenet", "none", or a file's name.
        budget: What it was given.
        one_step: Whether it was given a single step, because the network is large and nothing accelerates it.
        trained: Images that a network learned from, of one fold; those that only steer its schedule are none of them.
        judged: Images judged.
        lesions: Lesions judged.
        epochs: Epochs done, of one fold.
        seconds_an_epoch: Median; None where it was not measured.
        figures: By the names of `model.measures.measure`, with 95 % intervals by lesion.
        problem: Why there are no figures, or None.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    experiment: str
    network: NetworkConfig
    weights: str
    budget: Budget
    one_step: bool
    trained: int
    judged: int
    lesions: int
    epochs: int
    seconds_an_epoch: float | None
    figures: dict[str, Interval]
    problem: str | None = None


class LeakyWorkshop(Workshop):
    """Splits by image, as the paper did: fold 0 is a tenth of the images, whatever lesion they show."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.folds = leaky_folds([row.lesion_id for row in self.rows], self.labels)

    def _others(self, fold: int | None) -> NDArray[np.intp]:
        return np.flatnonzero(self.folds != (-1 if fold is None else fold))


class Laboratory:
    """Labelled images and a folder: runs experiments, each once, and goes on where it was killed.

    The gate set is left out of everything.

    Args:
        rows: Labelled images, see `model.dataset.read_labels`.
        out: Folder of the findings and of the runs.
        split: "lesion" groups by lesion; "leaky" is the paper's split by image.
        budget: What each experiment may cost.
        weights: What the backbones start from.
        one_step: Backbones that are given a single step.
        report: Called with the name of the experiment, its part and its progress.
    """

    def __init__(
        self,
        rows: Sequence[LabelledImage],
        *,
        out: Path,
        split: Split,
        budget: Budget,
        weights: StartWeights,
        one_step: frozenset[BackboneName],
        report: Callable[[str, Progress], None],
    ) -> None:
        self.split, self.weights, self.one_step = split, weights, one_step
        # Split by image, there is one fold.
        self.budget = budget.model_copy(update={"folds": 1}) if split == LEAKY else budget
        self._every_row, self._out, self._report = rows, out, report

    def budget_of(self, backbone: BackboneName) -> Budget:
        """What a backbone is given."""
        given = ONE_STEP.model_copy(update={"size": self.budget.size}) if backbone in self.one_step else self.budget
        least = LEAST_SIZES.get(backbone, 0)
        return given if given.size is None else given.model_copy(update={"size": max(given.size, least)})

    def rows_of(self, budget: Budget) -> list[LabelledImage]:
        """Choose the images of a budget."""
        if budget.images is None:
            return list(self._every_row)
        lesions = [row.lesion_id for row in self._every_row]
        chosen = choose_part(lesions, np.array([row.label for row in self._every_row]), budget.images)
        return [row for row, taken in zip(self._every_row, chosen, strict=True) if taken]

    def sides(self) -> tuple[list[LabelledImage], NDArray[np.bool_]]:
        """Say which images the whole budget's experiments use, and which of them the first training is judged on."""
        rows = self.rows_of(self.budget)
        lesions, labels = [row.lesion_id for row in rows], np.array([row.label for row in rows])
        folds = leaky_folds(lesions, labels) if self.split == LEAKY else assign_folds(lesions, labels)
        return [row for row, fold in zip(rows, folds, strict=True) if fold >= 0], folds[folds >= 0] == 0

    def track(self, name: str, things: Sequence[_Thing]) -> Iterator[_Thing]:
        """Report how far through some things one is."""
        for number, thing in enumerate(things, start=1):
            yield thing
            self._report(name, Progress(epoch=0, epochs=1, step=number, steps=len(things)))

    def run(self, experiment: Experiment) -> Finding:
        """Run an experiment, or take what came out of it before.

        Raises:
            ModelError: The weights cannot be had, or are not this backbone's.
        """
        budget = self.budget_of(experiment.network.backbone)
        rows = self.rows_of(budget)
        config = shorten(experiment, budget, images=len(rows))
        name = f"{_slug(experiment.name)}-{self._key(config, rows, budget)}"
        path, run = self._out / "findings" / f"{name}.json", self._out / "runs" / name
        if path.exists():
            # The name is not part of the key: two tables may call one training by two names.
            return Finding.model_validate_json(path.read_bytes()).model_copy(update={"experiment": experiment.name})
        self._report(experiment.name, Progress(epoch=0, epochs=1, step=0, steps=1))
        finding = self._find(experiment, config, budget, self._workshop(experiment, config, rows, run))
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, finding.model_dump_json(indent=1).encode())
        for checkpoint in run.rglob(CHECKPOINT):
            checkpoint.unlink()
        # A network is a large cycle of objects, and Keras keeps the graphs of all of them.
        keras.utils.clear_session()
        gc.collect()
        return finding

    def _workshop(
        self, experiment: Experiment, config: BuildConfig, rows: Sequence[LabelledImage], run: Path
    ) -> Workshop:
        workshop = LeakyWorkshop if self.split == LEAKY else Workshop
        return workshop(
            rows, config, weights=self.weights, run=run, report=lambda _part, done: self._report(experiment.name, done)
        )

    def _key(self, config: BuildConfig, rows: Sequence[LabelledImage], budget: Budget) -> str:
        told = {
            **config.model_dump(mode="json"),
            "images": [f"{row.image_id} {row.lesion_id} {row.label}" for row in rows],
            "split": self.split,
            "folds": budget.folds,
            "weights": self.weights.name(config.network.backbone),
        }
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:12]

    def _find(self, experiment: Experiment, config: BuildConfig, budget: Budget, workshop: Workshop) -> Finding:
        folds = range(budget.folds)
        judged = np.isin(workshop.folds, folds)
        figures, problem = {}, None
        try:
            held_out = workshop.cross_validate(folds)
            figures = judge(held_out, config.training)
        except TrainingDiverged as error:
            problem = str(error)
        seconds = _epoch_seconds(workshop.run)
        return Finding(
            experiment=experiment.name,
            network=config.network,
            weights=self.weights.name(experiment.network.backbone),
            budget=budget,
            one_step=experiment.network.backbone in self.one_step,
            trained=len(workshop.choose_training(0)[0]),
            judged=int(judged.sum()),
            lesions=len({row.lesion_id for row, held in zip(workshop.rows, judged, strict=True) if held}),
            epochs=len(seconds) // budget.folds,
            seconds_an_epoch=float(np.median(seconds)) if seconds else None,
            figures=figures,
            problem=problem,
        )


def shorten(experiment: Experiment, budget: Budget, *, images: int) -> BuildConfig:
    """Give an experiment's recipe no more than a budget.

    Args:
        experiment: What to train.
        budget: What it may cost.
        images: How many there are; the recipe's images an epoch are that share of HAM10000's.
    """
    size = budget.size or experiment.network.input_size
    network = experiment.network.model_copy(update={"input_size": size})
    stages = None if budget.epochs is None else [(budget.epochs, size)]
    config = configure(experiment.recipe, backbone=network.backbone, input_size=size, stages=stages)
    wanted = config.training.images_an_epoch
    if wanted is not None and budget.images is not None:
        wanted = round(wanted * images / sum(TABLE_1.values()))
    if budget.steps is not None:
        most = budget.steps * config.training.batch_size
        # More than there are would draw rare classes more often than the recipe does.
        wanted = most if most < (wanted or _TRAINED_SHARE * images) else wanted
    training = config.training.model_copy(update={"images_an_epoch": wanted})
    return config.model_copy(update={"network": network, "training": training})


def judge(held_out: HeldOut, training: TrainingConfig) -> dict[str, Interval]:
    """Judge a network by the argmax of its own output, as the paper does.

    Workshop takes the loss's weights out of the logits again; with weights of the melanoma's five, they are put back.

    Args:
        held_out: From `Workshop.cross_validate`.
        training: What the network was trained with.

    Raises:
        TrainingDiverged: Its outputs are not all numbers.
    """
    logits = np.asarray(held_out.logits, np.float64)
    if not np.isfinite(logits).all():
        raise TrainingDiverged("The network's outputs are not all numbers.")
    prior = np.full_like(held_out.prior, 1 / len(held_out.prior))
    if training.class_weights is not None:
        prior = held_out.prior * np.asarray(training.class_weights)
        prior = prior / prior.sum()
    said = posterior(logits, prior)
    bootstrap = LesionBootstrap(held_out.lesion_ids)
    return take_intervals(measure(bootstrap, held_out.labels, np.argmax(said, axis=1), said))


def _epoch_seconds(run: Path) -> list[float]:
    # Where nothing is drawn, nobody waits for matplotlib.
    from model.plots import read_curves

    if not any(run.rglob(CURVES)):
        return []
    return [row["seconds"] for rows in read_curves(run).values() for row in rows]


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
