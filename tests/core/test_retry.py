"""Retries (semantics 6): the pure decisions of Retry and Backoff, and how runs follow them."""

import math
import pickle
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any, cast

import pytest
from hypothesis import given, strategies as st

from flowcore import (
    Backoff,
    Context,
    DefinitionError,
    Fatal,
    Retry,
    RetryAfter,
    Status,
    StepCancelled,
    Workflow,
)
from flowcore.events import AttemptFinished, BackoffStarted
from flowcore.retry import Pause

from .conftest import PATIENCE, Drive, Ledger, MakeLive, notes, of_type, until

# -- Backoff -----------------------------------------------------------------------------------------------------------


def test_none_and_fixed_backoffs() -> None:
    assert [Backoff.none().delay(n) for n in (1, 2, 99)] == [0, 0, 0]
    assert [Backoff.fixed(1.5).delay(n) for n in (1, 2, 99)] == [1.5, 1.5, 1.5]
    assert Backoff.fixed(timedelta(minutes=1)).delay(1) == 60


def test_an_exponential_backoff_doubles_up_to_its_cap() -> None:
    backoff = Backoff.exponential(0.5, max_delay=3, jitter=False)
    assert [backoff.delay(n) for n in range(1, 6)] == [0.5, 1, 2, 3, 3]
    assert [Backoff.exponential(1, factor=10, max_delay=50, jitter=False).delay(n) for n in (1, 2, 3)] == [1, 10, 50]


def test_jitter_is_full_and_drawn_from_the_given_random() -> None:
    backoff = Backoff.exponential(8, max_delay=16)
    shares = iter([0.0, 0.25, 0.5])
    assert [backoff.delay(2, shares.__next__) for _ in range(3)] == [0, 4, 8]


def test_without_a_random_of_ones_own_jitter_is_drawn_anyhow() -> None:
    drawn = {Backoff.exponential(8).delay(1) for _ in range(10)}
    assert len(drawn) > 1
    assert all(0 <= wait < 8 for wait in drawn)


@given(
    n=st.integers(1, 10**9),
    delay=st.floats(0, 1e308),
    factor=st.floats(1, 1e308),
    cap=st.floats(0, 1e308),
    share=st.floats(0, 1, exclude_max=True),
)
def test_a_delay_is_never_above_the_cap_never_negative_and_never_an_overflow(
    n: int, delay: float, factor: float, cap: float, share: float
) -> None:
    backoff = Backoff.exponential(delay, factor=factor, max_delay=cap)
    wait = backoff.delay(n, lambda: share)
    assert 0 <= wait <= cap
    assert math.isfinite(wait)


def test_a_backoff_of_zero_stays_zero_however_often() -> None:
    assert Backoff.exponential(0, factor=1e300, jitter=False).delay(10**9) == 0


def test_retries_are_counted_from_one() -> None:
    with pytest.raises(DefinitionError, match="counts retries from 1, not 0"):
        Backoff.fixed(1).delay(0)


@pytest.mark.parametrize("wrong", [-1, math.nan, "1", None, True, timedelta])
def test_a_delay_must_be_seconds(wrong: Any) -> None:
    with pytest.raises(DefinitionError, match="must be seconds"):
        Backoff.fixed(wrong)


@pytest.mark.parametrize(
    "wrong", [0.5, math.inf, math.nan, "2", None, 10**400, True], ids=lambda wrong: repr(wrong)[:9]
)
def test_a_factor_must_be_a_number_from_one_up(wrong: Any) -> None:
    with pytest.raises(DefinitionError, match="factor="):
        Backoff.exponential(1, factor=wrong)


def test_jitter_must_be_true_or_false() -> None:
    with pytest.raises(DefinitionError, match=r"Backoff\.exponential\(jitter=\) must be True or False, not 'no'"):
        Backoff.exponential(1, jitter=cast("Any", "no"))


# -- Retry -------------------------------------------------------------------------------------------------------------


def decide(retry: Retry, error: BaseException, attempt: int = 1, elapsed: float = 0.0) -> Pause | None:
    return retry.after(attempt, error, elapsed, lambda: 0.5)


