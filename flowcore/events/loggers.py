"""Hooks with a method for each event: `Logger` to derive from, `PrintLogger` for people, `LoggingHook` for logging."""

from __future__ import annotations

import itertools
import logging
import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, ClassVar, Final, TextIO, cast

from ..errors import DefinitionError, encodable, safe_repr, safe_str
from ..functions import is_async, is_generator
from ..status import Status
from .base import Event
from .of_engines import (
    EngineStarted,
    HookFailed,
    HooksMeasured,
    MaintenanceFinished,
    MaintenanceStarted,
    ScheduleFired,
    ScheduleMissed,
    SchedulePlanned,
    StoreSurveyed,
    WorkflowRegistered,
)
from .records import (
    AttemptFinished,
    AttemptStarted,
    BackoffStarted,
    CompensationFinished,
    CompensationStarted,
    IdempotencyHit,
    LeaseLost,
    RunDequeued,
    RunEnded,
    RunFinished,
    RunJoined,
    RunRecovered,
    RunRefused,
    RunRequested,
    RunStarted,
    RunSubmitted,
    StepCompletedLate,
    StepFinished,
    StepReady,
    StepSkipped,
    StepStarted,
    StoreCalled,
    ValueSent,
    WaitFinished,
    WaitStarted,
)

__all__ = ["Logger", "LoggingHook", "PrintLogger"]


class Logger:
    """A hook with a method for each event, to derive from: override the methods that you need; each gets the event.

    Only events with an overridden method are built. `Logger()` itself does nothing, and costs nothing. A subclass gets
    the events of the class that it derives from, and those whose methods it overrides. One that overrides `__call__`
    and no method gets every event but HooksMeasured. Set `wants` in the class to choose the events yourself.
    """

    wants: frozenset[type[Event]] = frozenset()

    METHODS: ClassVar[Mapping[type[Event], tuple[str, ...]]] = {
        EngineStarted: ("engine_started",),
        WorkflowRegistered: ("workflow_registered",),
        RunSubmitted: ("run_submitted",),
        RunDequeued: ("run_dequeued",),
        RunRequested: ("run_requested",),
        IdempotencyHit: ("idempotency_hit",),
        RunRefused: ("run_refused",),
        RunStarted: ("run_started",),
        RunRecovered: ("run_recovered",),
        RunJoined: ("run_joined",),
        RunFinished: ("run_succeeded", "run_failed", "run_waiting"),
        RunEnded: ("run_ended",),
        StepReady: ("step_ready",),
        StepSkipped: ("step_skipped",),
        StepStarted: ("step_started",),
        AttemptStarted: ("attempt_started",),
        AttemptFinished: ("attempt_succeeded", "attempt_failed"),
        BackoffStarted: ("step_retrying",),
        StepFinished: ("step_succeeded", "step_failed", "step_waiting"),
        WaitStarted: ("wait_started",),
        WaitFinished: ("wait_succeeded", "wait_failed"),
        ValueSent: ("value_sent",),
        StepCompletedLate: ("step_completed_late",),
        CompensationStarted: ("compensation_started",),
        CompensationFinished: ("compensation_succeeded", "compensation_failed"),
        LeaseLost: ("lease_lost",),
        MaintenanceStarted: ("maintenance_started",),
        MaintenanceFinished: ("maintenance_finished",),
        StoreCalled: ("store_called",),
        StoreSurveyed: ("store_surveyed",),
        SchedulePlanned: ("schedule_planned",),
        ScheduleFired: ("schedule_fired",),
        ScheduleMissed: ("schedule_missed",),
        HookFailed: ("hook_failed",),
        HooksMeasured: ("hooks_measured",),
    }
    """event type -> the methods that get it. Of several, the first gets the outcome success, the third the outcome
    `waiting` (the run waits in its store from now on), and the second every other outcome"""

    def __init_subclass__(cls, **kwargs: object) -> None:
        super().__init_subclass__(**kwargs)
        for name in itertools.chain.from_iterable(cls.METHODS.values()):
            if is_async(getattr(cls, name)):
                raise DefinitionError(f"{cls.__name__}.{name} must not be async: hooks are called, never awaited.")
            if is_generator(getattr(cls, name)):
                raise DefinitionError(
                    f"{cls.__name__}.{name} is a generator, whose body would never run. Remove its yield."
                )
        if "wants" not in cls.__dict__:
            overridden = {
                kind
                for kind, names in cls.METHODS.items()
                if any(getattr(cls, name) is not getattr(Logger, name) for name in names)
            }
            cls.wants = frozenset(overridden).union(*(getattr(base, "wants", ()) for base in cls.__bases__))
            if not cls.wants and cls.__call__ is not Logger.__call__:
                cls.wants = frozenset(cls.METHODS) - {HooksMeasured}

    def __call__(self, event: Any, /) -> AbstractContextManager[object] | object | None:
        names = self.METHODS[type(event)]
        name = names[0] if len(names) == 1 or event.outcome == Status.SUCCESS else names[1]
        if len(names) > 2 and event.outcome == Status.WAITING:
            name = names[2]
        return cast("object", getattr(self, name)(event))

    def engine_started(self, event: EngineStarted) -> Any: ...
    def workflow_registered(self, event: WorkflowRegistered) -> Any: ...
    def run_submitted(self, event: RunSubmitted) -> Any: ...
    def run_dequeued(self, event: RunDequeued) -> Any: ...
    def run_requested(self, event: RunRequested) -> Any: ...
    def idempotency_hit(self, event: IdempotencyHit) -> Any: ...
    def run_refused(self, event: RunRefused) -> Any: ...
    def run_started(self, event: RunStarted) -> Any: ...
    def run_recovered(self, event: RunRecovered) -> Any: ...
    def run_joined(self, event: RunJoined) -> Any: ...
    def run_succeeded(self, event: RunFinished) -> Any: ...
    def run_failed(self, event: RunFinished) -> Any: ...
    def run_waiting(self, event: RunFinished) -> Any: ...
    def run_ended(self, event: RunEnded) -> Any: ...
    def step_ready(self, event: StepReady) -> Any: ...
    def step_skipped(self, event: StepSkipped) -> Any: ...
    def step_started(self, event: StepStarted) -> Any: ...
    def attempt_started(self, event: AttemptStarted) -> Any: ...
    def attempt_succeeded(self, event: AttemptFinished) -> Any: ...
    def attempt_failed(self, event: AttemptFinished) -> Any: ...
    def step_retrying(self, event: BackoffStarted) -> Any: ...
    def step_succeeded(self, event: StepFinished) -> Any: ...
    def step_failed(self, event: StepFinished) -> Any: ...
    def step_waiting(self, event: StepFinished) -> Any: ...
    def wait_started(self, event: WaitStarted) -> Any: ...
    def wait_succeeded(self, event: WaitFinished) -> Any: ...
    def wait_failed(self, event: WaitFinished) -> Any: ...
    def value_sent(self, event: ValueSent) -> Any: ...
    def step_completed_late(self, event: StepCompletedLate) -> Any: ...
    def compensation_started(self, event: CompensationStarted) -> Any: ...
    def compensation_succeeded(self, event: CompensationFinished) -> Any: ...
    def compensation_failed(self, event: CompensationFinished) -> Any: ...
    def lease_lost(self, event: LeaseLost) -> Any: ...
    def maintenance_started(self, event: MaintenanceStarted) -> Any: ...
    def maintenance_finished(self, event: MaintenanceFinished) -> Any: ...
    def store_called(self, event: StoreCalled) -> Any: ...
    def store_surveyed(self, event: StoreSurveyed) -> Any: ...
    def schedule_planned(self, event: SchedulePlanned) -> Any: ...
    def schedule_fired(self, event: ScheduleFired) -> Any: ...
    def schedule_missed(self, event: ScheduleMissed) -> Any: ...
    def hook_failed(self, event: HookFailed) -> Any: ...
    def hooks_measured(self, event: HooksMeasured) -> Any: ...


