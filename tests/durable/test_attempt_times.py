"""A record says when each attempt began and ended, so that a picture of the run has each of them at its time."""

import contextvars
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext
from itertools import pairwise
from typing import Any

import pytest

from flowcore import Backoff, Context, Engine, Event, Retry, RetryAfter, Workflow
from flowcore._kernel.scopes import StepScope
from flowcore.events import AttemptFinished, AttemptStarted, StepFinished, StepStarted
from flowcore.picture import Kind, Timeline
from flowcore.run import StepReport
from flowcore.status import Status
from flowcore.stores import MemoryStore
from tests.core.conftest import PATIENCE
from tests.durable.crash import Place
from tests.durable.engines import DRIVERS, STORES, run
from tests.stores.redis_servers import until

LEASE = 60.0


def flaky(*failures: Exception) -> Workflow:
    """A step whose attempts fail with `failures`, and then succeed. A step after it succeeds at once."""
    wf = Workflow("flaky")

    @wf.step(retry=Retry(5, Backoff.fixed(0.01)))
    def fetch(ctx: Context) -> str:
        time.sleep(0.002)
        if ctx.attempt <= len(failures):
            raise failures[ctx.attempt - 1]
        return "fetched"

    wf.add_step("load", lambda ctx: "loaded", depends_on=fetch)
    return wf


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize("kind", STORES)
def test_the_record_has_the_times_of_attempts(place: Callable[[str], Place], kind: str, driver: str) -> None:
    wf, where = flaky(OSError("down"), OSError("still down")), place(kind)
    with where.store() as store, where.store(asynchronous=driver == "asyncio") as used:
        assert run(driver, used, wf, "k", LEASE)["load"] == "loaded"
        record = store.find("k")
    fetch, load = record.steps["fetch"], record.steps["load"]
    assert load.attempt_times == ()  # `started` and `ran` say it already
    moments = [moment for times in fetch.attempt_times for moment in times]
    assert len(moments) == 6
    assert moments == sorted(moments)
    assert moments[0] == pytest.approx(fetch.started, abs=1e-3)
    assert sum(ended - began for began, ended in fetch.attempt_times) == pytest.approx(fetch.ran, abs=2e-2)
    row = Timeline.of_record(record).rows[0]
    bars = [bar for bar in row.bars if bar.kind is not Kind.WAIT]
    assert [bar.kind for bar in bars] == [Kind.FAILED, Kind.BACKOFF, Kind.FAILED, Kind.BACKOFF, Kind.WORK]
    assert [bar.label for bar in bars[::2]] == [
        "attempt 1: OSError: down",
        "attempt 2: OSError: still down",
        "attempt 3",
    ]
    assert all(before.end == after.start for before, after in pairwise(bars))


def test_the_times_are_those_of_the_events(place: Callable[[str], Place]) -> None:
    events: list[Event] = []
    with place("sqlite").store() as store, Engine(store=store, hooks=[events.append]) as engine:
        report = engine.run(flaky(OSError("down")), idempotency_key="k").steps["fetch"]
    of_step = [event for event in events if getattr(event, "step", None) == "fetch"]
    began = next(event.at for event in of_step if isinstance(event, StepStarted))
    moments = [event.at - began for event in of_step if isinstance(event, AttemptStarted | AttemptFinished)]
    assert report.started is not None
    known = [moment - report.started for times in report.attempt_times for moment in times]
    assert known == pytest.approx(moments, abs=1e-3)


@pytest.mark.parametrize("kind", STORES)
def test_the_attempts_of_earlier_owners_are_among_them(place: Callable[[str], Place], kind: str) -> None:
    wf = flaky(OSError("down"), RetryAfter(0.3))
    with place(kind).store() as store:
        with Engine(store=store, park_after=0.1) as first:
            waiting = first.run(wf, idempotency_key="k", until="waiting")
        assert waiting.status == "waiting"
        before = store.find("k").steps["fetch"].attempt_times
        assert len(before) == 2
        with Engine(store=store, park_after=0.1, workflows=[wf], recover_every=0.05):
            until(lambda: store.find("k").finished, "the other engine's attempt")
        record = store.find("k")
    after = record.steps["fetch"].attempt_times
    assert len(after) == 3
    assert after[0] == pytest.approx(before[0], abs=1e-3)
    assert after[1] == pytest.approx(before[1], abs=1e-3)
    assert after[1][1] + 0.25 < after[2][0]
    backoffs = [bar.seconds for bar in Timeline.of_record(record).rows[0].bars if bar.kind is Kind.BACKOFF]
    assert backoffs[1] > 0.25


