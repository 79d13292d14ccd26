"""From the stored samples of a DICOM frame to RGB: windows, palettes, luminance and chrominance, run lengths."""

from __future__ import annotations

import itertools
import struct
from typing import Final

import numpy as np
from numpy.typing import NDArray

from model.dicom_elements import Elements
from model.errors import RejectedImage, RejectReason

BITS_ALLOCATED: Final = 0x00280100
BITS_STORED: Final = 0x00280101
HIGH_BIT: Final = 0x00280102
PIXEL_REPRESENTATION: Final = 0x00280103
WINDOW_CENTER: Final = 0x00281050
WINDOW_WIDTH: Final = 0x00281051
WINDOW_FUNCTION: Final = 0x00281056
RESCALE_INTERCEPT: Final = 0x00281052
RESCALE_SLOPE: Final = 0x00281053
#: Red, green and blue.
PALETTE_DESCRIPTORS: Final = (0x00281101, 0x00281102, 0x00281103)
PALETTES: Final = (0x00281201, 0x00281202, 0x00281203)

#: Bits that a sample may take.
BYTE, WORD = 8, 16
#: Most runs of a frame that is coded by run lengths: two seconds of decoding, and more than a photograph of 20
#: megapixels has.
_MAX_RUNS: Final = 8_000_000
#: A header of an RLE frame has the number of segments and fifteen offsets (PS3.5, G.5).
_RLE_HEADER: Final = struct.Struct("<16I")


def read_bits(elements: Elements) -> tuple[int, int, int]:
    """Read how many bits a sample takes, how many of them count, and which is the highest.

    Raises:
        RejectedImage: They are missing or make no sense; or a sample takes neither 8 nor 16 bits.
    """
    allocated = elements.number(BITS_ALLOCATED)
    if allocated is None:
        raise RejectedImage(RejectReason.UNREADABLE)
    if allocated not in {BYTE, WORD}:
        raise RejectedImage(RejectReason.UNSUPPORTED_FORMAT)
    stored = elements.number(BITS_STORED)
    stored = allocated if stored is None else stored
    high = elements.number(HIGH_BIT)
    high = stored - 1 if high is None else high
    if not 0 < stored <= high + 1 <= allocated:
        raise RejectedImage(RejectReason.UNREADABLE)
    return allocated, stored, high


def grey_table(elements: Elements, *, inverted: bool) -> NDArray[np.uint8]:
    """Make the table from a stored sample to a grey of 8 bits.

    The modality rescale (PS3.3, C.11.1) and the linear window (PS3.3, C.11.2.1.2.1) are applied where the object has
    them. Without a window the whole range that can be stored is shown: samples of more than 8 bits lose the lower ones.

    Args:
        elements: The object's.
        inverted: Whether the lowest value is white (MONOCHROME1).

    Returns:
        `(256,)` or `(65536,)` uint8.

    Raises:
        RejectedImage: A number of it makes no sense.
    """
    values, stored = _stored_values(elements)
    window = _window(elements)
    slope, intercept = _finite(elements, RESCALE_SLOPE, 1.0), _finite(elements, RESCALE_INTERCEPT, 0.0)
    if window is None:
        signed = elements.number(PIXEL_REPRESENTATION) == 1
        whole = _narrow(values + (1 << (stored - 1) if signed else 0), stored)
        grey = 255 - whole if slope < 0 else whole
    else:
        center, width = window
        shown = (values * slope + intercept - (center - 0.5)) / max(width - 1, 1e-9) + 0.5
        # Half up, as the picture's other samples are rounded.
        grey = np.floor(np.clip(shown, 0, 1) * 255 + 0.5)
    return np.asarray(255 - grey if inverted else grey, np.uint8)


def narrow_table(elements: Elements) -> NDArray[np.uint8]:
    """Make the table from a stored colour sample to 8 bits: `(256,)` or `(65536,)` uint8."""
    values, stored = _stored_values(elements)
    return np.asarray(_narrow(values, stored), np.uint8)


def _narrow(values: NDArray[np.int64], stored: int) -> NDArray[np.int64]:
    if stored > BYTE:
        return values >> (stored - BYTE)
    return values * 255 // ((1 << stored) - 1)


def _stored_values(elements: Elements) -> tuple[NDArray[np.int64], int]:
    allocated, stored, high = read_bits(elements)
    values = np.arange(1 << allocated, dtype=np.int64) >> (high + 1 - stored) & (1 << stored) - 1
    if elements.number(PIXEL_REPRESENTATION) == 1:
        values = np.where(values >> (stored - 1), values - (1 << stored), values)
    return values, stored


def _window(elements: Elements) -> tuple[float, float] | None:
    if elements.text(WINDOW_FUNCTION) not in {None, "LINEAR"} or elements.text(WINDOW_WIDTH) is None:
        return None
    width = _finite(elements, WINDOW_WIDTH, 0.0)
    # PS3.3, C.11.2.1.2.1: no narrower than 1.
    return (_finite(elements, WINDOW_CENTER, 0.0), width) if width >= 1 else None


def _finite(elements: Elements, tag: int, otherwise: float) -> float:
    number = elements.decimal(tag)
    if number is None:
        return otherwise
    if not abs(number) < 1e12:  # noqa: PLR2004 - sixteen letters can say 1e308, and no sample needs it
        raise RejectedImage(RejectReason.UNREADABLE)
    return number


