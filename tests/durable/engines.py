"""A run in an engine of either kind, and how its call ended; and many cases at once, where a test mostly waits."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Final

from flowcore import AsyncEngine, Engine, Run, Workflow
from tests.stores.redis_servers import until

__all__ = ["DRIVERS", "STORES", "all_at_once", "recover_until", "recovering", "run"]

DRIVERS: Final = ("threads", "asyncio")
STORES: Final = ("sqlite", "redis")


def run(
    driver: str,
    store: Any,
    wf: Workflow,
    key: str,
    lease: float,
    *,
    check: bool = False,
    patience: float = 300.0,
    **request: Any,
) -> Run:
    """Run a saga in an engine of its own. `driver`: threads or asyncio; `store`: of the kind that it takes; `patience`:
    seconds for which the run waits for its store."""
    request |= {"idempotency_key": key, "check": check}
    if driver == "threads":
        with Engine(store=store, lease=lease, store_patience=patience) as engine:
            return engine.run(wf, {"key": key}, **request)

    async def main() -> Run:
        async with AsyncEngine(store=store, lease=lease, store_patience=patience) as engine:
            return await engine.run(wf, {"key": key}, **request)

    return asyncio.run(main())


def recover_until(driver: str, store: Any, wf: Workflow, every: float, condition: Callable[[], Any]) -> None:
    """Have an engine recover all runs without an owner, until a condition holds."""
    if driver == "threads":
        with Engine(store=store, workflows=[wf], recover_every=every):
            until(condition, "the recovery")
        return

    async def main() -> None:
        async with AsyncEngine(store=store, workflows=[wf], recover_every=every):
            await asyncio.to_thread(until, condition, "the recovery")

    asyncio.run(main())


@contextmanager
def recovering(store: Any, wf: Workflow, every: float) -> Iterator[None]:
    """Meanwhile, an engine recovers all runs without an owner."""
    with Engine(store=store, workflows=[wf], recover_every=every):
        yield


def all_at_once(test: Callable[..., None], cases: Iterable[tuple[Any, ...]]) -> None:
    """Have a test for each of these cases, in threads of their own; they take as long as the longest of them."""
    errors: list[Exception] = []

    def one(case: tuple[Any, ...]) -> None:
        try:
            test(*case)
        except Exception as error:  # noqa: BLE001 - all are raised below
            error.add_note(f"case: {case}")
            errors.append(error)

    cases = list(cases)
    with ThreadPoolExecutor(len(cases)) as pool:
        list(pool.map(one, cases))
    if errors:
        raise ExceptionGroup("some cases went wrong", errors)
