"""A submitted run survives the process that accepted it."""

import asyncio
import os
import time
from collections.abc import Callable
from typing import Final
from unittest.mock import patch

import pytest

from flowcore import AsyncEngine, Engine, RunNotFound, Status, StepCancelled, Workflow
from flowcore._engines import aio_queueing
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
        with place.store(asynchronous=True) as store, patch.object(aio_queueing, "_BLOCKS", ENDLESS):
            engine = AsyncEngine(store=store, max_workers=2, lease=LEASE)
            for key in keys:
                engine.submit(order, {"hangs": True}, idempotency_key=key)
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


@pytest.mark.parametrize("kind", STORES)
def test_on_a_loop_a_submitted_run_that_is_cancelled_at_once_releases_its_key(
    place: Callable[[str], Place], kind: str
) -> None:
    async def main() -> None:
        with place(kind).store(asynchronous=True) as store:
            async with AsyncEngine(store=store, lease=ENDLESS) as engine:
                future = engine.submit(order, {"hangs": True}, idempotency_key="k")
                assert future.cancel_run()
                with pytest.raises(asyncio.CancelledError):
                    await future
                run = await engine.run(order, {"hangs": False}, idempotency_key="k", wait=ENDLESS)
                assert run.status == Status.SUCCESS
                assert run.id != future.run_id

    asyncio.run(main())


@pytest.mark.parametrize("kind", STORES)
def test_a_loop_that_ends_leaves_a_submitted_run_in_its_store(
    place: Callable[[str], Place], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(aio_queueing, "_BLOCKS", ENDLESS)  # the machine may be slow
    where = place(kind)

    async def main() -> None:
        with where.store(asynchronous=True) as store:
            engine = AsyncEngine(store=store, lease=LEASE)
            engine.submit(order, {"hangs": False}, idempotency_key="k")

    asyncio.run(main())
    with where.store() as store:
        assert store.find("k").status not in {Status.FAILURE, Status.COMPENSATED}
        with Engine(store=store, lease=LEASE, workflows=[order], recover_every=0.1):
            until(lambda: store.find("k").status == Status.SUCCESS, "the recovery")


@pytest.mark.parametrize("kind", STORES)
def test_a_run_is_found_sent_to_and_cancelled_at_once_after_it_was_submitted_on_a_loop(
    place: Callable[[str], Place], kind: str
) -> None:
    approval = Workflow("approval")
    approval.wait("approved")

    async def each(engine: AsyncEngine, number: int) -> None:
        found = future = engine.submit(approval, idempotency_key=f"find {number}")
        record = await engine.find(f"find {number}")
        assert record is not None
        assert record.run_id == future.run_id
        got = future = engine.submit(approval, idempotency_key=f"get {number}")
        assert (await engine.get(future.run_id)).key == f"get {number}"
        future = engine.submit(approval, idempotency_key=f"send {number}")
        assert await engine.send(f"send {number}", "approved", number)
        assert (await future)["approved"] == number
        future = engine.submit(approval, idempotency_key=f"cancel {number}")
        assert await engine.cancel(key=f"cancel {number}")
        assert found.cancel_run()
        assert got.cancel_run()
        for cancelled in (future, found, got):
            with pytest.raises((StepCancelled, asyncio.CancelledError)):
                await cancelled

    async def main() -> None:
        with place(kind).store(asynchronous=True) as store:
            async with AsyncEngine(store=store, lease=ENDLESS) as engine:
                for number in range(20):
                    await each(engine, number)
                assert await engine.find("no such key") is None
                with pytest.raises(RunNotFound):
                    await engine.get("no such run")
                with pytest.raises(RunNotFound):
                    await engine.send("no such key", "approved", 1)

    asyncio.run(main())


def test_a_caller_that_waits_for_the_run_of_another_delays_no_look_at_it(place: Callable[[str], Place]) -> None:
    approval = Workflow("approval")
    approval.wait("approved")

    async def main() -> None:
        with place("sqlite").store(asynchronous=True) as store:
            async with (
                AsyncEngine(store=store, lease=ENDLESS) as engine,
                AsyncEngine(store=store, lease=ENDLESS) as other,
            ):
                first = other.submit(approval, idempotency_key="k")
                await first.recorded()
                waits = engine.submit(approval, idempotency_key="k", wait=ENDLESS)
                record = await engine.find("k")
                assert record is not None
                assert record.run_id == first.run_id
                assert not waits.is_decided
                assert await other.send("k", "approved", 1)
                assert (await waits)["approved"] == 1

    asyncio.run(main())
