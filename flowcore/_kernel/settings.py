"""What an engine gives to all its runs, so that the programs need nothing of their own that waits or reads a clock."""

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
    """The namespace of a store; a store that has none shares the empty one with all others that have none."""
    return getattr(store, "namespace", "")


@dataclass(slots=True, kw_only=True, eq=False)
class Settings:
    """What an engine gives to all its runs.

    `clock`: monotonic seconds; `wall`: seconds since the epoch; `random`: a float in [0, 1); `new_id`: a run id.
    `parallel`: steps of one run at a time. `runs_async`: whether async steps can be run. `caller_shares`: whether the
    caller's own thread or task takes steps while others run too. `lease`: seconds, on a durable store. `claims` knows whose
    runs are whose; `owns` gets each run that has a lease, and keeps it renewed until the driver says that it is over.
    `namespace`: what step keys depend on. `store_patience`: seconds for which a run waits for a store
    that is unreachable. `max_takeovers`: a run that crashed more owners in a row is held. `park_after`: seconds; a durable
    run does not keep its process for the wait between two attempts of a step that is longer.
    `whole_steps`: the driver has each step made elsewhere, as a whole.
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
    """whether any hook wants any event"""

    def __post_init__(self) -> None:
        self.durable, self.observed = self.store.durable, bool(self.hooks.wanted)
        if not self.durable:
            self.lease = self.park_after = math.inf
