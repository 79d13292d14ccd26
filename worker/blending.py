"""Blending: `python -m worker.blending` lays evidence over thumbnails for the producer, which opens no picture."""

import struct
import sys
from typing import BinaryIO, Final

from model.errors import RejectedImage
from model.pictures import blend_overlay

#: Before every question: lengths of thumbnail and overlay in bytes. Before every answer: width and height in pixels,
#: both 0 where there is none; `(height, width, 3)` uint8 RGB follows.
PAIR: Final = struct.Struct("!II")


def answer_blending(questions: BinaryIO, answers: BinaryIO) -> None:
    """Answer until nobody asks any more.

    Args:
        questions: Pairs of pictures.
        answers: Pixels.
    """
    while len(head := questions.read(PAIR.size)) == PAIR.size:
        thumbnail, overlay = map(questions.read, PAIR.unpack(head))
        try:
            pixels = blend_overlay(thumbnail, overlay)
        except RejectedImage:
            answers.write(PAIR.pack(0, 0))
        else:
            answers.write(PAIR.pack(pixels.shape[1], pixels.shape[0]) + pixels.tobytes())
        answers.flush()


if __name__ == "__main__":
    answer_blending(sys.stdin.buffer, sys.stdout.buffer)
