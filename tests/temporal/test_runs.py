"""Runs on Temporal behave as on the other engines: results, failures, undos, keys, cancellation, operators."""

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from decimal import Decimal
from typing import Any, cast

import pytest

from flowcore import (
    NO_KEY,
    Backoff,
    CompensationFailed,
    Context,
    DefinitionError,
    Fatal,
    IdempotencyHeld,
    IdempotencyInProgress,
    IdempotencyMismatch,
    NoResult,
    NotSerializable,
    Retry,
    Run,
    RunFailed,
    RunNotFound,
    RunTimeout,
    Status,
    StepCancelled,
    StepTimeout,
    StoreError,
    Workflow,
)
from flowcore.events import RunFinished, StepFinished

from .conftest import LEASE, PATIENCE, Temporal, is_over, until


class Declined(Exception):
    """An error of a module that workers and callers have loaded."""


class Trip:
    """A workflow of three steps, the first two with an undo; `fails` fails the last one."""

    def __init__(self, fails: Any = None, **options: Any) -> None:
        self.done: list[str] = []
        self.fails = fails
        self.gate = threading.Event()
        self.gate.set()
        wf = self.wf = Workflow("trip", **options)

        @wf.step
        def book(ctx: Any) -> Any:
            self.done.append("book")
            return ("seat", ctx["n"])

        @book.compensate
        def unbook(ctx: Any) -> None:
            self.done.append(f"unbook {ctx[book][1]} {type(ctx.error).__name__}")

        @wf.step(depends_on=book)
        async def pay(ctx: Any) -> Decimal:
            self.done.append("pay")
            ctx["paid"] = {1, 2}
            return Decimal("9.50")

        @pay.compensate
        async def refund(ctx: Any) -> None:
            self.done.append(f"refund {ctx[pay]}")

        @wf.step(depends_on=pay)
        def mail(ctx: Any) -> Any:
            self.done.append("mail")
            assert self.gate.wait(PATIENCE)
            if self.fails is not None:
                raise self.fails
            return (ctx[book], ctx[pay], ctx["paid"])

        self.book, self.pay, self.mail = book, pay, mail


def test_results_and_values_come_back_in_value_and_type(temporal: Temporal) -> None:
    trip = Trip()

    async def main() -> None:
        async with temporal.open(trip.wf) as engine:
            run = await engine.run(trip.wf, {"n": 1})
            assert run.status is Status.SUCCESS
            assert run[trip.mail] == (("seat", 1), Decimal("9.50"), {1, 2})
            assert run.steps["pay"].ran is not None
            assert not run.replayed

    temporal.run(main)


def test_a_failed_run_is_undone_and_raises_the_error_itself(temporal: Temporal) -> None:
    trip = Trip(Declined("no money"))

    async def main() -> None:
        async with temporal.open(trip.wf) as engine:
            with pytest.raises(Declined, match="no money") as caught:
                await engine.run(trip.wf, {"n": 2})
            assert "failed at step 'mail' after 1 attempt; undone: 'pay', 'book'." in caught.value.__notes__[0]
            assert "in mail" in str(caught.value.__cause__)  # the traceback of the worker
            assert trip.done == ["book", "pay", "mail", "refund 9.50", "unbook 2 Declined"]

    temporal.run(main)


def test_an_error_whose_class_the_caller_cannot_have_is_a_run_failed(temporal: Temporal) -> None:
    class Local(Exception):
        pass

    trip = Trip(Local("only here"))

    async def main() -> Run:
        async with temporal.open(trip.wf) as engine:
            return await engine.run(trip.wf, {"n": 1}, check=False)

    run: Run = temporal.run(main)
    assert isinstance(run.error, RunFailed)
    assert (run.error.error_type, run.error.message) == ("Local", "only here")
    assert (run.status, run.failed_step, run.undone) == (Status.COMPENSATED, "mail", ("pay", "book"))
    pay, book = (run.steps[name] for name in run.undone)
    moments = [pay.undo_started, pay.undo_finished, book.undo_started, book.undo_finished]
    known = [moment for moment in moments if moment is not None]
    assert len(known) == 4
    assert known == sorted(known)


