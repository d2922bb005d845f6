"""Stopping a process is not cancelling its runs (semantics 8), on asyncio."""

import asyncio
import math
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from flowcore import (
    AsyncEngine,
    AsyncRunFuture,
    Context,
    IdempotencyInProgress,
    IdempotencyMismatch,
    NotSerializable,
    QueueFull,
    RunFailed,
    RunParked,
    Status,
    StepCancelled,
    StoreUnavailable,
    Workflow,
)
from flowcore._engines import aio_queueing
from flowcore.stores import SQLiteStore

from .conftest import PATIENCE, Gate, Ledger, run_async, until_async


@pytest.fixture
def store(tmp_path: Path) -> SQLiteStore:
    return SQLiteStore(tmp_path / "db")


@pytest.fixture(autouse=True)
def signals() -> Iterator[None]:
    """The handlers of a service that exits at SIGTERM, and Python's own for Ctrl-C."""
    before = (
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(3)),
        signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    yield
    signal.signal(signal.SIGTERM, before[0])
    signal.signal(signal.SIGINT, before[1])


def saga(ledger: Ledger, sleeps: Callable[[Context], Any], slept: list[int] | None = None) -> Workflow:
    """Steps with undos, of which the second one sleeps where it runs first, and notes that in `slept`."""
    wf = Workflow("saga")
    slept = [] if slept is None else slept

    async def b(ctx: Context) -> None:
        if not slept:
            slept.append(1)
            await sleeps(ctx)
        ledger.append("b")

    ledger.add(wf, "a")
    wf.add_step("b", b, depends_on="a", compensate=lambda ctx: ledger.append("-b"))
    ledger.add(wf, "c", depends_on="b")
    return wf


async def forever(ctx: Context) -> None:
    await asyncio.sleep(3600)


def goes_on(store: SQLiteStore, ledger: Ledger, wf: Workflow) -> None:
    """The run is parked, and another engine does the rest at once."""
    record = store.find("k")
    assert record is not None
    assert record.status is Status.PARKED

    async def main() -> None:
        async with AsyncEngine(store=store) as other:
            assert (await other.run(wf, idempotency_key="k")).status is Status.SUCCESS

    run_async(main)
    assert ledger == ["a", "b", "c"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "Ctrl-C"])
@pytest.mark.parametrize("how", ["run", "task", "submit", "with block", "beside another step"])
def test_a_signal_parks_durable_runs(store: SQLiteStore, ledger: Ledger, number: int, how: str) -> None:
    sleeping = 2 if how == "beside another step" else 1
    asleep: list[str] = []

    async def until_the_signal(ctx: Context) -> None:
        asleep.append(ctx.step)
        if len(asleep) == sleeping:
            asyncio.get_running_loop().call_later(0.05, os.kill, os.getpid(), number)
        await forever(ctx)

    wf = saga(ledger, until_the_signal)
    if how == "beside another step":
        wf.add_step("beside", _once(until_the_signal), timeout=None)

    async def main() -> None:
        engine = AsyncEngine(store=store, grace=0.05)
        if how == "with block":
            async with engine:
                await engine.submit(wf, idempotency_key="k")
        elif how == "submit":
            engine.submit(wf, idempotency_key="k")
            await asyncio.sleep(PATIENCE)
        elif how == "task":
            task = asyncio.create_task(engine.run(wf, idempotency_key="k"))
            await asyncio.sleep(PATIENCE)
            await task
        else:
            await engine.run(wf, idempotency_key="k")

    with pytest.raises(SystemExit if number == signal.SIGTERM else KeyboardInterrupt):
        asyncio.run(main())
    assert ledger == ["a"]
    goes_on(store, ledger, wf)


def _once(fn: Callable[[Context], Any]) -> Callable[[Context], Any]:
    called: list[int] = []

    async def once(ctx: Context) -> None:
        if not called:
            called.append(1)
            await fn(ctx)

    return once


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "Ctrl-C"])
def test_a_signal_while_a_durable_run_is_undone_leaves_the_rest_to_the_next_owner(
    store: SQLiteStore, ledger: Ledger, number: int
) -> None:
    wf = Workflow("w")

    async def undo(ctx: Context) -> None:
        if "began" not in ledger:
            ledger.append("began")
            asyncio.get_running_loop().call_later(0.05, os.kill, os.getpid(), number)
            await asyncio.sleep(3600)
        ledger.append("-b")

    async def fails(ctx: Context) -> None:
        raise ValueError("c")

    ledger.add(wf, "a")
    wf.add_step("b", lambda ctx: ledger.append("b"), depends_on="a", compensate=undo)
    wf.add_step("c", fails, depends_on="b")

    async def main() -> None:
        engine = AsyncEngine(store=store, grace=0.05)
        await engine.run(wf, idempotency_key="k")

    with pytest.raises(SystemExit if number == signal.SIGTERM else KeyboardInterrupt):
        asyncio.run(main())
    assert ledger == ["a", "b", "began"]

    async def again() -> None:
        async with AsyncEngine(store=store) as other:
            assert (await other.run(wf, idempotency_key="k", check=False)).status is Status.COMPENSATED

    run_async(again)
    assert ledger == ["a", "b", "began", "-b", "-a"]


