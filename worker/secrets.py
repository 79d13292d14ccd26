"""Makes the secrets that docker-compose.yml mounts: `python -m worker.secrets secrets`."""

import secrets
import sys
from pathlib import Path
from typing import Final

_USAGE: Final = 2
_BYTES: Final = 24


def make_secrets(folder: Path) -> None:
    """Draw every password and write the addresses that hold them.

    The folder is its owner's alone; the files in it may be read by whoever they are mounted for, under any user id.

    Args:
        folder: Where; must not exist yet.

    Raises:
        FileExistsError: If it does: what runs already has other passwords.
    """
    redis, postgres, flower = (secrets.token_urlsafe(_BYTES) for _ in range(3))
    folder.mkdir(mode=0o700)
    contents = {
        "redis_password": redis,
        "postgres_password": postgres,
        "db_url": f"postgresql+psycopg://screen:{postgres}@postgres:5432/screen",
        "worker_broker_url": f"redis://screen:{redis}@redis:6379/0",
        "flower_basic_auth": f"operator:{flower}",
    }
    for name, content in contents.items():
        path = folder / name
        path.write_text(content, encoding="utf-8")
        path.chmod(0o444)


def main(arguments: list[str]) -> int:
    """Make the folder that the command line names.

    Args:
        arguments: The folder.

    Returns:
        0, or 2 where it is not named or exists.
    """
    if len(arguments) != 1:
        sys.stderr.write("Usage: python -m worker.secrets FOLDER\n")
        return _USAGE
    try:
        make_secrets(Path(arguments[0]))
    except OSError as error:
        sys.stderr.write(f"{arguments[0]} cannot be made ({error.strerror}); what runs already keeps its passwords.\n")
        return _USAGE
    sys.stdout.write(f"Wrote passwords and addresses to {arguments[0]}; Flower's user is operator.\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
