"""TLS to Redis and PostgreSQL, with certificates of an authority of the test's own."""

from __future__ import annotations

import asyncio
import json
import ssl
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
import trustme
from sqlalchemy import Engine, make_url

from tests.archive import Archive
from tests.monitoring import flower_of
from tests.stack import SHORT_TIMES, Stack

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.servers import PostgresServer, RedisServer

#: What a client of PostgreSQL says first where it wants TLS (PostgreSQL 17, chapter 54.7).
SSL_REQUEST = (8).to_bytes(4, "big") + (80877103).to_bytes(4, "big")


@dataclass(slots=True, kw_only=True)
class TlsFront:
    """Ends TLS before a server that has none, as a sidecar does: the servers' own wheels are built without it."""

    context: ssl.SSLContext
    #: A port on loopback, or the path of a socket.
    target: int | str
    speaks_postgres: bool = False
    port: int = 0
    #: Sessions that were encrypted.
    encrypted: int = 0
    _ready: threading.Event = field(default_factory=threading.Event)
    _end: asyncio.Event | None = None
    _loop: asyncio.AbstractEventLoop | None = None
    _thread: threading.Thread | None = None

    def start(self) -> None:
        """Listen on a free port."""
        self._thread = threading.Thread(target=lambda: asyncio.run(self._listen()), daemon=True)
        self._thread.start()
        assert self._ready.wait(30)

    def stop(self) -> None:
        """Cut every connection."""
        if self._loop and self._end and self._thread:
            self._loop.call_soon_threadsafe(self._end.set)
            self._thread.join()

    async def _listen(self) -> None:
        self._loop, self._end = asyncio.get_running_loop(), asyncio.Event()
        offered = None if self.speaks_postgres else self.context
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=offered)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._end.wait()
        server.close()

    async def _serve(self, client: asyncio.StreamReader, answer: asyncio.StreamWriter) -> None:
        try:
            await self._forward(client, answer)
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            return
        finally:
            answer.transport.abort()

    async def _forward(self, client: asyncio.StreamReader, answer: asyncio.StreamWriter) -> None:
        if self.speaks_postgres:
            # Somebody who wants no TLS gets no word.
            if await client.readexactly(len(SSL_REQUEST)) != SSL_REQUEST:
                return
            answer.write(b"S")
            await answer.drain()
            await answer.start_tls(self.context)
        self.encrypted += 1
        if isinstance(self.target, int):
            server, request = await asyncio.open_connection("127.0.0.1", self.target)
        else:
            server, request = await asyncio.open_unix_connection(self.target)
        try:
            await asyncio.gather(self._pump(client, request), self._pump(server, answer))
        finally:
            request.transport.abort()

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        try:
            while data := await source.read(65536):
                sink.write(data)
                await sink.drain()
        finally:
            sink.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class Fronts:
    """Both servers behind TLS, for a host name."""

    redis: TlsFront
    postgres: TlsFront
    #: The authority that clients believe.
    ca: Path
    ledger_name: str
    redis_login: str

    def ledger_url(self, host: str = "localhost", ca: Path | None = None) -> str:
        return (
            f"postgresql://postgres@{host}:{self.postgres.port}/{self.ledger_name}"
            f"?sslmode=verify-full&sslrootcert={ca or self.ca}"
        )

    def redis_url(self, host: str = "localhost", ca: Path | None = None, options: str = "") -> str:
        return f"rediss://{self.redis_login}@{host}:{self.redis.port}/0?ssl_ca_certs={ca or self.ca}{options}"


@pytest.fixture
def ledger(postgres_ledger: Engine, tmp_path: Path) -> Engine:
    """Take PostgreSQL, with an active model."""
    Archive(engine=postgres_ledger, root=tmp_path).activate_model()
    return postgres_ledger


