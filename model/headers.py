"""Headers of untrusted JPEG and PNG files: what they would cost to decode, before a decoder is asked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from model.errors import RejectedImage, RejectReason

#: Longest description before a JPEG's pixels, bytes: a colour profile, a preview and a depth map have room. Pillow
#: joins EXIF blocks one by one, which takes 20 s for 50 MB of them and less than half a second for these.
_MAX_HEADER_BYTES: Final = 8_000_000
#: Most segments of a JPEG, and most bytes between them.
_MAX_SEGMENTS: Final = 10_000
#: Most chunks of a PNG; Pillow reads 250 000 a second. The usual 8 KB each make 400 MB of a file.
_MAX_CHUNKS: Final = 50_000
#: Each scan of a JPEG passes over the whole image again; an ordinary progressive one has about ten.
_MAX_SCANS: Final = 64

_JPEG: Final = b"\xff\xd8"
_PNG: Final = b"\x89PNG\r\n\x1a\n"
_START_OF_SCAN: Final = 0xDA
#: Table B.1: with either coding, and the differential ones.
_PROGRESSIVE: Final = frozenset({0xC2, 0xC6, 0xCA, 0xCE})
#: Frame headers (ITU-T T.81, table B.1): C4, C8 and CC in between mean something else.
_FRAMES: Final = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})
#: Markers that stand alone, without a length.
_ALONE: Final = frozenset({0x00, 0x01, *range(0xD0, 0xDA), 0xFF})


@dataclass(frozen=True, slots=True, kw_only=True)
class _Frame:
    """A JPEG's frame header."""

    progressive: bool
    components: int
    coefficient_bytes: int


def coefficient_bytes(data: bytes) -> int:
    """Say how much a decoder holds besides the pixels, and refuse a file that would keep it busy for seconds.

    A JPEG whose components come in several scans is held as 16-bit coefficients until the last of them (ITU-T T.81,
    annex G); every other file is decoded as it is read.

    Args:
        data: The file's bytes; anything.

    Returns:
        Bytes; 0 for whatever is no such JPEG.

    Raises:
        RejectedImage: Its header is longer, or it is cut into more pieces, than any camera's.
    """
    if data.startswith(_JPEG):
        return _walk_jpeg(data)
    if data.startswith(_PNG):
        _walk_png(data)
    return 0


def _walk_jpeg(data: bytes) -> int:
    frame: _Frame | None = None
    at = len(_JPEG)
    for _ in range(_MAX_SEGMENTS):
        if at > _MAX_HEADER_BYTES:
            break
        if at + 4 > len(data):
            return 0
        marker = data[at + 1]
        if data[at] != 0xFF or marker in _ALONE:  # noqa: PLR2004 - what every marker begins with
            # Junk and padding: a decoder skips it byte by byte.
            at += 1
            continue
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        if marker in _FRAMES:
            frame = _read_frame(data[at + 4 : at + 2 + length], progressive=marker in _PROGRESSIVE)
        elif marker == _START_OF_SCAN:
            return _scans(data, at, frame)
        at += 2 + length
    raise RejectedImage(RejectReason.TOO_COSTLY)


def _read_frame(header: bytes, *, progressive: bool) -> _Frame | None:
    # Precision, height, width, number of components, and for each its name, its sampling and its table.
    if len(header) < 6:  # noqa: PLR2004 - all up to the components
        return None
    height, width, components = int.from_bytes(header[1:3], "big"), int.from_bytes(header[3:5], "big"), header[5]
    sampling = [(byte >> 4 or 1, byte & 15 or 1) for byte in header[7 : 6 + 3 * components : 3]]
    if not sampling:
        return None
    widest, highest = max(wide for wide, _ in sampling), max(high for _, high in sampling)
    area = sum(wide * high for wide, high in sampling) / (widest * highest)
    return _Frame(progressive=progressive, components=components, coefficient_bytes=int(2 * width * height * area))


def _scans(data: bytes, at: int, frame: _Frame | None) -> int:
    if frame is None or at + 4 >= len(data):
        return 0
    if not frame.progressive and data[at + 4] == frame.components:
        # All in one scan: a decoder is done after it, and refuses another.
        return 0
    # Within coded pixels FF is always followed by 00, so this counts scans, those of a second picture among them.
    if data.count(bytes((0xFF, _START_OF_SCAN)), at) > _MAX_SCANS:
        raise RejectedImage(RejectReason.TOO_COSTLY)
    return frame.coefficient_bytes


def _walk_png(data: bytes) -> None:
    at = len(_PNG)
    for _ in range(_MAX_CHUNKS):
        if at + 8 > len(data):
            return
        # Length, kind, content, checksum.
        at += 12 + int.from_bytes(data[at : at + 4], "big")
    raise RejectedImage(RejectReason.TOO_COSTLY)
