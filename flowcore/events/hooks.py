"""Who listens, and how they are told: the `Hook` protocol, scopes, and `Hooks`, which protects a run from its hooks."""

from __future__ import annotations

import contextvars
import logging
import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from types import MethodType
from typing import Any, Final, Protocol, cast

from .records import EVENTS, AttemptFinished, AttemptStarted, Event, HookFailed, HooksMeasured

__all__ = ["SKIP_RUN", "Entered", "Hook", "Hooks", "Scope", "hook_name", "wants"]

SKIP_RUN: Final = object()
"""A hook's answer to RunRequested or RunStarted: tell me nothing more of this run."""

Scope = AbstractContextManager[object]
Call = Callable[..., Any]
_UNASKED: Final = EVENTS - {HooksMeasured}
_EVERY: Final = 64
"""hooks are measured in one of so many runs, because measuring all would cost more than some hooks do"""
_PAUSE: Final = 1.0
"""and again after so many seconds, so that all are where there are few"""


class Hook(Protocol):
    """Anything that can be called with an event: `events.append`, `print`, a function with `match event:`.

    May have `wants`, a frozenset of event types; without it, every event comes but HooksMeasured. May have
    `lone_attempts = False`: then AttemptStarted and AttemptFinished come only where the definition allows several
    attempts. May have `handlers`, a mapping from event types to functions that are called in its place, for those who
    count each call. May have `around_store`, a function without arguments that sets contextvars: it is called once a
    run, and the store is called in what it leaves. A hook is called on whichever thread or task drives the run, so it must be thread-safe. It can
    neither break nor steer a run: what it raises is logged once and counted.
    """

    def __call__(self, event: Any, /) -> AbstractContextManager[object] | object | None: ...


_log = logging.getLogger("flowcore")


Listeners = tuple[tuple[Hook, Call], ...]
"""hooks, and what to call with an event"""
Entered = tuple[Hook, Scope]
"""a scope, and the hook that it is of"""


class Hooks:
    """The hooks of one engine, or of one run of it: who wants which event.

    `wanted` is the set of event types worth building; empty where there is no hook, so that nothing is paid for.
    `listeners`: for each of them, the hooks, and what to call with it. `lone`: the same for the attempts of what may be
    attempted once only. Immutable apart from the once-only logging of errors and what measuring counts; safe for all
    threads.
    """

    __slots__ = (
        *("_failed", "_measured_at", "_runs", "_watch", "_without"),
        *("around_store", "hooks", "listeners", "lone", "wanted"),
    )

    def __init__(self, hooks: Iterable[Hook] = (), _failed: set[str] | None = None, *, _lone: bool = False) -> None:
        told = [(hook, _wants_of_lone(hook) if _lone else wants(hook)) for hook in hooks if wants(hook)]
        self.hooks: tuple[Hook, ...] = tuple(hook for hook, _ in told)
        self.wanted: frozenset[type[Event]] = frozenset().union(*(kinds for _, kinds in told))
        self.listeners: dict[type[Event], Listeners] = {
            kind: tuple((hook, _handler(hook, kind)) for hook, kinds in told if kind in kinds) for kind in self.wanted
        }
        self.around_store: tuple[Hook, ...] = tuple(hook for hook in self.hooks if hasattr(hook, "around_store"))
        self._failed: set[str] = set() if _failed is None else _failed
        self._without: dict[tuple[int, ...], Hooks] = {}
        self._watch: _Stopwatch | None = None
        self._runs, self._measured_at = 0, -math.inf
        differ = not _lone and any(kinds != _wants_of_lone(hook) for hook, kinds in told)
        self.lone: Hooks = Hooks(self.hooks, self._failed, _lone=True) if differ else self

    def __bool__(self) -> bool:
        return bool(self.hooks)

    def emit(
        self,
        event: Event,
        context: contextvars.Context,
        leaving: list[Hook] | None = None,
    ) -> None:
        """Tell everybody who wants it, inside `context`. Hooks that answer SKIP_RUN are added to `leaving`."""
        for hook, call in self.listeners.get(type(event), ()):
            try:
                if context.run(call, event) is SKIP_RUN and leaving is not None:
                    leaving.append(hook)
            except BaseException as error:  # noqa: BLE001 - a hook can break nothing
                self.blame(hook, error, event, context)

    def enter(
        self,
        event: Event,
        context: contextvars.Context,
        leaving: list[Hook] | None = None,
    ) -> list[Entered] | None:
        """Tell a start event, as `emit` does, and enter the scopes that come back, inside `context`; pass them to `exit`."""
        scopes: list[Entered] | None = None
        for hook, call in self.listeners.get(type(event), ()):
            try:
                answer = context.run(call, event)
                if answer is SKIP_RUN and leaving is not None:
                    leaving.append(hook)
                elif answer is not None:
                    scopes = entered(hook, answer, context, scopes)
            except BaseException as error:  # noqa: BLE001 - a hook can break nothing
                self.blame(hook, error, event, context)
        return scopes

    def store_context(self, context: contextvars.Context) -> contextvars.Context:
        """A copy of `context` as the hooks want it while the store is called."""
        prepared = context.copy()
        for hook in self.around_store:
            try:
                prepared.run(cast("Any", hook).around_store)
            except BaseException as error:  # noqa: BLE001 - a hook can break nothing
                self._log_once(hook_name(hook), "around_store", error)
        return prepared

    def without(self, leaving: list[Hook]) -> Hooks:
        """The same hooks less those in `leaving`."""
        if not leaving:
            return self
        if len(leaving) == len(self.hooks):
            return _NOBODY
        which = tuple(index for index, hook in enumerate(self.hooks) if any(hook is other for other in leaving))
        left = self._without.get(which)
        if left is None:
            kept = (hook for index, hook in enumerate(self.hooks) if index not in which)
            left = Hooks(kept, self._failed)
            left = self._without[which] = left if self._watch is None else left._timed(self._watch)
        return left

    def exit(
        self, scopes: list[Entered], context: contextvars.Context, started: Event, error: BaseException | None
    ) -> None:
        """Leave `scopes` of the start event in reverse order, inside their context, telling them of `error`."""
        kind, trace = (None, None) if error is None else (type(error), error.__traceback__)
        for hook, scope in reversed(scopes):
            try:
                context.run(scope.__exit__, kind, error, trace)
            except BaseException as failure:  # noqa: BLE001 - a hook can break nothing
                # A @contextmanager scope lets the step's own error pass through it; that is not its failure.
                if failure is not error:
                    self.blame(hook, failure, started, context)

    def blame(self, hook: Hook, error: BaseException, event: Event, context: contextvars.Context) -> None:
        """A hook, or a scope of it, has raised: log that, the first time, and tell the others."""
        name = hook_name(hook)
        self._log_once(name, type(event).__name__, error)
        if type(event) is not HookFailed and HookFailed in self.wanted:
            self.emit(HookFailed(event.workflow, event.run_id, event.at, event.state, name, error), context)

    def _log_once(self, name: str, where: str, error: BaseException) -> None:
        if name not in self._failed:
            self._failed.add(name)
            _log.error(
                "hook %s raised on %s; the run goes on, further errors of this hook are only counted",
                name,
                where,
                exc_info=error,
            )

    # -- how long hooks take -------------------------------------------------------------------------------------------

    def of_run(self, clock: Callable[[], float]) -> Hooks:
        """The hooks for one run: these, or now and then, if anybody wants to know, some that measure how long these take,
        by `clock` (monotonic seconds)."""
        if HooksMeasured not in self.wanted:
            return self
        self._runs += 1
        now = clock()
        if self._runs < _EVERY and now - self._measured_at < _PAUSE:
            return self
        runs, self._runs, self._measured_at = self._runs, 0, now
        return self._timed(_Stopwatch(clock, runs))

    def _timed(self, watch: _Stopwatch) -> Hooks:
        """The same hooks, measured."""
        twin = Hooks((), self._failed)
        twin.hooks, twin.wanted, twin._watch = self.hooks, self.wanted, watch
        twin.around_store = self.around_store
        twin.listeners = {
            kind: tuple((hook, watch.timed(hook_name(hook), call)) for hook, call in listening)
            for kind, listening in self.listeners.items()
        }
        twin.lone = twin if self.lone is self else self.lone._timed(watch)
        return twin

    @property
    def spent(self) -> Mapping[str, float] | None:
        """Seconds by hook, where they were measured: over this run, times the runs that it stands for."""
        watch = self._watch
        return None if watch is None else {name: seconds * watch.runs for name, seconds in watch.seconds.items()}


