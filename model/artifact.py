"""Model artifacts: a folder with weights and a manifest, checked before anything trusts it."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import tempfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray
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

Digest = Field(pattern=r"^[0-9a-f]{64}$")


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def name_backbones(backbone: str, beside: str | None) -> str:
    """Name a network's backbone, or the two of a pair."""
    if beside is None:
        return backbone
    return f"two {backbone}s" if beside == backbone else f"{backbone} and {beside}"


class NetworkPart(_Part):
    """The network's architecture, as `model.network.NetworkConfig` takes it; see `Manifest` about its defaults."""

    backbone: str
    attention: str
    heads: int
    metadata: str
    input_size: int = Field(ge=32, le=1024)
    dropout: float
    cut: str = Field("last", exclude_if=lambda cut: cut == "last")
    head: str = Field("pooled", exclude_if=lambda head: head == "pooled")
    hidden: int = Field(0, exclude_if=lambda units: units == 0)
    beside: str | None = Field(None, exclude_if=lambda backbone: backbone is None)

    @property
    def backbones(self) -> str:
        """The backbone in words, or both."""
        return name_backbones(self.backbone, self.beside)


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


def read_weights(folder: Path, manifest: Manifest, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, NDArray[Any]]:
    """Read the weights after their digest was checked; no parser sees a file with another digest.

    Args:
        folder: The artifact.
        manifest: Its manifest.
        shapes: Every array that must be in the file, and nothing else.

    Returns:
        Float32 arrays by name.

    Raises:
        ArtifactError: Missing, damaged, or with other names, shapes or types.
    """
    import h5py

    path = folder / WEIGHTS
    try:
        if path.stat().st_size > MAX_WEIGHTS_BYTES:
            raise ArtifactError("The model's weights.h5 is larger than any supported network: install it again.")
        data = path.read_bytes()
    except OSError:
        raise ArtifactError("The model has no readable weights.h5: install it again.") from None
    if hashlib.sha256(data).hexdigest() != manifest.weights_sha256:
        raise ArtifactError("The model's weights.h5 is not the file its manifest names: install it again.")
    try:
        with h5py.File(io.BytesIO(data), "r") as file:
            if set(file) != set(shapes):
                raise ArtifactError("The model's weights.h5 does not hold this network's arrays: install it again.")
            return {name: _read_array(file, name, shape) for name, shape in shapes.items()}
    except (OSError, KeyError, RuntimeError, ValueError, TypeError, zlib.error):
        raise ArtifactError("The model's weights.h5 cannot be parsed: install it again.") from None


def _read_array(file: Any, name: str, shape: tuple[int, ...]) -> NDArray[Any]:
    import h5py

    # Links could lead out of the file, and the shape is compared before memory is taken for it.
    if not isinstance(file.get(name, getlink=True), h5py.HardLink):
        raise ArtifactError("The model's weights.h5 holds a link: install it again.")
    array = file[name]
    if not isinstance(array, h5py.Dataset) or array.is_virtual or array.external:
        raise ArtifactError("The model's weights.h5 holds something that is no plain array: install it again.")
    if array.shape != shape or array.dtype.kind != "f" or array.dtype.itemsize > np.dtype(np.float32).itemsize:
        raise ArtifactError(
            "An array of the model's weights.h5 has another shape or type than the network's: install it again."
        )
    _check_chunks(array)
    values = np.asarray(array[()], np.float32)
    if not np.isfinite(values).all():
        raise ArtifactError("The model's weights.h5 holds numbers that are not finite: install it again.")
    return values


def _check_chunks(array: Any) -> None:
    # HDF5 inflates a chunk to whatever length it has, so a megabyte can become a gigabyte before anyone is asked.
    from h5py import h5z

    packing = array.id.get_create_plist()
    filters = [packing.get_filter(index)[0] for index in range(packing.get_nfilters())]
    if not set(filters) <= {h5z.FILTER_DEFLATE, h5z.FILTER_SHUFFLE}:
        raise ArtifactError("The model's weights.h5 is packed in a way that is not ours: install it again.")
    if array.chunks is None:
        return
    if any(chunk > whole for chunk, whole in zip(array.chunks, array.shape, strict=True)):
        raise ArtifactError("The model's weights.h5 holds a chunk larger than its array: install it again.")
    most = int(np.prod(array.chunks)) * array.dtype.itemsize
    # Deflate adds less than a hundredth to what it cannot compress.
    limit = most + most // 100 + 64
    for index in range(array.id.get_num_chunks()):
        chunk = array.id.get_chunk_info(index)
        if chunk.size > limit or chunk.filter_mask:
            raise ArtifactError("The model's weights.h5 holds a chunk of the wrong size: install it again.")
        _, packed = array.id.read_direct_chunk(chunk.chunk_offset)
        if h5z.FILTER_DEFLATE in filters and len(zlib.decompressobj().decompress(packed, most + 1)) != most:
            raise ArtifactError("The model's weights.h5 holds a chunk of the wrong size: install it again.")


def pack_weights(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """Pack float16 or float32 arrays into HDF5, one compressed dataset each; same arrays, same bytes.

    Raises:
        ArtifactError: A value is not finite, such as a weight that does not fit float16.
    """
    import h5py

    out = io.BytesIO()
    with h5py.File(out, "w", track_order=False) as file:
        for name in sorted(arrays):
            array = arrays[name]
            if not np.isfinite(array).all():
                raise ArtifactError("A weight is not finite, or does not fit float16.")
            packing = {"compression": "gzip", "shuffle": True} if array.size > 1 else {}
            file.create_dataset(name, data=array, track_times=False, **packing)
    return out.getvalue()


def write_artifact(folder: Path, manifest: Manifest, weights: bytes, card: str = "") -> None:
    """Write an artifact at once or not at all.

    Args:
        folder: Where; must not exist yet.
        manifest: Names the digest of `weights`.
        weights: From `pack_weights`.
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
    temporary = Path(tempfile.mkdtemp(prefix=".partial-", dir=folder.parent))
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
    try:
        _write_folder(target, files)
    except ArtifactError:
        # Another installer was faster.
        if not _is_intact(target, manifest):
            raise
    return target


def holds_artifact(store: Path, digest: str) -> bool:
    """Say whether a store has a model, whole and under its own digest."""
    folder = artifact_path(store, digest)
    try:
        return (manifest := read_manifest(folder)).digest == digest and _is_intact(folder, manifest)
    except ArtifactError:
        return False


def replace_file(path: Path, data: bytes) -> None:
    """Write a file at once or not at all."""
    temporary = path.with_name(f".partial-{path.name}")
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
