"""The Celery application: `celery -A worker.app worker -Q screening,rendering -c 1 --hostname screener-1@%h`.

Every setting names the fault it answers.
"""

import ssl
import sys
from typing import Any

from celery import Celery
from celery.schedules import ParseException, crontab

from db.errors import SettingsError
from db.settings import read_settings
from worker import lifecycle  # noqa: F401 - connects the signals
from worker.contract import (
    QUEUE_RETRAINING,
    RENDER_CHUNK,
    RENDERING_QUEUE,
    SCREEN_CHUNK,
    SCREENING_QUEUE,
    TRAIN_MODEL,
    TRAINING_QUEUE,
)
from worker.settings import WorkerSettings

_USAGE = 2


def celery_settings(settings: WorkerSettings) -> dict[str, Any]:
    """Build Celery's configuration.

    Args:
        settings: The worker's settings.

    Returns:
        Names and values as Celery spells them.
    """
    tls = settings.broker_tls()
    return {
        "broker_url": settings.broker_url.get_secret_value() if settings.broker_url else None,
        # Celery reads the address itself; Flower looks only here.
        "broker_use_ssl": None if tls is None else tls | {"ssl_cert_reqs": ssl.CERT_REQUIRED},
        # A pickle in Redis would run its sender's code.
        "accept_content": ["json"],
        "task_serializer": "json",
        "result_serializer": "json",
        "event_serializer": "json",
        # A message whose worker is killed stays in Redis: it goes when the chunk has ended in the ledger.
        "task_acks_late": True,
        # The same for a killed pool child, which late acknowledgement alone would lose. It cannot loop: attempts and
        # crashes are counted in the ledger, and a redelivered message meets a live lease.
        "task_reject_on_worker_lost": True,
        # Results belong into the ledger; in Redis they would fill it.
        "task_ignore_result": True,
        "task_track_started": False,
        # One message a child and none in reserve: a waiting message in a busy worker's hands is a chunk nobody does.
        "worker_prefetch_multiplier": 1,
        "worker_disable_prefetch": True,
        # Threads give no speed-up and have no time limit; solo answers nothing while it works.
        "worker_pool": "prefork",
        # TensorFlow's start takes 10 s; by default a child that is not up after 4 s never comes back.
        "worker_proc_alive_timeout": 120,
        # A native hang serves no Python signal: killed from outside. The lease has run out by then.
        "task_annotations": {
            name: {"time_limit": settings.hard_limit_seconds} for name in (SCREEN_CHUNK, RENDER_CHUNK)
        },
        # Flower sees what is going on; payloads hold ids only.
        "worker_send_task_events": True,
        # A deploy: the child hears of it at once (worker.lifecycle) and gives its chunk back; with
        # REMAP_SIGTERM=SIGQUIT Celery waits so long for it and then ends it.
        "worker_soft_shutdown_timeout": settings.shutdown_seconds,
        # A chunk in hand goes on while Redis is restarted: the ledger is what it reports to.
        "worker_cancel_long_running_tasks_on_connection_loss": False,
        # Redis may come up after the workers, and may be away for hours; by default 100 tries are all.
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        "broker_transport_options": {
            # Longer than any task may run, or it would run twice.
            "visibility_timeout": settings.visibility_seconds,
            # Redelivery otherwise waits for a sweep of about 100 s.
            "unacked_restore_interval": 5,
            "unacked_restore_throttle": 1,
            # A network path that swallows packets is noticed; the client's default would cut blocking pops.
            "socket_timeout": 30,
            "socket_keepalive": True,
            "health_check_interval": 25,
            # Queues in the order of -Q: pictures are drawn when nothing waits to be screened.
            "queue_order_strategy": "priority",
        },
        # Overlapping strikes queue one run; a strike that nobody heard within the hour has come and gone.
        "timezone": settings.timezone,
        "beat_schedule": _beat_schedule(settings),
        # Kept in memory: the default's file would need a writable folder, and would strike late for what was missed.
        "beat_scheduler": "celery.beat:Scheduler",
        # Screening never waits behind a training run of hours.
        "task_default_queue": SCREENING_QUEUE,
        "task_routes": {
            SCREEN_CHUNK: {"queue": SCREENING_QUEUE},
            RENDER_CHUNK: {"queue": RENDERING_QUEUE},
            TRAIN_MODEL: {"queue": TRAINING_QUEUE},
            QUEUE_RETRAINING: {"queue": TRAINING_QUEUE},
        },
        # What libraries print may hold anything; worker.logs writes templates only.
        "worker_hijack_root_logger": False,
        "worker_redirect_stdouts": False,
    }


def _beat_schedule(settings: WorkerSettings) -> dict[str, Any]:
    if settings.retrain_cron is None:
        return {}
    minute, hour, day, month, weekday = settings.retrain_cron.split()
    strikes = crontab(minute=minute, hour=hour, day_of_month=day, month_of_year=month, day_of_week=weekday)
    return {"retraining": {"task": QUEUE_RETRAINING, "schedule": strikes, "options": {"expires": 3600}}}


def _configuration_or_exit() -> dict[str, Any]:
    # Celery imports this module itself, so nothing of ours stands above it that could turn a mistake of the
    # operator's into a sentence.
    try:
        return celery_settings(read_settings(WorkerSettings))
    except SettingsError as error:
        sentence = str(error)
    except (ParseException, ValueError):
        sentence = "WORKER_RETRAIN_CRON: give five fields as cron has them, such as 0 2 * * sun."
    sys.stderr.write(f"{sentence}\n")
    raise SystemExit(_USAGE)


app = Celery("lesion_screen", include=["worker.tasks"])
app.conf.update(_configuration_or_exit())
