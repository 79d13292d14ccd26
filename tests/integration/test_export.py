"""Exports of a batch's results from a real ledger, as other programs read them."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow.parquet as pq
import pytest

from db.batches import ItemRow, add_chunk, finish_loading, start_batch
from db.chunks import Rejected, Scored, claim_chunk, record_results
from db.models import register_model
from db.results import ResultRow
from db.tables import CLASSES
from producer import export
from producer.errors import UsageProblem

if TYPE_CHECKING:
    from sqlalchemy import Engine

MODEL = "a" * 64
PRIOR = dict(zip(CLASSES, (0.03, 0.05, 0.11, 0.01, 0.11, 0.67, 0.02), strict=True))
POSTERIOR = (0.03, 0.05, 0.11, 0.01, 0.11, 0.67, 0.02)


def _screened(engine: Engine, metrics: dict[str, object], images: int = 5) -> int:
    """Load a batch whose last image is rejected and whose others are scored."""
    register_model(engine, digest=MODEL, name="m", backbone="b", metrics=metrics, data_digest="0" * 64)
    batch = start_batch(engine, name="n", source="/archive", model_digest=MODEL)
    rows = [ItemRow(path=f"part/i{number}.jpg", size=1, mtime_ns=1) for number in range(images)]
    chunk = add_chunk(engine, batch, rows)
    finish_loading(engine, batch, "b" * 64)
    claim = claim_chunk(engine, chunk, worker="w", lease_seconds=30)
    assert claim is not None
    *scored, last = claim.items
    outcomes: list[Scored | Rejected] = [_verdict(one.item_id, f"{one.item_id:064x}") for one in scored]
    outcomes.append(Rejected(item_id=last.item_id, reason="truncated"))
    record_results(engine, chunk, claim.attempt, model_digest=MODEL, outcomes=outcomes)
    return batch


def _verdict(item_id: int, digest: str) -> Scored:
    row = ResultRow(
        input_digest=digest,
        model_digest=MODEL,
        probabilities=POSTERIOR,
        diagnosis="nv",
        confidence=0.67,
        malignant_score=0.19,
        referred=False,
        engine="test",
    )
    return Scored(item_id=item_id, image_digest=digest, input_digest=digest, result=row)


def test_parquet_carries_model_prior_and_notice_and_real_types(sqlite_ledger: Engine, tmp_path: Path) -> None:
    batch = _screened(sqlite_ledger, {"prior": PRIOR})

    export.export_parquet(sqlite_ledger, batch, tmp_path / "x.parquet")

    table = pq.read_table(tmp_path / "x.parquet")
    metadata = table.schema.metadata
    assert metadata[b"model"] == MODEL.encode()
    assert json.loads(metadata[b"prior"]) == PRIOR
    assert b"Not a medical device" in metadata[b"notice"]
    assert table.column_names == list(export.COLUMNS)
    assert [str(table.schema.field(name).type) for name in ("p_mel", "referred")] == ["double", "bool"]
    assert table.column("p_mel").to_pylist() == [0.11] * 4 + [None]


def test_parquet_is_written_a_row_group_at_a_time(
    sqlite_ledger: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given more items than fit into a row group
    monkeypatch.setattr(export, "_ROW_GROUP", 2)
    batch = _screened(sqlite_ledger, {"prior": PRIOR})

    assert export.export_parquet(sqlite_ledger, batch, tmp_path / "x.parquet") == 5

    file = pq.ParquetFile(tmp_path / "x.parquet")
    assert [file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)] == [2, 2, 1]
    assert file.read().num_rows == 5


def test_an_answer_that_only_repeats_the_prior_is_no_diagnosis_to_isic(sqlite_ledger: Engine, tmp_path: Path) -> None:
    # Given verdicts that say no more than the prior
    batch = _screened(sqlite_ledger, {"prior": PRIOR})

    export.export_isic(sqlite_ledger, batch, tmp_path / "x.csv")

    # Then every class is as likely as the others, and an image without an id goes by its file's name
    with (tmp_path / "x.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["image"] for row in rows] == ["i0", "i1", "i2", "i3"]
    assert [float(rows[0][name]) for name in export.ISIC_COLUMNS[1:]] == pytest.approx([1 / 7] * 7)


@pytest.mark.parametrize("prior", [None, {"mel": 1.0}, {**PRIOR, "df": 0.0}])
def test_without_a_whole_prior_the_isic_table_is_refused_and_the_others_are_not(
    prior: object, sqlite_ledger: Engine, tmp_path: Path
) -> None:
    batch = _screened(sqlite_ledger, {"prior": prior})

    with pytest.raises(UsageProblem, match="no prior on record"):
        export.export_isic(sqlite_ledger, batch, tmp_path / "x.csv")

    assert not (tmp_path / "x.csv").exists()
    assert export.export_csv(sqlite_ledger, batch, tmp_path / "x.csv") == 5
