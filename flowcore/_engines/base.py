"""What `Engine` and `AsyncEngine` have in common: settings, keys, and what is refused before a run begins."""

# What callers without a type checker hand in is checked when it arrives.
# pyright: reportUnnecessaryIsInstance=false

from __future__ import annotations

import contextvars
import logging
import math
import os
import socket
import threading
import time
import weakref
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

from .._durable.checkpoints import parked
from .._durable.claim import StoreClaims
from .._durable.dormant import resume_when_due
from .._durable.leases import Leases
from .._durable.recovery import SURVEY_EVERY, Recovery
from .._durable.waiting import LocalRuns
from .._kernel.effects import Ask, Call, Program, Sleep
from .._kernel.request import Request
from .._kernel.run_state import RunState
from .._kernel.settings import Settings
from ..errors import (
    DefinitionError,
    FlowcoreError,
    QueueFull,
    RunNotFound,
    RunParked,
    StepCancelled,
    safe_repr,
)
from ..events import (
    EngineStarted,
    Event,
    Hook,
    Hooks,
    MaintenanceFinished,
    MaintenanceStarted,
    RunSubmitted,
    StoreSurveyed,
    WorkflowRegistered,
)
from ..events.hooks import hook_name
from ..events.process import with_process_hooks
from ..retry import Duration, seconds, some_random
from ..run import Run, Sent
from ..stores.base import Owner, RunRecord, Store
from ..stores.decide import is_over
from ..workflow import Key, Workflow
from .checks import checked_hooks, checked_namespace, checked_store, period, whole
from .interrupts import hold_sigint
from .requests import checked_request
from .sending import runs_of
from .workers import Workers

if TYPE_CHECKING:
    from datetime import datetime
    from zoneinfo import ZoneInfo

    from ..schedule import Missed, Overlap, Schedule

__all__ = [
    "CLOSED",
    "MARGIN",
    "RELEASED",
    "EngineBase",
    "I",
    "call_title",
    "cancel_in_store",
    "is_meant",
    "left",
    "log",
    "outcome",
    "perform",
    "stopped",
    "this_process",
    "unbegun",
]

T = TypeVar("T")
I = TypeVar("I")  # noqa: E741 - the input of a workflow
DEFAULT_WORKERS = 32
CLOSED: Final = "its engine was closed"
MARGIN: Final = 0.5
"""seconds in which runs that were stopped write how they ended"""
RELEASED: Final = 0.001
"""seconds: the lease that releases a run to other engines"""
log = logging.getLogger("flowcore")


def new_id() -> str:
    """A run id: 32 hex digits from the operating system, so that neither a fork nor random.seed() repeats one."""
    return os.urandom(16).hex()