def test_attempts_follow_the_steps_own_policy(temporal: Temporal) -> None:
    wf = Workflow("attempts")
    made: list[str] = []

    @wf.step(retry=Retry(5, Backoff.fixed(0.01), on=lambda error: "again" in str(error)))
    def picky(ctx: Any) -> int:
        made.append("picky")
        if ctx.attempt < 3:
            raise ValueError("again")
        return int(ctx.attempt)

    @wf.step(depends_on=picky, retry=5)
    def fatal(ctx: Any) -> None:
        made.append("fatal")
        raise Fatal("no use")

    async def main() -> Run:
        async with temporal.open(wf) as engine:
            return await engine.run(wf, check=False)

    run: Run = temporal.run(main)
    assert run["picky"] == 3
    assert run.steps["picky"].errors == (("ValueError", "again"), ("ValueError", "again"))
    moments = [moment for times in run.steps["picky"].attempt_times for moment in times]
    assert len(moments) == 6
    assert moments == sorted(moments)
    assert made == ["picky"] * 3 + ["fatal"]
    assert isinstance(run.error, Fatal)


def test_a_step_that_is_late_times_out_and_is_undone(temporal: Temporal) -> None:
    wf = Workflow("late")
    undone = threading.Event()
    wf.add_step("slow", lambda ctx: asyncio.sleep(PATIENCE), timeout=0.05).compensate(lambda ctx: undone.set())

    async def main() -> Run:
        async with temporal.open(wf) as engine:
            return await engine.run(wf, check=False)

    run: Run = temporal.run(main)
    assert isinstance(run.error, StepTimeout)
    assert run.status is Status.COMPENSATED
    assert undone.is_set()


def test_the_report_says_when_an_abandoned_attempt_completed(temporal: Temporal) -> None:
    wf = Workflow("later")
    wf.add_step("slow", lambda ctx: time.sleep(0.3), timeout=0.05).compensate(lambda ctx: None)

    async def main() -> Run:
        async with temporal.open(wf) as engine:
            return await engine.run(wf, check=False)

    report = temporal.run(main).steps["slow"]
    assert report.completed_late is Status.SUCCESS
    assert report.started is not None
    assert report.completed_late_at is not None
    assert report.started + 0.25 < report.completed_late_at


def test_a_deadline_ends_the_run(temporal: Temporal) -> None:
    wf = Workflow("overdue", deadline=0.5)
    wf.add_step("slow", lambda ctx: asyncio.sleep(PATIENCE))

    async def main() -> None:
        async with temporal.open(wf) as engine:
            with pytest.raises(RunTimeout):
                await engine.run(wf)

    temporal.run(main)


def test_when_skips_a_step_and_its_dependants_run(temporal: Temporal) -> None:
    wf = Workflow("when")
    first = wf.add_step("first", lambda ctx: 1)
    wf.add_step("skipped", lambda ctx: 2, depends_on=first, when=lambda ctx: ctx[first] > 1)
    wf.add_step("after", lambda ctx: ctx.get("skipped", 0), depends_on="skipped")
    broken = Workflow("broken when")
    broken.add_step("never", lambda ctx: 1, when=lambda ctx: bool(1 / 0))

    async def main() -> None:
        async with temporal.open(wf, broken) as engine:
            run = await engine.run(wf)
            assert run.steps["skipped"].status is Status.SKIPPED
            assert run["after"] == 0
            with pytest.raises(ZeroDivisionError):
                await engine.run(broken)

    temporal.run(main)


