"""Retrying what was rejected or quarantined, on both databases."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from db.batches import finish_loading
from db.chunks import Rejected, claim_chunk, mark_suspect
from db.control import Retried, cancel_batch, retry_batch
from db.counts import count_items
from db.errors import UnknownBatch, WrongBatchState
from db.health import check_batch

if TYPE_CHECKING:
    from tests.conftest import Scene


def _quarantine_first(scene: Scene, chunk: int) -> None:
    for _ in range(3):
        claim = scene.claim(chunk)
        mark_suspect(scene.engine, chunk, claim.attempt, claim.items[0].item_id)
        scene.expire(chunk)
    claim = scene.claim(chunk)
    scene.finish(claim)


def test_rejected_and_quarantined_items_are_opened_again_and_verdicts_stay(scene: Scene) -> None:
    # Given a finished batch with a quarantined item in one chunk, a rejected one in another, and a third in order
    batch, (first, second, third) = scene.open(3, 2, 1)
    _quarantine_first(scene, first)
    claim = scene.claim(second)
    scene.record(claim, Rejected(item_id=claim.items[0].item_id, reason="truncated"), scene.scored(claim.items[1]))
    scene.finish(scene.claim(third))
    before = count_items(scene.engine, batch)
    assert (before.done, before.rejected, before.quarantined, before.open) == (4, 1, 1, 0)

    # If the batch is retried
    retried = retry_batch(scene.engine, batch, "tester")

    # Then both are open, the verdicts stay, and the ledger is sound
    assert retried == Retried(reopened=2, running=0, without_file=0)
    after = count_items(scene.engine, batch)
    assert (after.done, after.rejected, after.quarantined, after.open) == (4, 0, 0, 2)
    assert check_batch(scene.engine, batch) == []
    # And only they are claimed, the killer still under suspicion and without its marks
    again = scene.claim(first)
    assert [one.marks for one in again.items] == [0]
    assert again.crashes >= 1
    assert claim_chunk(scene.engine, third, worker="w2", lease_seconds=30) is None
    scene.finish(again)
    scene.finish(scene.claim(second))
    assert count_items(scene.engine, batch).done == 6
    assert check_batch(scene.engine, batch) == []


def test_a_second_retry_finds_nothing_and_says_nothing_to_the_audit(scene: Scene) -> None:
    batch, (chunk,) = scene.open(1)
    claim = scene.claim(chunk)
    scene.record(claim, Rejected(item_id=claim.items[0].item_id, reason="truncated"))

    assert retry_batch(scene.engine, batch, "tester").reopened == 1
    assert retry_batch(scene.engine, batch, "tester").reopened == 0
    assert scene.sql("SELECT count(*) FROM audit WHERE action = 'retry_batch'") == [(1,)]


def test_one_reason_is_retried_and_the_others_are_left(scene: Scene) -> None:
    batch, (chunk,) = scene.open(2)
    claim = scene.claim(chunk)
    reasons = ("truncated", "empty_file")
    outcomes = [Rejected(item_id=one.item_id, reason=why) for one, why in zip(claim.items, reasons, strict=True)]
    scene.record(claim, *outcomes)

    assert retry_batch(scene.engine, batch, "tester", reason="truncated").reopened == 1
    assert count_items(scene.engine, batch).reasons == {"empty_file": 1}
    assert check_batch(scene.engine, batch) == []


def test_a_chunk_in_a_workers_hands_is_left_to_it(scene: Scene) -> None:
    # Given a worker that has rejected one of its two items
    batch, (chunk,) = scene.open(2)
    claim = scene.claim(chunk)
    scene.record(claim, Rejected(item_id=claim.items[0].item_id, reason="truncated"))

    # If the batch is retried meanwhile
    retried = retry_batch(scene.engine, batch, "tester")

    # Then nothing changes under the worker's feet, and later it works
    assert retried == Retried(reopened=0, running=1, without_file=0)
    scene.record(claim, scene.scored(claim.items[1]))
    assert retry_batch(scene.engine, batch, "tester").reopened == 1
    assert check_batch(scene.engine, batch) == []


def test_a_row_without_a_file_is_counted_apart(scene: Scene) -> None:
    batch = scene.load([scene.item(), scene.item(path=None, rejected="missing_image")])
    finish_loading(scene.engine, batch, "f" * 64)

    assert retry_batch(scene.engine, batch, "tester") == Retried(reopened=0, running=0, without_file=1)
    assert count_items(scene.engine, batch).rejected == 1


def test_a_cancelled_batch_is_retried_without_being_opened(scene: Scene) -> None:
    batch, (chunk,) = scene.open(2)
    claim = scene.claim(chunk)
    scene.record(claim, Rejected(item_id=claim.items[0].item_id, reason="truncated"))
    cancel_batch(scene.engine, batch, "tester")

    assert retry_batch(scene.engine, batch, "tester").reopened == 1
    assert claim_chunk(scene.engine, chunk, worker="w1", lease_seconds=30) is None
    assert check_batch(scene.engine, batch) == []


def test_a_batch_that_is_loading_or_unknown_is_refused(scene: Scene) -> None:
    loading = scene.load([scene.item(rejected="truncated")])

    with pytest.raises(WrongBatchState, match="submit its archive again"):
        retry_batch(scene.engine, loading, "tester")
    with pytest.raises(UnknownBatch):
        retry_batch(scene.engine, loading + 1, "tester")
