"""The waits of a run: which have begun, until when, and what was sent to them; and the steps whose next attempt is due
later than a process is kept for."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ..plan import Node
from ..run import Sent

if TYPE_CHECKING:
    from .outcome import StepEnd

__all__ = ["Waits"]


class Waits:
    """The waits of one run. All of it is read and changed under the run's lock."""

    __slots__ = ("_alarm", "aside", "began", "ended", "known", "retries", "sent", "until")

    def __init__(self) -> None:
        self.began: dict[str, float] = {}  # of waits that are not over: when they began (monotonic)
        self.until: dict[str, float] = {}  # of the same: when their time is over (monotonic); infinite: never
        self.sent: dict[str, Sent] = {}
        self.known = 0  # how many of these values the run had when it was left to its store; more may have come since
        self.ended: set[str] = set()  # no value counts for them any more
        self.aside: dict[str, Node] = {}  # waits that are neither ready nor being looked at
        self.retries: dict[str, StepEnd] = {}  # steps that wait for their next attempt: how they end if there is none
        self._alarm = math.inf

    def begin(self, node: Node, now: float, until: float) -> None:
        self.began[node.name], self.until[node.name] = now, until

    def set_aside(self, node: Node, until: float, end: StepEnd) -> None:
        """The next attempt of `node` is due at the moment `until`; `end`: how the step ends if there is none."""
        self.until[node.name], self.retries[node.name], self.aside[node.name] = until, end, node

    def take_retry(self, name: str) -> StepEnd | None:
        """The next attempt of a step that was set aside is due, or there is none."""
        end = self.retries.pop(name, None)
        if end is not None:
            self.until.pop(name, None)
            self.aside.pop(name, None)
        return end

    def over(self, name: str) -> float:
        """The wait has ended. Returns when it began."""
        self.ended.add(name)
        self.until.pop(name, None)
        return self.began.pop(name, 0.0)

    def next_limit(self, deadline: float | None) -> float:
        """The moment at which the first of those that are aside is due by itself."""
        limits = [self.until[name] for name in self.aside]
        return min([*limits, math.inf if deadline is None else deadline]) if limits else math.inf

    def due(self, now: float, deadline: float | None) -> list[Node]:
        """Take out those that are aside and can end now."""
        all_of_them = deadline is not None and now >= deadline
        names = [name for name in self.aside if all_of_them or name in self.sent or now >= self.until[name]]
        return [self.aside.pop(name) for name in names]

    def alarm_in(self, now: float, deadline: float | None) -> float | None:
        """Seconds after which a worker is wanted, unless that is arranged already."""
        moment = self.next_limit(deadline)
        if moment == math.inf or now < self._alarm <= moment:
            return None
        self._alarm = moment
        return max(0.0, moment - now)
