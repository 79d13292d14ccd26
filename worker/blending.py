"""Blending: `python -m worker.blending` lays evidence over thumbnails for the producer, which opens no picture."""

import struct
import sys
from typing import BinaryIO, Final

import numpy as np

from db.evidence import unpack_evidence
from model.errors import RejectedImage
from model.pictures import blend_overlay

#: Before every question: lengths of thumbnail and evidence in bytes. Before every answer: width and height in pixels,
#: both 0 where there is none; `(height, width, 3)` uint8 RGB follows.
PAIR: Final = struct.Struct("!II")


def answer_blending(questions: BinaryIO, answers: BinaryIO) -> None:
    """Answer until nobody asks any more.

    Args:
        questions: Thumbnails, each with its evidence as `db.evidence` packs it.
        answers: Pixels.
    """
    while len(head := questions.read(PAIR.size)) == PAIR.size:
        thumbnail, evidence = map(questions.read, PAIR.unpack(head))
        try:
            pixels = blend_overlay(thumbnail, np.array(unpack_evidence(evidence), np.float32))
        except (RejectedImage, ValueError):
            answers.write(PAIR.pack(0, 0))
        else:
            answers.write(PAIR.pack(pixels.shape[1], pixels.shape[0]) + pixels.tobytes())
        answers.flush()


if __name__ == "__main__":
    answer_blending(sys.stdin.buffer, sys.stdout.buffer)