@pytest.fixture
def fronts(
    ledger: Engine, postgres_server: PostgresServer, redis_server: RedisServer, tmp_path: Path
) -> Iterator[Fronts]:
    authority = trustme.CA()
    ca = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(ca))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    postgres = TlsFront(context=context, target=f"{postgres_server.sockets}/.s.PGSQL.5432", speaks_postgres=True)
    redis = TlsFront(context=context, target=redis_server.port)
    login = make_url(redis_server.url)
    for each in (redis, postgres):
        each.start()
    yield Fronts(
        redis=redis,
        postgres=postgres,
        ca=ca,
        ledger_name=str(ledger.url.database),
        redis_login=f"{login.username or ''}:{login.password}",
    )
    for each in (redis, postgres):
        each.stop()


@pytest.fixture
def stranger(tmp_path: Path) -> Path:
    """Give an authority that has signed neither server."""
    path = tmp_path / "stranger.pem"
    trustme.CA().cert_pem.write_to_path(str(path))
    return path


def submit(archive: Archive, ledger_url: str, redis_url: str, *, code: int) -> str:
    """Submit an archive, and return what was said to people."""
    folder = archive.root.parent / "submitting"
    stack = Stack.prepare(folder, ledger_url=ledger_url, redis_url=redis_url, settings={})
    return stack.command("submit", archive.root, code=code).stderr


def test_an_archive_is_screened_with_nothing_on_the_wire_in_the_clear(
    archive: Archive, fronts: Fronts, tmp_path: Path
) -> None:
    # Given worker, feeder, Flower and command that reach both servers by TLS alone
    stack = Stack.prepare(
        tmp_path / "logs", ledger_url=fronts.ledger_url(), redis_url=fronts.redis_url(), settings=SHORT_TIMES
    )
    archive.draw(12)
    try:
        with flower_of(stack) as flower:
            stack.start_feeder()
            stack.start_worker()

            # If an archive is submitted
            said = stack.command("submit", archive.root)

            # Then it is screened, and Flower sees worker, tasks and queue
            batch = json.loads(said.stdout)["batch"]
            stack.until(lambda: archive.counts(batch).open == 0)
            assert archive.counts(batch).done == 12
            stack.until(lambda: any(task["state"] == "SUCCESS" for task in flower.tasks().values()))
            queues: dict[str, Any] = json.loads(flower.read("/api/queues/length"))
            assert "screening" in {queue["name"] for queue in queues["active_queues"]}
    finally:
        stack.stop()
    assert fronts.redis.encrypted
    assert fronts.postgres.encrypted


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_a_database_that_cannot_prove_who_it_is_gets_no_patient_data(
    archive: Archive, fronts: Fronts, stranger: Path, host: str
) -> None:
    # Given a certificate of an authority that is not believed, or one for another name
    archive.draw(2)
    ca = stranger if host == "localhost" else fronts.ca

    # If an archive is submitted
    said = submit(archive, fronts.ledger_url(host, ca), fronts.redis_url(), code=3)

    # Then that ends with a sentence, and nothing was written
    assert "ledger does not answer" in said
    assert archive.number("SELECT count(*) FROM item") == 0


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_a_redis_that_cannot_prove_who_it_is_gets_no_password(
    archive: Archive, fronts: Fronts, stranger: Path, host: str
) -> None:
    # Given a certificate of an authority that is not believed, or one for another name
    archive.draw(2)
    ca = stranger if host == "localhost" else fronts.ca

    # If an archive is submitted
    said = submit(archive, fronts.ledger_url(), fronts.redis_url(host, ca), code=3)

    # Then it is saved, and the command says that nobody was rung
    assert "Redis does not answer" in said
    assert archive.number("SELECT count(*) FROM item") == 2
    assert fronts.redis.encrypted == 0


@pytest.mark.parametrize("option", ["ssl_cert_reqs=none", "ssl_cert_reqs=CERT_OPTIONAL", "ssl_check_hostname=false"])
def test_the_check_of_the_certificate_cannot_be_switched_off(archive: Archive, fronts: Fronts, option: str) -> None:
    archive.draw(2)

    said = submit(archive, fronts.ledger_url(), fronts.redis_url(options=f"&{option}"), code=2)

    assert "must not switch the check of Redis's certificate off" in said
