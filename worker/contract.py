"""What producer, feeder and workers say to each other: task names, queue names and the one payload.

The standard library and pydantic only, so that a producer starts without Celery.
"""

from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field

#: Raised when the payload changes. Deploy workers before producers: a worker leaves a newer payload alone, and the
#: feeder rings again once a newer worker listens.
CONTRACT_VERSION: Final = 1

SCREEN_CHUNK: Final = "lesion_screen.screen_chunk"
TRAIN_MODEL: Final = "lesion_screen.train_model"

SCREENING_QUEUE: Final = "screening"
TRAINING_QUEUE: Final = "training"

#: The ledger's keys are 64-bit: a forged larger number must not even reach the database.
_Key = Annotated[int, Field(ge=1, le=2**63 - 1)]


class ClaimCheck(BaseModel):
    """The payload of a screening message: which chunk to fetch from the ledger, and nothing about a patient."""

    # Strict: "1" and true are no numbers. Whatever is refused is never quoted: it may hold anything.
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, hide_input_in_errors=True)

    #: `CONTRACT_VERSION` of the sender.
    version: int = Field(ge=1)
    batch: _Key
    chunk: _Key
    #: Open items when it was rung, for people who watch the queue.
    items: int = Field(ge=0, le=1_000_000)
    #: Digest of the model that the batch is pinned to.
    model: str = Field(pattern=r"^[0-9a-f]{64}$")
