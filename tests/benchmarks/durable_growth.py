"""What each verb of a durable store costs as the store fills up: nothing may grow with what is merely stored.

Each size has its own store. Nine of ten runs in it have ended; the tenth waits. The sizes take turns. `relative` is the smallest size. SQLite does
not wait for the disk here. A store of 1,000,000 runs is made of copies of the rows of 1,000 that were recorded.
"""

from __future__ import annotations

import math
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from flowcore import Engine, Workflow
from flowcore.stores import RedisStore, SQLiteStore

from ..stores.redis_runs import LONG, a_checkpoint, a_claim, an_ending, begin
from .durable_work import a_redis
from .harness import Options, Report, Row, Target, interleaved, median_ratio

__all__ = ["measure"]

RECORDED: Final = 1_000
SIZES: Final = {"sqlite": (RECORDED, 100_000, 1_000_000), "redis": (RECORDED, 200_000)}
QUICK: Final = {"sqlite": (RECORDED, 20_000), "redis": (RECORDED, 5_000)}
FLAT: Final = Target("the largest store", 1.5, "the smallest")
CALLS: Final = 200
"""of a verb in one turn"""

Verb = Callable[[int], object]


def measure(options: Options) -> Report:
    report = Report("durable growth", "a durable store as it fills up", "µs per call", "the smallest store")
    sizes = QUICK if options.quick else SIZES
    rounds = 3 if options.quick else 7
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        stores: dict[str, dict[int, Any]] = {
            "sqlite": {size: stack.enter_context(_sqlite(folder / f"{size}", size)) for size in sizes["sqlite"]}
        }
        server = a_redis(report, stack, folder / "redis")
        if server is not None:
            stores["redis"] = {size: _redis_store(server, size) for size in sizes["redis"]}
        for name, full in stores.items():
            verbs = {size: _verbs(store) for size, store in full.items()}
            for verb in verbs[RECORDED]:
                turns = {str(size): _turn(of[verb]) for size, of in verbs.items()}
                report.rows += _curve(f"{name} {verb}", turns, rounds)
    return report


def _curve(what: str, turns: dict[str, Callable[[], float]], rounds: int) -> list[Row]:
    for turn in turns.values():
        turn()
    samples = interleaved(turns, rounds)
    first, last, rows = min(turns, key=int), max(turns, key=int), list[Row]()
    for size in turns:
        ratio = median_ratio(samples, size, first)
        figure, target = statistics.median(samples[size]) * 1e6, FLAT if size == last else None
        rows.append(Row(f"{what}: {int(size):,} runs", figure, None, ratio, target, ratio if target else None))
    return rows


def _turn(verb: Verb) -> Callable[[], float]:
    def turn() -> float:
        before = time.perf_counter()
        for number in range(CALLS):
            verb(number)
        return (time.perf_counter() - before) / CALLS

    return turn


def _verbs(store: Any) -> dict[str, Verb]:
    """What callers, owners, recovery and operators ask of a store. Each claim is ended, so that the store stays as large."""
    wf = Workflow("trip")
    wf.add_step("book", lambda ctx: "12A")
    engine = Engine(store=store, workflows=[wf], lease=LONG)
    engine.run(wf, {"seat": "12A"}, idempotency_key="replayed")
    claim, fence = begin(store, "under way")

    def claim_and_finish(number: int) -> None:
        fresh = a_claim(f"fresh {time.monotonic_ns()} {number}")
        store.finish(an_ending(fresh, store.claim(fresh).fence))

    return {
        "claim and finish": claim_and_finish,
        "replay": lambda _: engine.run(wf, {"seat": "12A"}, idempotency_key="replayed"),
        "checkpoint": lambda _: store.checkpoint(a_checkpoint(claim, fence, lease=LONG)),
        "recover with nothing to do": lambda _: engine.recover(),
        "list one page": lambda _: store.list_runs(),
        "counts": lambda _: store.counts(),
        "find": lambda number: store.find(f"recorded {number}"),
    }


def _record(store: Any, number: int) -> None:
    for one in range(number):
        claim, fence = begin(store, f"recorded {one}", lease=LONG)
        if one % 10:
            store.finish(an_ending(claim, fence))
        else:
            store.finish(replace(an_ending(claim, fence, "waiting"), retry_in=math.inf))


@contextmanager
def _sqlite(path: Path, size: int) -> Iterator[SQLiteStore]:
    with closing(SQLiteStore(path, durability="normal")) as store:
        _record(store, RECORDED)
    with closing(sqlite3.connect(path)) as database:
        columns = [str(row[1]) for row in database.execute("PRAGMA table_info(runs)")]
        copied = {"id": "id + :step", "key": "key || ' ' || :step", "run_id": "lower(hex(randomblob(16)))"}
        picked = ", ".join(copied.get(column, column) for column in columns)
        with database:
            for step in range(RECORDED, size, RECORDED):
                place = {"step": step, "recorded": RECORDED}
                database.execute(f"INSERT INTO runs SELECT {picked} FROM runs WHERE id <= :recorded", place)
                database.execute(
                    "INSERT INTO fields SELECT run + :step, name, text FROM fields WHERE run <= :recorded", place
                )
    with closing(SQLiteStore(path, durability="normal")) as store:
        yield store


def _redis_store(url: str, size: int) -> RedisStore:
    import redis

    store = RedisStore(redis.Redis.from_url(url), prefix=f"growth-{size}")
    _record(store, size)
    return store
