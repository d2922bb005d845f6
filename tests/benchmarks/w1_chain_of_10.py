"""W1: ten steps in a chain that do nothing. What is left is what it costs to begin a run and to run a step."""

from __future__ import annotations

from .harness import Options, Report, Target, compare
from .work import Flavour, Work, chain

TARGETS = (
    Target("Engine", 15, "direct call"),
    Target("AsyncEngine", 8, "direct await"),
)


def work(flavour: Flavour) -> Work:
    return chain([flavour.noop] * 10, is_async=flavour.is_async)


def measure(options: Options) -> Report:
    return compare("W1", "a chain of 10 no-op steps", work, TARGETS, options, per_step=True)