def test_attempts_include_the_first() -> None:
    retry = Retry(3)
    assert [decide(retry, ValueError(), attempt) for attempt in (1, 2, 3, 4)] == [
        (0, "policy"),
        (0, "policy"),
        None,
        None,
    ]


@pytest.mark.parametrize(
    ("on", "error", "again"),
    [
        (Exception, ValueError(), True),
        (ValueError, ValueError(), True),
        (ValueError, KeyError(), False),
        (LookupError, KeyError(), True),
        ((ValueError, KeyError), KeyError(), True),
        ((), KeyError(), False),
        (BaseException, KeyboardInterrupt(), False),
        (lambda error: True, ValueError(), True),
        (lambda error: False, ValueError(), False),
        (Exception, Fatal(), False),
        (Fatal, Fatal(), False),
    ],
)
def test_on_says_which_errors_are_worth_another_attempt(on: Any, error: BaseException, again: bool) -> None:
    assert (decide(Retry(2, on=on), error) is not None) is again


def test_a_predicate_may_answer_with_seconds() -> None:
    assert decide(Retry(2, Backoff.fixed(9), on=lambda error: 1.5), ValueError()) == Pause(1.5, "predicate")
    assert decide(Retry(2, Backoff.fixed(9), on=lambda error: 0), ValueError()) == Pause(0, "predicate")
    assert decide(Retry(2, Backoff.fixed(9), on=lambda error: True), ValueError()) == Pause(9, "policy")


@pytest.mark.parametrize("answer", [-1.0, math.nan, "soon", None])
def test_a_predicate_that_talks_nonsense_gives_up_and_the_error_says_so(answer: Any) -> None:
    error = ValueError("mine")
    assert decide(Retry(2, on=lambda _: answer), error) is None
    assert "flowcore made no further attempt: Retry(on=) raised DefinitionError" in notes(error)


def test_a_predicate_that_raises_gives_up_and_the_error_says_so() -> None:
    error = ValueError("mine")
    assert decide(Retry(2, on=lambda _: 1 / 0), error) is None
    assert "Retry(on=) raised ZeroDivisionError: division by zero" in notes(error)


def test_retryafter_sets_the_next_delay_whatever_the_policy_says() -> None:
    assert decide(Retry(2, Backoff.fixed(9), on=KeyError), RetryAfter(0.25)) == Pause(0.25, "retry_after")
    assert decide(Retry(1), RetryAfter(1)) is None
    assert str(RetryAfter(2.5)) == "retry after 2.5 s"


def test_retryafter_takes_seconds_a_timedelta_or_a_header() -> None:
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=90), usegmt=True)
    assert RetryAfter(timedelta(minutes=2)).seconds == 120
    assert [RetryAfter(header).seconds for header in ("0", " 120 ", "1.5", "Wed, 21 Oct 2015 07:28:00 GMT")] == [
        0,
        120,
        1.5,
        0,
    ]
    assert 80 < RetryAfter(soon).seconds <= 90
    assert RetryAfter(10**400).seconds == RetryAfter(math.inf).seconds == math.inf


NONSENSE = [
    timedelta,
    -1,
    -0.5,
    math.nan,
    None,
    True,
    [],
    b"1",
    timedelta(-1),
    "",
    "soon",
    "-1",
    "nan",
    "inf",
    "1e3",
    "1,5",
    "٣",
]


@pytest.mark.parametrize("delay", NONSENSE, ids=repr)
def test_a_retryafter_that_makes_no_sense_is_refused_when_it_is_made(delay: Any) -> None:
    with pytest.raises(
        DefinitionError, match=r"RetryAfter takes seconds .* a timedelta or an HTTP Retry-After header, not "
    ):
        RetryAfter(delay)


def test_a_retryafter_survives_pickling() -> None:
    error = RetryAfter(3, "quota")
    error.add_note("note")
    back = pickle.loads(pickle.dumps(error))
    assert (type(back), str(back), back.seconds, back.__notes__) == (RetryAfter, "quota", 3.0, ["note"])


