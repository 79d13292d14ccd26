"""Converted graphs, kept on this host from one start to the next: converting one takes seconds."""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from model.engine import FrozenGraph

#: How many are kept: the active model, one that others are pinned to, and the versions before an upgrade.
_KEPT: Final = 4
_SUFFIX: Final = ".tflite"
_DIGEST_BYTES: Final = hashlib.sha256().digest_size


@dataclass(frozen=True, slots=True)
class ConvertedGraphs:
    """Flatbuffers in a folder, each named by the graph it was made from and behind its own sha256.

    Nothing depends on the folder: what is missing, damaged, or could have been written by somebody else is converted
    anew, and a folder that takes nothing is left alone.

    Attributes:
        folder: This user's own; created when it is first written to.
    """

    folder: Path

    def convert(self, frozen: FrozenGraph) -> bytes:
        """Convert a graph, or return what was kept of an earlier conversion.

        Args:
            frozen: The graph.

        Returns:
            A flatbuffer.

        Raises:
            ValueError: If it has an operation that LiteRT does not know.
        """
        path = self.folder / f"{frozen.fingerprint()}{_SUFFIX}"
        kept = _read(path)
        if kept is not None:
            return kept
        flatbuffer = frozen.convert()
        # A full or read-only disk costs the next start its seconds, and this one nothing.
        with contextlib.suppress(OSError):
            self._keep(path, flatbuffer)
        return flatbuffer

    def _keep(self, path: Path, flatbuffer: bytes) -> None:
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        # mkstemp's files are their owner's alone. Not synced: a file that a power cut leaves short is seen to be.
        descriptor, draft = tempfile.mkstemp(dir=self.folder, prefix=".partial-")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(hashlib.sha256(flatbuffer).digest() + flatbuffer)
            Path(draft).replace(path)
        except OSError:
            Path(draft).unlink()
            raise
        oldest_first = sorted(self.folder.glob(f"*{_SUFFIX}"), key=lambda one: one.stat().st_mtime)
        for one in oldest_first[:-_KEPT]:
            one.unlink()


def _read(path: Path) -> bytes | None:
    try:
        with path.open("rb") as file:
            told = os.fstat(file.fileno())
            # It is given to a parser that trusts it: written by this user, and by nobody else.
            if told.st_uid != os.geteuid() or told.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                return None
            data = file.read()
    except OSError:
        return None
    digest, flatbuffer = data[:_DIGEST_BYTES], data[_DIGEST_BYTES:]
    return flatbuffer if digest == hashlib.sha256(flatbuffer).digest() else None
