"""Virtual time, and what all processes of a simulation share."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import random
from collections.abc import Callable

__all__ = ["VirtualClock", "World"]

_ENDLESS = 1_000_000  # moments after which a simulation that is not over never will be


class VirtualClock:
    """Seconds that pass only when a simulation says so."""

    now = 1_000.0  # an engine's clock does not begin at zero either

    def __call__(self) -> float:
        return self.now


class World:
    """What happens, and when. All choices are drawn from one seed."""

    def __init__(self, seed: int, clock: VirtualClock) -> None:
        self.clock = clock
        self.began = clock.now
        self.random = random.Random(seed)  # noqa: S311 - a seed that replays is the point
        self._agenda: list[tuple[float, float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._runner: asyncio.Runner | None = None

    @property
    def now(self) -> float:
        return self.clock.now

    @property
    def runner(self) -> asyncio.Runner:
        """An event loop for async user code; made when it is first wanted: it costs more than a run."""
        self._runner = self._runner or asyncio.Runner()
        return self._runner

    def after(self, seconds: float, act: Callable[[], None]) -> None:
        """Do this so many seconds from now. What happens at one moment happens in an order that the seed draws."""
        heapq.heappush(self._agenda, (self.now + seconds, self.random.random(), next(self._numbers), act))

    def run(self) -> bool:
        """Let everything happen, until nothing is left to; False: that never comes."""
        for _ in range(_ENDLESS):
            if not self._agenda:
                return True
            self.clock.now, _, _, act = heapq.heappop(self._agenda)
            act()
        return False

    def let_pass(self, seconds: float, unless: Callable[[], bool]) -> None:
        """Let so much time pass in the middle of something, and what is due meanwhile happen; less once `unless()` holds."""
        until = self.now + seconds
        while not unless() and self._agenda and self._agenda[0][0] <= until:
            self.clock.now, _, _, act = heapq.heappop(self._agenda)
            act()
        self.clock.now = self.now if unless() else until

    def close(self) -> None:
        if self._runner is not None:
            self._runner.close()
