"""The waits of a run: which have begun, until when they wait, and the values that were sent to them. Steps that are set
aside for a long backoff are kept here too."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ..plan import Node
from ..run import Sent

if TYPE_CHECKING:
    from .outcome import StepEnd

__all__ = ["Waits"]


class Waits:
    """The waits of one run, and its steps that are set aside. The caller holds the run's lock."""

    __slots__ = ("_alarm", "aside", "began", "ended", "known", "retries", "sent", "until")

    def __init__(self) -> None:
        self.began: dict[str, float] = {}  # when each wait that is not over began (monotonic)
        # When the time of each wait is over, or the next attempt is due (monotonic). Infinite: no limit.
        self.until: dict[str, float] = {}
        self.sent: dict[str, Sent] = {}  # the value that counts for each wait
        self.known = 0  # how many values the run had when it was left to its store; more may have come since
        self.ended: set[str] = set()  # waits that are over: no value counts for them any more
        self.aside: dict[str, Node] = {}  # steps that are set aside: they are not in the ready queue, and do not run
        self.retries: dict[str, StepEnd] = {}  # the end of each step that is set aside, if its next attempt is not made
        self._alarm = math.inf  # when the next worker was requested for (monotonic)

    def begin(self, node: Node, now: float, until: float) -> None:
        self.began[node.name], self.until[node.name] = now, until

    def set_aside(self, node: Node, until: float, end: StepEnd) -> None:
        """Set `node` aside until its next attempt, at the moment `until` (monotonic). `end`: its end if that attempt is
        not made."""
        self.until[node.name], self.retries[node.name], self.aside[node.name] = until, end, node

    def take_retry(self, name: str) -> StepEnd | None:
        """Forget a step that was set aside for its next attempt. Returns its end if that attempt is not made, or None
        if it was not set aside."""
        end = self.retries.pop(name, None)
        if end is not None:
            self.until.pop(name, None)
            self.aside.pop(name, None)
        return end

    def over(self, name: str) -> float:
        """End a wait. Returns when it began (monotonic)."""
        self.ended.add(name)
        self.until.pop(name, None)
        return self.began.pop(name, 0.0)

    def next_limit(self, deadline: float | None) -> float:
        """Return the moment at which the first step that is set aside is due without a value (monotonic), or
        infinity."""
        limits = [self.until[name] for name in self.aside]
        return min([*limits, math.inf if deadline is None else deadline]) if limits else math.inf

    def due(self, now: float, deadline: float | None) -> list[Node]:
        """Take out the steps that were set aside and can continue now."""
        all_of_them = deadline is not None and now >= deadline
        names = [name for name in self.aside if all_of_them or name in self.sent or now >= self.until[name]]
        return [self.aside.pop(name) for name in names]

    def alarm_in(self, now: float, deadline: float | None) -> float | None:
        """Return the seconds after which a worker is needed, or None if none is, or if one was requested already."""
        moment = self.next_limit(deadline)
        if moment == math.inf or now < self._alarm <= moment:
            return None
        self._alarm = moment
        return max(0.0, moment - now)