def test_ready_steps_run_at_the_same_time_and_see_all_their_ancestors(temporal: Temporal) -> None:
    wf = Workflow("wide")
    met = threading.Barrier(4)
    root = wf.add_step("root", lambda ctx: "root")
    middle = [wf.add_step(f"m{n}", lambda ctx: met.wait(PATIENCE) >= 0, depends_on=root) for n in range(4)]
    on_a_thread = wf.add_step("thread", lambda ctx: (ctx[root], ctx.get("m3")), depends_on=middle)

    @wf.step(depends_on=on_a_thread)
    async def on_the_loop(ctx: Any) -> Any:
        return ctx[root], ctx[middle[0]]

    wf.add_step("apart", lambda ctx: "root" in ctx or ctx.get(root, "unseen"))
    stranger = wf.add_step("stranger", lambda ctx: _error(lambda: ctx[root]))

    async def main() -> None:
        async with temporal.open(wf) as engine:
            run = await engine.run(wf)
            assert run[on_a_thread] == ("root", True)
            assert run[on_the_loop] == ("root", True)
            assert run["apart"] == "unseen"
            assert run[stranger] == "NoResult"

    temporal.run(main)


def _error(act: Any) -> str:
    with suppress(NoResult):
        act()
        return ""
    return "NoResult"


def test_writes_deletions_and_changes_in_place_reach_the_next_step(temporal: Temporal) -> None:
    wf = Workflow("writes")

    @wf.step
    def write(ctx: Any) -> None:
        ctx["list"].append(2)
        ctx["new"] = (1,)
        del ctx["gone"]

    wf.add_step("read", lambda ctx: (ctx["list"], ctx["new"], "gone" in ctx), depends_on=write)

    async def main() -> None:
        async with temporal.open(wf) as engine:
            assert (await engine.run(wf, {"list": [1], "gone": 0}))["read"] == ([1, 2], (1,), False)

    temporal.run(main)


def test_a_result_that_cannot_be_stored_fails_the_step_which_is_undone(temporal: Temporal) -> None:
    wf = Workflow("unstorable")
    undone = threading.Event()
    wf.add_step("step", lambda ctx: threading.Lock()).compensate(lambda ctx: undone.set())

    async def main() -> None:
        async with temporal.open(wf) as engine:
            with pytest.raises(NotSerializable, match="the result of step 'step'"):
                await engine.run(wf)
            with pytest.raises(NotSerializable, match="the initial value of 'lock'"):
                await engine.run(wf, {"lock": threading.Lock()})

    temporal.run(main)
    assert undone.is_set()


def test_executor_steps_run_there_too(temporal: Temporal) -> None:
    wf = Workflow("executor")
    with ThreadPoolExecutor(1) as pool:
        wf.add_step("step", lambda ctx: type(ctx).__name__, executor=pool)

        async def main() -> None:
            async with temporal.open(wf) as engine:
                assert (await engine.run(wf))["step"] == "ContextSnapshot"

        temporal.run(main)


# -- keys --------------------------------------------------------------------------------------------------------------


def test_a_key_is_replayed_refused_for_other_values_and_free_after_a_failure(temporal: Temporal) -> None:
    trip, other = Trip(), Workflow("other")
    other.add_step("step", lambda ctx: 1)

    async def main() -> None:
        async with temporal.open(trip.wf, other) as engine:
            trip.fails = Declined("first")
            with pytest.raises(Declined):
                await engine.run(trip.wf, {"n": 1}, idempotency_key="k")
            with pytest.raises(Declined):
                await engine.run(trip.wf, {"n": 1}, idempotency_key="k", once=True)
            assert trip.done.count("mail") == 1
            trip.fails = None
            run = await engine.run(trip.wf, {"n": 1}, idempotency_key="k")
            again = await engine.run(trip.wf, {"n": 1.0}, idempotency_key="k")
            assert (again.id, again.replayed, again["mail"]) == (run.id, True, run["mail"])
            with pytest.raises(IdempotencyMismatch, match="different initial values"):
                await engine.run(trip.wf, {"n": 2}, idempotency_key="k")
            with pytest.raises(IdempotencyMismatch, match="workflow 'trip'"):
                await engine.run(other, {"n": 1}, idempotency_key="k")
            free = await engine.run(trip.wf, {"n": 1}, idempotency_key=NO_KEY)
            assert free.id != run.id

    temporal.run(main)