def test_cancelling_the_callers_task_still_cancels_a_durable_run(store: SQLiteStore, ledger: Ledger) -> None:
    slept: list[int] = []

    async def main() -> None:
        engine = AsyncEngine(store=store)
        task = asyncio.create_task(engine.run(saga(ledger, forever, slept), idempotency_key="k"))
        await until_async(lambda: slept)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run_async(main)
    record = store.find("k")
    assert record is not None
    assert record.status is Status.COMPENSATED
    assert ledger == ["a", "-b", "-a"]


def test_aclose_with_a_timeout_parks_a_durable_run_as_soon_as_its_call_has_ended(
    store: SQLiteStore, ledger: Ledger
) -> None:
    slept: list[int] = []
    wf = saga(ledger, lambda ctx: asyncio.sleep(0.2), slept)

    async def main() -> None:
        engine = AsyncEngine(store=store)
        future = engine.submit(wf, idempotency_key="k")
        await until_async(lambda: slept)
        await engine.aclose(timeout=PATIENCE)
        with pytest.raises(RunParked, match="its engine was closed"):
            await future

    run_async(main)
    assert ledger == ["a", "b"]
    goes_on(store, ledger, wf)


def test_aclose_returns_in_time_whatever_hangs() -> None:
    async def stubborn(ctx: Context) -> None:
        while not over:
            try:
                await asyncio.sleep(0.01)
            except asyncio.CancelledError:
                continue

    over: list[int] = []

    async def main() -> None:
        wf, engine = Workflow("w"), AsyncEngine(grace=0.05)
        wf.add_step("stubborn", stubborn)
        future = engine.submit(wf)
        await asyncio.sleep(0.05)
        async with asyncio.timeout(PATIENCE):
            await engine.aclose(timeout=0.05)
        over.append(1)
        with pytest.raises(StepCancelled):
            await future

    run_async(main)


@pytest.mark.parametrize("limit", [None, math.inf], ids=["no limit", "infinite"])
def test_aclose_without_a_limit_works_off_what_was_accepted(limit: float | None, ledger: Ledger) -> None:
    async def main() -> None:
        engine = AsyncEngine()
        futures = [engine.submit(ledger.chain("a")) for _ in range(5)]
        await engine.aclose(timeout=limit)
        assert [future.result().status for future in futures] == [Status.SUCCESS] * 5

    run_async(main)


def test_closing_cancels_submitted_runs_in_memory_that_have_not_begun(ledger: Ledger) -> None:
    async def main() -> None:
        engine = AsyncEngine()
        future = engine.submit(ledger.chain("a"))
        await engine.aclose(timeout=1)
        with pytest.raises(asyncio.CancelledError):
            await future

    run_async(main)
    assert not ledger


@pytest.mark.parametrize("how", ["aclose", "an exception"])
def test_closing_records_submitted_runs_that_have_not_begun_and_leaves_them_to_others(
    store: SQLiteStore, ledger: Ledger, how: str
) -> None:
    wf = ledger.chain("a")

    async def main() -> None:
        engine = AsyncEngine(store=store)
        future = engine.submit(wf, {"n": 7}, idempotency_key="k")
        if how == "aclose":
            await engine.aclose(timeout=1)
        else:
            with suppress(LookupError):
                async with engine:
                    raise LookupError
        with pytest.raises(RunParked, match="recorded as queued, and another engine may run it"):
            await future
        await future.recorded()
        record = store.find("k")
        assert record is not None
        assert (record.status, record.run_id, record.values) == (Status.QUEUED, future.run_id, {"n": 7})
        assert not ledger
        async with AsyncEngine(store=store, workflows=[wf]) as other:
            assert [run.status for run in await other.recover()] == [Status.SUCCESS]

    run_async(main)
    assert ledger == ["a"]


