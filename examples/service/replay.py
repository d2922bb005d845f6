"""Sends a file of orders to the service, as several clients at once would, and keeps what they are told."""

import http.client
import json
import math
import queue
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PATIENCE = 30.0  # seconds for an answer, and for another line to be sent or answered first


@dataclass(frozen=True)
class Line:
    """One line of orders.jsonl; see make_orders.py."""

    number: int
    kind: str
    key: str
    order: dict[str, Any]
    expect: tuple[int, ...]
    when: str | None = None


@dataclass(frozen=True)
class Answer:
    """What the client of a line was told in the end."""

    line: Line
    status: int
    body: dict[str, Any]
    replayed: bool
    told_to_wait: int
    """how often a 409 came first"""
    seconds: float
    """from the first request to the last answer, without the waiting"""

    @property
    def expected(self) -> bool:
        return self.status in self.line.expect


def read_orders(path: Path) -> list[Line]:
    lines = [json.loads(text) for text in path.read_text("utf-8").splitlines()]
    return [Line(number, **line | {"expect": tuple(line["expect"])}) for number, line in enumerate(lines, start=1)]


def replay(port: int, lines: Sequence[Line], clients: int = 8) -> list[Answer]:
    """Send `lines` in their order from `clients` threads; answers come in the order of the lines.

    A client that is told to wait (409 with Retry-After) asks again after that time. Raises OSError or HTTPException
    where the service does not answer.
    """
    return _Replay(port, lines).run(clients)


class _Replay:
    def __init__(self, port: int, lines: Sequence[Line]) -> None:
        self._port = port
        self._total = len(lines)
        self._sent = {line.key: threading.Event() for line in lines}
        self._answered = {line.key: threading.Event() for line in lines}
        self._answers: list[Answer] = []
        # (when it is due, number) orders the queue: first the file, in its order; then those who were told to wait.
        self._due: queue.PriorityQueue[tuple[float, int, Line | None, int, float]] = queue.PriorityQueue()
        for line in lines:
            self._due.put((0.0, line.number, line, 0, 0.0))

    def run(self, clients: int) -> list[Answer]:
        with ThreadPoolExecutor(clients, "client") as pool:
            workers = [pool.submit(self._client, clients) for _ in range(clients)]
        for worker in workers:
            worker.result()
        return sorted(self._answers, key=lambda answer: answer.line.number)

    def _client(self, clients: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=PATIENCE)
        try:
            while True:
                due, _, line, told_to_wait, seconds = self._due.get()
                if line is None:
                    return
                time.sleep(max(0.0, due - time.monotonic()))
                answer, retry_after = self._send(connection, line, told_to_wait, seconds)
                if retry_after is not None:
                    later = time.monotonic() + retry_after
                    self._due.put((later, line.number, line, told_to_wait + 1, answer.seconds))
                    continue
                self._answers.append(answer)
                self._answered[line.key].set()
                if len(self._answers) == self._total:
                    self._stop(clients)
        except BaseException:
            self._stop(clients)
            for event in (*self._sent.values(), *self._answered.values()):
                event.set()  # nobody should wait for what will not come
            raise
        finally:
            connection.close()

    def _stop(self, clients: int) -> None:
        for number in range(clients):
            self._due.put((-math.inf, -1 - number, None, 0, 0.0))

    def _send(
        self, connection: http.client.HTTPConnection, line: Line, told_to_wait: int, seconds: float
    ) -> tuple[Answer, float | None]:
        waits_for = {"after": self._answered, "during": self._sent}.get(line.when or "")
        if waits_for is not None and not waits_for[line.key].wait(PATIENCE):
            raise TimeoutError(f"line {line.number} waited in vain for an earlier one with key {line.key}")
        start = time.monotonic()
        headers = {"Content-Type": "application/json", "Idempotency-Key": line.key}
        connection.request("POST", "/orders", json.dumps(line.order), headers)
        self._sent[line.key].set()
        response = connection.getresponse()
        body = _object(response.read())
        seconds += time.monotonic() - start
        replayed = response.headers.get("Idempotent-Replayed") == "true"
        retry_after = response.headers.get("Retry-After")
        answer = Answer(line, response.status, body, replayed, told_to_wait, seconds)
        return answer, None if retry_after is None else float(retry_after)


def _object(content: bytes) -> dict[str, Any]:
    """An answer's JSON object; what is none, such as a plain 500, goes under `detail`."""
    try:
        body = json.loads(content)
    except ValueError:
        body = content.decode("utf-8", "replace")
    return body if isinstance(body, dict) else {"detail": body}
