"""Sends a file of orders to the service, as several clients at once, and collects the responses."""

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

PATIENCE = 30.0  # seconds to wait for a response, or for an earlier line to be sent or answered
MOST_WAITS = 30  # after so many responses with Retry-After, the last one is the answer


@dataclass(frozen=True)
class Line:
    """One line of orders.jsonl; see make_orders.py."""

    number: int
    kind: str
    key: str
    order: dict[str, Any]
    expect: tuple[int, ...]
    when: str | None = None

    @property
    def ref(self) -> str:
        """The key that the service gives to the order: its account, here guest, and the line's key."""
        return f"guest/{self.key}"


@dataclass(frozen=True)
class Answer:
    """The last response to a line, and how often the client had to wait for it."""

    line: Line
    status: int
    body: dict[str, Any]
    replayed: bool
    told_to_wait: int
    """how often the client got a 409 or a 503 and retried"""
    seconds: float
    """the time of all requests of this line, without the waits between them"""

    @property
    def expected(self) -> bool:
        return self.status in self.line.expect


def read_orders(path: Path, mark: str = "") -> list[Line]:
    """Read a file of orders. `mark`: a suffix for each key, so that orders are new to a store that has seen them."""
    lines = [json.loads(text) for text in path.read_text("utf-8").splitlines()]
    return [
        Line(number, **line | {"key": line["key"] + mark, "expect": tuple(line["expect"])})
        for number, line in enumerate(lines, start=1)
    ]


def replay(port: int, lines: Sequence[Line], clients: int = 8) -> list[Answer]:
    """Send `lines` in their order from `clients` threads. Returns the answers in the order of the lines.

    A client that gets a response with Retry-After (409 or 503) retries after that time. Raises OSError or HTTPException
    if the service does not respond.
    """
    return Replay(port, lines).run(clients)


class Replay:
    """`replay` as an object that shows its progress. `patient`: a client retries if its connection breaks."""

    def __init__(self, port: int, lines: Sequence[Line], *, patient: bool = False) -> None:
        self.patient = patient
        self.cut_off: set[int] = set()
        """the numbers of the lines whose connection broke during a request"""
        self._port = port
        self._total = len(lines)
        self._sent = {line.key: threading.Event() for line in lines}
        self._answered = {line.key: threading.Event() for line in lines}
        self._answers: list[Answer] = []
        # The queue is ordered by (when the line is due, its number): the file in its order, then lines to be retried.
        self._due: queue.PriorityQueue[tuple[float, int, Line | None, int, float]] = queue.PriorityQueue()
        for line in lines:
            self._due.put((0.0, line.number, line, 0, 0.0))

    @property
    def answered(self) -> int:
        """The number of lines that have their final answer."""
        return len(self._answers)

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
                self._wait_for_earlier(line)
                answer, retry_after = self._send_until_answered(connection, line, told_to_wait, seconds)
                if retry_after is not None and told_to_wait < MOST_WAITS:
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
                event.set()  # wakes the waiting clients: no further line will be sent or answered
            raise
        finally:
            connection.close()

    def _stop(self, clients: int) -> None:
        for number in range(clients):
            self._due.put((-math.inf, -1 - number, None, 0, 0.0))

    def _wait_for_earlier(self, line: Line) -> None:
        waits_for = {"after": self._answered, "during": self._sent}.get(line.when or "")
        if waits_for is not None and not waits_for[line.key].wait(PATIENCE):
            raise TimeoutError(f"line {line.number} timed out waiting for an earlier one with key {line.key}")

    def _send_until_answered(
        self, connection: http.client.HTTPConnection, line: Line, told_to_wait: int, seconds: float
    ) -> tuple[Answer, float | None]:
        """Send a line. If the connection breaks, retry with the same key: the client cannot know what was done."""
        give_up = time.monotonic() + PATIENCE
        while True:
            try:
                return self._send(connection, line, told_to_wait, seconds)
            except (OSError, http.client.HTTPException):
                connection.close()  # the next request opens it again
                if not self.patient or time.monotonic() > give_up:
                    raise
                self.cut_off.add(line.number)
                time.sleep(0.1)

    def _send(
        self, connection: http.client.HTTPConnection, line: Line, told_to_wait: int, seconds: float
    ) -> tuple[Answer, float | None]:
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
    """Return the JSON object of a response. Any other body, such as that of a plain 500, is put under `detail`."""
    try:
        body = json.loads(content)
    except ValueError:
        body = content.decode("utf-8", "replace")
    return body if isinstance(body, dict) else {"detail": body}
