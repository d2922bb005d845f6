"""Rare moments of durable runs: what is lost, cancelled or refused just while something else goes on."""

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from flowcore import (
    Backoff,
    Context,
    Engine,
    FlowcoreError,
    Landed,
    LeaseLost,
    NotLanded,
    NotSerializable,
    Retry,
    Run,
    RunFailed,
    RunParked,
    Status,
    StepCancelled,
    StoreError,
    StoreUnavailable,
    Workflow,
)
from flowcore.events import (
    BackoffStarted,
    CompensationStarted,
    LeaseLost as LeaseLostEvent,
    MaintenanceFinished,
    MaintenanceStarted,
    RunRecovered,
    RunRequested,
    StepCompletedLate,
    StepStarted,
    StoreCalled,
)
from flowcore.stores.base import Lost, Renewal, RunRecord
from flowcore.testing import SimulatedStore
from flowcore.testing.acts import Caller, Halt
from flowcore.testing.story import play
from tests.durable.test_programs import Moody, Strict, silent

from .conftest import PATIENCE, Gate, Ledger, MakeLive, of_type, until

# -- a run that another process was in the middle of -------------------------------------------------------------------


@contextlib.contextmanager
def interrupted(
    store: Moody,
    workflow: Workflow,
    in_flight: Callable[[], bool],
    *,
    hooks: Iterable[Any] = (),
    values: Mapping[str, Any] | None = None,
) -> Iterator[None]:
    """A run of `workflow` under the key "k" whose owner, as far as others can tell, died while its steps were running."""
    store.moods = silent("renew")
    with Engine(store=store, lease=0.1, hooks=hooks) as owner:
        future: Future[Run] = owner.submit(workflow, values, idempotency_key="k")
        until(in_flight)
        until(lambda: store.list_runs(status="expired"))
        yield
        with contextlib.suppress(FlowcoreError):
            future.result(PATIENCE)


def stalls(ledger: Ledger, gate: Gate) -> Callable[[Context], None]:
    """What a step does whose first owner never hears that it is over."""

    def step(ctx: Context) -> None:
        if ctx.fence == 1:
            ledger.append(f"{ctx.step} begins")
            gate.wait()

    return step


@pytest.mark.parametrize("on_crash", ["retry", "undo", "hold"])
def test_a_process_that_stops_while_verify_is_asked_leaves_the_decision_to_the_next_owner(
    ledger: Ledger, gate: Gate, on_crash: str
) -> None:
    store, wf, asked = Moody(), Workflow("w"), list[int]()

    def verify(ctx: Context) -> Landed[str]:
        asked.append(ctx.fence)
        if len(asked) == 1:
            until(lambda: ctx.cancelled)
        return Landed("seen")

    ledger.add(wf, "a", first=stalls(ledger, gate), verify=verify, on_crash=on_crash)
    ledger.add(wf, "b", depends_on="a")
    with interrupted(store, wf, lambda: bool(ledger)):
        stops = Engine(store=store, lease=30, grace=0)
        future = stops.submit(wf, idempotency_key="k", wait=30)
        until(lambda: asked)
        stops.close(timeout=0)
        with pytest.raises(RunParked):
            future.result(PATIENCE)
        assert (store.find("k").status, store.find("k").held) == (Status.PARKED, False)
        with Engine(store=store) as engine:
            assert engine.run(wf, idempotency_key="k")["a"] == "seen"
        gate.set()
    assert ledger == ["a begins", "b"] or sorted(ledger) == ["a", "a begins", "b"]  # the dead owner's call ends late


def test_a_run_that_is_lost_while_verify_is_asked_is_not_held(ledger: Ledger, gate: Gate) -> None:
    store, wf = Moody(), Workflow("w")

    def verify(ctx: Context) -> None:
        store.moods = lambda verb, argument: [Renewal.LOST] if verb == "renew" else None
        until(lambda: ctx.cancelled)

    ledger.add(wf, "a", first=stalls(ledger, gate), verify=verify)
    ledger.add(wf, "b", first=stalls(ledger, gate), on_crash="hold")
    with interrupted(store, wf, lambda: len(ledger) == 2), Engine(store=store, lease=0.1) as engine:
        with pytest.raises(LeaseLost):
            engine.run(wf, idempotency_key="k")
        assert not store.find("k").held
        gate.set()
    assert not [entry for entry in ledger if entry.startswith("-")]


