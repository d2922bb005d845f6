"""Scopes: what lasts from a start event to its finish event."""

from __future__ import annotations

import contextvars

from ..events import Event, Hooks
from ..events.hooks import Entered, Hook
from ..run import StepReport

__all__ = ["EventScope", "StepScope"]


class EventScope:
    """The scope from a start event to its finish event. `at`: when it started (monotonic). `context`: the contextvars
    context in which its hooks and user code run. `scopes`: the context managers that hooks entered there."""

    __slots__ = ("at", "context", "event", "scopes")

    def __init__(self, at: float, context: contextvars.Context) -> None:
        self.at = at
        self.context = context
        self.event: Event | None = None
        self.scopes: list[Entered] | None = None

    def enter(self, hooks: Hooks, event: Event, leaving: list[Hook] | None = None) -> None:
        """Emit the start event, and enter the context managers that hooks return. Hooks that want no more events of the
        run are added to `leaving`."""
        self.event = event
        self.scopes = hooks.enter(event, self.context, leaving)

    def exit(self, hooks: Hooks, error: BaseException | None) -> None:
        """Exit the context managers that hooks entered."""
        if self.scopes is not None and self.event is not None:
            hooks.exit(self.scopes, self.context, self.event, error)


class StepScope(EventScope):
    """The scope of a step or an undo. `at`: when its first attempt started, under an earlier owner too (monotonic).
    `earlier`: the seconds from then until this owner took it up. `waited`: seconds from ready to start. `backoff`:
    seconds between its attempts. `ended`: when its latest attempt ended (monotonic), without the time that hooks took
    since. `epoch`: the offset from monotonic seconds to seconds since the epoch; None in memory. `attempts`: start and
    end of each attempt of a step that may have several (monotonic), also of those under earlier owners."""

    __slots__ = ("attempts", "backoff", "earlier", "ended", "epoch", "waited")

    def __init__(self, at: float, context: contextvars.Context, waited: float = 0.0) -> None:
        self.at = at  # as in EventScope.__init__, which is not called, to save a call for each step
        self.context = context
        self.event = None
        self.scopes = None
        self.waited = waited
        self.backoff = self.earlier = 0.0
        self.ended = 0.0
        self.epoch: float | None = None
        self.attempts: tuple[tuple[float, float], ...] = ()

    @property
    def attempt_times(self) -> tuple[tuple[float, float], ...]:
        """The times of the attempts in seconds since the epoch. None are known in memory."""
        epoch = self.epoch
        return () if epoch is None else tuple((began + epoch, ended + epoch) for began, ended in self.attempts)

    def resume(self, before: StepReport, epoch: float, not_before: float | None) -> None:
        """Count the attempts under earlier owners, and the time between them, as `before` has recorded them. They began
        at the moment `not_before` (monotonic) at the earliest, whatever the clocks of those owners say."""
        began, times = before.started, before.attempt_times
        if began is None and times:
            began = times[0][0]
        if began is not None:
            now, first = self.at, began - epoch
            self.at = min(now, first if not_before is None else max(first, not_before))
            self.earlier = now - self.at
            worked = sum(max(0.0, ended - started) for started, ended in times)
            if times:  # attempts whose times were left out are taken to have lasted as long as the others
                worked *= max(1.0, before.failed / len(times))
            self.backoff = max(0.0, self.earlier - worked)

    @property
    def ran(self) -> float:
        """The seconds from the start of the first attempt to the end of the latest one, less the backoffs between
        them."""
        return self.ended - self.at - self.backoff
