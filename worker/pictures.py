"""Pictures as the worker draws them: a thumbnail of what was scored, into the artifact store."""

import contextlib
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Final

import structlog

from db.pictures import thumb_path
from model.images import DecodedImage
from model.pictures import draw_thumbnail
from worker.shelf import Shelf

#: Encoding lets go of the interpreter's lock, and so does writing.
_THREADS: Final = 2

_log = structlog.get_logger()


@dataclass(slots=True, kw_only=True)
class PictureStore:
    """Thumbnails in the artifact store. One that cannot be written costs no verdict.

    Args:
        shelf: Of the artifact store.
    """

    shelf: Shelf
    #: Inputs drawn since the last `settle`, whose verdicts may not be recorded yet.
    _unsettled: set[str] = field(default_factory=set)
    _pool: ThreadPoolExecutor | None = None
    _drawing: list[Future[None]] = field(default_factory=list)

    def has_thumbnail(self, input_digest: str) -> bool:
        """Say whether an input was drawn, by whatever host."""
        return self.shelf.has(thumb_path(input_digest))

    def draw(self, input_digest: str, image: DecodedImage) -> None:
        """Draw an input, in a thread of its own while the network works. Idempotent: the same pixels, the same file.

        Args:
            input_digest: What was scored.
            image: As the network saw it.
        """
        self._unsettled.add(input_digest)
        if self._pool is None:
            self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="draw")
        self._drawing.append(self._pool.submit(self._draw, thumb_path(input_digest), image))

    def _draw(self, where: str, image: DecodedImage) -> None:
        try:
            self.shelf.write(where, draw_thumbnail(image))
        except OSError as error:
            _log.warning("picture not written", error=type(error).__name__)

    def await_drawn(self) -> None:
        """Wait until everything is written that `draw` was called for.

        Raises:
            Exception: A bug in drawing.
        """
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None
        drawing, self._drawing = self._drawing, []
        for one in drawing:
            one.result()

    def settle(self, recorded: frozenset[str]) -> None:
        """Wait for what is being drawn, and remove what turned out to have no verdict: it was erased in the meantime.

        Args:
            recorded: Which of `unsettled` the ledger has a verdict on.
        """
        self.await_drawn()
        for input_digest in self._unsettled - recorded:
            with contextlib.suppress(OSError):
                self.shelf.delete(thumb_path(input_digest))
        self._unsettled.clear()

    @property
    def unsettled(self) -> frozenset[str]:
        """Inputs drawn since the last `settle`."""
        return frozenset(self._unsettled)
