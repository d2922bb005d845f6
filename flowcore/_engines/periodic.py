"""What engines share that act by themselves from time to time: how a workflow is scheduled, and how such a round is reported."""

from __future__ import annotations

import contextvars
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ..events import MaintenanceFinished, MaintenanceStarted
from ..retry import Duration
from ..workflow import Workflow
from .base import EngineBase, I
from .interrupts import hold_sigint

if TYPE_CHECKING:
    from datetime import datetime
    from zoneinfo import ZoneInfo

    from ..schedule import Missed, Overlap, Schedule

__all__ = ["PeriodicEngine"]


class PeriodicEngine(EngineBase, ABC):
    """An engine that keeps schedules and reports its rounds."""

    def schedule(
        self,
        workflow: Workflow[I],
        *,
        cron: str | None = None,
        every: Duration | None = None,
        timezone: str | ZoneInfo | None = None,
        values: I | Mapping[str, Any] | Callable[[datetime], I | Mapping[str, Any]] | None = None,
        missed: Missed = "latest",
        overlap: Overlap = "skip",
        jitter: Duration = 0,
        name: str | None = None,
    ) -> Schedule:
        """Run a workflow at planned times, once each, however many engines on the same store have the same schedule.

        `cron`: five fields, in `timezone` (default UTC); needs the extra `schedule`. Or `every`: a period, counted from
        1970-01-01T00:00Z. `values`: the initial values of each run, or a function of its planned time that returns them.
        `missed`: which of the fires that no engine began in time are made up for: none ("skip"), the "latest", or "all", one
        after another; at most those of half of the store's retention. `overlap`: what a fire does while the run before is
        in progress: it is left out ("skip"), waits ("queue"), or cancels that run and begins when it is over ("cancel").
        `jitter`: seconds by which each fire may be delayed, by the same amount on every engine. `name`: the schedule's
        name, by which engines know it as the same (default: the workflow's).

        A fire's run has the key `schedule/NAME/TIME`, is never repeated, even if it fails, and has `ctx.scheduled_at`. The
        engine recovers the workflow, every lease unless `recover_every` says otherwise. Thread-safe. An AsyncEngine begins
        to look at its schedules on the running loop, or else with its first use on one.

        Raises DefinitionError for options that make no schedule, AsyncStepInSyncEngine, FlowcoreError once the engine is
        closed, and ImportError without the extra.
        """
        schedules: Any = self._own_schedules()
        options = {"cron": cron, "every": every, "timezone": timezone}
        options |= {"missed": missed, "overlap": overlap, "jitter": jitter}
        made: Schedule = schedules.add(workflow, name, values, **options)
        if self.store.durable:
            self._recover_also(workflow)
        schedules.begin_looking()
        return made

    @abstractmethod
    def _own_schedules(self) -> object:
        """The schedules of this engine, made at the first call."""

    @abstractmethod
    def _recover_also(self, workflow: Workflow[Any]) -> None:
        """Have the runs of this workflow resumed too, should their process die."""

    @contextmanager
    def _round(self, kind: str = "recover") -> Generator[contextvars.Context, None, None]:
        """A round of recovery, reported to the hooks, and the context for what it asks of the store."""
        hooks, clock = self._settings.hooks, self._settings.clock
        context, began, error = contextvars.copy_context(), clock(), None
        event = MaintenanceStarted("", "", began, {}, kind)
        scopes = None
        try:
            with hold_sigint():
                scopes = hooks.enter(event, context)
            yield context
        except BaseException as failure:
            error = failure
            raise
        finally:
            now = clock()
            with hold_sigint():
                if MaintenanceFinished in hooks.wanted:
                    wall = self._settings.wall()
                    hooks.emit(MaintenanceFinished("", "", now, {}, kind, now - began, error, wall), context)
                if scopes is not None:
                    hooks.exit(scopes, context, event, error)
