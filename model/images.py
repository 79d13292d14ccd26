"""The one door for pixels: reads untrusted image files, and nothing else imports Pillow."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter, JpegImagePlugin

from model.dicom import Frame, find_frame
from model.dicom_elements import is_dicom
from model.errors import RejectedImage, RejectReason
from model.files import ObjectRoot, read_image_bytes
from model.headers import coefficient_bytes

__all__ = [
    "DecodedImage",
    "ObjectRoot",
    "blur_image",
    "decode_image",
    "decode_measured",
    "encode_image",
    "filter_warnings",
    "measure_image",
    "read_image_bytes",
    "resize_map",
]

T = TypeVar("T")

#: Raised whenever decoding, conversion or resizing changes: it is part of the model's manifest.
PREPROCESSING_VERSION: Final = 1

#: The only decoders that untrusted bytes may reach; without a list an EPS named .jpg starts Ghostscript.
FORMATS: Final = ("JPEG", "PNG")
#: 50 megapixels: above any dermatoscope, and under 200 MB decoded.
MAX_PIXELS: Final = 50_000_000
#: Longest side in pixels: a JPEG's and a DICOM object's headers have no room for more (16 bits). A PNG's have, and a
#: row of 50 megapixels would be resized to one whose columns take a gigabyte.
MAX_SIDE: Final = 65_535
#: Most memory for one image while it is decoded, beside its file: 40 megapixels of a progressive JPEG without
#: subsampling, which is held twice.
MAX_DECODED_BYTES: Final = 240_000_000
#: Pillow keeps a pixel of several bands in four bytes.
_PIXEL_BYTES: Final = 4
#: As many values as a sample of eight bits has.
_BYTE_VALUES: Final = 256

#: Larger images than the target needs, and strips, are converted in bands of about so many pixels: bounds the memory
#: on top of the decoded image.
_BAND_PIXELS: Final = 1_000_000
#: Up to so many an image is converted whole, which may take five times its pixels' bytes.
_WHOLE_PIXELS: Final = 10_000_000
#: What Pillow says of damage beside the pixels: in EXIF, in the index of a second picture, in an animation's.
_BESIDE_THE_PIXELS: Final = r"Image appears to be a malformed MPO|Invalid APNG"


def filter_warnings() -> None:
    """Refuse what Pillow only warns about, and keep an image whose damage lies beside its pixels.

    Filters are not safe to change in decode threads, so it is said once, here, and of Pillow alone.
    """
    warnings.filterwarnings("error", module=r"PIL\.")
    warnings.filterwarnings("ignore", module=r"PIL\.TiffImagePlugin")
    warnings.filterwarnings("ignore", message=_BESIDE_THE_PIXELS, module=r"PIL\.")


filter_warnings()

#: What turns a stored image upright, by EXIF orientation (EXIF 2.32, tag 0x0112); any other value is upright.
_ORIENTATION: Final = 0x0112
_UPRIGHT: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
#: Of those, the ones that swap width and height.
_SIDEWAYS: Final = frozenset({5, 6, 7, 8})

#: Known formats that are not accepted, by their first bytes: "unsupported" helps more than "not an image".
_OTHER_FORMATS: Final = (b"GIF8", b"BM", b"II*\0", b"MM\0*", b"%!PS", b"8BPS", b"RIFF", b"%PDF", b"\xc5\xd0\xd3\xc6")

#: What Pillow's parsers raise on broken bytes.
_BROKEN: Final = (OSError, SyntaxError, ValueError, TypeError, IndexError, KeyError, EOFError, OverflowError)


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodedImage:
    """An image as a network takes it."""

    #: `(height, width, 3)` uint8 RGB.
    pixels: NDArray[np.uint8] = field(repr=False)
    #: Width and height of the image itself as it is seen, upright.
    shown: tuple[int, int]


def decode_image(data: bytes, size: int | tuple[int, int], frame: int | None = None) -> NDArray[np.uint8]:
    """Decode an image as `decode_measured` does.

    Args:
        data: The file's bytes.
        size: Side of the square in pixels, or (width, height).
        frame: Which frame of a DICOM object, from 1; None where it has but one.

    Returns:
        `(height, width, 3)` uint8 RGB.

    Raises:
        RejectedImage: As `decode_measured`.
    """
    return decode_measured(data, size, frame).pixels


def decode_measured(data: bytes, size: int | tuple[int, int], frame: int | None = None) -> DecodedImage:
    """Decode an image, upright and in RGB, and resize the whole of it.

    Rules: EXIF orientation is applied; an alpha channel is laid on white; grey is repeated; 16-bit samples lose
    their lower byte; CMYK (Adobe's inverted form included) and palettes are converted by Pillow. An image of at least
    four times the target is first brought to no less than twice the target: a JPEG by its DCT scale while it is
    decoded, anything else by averaging whole squares. Then every image is resized with an antialiased bilinear filter,
    the filter the models are trained with.

    Args:
        data: The file's bytes.
        size: Side of the square in pixels, or (width, height); the aspect ratio is not kept.
        frame: Which frame of a DICOM object, from 1; None where it has but one.

    Returns:
        Its pixels, and how large it is itself.

    Raises:
        RejectedImage: The bytes are no JPEG, PNG or photograph in DICOM, are broken, hold more than 50 megapixels or
            65 535 pixels in a row or column, or would take more than 240 MB to decode.
    """
    target = (size, size) if isinstance(size, int) else size
    found = _find_frame(data, frame)
    if found.rows is not None:
        return _guard(lambda: _fit_rows(found, target), RejectReason.TRUNCATED)
    coefficients = coefficient_bytes(found.encoded)
    image = _open_checked(found)
    return _guard(lambda: _convert(image, target, coefficients, found.table), RejectReason.TRUNCATED)


def measure_image(data: bytes, frame: int | None = None) -> tuple[int, int]:
    """Measure an image as it is seen, upright.

    Args:
        data: The file's bytes.
        frame: As `decode_image` takes it.

    Returns:
        Width and height in pixels.

    Raises:
        RejectedImage: As `decode_image`, as far as the header shows it.
    """
    found = _find_frame(data, frame)
    if found.rows is not None:
        return found.width, found.height
    image = _open_checked(found)
    if image.format == "PNG":
        # Its EXIF block may follow its pixels.
        _guard(image.load, RejectReason.TRUNCATED)
    return image.size[::-1] if _orientation(image) in _SIDEWAYS else image.size


def _guard(step: Callable[[], T], otherwise: RejectReason) -> T:
    # Pillow raises whatever its parsers meet in broken bytes; each of these is the file's fault.
    try:
        return step()
    except RejectedImage:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning, MemoryError):
        raise RejectedImage(RejectReason.TOO_MANY_PIXELS) from None
    except Warning:
        raise RejectedImage(RejectReason.UNREADABLE) from None
    except (*_BROKEN, struct.error, zlib.error):
        raise RejectedImage(otherwise) from None


def _find_frame(data: bytes, frame: int | None) -> Frame:
    """Find what is to be decoded: of a DICOM object the frame, and of any other file all of it."""
    if is_dicom(data):
        return _guard(
            lambda: find_frame(data, frame, max_pixels=MAX_PIXELS, max_bytes=MAX_DECODED_BYTES), RejectReason.UNREADABLE
        )
    return Frame(width=0, height=0, encoded=data, codings=FORMATS)


def _open_checked(found: Frame) -> Image.Image:
    data = found.encoded
    try:
        image: Image.Image = _guard(
            lambda: Image.open(io.BytesIO(data), formats=found.codings), RejectReason.NOT_AN_IMAGE
        )
    except RejectedImage as rejected:
        if rejected.reason is RejectReason.NOT_AN_IMAGE and data.startswith(_OTHER_FORMATS):
            raise RejectedImage(RejectReason.UNSUPPORTED_FORMAT) from None
        raise
    # From the header alone: nothing is decoded yet.
    if image.width * image.height > MAX_PIXELS or max(image.size) > MAX_SIDE:
        raise RejectedImage(RejectReason.TOO_MANY_PIXELS)
    return image


def _convert(
    image: Image.Image, target: tuple[int, int], coefficients: int, table: NDArray[np.uint8] | None
) -> DecodedImage:
    shown = image.size
    # At least twice the target in both directions, whichever way round EXIF turns it.
    enough = 2 * max(target)
    width, height = float(image.width), float(image.height)
    if isinstance(image, JpegImagePlugin.JpegImageFile) and (drafted := image.draft(None, (enough, enough))):
        width, height = drafted[1][2:]
    if coefficients and coefficients + _PIXEL_BYTES * image.width * image.height > MAX_DECODED_BYTES:
        raise RejectedImage(RejectReason.TOO_COSTLY)
    image.load()
    orientation = _orientation(image)
    if orientation in _SIDEWAYS:
        shown, target = shown[::-1], target[::-1]

    def rows(top: int, bottom: int) -> Image.Image:
        whole = bottom - top == image.height
        return _to_rgb(image if whole else image.crop((0, top, image.width, bottom)), table)

    resized = _fit(image.size, target, rows, (width, height))
    upright = resized.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else resized
    return DecodedImage(pixels=np.asarray(upright, np.uint8), shown=shown)


def _fit_rows(found: Frame, target: tuple[int, int]) -> DecodedImage:
    rows, size = found.rows, (found.width, found.height)
    if rows is None:
        raise RejectedImage(RejectReason.UNREADABLE)
    resized = _fit(size, target, lambda top, bottom: Image.fromarray(rows(top, bottom)), size)
    return DecodedImage(pixels=np.asarray(resized, np.uint8), shown=size)


def _orientation(image: Image.Image) -> int | None:
    # A PNG's EXIF block may follow its pixels, so it is read after them.
    try:
        found: Any = image.getexif().get(_ORIENTATION)
    except (*_BROKEN, struct.error):
        # The picture is there: a broken description of it leaves it as it lies.
        return None
    return found if isinstance(found, int) else None


def _fit(
    size: tuple[int, int],
    target: tuple[int, int],
    rows: Callable[[int, int], Image.Image],
    box: tuple[float, float],
) -> Image.Image:
    """Resize an image, given its RGB rows from one up to another, without ever holding a large one in RGB as it is.

    Args:
        size: Width and height in pixels.
        target: Width and height it gets.
        rows: Gives `(bottom - top, width)` RGB rows.
        box: How much of the width and the height is picture: a JPEG that was drafted may end within its last pixels.
    """
    factor = max(1, min(side // (2 * max(target)) for side in size))
    if factor > 1:
        small = _average_squares(size, factor, rows)
    elif size[0] * size[1] <= _WHOLE_PIXELS:
        small = rows(0, size[1])
    else:
        small = _narrow(size, target[0], rows, box[0])
        box = (target[0], box[1])
    # The last row and column of squares may be cut off by the image's border.
    return small.resize(target, Image.Resampling.BILINEAR, (0, 0, box[0] / factor, box[1] / factor))


def _narrow(size: tuple[int, int], wanted: int, rows: Callable[[int, int], Image.Image], box: float) -> Image.Image:
    """Resize an image's rows alone, a band of them at a time.

    What Pillow does first too, unless columns cost it less: then the last bit may be another than of the whole at once.
    """
    width, height = size
    narrow = Image.new("RGB", (wanted, height))
    band = max(1, _BAND_PIXELS // width)
    for top in range(0, height, band):
        some = rows(top, min(top + band, height))
        shape = (wanted, some.height)
        narrow.paste(some.resize(shape, Image.Resampling.BILINEAR, (0, 0, box, some.height)), (0, top))
    return narrow


def _average_squares(size: tuple[int, int], factor: int, rows: Callable[[int, int], Image.Image]) -> Image.Image:
    """Average an image's squares, given its RGB rows from one up to another."""
    width, height = size
    small = Image.new("RGB", (-(-width // factor), -(-height // factor)))
    band = factor * max(1, _BAND_PIXELS // (width * factor))
    for top in range(0, height, band):
        small.paste(rows(top, min(top + band, height)).reduce(factor), (0, top // factor))
    return small


def _to_rgb(image: Image.Image, table: NDArray[np.uint8] | None = None) -> Image.Image:
    if table is not None:
        # DICOM: what the samples of grey and indexed pictures mean stands in the header.
        samples = np.asarray(image.convert("L") if len(table) <= _BYTE_VALUES else image.convert("I"))
        return Image.fromarray(table[np.clip(samples, 0, len(table) - 1)]).convert("RGB")
    if image.mode.startswith("I"):
        samples = np.asarray(image).astype(np.int64) >> 8
        return Image.fromarray(np.clip(samples, 0, 255).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def resize_map(values: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
    """Resize a map of numbers bilinearly, its first and last values in the middle of where they stand.

    Args:
        values: `(h, w)` float32.
        size: Width and height.

    Returns:
        `(height, width)` float32.
    """
    return np.asarray(Image.fromarray(values.astype(np.float32)).resize(size, Image.Resampling.BILINEAR))


def blur_image(pixels: NDArray[np.uint8], radius: float) -> NDArray[np.uint8]:
    """Blur `(height, width, 3)` uint8 RGB with a Gaussian of so many pixels' standard deviation."""
    return np.asarray(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(radius)), np.uint8)


def encode_image(pixels: NDArray[np.uint8], image_format: str = "JPEG", size: tuple[int, int] | None = None) -> bytes:
    """Encode a picture without metadata.

    Args:
        pixels: `(height, width, 3)` uint8 RGB, or 4 with opacity.
        image_format: One that Pillow writes.
        size: Width and height to resize it to bilinearly before; as it is where not given.

    Returns:
        The file's bytes.
    """
    out = io.BytesIO()
    image = Image.fromarray(pixels)
    (image if size is None else image.resize(size, Image.Resampling.BILINEAR)).save(out, image_format)
    return out.getvalue()
