"""Claiming, keeping, recording and giving back chunks, on both databases."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import update

from db.batches import cancel_batch, pause_batch, resume_batch
from db.chunks import (
    KILLS_WORKER,
    Claim,
    Rejected,
    claim_chunk,
    claim_next,
    extend_lease,
    mark_suspect,
    record_results,
    release_chunk,
)
from db.counts import count_items
from db.errors import LeaseLost, MissingResult, ModelMismatch, UnknownItem
from db.health import check_batch
from db.session import write
from db.tables import Batch, BatchState

if TYPE_CHECKING:
    from tests.conftest import Scene


def test_a_chunk_is_claimed_with_its_items_and_their_metadata(scene: Scene) -> None:
    # Given a batch with one chunk of two items
    batch, (chunk,) = scene.open(2)

    # If a worker claims the chunk
    claim = scene.claim(chunk)

    # Then it gets the first attempt, the pinned model and the items in order
    assert (claim.batch_id, claim.attempt, claim.crashes) == (batch, 1, 0)
    assert (claim.model_digest, claim.source) == ("a" * 64, "/archive")
    assert [one.path for one in claim.items] == ["0/0.jpg", "0/1.jpg"]
    assert {(one.age, one.sex, one.localization, one.marks) for one in claim.items} == {(40.0, "female", "back", 0)}


def test_of_many_workers_one_gets_the_chunk(scene: Scene) -> None:
    # Given one chunk
    _, (chunk,) = scene.open(2)
    start = threading.Barrier(8)

    def race(number: int) -> Claim | None:
        start.wait()
        return claim_chunk(scene.engine, chunk, worker=f"w{number}", lease_seconds=30)

    # If eight workers claim it at once
    with ThreadPoolExecutor(8) as pool:
        claims = list(pool.map(race, range(8)))

    # Then one has it, in the first attempt
    assert [claim.attempt for claim in claims if claim] == [1]


def test_nobody_claims_what_is_unknown_leased_or_finished(scene: Scene) -> None:
    # Given a chunk that is leased and one that is finished
    _, (leased, finished) = scene.open(1, 1)
    scene.claim(leased)
    scene.finish(scene.claim(finished))

    # If they and one that never was are claimed
    # Then there is no claim
    for chunk in (leased, finished, 999_999):
        assert claim_chunk(scene.engine, chunk, worker="w2", lease_seconds=30) is None


def take_next(scene: Scene, batch: int, least_priority: int | None = None) -> int | None:
    claim = claim_next(scene.engine, batch, worker="w1", lease_seconds=30, least_priority=least_priority)
    return None if claim is None else claim.chunk_id


def test_a_batchs_chunks_are_claimed_one_after_another_without_a_message(scene: Scene) -> None:
    # Given a batch of four chunks, one of which another worker has and one that killed a worker and was given back
    batch, chunks = scene.open(1, 2, 1, 1)
    other, _ = scene.open(1)
    scene.claim(chunks[0])
    scene.claim(chunks[2])
    scene.expire(chunks[2])
    again = scene.claim(chunks[2])
    release_chunk(scene.engine, again.chunk_id, again.attempt)

    # If a worker claims what is next
    claim = claim_next(scene.engine, batch, worker="w1", lease_seconds=30)

    # Then it has it as if it had been rung for, and the others follow in order: never another batch's, nor the suspect
    assert claim is not None
    assert (claim.chunk_id, claim.batch_id, claim.attempt) == (chunks[1], batch, 1)
    assert [one.path for one in claim.items] == ["1/0.jpg", "1/1.jpg"]
    assert [take_next(scene, batch) for _ in range(2)] == [chunks[3], None]
    # And none of a batch that is paused, cancelled or unknown
    pause_batch(scene.engine, other, "tester")
    assert take_next(scene, other) is None
    cancel_batch(scene.engine, other, "tester")
    assert take_next(scene, other) is None
    assert take_next(scene, 999_999) is None


def test_of_many_workers_each_gets_another_next_chunk(scene: Scene) -> None:
    batch, chunks = scene.open(*[1] * 8)
    start = threading.Barrier(8)

    def race(_: int) -> int | None:
        start.wait()
        return take_next(scene, batch)

    with ThreadPoolExecutor(8) as pool:
        taken = list(pool.map(race, range(8)))

    assert sorted(one for one in taken if one is not None) == chunks


def test_nothing_is_next_while_something_more_urgent_waits(scene: Scene) -> None:
    # Given two batches, one of a higher priority
    batch, _ = scene.open(1, 1, 1)
    urgent, (first, second) = scene.open(1, 1, priority=1)

    # If both have work, then only the urgent one's is next
    assert take_next(scene, batch) is None
    assert take_next(scene, urgent, least_priority=1) == first
    scene.finish(scene.claim(second))
    # And outside the window none of the other's, when it is its turn
    assert take_next(scene, batch, least_priority=1) is None
    assert take_next(scene, batch) is not None
    # And none of anybody's while a dead worker's chunk waits for a live one
    scene.expire(first)
    assert take_next(scene, batch) is None
    # But what nobody may take holds nobody up
    pause_batch(scene.engine, urgent, "tester")
    assert take_next(scene, batch) is not None


def test_a_loading_batch_is_not_claimed(scene: Scene) -> None:
    # Given a batch whose producer is still loading it
    batch = scene.load([scene.item()])

    # If a worker claims its chunk
    # Then it gets nothing
    (chunk,) = scene.chunks(batch)
    assert claim_chunk(scene.engine, chunk, worker="w1", lease_seconds=30) is None


def test_an_expired_lease_is_taken_over_and_counted_as_a_crash(scene: Scene) -> None:
    # Given a chunk whose worker was killed
    _, (chunk,) = scene.open(2)
    scene.claim(chunk)
    scene.expire(chunk)

    # If another worker claims it
    claim = scene.claim(chunk, worker="w2")

    # Then the attempt and the crashes are one more
    assert (claim.attempt, claim.crashes) == (2, 1)


def test_a_zombie_records_nothing(scene: Scene) -> None:
    # Given a worker that was frozen while another took its chunk over
    batch, (chunk,) = scene.open(2)
    zombie = scene.claim(chunk)
    scene.expire(chunk)
    scene.claim(chunk, worker="w2")
    before = scene.sql("SELECT * FROM chunk")

    # If it wakes up and goes on
    with pytest.raises(LeaseLost):
        scene.finish(zombie)
    with pytest.raises(LeaseLost):
        extend_lease(scene.engine, chunk, zombie.attempt, lease_seconds=30)
    with pytest.raises(LeaseLost):
        mark_suspect(scene.engine, chunk, zombie.attempt, zombie.items[0].item_id)
    release_chunk(scene.engine, chunk, zombie.attempt)

    # Then nothing has changed
    assert scene.sql("SELECT count(*) FROM result") == [(0,)]
    assert scene.sql("SELECT * FROM chunk") == before
    assert count_items(scene.engine, batch).open == 2
    assert check_batch(scene.engine, batch) == []


def test_an_expired_lease_that_nobody_took_is_still_the_holders(scene: Scene) -> None:
    # Given a worker whose lease ran out while the database was away
    _, (chunk,) = scene.open(1)
    claim = scene.claim(chunk)
    scene.expire(chunk)

    # If it extends the lease before anyone else claims
    extend_lease(scene.engine, chunk, claim.attempt, lease_seconds=30)

    # Then it holds the chunk
    assert claim_chunk(scene.engine, chunk, worker="w2", lease_seconds=30) is None
    assert scene.finish(claim) == 0


def test_a_chunk_is_recorded_in_parts_and_ends_with_the_last(scene: Scene) -> None:
    # Given a claimed chunk of four
    batch, (chunk,) = scene.open(4)
    claim = scene.claim(chunk)
    first, second, third, fourth = claim.items

    # If its outcomes come in two parts
    left = scene.record(claim, scene.scored(first), Rejected(item_id=second.item_id, reason="truncated"))
    rest = scene.record(claim, scene.scored(third, referred=True), scene.scored(fourth))

    # Then the chunk ends with the second, and the counts add up
    assert (left, rest) == (2, 0)
    counts = count_items(scene.engine, batch)
    assert (counts.found, counts.open, counts.done, counts.referred, counts.rejected) == (4, 0, 2, 1, 1)
    assert counts.reasons == {"truncated": 1}
    assert scene.sql("SELECT state, lease_until FROM chunk") == [("done", None)]
    assert check_batch(scene.engine, batch) == []


def test_what_is_recorded_twice_counts_once(scene: Scene) -> None:
    # Given a worker that lost the answer to its first record
    batch, (chunk,) = scene.open(3)
    claim = scene.claim(chunk)
    first, second, _ = claim.items

    # If it records the same outcomes again, and contradicts itself
    assert scene.record(claim, scene.scored(first), scene.scored(second)) == 1
    assert scene.record(claim, scene.scored(first), Rejected(item_id=second.item_id, reason="truncated")) == 1

    # Then the first word stands
    counts = count_items(scene.engine, batch)
    assert (counts.open, counts.done, counts.rejected) == (1, 2, 0)
    assert scene.sql("SELECT count(*) FROM result") == [(2,)]


def test_a_finished_chunk_takes_no_more_records(scene: Scene) -> None:
    # Given a finished chunk
    _, (chunk,) = scene.open(1)
    claim = scene.claim(chunk)
    scene.finish(claim)

    # If its worker records once more
    # Then it hears that it does not hold the chunk
    with pytest.raises(LeaseLost):
        scene.finish(claim)


def test_an_item_of_another_chunk_is_left_alone(scene: Scene) -> None:
    # Given two claimed chunks
    batch, (mine, other) = scene.open(1, 1)
    claim, foreign = scene.claim(mine), scene.claim(other)

    # If the worker of one records an item of the other
    left = scene.record(claim, scene.scored(foreign.items[0]))

    # Then nothing is recorded
    assert left == 1
    assert count_items(scene.engine, batch).open == 2
    assert scene.sql("SELECT count(*) FROM result") == [(0,)]


def test_one_input_in_many_places_has_one_result(scene: Scene) -> None:
    # Given the same image twice in a chunk and once in another batch
    batch, (chunk,) = scene.open(2)
    second, (later,) = scene.open(1)
    claim, other = scene.claim(chunk), scene.claim(later)

    # If all are recorded, and the last worker comes to another verdict
    digest = "d" * 64
    scene.record(claim, *(scene.scored(one, digest, referred=True) for one in claim.items))
    scene.record(other, scene.scored(other.items[0], digest, referred=False))

    # Then one result is stored and every outcome is its outcome
    assert scene.sql("SELECT count(*) FROM result") == [(1,)]
    assert count_items(scene.engine, batch).referred == 2
    assert count_items(scene.engine, second).referred == 1
    assert check_batch(scene.engine, batch) == check_batch(scene.engine, second) == []


def test_a_known_input_needs_no_result_and_an_unknown_one_is_refused(scene: Scene) -> None:
    # Given a chunk whose first input is in the ledger
    batch, (chunk,) = scene.open(2)
    claim = scene.claim(chunk)
    first, second = claim.items
    _, (earlier,) = scene.open(1)
    before = scene.claim(earlier)
    scene.record(before, scene.scored(before.items[0], "d" * 64))

    # If the worker says of both that they are known
    scene.record(claim, scene.scored(first, "d" * 64, known=True))
    with pytest.raises(MissingResult):
        scene.record(claim, scene.scored(second, "e" * 64, known=True))

    # Then the first is done and the second is open
    counts = count_items(scene.engine, batch)
    assert (counts.open, counts.done) == (1, 1)


def test_a_verdict_of_another_model_is_refused(scene: Scene) -> None:
    # Given a batch that is pinned to a model
    batch, (chunk,) = scene.open(1)
    claim = scene.claim(chunk)

    # If a worker records with another
    for outcome, model in (
        (scene.scored(claim.items[0], model="f" * 64), "f" * 64),
        (scene.scored(claim.items[0], model="f" * 64), "a" * 64),
    ):
        with pytest.raises(ModelMismatch):
            scene.record(claim, outcome, model=model)

    # Then nothing is recorded
    assert count_items(scene.engine, batch).open == 1
    assert scene.sql("SELECT count(*) FROM result") == [(0,)]


def test_two_workers_with_the_same_inputs_in_opposite_order_both_succeed(scene: Scene) -> None:
    # Given two chunks that show the same forty images
    batch, (one, two) = scene.open(40, 40)
    claims = [scene.claim(one), scene.claim(two)]
    digests = [f"{number:064x}" for number in range(40)]
    start = threading.Barrier(2)

    def record(claim: Claim, order: list[str]) -> int:
        start.wait()
        return scene.record(claim, *(scene.scored(i, d) for i, d in zip(claim.items, order, strict=True)))

    # If they are recorded at once, in opposite order
    with ThreadPoolExecutor(2) as pool:
        left = list(pool.map(record, claims, [digests, digests[::-1]]))

    # Then neither is the victim of a deadlock, and there are forty results
    assert left == [0, 0]
    assert scene.sql("SELECT count(*) FROM result") == [(40,)]
    assert check_batch(scene.engine, batch) == []


def test_a_released_chunk_is_open_with_no_crash_counted(scene: Scene) -> None:
    # Given a chunk with one of two recorded and the other marked as suspect
    batch, (chunk,) = scene.open(2)
    claim = scene.claim(chunk)
    scene.record(claim, scene.scored(claim.items[0]))
    mark_suspect(scene.engine, chunk, claim.attempt, claim.items[1].item_id)

    # If the worker gives it back
    release_chunk(scene.engine, chunk, claim.attempt)

    # Then another gets what is left, and nobody is blamed
    again = scene.claim(chunk, worker="w2")
    assert (again.attempt, again.crashes) == (2, 0)
    assert [(one.item_id, one.marks) for one in again.items] == [(claim.items[1].item_id, 0)]
    assert check_batch(scene.engine, batch) == []


def test_the_third_kill_quarantines_the_marked_item_alone(scene: Scene) -> None:
    # Given a chunk with one image that kills every worker
    batch, (chunk,) = scene.open(3)
    killer = scene.claim(chunk).items[1].item_id
    scene.expire(chunk)

    # If three workers mark it and die
    for number in range(3):
        claim = scene.claim(chunk)
        assert [one.marks for one in claim.items] == [0, number, 0]
        mark_suspect(scene.engine, chunk, claim.attempt, killer)
        scene.expire(chunk)
    claim = scene.claim(chunk)

    # Then it is quarantined and the others go on
    assert killer not in {one.item_id for one in claim.items}
    assert scene.finish(claim) == 0
    counts = count_items(scene.engine, batch)
    assert (counts.done, counts.quarantined, counts.reasons) == (2, 1, {KILLS_WORKER: 1})
    assert check_batch(scene.engine, batch) == []


def test_a_chunk_whose_only_item_is_quarantined_ends_at_the_claim(scene: Scene) -> None:
    # Given a chunk of one image that killed three workers
    batch, (chunk,) = scene.open(1)
    for _ in range(3):
        claim = scene.claim(chunk)
        mark_suspect(scene.engine, chunk, claim.attempt, claim.items[0].item_id)
        scene.expire(chunk)

    # If a fourth claims it
    # Then there is nothing left to do
    assert claim_chunk(scene.engine, chunk, worker="w4", lease_seconds=30) is None
    assert count_items(scene.engine, batch).quarantined == 1
    assert scene.sql("SELECT state FROM chunk") == [("done",)]
    assert check_batch(scene.engine, batch) == []


def test_crashes_with_no_item_marked_quarantine_nobody(scene: Scene) -> None:
    # Given workers that die before they open an image
    batch, (chunk,) = scene.open(2)
    for _ in range(5):
        scene.claim(chunk)
        scene.expire(chunk)

    # If the next one claims the chunk
    claim = scene.claim(chunk)

    # Then it sees the crashes and all items
    assert (claim.crashes, len(claim.items)) == (5, 2)
    assert count_items(scene.engine, batch).quarantined == 0


def test_a_recorded_item_and_one_passed_by_are_suspects_no_more(scene: Scene) -> None:
    # Given a worker in suspect mode
    _, (chunk,) = scene.open(3)
    claim = scene.claim(chunk)
    first, second, third = claim.items

    # If it marks one, marks the next, records that and dies
    mark_suspect(scene.engine, chunk, claim.attempt, first.item_id)
    mark_suspect(scene.engine, chunk, claim.attempt, second.item_id)
    scene.record(claim, scene.scored(second))
    scene.expire(chunk)

    # Then nobody is blamed
    again = scene.claim(chunk)
    assert [(one.item_id, one.marks) for one in again.items] == [(first.item_id, 0), (third.item_id, 0)]


def test_only_an_open_item_of_the_chunk_can_be_marked(scene: Scene) -> None:
    # Given a chunk with one of its items recorded, and another chunk
    _, (chunk, other) = scene.open(2, 1)
    claim, foreign = scene.claim(chunk), scene.claim(other)
    scene.record(claim, scene.scored(claim.items[0]))

    # If the recorded one, or one of the other chunk, is marked
    # Then it is refused
    for item in (claim.items[0].item_id, foreign.items[0].item_id, 999_999):
        with pytest.raises(UnknownItem):
            mark_suspect(scene.engine, chunk, claim.attempt, item)
    assert scene.sql("SELECT count(*) FROM chunk WHERE suspect_item_id IS NOT NULL") == [(0,)]


def test_a_paused_batch_is_not_claimed_but_what_is_leased_is_finished(scene: Scene) -> None:
    # Given a batch with one chunk leased
    batch, (leased, waiting) = scene.open(1, 1)
    claim = scene.claim(leased)

    # If it is paused
    assert pause_batch(scene.engine, batch, "me")

    # Then the leased chunk is finished and the other waits until it is resumed
    assert claim_chunk(scene.engine, waiting, worker="w2", lease_seconds=30) is None
    extend_lease(scene.engine, leased, claim.attempt, lease_seconds=30)
    assert scene.finish(claim) == 0
    resume_batch(scene.engine, batch, "me")
    assert scene.finish(scene.claim(waiting)) == 0


def test_a_claim_that_meets_a_pause_half_way_waits_for_it(scene: Scene) -> None:
    # Given a pause that has changed the batch and not committed yet
    batch, (chunk,) = scene.open(1)
    with ThreadPoolExecutor(1) as pool:
        with write(scene.engine) as connection:
            connection.execute(update(Batch).where(Batch.id == batch).values(state=BatchState.PAUSED))

            # If a worker claims a chunk at that moment
            claiming = pool.submit(claim_chunk, scene.engine, chunk, worker="w1", lease_seconds=30)
            with pytest.raises(TimeoutError):
                claiming.result(timeout=0.3)

        # Then it gets nothing once the pause has committed
        assert claiming.result(timeout=30) is None


def test_a_cancelled_batch_is_fenced_and_can_be_resumed_without_a_crash(scene: Scene) -> None:
    # Given a batch of which one chunk is leased and one item recorded
    batch, (leased, waiting) = scene.open(2, 1)
    claim = scene.claim(leased)
    scene.record(claim, scene.scored(claim.items[0]))

    # If it is cancelled
    assert cancel_batch(scene.engine, batch, "me")

    # Then its worker writes nothing more, and nobody claims
    with pytest.raises(LeaseLost):
        scene.finish(claim)
    with pytest.raises(LeaseLost):
        extend_lease(scene.engine, leased, claim.attempt, lease_seconds=30)
    for chunk in (leased, waiting):
        assert claim_chunk(scene.engine, chunk, worker="w2", lease_seconds=30) is None
    counts = count_items(scene.engine, batch)
    assert (counts.open, counts.done) == (2, 1)

    # And if it is resumed, what is left is screened and no crash was counted
    assert resume_batch(scene.engine, batch, "me")
    again = scene.claim(leased)
    assert (again.crashes, len(again.items)) == (0, 1)
    with pytest.raises(LeaseLost):
        scene.finish(claim)
    assert scene.finish(again) == 0
    assert check_batch(scene.engine, batch) == []


def test_a_storm_of_kills_takeovers_and_zombies_leaves_true_counts(scene: Scene) -> None:
    # Given six chunks that four workers fight for, each of whom may find its lease taken at any moment
    batch, chunks = scene.open(*[5] * 6)

    def work(number: int) -> int:
        lost = 0
        for turn in range(12):
            chunk = chunks[(number + turn) % len(chunks)]
            claim = claim_chunk(scene.engine, chunk, worker=f"w{number}", lease_seconds=0.0)
            if claim is None:
                continue
            for one in claim.items[:2]:
                try:
                    record_results(
                        scene.engine,
                        chunk,
                        claim.attempt,
                        model_digest=claim.model_digest,
                        # Few digests for many items, so that the results collide too.
                        outcomes=[scene.scored(one, f"{one.item_id % 7:064x}", referred=bool(number % 2))],
                    )
                except LeaseLost:
                    lost += 1
        return lost

    # If they all run at once
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))

    # Then the ledger is sound, and one quiet worker brings it to an end
    assert check_batch(scene.engine, batch) == []
    scene.sql("UPDATE chunk SET lease_until = 0 WHERE state = 'running'")
    for chunk in chunks:
        claim = claim_chunk(scene.engine, chunk, worker="last", lease_seconds=30)
        assert claim is None or scene.finish(claim) == 0
    counts = count_items(scene.engine, batch)
    assert (counts.found, counts.open, counts.done + counts.referred) == (30, 0, 30)
    assert check_batch(scene.engine, batch) == []
