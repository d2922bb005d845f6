"""Many runs that wait: they hold no thread, and a round of recovery costs the same as without them."""

import math
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from flowcore import Engine, Workflow
from flowcore.stores import RedisStore, SQLiteStore
from tests.core.conftest import PATIENCE
from tests.stores.redis_runs import an_ending, begin
from tests.stores.redis_servers import StartRedis, start_redis

__all__ = ["start_redis"]  # a fixture


def order() -> Workflow:
    wf = Workflow("many")
    approved = wf.wait("approved")
    wf.add_step("ship", lambda ctx: f"shipped after {ctx['approved']}", depends_on=approved)
    return wf


def leave(store: Any, wf: Workflow, numbers: range) -> None:
    """Let so many runs wait for a value, as an engine leaves them."""
    for number in numbers:
        if number == numbers[len(numbers) // 2]:
            with Engine(store=store) as engine:
                assert engine.run(wf, idempotency_key=f"k{number}", until="waiting").status == "waiting"
            continue
        claim, fence = begin(store, f"k{number}", workflow=wf.name, values={}, begins=())
        ending = an_ending(claim, fence, "waiting")
        ending.retry_in = math.inf if number % 2 else 100_000.0
        ending.received, ending.record.waiting_for = 0, ("approved",)
        assert store.finish(ending) is None


Costs = Callable[[], int]


@pytest.fixture(params=["sqlite", "redis"])
def costly(request: pytest.FixtureRequest, tmp_path: Path, start_redis: StartRedis) -> Iterator[tuple[Any, Costs]]:
    """A store, and a function that returns what a round of recovery costs it when no run is due: instructions of SQLite's
    machine, in tens, or commands of the Redis server."""
    if request.param == "sqlite":
        database = SQLiteStore(tmp_path / "runs.db", durability="normal")
        yield database, lambda: instructions(database)
        database.close()
        return
    client = redis.Redis.from_url(start_redis().url)
    store = RedisStore(client)
    yield store, lambda: commands(client, store)
    store.close()
    client.close()


def instructions(store: SQLiteStore) -> int:
    steps = 0

    def count() -> int:
        nonlocal steps
        steps += 1
        return 0

    def watch(db: sqlite3.Cursor) -> None:
        db.connection.set_progress_handler(count, 10)

    store._database.read(watch)
    assert not store.list_resumable(["many"])
    store._database.read(lambda db: db.connection.set_progress_handler(None, 0))
    return steps


def commands(client: Any, store: RedisStore) -> int:
    assert not store.list_resumable(["many"])  # the server knows the script now
    client.config_resetstat()
    assert not store.list_resumable(["many"])
    done = client.info("commandstats")
    return sum(one["calls"] for name, one in done.items() if name not in {"cmdstat_config|resetstat", "cmdstat_info"})


def test_of_many_runs_that_wait_a_value_resumes_its_own_and_the_others_cost_nothing(
    costly: tuple[Any, Costs], full: bool
) -> None:
    store, cost = costly
    many, wf, threads = 100_000 if full else 1_000, order(), threading.active_count()
    none = cost()
    leave(store, wf, range(1, many + 1))
    assert cost() <= none + 50
    with Engine(store=store, workflows=[wf]) as engine:
        key = f"k{range(1, many + 1)[many // 2]}"
        assert engine.recover() == []
        assert threading.active_count() < threads + 10  # those of the engine
        assert store.send(key, "approved", "a look")
        (run,) = engine.recover()
    assert run["ship"] == "shipped after a look"
    assert cost() <= none + 50


def test_a_waiting_caller_of_many_runs_looks_seldom(tmp_path: Path) -> None:
    """All together a hundred times a second, whatever their number."""

    class Counting(SQLiteStore):
        heads = 0

        def head(self, key: str, /) -> Any:
            self.heads += 1
            return super().head(key)

    wf, store = Workflow("many"), Counting(tmp_path / "runs.db", durability="normal")
    wf.wait("value")
    threads = threading.active_count()
    with Engine(store=store) as engine:
        futures = [engine.submit(wf, idempotency_key=f"k{number}") for number in range(200)]
        for future in futures:
            assert future.waiting(PATIENCE).status == "waiting"
        time.sleep(0.3)
        before, began = store.heads, time.monotonic()
        time.sleep(1.0)
        assert (store.heads - before) / (time.monotonic() - began) < 300
        assert threading.active_count() < threads + 100
        for number, future in enumerate(futures):
            assert engine.send(f"k{number}", "value", number)
            assert future.result(PATIENCE)["value"] == number
    assert not math.isinf(store.heads)
