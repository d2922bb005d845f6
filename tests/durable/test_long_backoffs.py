"""Waits between two attempts that are longer than `park_after=`: the run is left to its store, like one that waits."""

from __future__ import annotations

import math
import sys
import threading
import time
from typing import Any

import pytest

from flowcore import (
    AsyncEngine,
    Backoff,
    Context,
    DefinitionError,
    Engine,
    IdempotencyInProgress,
    MemoryStore,
    Retry,
    RetryAfter,
    Workflow,
)
from flowcore.events import (
    AttemptStarted,
    BackoffStarted,
    Event,
    RunFinished,
    RunRecovered,
    StepFinished,
    StepStarted,
)
from flowcore.retry import CENTURY
from tests.core.conftest import PATIENCE
from tests.stores.redis_servers import until

from .towns import Town

DAY = 86_400.0
SHORT = 0.3
"""seconds of a backoff that a test waits for, and that leaves its process where park_after=0.1"""


def payment(effects: list[str], wait: float = DAY, *, works_at: int = 3, **options: Any) -> Workflow:
    """quote, then charge, which raises RetryAfter until its attempt number `works_at`."""
    wf = Workflow("payment")

    @wf.step
    def quote(ctx: Context) -> int:
        effects.append("quote")
        return 41

    @quote.compensate
    def unquote(ctx: Context) -> None:
        effects.append("-quote")

    def charge(ctx: Context) -> int:
        effects.append(f"charge {ctx.attempt}")
        if ctx.attempt < works_at:
            raise RetryAfter(wait)
        return ctx.attempt

    step = wf.add_step("charge", charge, depends_on=quote, retry=options.pop("retry", 4), **options)

    @step.compensate
    def refund(ctx: Context) -> None:
        effects.append("-charge")

    return wf


def of_charge(events: list[Event], *kinds: type[Event]) -> list[Any]:
    return [event for event in events if isinstance(event, kinds) and getattr(event, "step", "charge") == "charge"]


def test_a_run_whose_next_attempt_is_far_off_is_left_to_its_store(town: Town) -> None:
    effects = list[str]()
    run = town.pause(town.engine(), payment(effects))
    record = town.store.find("k")
    assert (record.status, record.waiting_for, record.expires) == ("waiting", ("charge",), None)
    assert record.not_before == pytest.approx(time.time() + DAY, abs=60)
    report = record.steps["charge"]
    assert (report.status, report.attempts, report.failed, [kind for kind, _ in report.errors]) == (
        "pending",
        1,
        1,
        ["RetryAfter"],
    )
    assert report.retry_at == pytest.approx(record.not_before, abs=1)
    assert "waits until" in record.explain()
    assert "to attempt 'charge' again" in record.explain()
    assert (run.steps["charge"].attempts, run.steps["charge"].failed) == (1, 1)
    assert town.store.counts() == {("payment", "waiting"): 1}
    assert not town.store.list_resumable(["payment"])
    assert effects == ["quote", "charge 1"]


@pytest.mark.parametrize("delay", [math.inf, float(sys.maxsize)])
def test_a_backoff_without_end_is_one_of_a_century_and_its_record_can_be_read(town: Town, delay: Any) -> None:
    town.pause(town.engine(), payment([], delay))
    record = town.store.find("k")
    assert record.not_before == pytest.approx(time.time() + CENTURY, abs=60)
    assert record.steps["charge"].retry_at == pytest.approx(time.time() + CENTURY, abs=60)
    assert "waits until" in record.explain()


def test_the_engine_that_resumes_it_makes_the_next_attempt_when_that_is_due(town: Town) -> None:
    effects, before, after = list[str](), list[Event](), list[Event]()
    wf = payment(effects, SHORT)
    first = town.engine(park_after=0.1, hooks=[before.append])
    town.pause(first, wf)
    began, due = town.store.find("k").steps["charge"].started, town.store.find("k").not_before
    town.close(first)
    town.engine(workflows=[wf], recover_every=0.05, park_after=0.1, hooks=[after.append])
    until(lambda: any(isinstance(e, RunFinished) and e.outcome == "success" for e in after), "the run's end")
    assert time.time() >= due + SHORT
    record = town.store.find("k")
    report = record.steps["charge"]
    assert (report.attempts, report.failed, report.retry_at, record.takeovers) == (3, 2, None, 0)
    assert report.started == began
    assert effects == ["quote", "charge 1", "charge 2", "charge 3"]
    assert [event.attempt for event in of_charge(before, AttemptStarted)] == [1]
    assert [event.attempt for event in of_charge(after, AttemptStarted)] == [2, 3]
    backoffs = of_charge([*before, *after], BackoffStarted)
    assert [(event.attempt, event.delay, event.reason) for event in backoffs] == [
        (1, SHORT, "retry_after"),
        (2, SHORT, "retry_after"),
    ]
    ends = of_charge([*before, *after], StepFinished)
    assert [(event.outcome, event.attempts) for event in ends] == [("waiting", 1), ("waiting", 2), ("success", 3)]
    assert len(of_charge([*before, *after], StepStarted)) == 3
    assert [e.outcome for e in [*before, *after] if isinstance(e, RunFinished)] == ["waiting", "waiting", "success"]
    assert not [event for event in after if isinstance(event, RunRecovered)]  # nothing has crashed


