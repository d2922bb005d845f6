"""Cancelling (semantics 8): engine.cancel, futures, tasks at every await, closing engines."""

import asyncio
import math
import threading
from concurrent.futures import CancelledError, as_completed
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from flowcore import (
    AsyncEngine,
    Backoff,
    CompensationFailed,
    Context,
    DefinitionError,
    Engine,
    FlowcoreError,
    Retry,
    Status,
    StepCancelled,
    Workflow,
)
from flowcore._engines import thread_runs
from flowcore._engines.handles import RunFuture
from flowcore.events import BackoffStarted, RunFinished, StepCompletedLate
from flowcore.stores import MemoryStore, SQLiteStore

from .conftest import PATIENCE, Gate, Ledger, Live, MakeLive, notes, of_type, run_async, until, until_async

# -- engine.cancel -----------------------------------------------------------------------------------------------------


def begin(one: Live, wf: Workflow, at: Gate, **request: Any) -> tuple[Any, str]:
    """Start a run of which some step opens `at`; answers its future and its id."""
    ids: list[str] = []
    wf.steps[0].fn = tell_id(wf.steps[0].fn, ids)
    future = one.start(wf, **request)
    at.wait()
    return future, ids[0]


def tell_id(fn: Any, ids: list[str]) -> Any:
    def reported(ctx: Context) -> Any:
        ids.append(ctx.run_id)
        return fn(ctx)

    return reported


def test_cancel_lets_a_step_that_heeds_it_end_and_undoes_what_was_done(live: MakeLive, ledger: Ledger) -> None:
    one, wf, began = live(), Workflow("w"), Gate()

    def slow(ctx: Context) -> None:
        began.set()
        until(lambda: ctx.cancelled)

    ledger.add(wf, "a")
    ledger.add(wf, "slow", depends_on="a", first=slow)
    ledger.add(wf, "never", depends_on="slow")
    future, run_id = begin(one, wf, began)
    assert one.engine.cancel(run_id)
    with pytest.raises(StepCancelled, match=f"run {run_id} was cancelled by engine.cancel") as caught:
        future.result(PATIENCE)
    assert ledger == ["a", "slow", "-slow", "-a"]
    assert "was cancelled; undone: 'slow', 'a'" in notes(caught.value)


def test_cancel_waits_for_a_step_that_does_not_heed_it_at_most_grace(
    live: MakeLive, ledger: Ledger, gate: Gate
) -> None:
    events: list[Any] = []
    one, wf, began = live(grace=0.02, hooks=[events.append]), Workflow("w"), Gate()
    ledger.add(wf, "deaf", first=began.then(gate))
    future, run_id = begin(one, wf, began)
    assert one.engine.cancel(run_id)
    with pytest.raises(StepCancelled):
        future.result(PATIENCE)
    (finished,) = of_type(events, RunFinished)
    assert (finished.outcome, finished.undone) == (Status.COMPENSATED, ("deaf",))
    assert ledger == ["-deaf"]
    gate.set()
    until(lambda: ledger == ["-deaf", "deaf", "-deaf"])
    until(lambda: of_type(events, StepCompletedLate))


def test_cancel_ends_a_backoff_at_once(live: MakeLive, ledger: Ledger) -> None:
    waits, wf = Gate(), Workflow("w")
    one = live(hooks=[lambda event: waits.set() if type(event) is BackoffStarted else None])
    ledger.add(wf, "a", raises=ValueError("a"), retry=Retry(2, Backoff.fixed(3600)))
    future, run_id = begin(one, wf, waits)
    until(lambda: one.engine.cancel(run_id))
    with pytest.raises(StepCancelled):
        future.result(PATIENCE)
    assert ledger == ["a"]


def test_cancel_answers_false_for_a_run_it_does_not_know_or_that_is_over(live: MakeLive, ledger: Ledger) -> None:
    one = live()
    assert not one.engine.cancel("no such run")
    run = one.run(ledger.chain("a"))
    assert not one.engine.cancel(run.id)


