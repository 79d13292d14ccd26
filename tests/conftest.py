"""Fixtures shared by all tests: ledgers on SQLite and PostgreSQL, and scenes to play on them."""

import shutil
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from sqlalchemy import Engine, text

from db.batches import ItemRow, add_chunk, finish_loading, start_batch
from db.chunks import Claim, ClaimedItem, Scored, claim_chunk, record_results
from db.results import ResultRow
from db.session import open_ledger, upgrade_schema
from tests.archive import MODEL, Archive
from tests.objects import ObjectServer
from tests.orthanc import Orthanc
from tests.servers import PostgresServer, RedisServer
from tests.stack import SHORT_TIMES, Stack


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """Run one PostgreSQL for the session, on a unix socket only; nobody kills this one."""
    server = PostgresServer.prepare()
    try:
        server.start()
        yield server
    finally:
        server.remove()


@pytest.fixture(scope="session")
def postgres_template(postgres_server: PostgresServer) -> Iterator[str]:
    """Migrate one database for the session, which each test's own is copied from; yields its name."""
    with postgres_server.database() as name:
        migrate(postgres_server.url(name))
        yield name


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Migrate one SQLite ledger for the session, which each test's own is copied from."""
    path = tmp_path_factory.mktemp("template") / "ledger.sqlite"
    migrate(f"sqlite:///{path}")
    return path


def migrate(url: str) -> None:
    """Give a ledger the newest schema."""
    engine = open_ledger(url)
    upgrade_schema(engine)
    # Nobody may be connected to a database that is copied, and SQLite empties its WAL when the last one leaves.
    engine.dispose()


@pytest.fixture
def postgres_url(postgres_server: PostgresServer) -> Iterator[str]:
    """Make an empty database of its own for a test; yields its SQLAlchemy URL."""
    with postgres_server.database() as name:
        yield postgres_server.url(name)


@pytest.fixture
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give the commands of a test a home of their own, where `sqlite_url` lies, and no setting from outside."""
    for name in ("DB_URL", "WORKER_BROKER_URL", "LESION_SCREEN_STORE", "PYTHONSAFEPATH"):
        monkeypatch.delenv(name, raising=False)
    folder = tmp_path / "home"
    monkeypatch.setenv("LESION_SCREEN_HOME", str(folder))
    return folder


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """Name a SQLite ledger that is not there yet."""
    return f"sqlite:///{tmp_path / 'home' / 'ledger.sqlite'}"


@pytest.fixture
def sqlite_ledger(sqlite_url: str, sqlite_template: Path) -> Iterator[Engine]:
    """Open a SQLite ledger with the newest schema."""
    path = Path(sqlite_url.removeprefix("sqlite:///"))
    path.parent.mkdir(mode=0o700)
    shutil.copy(sqlite_template, path)
    engine = open_ledger(sqlite_url)
    yield engine
    engine.dispose()


@pytest.fixture
def postgres_ledger(postgres_server: PostgresServer, postgres_template: str) -> Iterator[Engine]:
    """Open a PostgreSQL ledger with the newest schema."""
    with postgres_server.database(postgres_template) as name:
        engine = open_ledger(postgres_server.url(name))
        yield engine
        engine.dispose()


@pytest.fixture(params=["sqlite", "postgres"])
def ledger_url(request: pytest.FixtureRequest) -> str:
    """Name an empty ledger, on each database in turn."""
    return str(request.getfixturevalue(f"{request.param}_url"))


@pytest.fixture(params=["sqlite", "postgres"])
def ledger(request: pytest.FixtureRequest) -> Engine:
    """Open a ledger with the newest schema, on each database in turn."""
    engine = request.getfixturevalue(f"{request.param}_ledger")
    assert isinstance(engine, Engine)
    return engine


@pytest.fixture
def redis_server() -> Iterator[RedisServer]:
    """Run a Redis for one test, on loopback and with a password."""
    server = RedisServer.prepare()
    try:
        server.start()
        yield server
    finally:
        server.remove()


@pytest.fixture
def object_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectServer]:
    """Run an S3 server for one test, whose credentials and address are in the environment."""
    server = ObjectServer()
    for name, value in server.settings.items():
        monkeypatch.setenv(name, value)
    try:
        server.start()
        yield server
    finally:
        server.kill()


@pytest.fixture
def orthanc() -> Iterator[Orthanc]:
    """Run a PACS for one test."""
    server = Orthanc.prepare()
    try:
        server.start()
        yield server
    finally:
        server.remove()


@pytest.fixture
def redis_url(redis_server: RedisServer) -> str:
    """Give the address of a Redis of this test's own."""
    return redis_server.url


@pytest.fixture
def archive(ledger: Engine, tmp_path: Path) -> Archive:
    """Give an archive that is empty so far, on each database in turn."""
    return Archive(engine=ledger, root=tmp_path / "archive")


