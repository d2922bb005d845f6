"""Callers that wait for another run with their key.

A caller in the engine that has that run is woken when it ends, and does not call the store before. Other callers poll
the head of its record, with growing delays. The whole claim is sent again only if the run seems to have no owner.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Container
from typing import Final

from .._kernel import emit
from .._kernel.effects import Program, Sleep
from .._kernel.ledger import now_of
from .._kernel.run_state import RunState
from ..errors import LeaseLost, StoreUnavailable
from ..forks import after_fork_in_child
from ..retry import Backoff
from ..run import Run
from ..status import Status
from ..stores.base import RESUMABLE, Busy, Claim, ClaimAnswer, Claimed, Finished, Held, Mismatch
from . import checkpoints
from .ledger import ledger_of
from .outcomes import UNKNOWN, is_given_up, refusal, replay

__all__ = ["LocalRuns", "adopt", "head_of", "refuse_if_cancelled", "taken_here", "wait_for_owner", "wait_for_turn"]

_POLL: Final = Backoff.exponential(0.002, max_delay=1.0, jitter=False)
"""the delays between the polls of a waiting caller"""
_WOKEN: Final = Backoff.exponential(0.05, max_delay=1.0, jitter=False)
"""the same for a caller that is woken, in case it was woken a moment before it slept"""
_SHORTEST: Final = 0.05
"""the shortest time after which a retry is advised, in seconds"""
_REMEMBERED: Final = 1_000
"""for how many workflows the usual duration of a run is known: those that ended last"""
_WEIGHT: Final = 0.3
"""the weight of the latest run in the usual duration of a workflow's runs, a moving average"""


class LocalRuns:
    """The claimed runs that an engine has in flight, by key, the callers that wait for them here, and the usual
    duration of each workflow's runs. Thread-safe. `wake`: cuts the sleep of a waiting caller short. `called_in`: whether
    the present call comes from one of these runs."""

    def __init__(
        self,
        wake: Callable[[RunState], None],
        clock: Callable[[], float],
        called_in: Callable[[Container[RunState]], bool],
    ) -> None:
        self._wake = wake
        self._clock = clock
        self._called_in = called_in
        self._usual: dict[str, float] = {}
        self._after_fork()
        after_fork_in_child(self, LocalRuns._after_fork)

    def _after_fork(self) -> None:
        self._lock = threading.Lock()
        self._runs: dict[str, RunState] = {}  # (lock) the runs, by key
        self._began: dict[RunState, float] = {}  # (lock) when each run was claimed
        self._waiters: dict[RunState, dict[RunState, None]] = {}  # (lock) waiting callers, by the run they wait for
        self._sleepers: dict[RunState, None] = {}  # (lock) callers of runs that wait in their store
        # (lock) By the id of an earlier run: the run whose claim to resume it is in flight
        self._resuming: dict[str | None, RunState] = {}

    def join(self, run: RunState) -> None:
        """Add a run that has been claimed."""
        with self._lock:
            self._runs[run.stored_key] = run
            self._began[run] = self._clock()

    def leave(self, run: RunState) -> None:
        """Remove a run that is over here, and wake the callers that wait for it."""
        with self._lock:
            if self._runs.get(run.stored_key) is run:
                del self._runs[run.stored_key]
            waiters = self._waiters.pop(run, ())
            began = self._began.pop(run, None)
            if began is not None:
                took, name = self._clock() - began, run.workflow.name
                usual = self._usual.pop(name, took)
                self._usual[name] = usual + (took - usual) * _WEIGHT
                if len(self._usual) > _REMEMBERED:
                    del self._usual[next(iter(self._usual))]
        for waiter in waiters:
            self._wake(waiter)

    def begin_resuming(self, run: RunState) -> bool:
        """Note that the claim with which `run` resumes an earlier run is in flight. Returns False if there is another
        such claim already: if both reached the store late, the second would take the run over from the first."""
        with self._lock:
            return self._resuming.setdefault(run.request.recovering, run) is run

    def end_resuming(self, run: RunState) -> None:
        """Note that the claim with which `run` resumes an earlier run is decided."""
        with self._lock:
            if self._resuming.get(run.request.recovering) is run:
                del self._resuming[run.request.recovering]

    def find(self, key: str) -> RunState | None:
        """Return the run that has this key here, or None if there is none or it was lost to another owner."""
        with self._lock:
            run = self._runs.get(key)
        return None if run is None or run.lost else run

    def waits_for_caller(self, key: str) -> bool:
        """Whether the run that has this key here is the one whose step makes the present call. Its end must not be
        waited for."""
        owner = self.find(key)
        return owner is not None and self._called_in((owner,))

    def awaited(self, key: str) -> tuple[str, ...]:
        """Return the steps that the run with this key waits for, if it is in flight here and only waits; else an empty
        tuple."""
        run = self.find(key)
        if run is None or run.waits is None:
            return ()
        with run.lock:
            return () if run.running or run.ready else tuple(run.waits.aside)

    def wait_for(self, run_id: str, waiter: RunState) -> bool:
        """Wake `waiter` when the run with its key and this id ends. Returns False if that run is not in flight here."""
        with self._lock:
            run = self._runs.get(waiter.stored_key)
            if run is None or run.lost or run.known_id != run_id:
                return False
            self._waiters.setdefault(run, {})[waiter] = None
            return True

    def sleep(self, run: RunState) -> None:
        """Note that the caller of this run sleeps while the run waits in its store."""
        with self._lock:
            self._sleepers[run] = None

    def wake_up(self, run: RunState) -> None:
        """Note that the caller of this run does not sleep any more."""
        with self._lock:
            self._sleepers.pop(run, None)

    @property
    def sleepers(self) -> int:
        """The number of callers that sleep."""
        return len(self._sleepers)

    def wake_sleepers(self, key: str) -> bool:
        """Let the sleeping callers of the run with this key poll its record at once. Returns whether there is one."""
        with self._lock:
            found = [run for run in self._sleepers if run.stored_key == key]
        for run in found:
            self._wake(run)
        return bool(found)

    def usual_rest(self, workflow: str, age: float) -> float:
        """Return the seconds after which a run of this workflow that began `age` seconds ago has usually ended."""
        with self._lock:
            usual = self._usual.get(workflow)
        if usual is None:
            return UNKNOWN
        return max(_SHORTEST, usual - age if usual > age else usual / 2)


