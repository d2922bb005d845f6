"""W2: a hundred steps in a chain that do nothing. What it costs to begin a run no longer shows."""

from __future__ import annotations

from .harness import Options, Report, Target, compare
from .work import Flavour, Work, chain

TARGETS = (Target("Engine", 15, "direct call"),)


def work(flavour: Flavour) -> Work:
    return chain([flavour.noop] * 100, is_async=flavour.is_async)


def measure(options: Options) -> Report:
    return compare("W2", "a chain of 100 no-op steps", work, TARGETS, options, per_step=True)
