"""The base of all engines: their settings, requests for runs, and events that belong to no run."""

# Arguments are also checked at run time, for callers without a type checker.
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
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Final, TypeVar

from .._durable.claim import StoreClaims
from .._kernel import emit
from .._kernel.effects import Call
from .._kernel.run_state import RunState
from .._kernel.settings import Settings
from ..errors import (
    DefinitionError,
    FlowcoreError,
    QueueFull,
    safe_repr,
)
from ..events import (
    EngineStarted,
    Event,
    Hook,
    Hooks,
    WorkflowRegistered,
)
from ..events.hooks import hook_name
from ..events.process import with_process_hooks
from ..keys import Key
from ..retry import Duration, seconds, some_random
from ..run import Run
from ..stores.base import Owner, Store
from ..workflow import Workflow
from .checks import checked_hooks, checked_namespace, checked_store, checked_workflows, period, positive_int
from .interrupts import hold_sigint
from .requests import checked_request
from .workers import Workers

if TYPE_CHECKING:
    pass

__all__ = [
    "MARGIN",
    "NO_THREAD",
    "EngineBase",
    "I",
    "call_title",
    "log",
    "outcome",
    "patience",
    "registration",
    "this_process",
]

T = TypeVar("T")
I = TypeVar("I")  # noqa: E741 - the input of a workflow
DEFAULT_WORKERS = 32
_PROPAGATIONS: Final = ("link", "child")
NO_THREAD: Final = "no thread of its engine was free for a whole lease"
MARGIN: Final = 0.5
"""seconds in which stopped runs record how they ended"""
log = logging.getLogger("flowcore")

_NAMES: Final = 10_000
"""how many names of workflows that it has run an engine remembers"""


def new_id() -> str:
    """A run id: 32 hex digits from the operating system, so that neither a fork nor random.seed() repeats one."""
    return os.urandom(16).hex()


