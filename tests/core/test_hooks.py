"""Hooks (semantics 27): they are told everything in good order, and can neither break nor steer a run."""

import asyncio
import contextvars
import gc
import logging
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from flowcore import (
    SKIP_RUN,
    AsyncEngine,
    Backoff,
    Context,
    Engine,
    Logger,
    NotSerializable,
    Retry,
    Run,
    Status,
    Workflow,
)
from flowcore._engines.interrupts import hold_sigint
from flowcore.events import (
    AttemptFinished,
    AttemptStarted,
    CompensationFinished,
    CompensationStarted,
    EngineStarted,
    Event,
    HookFailed,
    Hooks,
    HooksMeasured,
    MaintenanceFinished,
    MaintenanceStarted,
    RunDequeued,
    RunFinished,
    RunRefused,
    RunRequested,
    RunStarted,
    RunSubmitted,
    StepFinished,
    StepReady,
    StepSkipped,
    StepStarted,
    StoreSurveyed,
    WorkflowRegistered,
)
from flowcore.events.records import EVENTS
from flowcore.stores import MemoryStore, SQLiteStore

from .conftest import PATIENCE, Drive, Gate, Ledger, MakeLive, kinds, of_type, until

PAIRS: list[tuple[type[Any], type[Any]]] = [
    (RunStarted, RunFinished),
    (StepStarted, StepFinished),
    (AttemptStarted, AttemptFinished),
    (CompensationStarted, CompensationFinished),
]


def identity(event: Any) -> tuple[Any, ...]:
    """What a start event and its finish event have in common."""
    names = ("run_id", "step", "attempt", "undo", "order")
    return tuple(getattr(event, name, None) for name in names)


def check_well_formed(events: list[Any]) -> None:
    """Every start has one finish, later and inside of its own surroundings; times never go back."""
    for started, finished in PAIRS:
        opened = Counter(map(identity, of_type(events, started)))
        closed = Counter(map(identity, of_type(events, finished)))
        assert opened == closed, (started.__name__, opened - closed, closed - opened)
        for event in of_type(events, started):
            (end,) = [other for other in of_type(events, finished) if identity(other) == identity(event)]
            assert events.index(event) < events.index(end)
            assert event.at <= end.at
            assert abs(end.duration - (end.at - event.at)) < 0.05
    for run in of_type(events, RunFinished):
        of_run = kinds([event for event in events if event.run_id == run.run_id])
        assert set(of_run[of_run.index("RunFinished") + 1 :]) <= {"StepCompletedLate", "HookFailed"}
    states = {id(event.state) for event in events if event.run_id}
    assert len(states) == len({event.run_id for event in events if event.run_id})


# -- what is told ------------------------------------------------------------------------------------------------------


def test_the_events_of_a_run_that_succeeds(drive: Drive, ledger: Ledger) -> None:
    events: list[Any] = []
    run = drive(ledger.chain("a", "b"), hooks=[events.append])
    assert kinds(events) == [
        "WorkflowRegistered",
        "RunRequested",
        "RunStarted",
        "StepReady",
        *("StepStarted", "AttemptStarted", "AttemptFinished"),
        *("StepFinished", "StepReady"),
        *("StepStarted", "AttemptStarted", "AttemptFinished"),
        *("StepFinished", "RunFinished"),
    ]
    check_well_formed(events)
    assert {event.run_id for event in events[2:]} == {run.id}
    assert events[1].steps == ("a", "b")
    started = of_type(events, StepStarted)[1]
    assert (started.step, started.depends_on, started.max_attempts, started.waited >= 0) == ("b", ("a",), 1, True)
    assert started.function.endswith("Ledger.add.<locals>.do")
    for ended in of_type(events, StepFinished):
        assert (ended.outcome, ended.attempts, ended.backoff) == (Status.SUCCESS, 1, 0.0)
    for report in run.steps.values():
        assert (report.status, report.attempts, report.backed_off) == (Status.SUCCESS, 1, 0.0)
    finished = of_type(events, RunFinished)[0]
    assert (finished.outcome, finished.error, finished.skipped, finished.undone) == (Status.SUCCESS, None, (), ())


def test_the_events_of_a_run_that_is_undone(drive: Drive, ledger: Ledger) -> None:
    events: list[Any] = []
    run = drive(ledger.chain("a", "b!"), hooks=[events.append], check=False)
    assert kinds(events)[7:] == [
        *("StepFinished", "StepReady"),
        *("StepStarted", "AttemptStarted", "AttemptFinished", "StepFinished"),
        *("CompensationStarted", "AttemptStarted", "AttemptFinished", "CompensationFinished"),
        "RunFinished",
    ]
    check_well_formed(events)
    finished = of_type(events, RunFinished)[0]
    assert (finished.outcome, finished.error, finished.undone) == (Status.COMPENSATED, run.error, ("a",))
    failed = of_type(events, StepFinished)[1]
    assert (failed.outcome, failed.error, failed.attempts) == (Status.FAILURE, run.error, 1)
    for report in run.steps.values():
        assert (report.attempts, report.backed_off) == (1, 0.0)