def test_a_run_that_is_cancelled_while_verify_is_asked_undoes_what_may_have_happened(
    live: MakeLive, ledger: Ledger, gate: Gate
) -> None:
    store, wf, asked, events = Moody(), Workflow("w"), Gate(), list[Any]()

    def verify(ctx: Context) -> None:
        asked.set()
        gate.wait()

    ledger.add(wf, "a")
    ledger.add(wf, "b", depends_on="a", first=stalls(ledger, gate), verify=verify)
    with interrupted(store, wf, lambda: len(ledger) == 2):
        one = live(store=store, grace=0.01, hooks=[events.append])
        future = one.start(wf, idempotency_key="k")
        asked.wait()
        assert one.engine.cancel(store.find("k").run_id)
        with pytest.raises(StepCancelled):
            future.result(PATIENCE)
        assert ledger == ["a", "b begins", "-b", "-a"]
        assert store.find("k").status is Status.COMPENSATED
        gate.set()
        one.close()
    assert not of_type(events, StepCompletedLate)  # what it returns then does not matter


# -- a run that is lost, or cannot be kept, on the way -----------------------------------------------------------------


def test_an_undo_that_waits_for_its_next_attempt_makes_none_once_its_run_is_lost(live: MakeLive) -> None:
    store, wf, undos = Moody(), Workflow("w"), list[int]()

    def undo(ctx: Context) -> None:
        undos.append(ctx.attempt)
        store.moods = lambda verb, argument: [Renewal.LOST] if verb == "renew" else None
        raise ConnectionError

    step = wf.add_step("a", lambda ctx: 1)
    step.compensate(retry=Retry(2, Backoff.fixed(0.3)))(undo)
    wf.add_step("b", lambda ctx: 1 / 0, depends_on="a")
    with pytest.raises(LeaseLost):
        live(store=store, lease=0.1).run(wf, idempotency_key="k")
    assert undos == [1]


def test_a_result_that_cannot_be_stored_fails_the_run_while_another_step_still_runs(
    live: MakeLive, ledger: Ledger
) -> None:
    store, wf, began, refused = Moody(), Workflow("w"), Gate(), Gate()

    def mood(verb: str, argument: Any) -> None:
        if verb == "checkpoint" and "b" in argument.steps and argument.steps["b"].has_result:
            refused.set()
            raise NotSerializable("the result of step 'b' cannot be stored")

    store.moods = mood
    ledger.add(wf, "a", first=began.then(refused))
    ledger.add(wf, "b", first=began)
    ledger.add(wf, "c", depends_on=["a", "b"])
    with pytest.raises(NotSerializable, match="the result of step 'b' cannot be stored"):
        live(store=store).run(wf, idempotency_key="k")
    assert sorted(ledger) == ["-a", "-b", "a", "b"]
    assert store.find("k").status is Status.COMPENSATED


@pytest.mark.parametrize("parallel_undo", [False, True])
@pytest.mark.parametrize("reported", [False, True])
def test_who_loses_the_run_while_waiting_for_a_late_step_undoes_nothing(
    live: MakeLive, ledger: Ledger, gate: Gate, parallel_undo: bool, reported: bool
) -> None:
    store, wf, events = Moody(), Workflow("w", parallel_undo=parallel_undo), list[Any]()
    store.moods = silent("renew")
    ledger.add(wf, "a")
    ledger.add(wf, "slow", depends_on="a", first=gate, timeout=0.01)
    future = live(store=store, lease=0.1, hooks=[events.append]).start(wf, idempotency_key="k")
    until(lambda: (record := store.find("k")) is not None and record.undoing)
    if reported:
        store.moods = lambda verb, argument: [Renewal.LOST] if verb == "renew" else None
        until(lambda: of_type(events, LeaseLostEvent))
    else:
        store.moods = lambda verb, argument: Lost() if verb == "checkpoint" else silent("renew")(verb, argument)
        until(lambda: store.list_runs(status="expired"))
    gate.set()
    with pytest.raises(LeaseLost):
        future.result(PATIENCE)
    assert ledger == ["a", "slow"]


