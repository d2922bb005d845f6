"""The base of engines that act by themselves: it schedules workflows and reports rounds of recovery and schedules."""

from __future__ import annotations

import contextvars
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from ..events import MaintenanceFinished, MaintenanceStarted, StoreCalled
from ..retry import Duration
from ..status import Status
from ..workflow import Workflow
from .asking import CallScope, StoreCall
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
        """Run a workflow once at each planned time, however many engines on the same store have the same schedule.

        `cron`: five fields, in `timezone` (default UTC); needs the extra `schedule`. Or `every`: a period of at least a
        second, counted from 1970-01-01T00:00Z. `values`: the initial values of each run, or a function of its planned
        time that returns them, which is called in a separate thread. `missed`: which fires are made up for if no
        engine began them in time: none ("skip"), the "latest", or "all", one after another; only those within half of
        the store's retention. `overlap`: what happens to a fire while the previous run is in progress: it is skipped
        ("skip"), waits ("queue"), or cancels that run and begins after it ("cancel"). `jitter`: seconds by which each
        fire may be delayed, by the same amount on every engine. `name`: identifies the schedule across engines
        (default: the workflow's name).

        The run of a fire has the key `schedule/NAME/TIME` and `ctx.scheduled_at`, and is never repeated, even if it
        fails. On a durable store, the engine recovers the workflow: every `recover_every` or else every lease.
        Thread-safe. An AsyncEngine begins to look at its schedules on the running loop, or else with its first use on a
        loop.

        Raises DefinitionError for invalid options, NotSerializable for values that cannot be recorded,
        AsyncStepInSyncEngine, FlowcoreError once the engine is closed, and ImportError without the extra.
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
        """The schedules of this engine, created by the first call."""

    @abstractmethod
    def _recover_also(self, workflow: Workflow[Any]) -> None:
        """Recover the runs of this workflow, too, if their process dies."""

    def _reported(self, context: contextvars.Context) -> CallScope:
        """Have the store calls of a round made in `context`, and report to the hooks how each went."""
        return CallScope(context, partial(self._reporting, context))

    @contextmanager
    def _reporting(self, context: contextvars.Context, call: StoreCall) -> Generator[None, None, None]:
        began = self._settings.clock()
        try:
            yield
        except Exception as error:
            self._emit_call(call, began, error, context.copy())
            raise
        self._emit_call(call, began, None, context.copy())

    def _emit_call(
        self, call: StoreCall, began: float, failure: Exception | None, context: contextvars.Context
    ) -> None:
        now, verb = self._settings.clock(), getattr(getattr(call, "func", call), "__name__", "call")
        outcome = Status.SUCCESS if failure is None else Status.FAILURE
        self._emit(StoreCalled("", "", now, {}, self.store.name, verb, outcome, now - began, failure), context)

    @contextmanager
    def _round(self, kind: str = "recover") -> Generator[contextvars.Context, None, None]:
        """Report a round, its duration and its error to the hooks. Yields the context for its store calls."""
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
                    end = MaintenanceFinished("", "", now, {}, kind, now - began, error, wall, self._is_open)
                    hooks.emit(end, context)
                if scopes is not None:
                    hooks.exit(scopes, context, event, error)
