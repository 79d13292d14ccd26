"""The one door for pixels: reads untrusted image files, and nothing else imports Pillow."""

from __future__ import annotations

import errno
import io
import os
import stat
import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter, JpegImagePlugin

from model.errors import ArchiveUnavailable, RejectedImage, RejectReason
from model.headers import coefficient_bytes

#: Raised whenever decoding, conversion or resizing changes: it is part of the model's manifest.
PREPROCESSING_VERSION: Final = 1

#: The only decoders that untrusted bytes may reach; without a list an EPS named .jpg starts Ghostscript.
FORMATS: Final = ("JPEG", "PNG")
#: 50 megapixels: above any dermatoscope, and under 200 MB decoded.
MAX_PIXELS: Final = 50_000_000
#: Most memory for one image while it is decoded, beside its file: 40 megapixels of a progressive JPEG without
#: subsampling, which is held twice.
MAX_DECODED_BYTES: Final = 240_000_000
#: Pillow keeps a pixel of several bands in four bytes.
_PIXEL_BYTES: Final = 4

#: Larger images than the target needs are converted in bands of about so many pixels: bounds the memory on top of
#: the decoded image.
_BAND_PIXELS: Final = 1_000_000
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

#: Errors of the file system under the archive rather than of one file.
_AWAY: Final = frozenset({errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT, errno.EHOSTDOWN})
#: Errors of this process or host: they pass.
_EXHAUSTED: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EINTR, errno.EAGAIN})


class ObjectRoot(Protocol):
    """The root of an archive that is no folder; `worker.objects.ObjectFolder` is one."""

    def read(self, relative: str, limit: int) -> bytes:
        """Read at most so many bytes of an object; OSError with the number a file system would have."""

    def answers(self) -> bool:
        """Say whether the root answers and has anything in it."""


def read_image_bytes(root: Path | ObjectRoot, relative: str, *, max_bytes: int) -> bytes:
    """Read one file of an archive without following a link out of it.

    Every folder on the way is opened without following links, so that a path swapped after submit leads nowhere.

    Args:
        root: The archive's root, a folder or a place on object storage.
        relative: Path below it, with forward slashes.
        max_bytes: Larger files are refused unread.

    Returns:
        The file's bytes.

    Raises:
        RejectedImage: The path is unsafe, or the file missing, not regular, empty, too large or unreadable.
        ArchiveUnavailable: The root itself does not answer.
    """
    parts = _safe_parts(relative)
    if not isinstance(root, Path):
        return _read_object(root, relative, parts, max_bytes)
    folder = _open_root(root)
    try:
        for part in parts[:-1]:
            below = _open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, folder)
            os.close(folder)
            folder = below
        # Non-blocking: a FIFO named .jpg must not hold the worker.
        file = _open(parts[-1], os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, folder)
    except RejectedImage as rejected:
        if rejected.reason is RejectReason.MISSING_IMAGE:
            _check_root(root)
        raise
    finally:
        os.close(folder)
    try:
        return _read_regular(file, max_bytes)
    finally:
        os.close(file)


def _read_object(root: ObjectRoot, relative: str, parts: tuple[str, ...], max_bytes: int) -> bytes:
    if relative != "/".join(parts):
        # `a//b` and `./b` are other objects than `a/b` and `b`, where a folder has one file for both.
        raise RejectedImage(RejectReason.UNSAFE_PATH)
    try:
        data = root.read(relative, max_bytes + 1)
    except OSError as error:
        # What is missing or refused is so for the whole root where a bucket is gone or a password has changed.
        if error.errno in {errno.ENOENT, errno.EACCES} and not root.answers():
            raise ArchiveUnavailable("The archive's root is empty or does not answer.") from None
        raise _translate(error) from None
    return _check_size(data, max_bytes)


def _safe_parts(relative: str) -> tuple[str, ...]:
    try:
        # A lone surrogate names no file on any file system.
        os.fsencode(relative)
    except UnicodeEncodeError:
        raise RejectedImage(RejectReason.UNSAFE_PATH) from None
    path = PurePosixPath(relative)
    if not relative or "\0" in relative or path.is_absolute() or not path.parts or ".." in path.parts:
        raise RejectedImage(RejectReason.UNSAFE_PATH)
    return path.parts


def _open_root(root: Path) -> int:
    try:
        return os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise ArchiveUnavailable(
            f"The archive's root does not answer ({errno.errorcode.get(error.errno or 0)})."
        ) from None


