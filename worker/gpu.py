"""One GPU a process: which one this process takes, before TensorFlow sees any."""

import os
import shutil
import subprocess
from collections.abc import Mapping, MutableMapping, Sequence
from typing import Final

#: CUDA's own: which GPUs a process sees. An empty one hides them all.
_VISIBLE: Final = "CUDA_VISIBLE_DEVICES"
_ANSWER_SECONDS: Final = 20


def list_gpus(environment: Mapping[str, str]) -> Sequence[str]:
    """List the GPUs that this process may take; loads nothing.

    Args:
        environment: Where CUDA_VISIBLE_DEVICES may narrow them down.

    Returns:
        Their UUIDs as the driver tells them, or what the variable has; none where there is no driver.
    """
    given = environment.get(_VISIBLE)
    if given is not None:
        # CUDA reads up to the first one that is not there.
        return [one.strip() for one in given.split(",") if one.strip() not in {"", "-1"}]
    program = shutil.which("nvidia-smi", path=environment.get("PATH"))
    if program is None:
        return []
    command = [program, "--query-gpu=uuid", "--format=csv,noheader"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, timeout=_ANSWER_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in told.stdout.splitlines() if line.strip()]


def take_gpu(environment: MutableMapping[str, str], index: int) -> Sequence[str]:
    """Leave this process one GPU, its own; to be called before TensorFlow is imported.

    Args:
        environment: Of this process; CUDA_VISIBLE_DEVICES is set in it where there are GPUs.
        index: Of this process among those of its machine. With more processes than GPUs they take turns.

    Returns:
        The GPUs that it has chosen among.
    """
    gpus = list_gpus(environment)
    if gpus:
        environment[_VISIBLE] = gpus[index % len(gpus)]
    return gpus


def take_own_gpu(first: int) -> Sequence[str]:
    """Leave this pool child one GPU, its own.

    Args:
        first: The index of the worker's first child among the processes of its machine.

    Returns:
        The GPUs that it has chosen among.
    """
    from billiard.process import current_process

    return take_gpu(os.environ, first + getattr(current_process(), "index", 0))