def test_an_undo_that_waited_as_its_run_parked_is_attempted_by_the_next_owner(live: MakeLive, ledger: Ledger) -> None:
    store, wf = Moody(), Workflow("w")

    def undo(ctx: Context) -> None:
        ledger.append(f"undo of {ctx.step}, attempt {ctx.attempt}")
        if len(ledger) == 1:
            store.moods = silent("renew", "checkpoint")
            raise ConnectionError

    step = wf.add_step("a", lambda ctx: 1)
    step.compensate(retry=Retry(2, Backoff.fixed(0.3)))(undo)
    wf.add_step("b", lambda ctx: 1 / 0, depends_on="a")
    with pytest.raises(RunParked):
        live(store=store, lease=0.1, store_patience=0.1).run(wf, idempotency_key="k")
    assert ledger == ["undo of a, attempt 1"]
    store.moods = lambda verb, argument: None
    with pytest.raises(RunFailed):
        live(store=store).run(wf, idempotency_key="k")
    assert ledger == ["undo of a, attempt 1", "undo of a, attempt 1"]
    assert (store.find("k").status, store.find("k").undone) == (Status.COMPENSATED, ("a",))


def test_a_step_whose_when_wrote_what_cannot_be_stored_never_began_and_is_not_undone(
    live: MakeLive, ledger: Ledger
) -> None:
    def when(ctx: Context) -> bool:
        ctx["thing"] = object()
        return True

    wf = Workflow("w", undo="attempted")
    ledger.add(wf, "a", when=when)
    with pytest.raises(NotSerializable, match="the value of 'thing' cannot be stored"):
        live(store=Strict()).run(wf, idempotency_key="k")
    assert ledger == []


@pytest.mark.parametrize("hooks", [[], [lambda event: None]], ids=["silent", "watched"])
def test_a_durable_run_reports_how_long_each_step_took_whether_watched_or_not(
    live: MakeLive, ledger: Ledger, hooks: list[Any]
) -> None:
    def slow(ctx: Context) -> None:
        time.sleep(0.05)
        if ctx.attempt == 1 and ctx.step == "retried":
            raise ConnectionError

    wf = ledger.chain("first")
    ledger.add(wf, "slow", depends_on="first", first=slow)
    ledger.add(wf, "retried", depends_on="slow", first=slow, retry=Retry(2, Backoff.fixed(0.05)))
    run = live(store=Moody(), hooks=hooks).run(wf, idempotency_key="k")
    for name, ran, backed_off in (("first", 0, 0), ("slow", 0.05, 0), ("retried", 0.1, 0.05)):
        report = run.steps[name]
        assert ran <= report.ran < PATIENCE
        assert backed_off <= report.backed_off < (PATIENCE if backed_off else 1e-9)
        assert 0 <= report.waited < PATIENCE


@pytest.mark.parametrize("alone", [False, True])
def test_a_run_of_which_one_result_cannot_be_stored_is_reported_to_its_end(
    live: MakeLive, ledger: Ledger, alone: bool
) -> None:
    store, wf = Strict(), Workflow("w")
    ledger.add(wf, "a", first=lambda ctx: object())
    if not alone:
        ledger.add(wf, "b", depends_on="a")
    with pytest.raises(NotSerializable, match="the result of step 'a' cannot be stored"):
        live(store=store).run(wf, idempotency_key="k")
    assert ledger == ["a", "-a"]
    assert (store.find("k").status, store.find("k").steps["a"].undo) == (Status.COMPENSATED, Status.SUCCESS)


@pytest.mark.parametrize("granted", [False, True])
def test_a_run_that_is_cancelled_while_its_claim_gets_no_answer_has_not_begun_and_never_will(
    live: MakeLive, ledger: Ledger, granted: bool
) -> None:
    store, wf, asked, ids = Moody(), ledger.chain("a"), Gate(), list[str]()

    def mood(verb: str, argument: Any) -> None:
        if verb == "claim":
            if granted:
                SimulatedStore.claim(store, argument)
            asked.set()
            raise StoreUnavailable("gone")

    def sees(event: Any) -> None:
        if type(event) is RunRequested:
            ids.append(event.run_id)

    store.moods = mood
    one = live(store=store, lease=120.0, hooks=[sees])
    with ThreadPoolExecutor() as pool:
        future = pool.submit(one.run, wf, idempotency_key="k")
        asked.wait()
        assert one.engine.cancel(ids[0])
        with pytest.raises(StepCancelled):
            future.result(PATIENCE)
    assert not store.list_runs(status="running")
    assert ledger == []


