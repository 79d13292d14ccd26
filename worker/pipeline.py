"""The pipeline in front of the network: files are read, looked up and decoded by threads while the network works."""

import hashlib
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, Final

from db.chunks import ClaimedItem, Rejected
from model.errors import RejectedImage
from model.images import DecodedImage, ObjectRoot, read_image_bytes
from model.metadata import MetadataEncoding, PatientMetadata, input_digest

#: Items whose digests are looked up together.
_GROUP_ITEMS: Final = 32
#: Undecoded bytes of one such group, as far as the ledger knows the sizes: bounds the memory on huge files.
_GROUP_BYTES: Final = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Read:
    """A file that was read and digested, not decoded yet."""

    item: ClaimedItem
    patient: PatientMetadata
    data: bytes = field(repr=False)
    image_digest: str
    input_digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoded:
    """An image that waits for the network."""

    item: ClaimedItem
    patient: PatientMetadata
    image_digest: str
    input_digest: str
    image: DecodedImage


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """An image that this model has seen before, with the same metadata."""

    item: ClaimedItem
    image_digest: str
    input_digest: str


Arrival = Decoded | Known | Rejected


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """How one chunk's items become pixels."""

    #: The archive's root: this host's folder, or a place on object storage.
    root: Path | ObjectRoot
    max_image_bytes: int
    #: Takes the file's bytes, and which frame of them.
    decode: Callable[[bytes, int | None], DecodedImage]
    #: How the model takes metadata, which decides what inputs are the same to it.
    encoding: MetadataEncoding
    #: Which of these input digests have a result.
    stored: Callable[[frozenset[str]], frozenset[str]]
    #: Called by the threads after every file.
    note_progress: Callable[[], None]

    def read(self, item: ClaimedItem) -> Read | Rejected:
        """Read and digest one file; any thread may call it.

        Args:
            item: Which.

        Returns:
            Its bytes, or why there are none.

        Raises:
            ArchiveUnavailable: If the archive's root is away.
        """
        self.note_progress()
        try:
            data = read_image_bytes(self.root, item.path, max_bytes=self.max_image_bytes)
        except RejectedImage as rejected:
            return Rejected(item_id=item.item_id, reason=rejected.reason)
        patient = PatientMetadata(age=item.age, sex=item.sex, localization=item.localization)
        image_digest = hashlib.sha256(data).hexdigest()
        digest = input_digest(image_digest, patient, self.encoding, item.frame)
        return Read(item=item, patient=patient, data=data, image_digest=image_digest, input_digest=digest)

    def decode_read(self, read: Read) -> Decoded | Rejected:
        """Decode one file that was read; any thread may call it.

        Args:
            read: The file.

        Returns:
            Its pixels, or why there are none.
        """
        self.note_progress()
        try:
            image = self.decode(read.data, read.item.frame)
        except RejectedImage as rejected:
            return Rejected(item_id=read.item.item_id, reason=rejected.reason, image_digest=read.image_digest)
        return Decoded(
            item=read.item,
            patient=read.patient,
            image_digest=read.image_digest,
            input_digest=read.input_digest,
            image=image,
        )

    def arrive(self, item: ClaimedItem) -> Arrival:
        """Take one item all the way, in the caller's thread: for suspects.

        Args:
            item: Which.

        Returns:
            The item, ready for the network or with its outcome.

        Raises:
            ArchiveUnavailable: If the archive's root is away.
        """
        read = self.read(item)
        if isinstance(read, Rejected):
            return read
        if self.stored(frozenset({read.input_digest})):
            return _known(read)
        return self.decode_read(read)


def stream(
    source: Source,
    items: Iterable[ClaimedItem],
    *,
    decoders: ThreadPoolExecutor,
    in_flight: int,
    on_last: Callable[[], None] = lambda: None,
) -> Generator[Arrival, None, None]:
    """Read, look up and decode items ahead of the caller.

    Args:
        source: How.
        items: Which.
        decoders: Threads that read and decode, perhaps for others too.
        in_flight: Items between the disk and the caller at most.
        on_last: Called once the last item is on its way to the caller.

    Yields:
        Every item once, ready for the network or with its outcome, roughly in order.

    Raises:
        ArchiveUnavailable: If the archive's root is away.
    """
    streaming = _Stream(source, decoders, _grouped(items), in_flight, on_last)
    try:
        yield from streaming.run()
    finally:
        # The caller may leave in the middle: what has not begun never begins.
        streaming.leave()


class _Stream:
    """The state of one `stream`: groups being read, and items being decoded."""

    def __init__(
        self,
        source: Source,
        pool: ThreadPoolExecutor,
        groups: Iterator[list[ClaimedItem]],
        in_flight: int,
        on_last: Callable[[], None],
    ) -> None:
        self._source = source
        self._pool = pool
        self._groups = groups
        self._limit = in_flight
        self._on_last = on_last
        self._reading: deque[list[Future[Read | Rejected]]] = deque()
        self._decoding: deque[Future[Decoded | Rejected]] = deque()
        self._ready: deque[Known | Rejected] = deque()
        self._exhausted = False

    def run(self) -> Iterator[Arrival]:
        while True:
            self._read_ahead()
            if self._reading and (self._is_read(self._reading[0]) or not self._decoding):
                self._look_up(self._reading[0])
                self._reading.popleft()
                continue
            if self._ready:
                yield self._ready.popleft()
            elif self._decoding:
                yield self._decoding.popleft().result()
            elif self._exhausted:
                return

    def leave(self) -> None:
        waiting: list[Future[Any]] = [*chain.from_iterable(self._reading), *self._decoding]
        wait([future for future in waiting if not future.cancel()])

    def _read_ahead(self) -> None:
        while not self._exhausted and self._in_flight() < self._limit:
            group = next(self._groups, None)
            if group is None:
                self._exhausted = True
                self._on_last()
            else:
                self._reading.append([self._pool.submit(self._source.read, item) for item in group])

    def _in_flight(self) -> int:
        return sum(map(len, self._reading)) + len(self._decoding)

    @staticmethod
    def _is_read(group: list[Future[Any]]) -> bool:
        return all(future.done() for future in group)

    def _look_up(self, group: list[Future[Read | Rejected]]) -> None:
        found = [future.result() for future in group]
        reads = [one for one in found if isinstance(one, Read)]
        self._ready.extend(one for one in found if isinstance(one, Rejected))
        stored = self._source.stored(frozenset(one.input_digest for one in reads))
        for one in reads:
            if one.input_digest in stored:
                self._ready.append(_known(one))
            else:
                self._decoding.append(self._pool.submit(self._source.decode_read, one))


def _known(read: Read) -> Known:
    return Known(item=read.item, image_digest=read.image_digest, input_digest=read.input_digest)


def _grouped(items: Iterable[ClaimedItem]) -> Iterator[list[ClaimedItem]]:
    group: list[ClaimedItem] = []
    size = 0
    for item in items:
        expected = item.size or 0
        if group and (len(group) == _GROUP_ITEMS or size + expected > _GROUP_BYTES):
            yield group
            group, size = [], 0
        group.append(item)
        size += expected
    if group:
        yield group
