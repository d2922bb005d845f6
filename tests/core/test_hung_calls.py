"""Calls that never return (semantics 7): their threads are replaced, deadlines end what waits for a thread."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from flowcore import (
    AsyncEngine,
    AsyncRunFuture,
    Backoff,
    Context,
    Engine,
    NoThread,
    Retry,
    RunParked,
    RunTimeout,
    Status,
    StepCancelled,
    Workflow,
)
from flowcore._engines.workers import start_thread
from flowcore.events import RunFinished, StepFinished, StepStarted
from flowcore.stores import SQLiteStore

from .conftest import PATIENCE, Ledger, MakeLive, of_type, run_async, until, until_async


@pytest.fixture
def never() -> Iterator[threading.Event]:
    """What hung calls wait for; set when the test is over."""
    event = threading.Event()
    yield event
    event.set()


def hung(never: threading.Event, name: str = "read") -> Workflow:
    wf = Workflow("stuck")
    wf.add_step(name, lambda ctx: never.wait(), timeout=0.01)
    return wf


def quick(ledger: Ledger) -> Workflow:
    """A step that needs a thread of the engine's, with an undo."""
    wf = Workflow("quick")
    wf.add_step("work", lambda ctx: ledger.append("work"), timeout=60, compensate=lambda ctx: ledger.append("-work"))
    return wf


def test_abandoned_threads_are_replaced_up_to_max_workers_more(
    live: MakeLive, never: threading.Event, ledger: Ledger, caplog: pytest.LogCaptureFixture
) -> None:
    one = live(max_workers=2, grace=0.01)
    for _ in range(2):
        assert one.run(hung(never), check=False).status is Status.FAILURE
    assert one.run(quick(ledger)).status is Status.SUCCESS
    assert not caplog.records
    for name in ("write", "send"):
        assert one.run(hung(never, name), check=False).status is Status.FAILURE
    (line,) = [record.message for record in caplog.records if record.name == "flowcore"]
    assert line.startswith(
        "3 calls were abandoned and have not returned: step 'read' of workflow 'stuck' (2 times), "
        "step 'write' of workflow 'stuck'. "
    )
    never.set()  # they return, and there are threads again
    until(lambda: one.engine._pool.counts() == (0, 0))
    assert one.run(quick(ledger)).status is Status.SUCCESS
    assert one.engine._pool._capacity == 2


def exhaust(engine: Any, one: Any, never: threading.Event, workers: int) -> None:
    for _ in range(2 * workers):
        one.run(hung(never), check=False)
    until(lambda: engine._pool.exhausted)


def test_a_deadline_ends_a_run_whose_step_waits_for_a_thread_and_nothing_is_in_doubt(
    live: MakeLive, never: threading.Event, ledger: Ledger
) -> None:
    events: list[Any] = []
    one = live(max_workers=1, grace=0.01, hooks=[events.append])
    exhaust(one.engine, one, never, 1)
    events.clear()
    run = one.run(quick(ledger), deadline=0.05, check=False)
    assert isinstance(run.error, RunTimeout)
    assert "step 'work' was still waiting for a thread at the deadline" in str(run.error)
    assert (run.status, run.undone, ledger) == (Status.FAILURE, (), [])
    (finished,) = of_type(events, StepFinished)
    assert (finished.outcome, finished.attempts) == (Status.FAILURE, 0)


def test_a_deadline_ends_a_submitted_run_that_no_thread_can_begin(never: threading.Event, ledger: Ledger) -> None:
    engine = Engine(max_workers=1, grace=0.01)
    for _ in range(2):
        engine.run(hung(never), check=False)
    future = engine.submit(quick(ledger), deadline=0.05)
    with pytest.raises(RunTimeout, match="no thread was free"):
        future.result(PATIENCE)
    assert not engine._live
    assert not ledger


def test_a_deadline_ends_a_run_whose_backoff_is_over_and_no_thread_is_free(
    never: threading.Event, ledger: Ledger
) -> None:
    engine, wf = Engine(max_workers=1, grace=0.01), Workflow("w")

    def fails(ctx: Context) -> None:
        ledger.append("try")
        raise ValueError("again")

    wf.add_step("a", fails, retry=Retry(5, Backoff.fixed(0.1)), timeout=60)
    first = engine.submit(wf, deadline=0.5, check=False)
    until(lambda: "try" in ledger)
    blocker = Workflow("blocker")
    blocker.add_step("wait", lambda ctx: never.wait())
    engine.submit(blocker)  # it takes the only thread while the other run backs off
    run = first.result(PATIENCE)
    assert isinstance(run.error, RunTimeout | ValueError)
    assert ledger == ["try"] * run.steps["a"].attempts


