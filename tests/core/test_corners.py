"""Rare moments: what lands at the wrong time, what stops in between, what an engine leaves behind."""

import asyncio
import contextlib
import threading
from pathlib import Path
from typing import Any

import pytest

import flowcore._kernel.inline as sprinting
from flowcore import (
    AsyncEngine,
    Backoff,
    Context,
    Engine,
    FlowcoreError,
    LeaseLost,
    Retry,
    Run,
    RunParked,
    Status,
    StepCancelled,
    StoreError,
    Workflow,
)
from flowcore._engines.thread_runs import leave
from flowcore._kernel import stopping
from flowcore._kernel.outcome import _first_match
from flowcore._kernel.run_state import RunState
from flowcore.events import AttemptFinished, StepCompletedLate, StepFinished, StepStarted
from flowcore.stores import MemoryStore, SQLiteStore

from .conftest import PATIENCE, Drive, Gate, Ledger, MakeLive, notes, of_type, run_async, until

# -- landing -----------------------------------------------------------------------------------------------------------


def landed(engine: Any) -> bool:
    """Whether a call that was given up has come back, in some run of the engine."""
    runs = [getattr(run, "x", run) for run in list(engine._live)]
    return any(call.late_outcome is not None for x in runs for call in x.abandoned)


@pytest.mark.parametrize("undoable", [False, True])
def test_a_step_that_completes_between_its_timeout_and_the_end_is_recorded_before_the_end(
    ledger: Ledger, gate: Gate, undoable: bool
) -> None:
    events: list[Any] = []
    engines: list[Engine] = []

    def sees(event: Any) -> None:
        events.append(event)
        if type(event) is StepFinished and event.outcome is Status.TIMEOUT:
            gate.set()
            until(lambda: landed(engines[0]))

    wf = Workflow("w")
    ledger.add(wf, "slow", first=gate, timeout=0.01, undoable=undoable)
    with Engine(hooks=[sees]) as engine:
        engines.append(engine)
        run = engine.run(wf, check=False)
    assert run.steps["slow"].completed_late is Status.SUCCESS
    assert type(events[-1]).__name__ == "RunFinished"
    assert len(of_type(events, StepCompletedLate)) == 1
    assert ledger == (["slow", "-slow"] if undoable else ["slow"])


def test_a_step_that_completes_after_its_undo_but_before_the_end_is_undone_again_before_the_end(
    live: MakeLive, ledger: Ledger, gate: Gate
) -> None:
    one, wf = live(grace=0.01), Workflow("w")

    def undo(ctx: Context) -> None:
        gate.set()
        until(lambda: landed(one.engine))
        ledger.append("-a")

    wf.add_step("a", lambda ctx: ledger.append("a"), compensate=undo)
    ledger.add(wf, "slow", depends_on="a", first=gate, timeout=0.01)
    run = one.run(wf, check=False)
    assert ledger == ["a", "-slow", "slow", "-a", "-slow"]
    assert (run.undone, run.status) == (("a", "slow"), Status.COMPENSATED)


def test_an_attempt_that_has_landed_before_the_next_one_is_thought_of_is_the_steps_result(gate: Gate) -> None:
    engines: list[Engine] = []

    def sees(event: Any) -> None:
        if type(event) is AttemptFinished and event.outcome is Status.TIMEOUT:
            gate.set()
            until(lambda: all(driver._stuck == 0 for driver in engines[0]._live.values() if driver is not None))
            threading.Event().wait(0.005)

    wf = Workflow("w")
    wf.add_step("slow", lambda ctx: [gate.wait(), ctx.attempt][1], timeout=0.01, retry=3)
    with Engine(hooks=[sees]) as engine:
        engines.append(engine)
        assert engine.run(wf)["slow"] == 1


def test_a_predicate_that_completes_late_does_not_matter(live: MakeLive, ledger: Ledger, gate: Gate) -> None:
    events: list[Any] = []
    one, wf, began, ids = live(grace=0.01, hooks=[events.append]), Workflow("w"), Gate(), list[str]()

    def when(ctx: Context) -> bool:
        ids.append(ctx.run_id)
        began.set()
        gate.wait()
        return True

    ledger.add(wf, "a", when=when)
    future = one.start(wf, check=False)
    began.wait()
    one.engine.cancel(ids[0])
    with contextlib.suppress(StepCancelled):
        future.result(PATIENCE)
    gate.set()
    one.close()
    assert ledger == []
    assert not of_type(events, StepCompletedLate, StepStarted)


