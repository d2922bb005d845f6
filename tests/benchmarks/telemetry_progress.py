"""ProgressHook against a hook that gets the same events and does nothing, on the chain of ten and while it draws."""

from __future__ import annotations

import io
from dataclasses import replace
from functools import partial

from flowcore import Event, ProgressHook

from .harness import Options, Report, Target, compare
from .subjects import FlowcoreAsync, FlowcoreThreads
from .w1_chain_of_10 import work

__all__ = ["measure"]


class Nothing:
    """Gets what ProgressHook gets."""

    wants = ProgressHook().wants

    def __call__(self, event: Event) -> None:
        """Do nothing."""


class Shown(FlowcoreThreads):
    name = "ProgressHook"

    def __init__(self) -> None:
        super().__init__([ProgressHook(file=io.StringIO(), every=0.1)])


class ShownAsync(FlowcoreAsync):
    name = "ProgressHook, async"

    def __init__(self) -> None:
        super().__init__([ProgressHook(file=io.StringIO(), every=0.1)])


class Heard(FlowcoreThreads):
    name = "a hook that does nothing"

    def __init__(self) -> None:
        super().__init__([Nothing()])


class HeardAsync(FlowcoreAsync):
    name = "a hook that does nothing, async"

    def __init__(self) -> None:
        super().__init__([Nothing()])


TARGETS = (Target(Shown.name, 1.25, Heard.name), Target(ShownAsync.name, 1.25, HeardAsync.name))
SUBJECTS = (FlowcoreThreads, FlowcoreAsync, Shown, Heard, ShownAsync, HeardAsync)


def measure(options: Options) -> Report:
    options = replace(options, subjects=tuple(map(partial, SUBJECTS)), only=())
    title = "showing the progress of a chain of 10 no-op steps"
    return compare("progress", title, work, TARGETS, options, per_step=True, relative=("Engine", "AsyncEngine"))
