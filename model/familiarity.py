"""How far an image lies from what a network was trained on."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from model.labels import CLASSES

#: What a network says of an image that is measured, each in a space of its own, and what an artifact calls the space.
#: The last features are those it diagnoses by, and to them a cat's fur may look like a lesion. Those of an intermediate
#: layer know it by its texture (layers together: Lee et al. 2018, section 2.3).
MEASURED: Final = {"features": "space", "intermediate": "intermediate"}
#: Principal components the distance is measured in.
COMPONENTS: Final = 64
#: Directions that training images lie in, at most and one for so many images.
PROTOTYPES: Final = 64
IMAGES_A_PROTOTYPE: Final = 8
#: Variance of a direction below which it counts as constant.
LEAST_VARIANCE: Final = 1e-12
#: Quantile of each part of the distance over training images that is its unit.
SCALE_QUANTILE: Final = 0.99
#: Least units of the two parts: a deviation, and an angle of 2.6 degrees.
LEAST_SCALES: Final = (1.0, 1e-3)


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureSpace:
    """Where known lesions lie in the network's features.

    Attributes:
        mean: `(f,)` float32, the mean feature vector.
        projection: `(f, k)` float32: principal components, whitened within classes.
        centres: `(7, k)` float32: class means after projection.
        residual: `()` float32: mean variance of the dimensions that the components leave over.
        prototypes: `(p, f)` float32 unit vectors: directions that groups of training images lie in. Models of earlier
            versions have none.
        scales: `(2,)` float32: units of the distance's two parts.
    """

    mean: NDArray[np.float32]
    projection: NDArray[np.float32]
    centres: NDArray[np.float32]
    residual: NDArray[np.float32]
    prototypes: NDArray[np.float32] = field(default_factory=lambda: np.empty((0, 0), np.float32))
    scales: NDArray[np.float32] = field(default_factory=lambda: np.ones(2, np.float32))

    def basis(self) -> NDArray[np.float64]:
        """Orthonormal basis `(f, k)` of the space that the components span."""
        return np.linalg.qr(self.projection.astype(np.float64))[0]

    def distance(self, features: NDArray[np.floating]) -> NDArray[np.float64]:
        """How far `(n, f)` features lie from those of training, `(n,)`: both `parts` in their units, as one length."""
        parts = self.parts(features)
        return np.asarray(np.linalg.norm(parts / self.scales[: parts.shape[1]], axis=1))

    def parts(self, features: NDArray[np.floating]) -> NDArray[np.float64]:
        """Two ways to be far from training images, `(n, 2)` of `(n, f)` features; `(n, 1)` without prototypes.

        The Mahalanobis distance to the nearest class (Lee et al. 2018, equation 2), with the covariance of the
        components within, and the same in every direction without (Moghaddam & Pentland 1997, equation 9: distance in
        and from feature space). The part without is what knows a grey card from skin: the components were chosen by
        what varies between lesions, where it lies in the middle.

        One minus the cosine to the nearest prototype (after Sun et al. 2022, who take single images): what knows a
        photograph whose features are weak, and so in the middle of everything, but mixed as no lesion's are.
        """
        wide = np.asarray(features, np.float64)
        offsets = wide - self.mean
        gaps = (offsets @ self.projection)[:, None, :] - self.centres[None].astype(np.float64)
        outside = (offsets**2).sum(axis=1) - ((offsets @ self.basis()) ** 2).sum(axis=1)
        parts = [np.sqrt((gaps**2).sum(axis=2).min(axis=1) + np.maximum(outside, 0) / self.residual)]
        if len(self.prototypes):
            parts.append(1 - (_directions(wide) @ self.prototypes.T.astype(np.float64)).max(axis=1))
        return np.stack(parts, axis=1)


def _shapes(width: int, prototypes: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {
        "mean": (width,),
        "projection": (width, COMPONENTS),
        "centres": (len(CLASSES), COMPONENTS),
        "residual": (),
    }
    return shapes | ({"prototypes": (prototypes, width), "scales": (2,)} if prototypes else {})


#: By the names of a network's outputs.
Spaces: TypeAlias = Mapping[str, FeatureSpace]


def fit_spaces(outputs: Mapping[str, NDArray[np.floating]], labels: NDArray[np.int64]) -> dict[str, FeatureSpace]:
    """Learn the space of each output that is `MEASURED`; see `fit_feature_space`.

    Args:
        outputs: What the network said of training images, `(n, f)` each; others are passed over.
        labels: `(n,)` class indices.
    """
    return {name: fit_feature_space(outputs[name], labels) for name in MEASURED if name in outputs}


def measure_distance(spaces: Spaces, outputs: Mapping[str, NDArray[np.floating]]) -> NDArray[np.float64]:
    """How far images lie from those of training, `(n,)`: the distance in each space, as one length.

    Args:
        spaces: From `fit_spaces`.
        outputs: What the same network said of the images, `(n, f)` each.
    """
    return np.asarray(np.linalg.norm([space.distance(outputs[name]) for name, space in spaces.items()], axis=0))


def pack_spaces(spaces: Spaces) -> dict[str, NDArray[np.float32]]:
    """Name the arrays of all spaces as an artifact's weight file does."""
    return {
        f"{MEASURED[name]}.{part}": getattr(space, part)
        for name, space in spaces.items()
        for part in _shapes(len(space.mean), len(space.prototypes))
    }