def test_a_group_with_fatal_is_final_and_one_with_retryafter_waits_for_the_longest() -> None:
    fatal = ExceptionGroup("a", [ValueError(), ExceptionGroup("b", [RetryAfter(9), Fatal()])])
    waits = ExceptionGroup("a", [ValueError(), RetryAfter(0.1), ExceptionGroup("b", [RetryAfter(0.6)])])
    assert decide(Retry(3), fatal) is None
    assert decide(Retry(3), waits) == Pause(0.6, "retry_after")
    assert decide(Retry(3, on=KeyError), waits) == Pause(0.6, "retry_after")
    assert decide(Retry(3, Backoff.fixed(2)), ExceptionGroup("a", [ValueError()])) == Pause(2, "policy")
    assert decide(Retry(3), BaseExceptionGroup("a", [RetryAfter(1), KeyboardInterrupt()])) is None


def test_a_fatal_in_a_group_stops_a_step_on_every_engine(drive: Drive, ledger: Ledger) -> None:
    wf = Workflow("declines")
    wf.add_step("pay", flaky(ledger, 9, ExceptionGroup("both", [OSError(), Fatal("declined")])), retry=5)
    assert drive(wf, check=False).steps["pay"].attempts == 1


async def _later(error: BaseException) -> bool:
    return True


@pytest.mark.parametrize("predicate", [_later, lambda: True, lambda error, more: True, (_ for _ in ())])
def test_a_predicate_that_could_not_answer_is_refused_when_it_is_given(predicate: Any) -> None:
    with pytest.raises(DefinitionError, match=r"Retry\(on=\)"):
        Retry(2, on=predicate)


DEEP = ExceptionGroup("1", [LookupError(), ExceptionGroup("2", [ExceptionGroup("3", [Fatal("declined")])])])


def test_a_group_that_contains_fatal_at_any_depth_is_not_retried(drive: Drive, ledger: Ledger) -> None:
    for number, error in enumerate((DEEP, ExceptionGroup("both", [RetryAfter(9), Fatal()]))):
        assert decide(Retry(3), error) is None
        wf = Workflow(f"w{number}")
        ledger.add(wf, f"a{number}", raises=error, retry=3)
        run = drive(wf, check=False)
        assert (run.error, run.steps[f"a{number}"].attempts) == (error, 1)


def test_a_group_that_contains_retryafter_waits_for_the_longest(drive: Drive, ledger: Ledger) -> None:
    inner = ExceptionGroup("2", [RetryAfter(0.02), ValueError()])
    error = ExceptionGroup("1", [RetryAfter(0.01), inner])
    assert decide(Retry(2, Backoff.fixed(9), on=KeyError), error) == Pause(0.02, "retry_after")
    events: list[Any] = []
    wf = Workflow("w")
    ledger.add(wf, "a", raises=error, retry=2)
    assert drive(wf, hooks=[events.append], check=False).steps["a"].attempts == 2
    assert [(pause.delay, pause.reason) for pause in of_type(events, BackoffStarted)] == [(0.02, "retry_after")]


def test_a_group_of_other_errors_is_retried_as_on_says() -> None:
    assert decide(Retry(2), ExceptionGroup("1", [ValueError()])) == Pause(0, "policy")
    assert decide(Retry(2, on=ValueError), ExceptionGroup("1", [ValueError()])) is None


@pytest.mark.parametrize("seconds", [math.nan, "soon", None])
def test_a_retryafter_that_makes_no_sense_fails_the_step(seconds: Any, drive: Drive, ledger: Ledger) -> None:
    def step(ctx: Context) -> None:
        raise RetryAfter(seconds, "message")

    wf = Workflow("nonsense")
    ledger.add(wf, "a")
    wf.add_step("b", step, depends_on="a", retry=2)
    assert drive(wf, check=False).status is Status.COMPENSATED
    assert ledger == ["a", "-a"]


@pytest.mark.parametrize("seconds", [3600, math.inf])
def test_a_backoff_never_outlasts_the_deadline(seconds: float, drive: Drive) -> None:
    def step(ctx: Context) -> None:
        raise RetryAfter(seconds)

    wf = Workflow("patient", deadline=30)
    wf.add_step("a", step, retry=2)
    assert drive(wf, check=False).steps["a"].attempts == 1


