"""Settings of the producer, read from the environment."""

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from db.settings import StrictSettings


class ProducerSettings(StrictSettings):
    """How an archive is cut into chunks."""

    model_config = SettingsConfigDict(env_prefix="PRODUCER_")

    #: Items of one chunk, which is one message and one lease.
    chunk_items: int = Field(default=256, ge=1, le=10_000)
