"""Model artifacts: a folder with weights and a manifest, checked before anything trusts it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from model.errors import ArtifactError
from model.images import PREPROCESSING_VERSION
from model.labels import CLASSES
from model.metadata import METADATA_VERSION
from model.reference import Reference

MANIFEST: Final = "manifest.json"
WEIGHTS: Final = "weights.h5"
CARD: Final = "MODEL_CARD.md"
#: A manifest is a few kilobytes; a larger one is not ours.
MAX_MANIFEST_BYTES: Final = 1_000_000
#: The largest supported network has 86 million parameters, 171 MB at float16.
MAX_WEIGHTS_BYTES: Final = 1_000_000_000

#: Height and width in pixels of the images that a network may see.
LEAST_INPUT: Final = 32
MOST_INPUT: Final = 1024
#: How the names of folders and files begin that are only being written. What a kill leaves of a store's models is swept
#: when the next one is installed; nobody writes one for an hour.
_DRAFT: Final = ".partial-"
_DRAFT_SECONDS: Final = 3600
_NUMBERS: Final = ("no", "one", "two", "three", "four")

Digest = Field(pattern=r"^[0-9a-f]{64}$")


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def name_backbones(backbones: Sequence[str]) -> str:
    """Name the backbones of a model's networks, in words: "MobileNet", or "two MobileNets and MobileNetV2"."""
    words = [name if count == 1 else f"{_NUMBERS[count]} {name}s" for name, count in Counter(backbones).items()]
    return " and ".join([", ".join(words[:-1]), words[-1]] if words[1:] else words)


class BesidePart(_Part):
    """A network beside the first, as `model.network.BesideConfig` takes it."""

    backbone: str
    input_size: int = Field(ge=LEAST_INPUT, le=MOST_INPUT)


class NetworkPart(_Part):
    """The network's architecture, as `model.network.NetworkConfig` takes it; see `Manifest` about its defaults."""

    backbone: str
    attention: str
    heads: int
    metadata: str
    input_size: int = Field(ge=LEAST_INPUT, le=MOST_INPUT)
    dropout: float
    cut: str = Field("last", exclude_if=lambda cut: cut == "last")
    head: str = Field("pooled", exclude_if=lambda head: head == "pooled")
    hidden: int = Field(0, exclude_if=lambda units: units == 0)
    #: Models of earlier versions have the second one's backbone alone.
    beside: (
        Annotated[tuple[BesidePart, ...], Field(max_length=len(_NUMBERS) - 2)]
        | Annotated[str, Field(min_length=1)]
        | None
    ) = Field(None, exclude_if=lambda others: not others)
    intermediate: bool = Field(default=False, exclude_if=lambda asked: not asked)

    @property
    def backbones(self) -> str:
        """The backbone in words, or all of them."""
        others = [self.beside] if isinstance(self.beside, str) else [one.backbone for one in self.beside or ()]
        return name_backbones([self.backbone, *others])

    @property
    def sizes(self) -> tuple[int, ...]:
        """Heights and widths of the images that its networks see, the largest first."""
        others = () if isinstance(self.beside, str) else self.beside or ()
        return tuple(sorted({self.input_size, *(one.input_size for one in others)}, reverse=True))


class CalibrationPart(_Part):
    """How logits become posteriors: softmax(logits / temperature + log prior)."""

    prior: tuple[float, ...] = Field(min_length=len(CLASSES), max_length=len(CLASSES))
    temperature: float = Field(gt=0)

    @field_validator("prior")
    @classmethod
    def _sums_to_one(cls, prior: tuple[float, ...]) -> tuple[float, ...]:
        if min(prior) <= 0 or abs(sum(prior) - 1) > 1e-6:  # noqa: PLR2004 - rounding of seven floats
            raise ValueError("a prior is positive and sums to 1")
        return prior


class OperatingPart(_Part):
    """Where an image counts as suspicious, and what that means on held-out lesions."""

    threshold: float
    sensitivity: float
    sensitivity_interval: tuple[float, float]
    melanoma_sensitivity: float
    specificity: float
    prevalence: float
    lesions: int


class ReferralPart(_Part):
    """When an image goes to a person whatever its score."""

    max_distance: float
    min_confidence: float
    referred: float
    referred_in_class: dict[str, float]
    prototypes: int = Field(0, ge=0, le=1024, exclude_if=lambda count: count == 0)


class TrainingPart(_Part):
    """Where the weights come from."""

    data_digest: str = Digest
    data: str
    held_out: str
    gate_set_excluded: bool
    recipe: dict[str, Any]
    git_commit: str


class GoldenPart(_Part):
    """A prediction the loaded model must repeat: the input is drawn from a seed."""

    seed: int
    posterior: tuple[tuple[float, ...], ...]


