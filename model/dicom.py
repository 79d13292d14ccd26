"""Finds the pixels of one frame of an untrusted DICOM object, and opens no image itself.

What is coded as JPEG or JPEG 2000 is given back as it is, for the one door to decode; everything else as rows of RGB
that are made when they are asked for, so that nothing is allocated for what a header only claims.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from model import dicom_pixels
from model.dicom_codestreams import read_jpeg_2000_header, read_jpeg_ls_header, say_colours
from model.dicom_elements import BIG_ENDIAN, DEFLATED, EXPLICIT, IMPLICIT, Elements, read_elements, read_fragments
from model.errors import RejectedImage, RejectReason

Rows = Callable[[int, int], NDArray[np.uint8]]

#: Photographs of skin (PS3.4, B.5): Secondary Capture and its multi-frame forms, VL Photographic and Dermoscopic
#: Photography Image Storage. `producer.dicom` has the same list.
SOP_CLASSES: Final = frozenset(
    {
        *(f"1.2.840.10008.5.1.4.1.1.7{form}" for form in ("", ".1", ".2", ".3", ".4")),
        "1.2.840.10008.5.1.4.1.1.77.1.4",
        "1.2.840.10008.5.1.4.1.1.77.1.7",
    }
)

#: Transfer syntaxes of encapsulated pixels (PS3.5, A.4). JPEG extended is that of 8 bits; Pillow has no other.
_JPEG: Final = frozenset({"1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51"})
_JPEG_2000: Final = frozenset({"1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.91"})
_JPEG_LS: Final = frozenset({"1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.81"})
_RLE: Final = "1.2.840.10008.1.2.5"
_NATIVE: Final = frozenset({IMPLICIT, EXPLICIT, DEFLATED, BIG_ENDIAN})

_SOP_CLASS: Final = 0x00080016
_SAMPLES: Final = 0x00280002
_PHOTOMETRIC: Final = 0x00280004
_PLANAR: Final = 0x00280006
_FRAMES: Final = 0x00280008
_ROWS: Final = 0x00280010
_COLUMNS: Final = 0x00280011
_EXTENDED_OFFSETS: Final = 0x7FE00001

_GREY: Final = frozenset({"MONOCHROME1", "MONOCHROME2"})
_PALETTE: Final = "PALETTE COLOR"
_RGB: Final = "RGB"
_YBR: Final = "YBR_FULL"
_YBR_422: Final = "YBR_FULL_422"
#: What the pixels of each kind of syntax may be (PS3.5, 8.2); a JPEG 2000 turns its own YBR into RGB.
_KNOWN: Final = frozenset({*_GREY, _PALETTE, _RGB, _YBR, _YBR_422})
_KNOWN_JPEG_2000: Final = frozenset({*_GREY, _PALETTE, _RGB, "YBR_ICT", "YBR_RCT"})

_COLOURS: Final = 3
#: A JPEG begins with FF D8, a JPEG 2000 with FF 4F FF 51.
_STARTS: Final = (b"\xff\xd8\xff", b"\xff\x4f\xff\x51")


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """The pixels of one frame, as far as they are decoded.

    Attributes:
        width: As the header has it, in pixels.
        height: As the header has it, in pixels.
        rows: Gives `(n, width, 3)` uint8 RGB of the rows from one up to another; None of what is encoded.
        encoded: A JPEG or JPEG 2000.
        codings: The decoders that may see it, by Pillow's names.
        table: What the samples of a grey or indexed `encoded` mean, `(256,)`, `(65536,)` or the same by 3 uint8; None
            where the picture shows what is meant.
    """

    width: int
    height: int
    rows: Rows | None = field(default=None, repr=False)
    encoded: bytes = field(default=b"", repr=False)
    codings: tuple[str, ...] = ("JPEG",)
    table: NDArray[np.uint8] | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layout:
    """What the header says about every frame."""

    width: int
    height: int
    frames: int
    samples: int
    photometric: str
    planar: bool
    sample_bytes: int

    @property
    def pixels(self) -> int:
        return self.width * self.height

    @property
    def frame_bytes(self) -> int:
        if self.photometric == _YBR_422:
            return 2 * self.pixels
        return self.pixels * self.samples * self.sample_bytes


def find_frame(data: bytes, frame: int | None, *, max_pixels: int, max_bytes: int) -> Frame:
    """Find one frame of a DICOM object; all limits are checked before anything is allocated for the pixels.

    Args:
        data: The file's bytes, which `is_dicom` says yes to.
        frame: Which, from 1; None of an object that has but one.
        max_pixels: More are refused.
        max_bytes: Most memory beside the file.

    Returns:
        The frame.

    Raises:
        RejectedImage: The object is broken or cut off, is no photograph, is written in a way that is not read here, or
            is larger than allowed.
    """
    elements = read_elements(data)
    if elements.pixels is None:
        raise RejectedImage(RejectReason.NOT_AN_IMAGE)
    if elements.text(_SOP_CLASS) not in SOP_CLASSES:
        raise RejectedImage(RejectReason.UNSUPPORTED_FORMAT)
    layout = _read_layout(elements)
    if layout.pixels > max_pixels:
        raise RejectedImage(RejectReason.TOO_MANY_PIXELS)
    if frame is None and layout.frames > 1:
        # Nobody said which, and the first one would stand for all.
        raise RejectedImage(RejectReason.UNSUPPORTED_FORMAT)
    index = 0 if frame is None else frame - 1
    if not 0 <= index < layout.frames:
        raise RejectedImage(RejectReason.TRUNCATED)
    if elements.syntax in _NATIVE:
        return _native(elements, layout, index)
    return _unpack(elements, layout, index, max_bytes)


def _unpack(elements: Elements, layout: _Layout, index: int, max_bytes: int) -> Frame:
    if elements.pixels is None or elements.pixels[1] is not None:
        raise RejectedImage(RejectReason.UNREADABLE)
    if elements.syntax in _JPEG | _JPEG_2000:
        return _pass_on(elements, layout, index, max_bytes)
    if elements.syntax in _JPEG_LS or elements.syntax == _RLE:
        if 2 * layout.frame_bytes > max_bytes:
            # Decoded whole, and once more while its pieces are put together.
            raise RejectedImage(RejectReason.TOO_COSTLY)
        decode = _decode_jpeg_ls if elements.syntax in _JPEG_LS else _decode_rle
        return _shown(elements, layout, decode(_encapsulated(elements, layout, index), layout))
    raise RejectedImage(RejectReason.UNSUPPORTED_FORMAT)


def _read_layout(elements: Elements) -> _Layout:
    width, height = elements.number(_COLUMNS), elements.number(_ROWS)
    samples, photometric = elements.number(_SAMPLES), elements.text(_PHOTOMETRIC)
    frames = elements.decimal(_FRAMES)
    if not width or not height or samples is None or photometric is None or (frames is not None and not frames >= 1):
        raise RejectedImage(RejectReason.UNREADABLE)
    known = _KNOWN_JPEG_2000 if elements.syntax in _JPEG_2000 else _KNOWN
    if photometric not in known:
        raise RejectedImage(RejectReason.UNSUPPORTED_FORMAT)
    coloured = photometric not in _GREY and photometric != _PALETTE
    allocated, _, _ = dicom_pixels.read_bits(elements)
    if samples != (_COLOURS if coloured else 1):
        raise RejectedImage(RejectReason.UNREADABLE)
    if photometric in {_YBR, _YBR_422} and allocated != dicom_pixels.BYTE:
        raise RejectedImage(RejectReason.UNSUPPORTED_FORMAT)
    return _Layout(
        width=width,
        height=height,
        frames=1 if frames is None else int(min(frames, 1 << 31)),
        samples=samples,
        photometric=photometric,
        planar=elements.number(_PLANAR) == 1,
        sample_bytes=allocated // 8,
    )


def _native(elements: Elements, layout: _Layout, index: int) -> Frame:
    start, stop = elements.pixels or (0, 0)
    if stop is None:
        raise RejectedImage(RejectReason.UNREADABLE)
    at = start + index * layout.frame_bytes
    if at + layout.frame_bytes > min(stop, len(elements.data)):
        raise RejectedImage(RejectReason.TRUNCATED)
    height, width, data = layout.height, layout.width, elements.data
    if elements.big and elements.words and layout.sample_bytes == 1:
        # Two bytes a word, the second first (PS3.5, 8.1.1).
        data, at = data[start : stop + stop % 2], at - start
        data = np.frombuffer(data[: len(data) // 2 * 2], ">u2").astype("<u2").tobytes()
    if layout.photometric == _YBR_422:
        if width % 2 or layout.planar:
            raise RejectedImage(RejectReason.UNREADABLE)
        pairs = np.frombuffer(data, np.uint8, layout.frame_bytes, at).reshape(height, width // 2, 4)
        return Frame(
            width=width,
            height=height,
            rows=lambda top, bottom: dicom_pixels.to_rgb(dicom_pixels.spread_chroma(pairs[top:bottom])),
        )
    kind = np.dtype(np.uint8 if layout.sample_bytes == 1 else np.uint16).newbyteorder(">" if elements.big else "<")
    stored = np.frombuffer(data, kind, layout.pixels * layout.samples, at)
    if layout.planar:
        return _shown(elements, layout, np.moveaxis(stored.reshape(layout.samples, height, width), 0, -1))
    return _shown(elements, layout, stored.reshape(height, width, layout.samples))


def _shown(elements: Elements, layout: _Layout, stored: NDArray[np.integer]) -> Frame:
    """Show `(height, width, samples)` stored samples; a view of them will do."""
    table = _table(elements, layout)

    def rows(top: int, bottom: int) -> NDArray[np.uint8]:
        band = stored[top:bottom]
        shown = band if table is None else table[band if layout.samples > 1 else band[..., 0]]
        if layout.photometric in {_YBR, _YBR_422}:
            shown = dicom_pixels.to_rgb(np.asarray(shown, np.uint8))
        elif layout.photometric in _GREY:
            shown = np.repeat(shown.reshape(*shown.shape[:2], 1), _COLOURS, axis=2)
        return np.ascontiguousarray(shown, np.uint8)

    return Frame(width=layout.width, height=layout.height, rows=rows)


def _table(elements: Elements, layout: _Layout) -> NDArray[np.uint8] | None:
    """Make the table of what stored samples mean, or None where they mean what they are."""
    if layout.photometric == _PALETTE:
        return dicom_pixels.palette_table(elements)
    if layout.photometric in _GREY:
        table = dicom_pixels.grey_table(elements, inverted=layout.photometric == "MONOCHROME1")
    else:
        table = dicom_pixels.narrow_table(elements)
    return None if np.array_equal(table, np.arange(256)) else table


def _encapsulated(elements: Elements, layout: _Layout, index: int) -> bytes:
    """Join the fragments of a frame (PS3.5, A.4)."""
    table, fragments = read_fragments(elements)
    data, first = elements.data, fragments[0][0] - 8
    offsets = elements.values.get(_EXTENDED_OFFSETS, b"")
    if layout.frames == 1:
        starts = [0]
    elif len(fragments) == layout.frames:
        starts = list(range(layout.frames))
    elif len(table) == 4 * layout.frames or len(offsets) == 8 * layout.frames:
        kind = "I" if len(table) == 4 * layout.frames else "Q"
        places = struct.unpack(f"<{layout.frames}{kind}", table if kind == "I" else offsets)
        numbers = {at - 8 - first: number for number, (at, _) in enumerate(fragments)}
        starts = [numbers.get(place, -1) for place in places]
    else:
        # Nothing says where the frames begin but their own first bytes.
        starts = [number for number, (at, _) in enumerate(fragments) if data.startswith(_STARTS, at)]
    bounds = [*starts, len(fragments)]
    if index + 1 >= len(bounds):
        raise RejectedImage(RejectReason.TRUNCATED)
    if not 0 <= bounds[index] < bounds[index + 1]:
        raise RejectedImage(RejectReason.UNREADABLE)
    return b"".join(data[at : at + length] for at, length in fragments[bounds[index] : bounds[index + 1]])


def _pass_on(elements: Elements, layout: _Layout, index: int, max_bytes: int) -> Frame:
    encoded = _encapsulated(elements, layout, index)
    table = _table(elements, layout) if layout.samples == 1 else None
    if elements.syntax in _JPEG:
        if layout.sample_bytes > 1:
            raise RejectedImage(RejectReason.UNSUPPORTED_FORMAT)
        encoded = say_colours(encoded, rgb=layout.photometric == _RGB) if layout.samples > 1 else encoded
        return Frame(width=layout.width, height=layout.height, encoded=encoded, table=table)
    if 4 * layout.pixels * (layout.samples + 1) > max_bytes:
        # OpenJPEG holds each sample in four bytes, beside the picture.
        raise RejectedImage(RejectReason.TOO_COSTLY)
    header = read_jpeg_2000_header(encoded)
    if header is None:
        raise RejectedImage(RejectReason.UNSUPPORTED_FORMAT)
    if (header.width, header.height, header.components) != (layout.width, layout.height, layout.samples):
        raise RejectedImage(RejectReason.UNREADABLE)
    if layout.samples == 1:
        table = _widened(elements, table, header.bits)
    return Frame(width=layout.width, height=layout.height, encoded=encoded, codings=("JPEG2000",), table=table)


def _widened(elements: Elements, table: NDArray[np.uint8] | None, bits: int) -> NDArray[np.uint8] | None:
    """Make a table of samples one of what Pillow makes of them: it spreads them over all of 8 or 16 bits."""
    full = dicom_pixels.BYTE if bits <= dicom_pixels.BYTE else dicom_pixels.WORD
    if table is None:
        return None
    if elements.number(dicom_pixels.PIXEL_REPRESENTATION) == 1 or 1 << bits > len(table):
        raise RejectedImage(RejectReason.UNSUPPORTED_FORMAT)
    return table[np.arange(1 << full) >> (full - bits)]


def _decode_rle(encoded: bytes, layout: _Layout) -> NDArray[np.integer]:
    planes = dicom_pixels.decode_runs(encoded, layout.samples, layout.sample_bytes, layout.pixels)
    shape = (layout.samples, layout.height, layout.width)
    if layout.sample_bytes == 1:
        return np.moveaxis(planes.reshape(shape), 0, -1)
    return np.moveaxis((planes[:, 0].astype(np.uint16) << 8 | planes[:, 1]).reshape(shape), 0, -1)


def _decode_jpeg_ls(encoded: bytes, layout: _Layout) -> NDArray[np.integer]:
    try:
        import jpeg_ls
    except ImportError:
        raise RejectedImage(RejectReason.UNSUPPORTED_FORMAT) from None
    if read_jpeg_ls_header(encoded) != (layout.height, layout.width, layout.samples):
        # The decoder would believe it and allocate.
        raise RejectedImage(RejectReason.UNREADABLE)
    try:
        decoded, found = jpeg_ls.decode_pixel_data(encoded)
    except (RuntimeError, ValueError, MemoryError):
        raise RejectedImage(RejectReason.TRUNCATED) from None
    kind = np.dtype("u1" if found["bits_per_sample"] <= dicom_pixels.BYTE else "<u2")
    if kind.itemsize != layout.sample_bytes or len(decoded) != layout.pixels * layout.samples * kind.itemsize:
        raise RejectedImage(RejectReason.UNREADABLE)
    stored = np.frombuffer(decoded, kind)
    if found["interleave_mode"] == 0:
        return np.moveaxis(stored.reshape(layout.samples, layout.height, layout.width), 0, -1)
    return stored.reshape(layout.height, layout.width, layout.samples)
