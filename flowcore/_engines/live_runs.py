"""The runs in flight of an engine, and what happens to them from outside: lost, woken, parked, handed over, sent to."""

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

__all__ = ["CLOSED", "RELEASED", "LiveRuns", "is_meant", "left", "stopped", "unbegun"]

D = TypeVar("D")
"""what drives a run"""
CLOSED: Final = "its engine was closed"
RELEASED: Final = 0.001
"""seconds: the lease that releases a run to other engines"""


class LiveRuns(dict[RunState, D | None], ABC):
    """The runs in flight of an engine, and what drives each of them; None: it runs inline.

    It knows neither the engine nor its settings, so that what is called from elsewhere (leases, the store, the end of the
    interpreter) can hold it without keeping the engine alive.
    """

    @abstractmethod
    def stop(self, run: RunState, *, cancel: bool) -> None:
        """Have the driver of a run act on it: end its waits, and, with `cancel`, its calls. From any thread."""

    @abstractmethod
    def look(self, run: RunState) -> None:
        """Have the driver of a run look for what the run waits for. From any thread."""

    def __init__(self) -> None:
        super().__init__()
        self.left: dict[RunState, None] = {}
        """runs that were left to their store a moment ago, and whose callers have not been given anything yet"""

    def clear(self) -> None:
        """Forget them all, as a forked child does."""
        super().clear()
        self.left.clear()

    def note_left(self, run: RunState) -> None:
        """The run is about to be taken out. If it is left to its store, its caller, if it has one, calls `follow` next."""
        if run.finished is Status.WAITING and not run.request.unattended:
            self.left[run] = None

    def follow(self, run: RunState) -> None:
        """What continues a run that was left to its store is in flight, or its caller is given what there is."""
        self.left.pop(run, None)

    def find(self, run_id: str | None, key: str | None) -> RunState | None:
        """The run with this id or key, to be cancelled: one in flight, or one that is between being left and being continued."""
        # A run that moves on while this looks is found at its next place: they are looked at in that order.
        for run in chain(list(self), list(self.left), list(self)):
            if is_meant(run, run_id, key):
                return run
        return None

    def lose(self, run: RunState) -> None:
        """The store says that another process owns the run: start and undo nothing more of it."""
        lose(run)
        self.stop(run, cancel=True)

    def cancel_through_store(self, run: RunState, order: Renewal) -> None:
        """An operator wants the run cancelled, or undone, through the store."""
        if obey(run, order):
            self.stop(run, cancel=True)

    def wake(self, run: RunState) -> None:
        """The run that `run` waits for is over."""
        self.stop(run, cancel=False)

    def park(self, why: str) -> None:
        """Park the durable ones; their calls may end."""
        for run in list(self):
            if run.settings.durable:
                stopping.park(run, parked(run, why))
                self.stop(run, cancel=False)

    def park_dormant(self) -> None:
        """Leave the runs that wait in their store to other engines."""
        for run in list(self):
            if run.dormant:
                stopping.park(run, left(run))
                self.stop(run, cancel=False)

    def hand_over(self, why: str) -> None:
        """Park these runs, or cancel those that are in memory only, because this process stops."""
        for run in list(self):
            if stopping.hand_over(run, stopped(run, why)):
                self.stop(run, cancel=True)

    # -- values that are sent to them ----------------------------------------------------------------------------------

    def with_key(self, key: str) -> list[RunState]:
        """The runs that have a key, or that id: not those that wait for one of them."""
        found = [run for run in list(self) if run.key == key or (run.key is None and run.known_id == key)]
        claimed = [run for run in found if run.claimed]
        return claimed or [run for run in found if run.request.wait is None]

    def hand_on(self, key: str, name: str, sent: Sent) -> Sent | None:
        """Give what was sent to the runs that have this key. Returns what counts, or None if there is no such run. Raises
        SendRefused if a run in memory does not wait for it."""
        counts: Sent | None = None
        for run in self.with_key(key):
            # The store of a durable run has decided already.
            first = keep(run, name, sent) if run.settings.durable else receive(run, name, sent)
            counts = counts or first
            if first is sent and self.get(run) is not None:
                if run.on_pause is not None:
                    run.on_pause(None)
                self.look(run)
        return counts

    def fetched(self, run: RunState, sent: Mapping[str, Sent]) -> None:
        """What was sent to a run through its store, elsewhere."""
        for name, value in sent.items():
            keep(run, name, value)
        self.look(run)


def is_meant(run: RunState, run_id: str | None, key: str | None) -> bool:
    """Whether an id or a key names this run."""
    if run_id is not None and run_id in {run.known_id, run.request.recovering}:
        return True
    return key is not None and run.key == key


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