def palette_table(elements: Elements) -> NDArray[np.uint8]:
    """Make the table from a stored sample to RGB (PS3.3, C.7.6.3.1.5 and C.7.6.3.1.6).

    Returns:
        `(256, 3)` or `(65536, 3)` uint8.

    Raises:
        RejectedImage: The palette is missing, segmented or cut off.
    """
    values, _ = _stored_values(elements)
    columns = []
    for descriptor_tag, palette_tag in zip(PALETTE_DESCRIPTORS, PALETTES, strict=True):
        descriptor, palette = elements.values.get(descriptor_tag, b""), elements.values.get(palette_tag)
        if len(descriptor) < 6 or palette is None:  # noqa: PLR2004 - three numbers
            raise RejectedImage(RejectReason.UNSUPPORTED_FORMAT)
        order = ">" if elements.big else "<"
        signed = elements.number(PIXEL_REPRESENTATION) == 1
        entries, first, bits = struct.unpack_from(f"{order}H{'h' if signed else 'H'}H", descriptor)
        # PS3.3, C.7.6.3.1.5: 65 536 does not fit.
        column = _palette(palette, entries or 1 << WORD, bits, order)
        columns.append(column[np.clip(values - first, 0, len(column) - 1)])
    return np.stack(columns, axis=1)


def _palette(palette: bytes, entries: int, bits: int, order: str) -> NDArray[np.uint8]:
    if bits not in {BYTE, WORD}:
        raise RejectedImage(RejectReason.UNREADABLE)
    if len(palette) < entries * 2:
        # Entries of 8 bits may be packed two in a word.
        if bits == WORD or len(palette) < entries:
            raise RejectedImage(RejectReason.TRUNCATED)
        packed = np.frombuffer(palette[: entries + entries % 2], np.uint8)
        return (packed.reshape(-1, 2)[:, ::-1].ravel() if order == ">" else packed)[:entries]
    words = np.frombuffer(palette, f"{order}u2", entries)
    return (words >> (bits - BYTE) & 255).astype(np.uint8)


def to_rgb(luma: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Turn `(n, w, 3)` uint8 YBR_FULL into RGB (PS3.3, C.7.6.3.1.2)."""
    y, blue, red = (luma[..., band].astype(np.float32) for band in range(3))
    blue -= 128
    red -= 128
    rgb = np.stack([y + 1.402 * red, y - 0.344136 * blue - 0.714136 * red, y + 1.772 * blue], axis=-1)
    return np.clip(rgb + 0.5, 0, 255).astype(np.uint8)


def spread_chroma(pairs: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Give each pixel of YBR_FULL_422 its chrominance: two luminances, then one of each (PS3.3, C.7.6.3.1.2).

    Args:
        pairs: `(n, w / 2, 4)` uint8.

    Returns:
        `(n, w, 3)` uint8.
    """
    rows, half, _ = pairs.shape
    spread = np.empty((rows, half, 2, 3), np.uint8)
    spread[..., 0] = pairs[..., :2]
    spread[..., 1:] = pairs[:, :, None, 2:]
    return spread.reshape(rows, 2 * half, 3)


def decode_runs(data: bytes, samples: int, sample_bytes: int, pixels: int) -> NDArray[np.uint8]:
    """Decode a frame of run lengths (PS3.5, annex G).

    Args:
        data: The frame.
        samples: Of a pixel.
        sample_bytes: Of a sample; its highest byte comes first.
        pixels: Of a frame.

    Returns:
        `(samples, sample_bytes, pixels)` uint8.

    Raises:
        RejectedImage: It is broken, ends before its last pixel, or has more runs than any photograph.
    """
    if len(data) < _RLE_HEADER.size:
        raise RejectedImage(RejectReason.TRUNCATED)
    count, *offsets = _RLE_HEADER.unpack_from(data)
    if count != samples * sample_bytes:
        raise RejectedImage(RejectReason.UNREADABLE)
    bounds = [*offsets[:count], len(data)]
    decoded, runs = [], 0
    for start, stop in itertools.pairwise(bounds):
        if not _RLE_HEADER.size <= start <= stop <= len(data):
            raise RejectedImage(RejectReason.UNREADABLE)
        segment, used = _unpack_bits(data, start, stop, pixels, _MAX_RUNS - runs)
        decoded.append(np.frombuffer(segment, np.uint8, pixels))
        runs += used
    return np.stack(decoded).reshape(samples, sample_bytes, pixels)


def _unpack_bits(data: bytes, at: int, stop: int, wanted: int, most_runs: int) -> tuple[bytearray, int]:
    # PS3.5, G.3.2.
    out = bytearray()
    runs = 0
    while len(out) < wanted:
        if at >= stop:
            raise RejectedImage(RejectReason.TRUNCATED)
        if runs > most_runs:
            raise RejectedImage(RejectReason.TOO_COSTLY)
        runs += 1
        control = data[at]
        if control < 128:  # noqa: PLR2004 - so many bytes as they are, less one
            out += data[at + 1 : min(at + 2 + control, stop)]
            at += control + 2
        elif control > 128:  # noqa: PLR2004 - one byte, repeated; 128 itself says nothing
            out += data[at + 1 : at + 2] * (257 - control)
            at += 2
        else:
            at += 1
    return out, runs
