"""Devices: what each worker scores on, for people who watch."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from sqlalchemy import Engine, delete, select
from sqlalchemy.dialects import postgresql, sqlite

from db.clock import clock
from db.session import read, write
from db.tables import Device

#: A worker that was not heard of for so long is not shown, seconds.
_SHOWN_SECONDS: Final = 600
#: And after so long its row goes.
_KEPT_SECONDS: Final = 86_400


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceRow:
    """What one worker scores on."""

    #: The Celery node's name.
    worker: str
    #: "gpu" or "cpu".
    kind: str
    #: In use; None on a CPU.
    memory_bytes: int | None
    #: Images that the network sees at once.
    batch_size: int


def record_device(engine: Engine, device: DeviceRow) -> None:
    """Note what a worker scores on; idempotent, its own transaction.

    Args:
        engine: The ledger.
        device: What it says.
    """
    told = {
        "worker": device.worker,
        "kind": device.kind,
        "memory_bytes": device.memory_bytes,
        "batch_size": device.batch_size,
        "seen_at": clock(),
    }
    insert = (sqlite if engine.dialect.name == "sqlite" else postgresql).insert(Device).values(**told)
    with write(engine) as connection:
        connection.execute(insert.on_conflict_do_update(index_elements=["worker"], set_=told))
        connection.execute(delete(Device).where(Device.seen_at < clock() - _KEPT_SECONDS))


def list_devices(engine: Engine) -> Sequence[DeviceRow]:
    """List what the workers score on that were heard of within ten minutes; reads only.

    Args:
        engine: The ledger.

    Returns:
        One a worker, by name.
    """
    recent = select(Device).where(Device.seen_at > clock() - _SHOWN_SECONDS).order_by(Device.worker)
    with read(engine) as connection:
        return [
            DeviceRow(worker=row.worker, kind=row.kind, memory_bytes=row.memory_bytes, batch_size=row.batch_size)
            for row in connection.execute(recent)
        ]
