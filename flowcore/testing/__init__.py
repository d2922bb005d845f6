"""Tools to test your own workflows: simulated time and faults, a rehearsal of all faults at all steps, and a journal.
For authors of stores there is `StoreConformance`, the suite that every store must pass.

Workflows run without this package, and nothing in flowcore imports it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .acts import Fault
from .journal import Journal
from .network import SimulatedStore
from .rehearsal import Rehearsal, rehearse
from .simulator import Sending, Simulation, simulate
from .waiting import no_waiting

if TYPE_CHECKING:
    from .conformance import StoreConformance

__all__ = [
    "Fault",
    "Journal",
    "Rehearsal",
    "Sending",
    "SimulatedStore",
    "Simulation",
    "StoreConformance",
    "no_waiting",
    "rehearse",
    "simulate",
]


def __getattr__(name: str) -> Any:
    """Import `StoreConformance` at its first use, because it needs pytest and hypothesis."""
    if name != "StoreConformance":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        from .conformance import StoreConformance
    except ModuleNotFoundError as missing:
        if missing.name not in {"pytest", "hypothesis"}:
            raise
        raise ImportError("StoreConformance needs pytest and hypothesis: pip install pytest hypothesis.") from None
    return StoreConformance
