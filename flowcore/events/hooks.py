"""The `Hook` protocol, scopes, and `Hooks`, which calls the hooks of a run and shields the run from their errors."""

from __future__ import annotations

import contextvars
import logging
import math
import traceback
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from types import MethodType
from typing import Any, Final, Protocol, cast

from ..errors import error_message, one_line
from ..exits import defer, is_exit_of_handler
from .base import Event
from .of_engines import HookFailed, HooksMeasured
from .records import EVENTS, AttemptFinished, AttemptStarted

__all__ = ["SKIP_RUN", "Crossing", "Entered", "Hook", "Hooks", "Scope", "hook_name", "wants"]

SKIP_RUN: Final = object()
"""A hook returns this for RunRequested or RunStarted, to get no further event of the run."""

Scope = AbstractContextManager[object]
Crossing = Callable[[], Scope]
"""a function that can be pickled, and returns the context manager in which a step with `executor=` runs"""
Call = Callable[..., Any]
_BY_DEFAULT: Final = EVENTS - {HooksMeasured}
_MEASURE_ONE_IN: Final = 256
"""one run in this many has its hooks measured, because measuring all would cost more than some hooks do"""
_MEASURE_AFTER: Final = 1.0
"""seconds after which the next run is measured in any case, so that infrequent runs are measured too"""


class Hook(Protocol):
    """Anything that can be called with an event: `events.append`, `print`, a function with `match event:`.

    A hook may have these attributes.

    `wants`: a frozenset of the event types that it gets. Without it, it gets every event but HooksMeasured.

    `lone_attempts`: if False, it gets AttemptStarted and AttemptFinished only of steps that allow several attempts.

    `handlers`: a mapping from event types to functions that are called in place of the hook, which saves a call. They
    are not used where a subclass overrides `__call__`.

    `around_store`: a function without arguments that sets contextvars for the calls of the store. It is called when a
    run begins, when a run is recorded as queued, and for each `find`, `get` and `cancel` of the engine.

    `across_processes`: a function without arguments that is called when a step with `executor=` is sent to its
    executor. It returns None, or a function that can be pickled and that returns the context manager in which the step
    runs there.

    A hook is called on the thread or task that drives the run, so it must be thread-safe. It can neither break nor
    steer a run: its first exception is logged, and each one on an event is reported as HookFailed. If a signal handler
    that exits interrupts a hook, the other hooks are called, and then the process ends as it would at another moment.
    """

    def __call__(self, event: Any, /) -> AbstractContextManager[object] | object | None: ...


_log = logging.getLogger("flowcore")


Listeners = tuple[tuple[Hook, Call], ...]
"""hooks, each with the function that gets the event"""
Entered = tuple[Hook, Scope]
"""a hook, and the scope that it returned"""


