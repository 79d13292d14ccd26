"""Patient metadata as the model sees it: age, sex and body site, each possibly missing."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

#: Raised whenever the encoding or the normalisation below changes: it is part of the model's manifest.
METADATA_VERSION: Final = 1

SEXES: Final = ("female", "male", "unknown")
#: The ISIC Archive's words for `anatom_site_general`.
SITES: Final = (
    "anterior torso",
    "head/neck",
    "lateral torso",
    "lower extremity",
    "oral/genital",
    "palms/soles",
    "posterior torso",
    "upper extremity",
    "unknown",
)
#: HAM10000's fifteen words in the ISIC Archive's.
SITE_WORDS: Final = {
    "abdomen": "anterior torso",
    "chest": "anterior torso",
    "back": "posterior torso",
    "ear": "head/neck",
    "face": "head/neck",
    "neck": "head/neck",
    "scalp": "head/neck",
    "foot": "lower extremity",
    "lower extremity": "lower extremity",
    "hand": "upper extremity",
    "upper extremity": "upper extremity",
    "genital": "oral/genital",
    "acral": "palms/soles",
}
OLDEST_YEARS: Final = 120.0

#: age value, age missing, one column a sex, one column a site.
WIDTH: Final = 2 + len(SEXES) + len(SITES)


@dataclass(frozen=True, slots=True, kw_only=True)
class PatientMetadata:
    """What is known of the patient beside the image.

    Attributes:
        age: Years, or None.
        sex: Any word; what is not female or male counts as unknown.
        localization: Body site in HAM10000's or the ISIC Archive's words; others count as unknown.
    """

    age: float | None = None
    sex: str | None = None
    localization: str | None = None

    def normalised(self) -> PatientMetadata:
        """Return the metadata in the model's own words, so that equal inputs compare equal."""
        sex = (self.sex or "").strip().lower()
        site = (self.localization or "").strip().lower()
        site = SITE_WORDS.get(site, site)
        age = self.age if self.age is not None and 0 <= self.age <= OLDEST_YEARS else None
        return PatientMetadata(
            age=None if age is None else float(age),
            sex={"f": "female", "m": "male"}.get(sex, sex if sex in SEXES else "unknown"),
            localization=site if site in SITES else "unknown",
        )


UNKNOWN: Final = PatientMetadata()


def input_digest(image_digest: str, metadata: PatientMetadata) -> str:
    """Identify what the model saw: the image's bytes and the normalised metadata.

    Each part is framed by its length, so that no two different pairs share an encoding.

    Args:
        image_digest: sha256 of the image file's bytes, hexadecimal.
        metadata: Age, sex and site as they stand in the ledger.

    Returns:
        sha256, hexadecimal.
    """
    seen = metadata.normalised()
    canonical = json.dumps(
        {"age": seen.age, "localization": seen.localization, "sex": seen.sex, "version": METADATA_VERSION},
        sort_keys=True,
        separators=(",", ":"),
    )
    digest = hashlib.sha256()
    for part in (image_digest.encode(), canonical.encode()):
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return digest.hexdigest()


def encode_metadata(patients: Sequence[PatientMetadata]) -> NDArray[np.float32]:
    """Encode metadata for the network's `small` branch.

    Args:
        patients: n patients.

    Returns:
        `(n, WIDTH)` float32: age/100 - 0.5 (0 where missing), a flag for a missing age, and one column a sex and
        a site.
    """
    import numpy as np

    encoded = np.zeros((len(patients), WIDTH), np.float32)
    for row, patient in zip(encoded, patients, strict=True):
        seen = patient.normalised()
        if seen.age is None:
            row[1] = 1.0
        else:
            row[0] = seen.age / 100.0 - 0.5
        row[2 + SEXES.index(seen.sex or "unknown")] = 1.0
        row[2 + len(SEXES) + SITES.index(seen.localization or "unknown")] = 1.0
    return encoded


def mask_metadata(
    encoded: NDArray[np.float32],
    generator: np.random.Generator,
    *,
    all_fields: float = 0.3,
    each_field: float = 0.1,
) -> NDArray[np.float32]:
    """Hide fields at random in training, whatever the class.

    In HAM10000 a missing age goes with benign diagnoses, which the network would learn; hiding fields independently
    of the class removes the shortcut.

    Args:
        encoded: `(n, WIDTH)` float32 from `encode_metadata`.
        generator: Source of randomness.
        all_fields: Probability that a row loses all fields.
        each_field: Probability that each field is lost otherwise.

    Returns:
        A masked copy, same shape.
    """
    missing = encode_metadata([UNKNOWN])[0]
    hidden = generator.random((len(encoded), 3)) < each_field
    hidden |= generator.random((len(encoded), 1)) < all_fields
    masked = encoded.copy()
    bounds = (0, 2, 2 + len(SEXES), WIDTH)
    for field, (start, stop) in enumerate(itertools.pairwise(bounds)):
        masked[hidden[:, field], start:stop] = missing[start:stop]
    return masked
