"""Sends a file of orders to the service, as several clients at once would, and keeps what they got."""

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
MOST_WAITS = 30  # after so many replies that ask for patience, that is the answer


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
        """What the service calls the order: its account, here that of a guest, and the key."""
        return f"guest/{self.key}"


@dataclass(frozen=True)
class Answer:
    """What the client of a line got in the end."""

    line: Line
    status: int
    body: dict[str, Any]
    replayed: bool
    told_to_wait: int
    """how often a 409 or a 503 came first"""
    seconds: float
    """from the first request to the last answer, without the waiting"""

    @property
    def expected(self) -> bool:
        return self.status in self.line.expect


def read_orders(path: Path, mark: str = "") -> list[Line]:
    """The lines of a file. `mark` ends each key, so that a store that has seen the file before takes them for new."""
    lines = [json.loads(text) for text in path.read_text("utf-8").splitlines()]
    return [
        Line(number, **line | {"key": line["key"] + mark, "expect": tuple(line["expect"])})
        for number, line in enumerate(lines, start=1)
    ]


def replay(port: int, lines: Sequence[Line], clients: int = 8) -> list[Answer]:
    """Send `lines` in their order from `clients` threads; answers come in the order of the lines.

    A client that is asked to wait (409 or 503 with Retry-After) asks again after that time. Raises OSError or
    HTTPException where the service does not answer.
    """
    return Replay(port, lines).run(clients)


class Replay:
    """`replay`, for those who want to look on. `patient`: a client whose connection breaks asks again."""

    def __init__(self, port: int, lines: Sequence[Line], *, patient: bool = False) -> None:
        self.patient = patient
        self.cut_off: set[int] = set()
        """the numbers of the lines that were under way when a connection broke"""
        self._port = port
        self._total = len(lines)
        self._sent = {line.key: threading.Event() for line in lines}
        self._answered = {line.key: threading.Event() for line in lines}
        self._answers: list[Answer] = []
        # (when it is due, number) orders the queue: first the file, in its order; then those who were asked to wait.
        self._due: queue.PriorityQueue[tuple[float, int, Line | None, int, float]] = queue.PriorityQueue()
        for line in lines:
            self._due.put((0.0, line.number, line, 0, 0.0))

    @property
    def answered(self) -> int:
        """How many lines have had their answer."""
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
                answer, retry_after = self.retry_store_call(connection, line, told_to_wait, seconds)
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
                event.set()  # no waiter should wait for what will not come
            raise
        finally:
            connection.close()

    def _stop(self, clients: int) -> None:
        for number in range(clients):
            self._due.put((-math.inf, -1 - number, None, 0, 0.0))

    def _wait_for_earlier(self, line: Line) -> None:
        waits_for = {"after": self._answered, "during": self._sent}.get(line.when or "")
        if waits_for is not None and not waits_for[line.key].wait(PATIENCE):
            raise TimeoutError(f"line {line.number} waited in vain for an earlier one with key {line.key}")

    def retry_store_call(
        self, connection: http.client.HTTPConnection, line: Line, told_to_wait: int, seconds: float
    ) -> tuple[Answer, float | None]:
        """Send it; again, if need be, with the same key: a client without an answer cannot know what became of it."""
        give_up = time.monotonic() + PATIENCE
        while True:
            try:
                return self._send(connection, line, told_to_wait, seconds)
            except (OSError, http.client.HTTPException):
                connection.close()  # the next request opens it anew
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
    """An answer's JSON object; what is none, such as a plain 500, goes under `detail`."""
    try:
        body = json.loads(content)
    except ValueError:
        body = content.decode("utf-8", "replace")
    return body if isinstance(body, dict) else {"detail": body}