@pytest.mark.parametrize("granted", [False, True])
def test_a_submitted_run_that_is_cancelled_while_it_is_recorded_never_begins(ledger: Ledger, granted: bool) -> None:
    store, wf, asked = Moody(), ledger.chain("a"), Gate()

    def mood(verb: str, argument: Any) -> None:
        if verb == "claim":
            if granted:
                SimulatedStore.claim(store, argument)
            asked.set()
            raise StoreUnavailable("gone")

    store.moods = mood
    with Engine(store=store, lease=120.0) as engine, ThreadPoolExecutor() as pool:
        submitted = pool.submit(engine.submit, wf, idempotency_key="k")
        asked.wait()
        assert engine.cancel(key="k")
        with pytest.raises(StepCancelled):
            submitted.result(PATIENCE).result(PATIENCE)
        assert all(record.status is Status.FAILURE for record in store.list_runs())  # its claim was withdrawn
    assert ledger == []


def test_a_run_whose_submission_the_store_refuses_does_not_count_as_queued(ledger: Ledger) -> None:
    store, wf = Moody(), ledger.chain("a")
    store.moods = silent("claim")
    with Engine(store=store, lease=0.1, max_queued=1) as engine:
        for _ in range(2):
            with pytest.raises(StoreUnavailable):
                engine.submit(wf, idempotency_key="k")
        store.moods = lambda verb, argument: None
        assert engine.submit(wf, idempotency_key="k").result(PATIENCE).status is Status.SUCCESS


def test_a_poll_that_is_cancelled_while_it_gets_no_answer_is_reported_to_its_end(
    live: MakeLive, ledger: Ledger, gate: Gate
) -> None:
    store, wf, began, events, inside = Moody(), Workflow("w"), Gate(), list[Any](), list[Any]()

    class Scope:
        def __enter__(self) -> None:
            inside.append(self)

        def __exit__(self, *_: object) -> None:
            inside.remove(self)

    def listens(event: Any) -> Any:
        events.append(event)
        return Scope() if type(event) is MaintenanceStarted else None

    ledger.add(wf, "a", first=began.then(gate))
    with Engine(store=store) as owner:
        owner.submit(wf, idempotency_key="k")
        began.wait()
        one = live(store=store, lease=120.0, hooks=[listens])
        future = one.start(wf, idempotency_key="k", wait=PATIENCE)
        until(lambda: of_type(events, MaintenanceFinished))
        store.moods = silent("head")
        until(lambda: [event for event in of_type(events, StoreCalled) if event.error is not None])
        assert one.engine.cancel(of_type(events, RunRequested)[0].run_id)
        with pytest.raises(StepCancelled):
            future.result(PATIENCE)
        gate.set()
    assert [event.kind for event in of_type(events, MaintenanceStarted) if event.kind == "poll"]
    assert len(of_type(events, MaintenanceStarted)) == len(of_type(events, MaintenanceFinished))
    assert inside == []


def test_a_run_whose_store_fails_it_at_its_end_is_not_done_again(live: MakeLive, ledger: Ledger) -> None:
    store, refusals = Moody(), [StoreError("the disk is full")]

    def mood(verb: str, argument: Any) -> None:
        if verb == "finish" and refusals:
            raise refusals.pop()

    store.moods = mood
    wf, one = ledger.chain("a", "b"), live(store=store)
    with pytest.raises(RunParked, match=r"its end could not be saved \(StoreError: the disk is full\)"):
        one.run(wf, idempotency_key="k")
    assert one.run(wf, idempotency_key="k").results == {"a": "a", "b": "b"}
    assert ledger == ["a", "b"]


