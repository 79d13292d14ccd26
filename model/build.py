"""From labelled images to a calibrated model: train, judge on lesions held out, fit thresholds."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import keras
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from model.calibration import OperatingPoint, ReferralThresholds
from model.crossfit import PARTS, HeldOut
from model.dataset import LabelledImage, digest_data, insist_on_classes, load_images
from model.duplicates import hash_images, near_duplicates
from model.errors import TrainingDataError
from model.evaluation import evaluate_out_of_fold
from model.familiarity import FeatureSpace, fit_spaces, measure_distance
from model.joining import ORDER, join_networks
from model.labels import CLASSES
from model.losses import class_prior
from model.metadata import UNKNOWN, encode_metadata
from model.network import NetworkConfig, build_network, run_network, shift_logits
from model.reference import Reference, make_reference
from model.report import Evaluation
from model.splits import FOLDS, GATE_MODULUS, TRAINS, assign_folds, check_split, choose_sides, count_leaks, lesion_hash
from model.starting import StartWeights
from model.training import Progress, Trainer, TrainingConfig, TrainingSet

#: Training images the feature spaces are learned from: enough for 64 components.
FEATURE_IMAGES: Final = 4000
SEED: Final = 0
#: A run's folder says which configuration and images it belongs to.
RUN_FILE: Final = "run.json"
HELD_OUT_FILE: Final = "held_out.npz"
NETWORK_FILE: Final = "network.weights.h5"
PLOTS_FOLDER: Final = "plots"


class BuildConfig(BaseModel):
    """What to build.

    Attributes:
        recipe: Name of the recipe the rest comes from, for the model card.
        network: Architecture.
        training: How it is trained.
        beside: How the networks beside the first are; where none is given, as the first, set apart by chance alone, on
            images no larger than each is scored at. What they learn from is the first's affair.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    recipe: str = "default"
    network: NetworkConfig = NetworkConfig()
    training: TrainingConfig = TrainingConfig()
    beside: tuple[TrainingConfig, ...] = Field((), exclude_if=lambda others: not others)

    @property
    def parts(self) -> tuple[tuple[NetworkConfig, TrainingConfig], ...]:
        """The networks that are trained apart, and how each is."""
        first, *others = self.network.members
        alike = [self._train_alike(order, member) for order, member in enumerate(others, 1)]
        return (first, self.training), *zip(others, self.beside or alike, strict=True)

    def on(self, network: NetworkConfig) -> BuildConfig:
        """Return the recipe for another network; where that joins others than the recipe's, they train as its first."""
        sizes, others = ([one.input_size for one in each.beside] for each in (self.network, network))
        return self.model_copy(update={"network": network, "beside": self.beside if sizes == others else ()})

    def _train_alike(self, order: int, member: NetworkConfig) -> TrainingConfig:
        stages = [
            stage.model_copy(update={"size": min(stage.size, member.input_size)}) for stage in self.training.stages
        ]
        return self.training.model_copy(update={"stages": tuple(stages), "seed": self.training.seed + order})


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltModel:
    """A trained network with everything its artifact states.

    Attributes:
        network: The network with its averaged weights.
        config: What was built.
        held_out: Which lesions judged it, in words.
        data_digest: sha256 over images, lesions and labels read.
        prior: `(7,)` class frequencies in training, which the posterior assumes.
        temperature: T of the posterior; the offsets of its calibration are part of the network's last bias.
        operating_point: Where an image counts as suspicious.
        spaces: Where the training images lie in what the network measures, see `model.familiarity`.
        referral: When an image goes to a person.
        evaluation: Figures on lesions held out.
        reference: What the images of those lesions looked like to the model.
    """

    network: keras.Model
    config: BuildConfig
    held_out: str
    data_digest: str
    prior: NDArray[np.float64]
    temperature: float
    operating_point: OperatingPoint
    spaces: dict[str, FeatureSpace]
    referral: ReferralThresholds
    evaluation: Evaluation
    reference: Reference


