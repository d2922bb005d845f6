"""W4b: ten chains of 10 steps; chain i has its 10 ms step at place i, the rest take 1 ms.

Here waiting for layers costs ten times a long step, and ten steps must be able to run at the same time.
"""

from __future__ import annotations

from .harness import Options, Report, Target, compare
from .work import Flavour, Work, parallel_chains

LONG, SHORT = 0.01, 0.001
CRITICAL_PATH = LONG + 9 * SHORT

TARGETS = (
    Target("Engine", 1.5, "critical path"),
    Target("AsyncEngine", 1.3, "critical path"),
)


def work(flavour: Flavour) -> Work:
    long, short = flavour.pause(LONG), flavour.pause(SHORT)
    chains = [[long if place == number else short for place in range(10)] for number in range(10)]
    return parallel_chains(chains, is_async=flavour.is_async)


def measure(options: Options) -> Report:
    return compare(
        "W4b",
        "ten chains of 10 steps, chain i has its 10 ms step at place i",
        work,
        TARGETS,
        options,
        relative=("critical path",),
        constants={"critical path": CRITICAL_PATH},
    )
