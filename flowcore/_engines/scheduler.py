"""The scheduler: it finds the fires that are due, begins their runs, and records and reports the fires that are not
begun.

Its methods are programs: they yield calls of the store and of the engine, and read the time only through the engine's
settings. Any number of engines look at the same schedule without a leader. The first engine that records a run, or a
skip, under the key of a fire decides on that fire.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import islice
from typing import Any, Final

from .._durable.recovery import StoreCall
from .._kernel.settings import Settings
from ..errors import DefinitionError, IdempotencyError, NotSerializable, StoreError, safe_repr, safe_str
from ..events import Event, ScheduleFired, SchedulePlanned
from ..fires import fire_key
from ..schedule import Schedule, ScheduleStatus, status_of, window_of
from ..workflow import Workflow
from .previous_run import PreviousRun, first_decided
from .schedule_log import Log
from .skipped_fires import SkippedFires

__all__ = ["LONGEST_WAIT", "Begin", "CallValues", "Scheduled"]

ON_TIME: Final = timedelta(seconds=60)
"""the delay after which a fire that has not been looked at is missed"""
LONGEST_WAIT: Final = 30.0
"""the most seconds between two looks at the clock, which may be changed"""
_LOOKED_BACK: Final = 1000
"""the most fires that a schedule makes up for"""
_OTHERS: Final = 30
"""how many of the latest fires of another definition are looked up"""
_FAULTS: Final = (DefinitionError, IdempotencyError, NotSerializable)
"""errors that the workflow, values or key of a fire cause, and that another try would hardly cure"""
_log = logging.getLogger("flowcore")

Begin = Callable[[Workflow[Any], Any, str], Any]
"""begins the run with a key in an engine; returns False if another engine has begun it"""
CallValues = Callable[[Callable[[], Any]], "Future[Any]"]
"""calls a function of the user without waiting for its end"""


@dataclass(slots=True, eq=False)
class Fire:
    """A fire that is due. `made_up`: whether its schedule was not looked at in time, so that it is made up for."""

    at: datetime
    made_up: bool
    superseded: list[datetime] = field(default_factory=list[datetime])
    """earlier fires that this fire replaces, in order"""
    error: Exception | None = None
    """why the last try to begin it failed"""
    values: Future[Any] | None = None
    """the call of `values=` for this fire"""


class Scheduled:
    """One schedule of one engine. Use it in one thread or task at a time.

    `begin`: see Begin. `call`: see CallValues; when the function has ended, this schedule is to be looked at. `cancel`:
    cancels the run with a key, if it is in flight in this engine. `emit`: reports to hooks. `is_open`: returns whether
    the engine is open.
    """

    def __init__(
        self,
        settings: Settings,
        workflow: Workflow[Any],
        schedule: Schedule,
        values: Any,
        *,
        begin: Begin,
        call: CallValues,
        cancel: Callable[[str], bool],
        emit: Callable[[Event], None],
        is_open: Callable[[], bool],
    ) -> None:
        self.schedule = schedule
        self.workflow = workflow
        self._settings = settings
        self._store = settings.store
        self._values = values
        self._begin = begin
        self._call = call
        self._cancel = cancel
        self._emit = emit
        self._is_open = is_open
        self._window = window_of(settings.store)
        period = self._window.total_seconds()
        self._log = Log(settings.store, schedule, period, settings.lease, settings.new_id) if settings.durable else None
        self._position = self._now()  # fires up to this time do not concern this engine any more
        self._since: datetime | None = None if settings.durable else self._position
        self._queue: deque[Fire] = deque()
        self._faulty: deque[tuple[Fire, str]] = deque()  # fires to skip, with the reason
        self._forgone: list[datetime] = []  # fires to leave out, because they are late
        self._retry_at: datetime | None = None
        self._failures = 0
        self._others_decided = self._position  # the last fire of another definition on which an engine has decided
        self._previous = PreviousRun(settings, schedule.name)
        self._skipped = SkippedFires(schedule, workflow.name, self._log, self._previous, settings.clock, emit)
        self._cancelled: str | None = None
        self._blocked_since: datetime | None = None
        self._announced: datetime | None = None
        self._forked = False  # whether this process was forked since the last report
        self._announce()

    # -- when to look --------------------------------------------------------------------------------------------------

    def wait(self) -> float:
        """The seconds until the next look."""
        now = self._now()
        if self._calls_values():
            return LONGEST_WAIT
        if self._retry_at is not None:
            at: datetime | None = self._retry_at
        elif self._since is None or self._queue:
            return 0.0
        else:
            at = self._next_due(min(self._position, now))
        return LONGEST_WAIT if at is None else min(max((at - now).total_seconds(), 0.0), LONGEST_WAIT)

    def due(self) -> bool:
        """Whether there is something to do now. While `values=` is called, there is nothing: the next fires come after
        this one."""
        if self._calls_values():
            return False
        renew = self._log is not None and self._retry_at is None and self._log.outdated(self._settings.wall())
        return self._forked or renew or self.wait() <= 0

    def _calls_values(self) -> bool:
        call = self._queue[0].values if self._queue else None
        return call is not None and not call.done()

    def after_fork(self) -> None:
        """In a forked child, call `values=` again, because the thread that was calling it belongs to the parent. Report
        the next fire again, because the hooks have forgotten the parent's."""
        for fire in self._queue:
            fire.values = None
        self._forked = True

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self._settings.wall(), UTC)

    def _next_due(self, moment: datetime) -> datetime | None:
        following = next(self.schedule.after(moment), None)
        return None if following is None else self.schedule.due(following)

    # -- looking -------------------------------------------------------------------------------------------------------

    def look(self) -> Generator[StoreCall, Any, None]:
        """Begin the fires that are due. An Exception is logged, and the work is tried again; others are raised."""
        self._retry_at = None
        try:
            now = self._now()
            if self._since is None and self._log is not None:
                yield from self._open(self._log, now)
            self._gather(now)
            yield from self._settle_missed(now)
            yield from self._begin_due(now)
            yield from self._settle_missed(now)
            if self._log is not None and self._log.outdated(now.timestamp()):
                yield from self._log.renew(now.timestamp())
            self._failures = 0
        except Exception as error:  # noqa: BLE001 - a schedule survives errors of its store, values and hooks
            self._failed(error)
        self._announce()

    def _failed(self, error: Exception) -> None:
        self._failures += 1
        if self._failures == 1:
            _log.warning(
                "schedule %s could not begin its due fires and will retry: %s: %s",
                *(safe_repr(self.schedule.name), type(error).__name__, safe_str(error, 200)),
            )
        self._retry_by(self._now(), min(60.0, 0.25 * 2 ** min(self._failures, 10)))

    def _retry_by(self, now: datetime, delay: float) -> None:
        """Look again after `delay` seconds, or when the next fire is due if that is sooner."""
        following = self._next_due(self._position)
        at = now + timedelta(seconds=delay)
        self._retry_at = at if following is None or following <= now else min(at, following)

    def _open(self, log: Log, now: datetime) -> Generator[StoreCall, Any, None]:
        """Find the last fire that has a record: that fire, and all before it, have been decided on."""
        since = yield from log.open(now.timestamp())
        start = datetime.fromtimestamp(since, UTC)
        position = max(start, now - self._window)
        self._previous.note(log.in_progress, now)
        fires = islice(self.schedule.before(now, position), _LOOKED_BACK)
        found = yield from first_decided(self._store, self.schedule, fires)
        if found is not None:
            position, head = found
            yield from self._previous.saw(position, head, now)
        self._position, self._since, self._others_decided = position, start, start

    def _gather(self, now: datetime) -> None:
        """Queue the fires that have become due, according to `missed`."""
        self._position = min(self._position, now)  # after the clock was set back; keys prevent repeated fires
        floor = max(self._position, now - self._window, self._since or self._position)
        latest_fires = islice(self.schedule.before(now, floor), 2 * _LOOKED_BACK)
        due = [fire for fire in latest_fires if self.schedule.due(fire) <= now]
        if not due:
            return
        self._position = latest = due[0]
        late = {fire for fire in due if now - self.schedule.due(fire) > ON_TIME}
        before = [*self._given_up(), *reversed(due[1:_LOOKED_BACK])]
        match self.schedule.missed:
            case "all":
                made = [Fire(fire, fire in late) for fire in reversed(due[:_LOOKED_BACK])]
                made[0].superseded.extend(reversed(due[_LOOKED_BACK:]))
                self._queue.extend(made)
            case "skip" if latest in late:
                self._forgone += [*before, latest]
            case _:
                # With overlap="queue", each fire that is not late has its turn.
                others = [fire for fire in due[1:] if fire not in late] if self.schedule.overlap == "queue" else []
                first, *later = reversed([latest, *others])
                replaced = [fire for fire in before if fire < first]
                self._queue.append(Fire(first, first in late, replaced))
                self._queue.extend(Fire(fire, made_up=False) for fire in later)

    def _given_up(self) -> list[datetime]:
        """Remove from the queue, now that another fire is due, those that failed to begin. Returns the fires that the
        new one replaces. Fires with a fault of their own are skipped instead; if `missed` is "all" or `overlap` is
        "queue", no other fires are removed."""
        patient = self.schedule.missed == "all" or self.schedule.overlap == "queue"
        failed = [fire for fire in self._queue if fire.error is not None]
        faulty = [fire for fire in failed if isinstance(fire.error, _FAULTS)]
        self._faulty += [(fire, f"skipped: {safe_str(fire.error, 200)}") for fire in faulty if fire.error is not None]
        others = [] if patient else [fire for fire in failed if fire not in faulty]
        for fire in (*faulty, *others):
            self._queue.remove(fire)
        return [at for fire in others for at in (*fire.superseded, fire.at)]

    def _settle_missed(self, now: datetime) -> Generator[StoreCall, Any, None]:
        """Record for all engines which fires are not begun, and report those on which no engine has decided before."""
        while self._faulty:
            fire, why = self._faulty[0]
            yield from self._skipped.skip(fire.at, "error", why)
            self._faulty.popleft()
        if self._forgone:
            waiting = yield from self._waiting(self._forgone, now)
            yield from self._skipped.leave_out([at for at in self._forgone if at not in waiting])
            self._queue.extend(Fire(at, made_up=True) for at in waiting)
            self._forgone.clear()
        self._skipped.report_left_out()

    def _begin_due(self, now: datetime) -> Generator[StoreCall, Any, None]:
        """Begin or skip the fires in the queue, one after another, until one has to wait."""
        while self._queue:
            fire = self._queue[0]
            try:
                yield from self._settle_superseded(fire, now)
                if fire is not self._queue[0]:
                    continue
                decided = yield from self._decide(fire, now)
            except Exception as error:
                if not isinstance(fire.error, _FAULTS):  # an unreachable store does not cure a fault
                    fire.error = error
                raise
            if not decided:
                return
            self._queue.popleft()
            self._blocked_since = None

    def _decide(self, fire: Fire, now: datetime) -> Generator[StoreCall, Any, bool]:
        """Begin or skip a fire, unless an engine has decided on it. Returns False if the previous run blocks it, or if
        `values=` is still being called: after that, everything is looked up again."""
        if (yield from self._previous.is_decided(fire.at)):
            return True
        if self._log is not None:
            yield from self._look_at_others(self._log, now)
        busy = yield from self._previous.in_progress(now.timestamp())
        if busy is None:
            if callable(self._values) and fire.values is None:
                fire.values = yield partial(self._call, partial(self._values, fire.at))
            if self._calls_values():
                return False
            yield from self._begin_one(fire)
            return True
        fire.error = None
        if not fire.made_up and self.schedule.overlap == "skip":
            yield from self._skipped.skip(fire.at, "overlap")
            return True
        if not fire.made_up and self.schedule.overlap == "cancel":
            yield from self._make_way(busy)
        self._wait_for_the_run(now)
        return False

    def _begin_one(self, fire: Fire) -> Generator[StoreCall, Any, None]:
        key, values, call = fire_key(self.schedule.name, fire.at), self._values, fire.values
        if call is not None:
            fire.values = None  # if the fire cannot begin, the next try calls it again
            error = call.exception()  # an exit in the call's own thread is an error of the call as any other
            if error is not None:
                raise DefinitionError(
                    f"values= of schedule {safe_repr(self.schedule.name)} raised {type(error).__name__}: {safe_str(error)}"
                ) from error
            values = call.result()
        begun = yield partial(self._begin, self.workflow, values, key)
        if not begun:
            yield from self._previous.is_decided(fire.at)
        else:
            self._previous.note(key, fire.at)
            lateness = max(0.0, (self._now() - self.schedule.due(fire.at)).total_seconds())
            at, planned = self._settings.clock(), fire.at.timestamp()
            self._emit(ScheduleFired(self.workflow.name, "", at, {}, self.schedule.name, planned, lateness))

    # -- fires that are not begun --------------------------------------------------------------------------------------

    def _settle_superseded(self, fire: Fire, now: datetime) -> Generator[StoreCall, Any, None]:
        """Leave out the fires that this one replaces. This happens before it begins, because another engine may be
        about to begin one of them. Those that wait for the previous run are put into the queue before it instead."""
        if not fire.superseded or (yield from self._previous.is_decided(fire.at)):
            return
        waiting = yield from self._waiting(fire.superseded, now)
        fire.superseded = [at for at in fire.superseded if at not in waiting]
        self._queue.extendleft(Fire(at, made_up=True) for at in reversed(waiting))
        if not waiting:
            yield from self._skipped.leave_out(fire.superseded)
            fire.superseded = []

    def _waiting(self, fires: list[datetime], now: datetime) -> Generator[StoreCall, Any, list[datetime]]:
        """The undecided ones of these fires that became due while the previous run was in progress, if `overlap` is
        "queue". An engine that was running at that time still has them in its queue."""
        if self.schedule.overlap != "queue":
            return []
        decided: dict[datetime, bool] = {}
        for at in fires:
            decided[at] = yield from self._previous.is_decided(at)
        ended = yield from self._previous.ended(now.timestamp())
        return [at for at in fires if ended is not None and not decided[at] and at.timestamp() <= ended]

    # -- the previous run ----------------------------------------------------------------------------------------------

    def _look_at_others(self, log: Log, now: datetime) -> Generator[StoreCall, Any, None]:
        """During a deploy that changes the times, note the latest run that engines with the other times have begun."""
        yield from log.look()
        if log.other is not None:
            fires = list(islice(log.other.before(now, self._others_decided), _OTHERS))
            found = yield from first_decided(self._store, log.other, fires)
            if found is not None:
                self._others_decided = found[0]
                yield from self._previous.saw(*found, now)
            elif len(fires) == _OTHERS:
                log.other = None  # no engine has it any more

    def _make_way(self, busy: str) -> Generator[StoreCall, Any, None]:
        """Cancel the previous run, and skip all fires in the queue but the latest."""
        while len(self._queue) > 1:
            yield from self._skipped.skip(self._queue[0].at, "overlap", "skipped: a later fire came while it waited.")
            self._queue.popleft()
        if busy != self._cancelled:
            here = yield partial(self._cancel, busy)
            if not here and self._settings.durable:
                try:
                    yield partial(self._store.cancel, busy, reason=f"the next fire of schedule {self.schedule.name}")
                except StoreError as error:  # the run may have ended meanwhile
                    _log.info("run of key %s was not cancelled: %s", safe_repr(busy), safe_str(error, 200))
            self._cancelled = busy

    def _wait_for_the_run(self, now: datetime) -> None:
        """Look again soon, and less often the longer the previous run takes."""
        self._blocked_since = self._blocked_since or now
        waited = (now - self._blocked_since).total_seconds()
        self._retry_by(now, min(10.0, 0.2 + waited / 10))

    # -- reports -------------------------------------------------------------------------------------------------------

    def _announce(self) -> None:
        """Report the next fire that this engine waits for, if it has changed."""
        planned = self.schedule.due(self._queue[0].at) if self._queue else self._next_due(self._position)
        if planned != self._announced or self._forked:
            self._announced, self._forked = planned, False
            at, due = self._settings.clock(), None if planned is None else planned.timestamp()
            self._emit(SchedulePlanned(self.workflow.name, "", at, {}, self.schedule.name, due, self._is_open))

    def status(self) -> Generator[StoreCall, Any, ScheduleStatus]:
        """The status of the schedule: its next fires, and its last fire as the store has recorded it."""
        return status_of(self.schedule, self._store, self._now())
