"""Walks the data elements of an untrusted DICOM file, without recursion and without believing a length."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass, field
from typing import Final

from model.errors import RejectedImage, RejectReason

#: PS3.10, 7.1: 128 bytes of anything, four letters, and then the file meta information in explicit VR little endian.
_MAGIC: Final = b"DICM"
_MAGIC_AT: Final = 128
#: What other files begin with: a JPEG with these four letters in it stays one.
_OTHERS: Final = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")

#: Transfer syntaxes that say how elements are written (PS3.5, annex A); all others are explicit VR little endian.
IMPLICIT: Final = "1.2.840.10008.1.2"
EXPLICIT: Final = "1.2.840.10008.1.2.1"
DEFLATED: Final = "1.2.840.10008.1.2.1.99"
BIG_ENDIAN: Final = "1.2.840.10008.1.2.2"

#: Most elements of a file: an enhanced object of a thousand frames has fewer, and the walk takes a microsecond each.
_MAX_ELEMENTS: Final = 500_000
#: Deepest nesting of sequences of undefined length; a structured report has a dozen.
_MAX_DEPTH: Final = 64
#: Longest value that is kept beside the pixels: a palette of 65 536 entries of 16 bits.
_MAX_VALUE_BYTES: Final = 1 << 17
#: Most bytes of a deflated object: zlib holds it twice while it grows.
_MAX_INFLATED_BYTES: Final = 120_000_000

#: PS3.5, 7.1.1.
_UNDEFINED: Final = 0xFFFFFFFF
#: Value representations with four bytes of length (PS3.5, 7.1.2).
_LONG: Final = frozenset({b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"})
_ITEM: Final = 0xFFFEE000
_DELIMITERS: Final = frozenset({0xFFFEE00D, 0xFFFEE0DD})

TRANSFER_SYNTAX: Final = 0x00020010
PIXEL_DATA: Final = 0x7FE00010
_LAST_META: Final = 0x0002FFFF


@dataclass(slots=True, kw_only=True)
class Elements:
    """The elements of the outermost data set, their values unread.

    Attributes:
        data: The object's bytes, inflated where they were deflated.
        syntax: Transfer syntax UID.
        big: Whether numbers are written big end first.
        values: Tag to value; the first one where a tag is there twice, and what is short enough only.
        pixels: Where the pixel data begin and end in `data`; the end is None where they are encapsulated.
        words: Whether the pixel data are written as words of 16 bits, which matters where the big end comes first.
    """

    data: bytes = field(repr=False)
    syntax: str
    big: bool
    values: dict[int, bytes] = field(default_factory=dict, repr=False)
    pixels: tuple[int, int | None] | None = None
    words: bool = False

    def keep(self, tag: int, at: int, length: int) -> None:
        """Note an element's value, unless it is long or its tag was there before."""
        if length <= _MAX_VALUE_BYTES:
            self.values.setdefault(tag, self.data[at : at + length])

    def text(self, tag: int) -> str | None:
        """Read a text, the first of several, without the blanks around it; None where it is missing or empty."""
        value = self.values.get(tag, b"").split(b"\\")[0].decode("ascii", "replace")
        return value.strip(" \0") or None

    def number(self, tag: int) -> int | None:
        """Read an unsigned 16-bit number, the first of several."""
        value = self.values.get(tag, b"")
        return int.from_bytes(value[:2], "big" if self.big else "little") if len(value) > 1 else None

    def decimal(self, tag: int) -> float | None:
        """Read a number that is written as text (DS or IS).

        Raises:
            RejectedImage: It is there and is no number.
        """
        text = self.text(tag)
        try:
            return None if text is None else float(text)
        except ValueError:
            raise RejectedImage(RejectReason.UNREADABLE) from None


def is_dicom(data: bytes) -> bool:
    """Say whether a file's bytes claim to be a DICOM object (PS3.10)."""
    return data[_MAGIC_AT : _MAGIC_AT + len(_MAGIC)] == _MAGIC and not data.startswith(_OTHERS)


def read_elements(data: bytes) -> Elements:
    """Find the elements of a DICOM file up to its pixel data.

    Args:
        data: The file's bytes; anything that `is_dicom` says yes to.

    Returns:
        The elements; without pixels where there are none.

    Raises:
        RejectedImage: The file is broken, cut off, inflates to more than 120 MB, or is cut into more elements than any
            camera's.
    """
    start = _end_of_meta(data)
    meta = Elements(data=data[:start], syntax=EXPLICIT, big=False)
    start = _walk(meta, _MAGIC_AT + len(_MAGIC), implicit=False, until=_LAST_META)
    syntax = meta.text(TRANSFER_SYNTAX)
    if syntax is None:
        raise RejectedImage(RejectReason.UNREADABLE)
    if syntax == DEFLATED:
        data, start = _inflate(data[start:]), 0
    elements = Elements(data=data, syntax=syntax, big=syntax == BIG_ENDIAN)
    _walk(elements, start, implicit=syntax == IMPLICIT, until=PIXEL_DATA)
    return elements