class _Stopwatch:
    """Measures how long hooks take over one run, which stands for `runs`."""

    def __init__(self, clock: Callable[[], float], runs: int) -> None:
        self.clock = clock
        self.runs = runs
        self.seconds: dict[str, float] = {}

    def timed(self, name: str, call: Call) -> Call:
        """`call`, measured: whatever it takes is added to what `name` has taken, and a scope that it answers with too."""
        self.seconds.setdefault(name, 0.0)

        def timed(*args: Any) -> Any:
            began = self.clock()
            try:
                answer = call(*args)
            finally:
                took = self.clock() - began  # no call between reading and writing: threads may come between those
                self.seconds[name] += took
            return _TimedScope(self, name, answer) if _is_scope(answer) else answer

        return timed


class _TimedScope:
    """A scope that is measured."""

    def __init__(self, watch: _Stopwatch, name: str, scope: Scope) -> None:
        self.__enter = watch.timed(name, scope.__enter__)
        self.__exit = watch.timed(name, scope.__exit__)

    def __enter__(self) -> object:
        return self.__enter()

    def __exit__(self, *error: object) -> object:
        return self.__exit(*error)


def wants(hook: Hook) -> frozenset[type[Event]]:
    """The event types that this hook wants."""
    return cast("frozenset[type[Event]]", getattr(hook, "wants", _UNASKED)) & EVENTS


def _wants_of_lone(hook: Hook) -> frozenset[type[Event]]:
    """Which of these it wants of what may be attempted once only."""
    return wants(hook) if getattr(hook, "lone_attempts", True) else wants(hook) - {AttemptStarted, AttemptFinished}


def _handler(hook: Hook, kind: type[Event]) -> Call:
    """What to call with events of `kind`."""
    handlers: object = getattr(hook, "handlers", None)
    if isinstance(handlers, Mapping) and kind in handlers:
        return cast("Call", handlers[kind])
    method: object = getattr(hook, "__call__", None)  # noqa: B004 - an instance is called slower than its method
    return method if isinstance(method, MethodType) else hook


_NOBODY: Final = Hooks()


def entered(
    hook: Hook, answer: Any, context: contextvars.Context, scopes: list[Entered] | None
) -> list[Entered] | None:
    """`scopes`, and what `hook` has answered to a start event, entered inside `context`, if it is a scope."""
    if _is_scope(answer):
        context.run(answer.__enter__)
        scopes = [] if scopes is None else scopes
        scopes.append((hook, answer))
    return scopes


def _is_scope(answer: object) -> bool:
    return hasattr(answer, "__enter__") and hasattr(answer, "__exit__")


def hook_name(hook: object) -> str:
    """What to call a hook in a message or a label: its class, or its function's qualified name."""
    return str(getattr(hook, "__qualname__", None) or type(hook).__qualname__)