def test_overlapping_calls_are_refused_or_wait(temporal: Temporal) -> None:
    trip = Trip()

    async def main() -> None:
        async with temporal.open(trip.wf) as engine:
            trip.gate.clear()
            first = engine.submit(trip.wf, {"n": 1}, idempotency_key="k")
            await first.recorded()
            with pytest.raises(IdempotencyInProgress):
                await engine.run(trip.wf, {"n": 1}, idempotency_key="k")
            waiting = engine.submit(trip.wf, {"n": 1}, idempotency_key="k", wait=PATIENCE)
            await asyncio.sleep(0.1)
            trip.gate.set()
            run, adopted = await first, await waiting
            assert (adopted.id, adopted.replayed, run.replayed) == (run.id, True, False)

    temporal.run(main)


def test_strange_keys_are_keys(temporal: Temporal) -> None:
    wf = Workflow("keys")
    wf.add_step("step", lambda ctx: 1)

    async def main() -> None:
        async with temporal.open(wf) as engine:
            for key in ("a" * 1024, "é\n\0", " "):
                run = await engine.run(wf, idempotency_key=key)
                assert (await engine.run(wf, idempotency_key=key)).id == run.id
            with pytest.raises(NotSerializable, match="a lone surrogate"):
                await engine.run(wf, idempotency_key="\ud800")

    temporal.run(main)


def test_step_keys_are_the_same_for_all_attempts_and_others_after_a_failed_run(temporal: Temporal) -> None:
    wf = Workflow("step keys")
    keys: list[str] = []

    @wf.step(retry=Retry(2, Backoff.fixed(0)))
    def step(ctx: Any) -> None:
        keys.append(ctx.step_key)
        raise ValueError

    async def main() -> None:
        async with temporal.open(wf) as engine:
            for _ in range(2):
                await engine.run(wf, idempotency_key="k", check=False)

    temporal.run(main)
    assert keys[0] == keys[1] != keys[2] == keys[3]


# -- cancelling, and what is left to decide ----------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["key", "task", "future"])
def test_a_cancelled_run_is_undone(temporal: Temporal, by: str) -> None:
    wf = Workflow("cancelled")
    started, undone = threading.Event(), list[str]()
    first = wf.add_step("first", lambda ctx: 1)
    first.compensate(lambda ctx: undone.append("first"))

    @wf.step(depends_on=first)
    async def hangs(ctx: Any) -> None:
        started.set()
        await asyncio.sleep(PATIENCE)

    hangs.compensate(lambda ctx: undone.append("hangs"))

    async def main() -> None:
        async with temporal.open(wf) as engine:
            future = engine.submit(wf, idempotency_key="k")
            await asyncio.to_thread(started.wait, PATIENCE)
            if by == "key":
                assert await engine.cancel(key="k")
                with pytest.raises(StepCancelled):
                    await future
            else:
                assert future.cancel_run() if by == "future" else future._task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await future
            assert not await engine.cancel(key="k")
            assert not await engine.cancel(key="unknown")

    temporal.run(main)
    assert undone == ["hangs", "first"]


def test_a_run_that_is_cancelled_before_its_first_step_ends(temporal: Temporal) -> None:
    trip = Trip()

    async def main() -> None:
        engine = await temporal.engine()
        future = engine.submit(trip.wf, {"n": 1}, idempotency_key="k")
        await future.recorded()
        assert await engine.cancel(key="k")
        async with temporal.open(trip.wf):
            with pytest.raises(StepCancelled):
                await future

    temporal.run(main)
    assert trip.done == []


def test_a_failed_step_ends_the_backoff_of_its_sibling(temporal: Temporal) -> None:
    wf = Workflow("siblings")
    waits = threading.Event()

    @wf.step(retry=Retry(2, Backoff.fixed(PATIENCE)))
    def patient(ctx: Any) -> None:
        waits.set()
        raise ValueError("once")

    @wf.step
    def fails(ctx: Any) -> None:
        assert waits.wait(PATIENCE)
        raise Declined("now")

    async def main() -> Run:
        async with temporal.open(wf) as engine:
            return await engine.run(wf, check=False)

    run: Run = temporal.run(main)
    assert isinstance(run.error, Declined)
    assert run.steps["patient"].attempts == 1
    assert isinstance(run.steps["patient"].error, ValueError)


