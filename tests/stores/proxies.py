"""A TCP proxy between a client and its server, for what networks do: replies that never come, and how often they are asked.

`Proxy(server.port)` forwards whatever comes, and counts round trips.
"""

import contextlib
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

__all__ = ["Proxy"]


class Proxy:
    """Forwards connections to `port` of 127.0.0.1 from a port of its own."""

    def __init__(self, port: int) -> None:
        self._server = "127.0.0.1", port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.round_trips = 0
        """how often a client has sent something, at first or after a reply"""
        self._lose: bytes | None = None
        self._open: set[socket.socket] = set()
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def lose_reply(self, to: bytes) -> None:
        """The next request with these bytes in it reaches the server; instead of its reply, the connection ends."""
        self._lose = to

    @property
    def lost(self) -> bool:
        """Whether the reply that was to be lost has been."""
        return self._lose is None

    def cut(self) -> None:
        """End all connections."""
        for one in list(self._open):
            self._end(one)

    def close(self) -> None:
        """End all connections and take no more."""
        self._end(self._listener)
        self.cut()
        for thread in self._threads:
            thread.join(10)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(self._server)
            except OSError:  # there is none: as the client would have found without a proxy
                client.close()
                continue
            self._open |= {client, server}
            both = _Connection(client, server)
            for one in (
                threading.Thread(target=self._ask, args=(both,), daemon=True),
                threading.Thread(target=self._answer, args=(both,), daemon=True),
            ):
                self._threads.append(one)
                one.start()

    def _ask(self, both: "_Connection") -> None:
        for burst in self._received(both.client):
            if not both.asking:
                both.asking = True
                self.round_trips += 1
            if self._lose is not None and self._lose in burst:
                both.losing = True
            if not self._passed_on(burst, both.server):
                break
        self._end(both.server)

    def _answer(self, both: "_Connection") -> None:
        for burst in self._received(both.server):
            if both.losing:
                self._lose = None
                break
            both.asking = False
            if not self._passed_on(burst, both.client):
                break
        self._end(both.client)
        self._end(both.server)

    @staticmethod
    def _passed_on(burst: bytes, to: socket.socket) -> bool:
        """Whether the other side was still there."""
        try:
            to.sendall(burst)
        except OSError:
            return False
        return True

    def _received(self, one: socket.socket) -> Iterator[bytes]:
        while True:
            try:
                burst = one.recv(1 << 20)
            except OSError:
                return
            if not burst:
                return
            yield burst

    def _end(self, one: socket.socket) -> None:
        self._open.discard(one)
        with contextlib.suppress(OSError):
            one.shutdown(socket.SHUT_RDWR)
        one.close()


@dataclass
class _Connection:
    client: socket.socket
    server: socket.socket
    asking: bool = False
    """the client has spoken last"""
    losing: bool = False
    """the next reply is to be lost"""
