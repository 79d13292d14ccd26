"""The classifier a worker loads: decoded images and patients in, verdicts out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, Self, cast

import numpy as np
from numpy.typing import NDArray

from model.artifact import Manifest, read_manifest
from model.calibration import balanced_confidence
from model.device import memory_in_use
from model.errors import ArtifactError
from model.familiarity import MEASURED, FeatureSpace, packed_shapes, unpack_spaces
from model.images import DecodedImage, decode_measured
from model.keras_alone import import_keras
from model.labels import CLASSES, MALIGNANT_INDEX
from model.metadata import MetadataEncoding, PatientMetadata, encode_metadata
from model.weights import read_weights

if TYPE_CHECKING:
    import keras

    from model.engine import Engine, FrozenGraph
    from model.precision import Precision

#: Images of the golden prediction.
GOLDEN_IMAGES: Final = 4
#: Largest difference in probability from the golden prediction: float32 kernels of different machines stay under
#: 1e-4, TF32 on a GPU under 5e-3, and a wrong or foreign network is tenths away.
GOLDEN_TOLERANCE: Final = 5e-3
#: Batches of `GOLDEN_IMAGES` on which two precisions must agree.
_AGREEMENT_BATCHES: Final = 8
#: What an artifact calls the networks that are joined in a model, by their order.
_PREFIXES: Final = ("network", "beside", "beside2", "beside3")

LOW_CONFIDENCE: Final = "low_confidence"
UNFAMILIAR_IMAGE: Final = "unfamiliar_image"


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """What the model says about one image.

    Attributes:
        probabilities: Calibrated posterior in the order of `CLASSES`, summing to 1.
        diagnosis: argmax of posterior / prior, which favours no class for being common.
        confidence: The posterior of `diagnosis`.
        malignant_score: Posterior of akiec, bcc and mel together.
        distance: How far the image is from what was seen in training, see `model.familiarity.measure_distance`.
        prioritised: Whether the score reaches the operating point.
        referred: Whether a person must look whatever the score.
        refer_reason: "unfamiliar_image", "low_confidence", or None.
        evidence: `(h, w)` float32, how much each place of the image speaks for the diagnosis, see `model.evidence`;
            None of a network that does not add up places.
    """

    probabilities: tuple[float, ...]
    diagnosis: str
    confidence: float
    malignant_score: float
    distance: float
    prioritised: bool
    referred: bool
    refer_reason: str | None
    evidence: NDArray[np.float32] | None = field(default=None, repr=False, compare=False)


class Classifier:
    """A loaded model. Threads may share it.

    Args:
        manifest: What the model states about itself.
        engine: What runs it.
    """

    def __init__(self, manifest: Manifest, engine: Engine) -> None:
        self.manifest = manifest
        self.digest = manifest.digest
        self.engine_name = engine.name
        self.precision = engine.precision
        self.device = engine.device
        self.input_size = manifest.network.input_size
        self.metadata_encoding = encoding_of(manifest)
        self._engine = engine
        self._prior = np.asarray(manifest.prior)

    @classmethod
    def load(
        cls,
        folder: Path,
        *,
        precision: Precision = "float32",
        batch_size: int | None = None,
        engine: Literal["auto", "tensorflow"] = "tensorflow",
        converted: Path | None = None,
    ) -> Self:
        """Load an artifact: digest first, then weights into our own network, then the golden prediction.

        Args:
            folder: The artifact.
            precision: What the network is to compute in. Another one than float32 is taken only where it agrees with
                float32 to `GOLDEN_TOLERANCE` and names the same diagnoses; `precision` of the classifier says so.
            batch_size: Images at once; where it is not given, found by a probe on a GPU, and known for a CPU.
            engine: "auto" takes LiteRT on a CPU where it is installed, agrees with TensorFlow to 1e-4 and is faster.
            converted: A folder of this user's in which a conversion for LiteRT is kept for the next load; None keeps
                none. What is found there has to pass the same comparison.

        Raises:
            ArtifactError: Anything about it is not what it claims.
            OutOfMemory: If not even one image fits the device.
        """
        manifest = read_manifest(folder)
        chosen = _load_engine(folder, manifest, "float32")
        _check_golden(manifest, chosen)
        if precision != "float32":
            lighter = _load_engine(folder, manifest, precision)
            chosen = lighter if _agree(manifest, chosen, lighter) else chosen
        if batch_size is None:
            images, metadata = _samples(manifest, 1)[0]
            chosen.fit_batch_size(images[0], metadata[0])
        else:
            chosen.batch_size = batch_size
        if engine == "auto":
            from model.converted import ConvertedGraphs
            from model.litert import BATCH_SIZE, prefer_litert

            kept = None if converted is None else ConvertedGraphs(converted)
            samples = _samples(manifest, _AGREEMENT_BATCHES)
            return cls(manifest, prefer_litert(chosen, samples, kept, batch_size or BATCH_SIZE))
        return cls(manifest, chosen)

    @property
    def batch_size(self) -> int:
        """How many images to give `classify` at once; it takes any number."""
        return self._engine.batch_size

    @property
    def batches_at_once(self) -> int:
        """How many threads do best to call `classify` at a time."""
        return self._engine.batches_at_once

    def memory_in_use(self) -> int | None:
        """Say how much of a GPU's memory is used.

        Returns:
            Bytes, or None on a CPU.
        """
        return memory_in_use()

    def decode(self, data: bytes, frame: int | None = None) -> DecodedImage:
        """Decode an image file to the network's input; any thread may call it.

        Args:
            data: The file's bytes.
            frame: Which frame of a DICOM object, from 1; None where it has but one.

        Returns:
            `(s, s, 3)` uint8 RGB, and how large the image is itself.

        Raises:
            RejectedImage: The bytes are no usable image.
        """
        return decode_measured(data, self.input_size, frame)

    def classify(self, images: NDArray[np.uint8], patients: Sequence[PatientMetadata]) -> list[Prediction]:
        """Score a batch.

        Args:
            images: `(n, s, s, 3)` uint8 from `decode`.
            patients: n patients.

        Returns:
            n predictions.
        """
        encoded = encode_metadata(patients, self.metadata_encoding)
        posteriors, distances, evidence = self._engine.run(images, encoded)
        wide = posteriors.astype(np.float64)
        wide /= wide.sum(axis=1, keepdims=True)
        sure = balanced_confidence(wide, self._prior)
        diagnoses = np.argmax(wide / self._prior, axis=1)
        return [
            self._judge(
                wide[row],
                int(diagnoses[row]),
                float(sure[row]),
                float(distances[row]),
                None if evidence is None else evidence[row],
            )
            for row in range(len(wide))
        ]

    def _judge(
        self,
        posterior: NDArray[np.float64],
        diagnosis: int,
        sure: float,
        distance: float,
        evidence: NDArray[np.float32] | None,
    ) -> Prediction:
        reason = None
        if distance > self.manifest.referral.max_distance:
            reason = UNFAMILIAR_IMAGE
        elif sure < self.manifest.referral.min_confidence:
            reason = LOW_CONFIDENCE
        score = float(posterior[list(MALIGNANT_INDEX)].sum())
        return Prediction(
            probabilities=tuple(posterior.tolist()),
            diagnosis=CLASSES[diagnosis],
            confidence=float(posterior[diagnosis]),
            malignant_score=score,
            distance=distance,
            prioritised=score >= self.manifest.operating_point.threshold,
            referred=reason is not None,
            refer_reason=reason,
            evidence=evidence,
        )


def _load_engine(folder: Path, manifest: Manifest, precision: Precision) -> FrozenGraph:
    import_keras()
    from model.engine import FrozenGraph
    from model.precision import computing_in

    with computing_in(precision):
        network, spaces = load_network(folder, manifest)
    return FrozenGraph(
        network,
        input_size=manifest.network.input_size,
        prior=np.asarray(manifest.prior),
        temperature=manifest.calibration.temperature,
        spaces=spaces,
        precision=precision,
    )


def _samples(manifest: Manifest, batches: int) -> list[tuple[NDArray[np.uint8], NDArray[np.float32]]]:
    size, encoding = manifest.network.input_size, encoding_of(manifest)
    return [golden_input(seed, size, encoding) for seed in range(batches)]


def _agree(manifest: Manifest, engine: FrozenGraph, lighter: FrozenGraph) -> bool:
    prior = np.asarray(manifest.prior)
    for images, metadata in _samples(manifest, _AGREEMENT_BATCHES):
        expected, found = engine.run(images, metadata)[0], lighter.run(images, metadata)[0]
        # Also false where something is not a number.
        if not np.allclose(found, expected, rtol=0, atol=GOLDEN_TOLERANCE):
            return False
        if not np.array_equal(np.argmax(found / prior, axis=1), np.argmax(expected / prior, axis=1)):
            return False
    return True


def load_network(folder: Path, manifest: Manifest) -> tuple[keras.Model, dict[str, FeatureSpace]]:
    """Build the network a manifest describes and put the artifact's weights into it.

    Raises:
        ArtifactError: The architecture is unknown, or the weights are not this network's.
    """
    from pydantic import ValidationError

    from model.network import NetworkConfig, build_network

    try:
        config = NetworkConfig.model_validate(manifest.network.model_dump())
    except ValidationError:
        raise ArtifactError(
            "The model's manifest.json describes a network that this program cannot build: upgrade it."
        ) from None
    network = build_network(config)
    widths = {name: int(network.output[name].shape[-1]) for name in MEASURED if name in network.output}
    variables = network_arrays(network)
    shapes = {name: tuple(variable.shape) for name, variable in variables.items()}
    stored = packed_shapes(widths, manifest.referral.prototypes)
    arrays = read_weights(folder, manifest, {**shapes, **stored})
    for name, variable in variables.items():
        variable.assign(arrays[name])
    spaces = unpack_spaces(arrays, widths)
    if any(space.residual <= 0 or space.scales.min() <= 0 for space in spaces.values()):
        raise ArtifactError("The model's weights.h5 measures distances in no unit: install it again.")
    return network, spaces


def network_arrays(network: keras.Model) -> dict[str, Any]:
    """Name the network's variables as the artifact does."""
    from model.joining import split_network

    # The dropout layer keeps the state of its random numbers as a variable too.
    variables = [
        (f"{prefix}.{v.path.replace('/', '.')}", v)
        for prefix, one in zip(_PREFIXES, split_network(network), strict=False)
        for v in one.variables
        if str(v.dtype).startswith("float")
    ]
    named = dict(variables)
    if len(named) != len(variables):
        raise ArtifactError("Two variables of the network share a name.")
    return named


