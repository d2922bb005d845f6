"""The heartbeat: one thread per engine that renews the leases of its durable runs."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import logging
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from ..errors import safe_str
from ..events import Hooks, MaintenanceFinished, MaintenanceStarted, StoreCalled
from ..forks import after_fork_in_child
from ..run import Sent
from ..status import Status
from ..stores.base import Lease, Renewal

if TYPE_CHECKING:
    from .._kernel.run_state import RunState

__all__ = ["Leases"]

_BEATS: Final = 3
"""renewals per lease"""
_RETRIES: Final = 12
"""tries per lease after a renewal has failed: so an outage of half a lease costs no run, whenever it begins"""
_log = logging.getLogger("flowcore")


class Leases:
    """Renews the leases of the runs that `join`, until they `leave`: all in one call of the store, every third of a
    lease. It survives any error of the store, because runs fence themselves by `lease_until`. Thread-safe.

    The thread is started with the first run. It ends when it has had nothing to do for a lease, so that an engine that
    is no longer used leaves no thread behind. It calls `on_lost` with each run that another owner has, and `on_cancel`
    with each run that an operator wants cancelled or undone. `on_sent` is called with each run to which new values were
    sent, and all values of that run. If the store's `renew` is a coroutine function, it runs in an event loop of the
    thread.
    """

    def __init__(
        self,
        store: Any,
        lease: float,
        hooks: Hooks,
        on_lost: Callable[[RunState], None],
        on_cancel: Callable[[RunState, Renewal], None],
        on_sent: Callable[[RunState, Mapping[str, Sent]], None],
    ) -> None:
        self._store = store
        self._lease = lease
        self._hooks = hooks
        self._on_lost = on_lost
        self._on_cancel = on_cancel
        self._on_sent = on_sent
        self._failing = False  # the latest renewal failed
        self._closed = False
        self._after_fork()
        after_fork_in_child(self, Leases._after_fork)

    def _after_fork(self) -> None:
        """Start without runs and without a thread, also in a child process: its parent's runs stay with the parent."""
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._runs: dict[RunState, Lease] = {}
        self._thread: threading.Thread | None = None

    def join(self, run: RunState) -> None:
        """Renew the lease of `run`, which has just been claimed, from now on."""
        with self._lock:
            self._runs[run] = Lease(run.stored_key, run.run_id, run.fence)
            if self._thread is None or not self._thread.is_alive():  # an error may have ended it
                self._start()

    def _start(self) -> None:
        """(lock) Start the thread. If the process cannot start one, only checkpoints renew leases, and the next run that
        is claimed tries again."""
        thread = threading.Thread(target=self._beat, name="flowcore-leases", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            _log.warning("no thread renews the leases of runs: %s", error)
        else:
            self._thread = thread

    def leave(self, run: RunState) -> None:
        """Stop renewing the lease of `run`, which is over."""
        with self._lock:
            self._runs.pop(run, None)

    def close(self) -> None:
        """End the thread now."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    def _beat(self) -> None:
        # The loop is made by its first use, for an async store: that needs files, which the process may not get at once.
        with closing(asyncio.Runner()) as loop:
            idle, renewed = 0, True
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: self._closed, self._lease / (_BEATS if renewed else _RETRIES))
                    idle = 0 if self._runs else idle + 1
                    if idle > _BEATS or self._closed:
                        self._thread = None
                        return
                    runs = {run: _as_known(run, lease) for run, lease in self._runs.items()}
                renewed = not runs or self._renew(runs, loop)

    def _renew(self, runs: dict[RunState, Lease], loop: asyncio.Runner) -> bool:
        """Renew these leases once. Returns False if the call of the store failed."""
        context, at = contextvars.Context(), time.monotonic()
        event = MaintenanceStarted("", "", at, {}, "heartbeat")
        scopes = self._hooks.enter(event, context)
        failure = None
        try:
            ours = context.run(self._asked, list(runs.values()), loop)
        except BaseException as error:  # noqa: BLE001 - the next renewal may succeed, whatever a client has raised
            failure = error
            if not self._failing:  # log only the first failure in a row
                _log.warning("leases could not be renewed: %s: %s", type(error).__name__, safe_str(error, 200))
        else:
            sent_to: list[RunState] = []
            for (run, _), renewal in zip(runs.items(), ours, strict=True):
                ended = run not in self._runs
                if renewal is Renewal.LOST and not ended:
                    self._on_lost(run)
                elif renewal in {Renewal.CANCEL, Renewal.UNDO} and not ended:
                    self._on_cancel(run, renewal)
                elif renewal is Renewal.SENT and not ended:
                    sent_to.append(run)
                if renewal is not Renewal.LOST and run.ledger is not None:
                    run.ledger.extend_lease(at + self._lease)
            for run in sent_to:  # last, because a slow store must not delay the extension of any lease
                self._fetch(run, loop, context)
        self._failing = failure is not None
        now = time.monotonic()
        outcome = Status.SUCCESS if failure is None else Status.FAILURE
        if StoreCalled in self._hooks.wanted:
            called = StoreCalled("", "", now, {}, self._store.name, "renew", outcome, now - at, failure)
            self._hooks.emit(called, context)
        if MaintenanceFinished in self._hooks.wanted:
            self._hooks.emit(MaintenanceFinished("", "", now, {}, "heartbeat", now - at, failure, time.time()), context)
        if scopes is not None:
            self._hooks.exit(scopes, context, event, failure)
        return failure is None

    def _fetch(self, run: RunState, loop: asyncio.Runner, context: contextvars.Context) -> None:
        """Read the values that were sent to a run. If that fails, they are read at the next renewal, or when the run
        only waits."""
        find = self._store.find
        try:
            if inspect.iscoroutinefunction(find):
                record = loop.run(find(run.stored_key), context=context)
            else:
                record = context.run(find, run.stored_key)
        except BaseException as error:  # noqa: BLE001 - the next renewal reads them again
            _log.warning("the values sent to run %s could not be read: %s", run.run_id, safe_str(error, 200))
            return
        if record is not None and record.run_id == run.run_id:
            self._on_sent(run, record.sent)

    def _asked(self, leases: list[Lease], loop: asyncio.Runner) -> list[Renewal]:
        renew = self._store.renew
        if inspect.iscoroutinefunction(renew):
            answer: list[Renewal] = loop.run(renew(leases, self._lease), context=contextvars.copy_context())
        else:
            answer = renew(leases, self._lease)
        return answer


def _as_known(run: RunState, lease: Lease) -> Lease:
    """Return the lease of a run with the number of sent values that are known here."""
    return lease if run.waits is None else replace(lease, received=len(run.waits.sent))