class Hooks:
    """The hooks of one engine, or of one of its runs, by the events that they want.

    `wanted`: the event types that at least one hook wants; no other event is built. `listeners`: for each of these
    types, the hooks and the functions to call. `lone`: the Hooks for steps that allow only one attempt.
    `want_attempt_starts`, `want_attempt_ends`: whether a hook wants AttemptStarted, or AttemptFinished. Thread-safe: only
    the names of the hooks that have failed and the counters of the measurement change.
    """

    __slots__ = (
        *("_failed", "_measured_at", "_runs", "_watch", "_without"),
        *("around_store", "hooks", "listeners", "lone", "want_attempt_ends", "want_attempt_starts", "wanted"),
    )

    def __init__(self, hooks: Iterable[Hook] = (), _failed: set[str] | None = None, *, _lone: bool = False) -> None:
        listening = [(hook, _wants_of_lone(hook) if _lone else wants(hook)) for hook in hooks if wants(hook)]
        self.hooks: tuple[Hook, ...] = tuple(hook for hook, _ in listening)
        self.wanted: frozenset[type[Event]] = frozenset().union(*(kinds for _, kinds in listening))
        self.listeners: dict[type[Event], Listeners] = {
            kind: tuple((hook, _handler(hook, kind)) for hook, kinds in listening if kind in kinds)
            for kind in self.wanted
        }
        self.want_attempt_starts = AttemptStarted in self.wanted
        self.want_attempt_ends = AttemptFinished in self.wanted
        self.around_store: tuple[Hook, ...] = tuple(hook for hook in self.hooks if hasattr(hook, "around_store"))
        self._failed: set[str] = set() if _failed is None else _failed
        self._without: dict[tuple[int, ...], Hooks] = {}
        self._watch: _Stopwatch | None = None
        self._runs, self._measured_at = 0, -math.inf
        differ = not _lone and any(kinds != _wants_of_lone(hook) for hook, kinds in listening)
        self.lone: Hooks = Hooks(self.hooks, self._failed, _lone=True) if differ else self

    def __bool__(self) -> bool:
        return bool(self.hooks)

    def emit(
        self,
        event: Event,
        context: contextvars.Context,
        leaving: list[Hook] | None = None,
    ) -> None:
        """Call the hooks that want `event`, in `context`. Hooks that return SKIP_RUN are added to `leaving`."""
        for hook, call in self.listeners.get(type(event), ()):
            try:
                if context.run(call, event) is SKIP_RUN and leaving is not None:
                    leaving.append(hook)
            except BaseException as error:  # noqa: BLE001 - a hook can break nothing
                self.report_failure(hook, error, event, context)

    def enter(
        self,
        event: Event,
        context: contextvars.Context,
        leaving: list[Hook] | None = None,
    ) -> list[Entered] | None:
        """Emit a start event and enter the scopes that hooks return, in `context`. Returns the scopes, for `exit`.

        Hooks that return SKIP_RUN are added to `leaving`.
        """
        scopes: list[Entered] | None = None
        for hook, call in self.listeners.get(type(event), ()):
            try:
                answer = context.run(call, event)
                if answer is SKIP_RUN and leaving is not None:
                    leaving.append(hook)
                elif answer is not None:
                    scopes = entered(hook, answer, context, scopes)
            except BaseException as error:  # noqa: BLE001 - a hook can break nothing
                self.report_failure(hook, error, event, context)
        return scopes

    def store_context(self, context: contextvars.Context) -> contextvars.Context:
        """Return a copy of `context`, in which the hooks have set their contextvars for calls of the store."""
        prepared = context.copy()
        for hook in self.around_store:
            try:
                prepared.run(cast("Any", hook).around_store)
            except BaseException as error:  # noqa: BLE001 - a hook can break nothing
                self._log_once(hook_name(hook), "around_store", error)
        return prepared

    def crossings(self) -> list[Crossing]:
        """Return the functions whose scopes surround a step in another process. Call it in the step's context."""
        found: list[Crossing] = []
        for hook in self.hooks:
            across = getattr(hook, "across_processes", None)
            if across is None:
                continue
            try:
                crossing = across()
            except BaseException as error:  # noqa: BLE001 - a hook can break nothing
                self._log_once(hook_name(hook), "across_processes", error)
            else:
                if crossing is not None:
                    found.append(crossing)
        return found

    def without(self, leaving: list[Hook]) -> Hooks:
        """Return these hooks without those in `leaving`."""
        if not leaving:
            return self
        if len(leaving) == len(self.hooks):
            return _NO_HOOKS
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
        """Exit the scopes of a start event with `error`, in their context and in reverse order."""
        kind, trace = (None, None) if error is None else (type(error), error.__traceback__)
        for hook, scope in reversed(scopes):
            try:
                context.run(scope.__exit__, kind, error, trace)
            except BaseException as failure:  # noqa: BLE001 - a hook can break nothing
                # A @contextmanager scope raises the step's own error again, which is not a failure of the scope.
                if failure is not error:
                    self.report_failure(hook, failure, started, context)

    def report_failure(self, hook: Hook, error: BaseException, event: Event, context: contextvars.Context) -> None:
        """Report an error of a hook or its scope: the first one in the log, and each one as HookFailed."""
        name = hook_name(hook)
        context.run(self._log_once, name, type(event).__name__, error)  # the record gets the ids of the run
        if type(event) is not HookFailed and HookFailed in self.wanted:
            self.emit(HookFailed(event.workflow, event.run_id, event.at, event.state, name, error), context)

    def _log_once(self, name: str, where: str, error: BaseException) -> None:
        """Log the first error of a hook. The exit of a signal handler that interrupted it ends the process later."""
        if is_exit_of_handler(error):
            defer(error)
        if name not in self._failed:
            self._failed.add(name)
            _log_traceback(
                "hook %s raised on %s. The run continues; further errors of this hook are counted, not logged.",
                (name, where),
                error,
            )

    # -- how long hooks take -------------------------------------------------------------------------------------------

    def of_run(self, clock: Callable[[], float]) -> Hooks:
        """Return the hooks for one run. If a hook wants HooksMeasured, those of some runs are measured by `clock`."""
        if HooksMeasured not in self.wanted:
            return self
        self._runs += 1
        now = clock()
        if self._runs < _MEASURE_ONE_IN and now - self._measured_at < _MEASURE_AFTER:
            return self
        runs, self._runs, self._measured_at = self._runs, 0, now
        return self._timed(_Stopwatch(clock, runs))

    def _timed(self, watch: _Stopwatch) -> Hooks:
        """Return a copy of these hooks whose calls are timed by `watch`."""
        twin = Hooks((), self._failed)
        twin.hooks, twin.wanted, twin._watch = self.hooks, self.wanted, watch
        twin.around_store = self.around_store
        twin.want_attempt_starts, twin.want_attempt_ends = self.want_attempt_starts, self.want_attempt_ends
        twin.listeners = {
            kind: tuple((hook, watch.timed(hook_name(hook), call)) for hook, call in listening)
            for kind, listening in self.listeners.items()
        }
        twin.lone = twin if self.lone is self else self.lone._timed(watch)
        return twin

    @property
    def hook_seconds(self) -> Mapping[str, float] | None:
        """The seconds of each hook in this run, times the number of runs that it stands for; None if not measured."""
        watch = self._watch
        return None if watch is None else {name: seconds * watch.runs for name, seconds in watch.seconds.items()}


