"""What `Engine` and `AsyncEngine` share: they run steps in this process, recover runs of their store, and keep schedules.

What both do with the store is written once, as programs that yield calls of the store: `Engine` makes them, `AsyncEngine`
awaits them.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Collection
from functools import partial
from typing import Any, TypeVar

from .._durable.leases import Leases
from .._durable.recovery import SURVEY_EVERY, Recovery
from .._durable.waiting import LocalRuns
from .._kernel.run_state import RunState
from ..context import own_copy
from ..errors import safe_str
from ..events import StoreSurveyed
from ..workflow import Workflow
from .asking import Asking
from .base import log
from .checks import whole
from .live_runs import LiveRuns
from .periodic import PeriodicEngine
from .sending import announce, counts_as, made_here

__all__ = ["LocalEngine"]

T = TypeVar("T")


class LocalEngine(PeriodicEngine):
    """An engine that runs steps in this process."""

    _live: LiveRuns[Any]
    _recovery: Recovery
    _looks_again = False
    """whether it will look at the store once more, when leases of now would be over"""

    @abstractmethod
    def _begin_looking(self) -> None:
        """Look at the store from time to time from now on, for recovery or for surveys."""

    def _recover_also(self, workflow: Workflow[Any]) -> None:
        """Resume the runs of this workflow too, every lease if the engine has recovered none so far."""
        if workflow not in self.workflows:
            self.workflows = (*self.workflows, workflow)
            self._recovery.include(workflow)
        if self.recover_every is None:
            self.recover_every = self.lease
            self._begin_looking()

    def _keep_runs(self, live: LiveRuns[Any], local: LocalRuns, at_once: int | None) -> Leases | None:
        """Know the runs in flight, and what recovery, leases and the store have to do with them. Returns what keeps their
        leases; None where the store gives none. Nothing of this keeps the engine alive."""
        self._live, self._local, self._claims.local = live, local, local
        room = max(1, self.max_workers // 2) if at_once is None else whole(at_once, "recover_at_once=")
        self._recovery = Recovery(self._settings, self.workflows, partial(list[RunState], live), at_once=room)
        listen = getattr(self.store, "listen", None)
        if listen is not None:  # it says what is sent to runs
            listen(live.hand_on)
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
        """Whether a hook wants to know what waits in the store, or recovery must notice runs that it cannot resume."""
        return StoreSurveyed in self._settings.hooks.wanted or bool(self.workflows)

    @property
    def _known(self) -> set[str]:
        """The names of the workflows that this engine recovers or has run."""
        with self._lock:
            return {workflow.name for workflow in self._registered}

    def _recovered(
        self, begin: Callable[[list[RunState]], T], skip: Collection[str | None] = (), *, fresh: bool = False
    ) -> Asking[T]:
        """One round of recovery: `begin` the runs that it finds, except those with an id in `skip`; `fresh`: of a list made
        now. Returns what `begin` returns."""
        found: list[RunState] = []
        with self._round() as context:
            yield context
            yield from self._recovery.round(self._resumed, found.append, skip, fresh=fresh)
            return begin(found)

    def _recovered_late(self, begin: Callable[[list[RunState]], object]) -> Asking[None]:
        """A round of recovery that no caller waits for."""
        self._looks_again = False
        if self._closed:
            return
        try:
            yield from self._recovered(begin)
        except Exception as error:  # noqa: BLE001 - see above
            log.warning("a recovery round failed: %s: %s", type(error).__name__, safe_str(error, 200))

    def _looked(self, begin: Callable[[list[RunState]], object]) -> Asking[float | None]:
        """Count what waits in the store, if that is due, and `begin` what is to be resumed. Returns the seconds until the next
        look."""
        if self._surveys and self._recovery.survey_due():
            yield from self._surveyed("survey")
        if self.recover_every is not None and self._recovery.round_due(self.recover_every) and not self._closed:
            yield from self._recovered(begin)
        return self._look_every()

    def _surveyed(self, kind: str) -> Asking[None]:
        """Count what waits in the store, as a round of this kind, if anything wants that."""
        with self._round(kind) as context:
            if not self._surveys:
                return
            yield context
            try:
                survey = yield from self._recovery.survey(self._known)
            except Exception as error:  # noqa: BLE001 - what cannot be counted may still be resumed
                log.warning("what waits in the store could not be counted: %s", safe_str(error, 200))
                return
            if StoreSurveyed in self._settings.hooks.wanted:
                self._tell(StoreSurveyed("", "", self._settings.clock(), {}, survey.counts, survey.waiting), context)

    def _look_every(self) -> float | None:
        """Seconds between two looks at the store, for recovery or for surveys; None: nothing wants them."""
        wanted = StoreSurveyed in self._settings.hooks.wanted
        every = [SURVEY_EVERY] if wanted or self.recover_every is not None else []
        return min([*every, *([] if self.recover_every is None else [self.recover_every])], default=None)

    def _looks_once_more(self) -> bool:
        """Whether it is to look again when the leases of this moment would be over, which no loop does; true once."""
        if not self.store.durable or self.recover_every is not None or not self.workflows or self._looks_again:
            return False
        self._looks_again = True
        return True

    def _resumed(self, workflow: Workflow[Any], key: str, run_id: str) -> RunState:
        return self._requested(workflow, None, key, recovering=run_id)

    # -- values that are sent ------------------------------------------------------------------------------------------

    def _sent(self, key: str, name: str, value: Any, id: str | None) -> Asking[tuple[bool, bool]]:  # noqa: A002
        """Send a value, as `send`. Returns whether it counts, and whether the run may wait in the store and be due."""
        kept, carrier = own_copy(value), announce(self._settings, key, name)
        if self._knows_alone(key):
            sent = made_here(self._settings, kept, id, carrier)
            return counts_as(self._live.hand_on(key, name, sent), sent), False
        counts = yield partial(self.store.send, key, name, kept, id=id, carrier=carrier)
        if not counts or not self.store.durable:
            return counts, False
        sent = made_here(self._settings, kept, id, carrier)
        woken = self._local.wake_sleepers(key)
        return True, self._live.hand_on(key, name, sent) is None and not woken and bool(self.workflows)

    def _knows_alone(self, key: str) -> bool:
        """Whether a run of this engine has this key, or this id, of which its store does not know."""
        return not self.store.durable and any(not run.claimed for run in self._live.with_key(key))

    def _due(self, key: str) -> Asking[RunState | None]:
        """The run with this key, to be resumed, if it waits in the store and is due."""
        try:
            return (yield from self._recovery.resume(self._resumed, key))
        except Exception as error:  # noqa: BLE001 - the next round may have more luck
            log.warning("a run could not be resumed at once: %s: %s", type(error).__name__, safe_str(error, 200))
            return None
