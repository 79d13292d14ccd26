"""Loading, finding, counting, pausing and discarding batches, on both databases."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import text

from db.audit import verify_chain
from db.batches import (
    Loaded,
    add_chunk,
    cancel_batch,
    discard_stale_loading,
    find_batch,
    finish_loading,
    get_batch,
    latest_batch,
    list_batches,
    pause_batch,
    resume_batch,
    start_batch,
)
from db.counts import count_items
from db.errors import UnknownBatch, WriteRefused, WrongBatchState
from db.health import check_batch
from db.results import iter_report
from db.tables import BatchState

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from tests.conftest import Scene

MANIFEST = "c" * 64
MODEL = "a" * 64


def test_a_loaded_batch_knows_its_size_and_its_origin(scene: Scene) -> None:
    # Given a batch with two chunks
    batch = scene.load([scene.item(), scene.item("b.jpg")], [scene.item("c.jpg")], priority=3)

    # If it is opened
    assert finish_loading(scene.engine, batch, MANIFEST) == Loaded(batch_id=batch, existed=False)

    # Then it can be found in every way
    row = get_batch(scene.engine, batch)
    assert (row.name, row.source, row.state, row.priority) == ("test", "/archive", BatchState.OPEN, 3)
    assert (row.items, row.chunks, row.model_digest, row.manifest_digest) == (3, 2, MODEL, MANIFEST)
    assert find_batch(scene.engine, MANIFEST, MODEL) == batch
    assert find_batch(scene.engine, MANIFEST, "f" * 64) is None
    assert list_batches(scene.engine) == [row]
    assert latest_batch(scene.engine) == row


def test_opening_twice_is_opening_once(scene: Scene) -> None:
    # Given a producer that lost the answer to its first call
    batch = scene.load([scene.item()])
    finish_loading(scene.engine, batch, MANIFEST)

    # If it asks again
    # Then it is the same batch, and another manifest is refused
    assert finish_loading(scene.engine, batch, MANIFEST) == Loaded(batch_id=batch, existed=False)
    with pytest.raises(WrongBatchState):
        finish_loading(scene.engine, batch, "e" * 64)


def test_the_same_manifest_and_model_again_is_the_batch_that_exists(scene: Scene) -> None:
    # Given a batch
    first = scene.load([scene.item()])
    finish_loading(scene.engine, first, MANIFEST)

    # If the same archive is loaded again, and once for another model
    again = scene.load([scene.item()])
    loaded = finish_loading(scene.engine, again, MANIFEST)
    other = scene.load([scene.item()], model="f" * 64)
    elsewhere = finish_loading(scene.engine, other, MANIFEST)

    # Then the second load leaves no trace and the third is a batch of its own
    assert loaded == Loaded(batch_id=first, existed=True)
    with pytest.raises(UnknownBatch):
        get_batch(scene.engine, again)
    assert elsewhere == Loaded(batch_id=other, existed=False)
    assert scene.sql("SELECT count(*) FROM item") == [(2,)]


def test_two_producers_that_load_the_same_archive_at_once_share_a_batch(scene: Scene) -> None:
    # Given two batches loaded from the same archive
    batches = [scene.load([scene.item()]) for _ in range(2)]
    start = threading.Barrier(2)

    def finish(batch: int) -> Loaded:
        start.wait()
        return finish_loading(scene.engine, batch, MANIFEST)

    # If both are opened at the same moment
    with ThreadPoolExecutor(2) as pool:
        loaded = list(pool.map(finish, batches))

    # Then one wins and the other is told of it
    assert len({one.batch_id for one in loaded}) == 1
    assert sorted(one.existed for one in loaded) == [False, True]
    assert len(list_batches(scene.engine)) == 1


def test_rejected_rows_count_at_once(scene: Scene) -> None:
    # Given a chunk with one good file and one missing, and a chunk with nothing to score
    missing, unsafe = scene.item("m.jpg", rejected="missing_image"), scene.item(None, rejected="unsafe_path")
    batch = scene.load([scene.item(), missing], [unsafe])
    finish_loading(scene.engine, batch, MANIFEST)

    # If they are counted before any worker comes
    counts = count_items(scene.engine, batch)

    # Then the rejected ones are there with their reasons, and the second chunk is done
    assert (counts.found, counts.open, counts.rejected) == (3, 1, 2)
    assert counts.reasons == {"missing_image": 1, "unsafe_path": 1}
    assert [row[0] for row in scene.sql("SELECT state FROM chunk ORDER BY id")] == ["open", "done"]
    assert check_batch(scene.engine, batch) == []


def test_a_batch_with_nothing_to_score_took_no_time(scene: Scene) -> None:
    # Given an archive whose every row misses its image, and one without any file
    batch = scene.load([scene.item(rejected="missing_image")])
    finish_loading(scene.engine, batch, MANIFEST)
    empty = scene.load()
    finish_loading(scene.engine, empty, "e" * 64)

    # If they are counted
    # Then they are complete
    assert count_items(scene.engine, batch).seconds == 0
    assert (count_items(scene.engine, empty).found, count_items(scene.engine, empty).seconds) == (0, 0)
    assert check_batch(scene.engine, empty) == []


def test_the_clock_of_a_batch_stops_with_its_last_verdict(scene: Scene) -> None:
    # Given a batch that was opened a while ago
    batch, (chunk,) = scene.open(1)
    scene.sql("UPDATE batch SET opened_at = opened_at - 100")

    # If it is counted while open, and twice after its end
    running = count_items(scene.engine, batch).seconds
    scene.finish(scene.claim(chunk))
    ended = count_items(scene.engine, batch).seconds

    # Then it runs first and stands still then
    assert 100 <= running <= ended < 200
    assert count_items(scene.engine, batch).seconds == ended


def test_a_chunk_goes_into_a_loading_batch_only(scene: Scene) -> None:
    # Given an open batch
    batch, _ = scene.open(1)

    # If a chunk is added to it, to no batch, or without items
    # Then it is refused
    with pytest.raises(WrongBatchState):
        add_chunk(scene.engine, batch, [scene.item()])
    with pytest.raises(UnknownBatch):
        add_chunk(scene.engine, 999_999, [scene.item()])
    with pytest.raises(ValueError, match="at least one item"):
        add_chunk(scene.engine, batch, [])


def test_what_a_dead_producer_left_is_discarded_and_what_a_live_one_loads_is_not(scene: Scene) -> None:
    # Given a stale loading batch, a live one, one of another archive, and one that is open
    stale = scene.load([scene.item()])
    scene.sql("UPDATE batch SET touched_at = touched_at - 3600")
    elsewhere = scene.load([scene.item()], source="/other")
    scene.sql("UPDATE batch SET touched_at = touched_at - 3600 WHERE id = :b", b=elsewhere)
    live = scene.load([scene.item()])
    opened, _ = scene.open(1)

    # If the archive's stale batches are discarded
    assert discard_stale_loading(scene.engine, "/archive") == 1

    # Then one is gone, and its producer learns of it
    assert {row.id for row in list_batches(scene.engine)} == {elsewhere, live, opened}
    with pytest.raises(UnknownBatch):
        add_chunk(scene.engine, stale, [scene.item()])
    assert discard_stale_loading(scene.engine, "/archive") == 0


def test_a_number_is_never_given_twice(scene: Scene) -> None:
    # Given the newest batch, chunk and item, discarded
    gone = scene.load([scene.item()])
    before = [scene.sql(f"SELECT max(id) FROM {table}")[0][0] for table in ("batch", "chunk", "item")]  # noqa: S608
    assert discard_stale_loading(scene.engine, "/archive", idle_seconds=-1) == 1

    # If another batch is loaded
    batch = scene.load([scene.item()])

    # Then its numbers are new, so that no message about the old one meets it
    after = [scene.sql(f"SELECT max(id) FROM {table}")[0][0] for table in ("batch", "chunk", "item")]  # noqa: S608
    assert batch > gone
    assert all(int(str(new)) > int(str(old)) for new, old in zip(after, before, strict=True))


def test_the_latest_batch_is_not_a_half_loaded_one(scene: Scene) -> None:
    # Given an empty ledger, then a loading batch, then an open one and another loading one
    assert latest_batch(scene.engine) is None
    first = scene.load()
    loading = latest_batch(scene.engine)
    opened, _ = scene.open(1)
    scene.load()

    # If the latest is asked for
    latest = latest_batch(scene.engine)

    # Then a loading one is the answer only where there is no other
    assert loading is not None
    assert loading.id == first
    assert latest is not None
    assert latest.id == opened


def test_an_unknown_batch_is_said_to_be_unknown(scene: Scene) -> None:
    # Given an empty ledger
    # If something is asked of a batch
    # Then the answer is that there is none
    for ask in (get_batch, count_items, check_batch, iter_report):
        with pytest.raises(UnknownBatch):
            ask(scene.engine, 7)
    for change in (pause_batch, resume_batch, cancel_batch):
        with pytest.raises(UnknownBatch):
            change(scene.engine, 7, "me")


def test_changes_of_state_are_idempotent_and_audited_once(scene: Scene) -> None:
    # Given an open batch
    batch, _ = scene.open(1)

    # If it is paused, resumed and cancelled, each twice
    changed = [change(scene.engine, batch, "me") for change in (pause_batch, resume_batch, cancel_batch) for _ in "ab"]

    # Then each is done and audited once
    assert changed == [True, False] * 3
    trail = scene.sql("SELECT actor, action, subject FROM audit ORDER BY id")
    subject = f"batch {batch}"
    done = [("me", f"{what}_batch", subject) for what in ("pause", "resume", "cancel")]
    assert trail == [("nobody", "submit_batch", subject), *done]
    assert verify_chain(scene.engine)


def test_a_loading_batch_and_a_cancelled_one_are_not_paused(scene: Scene) -> None:
    # Given a loading batch and a cancelled one
    loading = scene.load([scene.item()])
    cancelled, _ = scene.open(1)
    cancel_batch(scene.engine, cancelled, "me")

    # If someone would change their state
    # Then what makes no sense is refused
    with pytest.raises(WrongBatchState):
        pause_batch(scene.engine, cancelled, "me")
    for change in (pause_batch, resume_batch, cancel_batch):
        with pytest.raises(WrongBatchState):
            change(scene.engine, loading, "me")


def test_names_that_are_no_unicode_come_back_letter_by_letter(scene: Scene) -> None:
    # Given file names that the databases cannot hold as they are
    names = ["r\udcf6ntgen.jpg", "a\x00b.jpg", "\x1fhex:00", "\ud800.jpg", "naïve 🔬.jpg", "plain.jpg", "a\nb.jpg"]
    batch = scene.load([scene.item(name) for name in names])
    finish_loading(scene.engine, batch, MANIFEST)

    # If they are read back
    # Then they are the same
    assert [row.path for row in iter_report(scene.engine, batch)] == names


def test_a_refused_row_is_named_by_its_constraint_and_not_by_its_values(scene: Scene) -> None:
    # Given a row that a constraint refuses
    batch = start_batch(scene.engine, name="test", source="/archive", model_digest=MODEL)
    canary = scene.item("CANARY.jpg")
    object.__setattr__(canary, "path", None)
    object.__setattr__(canary, "patient_ref", "CANARY")

    # If it is loaded
    with pytest.raises(WriteRefused) as refused:
        add_chunk(scene.engine, batch, [canary])

    # Then the error names no patient
    assert "ck_item_path_unless_rejected" in str(refused.value)
    assert "CANARY" not in str(refused.value)
    assert refused.value.__cause__ is None


def test_what_a_trigger_says_of_a_row_is_not_passed_on(sqlite_ledger: Engine) -> None:
    # Given a trigger that quotes the row
    with sqlite_ledger.begin() as connection:
        connection.execute(text("CREATE TRIGGER t BEFORE INSERT ON batch BEGIN SELECT RAISE(ABORT, 'CANARY'); END"))

    with pytest.raises(WriteRefused, match=r"refused a row: SQLITE_CONSTRAINT_TRIGGER\.") as refused:
        start_batch(sqlite_ledger, name="CANARY", source="/archive", model_digest=MODEL)

    assert refused.value.__cause__ is None
