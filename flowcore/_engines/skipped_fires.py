"""The fires of a schedule that are not begun: recorded for all engines, and reported by one of them.

Like the scheduler's methods, these are programs: they yield calls of the store.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator
from datetime import datetime
from typing import Any, Final

from .._durable.recovery import StoreCall
from ..errors import safe_repr
from ..events import Event, ScheduleMissed
from ..fires import fire_key
from ..schedule import Schedule
from .previous_run import PreviousRun
from .schedule_log import Log

__all__ = ["SkippedFires"]

_RECORDED: Final = 100
"""the most records of fires that are left out together"""
_REASONS: Final = {
    "down": "no engine was running in time.",
    "overlap": "the previous run was still in progress.",
    "error": "every attempt failed.",
}
"""why a fire is not begun, by the reason in its event"""
_log = logging.getLogger("flowcore")


class SkippedFires:
    """The fires of one schedule that are not begun. `log`: None in memory. `emit`: reports to hooks."""

    def __init__(
        self,
        schedule: Schedule,
        workflow: str,
        log: Log | None,
        previous: PreviousRun,
        clock: Callable[[], float],
        emit: Callable[[Event], None],
    ) -> None:
        self._schedule = schedule
        self._workflow = workflow
        self._log = log
        self._previous = previous
        self._clock = clock
        self._emit = emit
        self._missed: list[datetime] = []  # fires that were left out, and are to be reported

    def report_left_out(self) -> None:
        """Report the fires that `leave_out` has noted."""
        if self._missed:
            self._report(self._missed, "down")
            self._missed.clear()

    def leave_out(self, fires: list[datetime]) -> Generator[StoreCall, Any, None]:
        """Record for all engines that these fires, which are in order, are not begun, and note those that are to be
        reported, because no engine has decided on them. If there are many, only the first ones and the last one get a
        record: before an engine begins a fire, it has looked up the fires before it."""
        for at in [*fires[: _RECORDED - 1], *fires[_RECORDED - 1 :][-1:]]:
            if (yield from self._previous.is_decided(at)) or not (yield from self._record(at, "down")):
                continue
            if at == fires[-1]:
                for other in fires[_RECORDED - 1 : -1]:
                    if not (yield from self._previous.is_decided(other)):
                        self._missed.append(other)
            self._missed.append(at)

    def skip(self, at: datetime, why: str, reason: str | None = None) -> Generator[StoreCall, Any, None]:
        """Record for all engines that this fire is not begun, and report it, unless an engine has decided on it."""
        if (yield from self._record(at, why, reason)):
            self._report([at], why)

    def _record(self, at: datetime, why: str, reason: str | None = None) -> Generator[StoreCall, Any, bool]:
        """Record that this fire is not begun. Returns False if another engine has decided on it."""
        if self._log is None:
            return True
        values = {"schedule": self._schedule.name, "skipped": why, "in_progress": self._previous.key}
        reason = reason or f"skipped: {_REASONS[why]}"
        if (yield from self._log.skip(fire_key(self._schedule.name, at), values, reason)):
            return True
        yield from self._previous.is_decided(at)
        return False

    def _report(self, missed: list[datetime], why: str) -> None:
        last = max(missed)
        fires = "its fire at" if len(missed) == 1 else f"{len(missed)} fires, the last one at"
        _log.warning(
            "schedule %s did not begin %s %s: %s",
            *(safe_repr(self._schedule.name), fires, last.isoformat(), _REASONS[why]),
        )
        at, name = self._clock(), self._schedule.name
        self._emit(ScheduleMissed(self._workflow, "", at, {}, name, len(missed), why, last.timestamp()))