@pytest.mark.parametrize("kind", ["memory", *STORES])
def test_of_many_attempts_the_first_and_the_last_are_kept_and_all_are_counted(
    place: Callable[[str], Place], kind: str
) -> None:
    wf, attempts = Workflow("polls"), list[int]()

    @wf.step(retry=Retry(121))
    def poll(ctx: Context) -> None:
        attempts.append(ctx.attempt)
        if ctx.attempt == 110 and kind != "memory":
            raise RetryAfter(0.05, "110")
        if ctx.attempt < 121:
            raise ConnectionError(ctx.attempt)

    with nullcontext(MemoryStore()) if kind == "memory" else place(kind).store() as store:
        if kind != "memory":
            with Engine(store=store, park_after=0.01) as first:
                assert first.run(wf, idempotency_key="k", until="waiting").status == "waiting"
        with Engine(store=store, park_after=60) as second:
            run = second.run(wf, idempotency_key="k", wait=PATIENCE)
        record = store.find("k")
    assert attempts == list(range(1, 122))
    for report in (run.steps["poll"], record.steps["poll"]):
        assert (report.status, report.attempts, report.failed) == ("success", 121, 120)
        assert [message for _, message in report.errors] == [str(number) for number in (*range(1, 51), *range(71, 121))]
    if kind != "memory":
        assert len(record.steps["poll"].attempt_times) == 100
        bars = [bar for bar in Timeline.of_record(record).rows[0].bars if bar.kind is not Kind.WAIT]
        labels = [bar.label for bar in bars if bar.label]
        assert labels[48:53] == [
            *("attempt 49: ConnectionError: 49", "attempt 50: ConnectionError: 50", "21 more attempts"),
            *("attempt 72: ConnectionError: 72", "attempt 73: ConnectionError: 73"),
        ]
        assert labels[-2:] == ["attempt 120: ConnectionError: 120", "attempt 121"]
    assert "111. ConnectionError: 111; " in run.explain()
    assert "120. ConnectionError: 120" in run.explain()


@pytest.mark.parametrize("kind", STORES)
def test_the_record_says_when_an_abandoned_attempt_completed(place: Callable[[str], Place], kind: str) -> None:
    wf, timed_out = Workflow("late"), threading.Event()

    @wf.step(timeout=0.02)
    def charge(ctx: Context) -> str:
        timed_out.wait(5)
        time.sleep(0.02)
        return "charged"

    charge.compensate(lambda ctx: None)

    def sees(event: Event) -> None:
        if isinstance(event, StepFinished):
            timed_out.set()

    with place(kind).store() as store, Engine(store=store, hooks=[sees], grace=5) as engine:
        found = engine.run(wf, idempotency_key="k", check=False)
        record = store.find("k")
    for report in (found.steps["charge"], record.steps["charge"]):
        assert report.completed_late == "success"
        assert report.started + 0.04 <= report.completed_late_at <= report.undo_started
    for picture in (Timeline.of_run(found), Timeline.of_record(record)):
        (row,) = picture.rows
        bars = [bar for bar in row.bars if bar.kind is not Kind.WAIT]
        assert [bar.kind for bar in bars] == [Kind.FAILED, Kind.LATE, Kind.UNDO]
        assert bars[0].end == bars[1].start < bars[1].end <= bars[2].start


@pytest.mark.parametrize("driver", DRIVERS)
def test_there_are_none_in_memory(driver: str) -> None:
    found: Any = run(driver, MemoryStore(), flaky(OSError("down")), None, LEASE)
    assert [one.attempt_times for one in found.steps.values()] == [(), ()]


@pytest.mark.parametrize(
    ("started", "times", "not_before", "expected"),
    [
        (1090.0, ((1090.0, 1092.0),), None, (90.0, 10.0, 8.0)),
        (1090.0, ((1090.0, 1092.0), (1095.0, 1096.0)), 80.0, (90.0, 10.0, 7.0)),
        (1090.0, ((1090.0, 1092.0),), 95.0, (95.0, 5.0, 3.0)),  # it began no earlier than its run
        (1200.0, ((1200.0, 1201.0),), None, (100.0, 0.0, 0.0)),  # in the future
        (1090.0, ((1290.0, 1190.0),), None, (90.0, 10.0, 10.0)),  # a clock that was set back in the attempt
        (None, ((1090.0, 1092.0),), None, (90.0, 10.0, 8.0)),
        (None, (), None, (100.0, 0.0, 0.0)),
    ],
)
def test_no_clock_of_an_earlier_owner_makes_a_time_negative(
    started: float | None,
    times: tuple[tuple[float, float], ...],
    not_before: float | None,
    expected: tuple[float, float, float],
) -> None:
    scope = StepScope(100.0, contextvars.copy_context())
    scope.resume(StepReport(Status.PENDING, 1, started=started, attempt_times=times), 1000.0, not_before)
    assert (scope.at, scope.earlier, scope.backoff) == expected
