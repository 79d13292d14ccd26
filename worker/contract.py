"""What producer, feeder and workers say to each other: task names, queue names and payloads.

The standard library and pydantic only, so that a producer starts without Celery.
"""

from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

#: Raised when the payload changes. Deploy workers before producers: a worker leaves a newer payload alone, and the
#: feeder rings again once a newer worker listens.
CONTRACT_VERSION: Final = 1

SCREEN_CHUNK: Final = "lesion_screen.screen_chunk"
RENDER_CHUNK: Final = "lesion_screen.render_chunk"
TRAIN_MODEL: Final = "lesion_screen.train_model"
QUEUE_RETRAINING: Final = "lesion_screen.queue_retraining"

SCREENING_QUEUE: Final = "screening"
#: A queue of its own: the feeder fills the other one up to a depth, and screening goes first.
RENDERING_QUEUE: Final = "rendering"
TRAINING_QUEUE: Final = "training"

#: The ledger's keys are 64-bit: a forged larger number must not even reach the database.
_Key = Annotated[int, Field(ge=1, le=2**63 - 1)]


class _Payload(BaseModel):
    # Strict: "1" and true are no numbers. Whatever is refused is never quoted: it may hold anything.
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, hide_input_in_errors=True)

    #: `CONTRACT_VERSION` of the sender.
    version: int = Field(ge=1)


class ClaimCheck(_Payload):
    """The payload of a screening or rendering message: which chunk to fetch, and nothing about a patient."""

    batch: _Key
    chunk: _Key
    #: Open items, or images to draw, when it was rung, for people who watch the queue.
    items: int = Field(ge=0, le=1_000_000)
    #: Digest of the model that the batch is pinned to.
    model: str = Field(pattern=r"^[0-9a-f]{64}$")


class RunCheck(_Payload):
    """The payload of a training message: which run to fetch from the ledger."""

    run: _Key


#: Epochs, and a size of 32 pixels or more: the backbones halve an image five times.
_STAGE = r"[1-9]\d{0,3}x(3[2-9]|[4-9]\d|[1-9]\d{2,3})"


class RunRequest(BaseModel):
    """What a training run is to do, as the ledger keeps it; nothing in it speaks of a patient."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    recipe: str = "default"
    #: Another backbone than the recipe's.
    backbone: str | None = None
    #: Height and width in pixels when scoring.
    input_size: int | None = Field(default=None, ge=32, le=1024)
    #: Epochs and image sizes in turn, such as "4x128,8x224".
    stages: str | None = Field(default=None, pattern=rf"^{_STAGE}(,{_STAGE})*$")
    #: A folder in HAM10000's layout on the training worker's host; the ledger's confirmed diagnoses where it is None.
    data: str | None = None
    #: Digest of a registered model to go on from.
    parent: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    #: Backbone weights where there is no parent: "imagenet", "none" or a file on the training worker's host.
    weights: str = "imagenet"
    #: Judge on all five folds, and train a sixth time on all of them.
    cross_validate: bool = False
    promote: Literal["never", "gate"] = "never"
