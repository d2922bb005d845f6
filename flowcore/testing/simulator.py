"""The third driver: virtual time, no threads, and every choice a scheduler may make taken by a seed.

The programs are the ones that `Engine` and `AsyncEngine` drive. Here a step's function runs in an instant, and the time
it is said to have taken is drawn; so are the order of what happens at one moment, and when helpers come. A thousand
schedules of a workflow take a second, and a seed replays the one that failed. Processes die, and others resume
their runs, in the same virtual time.
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
    """What came of a simulated run."""

    run: Run
    events: list[Event] = field(repr=False)
    journal: Journal
    seed: int
    fired: list[tuple[str, Fault]] = field(default_factory=list[tuple[str, Fault]])
    """the injected faults, by step, as they struck"""
    began: float = 0.0
    """the moment of the simulation's clock, to which the events' `at` belong, at which it began"""
    took: float = 0.0
    """virtual seconds until the run was over; a call that was given up may have landed later"""
    cancelled: float | None = None
    """the moment at which the run was cancelled, if it was"""
    sent: list[tuple[Sending, bool | StoreError]] = field(default_factory=list[tuple[Sending, bool | StoreError]])
    """what was sent to its waits, and whether it counts, or why it was refused"""
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
    """Run a workflow in virtual time; the same arguments give the same run.

    `faults`: what goes wrong, by step name. `cancel_at`: virtual seconds after which the run is cancelled. The step
    functions are really called; async ones run to their end at once, in a loop of the simulation's own, so their waits
    are real ones and should be short. Each call is said to take up to a virtual second. A failed run is answered, never
    raised; refused claims are raised as by an engine. `observed=False` runs without any hook, as an engine without hooks
    would: no events and no journal, all else the same. `sends`: values that are sent to waits, each at its virtual second;
    `sent` has what came of each.

    Results go through the default codec, as on a durable store; those that it cannot keep stay as they are. A step that changes
    the result of another one in place fails with NotSerializable.

    A crash wants a durable store: a SimulatedStore, of its own unless you pass one. When the dead process's `lease` is
    over, another one takes the run over, and the answer is what that one got; `events` and `journal` have both.

    Raises DefinitionError for a fault at a step that the workflow does not have, and for a crash without a durable store.
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
            f"only a durable store survives a crash, and {safe_repr(store)} is none: pass SimulatedStore()."
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
    assert last.run is not None  # noqa: S101 - no process comes after a run that is over, and the last one does not die
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