def taken_here(run: RunState, local: LocalRuns | None, wanted: Claim) -> Program[Busy | Mismatch | None]:
    """Return a refusal if the key belongs to a run of this engine, because a claim might take that run over from the
    engine itself: it may reach the store only after an outage that has cost the run its lease. Returns None if the claim
    may be sent."""
    mine = None if local is None else local.find(wanted.key)
    ledger = None if mine is None else ledger_of(mine)
    if mine is None or mine is run or ledger is None:
        return None
    head, failure = yield from head_of(run, wanted.key)
    if not isinstance(failure, StoreUnavailable):
        if head is None or (head.run_id, head.fence) != (mine.run_id, mine.fence) or head.finished is not None:
            return None
    elif local is None or local.find(wanted.key) is not mine:
        return None
    age = 0.0 if head is None else max(0.0, now_of(mine) - head.started)
    left = ledger.lease_until - run.settings.clock()
    if wanted.fingerprint is not None and wanted.fingerprint != mine.fingerprint:
        return Mismatch(mine.run_id, mine.carrier, age, mine.workflow.name)
    return Busy(mine.run_id, mine.carrier, age, max(0.0, left))


def wait_for_turn(run: RunState, local: LocalRuns) -> Program[None]:
    """Wait until no other claim of this engine resumes the run that `run` is to resume. Raises LeaseLost if no caller
    waits for the outcome."""
    polls, run_id = 0, run.request.recovering or ""
    while not local.begin_resuming(run) and run.error is None:
        if run.request.wait is None:
            lost = LeaseLost(f"Run {run_id} is being resumed already.", run_id=run_id)
            emit.refused(run, lost)
            raise lost
        polls += 1
        yield Sleep(_WOKEN.delay(polls))


