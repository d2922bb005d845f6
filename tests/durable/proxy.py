"""A TCP proxy with the faults of a network: it loses replies, delays them, and closes one direction of a connection."""

from __future__ import annotations

import contextlib
import random
import socket
import threading
import time
from dataclasses import dataclass, field
from typing import Final, Self

from flowcore.stores.redis.lua import Script

__all__ = ["Proxy", "Weather", "run_proxy"]

_CHUNK: Final = 1 << 16


@dataclass(frozen=True)
class Weather:
    """How often something happens to a request: `lose` its reply, with the connection; `delay` it, at most `seconds`;
    `half_close` the connection after it, so that its client hears nothing any more."""

    lose: float = 0.0
    delay: float = 0.0
    half_close: float = 0.0
    seconds: float = 0.0


@dataclass
class Proxy:
    """Forwards to `target`, a port of this machine."""

    target: int
    port: int = 0
    weather: Weather = field(default_factory=Weather)
    losses: int = 0

    def __post_init__(self) -> None:
        self._to_lose: dict[
            bytes, list[float]
        ] = {}  # by a script's name: how many of its calls pass before, how many do not
        self._closed = False
        self._sockets: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", self.port), backlog=128)
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._listen, daemon=True).start()

    def lose_reply_to(self, script: Script, *, after: int = 0, times: float = 1) -> None:
        """Lose the replies to so many calls of a script, after so many that are answered."""
        self._to_lose[script.sha.encode()] = [after, times]

    def close(self) -> None:
        self._closed = True
        self._listener.close()
        for one in list(self._sockets):
            _shut(one)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _listen(self) -> None:
        while not self._closed:
            with contextlib.suppress(OSError):
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        try:
            server = socket.create_connection(("127.0.0.1", self.target))
        except OSError:
            client.close()
            return
        self._sockets |= {client, server}
        for one in (client, server):
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        lost = threading.Event()
        replies = threading.Thread(target=self._replies, args=(server, client, lost), daemon=True)
        replies.start()
        with contextlib.suppress(OSError):
            while request := client.recv(_CHUNK):
                self._spoil(request, client, lost)
                server.sendall(request)
        _shut(server)
        replies.join()
        self._sockets -= {client, server}
        client.close()
        server.close()

    def _spoil(self, request: bytes, client: socket.socket, lost: threading.Event) -> None:
        for script, left in list(self._to_lose.items()):
            if script in request:
                passes = left[0] > 0
                left[0 if passes else 1] -= 1
                if left[1] <= 0:
                    del self._to_lose[script]
                if not passes:
                    lost.set()
        weather, dice = self.weather, random.random()
        if dice < weather.lose:
            lost.set()
        elif dice < weather.lose + weather.delay:
            time.sleep(random.random() * weather.seconds)
        elif dice < weather.lose + weather.delay + weather.half_close:
            self.losses += 1
            client.shutdown(socket.SHUT_WR)

    def _replies(self, server: socket.socket, client: socket.socket, lost: threading.Event) -> None:
        with contextlib.suppress(OSError):
            while reply := server.recv(_CHUNK):
                if lost.is_set():
                    self.losses += 1
                    break
                client.sendall(reply)
        _shut(client)


def _shut(one: socket.socket) -> None:
    with contextlib.suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)


def run_proxy(target: int, port: int, weather: Weather) -> None:
    """Be a proxy, in this process, until it is killed."""
    Proxy(target, port, weather)
    threading.Event().wait()