def _end_of_meta(data: bytes) -> int:
    # PS3.10, 7.1: the meta information begins with its own length, (0002,0000) UL. What follows may be deflated.
    at = _MAGIC_AT + len(_MAGIC)
    if data[at : at + 8] != b"\x02\0\0\0UL\x04\0":
        return len(data)
    return at + 12 + int.from_bytes(data[at + 8 : at + 12], "little")


def _inflate(data: bytes) -> bytes:
    # PS3.5, A.5: without zlib's header.
    stream = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        inflated = stream.decompress(data, _MAX_INFLATED_BYTES + 1)
    except zlib.error:
        raise RejectedImage(RejectReason.TRUNCATED) from None
    if len(inflated) > _MAX_INFLATED_BYTES:
        raise RejectedImage(RejectReason.TOO_COSTLY)
    return inflated


def _walk(into: Elements, at: int, *, implicit: bool, until: int) -> int:
    """Note elements from a place on, up to the first one behind a tag; returns where that begins."""
    data, end = into.data, len(into.data)
    # Of each sequence and item that is open: whether what is around it is implicit.
    around: list[bool] = []
    for _ in range(_MAX_ELEMENTS):
        if at + 8 > end:
            return at
        if not around and _read_tag(into, at) > until:
            return at
        tag, value_at, length, kind = _read_header(data, at, implicit=implicit, big=into.big)
        if tag in _DELIMITERS:
            implicit, at = around.pop() if around else implicit, value_at
        elif tag == PIXEL_DATA and not around:
            into.pixels = value_at, None if length == _UNDEFINED else value_at + length
            into.words = kind == b"OW"
            return at
        elif length == _UNDEFINED:
            # What a value representation that is not known holds is written in implicit VR (PS3.5, 6.2.2).
            around.append(implicit)
            implicit = implicit or kind == b"UN"
            if len(around) > _MAX_DEPTH:
                raise RejectedImage(RejectReason.TOO_COSTLY)
            at = value_at
        else:
            if value_at + length > end:
                raise RejectedImage(RejectReason.TRUNCATED)
            if not around:
                into.keep(tag, value_at, length)
            at = value_at + length
    raise RejectedImage(RejectReason.TOO_COSTLY)


def _read_tag(elements: Elements, at: int) -> int:
    group, element = struct.unpack_from(">HH" if elements.big else "<HH", elements.data, at)
    return int(group << 16 | element)


def _read_header(data: bytes, at: int, *, implicit: bool, big: bool) -> tuple[int, int, int, bytes]:
    """Read tag, place and length of the value, and value representation."""
    order = ">" if big else "<"
    group, element = struct.unpack_from(f"{order}HH", data, at)
    tag = group << 16 | element
    kind = b"" if implicit or tag == _ITEM or tag in _DELIMITERS else data[at + 4 : at + 6]
    if not kind:
        return tag, at + 8, struct.unpack_from(f"{order}I", data, at + 4)[0], kind
    if not (kind.isalpha() and kind.isupper()):
        raise RejectedImage(RejectReason.UNREADABLE)
    if kind not in _LONG:
        return tag, at + 8, struct.unpack_from(f"{order}H", data, at + 6)[0], kind
    if at + 12 > len(data):
        raise RejectedImage(RejectReason.TRUNCATED)
    return tag, at + 12, struct.unpack_from(f"{order}I", data, at + 8)[0], kind


def read_fragments(elements: Elements) -> tuple[bytes, list[tuple[int, int]]]:
    """Find the fragments of encapsulated pixel data (PS3.5, A.4).

    Args:
        elements: Whose pixels are encapsulated.

    Returns:
        The basic offset table, and the place and length of each fragment, which lies behind its eight bytes of header.

    Raises:
        RejectedImage: They are broken or cut off, or there are too many.
    """
    data, at = elements.data, elements.pixels[0] if elements.pixels else 0
    items: list[tuple[int, int]] = []
    for _ in range(_MAX_ELEMENTS):
        if at + 8 > len(data):
            # Some writers forget the delimiter; a fragment that is cut off is found below.
            break
        tag, value_at, length, _ = _read_header(data, at, implicit=True, big=elements.big)
        if tag != _ITEM:
            break
        if value_at + length > len(data):
            raise RejectedImage(RejectReason.TRUNCATED)
        items.append((value_at, length))
        at = value_at + length
    else:
        raise RejectedImage(RejectReason.TOO_COSTLY)
    if len(items) < 2:  # noqa: PLR2004 - the offset table and one fragment
        raise RejectedImage(RejectReason.TRUNCATED)
    (table_at, table_length), *fragments = items
    return data[table_at : table_at + table_length], fragments
