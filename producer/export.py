"""Exports: a batch's results as CSV, Parquet, the ISIC challenge's table and a data frame, as EXPORTS.md has them."""

import csv
import json
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from sqlalchemy import Engine

from db.batches import get_batch
from db.models import get_model
from db.results import ReportRow, iter_report
from db.tables import CLASSES, ItemState
from producer.errors import UsageProblem
from producer.ledger import open_existing, read_place
from producer.paths import split_suffix

if TYPE_CHECKING:
    from pandas import DataFrame

#: Said with every export.
NOTICE = (
    "Not a medical device: a research tool that orders images for a person to read. "
    "A low score means not prioritised, never benign."
)

#: Version of every export's columns, as EXPORTS.md describes them: raised when one is renamed, goes or changes its
#: meaning or type, and not when one is added at the end.
SCHEMA_VERSION = 1

#: Columns of results.csv and of the Parquet file; other programs read them by these names.
COLUMNS = (
    "image_id",
    "path",
    "state",
    "reason",
    "diagnosis",
    "confidence",
    "malignant_score",
    "referred",
    "refer_reason",
    *(f"p_{name}" for name in CLASSES),
    "model",
)

#: What `load_results` has beyond `COLUMNS`: the archive's own table, as it was submitted.
METADATA_COLUMNS = ("age", "sex", "localization", "lesion_id", "label")

#: The ISIC 2018 challenge's order of the same classes (https://challenge.isic-archive.com/landing/2018/47/).
ISIC_COLUMNS = ("image", "MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC")

#: Where a formula begins for a spreadsheet (OWASP, CSV injection): at the start of a cell, or after a semicolon or a
#: tab within it, where those separate cells, as in most of Europe. The wide signs count in East Asian settings.
_FORMULA = re.compile(r"(^[\t\r\n]|(?:^|(?<=[;\t\r\n]))[=+\-@\uff1d\uff0b\uff0d\uff20])")

_ROW_GROUP = 50_000


def _ignore(_row: ReportRow) -> None:
    return


def escape_cell(text: str | None) -> str:
    """Make a text cell harmless to a spreadsheet and writable as UTF-8.

    Args:
        text: For example a file name.

    Returns:
        The text, with an apostrophe before whatever would be a formula.
    """
    if not text:
        return ""
    plain = text.encode("utf-8", "backslashreplace").decode()
    return _FORMULA.sub(r"'\1", plain)


