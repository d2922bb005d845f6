"""The no-op logger: `hooks=[Logger()]` against no hooks, on the chain of ten. No hook listens, so it must cost nothing.

That the counts of calls, allocations and clock reads are the same, tests/test_hot_path.py proves; here is the time.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from flowcore import Logger

from .harness import Options, Report, Target, compare
from .subjects import FlowcoreAsync, FlowcoreThreads
from .w1_chain_of_10 import work


class LoggedThreads(FlowcoreThreads):
    name = "Engine, Logger()"


class LoggedAsync(FlowcoreAsync):
    name = "AsyncEngine, Logger()"


TARGETS = (
    Target("Engine, Logger()", 1.02, "Engine"),
    Target("AsyncEngine, Logger()", 1.02, "AsyncEngine"),
)


def measure(options: Options) -> Report:
    subjects = (FlowcoreThreads, partial(LoggedThreads, [Logger()]), FlowcoreAsync, partial(LoggedAsync, [Logger()]))
    title = "a logger that overrides nothing, W1"
    # Two per cent is little: shorter turns and more of them, so that both see the same machine.
    options = replace(options, subjects=subjects, only=(), rounds=options.rounds * 4, batch=options.batch / 4)
    return compare("logger", title, work, TARGETS, options, per_step=True, relative=("Engine", "AsyncEngine"))