class Manifest(_Part):
    """Everything an artifact states about itself; its digest is the model's name in the ledger.

    What later versions added stays out of the canonical manifest at its default, so that no older model's digest
    changes.
    """

    format: Literal[1] = 1
    name: str
    network: NetworkPart
    classes: tuple[str, ...]
    preprocessing_version: int
    metadata_version: int
    scaling: str = "RGB, [0, 255] to [-1, 1]"
    calibration: CalibrationPart
    operating_point: OperatingPart
    referral: ReferralPart
    training: TrainingPart
    metrics: dict[str, Any]
    weights_sha256: str = Digest
    golden: GoldenPart
    reference: Reference | None = Field(None, exclude_if=lambda reference: reference is None)

    @field_validator("classes")
    @classmethod
    def _known_classes(cls, classes: tuple[str, ...]) -> tuple[str, ...]:
        if classes != CLASSES:
            raise ValueError(f"the labels and their order must be {', '.join(CLASSES)}")
        return classes

    @field_validator("preprocessing_version")
    @classmethod
    def _known_preprocessing(cls, version: int) -> int:
        if version != PREPROCESSING_VERSION:
            raise ValueError(f"preprocessing {version} is not this program's ({PREPROCESSING_VERSION})")
        return version

    @field_validator("metadata_version")
    @classmethod
    def _known_metadata(cls, version: int) -> int:
        if version != METADATA_VERSION:
            raise ValueError(f"metadata encoding {version} is not this program's ({METADATA_VERSION})")
        return version

    @property
    def prior(self) -> tuple[float, ...]:
        """Class frequencies the posterior assumes, in the order of `CLASSES`."""
        return self.calibration.prior

    @property
    def digest(self) -> str:
        """sha256 of the canonical manifest: other weights, calibration or threshold make another model."""
        canonical = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(canonical.encode()).hexdigest()


def shipped_artifact() -> Path:
    """Return the folder of the model that comes with the program."""
    return Path(__file__).parent / "shipped"


def artifact_path(store: Path, digest: str) -> Path:
    """Return where a store keeps a model."""
    return store / "models" / digest


def read_manifest(folder: Path) -> Manifest:
    """Read and check a manifest; the weights are not looked at.

    Raises:
        ArtifactError: Missing, too large, no JSON, or not of this program's kind.
    """
    try:
        with (folder / MANIFEST).open("rb") as file:
            text = file.read(MAX_MANIFEST_BYTES + 1)
    except OSError:
        raise ArtifactError("The model has no readable manifest.json: install it again.") from None
    if len(text) > MAX_MANIFEST_BYTES:
        raise ArtifactError("The model's manifest.json is too large to be one: install it again.")
    try:
        return Manifest.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise ArtifactError(f"The model's manifest.json is refused: {place or 'file'}: {first['msg']}.") from None


def write_artifact(folder: Path, manifest: Manifest, weights: bytes, card: str = "") -> None:
    """Write an artifact at once or not at all.

    Args:
        folder: Where; must not exist yet.
        manifest: Names the digest of `weights`.
        weights: From `model.weights.pack_weights`.
        card: The model card, Markdown.

    Raises:
        ArtifactError: The folder exists, or the manifest names other weights.
    """
    if hashlib.sha256(weights).hexdigest() != manifest.weights_sha256:
        raise ArtifactError("The manifest names other weights.")
    files = {WEIGHTS: weights, MANIFEST: manifest.model_dump_json(indent=2).encode() + b"\n"}
    if card:
        files[CARD] = card.encode()
    _write_folder(folder, files)


def _write_folder(folder: Path, files: Mapping[str, bytes]) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=_DRAFT, dir=folder.parent))
    try:
        for name, data in files.items():
            with (temporary / name).open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        temporary.chmod(0o755)
        try:
            temporary.rename(folder)
        except OSError:
            raise ArtifactError("A folder of the artifact's name exists already.") from None
        handle = os.open(folder.parent, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def install_artifact(source: Path, store: Path) -> Path:
    """Copy an artifact into a store under its digest; idempotent, and safe beside other installers.

    Raises:
        ArtifactError: The artifact is damaged.
    """
    manifest = read_manifest(source)
    target = artifact_path(store, manifest.digest)
    if target.is_dir() and _is_intact(target, manifest):
        return target
    try:
        # Whatever else lies in the folder stays there.
        files = {name: (source / name).read_bytes() for name in (WEIGHTS, MANIFEST, CARD) if (source / name).is_file()}
    except OSError:
        raise ArtifactError("The model's files cannot be read: install it again.") from None
    if hashlib.sha256(files.get(WEIGHTS, b"")).hexdigest() != manifest.weights_sha256:
        raise ArtifactError("The model's weights.h5 is not the file its manifest names: install it again.")
    if target.is_dir():
        # Damaged on disk: a sound copy takes its place.
        shutil.rmtree(target)
    _sweep_drafts(target.parent)
    try:
        _write_folder(target, files)
    except ArtifactError:
        # Another installer was faster.
        if not _is_intact(target, manifest):
            raise
    return target


def _sweep_drafts(folder: Path) -> None:
    for draft in folder.glob(f"{_DRAFT}*"):
        # It may be gone by now.
        with contextlib.suppress(OSError):
            if time.time() - draft.stat().st_mtime > _DRAFT_SECONDS:
                shutil.rmtree(draft)


def holds_artifact(store: Path, digest: str) -> bool:
    """Say whether a store has a model, whole and under its own digest."""
    folder = artifact_path(store, digest)
    try:
        return (manifest := read_manifest(folder)).digest == digest and _is_intact(folder, manifest)
    except ArtifactError:
        return False


def replace_file(path: Path, data: bytes) -> None:
    """Write a file at once or not at all."""
    temporary = path.with_name(f"{_DRAFT}{path.name}")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _is_intact(folder: Path, manifest: Manifest) -> bool:
    try:
        found = hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()
        return found == manifest.weights_sha256 and read_manifest(folder).digest == manifest.digest
    except (OSError, ArtifactError):
        return False
