"""W5: a saga of ten no-op steps; the last one fails and the nine before it are undone. The caller gets its exception."""

from __future__ import annotations

from .harness import Options, Report, Target, compare
from .work import Flavour, Work, chain

TARGETS = (
    Target("Engine", 2, "floor"),
    Target("AsyncEngine", 2, "floor, async"),
)


def work(flavour: Flavour) -> Work:
    *steps, last = chain([flavour.noop] * 10, is_async=flavour.is_async).steps
    undone = [step._replace(undo=flavour.noop) for step in steps]
    return Work((*undone, last._replace(fn=flavour.boom)), 10 + 9, flavour.is_async, fails=True)


def measure(options: Options) -> Report:
    title = "a saga of 10 steps, the last fails, 9 undos"
    return compare("W5", title, work, TARGETS, options, relative=("floor", "floor, async"))
