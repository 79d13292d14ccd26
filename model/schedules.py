"""Learning rates over a run."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final

#: Where the cosine ends, and the plateau schedule stops falling (the paper's 1e-7 for the latter).
COSINE_FLOOR: Final = 1e-6
PLATEAU_FLOOR: Final = 1e-7
#: The notebooks' ReduceLROnPlateau and EarlyStopping.
PLATEAU_FACTOR: Final = 0.2
PLATEAU_PATIENCE: Final = 5
STOPPING_PATIENCE: Final = 35


def cosine_rate(peak: float, step: int, steps: int, warmup: int) -> float:
    """Rate at a step: a linear rise over `warmup` steps, then half a cosine from `peak` to 1e-6.

    Args:
        peak: Highest rate.
        step: Steps taken so far.
        steps: Steps of the whole run.
        warmup: Steps of the rise.
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    share = min((step - warmup) / max(steps - warmup, 1), 1.0)
    return COSINE_FLOOR + (peak - COSINE_FLOOR) * (1 + math.cos(math.pi * share)) / 2


@dataclass(slots=True, kw_only=True)
class Plateau:
    """The notebooks' schedule: a fifth of the rate after 5 epochs without a better validation loss, stop after 35.

    Attributes:
        rate: Present rate.
        best: Lowest validation loss so far.
        stale: Epochs since then.
        waited: Epochs since then or since the rate last fell.
    """

    rate: float
    best: float = math.inf
    stale: int = 0
    waited: int = 0

    def observe(self, loss: float) -> None:
        """Take an epoch's validation loss into account."""
        if loss < self.best:
            self.best, self.stale, self.waited = loss, 0, 0
            return
        self.stale += 1
        self.waited += 1
        if self.waited >= PLATEAU_PATIENCE:
            self.rate, self.waited = max(self.rate * PLATEAU_FACTOR, PLATEAU_FLOOR), 0

    @property
    def stopped(self) -> bool:
        """Whether training is to end early."""
        return self.stale >= STOPPING_PATIENCE

    def state(self) -> list[float]:
        """Return what a checkpoint keeps."""
        return [self.rate, self.best, float(self.stale), float(self.waited)]

    def restore(self, state: Any) -> None:
        """Go on from a checkpoint's `state`."""
        self.rate, self.best = float(state[0]), float(state[1])
        self.stale, self.waited = int(state[2]), int(state[3])
