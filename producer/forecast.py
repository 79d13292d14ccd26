"""What an archive would cost, before anything is written: `lesion-screen submit --dry-run`."""

import shutil
from dataclasses import asdict, dataclass
from typing import Any, Final

from rich.console import Console
from sqlalchemy import Engine

from db.batches import find_batch, list_batches
from db.models import active_model
from producer.errors import ArchiveProblem
from producer.ledger import Place, open_existing
from producer.manifest import Manifest
from producer.paths import nearest_folder
from producer.status import batch_status

#: Bytes of the ledger that an item with its verdict takes, measured with 20 000 of them: SQLite 687, PostgreSQL 1 577.
_ITEM_BYTES: Final = {"sqlite": 700, "postgresql": 1600}
#: The rate is that of the newest batches which have so many images altogether; fewer say little.
_ENOUGH_IMAGES: Final = 200
_NEWEST_BATCHES: Final = 20
_SECONDS_AN_HOUR: Final = 3600


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """What submitting an archive would mean."""

    items: int
    #: Items that cannot be scored, as far as their files' names and sizes tell.
    rejected: int
    #: What the workers would read.
    image_bytes: int
    #: Images a second of the batches that this ledger has screened; None where it has screened too few.
    images_per_second: float | None
    #: From the first image to the last at that rate.
    hours: float | None
    #: What the ledger would grow by.
    ledger_bytes: int
    #: Where the ledger is a file: what is free on its disk.
    free_bytes: int | None
    #: The batch that this very archive is already, under the active model.
    batch: int | None

    def as_json(self) -> dict[str, Any]:
        """Return what is printed for programs."""
        return asdict(self)


def make_forecast(place: Place, manifest: Manifest) -> Forecast:
    """Count an archive and look at what screening took so far; writes nothing.

    Args:
        place: Where the ledger would be.
        manifest: The staged archive.

    Returns:
        The forecast.

    Raises:
        ArchiveProblem: If there is no image and no row.
        SchemaMismatch: If the ledger has another schema.
    """
    items, rejected, size = 0, 0, 0
    for item in manifest.items():
        items += 1
        rejected += item.rejected is not None
        size += (item.size or 0) if item.rejected is None else 0
    if not items:
        raise ArchiveProblem("There is no image in this folder and no row: check the path.")
    there = not place.embedded or (place.home / "ledger.sqlite").exists()
    engine = open_existing(place) if there else None
    rate = None if engine is None else _rate(engine)
    dialect = "sqlite" if engine is None else engine.dialect.name
    return Forecast(
        items=items,
        rejected=rejected,
        image_bytes=size,
        images_per_second=rate,
        hours=None if rate is None else (items - rejected) / rate / _SECONDS_AN_HOUR,
        ledger_bytes=items * _ITEM_BYTES[dialect],
        free_bytes=shutil.disk_usage(nearest_folder(place.home)).free if place.embedded else None,
        batch=None if engine is None else _batch(engine, manifest),
    )


def _rate(engine: Engine) -> float | None:
    images, seconds = 0, 0.0
    for batch in list_batches(engine, _NEWEST_BATCHES):
        status = batch_status(engine, batch.id)
        if status.finished:
            images += status.done + status.referred
            seconds += status.seconds
        if images >= _ENOUGH_IMAGES and seconds > 0:
            return round(images / seconds, 2)
    return None


def _batch(engine: Engine, manifest: Manifest) -> int | None:
    model = active_model(engine)
    return None if model is None else find_batch(engine, manifest.digest(), model.digest)


def print_forecast(console: Console, forecast: Forecast) -> None:
    """Tell a person.

    Args:
        console: Where to.
        forecast: What is told.
    """
    say = console.print
    scored = forecast.items - forecast.rejected
    say(f"{scored:,} images to score, {_size(forecast.image_bytes)} to read; {forecast.rejected:,} rejected already.")
    if forecast.hours is None:
        say(
            f"How long it takes is not known: this ledger has not screened {_ENOUGH_IMAGES} images yet. "
            "Screen a small folder of the archive first."
        )
    else:
        say(f"About {_duration(forecast.hours)} at {forecast.images_per_second:,} images/s, as in the newest batches.")
    say(f"The ledger would grow by about {_size(forecast.ledger_bytes)}.")
    if forecast.free_bytes is not None and forecast.ledger_bytes > forecast.free_bytes:
        say(f"[red]Only {_size(forecast.free_bytes)} are free where it lies: make room, or set LESION_SCREEN_HOME.[/]")
    if forecast.batch is not None:
        say(f"Nothing would be added: batch {forecast.batch} is this very archive under this very model.")
    say("Nothing was written.")


def _duration(hours: float) -> str:
    return f"{hours:,.1f} hours" if hours >= 1 else f"{max(1, round(hours * 60))} min"


def _size(count: int) -> str:
    size = float(count)
    for unit in ("B", "KB", "MB"):
        if size < 1000:  # noqa: PLR2004 - the units' own step
            return f"{size:.0f} {unit}"
        size /= 1000
    return f"{size:,.1f} GB"
