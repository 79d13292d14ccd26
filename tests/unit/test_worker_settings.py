"""Settings of the worker and of Celery, each of which answers a fault."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import pytest
from pydantic import ValidationError

from db.errors import SettingsError
from db.settings import read_settings
from tests.stack import ROOT
from worker.app import celery_settings
from worker.contract import QUEUE_RETRAINING, RENDER_CHUNK, SCREEN_CHUNK, TRAIN_MODEL
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


@pytest.mark.parametrize("address", ["redis://h", "redis://h:6379/0", "rediss://:p%40ss@[::1]:6380/1?ssl_ca_certs=f"])
def test_an_address_of_a_redis_is_taken(address: str) -> None:
    settings = WorkerSettings.model_validate({"broker_url": address})

    assert settings.broker_url is not None
    assert settings.broker_url.get_secret_value() == address


def test_an_empty_address_is_none() -> None:
    assert WorkerSettings.model_validate({"broker_url": ""}).broker_url is None


@pytest.mark.parametrize("part", [["worker.feeder"], ["worker.monitor"], ["celery", "-A", "worker.app", "worker"]])
def test_a_part_that_nobody_could_ring_for_ends_with_a_sentence(part: list[str], tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "WORKER_BROKER_URL": "",
        "DB_URL": "",
        "LESION_SCREEN_HOME": str(tmp_path),
        "FLOWER_BASIC_AUTH": "operator:0123456789abc",
    }

    done = subprocess.run(
        [sys.executable, "-m", *part], env=environment, capture_output=True, text=True, timeout=60, check=False
    )

    assert done.returncode == 2
    assert "WORKER_BROKER_URL is not set" in done.stderr


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
    assert celery["task_annotations"][RENDER_CHUNK]["time_limit"] < 600
    assert celery["task_routes"][RENDER_CHUNK] == {"queue": "rendering"}
    assert celery["task_routes"][TRAIN_MODEL] == {"queue": "training"}
    assert celery["beat_schedule"] == {}


def test_a_failpoint_needs_both_its_settings(tmp_path: Path) -> None:
    assert failpoint(WorkerSettings()) is no_failpoint
    assert failpoint(WorkerSettings(failpoint="after_claim")) is no_failpoint

    armed = failpoint(WorkerSettings(failpoint="after_claim", failpoint_file=tmp_path / "struck"))
    armed("after_commit")
    assert not (tmp_path / "struck").exists()


def test_the_window_is_in_the_hospitals_time_and_may_cross_midnight() -> None:
    night = WorkerSettings(window="20:00-06:00", timezone="Europe/Vienna")
    day = WorkerSettings(window="09:00-17:00")

    def at(clock: str) -> datetime:
        return datetime.fromisoformat(f"2026-01-31T{clock}+00:00")

    # Vienna is an hour ahead in winter
    assert [night.is_in_window(at(clock)) for clock in ("18:59", "19:00", "23:30", "04:59", "05:00")] == [
        *(False, True, True),
        *(True, False),
    ]
    assert [day.is_in_window(at(clock)) for clock in ("08:59", "09:00", "16:59", "17:00")] == [False, True, True, False]
    assert WorkerSettings().is_in_window(at("12:00"))


@pytest.mark.parametrize("given", [{"window": "20-06"}, {"window": "25:00-06:00"}, {"timezone": "Vienna/Europe"}])
def test_odd_hours_and_zones_are_refused(given: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        WorkerSettings.model_validate(given)


def test_a_crontab_becomes_a_schedule_and_an_odd_one_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    given = celery_settings(WorkerSettings(retrain_cron="30 2 * * sun", timezone="Europe/Vienna"))
    entry = given["beat_schedule"]["retraining"]

    assert entry["task"] == QUEUE_RETRAINING
    assert given["task_routes"][QUEUE_RETRAINING] == {"queue": "training"}
    assert given["timezone"] == "Europe/Vienna"
    assert (entry["schedule"].hour, entry["schedule"].minute, entry["schedule"].day_of_week) == ({2}, {30}, {0})
    monkeypatch.setenv("WORKER_RETRAIN_CRON", "99 2 * * sun")
    started = subprocess.run(
        [sys.executable, "-c", "import worker.app"], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert (started.returncode, started.stderr) == (
        2,
        "WORKER_RETRAIN_CRON: give five fields as cron has them, such as 0 2 * * sun.\n",
    )
