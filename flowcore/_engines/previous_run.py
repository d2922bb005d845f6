"""Which run of a schedule is the latest, and whether it is in progress: learned from the records of its fires.

Like the scheduler's methods, these are programs: they yield calls of the store.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable
from datetime import datetime
from functools import partial
from typing import Any, Final, TypeGuard

from .._durable.recovery import StoreCall
from .._kernel.settings import Settings
from ..fires import LOG, fire_key, fire_of
from ..schedule import Schedule
from ..status import Status
from ..stores.base import LIVE, RELEASED, RunRecord, Store
from ..stores.decide import has_outcome

__all__ = ["PreviousRun", "first_decided", "is_decided", "latest_run"]

_ABANDONED: Final = 300.0
"""seconds (or ten leases, if that is longer) after which a run without a live owner no longer blocks fires"""


def is_decided(head: RunRecord | None) -> TypeGuard[RunRecord]:
    """Whether an engine has decided on the fire with this record. A claim that was withdrawn has decided nothing."""
    return head is not None and (head.status not in RELEASED or head.held or has_outcome(head))


def first_decided(
    store: Store, schedule: Schedule, fires: Iterable[datetime]
) -> Generator[StoreCall, Any, tuple[datetime, RunRecord] | None]:
    """The first of these fires on which an engine has decided, and the head of its record."""
    for fire in fires:
        head = yield partial(store.head, fire_key(schedule.name, fire))
        if is_decided(head):
            return fire, head
    return None


def latest_run(store: Store, key: str, head: RunRecord) -> Generator[StoreCall, Any, str | None]:
    """The key of the run that was the latest once an engine had decided on the fire with this key. If the fire was
    begun, this is its own run; if it was skipped, the run that its record names, or None."""
    if head.workflow != LOG:
        return key
    record = yield partial(store.find, key)
    return None if record is None else record.values.get("in_progress")


class PreviousRun:
    """The latest run of a schedule that this engine knows of. `key`: None if it knows of none."""

    def __init__(self, settings: Settings, name: str) -> None:
        self.key: str | None = None
        self._store = settings.store
        self._name = name
        self._lease = settings.lease

    def note(self, key: str | None, moment: datetime) -> None:
        """Take this run as the latest, unless a later one, of a fire up to `moment`, is known. A known run of a later
        fire was begun before the clock was set back, and does not count."""
        fire, known = fire_of(key), fire_of(self.key)
        if fire is not None and (known is None or known < fire or known > moment):
            self.key = key

    def saw(self, fire: datetime, head: RunRecord, moment: datetime) -> Generator[StoreCall, Any, None]:
        """Note what the record of a fire says about the latest run. `moment`: see `note`."""
        self.note((yield from latest_run(self._store, fire_key(self._name, fire), head)), moment)

    def is_decided(self, fire: datetime) -> Generator[StoreCall, Any, bool]:
        """Whether an engine has decided on a fire. If so, its record says which run is the latest."""
        head: RunRecord | None = yield partial(self._store.head, fire_key(self._name, fire))
        if not is_decided(head):
            return False
        yield from self.saw(fire, head, fire)
        return True

    def in_progress(self, now: float) -> Generator[StoreCall, Any, str | None]:
        """The key of the latest run if it is in progress, or else None."""
        head = yield from self._head()
        return self.key if head is not None and self._blocks(head, now) else None

    def ended(self, now: float) -> Generator[StoreCall, Any, float | None]:
        """When the latest run ended: `now` if it is in progress, None if that is not known."""
        head = yield from self._head()
        if head is None:
            return None
        return now if self._blocks(head, now) else head.finished

    def _head(self) -> Generator[StoreCall, Any, RunRecord | None]:
        return None if self.key is None else (yield partial(self._store.head, self.key))

    def _blocks(self, head: RunRecord, now: float) -> bool:
        """Whether a run is in progress. A run that has had no live owner for long (see `_ABANDONED`) is not."""
        if head.held or head.status not in {*LIVE, Status.WAITING, Status.PARKED}:
            return False
        if head.status is Status.WAITING or (head.status in LIVE and head.expires is None):
            return True
        left = head.expires or head.finished or head.started
        return now - left < max(_ABANDONED, 10 * self._lease)