def test_cancelling_a_run_whose_step_waits_for_a_thread_undoes_nothing_of_that_step(
    live: MakeLive, never: threading.Event, ledger: Ledger
) -> None:
    one, wf = live(max_workers=1, grace=0.01), quick(ledger)
    wf.add_step("never", lambda ctx: None, depends_on="work")
    exhaust(one.engine, one, never, 1)
    ended: list[Any] = []
    thread = threading.Thread(target=lambda: ended.append(one.run(wf, check=False)))
    thread.start()
    until(lambda: [run for run in one.engine._live if run.running])
    (run,) = one.engine._live
    assert one.engine.cancel(run.run_id)
    thread.join(PATIENCE)
    assert (ended[0].status, ledger) == (Status.FAILURE, [])
    assert ended[0].steps["work"].status is Status.PENDING


def test_a_run_that_is_cancelled_just_before_its_step_would_wait_for_a_thread_ends(
    live: MakeLive, never: threading.Event, ledger: Ledger
) -> None:
    def cancels(event: Any) -> None:
        if isinstance(event, StepStarted) and event.step == "work":
            one.engine.cancel(event.run_id)

    one = live(max_workers=1, grace=0.01, hooks=[cancels])
    exhaust(one.engine, one, never, 1)
    ended: list[Any] = []
    thread = threading.Thread(target=lambda: ended.append(one.run(quick(ledger), check=False)))
    thread.start()
    thread.join(PATIENCE)
    assert [(run.status, ledger) for run in ended] == [(Status.FAILURE, [])]
    assert ended[0].steps["work"].status is Status.PENDING


def test_cancelling_a_run_whose_next_attempt_waits_for_a_thread_ends_it(never: threading.Event, ledger: Ledger) -> None:
    engine, wf = Engine(max_workers=1, grace=0.01), Workflow("w")

    def fails(ctx: Context) -> None:
        ledger.append("try")
        raise ValueError("again")

    wf.add_step("a", fails, retry=Retry(5, Backoff.fixed(2.0)), timeout=60)  # the threads are taken within the backoff
    first = engine.submit(wf, check=False)
    until(lambda: "try" in ledger)
    for _ in range(2):
        engine.run(hung(never), check=False)
    (driver,) = engine._live.values()
    until(lambda: bool(driver._resumptions))
    assert ledger == ["try"]
    assert engine.cancel(first.run_id)
    run = first.result(PATIENCE)
    assert isinstance(run.error, StepCancelled)
    assert (ledger, run.steps["a"].attempts) == (["try"], 1)


def test_a_durable_run_that_only_waits_for_a_thread_is_parked_after_a_lease(
    live: MakeLive, never: threading.Event, ledger: Ledger, tmp_path: Path
) -> None:
    store, wf = SQLiteStore(tmp_path / "db"), quick(ledger)
    events = list[object]()
    one = live(max_workers=1, grace=0.01, lease=0.4, store=store, hooks=[events.append])
    exhaust(one.engine, one, never, 1)
    began = time.monotonic()
    with pytest.raises(RunParked, match="no thread of its engine was free for a whole lease"):
        one.run(wf, idempotency_key="k")
    assert time.monotonic() - began >= 0.4
    record = store.find("k")
    assert record is not None
    # It is parked without an error, so another engine may resume it at once.
    assert (record.status, record.retries, record.not_before) == (Status.PARKED, 0, None)
    assert [(end.outcome, end.left) for end in of_type(events, RunFinished) if end.workflow == "quick"] == [
        (Status.PARKED, True)
    ]
    with Engine(store=store) as other:
        assert other.run(wf, idempotency_key="k").status is Status.SUCCESS
    assert ledger == ["work"]


def test_durable_runs_that_no_thread_can_begin_are_left_to_other_processes_after_a_lease(
    never: threading.Event, ledger: Ledger, tmp_path: Path
) -> None:
    store, wf = SQLiteStore(tmp_path / "db"), quick(ledger)
    with Engine(max_workers=1, grace=0.01, lease=0.2, store=store) as one, Engine(store=store) as other:
        for _ in range(2):
            one.run(hung(never), check=False)
        futures = [one.submit(wf, idempotency_key=key) for key in "ab"]
        for future in futures:
            with pytest.raises(RunParked, match="no thread of its engine was free for a whole lease"):
                future.result(PATIENCE)
        assert [record.status for record in store.list_runs() if record.workflow == "quick"] == [Status.QUEUED] * 2
        # The leases are released a moment after the futures are done.
        runs = [other.run(wf, idempotency_key=key, wait=PATIENCE) for key in "ab"]
        assert [run.status for run in runs] == [Status.SUCCESS] * 2
        never.set()
        assert one.submit(wf, idempotency_key="c").result(PATIENCE).status is Status.SUCCESS


