"""Values that are sent to waits: to the runs of this engine, or to the store that has them."""

from __future__ import annotations

import contextvars
import os
import socket
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from .._kernel.run_state import RunState
from .._kernel.settings import Settings
from .._kernel.wait_steps import keep, receive
from ..events import ValueSent
from ..run import Sent
from .interrupts import hold_sigint

__all__ = ["announce", "counts_as", "fetched", "hand_on", "made_here", "runs_of"]

D = TypeVar("D")


def runs_of(live: Mapping[RunState, Any], key: str) -> list[RunState]:
    """The runs of an engine that have a key, or that id: not those that wait for one of them."""
    found = [run for run in list(live) if run.key == key or (run.key is None and run.has_id(key))]
    claimed = [run for run in found if run.claimed]
    return claimed or [run for run in found if run.request.wait is None]


def hand_on(
    live: Mapping[RunState, D | None], key: str, name: str, sent: Sent, look: Callable[[D], None]
) -> Sent | None:
    """Give what was sent to the runs of an engine that have this key. Returns what counts, or None if there is no such run.
    `look`: has a driver look for it. Raises SendRefused if a run in memory does not wait for it."""
    counts: Sent | None = None
    for run in runs_of(live, key):
        # The store of a durable run has decided already.
        first = keep(run, name, sent) if run.settings.durable else receive(run, name, sent)
        counts = counts or first
        if first is sent and (driver := live.get(run)) is not None:
            if run.on_pause is not None:
                run.on_pause(None)
            look(driver)
    return counts


def made_here(
    settings: Settings,
    value: Any,
    id: str | None,  # noqa: A002
    carrier: Mapping[str, str],
) -> Sent:
    """A value that this process sends."""
    return Sent(value, settings.wall(), socket.gethostname(), os.getpid(), id, carrier)


def announce(settings: Settings, key: str, name: str) -> dict[str, str]:
    """Tell the hooks that a value is about to be sent. Returns what they want to be kept with it."""
    carrier: dict[str, str] = {}
    if ValueSent in settings.hooks.wanted:
        with hold_sigint():
            event = ValueSent("", "", settings.clock(), {}, name, key, carrier)
            settings.hooks.emit(event, contextvars.copy_context())
    return carrier


def counts_as(first: Sent | None, sent: Sent) -> bool:
    """Whether what was sent is what counts, or the same by its id."""
    return first is sent or (first is not None and sent.id is not None and first.id == sent.id)


def fetched(
    live: Mapping[RunState, D | None], look: Callable[[D], None], run: RunState, sent: Mapping[str, Sent]
) -> None:
    """What was sent to a run of this engine through its store, elsewhere."""
    for name, value in sent.items():
        keep(run, name, value)
    if (driver := live.get(run)) is not None:
        look(driver)
