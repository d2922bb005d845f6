"""Runs inside of runs (semantics 9)."""

import asyncio
import math
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import as_completed, wait as wait_for_all
from pathlib import Path

import pytest

from flowcore import (
    AsyncEngine,
    AsyncRunFuture,
    Backoff,
    Context,
    Engine,
    FlowcoreError,
    IdempotencyInProgress,
    Retry,
    Run,
    RunFuture,
    Status,
    Workflow,
)
from flowcore.stores import MemoryStore, SQLiteStore

from .conftest import PATIENCE, Ledger, run_async


def inner(*, limited: bool = False) -> Workflow:
    """Steps side by side, with a limit or without: those with one need a thread of the pool."""
    wf = Workflow("inner")
    for name in "abc":
        wf.add_step(name, lambda ctx: ctx.step, timeout=PATIENCE if limited else None)
    wf.add_step("d", lambda ctx: ctx["a"] + ctx["b"] + ctx["c"], depends_on=["a", "b", "c"])
    return wf


@pytest.mark.parametrize("limited", [False, True], ids=["plain", "with timeouts"])
@pytest.mark.parametrize("workers", [1, 2, 8])
@pytest.mark.parametrize("submitted", [False, True], ids=["run", "submit"])
def test_a_step_may_run_the_engine_it_runs_on(workers: int, limited: bool, submitted: bool) -> None:
    nested, outer = inner(limited=limited), Workflow("outer")
    with Engine(max_workers=workers) as engine:
        for number in range(4):
            outer.add_step(str(number), lambda ctx: engine.run(nested)["d"])
        run = engine.submit(outer).result(PATIENCE) if submitted else engine.run(outer)
    assert set(run.results.values()) == {"abc"}


def test_nesting_goes_deep() -> None:
    with Engine(max_workers=2) as engine:

        def nest(ctx: Context) -> int:
            depth = ctx["depth"]
            return 1 + (engine.run(wf, {"depth": depth - 1})["nest"] if depth else 0)

        wf = Workflow("deep")
        wf.add_step("nest", nest, timeout=PATIENCE)
        assert engine.submit(wf, {"depth": 20}).result(PATIENCE)["nest"] == 21


@pytest.mark.parametrize("wait", [None, math.inf])
def test_the_same_key_from_inside_is_in_progress(wait: float | None) -> None:
    store = MemoryStore()
    with Engine(store=store) as engine:
        wf = Workflow("w")
        wf.add_step("a", lambda ctx: engine.run(wf, idempotency_key="k", wait=wait))
        with pytest.raises(IdempotencyInProgress):
            engine.run(wf, idempotency_key="k")
        assert [record.status for record in store.list_runs()] == [Status.FAILURE]


@pytest.mark.parametrize("beside", [False, True], ids=["alone", "beside another step"])
def test_the_same_key_from_inside_an_async_step_is_in_progress(beside: bool) -> None:
    async def main() -> None:
        async with AsyncEngine() as engine:
            wf = Workflow("w")

            async def again(ctx: Context) -> None:
                await asyncio.sleep(0)
                await engine.run(wf, idempotency_key="k", wait=math.inf)

            wf.add_step("a", again)
            if beside:
                wf.add_step("b", lambda ctx: 1)
            with pytest.raises(IdempotencyInProgress):
                await engine.run(wf, idempotency_key="k")

    run_async(main)


def test_a_nested_failure_undoes_both_runs_inner_first(ledger: Ledger) -> None:
    failing, outer = ledger.chain("x", "y!"), Workflow("outer")
    ledger.add(outer, "a")
    with Engine(max_workers=1) as engine:
        ledger.add(outer, "b", depends_on="a", first=lambda ctx: engine.run(failing))
        with pytest.raises(ValueError, match="y failed"):
            engine.run(outer)
    assert ledger == ["a", "x", "y", "-x", "-a"]


def test_an_undo_may_run_the_engine(ledger: Ledger) -> None:
    refund, outer = ledger.chain("refund"), Workflow("outer")
    with Engine(max_workers=1) as engine:
        outer.add_step("a", lambda ctx: 1, compensate=lambda ctx: engine.run(refund))
        outer.add_step("b", lambda ctx: 1 / 0, depends_on="a")
        assert engine.submit(outer, check=False).result(PATIENCE).status is Status.COMPENSATED
    assert ledger == ["refund"]


def test_the_nested_runs_steps_run_in_the_thread_that_waits_for_them() -> None:
    threads: list[threading.Thread] = []
    nested, outer = Workflow("nested"), Workflow("outer")
    nested.add_step("a", lambda ctx: threads.append(threading.current_thread()))
    with Engine() as engine:

        def nest(ctx: Context) -> None:
            threads.append(threading.current_thread())
            engine.run(nested)

        outer.add_step("nest", nest)
        engine.submit(outer).result(PATIENCE)
    assert len(threads) == 2
    assert threads[0] is threads[1]


