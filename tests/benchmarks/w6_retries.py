"""W6: one step that fails twice and has three attempts, with no time between them."""

from __future__ import annotations

from .harness import Options, Report, Target, compare
from .work import Flavour, Step, Work

TARGETS = (
    Target("Engine", 2, "floor"),
    Target("AsyncEngine", 2, "floor, async"),
)


def work(flavour: Flavour) -> Work:
    return Work((Step("flaky", flavour.third_time_lucky(), attempts=3),), 3, flavour.is_async)


def measure(options: Options) -> Report:
    title = "a step that succeeds at its third attempt"
    return compare("W6", title, work, TARGETS, options, relative=("floor", "floor, async"))
