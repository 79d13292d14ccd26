"""How a worker refuses to start: in one sentence that says what to set."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest


def start(**settings: str) -> subprocess.CompletedProcess[str]:
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("DB_", "WORKER_"))}
    command = [sys.executable, "-m", "celery", "-A", "worker.app", "--quiet", "worker", "-Q", "screening", "-c", "1"]
    return subprocess.run(command, env=inherited | settings, capture_output=True, text=True, check=False, timeout=60)


def test_a_worker_without_a_broker_says_what_is_missing() -> None:
    refused = start()

    assert refused.returncode == 2
    assert refused.stderr == "WORKER_BROKER_URL is not set: a worker needs the address of Redis.\n"


@pytest.mark.parametrize(
    ("mistaken", "sentence"),
    [
        ({"WORKER_BROKER_URI": "x"}, "WORKER_BROKER_URI: no such setting"),
        ({"WORKER_QUEUE_DEPTH": "canary"}, "WORKER_QUEUE_DEPTH: Input should be a valid integer"),
    ],
)
def test_a_worker_with_a_wrong_setting_names_it_without_a_traceback(mistaken: dict[str, str], sentence: str) -> None:
    # Given a wrong setting beside a password
    # If a worker is started
    refused = start(WORKER_BROKER_URL="redis://:canary@127.0.0.1:1/0", **mistaken)

    # Then it ends with one line that names the setting and quotes no value
    assert refused.returncode == 2
    assert refused.stderr.startswith(sentence)
    assert refused.stderr.count("\n") == 1
    assert "canary" not in refused.stdout + refused.stderr
