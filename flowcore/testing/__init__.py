"""For tests of your own workflows: simulated time and faults, a rehearsal of everything that can go wrong, a journal.

Nothing here is needed to run workflows, and nothing in flowcore imports it.
"""

from __future__ import annotations

from .acts import Fault
from .journal import Journal
from .network import SimulatedStore
from .rehearsal import Rehearsal, rehearse
from .simulator import Simulation, simulate
from .waiting import no_waiting

__all__ = ["Fault", "Journal", "Rehearsal", "SimulatedStore", "Simulation", "no_waiting", "rehearse", "simulate"]