def test_max_elapsed_allows_no_attempt_that_would_start_later() -> None:
    retry = Retry(9, Backoff.fixed(2), max_elapsed=5)
    assert decide(retry, ValueError(), elapsed=3) == Pause(2, "policy")
    assert decide(retry, ValueError(), elapsed=3.1) is None
    assert decide(Retry(9, max_elapsed=timedelta(seconds=5)), ValueError(), elapsed=5) == Pause(0, "policy")


@pytest.mark.parametrize("wrong", [0, -1, 1.5, "3", None, True])
def test_attempts_must_be_a_whole_number_from_one_up(wrong: Any) -> None:
    with pytest.raises(DefinitionError, match="counts the first attempt too: 1 or more"):
        Retry(wrong)


@pytest.mark.parametrize(
    ("options", "culprit"),
    [({"backoff": 3}, "backoff="), ({"on": 3}, "on="), ({"on": (int,)}, "on="), ({"on": (ValueError, print)}, "on=")],
)
def test_a_retry_with_a_wrong_option_names_it(options: Any, culprit: str) -> None:
    with pytest.raises(DefinitionError, match=f"Retry\\({culprit}\\)"):
        Retry(2, **options)


@pytest.mark.parametrize("wrong", ["3", 2.5, object(), 0])
def test_retry_of_a_step_must_be_a_number_or_a_retry(wrong: Any) -> None:
    with pytest.raises(DefinitionError, match=r"retry of step 'a' (must be|counts)"):
        Workflow("w").add_step("a", lambda ctx: 1, retry=wrong)


def test_retries_and_backoffs_are_immutable_and_compare_by_value() -> None:
    assert Retry(2, Backoff.fixed(1)) == Retry(2, Backoff.fixed(1))
    with pytest.raises(AttributeError):
        Retry(2).attempts = 3  # type: ignore[misc]  # the point


# -- in runs -----------------------------------------------------------------------------------------------------------


def flaky(ledger: Ledger, failures: int, error: BaseException | None = None) -> Any:
    """A step that fails so many times before it goes well."""
    left = failures

    def step(ctx: Context) -> int:
        nonlocal left
        ledger.append(f"try {ctx.attempt}")
        if left:
            left -= 1
            raise error or ValueError("flaky")
        return ctx.attempt

    return step


def test_an_int_retries_at_once_and_counts_the_first_attempt(drive: Drive, ledger: Ledger) -> None:
    wf = Workflow("flaky")
    wf.add_step("a", flaky(ledger, 2), retry=3)
    run = drive(wf)
    assert (run["a"], run.steps["a"].attempts) == (3, 3)
    assert ledger == ["try 1", "try 2", "try 3"]


def test_the_last_error_is_raised_when_no_attempt_is_left(drive: Drive) -> None:
    errors = [ValueError("one"), ValueError("two")]

    def step(ctx: Context) -> None:
        raise errors[ctx.attempt - 1]

    wf = Workflow("exhausted")
    wf.add_step("a", step, retry=2)
    with pytest.raises(ValueError, match="two") as caught:
        drive(wf)
    assert "after 2 attempts" in notes(caught.value)


def test_without_retry_there_is_one_attempt(drive: Drive, ledger: Ledger) -> None:
    wf = Workflow("once")
    wf.add_step("a", flaky(ledger, 1))
    assert drive(wf, check=False).steps["a"].attempts == 1
    assert ledger == ["try 1"]


def test_fatal_stops_the_retries_and_is_raised(drive: Drive, ledger: Ledger) -> None:
    wf = Workflow("fatal")
    wf.add_step("a", flaky(ledger, 9, Fatal("no card")), retry=5)
    with pytest.raises(Fatal, match="no card"):
        drive(wf)
    assert ledger == ["try 1"]


def test_an_error_that_on_does_not_name_is_not_retried(drive: Drive, ledger: Ledger) -> None:
    wf = Workflow("on")
    wf.add_step("a", flaky(ledger, 9), retry=Retry(5, on=KeyError))
    assert drive(wf, check=False).steps["a"].attempts == 1


