"""What the processes in a storm do, until they are killed or told to stop: run sagas under keys that others run too, and
recover."""

from __future__ import annotations

import asyncio
import faulthandler
import logging
import mmap
import os
import random
import signal
import struct
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, Final

from redis.backoff import ConstantBackoff
from redis.retry import Retry

from flowcore import AsyncEngine, Engine, FlowcoreError, IdempotencyError, IdempotencyHeld, StoreError, Workflow
from flowcore.status import Status
from flowcore.stores.base import RELEASED
from tests.durable.crash import Place
from tests.durable.ledger import Journal, Ledger
from tests.durable.sagas import SAGAS, World, saga
from tests.durable.watched import Watched

__all__ = ["KEYS", "LEASE", "ROUND", "Post", "saga_of", "sendings_of", "work"]

KEYS: Final = 200
"""at a time: a key is given up for the next one of its place once its run is over"""
LEASE: Final = 1.0
GRACE: Final = 0.3
"""seconds that calls in flight have to end where a process is told to stop"""
THREADS: Final = 3
_SAGAS: Final = tuple(name for name in SAGAS if name not in {"verified", "slow"})
_OVER: Final = frozenset({Status.SUCCESS, *RELEASED})
ROUND: Final = struct.Struct("<I")
"""how the board tells the round of a place"""


def saga_of(world: World) -> dict[int, Workflow]:
    """By the number of a key's place, modulo how many there are."""
    return {number: saga(name, world) for number, name in enumerate(_SAGAS)}


@dataclass(frozen=True)
class Post:
    """Where a process works. `board`: a file with the round of each of the places."""

    place: Place
    board: str
    asynchronous: bool


def sendings_of(place: Place) -> str:
    """The file that says what was sent: key, value, and whether that was tried, counts or is late, and from when to when."""
    return f"{place.ledger}.sendings"


def work(post: Post, seed: float) -> None:
    faulthandler.enable()  # SIGABRT, for a process that hangs: it says where.
    dice = random.Random(seed)

    def point(label: str) -> None:
        """An effect is followed by a while in which its process may die or freeze."""
        if label.startswith("after") and dice.random() < 0.1:
            time.sleep(dice.random() * LEASE / 10)

    logging.getLogger("flowcore").setLevel(logging.ERROR)  # a storm's warnings are many
    world = World(Ledger(post.place.ledger), point, broken=lambda: dice.random() < 0.3, asynchronous=post.asynchronous)
    sagas = saga_of(world)
    options: dict[str, Any] = {}
    if post.place.kind == "redis":
        options = {"socket_timeout": LEASE / 3, "socket_connect_timeout": LEASE / 3}
        if not post.asynchronous:
            options["retry"] = Retry(ConstantBackoff(0.01), 2)
    file = os.open(post.board, os.O_RDWR)
    with mmap.mmap(file, 0) as board, post.place.store(asynchronous=post.asynchronous, **options) as real:
        watched = Watched(real, Journal(post.place.journal))
        if post.asynchronous:
            asyncio.run(_work_async(watched, sagas, board, dice))
            return
        told, stop = SimpleQueue[None](), threading.Event()
        # A handler must not set an event that its own thread may be waiting for: it would wait for the event's lock.
        signal.signal(signal.SIGTERM, lambda *_: told.put(None))
        with Engine(
            store=watched, lease=LEASE, workflows=sagas.values(), recover_every=LEASE / 3, park_after=0.01
        ) as engine:
            reported = Ledger(sendings_of(post.place))
            callers = (engine, sagas, board, dice, stop, reported)
            threads = [threading.Thread(target=_call, args=callers) for _ in range(THREADS)]
            for thread in threads:
                thread.start()
            while told.empty():
                time.sleep(0.05)  # A signal that the system gives to another thread does not end a wait of this one.
            stop.set()
            engine.close(timeout=GRACE)
            for thread in threads:
                thread.join()


def _call(
    engine: Engine,
    sagas: dict[int, Workflow],
    board: mmap.mmap,
    dice: random.Random,
    stop: threading.Event,
    reported: Ledger,
) -> None:
    while not stop.is_set():
        _send(engine, sagas, board, dice, reported)
        place, number = _drawn(board, dice)
        key = f"{place}.{number}"
        wait = dice.choice((None, 0.05))
        try:
            run = engine.run(sagas[place % len(sagas)], {"key": key}, idempotency_key=key, check=False, wait=wait)
            over = run.status in _OVER
            if run.held:
                over = _decide(engine.store, key, dice)
        except FlowcoreError as error:
            over = isinstance(error, IdempotencyHeld) and _decide(engine.store, key, dice)
            if not isinstance(error, IdempotencyError):  # the store is down
                time.sleep(0.02)
        if over:
            _next(board, place, number)


def _send(engine: Engine, sagas: dict[int, Workflow], board: mmap.mmap, dice: random.Random, reported: Ledger) -> None:
    """Send a value to some run that waits, will wait, or has waited, and write down what became of it."""
    place = dice.choice([place for place in range(KEYS) if sagas[place % len(sagas)].name == "waits"])
    key = f"{place}.{ROUND.unpack_from(board, place * ROUND.size)[0]}"
    value = f"{os.getpid()}/{dice.getrandbits(40)}"
    for _ in range(dice.choice((1, 1, 2))):  # twice, under one id, is once
        began = time.monotonic()
        reported.write([key, value, "tried", began, began])
        try:
            counts = engine.send(key, "approved", value, id=value)
        except FlowcoreError:  # it is over, past that wait, or unknown; or the store is down
            return
        reported.write([key, value, "counts" if counts else "late", began, time.monotonic()])


def _decide(store: Any, key: str, dice: random.Random) -> bool:
    """What an operator does about a key that is held; True: nothing, it stays so."""
    decision = dice.choice(("resume", "undo", "leave"))
    if decision == "leave":
        return True
    with suppress(StoreError):  # another process has decided, or the store is down
        getattr(store, decision)(key)
    return False


async def _work_async(store: Any, sagas: dict[int, Workflow], board: mmap.mmap, dice: random.Random) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)

    async def call() -> None:
        while not stop.is_set():
            place, number = _drawn(board, dice)
            key = f"{place}.{number}"
            over = False
            try:
                run = await engine.run(sagas[place % len(sagas)], {"key": key}, idempotency_key=key, check=False)
                over = run.status in _OVER or run.held
            except IdempotencyError as error:
                over = isinstance(error, IdempotencyHeld)
            except FlowcoreError:
                await asyncio.sleep(0.02)
            if over:
                _next(board, place, number)

    async with AsyncEngine(
        store=store, lease=LEASE, workflows=sagas.values(), recover_every=LEASE / 3, park_after=0.01
    ) as engine:
        callers = [asyncio.create_task(call()) for _ in range(THREADS)]
        await stop.wait()
        await engine.aclose(timeout=GRACE)
        await asyncio.gather(*callers)


def _drawn(board: mmap.mmap, dice: random.Random) -> tuple[int, int]:
    place = dice.randrange(KEYS)
    return place, ROUND.unpack_from(board, place * ROUND.size)[0]


def _next(board: mmap.mmap, place: int, number: int) -> None:
    """The key is over: from now on its place has another one."""
    if ROUND.unpack_from(board, place * ROUND.size)[0] == number:
        ROUND.pack_into(board, place * ROUND.size, number + 1)
