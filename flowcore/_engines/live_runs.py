"""The runs in flight of an engine, and how to act on them from outside: to cancel, wake or park them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from itertools import chain
from typing import Final, TypeVar

from .._durable.checkpoints import lose, obey, parked
from .._kernel import stopping
from .._kernel.run_state import RunState
from .._kernel.wait_steps import keep, receive
from ..errors import RunParked, StepCancelled, safe_repr
from ..run import Sent
from ..status import Status
from ..stores.base import Renewal

__all__ = ["CLOSED", "NOT_RELEASED", "RELEASED", "LiveRuns", "is_meant", "left_error", "stopped_error", "unbegun_error"]

D = TypeVar("D")
"""the driver of a run"""
CLOSED: Final = "its engine was closed"
NOT_RELEASED: Final = "queued runs were not released within %g s; their lease ends if the store stays unreachable"
"""a message for the log"""
RELEASED: Final = 0.001
"""seconds: a lease that ends at once, and so releases a run to other engines"""


class LiveRuns(dict[RunState, D | None], ABC):
    """The runs in flight of an engine, each with its driver, or with None if it runs inline.

    This object refers neither to the engine nor to its settings, so that callbacks (of leases, the store, and the
    interpreter's exit) can refer to it without keeping the engine alive.
    """

    @abstractmethod
    def stop(self, run: RunState, *, cancel: bool) -> None:
        """Have the driver of a run end the run's waits and, with `cancel`, its calls. May be called from any thread."""

    @abstractmethod
    def look(self, run: RunState) -> None:
        """Have the driver of a run check whether something that the run waits for has arrived. May be called from any
        thread."""

    def __init__(self) -> None:
        super().__init__()
        self.left: dict[RunState, None] = {}
        """runs that were left to their store a moment ago, while their callers still wait"""

    def clear(self) -> None:
        """Forget all runs, as a forked child does."""
        super().clear()
        self.left.clear()

    def note_left(self, run: RunState) -> None:
        """Call this before a run is removed from here. If the run is left to its store and has a caller, it is kept in
        `left` until `follow` is called."""
        if run.finished is Status.WAITING and not run.request.unattended:
            self.left[run] = None

    def follow(self, run: RunState) -> None:
        """Call this once the continuation of a run that was left to its store is in flight, or its caller has a Run."""
        self.left.pop(run, None)

    def find(self, run_id: str | None, key: str | None) -> RunState | None:
        """The run with this id or key, or None: one in flight, or one left to its store that is about to continue. A run
        that has claimed its key is preferred to one that has not."""
        # A run may move from one collection to the next meanwhile, so they are searched in the order of its moves.
        found = [run for run in chain(list(self), list(self.left), list(self)) if is_meant(run, run_id, key)]
        return next((run for run in found if run.claimed), found[0] if found else None)

    def lose(self, run: RunState) -> None:
        """Start and undo nothing more of a run, because the store says that another process owns it."""
        lose(run)
        self.stop(run, cancel=True)

    def cancel_through_store(self, run: RunState, order: Renewal) -> None:
        """Obey an operator who has ordered, through the store, to cancel or undo a run."""
        if obey(run, order):
            self.stop(run, cancel=True)

    def wake(self, run: RunState) -> None:
        """Wake a run because the run that it waits for is over."""
        self.stop(run, cancel=False)

    def release(self, why: str) -> None:
        """Leave the durable runs to other owners. Their calls in flight may end."""
        for run in list(self):
            if run.settings.durable:
                stopping.release(run, parked(run, why))
                self.stop(run, cancel=False)

    def park_dormant(self) -> None:
        """Leave the runs that wait in their store to other engines."""
        for run in list(self):
            if run.dormant:
                stopping.release(run, left_error(run))
                self.stop(run, cancel=False)

    def hand_over(self, why: str) -> None:
        """Park the durable runs, and cancel those in memory, because this process or the engine stops."""
        for run in list(self):
            if stopping.hand_over(run, stopped_error(run, why)):
                self.stop(run, cancel=True)

    # -- values that are sent to them ----------------------------------------------------------------------------------

    def with_key(self, key: str) -> list[RunState]:
        """The runs with this key (or, if a run has no key, this id), but not calls that only wait for such a run."""
        found = [run for run in list(self) if is_meant(run, None, key) or (run.key is None and run.known_id == key)]
        claimed = [run for run in found if run.claimed]
        # A caller whose run waits in its store learns of the value there.
        return claimed or [run for run in found if run.request.recovering is None or run.request.unattended]

    def deliver(self, key: str, name: str, sent: Sent) -> Sent | None:
        """Pass a value to the runs with this key. Returns the value that counts, which may be an earlier one, or None
        if there is no such run. Raises SendRefused if a run in memory does not wait for it."""
        counts: Sent | None = None
        for run in self.with_key(key):
            # The store of a durable run has already decided which value counts.
            first = keep(run, name, sent) if run.settings.durable else receive(run, name, sent)
            counts = counts or first
            if first is sent and self.get(run) is not None:
                if run.on_pause is not None:
                    run.on_pause(None)
                self.look(run)
        return counts

    def fetched(self, run: RunState, sent: Mapping[str, Sent]) -> None:
        """Pass on the values that were sent to a run elsewhere, through its store."""
        for name, value in sent.items():
            keep(run, name, value)
        self.look(run)


def is_meant(run: RunState, run_id: str | None, key: str | None) -> bool:
    """Whether an id or a key names this run. A key does not name a call that only waits for the run that has it."""
    if run_id is not None and run_id in {run.known_id, run.request.recovering}:
        return True
    return key is not None and run.key == key and not run.attached


def left_error(run: RunState) -> RunParked:
    """The error of a run that waited in its store when its engine was closed."""
    return parked(run, f"{CLOSED} while it waited")


def stopped_error(run: RunState, why: str) -> Exception:
    """The error of a run whose process or engine stops: RunParked, or StepCancelled for a run in memory."""
    if run.settings.durable:
        return parked(run, why)
    return StepCancelled(f"run {run.run_id} of {safe_repr(run.workflow.name)} was cancelled: {why}.")


def unbegun_error(run: RunState, why: str, *, recorded: bool = True) -> RunParked:
    """The error of a run that was dropped before it began. `recorded`: whether other engines may run it."""
    name = safe_repr(run.workflow.name)
    rest = (
        "It is recorded as queued, and another engine may run it."
        if recorded
        else "It was not recorded: submit it again."
    )
    return RunParked(f"run {run.run_id} of {name} has not begun: {why}. {rest}")