@contextmanager
def replace_file(path: Path, *, binary: bool = False, option: str = "--out") -> Iterator[IO[Any]]:
    """Write a file whole or not at all, readable by its owner only.

    Args:
        path: Where; an older file is replaced at the end.
        binary: Open for bytes instead of UTF-8 text.
        option: What the user named the place with.

    Yields:
        The file to write to.

    Raises:
        UsageProblem: If nothing can be written there.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        number, name = tempfile.mkstemp(dir=path.parent, prefix=".lesion-screen-")
    except OSError as error:
        raise _unwritable(error, option) from error
    try:
        with os.fdopen(number, "wb") if binary else os.fdopen(number, "w", encoding="utf-8", newline="") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except OSError as error:
        Path(name).unlink(missing_ok=True)
        raise _unwritable(error, option) from error
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _unwritable(error: OSError, option: str) -> UsageProblem:
    return UsageProblem(f"The output cannot be written ({error.strerror}); give another place with {option}.")


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.9g}"


def csv_cells(row: ReportRow) -> list[str]:
    """Lay an item out as the cells of results.csv.

    Args:
        row: From the ledger.

    Returns:
        Cells in the order of `COLUMNS`; empty where there is no verdict.
    """
    return [
        escape_cell(row.image_id),
        escape_cell(row.path),
        escape_cell(row.state.value),
        escape_cell(row.reason),
        escape_cell(row.diagnosis),
        _number(row.confidence),
        _number(row.malignant_score),
        "" if row.referred is None else str(row.referred).lower(),
        escape_cell(row.refer_reason),
        *(map(_number, row.probabilities) if row.probabilities else [""] * len(CLASSES)),
        escape_cell(row.model_digest),
    ]


def export_csv(engine: Engine, batch_id: int, out: Path, on_row: Callable[[ReportRow], object] = _ignore) -> int:
    """Write results.csv, a row an item; reads the ledger only.

    Args:
        engine: The ledger.
        batch_id: The batch.
        out: The file.
        on_row: Told every item that is done with.

    Returns:
        Rows written.

    Raises:
        UnknownBatch: If the batch is not there.
        UsageProblem: If the file cannot be written.
    """
    rows = iter_report(engine, batch_id)
    with replace_file(out) as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        count = 0
        for row in rows:
            writer.writerow(csv_cells(row))
            count += 1
            on_row(row)
    return count


def export_parquet(engine: Engine, batch_id: int, out: Path, on_row: Callable[[ReportRow], object] = _ignore) -> int:
    """Write the same columns as Parquet, a row group at a time.

    Model, prior, notice and the version of the columns are in the schema's metadata.

    Args:
        engine: The ledger.
        batch_id: The batch.
        out: The file.
        on_row: Told every item that is done with.

    Returns:
        Rows written.

    Raises:
        UnknownBatch: If the batch is not there.
        UsageProblem: If the file cannot be written.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    kinds = {"confidence": pa.float64(), "malignant_score": pa.float64(), "referred": pa.bool_()}
    kinds |= {f"p_{name}": pa.float64() for name in CLASSES}
    model = get_batch(engine, batch_id).model_digest
    prior = model_prior(engine, model)
    notes = {"notice": NOTICE, "batch": str(batch_id), "model": model, "prior": json.dumps(prior)}
    notes["schema_version"] = str(SCHEMA_VERSION)
    schema = pa.schema([(name, kinds.get(name, pa.string())) for name in COLUMNS], metadata=notes)
    count = 0
    with replace_file(out, binary=True) as file, pq.ParquetWriter(file, schema) as writer:
        group: list[dict[str, Any]] = []
        for row in iter_report(engine, batch_id):
            group.append(_parquet_values(row))
            count += 1
            on_row(row)
            if len(group) == _ROW_GROUP:
                writer.write_table(pa.Table.from_pylist(group, schema=schema))
                group.clear()
        if group:
            writer.write_table(pa.Table.from_pylist(group, schema=schema))
    return count


def _parquet_values(row: ReportRow) -> dict[str, Any]:
    probabilities = row.probabilities or (None,) * len(CLASSES)
    return {
        # Columns are typed here, so nothing is a formula and nothing is escaped.
        "image_id": _storable(row.image_id),
        "path": _storable(row.path),
        "state": row.state.value,
        "reason": row.reason,
        "diagnosis": row.diagnosis,
        "confidence": row.confidence,
        "malignant_score": row.malignant_score,
        "referred": row.referred,
        "refer_reason": row.refer_reason,
        **{f"p_{name}": value for name, value in zip(CLASSES, probabilities, strict=True)},
        "model": row.model_digest,
    }


def _storable(text: str | None) -> str | None:
    return None if text is None else text.encode("utf-8", "backslashreplace").decode()


def export_isic(engine: Engine, batch_id: int, out: Path, on_row: Callable[[ReportRow], object] = _ignore) -> int:
    """Write the ISIC challenge's table, a row a scored image; items without a verdict have no row.

    The values are p_c / π_c scaled to sum to 1, so that the largest one is the diagnosis.

    Args:
        engine: The ledger.
        batch_id: The batch.
        out: The file.
        on_row: Told every item that is done with.

    Returns:
        Rows written.

    Raises:
        UnknownBatch: If the batch is not there.
        UsageProblem: If the file cannot be written, or the model's prior is not known.
    """
    prior = model_prior(engine, get_batch(engine, batch_id).model_digest)
    if prior is None:
        raise UsageProblem("The batch's model has no prior on record; export it as csv or parquet instead.")
    count = 0
    with replace_file(out) as file:
        writer = csv.writer(file)
        writer.writerow(ISIC_COLUMNS)
        for row in iter_report(engine, batch_id):
            on_row(row)
            if row.probabilities is None:
                continue
            values = without_prior(row.probabilities, prior)
            image = row.image_id or split_suffix((row.path or "").rpartition("/")[2])[0]
            writer.writerow([escape_cell(image), *(_number(values[name.lower()]) for name in ISIC_COLUMNS[1:])])
            count += 1
    return count