def test_the_caller_of_a_run_with_a_long_backoff_waits_in_its_process_for_the_end(town: Town) -> None:
    effects = list[str]()
    failing = Workflow("failing")

    @failing.step(retry=Retry(3, Backoff.fixed(SHORT)))
    def charge(ctx: Context) -> None:
        effects.append(f"charge {ctx.attempt}")
        raise ConnectionError(str(ctx.attempt))

    future = town.start(town.engine(park_after=0.1), failing, idempotency_key="k", check=False)
    until(lambda: town.status() == "waiting", "the run to wait")
    run = future.result(PATIENCE)
    assert effects == ["charge 1", "charge 2", "charge 3"]
    assert (run.status, run.steps["charge"].attempts) == ("failure", 3)
    assert [message for _, message in run.steps["charge"].errors] == ["1", "2", "3"]
    assert isinstance(run.error, ConnectionError)


def test_a_caller_with_the_key_learns_when_the_next_attempt_is_due(town: Town) -> None:
    wf = payment([])
    town.pause(town.engine(), wf)
    with pytest.raises(IdempotencyInProgress, match="waits for 'charge', which is due in") as caught:
        town.call(town.engine().run(wf, idempotency_key="k"))
    assert caught.value.waiting_for == ("charge",)
    assert caught.value.retry_after == pytest.approx(DAY, abs=60)
    assert caught.value.lease_left == caught.value.retry_after


def test_steps_that_work_keep_the_process_and_the_next_attempt_is_made_there(town: Town) -> None:
    effects, events, done = list[str](), list[Event](), threading.Event()
    wf = payment(effects, SHORT, works_at=2)

    @wf.step
    def pack(ctx: Context) -> None:
        assert done.wait(PATIENCE)

    future = town.start(town.engine(park_after=0.1, hooks=[events.append]), wf, idempotency_key="k")
    until(lambda: "charge 2" in effects, "the next attempt")
    assert town.status() == "running"
    done.set()
    assert future.result(PATIENCE)["charge"] == 2
    (end,) = of_charge(events, StepFinished)
    assert (end.outcome, end.attempts) == ("success", 2)
    assert end.backoff >= SHORT
    assert end.duration >= end.backoff
    assert len(of_charge(events, StepStarted)) == 1
    assert not [event for event in events if getattr(event, "outcome", "") == "waiting"]


def test_a_step_that_waits_for_its_next_attempt_has_failed_when_another_fails(town: Town) -> None:
    effects, events, fails = list[str](), list[Event](), threading.Event()
    wf = payment(effects)

    @wf.step
    def pack(ctx: Context) -> None:
        assert fails.wait(PATIENCE)
        raise ValueError("no boxes")

    future = town.start(town.engine(hooks=[events.append]), wf, idempotency_key="k", check=False)
    until(lambda: of_charge(events, BackoffStarted), "the backoff")
    fails.set()
    run = future.result(PATIENCE)
    assert (run.status, run.failed_step, run.undone) == ("compensated", "pack", ("quote",))
    assert (run.steps["charge"].status, run.steps["charge"].attempts) == ("failure", 1)
    assert [event.outcome for event in of_charge(events, StepFinished)] == ["failure"]
    assert isinstance(run.error, ValueError)
    assert any("'charge' failed too: RetryAfter" in note for note in run.error.__notes__)


def test_an_operator_who_cancels_it_has_it_undone(town: Town) -> None:
    effects = list[str]()
    wf = payment(effects)
    first = town.engine()
    town.pause(first, wf)
    town.close(first)
    town.store.cancel("k")
    town.engine(workflows=[wf], recover_every=0.05)
    until(lambda: town.status() == "compensated", "the undo")
    assert effects == ["quote", "charge 1", "-quote"]
    report = town.store.find("k").steps["charge"]
    assert (report.status, report.failed) == ("failure", 1)


def test_an_operator_who_resumes_it_has_the_next_attempt_made_at_once(town: Town) -> None:
    effects = list[str]()
    wf = payment(effects, works_at=2)
    first = town.engine()
    town.pause(first, wf)
    town.close(first)
    town.store.resume("k")
    town.engine(workflows=[wf], recover_every=0.05)
    until(lambda: town.status() == "success", "the run's end")
    assert effects == ["quote", "charge 1", "charge 2"]


def test_a_value_for_another_step_does_not_hurry_the_next_attempt(town: Town) -> None:
    effects = list[str]()
    wf = payment(effects)
    wf.wait("approved")
    first = town.engine()
    town.pause(first, wf)
    assert set(town.store.find("k").waiting_for) == {"charge", "approved"}
    town.close(first)
    assert town.store.send("k", "approved", "yes")
    town.engine(workflows=[wf], recover_every=0.05)
    until(lambda: town.store.find("k").waiting_for == ("charge",), "the run to wait again")
    record = town.store.find("k")
    assert (record.status, record.results["approved"], record.steps["charge"].failed) == ("waiting", "yes", 1)
    assert record.not_before == pytest.approx(time.time() + DAY, abs=60)
    assert effects == ["quote", "charge 1"]