@pytest.mark.parametrize("engine_type", [Engine, AsyncEngine])
def test_cancel_needs_an_id_or_a_key(engine_type: Any) -> None:
    with pytest.raises(DefinitionError, match="Name the run by its id, or by key="):
        engine_type().cancel()


def test_the_result_of_an_async_cancel_says_what_was_asked(tmp_path: Path) -> None:
    async def main(store: Any) -> tuple[str, bool]:
        async with AsyncEngine(store=store) as engine:
            found = engine.cancel("no such run")
            return repr(found), await found

    assert asyncio.run(main(None)) == ("<Cancellation of no run>", False)
    store = SQLiteStore(tmp_path / "runs.db")
    assert asyncio.run(main(store)) == ("<Cancellation sent to the store>", False)
    assert repr(AsyncEngine(store=store).cancel("no such run")) == "<Cancellation of no run>"
    store.close()


def test_cancelling_twice_changes_nothing(live: MakeLive, ledger: Ledger) -> None:
    one, wf, began = live(), Workflow("w"), Gate()

    def slow(ctx: Context) -> None:
        began.set()
        until(lambda: ctx.cancelled)

    ledger.add(wf, "slow", first=slow)
    future, run_id = begin(one, wf, began)
    assert one.engine.cancel(run_id)
    one.engine.cancel(run_id)
    with pytest.raises(StepCancelled):
        future.result(PATIENCE)
    assert ledger == ["slow", "-slow"]


def test_undo_is_shielded_from_cancellation(live: MakeLive, ledger: Ledger) -> None:
    one, wf, undoing, cancelled = live(grace=0.01), Workflow("w"), Gate(), Gate()

    def undo(ctx: Context) -> None:
        undoing.set()
        cancelled.wait()
        assert not ctx.cancelled
        ledger.append("-a")

    a = wf.add_step("a", lambda ctx: 1)
    a.compensate(retry=Retry(2, Backoff.fixed(0.001)))(undo)
    wf.add_step("b", lambda ctx: 1 / 0, depends_on=a)
    future, run_id = begin(one, wf, undoing, check=False)
    one.engine.cancel(run_id)
    cancelled.set()
    run = future.result(PATIENCE)
    assert (run.status, ledger) == (Status.COMPENSATED, ["-a"])


def test_cancel_from_inside_a_step_ends_the_run(live: MakeLive, ledger: Ledger) -> None:
    one, wf = live(), Workflow("w")
    ledger.add(wf, "a")

    def suicide(ctx: Context) -> None:
        assert one.engine.cancel(ctx.run_id)
        until(lambda: ctx.cancelled)

    ledger.add(wf, "b", depends_on="a", first=suicide)
    ledger.add(wf, "c", depends_on="b")
    ledger.add(wf, "d", depends_on="b")
    with pytest.raises(StepCancelled):
        one.run(wf)
    assert ledger == ["a", "b", "-b", "-a"]


@pytest.mark.parametrize("hooks", [(), (lambda event: None,)], ids=["silent", "watched"])
def test_a_step_that_cancels_its_asyncio_run_and_waits_for_nothing_is_its_last(ledger: Ledger, hooks: Any) -> None:
    wf, engine = Workflow("w"), AsyncEngine(hooks=hooks)

    async def suicide(ctx: Context) -> None:
        ledger.append("a")
        assert engine.cancel(ctx.run_id)

    async def undo(ctx: Context) -> None:
        ledger.append("-a")

    async def never(ctx: Context) -> None:
        ledger.append("b")

    wf.add_step("a", suicide, compensate=undo)
    wf.add_step("b", never, depends_on="a")
    wf.add_step("c", never, depends_on="a")

    async def main() -> None:
        with pytest.raises(StepCancelled):
            await engine.run(wf)

    run_async(main)
    assert ledger == ["a", "-a"]


