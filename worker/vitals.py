"""Signs of life: a small file in the temporary folder says what a worker's pool child does, for health checks."""

import contextlib
import hashlib
import os
import tempfile
import time
from pathlib import Path
from typing import Final

from pydantic import BaseModel, ConfigDict, ValidationError

from db.settings import HomeSettings, read_settings

#: A file of ours is smaller.
_MAX_BYTES: Final = 10_000


class Vitals(BaseModel):
    """What a pool child says of itself; nothing in it speaks of a patient."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    pid: int
    #: Digests of the models that it has loaded.
    models: tuple[str, ...]
    #: What it scores on, "gpu" or "cpu"; None as long as no model is loaded.
    device: str | None = None
    #: Whether it works on a message.
    busy: bool
    #: Whether it holds a chunk's lease for that: not while it draws, nor while it waits for an archive that is away.
    leased: bool = False
    #: Since when it is busy or idle, seconds since 1970.
    since: float


def vitals_path(node: str) -> Path:
    """Say where a worker's child leaves its signs of life; two homes on one machine have workers of one name.

    Args:
        node: The Celery node's name.

    Returns:
        A file of this user's in the temporary folder.
    """
    home = read_settings(HomeSettings).home
    digest = hashlib.sha256(f"{home}\n{node}".encode("utf-8", "surrogateescape")).hexdigest()
    return Path(tempfile.gettempdir()) / f"lesion-screen-{digest[:16]}.json"


def write_vitals(
    node: str, *, busy: bool, models: tuple[str, ...], device: str | None = None, leased: bool = False
) -> None:
    """Say what this process does; a disk that does not take it stops no work.

    Args:
        node: The Celery node's name.
        busy: Whether it works on a message.
        models: Digests of the models that it has loaded.
        device: What it scores on, "gpu" or "cpu".
        leased: Whether it holds a chunk's lease.
    """
    vitals = Vitals(pid=os.getpid(), models=models, device=device, busy=busy, leased=leased, since=time.time())
    path = vitals_path(node)
    with contextlib.suppress(OSError):
        # A name that nobody can guess, moved over the known one: in a shared folder somebody else's link lies in wait.
        file, temporary = tempfile.mkstemp(dir=path.parent)
        try:
            with os.fdopen(file, "w", encoding="utf-8") as out:
                out.write(vitals.model_dump_json())
            Path(temporary).replace(path)
        except OSError:
            Path(temporary).unlink(missing_ok=True)
            raise


def read_vitals(node: str) -> Vitals | None:
    """Read what a worker's child last said.

    Args:
        node: The Celery node's name.

    Returns:
        Its signs of life, or None where there are none of this user's.
    """
    try:
        file = os.open(vitals_path(node), os.O_RDONLY | os.O_NOFOLLOW)
        with os.fdopen(file, encoding="utf-8") as told:
            if os.fstat(file).st_uid != os.getuid():
                return None
            return Vitals.model_validate_json(told.read(_MAX_BYTES))
    except (OSError, ValidationError):
        return None
