"""What can go wrong between pixels and probabilities, split by who must act.

ModelError
├── RejectedImage         the file is bad: recorded with its reason, never tried again
├── ArchiveUnavailable    the archive's root is away: wait and try again
│   └── StoreUnavailable  the artifact store on object storage is: the same
├── OutOfMemory           so many images do not fit the device: fewer at once
├── ArtifactError         the model's files are not what they claim: install the model again
├── TrainingDataError     the training folder is not usable: mend it
└── TrainingDiverged      the loss is no number: lower the rate or look at the data
"""

from __future__ import annotations

from enum import StrEnum


class ModelError(Exception):
    """Root of this package's errors."""


class RejectReason(StrEnum):
    """Why an image cannot be scored; stored in the ledger, so a code never changes its meaning."""

    EMPTY_FILE = "empty_file"
    TOO_LARGE_FILE = "too_large_file"
    NOT_AN_IMAGE = "not_an_image"
    UNSUPPORTED_FORMAT = "unsupported_format"
    TRUNCATED = "truncated"
    TOO_MANY_PIXELS = "too_many_pixels"
    #: Decoding it would take more memory or time than any camera's image does.
    TOO_COSTLY = "too_costly"
    NOT_A_REGULAR_FILE = "not_a_regular_file"
    SYMLINK = "symlink"
    UNSAFE_PATH = "unsafe_path"
    MISSING_IMAGE = "missing_image"
    UNREADABLE = "unreadable"
    #: A PACS lists it and answers, and this instance or its study does not come.
    NOT_DELIVERED = "not_delivered"


class RejectedImage(ModelError):  # noqa: N818 - not an error of ours: an outcome
    """An image that cannot be scored.

    Its text is the reason alone: no path and no content.

    Args:
        reason: The code that is recorded.
    """

    def __init__(self, reason: RejectReason) -> None:
        super().__init__(reason.value)
        self.reason = reason


class ArchiveUnavailable(ModelError):  # noqa: N818 - says what is the case
    """The archive's root does not answer: unmounted, an I/O error, a stale handle."""


class OutOfMemory(ModelError):  # noqa: N818 - says what is the case
    """So many images at once do not fit the memory of the device."""


class StoreUnavailable(ArchiveUnavailable):
    """The artifact store on object storage does not answer, or refuses the credentials."""


class ArtifactError(ModelError):
    """A model artifact is damaged, foreign, or of another version."""


class TrainingDataError(ModelError):
    """The training folder cannot be used as it is."""


class TrainingDiverged(ModelError):  # noqa: N818 - says what is the case
    """The loss of a training run stopped being a number."""


class LeakedSplitError(TrainingDataError):
    """A lesion, or a near-duplicate of an image, stands on two sides of a split."""


class GateError(ModelError):
    """Two models cannot be compared as they are."""
