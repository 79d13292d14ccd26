"""Packs a built model into an artifact with its card."""

from __future__ import annotations

import dataclasses
import hashlib
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from model.artifact import (
    WEIGHTS,
    CalibrationPart,
    GoldenPart,
    Manifest,
    NetworkPart,
    OperatingPart,
    ReferralPart,
    TrainingPart,
    read_manifest,
    write_artifact,
)
from model.build import BuiltModel
from model.card import model_card
from model.classifier import golden_input, network_arrays
from model.engine import FrozenGraph
from model.errors import ArtifactError
from model.familiarity import pack_spaces
from model.images import PREPROCESSING_VERSION
from model.labels import CLASSES
from model.metadata import METADATA_VERSION
from model.report import Evaluation, Explanation, Trial
from model.weights import pack_weights

GOLDEN_SEED: Final = 7530
#: float16 weights may move no probability of the golden input further than this.
MAX_ROUNDING: Final = 1e-2


def package_model(built: BuiltModel, folder: Path, *, name: str, data: str, git_commit: str) -> Manifest:
    """Write a built model as an artifact.

    Args:
        built: From `model.build.build_model`.
        folder: Where; must not exist yet.
        name: What people call the model.
        data: What it was trained on, with licence and attribution.
        git_commit: Commit of the program that trained it.

    Returns:
        The manifest written.

    Raises:
        ArtifactError: The float16 weights move a probability by more than 1e-2, or the folder exists.
    """
    variables = network_arrays(built.network)
    arrays: dict[str, Any] = {key: np.asarray(variable).astype(np.float16) for key, variable in variables.items()}
    arrays |= pack_spaces(built.spaces)
    exact = _golden(built)
    for key, variable in variables.items():
        variable.assign(arrays[key].astype(np.float32))
    rounded = _golden(built)
    if np.abs(rounded - exact).max() > MAX_ROUNDING:
        raise ArtifactError("float16 weights move a probability of this model by more than 0.01.")
    weights = pack_weights(arrays)
    manifest = _manifest(built, name, data, git_commit, hashlib.sha256(weights).hexdigest(), rounded)
    write_artifact(folder, manifest, weights, model_card(manifest))
    return manifest


def restate_model(
    folder: Path, out: Path, *, explanation: Explanation | None = None, trials: Sequence[Trial] = ()
) -> Manifest:
    """Copy an artifact with more said of it: a model of another digest, whose weights and verdicts are the same.

    Args:
        folder: The artifact.
        out: Folder of the copy; must not exist yet.
        explanation: What the deletion test found; None leaves what is stated.
        trials: What was tried on the way to the model; none leaves what is stated.

    Returns:
        The manifest written.

    Raises:
        ArtifactError: The artifact cannot be read or is damaged, or the folder exists.
    """
    manifest = read_manifest(folder)
    found = Evaluation.model_validate(manifest.metrics)
    said: dict[str, Any] = {}
    if explanation is not None:
        said["explanation"] = explanation
    if trials:
        said["trials"] = tuple(trials)
    metrics = found.model_copy(update=said).model_dump(mode="json")
    stated = manifest.model_copy(update={"metrics": metrics})
    try:
        weights = (folder / WEIGHTS).read_bytes()
    except OSError:
        raise ArtifactError("The model has no readable weights.h5: install it again.") from None
    write_artifact(out, stated, weights, model_card(stated))
    return stated


def program_commit() -> str:
    """Return the git commit of this program, or "unknown" where it is not a checkout."""
    command = ["git", "rev-parse", "HEAD"]
    try:
        found = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return "unknown"
    return found.stdout.strip() if found.returncode == 0 else "unknown"


def _golden(built: BuiltModel) -> np.ndarray[Any, np.dtype[np.float32]]:
    config = built.config.network
    size = config.input_size
    engine = FrozenGraph(
        built.network, input_size=size, prior=built.prior, temperature=built.temperature, spaces=built.spaces
    )
    return engine.run(*golden_input(GOLDEN_SEED, size, config.metadata))[0]


def _manifest(built: BuiltModel, name: str, data: str, git_commit: str, weights_sha256: str, golden: Any) -> Manifest:
    config = built.config
    others = [one.model_dump(mode="json") for one in config.beside]
    beside = {"beside": others} if others else {}
    return Manifest(
        name=name,
        network=NetworkPart(**config.network.model_dump()),
        classes=CLASSES,
        preprocessing_version=PREPROCESSING_VERSION,
        metadata_version=METADATA_VERSION,
        calibration=CalibrationPart(prior=tuple(built.prior.tolist()), temperature=built.temperature),
        operating_point=OperatingPart(**dataclasses.asdict(built.operating_point)),
        referral=ReferralPart(
            **dataclasses.asdict(built.referral), prototypes=len(built.spaces["features"].prototypes)
        ),
        training=TrainingPart(
            data_digest=built.data_digest,
            data=data,
            held_out=built.held_out,
            gate_set_excluded=True,
            recipe={"name": config.recipe, **config.training.model_dump(mode="json"), **beside},
            git_commit=git_commit,
        ),
        metrics=built.evaluation.model_dump(mode="json"),
        weights_sha256=weights_sha256,
        reference=built.reference,
        golden=GoldenPart(seed=GOLDEN_SEED, posterior=tuple(tuple(row) for row in golden.astype(float).tolist())),
    )