class Workshop:
    """Labelled images and a run folder: trains and judges folds, and goes on where it was killed.

    The gate set is left out of everything, and near-duplicates of what judges a network train it not, whatever lesion
    they are said to show.

    Args:
        rows: Labelled images, see `model.dataset.read_labels`.
        config: What to build.
        weights: What the backbones start from.
        run: Folder of checkpoints, learning curves, held-out predictions, and the plots of what `build` made.
        report: Called with the name of the part ("fold-0" … "whole", and for a second network "fold-0-second" …)
            and its progress.

    Raises:
        TrainingDataError: The run folder belongs to another configuration or other images, or there are too few
            lesions of a class.
    """

    def __init__(
        self,
        rows: Sequence[LabelledImage],
        config: BuildConfig,
        *,
        weights: StartWeights,
        run: Path,
        report: Callable[[str, Progress], None],
    ) -> None:
        insist_on_classes(rows)
        self.config, self.weights, self.run, self.report = config, weights, run, report
        folds = assign_folds([row.lesion_id for row in rows], np.array([row.label for row in rows]))
        self._all, self._sides_of_all = list(rows), folds
        self.rows = [row for row, fold in zip(rows, folds, strict=True) if fold >= 0]
        self.folds = folds[folds >= 0]
        self.labels = np.array([row.label for row in self.rows], np.int64)
        self.metadata = encode_metadata([row.patient for row in self.rows], config.network.metadata)
        self._claim_run()

    def _claim_run(self) -> None:
        names = "\n".join(f"{row.image_id} {row.lesion_id} {row.label}" for row in self.rows)
        mine = {
            **self.config.model_dump(mode="json"),
            "images": hashlib.sha256(names.encode()).hexdigest(),
            "weights": self.weights.name(*(member.backbone for member in self.config.network.members)),
        }
        path = self.run / RUN_FILE
        if path.exists() and json.loads(path.read_text(encoding="utf-8")) != mine:
            raise TrainingDataError("The run folder belongs to another recipe or other images: name a new one.")
        self.run.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(mine, indent=1), encoding="utf-8")

    def cross_validate(self, folds: Sequence[int] = range(FOLDS)) -> HeldOut:
        """Train on four folds and judge the fifth, for each of `folds`.

        Returns:
            What was said about every image of `folds`.
        """
        parts = [self._judged(fold) for fold in folds]
        rows = np.concatenate([part["rows"] for part in parts])
        chosen = [self.rows[index] for index in rows]
        return HeldOut(
            logits=np.concatenate([part["logits"] for part in parts]),
            distances=np.concatenate([part["distances"] for part in parts]),
            labels=self.labels[rows],
            lesion_ids=[row.lesion_id for row in chosen],
            folds=self.folds[rows],
            patients=[row.patient for row in chosen],
            dx_types=[row.dx_type for row in chosen],
            prior=class_prior(self.labels),
            logits_without_metadata=np.concatenate([part["without"] for part in parts]),
        )

    def insist_on_judges(self, folds: Sequence[int] = range(FOLDS)) -> None:
        """Refuse folds that cannot calibrate and judge a model, before hours are spent on one.

        Raises:
            TrainingDataError: A class is missing in `folds` together or in what is trained on for one of them, or they
                are one fold that cannot be cut into the parts of `model.crossfit.cross_fit`.
        """
        places = {f"in fold {', '.join(map(str, folds))}": np.isin(self.folds, folds)}
        places |= {f"outside fold {fold}": self.folds != fold for fold in folds}
        for place, held in places.items():
            counts = np.bincount(self.labels[held], minlength=len(CLASSES))
            missing = [name for name, count in zip(CLASSES, counts, strict=True) if not count]
            if missing:
                raise TrainingDataError(f"There is no image of {', '.join(missing)} {place}: label more of them.")
        if len({*folds}) == 1 and np.bincount(self.labels[self.folds == folds[0]]).max() < PARTS:
            raise TrainingDataError(
                f"Fold {folds[0]} is too small to be calibrated and judged alone: judge all {FOLDS}, or label more."
            )

    def build(self, fold: int | None = None) -> BuiltModel:
        """Train the model to ship.

        Args:
            fold: None cross-validates, takes thresholds from all five folds and trains on all of them; a number
                trains on the other four folds and takes everything from this one, in a fifth of the time.

        Raises:
            TrainingDataError: As `insist_on_judges`.
        """
        # Where nothing is drawn, nobody waits for matplotlib.
        from model.plots import plot_curves, read_curves, write_evaluation, write_figure

        judges = range(FOLDS) if fold is None else [fold]
        self.insist_on_judges(judges)
        held_out = self.cross_validate(judges)
        fitted, evaluation = evaluate_out_of_fold(held_out)
        write_evaluation(fitted.verdicts, self.run / PLOTS_FOLDER)
        network, training = self._train(fold), self._others(fold)
        shift_logits(network, fitted.calibration.logit_offsets())
        write_figure(plot_curves(read_curves(self.run)), self.run / PLOTS_FOLDER / "curves.png")
        words = f"{FOLDS} folds, cross-validated" if fold is None else f"fold {fold} of {FOLDS}"
        return BuiltModel(
            network=network,
            config=self.config,
            held_out=f"{words}, grouped by lesion, stratified by diagnosis{self._say_alike()}",
            data_digest=digest_data([self.rows[index] for index in training]),
            prior=held_out.prior,
            temperature=fitted.calibration.temperature,
            operating_point=fitted.operating_point,
            spaces=self._fit_spaces(network, training),
            referral=fitted.referral,
            evaluation=evaluation,
            reference=make_reference(held_out.patients, fitted.verdicts.malignant_scores, held_out.distances),
        )

    def train_parts(self, fold: int | None = None) -> None:
        """Train every network that `build` takes, and judge none: for a machine that can do no more.

        Raises:
            TrainingDataError: As `insist_on_judges`.
        """
        self.insist_on_judges(range(FOLDS) if fold is None else [fold])
        for part in [*range(FOLDS), None] if fold is None else [fold]:
            self._train(part)

    def _judged(self, fold: int) -> dict[str, NDArray[np.float64]]:
        parts = [self._judged_alone(order, fold) for order, _ in enumerate(self.config.parts)]
        return {name: np.mean([part[name] for part in parts], axis=0) for name in ("logits", "without")} | {
            name: parts[0][name] for name in ("rows", "distances")
        }

    def _judged_alone(self, order: int, fold: int) -> dict[str, NDArray[np.float64]]:
        path = self.run / self._part(order, fold) / HELD_OUT_FILE
        if not path.exists():
            network, training = self._train_alone(order, fold), self._others(fold)
            rows = np.flatnonzero(self.folds == fold)
            images = self._images_at_input_size(rows)
            said = run_network(network, images, self.metadata[rows])
            blind = encode_metadata([UNKNOWN] * len(rows), self.config.network.metadata)
            without = run_network(network, images, blind)["logits"]
            found: dict[str, NDArray[Any]] = {"rows": rows, "logits": said["logits"], "without": without}
            if not order:
                # Distances are the first's, see `model.joining.join_networks`.
                found["distances"] = measure_distance(self._fit_spaces(network, training), said)
            temporary = path.with_suffix(".partial.npz")
            np.savez(temporary, allow_pickle=False, **found)
            temporary.replace(path)
        with np.load(path, allow_pickle=False) as saved:
            return dict(saved)

    def _part(self, order: int, fold: int | None) -> str:
        name = "whole" if fold is None else f"fold-{fold}"
        return f"{name}-{ORDER[order]}" if order else name

    def _others(self, fold: int | None) -> NDArray[np.intp]:
        """Return the rows of all folds but one, or of all, without near-duplicates of what judges."""
        lesions = [row.lesion_id for row in self._all]
        sides = choose_sides(self._sides_of_all, lesions, self._alike, fold)
        check_split(sides, lesions, self._alike)
        return np.flatnonzero(sides[self._sides_of_all >= 0] == TRAINS)

    def _say_alike(self) -> str:
        lesions = [row.lesion_id for row in self._all]
        # Each image a side of its own: then every pair of two lesions crosses.
        _, images = count_leaks(np.arange(len(lesions)), lesions, self._alike)
        said = "; no network was judged by a near-duplicate of what trained it"
        return f"{said}, which concerns {images} images" if images else ""

    @cached_property
    def _alike(self) -> NDArray[np.intp]:
        """Pairs of near-duplicates among all rows, those of the gate set too; their hashes are kept with the run."""
        names = "\n".join(row.image_id for row in self._all)
        path = self.run / f"hashes-{hashlib.sha256(names.encode()).hexdigest()[:16]}.npy"
        if not path.exists():
            temporary = path.with_suffix(".partial.npy")
            np.save(temporary, hash_images(self._all))
            temporary.replace(path)
        return near_duplicates(np.load(path, allow_pickle=False))

    def _train(self, fold: int | None) -> keras.Model:
        return join_networks([self._train_alone(order, fold) for order, _ in enumerate(self.config.parts)])

    def _train_alone(self, order: int, fold: int | None) -> keras.Model:
        """Train the network of an order, counted from 0, on all folds but one, or on all, unless that is done."""
        name, (member, _) = self._part(order, fold), self.config.parts[order]
        path = self.run / name / NETWORK_FILE
        if path.exists():
            network = build_network(member)
            network.load_weights(path)
            return network
        network = self._train_on(fold, order, name)
        temporary = path.with_name("partial.weights.h5")
        network.save_weights(temporary)
        temporary.replace(path)
        return network

    def choose_training(self, fold: int | None) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Choose the rows that a network learns from.

        Args:
            fold: Which judges it; None for none.

        Returns:
            Indices of `rows`: those it learns from, and those that only steer its schedule, none but for "plateau".
        """
        chosen, training = self._others(fold), self.config.training
        if training.drop_missing_ages:
            chosen = chosen[[self.rows[index].patient.age is not None for index in chosen]]
        steers = training.schedule == "plateau"
        watched = np.array([steers and _is_watched(self.rows[index].lesion_id) for index in chosen], bool)
        return chosen[~watched], chosen[watched]

    def _train_on(self, fold: int | None, order: int, name: str) -> keras.Model:
        chosen, watched = self.choose_training(fold)
        validation = self._training_set(watched) if self.config.training.schedule == "plateau" else None
        member, training = self.config.parts[order]
        trainer = Trainer(
            member,
            training,
            self._training_set(chosen),
            self.weights.of(member.backbone),
            self.run / name,
            validation,
            order=order,
        )
        trainer.run(lambda progress: self.report(name, progress))
        return trainer.model

    def _training_set(self, chosen: NDArray[np.intp]) -> TrainingSet:
        # Read again for each network: all images and a fold's beside each other would take twice the memory.
        images = load_images([self.rows[index] for index in chosen], self.config.training.kept_size)
        return TrainingSet(images=images, metadata=self.metadata[chosen], labels=self.labels[chosen])

    def _fit_spaces(self, network: keras.Model, training: NDArray[np.intp]) -> dict[str, FeatureSpace]:
        known = training[np.random.default_rng(SEED).permutation(len(training))[:FEATURE_IMAGES]]
        said = run_network(network, self._images_at_input_size(known), self.metadata[known])
        return fit_spaces(said, self.labels[known])

    def _images_at_input_size(self, rows: NDArray[np.intp]) -> NDArray[np.uint8]:
        # Decoded as a worker decodes them, not resized from what training keeps.
        size = (self.config.network.input_size, self.config.network.input_size)
        return load_images([self.rows[index] for index in rows], size)


def can_pack() -> bool:
    """Say whether what is trained can be packed here: an artifact's engines are TensorFlow's."""
    return str(keras.backend.backend()) == "tensorflow"


def _is_watched(lesion_id: str) -> bool:
    """Say whether a training lesion only steers the plateau schedule: a tenth, none of them in the gate set."""
    return lesion_hash(lesion_id) % GATE_MODULUS == 1
