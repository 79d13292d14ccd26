"""A chunk full of hostile files: each is refused for its reason, and the images around it are scored."""

from __future__ import annotations

import os
import random
from typing import TYPE_CHECKING

import numpy as np

from db.batches import ItemRow
from model.images import encode_image
from tests.security.canary import draw

if TYPE_CHECKING:
    from tests.archive import Archive
    from tests.stack import Stack

PIXELS = np.zeros((16, 16, 3), np.uint8)
SOUND = draw(200)
WIDE = SOUND.index(b"\xff\xc0") + 5

#: Name to content and reason.
POISON = {
    "empty.jpg": (b"", "empty_file"),
    "zeros.jpg": (bytes(5000), "not_an_image"),
    "page.jpg": (b"<html><body>Not found</body></html>", "not_an_image"),
    "noise.png": (random.Random(3).randbytes(5000), "not_an_image"),
    "drawing.jpg": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(x) run\n", "unsupported_format"),
    "layers.jpg": (b"8BPS\0\1" + bytes(500), "unsupported_format"),
    "paper.jpg": (b"%PDF-1.7\n", "unsupported_format"),
    **{f"{kind}.jpg": (encode_image(PIXELS, kind), "unsupported_format") for kind in ("gif", "tiff", "bmp", "webp")},
    "half.jpg": (SOUND[:-12], "truncated"),
    "wide.jpg": (SOUND[:WIDE] + b"\xff\xff\xff\xff" + SOUND[WIDE + 4 :], "too_many_pixels"),
    "wordy.jpg": (SOUND[:2] + (b"\xff\xe1\xff\xffExif\0\0" + bytes(65_527)) * 150 + SOUND[2:], "too_costly"),
    "large.jpg": (SOUND + bytes(11_000_000), "too_large_file"),
    "gone.jpg": (b"x", "missing_image"),
    "folder.jpg": (b"x", "not_a_regular_file"),
    "pipe.jpg": (b"x", "not_a_regular_file"),
    "link.jpg": (b"x", "symlink"),
}


def test_the_chunk_around_hostile_files_finishes(archive: Archive, stack: Stack) -> None:
    # Given one chunk in which every other file is hostile, some of them swapped after they were found
    good = archive.draw(len(POISON), first=20)
    bad = [archive.spoil(name, content) for name, (content, _reason) in POISON.items()]
    for name in ("gone.jpg", "folder.jpg", "pipe.jpg", "link.jpg"):
        (archive.root / name).unlink()
    (archive.root / "folder.jpg").mkdir()
    os.mkfifo(archive.root / "pipe.jpg")
    (archive.root / "link.jpg").symlink_to("/etc/hostname")
    mixed: list[ItemRow] = [row for pair in zip(bad, good, strict=True) for row in pair]
    batch = archive.load(mixed)

    # If one worker screens it
    stack.start_feeder()
    stack.start_worker(WORKER_MAX_IMAGE_BYTES="10000000")
    stack.until(lambda: archive.counts(batch).open == 0)

    # Then every image is scored, every other file has its reason, and no worker died of any
    states = archive.states(batch)
    assert {states[row.path or ""] for row in good} <= {"done", "referred"}
    assert archive.reasons(batch) == {name: reason for name, (_content, reason) in POISON.items()}
    assert archive.number("SELECT max(crashes) + max(attempt) FROM chunk") == 1