def test_a_skipped_step_is_reported_with_what_it_depends_on_and_starts_nothing(drive: Drive, ledger: Ledger) -> None:
    events: list[Any] = []
    wf = Workflow("skip")
    ledger.add(wf, "a")
    ledger.add(wf, "b", depends_on="a", when=lambda ctx: False)
    ledger.add(wf, "c", depends_on="b")
    drive(wf, hooks=[events.append])
    (skipped,) = of_type(events, StepSkipped)
    assert (skipped.step, skipped.depends_on) == ("b", ("a",))
    assert [event.step for event in of_type(events, StepStarted)] == ["a", "c"]
    assert of_type(events, RunFinished)[0].skipped == ("b",)
    check_well_formed(events)


def stories(ledger: Ledger) -> dict[str, Workflow]:
    """Workflows that end in every way that there is."""
    made: dict[str, Workflow] = {
        "success": ledger.chain("a", "b", "c"),
        "failure": ledger.chain("a!"),
        "compensated": ledger.chain("a", "b", "c!"),
        "attempted": ledger.chain("a", "b!", undo="attempted"),
        "empty": Workflow("empty"),
    }
    stuck = made["stuck undo"] = Workflow("stuck undo")
    ledger.add(stuck, "a", undo_raises=ValueError("stuck"))
    ledger.add(stuck, "b", depends_on="a", raises=LookupError("b"), retry=Retry(2, Backoff.fixed(0.001)))
    for name, error in (("exit", SystemExit(1)), ("ctrl-c", KeyboardInterrupt()), ("generator", GeneratorExit())):
        wf = made[name] = Workflow(name)
        ledger.add(wf, "a")
        ledger.add(wf, "b", depends_on="a", raises=error)
    undo_exits = made["undo exits"] = Workflow("undo exits", parallel_undo=True)
    ledger.add(undo_exits, "a", undo_raises=KeyboardInterrupt())
    ledger.add(undo_exits, "b", undo_raises=SystemExit())
    ledger.add(undo_exits, "c", depends_on=["a", "b"], raises=ValueError())
    made["deadline"] = ledger.chain("a", "b", deadline=0)
    when = made["when raises"] = Workflow("when raises")
    ledger.add(when, "a")
    ledger.add(when, "b", depends_on="a", when=lambda ctx: 1 / 0)
    pivot = made["pivot"] = Workflow("pivot")
    ledger.add(pivot, "a", pivot=True)
    ledger.add(pivot, "b", depends_on="a", raises=ValueError())
    cancel = made["cancel siblings"] = Workflow("cancel siblings", on_failure="cancel")
    for name in "abc":
        ledger.add(cancel, name, raises=ValueError(name))
    return made


@pytest.mark.parametrize("story", stories(Ledger()))
def test_every_start_has_its_finish_whatever_happens(drive: Drive, ledger: Ledger, story: str) -> None:
    events: list[Any] = []
    try:
        drive(stories(ledger)[story], hooks=[events.append], check=False, idempotency_key="k")
    except BaseException as error:  # noqa: BLE001 - judged here
        assert story in {"exit", "ctrl-c", "generator"}, repr(error)  # noqa: PT017 - the point
    check_well_formed(events)
    assert kinds(events)[-1] == "RunFinished"


def test_every_start_has_its_finish_when_steps_time_out_and_complete_late(live: MakeLive, gate: Gate) -> None:
    events: list[Any] = []
    wf = Workflow("late")
    wf.add_step("a", gate, timeout=0.01, retry=3, compensate=lambda ctx: None)
    live(hooks=[events.append], grace=0.01).run(wf, check=False)
    check_well_formed(events)
    gate.set()
    until(lambda: [event for event in events if type(event).__name__ == "StepCompletedLate"])


def test_every_start_has_its_finish_when_the_run_is_cancelled(live: MakeLive) -> None:
    events: list[Any] = []
    one, wf, began, ids = live(hooks=[events.append]), Workflow("cancelled"), Gate(), list[str]()

    def slow(ctx: Context) -> None:
        ids.append(ctx.run_id)
        began.set()
        until(lambda: ctx.cancelled)

    wf.add_step("slow", slow, compensate=lambda ctx: None)
    future = one.start(wf, check=False)
    began.wait()
    one.engine.cancel(ids[0])
    assert future.result(PATIENCE).status is Status.COMPENSATED
    check_well_formed(events)


def test_submit_is_reported_on_the_callers_thread_before_the_request(ledger: Ledger) -> None:
    events: list[Any] = []
    with Engine(hooks=[events.append]) as engine:
        engine.submit(ledger.chain("a"), idempotency_key="k").result(PATIENCE)
    assert kinds(events)[:4] == ["WorkflowRegistered", "RunSubmitted", "RunDequeued", "RunRequested"]
    (submitted, dequeued, requested) = of_type(events, RunSubmitted, RunDequeued, RunRequested)
    assert dequeued.begins
    assert dequeued.waited == pytest.approx(dequeued.at - submitted.at)
    assert (submitted.key, requested.key, requested.submitted) == ("k", "k", True)
    assert submitted.run_id == requested.run_id


def queue_of(events: list[Any]) -> list[str]:
    return [
        type(event).__name__ + ("" if getattr(event, "begins", True) else " for good")
        for event in of_type(events, RunSubmitted, RunDequeued, RunRefused, RunRequested)
    ]


