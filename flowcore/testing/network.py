"""A durable store for simulations, and the network before it, which delays, loses and repeats messages."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Final, TypeAlias, cast

from .._kernel.effects import Outcome
from ..errors import RunFailed, StoreUnavailable, error_message
from ..run import StepReport
from ..stores.base import (
    Arrived,
    Behind,
    Checkpoint,
    CheckpointAnswer,
    Claim,
    ClaimAnswer,
    Claimed,
    Ending,
    Finished,
    Lost,
    Page,
    RunRecord,
    StepRecord,
)
from ..stores.memory import MemoryStore
from ..stores.memory_run import LiveRun
from .copies import through_codec
from .world import VirtualClock, World

__all__ = ["GOES_BACK", "Network", "SimulatedStore", "StoreCall", "Weather"]

GOES_BACK: Final = "goes back"
"""the verb of the log entry for a loss of the store's last writes; its argument is the number of lost writes"""
_READS: Final = frozenset({"find", "head", "list_resumable"})


class SimulatedStore(MemoryStore):
    """A durable store for tests: its records survive a simulated crash.

    It lives in memory. By default its virtual clock is also the clock of the simulations that use it. It keeps errors
    as text, as stores that outlive a process do. The results of steps and the values of the context go through the
    default codec on their way in and out; values that the codec cannot keep stay as they are. A step that changes the
    result of another step in place fails.
    """

    name = "simulated"
    durable = True

    def __init__(self, *, clock: Callable[[], float] | None = None) -> None:
        self.clock = clock or VirtualClock()
        super().__init__(clock=self.clock, wall=self.clock)
        self.strict = True

    def claim(self, claim: Claim, /) -> ClaimAnswer:
        """See Store."""
        values = {key: through_codec(value) for key, value in claim.values.items()}
        answer = super().claim(replace(claim, values=values))
        if isinstance(answer, Claimed | Finished) and answer.record is not None:
            answer.record = _copied(answer.record)
        return answer

    def checkpoint(self, checkpoint: Checkpoint, /) -> CheckpointAnswer:
        """See Store."""
        return super().checkpoint(_written(checkpoint))

    def finish(self, ending: Ending, /) -> Behind | Lost | Arrived | None:
        """See Store."""
        return super().finish(_ended(ending))

    def find(self, key: str, /) -> RunRecord | None:
        """See Store."""
        record = super().find(key)
        return None if record is None else _copied(record)

    def list_resumable(
        self, workflows: Collection[str], /, *, limit: int | None = 100, after: str | None = None
    ) -> Page:
        """See Store."""
        page = super().list_resumable(workflows, limit=limit, after=after)
        return Page(map(_copied, page), page.cursor)

    def snapshot(self) -> object:
        """Return a copy of all records, for `restore`."""
        return copy.deepcopy((self._runs, self._ended))

    def restore(self, snapshot: object) -> None:
        """Forget all that was written since the snapshot was taken, as when a replica is promoted without the last
        writes or a backup is restored. The clock is not set back."""
        self._runs, self._ended = copy.deepcopy(cast("_Kept", snapshot))


_Kept: TypeAlias = tuple[dict[str, LiveRun], OrderedDict[str, float]]


def _copied(record: RunRecord) -> RunRecord:
    steps = {name: replace(report) for name, report in record.steps.items()}
    results = {name: through_codec(value) for name, value in record.results.items()}
    return replace(
        record,
        steps=steps,
        results=results,
        values={key: through_codec(value) for key, value in record.values.items()},
    )


def _ended(ending: Ending) -> Ending:
    record = ending.record
    error = None if record.error is None else _as_text(record.error, record.run_id, record.failed_step)
    steps = {name: _report(report, record.run_id, name) for name, report in record.steps.items()}
    return Ending(
        replace(_copied(record), steps=steps, error=error),
        None if ending.changes is None else _written(ending.changes),
        ending.retry_in,
        ending.received,
    )


def _written(checkpoint: Checkpoint) -> Checkpoint:
    """Return a copy of a checkpoint as it is sent over the network: later changes to the run do not change it."""
    error, run_id = checkpoint.error, checkpoint.run_id
    return replace(
        checkpoint,
        steps={name: _step(record, run_id, name) for name, record in checkpoint.steps.items()},
        writes={key: replace(write, value=through_codec(write.value)) for key, write in checkpoint.writes.items()},
        error=None if error is None else _as_text(error, run_id, checkpoint.failed_step),
    )


def _step(record: StepRecord, run_id: str, name: str) -> StepRecord:
    return replace(record, report=_report(record.report, run_id, name), result=through_codec(record.result))


def _report(report: StepReport, run_id: str, name: str) -> StepReport:
    error, undo_error = report.error, report.undo_error
    return replace(
        report,
        error=None if error is None else _as_text(error, run_id, name),
        undo_error=None if undo_error is None else _as_text(undo_error, run_id, name),
    )


def _as_text(error: BaseException, run_id: str, step: str | None) -> RunFailed:
    if isinstance(error, RunFailed):
        return error
    kind, message = type(error).__name__, error_message(error)
    return RunFailed(f"{kind}: {message}", run=run_id, step=step, error_type=kind, error_message=message)


