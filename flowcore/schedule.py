"""When a schedule fires: pure functions of its definition, without a clock.

cronsim reads cron expressions and finds the local times that match, by the rules of Debian's cron. This module converts
the local times to instants, because cronsim omits fires where the clocks change by half an hour. An expression with
fixed minutes and hours (`30 2 * * *`) fires once: at the first of two equal local times, and right after a gap that
skips its local time. An expression whose minutes or hours begin with `*`, or that has a field for seconds, fires
whenever the local time matches.
"""

# Arguments are checked at run time, for callers without a type checker.
# pyright: reportUnnecessaryIsInstance=false

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from functools import partial
from itertools import islice, takewhile
from typing import Any, Final, Literal, Protocol
from zoneinfo import ZoneInfo

from .errors import DefinitionError, safe_repr, safe_str
from .fires import LOG, fire_key
from .functions import take_one_argument
from .retry import Duration, seconds
from .status import Status

__all__ = ["Missed", "Overlap", "Schedule", "ScheduleStatus", "check_values", "status_of", "window_of"]

Missed = Literal["skip", "latest", "all"]
Overlap = Literal["skip", "queue", "cancel"]
_MISSED: Final = ("skip", "latest", "all")
_OVERLAP: Final = ("skip", "queue", "cancel")
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_SHORTEST: Final = timedelta(seconds=1)
_LONGEST: Final = timedelta(days=36_500)
"""the longest `every=`, so that datetime can represent the next fires"""
_A_DAY: Final = timedelta(days=1)
_RESOLUTION: Final = timedelta(seconds=1)
"""the precision with which the moment of a clock change is found"""
_NEXT: Final = 3
"""how many of the next fires a status lists"""
_LOOKED_BACK: Final = 1000
"""how many of the latest fires a status looks up to find the last one that the store knows"""
_DEFAULT_RETENTION: Final = 86_400.0
_SHORTEST_RETENTION: Final = 3600.0
_FIRST_SPAN: Final = timedelta(hours=1)
"""how far `before` looks back at first"""


class Head(Protocol):
    """The fields of a run's record that the status of a schedule needs."""

    @property
    def workflow(self) -> str: ...
    @property
    def status(self) -> Status: ...
    @property
    def reason(self) -> str | None: ...


