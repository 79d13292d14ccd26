"""Flower behind a password, on the loopback unless told otherwise: `python -m worker.monitor`."""

import os
import sys
from typing import Final, Self

from celery.__main__ import main as run_celery
from pydantic import Field, SecretStr, model_validator
from pydantic_settings import SettingsConfigDict

from db.errors import LedgerError, SettingsError
from db.session import open_ledger
from db.settings import DbSettings, HomeSettings, StrictSettings, read_settings
from worker.metrics import serve_metrics
from worker.settings import WorkerSettings

#: Shorter ones are tried out over a lunch break.
_SHORTEST_PASSWORD: Final = 12

_USAGE: Final = 2


class MonitorSettings(StrictSettings):
    """How Flower is reached; an option of Flower's that is not here is refused, the one without a password first."""

    model_config = SettingsConfigDict(env_prefix="FLOWER_")

    #: `user:password`, or several with commas between them.
    basic_auth: SecretStr | None = None
    address: str = Field(default="127.0.0.1", min_length=1)
    port: int = Field(default=5555, ge=1, le=65535)

    @model_validator(mode="after")
    def insist_on_passwords(self) -> Self:
        """Refuse to show anything to whoever comes by.

        Returns:
            The settings, unchanged.

        Raises:
            ValueError: If a user has no password, or a short one.
        """
        given = self.basic_auth.get_secret_value() if self.basic_auth else ""
        for login in given.split(","):
            user, _, password = login.partition(":")
            if not user or len(password) < _SHORTEST_PASSWORD:
                raise ValueError(
                    f"FLOWER_BASIC_AUTH must be USER:PASSWORD with at least {_SHORTEST_PASSWORD} letters of password"
                )
        return self


def arguments(settings: MonitorSettings) -> list[str]:
    """Say how Flower is started; the password is not among the arguments, which every user of a machine can read.

    Args:
        settings: Address and port.

    Returns:
        The command line of Celery.
    """
    return [
        *("celery", "-A", "worker.app", "--quiet", "flower"),
        *(f"--address={settings.address}", f"--port={settings.port}"),
        # The payload says which chunk of which batch it is.
        "--tasks_columns=name,args,state,received,runtime,worker",
        # People watch: whoever has the password queues no task, and stops no worker.
        "--read_only=True",
        # By default Flower runs whatever is called flowerconfig.py in the current folder.
        f"--conf={os.devnull}",
    ]


def main() -> None:
    """Run Flower with the ledger's metrics, or end with 2 where a setting is wrong."""
    try:
        settings, broker_url = read_settings(MonitorSettings), read_settings(WorkerSettings).broker_url
        if broker_url is None:
            raise SettingsError("WORKER_BROKER_URL is not set: Flower needs the address of Redis.")
        engine = open_ledger(read_settings(DbSettings).ledger_url(read_settings(HomeSettings)))
    except LedgerError as error:
        sys.stderr.write(f"{error}\n")
        raise SystemExit(_USAGE) from None
    if settings.basic_auth is not None:
        os.environ["FLOWER_BASIC_AUTH"] = settings.basic_auth.get_secret_value()
    serve_metrics(engine, broker_url.get_secret_value())
    sys.argv = arguments(settings)
    run_celery()


if __name__ == "__main__":
    main()
