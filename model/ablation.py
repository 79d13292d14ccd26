"""Ablation: what soft attention and metadata add, with the same images, folds and budget, and whether it is noise."""

from __future__ import annotations

import gc
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from pathlib import Path
from typing import Final, Literal, TypeAlias

import keras
import numpy as np
from pydantic import BaseModel, ConfigDict

from model.attention import AttentionForm
from model.bootstrap import DRAWS, Interval, LesionBootstrap
from model.build import BuildConfig, Workshop
from model.calibration import posterior
from model.crossfit import HeldOut
from model.dataset import LabelledImage
from model.markdown import write_table
from model.measures import Measured, measure, take_difference, take_intervals
from model.metadata import MetadataEncoding
from model.starting import StartWeights
from model.training import Progress

Attention: TypeAlias = AttentionForm | Literal["none"]

#: What is compared, by the names of `model.measures.measure`; one of them decides what is said in words.
FIGURES: Final = {
    "balanced_accuracy": "balanced accuracy",
    "accuracy": "accuracy",
    "macro_auc": "macro AUC",
    "malignant_auc": "malignant AUC",
    "recall_mel": "melanoma recall",
}
DECIDING: Final = "balanced_accuracy"


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One network of the ablation.

    Attributes:
        attention: Its form, or "none".
        metadata: Its branch, or "none".
        seed: Of its training.
    """

    attention: Attention
    metadata: MetadataEncoding
    seed: int

    @property
    def name(self) -> str:
        """What it is, in words."""
        attention = "no attention" if self.attention == "none" else f"{self.attention} attention"
        metadata = "no metadata" if self.metadata == "none" else f"{self.metadata} metadata"
        return f"{attention}, {metadata}" + (f", seed {self.seed}" if self.seed else "")


class VariantFigures(BaseModel):
    """What a variant reached.

    Attributes:
        name: Of the variant.
        figures: By the names of `FIGURES`, with 95 % intervals by lesion.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    figures: dict[str, Interval]


class Difference(BaseModel):
    """Two variants that differ in one thing, on the same draws of lesions.

    Attributes:
        what: The thing, in words.
        one: Name of a variant.
        other: Name of the variant it is compared with.
        figures: The one's less the other's, by the names of `FIGURES`, with 95 % intervals.
        seed_alone: How much another seed alone changed the deciding figure; None where that was not tried.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    what: str
    one: str
    other: str
    figures: dict[str, Interval]
    seed_alone: float | None = None

    @property
    def verdict(self) -> str:
        """Whether the deciding difference is more than noise."""
        found = self.figures[DECIDING]
        if found.value is None or found.low is None or found.high is None:
            return "undefined"
        if found.low <= 0 <= found.high:
            return "inside the noise"
        if self.seed_alone is not None and abs(found.value) <= self.seed_alone:
            return f"inside the noise of training: another seed alone makes {self.seed_alone:.3f}"
        return f"{'better' if found.low > 0 else 'worse'}, beyond the noise"

    def __str__(self) -> str:
        """Say it in a sentence."""
        return f"{self.what}: {FIGURES[DECIDING]} {self.figures[DECIDING]:+.3f}, {self.verdict}."


class Ablation(BaseModel):
    """What the variants reached, and how they differ.

    Attributes:
        config: What all variants share; attention, metadata branch and seed are those of the first.
        weights: What the backbone started from.
        folds: Folds judged.
        images: Images judged.
        lesions: Lesions judged.
        draws: Bootstrap draws of lesions, within their diagnosis.
        variants: In the order they were trained.
        control: The first variant with another seed, less the first; None where that was not tried.
        differences: Pairs that differ in one thing.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    config: BuildConfig
    weights: str
    folds: tuple[int, ...]
    images: int
    lesions: int
    draws: int
    variants: tuple[VariantFigures, ...]
    control: Difference | None
    differences: tuple[Difference, ...]


