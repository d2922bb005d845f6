"""Where a run's time went: its critical path."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

__all__ = ["CriticalPath", "Ended"]

Ended = tuple[str, float | None, Sequence[str]]
"""a step that has ended, the seconds it took (None: it was skipped), and what it depends on"""


class CriticalPath:
    """The chain of dependent steps that took longest: what has to get faster for the run to get faster.

    `ended`: the run's steps in an order in which dependencies come before their dependants.
    """

    __slots__ = ("_chains", "seconds", "steps", "total")

    def __init__(self, ended: Iterable[Ended]) -> None:
        chains: dict[str, tuple[float, float, str | None]] = {}  # seconds up to its end, own ones, predecessor
        through: dict[str, str] = {}  # skipped step -> the step that the chain through it comes from
        last, most, total = None, -1.0, 0.0
        for step, seconds, depends_on in ended:
            before, longest = None, -1.0
            for dependency in depends_on:
                name = through.get(dependency, dependency) if through else dependency
                chain = chains.get(name)
                if chain is not None and chain[0] > longest:
                    before, longest = name, chain[0]
            if seconds is not None:
                whole = seconds if before is None else longest + seconds
                chains[step] = (whole, seconds, before)
                total += seconds
                if whole > most:
                    last, most = step, whole
            elif before is not None:  # what depends on it still comes after what it depends on
                through[step] = before
        self._chains = chains
        self.seconds = max(most, 0.0)
        """spent on the chain"""
        self.total = total
        """spent in all steps"""
        self.steps: list[str] = []
        """the chain, in order"""
        while last is not None:
            self.steps.append(last)
            last = chains[last][2]
        self.steps.reverse()

    def longest(self, limit: int) -> list[str]:
        """The `limit` longest steps of the chain, in its order."""
        if len(self.steps) <= limit:
            return self.steps
        kept = set(sorted(self.steps, key=lambda step: -self._chains[step][1])[:limit])
        return [step for step in self.steps if step in kept]