def test_durable_runs_are_left_to_others_although_the_thread_for_that_cannot_be_started_at_once(
    never: threading.Event, ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused: list[threading.Thread] = []

    def later(thread: threading.Thread) -> None:
        if thread.name == "flowcore-queue" and not refused:
            refused.append(thread)
            raise NoThread("none")
        start_thread(thread)

    monkeypatch.setattr("flowcore._engines.thread_runs.start_thread", later)
    with Engine(max_workers=1, grace=0.01, lease=0.1, store=SQLiteStore(tmp_path / "db")) as engine:
        for _ in range(2):
            engine.run(hung(never), check=False)
        with pytest.raises(RunParked):
            engine.submit(quick(ledger), idempotency_key="a").result(PATIENCE)
        assert refused
        never.set()


def test_durable_runs_that_wait_for_busy_threads_stay_queued(tmp_path: Path) -> None:
    wf = Workflow("slow")
    wf.add_step("work", lambda ctx: time.sleep(0.3), timeout=60)
    with Engine(max_workers=1, lease=0.05, store=SQLiteStore(tmp_path / "db")) as engine:
        futures = [engine.submit(wf, idempotency_key=key) for key in "abc"]
        assert [future.result(PATIENCE).status for future in futures] == [Status.SUCCESS] * 3


def test_a_durable_run_that_waits_for_a_busy_thread_is_not_parked_while_a_call_of_its_own_runs(
    live: MakeLive, ledger: Ledger, tmp_path: Path
) -> None:
    one, wf = live(max_workers=1, grace=0.01, lease=0.2, store=SQLiteStore(tmp_path / "db")), Workflow("two")
    wf.add_step("slow", lambda ctx: time.sleep(0.6), timeout=60)
    wf.add_step("other", lambda ctx: ledger.append("other"), timeout=60)
    assert one.run(wf, idempotency_key="k").status is Status.SUCCESS


def deaf(
    ledger: Ledger, began: asyncio.Event, heard: asyncio.Event, undo_first: Callable[[Context], Any] | None = None
) -> Workflow:
    """A step that ignores its cancellation until `heard` is set, after another one; both with an undo."""
    wf = Workflow("deaf")
    first = ledger.add(wf, "first", undoable=undo_first is None)
    if undo_first is not None:
        first.compensate(undo_first)

    async def ignores(ctx: Context) -> None:
        while not heard.is_set():
            began.set()
            try:
                await heard.wait()
            except asyncio.CancelledError:
                ledger.append("ignored")

    wf.add_step("deaf", ignores, depends_on=first, compensate=lambda ctx: ledger.append("-deaf"))
    return wf


async def cancel_awaiting_task(engine: AsyncEngine, future: AsyncRunFuture) -> None:
    async def wait() -> None:
        await future

    task = asyncio.create_task(wait())
    await asyncio.sleep(0)
    task.cancel()


async def cancel_future(engine: AsyncEngine, future: AsyncRunFuture) -> None:
    future.cancel()


async def cancel_run(engine: AsyncEngine, future: AsyncRunFuture) -> None:
    engine.cancel(future.run_id)


@pytest.mark.parametrize("cancel", [cancel_awaiting_task, cancel_future, cancel_run])
def test_an_async_step_of_a_submitted_run_that_ignores_its_cancellation_is_abandoned(
    ledger: Ledger, cancel: Callable[..., Any]
) -> None:
    async def main() -> None:
        began, heard = asyncio.Event(), asyncio.Event()
        async with AsyncEngine(grace=0.01) as engine:
            future = engine.submit(deaf(ledger, began, heard))
            await began.wait()
            await cancel(engine, future)
            with pytest.raises(StepCancelled if cancel is cancel_run else asyncio.CancelledError):
                await future
            assert ledger == ["first", "ignored", "-deaf", "-first"]
            assert not heard.is_set()
            heard.set()  # the call completes late, and is undone once more
            await until_async(lambda: ledger[4:] == ["-deaf"])

    run_async(main)


def test_closing_an_asyncengine_parks_a_submitted_run_whose_step_ignores_its_cancellation(
    ledger: Ledger, tmp_path: Path
) -> None:
    async def main() -> None:
        began, heard = asyncio.Event(), asyncio.Event()
        engine = AsyncEngine(store=SQLiteStore(tmp_path / "db"), grace=0.01)
        future = engine.submit(deaf(ledger, began, heard), idempotency_key="k")
        await began.wait()
        await engine.aclose(timeout=0)
        with pytest.raises(RunParked):
            await future
        record = await engine.find("k")
        assert record is not None
        assert record.status is Status.PARKED
        heard.set()
        await asyncio.sleep(0)
        assert ledger == ["first", "ignored"]

    run_async(main)


def test_a_run_keeps_its_lease_while_it_is_undone_after_an_abandoned_call_has_ended(
    ledger: Ledger, tmp_path: Path
) -> None:
    async def main() -> None:
        began, heard = asyncio.Event(), asyncio.Event()
        renewed: list[bool] = []
        engine = AsyncEngine(store=SQLiteStore(tmp_path / "db"), grace=0.01)

        async def undo(ctx: Context) -> None:
            heard.set()
            await asyncio.sleep(0.05)  # the task of the abandoned call ends meanwhile
            leases = engine._runs.leases
            renewed.append(leases is not None and list(leases._runs) == list(engine._runs.live) != [])

        future = engine.submit(deaf(ledger, began, heard, undo), idempotency_key="k")
        await began.wait()
        future.cancel()
        with pytest.raises(asyncio.CancelledError):
            await future
        heard.set()
        assert renewed == [True]
        await engine.aclose()

    run_async(main)