def test_a_step_that_waits_for_its_own_run_is_refused() -> None:
    mine: list[RunFuture] = []
    began = threading.Event()

    def asks(wait: Callable[[RunFuture], object]) -> Callable[[Context], str]:
        def step(ctx: Context) -> str:
            assert began.wait(PATIENCE)
            with pytest.raises(FlowcoreError) as refused:
                wait(mine[0])
            return str(refused.value)

        return step

    wf = Workflow("w")
    ways = (
        RunFuture.result,
        RunFuture.exception,
        RunFuture.waiting,
        lambda future: wait_for_all([future], PATIENCE),
        lambda future: list(as_completed([future], PATIENCE)),
    )
    for number, wait in enumerate(ways):
        wf.add_step(str(number), asks(wait))
    with Engine() as engine:
        mine.append(engine.submit(wf))
        began.set()
        run = mine[0].result(PATIENCE)
    why = f"this step cannot wait for run {run.id}, because that run waits for this step."
    assert set(run.results.values()) == {why}


@pytest.mark.parametrize("beside", [False, True], ids=["alone", "beside another step"])
def test_an_async_step_that_waits_for_its_own_run_is_refused(beside: bool) -> None:
    async def main() -> None:
        mine: list[AsyncRunFuture] = []

        async def awaits(future: AsyncRunFuture) -> object:
            return await future

        def asks(wait: Callable[[AsyncRunFuture], Awaitable[object]]) -> Callable[[Context], Awaitable[str]]:
            async def step(ctx: Context) -> str:
                await asyncio.sleep(0)
                with pytest.raises(FlowcoreError) as refused:
                    await wait(mine[0])
                return str(refused.value)

            return step

        wf = Workflow("w")
        for number, wait in enumerate((awaits, AsyncRunFuture.waiting)):
            wf.add_step(str(number), asks(wait), depends_on=str(number - 1) if number and not beside else ())
        async with AsyncEngine() as engine:
            mine.append(engine.submit(wf))
            run = await mine[0]
        why = f"this step cannot wait for run {run.id}, because that run waits for this step."
        assert set(run.results.values()) == {why}

    run_async(main)


def test_the_timeout_of_a_step_that_waits_for_another_run_counts_while_it_works_on_it() -> None:
    """The other run has nothing to do for a while, and continues without this step's thread."""
    nested, outer = Workflow("nested"), Workflow("outer")

    @nested.step(retry=Retry(2, Backoff.fixed(0.3)))
    def flaky(ctx: Context) -> int:
        if ctx.attempt == 1:
            raise ValueError
        return ctx.attempt

    with Engine(max_workers=1) as engine:
        inner_runs: list[RunFuture] = []

        def waits(ctx: Context) -> None:
            inner_runs.append(engine.submit(nested))
            with pytest.raises(TimeoutError):
                inner_runs[0].result(0.01)

        outer.add_step("waits", waits)
        engine.submit(outer).result(PATIENCE)
        assert not inner_runs[0].done()
        assert inner_runs[0].result(PATIENCE)["flaky"] == 2


def test_two_runs_that_wait_for_each_other_end() -> None:
    """One of them times out or, if its step runs on the thread of the other one's, is refused."""
    runs: list[RunFuture] = []
    both, given_up = threading.Event(), list[str]()

    def waits(other: int) -> Callable[[Context], None]:
        def step(ctx: Context) -> None:
            assert both.wait(PATIENCE)
            try:
                runs[other].result(0.05)
            except (TimeoutError, FlowcoreError):
                given_up.append(ctx.step)

        return step

    workflows = [Workflow("a"), Workflow("b")]
    for number, wf in enumerate(workflows):
        wf.add_step(wf.name, waits(1 - number))
    with Engine(max_workers=2) as engine:
        runs.extend(map(engine.submit, workflows))
        both.set()
        assert all(run.result(PATIENCE).status is Status.SUCCESS for run in runs)
    assert given_up


def test_an_async_step_may_run_its_engine_and_gather_several() -> None:
    async def main() -> None:
        nested, outer = inner(), Workflow("outer")
        async with AsyncEngine(max_workers=1) as engine:

            async def nest(ctx: Context) -> list[str]:
                return [run["d"] for run in await asyncio.gather(*(engine.run(nested) for _ in range(3)))]

            outer.add_step("one", nest)
            outer.add_step("two", nest)
            run = await engine.run(outer)
        assert run["one"] == run["two"] == ["abc"] * 3

    run_async(main)


WAYS_TO_WAIT: dict[str, Callable[[list[RunFuture]], object]] = {
    "wait": lambda futures: wait_for_all(futures, PATIENCE),
    "as_completed": lambda futures: list(as_completed(futures, PATIENCE)),
    "waiting": lambda futures: [future.waiting(PATIENCE) for future in futures],
}