def test_a_failed_undo_holds_the_key_until_an_operator_decides(temporal: Temporal) -> None:
    trip = Trip(Declined("no"))
    broken = [True]
    wf = trip.wf
    hotel = wf.add_step("hotel", lambda ctx: 1)

    def leave(ctx: Any) -> None:
        if broken:
            raise OSError("no line")

    hotel.compensate(retry=1)(leave)

    async def main() -> None:
        async with temporal.open(wf) as engine:
            with pytest.raises(CompensationFailed) as caught:
                await engine.run(wf, {"n": 1}, idempotency_key="k")
            assert isinstance(caught.value.failures["hotel"], OSError)
            assert isinstance(caught.value.__cause__, Declined)
            with pytest.raises(IdempotencyHeld):
                await engine.run(wf, {"n": 1}, idempotency_key="k")
            held = await engine.store.find("k")
            assert held is not None
            assert (held.status, held.held, "hotel" in (held.reason or "")) == (Status.COMPENSATION_FAILED, True, True)
            listed = await engine.store.list_runs(status="held")
            assert [head.key for head in listed] == ["k"]
            broken.clear()
            await engine.store.undo("k")
            await until(lambda: is_over(engine, "k"))
            trip.fails = None
            assert (await engine.run(wf, {"n": 1}, idempotency_key="k")).status is Status.SUCCESS

    temporal.run(main)


def test_a_held_run_can_be_released(temporal: Temporal) -> None:
    trip = Trip(Declined("no"))
    trip.wf.add_step("hotel", lambda ctx: 1).compensate(retry=1)(lambda ctx: 1 / 0)

    async def main() -> None:
        async with temporal.open(trip.wf) as engine:
            await engine.run(trip.wf, {"n": 1}, idempotency_key="k", check=False)
            await engine.store.release("k")
            trip.fails = None
            assert (await engine.run(trip.wf, {"n": 1}, idempotency_key="k")).status is Status.SUCCESS
            with pytest.raises(StoreError, match="has ended with success, and Temporal cannot change an ended run"):
                await engine.store.release("k")

    temporal.run(main)


def test_a_run_that_undoes_nothing_is_resumed_by_the_next_call(temporal: Temporal) -> None:
    trip = Trip(Declined("later"), undo="never")

    async def main() -> None:
        async with temporal.open(trip.wf) as engine:
            run = await engine.run(trip.wf, {"n": 1}, idempotency_key="k", check=False)
            assert run.status is Status.INCOMPLETE
            trip.fails = None
            resumed = await engine.run(trip.wf, {"n": 1}, idempotency_key="k")
            assert (resumed.id, resumed.status, resumed.replayed) == (run.id, Status.SUCCESS, False)
            assert trip.done == ["book", "pay", "mail", "mail"]
            assert resumed["mail"] == (("seat", 1), Decimal("9.50"), {1, 2})

    temporal.run(main)


@pytest.mark.parametrize(("given", "status"), [(None, Status.SUCCESS), (0.001, Status.INCOMPLETE)])
def test_the_recorded_deadline_gives_way_to_that_of_the_call_that_resumes_the_run(
    temporal: Temporal, given: float | None, status: Status
) -> None:
    trip = Trip(Declined("later"), undo="never", deadline=0.001)

    async def main() -> None:
        async with temporal.open(trip.wf) as engine:
            first = await engine.run(trip.wf, {"n": 1}, idempotency_key="k", deadline=3600, check=False)
            assert first.status is Status.INCOMPLETE
            trip.fails = None
            run = await engine.run(trip.wf, {"n": 1}, idempotency_key="k", deadline=given, check=False)
            assert (run.status, isinstance(run.error, RunTimeout)) == (status, given is not None)
            record = await engine.find("k")
            assert record is not None
            assert record.deadline == 3600  # the call's own deadline was only for what it resumed
            if given is not None:
                assert (await engine.run(trip.wf, {"n": 1}, idempotency_key="k")).status is Status.SUCCESS

    temporal.run(main)