@dataclass(frozen=True, slots=True)
class Weather:
    """The faults of the network and of the store behind it."""

    latency: float = 0.0
    """the most seconds that a request takes, and that a reply takes"""
    lost: float = 0.0
    """the share of the requests that are lost, and the share of the replies"""
    doubled: float = 0.0
    """the share of the requests of which a second copy arrives later"""
    patience: float = 0.1
    """seconds after which a sender gives up on a reply"""
    outages: tuple[tuple[float, float], ...] = ()
    """the spans in which no request arrives: from, until, in seconds since the simulation began"""
    goes_back: tuple[tuple[float, int], ...] = ()
    """when a SimulatedStore loses its last writes, in seconds since the simulation began, and how many it loses"""

    @property
    def fine(self) -> bool:
        """Whether every reply comes at once."""
        return not (self.latency or self.lost or self.doubled or self.outages)


@dataclass(slots=True)
class StoreCall:
    """One request to the store, which has arrived or was lost."""

    process: int
    verb: str
    argument: Any = field(repr=False)
    sent: float
    applied: float | None = None
    """when the store applied the request; None if it never arrived"""
    answer: Any = None
    delivered: bool = False
    """whether the reply reached the sender"""
    copy: bool = False
    """whether it is a late second copy of an earlier request"""


class Network:
    """The network between the processes and their store."""

    def __init__(self, world: World, store: MemoryStore, weather: Weather, late: float) -> None:
        self._world = world
        self.store = store
        self._weather = weather
        self._late = late  # the most seconds by which a second copy is later than the first
        self.log: list[StoreCall] = []
        """all requests in the order in which they arrived, or were lost"""
        self._past: list[object] = []  # a snapshot of the store before each of its writes, if it is to lose any
        for seconds, writes in weather.goes_back:
            world.after(seconds, partial(self._go_back, writes))

    @property
    def is_faultless(self) -> bool:
        """Whether no request or reply is late, lost or doubled."""
        return self._weather.fine

    def stop_faults(self) -> None:
        """Stop losing and doubling requests and replies, and end all outages."""
        self._weather = Weather(
            self._weather.latency, patience=self._weather.patience, goes_back=self._weather.goes_back
        )

    def ask(self, process: int, verb: str, argument: Any) -> Outcome:
        """Send a request to the store, and return the outcome at once."""
        argument = _on_the_wire(argument) if self.store.durable else argument
        call = StoreCall(process, verb, argument, self._world.now)
        outcome = self._apply(call)
        call.delivered = True
        return outcome

    def decide(self, process: int, verb: str, key: str) -> BaseException | None:
        """Apply the decision of an operator, who calls the store directly. Returns the error of the store, or None."""
        call = StoreCall(process, verb, key, self._world.now, delivered=True)
        failure = self._apply(call)[1]
        return failure if isinstance(failure, BaseException) else None

    def send(
        self,
        process: int,
        verb: str,
        argument: Any,
        on_reply: Callable[[float, Outcome], None],
        applied: Callable[[], None] | None = None,
    ) -> None:
        """Send a request. `on_reply(seconds, outcome)` is called when the reply leaves the store or is known to be
        lost: the sender gets the outcome so many seconds later. `applied()` is called when the store has applied the
        request; a request with `applied` is never lost, though its reply may be."""
        world, weather = self._world, self._weather
        call = StoreCall(process, verb, _on_the_wire(argument), world.now)
        there, back = weather.latency * world.random.random(), weather.latency * world.random.random()
        certain = applied is not None
        if not certain and weather.lost and world.random.random() < weather.lost:
            self._lose(call, on_reply)
            return
        if weather.doubled and world.random.random() < weather.doubled:
            world.after(there + self._late * world.random.random(), lambda: self._again(call))
        reply_lost = bool(weather.lost) and world.random.random() < weather.lost

        def arrives() -> None:
            if self._is_out() and not certain:
                self._lose(call, on_reply)
                return
            outcome = self._apply(call)
            if applied is not None:
                applied()
            if reply_lost:
                on_reply(weather.patience, (None, StoreUnavailable("No reply came.")))
            else:
                call.delivered = True
                on_reply(back, outcome)

        world.after(there, arrives)

    def _lose(self, call: StoreCall, on_reply: Callable[[float, Outcome], None]) -> None:
        self.log.append(call)
        on_reply(self._weather.patience, (None, StoreUnavailable("The store is unreachable.")))

    def _again(self, call: StoreCall) -> None:
        if not self._is_out():
            self._apply(replace(call, delivered=False, copy=True))

    def _is_out(self) -> bool:
        passed = self._world.now - self._world.began
        return any(begins <= passed < ends for begins, ends in self._weather.outages)

    def _go_back(self, writes: int) -> None:
        if self._past:
            kept = max(0, len(self._past) - writes)
            cast("SimulatedStore", self.store).restore(self._past[kept])
            del self._past[kept:]
            self.log.append(StoreCall(-1, GOES_BACK, writes, self._world.now, self._world.now, delivered=True))

    def _apply(self, call: StoreCall) -> Outcome:
        call.applied = self._world.now
        if self._weather.goes_back and call.verb not in _READS:
            self._past.append(cast("SimulatedStore", self.store).snapshot())
        verb = getattr(self.store, call.verb)
        try:
            answer = verb(*call.argument) if call.verb == "renew" else verb(call.argument)
        except Exception as error:  # noqa: BLE001 - the program decides what a store's error means
            call.answer = error
            self.log.append(call)
            return None, error
        call.answer = answer
        if isinstance(answer, Claimed) and answer.record is not None:
            call.answer = replace(answer, record=_copied(answer.record))  # The caller may change its own record.
        self.log.append(call)
        return answer, None


def _on_the_wire(argument: Any) -> Any:
    match argument:
        case Checkpoint():
            return _written(argument)
        case Ending():
            return _ended(argument)
        case Claim():
            return replace(argument, values=dict(argument.values))
        case _:
            return argument