def _check_root(root: Path) -> None:
    # "Missing" is said only while the root answers and is not an empty mount point.
    try:
        with os.scandir(root) as entries:
            if next(entries, None) is not None:
                return
    except OSError:
        pass
    raise ArchiveUnavailable("The archive's root is empty or does not answer.")


def _open(name: str, flags: int, folder: int) -> int:
    try:
        return os.open(name, flags | os.O_CLOEXEC, dir_fd=folder)
    except OSError as error:
        raise _translate(error) from None


def _translate(error: OSError) -> RejectedImage | ArchiveUnavailable:
    if error.errno in _AWAY or error.errno in _EXHAUSTED:
        return ArchiveUnavailable(f"The archive does not answer ({errno.errorcode.get(error.errno or 0)}).")
    reasons = {
        errno.ENOENT: RejectReason.MISSING_IMAGE,
        errno.ELOOP: RejectReason.SYMLINK,
        # A component that should be a folder is a link or a file.
        errno.ENOTDIR: RejectReason.UNSAFE_PATH,
        errno.EISDIR: RejectReason.NOT_A_REGULAR_FILE,
        # A socket, or a device that nobody drives: waiting for it would hold the chunk for ever.
        errno.ENXIO: RejectReason.NOT_A_REGULAR_FILE,
        errno.ENODEV: RejectReason.NOT_A_REGULAR_FILE,
        errno.ENAMETOOLONG: RejectReason.UNSAFE_PATH,
        errno.EREMOTEIO: RejectReason.NOT_DELIVERED,
    }
    return RejectedImage(reasons.get(error.errno or 0, RejectReason.UNREADABLE))


def _read_regular(file: int, max_bytes: int) -> bytes:
    try:
        found = os.fstat(file)
        if not stat.S_ISREG(found.st_mode):
            raise RejectedImage(RejectReason.NOT_A_REGULAR_FILE)
        if found.st_size > max_bytes:
            raise RejectedImage(RejectReason.TOO_LARGE_FILE)
        data = _read_at_most(file, max_bytes + 1)
    except OSError as error:
        raise _translate(error) from None
    return _check_size(data, max_bytes)


def _check_size(data: bytes, max_bytes: int) -> bytes:
    if not data:
        raise RejectedImage(RejectReason.EMPTY_FILE)
    if len(data) > max_bytes:
        raise RejectedImage(RejectReason.TOO_LARGE_FILE)
    return data


def _read_at_most(file: int, limit: int) -> bytes:
    pieces = []
    while limit > 0 and (piece := os.read(file, min(limit, 1 << 20))):
        pieces.append(piece)
        limit -= len(piece)
    return b"".join(pieces)


def decode_image(data: bytes, size: int | tuple[int, int]) -> NDArray[np.uint8]:
    """Decode an image, upright and in RGB, and resize the whole of it.

    Rules: EXIF orientation is applied; an alpha channel is laid on white; grey is repeated; 16-bit samples lose
    their lower byte; CMYK (Adobe's inverted form included) and palettes are converted by Pillow. An image of at least
    four times the target is first brought to no less than twice the target: a JPEG by its DCT scale while it is
    decoded, anything else by averaging whole squares. Then every image is resized with an antialiased bilinear filter,
    the filter the models are trained with.

    Args:
        data: The file's bytes.
        size: Side of the square in pixels, or (width, height); the aspect ratio is not kept.

    Returns:
        `(height, width, 3)` uint8.

    Raises:
        RejectedImage: The bytes are no JPEG or PNG, are broken, hold more than 50 megapixels, or would take more than
            240 MB to decode.
    """
    width, height = (size, size) if isinstance(size, int) else size
    coefficients = coefficient_bytes(data)
    image = _open_checked(data)
    return _guard(lambda: _convert(image, (width, height), coefficients), RejectReason.TRUNCATED)


def measure_image(data: bytes) -> tuple[int, int]:
    """Measure an image as it is seen, upright.

    Returns:
        Width and height in pixels.

    Raises:
        RejectedImage: The bytes are no JPEG or PNG, are broken, or hold more than 50 megapixels.
    """
    image = _open_checked(data)
    if image.format == "PNG":
        # Its EXIF block may follow its pixels.
        _guard(image.load, RejectReason.TRUNCATED)
    return image.size[::-1] if _orientation(image) in _SIDEWAYS else image.size


