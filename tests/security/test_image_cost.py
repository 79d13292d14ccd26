"""What an image costs to refuse: memory, measured in a process of its own."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import zlib
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from tests.dicoms import make_dicom
from tests.stack import ROOT

if TYPE_CHECKING:
    from pathlib import Path

#: Over what the process takes before it meets the file, megabytes.
MOST_MEGABYTES = 300

#: Reads and decodes a file, and prints what became of it and how much more memory that took at its peak.
MEASURE = """
from pathlib import Path
import sys
import numpy as np
from model.errors import RejectedImage
from model.images import decode_image, encode_image, read_image_bytes

def peak():
    # Of this program alone: getrusage(2) remembers what the process that forked it took.
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024

decode_image(encode_image(np.zeros((40, 40, 3), np.uint8)), 224)
before = peak()
try:
    decode_image(read_image_bytes(Path(sys.argv[1]), "image.jpg", max_bytes=50 * 1024 * 1024), 224)
    outcome = "pixels"
except RejectedImage as rejected:
    outcome = rejected.reason.value
print(outcome, peak() - before)
"""


def saved(mode: str, size: tuple[int, int], image_format: str, **options: object) -> bytes:
    out = io.BytesIO()
    Image.new(mode, size).save(out, image_format, **options)
    return out.getvalue()


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_bomb(side: int) -> bytes:
    """A PNG that unpacks to side · side · 3 zeros, written without ever holding them."""
    packer = zlib.compressobj(9)
    rows = b"".join(packer.compress(bytes(1 + 3 * side)) for _ in range(side)) + packer.flush()
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + png_chunk(b"IDAT", rows) + png_chunk(b"IEND", b"")


def with_description(segment: bytes, times: int) -> bytes:
    small = saved("RGB", (40, 40), "JPEG")
    return small[:2] + (b"\xff\xe1\xff\xff" + segment.ljust(65_533, b"M")) * times + small[2:]


def dicom_runs(side: int) -> bytes:
    """An object of one colour by run lengths: three planes of runs of 128 bytes (PS3.5, annex G)."""
    runs = b"\x81\x01" * (side * side // 128 + 1)
    header = struct.pack("<16I", 3, *(64 + plane * len(runs) for plane in range(3)), *[0] * 12)
    return make_dicom(np.zeros((side, side, 3), np.uint8), "rle", encoded=[header + runs * 3])


def dicom_jpeg_2000(side: int) -> bytes:
    return make_dicom(np.zeros((side, side, 3), np.uint8), "jpeg2000_lossless", photometric="YBR_RCT")


def costly_files() -> dict[str, tuple[bytes, str]]:
    """Files that are made to cost much, and what must become of each."""
    progressive = {"progressive": True, "subsampling": 0}
    return {
        "81 megapixels": (png_bomb(9_000), "too_many_pixels"),
        "100 megapixels": (png_bomb(10_000), "too_many_pixels"),
        "196 megapixels": (png_bomb(14_000), "too_many_pixels"),
        "50 megapixels in a row": (saved("1", (50_000_000, 1), "PNG"), "too_many_pixels"),
        "50 megapixels in a column": (saved("1", (1, 50_000_000), "PNG"), "too_many_pixels"),
        "50 megapixels, cut off": (saved("RGBA", (7070, 7070), "PNG")[:-1000], "truncated"),
        "16 bits, cut off": (saved("I;16", (7070, 7070), "PNG")[:-1000], "truncated"),
        "progressive, cut off": (saved("RGB", (7070, 7070), "JPEG", progressive=True)[:-1000], "truncated"),
        "progressive and held twice": (saved("CMYK", (7070, 7070), "JPEG", **progressive), "too_costly"),
        "progressive strip": (saved("RGB", (763, 65_500), "JPEG", **progressive), "too_costly"),
        "50 MB of EXIF": (with_description(b"Exif\0\0", 790), "too_costly"),
        "50 MB of zeros": (bytes(50 * 1024 * 1024), "not_an_image"),
        # The largest that are decoded
        "50 megapixels": (saved("RGBA", (7070, 7070), "PNG"), "pixels"),
        "50 megapixels, progressive": (saved("RGB", (7070, 7070), "JPEG", progressive=True), "pixels"),
        "widest strip": (saved("RGBA", (65_535, 762), "PNG"), "pixels"),
        "highest strip": (saved("RGBA", (762, 65_535), "PNG"), "pixels"),
        "highest strip of 16 bits": (saved("I;16", (762, 65_535), "PNG"), "pixels"),
        "highest strip in DICOM": (make_dicom(np.zeros((65_535, 610, 3), np.uint8), "deflated"), "pixels"),
        "DICOM of run lengths": (dicom_runs(6_300), "pixels"),
        "larger DICOM of run lengths": (dicom_runs(6_400), "too_costly"),
        "DICOM of JPEG 2000": (dicom_jpeg_2000(3_850), "pixels"),
        "larger DICOM of JPEG 2000": (dicom_jpeg_2000(3_900), "too_costly"),
        "deflated DICOM": (make_dicom(np.zeros((6_300, 6_300, 3), np.uint8), "deflated"), "pixels"),
        "larger deflated DICOM": (make_dicom(np.zeros((6_400, 6_400, 3), np.uint8), "deflated"), "too_costly"),
    }


@pytest.fixture(scope="module")
def files() -> dict[str, tuple[bytes, str]]:
    return costly_files()


@pytest.mark.parametrize(
    "kind",
    [
        *("81 megapixels", "100 megapixels", "196 megapixels", "50 megapixels, cut off", "16 bits, cut off"),
        *("progressive, cut off", "progressive and held twice", "progressive strip", "50 MB of EXIF"),
        *("50 MB of zeros", "50 megapixels", "50 megapixels, progressive"),
        *("50 megapixels in a row", "50 megapixels in a column", "widest strip", "highest strip"),
        *("highest strip of 16 bits", "highest strip in DICOM"),
        *("DICOM of run lengths", "larger DICOM of run lengths", "DICOM of JPEG 2000", "larger DICOM of JPEG 2000"),
        *("deflated DICOM", "larger deflated DICOM"),
    ],
)
def test_no_image_takes_more_than_300_megabytes(files: dict[str, tuple[bytes, str]], kind: str, tmp_path: Path) -> None:
    content, expected = files[kind]
    (tmp_path / "image.jpg").write_bytes(content)

    # The time limit only ends what would never end; what is measured is memory.
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )

    outcome, megabytes = done.stdout.split()
    assert outcome == expected
    assert float(megabytes) < MOST_MEGABYTES
    # And no warning of the decoder's reaches the terminal or the logs
    assert done.stderr == ""