def test_a_coroutine_that_a_function_answers_after_it_was_given_up_is_closed_and_has_done_nothing(
    ledger: Ledger, gate: Gate
) -> None:
    events: list[Any] = []

    async def fetch() -> None:
        pass

    def slow(ctx: Context) -> Any:
        gate.wait()
        return fetch()

    async def main() -> None:
        wf = Workflow("w")
        wf.add_step("slow", slow, timeout=0.01, compensate=lambda ctx: ledger.append("-slow"))
        async with AsyncEngine(grace=0.01, hooks=[events.append]) as engine:
            run = await engine.run(wf, check=False)
            assert run.steps["slow"].status is Status.TIMEOUT
            gate.set()

    run_async(main)  # an unawaited coroutine would be a warning, and that an error
    assert [event.outcome for event in of_type(events, StepCompletedLate)] == [Status.FAILURE]
    assert ledger == ["-slow"]


# -- stopping in between -----------------------------------------------------------------------------------------------


def test_a_step_whose_predicate_answers_after_the_run_has_failed_does_not_start(live: MakeLive, ledger: Ledger) -> None:
    failed, asked, wf = Gate(), Gate(), Workflow("w")

    def when(ctx: Context) -> bool:
        asked.set()
        failed.wait()
        threading.Event().wait(0.01)  # StepFinished is told a moment before the failure is known to all
        return True

    def sees(event: Any) -> None:
        if type(event) is StepFinished:
            failed.set()

    ledger.add(wf, "asks", when=when)
    wf.add_step("fails", lambda ctx: [asked.wait(), 1 / 0])
    run = live(hooks=[sees]).run(wf, check=False)
    assert (ledger, run.steps["asks"].status) == ([], Status.PENDING)


def test_an_interpreter_that_exits_parks_durable_runs_once_their_current_steps_have_ended(
    ledger: Ledger, gate: Gate, tmp_path: Path
) -> None:
    # What the interpreter's exit does; the process would be gone afterwards.
    store, began, wf = SQLiteStore(tmp_path / "db"), Gate(), Workflow("w")
    ledger.add(wf, "a", first=began.then(gate))
    ledger.add(wf, "b", depends_on="a")
    engine = Engine(store=store)
    future = engine.submit(wf, idempotency_key="k")
    began.wait()
    leave(engine._pool, engine._runs.timers, engine._runs.live, 0.0)
    gate.set()
    with pytest.raises(RunParked, match="its process ended"):
        future.result(PATIENCE)
    assert ledger == ["a"]
    record = store.find("k")
    assert record is not None
    assert record.status is Status.PARKED
    with Engine(store=store) as later:
        run = later.run(wf, idempotency_key="k")
    assert (run.status, ledger) == (Status.SUCCESS, ["a", "b"])


def test_an_interpreter_that_exits_cancels_runs_in_memory_and_undoes_them(ledger: Ledger, gate: Gate) -> None:
    began, wf = Gate(), Workflow("w")
    ledger.add(wf, "a", first=began.then(gate))
    ledger.add(wf, "b", depends_on="a")
    engine = Engine()
    future = engine.submit(wf)
    began.wait()
    leave(engine._pool, engine._runs.timers, engine._runs.live, 0.0)
    gate.set()
    with pytest.raises(StepCancelled, match="was cancelled: its process ended"):
        future.result(PATIENCE)
    assert ledger == ["a", "-a"]


def test_a_step_that_exits_is_attempted_again_by_the_next_owner_and_undone_once(ledger: Ledger, tmp_path: Path) -> None:
    store, left, wf = SQLiteStore(tmp_path / "db"), list[int](), Workflow("w")

    def leaves(ctx: Context) -> None:
        if not left:
            left.append(1)
            raise SystemExit

    ledger.add(wf, "a", first=leaves)
    ledger.add(wf, "b", depends_on="a", raises=ValueError("b"))
    engine = Engine(store=store)
    with pytest.raises(SystemExit):
        engine.run(wf, idempotency_key="k")
    record = store.find("k")
    assert record is not None
    assert record.status is Status.PARKED
    with Engine(store=store) as later:
        run = later.run(wf, idempotency_key="k", check=False)
    assert (run.status, ledger) == (Status.COMPENSATED, ["a", "b", "-a"])


@pytest.mark.parametrize("kind", ["threads", "asyncio"])
def test_a_copy_of_a_run_in_a_forked_child_is_left_to_its_parent(ledger: Ledger, kind: str) -> None:
    # What happens to it is checked in the child, because it cannot be seen here.
    engine: Any = Engine() if kind == "threads" else AsyncEngine()

    def forks(ctx: Context) -> None:
        for run in list(engine._live):
            stopping.leave_to_parent(run, 4711)

    wf = Workflow("w")
    ledger.add(wf, "a")
    ledger.add(wf, "b", depends_on="a", first=forks)
    ledger.add(wf, "c", depends_on="b")

    async def on_asyncio() -> Run:
        run: Run = await engine.run(wf, deadline=60)
        return run

    with pytest.raises(
        LeaseLost, match=r"Process 4711 was forked in the middle of run .* of 'w'. The run belongs to the parent"
    ):
        engine.run(wf) if kind == "threads" else run_async(on_asyncio)
    assert ledger == ["a", "b"]


