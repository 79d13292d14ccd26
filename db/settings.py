"""Where the ledger and the one-machine state live, read from the environment and from files of secrets."""

import os
from pathlib import Path
from typing import Final, Self, TypeVar

import platformdirs
from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from db.errors import SettingsError

SettingsT = TypeVar("SettingsT", bound=BaseSettings)

#: Where Docker puts secrets; systemd says where it does (`LoadCredential`). A setting that is not in the environment is
#: read from the file of its name in lower case: `db_url`, `worker_broker_url`.
_SECRETS: Final = "/run/secrets"
_SECRETS_FROM: Final = "CREDENTIALS_DIRECTORY"


def full_path(path: Path | str) -> Path:
    """Make a path absolute that no shell has expanded, as in a unit of systemd.

    Args:
        path: A path; "~" and "~name" at its begin are the homes of users.

    Returns:
        The same, absolute.

    Raises:
        ValueError: If there is no such user.
    """
    try:
        return Path(path).expanduser().absolute()
    except RuntimeError:
        # The name of a folder may be a person's, and is not repeated.
        raise ValueError("the user after its ~ has no home here; give the path in full, from / on") from None


class StrictSettings(BaseSettings):
    """Settings that refuse unknown environment variables carrying their prefix.

    A misspelt `DB_ULR` that is silently ignored would put patients' data into the wrong database.
    """

    # A refused value may be a secret or a path: errors name the setting, never what was in it.
    model_config = SettingsConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    @model_validator(mode="after")
    def refuse_unknown_names(self) -> Self:
        """Refuse an environment variable that has the prefix and is no setting.

        Returns:
            The settings, unchanged.

        Raises:
            ValueError: If such a variable is set.
        """
        prefix = self.model_config.get("env_prefix", "").upper()
        known = {f"{prefix}{name}".upper() for name in type(self).model_fields}
        unknown = sorted(name for name in os.environ if prefix and name.upper().startswith(prefix))
        unknown = [name for name in unknown if name.upper() not in known]
        if unknown:
            raise ValueError(f"{', '.join(unknown)}: no such setting (known: {', '.join(sorted(known))})")
        return self


class HomeSettings(StrictSettings):
    """The folder of the one-machine state, and the artifact store."""

    model_config = SettingsConfigDict(env_prefix="LESION_SCREEN_")

    #: Folder of ledger, private Redis, logs and store; created when it is first written to.
    home: Path = Field(default_factory=lambda: platformdirs.user_state_path("lesion-screen"))
    #: Artifact store: a folder, or s3://bucket/prefix; a folder in the home where it is not given.
    store: str | None = None

    @field_validator("home")
    @classmethod
    def expand_home(cls, home: Path) -> Path:
        """Make the folder absolute."""
        return full_path(home)

    @field_validator("store")
    @classmethod
    def expand_store(cls, store: str | None) -> str | None:
        """Make a folder absolute; object storage is left as it is."""
        return str(full_path(store)) if store and "://" not in store else store

    @property
    def store_path(self) -> Path:
        """The folder of the artifact store, absolute; of one on object storage, this host's copy of what it used."""
        return Path(self.store) if self.store and "://" not in self.store else self.home / "store"

    @property
    def ledger_url(self) -> str:
        """URL of the embedded ledger in the home folder."""
        return f"sqlite:///{self.home / 'ledger.sqlite'}"


class DbSettings(StrictSettings):
    """The ledger's address and the size of its connection pool."""

    model_config = SettingsConfigDict(env_prefix="DB_")

    #: SQLAlchemy URL; the embedded SQLite ledger of the home where it is not given.
    url: SecretStr | None = None
    #: Connections kept open by one process.
    pool_size: int = Field(default=5, ge=1, le=100)

    @field_validator("url")
    @classmethod
    def know_database(cls, address: SecretStr | None) -> SecretStr | None:
        """Refuse an address that SQLAlchemy cannot read, or a file in a home of nobody's.

        Args:
            address: What it is set to.

        Returns:
            The same; None where it is empty.

        Raises:
            ValueError: If it is none.
        """
        from sqlalchemy.engine import make_url
        from sqlalchemy.exc import ArgumentError

        try:
            url = make_url(address.get_secret_value()) if address else None
        except (ValueError, ArgumentError):
            # What the parser says may quote the address, password included.
            raise ValueError("this is no address of a database; give sqlite:///FILE or postgresql://…") from None
        if url is not None and url.get_backend_name() == "sqlite" and url.database:
            full_path(url.database)
        return address or None

    def ledger_url(self, home: HomeSettings) -> str:
        """Say which ledger to open.

        Args:
            home: Settings of the one-machine state, used where no URL is set.

        Returns:
            A SQLAlchemy URL; it may hold a password, so it must never be logged.
        """
        return self.url.get_secret_value() if self.url else home.ledger_url


def read_settings(kind: type[SettingsT]) -> SettingsT:
    """Read settings from the environment, and what is not there from the files of secrets.

    Args:
        kind: The settings class.

    Returns:
        The settings, frozen.

    Raises:
        SettingsError: If a variable is unknown or has no sound value; one plain sentence for each.
    """
    secrets = Path(os.environ.get(_SECRETS_FROM, _SECRETS))
    try:
        return kind(_secrets_dir=secrets if secrets.is_dir() else None)
    except ValidationError as error:
        prefix = kind.model_config.get("env_prefix", "").upper()
        raise SettingsError("; ".join(_sentence(prefix, one["loc"], one["msg"]) for one in error.errors())) from None


def _sentence(prefix: str, location: tuple[int | str, ...], message: str) -> str:
    plain = message.removeprefix("Value error, ")
    return f"{prefix}{str(location[0]).upper()}: {plain}" if location else plain
