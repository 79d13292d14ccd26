"""Named steps at which a test lets a process kill itself, to show that nothing is lost there."""

import os
import signal
from collections.abc import Callable
from typing import Literal

from worker.settings import WorkerSettings

Step = Literal[
    "after_claim",
    "after_predict",
    "after_commit",
    # Of a training run, between training and promotion.
    "after_packing",
    "after_install",
    "after_registration",
    "after_noting",
    "after_gate",
    "after_card",
    "after_finish",
]


def no_failpoint(step: Step) -> None:
    """Pass a step."""


def failpoint(settings: WorkerSettings) -> Callable[[Step], None]:
    """Make what is called at each step.

    Args:
        settings: `failpoint` names the step, and `failpoint_file` remembers across processes that it has struck;
            without both nothing ever happens.

    Returns:
        A callable that kills this process without warning at the chosen step, once.
    """
    chosen, memory = settings.failpoint, settings.failpoint_file
    if chosen is None or memory is None:
        return no_failpoint

    def strike(step: Step) -> None:
        if step != chosen:
            return
        try:
            memory.touch(exist_ok=False)
        except FileExistsError:
            return
        os.kill(os.getpid(), signal.SIGKILL)

    return strike