def glance_size(data: bytes) -> tuple[int, int]:
    """Measure an image as it is seen from its header alone, for its proportions.

    A PNG whose EXIF block follows its pixels is measured as it lies: to look there would be to decode it.

    Returns:
        Width and height in pixels.

    Raises:
        RejectedImage: The bytes are no JPEG or PNG, are broken, or hold more than 50 megapixels.
    """
    image = _open_checked(data)
    if image.format == "PNG" and "exif" not in image.info:
        return image.size
    return image.size[::-1] if _orientation(image) in _SIDEWAYS else image.size


def _guard(step: Callable[[], Any], otherwise: RejectReason) -> Any:
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


def _open_checked(data: bytes) -> Image.Image:
    try:
        image: Image.Image = _guard(lambda: Image.open(io.BytesIO(data), formats=FORMATS), RejectReason.NOT_AN_IMAGE)
    except RejectedImage as rejected:
        if rejected.reason is RejectReason.NOT_AN_IMAGE and data.startswith(_OTHER_FORMATS):
            raise RejectedImage(RejectReason.UNSUPPORTED_FORMAT) from None
        raise
    # From the header alone: nothing is decoded yet.
    if image.width * image.height > MAX_PIXELS:
        raise RejectedImage(RejectReason.TOO_MANY_PIXELS)
    return image


def _convert(image: Image.Image, target: tuple[int, int], coefficients: int) -> NDArray[np.uint8]:
    # At least twice the target in both directions, whichever way round EXIF turns it.
    enough = 2 * max(target)
    width, height = float(image.width), float(image.height)
    if isinstance(image, JpegImagePlugin.JpegImageFile) and (drafted := image.draft(None, (enough, enough))):
        width, height = drafted[1][2:]
    if coefficients and coefficients + _PIXEL_BYTES * image.width * image.height > MAX_DECODED_BYTES:
        raise RejectedImage(RejectReason.TOO_COSTLY)
    image.load()
    orientation = _orientation(image)
    factor = max(1, min(image.width // enough, image.height // enough))
    rgb = _to_rgb(image) if factor == 1 else _average_squares(image, factor)
    # The last row and column of squares may be cut off by the image's border.
    box = (0, 0, width / factor, height / factor)
    resized = rgb.resize(target[::-1] if orientation in _SIDEWAYS else target, Image.Resampling.BILINEAR, box)
    return np.asarray(resized.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else resized, np.uint8)


def _orientation(image: Image.Image) -> int | None:
    # A PNG's EXIF block may follow its pixels, so it is read after them.
    try:
        found: Any = image.getexif().get(_ORIENTATION)
    except (*_BROKEN, struct.error):
        # The picture is there: a broken description of it leaves it as it lies.
        return None
    return found if isinstance(found, int) else None


def _average_squares(image: Image.Image, factor: int) -> Image.Image:
    small = Image.new("RGB", (-(-image.width // factor), -(-image.height // factor)))
    band = factor * max(1, _BAND_PIXELS // (image.width * factor))
    for top in range(0, image.height, band):
        rows = image.crop((0, top, image.width, min(top + band, image.height)))
        small.paste(_to_rgb(rows).reduce(factor), (0, top // factor))
    return small


def _to_rgb(image: Image.Image) -> Image.Image:
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


def decode_layer(data: bytes) -> NDArray[np.uint8]:
    """Decode a picture of ours as `(height, width, 4)` uint8 RGB with opacity; RejectedImage where it is none."""
    image = _open_checked(data)
    return np.asarray(_guard(lambda: image.convert("RGBA"), RejectReason.TRUNCATED), np.uint8)


def resize_image(pixels: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Resize `(h, w, 3)` uint8 RGB bilinearly to (width, height)."""
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR), np.uint8)


def blur_image(pixels: NDArray[np.uint8], radius: float) -> NDArray[np.uint8]:
    """Blur `(height, width, 3)` uint8 RGB with a Gaussian of so many pixels' standard deviation."""
    return np.asarray(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(radius)), np.uint8)


def encode_image(pixels: NDArray[np.uint8], image_format: str = "JPEG") -> bytes:
    """Encode `(height, width, 3)` uint8 RGB, or 4 with opacity, without metadata, in a format that Pillow writes."""
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, image_format)
    return out.getvalue()
