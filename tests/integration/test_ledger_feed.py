"""What the feeder is given to ring, on both databases."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from db.batches import cancel_batch, pause_batch, resume_batch
from db.chunks import RungChunk, drop_feeder_lease, open_chunks, release_chunk, ring_chunks, take_feeder_lease

if TYPE_CHECKING:
    from tests.conftest import Scene


def rung(scene: Scene, limit: int = 100, quiet_seconds: float = 15) -> list[int]:
    return [one.chunk_id for one in ring_chunks(scene.engine, limit=limit, quiet_seconds=quiet_seconds)]


def test_a_rung_chunk_says_what_the_message_needs(scene: Scene) -> None:
    # Given a chunk of three items of which one is recorded
    batch, (chunk,) = scene.open(3)
    claim = scene.claim(chunk)
    scene.record(claim, scene.scored(claim.items[0]))
    scene.expire(chunk)

    # If it is rung
    # Then it names its batch, its open items and the model
    assert ring_chunks(scene.engine, limit=1) == [
        RungChunk(batch_id=batch, chunk_id=chunk, items=2, model_digest="a" * 64, expired=True)
    ]


def test_expired_leases_go_first_then_priority_then_age(scene: Scene) -> None:
    # Given an old batch with an expired lease, a low one and an urgent one
    _, (old, dead) = scene.open(1, 1)
    _, (low,) = scene.open(1, priority=-1)
    _, (urgent, urgent_too) = scene.open(1, 1, priority=5)
    scene.claim(dead)
    scene.expire(dead)

    # If chunks are rung, a few at a time
    # Then that is their order
    assert rung(scene, limit=2) == [dead, urgent]
    assert rung(scene) == [urgent_too, old, low]


def test_what_a_dead_worker_held_is_told_apart(scene: Scene) -> None:
    # Given a chunk that waits and one whose lease ran out
    _, (_waiting, dead) = scene.open(1, 1)
    scene.claim(dead)
    scene.expire(dead)

    # If only what was begun is rung, and then all
    begun = ring_chunks(scene.engine, limit=10, expired_only=True)
    rest = ring_chunks(scene.engine, limit=10)

    # Then it comes first, and marked
    assert [(chunk.chunk_id, chunk.expired) for chunk in begun] == [(dead, True)]
    assert [chunk.expired for chunk in rest] == [False]


def test_what_was_rung_a_moment_ago_is_left_alone(scene: Scene) -> None:
    # Given a chunk that was rung
    _, (chunk,) = scene.open(1)
    assert rung(scene) == [chunk]

    # If the feeder comes again at once, and after the quiet time
    at_once = rung(scene)
    scene.sql("UPDATE chunk SET rung_at = rung_at - 16")

    # Then it is rung only the second time
    assert at_once == []
    assert rung(scene) == [chunk]


def test_leased_finished_paused_cancelled_and_loading_chunks_are_not_rung(scene: Scene) -> None:
    # Given chunks in every state in which nobody should come
    _, (leased, finished) = scene.open(1, 1)
    scene.claim(leased)
    scene.finish(scene.claim(finished))
    paused, (waiting,) = scene.open(1)
    pause_batch(scene.engine, paused, "me")
    cancelled, _ = scene.open(1)
    cancel_batch(scene.engine, cancelled, "me")
    scene.load([scene.item()])

    # If chunks are rung
    # Then none is, until the paused batch is resumed
    assert rung(scene) == []
    assert open_chunks(scene.engine) == 1
    resume_batch(scene.engine, paused, "me")
    assert rung(scene) == [waiting]
    assert open_chunks(scene.engine) == 2


def test_a_released_chunk_is_rung_at_once_unless_it_asks_for_quiet(scene: Scene) -> None:
    # Given two chunks that were rung and claimed
    _, (quick, slow) = scene.open(1, 1)
    rung(scene)
    for chunk, quiet in ((quick, False), (slow, True)):
        release_chunk(scene.engine, chunk, scene.claim(chunk).attempt, quiet=quiet)

    # If the feeder comes again at once
    # Then it rings the one and leaves the other its quiet time
    assert rung(scene) == [quick]


def test_nothing_is_rung_for_a_full_queue(scene: Scene) -> None:
    # Given an open chunk and a queue that is deeper than it should be
    scene.open(1)

    # If the feeder asks for no or less than no chunks
    # Then it gets none and the chunk stays due
    assert rung(scene, limit=0) == rung(scene, limit=-3) == []
    assert len(rung(scene)) == 1


def test_feeders_that_ring_at_once_get_different_chunks(scene: Scene) -> None:
    # Given forty chunks and four feeders
    _, chunks = scene.open(*[1] * 40)
    start = threading.Barrier(4)

    def feed(_: int) -> list[int]:
        start.wait()
        return rung(scene, limit=10)

    # If they ring at once
    with ThreadPoolExecutor(4) as pool:
        found = [chunk for chunks in pool.map(feed, range(4)) for chunk in chunks]

    # Then no chunk was rung twice, and what one left the next round finds
    assert len(found) == len(set(found))
    assert sorted(found + rung(scene)) == chunks


def test_one_feeder_at_a_time_holds_the_lease(scene: Scene) -> None:
    # Given a feeder with the lease
    assert take_feeder_lease(scene.engine, holder="one", lease_seconds=30)

    # If another asks, and the first asks again
    # Then the first keeps it until it runs out or is given back
    assert not take_feeder_lease(scene.engine, holder="two", lease_seconds=30)
    assert take_feeder_lease(scene.engine, holder="one", lease_seconds=30)
    scene.sql("UPDATE lease SET lease_until = lease_until - 3600")
    assert take_feeder_lease(scene.engine, holder="two", lease_seconds=30)
    drop_feeder_lease(scene.engine, holder="one")
    assert not take_feeder_lease(scene.engine, holder="one", lease_seconds=30)
    drop_feeder_lease(scene.engine, holder="two")
    assert take_feeder_lease(scene.engine, holder="one", lease_seconds=30)


def test_of_feeders_that_start_at_once_one_gets_the_lease(scene: Scene) -> None:
    # Given no lease yet
    start = threading.Barrier(6)

    def take(number: int) -> bool:
        start.wait()
        return take_feeder_lease(scene.engine, holder=f"feeder {number}", lease_seconds=30)

    # If six feeders start
    with ThreadPoolExecutor(6) as pool:
        taken = list(pool.map(take, range(6)))

    # Then one feeds
    assert sum(taken) == 1


def test_an_expired_chunk_is_rung_again_after_a_third_of_the_quiet_time(scene: Scene) -> None:
    # Given a chunk that waits and one whose lease has expired, both rung six seconds ago
    _, (waiting, expired) = scene.open(1, 1)
    scene.claim(expired)
    scene.expire(expired)
    assert sorted(rung(scene)) == [waiting, expired]
    assert rung(scene) == []
    scene.sql("UPDATE chunk SET rung_at = rung_at - 6")

    # If the feeder comes again
    # Then only the expired one is rung again
    assert rung(scene, quiet_seconds=15) == [expired]
    assert rung(scene, quiet_seconds=15) == []