@pytest.mark.parametrize("hooks", [(), (lambda event: None,)], ids=["silent", "watched"])
def test_a_step_that_cancels_its_own_task_cancels_the_run(ledger: Ledger, hooks: Any) -> None:
    wf, engine = Workflow("w"), AsyncEngine(hooks=hooks)

    async def suicide(ctx: Context) -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(3600)

    async def undo(ctx: Context) -> None:
        ledger.append("-a")

    wf.add_step("a", suicide, compensate=undo)

    async def main() -> None:
        await engine.run(wf)

    with pytest.raises(asyncio.CancelledError) as caught:
        run_async(main)
    assert "was cancelled; undone: 'a'" in notes(caught.value)


def test_a_cancelled_key_is_free_again(live: MakeLive, ledger: Ledger) -> None:
    one, wf, began = live(), Workflow("w"), Gate()
    once = threading.Event()

    def slow(ctx: Context) -> None:
        began.set()
        if not once.is_set():
            once.set()
            until(lambda: ctx.cancelled)

    ledger.add(wf, "slow", first=slow)
    future, run_id = begin(one, wf, began, idempotency_key="k")
    one.engine.cancel(run_id)
    with pytest.raises(StepCancelled):
        future.result(PATIENCE)
    assert one.run(wf, idempotency_key="k").status is Status.SUCCESS


# -- futures -----------------------------------------------------------------------------------------------------------


def test_a_future_can_be_cancelled_before_its_run_begins_and_then_nothing_happens(ledger: Ledger, gate: Gate) -> None:
    with Engine(max_workers=1) as engine:
        blocker = Workflow("blocker")
        began = Gate()
        blocker.add_step("a", began.then(gate))
        first = engine.submit(blocker)
        began.wait()
        second = engine.submit(ledger.chain("a"))
        assert second.cancel()
        gate.set()
        assert first.result(PATIENCE).status is Status.SUCCESS
        with pytest.raises(CancelledError):
            second.result(PATIENCE)
    assert ledger == []
    assert not engine._live


@pytest.mark.parametrize("durable", [False, True], ids=["memory", "sqlite"])
@pytest.mark.parametrize("check", [True, False])
def test_engine_cancel_of_a_queued_run_ends_its_future_and_frees_its_key(
    ledger: Ledger, gate: Gate, tmp_path: Path, durable: bool, check: bool
) -> None:
    store = SQLiteStore(tmp_path / "runs.db") if durable else MemoryStore()
    blocker, began = Workflow("blocker"), Gate()
    blocker.add_step("a", began.then(gate))
    with Engine(store=store, max_workers=1) as engine:
        first = engine.submit(blocker)
        began.wait()
        second = engine.submit(ledger.chain("a"), idempotency_key="k", check=check)
        assert engine.cancel(key="k")
        if check:
            with pytest.raises(StepCancelled, match=r"was cancelled by engine\.cancel"):
                second.result(PATIENCE)
        else:
            run = second.result(PATIENCE)
            assert (run.status, type(run.error)) == (Status.FAILURE, StepCancelled)
        record = store.find("k")
        assert record is None or record.status == Status.FAILURE
        gate.set()
        first.result(PATIENCE)
        assert not engine._runs.queued
        assert engine.run(ledger.chain("a"), idempotency_key="k").status is Status.SUCCESS
    assert ledger == ["a"]


@pytest.mark.parametrize("durable", [False, True], ids=["memory", "sqlite"])
@pytest.mark.parametrize("check", [True, False])
def test_cancel_of_an_asyncengine_ends_the_future_of_a_queued_run(
    ledger: Ledger, tmp_path: Path, durable: bool, check: bool
) -> None:
    """It does not raise CancelledError: the task that awaits the future was not cancelled."""
    store = SQLiteStore(tmp_path / "runs.db") if durable else MemoryStore()

    async def main() -> None:
        async with AsyncEngine(store=store) as engine:
            future = engine.submit(ledger.chain("a"), idempotency_key="k", check=check)
            assert await engine.cancel(key="k")
            if check:
                with pytest.raises(StepCancelled, match=r"was cancelled by engine\.cancel"):
                    await future
            else:
                run = await future
                assert run.status in {Status.FAILURE, Status.COMPENSATED}  # in memory it may have begun
                assert isinstance(run.error, StepCancelled)
            assert (await engine.run(ledger.chain("a"), idempotency_key="k")).status is Status.SUCCESS

    run_async(main)
    assert ledger.standing == {"a": 1}