def test_a_step_that_waits_for_its_next_attempt_waits_no_more_once_the_run_is_lost(
    live: MakeLive, ledger: Ledger
) -> None:
    store, wf, waits = Moody(), Workflow("w"), Gate()

    def mood(verb: str, argument: Any) -> Any:
        return Lost() if verb == "checkpoint" and "a" in argument.steps and waits.is_set() else None

    def sees(event: Any) -> None:
        if type(event) is BackoffStarted:
            waits.set()

    store.moods = mood
    ledger.add(wf, "a", first=waits)
    ledger.add(wf, "b", raises=ConnectionError(), retry=Retry(2, Backoff.fixed(30)))
    with pytest.raises(LeaseLost):
        live(store=store, hooks=[sees]).start(wf, idempotency_key="k").result(PATIENCE)
    assert ledger == ["b", "a"]


# -- what the next owner finds -----------------------------------------------------------------------------------------


def test_a_key_that_was_deleted_is_gone_for_the_next_owner_too(ledger: Ledger, gate: Gate) -> None:
    store, wf, seen = Moody(), Workflow("w"), list[dict[str, Any]]()
    ledger.add(wf, "a", first=lambda ctx: ctx.update(written="by a"))
    ledger.add(wf, "b", depends_on="a", first=lambda ctx: [ctx.pop("written"), ctx.pop("initial")])

    def looks(ctx: Context) -> None:
        stalls(ledger, gate)(ctx)
        seen.append(dict(ctx))

    ledger.add(wf, "c", depends_on="b", first=looks)
    values = {"initial": 1, "left": 2}
    with interrupted(store, wf, lambda: len(ledger) == 3, values=values):
        with Engine(store=store) as engine:
            assert engine.run(wf, values, idempotency_key="k").status is Status.SUCCESS
        assert seen == [{"left": 2}]
        gate.set()


def test_a_step_that_was_in_flight_and_raises_when_it_is_attempted_again_is_undone(ledger: Ledger, gate: Gate) -> None:
    store, wf = Moody(), Workflow("w")

    def again(ctx: Context) -> None:
        stalls(ledger, gate)(ctx)
        if ctx.fence > 1:
            raise FileExistsError

    ledger.add(wf, "a")
    ledger.add(wf, "b", depends_on="a", first=again)
    with interrupted(store, wf, lambda: len(ledger) == 2):
        with Engine(store=store) as engine, pytest.raises(FileExistsError):
            engine.run(wf, idempotency_key="k")
        assert ledger == ["a", "b begins", "-b", "-a"]  # what it found may be its own
        gate.set()


def test_a_step_that_was_in_flight_is_not_asked_again_whether_it_is_wanted(ledger: Ledger, gate: Gate) -> None:
    store, wf, asked = Moody(), Workflow("w"), list[int]()

    def when(ctx: Context) -> bool:
        asked.append(ctx.fence)
        return len(asked) == 1

    ledger.add(wf, "a")
    ledger.add(wf, "b", depends_on="a", first=stalls(ledger, gate), when=when)
    with interrupted(store, wf, lambda: len(ledger) == 2):
        store.asked.clear()
        with Engine(store=store) as engine:
            run = engine.run(wf, idempotency_key="k")
        assert [verb for verb in store.asked if verb != "renew"] == ["claim", "checkpoint", "finish"]
        assert (run.steps["b"].status, asked, ledger) == (Status.SUCCESS, [1], ["a", "b begins", "b"])
        gate.set()


def test_a_step_that_landed_in_a_run_that_is_undone_counts_as_done_and_is_undone(ledger: Ledger, gate: Gate) -> None:
    store, wf, began = Moody(), Workflow("w"), Gate()

    def slow(ctx: Context) -> None:
        began.set()
        gate.wait()

    ledger.add(wf, "fails", first=lambda ctx: [began.wait(), 1 / 0])
    ledger.add(wf, "slow", first=slow, verify=lambda ctx: Landed("paid"))
    with interrupted(store, wf, lambda: (record := store.find("k")) is not None and record.undoing):
        with Engine(store=store) as engine:
            run = engine.run(wf, idempotency_key="k", check=False)
        assert (run.status, run.failed_step, ledger) == (Status.COMPENSATED, "fails", ["-slow"])
        assert (run.steps["slow"].status, run.steps["slow"].undo) == (Status.SUCCESS, Status.SUCCESS)
        gate.set()


