"""What the core tells hooks for telemetry's sake: expected errors, attempts allowed, and the store's context."""

from __future__ import annotations

import contextvars
from typing import Any

import pytest

from flowcore import DefinitionError, Engine, Workflow
from flowcore.events import AttemptFinished, EngineStarted, Event, RunSubmitted, StepFinished, WorkflowRegistered
from flowcore.stores import SQLiteStore


class Declined(Exception):
    pass


def _finished(expected: Any) -> tuple[StepFinished, AttemptFinished]:
    events: list[Event] = []
    wf = Workflow("order")

    def charge(ctx: object) -> None:
        raise Declined("no")

    wf.add_step("charge", charge, retry=2, expected=expected)
    with Engine(hooks=[events.append]) as engine:
        engine.run(wf, check=False)
    steps = [event for event in events if isinstance(event, StepFinished)]
    attempts = [event for event in events if isinstance(event, AttemptFinished)]
    return steps[-1], attempts[-1]


@pytest.mark.parametrize("expected", [Declined, (Declined,), [Declined, KeyError], Exception])
def test_an_error_that_the_step_expects_is_marked_on_its_events(expected: Any) -> None:
    step, attempt = _finished(expected)
    assert (step.expected, attempt.expected) == (True, True)
    assert isinstance(step.error, Declined)


@pytest.mark.parametrize("expected", [(), KeyError])
def test_any_other_error_is_not(expected: Any) -> None:
    step, attempt = _finished(expected)
    assert (step.expected, attempt.expected) == (False, False)


@pytest.mark.parametrize("nonsense", ["Declined", 3, (Declined, "x"), Declined("an instance"), int])
def test_what_is_no_exception_class_cannot_be_expected(nonsense: Any) -> None:
    with pytest.raises(DefinitionError, match="expected of step 'charge' must be exception classes"):
        Workflow("order").add_step("charge", lambda ctx: 1, expected=nonsense)


def test_included_steps_keep_what_they_expect() -> None:
    inner, outer = Workflow("inner"), Workflow("outer")
    inner.add_step("charge", lambda ctx: 1, expected=Declined)
    assert outer.include(inner)["charge"].expected == (Declined,)


def test_the_engine_reports_how_many_threads_and_attempts_there_may_be() -> None:
    events: list[Event] = []
    wf = Workflow("order")
    wf.add_step("a", lambda ctx: 1)
    wf.add_step("b", lambda ctx: 1, retry=3)
    with Engine(hooks=[events.append], max_workers=7, workflows=[wf]):
        pass
    (started,) = (event for event in events if isinstance(event, EngineStarted))
    (registered,) = (event for event in events if isinstance(event, WorkflowRegistered))
    assert started.max_workers == 7
    assert (registered.steps, registered.max_attempts) == (("a", "b"), (1, 3))


def test_propagation_is_reported_and_checked() -> None:
    events: list[Event] = []
    wf = Workflow("order")
    wf.add_step("a", lambda ctx: 1)
    with Engine(hooks=[events.append]) as engine:
        engine.submit(wf, propagation="child").result()
        engine.submit(wf).result()
        with pytest.raises(DefinitionError, match="propagation= must be"):
            engine.submit(wf, propagation="parent")
    assert [event.propagation for event in events if isinstance(event, RunSubmitted)] == ["child", "link"]


def test_a_hook_prepares_the_context_in_which_the_store_is_called(tmp_path: object) -> None:
    place = contextvars.ContextVar("place", default="elsewhere")
    seen: list[tuple[str, str]] = []

    class Preparing:
        wants = frozenset({StepFinished})

        def around_store(self) -> None:
            place.set("store")

        def __call__(self, event: Event) -> None:
            seen.append(("hook", place.get()))

    class Watched(SQLiteStore):
        def claim(self, claim: Any) -> Any:
            seen.append(("claim", place.get()))
            return super().claim(claim)

        def finish(self, ending: Any) -> Any:
            seen.append(("finish", place.get()))
            return super().finish(ending)

    wf = Workflow("order")
    wf.add_step("a", lambda ctx: seen.append(("step", place.get())))
    with Engine(store=Watched(f"{tmp_path}/runs.db"), hooks=[Preparing()]) as engine:
        engine.run(wf)
    assert seen == [("claim", "store"), ("step", "elsewhere"), ("hook", "elsewhere"), ("finish", "store")]


def test_a_hook_that_cannot_prepare_breaks_nothing(tmp_path: object, caplog: pytest.LogCaptureFixture) -> None:
    class Broken:
        wants = frozenset({StepFinished})

        def around_store(self) -> None:
            raise ZeroDivisionError

        def __call__(self, event: Event) -> None: ...

    wf = Workflow("order")
    wf.add_step("a", lambda ctx: 1)
    with Engine(store=SQLiteStore(f"{tmp_path}/runs.db"), hooks=[Broken()]) as engine:
        assert engine.run(wf).status == "success"
    assert "raised on around_store" in caplog.text