@pytest.mark.parametrize(
    "act", [lambda engine: engine.cancel(key="k"), lambda engine: engine.close(timeout=0)], ids=["cancel", "close"]
)
@pytest.mark.parametrize("durable", [False, True], ids=["memory", "sqlite"])
def test_a_future_is_resolved_if_its_run_is_cancelled_or_its_engine_closed_while_submit_makes_it(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, act: Any, durable: bool
) -> None:
    class Made(RunFuture):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            thread = threading.Thread(target=act, args=(engine,))
            thread.start()
            thread.join(PATIENCE)

    monkeypatch.setattr(thread_runs, "RunFuture", Made)
    engine = Engine(store=SQLiteStore(tmp_path / "runs.db") if durable else None)
    future = engine.submit(ledger.chain("a"), idempotency_key="k", check=False)
    with suppress(FlowcoreError, CancelledError):
        future.result(PATIENCE)
    assert future.done()
    engine.close()
    assert not engine._live
    assert not engine._runs.queued


def test_a_future_cannot_be_cancelled_once_its_run_has_begun(gate: Gate) -> None:
    with Engine() as engine:
        wf, began = Workflow("w"), Gate()
        wf.add_step("a", began.then(gate))
        future = engine.submit(wf)
        began.wait()
        assert future.cancel() is False
        gate.set()
        assert future.result(PATIENCE).status is Status.SUCCESS


def test_a_future_raises_what_run_raises(ledger: Ledger) -> None:
    with Engine() as engine:
        with pytest.raises(ValueError, match="a failed"):
            engine.submit(ledger.chain("a!")).result(PATIENCE)
        assert engine.submit(ledger.chain("a!"), check=False).result(PATIENCE).status is Status.FAILURE
        base = Workflow("base")
        base.add_step("a", lambda ctx: (_ for _ in ()).throw(SystemExit(3)))
        with pytest.raises(SystemExit):
            engine.submit(base, check=False).result(PATIENCE)


def test_submit_works_with_callbacks_and_as_completed(ledger: Ledger) -> None:
    wf = Workflow("w")
    wf.add_step("a", lambda ctx: ctx["n"])
    with Engine(max_workers=4) as engine:
        futures = [engine.submit(wf, {"n": n}) for n in range(20)]
        assert sorted(future.result()["a"] for future in as_completed(futures, PATIENCE)) == list(range(20))


# -- closing -----------------------------------------------------------------------------------------------------------


def test_close_waits_for_runs_in_flight_and_refuses_new_ones(ledger: Ledger) -> None:
    engine = Engine()
    futures = [engine.submit(ledger.chain("a", "b")) for _ in range(10)]
    engine.close()
    assert all(future.done() and future.result().status is Status.SUCCESS for future in futures)
    for refused in (engine.run, engine.submit):
        with pytest.raises(FlowcoreError, match="this engine is closed and starts no more runs"):
            refused(ledger.chain("a"))
    engine.close()  # twice is fine


@pytest.mark.parametrize("hooks", [(), (lambda event: None,)], ids=["no hooks", "hooks"])
def test_close_waits_for_a_run_in_another_thread(gate: Gate, hooks: Any) -> None:
    engine, wf, began = Engine(hooks=hooks), Workflow("w"), Gate()
    wf.add_step("a", began.then(gate))
    runs = threading.Thread(target=engine.run, args=(wf,))
    runs.start()
    began.wait()
    closes = threading.Thread(target=engine.close, daemon=True)
    closes.start()
    until(lambda: engine._runs.closing)
    gate.set()
    runs.join()
    closes.join(PATIENCE)
    assert not closes.is_alive()


