"""The heartbeat's thread: there while runs have leases, gone when its engine is."""

import threading
from typing import Any

from flowcore import AsyncEngine, Engine, Workflow
from flowcore.stores import SQLiteStore

from .conftest import PATIENCE, run_async


def heartbeats() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "flowcore-leases"]


def one_step() -> Workflow:
    wf = Workflow("w")
    wf.add_step("s", lambda ctx: 1)
    return wf


def ended(threads: list[threading.Thread]) -> bool:
    for thread in threads:
        thread.join(PATIENCE)
    return not any(thread.is_alive() for thread in threads)


def test_the_heartbeat_ends_with_its_engine_however_long_the_lease(tmp_path: Any) -> None:
    store, before = SQLiteStore(tmp_path / "runs.db", durability="normal"), heartbeats()
    for _ in range(20):  # the engine may close before the thread has begun to wait
        with Engine(store=store, lease=3600) as engine:
            engine.run(one_step())
            mine = [thread for thread in heartbeats() if thread not in before]
        assert ended(mine)
    store.close()


def test_the_heartbeat_of_an_async_engine_ends_with_it(tmp_path: Any) -> None:
    store, before = SQLiteStore(tmp_path / "runs.db", durability="normal"), heartbeats()

    async def once() -> list[threading.Thread]:
        async with AsyncEngine(store=store, lease=3600) as engine:
            await engine.run(one_step())
            return [thread for thread in heartbeats() if thread not in before]

    assert ended(run_async(once))
    store.close()