@pytest.fixture
def stack(ledger: Engine, redis_url: str, tmp_path: Path) -> Iterator[Stack]:
    """Give what starts workers and feeders on this test's ledger and Redis."""
    url = ledger.url.render_as_string(hide_password=False)
    given = Stack.prepare(tmp_path / "logs", ledger_url=url, redis_url=redis_url, settings=SHORT_TIMES)
    try:
        yield given
    finally:
        given.stop()


def item(path: str | None = "a.jpg", rejected: str | None = None) -> ItemRow:
    """Describe a found file."""
    return ItemRow(
        path=path,
        size=1,
        mtime_ns=1,
        image_id=None,
        lesion_id=None,
        patient_ref=None,
        age=40.0,
        sex="female",
        localization="back",
        label=None,
        rejected=rejected,
    )


def verdict(digest: str, *, referred: bool = False, score: float = 0.1, model: str = MODEL) -> ResultRow:
    """Give a verdict on an input."""
    rest = (1 - score) / 5
    return ResultRow(
        input_digest=digest,
        model_digest=model,
        probabilities=(0.0, 0.0, rest, rest, score, rest * 2, rest),
        diagnosis="mel",
        confidence=0.5,
        malignant_score=score,
        referred=referred,
        refer_reason="low_confidence" if referred else None,
        engine="test",
    )


def scored(
    one: ClaimedItem,
    digest: str | None = None,
    *,
    referred: bool = False,
    score: float = 0.1,
    known: bool = False,
    model: str = MODEL,
) -> Scored:
    """Score an item; with `known` the ledger is said to have the result already."""
    digest = digest or f"{one.item_id:064x}"
    result = None if known else verdict(digest, referred=referred, score=score, model=model)
    return Scored(item_id=one.item_id, image_digest="b" * 64, input_digest=digest, result=result)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """What ledger tests do over and over, in one word each."""

    engine: Engine

    item = staticmethod(item)
    verdict = staticmethod(verdict)
    scored = staticmethod(scored)

    def load(self, *chunks: Sequence[ItemRow], model: str = MODEL, source: str = "/archive", priority: int = 0) -> int:
        """Load a batch and leave it in state loading."""
        batch = start_batch(self.engine, name="test", source=source, model_digest=model, priority=priority)
        for items in chunks:
            add_chunk(self.engine, batch, items)
        return batch

    def open(self, *sizes: int, priority: int = 0, model: str = MODEL) -> tuple[int, list[int]]:
        """Open a batch with chunks of so many items; returns its id and theirs."""
        chunks = [[item(f"{number}/{one}.jpg") for one in range(size)] for number, size in enumerate(sizes)]
        batch = self.load(*chunks, priority=priority, model=model)
        finish_loading(self.engine, batch, uuid.uuid4().hex)
        return batch, self.chunks(batch)

    def chunks(self, batch: int) -> list[int]:
        """List the ids of a batch's chunks."""
        return [int(str(row[0])) for row in self.sql("SELECT id FROM chunk WHERE batch_id = :b ORDER BY id", b=batch)]

    def claim(self, chunk: int, worker: str = "w1") -> Claim:
        """Claim a chunk that must be there to be had."""
        claim = claim_chunk(self.engine, chunk, worker=worker, lease_seconds=30)
        assert claim is not None
        return claim

    def expire(self, chunk: int) -> None:
        """Let a chunk's lease run out now: its worker was killed."""
        self.sql("UPDATE chunk SET lease_until = lease_until - 3600 WHERE id = :c AND state = 'running'", c=chunk)

    def record(self, claim: Claim, *outcomes: object, model: str = MODEL) -> int:
        """Record outcomes under a claim."""
        return record_results(
            self.engine,
            claim.chunk_id,
            claim.attempt,
            model_digest=model,
            outcomes=outcomes,  # type: ignore[arg-type]
        )

    def finish(self, claim: Claim) -> int:
        """Record a verdict for every item of a claim."""
        return self.record(claim, *(scored(one) for one in claim.items))

    def diagnose(self, item: object) -> None:
        """Confirm an item's diagnosis a second from now, after whatever was done before."""
        self.sql(
            "INSERT INTO label (item_id, dx, dx_type, labelled_by, labelled_on, created_at)"
            " VALUES (:i, 'nv', 'histo', 'who', '2026-01-31', :now)",
            i=item,
            now=time.time() + 1,
        )

    def sql(self, statement: str, **parameters: object) -> list[tuple[object, ...]]:
        """Run a statement behind the ledger's back."""
        with self.engine.begin() as connection:
            result = connection.execute(text(statement), parameters)
            return [tuple(row) for row in result] if result.returns_rows else []


@pytest.fixture
def scene(ledger: Engine) -> Scene:
    """Give the scenes on each database in turn."""
    return Scene(engine=ledger)