def test_an_engine_that_is_left_does_not_touch_a_run_that_fails_already(ledger: Ledger, gate: Gate) -> None:
    undoing, wf = Gate(), Workflow("w")
    ledger.add(wf, "a")
    wf.add_step("b", lambda ctx: 1, depends_on="a", compensate=undoing.then(gate))
    wf.add_step("c", lambda ctx: 1 / 0, depends_on="b")
    engine = Engine()
    future = engine.submit(wf, check=False)
    undoing.wait()
    leave(engine._pool, engine._runs.timers, engine._runs.live, 0.0)
    gate.set()
    assert future.result(PATIENCE).undone == ("b", "a")


@pytest.mark.parametrize("moment", range(1, 12))
def test_ctrl_c_between_the_steps_of_a_run_without_hooks(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch, moment: int
) -> None:
    left = moment

    class Struck(Context):
        """A context during whose making Ctrl-C strikes."""

        def __setattr__(self, name: str, value: object) -> None:
            nonlocal left
            left -= 1
            if not left:
                raise KeyboardInterrupt
            super().__setattr__(name, value)

    monkeypatch.setattr(sprinting, "Context", Struck)
    with Engine() as engine:
        wf = ledger.chain("a", "b", "c", "d!")
        with pytest.raises((ValueError, KeyboardInterrupt)) as caught:
            engine.run(wf)
    assert isinstance(caught.value, KeyboardInterrupt) == (left <= 0)
    assert set(+ledger.standing) <= {"d"}