@dataclass(frozen=True, slots=True)
class Schedule:
    """A definition of when a workflow runs. Immutable; all its times are in UTC.

    It has either `cron`, in the time zone `timezone`, or `every`, counted from 1970-01-01T00:00Z, so that all instances
    fire at the same times. `jitter`: the most seconds by which a fire is delayed. The delay is computed from a hash
    of the schedule's name and the planned time, so it is the same in every process.
    """

    name: str
    workflow: str
    cron: str | None
    every: timedelta | None
    timezone: str
    missed: Missed
    overlap: Overlap
    jitter: float
    _zone: tzinfo

    @classmethod
    def of(
        cls,
        name: Any,
        workflow: str,
        *,
        cron: Any = None,
        every: Any = None,
        timezone: Any = None,
        missed: Any = "latest",
        overlap: Any = "skip",
        jitter: Any = 0,
    ) -> Schedule:
        """Return the schedule that these options describe. Raises DefinitionError for options that describe none, and
        ImportError for `cron=` without the extra `schedule`."""
        if not isinstance(name, str) or not name or not name.isprintable():
            raise DefinitionError(f"the name of a schedule must be a printable string, not {safe_repr(name)}.")
        if (cron is None) == (every is None):
            given = "neither" if cron is None else "both"
            raise DefinitionError(f"schedule {safe_repr(name)} takes either cron= or every=, but got {given}.")
        if every is not None and timezone is not None:
            raise DefinitionError(
                f"schedule {safe_repr(name)}: timezone= is only for cron=. every= counts elapsed time, which is the "
                "same in every zone."
            )
        for value, words, option in ((missed, _MISSED, "missed="), (overlap, _OVERLAP, "overlap=")):
            if not isinstance(value, str) or value not in words:
                raise DefinitionError(f"{option} must be one of {', '.join(words)}, not {safe_repr(value)}.")
        period = None if every is None else _period(every, name)
        delay = seconds(jitter, f"jitter= of schedule {safe_repr(name)}")
        if delay == math.inf:
            raise DefinitionError(f"jitter= of schedule {safe_repr(name)} must be finite.")
        zone_name, zone = _zone("UTC" if timezone is None else timezone)
        made = cls(str.__str__(name), workflow, cron, period, zone_name, missed, overlap, delay, zone)
        if period is None:
            made.check_cron()
        return made

    @classmethod
    def from_record(cls, values: Mapping[Any, Any]) -> Schedule:
        """Return the schedule that a store has recorded. Raises what `of` raises."""
        return cls.of(
            values["schedule"],
            values["workflow"],
            cron=values["cron"],
            every=values["every"],
            timezone=None if values["cron"] is None else values["timezone"],
            missed=values["missed"],
            overlap=values["overlap"],
            jitter=values["jitter"],
        )

    def to_record(self) -> dict[str, Any]:
        """Return what a store records of the schedule."""
        return {
            "schedule": self.name,
            "workflow": self.workflow,
            "cron": self.cron,
            "every": None if self.every is None else self.every.total_seconds(),
            "timezone": self.timezone,
            "missed": self.missed,
            "overlap": self.overlap,
            "jitter": self.jitter,
        }

    @property
    def times(self) -> tuple[object, ...]:
        """The options that decide when the schedule fires. Schedules with equal `times` have the same fires."""
        return self.cron, None if self.every is None else self.every.total_seconds(), self.timezone

    def __str__(self) -> str:
        return f"every {self.every}" if self.cron is None else f"{self.cron} {self.timezone}"

    def check_cron(self) -> None:
        """Raise DefinitionError for a cron expression that is invalid, or that never fires."""
        _cronsim()
        try:
            first = next(self._fires(_EPOCH), None)
        except Exception as error:  # noqa: BLE001 - cronsim raises other errors than its own for some invalid expressions
            why = safe_str(error) if isinstance(self.cron, str) else "it must be a string"
            raise DefinitionError(
                f"cron={safe_repr(self.cron)} of schedule {safe_repr(self.name)} is not a valid cron expression: "
                f"{why}. Use five fields: minute, hour, day of the month, month, day of the week."
            ) from None
        if first is None:
            raise DefinitionError(
                f"cron={safe_repr(self.cron)} of schedule {safe_repr(self.name)} never fires: no day in fifty years matches."
            )

    def after(self, moment: datetime) -> Iterator[datetime]:
        """Yield the fires after `moment`, in order, without end."""
        if self.every is not None:
            fire = _EPOCH + ((moment - _EPOCH) // self.every) * self.every
            while True:
                fire += self.every
                yield fire
        last = moment
        for fire in self._fires(moment):
            if fire > last:  # all local times in one gap map to one instant
                yield fire
                last = fire

    def before(self, moment: datetime, floor: datetime) -> Iterator[datetime]:
        """Yield the fires up to `moment` and after `floor`, the latest first."""
        upper, span = moment, _FIRST_SPAN
        while upper > floor:
            lower = max(floor, upper - span)
            end = upper
            chunk = list(takewhile(lambda fire: fire <= end, self.after(lower)))  # noqa: B023 - it is used at once
            yield from reversed(chunk)
            upper, span = lower, span * 2

    def due(self, fire: datetime) -> datetime:
        """Return when a fire is to begin: at its time, or up to `jitter` seconds later, but before the next fire."""
        if not self.jitter:
            return fire
        gap = (next(self.after(fire), fire + timedelta(days=1)) - fire).total_seconds()
        share = zlib.crc32(f"{self.name}|{fire.isoformat()}".encode()) / 2**32
        return fire + timedelta(seconds=min(self.jitter, gap) * share)

    def next_fires(self, moment: datetime, count: int) -> tuple[datetime, ...]:
        """Return the first `count` fires after `moment`."""
        return tuple(islice(self.after(moment), count))

    def _fires(self, moment: datetime) -> Iterator[datetime]:
        """Return the fires of the cron expression after `moment`; some may come twice."""
        fields = str(self.cron).split()
        fixed = len(fields) == 5 and not fields[0].startswith("*") and not fields[1].startswith("*")
        return self._at_fixed_times(moment) if fixed else self._at_all_times(moment)

    def _at_fixed_times(self, moment: datetime) -> Iterator[datetime]:
        """Yield one instant for each local time that matches."""
        for local in self._local_times(self._local(moment)):
            fire = local.replace(tzinfo=self._zone).astimezone(UTC)
            # A local time in a gap is read with the offset before the change, so its instant is after the change.
            yield fire if self._local(fire) == local else self._change(fire - _A_DAY, fire) or fire

    def _at_all_times(self, moment: datetime) -> Iterator[datetime]:
        """Yield each instant whose local time matches. The offset is constant between two clock changes."""
        last, local_start = moment, self._local(moment)
        changed = True
        while changed:
            changed, offset = False, self._offset(last)
            for local in self._local_times(local_start):
                fire = local.replace(tzinfo=UTC) - offset
                change = self._change(last, fire)
                if change is not None:
                    last, local_start, changed = change, self._local(change) - _RESOLUTION, True
                    break
                yield fire
                last = fire

    def _local_times(self, local: datetime) -> Iterator[datetime]:
        return iter(_cronsim().CronSim(self.cron, local))

    def _local(self, moment: datetime) -> datetime:
        return moment.astimezone(self._zone).replace(tzinfo=None)

    def _offset(self, moment: datetime) -> timedelta:
        return moment.astimezone(self._zone).utcoffset() or timedelta(0)

    def _change(self, start: datetime, end: datetime) -> datetime | None:
        """Return the first clock change after `start` and up to `end`, or None if there is none."""
        offset = self._offset(start)
        step = min(start + _A_DAY, end)
        while self._offset(step) == offset:
            if step == end:
                return None
            start, step = step, min(step + _A_DAY, end)
        while step - start > _RESOLUTION:
            middle = start + (step - start) // 2
            if self._offset(middle) == offset:
                start = middle
            else:
                step = middle
        return step.replace(microsecond=0)


@dataclass(frozen=True, slots=True)
class ScheduleStatus:
    """The state of a schedule: its next fires, and the last one. Times are in UTC."""

    schedule: Schedule
    next_fires: tuple[datetime, ...]
    """the next planned times, without jitter"""
    last_fire: datetime | None
    """the planned time of the latest fire that the store remembers; None if it remembers none"""
    last_outcome: Status | None
    """the status of that fire's run (running, success, failure and so on), or skipped"""
    reason: str | None = None
    """why that fire was skipped, or why its run is parked or held"""

    @property
    def name(self) -> str:
        """The schedule's name."""
        return self.schedule.name


def status_of(
    schedule: Schedule, store: Any, now: datetime
) -> Generator[Callable[[], Any], Head | None, ScheduleStatus]:
    """Return the status of a schedule: its next fires, and its last fire as the store has recorded it. Yields calls of
    the store."""
    head, last = None, None
    for fire in islice(schedule.before(now, now - window_of(store)), _LOOKED_BACK):
        head = yield partial(store.head, fire_key(schedule.name, fire))
        if head is not None:
            last = fire
            break
    if head is None:
        return ScheduleStatus(schedule, schedule.next_fires(now, _NEXT), None, None)
    skipped = head.workflow == LOG
    return ScheduleStatus(
        schedule, schedule.next_fires(now, _NEXT), last, Status.SKIPPED if skipped else head.status, head.reason
    )


def window_of(store: Any) -> timedelta:
    """Return how far back a schedule makes up for missed fires: half of the store's retention, at most a year.

    Within this window the store forgets no fire, so none is begun twice. Raises DefinitionError if the retention is too
    short for clocks that differ by minutes.
    """
    retention = getattr(store, "retention", _DEFAULT_RETENTION)
    if retention < _SHORTEST_RETENTION:
        raise DefinitionError(
            f"A store that forgets runs after {retention:g} seconds cannot keep a schedule's fires from being repeated. "
            f"Give it a retention= of at least {_SHORTEST_RETENTION:g} seconds."
        )
    return timedelta(seconds=min(retention / 2, 365 * 86_400))


def check_values(values: Any, name: str) -> None:
    """Raise DefinitionError unless `values=` is initial values or a function of the planned time."""
    plain = hasattr(values, "keys") or hasattr(values, "__dataclass_fields__")
    if not plain and callable(values):
        take_one_argument(values, f"values= of schedule {safe_repr(name)}", "the planned time", sync=True)


def _period(every: Duration, name: str) -> timedelta:
    number = seconds(every, f"every= of schedule {safe_repr(name)}")
    if not _SHORTEST.total_seconds() <= number <= _LONGEST.total_seconds():
        raise DefinitionError(
            f"every= of schedule {safe_repr(name)} must be at least one second and at most {_LONGEST.days:,} days, "
            f"not {safe_repr(every)}."
        )
    return every if isinstance(every, timedelta) else timedelta(seconds=number)


def _zone(timezone: Any) -> tuple[str, tzinfo]:
    """Return the name and the rules of a time zone. Raises DefinitionError for an unknown one."""
    name = timezone.key if isinstance(timezone, ZoneInfo) else timezone
    if not isinstance(name, str) or not name:
        raise DefinitionError(f"timezone= must be a name such as 'Europe/Berlin', not {safe_repr(timezone)}.")
    if name == "UTC":  # needs no time zone database
        return name, UTC
    try:
        return name, ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        pass
    try:
        ZoneInfo("Europe/London")
    except (KeyError, ValueError, OSError):
        raise DefinitionError(
            f"timezone={safe_repr(name)} is unknown: this system has no time zone database. "
            "Install one: pip install tzdata."
        ) from None
    raise DefinitionError(f"timezone={safe_repr(name)} is unknown. Use a name such as 'Europe/Berlin'.")


def _cronsim() -> Any:
    try:
        import cronsim
    except ImportError:
        raise ImportError("cron= needs cronsim: pip install 'flowcore[schedule]'") from None
    return cronsim