def plan_variants(config: BuildConfig, *, forms: Sequence[Attention] = (), control: bool = True) -> list[Variant]:
    """List the networks to train: with and without soft attention, with and without metadata.

    Args:
        config: The first of them.
        forms: Further forms of attention.
        control: Whether to train the first once more with another seed, which shows what the chance in training does.
    """
    network, seed = config.network, config.training.seed
    # Networks that nothing but chance sets apart have seeds in a row.
    other = seed + len(network.members)
    attentions = dict.fromkeys((network.attention, *forms, "none"))
    metadata = dict.fromkeys((network.metadata, "none"))
    variants = [Variant(attention=a, metadata=m, seed=seed) for m, a in product(metadata, attentions)]
    if control:
        variants.append(Variant(attention=network.attention, metadata=network.metadata, seed=other))
    return variants


def run_ablation(
    rows: Sequence[LabelledImage],
    config: BuildConfig,
    variants: Sequence[Variant],
    *,
    folds: Sequence[int],
    weights: StartWeights,
    run: Path,
    report: Callable[[str, Progress], None],
    draws: int = DRAWS,
) -> Ablation:
    """Train and judge every variant on the same folds, and compare them pair by pair.

    Args:
        rows: Labelled images, see `model.dataset.read_labels`; the gate set is left out.
        config: Recipe; each variant puts in its attention, metadata and seed.
        variants: From `plan_variants`.
        folds: Folds to judge, of the five.
        weights: What the backbone starts from.
        run: Folder of all runs: what is done there is not done again.
        report: Called with the name of the variant and fold, and its progress.
        draws: Bootstrap draws.

    Raises:
        TrainingDataError: The run folder belongs to another recipe or other images.
    """
    held = {
        variant: _cross_validate(rows, _put_in(config, variant), variant, folds, weights, run, report)
        for variant in variants
    }
    first = held[variants[0]]
    bootstrap = LesionBootstrap(first.lesion_ids, draws=draws, strata=first.labels)
    measured = {variant: _measure(one, bootstrap) for variant, one in held.items()}
    return Ablation(
        config=_put_in(config, variants[0]),
        weights=weights.name(*(member.backbone for member in config.network.members)),
        folds=tuple(folds),
        images=len(first.labels),
        lesions=bootstrap.lesions,
        draws=draws,
        variants=tuple(
            VariantFigures(name=variant.name, figures=take_intervals(figures)) for variant, figures in measured.items()
        ),
        control=_control(variants, measured),
        differences=tuple(_differences(variants, measured)),
    )


def _control(variants: Sequence[Variant], measured: Mapping[Variant, dict[str, Measured]]) -> Difference | None:
    first = variants[0]
    for other in variants[1:]:
        if (other.attention, other.metadata) == (first.attention, first.metadata):
            figures = _subtract(measured[other], measured[first])
            return Difference(what="Another seed, all else the same", one=other.name, other=first.name, figures=figures)
    return None


def _differences(variants: Sequence[Variant], measured: Mapping[Variant, dict[str, Measured]]) -> Iterator[Difference]:
    control = _control(variants, measured)
    alone = None if control is None else control.figures[DECIDING].value
    for what, one, other in _pairs([variant for variant in variants if variant.seed == variants[0].seed]):
        yield Difference(
            what=what,
            one=one.name,
            other=other.name,
            figures=_subtract(measured[one], measured[other]),
            seed_alone=None if alone is None else abs(alone),
        )


def _subtract(one: dict[str, Measured], other: dict[str, Measured]) -> dict[str, Interval]:
    return {name: take_difference(one[name], other[name]) for name in FIGURES}


def _put_in(config: BuildConfig, variant: Variant) -> BuildConfig:
    network = {"attention": variant.attention, "metadata": variant.metadata}
    further = variant.seed - config.training.seed
    training, *beside = [
        one.model_copy(update={"seed": one.seed + further}) for one in (config.training, *config.beside)
    ]
    return config.model_copy(
        update={
            "network": config.network.model_copy(update=network),
            "training": training,
            "beside": tuple(beside),
        }
    )


