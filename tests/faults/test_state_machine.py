"""The ledger's transitions against a small model of them, in whatever order Hypothesis thinks of, on both databases."""

from __future__ import annotations

import os
import uuid
from dataclasses import dataclass, field
from typing import Any, Final

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import Engine

from db.chunks import (
    KILLS_WORKER,
    QUARANTINE_MARKS,
    Claim,
    Rejected,
    Scored,
    claim_chunk,
    claim_next,
    extend_lease,
    mark_suspect,
    release_chunk,
    ring_chunks,
)
from db.control import cancel_batch, pause_batch, resume_batch, retry_batch
from db.counts import count_items
from db.errors import LeaseLost, UnknownItem
from db.health import check_batch
from tests.conftest import Scene, scored

#: `FAULTS_EXAMPLES=500` looks longer than the few seconds of the usual run.
EXAMPLES: Final = int(os.environ.get("FAULTS_EXAMPLES", "25"))
STEPS: Final = 40
CHUNK_SIZES: Final = (3, 1)
#: Few inputs, so that items share results: the one stored first counts.
DIGESTS: Final = 4


@dataclass(slots=True)
class ModelItem:
    """What an item should be."""

    state: str = "open"
    marks: int = 0


@dataclass(slots=True)
class ModelChunk:
    """What a chunk should be."""

    items: dict[int, ModelItem]
    state: str = "open"
    attempt: int = 0
    crashes: int = 0
    expired: bool = False
    suspect: int | None = None
    #: Every claim ever given out: all but the last belong to zombies.
    claims: list[Claim] = field(default_factory=list)

    def open_items(self) -> list[int]:
        return [key for key, item in self.items.items() if item.state == "open"]

    def settle(self) -> None:
        if not self.open_items():
            self.state, self.suspect = "done", None

    def holds(self, claim: Claim) -> bool:
        return self.state == "running" and claim.attempt == self.attempt


