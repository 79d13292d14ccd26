"""Headers of the pictures within DICOM objects: what a decoder would believe, read before it is asked."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

#: Adobe's marker with its last byte missing: 0 says RGB, 1 YCbCr (Adobe Technical Note 5116).
_ADOBE: Final = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00"
#: The start of a JPEG 2000 (ITU-T T.800, A.4.1 and A.5.1): SOC, SIZ, and up to the number of components.
_SIZ: Final = struct.Struct(">4sHHIIIIIIIIH")
_SIZ_STARTS: Final = b"\xff\x4f\xff\x51"


@dataclass(frozen=True, slots=True, kw_only=True)
class Jpeg2000Header:
    """What a JPEG 2000 says of itself."""

    width: int
    height: int
    components: int
    #: Bits of the samples; all components have the same, are not subsampled and have no sign.
    bits: int


def say_colours(encoded: bytes, *, rgb: bool) -> bytes:
    """Tell a decoder what the three components are, where the JPEG itself does not.

    Without JFIF's and Adobe's markers a decoder goes by the names of the components; the DICOM header knows better.

    Args:
        encoded: A JPEG of three components.
        rgb: Whether they are red, green and blue rather than luminance and chrominance.

    Returns:
        The JPEG, with Adobe's marker where it had neither.
    """
    at = 2
    while encoded[at : at + 1] == b"\xff" and at + 4 <= len(encoded):
        marker, length = encoded[at + 1], int.from_bytes(encoded[at + 2 : at + 4], "big")
        segment = encoded[at + 4 : at + 9]
        if (marker, segment) in {(0xE0, b"JFIF\0"), (0xEE, b"Adobe")}:
            return encoded
        if marker in range(0xC0, 0xC4) or marker == 0xDA or length < 2:  # noqa: PLR2004 - the picture; a broken segment
            break
        at += 2 + length
    return encoded[:2] + _ADOBE + (b"\x00" if rgb else b"\x01") + encoded[2:]


def read_jpeg_ls_header(encoded: bytes) -> tuple[int, int, int] | None:
    """Read height, width and number of components of a JPEG-LS; None where it does not begin like one."""
    # ITU-T T.87, C.1: FF D8, perhaps applications' segments and comments, and the frame's header FF F7.
    at = 2
    while encoded[at : at + 1] == b"\xff" and at + 10 <= len(encoded):
        marker, length = encoded[at + 1], int.from_bytes(encoded[at + 2 : at + 4], "big")
        if marker == 0xF7:  # noqa: PLR2004 - the frame's header
            return struct.unpack_from(">xHHB", encoded, at + 4)
        if marker not in {*range(0xE0, 0xF0), 0xFE} or length < 2:  # noqa: PLR2004 - a segment's own length
            break
        at += 2 + length
    return None


def read_jpeg_2000_header(encoded: bytes) -> Jpeg2000Header | None:
    """Read the size of a JPEG 2000 codestream; None where it is none, or its components differ, or have a sign."""
    if not encoded.startswith(_SIZ_STARTS) or len(encoded) < _SIZ.size:
        return None
    _, _, _, right, bottom, left, top, _, _, _, _, components = _SIZ.unpack_from(encoded)
    kinds = encoded[_SIZ.size : _SIZ.size + 3 * components]
    # Bits less one with the sign in the highest, and the subsampling in both directions.
    if not components or kinds != bytes((kinds[0] & 0x7F, 1, 1)) * components:
        return None
    return Jpeg2000Header(width=right - left, height=bottom - top, components=components, bits=kinds[0] + 1)