class _Stopwatch:
    """Measures how long the hooks of one run take. The run stands for `runs` runs."""

    def __init__(self, clock: Callable[[], float], runs: int) -> None:
        self.clock = clock
        self.runs = runs
        self.seconds: dict[str, float] = {}

    def timed(self, name: str, call: Call) -> Call:
        """Wrap `call`, so that its seconds, and those of a scope that it returns, are added to those of `name`."""
        self.seconds.setdefault(name, 0.0)

        def timed(*args: Any) -> Any:
            began = self.clock()
            try:
                answer = call(*args)
            finally:
                took = self.clock() - began  # read first: a call inside the addition would let another thread in
                self.seconds[name] += took
            return _TimedScope(self, name, answer) if _is_scope(answer) else answer

        return timed


class _TimedScope:
    """A scope whose entry and exit are measured."""

    def __init__(self, watch: _Stopwatch, name: str, scope: Scope) -> None:
        self.__enter = watch.timed(name, scope.__enter__)
        self.__exit = watch.timed(name, scope.__exit__)

    def __enter__(self) -> object:
        return self.__enter()

    def __exit__(self, *error: object) -> object:
        return self.__exit(*error)


def wants(hook: Hook) -> frozenset[type[Event]]:
    """Return the event types that this hook wants."""
    return cast("frozenset[type[Event]]", getattr(hook, "wants", _BY_DEFAULT)) & EVENTS


def _wants_of_lone(hook: Hook) -> frozenset[type[Event]]:
    """Return the event types that this hook wants of a step that allows only one attempt."""
    return wants(hook) if getattr(hook, "lone_attempts", True) else wants(hook) - {AttemptStarted, AttemptFinished}


def _handler(hook: Hook, kind: type[Event]) -> Call:
    """Return the function to call with events of `kind`."""
    handlers: object = getattr(hook, "handlers", None)
    if isinstance(handlers, Mapping) and kind in handlers and not _overrides_call(type(hook)):
        return cast("Call", handlers[kind])
    method: object = getattr(hook, "__call__", None)  # noqa: B004 - calling an instance is slower than calling its method
    return method if isinstance(method, MethodType) else hook


def _overrides_call(kind: type[object]) -> bool:
    """Whether a class replaces the `__call__` of a class of hooks that it derives from, whose `handlers` it inherits."""
    return sum("__call__" in base.__dict__ for base in kind.__mro__ if base is not Hook) > 1


_NO_HOOKS: Final = Hooks()


def entered(
    hook: Hook, answer: Any, context: contextvars.Context, scopes: list[Entered] | None
) -> list[Entered] | None:
    """Enter the `answer` of a hook to a start event, if it is a scope, in `context`. Returns all scopes so far."""
    if _is_scope(answer):
        context.run(answer.__enter__)
        scopes = [] if scopes is None else scopes
        scopes.append((hook, answer))
    return scopes


def _is_scope(answer: object) -> bool:
    return hasattr(answer, "__enter__") and hasattr(answer, "__exit__")


def _log_traceback(message: str, arguments: tuple[str, ...], error: BaseException) -> None:
    """Log a message with the traceback of an error. Each line of the traceback is indented and escaped, so that no line
    of the error's own text looks like an entry of the log."""
    if not _log.isEnabledFor(logging.ERROR):
        return
    file, line, function, _ = _log.findCaller(stacklevel=2)
    info = type(error), error, error.__traceback__
    record = _log.makeRecord(_log.name, logging.ERROR, file, line, message, arguments, info, function)
    try:
        trace = traceback.format_exception(error)
    except Exception:  # noqa: BLE001 - an attribute of the error has raised
        trace = [*traceback.format_tb(error.__traceback__), f"{type(error).__name__}: {error_message(error)}"]
    # Formatters use exc_text where it is set.
    record.exc_text = "\n".join(f"  {one_line(text)}" for text in "".join(trace).splitlines())
    _log.handle(record)


def hook_name(hook: object) -> str:
    """Return the name of a hook for messages and labels: its class, or the qualified name of its function."""
    return str(getattr(hook, "__qualname__", None) or type(hook).__qualname__)
