"""Evidence as the ledger keeps it: how much each place of an image speaks for its diagnosis, in some hundred bytes."""

import math
import struct
from collections.abc import Sequence
from itertools import chain
from typing import Final

#: Height and width; the values follow row by row as IEEE 754 half precision, three digits each, lowest byte first.
_HEAD: Final = struct.Struct("<BB")

#: Largest number of half precision.
_MOST: Final = 65504.0


def pack_evidence(rows: Sequence[Sequence[float]]) -> bytes | None:
    """Pack a map for the ledger.

    Args:
        rows: At most 255 rows of equal length, at most 255 values each, in logits; beyond half precision's range they
            are cut to it.

    Returns:
        The bytes, or None where a value is not finite: such a map says nothing.
    """
    values = list(chain.from_iterable(rows))
    if not all(map(math.isfinite, values)):
        return None
    head, form = _HEAD.pack(len(rows), len(rows[0])), f"<{len(values)}e"
    try:
        return head + struct.pack(form, *values)
    except OverflowError:
        return head + struct.pack(form, *(max(-_MOST, min(_MOST, value)) for value in values))


def unpack_evidence(packed: bytes) -> list[tuple[float, ...]]:
    """Unpack what `pack_evidence` packed.

    Args:
        packed: From the ledger.

    Returns:
        The rows.

    Raises:
        ValueError: If it is nothing that was packed so.
    """
    try:
        height, width = _HEAD.unpack_from(packed)
        values = struct.unpack(f"<{height * width}e", packed[_HEAD.size :])
    except struct.error as error:
        raise ValueError("This is no map of evidence.") from error
    if not values:
        raise ValueError("This is no map of evidence.")
    return [values[start : start + width] for start in range(0, len(values), width)]
