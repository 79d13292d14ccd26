"""The commands about training runs: `train` and `runs`; imported when one of them is called."""

import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError
from rich.console import Console
from rich.table import Table
from sqlalchemy import Engine

from db.models import find_model
from db.run_log import EventRow, list_events
from db.runs import RunRow, cancel_run, get_run, list_runs, queue_run
from db.session import TRANSIENT_ERRORS, is_transient
from db.tables import RunState
from producer.errors import EXIT_DONE, EXIT_SOME_FAILED, ServiceProblem, UsageProblem
from producer.ledger import Place, open_existing, open_prepared, read_place
from producer.local import LocalStack, is_stack_running
from producer.meter import Meter
from producer.progress import AWAY_SECONDS, LISTEN_SECONDS
from producer.report import printable
from producer.stored import gate_verdict
from producer.terminal import name_actor, open_console, print_json
from worker.contract import RunRequest
from worker.doorbell import Doorbell
from worker.errors import BrokerUnavailable

_ENDED: Final = (RunState.DONE, RunState.FAILED, RunState.CANCELLED)
_LOOK_SECONDS: Final = 1.0
_SHORT: Final = 12


def train(request: Mapping[str, Any], *, parent: str | None, wait: bool, as_json: bool) -> int:
    """Do `lesion-screen train`.

    Args:
        request: Fields of `RunRequest`.
        parent: The model to go on from, its digest or the beginning of it.
        wait: Wait for the end; without a broker it is waited for in any case.
        as_json: Print JSON alone.

    Returns:
        0, or 1 where the run was waited for and has failed or was cancelled.
    """
    console, place = open_console(quiet=as_json), read_place()
    engine, _ = open_prepared(place, register=False)
    digest = None if parent is None else find_model(engine, parent).digest
    asked = _read_request({**request, "parent": digest})
    if asked.data is not None and place.broker_url is None and not Path(asked.data).is_dir():
        raise UsageProblem("The data folder is not there; check the path given with --data.")
    run_id = queue_run(engine, asked.model_dump(mode="json"), name_actor())
    console.print(f"Training run {run_id} is queued.", highlight=False)
    if place.broker_url is not None:
        _ring(place.broker_url, run_id)
        if not wait:
            print_json({"run": run_id})
            console.print(f"`lesion-screen runs log {run_id}` shows how it goes.", highlight=False)
            return EXIT_DONE
    run = _train_here(engine, place, run_id, console)
    if as_json:
        print_json(_as_json(run))
    return EXIT_DONE if run.state is RunState.DONE else EXIT_SOME_FAILED


def _read_request(fields: Mapping[str, Any]) -> RunRequest:
    try:
        return RunRequest.model_validate(fields)
    except ValidationError as error:
        named = ", ".join(str(one["loc"][0]).replace("_", "-") for one in error.errors())
        raise UsageProblem(f"--{named} cannot be read; see `lesion-screen train --help`.") from None


def _ring(broker_url: str, run_id: int) -> None:
    try:
        with Doorbell(broker_url) as doorbell:
            doorbell.ring_run(run_id)
    except BrokerUnavailable as error:
        raise ServiceProblem(
            f"{error} The run is safe in the ledger: the feeder rings for it once Redis is back."
        ) from error


def _train_here(engine: Engine, place: Place, run_id: int, console: Console) -> RunRow:
    """Wait for a run, with a training worker of our own where there is no cluster."""
    if place.broker_url is not None:
        return _await_run(engine, run_id, console, lambda: None)
    joined = is_stack_running(place.home)
    with LocalStack(place.home, workers=0, training=True) as stack:
        if joined and is_stack_running(place.home, services=True):
            console.print("The services of this home are up; their training worker takes the run.")
        elif joined:
            console.print("Another command runs the workers of this home; the run begins once that has ended.")
        return _await_run(engine, run_id, console, stack.keep_running)


def _await_run(engine: Engine, run_id: int, console: Console, keep_running: Callable[[], None]) -> RunRow:
    with Meter(console, "Training", "epochs") as meter:
        return _follow_run(engine, run_id, console, keep_running, meter)


def _follow_run(
    engine: Engine, run_id: int, console: Console, keep_running: Callable[[], None], meter: Meter
) -> RunRow:
    began, said, away, listened = time.monotonic(), 0, False, False
    while True:
        keep_running()
        try:
            run, events = get_run(engine, run_id), list_events(engine, run_id, after=said)
        except TRANSIENT_ERRORS as error:
            if not is_transient(error):
                raise
            if not away:
                console.print("[yellow]The ledger does not answer; waiting for it. Nothing is lost.[/]")
            away = True
            time.sleep(AWAY_SECONDS)
            continue
        for event in events:
            console.print(_sentence(event), highlight=False, soft_wrap=True)
        said += len(events)
        if run.progress and "epoch" in run.progress:
            meter.show(run.progress["epoch"], total=run.progress.get("epochs"), outcomes=run.progress.get("part", ""))
        if run.state in _ENDED:
            return run
        if run.state is RunState.QUEUED and not listened and time.monotonic() - began > LISTEN_SECONDS:
            listened = True
            console.print(
                "[yellow]No training worker has taken the run yet. If none is running, start one with "
                "`make worker-training` where WORKER_BROKER_URL and DB_URL are set.[/]"
            )
        time.sleep(_LOOK_SECONDS)


