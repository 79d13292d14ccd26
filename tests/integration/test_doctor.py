"""What `lesion-screen doctor` says of sound and of broken surroundings."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner
from sqlalchemy import text

from producer.cli import cli
from worker.register import register_shipped_model

if TYPE_CHECKING:
    from pathlib import Path

    from sqlalchemy import Engine

    from tests.archive import Archive
    from tests.servers import RedisServer


pytestmark = pytest.mark.usefixtures("own_home")


def examine(code: int = 0, *, quick: bool = True) -> dict[str, tuple[str, str]]:
    """Run the command, and return part to grade and text."""
    answer = CliRunner().invoke(cli, ["doctor", "--json", *["--quick"] * quick])
    assert answer.exit_code == code, answer.output
    told = json.loads(answer.stdout)
    assert told["well"] == (code == 0)
    return {one["part"]: (one["grade"], one["text"]) for one in told["findings"]}


def test_a_machine_of_its_own_is_well(sqlite_ledger: Engine, own_home: Path) -> None:
    # Given a ledger with the shipped model in its store
    register_shipped_model(sqlite_ledger, own_home / "store")

    # If it is looked at, then everything is good, but for a GPU that may not be there
    found = examine(quick=False)
    odd = {part for part, (grade, _) in found.items() if grade != "good"}
    assert odd <= {"gpu", "disk"}
    assert "repeats its golden prediction" in found["model"][1]
    # And people read the same
    shown = CliRunner().invoke(cli, ["doctor", "--quick"])
    assert shown.exit_code == 0
    assert "sqlite answers, with the schema that is needed" in " ".join(shown.stdout.split())


def test_before_the_first_archive_nothing_is_missing() -> None:
    found = examine(quick=False)
    assert "the first `lesion-screen run ARCHIVE` makes it" in found["ledger"][1]
    assert "model" not in found


def test_a_damaged_model_is_named(sqlite_ledger: Engine, own_home: Path) -> None:
    register_shipped_model(sqlite_ledger, own_home / "store")
    (weights,) = (own_home / "store" / "models").glob("*/weights.h5")
    weights.write_bytes(b"damaged")

    assert examine(1, quick=False)["model"][0] == "bad"


def test_a_cluster_is_looked_at(
    archive: Archive, redis_server: RedisServer, own_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a cluster without a feeder, and a batch whose archive is not mounted here
    monkeypatch.setenv("DB_URL", archive.engine.url.render_as_string(hide_password=False))
    monkeypatch.setenv("WORKER_BROKER_URL", redis_server.url)
    register_shipped_model(archive.engine, own_home / "store")
    batch = archive.load(archive.draw(1))
    with archive.engine.begin() as connection:
        connection.execute(text("UPDATE batch SET source = '/nowhere/Zauberfrau'"))

    found = examine(1)

    assert found["redis"][0] == "good"
    assert found["feeder"][0] == "bad"
    assert found["archives"][0] == "odd"
    assert f"batch {batch}" in found["archives"][1]
    # And a path, which may name a patient, is nowhere
    assert "Zauberfrau" not in str(found)

    # If Redis may evict, and then dies, that is said
    with redis_server.client as client:
        client.config_set("maxmemory-policy", "allkeys-lru")
    assert "noeviction" in examine(1)["redis"][1]
    redis_server.kill()
    assert examine(1)["redis"][1].startswith("It does not answer")


def test_a_database_that_is_away_is_said_without_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DB_URL", "postgresql+psycopg://u:s3cret@127.0.0.1:1/none")
    found = examine(1)
    assert found["ledger"] == ("bad", "The ledger does not answer or its disk is full; check DB_URL and run again.")
    assert "s3cret" not in str(found)


@pytest.mark.parametrize(("place", "said"), [("", "cannot be opened"), ("file/x.sqlite", "cannot be made")])
def test_a_ledger_that_cannot_be_opened_is_said_beside_the_rest(
    place: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("DB_URL", f"sqlite:///{tmp_path / place}")

    found = examine(1)

    assert found["ledger"][0] == "bad"
    assert said in found["ledger"][1]
    assert "redis" in found


def test_a_home_that_others_may_read_is_odd(own_home: Path) -> None:
    own_home.mkdir(mode=0o755)
    own_home.chmod(0o755)
    assert examine()["disk"][0] == "odd"
