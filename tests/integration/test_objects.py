"""Archives and artifacts on a real S3 server, and on one that answers whatever a test wants."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest
from click.testing import CliRunner
from sqlalchemy import text

from model.artifact import artifact_path, holds_artifact, read_manifest, shipped_artifact
from model.errors import ArchiveUnavailable, ArtifactError, RejectedImage, StoreUnavailable
from model.images import read_image_bytes
from producer.archive import Layout, Walk, open_archive
from producer.cli import cli
from tests.objects import KEY_ID, SECRET
from worker.objects import ObjectFolder
from worker.store import ArtifactStore

if TYPE_CHECKING:
    from pathlib import Path

    from sqlalchemy import Engine

    from tests.archive import Archive
    from tests.objects import ObjectServer


@pytest.fixture
def ledger(sqlite_ledger: Engine) -> Engine:
    """Take SQLite alone: where bytes come from does not depend on the database."""
    return sqlite_ledger


def refusal(root: ObjectFolder, relative: str, most: int = 100) -> str:
    with pytest.raises(RejectedImage) as refused:
        read_image_bytes(root, relative, max_bytes=most)
    return refused.value.reason.value


def test_objects_are_read_within_the_limits_of_files(object_server: ObjectServer) -> None:
    # Given objects of every kind, some of them named to lead elsewhere
    names = {"whole.jpg": b"x" * 100, "long.jpg": b"x" * 101, "empty.jpg": b"", "a//b.jpg": b"1", "a/b.jpg": b"2"}
    names |= {"v.jpg": b"right", "v.jpg?versionId=1.jpg": b"other", "*.jpg": b"star"}
    object_server.put({f"ward/{name}": data for name, data in names.items()} | {"outside.jpg": b"secret"})
    root = object_server.folder("ward")

    # Then each is read as it is, or refused for the reason a file would be
    assert read_image_bytes(root, "whole.jpg", max_bytes=100) == b"x" * 100
    assert read_image_bytes(root, "v.jpg?versionId=1.jpg", max_bytes=100) == b"other"
    assert read_image_bytes(root, "*.jpg", max_bytes=100) == b"star"
    assert refusal(root, "long.jpg") == "too_large_file"
    assert refusal(root, "empty.jpg") == "empty_file"
    assert refusal(root, "gone.jpg") == "missing_image"
    for unsafe in ("../outside.jpg", "a//b.jpg", "./whole.jpg", "/outside.jpg", "a/../../outside.jpg", "x" * 1025, ""):
        assert refusal(root, unsafe) == "unsafe_path"
    # And the storage itself refuses them too, whoever asks
    for unsafe in ("../outside.jpg", "a//b.jpg", "\udc80.jpg"):
        with pytest.raises(OSError, match="not a path below the root"):
            root.read(unsafe, 10)

    # If the place is empty, the bucket is gone, or the server is, then no image pays for it
    for away in (object_server.folder("nothing"), ObjectFolder.at("s3://gone-bucket/a", object_server.endpoint)):
        with pytest.raises(ArchiveUnavailable):
            read_image_bytes(away, "whole.jpg", max_bytes=100)
    object_server.kill()
    with pytest.raises(ArchiveUnavailable):
        read_image_bytes(root, "whole.jpg", max_bytes=100)


def test_an_archive_of_objects_is_walked_and_submitted_as_a_folder_is(
    archive: Archive, object_server: ObjectServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given an archive with a table, copies of one name, a note, a folder's marker and keys that lead elsewhere
    monkeypatch.setenv("DB_URL", archive.engine.url.render_as_string(hide_password=False))
    archive.activate_model()
    archive.draw(3)
    (archive.root / "part").mkdir()
    for number in (1, 2):
        (archive.root / "part" / f"00{number}.png").write_bytes((archive.root / f"00{number}.png").read_bytes())
    (archive.root / "notes.txt").write_text("ignored", encoding="utf-8")
    table = "isic_id,age_approx,sex\n000.png,50,male\n001.png,60,female\ngone.png,1,male\n"
    (archive.root / "metadata.csv").write_text(table, encoding="utf-8")
    by_folder = json.loads(CliRunner().invoke(cli, ["submit", str(archive.root)]).stdout)["batch"]
    object_server.copy(archive.root, "in/here")
    object_server.put({"in/here/": b"", "in/here/part/": b"", "in/herewith.png": b"a neighbour's"})

    # If it is submitted from there, twice
    first, second = (CliRunner().invoke(cli, ["submit", "s3://archive/in/here/"]) for _ in range(2))

    # Then it is the same archive, found again the second time
    batch = json.loads(first.stdout)["batch"]
    assert batch != by_folder
    assert json.loads(second.stdout)["batch"] == batch
    query = text("SELECT path, size, age, sex, state, reason, image_id FROM item WHERE batch_id = :b ORDER BY path")
    with archive.engine.connect() as connection:
        there, here = (connection.execute(query, {"b": one}).all() for one in (batch, by_folder))
        assert there == here
        assert len(there) == 6
        source = connection.execute(text("SELECT source FROM batch WHERE id = :b"), {"b": batch}).scalar_one()
    assert source == "s3://archive/in/here"
    assert "1 txt" in first.output
    # And a command that needs its files finds them there
    assert CliRunner().invoke(cli, ["verify", str(batch), "--rehash", "--json"]).exit_code == 0

    # If keys lead elsewhere, each is an item that is refused
    object_server.put({"odd/../up.png": b"1", "odd//twice.png": b"2", "odd/good.png": b"3"})
    walk = Walk(open_archive("s3://archive/odd", endpoint=object_server.endpoint))
    found = {file.path: file.rejected for file in walk}
    assert found == {"../up.png": "unsafe_path", "/twice.png": "unsafe_path", "good.png": None}

    # If the table lies elsewhere, it is found by its address
    object_server.put({"tables/ham.csv": b"image_id,age\ngood,50\n"})
    named = open_archive("s3://archive/odd", "s3://archive/tables/ham.csv", endpoint=object_server.endpoint)
    assert named.layout is Layout.HAM10000
    assert [file.path for file in Walk(named)] == list(found)

    # If there is nothing, or nobody, a sentence says so
    nothing = CliRunner().invoke(cli, ["submit", "s3://archive/nowhere"])
    assert (nothing.exit_code, "nothing under this s3:// address" in nothing.output) == (2, True)
    object_server.kill()
    for command in (["submit", "s3://archive/in/here"], ["verify", str(batch), "--rehash"]):
        if command[0] == "verify":
            _pretend_screened(archive, batch)
        away = CliRunner().invoke(cli, command)
        assert (away.exit_code, "object storage does not answer" in away.output) == (3, True)
        assert KEY_ID not in away.output
        assert SECRET not in away.output


def _pretend_screened(archive: Archive, batch: int) -> None:
    with archive.engine.begin() as connection:
        connection.execute(text("UPDATE item SET image_digest = 'd' WHERE batch_id = :b"), {"b": batch})


def test_a_model_is_whole_in_a_store_of_objects_or_not_there(object_server: ObjectServer, tmp_path: Path) -> None:
    # Given a store on object storage, as two hosts see it
    objects = object_server.folder("store")
    here, there = (ArtifactStore(folder=tmp_path / name, objects=objects) for name in ("here", "there"))
    digest = read_manifest(shipped_artifact()).digest

    # If one host dies before the manifest is written, then the other has no model
    object_server.put({f"store/models/{digest}/weights.h5": b"half of them"})
    with pytest.raises(ArtifactError, match=r"no readable manifest\.json"):
        there.fetch(digest)

    # If it is installed, twice
    for _ in range(2):
        here.install(shipped_artifact())

    # Then the other host has it whole, and keeps a copy, which is mended where it is damaged
    folder = there.fetch(digest)
    assert folder == artifact_path(tmp_path / "there", digest)
    (folder / "weights.h5").write_bytes(b"damaged")
    assert not holds_artifact(there.folder, digest)
    there.fetch(digest)
    assert holds_artifact(there.folder, digest)
    assert [path.name for path in there.folder.iterdir()] == ["models"]

    # If what lies there is damaged, it is refused, and mended by whoever installs it again
    object_server.put({f"store/models/{digest}/weights.h5": b"damaged"})
    third = ArtifactStore(folder=tmp_path / "third", objects=objects)
    with pytest.raises(ArtifactError, match="not the file its manifest names"):
        third.fetch(digest)
    here.install(shipped_artifact())
    assert holds_artifact(third.fetch(digest).parents[1], digest)

    # If another model lies under its name, it is refused
    other = "e" * 64
    object_server.put({f"store/models/{other}/manifest.json": (shipped_artifact() / "manifest.json").read_bytes()})
    with pytest.raises(ArtifactError, match="another model under this digest"):
        there.fetch(other)

    # If the server is away, what was fetched is still there, and the rest waits
    object_server.kill()
    assert there.fetch(digest) == folder
    with pytest.raises(StoreUnavailable):
        there.fetch(other)
    with pytest.raises(StoreUnavailable):
        here.install(shipped_artifact())


def test_doctor_looks_at_object_storage(
    archive: Archive, object_server: ObjectServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a batch and a store on object storage
    monkeypatch.setenv("DB_URL", archive.engine.url.render_as_string(hide_password=False))
    monkeypatch.setenv("LESION_SCREEN_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("LESION_SCREEN_STORE", "s3://archive/store")
    object_server.put({"store/models/x": b"", "ward/a.png": b""})
    archive.load(archive.draw(1))
    with archive.engine.begin() as connection:
        connection.execute(text("UPDATE batch SET source = 's3://archive/ward'"))

    # Then both are good while it answers, and both are named where it does not
    assert {"store": "good", "archives": "good"}.items() <= examine(0).items()
    object_server.kill()
    assert {"store": "bad", "archives": "odd"}.items() <= examine(1).items()


def examine(code: int) -> dict[str, str]:
    said = CliRunner().invoke(cli, ["doctor", "--quick", "--json"])
    assert said.exit_code == code, said.output
    return {one["part"]: one["grade"] for one in json.loads(said.stdout)["findings"]}


class Stub(BaseHTTPRequestHandler):
    """Answers every object with one status, and every listing with another."""

    statuses = (200, 200)

    def do_GET(self) -> None:
        """Answer."""
        listing = "list-type=2" in urlsplit(self.path).query
        status = self.statuses[listing]
        code = {200: "", 400: "InvalidRequest", 403: "AccessDenied", 429: "SlowDown"}.get(status, "InternalError")
        body = f"<Error><Code>{code}</Code><Message>{KEY_ID} ward/a.jpg</Message></Error>"
        if status == 200:
            content = "<Contents><Key>ward/a.jpg</Key><Size>1</Size><LastModified>2026-01-01T00:00:00Z</LastModified>"
            body = f"<ListBucketResult><KeyCount>1</KeyCount>{content}</Contents></ListBucketResult>"
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def answering(statuses: tuple[int, int]) -> Iterator[ObjectFolder]:
    handler = type("Handler", (Stub,), {"statuses": statuses})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield ObjectFolder.at("s3://archive/ward", f"http://127.0.0.1:{server.server_port}")
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("statuses", "reason"),
    [
        # One object alone is refused, or kept in a way that cannot be read
        ((403, 200), "unreadable"),
        ((400, 200), "unreadable"),
        # The key is refused everywhere
        ((403, 403), None),
        # The server is in trouble, or wants to be asked less
        ((500, 200), None),
        ((503, 200), None),
        ((429, 200), None),
    ],
)
def test_what_a_server_refuses_is_one_images_fault_only_while_its_root_answers(
    statuses: tuple[int, int], reason: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY_ID)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    with answering(statuses) as root, pytest.raises((RejectedImage, ArchiveUnavailable)) as told:
        read_image_bytes(root, "a.jpg", max_bytes=100)

    if reason is None:
        assert isinstance(told.value, ArchiveUnavailable)
    else:
        assert str(told.value) == reason
    # And what the server said is not repeated
    assert KEY_ID not in str(told.value)
    assert "ward" not in str(told.value)
