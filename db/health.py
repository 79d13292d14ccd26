"""The invariants of the ledger as code: what must hold for a batch at every moment, whoever was killed when."""

from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy import Connection, Engine, and_, case, exists, func, not_, or_, select

from db.audit import is_chain_intact
from db.errors import UnknownBatch
from db.results import result_of_item
from db.session import read
from db.tables import CLASSES, Batch, Chunk, ChunkState, Item, ItemState, Result

#: Probabilities are float32 sums: this far from 1 is rounding, further is damage.
_SUM_TOLERANCE = 1e-3

_VERDICTS = (ItemState.DONE, ItemState.REFERRED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """An invariant that does not hold."""

    #: Name of the invariant.
    name: str
    #: How many rows break it.
    count: int
    #: What that means, without a word about a patient.
    detail: str


def counters_match_items(connection: Connection, batch_id: int, _model_digest: str) -> int:
    """A chunk's counters differ from the states of its items."""
    columns = {
        ItemState.OPEN: Chunk.open_count,
        ItemState.DONE: Chunk.done_count,
        ItemState.REFERRED: Chunk.referred_count,
        ItemState.REJECTED: Chunk.rejected_count,
        ItemState.QUARANTINED: Chunk.quarantined_count,
    }
    sums = [func.sum(case((Item.state == state, 1), else_=0)).label(f"n_{state.value}") for state in columns]
    real = select(Item.chunk_id, *sums).where(Item.batch_id == batch_id).group_by(Item.chunk_id).subquery()
    differs = [func.coalesce(real.c[f"n_{state.value}"], 0) != column for state, column in columns.items()]
    broken = select(func.count()).select_from(Chunk).join(real, real.c.chunk_id == Chunk.id, isouter=True)
    return connection.execute(broken.where(Chunk.batch_id == batch_id, or_(*differs))).scalar_one()


def outcomes_add_up(connection: Connection, batch_id: int, _model_digest: str) -> int:
    """A chunk has found another number of items than its five outcomes add up to."""
    total = Chunk.open_count + Chunk.done_count + Chunk.referred_count + Chunk.rejected_count + Chunk.quarantined_count
    broken = select(func.count()).select_from(Chunk).where(Chunk.batch_id == batch_id, Chunk.items != total)
    return connection.execute(broken).scalar_one()


def items_stay_in_batch(connection: Connection, batch_id: int, _model_digest: str) -> int:
    """An item belongs to a chunk of another batch."""
    broken = (
        select(func.count())
        .select_from(Item)
        .join(Chunk, Chunk.id == Item.chunk_id)
        .where(or_(Item.batch_id == batch_id, Chunk.batch_id == batch_id), Item.batch_id != Chunk.batch_id)
    )
    return connection.execute(broken).scalar_one()


def chunks_end_with_their_items(connection: Connection, batch_id: int, _model_digest: str) -> int:
    """A chunk is done with open items left, or is not done though none is left."""
    has_open = exists().where(Item.chunk_id == Chunk.id, Item.state == ItemState.OPEN)
    done = Chunk.state == ChunkState.DONE
    broken = select(func.count()).select_from(Chunk)
    broken = broken.where(Chunk.batch_id == batch_id, or_(and_(done, has_open), and_(not_(done), not_(has_open))))
    return connection.execute(broken).scalar_one()


def leases_only_while_running(connection: Connection, batch_id: int, _model_digest: str) -> int:
    """A chunk is running without lease or attempt, or has a lease or a suspect without running."""
    running = Chunk.state == ChunkState.RUNNING
    held = or_(Chunk.lease_until.is_not(None), Chunk.suspect_item_id.is_not(None))
    unheld = or_(Chunk.lease_until.is_(None), Chunk.attempt < 1)
    broken = select(func.count()).select_from(Chunk)
    broken = broken.where(Chunk.batch_id == batch_id, or_(and_(running, unheld), and_(not_(running), held)))
    return connection.execute(broken).scalar_one()


def verdicts_have_results(connection: Connection, batch_id: int, model_digest: str) -> int:
    """A done or referred item has no result of its input under the batch's model."""
    broken = select(func.count()).select_from(Item).where(Item.batch_id == batch_id, Item.state.in_(_VERDICTS))
    return connection.execute(broken.where(not_(exists().where(result_of_item(model_digest))))).scalar_one()


def states_match_results(connection: Connection, batch_id: int, model_digest: str) -> int:
    """An item is done though its result refers it, or the other way round."""
    wrong = or_(
        and_(Item.state == ItemState.DONE, Result.referred.is_(True)),
        and_(Item.state == ItemState.REFERRED, Result.referred.is_(False)),
    )
    broken = select(func.count()).select_from(Item).join(Result, result_of_item(model_digest))
    return connection.execute(broken.where(Item.batch_id == batch_id, wrong)).scalar_one()


def reasons_are_given(connection: Connection, batch_id: int, _model_digest: str) -> int:
    """A rejected or quarantined item has no reason, or another item has one."""
    needs = Item.state.in_((ItemState.REJECTED, ItemState.QUARANTINED))
    none = or_(Item.reason.is_(None), Item.reason == "")
    broken = select(func.count()).select_from(Item).where(Item.batch_id == batch_id)
    broken = broken.where(or_(and_(needs, none), and_(not_(needs), Item.reason.is_not(None))))
    return connection.execute(broken).scalar_one()


def probabilities_sum_to_one(connection: Connection, batch_id: int, model_digest: str) -> int:
    """A result of the batch has probabilities outside 0 and 1, or that do not add up to 1."""
    columns = [getattr(Result, f"p_{name}") for name in CLASSES]
    total = sum(columns[1:], columns[0])
    outside = [or_(column < -_SUM_TOLERANCE, column > 1 + _SUM_TOLERANCE) for column in columns]
    wrong = or_(total < 1 - _SUM_TOLERANCE, total > 1 + _SUM_TOLERANCE, *outside)
    broken = select(func.count()).select_from(Item).join(Result, result_of_item(model_digest))
    return connection.execute(broken.where(Item.batch_id == batch_id, wrong)).scalar_one()


def audit_chain_is_intact(connection: Connection, _batch_id: int, _model_digest: str) -> int:
    """An entry of the audit trail was changed, inserted or removed."""
    return 0 if is_chain_intact(connection) else 1


#: Every invariant; its docstring says what it means to break it.
INVARIANTS: tuple[Callable[[Connection, int, str], int], ...] = (
    counters_match_items,
    outcomes_add_up,
    items_stay_in_batch,
    chunks_end_with_their_items,
    leases_only_while_running,
    verdicts_have_results,
    states_match_results,
    reasons_are_given,
    probabilities_sum_to_one,
    audit_chain_is_intact,
)


def check_batch(engine: Engine, batch_id: int) -> list[Finding]:
    """Check every invariant of a batch, at one moment, also while it is being worked on; reads only.

    Args:
        engine: The ledger.
        batch_id: The batch.

    Returns:
        What does not hold; empty where the ledger is sound.

    Raises:
        UnknownBatch: If the batch is not there.
    """
    with read(engine) as connection:
        model_digest = connection.execute(select(Batch.model_digest).where(Batch.id == batch_id)).scalar()
        if model_digest is None:
            raise UnknownBatch(batch_id)
        broken = [(invariant, invariant(connection, batch_id, model_digest)) for invariant in INVARIANTS]
    return [
        Finding(name=invariant.__name__, count=count, detail=(invariant.__doc__ or "").strip())
        for invariant, count in broken
        if count
    ]