class EngineBase:
    """The part of an engine that knows no threads and no event loop."""

    _recovery: Recovery

    def __init__(
        self,
        store: Any,
        hooks: Iterable[Hook],
        max_workers: int | None,
        lease: Duration,
        grace: Duration,
        workflows: Iterable[Workflow[Any]],
        recover_every: Duration | None,
        store_patience: Duration,
        max_queued: int,
        max_takeovers: int,
        namespace: str | None,
        park_after: Duration = math.inf,
        *,
        runs_async: bool,
    ) -> None:
        workers = whole(DEFAULT_WORKERS if max_workers is None else max_workers, "max_workers=")
        self.store: Store = checked_store(store, runs_async=runs_async)
        self.max_workers = workers
        self.max_queued = whole(max_queued, "max_queued=")
        self.lease = period(lease, "lease=")
        self.recover_every = None if recover_every is None else period(recover_every, "recover_every=")
        self._closed = False
        self._lock = threading.Lock()
        self._registered: set[Workflow[Any]] = set()
        self._claims = StoreClaims(owner=this_process)
        self._settings = Settings(
            store=self.store,
            claims=self._claims,
            hooks=Hooks(with_process_hooks(checked_hooks(hooks))),
            grace=seconds(grace, "grace="),
            parallel=workers,
            runs_async=runs_async,
            caller_shares=not runs_async,
            clock=time.monotonic,
            wall=time.time,
            random=some_random,
            new_id=new_id,
            lease=self.lease,
            store_patience=seconds(store_patience, "store_patience="),
            max_takeovers=whole(max_takeovers, "max_takeovers="),
            park_after=seconds(park_after, "park_after="),
            namespace=checked_namespace(namespace),
        )
        self.workflows = tuple(workflows)
        for workflow in self.workflows:
            workflow.freeze()
            self._register(workflow)

    def schedule(
        self,
        workflow: Workflow[I],
        *,
        cron: str | None = None,
        every: Duration | None = None,
        timezone: str | ZoneInfo | None = None,
        values: I | Mapping[str, Any] | Callable[[datetime], I | Mapping[str, Any]] | None = None,
        missed: Missed = "latest",
        overlap: Overlap = "skip",
        jitter: Duration = 0,
        name: str | None = None,
    ) -> Schedule:
        """Run a workflow at planned times, once each, however many engines on the same store have the same schedule.

        `cron`: five fields, in `timezone` (default UTC); needs the extra `schedule`. Or `every`: a period, counted from
        1970-01-01T00:00Z. `values`: the initial values of each run, or a function of its planned time that returns them.
        `missed`: which of the fires that no engine began in time are made up for: none ("skip"), the "latest", or "all", one
        after another; at most those of half of the store's retention. `overlap`: what a fire does while the run before is
        in progress: it is left out ("skip"), waits ("queue"), or cancels that run and begins when it is over ("cancel").
        `jitter`: seconds by which each fire may be delayed, by the same amount on every engine. `name`: the schedule's
        name, by which engines know it as the same (default: the workflow's).

        A fire's run has the key `schedule/NAME/TIME`, is never repeated, even if it fails, and has `ctx.scheduled_at`. The
        engine recovers the workflow, every lease unless `recover_every` says otherwise. Thread-safe. An AsyncEngine begins
        to look at its schedules on the running loop, or else with its first use on one.

        Raises DefinitionError for options that make no schedule, AsyncStepInSyncEngine, FlowcoreError once the engine is
        closed, and ImportError without the extra.
        """
        schedules: Any = self._own_schedules()
        options = {"cron": cron, "every": every, "timezone": timezone}
        options |= {"missed": missed, "overlap": overlap, "jitter": jitter}
        made: Schedule = schedules.add(workflow, name, values, **options)
        if self.store.durable:
            self._recover_also(workflow)
        schedules.begin_looking()
        return made

    def _own_schedules(self) -> object:
        raise NotImplementedError

    def _begin_looking(self) -> None:
        raise NotImplementedError

    def _recover_also(self, workflow: Workflow[Any]) -> None:
        """Resume the runs of this workflow too, every lease if the engine has recovered none so far."""
        if workflow not in self.workflows:
            self.workflows = (*self.workflows, workflow)
            self._recovery.include(workflow)
        if self.recover_every is None:
            self.recover_every = self.lease
            self._begin_looking()

    def _refuse_if_full(self, queued: int) -> None:
        if queued >= self.max_queued:
            raise QueueFull(
                f"{self.max_queued} submitted runs have not begun (max_queued=). Submit this one again later."
            )

    def _after_fork(self) -> None:
        """In a child of a fork: other threads may have held what this one is to hold."""
        self._lock = threading.Lock()

    def _requested(
        self,
        workflow: Workflow[Any],
        values: Any,
        idempotency_key: Key | None,
        wait: Duration | None = None,
        deadline: Duration | None = None,
        *,
        once: bool = False,
        submitted: bool = False,
        until_waiting: bool = False,
        recovering: str | None = None,
    ) -> RunState:
        """A run about to start. Raises FlowcoreError once the engine is closed, and what `checked_request` raises."""
        if self._closed:
            raise FlowcoreError("this engine is closed: it starts no more runs.")
        request = checked_request(
            self._settings,
            workflow,
            values,
            idempotency_key,
            wait,
            deadline,
            once=once,
            submitted=submitted,
            until_waiting=until_waiting,
            recovering=recovering,
        )
        if workflow not in self._registered:
            self._register(workflow)
        return RunState(self._settings, request)

    def _continuation(self, run: RunState, local: LocalRuns) -> tuple[RunState, Program[Run]] | None:
        """What continues a run that waits in its store, for its caller: a run, and its main program. None if the engine is
        closed, or its caller wants to have it as it is."""
        if self._closed or run.waits is None or (run.request.until_waiting and run.continue_as(None)):
            return None
        workflow = run.workflow
        request = Request(
            *(workflow, run.plan, {}, run.context, run.stored_key),
            wait=math.inf,
            deadline=workflow.deadline,
            recovering=run.run_id,
        )
        again = RunState(self._settings, request)
        again.dormant, again.on_pause = True, run.on_pause
        run.continue_as(again)
        due = run.waits.next_limit(run.deadline)
        return again, resume_when_due(again, local, due, len(run.waits.sent))

    def _recovery_of(self, live: Mapping[RunState, Any], at_once: int | None) -> Recovery:
        """What finds the runs to resume. It does not keep the engine alive."""
        room = max(1, self.max_workers // 2) if at_once is None else whole(at_once, "recover_at_once=")
        return Recovery(self._settings, self.workflows, partial(list[RunState], live), at_once=room)

    def _resumed(self, workflow: Workflow[Any], key: str, run_id: str) -> RunState:
        return self._requested(workflow, None, key, recovering=run_id)

    def _listen(self, received: Callable[[str, str, Sent], Sent | None]) -> None:
        """Have a store of this process say what is sent to its runs."""
        listen = getattr(self.store, "listen", None)
        if listen is not None:
            listen(received)

    def _knows_alone(self, live: Mapping[RunState, Any], key: str) -> bool:
        """Whether a run of this engine has this key, or this id, of which its store does not know."""
        return not self.store.durable and any(not run.claimed for run in runs_of(live, key))

    def _keep_leases(
        self,
        on_lost: Callable[[RunState], None],
        on_cancel: Callable[[RunState], None],
        on_sent: Callable[[RunState, Mapping[str, Sent]], None],
    ) -> Leases | None:
        """Who keeps the leases of this engine's runs; None where its store gives none."""
        if not self.store.durable:
            return None
        leases = Leases(self.store, self.lease, self._settings.hooks, on_lost, on_cancel, on_sent)
        self._settings.owns = leases.join
        return leases

    # -- what hooks get beside the events of runs ---------------------------------------------------------------------------

    def _tell_started(self, pool: Workers) -> None:
        if EngineStarted in self._settings.hooks.wanted:
            reference = weakref.ref(pool)

            def counts() -> tuple[int, int] | None:
                pool = reference()
                return None if pool is None else pool.counts()

            names = tuple(map(hook_name, self._settings.hooks.hooks))
            self._tell(EngineStarted("", "", self._settings.clock(), {}, counts, names, self.max_workers))

    def _tell(self, event: Event, context: contextvars.Context | None = None) -> None:
        """All hooks hear of it before a Ctrl-C strikes: it would be taken for the failure of the hook that it strikes."""
        with hold_sigint():
            self._settings.hooks.emit(event, context or contextvars.copy_context())

    def _callers_context(self) -> contextvars.Context:
        """The context for what a caller asks of the store outside of any run, as the hooks want it."""
        return self._settings.hooks.store_context(contextvars.copy_context())

    @contextmanager
    def _round(self, kind: str = "recover") -> Generator[contextvars.Context, None, None]:
        """A round of recovery, reported to the hooks, and the context for what it asks of the store."""
        hooks, clock = self._settings.hooks, self._settings.clock
        context, began, error = contextvars.copy_context(), clock(), None
        event = MaintenanceStarted("", "", began, {}, kind)
        scopes = None
        try:
            with hold_sigint():
                scopes = hooks.enter(event, context)
            yield context
        except BaseException as failure:
            error = failure
            raise
        finally:
            now = clock()
            with hold_sigint():
                if MaintenanceFinished in hooks.wanted:
                    wall = self._settings.wall()
                    hooks.emit(MaintenanceFinished("", "", now, {}, kind, now - began, error, wall), context)
                if scopes is not None:
                    hooks.exit(scopes, context, event, error)

    @property
    def _surveys(self) -> bool:
        """Whether a hook wants to know what waits in the store, or recovery must notice runs that it cannot resume."""
        return StoreSurveyed in self._settings.hooks.wanted or bool(self.workflows)

    @property
    def _known(self) -> set[str]:
        """The names of the workflows that this engine recovers or has run."""
        with self._lock:
            return {workflow.name for workflow in self._registered}

    def _emit_survey(self, counts: Mapping[tuple[str, str], int], context: contextvars.Context) -> None:
        if StoreSurveyed in self._settings.hooks.wanted:
            self._tell(StoreSurveyed("", "", self._settings.clock(), {}, counts), context)

    def _look_every(self) -> float | None:
        """Seconds between two looks at the store, for recovery or for surveys; None: nothing wants them."""
        wanted = StoreSurveyed in self._settings.hooks.wanted
        every = [SURVEY_EVERY] if wanted or self.recover_every is not None else []
        return min([*every, *([] if self.recover_every is None else [self.recover_every])], default=None)

    def _register(self, workflow: Workflow[Any]) -> None:
        with self._lock:
            if workflow in self._registered:
                return
            self._registered.add(workflow)
        if WorkflowRegistered in self._settings.hooks.wanted:
            names = tuple(step.name for step in workflow.steps)
            allowed = tuple(1 if step.retry is None else step.retry.attempts for step in workflow.steps)
            self._tell(WorkflowRegistered(workflow.name, "", self._settings.clock(), {}, names, allowed))

    def _tell_submitted(self, run: RunState, propagation: str) -> None:
        if propagation not in {"link", "child"}:
            raise DefinitionError(f"propagation= must be 'link' or 'child', not {safe_repr(propagation)}.")
        if RunSubmitted in run.wanted:
            event = RunSubmitted(run.workflow.name, run.run_id, self._settings.clock(), run.state, run.key, propagation)
            with hold_sigint():
                run.hooks.emit(event, contextvars.copy_context())


def left(run: RunState) -> RunParked:
    """The error of a run that waits in its store, where its engine was closed."""
    return parked(run, f"{CLOSED} while it waited")


def stopped(run: RunState, why: str) -> Exception:
    """The error of a run whose process stops: it is parked, or cancelled where it is in memory only."""
    if run.settings.durable:
        return parked(run, why)
    return StepCancelled(f"run {run.run_id} of {safe_repr(run.workflow.name)} was cancelled: {why}.")


def unbegun(run: RunState, why: str, *, recorded: bool = True) -> RunParked:
    """The error of a run that is left to other engines before it has begun, or that was not even recorded."""
    name = safe_repr(run.workflow.name)
    rest = (
        "It is recorded as queued, and another engine may run it."
        if recorded
        else "It was not recorded: submit it again."
    )
    return RunParked(f"run {run.run_id} of {name} has not begun: {why}. {rest}")


def this_process() -> Owner:
    """What records say of the owner of a run."""
    return Owner(socket.gethostname(), os.getpid())


def is_meant(run: RunState, run_id: str | None, key: str | None) -> bool:
    """Whether an id or a key names this run."""
    if run_id is not None and (run.has_id(run_id) or run.request.recovering == run_id):
        return True
    return key is not None and run.key == key


def cancel_in_store(store: Store, run_id: str | None, key: str | None) -> Generator[Callable[[], Any], Any, bool]:
    """Have the owner of a run on a durable store cancel it: yields calls of the store and is sent what they return, or
    what they raised. False: there is no such run, or it is over."""
    try:
        wanted: str = key if key is not None else (yield partial(store.get_run, run_id or "")).key
        record: RunRecord | None = yield partial(store.find, wanted)
        if record is None or (is_over(record.status) and not record.held):
            return False
        yield partial(store.cancel, wanted)
    except RunNotFound:
        return False
    return True


def perform(program: Program[T], ask: Callable[[str, object], Any]) -> T:
    """Perform a program that only calls the store, by `ask`, and waits between two calls, in the current thread."""
    answer: Any = None
    while True:
        try:
            effect = program.send(answer)
        except StopIteration as stop:
            result: T = stop.value
            return result
        answer = None
        if isinstance(effect, Ask):
            answer = ask(effect.verb, effect.argument)
        elif isinstance(effect, Sleep):
            time.sleep(effect.seconds)


def call_title(run: RunState, call: Call) -> str:
    """What a log line calls user code."""
    what = "undo of step" if call.shielded else "step"
    return f"{what} {safe_repr(call.node.name)} of workflow {safe_repr(run.workflow.name)}"


def outcome(result: Run | None, error: BaseException | None, *, check: bool) -> Run:
    """Answer a run, or raise what failed it."""
    if error is not None and (check or result is None or not isinstance(error, Exception)):
        raise error
    assert result is not None  # noqa: S101 - a driver ends with one of the two
    return result