def test_a_longer_deadline_of_a_call_lets_an_overdue_run_end(temporal: Temporal) -> None:
    trip = Trip(undo="never", deadline=0)

    async def main() -> None:
        async with temporal.open(trip.wf) as engine:
            overdue = await engine.run(trip.wf, {"n": 1}, idempotency_key="k", check=False)
            assert (overdue.status, type(overdue.error)) == (Status.INCOMPLETE, RunTimeout)
            assert (await engine.run(trip.wf, {"n": 1}, idempotency_key="k", check=False)).status is Status.INCOMPLETE
            future = engine.submit(trip.wf, {"n": 1}, idempotency_key="k", deadline=3600)
            assert (await future).status is Status.SUCCESS

    temporal.run(main)


def test_a_caller_gets_the_outcome_of_a_run_that_was_left_before_it_began_to_wait(
    temporal: Temporal, monkeypatch: pytest.MonkeyPatch
) -> None:
    trip = Trip(Declined("later"), undo="never")

    async def main() -> None:
        async with temporal.open(trip.wf) as engine:
            outcome = engine.store.outcome

            async def late(awaited: Any) -> Any:
                await until(lambda: is_left(engine, "k"))
                return await outcome(awaited)

            monkeypatch.setattr(engine.store, "outcome", late)
            for mails in (1, 2):
                run = await engine.run(trip.wf, {"n": 1}, idempotency_key="k", check=False)
                assert (run.status, trip.done.count("mail")) == (Status.INCOMPLETE, mails)

    temporal.run(main)


async def is_left(engine: Any, key: str) -> bool:
    head = await engine.store.head(key)
    return head is not None and head.status is Status.INCOMPLETE


def test_a_run_past_its_pivot_is_resumed_by_itself(temporal: Temporal) -> None:
    wf = Workflow("pivot")
    tries: list[int] = []
    wf.add_step("point", lambda ctx: 1, pivot=True)

    @wf.step(depends_on="point")
    def after(ctx: Any) -> int:
        tries.append(1)
        if len(tries) == 1:
            raise Declined("once")
        return len(tries)

    async def main() -> None:
        async with temporal.open(wf) as engine:
            run = await engine.run(wf, idempotency_key="k", check=False)
            assert run.status is Status.INCOMPLETE
            await until(lambda: is_over(engine, "k"))
            assert (await engine.run(wf, idempotency_key="k"))["after"] == 2

    temporal.run(main)


# -- the rest of the engine --------------------------------------------------------------------------------------------


def test_map_makes_a_run_of_each_item(temporal: Temporal) -> None:
    wf = Workflow("mapped")
    wf.add_step("step", lambda ctx: ctx["n"] * 2)

    async def main() -> None:
        async with temporal.open(wf) as engine:
            runs = engine.map(wf, range(5), values=lambda n: {"n": n}, key=lambda n: f"item-{n}", ordered=True)
            assert [run["step"] async for run in runs] == [0, 2, 4, 6, 8]
            page = await engine.store.list_runs(workflow="mapped", status="success", limit=3)

            async def all_listed() -> bool:
                return len(await engine.store.list_runs(workflow="mapped", status="success", limit=None)) == 5

            await until(all_listed)
            assert len(page) <= 3

    temporal.run(main)


def test_a_run_outlives_the_engine_that_started_it(temporal: Temporal) -> None:
    trip = Trip()

    async def main() -> None:
        async with temporal.open(trip.wf) as engine:
            trip.gate.clear()
            future = engine.submit(trip.wf, {"n": 1}, idempotency_key="k")
            await future.recorded()
            await engine.close()
            assert future.cancelled()
            trip.gate.set()
            second = await temporal.engine()
            run = await second.run(trip.wf, {"n": 1}, idempotency_key="k", wait=PATIENCE)
            assert run.replayed
            live = await second.find("k")
            assert live is not None
            assert live.results["mail"] == run["mail"]

    temporal.run(main)


