"""W4: two chains of 11 steps; the 50 ms step is the first of one and the last of the other, the rest take 1 ms.

An engine that waits for a whole layer to end before the next begins takes twice as long as the critical path.
"""

from __future__ import annotations

from .harness import Options, Report, Target, compare
from .work import Flavour, Work, parallel_chains

LONG, SHORT = 0.05, 0.001
CRITICAL_PATH = LONG + 10 * SHORT

TARGETS = (
    Target("Engine", 1.15, "critical path"),
    Target("AsyncEngine", 1.08, "critical path"),
)


def work(flavour: Flavour) -> Work:
    long, short = flavour.pause(LONG), flavour.pause(SHORT)
    return parallel_chains([[long, *[short] * 10], [*[short] * 10, long]], is_async=flavour.is_async)


def measure(options: Options) -> Report:
    return compare(
        "W4",
        "two chains of 11 steps, 50 ms first in one and last in the other",
        work,
        TARGETS,
        options,
        relative=("critical path",),
        constants={"critical path": CRITICAL_PATH},
    )