def test_close_with_a_timeout_cancels_what_is_left_and_undoes_it(live: MakeLive, ledger: Ledger) -> None:
    one, wf, began = live(), Workflow("w"), Gate()

    def slow(ctx: Context) -> None:
        began.set()
        until(lambda: ctx.cancelled)

    ledger.add(wf, "a")
    ledger.add(wf, "slow", depends_on="a", first=slow)
    future = one.start(wf)
    began.wait()
    one.close(0.01)
    with pytest.raises(StepCancelled, match="was cancelled: its engine was closed"):
        future.result(PATIENCE)
    assert ledger == ["a", "slow", "-slow", "-a"]


def test_close_leaves_no_threads_behind(ledger: Ledger) -> None:
    before = set(threading.enumerate())
    with Engine() as engine:
        wf = Workflow("wide")
        for number in range(8):
            ledger.add(wf, str(number), timeout=60, retry=Retry(2, Backoff.fixed(0.001)))
        for _ in range(3):
            engine.submit(wf).result(PATIENCE)
    until(lambda: set(threading.enumerate()) <= before)  # the clock's thread ends a moment after the close


def test_an_engine_cannot_be_closed_by_one_of_its_own_steps() -> None:
    with Engine() as engine:
        wf = Workflow("w")
        wf.add_step("a", lambda ctx: engine.close())
        with pytest.raises(FlowcoreError, match="cannot be closed by one of its own steps"):
            engine.submit(wf).result(PATIENCE)
        for where in (wf, closes_in_its_undo(engine)):  # on the caller's thread
            run = engine.run(where, check=False)
            assert "cannot be closed by one of its own steps" in run.explain()


@pytest.mark.parametrize("beside", [False, True], ids=["alone", "beside another step"])
def test_an_asyncengine_cannot_be_closed_by_one_of_its_own_steps(beside: bool) -> None:
    async def main() -> None:
        async with AsyncEngine() as engine:

            async def closes(ctx: Context) -> None:
                await engine.aclose(math.inf)

            wf = Workflow("w")
            wf.add_step("a", closes)
            if beside:
                wf.add_step("b", lambda ctx: 1)
            with pytest.raises(FlowcoreError, match="cannot be closed by one of its own steps"):
                await engine.run(wf)
            undo = Workflow("undo")
            undo.add_step("a", lambda ctx: 1, compensate=closes)
            undo.add_step("b", lambda ctx: 1 / 0, depends_on="a")
            assert "cannot be closed by one of its own steps" in (await engine.run(undo, check=False)).explain()

    run_async(main)


def closes_in_its_undo(engine: Engine) -> Workflow:
    wf = Workflow("undo")
    wf.add_step("a", lambda ctx: 1, compensate=lambda ctx: engine.close())
    wf.add_step("b", lambda ctx: 1 / 0, depends_on="a", timeout=60)
    return wf


def test_an_asyncengine_refuses_runs_once_it_is_closed(ledger: Ledger) -> None:
    async def main() -> None:
        engine = AsyncEngine()
        await engine.run(ledger.chain("a"))
        await engine.aclose()
        with pytest.raises(FlowcoreError, match="this engine is closed"):
            await engine.run(ledger.chain("a"))

    run_async(main)


# -- tasks -------------------------------------------------------------------------------------------------------------


def awaiting_saga(ledger: Ledger, *, fails: bool, sync: bool) -> Workflow:
    """Async steps and undos that suspend several times, two of them at once; `sync`: one runs on a thread."""
    wf = Workflow("saga")

    def add(name: str, *, awaits: int, **options: Any) -> None:
        async def do(ctx: Context) -> str:
            for _ in range(awaits):
                await asyncio.sleep(0)
            ledger.append(name)
            return name

        async def undo(ctx: Context) -> None:
            await asyncio.sleep(0)
            ledger.append(f"-{name}")
            await asyncio.sleep(0)

        wf.add_step(name, do, compensate=undo, **options)

    add("a", awaits=2)
    add("b", awaits=1, depends_on="a")
    add("c", awaits=3, depends_on="a", timeout=60)
    if sync:
        ledger.add(wf, "sync", depends_on=["b", "c"])
    add("d", awaits=2, depends_on=["b", "c", *(["sync"] if sync else [])], retry=2)
    if fails:
        wf.add_step("fails", _fails, depends_on="d")
    return wf