def test_a_takeover_reports_what_verify_found_apart_from_what_it_attempts_again(ledger: Ledger, gate: Gate) -> None:
    store, wf, events = Moody(), Workflow("w"), list[Any]()
    ledger.add(wf, "a")
    ledger.add(wf, "b", depends_on="a", first=stalls(ledger, gate), verify=lambda ctx: Landed("found"))
    ledger.add(wf, "c", depends_on="a", first=stalls(ledger, gate))
    with interrupted(store, wf, lambda: len(ledger) == 3):
        with Engine(store=store, hooks=[events.append]) as engine:
            assert engine.run(wf, idempotency_key="k")["b"] == "found"
        gate.set()
    (event,) = of_type(events, RunRecovered)
    assert (event.decision, event.skipped, event.retried, event.verified) == ("forward", ("a",), ("c",), ("b",))
    assert (event.undone, event.held) == ((), ())


def test_why_verify_could_not_tell_is_the_cause_of_parking() -> None:
    wf, mine = Workflow("w"), ConnectionError("the bank is closed")

    def verify(ctx: Context) -> None:
        raise mine

    wf.add_step("a", lambda ctx: 1, verify=verify)
    callers = (Caller(halt=Halt("call", 1, done=True)), Caller(40.0))
    story = play(wf, seed=1, store=SimulatedStore(), key="k", callers=callers)
    error = story.acts[1].run.error
    assert isinstance(error, RunParked)
    assert error.__cause__.__cause__ is mine


def test_undos_are_numbered_over_all_takeovers(live: MakeLive, ledger: Ledger) -> None:
    store, wf, events = Moody(), ledger.chain("a", "b", "c!"), list[Any]()
    store.moods = silent("checkpoint", "renew", after=3)
    with pytest.raises(RunParked):
        live(store=store, lease=0.2, store_patience=0.2).run(wf, idempotency_key="k")
    store.moods = lambda verb, argument: None
    with pytest.raises(RunFailed):
        live(store=store, hooks=[events.append]).run(wf, idempotency_key="k")
    assert ledger == ["a", "b", "c", "-b", "-a"]
    assert [(event.step, event.order) for event in of_type(events, CompensationStarted)] == [("a", 2)]


def test_hooks_learn_whether_there_is_a_caller_and_what_the_store_said(ledger: Ledger) -> None:
    store, wf, events = Moody(), ledger.chain("a", "b"), list[Any]()
    refusals: list[Exception] = [StoreError("the disk is full")]

    def mood(verb: str, argument: Any) -> None:
        if verb == "finish" and refusals:
            raise refusals.pop()

    store.moods = mood
    with Engine(store=store, hooks=[events.append], workflows=[wf]) as engine:
        with pytest.raises(RunParked):
            engine.run(wf, idempotency_key="k")
        engine.recover()
    assert [event.recovering for event in of_type(events, RunRequested)] == [False, True]
    called = of_type(events, StoreCalled)
    outcomes = [(event.operation, event.outcome) for event in called]
    assert outcomes[:3] == [("claim", "success"), ("checkpoint", "success"), ("finish", "failure")]
    assert all(0 <= event.duration < PATIENCE for event in called)


class Sought(Moody):
    """It also records each look for a run."""

    def head(self, key: str, /) -> RunRecord | None:
        self.asked.append("sought")
        return super().head(key)


def test_who_has_lost_the_run_waits_for_what_the_new_owner_makes_of_it(ledger: Ledger, gate: Gate) -> None:
    store, wf, finishes = Sought(), Workflow("w"), Gate()

    def second(ctx: Context) -> None:
        if ctx.fence > 1:
            finishes.wait()

    ledger.add(wf, "a", first=stalls(ledger, gate))
    ledger.add(wf, "b", depends_on="a", first=second)
    store.moods = silent("renew")
    with Engine(store=store, lease=0.1) as sleepy, Engine(store=store) as quick:
        loser = sleepy.submit(wf, idempotency_key="k", wait=PATIENCE)
        until(lambda: ledger)
        until(lambda: store.list_runs(status="expired"))
        owner = quick.submit(wf, idempotency_key="k")
        until(lambda: "a" in ledger)
        gate.set()
        until(lambda: store.asked.count("sought") > 1)
        finishes.set()
        assert loser.result(PATIENCE).results == owner.result(PATIENCE).results == {"a": None, "b": None}
    assert loser.result().replayed
    assert ledger == ["a begins", "a", "a", "b"]