def line(event: Any) -> str | None:
    """Return one line about an event for people, or None for an event that they need not see."""
    match event:
        case RunStarted(interrupted_run_id=None):
            return f"run {_name(event.workflow)} started"
        case RunStarted(after_wait=True):
            return f"run {_name(event.workflow)} resumed after its wait"
        case RunStarted():
            return f"run {_name(event.workflow)} resumed after a crash"
        case IdempotencyHit():
            return f"run {_name(event.workflow)} not started: idempotency key {event.outcome.replace('_', ' ')}"
        case RunRefused(overtaken=True):
            return f"run {_name(event.workflow)} not resumed: {_error(event.error)}"
        case RunRefused() | RunFinished(error=BaseException()):
            outcome = event.outcome.replace("_", " ") if isinstance(event, RunFinished) else "refused"
            return f"run {_name(event.workflow)} {outcome}: {_error(event.error)}"
        case RunFinished(outcome=Status.WAITING):
            return f"run {_name(event.workflow)} waits in its store"
        case RunFinished():
            return f"run {_name(event.workflow)} {event.outcome} in {_ms(event.duration)}"
        case StepSkipped():
            return f"  step {_name(event.step)} skipped"
        case StepStarted():
            return f"  step {_name(event.step)} started"
        case WaitStarted():
            return f"  step {_name(event.step)} {'sleeps' if event.sleeps else 'waits for its value'}"
        case WaitFinished(error=None):
            return f"  step {_name(event.step)} waited for {_ms(event.waited)}"
        case WaitFinished():
            return f"  step {_name(event.step)} {_ENDED[event.outcome]}: {_error(event.error)}"
        case BackoffStarted():
            what = "undo of" if event.undo else "step"
            tried = f"attempt {event.attempt} of {event.max_attempts} failed: {_error(event.error)}"
            return f"  {what} {_name(event.step)} {tried}; next in {_ms(event.delay)}"
        case StepFinished(outcome=Status.WAITING):
            return f"  step {_name(event.step)} waits for its next attempt, which the next owner of the run makes"
        case StepFinished(error=None):
            return f"  step {_name(event.step)} succeeded in {_ms(event.duration)}"
        case StepFinished():
            tries = f" after {event.attempts} attempts" if event.attempts > 1 else ""
            return f"  step {_name(event.step)} {_ENDED[event.outcome]}{tries}: {_error(event.error)}"
        case StepCompletedLate():
            return f"  step {_name(event.step)} completed {_ms(event.late)} after it was abandoned: {event.outcome}"
        case CompensationFinished(error=None):
            return f"  undid {_name(event.step)} in {_ms(event.duration)}"
        case CompensationFinished():
            return f"  undo of {_name(event.step)} FAILED: {_error(event.error)}"
        case LeaseLost():
            return f"run {_name(event.workflow)} was taken over by another owner"
        case _:
            return None