def test_a_submitted_run_that_does_not_begin_on_threads_has_left_the_queue(tmp_path: Path) -> None:
    events, began, goes_on = list[Any](), threading.Semaphore(0), threading.Event()
    wf, ahead = Workflow("w"), Workflow("ahead")
    wf.add_step("s", lambda ctx: None)

    @ahead.step
    def waits(ctx: Context) -> None:
        began.release()
        goes_on.wait(PATIENCE)

    def hook(event: Any) -> None:
        if event.workflow == "w":
            events.append(event)

    never_begins = ["RunSubmitted", "RunDequeued for good"]
    engine = Engine(hooks=[hook], max_workers=1, grace=0.01)
    engine.submit(ahead)
    # If it had not begun, closing the engine could drop it, and its thread could begin the other run.
    assert began.acquire(timeout=PATIENCE)
    assert engine.submit(wf).cancel()
    assert queue_of(events) == never_begins
    engine.submit(wf)
    engine.close(timeout=0)
    assert queue_of(events) == never_begins * 2

    events.clear()
    store = SQLiteStore(tmp_path / "runs.db", durability="normal")
    engine = Engine(store=store, hooks=[hook], max_workers=1, grace=0.01)
    engine.submit(ahead)
    assert began.acquire(timeout=PATIENCE)
    engine.submit(wf, idempotency_key="k")
    with pytest.raises(NotSerializable):
        engine.submit(wf, {"it": object()})
    assert queue_of(events) == ["RunSubmitted", *never_begins, "RunRefused"]
    engine.close(timeout=0)
    assert queue_of(events) == ["RunSubmitted", *never_begins, "RunRefused", "RunDequeued for good"]
    goes_on.set()


def test_a_submitted_run_that_does_not_begin_on_asyncio_has_left_the_queue(tmp_path: Path) -> None:
    events, wf = list[Any](), Workflow("w")
    wf.add_step("s", lambda ctx: None)

    async def main() -> None:
        engine = AsyncEngine(hooks=[events.append])
        future = engine.submit(wf)
        future.cancel()
        await asyncio.wait([future])
        engine.submit(wf)
        await engine.aclose(timeout=0)
        store = SQLiteStore(tmp_path / "runs.db", durability="normal")
        engine = AsyncEngine(store=store, hooks=[events.append])
        with pytest.raises(NotSerializable):
            engine.submit(wf, {"it": object()})
        await engine.aclose()

    asyncio.run(main())
    assert queue_of(events) == ["RunSubmitted", "RunDequeued for good"] * 3 + ["RunRefused"]


def test_a_workflow_is_registered_once_per_engine(ledger: Ledger) -> None:
    events: list[Any] = []
    wf = ledger.chain("a")
    with Engine(hooks=[events.append], workflows=[wf]) as engine:
        assert kinds(events) == ["WorkflowRegistered"]
        engine.run(wf)
        engine.run(wf)
    assert len(of_type(events, WorkflowRegistered)) == 1


def test_the_carrier_filled_at_the_request_is_kept_and_comes_back(drive: Drive, ledger: Ledger) -> None:
    def fills(event: Any) -> None:
        if type(event) is RunRequested:
            event.carrier["traceparent"] = "00-1"

    store, wf, events = MemoryStore(), ledger.chain("a"), list[Any]()
    first = drive(wf, store=store, idempotency_key="k", hooks=[fills, events.append])
    second = drive(wf, store=store, idempotency_key="k", hooks=[fills, events.append])
    assert first.carrier == second.carrier == {"traceparent": "00-1"}
    assert of_type(events, RunStarted)[0].carrier == {"traceparent": "00-1"}
    assert [event.original for event in events if hasattr(event, "original")] == [{"traceparent": "00-1"}]