def packed_shapes(widths: Mapping[str, int], prototypes: int) -> dict[str, tuple[int, ...]]:
    """Say what `pack_spaces` makes of the spaces of outputs of such widths, with so many prototypes each."""
    return {
        f"{MEASURED[name]}.{part}": shape
        for name, width in widths.items()
        for part, shape in _shapes(width, prototypes).items()
    }


def unpack_spaces(arrays: Mapping[str, NDArray[np.float32]], names: Iterable[str]) -> dict[str, FeatureSpace]:
    """Take the spaces of such outputs out of an artifact's arrays."""
    prefixes = {name: f"{MEASURED[name]}." for name in names}
    return {
        name: FeatureSpace(
            **{key.removeprefix(prefix): array for key, array in arrays.items() if key.startswith(prefix)}
        )
        for name, prefix in prefixes.items()
    }


def _directions(features: NDArray[np.float64]) -> NDArray[np.float64]:
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)


def fit_feature_space(features: NDArray[np.floating], labels: NDArray[np.int64]) -> FeatureSpace:
    """Learn the feature space of training images, with one covariance for all classes.

    Args:
        features: `(n, f)` pooled features of training images.
        labels: `(n,)` class indices; every class must be present.
    """
    from sklearn.decomposition import PCA

    wide = np.asarray(features, np.float64)
    # Features that are all alike, as an untrained network's may be, have no variance to share out.
    with np.errstate(invalid="ignore"):
        pca = PCA(min(COMPONENTS, *wide.shape), svd_solver="randomized", random_state=0).fit(wide)
    points = pca.transform(wide)
    centres = np.stack([points[labels == index].mean(axis=0) for index in range(len(CLASSES))])
    residual = points - centres[labels]
    values, vectors = np.linalg.eigh(residual.T @ residual / len(residual))
    whitening = vectors / np.sqrt(np.maximum(values, max(1e-6 * values.max(), LEAST_VARIANCE)))
    left_over = ((wide - pca.mean_) ** 2).sum() - (points**2).sum()
    dimensions = max(wide.shape[1] - points.shape[1], 1)
    space = FeatureSpace(
        mean=pca.mean_.astype(np.float32),
        projection=(pca.components_.T @ whitening).astype(np.float32),
        centres=(centres @ whitening).astype(np.float32),
        # Not zero: as many components as features leave nothing over but rounding.
        residual=np.array(max(left_over / (len(wide) * dimensions), 1e-6 * wide.var(), LEAST_VARIANCE), np.float32),
        prototypes=_find_prototypes(_directions(wide)),
    )
    scales = np.maximum(np.quantile(space.parts(wide), SCALE_QUANTILE, axis=0), LEAST_SCALES)
    return replace(space, scales=scales.astype(np.float32))


def _find_prototypes(directions: NDArray[np.float64]) -> NDArray[np.float32]:
    from sklearn.cluster import MiniBatchKMeans
    from sklearn.exceptions import ConvergenceWarning

    wanted = min(PROTOTYPES, max(len(directions) // IMAGES_A_PROTOTYPE, 1))
    with warnings.catch_warnings():
        # Features that are all alike are one group, not so many.
        warnings.simplefilter("ignore", ConvergenceWarning)
        means = MiniBatchKMeans(wanted, n_init=3, random_state=0).fit(directions).cluster_centers_
    return _directions(means).astype(np.float32)