# -- how often the store is asked --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("steps", "asked"),
    [
        ("a b c", "claim checkpoint checkpoint finish"),
        ("a b c!", "claim checkpoint checkpoint checkpoint checkpoint finish"),  # it is undone, b is undone
        ("a!", "claim finish"),
    ],
)
def test_a_chain_asks_its_store_once_for_each_step(live: MakeLive, ledger: Ledger, steps: str, asked: str) -> None:
    store = Moody()
    live(store=store).run(ledger.chain(*steps.split()), idempotency_key="k", check=False)
    assert store.asked == asked.split()


def test_steps_that_wait_for_nothing_ask_no_oftener_than_a_chain(live: MakeLive, ledger: Ledger) -> None:
    store, wf = Moody(), Workflow("w", max_parallel=1)
    for name in "abc":
        ledger.add(wf, name)
    live(store=store).run(wf, idempotency_key="k")
    assert store.asked == ["claim", "checkpoint", "checkpoint", "finish"]
    assert ledger == ["a", "b", "c"]


def test_a_store_that_is_away_while_a_run_is_undone_is_not_asked_all_the_time(live: MakeLive, ledger: Ledger) -> None:
    store = Moody()
    store.moods = silent("checkpoint", "renew", after=1)
    with pytest.raises(RunParked) as caught:
        live(store=store, lease=0.5, store_patience=0.5).run(ledger.chain("a", "b!"), idempotency_key="k")
    assert isinstance(caught.value.__cause__, StoreUnavailable)
    assert store.asked.count("checkpoint") < 20
    assert ledger == ["a", "b"]


# -- what hooks give the run to carry ----------------------------------------------------------------------------------


def test_what_a_hook_gave_a_step_to_carry_is_passed_to_the_next_owner_and_kept(ledger: Ledger, gate: Gate) -> None:
    store, wf, events = Moody(), Workflow("w"), list[Any]()

    def gives(event: Any) -> None:
        if type(event) is StepStarted:
            event.carrier["trace"] = f"of {event.step}"

    ledger.add(wf, "a")
    ledger.add(wf, "b", depends_on="a", first=stalls(ledger, gate))
    ledger.add(wf, "c", depends_on="b", raises=ValueError("c"))
    with interrupted(store, wf, lambda: len(ledger) == 2, hooks=[gives]):
        with Engine(store=store, hooks=[events.append]) as engine:
            assert engine.run(wf, idempotency_key="k", check=False).undone == ("b", "a")
        gate.set()
    assert of_type(events, RunRecovered)[0].carriers == {"a": {"trace": "of a"}}
    assert store.find("k").carriers == {"a": {"trace": "of a"}}


def test_what_hooks_gave_a_run_to_carry_stays_with_it_also_where_the_next_owner_has_none(
    ledger: Ledger, gate: Gate
) -> None:
    store, wf = Moody(), Workflow("w")

    def gives(event: Any) -> None:
        if type(event) is RunRequested:
            event.carrier["trace"] = "of the first"

    ledger.add(wf, "a", first=stalls(ledger, gate))
    with interrupted(store, wf, lambda: len(ledger) == 1, hooks=[gives]):
        with Engine(store=store) as engine:
            assert engine.run(wf, idempotency_key="k").carrier == {"trace": "of the first"}
        gate.set()


def test_a_step_that_verify_found_lacking_is_not_in_flight_if_its_run_stops_before_it_starts_again(
    ledger: Ledger, gate: Gate
) -> None:
    store, wf = Moody(), Workflow("w")
    ledger.add(wf, "a", first=stalls(ledger, gate), verify=lambda ctx: NotLanded())

    def cancels(event: Any) -> None:
        if type(event) is RunRecovered:
            assert engine.cancel(event.run_id)

    with interrupted(store, wf, lambda: len(ledger) == 1):
        with Engine(store=store, hooks=[cancels]) as engine, pytest.raises(StepCancelled):
            engine.run(wf, idempotency_key="k")
        record = store.find("k")
        assert record is not None
        assert (record.steps["a"].status, record.effects) == (Status.PENDING, ())
        assert ledger == ["a begins"]
        gate.set()