def _cross_validate(
    rows: Sequence[LabelledImage],
    config: BuildConfig,
    variant: Variant,
    folds: Sequence[int],
    weights: StartWeights,
    run: Path,
    report: Callable[[str, Progress], None],
) -> HeldOut:
    workshop = Workshop(
        rows,
        config,
        weights=weights,
        run=run / re.sub(r"[^a-z0-9]+", "-", variant.name),
        report=lambda part, progress: report(f"{variant.name}, {part}", progress),
    )
    held_out = workshop.cross_validate(folds)
    # A network is a large cycle of objects, and Keras keeps the graphs of all of them.
    keras.utils.clear_session()
    gc.collect()
    return held_out


def _measure(held_out: HeldOut, bootstrap: LesionBootstrap) -> dict[str, Measured]:
    # The diagnosis is argmax p / prior, which is the argmax of the logits at any temperature.
    diagnoses = np.argmax(held_out.logits, axis=1)
    measured = measure(bootstrap, held_out.labels, diagnoses, posterior(held_out.logits, held_out.prior))
    return {name: measured[name] for name in FIGURES}


def _pairs(variants: Sequence[Variant]) -> Iterator[tuple[str, Variant, Variant]]:
    """Name each pair that differs in one thing, the richer network first."""
    for one, other in combinations(variants, 2):
        attention, metadata = one.attention != other.attention, one.metadata != other.metadata
        given = "without metadata" if one.metadata == "none" else "with metadata"
        if attention and not metadata and other.attention == "none":
            yield f"Soft attention ({one.attention}) {given}", one, other
        elif attention and not metadata:
            yield f"Soft attention {one.attention} rather than {other.attention}, {given}", one, other
        elif metadata and not attention:
            form = "without soft attention" if one.attention == "none" else f"with soft attention ({one.attention})"
            yield f"Metadata {form}", one, other


def write_ablation(found: Ablation) -> str:
    """Write an ablation in Markdown: each variant, each difference, and in words what is inside the noise."""
    parts = [
        f"{', '.join(f'{stage.epochs} epochs at {stage.size} px' for stage in training.stages)}, scored at "
        f"{member.input_size} px"
        for member, training in found.config.parts
    ]
    rows = [*found.differences, *([] if found.control is None else [found.control])]
    variants = [(one.name, *(f"{one.figures[name]:.3f}" for name in FIGURES)) for one in found.variants]
    differences = [(one.what, *(f"{one.figures[name]:+.3f}" for name in FIGURES)) for one in rows]
    sentences = "".join(f"* {one}\n" for one in found.differences)
    started = f"{found.config.network.backbones}, weights {found.weights}, {'; '.join(parts)}"
    folds = ", ".join(map(str, found.folds))
    return f"""# Ablation: soft attention and metadata

Recipe {found.config.recipe}; {started}. Every network is trained on the same images with the same budget, and \
judged on the same {found.images} images of {found.lesions} lesions: split grouped by lesion, fold {folds} of five.

{sentences}
"Inside the noise" means that the 95 % interval of the difference holds 0: the images judged cannot tell the two \
apart, which does not show that they are alike. The intervals are of a bootstrap of whole lesions within their \
diagnosis ({found.draws} draws, the same for both). They do not know the chance in training. \
{_say_control(found.control)} Of twenty such intervals, one misses a difference of nothing by chance.

## Each network

{write_table(("network", *FIGURES.values()), variants)}
## Differences

{write_table(("what is added", *FIGURES.values()), differences)}"""


def _say_control(control: Difference | None) -> str:
    if control is None:
        return "Another seed was not tried: it might make as much of a difference."
    return (
        f"What that does, one network shows that was trained again with another seed: {FIGURES[DECIDING]} "
        f"{control.figures[DECIDING]:+.3f}. A difference no larger than this one is called noise of training."
    )
