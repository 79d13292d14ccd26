"""Patient metadata as the model sees it: age, sex and body site, each possibly missing."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

#: How metadata reach the network, and through which branch: `small` and `gessert` share the default encoding, which
#: takes missing fields; `paper` is the paper's; `none` takes nothing.
MetadataEncoding = Literal["paper", "gessert", "small", "none"]

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

#: HAM10000's own words, which the paper's encoding keeps apart.
PAPER_SITES: Final = (
    "abdomen",
    "acral",
    "back",
    "chest",
    "ear",
    "face",
    "foot",
    "genital",
    "hand",
    "lower extremity",
    "neck",
    "scalp",
    "trunk",
    "unknown",
    "upper extremity",
)
#: The paper's encoding has one column for every word that is none of these.
OTHER: Final = "other"
#: HAM10000's mean age stands for a missing one in the paper's encoding, whose training leaves such rows out.
MEAN_AGE_YEARS: Final = 52.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Columns:
    #: Columns of the age.
    age: int
    sexes: tuple[str, ...]
    sites: tuple[str, ...]

    @property
    def bounds(self) -> tuple[int, int, int, int]:
        """First column of age, sex and site, and the width."""
        site = self.age + len(self.sexes)
        return 0, self.age, site, site + len(self.sites)


_DEFAULT: Final = _Columns(age=2, sexes=SEXES, sites=SITES)
#: As Keras's StringLookup has them: what is in no vocabulary comes first.
_PAPER: Final = _Columns(age=1, sexes=(OTHER, *SEXES), sites=(OTHER, *PAPER_SITES))


def _columns(encoding: MetadataEncoding) -> _Columns:
    return _PAPER if encoding == "paper" else _DEFAULT


def metadata_width(encoding: MetadataEncoding) -> int:
    """Return the number of columns of an encoding: 21 of `paper`, otherwise `WIDTH`."""
    return _columns(encoding).bounds[-1]


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

    def normalised(self, encoding: MetadataEncoding = "small") -> PatientMetadata:
        """Return the metadata in the model's own words, so that what is equal to the model compares equal.

        Args:
            encoding: `paper` keeps HAM10000's words for the site and calls all others "other"; the default has the
                ISIC Archive's words, and calls all others unknown; of `none` nothing is left.
        """
        if encoding == "none":
            return UNKNOWN
        columns = _columns(encoding)
        strange = OTHER if encoding == "paper" else "unknown"
        sex = (self.sex or "").strip().lower() or "unknown"
        sex = {"f": "female", "m": "male"}.get(sex, sex)
        site = (self.localization or "").strip().lower() or "unknown"
        if encoding != "paper":
            site = SITE_WORDS.get(site, site)
        age = self.age if self.age is not None and 0 <= self.age <= OLDEST_YEARS else None
        return PatientMetadata(
            age=None if age is None else float(age),
            sex=sex if sex in columns.sexes else strange,
            localization=site if site in columns.sites else strange,
        )


UNKNOWN: Final = PatientMetadata()


def input_digest(
    image_digest: str, metadata: PatientMetadata, encoding: MetadataEncoding = "small", frame: int | None = None
) -> str:
    """Identify what the model saw: the image's bytes and the normalised metadata.

    Each part is framed by its length, so that no two different pairs share an encoding.

    Args:
        image_digest: sha256 of the image file's bytes, hexadecimal.
        metadata: Age, sex and site as they stand in the ledger.
        encoding: The model's, which decides what it can tell apart.
        frame: Which frame of a file that has several, from 1.

    Returns:
        sha256, hexadecimal.
    """
    seen = metadata.normalised(encoding)
    canonical = json.dumps(
        {"age": seen.age, "localization": seen.localization, "sex": seen.sex, "version": METADATA_VERSION},
        sort_keys=True,
        separators=(",", ":"),
    )
    digest = hashlib.sha256()
    parts = [image_digest.encode(), canonical.encode()]
    if frame is not None:
        # Only where there are several, so that every other input is what it was in earlier versions.
        parts.append(f"frame {frame}".encode())
    for part in parts:
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return digest.hexdigest()


def encode_metadata(patients: Sequence[PatientMetadata], encoding: MetadataEncoding = "small") -> NDArray[np.float32]:
    """Encode metadata for the network.

    Args:
        patients: n patients.
        encoding: What the network was built with.

    Returns:
        `(n, metadata_width(encoding))` float32. The age is years/100 - 0.5 (0 where missing) and a flag for a missing
        age; of `paper` it is years alone, which the network normalises. One column a sex and one a site follow.
    """
    import numpy as np

    columns = _columns(encoding)
    _, sex, site, width = columns.bounds
    encoded = np.zeros((len(patients), width), np.float32)
    for row, patient in zip(encoded, patients, strict=True):
        seen = patient.normalised(encoding)
        row[: columns.age] = _encode_age(seen.age, encoding)
        row[sex + columns.sexes.index(seen.sex or "unknown")] = 1.0
        row[site + columns.sites.index(seen.localization or "unknown")] = 1.0
    return encoded


def _encode_age(years: float | None, encoding: MetadataEncoding) -> tuple[float, ...]:
    if encoding == "paper":
        return (MEAN_AGE_YEARS if years is None else years,)
    return (0.0, 1.0) if years is None else (years / 100.0 - 0.5, 0.0)


def mask_metadata(
    encoded: NDArray[np.float32],
    generator: np.random.Generator,
    *,
    all_fields: float = 0.3,
    each_field: float = 0.1,
    encoding: MetadataEncoding = "small",
) -> NDArray[np.float32]:
    """Hide fields at random in training, whatever the class.

    In HAM10000 a missing age goes with benign diagnoses, which the network would learn; hiding fields independently
    of the class removes the shortcut.

    Args:
        encoded: `(n, metadata_width(encoding))` float32 from `encode_metadata`.
        generator: Source of randomness.
        all_fields: Probability that a row loses all fields.
        each_field: Probability that each field is lost otherwise.
        encoding: What `encoded` was encoded with.

    Returns:
        A masked copy, same shape.
    """
    missing = encode_metadata([UNKNOWN], encoding)[0]
    hidden = generator.random((len(encoded), 3)) < each_field
    hidden |= generator.random((len(encoded), 1)) < all_fields
    masked = encoded.copy()
    for field, (start, stop) in enumerate(itertools.pairwise(_columns(encoding).bounds)):
        masked[hidden[:, field], start:stop] = missing[start:stop]
    return masked
