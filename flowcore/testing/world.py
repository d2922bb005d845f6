"""The virtual time, the random choices and the event loop that all processes of a simulation share."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import random
from collections.abc import Callable

__all__ = ["VirtualClock", "World"]

_ENDLESS = 1_000_000  # A simulation that is not over after so many actions counts as endless.


class VirtualClock:
    """A clock in seconds that only a simulation advances."""

    now = 1_000.0  # The clock of an engine does not begin at zero either.

    def __call__(self) -> float:
        return self.now


class World:
    """The agenda of a simulation: actions, and when they are due. All choices are drawn from one seed."""

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
        """The event loop for async user code, created at its first use because that costs more than a simulated run."""
        self._runner = self._runner or asyncio.Runner()
        return self._runner

    def after(self, seconds: float, act: Callable[[], None]) -> None:
        """Perform `act` so many seconds from now. The seed draws the order of actions that are due at the same
        moment."""
        heapq.heappush(self._agenda, (self.now + seconds, self.random.random(), next(self._numbers), act))

    def run(self) -> bool:
        """Perform all actions, in order of time, until none is left. Returns False if the simulation does not end."""
        for _ in range(_ENDLESS):
            if not self._agenda:
                return True
            self.clock.now, _, _, act = heapq.heappop(self._agenda)
            act()
        return False

    def let_pass(self, seconds: float, unless: Callable[[], bool]) -> None:
        """Let so many seconds pass in the middle of an action, and perform the actions that are due by then. Returns
        early as soon as `unless()` is true."""
        until = self.now + seconds
        while not unless() and self._agenda and self._agenda[0][0] <= until:
            self.clock.now, _, _, act = heapq.heappop(self._agenda)
            act()
        self.clock.now = self.now if unless() else until

    def close(self) -> None:
        if self._runner is not None:
            self._runner.close()