async def _fails(ctx: Context) -> None:
    raise ZeroDivisionError


async def cancelled_at(moment: int, *, fails: bool, sync: bool, key: str | None, times: int) -> bool:
    """Cancel a run's task after so many iterations of the loop; answers whether that was before its end."""
    ledger, store = Ledger(), MemoryStore()
    async with AsyncEngine(store=store) as engine:
        task = asyncio.ensure_future(engine.run(awaiting_saga(ledger, fails=fails, sync=sync), idempotency_key=key))
        for _ in range(moment):
            await asyncio.sleep(0)
        alive = not task.done()
        for _ in range(times):
            task.cancel()
            await asyncio.sleep(0)
        raised = None
        try:
            await task
        except (asyncio.CancelledError, ZeroDivisionError) as error:
            raised = error
        if alive:
            assert isinstance(raised, asyncio.CancelledError), (moment, raised)
            assert not +ledger.standing, (moment, ledger)
        assert min(ledger.standing.values(), default=0) >= -1, (moment, ledger)
        assert not [record for record in store.list_runs() if record.status == Status.RUNNING], moment
        assert not engine._live, moment
    assert asyncio.all_tasks() == {asyncio.current_task()}, moment
    return alive


@pytest.mark.parametrize("sync", [False, True], ids=["async steps", "a sync step too"])
@pytest.mark.parametrize("fails", [False, True], ids=["succeeds", "fails"])
@pytest.mark.parametrize("key", [None, "k"], ids=["no key", "a key"])
@pytest.mark.parametrize("times", [1, 2], ids=["once", "twice"])
def test_a_task_cancelled_after_any_number_of_loop_iterations_undoes_everything(
    sync: bool, fails: bool, key: str | None, times: int
) -> None:
    alive = [
        asyncio.run(cancelled_at(moment, fails=fails, sync=sync, key=key, times=times), debug=True)
        for moment in range(40)
    ]
    assert sum(alive) >= 8
    assert sync or not alive[-1]


def test_cancelling_the_callers_task_raises_cancellederror_with_the_story(ledger: Ledger) -> None:
    async def main() -> None:
        began = asyncio.Event()

        async def slow(ctx: Context) -> None:
            began.set()
            await asyncio.sleep(3600)

        wf = Workflow("w")
        ledger.add(wf, "a")
        wf.add_step("slow", slow, depends_on="a", compensate=lambda ctx: ledger.append("-slow"))
        task = asyncio.ensure_future(AsyncEngine().run(wf, check=False))
        await began.wait()
        task.cancel("enough")
        with pytest.raises(asyncio.CancelledError) as caught:
            await task
        assert "undone: 'slow', 'a'" in notes(caught.value)
        assert ledger == ["a", "-slow", "-a"]

    run_async(main)


def test_a_failed_undo_after_a_cancellation_is_the_cancellations_cause_or_note(ledger: Ledger) -> None:
    async def main() -> None:
        began = asyncio.Event()

        async def slow(ctx: Context) -> None:
            began.set()
            await asyncio.sleep(3600)

        wf, store = Workflow("w"), MemoryStore()
        ledger.add(wf, "a", undo_raises=LookupError("a stays"))
        wf.add_step("slow", slow, depends_on="a")
        task = asyncio.ensure_future(AsyncEngine(store=store).run(wf, idempotency_key="k"))
        await began.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError) as caught:
            await task
        cause = caught.value.__cause__
        assert isinstance(cause, CompensationFailed) or "could not undo 'a'" in notes(caught.value)
        assert store.list_runs(status="held")

    run_async(main)


def test_undo_continues_however_often_the_task_is_cancelled() -> None:
    async def main() -> None:
        undoing, release, done = asyncio.Event(), asyncio.Event(), list[str]()

        async def undo(ctx: Context) -> None:
            undoing.set()
            await release.wait()
            done.append("undone")

        wf = Workflow("w")
        wf.add_step("a", lambda ctx: 1, compensate=undo)
        wf.add_step("b", lambda ctx: 1 / 0, depends_on="a")
        task = asyncio.ensure_future(AsyncEngine().run(wf))
        await undoing.wait()
        for _ in range(5):
            task.cancel()
            await asyncio.sleep(0.001)
        assert not task.done()
        release.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert done == ["undone"]

    run_async(main)