class EngineBase:
    """The part of an engine that does not depend on threads or event loops."""

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
        workers = positive_int(DEFAULT_WORKERS if max_workers is None else max_workers, "max_workers=")
        self.store: Store = checked_store(store, runs_async=runs_async)
        self.max_workers = workers
        self.max_queued = positive_int(max_queued, "max_queued=")
        self.lease = period(lease, "lease=")
        self.recover_every: float | None = None if recover_every is None else period(recover_every, "recover_every=")
        self._closed = False
        self._is_open = self._make_is_open()
        self._lock = threading.Lock()
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
            max_takeovers=positive_int(max_takeovers, "max_takeovers="),
            park_after=seconds(park_after, "park_after="),
            namespace=checked_namespace(namespace, self.store),
        )
        self._registers = self._settings.durable or self._settings.observed
        """whether anything asks for the workflows that this engine has run: a hook, or a survey of the store"""
        self._registered: dict[int, weakref.ref[Workflow[Any]]] = {}
        """the workflows that this engine has run, by id, as long as they exist"""
        self._known: dict[str, None] = {}
        """(lock) their names, and those of the workflows that it recovers"""
        self.workflows = checked_workflows(workflows)
        for workflow in self.workflows:
            workflow.freeze()
            self._register(workflow)

    def _refuse_if_full(self, queued: int) -> None:
        if queued >= self.max_queued:
            raise QueueFull(
                f"{self.max_queued} submitted runs have not begun (max_queued=). Submit this one again later."
            )

    def _after_fork(self) -> None:
        """In a forked child, replace the lock: a thread of the parent may have held it."""
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
        check: bool = True,
        submitted: bool = False,
        until_waiting: bool = False,
        recovering: str | None = None,
    ) -> RunState:
        """Create a run that is about to start. Raises FlowcoreError once the engine is closed, and what
        `checked_request` raises."""
        if self._closed:
            raise FlowcoreError("this engine is closed and starts no more runs. Make another engine.")
        request = checked_request(
            self._settings,
            workflow,
            values,
            idempotency_key,
            wait,
            deadline,
            once=once,
            check=check,
            submitted=submitted,
            until_waiting=until_waiting,
            recovering=recovering,
        )
        if self._registers and id(workflow) not in self._registered:
            self._register(workflow)
        return RunState(self._settings, request)

    def _make_is_open(self) -> Callable[[], bool]:
        """A function for events that returns whether this engine is open. It does not keep the engine alive."""
        reference = weakref.ref(self)

        def is_open() -> bool:
            engine = reference()
            return engine is not None and not engine._closed

        return is_open

    # -- events that belong to no run ----------------------------------------------------------------------------------

    def _emit_started(self, pool: Workers) -> None:
        if EngineStarted in self._settings.hooks.wanted:
            reference = weakref.ref(pool)

            def counts() -> tuple[int, int] | None:
                pool = reference()
                return None if pool is None or pool.is_over else pool.counts()

            names = tuple(map(hook_name, self._settings.hooks.hooks))
            self._emit(EngineStarted("", "", self._settings.clock(), {}, counts, names, self.max_workers))

    def _emit(self, event: Event, context: contextvars.Context | None = None) -> None:
        """Emit an event to the hooks. A Ctrl-C is deferred until they have returned: inside a hook, it would count as a
        failure of that hook."""
        with hold_sigint():
            self._settings.hooks.emit(event, context or contextvars.copy_context())

    def _callers_context(self) -> contextvars.Context:
        """The contextvars context, prepared by the hooks, for store calls that a caller makes outside of any run."""
        return self._settings.hooks.store_context(contextvars.copy_context())

    def _register(self, workflow: Workflow[Any]) -> None:
        number, registered = id(workflow), self._registered
        with self._lock:
            if number in registered:
                return
            registered[number] = weakref.ref(workflow, lambda _: registered.pop(number, None))
            self._known.pop(workflow.name, None)
            self._known[workflow.name] = None
            if len(self._known) > _NAMES:
                del self._known[next(iter(self._known))]
        if WorkflowRegistered in self._settings.hooks.wanted:
            self._emit(registration(workflow, self._settings.clock()))

    def _emit_submitted(self, run: RunState, propagation: str) -> None:
        if propagation not in _PROPAGATIONS:
            raise DefinitionError(f"propagation= must be 'link' or 'child', not {safe_repr(propagation)}.")
        if run.wanted:
            with hold_sigint():
                emit.submitted(run, propagation)


def this_process() -> Owner:
    """This process, as records name it as the owner of a run."""
    return Owner(socket.gethostname(), os.getpid())


def patience(run: RunState) -> float | None:
    """The most seconds for which a run waits for a thread: until its deadline and, on a durable store, one lease at
    most. None means no limit."""
    limits = [] if run.deadline is None else [run.deadline - run.settings.clock()]
    if run.settings.durable:
        limits.append(run.settings.lease)
    return max(0.0, min(limits)) if limits else None


def call_title(run: RunState, call: Call) -> str:
    """The name of a call of user code in log lines: its step and workflow, and whether it is an undo."""
    what = "undo of step" if call.shielded else "step"
    return f"{what} {safe_repr(call.node.name)} of workflow {safe_repr(run.workflow.name)}"


def outcome(result: Run | None, error: BaseException | None, *, check: bool) -> Run:
    """Return the Run, or raise the run's error. With `check=False`, an Exception is raised only without a Run."""
    if error is not None and (check or result is None or not isinstance(error, Exception)):
        raise error
    assert result is not None  # noqa: S101 - a driver ends with one of the two
    return result


def registration(workflow: Workflow[Any], at: float) -> WorkflowRegistered:
    """The event of a workflow that this process begins to use at the moment `at` (monotonic)."""
    names = tuple(step.name for step in workflow.steps)
    allowed = tuple(1 if step.retry is None else step.retry.attempts for step in workflow.steps)
    waits = tuple(step.name for step in workflow.steps if step.wait is not None)
    timeouts = tuple(step.name for step in workflow.steps if step.timeout is not None)
    return WorkflowRegistered(workflow.name, "", at, {}, names, allowed, waits, timeouts)
