"""Exports of a batch's results from a real ledger, as other programs read them."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
import pyarrow.parquet as pq
import pytest
from sqlalchemy import inspect

from db.batches import ItemRow, add_chunk, finish_loading, start_batch
from db.chunks import Rejected, Scored, claim_chunk, record_results
from db.models import register_model
from db.results import ResultRow
from db.tables import CLASSES
from producer import export
from producer.errors import UsageProblem
from producer.report import write_summary

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
    assert metadata[b"schema_version"] == str(export.SCHEMA_VERSION).encode()
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


def _documented() -> dict[str, dict[str, str]]:
    """Read every table of EXPORTS.md: its heading to column and type."""
    text = Path(export.__file__).with_name("EXPORTS.md").read_text(encoding="utf-8")
    sections = re.split(r"^## ", text, flags=re.MULTILINE)[1:]
    row = re.compile(r"^\| `(\w+)` \| (\w+) \|", re.MULTILINE)
    return {section.split("\n")[0]: dict(row.findall(section)) for section in sections}


def test_the_documentation_names_exactly_the_columns_that_are_written(sqlite_ledger: Engine, tmp_path: Path) -> None:
    # Given every export of one batch
    batch = _screened(sqlite_ledger, {"prior": PRIOR})
    for kind, write in export.FORMATS.items():
        write(sqlite_ledger, batch, tmp_path / kind, lambda _row: None)
    headers = {kind: (tmp_path / kind).read_text().splitlines()[0].split(",") for kind in ("csv", "isic")}
    schema = pq.read_schema(tmp_path / "parquet")
    frame = export.load_results(batch, sqlite_ledger)
    views = {
        name: [column["name"] for column in inspect(sqlite_ledger).get_columns(name)]
        for name in inspect(sqlite_ledger).get_view_names()
    }

    # If they are compared with what is written about them
    said = _documented()

    # Then there is the same, in the same order and of the same types, and nothing else
    assert list(said) == ["CSV and Parquet", "ISIC", "pandas", "v_worklist", "v_batch_summary"]
    assert list(said["CSV and Parquet"]) == headers["csv"] == schema.names
    kinds = {"string": "text", "double": "float64", "bool": "bool"}
    assert list(said["CSV and Parquet"].values()) == [kinds[str(kind)] for kind in schema.types]
    assert list(said["ISIC"]) == headers["isic"]
    assert said["pandas"] == {name: str(kind) for name, kind in frame.dtypes.items()}
    assert {name: list(said[name]) for name in views} == views
    assert set(views) == {"v_worklist", "v_batch_summary"}


def test_the_version_of_the_columns_goes_with_every_export(sqlite_ledger: Engine, tmp_path: Path) -> None:
    text = Path(export.__file__).with_name("EXPORTS.md").read_text(encoding="utf-8")
    batch = _screened(sqlite_ledger, {"prior": PRIOR})
    write_summary(sqlite_ledger, batch, tmp_path / "summary.json", {})

    assert re.findall(r"Schema version (\d+)", text) == [str(export.SCHEMA_VERSION)]
    assert json.loads((tmp_path / "summary.json").read_text())["schema_version"] == export.SCHEMA_VERSION


def test_a_data_frame_has_the_verdicts_and_the_same_types_whatever_the_batch_holds(sqlite_ledger: Engine) -> None:
    # Given a batch with verdicts, and one without a single value
    batch = _screened(sqlite_ledger, {"prior": PRIOR})
    bare = start_batch(sqlite_ledger, name="n", source="/archive", model_digest=MODEL)

    # If both are loaded
    frame, empty = export.load_results(batch, sqlite_ledger), export.load_results(bare, sqlite_ledger)

    # Then what is missing is missing, and nothing changes its type
    assert frame["p_mel"].tolist()[:4] == [0.11] * 4
    assert frame["diagnosis"].tolist()[:4] == ["nv"] * 4
    assert frame["state"].tolist() == ["done"] * 4 + ["rejected"]
    assert frame["referred"].tolist()[:4] == [False] * 4
    assert [bool(frame[name].isna()[4]) for name in ("p_mel", "diagnosis", "referred", "age")] == [True] * 4
    assert frame["reason"].tolist()[4] == "truncated"
    assert frame["path"].tolist()[0] == "part/i0.jpg"
    assert len(empty) == 0
    pd.testing.assert_series_equal(frame.dtypes, empty.dtypes)


def test_a_data_frame_comes_from_the_ledger_that_the_environment_names(
    sqlite_ledger: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = _screened(sqlite_ledger, {"prior": PRIOR})
    monkeypatch.setenv("LESION_SCREEN_HOME", str(tmp_path / "home"))

    assert len(export.load_results(batch)) == 5

    monkeypatch.setenv("LESION_SCREEN_HOME", str(tmp_path / "elsewhere"))
    with pytest.raises(UsageProblem, match="Nothing was submitted yet"):
        export.load_results(batch)


def test_a_name_that_is_no_text_is_loaded_all_the_same(sqlite_ledger: Engine) -> None:
    # Given a file name and a metadata cell that are no UTF-8
    register_model(sqlite_ledger, digest=MODEL, name="m", backbone="b", metrics={}, data_digest="0" * 64)
    batch = start_batch(sqlite_ledger, name="n", source="/archive", model_digest=MODEL)
    add_chunk(sqlite_ledger, batch, [ItemRow(path="a\udcff.jpg", size=1, mtime_ns=1, lesion_id="L\udcff")])

    frame = export.load_results(batch, sqlite_ledger)

    assert [frame[name][0] for name in ("path", "lesion_id")] == ["a\\udcff.jpg", "L\\udcff"]
