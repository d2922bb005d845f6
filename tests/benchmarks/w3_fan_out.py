"""W3: one step, then a hundred that could run at the same time, then one that waits for all; none does anything.

What it costs to offer parallelism that cannot be used.
"""

from __future__ import annotations

import sys

from .harness import Options, Report, Target, compare
from .work import Flavour, Work, fan

EAGER = sys.version_info >= (3, 12)  # asyncio can run a task's first steps without a turn of the event loop

TARGETS = (
    Target("Engine", 1 / 5, "thread pool by hand"),
    Target("AsyncEngine", 12 if EAGER else 30, "direct await"),
)


def work(flavour: Flavour) -> Work:
    return fan(100, flavour.noop, is_async=flavour.is_async)


def measure(options: Options) -> Report:
    return compare("W3", "fan out and in, 1→100→1 no-op steps", work, TARGETS, options, per_step=True)
