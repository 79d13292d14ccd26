"""A path to a server that a test can cut, or make swallow what is sent along it."""

import contextlib
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

#: Where a server or a client is: a port on loopback, or a socket's path.
Address = int | Path


def _open(address: Address) -> tuple[socket.socket, tuple[str, int] | str]:
    if isinstance(address, int):
        return socket.socket(socket.AF_INET), ("127.0.0.1", address)
    return socket.socket(socket.AF_UNIX), str(address)


@dataclass(slots=True, kw_only=True)
class Proxy:
    """Forwards connections to a server, one thread each way."""

    listener: socket.socket
    server: Address
    #: Asked with everything a client sends; True lets it through, waits for the answer, and cuts before passing it on.
    cuts: Callable[[bytes], bool] = lambda _data: False
    #: Cleared: whatever comes, from either side, waits.
    passable: threading.Event = field(default_factory=threading.Event)
    #: Cleared: what the server says waits, and what clients say goes through.
    audible: threading.Event = field(default_factory=threading.Event)
    #: Seconds each piece of data takes, either way.
    delay: float = 0.0
    #: Connections that were cut by `cuts`.
    cut: int = 0
    _sockets: list[socket.socket] = field(default_factory=list)

    @classmethod
    def start(cls, listen: Address, server: Address) -> Self:
        """Listen, on a free port where 0 is given, and forward."""
        listener, address = _open(listen)
        listener.bind(address)
        listener.listen()
        made = cls(listener=listener, server=server)
        made.passable.set()
        made.audible.set()
        threading.Thread(target=made._accept, daemon=True).start()
        return made

    @property
    def port(self) -> int:
        """The port it listens on."""
        return int(self.listener.getsockname()[1])

    def stop(self) -> None:
        """Cut everything."""
        self.passable.set()
        self.audible.set()
        for each in (self.listener, *self._sockets):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self.listener.accept()
                server, address = _open(self.server)
                self._sockets += [client, server]
                try:
                    server.connect(address)
                except OSError:
                    client.close()
                    continue
                doomed = threading.Event()
                for way in ((self._ask, client, server), (self._answer, server, client)):
                    threading.Thread(target=way[0], args=(*way[1:], doomed), daemon=True).start()

    def _ask(self, source: socket.socket, sink: socket.socket, doomed: threading.Event) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                self._carry()
                if self.cuts(data):
                    doomed.set()
                sink.sendall(data)
        self._close(source, sink)

    def _answer(self, source: socket.socket, sink: socket.socket, doomed: threading.Event) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                self._carry()
                self.audible.wait()
                if doomed.is_set():
                    self.cut += 1
                    break
                sink.sendall(data)
        self._close(source, sink)

    def _carry(self) -> None:
        time.sleep(self.delay)
        self.passable.wait()

    @staticmethod
    def _close(*sockets: socket.socket) -> None:
        for each in sockets:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
