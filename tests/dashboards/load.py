"""A load that exercises everything: the checkout service under its few hundred orders, and a back office (`troubles.py`)
where processes are killed and paused, and a redis that goes away. Counts, on the callers' side, what they were told.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol, Self

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "examples" / "service"))


from replay import Answer, Line, read_orders, replay  # noqa: E402 - the path has just been set
from running import serving  # noqa: E402

from ..stores.redis_servers import RedisServer  # noqa: E402

SERVICE = ROOT / "examples" / "service"
TROUBLES = Path(__file__).with_name("troubles.py")

# What the processes that are killed and paused have in their hands: see VICTIMS and SLEEPERS in troubles.py.
TAKEN_FORWARD, TAKEN_UNDONE, TAKEN_HELD, OUTDATED, PAUSED = 12, 1, 1, 1, 4
LEASE = 1.0
PATIENCE = 40.0
"""seconds that a process may take to do one thing, on a busy machine"""

RETRIED = {"flaky card": 2, "lost reply": 1, "black hole": 4, "flaky carrier": 1, "no carrier": 2, "flaky refund": 2}
"""retries of steps that an order of this kind needs"""


class Observer(Protocol):
    """A scraper."""

    def watch(self, targets: Sequence[str], /) -> None:
        """Begin to, and return when all have been scraped."""

    def look(self, targets: Sequence[str], /) -> None:
        """Return when all have been scraped twice more."""


class Process:
    """One of the back office's processes."""

    def __init__(self, role: str, folder: Path, *redis_url: str) -> None:
        self.role = role
        self.log = folder / f"{role}.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, str(TROUBLES), role, str(folder), *redis_url],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        self.target = f"127.0.0.1:{self._said('start')['port']}"

    def _said(self, what: str) -> dict[str, int]:
        """Its answer, which is one line; fails with its log when it dies or takes too long."""
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], PATIENCE)
        if not ready:
            raise AssertionError(f"the {self.role} did not {what!r} within {PATIENCE:g} s; its log: {self._logged()}")
        line = self.process.stdout.readline()
        assert line, f"the {self.role} died of {what!r}, exit {self.process.wait()}; its log: {self._logged()}"
        said: dict[str, int] = json.loads(line)
        return said

    def do(self, what: str) -> Counter[str]:
        assert self.process.stdin is not None
        self.process.stdin.write(what + "\n")
        self.process.stdin.flush()
        return Counter(self._said(what))

    def _logged(self) -> str:
        return self.log.read_text("utf-8", "replace")[-2000:]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                stream.close()


@dataclass
class Told:
    """What the callers were told, and what else is known to have happened."""

    orders: list[Answer] = field(default_factory=list[Answer])
    by_trouble: dict[str, Counter[str]] = field(default_factory=dict[str, Counter[str]])
    alive: list[str] = field(default_factory=list[str])
    """the targets that are there at the end"""

    def note(self, trouble: str, reported: Counter[str]) -> None:
        self.by_trouble[trouble] = self.by_trouble.get(trouble, Counter()) + reported

    @property
    def runs(self) -> Counter[tuple[str, str]]:
        """Runs that ended, by workflow and outcome."""
        found = Counter[tuple[str, str]]()
        for trouble, reported in self.by_trouble.items():
            for name in OUTCOMES & set(reported):
                found[WORKFLOWS[trouble], name] += reported[name]
        for answer in self.orders:
            if not answer.replayed and answer.status in {201, 402, 410, 502}:
                found["checkout", "success" if answer.status == 201 else "compensated"] += 1
        # Takeovers raise no alert. A run that must be held is parked until an operator decides.
        found["transfer", "success"] += TAKEN_FORWARD + PAUSED
        found["transfer", "lost"] += PAUSED
        found["transfer-undone", "compensated"] += TAKEN_UNDONE
        found["transfer-held", "parked"] += TAKEN_HELD
        found["move", "success"] += found["move", "incomplete"]
        return found

    @property
    def outcomes(self) -> Counter[str]:
        """The same by outcome only."""
        found = Counter[str]()
        for (_, outcome), count in self.runs.items():
            found[outcome] += count
        return found

    @property
    def hits(self) -> Counter[str]:
        """Requests that met an earlier run, by outcome."""
        reported = sum(self.by_trouble.values(), Counter[str]())
        found = Counter({name: count for name, count in reported.items() if name in HITS})
        found["replayed"] += sum(answer.replayed for answer in self.orders)
        found["in_progress"] += sum(answer.told_to_wait for answer in self.orders)
        found["mismatch"] += sum(answer.status == 422 for answer in self.orders)
        return found

    @property
    def retries(self) -> int:
        ran = [answer for answer in self.orders if not answer.replayed]
        return sum(RETRIED.get(answer.line.kind, 0) for answer in ran) + 2 * self.by_trouble["retries"]["success"]