def encoding_of(manifest: Manifest) -> MetadataEncoding:
    """Return how the manifest's network takes metadata; it is known where the network could be built."""
    return cast("MetadataEncoding", manifest.network.metadata)


def golden_input(
    seed: int, input_size: int, encoding: MetadataEncoding
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Draw the golden prediction's input: coloured waves, and patients with more and less known of them.

    Returns:
        `(4, s, s, 3)` uint8 and `(4, width)` float32.
    """
    generator = np.random.default_rng(seed)
    grid = np.linspace(0, 1, input_size)
    rows, columns = np.meshgrid(grid, grid, indexing="ij")
    waves = generator.uniform(1, 12, (GOLDEN_IMAGES, 3, 2))
    phases = generator.uniform(0, 2 * np.pi, (GOLDEN_IMAGES, 3))
    angle = waves[..., 0, None, None] * rows + waves[..., 1, None, None] * columns + phases[..., None, None]
    images = np.round(127.5 + 127.5 * np.sin(angle)).astype(np.uint8).transpose(0, 2, 3, 1)
    patients = [
        PatientMetadata(age=70, sex="male", localization="back"),
        PatientMetadata(age=30, sex="female", localization="face"),
        PatientMetadata(sex="female"),
        PatientMetadata(),
    ]
    return np.ascontiguousarray(images), encode_metadata(patients, encoding)


def _check_golden(manifest: Manifest, engine: FrozenGraph) -> None:
    posteriors, *_ = engine.run(*golden_input(manifest.golden.seed, manifest.network.input_size, encoding_of(manifest)))
    expected = np.asarray(manifest.golden.posterior)
    if expected.shape != posteriors.shape or not np.allclose(posteriors, expected, rtol=0, atol=GOLDEN_TOLERANCE):
        raise ArtifactError("The loaded model does not repeat its golden prediction: install it again.")
