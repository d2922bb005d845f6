"""The settings that all runs of an engine share. They bring the clock and the randomness, so that programs need
neither."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..events import Hooks

if TYPE_CHECKING:
    from ..stores.base import Store
    from .ledger import Claims
    from .run_state import RunState

__all__ = ["Settings", "namespace_of"]


def namespace_of(store: Store) -> str:
    """Return the namespace of a store, or the empty string if the store has no attribute of that name."""
    return getattr(store, "namespace", "")


@dataclass(slots=True, kw_only=True, eq=False)
class Settings:
    """The settings that all runs of an engine share.

    `clock` returns monotonic seconds, `wall` seconds since the epoch, `random` a float in [0, 1), and `new_id` a run
    id. `parallel`: how many steps of one run may run at a time. `runs_async`: whether async steps can be run.
    `caller_shares`: whether the caller's own thread or task runs steps while others run too. `lease`: seconds, on a
    durable store. `claims`: claims keys and records how runs end. `owns`: called with each run that has a lease; it
    renews the lease until the driver reports that the run is over. `namespace`: a part of each step key.
    `store_patience`: seconds for which a run waits for an unreachable store. `max_takeovers`: a run that crashed more
    owners than this without progress is held. `park_after`: seconds; a durable run does not stay in its process for a
    backoff that is longer. `whole_steps`: whether the driver has each step run elsewhere, with all its attempts.
    """

    store: Store
    claims: Claims
    hooks: Hooks
    grace: float
    parallel: int
    runs_async: bool
    caller_shares: bool
    clock: Callable[[], float]
    wall: Callable[[], float]
    random: Callable[[], float]
    new_id: Callable[[], str]
    lease: float = math.inf
    owns: Callable[[RunState], None] | None = None
    store_patience: float = 300.0
    max_takeovers: int = 5
    park_after: float = math.inf
    whole_steps: bool = False
    namespace: str = ""
    durable: bool = field(init=False)
    observed: bool = field(init=False)
    """whether a hook wants any event"""

    def __post_init__(self) -> None:
        self.durable, self.observed = self.store.durable, bool(self.hooks.wanted)
        if not self.durable:
            self.lease = self.park_after = math.inf
