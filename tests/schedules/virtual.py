"""Engines with schedules in virtual time: real stores, real looks, and clocks that only the test moves."""

from __future__ import annotations

import contextvars
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from flowcore import StoreUnavailable, Workflow
from flowcore._durable.claim import StoreClaims
from flowcore._engines.asking import make_calls
from flowcore._engines.scheduler import Scheduled
from flowcore._kernel.settings import Settings
from flowcore.events import Event, Hooks, ScheduleFired, ScheduleMissed, SchedulePlanned
from flowcore.fires import fire_of
from flowcore.schedule import Schedule
from flowcore.status import Status
from flowcore.stores.base import Claim, Claimed, Ending, RunRecord

START = datetime(2026, 3, 2, 12, tzinfo=UTC)


@dataclass
class World:
    """The true time, and what was begun: (name of the engine, planned time, true time)."""

    store: Any
    moment: datetime = START
    began: list[tuple[str, datetime, datetime]] = field(default_factory=list)
    lasts: timedelta | None = timedelta(0)
    """how long a run takes; None: until it is cancelled"""
    outcome: Status = Status.SUCCESS
    ends: list[tuple[datetime, str, Claim, int]] = field(default_factory=list)
    engines: list[Clockwork] = field(default_factory=list)
    down: bool = False

    def wall(self) -> float:
        return self.moment.timestamp()

    @property
    def fires(self) -> list[datetime]:
        return [fire for _, fire, _ in self.began]

    def minutes(self) -> list[int]:
        """The fires that were begun, in minutes after START."""
        return [int((fire - START).total_seconds() // 60) for fire in self.fires]

    def run(self, length: timedelta, step: timedelta = timedelta(seconds=5)) -> None:
        """Let time pass; every engine looks when it would."""
        until = self.moment + length
        while self.moment < until:
            self.moment += step
            self.end_runs()
            for engine in list(self.engines):
                engine.look()

    def end_runs(self) -> None:
        for end in [one for one in self.ends if one[0] <= self.moment]:
            self.ends.remove(end)
            _, key, claim, fence = end
            self.finish(key, claim, fence, self.outcome)

    def finish(self, key: str, claim: Claim, fence: int, status: Status) -> None:
        record = RunRecord(key, claim.run_id, claim.workflow, "", claim.graph, status, fence=fence)
        record.error = None if status is Status.SUCCESS else ValueError("it failed")
        self.store.finish(Ending(record))


class Clockwork:
    """An engine with one schedule, whose clock is `skew` ahead."""

    def __init__(
        self, world: World, name: str = "a", *, skew: timedelta = timedelta(0), values: Any = None, **options: Any
    ):
        self.world, self.name, self.skew = world, name, skew
        self.events: list[Event] = []
        self.workflow = Workflow("nightly")
        options.setdefault("cron", "*/10 * * * *")
        store = Cut(world)
        settings = Settings(
            store=store,
            claims=StoreClaims(),
            hooks=Hooks(()),
            grace=1,
            parallel=1,
            runs_async=False,
            caller_shares=True,
            clock=world.wall,
            wall=lambda: world.wall() + skew.total_seconds(),
            random=lambda: 0.5,
            new_id=lambda: f"{name}-{next(_IDS)}",
            lease=30.0,
        )
        schedule = Schedule.of("nightly", "nightly", **options)
        self.scheduled = Scheduled(
            *(settings, self.workflow, schedule, values),
            begin=self.begin,
            call=called,
            cancel=self.cancel,
            emit=self.events.append,
            is_open=lambda: True,
        )
        world.engines.append(self)

    def look(self) -> None:
        if self.scheduled.due():
            make_calls(self.scheduled.look(), contextvars.copy_context())

    def stop(self) -> None:
        self.world.engines.remove(self)

    def begin(self, workflow: Workflow, values: Any, key: str) -> bool:
        world = self.world
        claim = Claim(key, f"{self.name}-{next(_IDS)}", workflow.name, "", "graph", {}, values or {}, 1e9, once=True)
        answer = Cut(world).claim(claim)
        if not isinstance(answer, Claimed):
            return False
        fire = fire_of(key)
        assert fire is not None
        world.began.append((self.name, fire, world.moment))
        if world.lasts is not None:
            world.ends.append((world.moment + world.lasts, key, claim, answer.fence))
        else:
            self.claim, self.fence = claim, answer.fence
        world.end_runs()
        return True

    def cancel(self, key: str) -> bool:
        """As an engine does: the run ends soon, and what it did is undone."""
        self.cancelled = key
        self.world.ends.append((self.world.moment + timedelta(seconds=20), key, self.claim, self.fence))
        self.world.outcome = Status.COMPENSATED
        return True

    def of_type(self, kind: type[Any]) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]

    @property
    def missed(self) -> list[tuple[int, str]]:
        return [(event.count, event.reason) for event in self.of_type(ScheduleMissed)]

    @property
    def lateness(self) -> list[float]:
        return [event.lateness for event in self.of_type(ScheduleFired)]

    @property
    def planned(self) -> list[float | None]:
        return [event.due for event in self.of_type(SchedulePlanned)]


class Cut:
    """The world's store, which may be unreachable."""

    def __init__(self, world: World) -> None:
        self.world = world

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.world.store, name)
        if not callable(found):
            return found

        def call(*arguments: Any, **options: Any) -> Any:
            if self.world.down:
                raise StoreUnavailable("the store is away")
            return found(*arguments, **options)

        return call


def called(values: Callable[[], Any]) -> Future[Any]:
    """The call of a `values=`, which takes no time."""
    call: Future[Any] = Future()
    try:
        call.set_result(values())
    except Exception as error:  # noqa: BLE001 - the schedule raises it
        call.set_exception(error)
    return call


def counter() -> Any:
    number = 0
    while True:
        number += 1
        yield number


_IDS = counter()

__all__ = ["START", "Clockwork", "World"]