def test_the_waits_are_those_of_the_policy_and_are_reported(drive: Drive, ledger: Ledger) -> None:
    events: list[Any] = []
    wf = Workflow("waits")
    wf.add_step("a", flaky(ledger, 2), retry=Retry(3, Backoff.fixed(0.01)))
    run = drive(wf, hooks=[events.append])
    waits = of_type(events, BackoffStarted)
    assert [(event.attempt, event.delay, event.reason, event.max_attempts) for event in waits] == [
        (1, 0.01, "policy", 3),
        (2, 0.01, "policy", 3),
    ]
    assert 0.02 <= run.steps["a"].backed_off < 5


def test_retryafter_from_a_step_sets_the_wait(drive: Drive, ledger: Ledger) -> None:
    events: list[Any] = []
    wf = Workflow("after")
    wf.add_step("a", flaky(ledger, 1, RetryAfter(0.001)), retry=Retry(2, Backoff.fixed(3600)))
    drive(wf, hooks=[events.append])
    assert [(event.delay, event.reason) for event in of_type(events, BackoffStarted)] == [(0.001, "retry_after")]


def test_a_predicate_that_answers_seconds_sets_the_wait(drive: Drive, ledger: Ledger) -> None:
    events: list[Any] = []
    wf = Workflow("predicate")
    wf.add_step("a", flaky(ledger, 1), retry=Retry(2, Backoff.fixed(3600), on=lambda error: 0.001))
    drive(wf, hooks=[events.append])
    assert [(event.delay, event.reason) for event in of_type(events, BackoffStarted)] == [(0.001, "predicate")]


def test_max_elapsed_ends_the_retries_of_a_run(drive: Drive, ledger: Ledger) -> None:
    wf = Workflow("elapsed")
    wf.add_step("a", flaky(ledger, 9), retry=Retry(9, Backoff.fixed(60), max_elapsed=30))
    assert drive(wf, check=False).steps["a"].attempts == 1


def test_max_elapsed_that_is_not_reached_changes_nothing(drive: Drive, ledger: Ledger) -> None:
    wf = Workflow("elapsed")
    wf.add_step("a", flaky(ledger, 2), retry=Retry(3, max_elapsed=60))
    assert drive(wf)["a"] == 3


def test_each_attempt_is_timed_by_itself(drive: Drive) -> None:
    class Durations(list[float]):
        wants = frozenset({AttemptFinished})

        def __call__(self, event: AttemptFinished, /) -> None:
            self.append(event.duration)

    def slow_at_first(ctx: Context) -> None:
        if ctx.attempt == 1:
            time.sleep(0.1)
            raise ConnectionError

    durations, wf = Durations(), Workflow("timed")
    wf.add_step("a", slow_at_first, retry=2)
    drive(wf, hooks=[durations])
    first, second = durations
    assert second < 0.1 <= first


def test_a_backoff_holds_no_thread(live: MakeLive, ledger: Ledger) -> None:
    waiting: list[BackoffStarted] = []
    one = live(max_workers=1, hooks=[lambda event: waiting.append(event) if type(event) is BackoffStarted else None])
    wf = Workflow("patient")
    wf.add_step("flaky", flaky(ledger, 1), retry=Retry(2, Backoff.fixed(3600)))
    patient = one.start(wf)
    until(lambda: waiting)
    assert one.start(ledger.chain("a", "b")).result(PATIENCE).status is Status.SUCCESS
    assert one.engine.cancel(waiting[0].run_id)
    with pytest.raises(StepCancelled):
        patient.result(PATIENCE)


def test_a_backoff_that_raises_after_a_timeout_leaves_the_step_to_be_undone(live: MakeLive, ledger: Ledger) -> None:
    """What the attempt did before its time was over is in doubt, whatever keeps the next one from being made."""

    class Broken(Backoff):
        def delay(self, n: int, random: Callable[[], float] | None = None) -> float:
            raise LookupError("no table of delays")

    def slow(ctx: Context) -> None:
        while not ctx.cancelled:
            time.sleep(0.01)

    wf = Workflow("slow")
    ledger.add(wf, "a", first=slow, timeout=0.1, retry=Retry(3, Broken(1.0, 1.0, 1.0, jitter=False)))
    run = live().run(wf, check=False)
    assert isinstance(run.error, LookupError)
    assert (run.status, run.steps["a"].status, run.steps["a"].attempts) == (Status.COMPENSATED, Status.TIMEOUT, 1)
    assert "-a" in ledger
