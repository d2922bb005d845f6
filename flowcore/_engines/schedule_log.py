"""The log of a schedule in a durable store: since when the schedule's fires count, and which of them were skipped.

An entry is a record without a run, claimed with `once=`: the first engine that writes it decides for all. The store
deletes ended records after its retention. Entries are therefore renewed twice in that time, in periods that all engines
share.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import islice
from typing import Any, Final

from .._durable.recovery import StoreCall
from ..errors import DefinitionError, FlowcoreError
from ..fires import LOG, fire_key, log_key
from ..schedule import Schedule
from ..status import Status
from ..stores.base import Claim, Claimed, Ending, RunRecord, Store
from .previous_run import first_decided, latest_run

__all__ = ["Log"]

_CHANGES: Final = 1000
"""the most entries in one period"""
_ROUNDS: Final = 5
"""how often an engine tries to make its own definition of a schedule the last entry"""
_LOOKED_BACK: Final = 1000
"""the most fires of the replaced definition that are looked up to find its latest run"""
_NOTHING_BEFORE: Final = {"before": None, "in_progress": None}
"""the fields of an entry about an earlier definition, and its latest run, if the schedule has always had the same
times"""


class Log:
    """The log of one schedule. `period`: seconds after which entries are renewed.

    `other`: the definition with other times that engines had before this one, or still have during a deploy; None if no
    engine has had one lately. `in_progress`: the key of the latest known run of `other`, or None.
    """

    def __init__(
        self, store: Store, schedule: Schedule, period: float, lease: float, new_id: Callable[[], str]
    ) -> None:
        self.other: Schedule | None = None
        self.in_progress: str | None = None
        self._store = store
        self._schedule = schedule
        self._period = period
        self._lease = lease
        self._new_id = new_id
        self._read_in: int | None = None  # the period in which this engine last read or renewed the log
        self._seen = (0, -1)  # period and number of the last entry that this engine knows

    def outdated(self, now: float) -> bool:
        """Whether a new period has begun since this engine last read or renewed the log."""
        return self._read_in != int(now // self._period)

    def open(self, now: float) -> Generator[StoreCall, Any, float]:
        """Since when this schedule's fires count, in seconds since the epoch: since engines first had its present
        definition, by the store's clock. Appends an entry if the last one is out of date."""
        current = int(now // self._period)
        for _ in range(_ROUNDS):
            period, number, record = yield from self._last(current)
            known = {} if record is None else {**_NOTHING_BEFORE, **record.values}
            same = record is not None and self._is_same(record.values)
            since = _since(record) if record is not None and same else None
            before = known if record is None or same else (yield from self._before(known, now))
            kept = {name: before.get(name) for name in _NOTHING_BEFORE}
            wanted = {**self._schedule.to_record(), "since": since, **kept}
            if record is not None and same and period == current and {**known, "since": since} == wanted:
                self._read_in, self._seen = current, (period, number)
                self.other, self.in_progress = _definition(kept["before"]), kept["in_progress"]
                return _since(record)
            yield from self._append(current, number + 1 if period == current else 0, wanted)
        return now

    def _before(self, values: Mapping[Any, Any], now: float) -> Generator[StoreCall, Any, dict[str, Any]]:
        """The fields of a new entry about the definition that it replaces, and that definition's latest run. `values`:
        the entry of the replaced definition."""
        before, key = _definition(values), values["in_progress"]
        if before is None:
            return {"before": None, "in_progress": key}
        moment = datetime.fromtimestamp(now, UTC)
        floor = moment - timedelta(seconds=self._period)
        fires = islice(before.before(moment, floor), _LOOKED_BACK)
        found = yield from first_decided(self._store, before, fires)
        if found is not None:
            key = (yield from latest_run(self._store, fire_key(before.name, found[0]), found[1])) or key
        return {"before": before.to_record(), "in_progress": key}

    def look(self) -> Generator[StoreCall, Any, None]:
        """Notice an entry with another definition, which other engines have appended meanwhile."""
        period, number = self._seen
        while number < _CHANGES and (yield self._head(period, number + 1)) is not None:
            number += 1
        if number != self._seen[1]:
            record = yield partial(self._store.find, log_key(self._schedule.name, period, number))
            if record is not None and not self._is_same(record.values):
                self.other = _definition(record.values)
            self._seen = (period, number)

    def renew(self, now: float) -> Generator[StoreCall, Any, None]:
        """Copy the last entry into the present period, unless it was written with another definition. The copy names no
        other definition, because a deploy does not take that long."""
        current = int(now // self._period)
        period, number, record = yield from self._last(current)
        if record is not None and period < current and self._is_same(record.values):
            kept = {"before": None, "in_progress": record.values.get("in_progress")}
            yield from self._append(current, 0, {**self._schedule.to_record(), "since": _since(record), **kept})
            period, number = current, -1
        self._read_in, self._seen = current, (period, number)

    def skip(self, key: str, values: Mapping[str, Any], reason: str) -> Generator[StoreCall, Any, bool]:
        """Record that the fire with this key is not begun. Returns whether this engine is the first to decide on it."""
        return (yield from self._write(key, values, Status.FAILURE, reason))

    def _is_same(self, values: Mapping[Any, Any]) -> bool:
        return (values.get("cron"), values.get("every"), values.get("timezone")) == self._schedule.times

    def _last(self, current: int) -> Generator[StoreCall, Any, tuple[int, int, RunRecord | None]]:
        """The period, the number and the record of the last entry, in the current period or else in the previous one.
        The number is -1 and the record None if there is no entry."""
        for period in (current, current - 1):
            number = 0
            while number < _CHANGES and (yield self._head(period, number)) is not None:
                number += 1
            if number:
                record = yield partial(self._store.find, log_key(self._schedule.name, period, number - 1))
                return period, number - 1, record
        return current, -1, None

    def _head(self, period: int, number: int) -> StoreCall:
        return partial(self._store.head, log_key(self._schedule.name, period, number))

    def _append(self, period: int, number: int, values: Mapping[str, Any]) -> Generator[StoreCall, Any, bool]:
        return (yield from self._write(log_key(self._schedule.name, period, number), values, Status.SUCCESS, None))

    def _write(
        self, key: str, values: Mapping[str, Any], status: Status, reason: str | None
    ) -> Generator[StoreCall, Any, bool]:
        """Write a record that has ended. Returns False if another engine has written, or is writing, a record with this
        key."""
        claim = Claim(key, self._new_id(), LOG, "", LOG, {}, values, self._lease, once=True)
        try:
            answer = yield partial(self._store.claim, claim)
            if not isinstance(answer, Claimed):
                return False
            found = answer.record  # claimed by an engine that died before it ended the record
            run_id = claim.run_id if found is None else found.run_id
            record = RunRecord(key, run_id, LOG, "", LOG, status, generation=answer.generation, fence=answer.fence)
            record.reason = reason
            # Other claims with once= then find an outcome.
            record.error = None if reason is None else FlowcoreError(reason)
            refused = yield partial(self._store.finish, Ending(record))
        except (FlowcoreError, OSError):
            yield partial(self._store.withdraw, claim)  # the next try must not find a record that this one has begun
            raise
        return refused is None


def _definition(values: Mapping[Any, Any] | None) -> Schedule | None:
    """The definition that an entry has recorded, or None if this process cannot read it."""
    try:
        return None if values is None else Schedule.from_record(values)
    except (DefinitionError, ImportError, KeyError, TypeError):
        return None


def _since(record: RunRecord) -> float:
    """Since when fires count, according to this entry, or else since it was written."""
    return float(record.values.get("since") or record.started)
