"""Processes that meet with something awkward in the middle of a run, and what their callers then heard."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

from flowcore import AsyncEngine, Engine, FlowcoreError
from tests.durable.crash import Place
from tests.durable.engines import recover_until, run
from tests.durable.ledger import Journal, Ledger, lines_of
from tests.durable.sagas import Boom, World, saga
from tests.durable.watched import Watched

__all__ = ["Heard", "Part", "awaken", "fork", "heard", "play", "take_over"]


@dataclass(frozen=True)
class Part:
    """A process that runs a saga. `mishap`: what happens to it, once, when it comes to `at`:

    - frozen: it is stopped, as by SIGSTOP, until it is sent SIGCONT
    - gil: a call of C does not let go of the interpreter's lock until it is awoken
    - waits: its step waits until it is awoken
    - killed: kill -9
    - child returns, child exits, child fails: it forks, and the child comes back from the step in that way

    `skew`: by how many seconds its clock is wrong.
    """

    place: Place
    driver: str
    saga: str
    key: str
    lease: float
    at: str = ""
    mishap: str = ""
    wait: float | None = None
    skew: float = 0.0

    @property
    def bell(self) -> str:
        """A pipe that a process waits at, with a name of its own."""
        return f"{self.place.ledger}.{self.driver}.{self.key}.bell"

    @contextmanager
    def store(self) -> Iterator[Any]:
        """The store, as a process with such a clock sees it, which this one is from now on."""
        right = time.time
        time.time = lambda: right() + self.skew
        options = {"wall": time.time} if self.place.kind == "sqlite" else {}
        with self.place.store(asynchronous=self.driver == "asyncio", **options) as store:
            yield store

    @property
    def outcomes(self) -> str:
        return f"{self.place.ledger}.heard"


@dataclass(frozen=True)
class Heard:
    """What a caller heard: the status of its run, or what was raised."""

    key: str
    said: str
    run_id: str
    replayed: bool
    message: str


def play(part: Part) -> None:
    """What the process does."""
    met: list[str] = []

    def point(label: str) -> None:
        if label == part.at and not met:
            met.append(label)
            with still:
                _MISHAPS.get(part.mishap, _come_back)(part)

    if part.mishap in {"gil", "waits"}:
        os.mkfifo(part.bell)
    wf = saga(part.saga, World(Ledger(part.place.ledger), point))
    with part.store() as real:
        # A process that stands still in the middle of a transaction, its heartbeat's for one, keeps all others from
        # writing to an SQLite file: that cannot be prevented, and these tests are not about it.
        keeps = part.place.kind == "sqlite" and part.mishap in {"frozen", "gil"}
        still = real._database._writer.lock if keeps else nullcontext()
        store = Watched(real, Journal(part.place.journal), point)
        try:
            ended = run(part.driver, store, wf, part.key, part.lease, check=True, wait=part.wait)
            reported: list[Any] = [part.key, str(ended.status), ended.id, ended.replayed, ""]
        except (FlowcoreError, Boom) as error:
            reported = [part.key, type(error).__name__, _run_of(error), False, str(error)]
    Ledger(part.outcomes).write(reported)


def take_over(part: Part) -> None:
    """What a process does that recovers runs without an owner, until the run is over."""
    wf = saga(part.saga, World(Ledger(part.place.ledger)))
    with part.store() as real, part.place.store() as near:
        store = Watched(real, Journal(part.place.journal))
        over = partial(_is_over, near, part.key)
        recover_until(part.driver, store, wf, part.lease / 10, over)


def fork(part: Part) -> None:
    """What a process does that forks in the middle of a run: the child uses the same engine for a run of its own, until it
    is awoken, and the parent goes no further."""
    os.mkfifo(part.bell)
    parent = os.getpid()

    def point(label: str) -> None:
        if label != part.at:
            return
        if os.getpid() != parent:
            _wait(part)
        elif os.fork():
            threading.Event().wait()
        else:
            signal.alarm(60)  # ends it if it is never woken: the nursery does not know of it
            go("the child's")
            os._exit(0)

    wf = saga(part.saga, World(Ledger(part.place.ledger), point))
    with part.store() as store:
        engine = (Engine if part.driver == "threads" else AsyncEngine)(store=store, lease=part.lease)

        def go(key: str) -> None:
            if isinstance(engine, Engine):
                engine.run(wf, {"key": key}, idempotency_key=key)
            else:
                asyncio.run(engine.run(wf, {"key": key}, idempotency_key=key))

        go(part.key)


def _is_over(store: Any, key: str) -> bool:
    record = store.find(key)
    return record is not None and record.status in {"success", "compensated"}


def heard(place: Place) -> dict[str, Heard]:
    """What callers have heard by now, by key."""
    return {key: Heard(key, *more) for key, *more in lines_of(f"{place.ledger}.heard")}


def awaken(part: Part, pid: int) -> None:
    """End the mishap."""
    if part.mishap == "frozen":
        os.kill(pid, signal.SIGCONT)
    else:
        os.close(os.open(part.bell, os.O_WRONLY))


def _run_of(error: Any) -> str:
    return str(getattr(error, "run_id", None) or getattr(error, "run", None))


def _freeze(part: Part) -> None:
    # All threads are stopped, this one at once: one that os.kill() leaves to another might go on for a moment.
    signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)


def _hold_the_gil(part: Part) -> None:
    ctypes.PyDLL(None).open(part.bell.encode(), os.O_RDONLY)  # returns once the other end is opened


def _wait(part: Part) -> None:
    os.close(os.open(part.bell, os.O_RDONLY))


def _come_back(part: Part) -> None:
    """Fork; the child comes back from the step in one way or another, and the parent waits for what comes of it."""
    child = os.fork()
    if child:
        os.waitpid(child, 0)
    elif part.mishap == "child exits":
        sys.exit()
    elif part.mishap == "child fails":
        raise Boom(part.at)


def _die(part: Part) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


_MISHAPS: dict[str, Callable[[Part], None]] = {"frozen": _freeze, "gil": _hold_the_gil, "waits": _wait, "killed": _die}
