"""A run and all its callers: processes that start one after the other, or at the same time, until the run is over."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

from ..errors import RunNotFound, StoreError, safe_repr
from ..status import Status
from ..stores.memory import MemoryStore
from ..workflow import Workflow
from .acts import Act, Caller, Fault, Sending, SimulatedCall
from .journal import Journal
from .network import Network, StoreCall, Weather
from .process import Process
from .world import VirtualClock, World

__all__ = ["Story", "play"]

_CHECK_AFTER_LEASES: Final = 1.1
"""leases from the end or halt of a process until the run is checked"""
_MAX_EXTRA_CALLERS: Final = 6
"""how many callers are added at most, one after the other, while the run is not over; more if it waits for values"""
_UNFINISHED: Final = frozenset({Status.RUNNING, Status.PARKED, Status.WAITING})
"""the statuses of a run that was left unfinished"""
_NO_FAULTS: Final = Weather()
_ONE_CALLER: Final = (Caller(),)


@dataclass(slots=True)
class Story:
    """The record of all that happened to a run."""

    seed: int
    began: float
    journal: Journal
    acts: list[Act] = field(default_factory=list[Act])
    """what each process did, in the order in which they started"""
    calls: list[SimulatedCall] = field(default_factory=list[SimulatedCall], repr=False)
    """every call of user code, in order"""
    stored: list[StoreCall] = field(default_factory=list[StoreCall], repr=False)
    """every request to the store, in order of arrival"""
    fired: list[tuple[str, Fault]] = field(default_factory=list[tuple[str, Fault]])
    """the injected faults with their steps, in the order in which they struck"""
    sent: list[tuple[Sending, bool | StoreError]] = field(default_factory=list[tuple[Sending, bool | StoreError]])
    """the values sent to the run, each with whether it counts, or with the error that refused it"""
    key: str = ""
    """the key under which the store keeps the run"""


def play(
    workflow: Workflow,
    values: Mapping[str, Any] | None = None,
    *,
    seed: int,
    store: MemoryStore,
    callers: Sequence[Caller] = _ONE_CALLER,
    weather: Weather = _NO_FAULTS,
    faults: Mapping[str, Fault] | None = None,
    key: str | None = None,
    cancel_at: float | None = None,
    deadline: float | None = None,
    max_workers: int = 32,
    grace: float = 5.0,
    lease: float = 30.0,
    observed: bool = True,
    sends: Sequence[Sending] = (),
    park_after: float = math.inf,
) -> Story:
    """Play the story of one run: start the `callers`, and add more until the run is over. Once callers are added, the
    network loses nothing any more. The same arguments give the same story.

    `cancel_at`: seconds after which the first caller cancels the run. `sends`: the values that are sent to its waits.
    Raises AssertionError if the run never ends.
    """
    clock = getattr(store, "clock", None)
    world = World(seed, clock if isinstance(clock, VirtualClock) else VirtualClock())
    story = Story(seed, world.now, Journal())
    # Run ids have a random source of their own, so that drawing an id changes no other choice. The source depends on
    # the known runs, because a store would mistake a claim with a repeated id for one of the earlier owner.
    known = [(record.run_id, record.fence) for record in store.list_runs()]
    network = Network(world, store, weather, 2 * min(lease, 1e6))
    story.stored = network.log

    def process(number: int, caller: Caller, on_idle: Callable[[], None]) -> Process:
        return Process(
            world,
            network,
            number,
            caller,
            dict(faults or {}),
            story.fired,
            story.calls,
            story.journal if observed else None,
            max_workers=max_workers,
            grace=grace,
            lease=lease,
            park_after=park_after,
            ids=random.Random(f"{seed} {known} {number}"),  # noqa: S311 - a seed that replays is the point
            on_idle=on_idle,
        )

    def begin(process: Process) -> None:
        process.begin(workflow, values, key, deadline)

    cast = _Cast(story, world, network, callers, sends, process, begin, keyed=key is not None, lease=lease)
    cast.cancel_at = cancel_at
    try:
        if not world.run() or any(process.hangs for process in cast.processes):
            raise AssertionError(f"the run of {safe_repr(workflow.name)} never ended; replay with seed={seed}")
    finally:
        world.close()
        for one in cast.processes:
            one.close()
    story.key = cast.processes[0].run.stored_key
    return story


class _Cast:
    """The processes of a story. It schedules when each of them comes, and the values that are sent to the run."""

    cancel_at: float | None = None
    """seconds after which the first process cancels the run"""

    def __init__(
        self,
        story: Story,
        world: World,
        network: Network,
        callers: Sequence[Caller],
        sends: Sequence[Sending],
        process: Callable[[int, Caller, Callable[[], None]], Process],
        begin: Callable[[Process], None],
        *,
        keyed: bool,
        lease: float,
    ) -> None:
        self.processes: list[Process] = []
        self._story = story
        self._world = world
        self._network = network
        self._store = network.store
        self._callers = callers
        self._sends = sends
        self._process = process
        self._begin = begin
        self._keyed = keyed
        self._lease = lease
        self._senders = random.Random(f"{story.seed} senders")  # noqa: S311 - a seed that replays is the point
        self._idle = set[int]()  # the processes that have halted or ended
        world.after(callers[0].after, partial(self._come, 0))
        for sending in sends:
            world.after(sending.at, partial(self._send, sending))

    def _come(self, number: int) -> None:
        """Start process `number`."""
        callers = self._callers
        caller = callers[number] if number < len(callers) else Caller(recovers=not self._keyed)
        process = self._process(number, caller, partial(self._on_idle, number))
        self._story.acts.append(process.act)
        self.processes.append(process)
        if caller.decides is not None:
            process.over(None, self._network.decide(number, caller.decides, self.processes[0].run.stored_key))
        else:
            self._begin(process)
        if number == 0 and self.cancel_at is not None:
            process.cancel_after(self.cancel_at)
        if caller.stops is not None:
            process.stop_after(caller.stops)
        self._expect(number + 1, beside=True)

    def _expect(self, number: int, *, beside: bool) -> None:
        if number < len(self._callers) and self._callers[number].beside is beside:
            self._world.after(self._callers[number].after, partial(self._come, number))

    def _on_idle(self, number: int) -> None:
        """Schedule what follows the halt or the end of process `number`, which may have both, one after the other."""
        if number not in self._idle:
            self._idle.add(number)
            self._expect(number + 1, beside=False)
        if len(self._story.acts) >= len(self._callers) and self._store.durable:
            self._world.after(self._lease * _CHECK_AFTER_LEASES, self._look)

    def _send(self, sending: Sending) -> None:
        """Send a value to the run without the network, from one of the processes, and record the outcome."""
        outcome: bool | StoreError
        try:
            if not self.processes:
                raise RunNotFound("The run has not begun.")
            sender = self._senders.choice(self.processes) if self._store.durable else self.processes[0]
            outcome = sender.send(sending)
        except StoreError as error:
            outcome = error
        self._story.sent.append((sending, outcome))

    def _look(self) -> None:
        """Check whether the run is over, and add a caller if it was left unfinished."""
        story, now = self._story, self._world.now
        record = self._store.find(self.processes[0].run.stored_key)
        if record is not None and record.status is Status.WAITING and record.decision is None:
            due = 0.0 if record.not_before is None else record.not_before
            if due > now and (due < math.inf or len(story.sent) < len(self._sends)):
                self._world.after(min(due - now, self._lease) * _CHECK_AFTER_LEASES, self._look)
            if due > now:
                return
        if record is not None and record.status is Status.RUNNING and (record.expires or 0.0) > now:
            self._world.after(self._lease * _CHECK_AFTER_LEASES, self._look)
            return
        left = self._keyed if record is None else record.status in _UNFINISHED and not record.held
        waited = sum(act.run is not None and act.run.status is Status.WAITING for act in story.acts)
        if left and len(story.acts) < len(self._callers) + _MAX_EXTRA_CALLERS + len(self._sends) + waited:
            self._network.stop_faults()
            self._come(len(story.acts))