_ENDED: Final = {Status.FAILURE: "failed", Status.TIMEOUT: "timed out", Status.CANCELLED: "was cancelled"}

REPORTED: frozenset[type[Event]] = frozenset(
    {
        RunStarted,
        IdempotencyHit,
        RunRefused,
        RunFinished,
        StepSkipped,
        StepStarted,
        BackoffStarted,
        StepFinished,
        WaitStarted,
        WaitFinished,
        StepCompletedLate,
        CompensationFinished,
        LeaseLost,
    }
)


def _name(text: str) -> str:
    """Return a name unchanged, or its escaped repr if it would break the line."""
    return text if text.isprintable() and len(text) <= 80 else safe_repr(text)


def _error(error: BaseException | None) -> str:
    return "" if error is None else f"{type(error).__name__}: {safe_str(error)}"


def _ms(duration: float) -> str:
    return f"{duration * 1e3:.3g} ms" if duration < 1 else f"{duration:.3g} s"


class PrintLogger(Logger):
    """Prints a line for each event that a person wants to see. `file`: None means the sys.stdout of the moment.
    Thread-safe: each line is one write, so that the lines of several threads do not mix.

    A method that a subclass overrides is called after the line is printed.
    """

    wants = REPORTED

    def __init__(self, file: TextIO | None = None) -> None:
        self._file = file

    def __call__(self, event: Any, /) -> AbstractContextManager[object] | object | None:
        text = line(event)
        if text is not None:
            file = self._file or sys.stdout
            try:
                print(f"{text}\n", end="", file=file)
            except UnicodeEncodeError:  # a terminal that is set to ASCII, or to a code page
                print(f"{encodable(text, file)}\n", end="", file=file)
        return super().__call__(event)


class LoggingHook(Logger):
    """Writes lifecycle lines through stdlib logging. Thread-safe.

    A failure is a WARNING, an event that needs a person an ERROR, anything else INFO. With `json=True` the message is
    one JSON object. Each record has `flowcore_run_id`, `flowcore_workflow`, `flowcore_step` and `flowcore_attempt`.
    A method that a subclass overrides is called after the line is written.
    """

    wants = REPORTED

    def __init__(self, logger: logging.Logger | None = None, *, json: bool = False) -> None:
        self._logger = logger or logging.getLogger("flowcore.run")
        self._json = json

    def __call__(self, event: Any, /) -> AbstractContextManager[object] | object | None:
        self._write(event)
        return super().__call__(event)

    def _write(self, event: Any) -> None:
        level = _level(event)
        text = line(event)
        if text is None or not self._logger.isEnabledFor(level):
            return
        ids = {
            "flowcore_run_id": event.run_id,
            "flowcore_workflow": event.workflow,
            "flowcore_step": getattr(event, "step", None),
            "flowcore_attempt": getattr(event, "attempt", None),
        }
        if self._json:
            known = {name: value for name, value in ids.items() if value is not None}
            from json import dumps

            text = dumps({"event": type(event).__name__, "message": text.strip(), **known})
        self._logger.log(level, "%s", text, extra=ids)


def _level(event: Any) -> int:
    if isinstance(event, BackoffStarted | StepCompletedLate):
        return logging.WARNING
    if getattr(event, "error", None) is None or getattr(event, "overtaken", False):
        return logging.INFO
    needs_a_person = isinstance(event, CompensationFinished) or getattr(event, "outcome", None) in {
        Status.COMPENSATION_FAILED,
        Status.PARKED,
    }
    return logging.ERROR if needs_a_person else logging.WARNING