def test_a_short_backoff_that_its_engine_is_closed_in_keeps_its_attempts(town: Town) -> None:
    effects, events = list[str](), list[Event]()
    wf = payment(effects, 30.0, works_at=2)
    first = town.engine(hooks=[events.append])
    future = town.start(first, wf, idempotency_key="k", check=False)
    until(lambda: of_charge(events, BackoffStarted), "the backoff")
    town.close(first, 0)
    assert future.result(PATIENCE).status == "parked"
    report = town.store.find("k").steps["charge"]
    assert (report.status, report.failed) == ("pending", 1)
    assert report.retry_at == pytest.approx(time.time() + 30, abs=25)
    assert [event.outcome for event in of_charge(events, StepFinished)] == ["waiting"]
    town.store.resume("k")
    run = town.call(town.engine().run(wf, idempotency_key="k"))
    assert effects == ["quote", "charge 1", "charge 2"]
    assert run.steps["charge"].attempts == 2


def test_when_of_a_step_that_waits_for_its_next_attempt_is_not_asked_again(town: Town) -> None:
    effects = list[str]()

    def wanted(ctx: Context) -> bool:
        effects.append("when")
        return True

    wf = payment(effects, SHORT, works_at=2, when=wanted)
    first = town.engine(park_after=0.1)
    town.pause(first, wf)
    town.close(first)
    town.engine(workflows=[wf], recover_every=0.05)
    until(lambda: town.status() == "success", "the run's end")
    assert effects == ["quote", "when", "charge 1", "charge 2"]


def test_the_undo_of_attempted_steps_holds_for_one_that_waits_for_its_next_attempt(town: Town) -> None:
    effects = list[str]()
    wf = Workflow("attempted")

    def charge(ctx: Context) -> None:
        raise RetryAfter(DAY)

    step = wf.add_step("charge", charge, retry=3, undo="attempted")

    @step.compensate
    def refund(ctx: Context) -> None:
        effects.append("-charge")

    first = town.engine()
    town.pause(first, wf)
    town.close(first)
    town.store.undo("k")
    town.engine(workflows=[wf], recover_every=0.05)
    until(lambda: town.status() == "compensated", "the undo")
    assert effects == ["-charge"]


def test_a_run_in_memory_waits_for_its_next_attempt_in_its_process() -> None:
    effects = list[str]()
    store = MemoryStore()
    with Engine(store=store, park_after=0) as engine:
        future = engine.submit(payment(effects, SHORT, works_at=2), idempotency_key="k")
        until(lambda: "charge 1" in effects, "the first attempt")
        assert future.result(PATIENCE).steps["charge"].attempts == 2


def test_an_engine_that_never_parks_keeps_the_run(town: Town) -> None:
    effects = list[str]()
    engine = town.engine(park_after=float("inf"))
    future = town.start(engine, payment(effects), idempotency_key="k", check=False)
    until(lambda: "charge 1" in effects, "the first attempt")
    time.sleep(0.05)
    assert town.status() == "running"
    town.close(engine, 0)
    assert future.result(PATIENCE).status == "parked"


@pytest.mark.parametrize("wrong", [-1, float("nan"), "soon"])
@pytest.mark.parametrize("kind", [Engine, AsyncEngine])
def test_park_after_is_a_number_of_seconds(kind: type[Any], wrong: Any) -> None:
    with pytest.raises(DefinitionError, match="park_after="):
        kind(park_after=wrong)


def test_what_is_reported_of_it_counts_from_its_first_attempt_also_under_earlier_owners(town: Town) -> None:
    events, effects = list[Event](), list[str]()
    wf = payment(effects, SHORT, works_at=2)
    engine = town.engine(park_after=0.1, hooks=[events.append], workflows=[wf], recover_every=0.05)
    run = town.call(engine.run(wf, idempotency_key="k"))
    until(lambda: any(isinstance(event, RunFinished) and event.outcome == "success" for event in events), "the end")
    assert effects == ["quote", "charge 1", "charge 2"]
    (ended,) = [event for event in of_charge(events, StepFinished) if event.outcome == "success"]
    assert SHORT <= ended.backoff <= ended.duration
    assert ended.earlier >= SHORT
    *before, last = of_charge(events, StepStarted)
    assert [event.resumed for event in (*before, last)] == [False] + [True] * len(before)
    assert last.waited < SHORT  # the backoff is no wait for a worker
    (over,) = [event for event in events if isinstance(event, RunFinished) and event.outcome == "success"]
    assert ended.duration <= over.duration
    report = run.steps["charge"]
    assert report.backed_off == pytest.approx(ended.backoff)
    assert report.ran + report.backed_off == pytest.approx(ended.duration)
