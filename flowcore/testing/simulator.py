"""The third driver: it has virtual time and no threads, and a seed decides every choice of the scheduler.

It drives the same programs as `Engine` and `AsyncEngine`. A step's function runs in an instant of virtual time. The
seed draws how long the step takes, in which order simultaneous events happen, and when workers start. A thousand
schedules of a workflow take a second, and the seed of a failed one replays it. Processes die, and others resume their
runs, in the same virtual time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import DefinitionError, StoreError, safe_repr
from ..events import Event
from ..run import Run
from ..stores.memory import MemoryStore
from ..workflow import Workflow
from .acts import CRASHES, Fault, Sending, SimulatedCall
from .journal import Journal
from .network import SimulatedStore
from .story import Story, play

__all__ = ["Fault", "Sending", "SimulatedCall", "Simulation", "simulate"]


@dataclass(slots=True)
class Simulation:
    """The outcome of a simulated run, and a record of how it came about."""

    run: Run
    events: list[Event] = field(repr=False)
    journal: Journal
    seed: int
    fired: list[tuple[str, Fault]] = field(default_factory=list[tuple[str, Fault]])
    """the injected faults with their steps, in the order in which they struck"""
    began: float = 0.0
    """when the simulation began, on the clock of the events' `at`"""
    took: float = 0.0
    """virtual seconds until the run was over; a call that was given up may have completed later"""
    cancelled: float | None = None
    """when the run was cancelled, on the clock of the events' `at`; None if it was not"""
    sent: list[tuple[Sending, bool | StoreError]] = field(default_factory=list[tuple[Sending, bool | StoreError]])
    """the values sent to its waits, each with whether it counts, or with the error that refused it"""
    calls: list[SimulatedCall] = field(default_factory=list[SimulatedCall], repr=False)
    """every call of user code, in order"""


def simulate(
    workflow: Workflow[Any],
    values: Mapping[str, Any] | None = None,
    *,
    seed: int = 0,
    faults: Mapping[str, Fault] | None = None,
    cancel_at: float | None = None,
    max_workers: int = 32,
    grace: float = 5.0,
    lease: float = 30.0,
    store: MemoryStore | None = None,
    idempotency_key: str | None = None,
    deadline: float | None = None,
    observed: bool = True,
    sends: Sequence[Sending] = (),
) -> Simulation:
    """Run a workflow in virtual time. The same arguments give the same run.

    The step functions are really called. Async ones run to their end at once, in an event loop of the simulation, so
    their waits take real time and should be short. Each call takes up to one virtual second. A failed run is returned,
    never raised; a refused claim raises the same error as in an engine.

    `faults`: the fault of each step that has one, by step name. `cancel_at`: virtual seconds after which the run is
    cancelled. `observed=False`: no hooks, as in an engine without any, so `events` and `journal` stay empty. `sends`:
    values that are sent to waits, each at its virtual second; `Simulation.sent` has the outcome of each.

    Results go through the default codec, as on a durable store; results that it cannot keep stay as they are. A step
    that changes the result of another step in place fails with NotSerializable.

    A crash needs a durable store: without `store=`, a simulation with a crash makes a SimulatedStore. When the `lease`
    of the dead process has expired, another process takes the run over, and the Simulation has the run as that process
    got it; `events` and `journal` cover both processes.

    Raises DefinitionError for a fault at a step that the workflow does not have, and for a crash with a store that is
    not durable.
    """
    known = workflow.freeze().by_name
    faults = dict(faults or {})
    for name in faults:
        if name not in known:
            raise DefinitionError(
                f"faults= names {safe_repr(name)}, which is not a step of {safe_repr(workflow.name)}."
            )
    crashes = not CRASHES.isdisjoint(faults.values())
    if store is not None and crashes and not store.durable:
        raise DefinitionError(
            f"A crash needs a durable store, but {safe_repr(store)} is not durable. Pass SimulatedStore()."
        )
    story = play(
        workflow,
        values,
        seed=seed,
        store=store or (SimulatedStore() if crashes else MemoryStore()),
        faults=faults,
        key=idempotency_key,
        cancel_at=cancel_at,
        deadline=deadline,
        max_workers=max_workers,
        grace=grace,
        lease=lease,
        observed=observed,
        sends=sends,
    )
    return _told(story)


def _told(story: Story) -> Simulation:
    acts = story.acts
    last = acts[-1]
    if last.refusal is not None:
        raise last.refusal
    assert last.run is not None  # noqa: S101 - the last process neither dies nor comes after the end of the run
    assert last.ended is not None  # noqa: S101 - see above
    return Simulation(
        last.run,
        acts[0].events if len(acts) == 1 else sorted((e for act in acts for e in act.events), key=lambda e: e.at),
        story.journal,
        story.seed,
        story.fired,
        story.began,
        last.ended - story.began,
        acts[0].cancelled,
        sent=story.sent,
        calls=story.calls,
    )
