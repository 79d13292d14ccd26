"""The schedule of a kill campaign: what is killed when, drawn from a seed."""

import random
from dataclasses import dataclass
from typing import Final

WORKERS: Final = ("w1", "w2", "w3")

#: What can be killed, and how often of twenty: a worker with its children (the host dies); its main process alone,
#: whose orphaned child may go on; a pool child; the feeder; Redis, which then knows what it had on disk, if it had been
#: told to keep anything; Redis with everything it knew; PostgreSQL with all its backends; one of its backends.
KINDS: Final = {
    "worker": 5,
    "parent": 2,
    "child": 6,
    "feeder": 1,
    "redis": 2,
    "redis wiped": 1,
    "postgres": 2,
    "backend": 1,
}

#: Seconds between two kills, evenly drawn, with short leases and with production's.
PACE: Final = {"short": (0.2, 1.5), "production": (5.0, 15.0)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Kill:
    """One kill of the schedule."""

    #: Since the one before was mended.
    after_seconds: float
    kind: str
    #: Which worker, where a worker or a part of it is killed.
    worker: str
    #: How long a server stays away.
    away_seconds: float


def draw_schedule(seed: int, kills: int, pace: str) -> list[Kill]:
    """Draw the kills; the same arguments draw the same schedule, and every kind comes early on."""
    generator = random.Random(seed)
    kinds = list(KINDS)
    generator.shuffle(kinds)
    kinds += generator.choices(list(KINDS), weights=list(KINDS.values()), k=max(0, kills - len(kinds)))
    return [
        Kill(
            after_seconds=generator.uniform(*PACE[pace]),
            kind=kind,
            worker=generator.choice(WORKERS),
            away_seconds=generator.uniform(0, 1),
        )
        for kind in kinds[:kills]
    ]