def test_an_async_step_may_clean_up_when_it_is_cancelled(ledger: Ledger) -> None:
    async def main() -> None:
        began = asyncio.Event()

        async def slow(ctx: Context) -> None:
            began.set()
            try:
                await asyncio.sleep(3600)
            finally:
                await asyncio.sleep(0.001)
                ledger.append("cleaned up")

        wf = Workflow("w")
        wf.add_step("slow", slow, compensate=lambda ctx: ledger.append("-slow"))
        task = asyncio.ensure_future(AsyncEngine().run(wf))
        await began.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert ledger == ["cleaned up", "-slow"]

    run_async(main)


def test_one_failing_run_in_a_taskgroup_cancels_the_others_which_undo(ledger: Ledger) -> None:
    async def main() -> None:
        began = asyncio.Event()

        async def slow(ctx: Context) -> None:
            began.set()
            await asyncio.sleep(3600)

        wf = Workflow("slow")
        ledger.add(wf, "a")
        wf.add_step("slow", slow, depends_on="a")
        engine = AsyncEngine()
        with pytest.raises(ExceptionGroup) as caught:  # noqa: PT012 - a group is a block
            async with asyncio.TaskGroup() as group:
                group.create_task(engine.run(wf))
                await began.wait()
                group.create_task(engine.run(ledger.chain("x!")))
        assert [str(error) for error in caught.value.exceptions] == ["x failed"]
        assert ledger == ["a", "x", "-a"]

    run_async(main)


def test_a_step_that_cancels_its_own_run_by_a_bare_cancellederror_fails_a_taskgroup_loudly(ledger: Ledger) -> None:
    async def main() -> None:
        wf = Workflow("bare")
        ledger.add(wf, "a", raises=asyncio.CancelledError())
        with pytest.raises(ExceptionGroup) as caught:
            async with asyncio.TaskGroup() as group:
                group.create_task(AsyncEngine().run(wf))
        assert isinstance(caught.value.exceptions[0], StepCancelled)

    run_async(main)


def test_a_submitted_task_can_be_cancelled_before_it_starts(ledger: Ledger) -> None:
    async def main() -> None:
        engine = AsyncEngine()
        task = engine.submit(ledger.chain("a"))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert ledger == []
        await engine.aclose()

    run_async(main)


def test_asyncengine_cancel_works_from_another_thread(ledger: Ledger) -> None:
    async def main() -> None:
        ids: list[str] = []

        async def slow(ctx: Context) -> None:
            ids.append(ctx.run_id)
            await asyncio.sleep(3600)

        wf = Workflow("w")
        wf.add_step("slow", slow)
        engine = AsyncEngine()
        task = asyncio.ensure_future(engine.run(wf))
        await until_async(lambda: ids)
        assert await asyncio.to_thread(engine.cancel, ids[0])
        with pytest.raises(StepCancelled):
            await task

    run_async(main)


def test_a_loop_that_shuts_down_cancels_runs_in_flight_and_they_undo(ledger: Ledger) -> None:
    async def slow(ctx: Context) -> None:
        await asyncio.sleep(3600)

    async def main() -> None:
        wf = Workflow("w")
        ledger.add(wf, "a")
        wf.add_step("slow", slow, depends_on="a")
        engine = AsyncEngine()
        engine.submit(wf)
        await until_async(lambda: "a" in ledger)
        await asyncio.sleep(0.01)

    asyncio.run(main())  # cancels what is left, and waits for it
    assert ledger == ["a", "-a"]


def test_one_asyncengine_serves_several_loops(ledger: Ledger) -> None:
    engine = AsyncEngine()
    for _ in range(3):
        assert asyncio.run(engine.run(ledger.chain("a", "b"))).status is Status.SUCCESS
    asyncio.run(engine.aclose())
