"""Settings of the worker and of Celery, each of which answers a fault."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from db.errors import SettingsError
from db.settings import read_settings
from worker.app import celery_settings
from worker.contract import SCREEN_CHUNK, TRAIN_MODEL
from worker.failpoints import failpoint, no_failpoint
from worker.settings import WorkerSettings


def test_times_are_in_an_order_that_lets_nothing_run_twice() -> None:
    settings = WorkerSettings()

    assert settings.heartbeat_seconds < settings.lease_seconds
    assert settings.stall_seconds < settings.hard_limit_seconds < settings.visibility_seconds


@pytest.mark.parametrize(
    "given",
    [{"heartbeat_seconds": 30}, {"stall_seconds": 540}, {"hard_limit_seconds": 600}, {"classifier": "os.system"}],
)
def test_times_out_of_order_and_odd_names_are_refused(given: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        WorkerSettings.model_validate(given)


def test_a_misspelt_variable_is_refused_and_a_password_is_never_quoted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKER_BROKER_URI", "redis://:canary@host/0")

    with pytest.raises(SettingsError, match="WORKER_BROKER_URI") as refused:
        read_settings(WorkerSettings)

    assert "canary" not in str(refused.value)


def test_the_brokers_address_is_a_secret() -> None:
    settings = WorkerSettings.model_validate({"broker_url": "redis://:canary@host/0"})

    assert "canary" not in repr(settings)


def test_archive_roots_are_read_as_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKER_ARCHIVE_ROOTS", '{"/submitted": "/mounted", "named": "/named"}')
    settings = read_settings(WorkerSettings)

    assert settings.archive_root("/submitted") == Path("/mounted")
    assert settings.archive_root("named") == Path("/named")
    assert settings.archive_root("/elsewhere") == Path("/elsewhere")
    assert settings.archive_root("nowhere") is None


def test_celery_speaks_json_only_and_loses_no_message() -> None:
    celery = celery_settings(WorkerSettings())

    assert celery["accept_content"] == ["json"]
    assert celery["task_acks_late"]
    assert celery["task_reject_on_worker_lost"]
    assert celery["worker_disable_prefetch"]
    assert celery["worker_prefetch_multiplier"] == 1
    assert celery["broker_connection_max_retries"] is None
    assert celery["task_annotations"][SCREEN_CHUNK]["time_limit"] < 600
    assert celery["broker_transport_options"]["visibility_timeout"] == 600
    assert celery["task_routes"][TRAIN_MODEL] == {"queue": "training"}


def test_a_failpoint_needs_both_its_settings(tmp_path: Path) -> None:
    assert failpoint(WorkerSettings()) is no_failpoint
    assert failpoint(WorkerSettings(failpoint="after_claim")) is no_failpoint

    armed = failpoint(WorkerSettings(failpoint="after_claim", failpoint_file=tmp_path / "struck"))
    armed("after_commit")
    assert not (tmp_path / "struck").exists()
