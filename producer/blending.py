"""Blending: evidence over what the network saw, drawn by a child process, because pictures are not ours to open."""

import os
import struct
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from db.instances import ScreenedInstance
from db.pictures import thumb_path
from producer.errors import ServiceProblem
from producer.local import child_environment
from worker.shelf import Shelf

#: As `worker.blending` has it: two lengths before a question, width and height before an answer.
_PAIR: Final = struct.Struct("!II")


@dataclass(frozen=True, slots=True, kw_only=True)
class Blended:
    """A picture."""

    width: int
    height: int
    #: `(height, width, 3)` uint8 RGB, row by row.
    pixels: bytes
    #: Of the thumbnail as it is kept, as JPEG.
    compressed_bytes: int


class Blender:
    """Draws overlays; the process is started with the first one.

    Args:
        shelf: Of the artifact store.
        home: Folder of the one-machine state.
    """

    def __init__(self, shelf: Shelf, home: Path) -> None:
        self._shelf, self._home = shelf, home
        self._child: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._child is not None:
            # It ends with its questions; where it hangs in one it is not waited for.
            self._child.kill()
            self._child.communicate()

    def blend(self, finding: ScreenedInstance) -> Blended | None:
        """Draw the evidence of an instance over its thumbnail.

        Args:
            finding: What was screened.

        Returns:
            The picture, or None where the store does not hold its thumbnail or the ledger its evidence.

        Raises:
            ServiceProblem: If the drawing process dies.
        """
        if finding.evidence is None:
            return None
        thumbnail = self._shelf.read(thumb_path(finding.input_digest))
        if not thumbnail:
            return None
        try:
            width, height, pixels = self._ask(thumbnail, finding.evidence)
        except (OSError, struct.error) as error:
            raise ServiceProblem("The process that draws overlays has died; check memory and run again.") from error
        if not width:
            return None
        return Blended(width=width, height=height, pixels=pixels, compressed_bytes=len(thumbnail))

    def _ask(self, thumbnail: bytes, evidence: bytes) -> tuple[int, int, bytes]:
        child = self._started()
        if child.stdin is None or child.stdout is None:
            raise OSError("no pipe")
        child.stdin.write(_PAIR.pack(len(thumbnail), len(evidence)) + thumbnail + evidence)
        child.stdin.flush()
        width, height = _PAIR.unpack(child.stdout.read(_PAIR.size))
        pixels = child.stdout.read(width * height * 3)
        if len(pixels) != width * height * 3:
            raise OSError("cut off")
        return width, height, pixels

    def _started(self) -> subprocess.Popen[bytes]:
        if self._child is None:
            self._child = subprocess.Popen(
                [sys.executable, "-m", "worker.blending"],
                env=child_environment(self._home, os.environ),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
        return self._child