class LedgerMachine(RuleBasedStateMachine):
    """One batch of two chunks, workers that live and die, and a person who interferes."""

    engine: Engine

    @initialize()
    def open_batch(self) -> None:
        self.scene = Scene(engine=self.engine)
        self.batch, ids = self.scene.open(*CHUNK_SIZES)
        self.run = uuid.uuid4().hex
        self.batch_state = "open"
        self.stored: dict[str, bool] = {}
        self.chunks: dict[int, ModelChunk] = {}
        for chunk in ids:
            rows = self.scene.sql("SELECT id FROM item WHERE chunk_id = :c", c=chunk)
            self.chunks[chunk] = ModelChunk(items={int(str(row[0])): ModelItem() for row in rows})

    def _pick(self, data: Any) -> tuple[int, ModelChunk]:
        chunk = data.draw(st.sampled_from(sorted(self.chunks)), label="chunk")
        return chunk, self.chunks[chunk]

    def _pick_claim(self, data: Any) -> tuple[ModelChunk, Claim]:
        claims = [claim for chunk in self.chunks.values() for claim in chunk.claims]
        # As often a zombie as a worker that holds its chunk.
        zombies = [claim for claim in claims if not self.chunks[claim.chunk_id].holds(claim)]
        if zombies and data.draw(st.booleans(), label="zombie"):
            claims = zombies
        claim = data.draw(st.sampled_from(claims), label="claim")
        return self.chunks[claim.chunk_id], claim

    @rule(data=st.data())
    def claim(self, data: Any) -> None:
        self._claim(*self._pick(data))

    @precondition(lambda self: any(chunk.state == "running" for chunk in self.chunks.values()))
    @rule(data=st.data())
    def take_over(self, data: Any) -> None:
        running = [number for number, chunk in self.chunks.items() if chunk.state == "running"]
        number = data.draw(st.sampled_from(running), label="chunk")
        self.scene.expire(number)
        self.chunks[number].expired = True
        self._claim(number, self.chunks[number])

    @rule()
    def claim_another(self) -> None:
        expired = any(chunk.state == "running" and chunk.expired for chunk in self.chunks.values())
        waiting = [chunk for chunk in self.chunks.values() if chunk.state == "open" and not chunk.crashes]

        claim = claim_next(self.engine, self.batch, worker="w", lease_seconds=3600)

        if self.batch_state != "open" or expired or not waiting:
            assert claim is None
        else:
            self._take(waiting[0], claim)

    def _claim(self, number: int, chunk: ModelChunk) -> None:
        free = chunk.state == "open" or (chunk.state == "running" and chunk.expired)

        claim = claim_chunk(self.engine, number, worker="w", lease_seconds=3600)

        if self.batch_state != "open" or not free:
            assert claim is None
            return
        self._take(chunk, claim)

    @staticmethod
    def _take(chunk: ModelChunk, claim: Claim | None) -> None:
        chunk.crashes += chunk.state == "running"
        chunk.attempt += 1
        chunk.state, chunk.expired = "running", False
        if chunk.suspect is not None:
            suspect = chunk.items[chunk.suspect]
            suspect.marks += 1
            if suspect.marks >= QUARANTINE_MARKS:
                suspect.state = "quarantined"
            chunk.suspect = None
            chunk.settle()
        if chunk.state == "done":
            assert claim is None
            return
        assert claim is not None
        assert (claim.attempt, claim.crashes) == (chunk.attempt, chunk.crashes)
        assert [one.item_id for one in claim.items] == chunk.open_items()
        assert [one.marks for one in claim.items] == [chunk.items[key].marks for key in chunk.open_items()]
        chunk.claims.append(claim)

    @rule(data=st.data())
    def expire(self, data: Any) -> None:
        number, chunk = self._pick(data)
        self.scene.expire(number)
        chunk.expired = chunk.expired or chunk.state == "running"

    def _has_claims(self) -> bool:
        return any(chunk.claims for chunk in self.chunks.values())

    @precondition(_has_claims)
    @rule(data=st.data())
    def heartbeat(self, data: Any) -> None:
        chunk, claim = self._pick_claim(data)
        try:
            extend_lease(self.engine, claim.chunk_id, claim.attempt, lease_seconds=3600)
        except LeaseLost:
            assert not chunk.holds(claim)
        else:
            # A worker that comes back before anybody took over goes on.
            assert chunk.holds(claim)
            chunk.expired = False

    @precondition(_has_claims)
    @rule(data=st.data(), whole=st.booleans())
    def record(self, data: Any, whole: bool) -> None:
        chunk, claim = self._pick_claim(data)
        items = claim.items if whole else data.draw(st.lists(st.sampled_from(claim.items), max_size=2), label="items")
        outcomes: list[Scored | Rejected] = []
        expected = {}
        for one in items:
            kind = data.draw(st.sampled_from(["done", "referred", "rejected"]), label="outcome")
            if kind == "rejected":
                outcomes.append(Rejected(item_id=one.item_id, reason="truncated"))
                expected[one.item_id] = (kind, "")
            else:
                digest = f"{data.draw(st.integers(0, DIGESTS - 1), label='input'):032x}{self.run}"
                outcomes.append(scored(one, digest, referred=kind == "referred"))
                expected[one.item_id] = (kind, digest)
        try:
            left = self.scene.record(claim, *outcomes)
        except LeaseLost:
            assert not chunk.holds(claim)
            return
        assert chunk.holds(claim)
        for key, (kind, digest) in expected.items():
            if chunk.items[key].state != "open":
                continue
            if digest:
                # The last word on an item counts, the first on an input.
                referred = self.stored.setdefault(digest, kind == "referred")
                chunk.items[key].state = "referred" if referred else "done"
            else:
                chunk.items[key].state = kind
            if chunk.suspect == key:
                chunk.suspect = None
        assert left == len(chunk.open_items())
        chunk.settle()

    @precondition(_has_claims)
    @rule(data=st.data())
    def mark(self, data: Any) -> None:
        chunk, claim = self._pick_claim(data)
        key = data.draw(st.sampled_from(claim.items), label="item").item_id
        try:
            mark_suspect(self.engine, claim.chunk_id, claim.attempt, key)
        except LeaseLost:
            assert not chunk.holds(claim)
        except UnknownItem:
            assert chunk.holds(claim)
            assert chunk.items[key].state != "open"
        else:
            assert chunk.holds(claim)
            assert chunk.items[key].state == "open"
            chunk.suspect = key

    @precondition(_has_claims)
    @rule(data=st.data(), quiet=st.booleans())
    def release(self, data: Any, quiet: bool) -> None:
        chunk, claim = self._pick_claim(data)
        release_chunk(self.engine, claim.chunk_id, claim.attempt, quiet=quiet)
        if chunk.holds(claim):
            chunk.state, chunk.suspect, chunk.expired = "open", None, False

    @rule()
    def ring(self) -> None:
        rung = {one.chunk_id for one in ring_chunks(self.engine, limit=1000, quiet_seconds=-1)}
        due = {
            number
            for number, chunk in self.chunks.items()
            if chunk.state == "open" or (chunk.state == "running" and chunk.expired)
        }
        assert rung & set(self.chunks) == (due if self.batch_state == "open" else set())

    @precondition(lambda self: self.batch_state != "cancelled")
    @rule()
    def pause(self) -> None:
        assert pause_batch(self.engine, self.batch, "tester") == (self.batch_state == "open")
        self.batch_state = "paused"

    @rule()
    def resume(self) -> None:
        assert resume_batch(self.engine, self.batch, "tester") == (self.batch_state != "open")
        self.batch_state = "open"

    @rule()
    def cancel(self) -> None:
        assert cancel_batch(self.engine, self.batch, "tester") == (self.batch_state != "cancelled")
        if self.batch_state == "cancelled":
            return
        self.batch_state = "cancelled"
        for chunk in self.chunks.values():
            if chunk.state == "running":
                chunk.state, chunk.suspect, chunk.expired = "open", None, False
                chunk.attempt += 1

    def teardown(self) -> None:
        # What expired in one run would be urgent in the next.
        if "batch" in vars(self):
            cancel_batch(self.engine, self.batch, "tester")

    @rule()
    def retry(self) -> None:
        idle = [chunk for chunk in self.chunks.values() if chunk.state != "running"]
        failed = [item for chunk in idle for item in chunk.items.values() if item.state in {"rejected", "quarantined"}]

        retried = retry_batch(self.engine, self.batch, "tester")

        assert retried.reopened == len(failed)
        for item in failed:
            item.state, item.marks = "open", 0
        for chunk in idle:
            if chunk.open_items():
                chunk.state = "open"

    @invariant()
    def ledger_is_sound(self) -> None:
        assert check_batch(self.engine, self.batch) == []

    @invariant()
    def ledger_says_what_the_model_says(self) -> None:
        counts = count_items(self.engine, self.batch)
        states = [item.state for chunk in self.chunks.values() for item in chunk.items.values()]
        for state in ("open", "done", "referred", "rejected", "quarantined"):
            assert getattr(counts, state) == states.count(state), state
        assert counts.reasons.get(KILLS_WORKER, 0) == states.count("quarantined")


def test_any_order_of_transitions_keeps_the_ledger_true(ledger: Engine) -> None:
    machine = type("LedgerMachine", (LedgerMachine,), {"engine": ledger})

    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=STEPS,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