def test_an_event_that_no_hook_wants_is_not_built(
    drive: Drive, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[str] = []
    for kind in EVENTS:
        made = kind.__init__

        def init(self: Any, *args: Any, made: Any = made, **kwargs: Any) -> None:
            built.append(type(self).__name__)
            made(self, *args, **kwargs)

        monkeypatch.setattr(kind, "__init__", init)

    class OnlyFinished(Logger):
        def run_failed(self, event: RunFinished) -> None:
            assert event.outcome is Status.COMPENSATED

    drive(ledger.chain("a", "b!"), check=False, hooks=[OnlyFinished()])
    assert built == ["RunFinished"]
    built.clear()
    drive(ledger.chain("a", "b!"), check=False, hooks=[Logger(), Logger()])
    drive(ledger.chain("a", "b!"), check=False)
    assert built == []


def test_a_logger_that_overrides_nothing_counts_as_no_hook() -> None:
    class Nothing(Logger):
        """Listens to nothing."""

    assert not Hooks([Logger(), Nothing()])
    assert Hooks([Logger()]).wanted == frozenset()
    assert Hooks([print]).wanted == EVENTS - {HooksMeasured}


def test_a_subclass_that_overrides_call_gets_the_events_in_place_of_the_handlers(drive: Drive, ledger: Ledger) -> None:
    class Quick:
        def __init__(self) -> None:
            self.seen: list[str] = []
            self.handlers = {StepReady: self.ready, StepFinished: self.finished}
            self.wants = frozenset(self.handlers)

        def __call__(self, event: Any, /) -> None:
            self.handlers[type(event)](event)

        def ready(self, event: StepReady) -> None:
            self.seen.append(f"ready {event.step}")

        def finished(self, event: StepFinished) -> None:
            self.seen.append(f"finished {event.step}")

    class Filtered(Quick):
        def __call__(self, event: Any, /) -> None:
            if event.step == "b":
                super().__call__(event)

    class Same(Filtered):
        """Overrides nothing more."""

    hooks = Quick(), Filtered(), Same()
    drive(ledger.chain("a", "b"), hooks=list(hooks))
    assert hooks[0].seen == ["ready a", "finished a", "ready b", "finished b"]
    assert hooks[1].seen == hooks[2].seen == ["ready b", "finished b"]


def test_a_hook_may_say_what_it_wants(drive: Drive, ledger: Ledger) -> None:
    class Picky:
        wants = frozenset({StepReady, int})  # what is no event is ignored

        def __init__(self) -> None:
            self.seen: list[Any] = []

        def __call__(self, event: Any) -> None:
            self.seen.append(event)

    hook = Picky()
    drive(ledger.chain("a", "b"), hooks=[hook])
    assert kinds(hook.seen) == ["StepReady", "StepReady"]


# -- what hooks cannot do ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", [None, "k"])
def test_a_step_starts_only_once_the_hooks_have_heard_that_it_is_ready(key: str | None) -> None:
    """The first hook is slow; meanwhile, another thread of the run has nothing to do and looks for a ready step."""
    events: list[Any] = []
    begun = threading.Event()

    def slow(event: Any) -> None:
        if isinstance(event, StepReady) and event.step in "cd":
            begun.wait(0.2)

    wf = Workflow("w")
    first_is_over = threading.Event()

    @wf.step
    def a(ctx: Context) -> None:
        assert first_is_over.wait(PATIENCE)

    @wf.step
    def b(ctx: Context) -> None:
        first_is_over.set()
        time.sleep(0.05)  # it ends while the slow hook hears that the dependents of `a` are ready

    for name in "cd":
        wf.step(name=name, depends_on=["a"])(lambda ctx: begun.set())
    with Engine(hooks=[slow, events.append]) as engine:
        engine.run(wf, idempotency_key=key)
    for name in "cd":
        of_step = kinds([event for event in events if getattr(event, "step", None) == name])
        assert of_step[:2] == ["StepReady", "StepStarted"], of_step


class Boom(Exception):
    """What hooks raise here."""


class BadScope:
    """A scope that does everything wrong."""

    def __init__(self, *, enter: BaseException | None = None, leave: BaseException | None = None) -> None:
        self.enter, self.leave = enter, leave

    def __enter__(self) -> None:
        if self.enter is not None:
            raise self.enter

    def __exit__(self, *_: object) -> bool:
        if self.leave is not None:
            raise self.leave
        return True  # "I have handled the exception"


def raising(error: BaseException) -> Any:
    def hook(event: Event) -> None:
        raise error

    return hook


BAD_HOOKS: dict[str, Any] = {
    "raises": raising(Boom()),
    "raises KeyboardInterrupt": raising(KeyboardInterrupt()),
    "raises StopIteration": raising(StopIteration()),
    "raises CancelledError": raising(asyncio.CancelledError()),
    "answers nonsense": lambda event: 42,
    "answers True": lambda event: True,
    "answers SKIP_RUN to everything": lambda event: SKIP_RUN,
    "swallows in __exit__": lambda event: BadScope(),
    "raises in __enter__": lambda event: BadScope(enter=Boom()),
    "raises in __exit__": lambda event: BadScope(leave=Boom()),
    "raises SystemExit in __exit__": lambda event: BadScope(leave=SystemExit()),
    "answers a class": lambda event: BadScope,
    "takes no argument": lambda: None,
}


@pytest.mark.parametrize("bad", BAD_HOOKS)
@pytest.mark.parametrize("story", ["success", "compensated", "stuck undo", "exit", "pivot"])
def test_no_hook_changes_what_a_run_does(drive: Drive, story: str, bad: str, caplog: pytest.LogCaptureFixture) -> None:
    def outcome(*hooks: Any) -> tuple[Any, ...]:
        ledger, run = Ledger(), None
        try:
            run = drive(stories(ledger)[story], hooks=hooks, check=False)
        except BaseException as error:  # noqa: BLE001 - judged here
            return ledger, type(error)
        return list(ledger), run.status, run.results, type(run.error), run.undone

    events: list[Any] = []
    assert outcome(BAD_HOOKS[bad], events.append) == outcome()
    check_well_formed(events)


def test_a_hook_that_raises_is_logged_once_and_reported_to_the_others_each_time(
    drive: Drive, ledger: Ledger, caplog: pytest.LogCaptureFixture
) -> None:
    events: list[Any] = []
    with caplog.at_level(logging.ERROR, "flowcore"):
        run = drive(ledger.chain("a"), hooks=[raising(Boom("x")), events.append])
    (logged,) = caplog.records
    assert "raising.<locals>.hook raised on" in logged.getMessage()
    assert "further errors of this hook are counted, not logged" in logged.getMessage()
    assert isinstance(logged.exc_info[1], Boom)
    failures = of_type(events, HookFailed)
    assert len(failures) == len(events) - len(failures)
    assert {(type(failure.error), failure.hook.endswith("hook")) for failure in failures} == {(Boom, True)}
    assert failures[-1].run_id == run.id


def test_a_hook_that_raises_on_hookfailed_too_is_not_called_for_ever(drive: Drive, ledger: Ledger) -> None:
    calls: list[Any] = []

    def bad(event: Any) -> None:
        calls.append(event)
        raise Boom

    drive(ledger.chain("a"), hooks=[bad, bad])
    assert len(calls) < 100


def test_a_step_may_raise_through_a_contextmanager_scope_without_blaming_the_hook(
    drive: Drive, ledger: Ledger, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[Any] = []

    @contextmanager
    def scope(event: Any) -> Iterator[None]:
        try:
            yield
        except ValueError as error:
            seen.append((type(event).__name__, str(error)))
            raise

    starts = tuple(started for started, _ in PAIRS)
    drive(
        ledger.chain("a", "b!"), hooks=[lambda event: scope(event) if isinstance(event, starts) else None], check=False
    )
    assert seen == [("AttemptStarted", "b failed"), ("StepStarted", "b failed"), ("RunStarted", "b failed")]
    assert not caplog.records


def test_skip_run_ends_the_hook_for_this_run_and_no_other(ledger: Ledger) -> None:
    seen: list[Any] = []
    others: list[Any] = []

    def picky(event: Any) -> object:
        seen.append(event)
        return SKIP_RUN if type(event) is RunStarted and event.key == "skip" else None

    with Engine(hooks=[picky, others.append]) as engine:
        engine.run(ledger.chain("a"), idempotency_key="skip")
        assert kinds(seen) == ["WorkflowRegistered", "RunRequested", "RunStarted"]
        assert kinds(others)[-1] == "RunFinished"
        seen.clear()
        engine.run(ledger.chain("a"), idempotency_key="tell")
        assert kinds(seen)[-1] == "RunFinished"


@pytest.mark.parametrize("key", [None, "O-1"])
def test_a_run_may_be_skipped_as_soon_as_it_is_asked_for(drive: Drive, ledger: Ledger, key: str | None) -> None:
    seen: list[Any] = []
    others: list[Any] = []

    def skips(event: Any) -> object:
        seen.append(event)
        return SKIP_RUN if type(event) is RunRequested else None

    run = drive(ledger.chain("a", "b"), hooks=[skips, others.append], idempotency_key=key)
    assert run.status is Status.SUCCESS
    assert kinds(seen)[-1] == "RunRequested"
    check_well_formed(others)


@pytest.mark.parametrize(("steps", "status"), [("ab", Status.SUCCESS), (("a", "b!"), Status.COMPENSATED)])
def test_if_every_hook_skips_a_run_nothing_more_is_built_for_it(
    drive: Drive, ledger: Ledger, steps: Any, status: Status
) -> None:
    seen: list[Any] = []

    def skips(event: Any) -> object:
        seen.append(event)
        return SKIP_RUN

    run = drive(ledger.chain(*steps), hooks=[skips, skips], check=False)
    assert run.status is status
    assert kinds(seen)[-2:] == ["RunRequested", "RunRequested"]


# -- scopes ------------------------------------------------------------------------------------------------------------

place = contextvars.ContextVar[tuple[str, ...]]("place", default=())


class Scopes:
    """A hook whose scopes say in a contextvar where one is, and in a list when they are entered and left."""

    def __init__(self, log: list[Any], name: str = "") -> None:
        self.log = log
        self.name = name

    def __call__(self, event: Any) -> Any:
        where = (type(event).__name__.removesuffix("Started"), getattr(event, "step", ""))
        if not any(isinstance(event, started) for started, _ in PAIRS):
            return None
        return self.scope(":".join(filter(None, (self.name, *where))))

    @contextmanager
    def scope(self, what: str) -> Iterator[None]:
        self.log.append(f"+{what}")
        token = place.set((*place.get(), what))
        try:
            yield
        finally:
            place.reset(token)  # raises in any other contextvars.Context than the one it was set in
            self.log.append(f"-{what}")


def test_a_scope_is_current_in_user_code_and_left_in_reverse_order(drive: Drive) -> None:
    log: list[Any] = []
    wf = Workflow("scopes")
    wf.add_step("a", lambda ctx: log.append(place.get()), compensate=lambda ctx: log.append(place.get()))
    wf.add_step("b", lambda ctx: 1 / 0, depends_on="a")
    drive(wf, hooks=[Scopes(log)], check=False)
    assert log == [
        *("+Run", "+Step:a", "+Attempt:a"),
        ("Run", "Step:a", "Attempt:a"),
        *("-Attempt:a", "-Step:a", "+Step:b", "+Attempt:b", "-Attempt:b", "-Step:b"),
        *("+Compensation:a", "+Attempt:a"),
        ("Run", "Compensation:a", "Attempt:a"),
        *("-Attempt:a", "-Compensation:a", "-Run"),
    ]
    assert place.get() == ()


def test_the_scopes_of_several_hooks_are_left_in_reverse_order(drive: Drive) -> None:
    log: list[Any] = []
    wf = Workflow("scopes")
    wf.add_step("a", lambda ctx: None)
    drive(wf, hooks=[Scopes(log, name) for name in "123"])
    names = [entry for entry in log if "Step" in entry]
    assert names == ["+1:Step:a", "+2:Step:a", "+3:Step:a", "-3:Step:a", "-2:Step:a", "-1:Step:a"]


def test_scopes_of_parallel_steps_do_not_mix(live: MakeLive) -> None:
    log: list[Any] = []
    seen: dict[str, Any] = {}
    wf = Workflow("parallel")

    def step(ctx: Context) -> None:
        seen[ctx.step] = place.get()

    for number in range(20):
        wf.add_step(str(number), step, timeout=60 if number % 2 else None)
    live(hooks=[Scopes(log)]).run(wf)
    assert seen == {str(n): ("Run", f"Step:{n}", f"Attempt:{n}") for n in range(20)}
    assert Counter(entry[0] for entry in log) == {"+": 41, "-": 41}


def test_a_finish_event_comes_while_its_scope_is_still_entered(drive: Drive) -> None:
    log: list[Any] = []

    def sees(event: Any) -> None:
        if isinstance(event, (AttemptFinished, StepFinished, RunFinished)):
            log.append((type(event).__name__, place.get()))

    wf = Workflow("finish")
    wf.add_step("a", lambda ctx: None)
    drive(wf, hooks=[Scopes([]), sees])
    assert log == [
        ("AttemptFinished", ("Run", "Step:a", "Attempt:a")),
        ("StepFinished", ("Run", "Step:a")),
        ("RunFinished", ("Run",)),
    ]


def test_what_a_scope_leaves_behind_is_seen_inside_of_it_only(drive: Drive) -> None:
    seen: list[Any] = []

    @contextmanager
    def leaves(what: str) -> Iterator[None]:
        place.set((*place.get(), what))
        yield

    def hook(event: Any) -> Any:
        if isinstance(event, (StepFinished, RunFinished)):
            seen.append(place.get())
        kind = type(event).__name__
        return leaves(kind) if kind in {"RunStarted", "StepStarted", "AttemptStarted"} else None

    wf = Workflow("leaves")
    for name in "ab":
        wf.add_step(name, lambda ctx: seen.append(place.get()), depends_on="a" if name == "b" else ())
    drive(wf, hooks=[hook])
    step = [("RunStarted", "StepStarted", "AttemptStarted"), ("RunStarted", "StepStarted")]
    assert seen == [*step, *step, ("RunStarted",)]
    assert place.get() == ()


def test_the_scope_is_current_in_a_step_with_a_timeout_in_a_retry_and_in_an_awaited_coroutine(drive: Drive) -> None:
    seen: list[Any] = []

    def step(ctx: Context) -> None:
        seen.append(place.get()[-1])
        if ctx.attempt == 1:
            raise ValueError

    wf = Workflow("everywhere")
    wf.add_step("a", step, timeout=60, retry=2)
    drive(wf, hooks=[Scopes([])])
    assert seen == ["Attempt:a", "Attempt:a"]


def test_a_coroutine_answered_by_a_plain_function_runs_in_the_scope_of_its_attempt() -> None:
    seen: list[Any] = []

    async def fetch(ctx: Context) -> str:
        seen.append(place.get())
        await asyncio.sleep(0)
        seen.append(place.get())
        return "fetched"

    wf = Workflow("lambda")
    wf.add_step("a", lambda ctx: fetch(ctx))  # noqa: PLW0108 - the point: this is no coroutine function
    run: Run = asyncio.run(AsyncEngine(hooks=[Scopes([])]).run(wf))
    assert run["a"] == "fetched"
    assert seen == [("Run", "Step:a", "Attempt:a")] * 2


def test_scopes_are_left_when_a_run_is_cancelled() -> None:
    log: list[Any] = []

    async def main() -> None:
        began = asyncio.Event()

        async def slow(ctx: Context) -> None:
            began.set()
            await asyncio.sleep(3600)

        wf = Workflow("cancelled")
        wf.add_step("slow", slow)
        task = asyncio.ensure_future(AsyncEngine(hooks=[Scopes(log)]).run(wf))
        await began.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert log == ["+Run", "+Step:slow", "+Attempt:slow", "-Attempt:slow", "-Step:slow", "-Run"]


# -- what being told costs ---------------------------------------------------------------------------------------------


def test_a_hook_may_do_without_the_attempts_of_what_is_attempted_once(drive: Drive, ledger: Ledger) -> None:
    class Sees(list[Any]):
        lone_attempts = False
        __call__ = list.append

    wf = Workflow("trip")
    ledger.add(wf, "once")
    ledger.add(wf, "twice", depends_on="once", retry=2)
    ledger.add(wf, "fails", depends_on="twice", raises=ValueError("no"))
    sees, everything = Sees(), list[Any]()
    drive(wf, hooks=[sees, everything.append], check=False)
    attempts = (AttemptStarted, AttemptFinished)
    seen = [(type(event).__name__, event.step) for event in sees if isinstance(event, attempts)]
    assert seen == [("AttemptStarted", "twice"), ("AttemptFinished", "twice")]
    assert len([event for event in everything if isinstance(event, attempts)]) == 2 * 5
    assert kinds([event for event in everything if event not in sees]) == ["AttemptStarted", "AttemptFinished"] * 4
    check_well_formed(everything)


def test_a_step_that_is_freed_among_others_is_reported_ready_like_them(drive: Drive, ledger: Ledger) -> None:
    wf = Workflow("fan")
    first = ledger.add(wf, "first")
    before = ledger.add(wf, "before", depends_on=first)
    many = [ledger.add(wf, f"s{number}", depends_on=before) for number in range(3)]
    ledger.add(wf, "last", depends_on=many)
    events: list[Any] = []
    run = drive(wf, hooks=[events.append])
    check_well_formed(events)
    ready = {event.step: event for event in of_type(events, StepReady)}
    assert list(ready) == ["first", "before", "s0", "s1", "s2", "last"]
    for started in of_type(events, StepStarted):
        assert started.waited == pytest.approx(started.at - ready[started.step].at)
        assert run.steps[started.step].waited == started.waited


class Timed:
    """A hook that takes its time, and asks how much that was."""

    wants = frozenset({RunStarted, StepStarted, HooksMeasured})

    def __init__(self) -> None:
        self.reported: list[HooksMeasured] = []

    @contextmanager
    def scope(self) -> Iterator[None]:
        time.sleep(0.004)
        yield
        time.sleep(0.002)

    def __call__(self, event: Any) -> Any:
        if isinstance(event, HooksMeasured):
            self.reported.append(event)
            return None
        time.sleep(0.001)
        return self.scope() if isinstance(event, StepStarted) else None


def test_how_long_hooks_take_is_reported_to_hooks_that_want_it(live: MakeLive, ledger: Ledger) -> None:
    timed, others = Timed(), list[Any]()
    engine = live(hooks=[timed, others.append])
    run = engine.run(ledger.chain("a", "b!"), check=False)
    (measured,) = timed.reported
    assert measured.run_id == run.id
    assert set(measured.seconds) == {"Timed", "list.append"}
    assert measured.seconds["Timed"] >= 0.013  # the second scope is left by an error
    assert 0 < measured.seconds["list.append"] < measured.seconds["Timed"]
    assert not of_type(others, HooksMeasured)


def test_where_runs_are_many_one_of_256_is_measured_and_stands_for_the_others() -> None:
    now = 0.0

    class TakesASecond:
        wants = frozenset({RunStarted, HooksMeasured})

        def __call__(self, event: Any) -> None:
            nonlocal now
            now += 1

    def clock() -> float:
        return now

    hooks = Hooks([TakesASecond()])
    reported: list[tuple[int, float]] = []
    for number in range(1, 519):
        of_run = hooks.of_run(clock)
        of_run.emit(RunStarted("trip", "1", now, {}, None, 0.0, {}, 1, None, {}, int), contextvars.copy_context())
        if of_run.hook_seconds is not None:
            reported.append((number, round(next(iter(of_run.hook_seconds.values())), 6)))
        now += -0.999 if number < 514 else 0.5  # the last ones are more than a second apart
    assert reported == [(1, 1), (257, 256), (513, 256), (515, 2), (516, 1), (517, 1), (518, 1)]


def test_a_step_waits_from_the_end_of_the_one_before_it_even_if_no_hook_wants_to_know_when_it_is_ready() -> None:
    waits: list[float] = []

    class Slow:
        wants = frozenset({StepStarted, StepFinished})

        def __call__(self, event: Any) -> None:
            if isinstance(event, StepStarted):
                waits.append(event.waited)
            else:
                time.sleep(0.001)

    wf = Workflow("trip")
    wf.add_step("book", lambda ctx: None)
    wf.add_step("pay", lambda ctx: None, depends_on="book")
    Engine(hooks=[Slow()]).run(wf)
    assert waits[1] >= 0.001


@pytest.mark.parametrize("measured", [True, False])
def test_a_hook_is_blamed_under_its_own_name_for_its_scopes_too(
    live: MakeLive, ledger: Ledger, caplog: pytest.LogCaptureFixture, measured: bool
) -> None:
    class Scope:
        def __enter__(self) -> None: ...

        def __exit__(self, *_: object) -> None:
            raise Boom

    class Broken:
        wants = frozenset({RunStarted, StepStarted, *([HooksMeasured] if measured else ())})

        def __call__(self, event: Any) -> Any:
            if isinstance(event, RunStarted):
                raise Boom
            return Scope()

    failures: list[HookFailed] = []

    def sees(event: Any) -> None:
        if isinstance(event, HookFailed):
            failures.append(event)

    with caplog.at_level(logging.CRITICAL, "flowcore"):
        live(hooks=[Broken(), sees]).run(ledger.chain("a"))
    assert [failure.hook.split(".")[-1] for failure in failures] == ["Broken", "Broken"]


# -- beginnings of runs that need no driver ------------------------------------------------------------------------------


def test_steps_that_never_wait_are_reported_like_any_other() -> None:
    async def at_once(ctx: Context) -> str:
        return ctx.step

    wf = Workflow("quick")
    wf.add_step("a", at_once)
    wf.add_step("b", at_once, depends_on="a")
    wf.add_step("c", at_once, depends_on=("a", "b"))
    events: list[Any] = []
    run = asyncio.run(AsyncEngine(hooks=[events.append]).run(wf))
    assert run.results == {"a": "a", "b": "b", "c": "c"}
    check_well_formed(events)
    assert [event.step for event in of_type(events, StepReady)] == ["a", "b", "c"]
    assert [report.ran is not None for report in run.steps.values()] == [True] * 3


def test_a_hook_that_cancels_the_run_between_two_steps_stops_it_there(ledger: Ledger) -> None:
    events: list[Any] = []

    def cancels(event: Any) -> None:
        events.append(event)
        if isinstance(event, StepFinished):
            engine.cancel(event.run_id)

    with Engine(hooks=[cancels]) as engine:
        run = engine.run(ledger.chain("a", "b"), check=False)
    assert ledger == ["a", "-a"]
    assert run.status is Status.COMPENSATED
    assert [event.step for event in of_type(events, StepReady)] == ["a"]
    check_well_formed(events)


def test_a_hook_may_cancel_its_run_at_any_event(live: MakeLive, ledger: Ledger) -> None:
    for moment in (RunRequested, RunStarted, StepReady, StepStarted, StepFinished, CompensationStarted):
        ledger.clear()
        engines: list[Any] = []

        def cancels(event: Any, moment: type[Event] = moment, engines: list[Any] = engines) -> None:
            if type(event) is moment:
                engines[0].cancel(event.run_id)

        one, wf = live(hooks=[cancels]), Workflow("w")
        engines.append(one.engine)
        ledger.add(wf, "a")
        ledger.add(wf, "b", raises=ValueError(), depends_on="a")
        run = one.run(wf, check=False)
        assert run.status in {Status.COMPENSATED, Status.FAILURE}, moment
        assert ledger.count("a") == ledger.count("-a"), moment


@pytest.mark.parametrize(
    ("moment", "answer"),
    [
        *((moment, None) for moment in (RunRequested, RunStarted, StepStarted, StepFinished, RunFinished)),
        *((moment, SKIP_RUN) for moment in (RunRequested, RunStarted)),
    ],
)
def test_a_ctrl_c_among_the_hooks_waits_for_the_steps(ledger: Ledger, moment: type[Event], answer: object) -> None:
    events: list[Any] = []

    def struck(event: Any) -> object:
        events.append(event)
        if type(event) is moment:
            signal.raise_signal(signal.SIGINT)
            events.append("and on")
        return answer if isinstance(event, RunStarted) else None

    with Engine(hooks=[struck]) as engine, pytest.raises(KeyboardInterrupt):
        engine.run(ledger.chain("a", "b"))
    assert ledger in ([], ["a", "-a"], ["a", "b"])
    if answer is None:
        check_well_formed([event for event in events if event != "and on"])
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_two_ctrl_cs_that_no_code_could_act_upon_yet_count_as_one(ledger: Ledger) -> None:
    def struck(event: Any) -> None:
        if isinstance(event, StepFinished) and event.step == "b":
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    store = MemoryStore()
    with Engine(hooks=[struck], store=store) as engine, pytest.raises(KeyboardInterrupt):
        engine.run(ledger.chain("a", "b", "c"))
    assert ledger == ["a", "b", "-b", "-a"]
    assert not [record for record in store.list_runs() if record.held]


OUTSIDE: dict[type[Event], Any] = {
    EngineStarted: lambda hooks, wf: Engine(hooks=hooks),
    WorkflowRegistered: lambda hooks, wf: Engine(hooks=hooks).run(wf),
    RunSubmitted: lambda hooks, wf: Engine(hooks=hooks).submit(wf),
    MaintenanceStarted: lambda hooks, wf: Engine(hooks=hooks).recover(),
    StoreSurveyed: lambda hooks, wf: Engine(hooks=hooks, workflows=[wf]).recover(),
    MaintenanceFinished: lambda hooks, wf: Engine(hooks=hooks).recover(),
}


@pytest.mark.parametrize("moment", OUTSIDE)
def test_a_ctrl_c_among_hooks_without_a_run_is_raised_once_all_have_heard(
    ledger: Ledger, moment: type[Event], caplog: pytest.LogCaptureFixture
) -> None:
    heard: list[Any] = []

    def struck(event: Any) -> None:
        if type(event) is moment:
            signal.raise_signal(signal.SIGINT)
            heard.append("and on")

    def listens(event: Any) -> None:
        if type(event) is moment:
            heard.append(event)

    with pytest.raises(KeyboardInterrupt):
        OUTSIDE[moment]([struck, listens], ledger.chain("a"))
    assert [type(what) for what in heard] == [str, moment]
    assert not caplog.records
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_deferred_ctrl_c_is_raised_in_place_of_an_error() -> None:
    def struck() -> None:
        signal.raise_signal(signal.SIGINT)
        raise ValueError("also")

    with pytest.raises(KeyboardInterrupt) as caught, hold_sigint():
        struck()
    assert isinstance(caught.value.__context__, ValueError)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    with pytest.raises(ValueError, match="alone"), hold_sigint():
        raise ValueError("alone")


def test_an_engine_whose_submit_a_ctrl_c_struck_can_be_closed(ledger: Ledger) -> None:
    def struck(event: Any) -> None:
        if isinstance(event, RunSubmitted):
            signal.raise_signal(signal.SIGINT)

    engine = Engine(hooks=[struck])
    with pytest.raises(KeyboardInterrupt):
        engine.submit(ledger.chain("a"))
    engine.close()
    assert ledger == []


def test_how_many_steps_wait_can_be_asked_at_any_time_and_undos_are_none_of_them(drive: Drive, ledger: Ledger) -> None:
    wf = Workflow("queue", max_parallel=1, parallel_undo=True)
    for name in ("a", "b", "c"):
        ledger.add(wf, name)
    ledger.add(wf, "fails", raises=ValueError("no"))
    ledger.add(wf, "never")
    seen: list[tuple[str, int]] = []
    started: list[RunStarted] = []

    def asks(event: Any) -> None:
        if isinstance(event, RunStarted):
            started.append(event)
        if isinstance(event, (StepStarted, CompensationStarted)):
            seen.append((event.step, started[0].waiting()))

    drive(wf, hooks=[asks], check=False)
    assert seen[:4] == [("a", 4), ("b", 3), ("c", 2), ("fails", 1)]
    assert sorted(seen[4:]) == [("a", 0), ("b", 0), ("c", 0)]


def test_a_watched_run_leaves_nothing_to_the_garbage_collector(ledger: Ledger) -> None:
    def keeps(event: Any) -> None:
        if isinstance(event, RunStarted):
            event.state["waiting"] = event.waiting

    with Engine(hooks=[keeps]) as engine:
        chain = ledger.chain("a", "b")
        engine.run(chain)
        gc.collect()
        gc.disable()
        try:
            engine.run(chain)
            assert gc.collect() == 0
        finally:
            gc.enable()
