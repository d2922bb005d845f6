"""A submitted run survives the process that accepted it."""

import asyncio
import os
import time
from collections.abc import Callable
from typing import Final

import pytest

from flowcore import AsyncEngine, Engine, Status, Workflow
from tests.durable.crash import Place
from tests.durable.engines import DRIVERS, STORES
from tests.durable.nursery import Nursery
from tests.stores.redis_servers import until

RUNS: Final = 30
LEASE: Final = 0.5
ENDLESS: Final = 600.0

order = Workflow("order")
order.add_step("work", lambda ctx: time.sleep(ENDLESS if ctx["hangs"] else 0))


def accept(place: Place, asynchronous: bool) -> None:
    """A service that accepts orders, and dies."""
    keys = [str(number) for number in range(RUNS)]

    async def on_a_loop() -> None:
        with place.store(asynchronous=True) as store:
            engine = AsyncEngine(store=store, max_workers=2, lease=LEASE)
            futures = [engine.submit(order, {"hangs": True}, idempotency_key=key) for key in keys]
            await asyncio.gather(*(future.recorded() for future in futures))
            os._exit(9)

    if asynchronous:
        asyncio.run(on_a_loop())
    with place.store() as store:
        engine = Engine(store=store, max_workers=2, lease=LEASE)
        for key in keys:
            engine.submit(order, {"hangs": True}, idempotency_key=key)
        os._exit(9)


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize("kind", STORES)
def test_submitted_runs_survive_the_process_that_accepted_them(
    place: Callable[[str], Place], nursery: Nursery, kind: str, driver: str
) -> None:
    where = place(kind)
    assert nursery.wait([nursery.start(accept, where, driver == "asyncio")])[1] == 9
    ends = Workflow("order")
    ends.add_step("work", lambda ctx: None)
    with where.store() as store:
        records = {str(number): store.find(str(number)) for number in range(RUNS)}
        assert {key for key, record in records.items() if record is None} == set()
        with Engine(store=store, lease=LEASE, workflows=[ends], recover_every=0.1):
            until(lambda: all(store.find(key).status == Status.SUCCESS for key in records), "the recovery")
