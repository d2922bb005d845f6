"""The base of `Engine` and `AsyncEngine`, which run steps in this process, recover runs of their store, and keep
schedules.

The work with the store is written once for both, as programs that yield store calls: `Engine` makes these calls, and
`AsyncEngine` awaits them.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Collection
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from .._durable.leases import Leases
from .._durable.recovery import SURVEY_EVERY, Recovery
from .._durable.sending import accepted, counts_as
from .._durable.waiting import LocalRuns
from .._kernel.run_state import RunState
from ..context import own_copy
from ..errors import DefinitionError, safe_repr, safe_str
from ..events import StoreSurveyed
from ..functions import is_awaitable
from ..run import names_of_sent
from ..workflow import Workflow
from .asking import Asking
from .base import log
from .checks import positive_int
from .live_runs import LiveRuns
from .periodic import PeriodicEngine
from .sending import announce, made_here

if TYPE_CHECKING:
    from ..step import Step
    from .workers import Workers

__all__ = ["LocalEngine"]

T = TypeVar("T")


class LocalEngine(PeriodicEngine):
    """An engine that runs steps in this process."""

    _pool: Workers
    _live: LiveRuns[Any]
    _recovery: Recovery
    _looking: Any = None
    """the RecoveryThread or RecoveryTasks that look at the store; None until they are needed"""
    _schedules: Any = None
    """the Schedules of this engine; None until there is one"""
    _looks_again = False
    """whether a look at the store is planned for the time when the present leases would have expired"""
    _forked = False
    """whether this process was forked, and the hooks do not know yet that the child uses this engine"""

    def _after_fork(self) -> None:
        """In a forked child, start recovery and schedules again: the threads, loops and timers of the parent, and their
        work, belong to the parent."""
        super()._after_fork()
        self._forked = True
        self._registered.clear()
        self._looks_again = False
        self._recovery.after_fork()
        for one in (self._looking, self._schedules):
            if one is not None:
                one.after_fork()

    def _register(self, workflow: Workflow[Any]) -> None:
        with self._lock:
            forked, self._forked = self._forked, False
        if forked:
            self._emit_started(self._pool)
        super()._register(workflow)

    @abstractmethod
    def _begin_looking(self) -> None:
        """Look at the store regularly from now on, for recovery or for surveys, if they are needed."""

    def _recover_also(self, workflow: Workflow[Any]) -> None:
        """Recover the runs of this workflow, too: once per lease, if the engine has no `recover_every`."""
        if workflow not in self.workflows:
            self.workflows = (*self.workflows, workflow)
            self._recovery.include(workflow)
        if self.recover_every is None:
            self.recover_every = self.lease
            self._begin_looking()

    def _keep_runs(self, live: LiveRuns[Any], local: LocalRuns, at_once: int | None) -> Leases | None:
        """Connect the runs in flight with recovery, leases and the store. Returns the Leases that renew them, or None
        if the store is not durable. None of these objects keeps the engine alive."""
        self._live, self._local, self._claims.local = live, local, local
        room = max(1, self.max_workers // 2) if at_once is None else positive_int(at_once, "recover_at_once=")
        self._recovery = Recovery(self._settings, self.workflows, partial(list[RunState], live), at_once=room)
        listen = getattr(self.store, "listen", None)
        if listen is not None:  # the store reports values that are sent to runs
            listen(live.deliver)
        if not self.store.durable:
            return None
        leases = Leases(
            self.store, self.lease, self._settings.hooks, live.lose, live.cancel_through_store, live.fetched
        )
        self._settings.owns = leases.join
        return leases

    # -- rounds of recovery --------------------------------------------------------------------------------------------

    @property
    def _surveys(self) -> bool:
        """Whether the runs in the store are counted: for a hook, or to notice runs that recovery cannot resume."""
        return StoreSurveyed in self._settings.hooks.wanted or bool(self.workflows)

    def _names(self) -> set[str]:
        """The names of the workflows that this engine recovers or has run."""
        with self._lock:
            return {*self._known, *(workflow.name for workflow in self.workflows)}

    def _recovered(
        self, begin: Callable[[list[RunState]], T], skip: Collection[str | None] = (), *, fresh: bool = False
    ) -> Asking[T]:
        """Perform a round of recovery: `begin` the runs that it finds, except those with an id in `skip`. Returns what
        `begin` returns. `fresh`: whether to list the runs of the store again first."""
        found: list[RunState] = []
        with self._round() as context:
            yield self._reported(context)
            yield from self._recovery.round(self._resumed, found.append, skip, fresh=fresh)
            return begin(found)

    def _recovered_late(self, begin: Callable[[list[RunState]], object]) -> Asking[None]:
        """Perform a round of recovery for which no caller waits. An error is logged."""
        self._looks_again = False
        if self._closed:
            return
        try:
            yield from self._recovered(begin)
        except Exception as error:  # noqa: BLE001 - no caller would get it
            log.warning("a recovery round failed: %s: %s", type(error).__name__, safe_str(error, 200))

    def _looked(self, begin: Callable[[list[RunState]], object]) -> Asking[float | None]:
        """Count the runs in the store and `begin` those to be resumed, each if it is due. Returns the seconds until the
        next look, or None if none is needed."""
        if self._surveys and self._recovery.survey_due():
            yield from self._surveyed("survey")
        if self.recover_every is not None and self._recovery.round_due(self.recover_every) and not self._closed:
            yield from self._recovered(begin)
        return self._look_every()

    def _surveyed(self, kind: str) -> Asking[None]:
        """Count the runs in the store, if that is needed. `kind`: the kind of round that is reported to the hooks."""
        try:
            with self._round(kind) as context:
                if not self._surveys:
                    return
                yield self._reported(context)
                survey = yield from self._recovery.survey(self._names(), self.recover_every)
                if StoreSurveyed in self._settings.hooks.wanted:
                    event = StoreSurveyed("", "", self._settings.clock(), {}, *survey, self._is_open)
                    self._emit(event, context)
        except Exception as error:  # noqa: BLE001 - runs that cannot be counted may still be resumed
            log.warning("the runs in the store could not be counted: %s", safe_str(error, 200))

    def _look_every(self) -> float | None:
        """The seconds between two looks at the store, for recovery or for surveys, or None if neither is needed."""
        wanted = StoreSurveyed in self._settings.hooks.wanted
        every = [SURVEY_EVERY] if wanted or self.recover_every is not None else []
        return min([*every, *([] if self.recover_every is None else [self.recover_every])], default=None)

    def _looks_once_more(self) -> bool:
        """Whether the caller must plan one more look at the store, for the time when the present leases would have
        expired. It must if the engine does not recover regularly and no such look is planned yet."""
        if not self.store.durable or self.recover_every is not None or not self.workflows or self._looks_again:
            return False
        self._looks_again = True
        return True

    def _resumed(self, workflow: Workflow[Any], key: str, run_id: str) -> RunState:
        return self._requested(workflow, None, key, recovering=run_id)

    # -- values that are sent ------------------------------------------------------------------------------------------

    def _sent(self, key: str, wait: Step[Any] | str, value: Any, id: str | None) -> Asking[tuple[bool, bool]]:  # noqa: A002
        """Send a value, for `send`. Returns whether it counts, and whether the run may wait in the store and be due."""
        name, id = names_of_sent(wait, id)  # noqa: A001 - as in `send`
        if is_awaitable(value):
            raise DefinitionError(
                f"A {type(value).__name__} cannot be sent to wait {safe_repr(name)}. Await it, and send its result."
            )
        sent = made_here(self._settings, own_copy(value), id, announce(self._settings, key, name))
        if self._knows_alone(key):
            return counts_as(self._live.deliver(key, name, sent), sent), False
        counts, first = yield from accepted(self.store, key, name, sent)
        if not counts or not self.store.durable:
            return counts, False
        woken = self._local.wake_sleepers(key)
        taken = first is not None and self._live.deliver(key, name, first) is not None
        return True, not taken and not woken and bool(self.workflows)

    def _knows_alone(self, key: str) -> bool:
        """Whether this engine has a run in memory with this key or id that its store does not know."""
        return not self.store.durable and any(not run.claimed for run in self._live.with_key(key))

    def _due(self, key: str) -> Asking[RunState | None]:
        """The run with this key, to be resumed, if it waits in the store and is due; otherwise None."""
        try:
            return (yield from self._recovery.resume(self._resumed, key))
        except Exception as error:  # noqa: BLE001 - the next round tries again
            log.warning("a run could not be resumed at once: %s: %s", type(error).__name__, safe_str(error, 200))
            return None
