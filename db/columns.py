"""Kinds of columns that the ledger's tables are made of."""

from enum import StrEnum
from typing import Any

from sqlalchemy import BigInteger, CheckConstraint, Dialect, Enum, Integer, Text
from sqlalchemy.types import TypeDecorator, TypeEngine

#: Marks the stored form of a text that the database cannot hold as it is (U+001F occurs in no sane file name).
_HEX_MARK = "\x1fhex:"

#: A row's number. SQLite numbers rows by itself only where the key is called exactly INTEGER.
BigKey = BigInteger().with_variant(Integer, "sqlite")


class ForeignText(TypeDecorator[str]):
    """Text from somebody else's disk or table, kept letter by letter.

    A file name that is no UTF-8 (a lone surrogate in Python) and a NUL in a metadata cell are refused by the
    databases. They are found files and rows all the same, so they are stored as hexadecimal and read back unchanged.
    """

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:  # noqa: ARG002
        """Turn a text that the database would refuse into its hexadecimal form."""
        if value is None:
            return None
        plain = value.isascii() and value.isprintable()
        if plain or not _needs_hex(value):
            return value
        return _HEX_MARK + value.encode("utf-8", "surrogatepass").hex()

    def process_result_value(self, value: str | None, dialect: Dialect) -> str | None:  # noqa: ARG002
        """Give back what was stored."""
        if value is None or not value.startswith(_HEX_MARK):
            return value
        return bytes.fromhex(value.removeprefix(_HEX_MARK)).decode("utf-8", "surrogatepass")


def _needs_hex(value: str) -> bool:
    if "\x00" in value or value.startswith(_HEX_MARK):
        return True
    return any("\ud800" <= letter <= "\udfff" for letter in value)


def state_column(kind: type[StrEnum]) -> TypeEngine[Any]:
    """Make the type of a column that holds one of a few words.

    Args:
        kind: The words.

    Returns:
        Text on every database, so that a new word needs no new type.
    """
    return Enum(
        kind,
        native_enum=False,
        create_constraint=False,
        length=16,
        values_callable=lambda members: [member.value for member in members],
    )


def one_of(kind: type[StrEnum]) -> CheckConstraint:
    """Make the constraint that a column called `state` holds one of a few words.

    Args:
        kind: The words.

    Returns:
        The constraint.
    """
    values = ", ".join(f"'{member.value}'" for member in kind)
    return CheckConstraint(f"state IN ({values})", name="state_known")
