"""An event loop that ends in any moment of the runs on it, without `aclose`: it ends, and leaves durable runs to others."""

import asyncio
from collections.abc import Callable
from typing import Any, Final

import pytest

from flowcore import AsyncEngine, Context, Engine, Status, Workflow
from flowcore._engines import aio_queueing
from tests.core.conftest import PATIENCE
from tests.durable.crash import Place
from tests.durable.engines import STORES
from tests.stores.redis_servers import until

MOMENTS: Final = 25
"""the most iterations of the loop before it ends; by then the slowest of the runs in memory are over"""
LEASE: Final = 0.5


async def an_async_step(ctx: Context) -> None:
    await asyncio.sleep(0)


def a_sync_step(ctx: Context) -> None:
    pass


def forks(first: Callable[[Context], Any], then: Callable[[Context], Any]) -> Workflow:
    wf = Workflow("forks")
    wf.add_step("a", first)
    wf.add_step("b", then, depends_on=["a"])
    wf.add_step("c", a_sync_step, depends_on=["a"])
    wf.add_step("d", then, depends_on=["b", "c"])
    return wf


@pytest.mark.parametrize("how", ["run", "submit"])
@pytest.mark.parametrize("first", [a_sync_step, an_async_step])
@pytest.mark.parametrize("kind", ["memory", *STORES])
def test_a_loop_that_ends_in_any_moment_ends_and_leaves_its_runs_to_others(
    place: Callable[[str], Place],
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    first: Callable[[Context], Any],
    how: str,
) -> None:
    monkeypatch.setattr(aio_queueing, "_BLOCKS", PATIENCE)  # the machine may be slow
    wf = forks(first, an_async_step)

    async def main(store: Any, turns: int) -> None:
        engine = AsyncEngine(store=store, lease=LEASE)
        if how == "submit":
            begun: Any = engine.submit(wf, idempotency_key=str(turns))
        else:
            begun = asyncio.create_task(engine.run(wf, idempotency_key=str(turns)))
        for _ in range(turns):
            await asyncio.sleep(0)
        assert begun is not None  # a loop holds tasks only weakly

    if kind == "memory":
        for turns in range(MOMENTS):
            asyncio.run(main(None, turns))
        return
    where = place(kind)
    for turns in range(MOMENTS):
        with where.store(asynchronous=True) as store:
            asyncio.run(main(store, turns))
    with where.store() as store:
        keys = [str(turns) for turns in range(MOMENTS)]
        # A call that was cancelled before its claim was granted leaves no run. A submitted run is always recorded.
        known = [key for key in keys if store.find(key) is not None]
        assert how == "run" or known == keys
        with Engine(store=store, lease=LEASE, workflows=[forks(a_sync_step, a_sync_step)], recover_every=0.1):
            until(lambda: all(store.find(key).status in {Status.SUCCESS, Status.FAILURE} for key in known), "recovery")
        if how == "submit":
            assert {store.find(key).status for key in keys} == {Status.SUCCESS}