def without_prior(probabilities: tuple[float, ...], prior: Mapping[str, float]) -> dict[str, float]:
    """Take the prior out of a posterior: p_c / π_c, scaled to sum to 1.

    Args:
        probabilities: In the order of `CLASSES`.
        prior: Class to its share in the prior.

    Returns:
        Class to value.
    """
    ratios = {name: value / prior[name] for name, value in zip(CLASSES, probabilities, strict=True)}
    total = sum(ratios.values())
    return {name: value / total for name, value in ratios.items()}


def model_prior(engine: Engine, model_digest: str) -> dict[str, float] | None:
    """Look up the prior at which a model's probabilities hold; reads only.

    Args:
        engine: The ledger.
        model_digest: The model.

    Returns:
        Class to share, or None where it is not on record.

    Raises:
        UnknownModel: If the model is not registered.
    """
    prior = get_model(engine, model_digest).metrics.get("prior")
    if not isinstance(prior, Mapping):
        return None
    values = {name: prior.get(name) for name in CLASSES}
    if not all(isinstance(value, (int, float)) and value > 0 for value in values.values()):
        return None
    return {name: float(value) for name, value in values.items() if value is not None}


def load_results(batch: int, engine: Engine | None = None) -> "DataFrame":
    """Load a batch's results into pandas; reads only, and leaves no trace in the audit trail.

    The columns are `COLUMNS` and `METADATA_COLUMNS`, whose types are the same whatever the batch holds: `string` for
    texts, `float64` with NaN for what is missing, `boolean` for `referred`, and categories for `state` and `diagnosis`.
    The frame is held in memory whole: of many millions of items read the Parquet file in parts.

    Args:
        batch: The batch.
        engine: The ledger; the one that the environment names by default, as for the command line.

    Returns:
        A row an item in the order of the items' ids.

    Raises:
        UnknownBatch: If the batch is not there.
        UsageProblem: If the environment names no ledger that is there.

    Example:
        >>> frame = load_results(3)  # doctest: +SKIP
        >>> frame.sort_values("malignant_score", ascending=False).head(200)  # doctest: +SKIP
    """
    import pandas as pd

    ledger = open_existing(read_place()) if engine is None else engine
    columns: dict[str, list[Any]] = {name: [] for name in (*COLUMNS, *METADATA_COLUMNS)}
    try:
        for row in iter_report(ledger, batch):
            texts = {name: _storable(getattr(row, name)) for name in METADATA_COLUMNS[1:]}
            values = _parquet_values(row) | {"age": row.age} | texts
            for name, column in columns.items():
                column.append(values[name])
    finally:
        if engine is None:
            ledger.dispose()
    return pd.DataFrame({name: pd.Series(column, dtype=_frame_type(name)) for name, column in columns.items()})


def _frame_type(name: str) -> Any:
    import pandas as pd

    if name in {"confidence", "malignant_score", "age", *(f"p_{one}" for one in CLASSES)}:
        return "float64"
    kinds = {
        "state": pd.CategoricalDtype([state.value for state in ItemState]),
        "diagnosis": pd.CategoricalDtype(list(CLASSES)),
        "referred": "boolean",
    }
    return kinds.get(name, "string")


#: The formats of `export --format`.
FORMATS: Mapping[str, Callable[[Engine, int, Path, Callable[[ReportRow], object]], int]] = {
    "csv": export_csv,
    "parquet": export_parquet,
    "isic": export_isic,
}