def wait_for_owner(
    run: RunState, local: LocalRuns | None, wanted: Claim, busy: Busy, asked: float, until: float
) -> Program[ClaimAnswer | None]:
    """Wait until `until` (monotonic) at most for the run that has the key. `busy`: the reply of the store to the claim,
    which was sent at `asked`. Returns the outcome of that run, or None if it seems to have no owner, so that the claim
    must be sent again.

    Raises IdempotencyInProgress when the time is up, or at once if a step of that run makes the call; the error with which the caller was cancelled, or an error of the
    store that no retry cures.
    """
    clock = run.settings.clock
    if local is not None and local.waits_for_caller(wanted.key):
        raise refusal(run, local, wanted.key, busy)
    lease_ends, expires = asked + busy.lease_left, None
    wanted.attached = busy.run_id
    polls = 0
    while (left := until - clock()) > 0:
        here = local is not None and local.wait_for(busy.run_id, run)
        polls += 1
        yield Sleep(min((_WOKEN if here else _POLL).delay(polls), left))
        if run.error is not None and run.request.recovering is not None and not run.relinquished:
            # The caller was cancelled, and another process has resumed its run: cancel the run there.
            yield from checkpoints.ask(run, "cancel", wanted.key)
        refuse_if_cancelled(run)
        if here and local is not None and local.wait_for(busy.run_id, run):
            continue
        head, failure = yield from head_of(run, wanted.key)
        refuse_if_cancelled(run)
        if isinstance(failure, StoreUnavailable):
            continue
        if failure is not None:
            emit.refused(run, failure)
            raise failure
        if head is None or head.run_id != busy.run_id:
            return None
        if head.held or (head.finished is not None and head.status not in RESUMABLE):
            return (yield from _ended(run, busy.run_id))
        if head.status is Status.WAITING and head.not_before == busy.due:
            if clock() >= lease_ends:
                return None
            continue
        if head.expires is None or head.finished is not None:
            return None
        if expires is not None and head.expires > expires and lease_ends < math.inf:
            lease_ends += head.expires - expires
        expires = head.expires
        if clock() >= lease_ends:
            return None
    raise refusal(run, local, wanted.key, busy)


def adopt(run: RunState) -> Program[Run | None]:
    """Return the outcome of a run that was taken over, if its new owner ends it while its caller waits; else None."""
    until = run.settings.clock() + (run.request.wait or 0.0)
    polls = 0
    while True:
        head, failure = yield from checkpoints.ask(run, "head", run.stored_key)
        if failure is None and (head is None or head.run_id != run.run_id):
            return None
        if failure is None and head.finished is not None and head.status not in RESUMABLE:
            answer = yield from _ended(run, run.run_id)
            if isinstance(answer, Finished):
                return replay(run, answer.record)
        left = until - run.settings.clock()
        if left <= 0 or run.cancelled_late is not None:
            return None
        polls += 1
        yield Sleep(min(_POLL.delay(polls), left), shielded=True)  # the run has stopped, which would end it at once


def _ended(run: RunState, run_id: str) -> Program[Finished | Held | None]:
    """Return the outcome of a run that is over or held. A claim is sent for that, because it decodes the record with
    the annotations of the workflow; it has no initial values, because the store has them. Returns None if another run
    has the key by now, if the record was deleted, or if an operator has given the run up."""
    wanted = Claim(run.stored_key, run.run_id, run.workflow.name, None, run.plan.graph, {}, attached=run_id)
    wanted.lease, wanted.types = run.settings.lease, run.plan.types
    answer, _ = yield from checkpoints.ask(run, "claim", wanted)
    if isinstance(answer, Finished) and answer.record.run_id == run_id and not is_given_up(run, answer.record):
        return answer
    if isinstance(answer, Held) and answer.run_id == run_id:
        return answer
    if isinstance(answer, Claimed):  # the record was deleted meanwhile, so that the claim was granted
        yield from checkpoints.ask(run, "withdraw", wanted)
    return None


def refuse_if_cancelled(run: RunState) -> None:
    """Raise the error with which the caller was cancelled, if it was."""
    if run.error is not None:
        emit.refused(run, run.error)
        raise run.error


def head_of(run: RunState, key: str) -> Program[checkpoints.Answer]:
    """Return the head of the record under a key, for a caller that waits. Emits the poll as maintenance."""
    polled = emit.maintenance_started(run, "poll")
    head, failure = yield from checkpoints.ask(run, "head", key, polled.context)
    emit.maintenance_finished(run, polled, "poll", failure)
    return head, failure