def test_ctrl_c_before_the_first_step_of_a_run_without_hooks(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    class Struck(Context):
        def __setattr__(self, name: str, value: Any) -> None:
            value.at = None  # as if it had struck a moment earlier
            raise KeyboardInterrupt

    monkeypatch.setattr(sprinting, "Context", Struck)
    with Engine() as engine, pytest.raises(KeyboardInterrupt) as caught:
        engine.run(ledger.chain("a"))
    assert ledger == []
    assert "was cancelled; nothing was undone" in notes(caught.value)


@pytest.mark.parametrize("parallel_undo", [False, True])
def test_a_step_whose_result_ctrl_c_kept_from_being_noted_is_undone_too(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch, parallel_undo: bool
) -> None:
    class Struck(dict[str, Any]):
        """Results, one of which Ctrl-C keeps out."""

        def __setitem__(self, name: str, value: object) -> None:
            if name == "b":
                raise KeyboardInterrupt
            super().__setitem__(name, value)

    def begin(x: RunState, *args: Any) -> None:
        begins(x, *args)
        x.results = Struck()

    begins = RunState.__init__
    monkeypatch.setattr(RunState, "__init__", begin)
    wf = Workflow("w", parallel_undo=parallel_undo)
    ledger.add(wf, "a")
    ledger.add(wf, "no undo", depends_on="a", undoable=False)
    ledger.add(wf, "b", depends_on="no undo")
    ledger.add(wf, "c", depends_on="b")
    with Engine() as engine, pytest.raises(KeyboardInterrupt) as caught:
        engine.run(wf)
    assert ledger == ["a", "no undo", "b", "-b", "-a"]
    assert "failed at step 'b' after 1 attempt; undone: 'b', 'a'" in notes(caught.value)


def test_closing_the_coroutine_of_a_run_closes_the_step_it_is_in(ledger: Ledger) -> None:
    async def slow(ctx: Context) -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            ledger.append("closed")

    async def main() -> None:
        wf = Workflow("w")
        wf.add_step("slow", slow)
        coroutine: Any = AsyncEngine().run(wf)
        coroutine.send(None)
        coroutine.close()
        assert ledger == ["closed"]

    asyncio.run(main())


# -- what users hand in ------------------------------------------------------------------------------------------------


class Broken(Backoff):
    """A backoff with a bug."""

    def delay(self, n: int, random: Any = None) -> float:
        raise LookupError("a bug of mine")


def test_a_bug_in_what_the_user_handed_in_fails_the_step_and_everything_is_undone(drive: Drive, ledger: Ledger) -> None:
    wf = Workflow("w")
    ledger.add(wf, "a")
    ledger.add(wf, "b", depends_on="a", raises=ValueError("b"), retry=Retry(2, Broken(1.0, 1.0, 1.0, jitter=False)))
    run = drive(wf, idempotency_key="k", check=False)
    assert (run.status, ledger) == (Status.COMPENSATED, ["a", "b", "-a"])
    assert isinstance(run.error, LookupError | ValueError)
    assert run.steps["b"].attempts == 1


def test_a_bug_in_the_backoff_of_an_undo_fails_the_undo(drive: Drive, ledger: Ledger) -> None:
    wf = Workflow("w")
    a = wf.add_step("a", lambda ctx: 1)
    a.compensate(retry=Retry(2, Broken(1.0, 1.0, 1.0, jitter=False)))(lambda ctx: 1 / 0)
    wf.add_step("b", lambda ctx: 1 / 0, depends_on=a)
    assert drive(wf, check=False).status is Status.COMPENSATION_FAILED


class Durable(MemoryStore):
    """A store to which every transition is worth writing down, and which may block."""

    durable = True
    blocks = True


def test_a_durable_store_records_runs_without_a_key(drive: Drive, ledger: Ledger) -> None:
    store = Durable()
    run = drive(ledger.chain("a", "b"), {"odd": object()}, store=store)
    (record,) = store.list_runs()
    assert (record.key, record.run_id, record.status) == (run.id, run.id, Status.SUCCESS)
    drive(ledger.chain("a", "b!"), store=store, check=False)
    assert [record.status for record in store.list_runs()] == [Status.COMPENSATED, Status.SUCCESS]


def test_an_error_of_the_store_at_the_claim_is_raised_and_nothing_runs(drive: Drive, ledger: Ledger) -> None:
    class Away(Durable):
        def claim(self, claim: Any, /) -> Any:
            raise StoreError("no entry")

    events: list[Any] = []
    with pytest.raises(StoreError, match="no entry"):
        drive(ledger.chain("a"), store=Away(), hooks=[events.append])
    assert ledger == []
    assert type(events[-1]).__name__ == "RunRefused"


def test_a_clock_that_stands_still_gives_durations_of_zero(ledger: Ledger) -> None:
    events: list[Any] = []
    with Engine(hooks=[events.append]) as engine:
        engine._settings.clock = lambda: 42.0
        engine.run(ledger.chain("a", "b!"), check=False)
    assert {event.at for event in events[1:]} == {42.0}
    assert {event.duration for event in events if hasattr(event, "duration")} == {0.0}
    assert {event.waited for event in of_type(events, StepStarted)} == {0.0}


def test_a_hook_that_wants_little_gets_little_about_retries(drive: Drive, ledger: Ledger) -> None:
    class Few:
        wants = frozenset({StepStarted})

        def __init__(self) -> None:
            self.seen: list[Any] = []

        def __call__(self, event: Any) -> None:
            self.seen.append(event)

    hook, wf = Few(), Workflow("w")
    ledger.add(wf, "a", raises=ValueError("a"), retry=Retry(2, Backoff.fixed(0.001)))
    run = drive(wf, hooks=[hook], check=False)
    assert [type(event) for event in hook.seen] == [StepStarted]
    assert run.steps["a"].backed_off >= 0.001


def test_facts_that_fit_no_row_of_the_table_are_a_bug() -> None:
    with pytest.raises(AssertionError):
        _first_match(("?",) * 5)  # type: ignore[arg-type,unused-ignore]  # the point


def test_no_store_verb_is_called_on_the_loop_if_it_may_block(ledger: Ledger) -> None:
    threads: list[threading.Thread] = []

    class Watched(Durable):
        def claim(self, claim: Any, /) -> Any:
            threads.append(threading.current_thread())
            return super().claim(claim)

        def finish(self, record: Any, /) -> None:
            threads.append(threading.current_thread())
            super().finish(record)

    async def main() -> None:
        await AsyncEngine(store=Watched()).run(ledger.chain("a"))
        assert len(threads) == 2
        assert threading.current_thread() not in threads

    run_async(main)


def test_a_store_with_async_verbs_works_in_asyncengine_and_is_refused_by_engine(ledger: Ledger) -> None:
    class Async:
        name, durable, blocks = "async", True, True

        def __init__(self) -> None:
            self.inner = MemoryStore()

        async def claim(self, claim: Any, /) -> Any:
            await asyncio.sleep(0)
            return self.inner.claim(claim)

        async def finish(self, record: Any, /) -> None:
            await asyncio.sleep(0)
            self.inner.finish(record)

    store: Any = Async()

    async def main() -> None:
        engine = AsyncEngine(store=store)
        first = await engine.run(ledger.chain("a"), idempotency_key="k")
        assert (await engine.run(ledger.chain("a"), idempotency_key="k")).id == first.id

    run_async(main)
    with pytest.raises(FlowcoreError, match="AsyncEngine"):
        Engine(store=store)
