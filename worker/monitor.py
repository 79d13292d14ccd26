"""Flower behind a password, on the loopback unless told otherwise: `python -m worker.monitor`."""

import os
import sys
from typing import Final, NoReturn, Self

from pydantic import Field, SecretStr, model_validator
from pydantic_settings import SettingsConfigDict

from db.errors import SettingsError
from db.settings import StrictSettings, read_settings
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


def command(settings: MonitorSettings) -> list[str]:
    """Say how Flower is started; the password is not among the arguments, which every user of a machine can read.

    Args:
        settings: Address and port.

    Returns:
        The command line.
    """
    return [
        *(sys.executable, "-m", "celery", "-A", "worker.app", "--quiet", "flower"),
        *(f"--address={settings.address}", f"--port={settings.port}"),
        # By default Flower runs whatever is called flowerconfig.py in the current folder.
        f"--conf={os.devnull}",
    ]


def main() -> NoReturn:
    """Become Flower, or end with 2 where a setting is wrong."""
    try:
        settings = read_settings(MonitorSettings)
        if read_settings(WorkerSettings).broker_url is None:
            raise SettingsError("WORKER_BROKER_URL is not set: Flower needs the address of Redis.")  # noqa: TRY301
    except SettingsError as error:
        sys.stderr.write(f"{error}\n")
        raise SystemExit(_USAGE) from None
    if settings.basic_auth is not None:
        os.environ["FLOWER_BASIC_AUTH"] = settings.basic_auth.get_secret_value()
    os.execv(sys.executable, command(settings))  # noqa: S606 - no shell is wanted


if __name__ == "__main__":
    main()
