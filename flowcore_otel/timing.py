"""Where a run's time went: its critical path."""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["CriticalPath"]


class CriticalPath:
    """The chain of dependent steps that took longest: what has to get faster for the run to get faster.

    Is told of each step when it ends; dependencies always end before their dependants.
    """

    __slots__ = ("_chains", "_through", "total")

    def __init__(self) -> None:
        self._chains: dict[str, tuple[float, float, str | None]] = {}  # seconds up to its end, own ones, predecessor
        self._through: dict[str, str] = {}  # skipped step -> the step that the chain through it comes from
        self.total = 0.0
        """seconds spent in all steps"""

    def add(self, step: str, seconds: float, depends_on: Iterable[str]) -> None:
        before, longest = self._longest(depends_on)
        self._chains[step] = (longest + seconds, seconds, before)
        self.total += seconds

    def skip(self, step: str, depends_on: Iterable[str]) -> None:
        """A step that was skipped took no time; what depends on it still comes after what it depends on."""
        before, _ = self._longest(depends_on)
        if before is not None:
            self._through[step] = before

    def _longest(self, depends_on: Iterable[str]) -> tuple[str | None, float]:
        before, longest = None, 0.0
        for dependency in depends_on:
            name = self._through.get(dependency, dependency)
            chain = self._chains.get(name)
            if chain is not None and (before is None or chain[0] > longest):
                before, longest = name, chain[0]
        return before, longest

    @property
    def seconds(self) -> float:
        return max((chain[0] for chain in self._chains.values()), default=0.0)

    def steps(self) -> list[str]:
        """The chain, in order."""
        chains = self._chains
        path: list[str] = []
        step = max(chains, key=lambda name: chains[name][0], default=None)
        while step is not None:
            path.append(step)
            step = chains[step][2]
        path.reverse()
        return path

    def longest_of(self, path: list[str], limit: int) -> list[str]:
        """The `limit` longest steps of the chain, in its order."""
        if len(path) <= limit:
            return path
        kept = set(sorted(path, key=lambda name: -self._chains[name][1])[:limit])
        return [name for name in path if name in kept]
