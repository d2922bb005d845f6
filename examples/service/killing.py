"""The demo's kill -9: orders that are interrupted at known points, and how they end.

Five orders meet partners that hang, each at a different point. While they hang, and other orders are in progress, the
service is killed and started again. No client retries the five: the new process finds their runs once the leases of the
dead one have ended.
"""

import http.client
import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

from audit import history
from flowcore.status import Status
from flowcore.stores import RedisStore, RunRecord, SQLiteStore
from replay import Answer, Line, Replay, replay
from running import DemoError, Service, scrape
from telling import Story, counts, listed

LEASE = 1.5  # seconds
HANG = 60.0  # seconds: longer than any test takes
PATIENCE = 30.0  # seconds to wait for events that usually take one or two

ORDER = {"sku": "mug", "quantity": 1, "cents": 1200, "card": "tok_visa", "address": "home"}
DONE = ("reserved", "charged", "shipped", "notified")
UNDONE = ("reserved", "charged", "refunded", "released")


@dataclass(frozen=True)
class Case:
    """An order to interrupt when the books have the first `entries` of `at_last`, and its record reads `record`."""

    special: dict[str, str]
    entries: int
    record: str
    at_last: tuple[str, ...] = DONE


CASES = {
    "caught-1": Case({"card": "tok_hang_before_charge"}, 1, "charge in flight"),
    "caught-2": Case({"card": "tok_hang_after_charge"}, 2, "charge in flight"),
    "caught-3": Case({"address": "hang after shipping"}, 3, "ship in flight"),
    "caught-4": Case({"card": "tok_hang_before_refund", "address": "island"}, 2, "being undone", UNDONE),
    "caught-5": Case({"card": "tok_hang_after_refund", "address": "island"}, 3, "being undone", UNDONE),
}


class Killing:
    """Kills `service`, whose runs are in `store`. `mark`: the suffix of the keys of this demo's orders."""

    def __init__(self, story: Story, service: Service, store: SQLiteStore | RedisStore, mark: str) -> None:
        self._story = story
        self._service = service
        self._store = store
        self._cases = {name + mark: case for name, case in CASES.items()}
        self._lines = [
            Line(number, "caught", key, ORDER | case.special, (201,) if case.at_last is DONE else (502,))
            for number, (key, case) in enumerate(self._cases.items(), start=1)
        ]
        self._cases = {line.ref: self._cases[line.key] for line in self._lines}

    def run(self, lines: Sequence[Line], clients: int, *again: str) -> list[Answer]:
        """Kill the service while it works on `lines`, and start it with the options `again`. Returns all answers."""
        others = Replay(self._service.port, lines, patient=True)
        with ThreadPoolExecutor() as pool:
            try:
                replaying = pool.submit(others.run, clients)
                self._wait(lambda: replaying.done() or others.answered >= len(lines) // 3, "a third of the orders")
                for line in self._lines:
                    pool.submit(self._place, line)
                self._wait(self._caught, "five orders to hang where they should")
                self._service.kill()
                killed = time.monotonic()
                self._tell_moment(lines)
                self._service.start(*again)
                self._tell_takeover(killed)
                answers = replaying.result()
            finally:
                others.patient = False
        answers += replay(self._service.port, self._lines)
        refs = {answer.line.ref for answer in answers}
        left = [f"{record.key}: {_in_words(record)}" for record in self._unfinished() if record.key in refs]
        self._story.check(
            not left,
            f"the clients of {len(others.cut_off)} more retried with the same key; no order is left half done",
            left,
        )
        taken = counts(scrape(self._service.port), "flowcore_run_recoveries_total", "decision")
        self._story.say(f"  flowcore_run_recoveries_total  {listed(taken)}")
        return answers

    def _place(self, line: Line) -> None:
        """Send an order that will get no response."""
        connection = http.client.HTTPConnection("127.0.0.1", self._service.port, timeout=HANG)
        headers = {"Content-Type": "application/json", "Idempotency-Key": line.key}
        with suppress(OSError, http.client.HTTPException):
            connection.request("POST", "/orders", json.dumps(line.order), headers)
            connection.getresponse()
        connection.close()

    def _wait(self, condition: Callable[[], bool], what: str) -> None:
        give_up = time.monotonic() + PATIENCE
        while not condition():
            if self._service.process.poll() is not None:
                raise ConnectionError("it ended before it was killed")
            if time.monotonic() > give_up:
                raise DemoError(f"Timed out waiting for {what}.")
            time.sleep(0.01)

    def _caught(self) -> bool:
        """Whether each of the five orders hangs at its point."""
        return all(
            self._stands(key) == (case.at_last[: case.entries], case.record) for key, case in self._cases.items()
        )

    def _stands(self, key: str) -> tuple[tuple[str, ...], str]:
        """Return the entries of an order in the books, and a description of its record."""
        return history(self._service.ledger, key), _in_words(self._store.find(key))

    def _unfinished(self) -> list[RunRecord]:
        return [record for word in ("running", "parked", "held") for record in self._store.list_runs(status=word)]

    def _tell_moment(self, lines: Sequence[Line]) -> None:
        story = self._story
        story.chapter(f"kill -9 {self._service.process.pid}, and what is left")
        story.say(story.paint(f"  {'':<10}{'in the books':<33}in the record of its run", "dim"))
        for key, name in zip(self._cases, CASES, strict=True):
            entries, record = self._stands(key)
            story.say(f"  {name:<10}{', '.join(entries):<33}{record}")
        refs = {line.ref for line in lines}
        others = sum(record.key in refs for record in self._unfinished())
        story.say(f"  others in flight, wherever they were just then: {others}")

    def _tell_takeover(self, killed: float) -> None:
        story = self._story
        story.chapter(
            f"Started again as {self._service.process.pid}, {time.monotonic() - killed:.1f} s after the kill "
            f"(a lease is {LEASE:g} s), and no client asks after the five"
        )
        over: dict[str, float] = {}
        while len(over) < len(self._cases) and time.monotonic() < killed + PATIENCE:
            for key in self._cases.keys() - over.keys():
                if _is_over(self._store.find(key)):
                    over[key] = time.monotonic() - killed
            time.sleep(0.01)
        faults: list[str] = []
        for (key, case), name in zip(self._cases.items(), CASES, strict=True):
            entries, record = self._stands(key)
            when = f"{over[key]:.1f} s after the kill" if key in over else "still"
            story.say(f"  {name:<10}{'+ ' + ', '.join(entries[case.entries :]):<33}{record}, {when}")
            if entries != case.at_last:
                faults.append(f"{name}: {', '.join(entries)}; {record}")
        story.check(not faults, "each was resumed where it stood: nothing twice, nothing left undone", faults)


def _in_words(record: RunRecord | None) -> str:
    if record is None:
        return "not begun"
    if _is_over(record):
        return str(record.status)
    if record.undoing:
        return "being undone"
    running = [name for name, report in record.steps.items() if report.status is Status.RUNNING]
    return f"{' and '.join(running) or 'no step'} in flight"


def _is_over(record: RunRecord | None) -> bool:
    return record is not None and record.status is not Status.RUNNING
