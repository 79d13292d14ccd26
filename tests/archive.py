"""An archive of small images on disk, and its batches in a ledger."""

import secrets
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from sqlalchemy import Engine, text

from db.batches import ItemRow, add_chunk, finish_loading, start_batch
from db.counts import Counts, count_items
from db.health import check_batch
from db.models import activate_first, register_model
from db.tables import CLASSES
from model.images import encode_image
from model.metadata import PatientMetadata
from model.reference import make_reference

MODEL = "a" * 64


@dataclass(slots=True, kw_only=True)
class Archive:
    """A folder of small images, each of another brightness, and its batches in the ledger."""

    engine: Engine
    root: Path

    def draw(self, count: int, *, first: int = 0) -> list[ItemRow]:
        """Draw images of brightness `first`, `first` + 1 and so on, named after it."""
        self.root.mkdir(exist_ok=True)
        rows = []
        for brightness in range(first, first + count):
            name = f"{brightness:03d}.png"
            data = encode_image(np.full((16, 16, 3), brightness, np.uint8), "PNG")
            (self.root / name).write_bytes(data)
            rows.append(ItemRow(path=name, size=len(data), age=50.0, sex="male", localization="back"))
        return rows

    def spoil(self, name: str, data: bytes) -> ItemRow:
        """Put a file of any content into the archive."""
        self.root.mkdir(exist_ok=True)
        (self.root / name).write_bytes(data)
        return ItemRow(path=name, size=len(data))

    def load(self, *chunks: list[ItemRow], model: str = MODEL) -> int:
        """Open a batch with these chunks."""
        batch = start_batch(self.engine, name="test", source=str(self.root), model_digest=model)
        for items in chunks:
            add_chunk(self.engine, batch, items)
        finish_loading(self.engine, batch, secrets.token_hex(32))
        return batch

    def chunks(self, batch: int) -> list[int]:
        """List a batch's chunks."""
        with self.engine.connect() as connection:
            rows = connection.execute(text("SELECT id FROM chunk WHERE batch_id = :b ORDER BY id"), {"b": batch})
            return [row.id for row in rows]

    def counts(self, batch: int) -> Counts:
        """Count a batch's items, and fail where the ledger is not sound."""
        assert check_batch(self.engine, batch) == []
        return count_items(self.engine, batch)

    def states(self, batch: int) -> dict[str, str]:
        """Say how each file stands."""
        with self.engine.connect() as connection:
            rows = connection.execute(text("SELECT path, state FROM item WHERE batch_id = :b"), {"b": batch})
            return {row.path: row.state for row in rows}

    def reasons(self, batch: int) -> dict[str, str]:
        """Say why each file that has no verdict has none."""
        query = text("SELECT path, reason FROM item WHERE batch_id = :b AND reason IS NOT NULL")
        with self.engine.connect() as connection:
            return {row.path: row.reason for row in connection.execute(query, {"b": batch})}

    def activate_model(self) -> None:
        """Give the ledger an active model, which `load` pins its batches to."""
        prior = dict.fromkeys(CLASSES, 1 / len(CLASSES))
        brightness = np.arange(256) / 255
        patients = [PatientMetadata(age=50.0, localization="back")] * len(brightness)
        register_model(
            self.engine,
            digest=MODEL,
            name="m",
            backbone="b",
            metrics={"prior": prior},
            data_digest="0" * 64,
            reference=make_reference(patients, brightness, 1 - brightness).model_dump(mode="json"),
        )
        activate_first(self.engine, MODEL, "owner")

    def number(self, query: str) -> int:
        """Ask the ledger for one number."""
        with self.engine.connect() as connection:
            return int(connection.execute(text(query)).scalar_one())