def show_runs(*, as_json: bool) -> int:
    """Do `lesion-screen runs list`.

    Args:
        as_json: Print JSON alone.

    Returns:
        The exit code.
    """
    runs = list_runs(open_existing(read_place()))
    if as_json:
        print_json({"runs": [_as_json(run) for run in runs]})
        return EXIT_DONE
    table = Table(title="Training runs, newest first", title_justify="left")
    for name in ("run", "state", "queued", "model", "gate"):
        table.add_column(name, no_wrap=True)
    table.add_column("progress")
    for run in runs:
        queued = datetime.fromtimestamp(run.created_at, UTC).strftime("%Y-%m-%d %H:%M")
        model = (run.model_digest or "")[:_SHORT]
        table.add_row(str(run.id), run.state.value, queued, model, _verdict(run), _progress(run.progress))
    Console().print(table)
    return EXIT_DONE


def show_run(run_id: int) -> int:
    """Do `lesion-screen runs show`: everything that is known of a run, as JSON.

    Args:
        run_id: The run.

    Returns:
        The exit code.
    """
    run = get_run(open_existing(read_place()), run_id)
    print_json(_as_json(run) | {"params": dict(run.params), "gate": run.gate and dict(run.gate)})
    return EXIT_DONE


def cancel(run_id: int) -> int:
    """Do `lesion-screen runs cancel`.

    Args:
        run_id: The run.

    Returns:
        The exit code.
    """
    changed = cancel_run(open_existing(read_place()), run_id, name_actor())
    open_console().print(f"Run {run_id} {'is' if changed else 'was already'} cancelled.", highlight=False)
    return EXIT_DONE


def show_log(run_id: int, *, as_json: bool) -> int:
    """Do `lesion-screen runs log`.

    Args:
        run_id: The run.
        as_json: Print JSON alone.

    Returns:
        The exit code.
    """
    engine = open_existing(read_place())
    get_run(engine, run_id)
    events = list_events(engine, run_id)
    if as_json:
        print_json({"run": run_id, "events": [{"at": one.at, "kind": one.kind, **one.data} for one in events]})
        return EXIT_DONE
    console = Console()
    for event in events:
        console.print(_sentence(event), highlight=False, soft_wrap=True)
    return EXIT_DONE


def _sentence(event: EventRow) -> str:
    at = datetime.fromtimestamp(event.at, UTC).strftime("%Y-%m-%d %H:%M:%S")
    words = _WORDS.get(event.kind)
    return f"{at}  {words(event.data) if words else event.kind}"


def _claimed(data: Mapping[str, Any]) -> str:
    lost = f", after {data['crashes']} lost in a row" if data["crashes"] else ""
    return f"a worker begins, attempt {data['attempt']}{lost}"


def _learns(data: Mapping[str, Any]) -> str:
    out = ", ".join(f"{count:,} {reason}" for reason, count in data["left_out"].items() if count)
    return f"learns from {data['images']:,} images, data set {data['digest'][:_SHORT]}; left out: {out or 'none'}"


def _progress(progress: Mapping[str, Any] | None) -> str:
    if not progress:
        return ""
    if "reason" in progress:
        return printable(progress["reason"])
    figures = f"epoch {progress['epoch']} of {progress['epochs']} at {progress['size']} px, loss {progress['loss']:.3f}"
    return f"{figures}, {progress['seconds']:.0f} s"


_WORDS: Final[Mapping[str, Callable[[Mapping[str, Any]], str]]] = {
    "claimed": _claimed,
    "data": _learns,
    "epoch": lambda data: f"{data['part']}: {_progress(data)}",
    "model": lambda data: f"model {data['digest'][:_SHORT]} is registered as a candidate",
    "gate": lambda data: f"gate: {data['verdict']} (use {data['uses']:,} of this gate set)",
    "released": lambda _: "given back; the next worker goes on",
    "failed": lambda data: f"failed: {printable(data['reason'])}",
    "done": lambda data: f"done{'; the model is the active one now' if data['promoted'] else ''}",
}


def _verdict(run: RunRow) -> str:
    return "" if run.gate is None else gate_verdict(run.gate)


def _as_json(run: RunRow) -> dict[str, Any]:
    return {
        "run": run.id,
        "state": run.state.value,
        "attempt": run.attempt,
        "crashes": run.crashes,
        "created_at": run.created_at,
        "heartbeat": run.heartbeat,
        "progress": run.progress and dict(run.progress),
        "model": run.model_digest,
        "verdict": _verdict(run) or None,
    }