def test_closing_says_which_submitted_runs_could_not_be_recorded(
    store: SQLiteStore, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    wf = ledger.chain("a")

    def unreachable(claim: Any) -> Any:
        raise StoreUnavailable("away")

    async def main() -> None:
        engine = AsyncEngine(store=store, lease=30)
        in_use = engine.submit(wf, idempotency_key="k")
        await in_use
        again = engine.submit(wf, idempotency_key="k")
        await engine.aclose(timeout=0)
        monkeypatch.setattr(store, "claim", unreachable)
        other = AsyncEngine(store=store)
        unrecorded = other.submit(wf, idempotency_key="l")
        await other.aclose(timeout=0)
        for future in (again, unrecorded):
            with pytest.raises(RunParked, match="It was not recorded: submit it again"):
                await future
            with pytest.raises(RunParked, match="It was not recorded"):
                await future.recorded()

    run_async(main)
    assert ledger == ["a"]
    assert store.find("l") is None


def test_aclose_does_not_wait_for_a_store_that_does_not_release_queued_runs(
    store: SQLiteStore, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    stuck = Gate()
    monkeypatch.setattr(store, "renew", lambda leases, lease: stuck.wait())

    async def main() -> None:
        engine = AsyncEngine(store=store)
        future = engine.submit(ledger.chain("a"), idempotency_key="k")
        await engine.aclose(timeout=0)
        assert not stuck.is_set()
        stuck.set()
        with pytest.raises(RunParked, match="another engine may run it"):
            await future

    run_async(main)
    assert not ledger


def test_a_future_says_when_its_run_is_recorded(
    store: SQLiteStore, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aio_queueing, "_BLOCKS", PATIENCE)  # the machine may be slow
    begins, wf = asyncio.Event(), Workflow("w")

    async def waits(ctx: Context) -> None:
        await begins.wait()

    wf.add_step("waits", waits)

    async def main() -> None:
        async with AsyncEngine(store=store) as engine:
            future = engine.submit(wf, idempotency_key="k")
            record = store.find("k")
            assert record is not None
            assert (record.status, record.run_id) == (Status.QUEUED, future.run_id)
            await future.recorded()
            busy = engine.submit(wf, idempotency_key="k")
            with pytest.raises(IdempotencyInProgress):
                await busy.recorded()
            other = engine.submit(wf, {"n": 1}, idempotency_key="k")
            with pytest.raises(IdempotencyMismatch):
                await other.recorded()
            begins.set()
            await future
            replay = engine.submit(wf, idempotency_key="k")
            await replay.recorded()
            assert (await replay).replayed
            with pytest.raises(NotSerializable):
                engine.submit(wf, {"n": object()}, idempotency_key="l")

    run_async(main)


@pytest.mark.parametrize("submits", [False, True])
def test_an_exit_in_a_call_of_the_store_ends_no_loop(
    store: SQLiteStore, ledger: Ledger, monkeypatch: pytest.MonkeyPatch, submits: bool
) -> None:
    wf, claim, claims = ledger.chain("a"), store.claim, list[str]()

    def exits_once(wanted: Any) -> Any:
        claims.append(wanted.key)
        if len(claims) == 1:
            raise SystemExit(3)
        return claim(wanted)

    monkeypatch.setattr(store, "claim", exits_once)

    async def main() -> None:
        async with AsyncEngine(store=store) as engine:
            run = engine.submit(wf, idempotency_key="k") if submits else engine.run(wf, idempotency_key="k")
            assert (await run).status is Status.SUCCESS

    run_async(main)
    assert ledger == ["a"]


@pytest.mark.parametrize("key", [None, "k"])
def test_in_memory_a_run_counts_as_recorded_when_it_begins(ledger: Ledger, key: str | None) -> None:
    async def main() -> None:
        engine, slept = AsyncEngine(), list[int]()
        future = engine.submit(saga(ledger, forever, slept), idempotency_key=key)
        await future.recorded()
        assert not future.done()
        future.cancel_run()
        await asyncio.wait([future])

    run_async(main)


def test_a_future_knows_its_run_and_key_and_cancels_it(ledger: Ledger) -> None:
    slept: list[int] = []

    async def main() -> None:
        engine = AsyncEngine(max_queued=1)
        wf = saga(ledger, forever, slept)
        future = engine.submit(wf, idempotency_key="k")
        assert isinstance(future, AsyncRunFuture)
        with pytest.raises(QueueFull):
            engine.submit(wf)
        await until_async(lambda: slept)
        assert future.key == "k"
        assert future.cancel_run()
        with pytest.raises(asyncio.CancelledError):
            await future
        assert not future.cancel_run()
        assert ledger == ["a", "-b", "-a"]

    run_async(main)


def test_cancelling_the_task_that_awaits_a_future_cancels_the_run_and_waits_for_its_undo(ledger: Ledger) -> None:
    slept: list[int] = []

    async def main() -> None:
        engine = AsyncEngine()

        async def caller() -> None:
            await engine.submit(saga(ledger, forever, slept))

        task = asyncio.create_task(caller())
        await until_async(lambda: slept)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert ledger == ["a", "-b", "-a"]

    run_async(main)


def test_an_engine_finds_records_without_blocking_the_loop(store: SQLiteStore, ledger: Ledger) -> None:
    async def main() -> None:
        async with AsyncEngine(store=store) as engine:
            run = await engine.run(ledger.chain("a"), idempotency_key="k")
            record = await engine.find("k")
            assert record is not None
            assert (await engine.get(run.id)).key == record.key == "k"
            assert await engine.find("unknown") is None
            await engine.run(ledger.chain("b"), idempotency_key="l")
            page = await engine.list(limit=1)
            assert [record.key for record in page] == ["l"]
            assert [record.key for record in await engine.list(limit=1, after=page.cursor)] == ["k"]
            assert await engine.list(status="held") == []

    run_async(main)


def test_an_async_engine_cancels_its_run_of_a_key(store: SQLiteStore, ledger: Ledger) -> None:
    async def main() -> None:
        async with AsyncEngine(store=store) as engine:
            began, wf = asyncio.Event(), Workflow("w")

            async def waits(ctx: Context) -> None:
                began.set()
                await asyncio.Event().wait()

            wf.add_step("waits", waits)
            future = asyncio.create_task(engine.run(wf, idempotency_key="k"))
            await began.wait()
            assert not engine.cancel(key="another")
            assert engine.cancel(key="k")
            with pytest.raises(StepCancelled):
                await future

    run_async(main)


@pytest.mark.parametrize("by", ["key", "run_id"])
def test_an_async_engine_cancels_the_run_of_another_engine_through_the_store(
    store: SQLiteStore, ledger: Ledger, by: str
) -> None:
    async def main() -> None:
        slept: list[int] = []
        wf = saga(ledger, forever, slept)
        async with AsyncEngine(store=store, lease=0.5) as owner, AsyncEngine(store=store) as other:
            future = owner.submit(wf, idempotency_key="k")
            await until_async(lambda: slept)
            asked = other.cancel(key="k") if by == "key" else other.cancel(future.run_id)
            assert not asked  # it is no run of this engine
            assert await asked
            assert await asked
            with pytest.raises(StepCancelled):
                await future
            assert not await other.cancel(key="k")
            assert not await other.cancel(key="another")
            assert not await other.cancel("another")

    run_async(main)
    assert ledger == ["a", "-b", "-a"]


def test_on_a_loop_too_cancelling_by_key_cancels_the_run_and_not_the_callers_that_wait_for_it(
    store: SQLiteStore, ledger: Ledger
) -> None:
    async def main() -> None:
        slept: list[int] = []
        wf = saga(ledger, forever, slept)
        async with AsyncEngine(store=store, lease=0.5) as owner, AsyncEngine(store=store) as other:
            future = owner.submit(wf, idempotency_key="k")
            await until_async(lambda: slept)
            waiting = [engine.submit(wf, idempotency_key="k", wait=PATIENCE) for engine in (owner, other)]
            await until_async(lambda: [run.attached for run in (*owner._live, *other._live)].count(True) == 2)
            assert await other.cancel(key="k")
            with pytest.raises(StepCancelled):
                await future
            errors = await asyncio.gather(*waiting, return_exceptions=True)
            assert [type(error) for error in errors] == [RunFailed, RunFailed]

    run_async(main)
    assert ledger == ["a", "-b", "-a"]


def test_a_cancellation_reaches_the_store_without_being_awaited_and_from_a_thread_without_a_loop(
    store: SQLiteStore, ledger: Ledger
) -> None:
    async def main() -> None:
        for asks in (_in_a_task, _in_a_thread):
            ledger.clear()
            key, slept = str(id(asks)), list[int]()
            wf = saga(ledger, forever, slept)
            async with AsyncEngine(store=store, lease=0.5) as owner, AsyncEngine(store=store) as other:
                future = owner.submit(wf, idempotency_key=key)
                await until_async(slept.copy)
                asks(other, key)
                with pytest.raises(StepCancelled):
                    await future
            assert ledger == ["a", "-b", "-a"]

    run_async(main)


def _in_a_task(engine: AsyncEngine, key: str) -> None:
    engine.cancel(key=key)


def _in_a_thread(engine: AsyncEngine, key: str) -> None:
    said: list[bool] = []
    thread = threading.Thread(target=lambda: said.append(bool(engine.cancel(key=key))))
    thread.start()
    thread.join(PATIENCE)
    assert said == [True]


def test_a_submitted_run_is_cancelled_before_it_begins(store: SQLiteStore, ledger: Ledger) -> None:
    async def main() -> None:
        async with AsyncEngine(store=store) as engine:
            future = engine.submit(ledger.chain("a"), idempotency_key="k")
            assert await engine.cancel(key="k")
            with pytest.raises(StepCancelled):
                await future

    run_async(main)
    assert not ledger