@pytest.mark.parametrize("wait", WAYS_TO_WAIT.values(), ids=WAYS_TO_WAIT)
def test_a_step_may_wait_for_its_runs_in_any_way_while_all_threads_wait(
    wait: Callable[[list[RunFuture]], object],
) -> None:
    child, parent = Workflow("child"), Workflow("parent")

    def flaky(ctx: Context) -> int:
        if ctx.attempt == 1:
            raise ConnectionError
        return 1

    child.add_step("flaky", flaky, retry=Retry(2, Backoff.fixed(0.01)), timeout=PATIENCE)
    with Engine(max_workers=2) as engine:

        def fan_out(ctx: Context) -> int:
            futures = [engine.submit(child) for _ in range(3)]
            wait(futures)
            return sum(future.result(0)["flaky"] for future in futures)

        parent.add_step("fan_out", fan_out)
        futures = [engine.submit(parent) for _ in range(6)]
        assert [future.result(PATIENCE)["fan_out"] for future in futures] == [3] * 6


def paused_first(engine: Engine, wf: Workflow) -> list[Run]:
    future = engine.submit(wf)
    future.waiting(PATIENCE)
    return [future.result()]


WAYS_TO_GET_THE_RUNS: dict[str, Callable[[Engine, Workflow], list[Run]]] = {
    "result": lambda engine, wf: [future.result() for future in [engine.submit(wf), engine.submit(wf)]],
    "waiting, then result": paused_first,
    "as_completed": lambda engine, wf: [future.result() for future in as_completed([engine.submit(wf)], PATIENCE)],
    "map": lambda engine, wf: list(engine.map(wf, [{}, {}], check=True)),
}


@pytest.mark.parametrize("runs_of", WAYS_TO_GET_THE_RUNS.values(), ids=WAYS_TO_GET_THE_RUNS)
def test_a_step_may_wait_for_runs_that_wait_in_their_store_while_all_threads_wait(
    runs_of: Callable[[Engine, Workflow], list[Run]], tmp_path: Path
) -> None:
    child, parent = Workflow("child"), Workflow("parent")
    child.sleep("nap", 0.01)
    child.add_step("work", lambda ctx: 1, depends_on="nap")
    with Engine(store=SQLiteStore(tmp_path / "runs.db"), max_workers=1) as engine:
        parent.add_step("fan_out", lambda ctx: {run["work"] for run in runs_of(engine, child)})
        futures = [engine.submit(parent) for _ in range(2)]
        assert [future.result(PATIENCE)["fan_out"] for future in futures] == [{1}] * 2


def test_a_step_that_waits_in_another_way_leaves_no_thread_beyond_the_limit() -> None:
    child, parent = inner(), Workflow("parent")
    with Engine(max_workers=1) as engine:
        parent.add_step("wait", lambda ctx: len(wait_for_all([engine.submit(child) for _ in range(3)], PATIENCE).done))
        assert engine.submit(parent).result(PATIENCE)["wait"] == 3
        assert len(engine._pool._threads) <= 2  # the second is about to end
        assert engine.submit(child).result(PATIENCE)["d"] == "abc"
        assert len(engine._pool._threads) == 1


def test_a_step_may_run_a_workflow_until_it_waits_with_one_thread() -> None:
    approval, parent = Workflow("approval"), Workflow("parent")
    asked = approval.add_step("ask", lambda ctx: "asked")
    answer = approval.wait("answer", depends_on=asked)
    with Engine(max_workers=1) as engine:
        parent.add_step("begin", lambda ctx: engine.run(approval, idempotency_key="a", until="waiting").status)
        assert engine.submit(parent).result(PATIENCE)["begin"] is Status.WAITING
        assert engine.send("a", answer, "yes")
        assert engine.run(approval, idempotency_key="a", wait=PATIENCE)[answer] == "yes"


def test_a_sync_step_of_asyncengine_may_run_the_engine_on_a_loop_of_its_own_with_one_thread() -> None:
    async def main() -> None:
        outer, nested = Workflow("outer"), inner(limited=True)
        async with AsyncEngine(max_workers=1) as engine:
            outer.add_step("loop", lambda ctx: asyncio.run(engine.run(nested))["d"])
            runs = await asyncio.gather(*(engine.run(outer) for _ in range(3)))
        assert [run["loop"] for run in runs] == ["abc"] * 3

    run_async(main)


def test_a_sync_step_of_asyncengine_may_run_a_loop_or_an_engine_of_its_own() -> None:
    async def main() -> None:
        outer, nested = Workflow("outer"), inner()
        outer.add_step("loop", lambda ctx: asyncio.run(AsyncEngine().run(nested))["d"])
        outer.add_step("threads", lambda ctx: Engine().run(nested)["d"])
        run = await AsyncEngine().run(outer)
        assert set(run.results.values()) == {"abc"}

    run_async(main)
