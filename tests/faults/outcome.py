"""What a kill campaign has done to an archive: counted from files and rows, never from the program's own counters."""

import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
from sqlalchemy import Engine, text

from db.chunks import QUARANTINE_MARKS

#: A chunk whose worker was killed is claimed again within so many seconds, of a hundred times in ninety-nine.
RECOVERY_BAR: Final = 45.0

_FINAL: Final = ("done", "referred", "rejected", "quarantined")


@dataclass(slots=True, kw_only=True)
class Outcome:
    """What became of a campaign."""

    kills: Counter[str] = field(default_factory=Counter)
    #: Files without the outcome that is theirs, and verdicts without a row.
    lost: int = 0
    #: Second items of a file, second results of an input, outcomes that were counted more often than there are files.
    doubled: int = 0
    #: Images that were being opened while three workers died, by bad luck; they were retried at the end.
    quarantined: int = 0
    batches: int = 0
    images: int = 0
    #: Items that were still open when patience ended.
    unfinished: int = 0
    #: Invariants of `db.health` that did not hold.
    findings: list[str] = field(default_factory=list)
    #: From the kill of a chunk's holder to the chunk's next claim, seconds.
    recoveries: list[float] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def passed(self) -> bool:
        """Whether every bar was met."""
        slow = bool(self.recoveries) and self._recovery(0.99) > RECOVERY_BAR
        # A quarantine takes three kills, so more of them would be somebody else's doing.
        blamed = self.quarantined * QUARANTINE_MARKS > self.kills.total()
        return not (self.lost or self.doubled or self.unfinished or self.findings or slow or blamed)

    def line(self) -> str:
        """Say it in a line."""
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(self.kills.items()))
        recovery = "not measured"
        if self.recoveries:
            times = f"p50 {self._recovery(0.5):.1f} s, p99 {self._recovery(0.99):.1f} s"
            recovery = f"{times} of {len(self.recoveries)}"
        broken = f"; broken: {', '.join(self.findings)}" if self.findings else ""
        return (
            f"kills {self.kills.total()} ({kinds}), lost {self.lost}, doubled {self.doubled}, recovery {recovery}; "
            f"quarantined and retried {self.quarantined}, unfinished {self.unfinished}, "
            f"{self.images} images in {self.batches} batches, {self.seconds:.0f} s{broken}"
        )

    def _recovery(self, share: float) -> float:
        return float(np.quantile(self.recoveries, share))

    def count_batch(self, engine: Engine, batch: int, folder: Path, expected: Mapping[str, str]) -> None:
        """Count what is lost and doubled in a batch.

        Args:
            engine: The ledger.
            batch: The batch.
            folder: The archive.
            expected: What becomes of each file.
        """
        with engine.connect() as connection:
            items = connection.execute(text("SELECT path, state FROM item WHERE batch_id = :b"), {"b": batch}).all()
            results = connection.execute(
                text("SELECT input_digest FROM result r JOIN batch b USING (model_digest) WHERE b.id = :b"),
                {"b": batch},
            ).scalars()
            counted = connection.execute(
                text(
                    f"SELECT coalesce(sum({' + '.join(f'{name}_count' for name in _FINAL)}), 0)"  # noqa: S608 - constants
                    " FROM chunk WHERE batch_id = :b"
                ),
                {"b": batch},
            ).scalar_one()
            states: dict[str, list[str]] = {}
            for path, state in items:
                states.setdefault(path, []).append(state)
            self._count(states, Counter(results), int(counted), folder, expected)
        self.batches += 1
        self.images += len(expected)

    def _count(
        self,
        states: Mapping[str, list[str]],
        results: Counter[str],
        counted: int,
        folder: Path,
        expected: Mapping[str, str],
    ) -> None:
        self.lost += sum(state not in states.get(name, ()) for name, state in expected.items())
        self.doubled += sum(len(found) - 1 for found in states.values())
        self.doubled += sum(number - 1 for number in results.values())
        self.doubled += max(0, counted - len(expected))
        # Every input of the archive has the same metadata, so there are as many results as different sound files.
        sound = [name for name, state in expected.items() if state in {"done", "referred"}]
        inputs = len({hashlib.sha256((folder / name).read_bytes()).digest() for name in sound})
        self.doubled += max(0, len(results) - inputs)
        self.lost += max(0, inputs - len(results))