ALWAYS = ("good", "retries", "fan_out", "duplicates")
AT_FIRST = ("returns", "failures", "pivot", "schedules", "waits")
"""troubles by when they happen"""

WORKFLOWS = {
    "good": "returns",
    "returns": "returns",
    "failures": "newsletter",
    "retries": "stock-feed",
    "fan_out": "report",
    "duplicates": "report",
    "pivot": "move",
    "schedules": "stocktake",
    "waits": "approval",
    "time_outs": "scan",
    "bulk": "bulk",
    "claims": "bulk",
    "the_rest": "slow",
}
"""trouble -> the workflow that it runs"""
OUTCOMES = {"success", "failure", "compensated", "compensation_failed", "incomplete", "parked", "lost"}
HITS = {"replayed", "adopted", "in_progress", "mismatch", "held"}


@contextmanager
def load(folder: Path, observer: Observer, slices: int = 1, pause: float = 0.0) -> Iterator[Told]:
    """Start the processes, tell the observer where they can be scraped, and exercise everything; the processes go on until
    the end. `slices`, `pause`: spread the orders and troubles, for pictures."""
    reported = Told()
    with ExitStack() as stack:
        redis = stack.enter_context(RedisServer(folder / "redis", appendonly="always"))
        service = stack.enter_context(serving(SERVICE / "app.py", 0, folder))
        office = stack.enter_context(Process("office", folder, redis.url))
        victim, sleeper = (stack.enter_context(Process(role, folder)) for role in ("victim", "sleeper"))
        alive = [f"127.0.0.1:{service.port}", office.target, sleeper.target]
        observer.watch([*alive, victim.target])

        turns = threading.Semaphore(1)
        ordering = threading.Thread(target=_order, args=(service.port, reported, slices, turns))
        ordering.start()
        for trouble in ("queue", "time_outs"):
            reported.note(trouble, office.do(trouble))
        victim.do("hang")
        victim.process.kill()  # in the middle of it; the office takes over when the leases end
        # Twice at least: Prometheus sees a counter rise, but not come into being.
        for number in range(max(2, slices)):
            for trouble in (*ALWAYS, *(AT_FIRST if number < 2 else ())):
                reported.note(trouble, office.do(trouble))
            observer.look(alive)
            turns.release()
            time.sleep(pause)
        _redis_goes_away(redis, office, reported, lambda: observer.look(alive))
        sleeper.do("hang")
        observer.look(alive)
        os.kill(sleeper.process.pid, signal.SIGSTOP)
        time.sleep(LEASE)
        office.do("taken_over")
        os.kill(sleeper.process.pid, signal.SIGCONT)
        sleeper.do("wake")
        reported.note("the_rest", office.do("the_rest"))
        ordering.join()
        reported.note("queue", office.do("queue"))  # so that a run is in flight when it ends
        observer.look(alive)
        reported.alive = alive
        yield reported


def _redis_goes_away(redis: RedisServer, office: Process, reported: Told, look: Callable[[], None]) -> None:
    reported.note("bulk", office.do("bulk"))
    look()
    reported.note("parked", office.do("parked"))
    redis.kill()
    for _ in range(3):
        reported.note("claims", office.do("claims"))
        look()
    time.sleep(LEASE)  # what is going on parks
    redis.start()
    for _ in range(3):  # on a busy machine, the office may ask when the pause is nearly over
        look()
        redis.pause()
        resuming = threading.Timer(1.5, redis.resume)
        resuming.start()
        reported.note("claims", office.do("claims"))
        resuming.join()
    look()  # Prometheus needs a scrape before and one after, close to each other.


def _order(port: int, reported: Told, slices: int, turns: threading.Semaphore) -> None:
    """Send the orders, a slice whenever it is its turn."""
    lines = read_orders(SERVICE / "orders.jsonl")
    size = -(-len(lines) // slices)
    for start in range(0, len(lines), size):
        turns.acquire()
        reported.orders += replay(port, _by_itself(lines, start, start + size))


def _by_itself(lines: list[Line], start: int, end: int) -> list[Line]:
    """Some of the lines; those that wait for a line of an earlier part have nothing to wait for."""
    known = {line.key for line in lines[:start]}
    return [replace(line, when=None) if line.key in known else line for line in lines[start:end]]