def test_hooks_of_the_caller_get_the_run_and_those_of_the_worker_the_steps(temporal: Temporal) -> None:
    trip = Trip()
    of_caller, of_worker = list[Any](), list[Any]()

    async def main() -> None:
        async with temporal.open(trip.wf, hooks=[of_caller.append], worker_hooks=[of_worker.append]) as engine:
            await engine.run(trip.wf, {"n": 1})

    temporal.run(main)
    assert [event.outcome for event in of_caller if isinstance(event, RunFinished)] == [Status.SUCCESS]
    assert [event.step for event in of_worker if isinstance(event, StepFinished)] == ["book", "pay", "mail"]
    assert len({event.run_id for event in (*of_caller, *of_worker) if event.run_id}) == 1


def test_what_temporal_cannot_carry_is_refused_at_the_start(temporal: Temporal) -> None:
    wf = Workflow("long")
    for n in range(5001):
        wf.add_step(f"s{n}", lambda ctx: 1)

    async def main() -> None:
        engine = await temporal.engine()
        with pytest.raises(DefinitionError, match="has 5,001 steps, and a run on Temporal can have 5,000"):
            await engine.run(wf)
        with pytest.raises(DefinitionError, match="has 5,001 steps, and a run on Temporal can have 5,000"):
            engine.schedule(wf, every=60)
        with pytest.raises(NotSerializable, match="the context key 1"):
            engine.schedule(Workflow("short"), every=60, values=cast("Any", {1: 2}))
        with pytest.raises(RunNotFound):
            await engine.store.resume("unknown")

    temporal.run(main)


def test_a_running_run_cannot_be_resumed_or_released_but_undone(temporal: Temporal) -> None:
    trip = Trip()

    async def main() -> None:
        async with temporal.open(trip.wf) as engine:
            trip.gate.clear()
            future = engine.submit(trip.wf, {"n": 1}, idempotency_key="k")
            await future.recorded()
            for verb in (engine.store.resume, engine.store.release):
                with pytest.raises(StoreError, match="which is running: cancel it first"):
                    await verb("k")
            await engine.store.undo("k")
            trip.gate.set()
            with pytest.raises(StepCancelled):
                await future

    temporal.run(main)


def test_a_worker_learns_what_it_cannot_run() -> None:
    from flowcore.temporal import temporal_worker

    client: Any = None
    one, two = Workflow("same"), Workflow("same")
    for wrong, why in (
        ([], "is empty"),
        ([one, two], "two workflows with the name 'same'"),
        ([3], "must be workflows"),
    ):
        with pytest.raises(DefinitionError, match=why):
            temporal_worker(client, task_queue="q", workflows=wrong)


@pytest.mark.parametrize("cancels", [False, True])
def test_a_worker_may_evict_a_run_from_its_memory_at_any_time(temporal: Temporal, cancels: bool) -> None:
    """Here it does so after each workflow task, while a step, a backoff or an undo is in flight."""
    from flowcore.temporal import temporal_worker

    wf, tries, undone = Workflow("evicted"), list[int](), list[int]()

    def flaky(ctx: Context) -> str:
        tries.append(ctx.attempt)
        time.sleep(0.2)
        if len(tries) == 1:
            raise ConnectionError("again")
        return "paid"

    wf.add_step("book", lambda ctx: "seat", compensate=lambda ctx: undone.append(1))
    wf.add_step("pay", flaky, depends_on="book", retry=Retry(3, Backoff.fixed(0.1)))
    wf.wait("approved", depends_on="pay", timeout=PATIENCE)

    async def main() -> None:
        engine = await temporal.engine()
        worker = temporal_worker(
            engine.store._client, task_queue=temporal.queue, workflows=[wf], lease=LEASE, max_cached_workflows=0
        )
        async with worker:
            future = engine.submit(wf, idempotency_key="k", check=False)

            async def waits() -> bool:
                head = await engine.store.head("k")
                return head is not None and head.status == "waiting"

            await until(waits)
            if cancels:
                await engine.cancel(key="k")
                assert ((await future).status, undone) == ("compensated", [1])
            else:
                assert await engine.send("k", "approved", "yes")
                run = await future
                assert (run.status, run["pay"], run["approved"]) == ("success", "paid", "yes")

    temporal.run(main)
    assert tries == [1, 2]
