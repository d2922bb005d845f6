"""A small model of the store contract: one dict, no clock, no locks. The state machine compares a store with it, and
the owners of the suite use its parts to know the contents that a record must have. But for `makes_progress`, it shares
no code with the stores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from ...errors import RunFailed, RunNotFound, StoreError, error_message
from ...run import StepReport
from ...status import Status
from ...stores.base import (
    STOPS,
    Busy,
    Checkpoint,
    Claim,
    Claimed,
    Ending,
    Finished,
    Held,
    Lease,
    Lost,
    Mismatch,
    OtherGraph,
    Renewal,
    RunRecord,
    StepRecord,
    Write,
)
from ...stores.decide import makes_progress

__all__ = ["Checkpoints", "Known", "Model", "snapshot"]

FREE: Final = (Status.FAILURE, Status.COMPENSATED)
UNDONE_YET: Final = (Status.INCOMPLETE, Status.PARKED)


class Checkpoints:
    """The contents of a run's checkpoints: each step and each key of the context as it was with the highest seq."""

    def __init__(self, values: Mapping[str, Any] = {}) -> None:
        self.initial = dict(values)
        self.steps: dict[str, StepRecord] = {}
        self.writes: dict[str, Write] = {}

    @classmethod
    def of(cls, record: RunRecord) -> Checkpoints:
        """Return checkpoints that lead to this record."""
        checkpoints = cls(record.values)
        names = sorted(record.steps, key=[*record.results, *record.effects, *record.steps].index)
        for seq, name in enumerate(names):
            known = name in record.results
            carrier = record.carriers.get(name, {})
            effect = name in record.effects
            step = StepRecord(seq, record.steps[name], known, record.results.get(name), effect, carrier)
            checkpoints.steps[name] = step
        return checkpoints

    def take(self, steps: Mapping[str, StepRecord], writes: Mapping[str, Write]) -> None:
        """Add the steps and writes that have a higher seq than the known ones."""
        for name, step in steps.items():
            if name not in self.steps or step.seq > self.steps[name].seq:
                self.steps[name] = step
        for key, write in writes.items():
            if key not in self.writes or write.seq > self.writes[key].seq:
                self.writes[key] = write

    def _in_order(self) -> list[tuple[str, StepRecord]]:
        return sorted(self.steps.items(), key=lambda step: step[1].seq)

    @property
    def results(self) -> dict[str, Any]:
        return {name: step.result for name, step in self._in_order() if step.has_result}

    @property
    def effects(self) -> tuple[str, ...]:
        running = [name for name, step in self._in_order() if step.report.status == "running"]
        return (*(name for name, step in self._in_order() if step.effect and name not in running), *running)

    @property
    def reports(self) -> dict[str, StepReport]:
        return {name: step.report for name, step in self.steps.items()}

    @property
    def carriers(self) -> dict[str, Mapping[str, str]]:
        return {name: step.carrier for name, step in self.steps.items() if step.carrier}

    @property
    def values(self) -> dict[str, Any]:
        values = dict(self.initial)
        for key, write in self.writes.items():
            values.pop(key, None)
            if not write.deleted:
                values[key] = write.value
        return values

    @property
    def seq(self) -> int:
        sent: list[StepRecord | Write] = [*self.steps.values(), *self.writes.values()]
        return max([one.seq for one in sent], default=0)


def snapshot(record: RunRecord) -> dict[str, Any]:
    """Return the fields of a record that the suite compares. Errors are reduced to their types and messages."""
    seen = {name: getattr(record, name) for name in _PLAIN}
    seen["results"] = list(record.results.items())
    seen["values"] = dict(record.values)
    seen["carrier"] = dict(record.carrier)
    seen["carriers"] = {name: dict(carrier) for name, carrier in record.carriers.items() if carrier}
    seen["error"] = _in_words(record.error)
    seen["steps"] = {name: _report(report) for name, report in record.steps.items()}
    for name in ("effects", "undone"):
        seen[name] = tuple(getattr(record, name))
    return seen


_PLAIN: Final = (
    *("key", "run_id", "workflow", "fingerprint", "graph", "status", "held", "undoing", "decision", "generation"),
    *("takeovers", "fence", "seq", "started", "finished", "expires", "failed_step"),
)


def _report(report: StepReport) -> tuple[Any, ...]:
    times = (report.waited, report.ran, report.backed_off)
    errors = (_in_words(report.error), _in_words(report.undo_error))
    undo = (report.undo, report.undo_started, report.undo_finished)
    late = (report.completed_late, report.completed_late_at)
    return (report.status, report.attempts, *times, *errors, *undo, *late, report.attempt_times)


def _in_words(error: BaseException | None) -> tuple[str, str] | None:
    if isinstance(error, RunFailed):
        return error.error_type, error.message
    return None if error is None else (type(error).__name__, error_message(error))


@dataclass
class Known:
    """The model's knowledge of the run under one key."""

    claim: Claim
    """the claim that began the run"""
    generation: int
    checkpoints: Checkpoints
    owner: Claim
    fence: int = 0
    live: bool = True
    status: Status = Status.RUNNING
    takeovers: int = 0
    delayed: bool = False
    """whether recovery waits for some more leases, which is longer than a test takes"""
    before: Status | None = None
    """the status in which the owner took the run over; None if the owner began it"""
    held: bool = False
    undoing: bool = False
    decision: str | None = None
    failed_step: str | None = None
    error: BaseException | None = None
    undone: tuple[str, ...] = ()
    """the steps that were undone, as the last owner recorded them at the end"""
    is_finished: bool = False

    @property
    def run_id(self) -> str:
        return self.claim.run_id

    @property
    def running(self) -> bool:
        return self.status == Status.RUNNING

    @property
    def resumable(self) -> bool:
        return self.status in UNDONE_YET or (self.running and not self.live)

    @property
    def is_due(self) -> bool:
        return self.resumable and not self.held and not (self.running and self.delayed)

    def record(self) -> RunRecord:
        """Return the record that a store must have, except for its times."""
        claim, checkpoints = self.claim, self.checkpoints
        return RunRecord(
            claim.key,
            claim.run_id,
            claim.workflow,
            claim.fingerprint,
            claim.graph,
            status=self.status,
            held=self.held,
            undoing=self.undoing,
            takeovers=self.takeovers,
            decision=self.decision,
            generation=self.generation,
            fence=self.fence,
            seq=checkpoints.seq,
            results=checkpoints.results,
            values=checkpoints.values,
            steps=checkpoints.reports,
            effects=checkpoints.effects,
            carriers=checkpoints.carriers,
            undone=self.undone,
            failed_step=self.failed_step,
            error=self.error,
            carrier=claim.carrier,
        )


@dataclass
class Model:
    """A model store. A verb returns the right reply, the class of the right reply, or the class of the right error."""

    runs: dict[str, Known] = field(default_factory=dict[str, Known])

    def claim(self, claim: Claim) -> type[Any]:
        """Return the class of the right reply. The caller must then enter the fence that the store has granted."""
        known = self.runs.get(claim.key)
        if known is None:
            return self._begin(claim, 0)
        if known.owner is claim:
            known.live = known.live or known.running
            return Claimed if known.running else Finished
        over = not known.running and known.status not in UNDONE_YET
        if claim.attached == known.run_id and (over or known.held):
            return Finished
        if known.status in FREE and not known.held:
            known_to_it = claim.attached is not None or claim.run_id == known.run_id
            return Finished if known_to_it else self._begin(claim, known.generation + 1)
        if claim.fingerprint is not None and claim.fingerprint != known.claim.fingerprint:
            return Mismatch
        if known.held:
            return Held
        if known.status == Status.SUCCESS:
            return Finished
        if not known.resumable:
            return Busy
        if claim.graph != known.claim.graph:
            return OtherGraph
        known.takeovers += known.running
        known.delayed = known.takeovers > 0
        known.before, known.owner = known.status, claim
        known.status, known.live, known.is_finished, known.undone = Status.RUNNING, True, False, ()
        return Claimed

    def _begin(self, claim: Claim, generation: int) -> type[Claimed]:
        known = self.runs[claim.key] = Known(claim, generation, Checkpoints(claim.values), claim)
        begun = enumerate(claim.begins, 1)
        known.checkpoints.take({name: StepRecord(seq, StepReport(Status.RUNNING, 1)) for seq, name in begun}, {})
        return Claimed

    def _refused(self, key: str, run_id: str, fence: int) -> Lost | None:
        known = self.runs.get(key)
        if known is None:
            return Lost(gone=True)
        return None if (known.run_id, known.fence) == (run_id, fence) else Lost()

    def checkpoint(self, sent: Checkpoint) -> Lost | Renewal | None:
        lost = self._refused(sent.key, sent.run_id, sent.fence)
        if lost is None and (known := self.runs[sent.key]).running:
            self._take(known, sent)
            known.live = True
            order = None if sent.undoing else STOPS.get(known.decision)
            if order is None:
                known.decision = None
            return order
        return lost

    def _take(self, known: Known, sent: Checkpoint) -> None:
        if makes_progress(sent):
            known.takeovers, known.delayed = 0, False
        known.checkpoints.take(sent.steps, sent.writes)
        known.undoing = known.undoing or sent.undoing
        known.failed_step = sent.failed_step if sent.failed_step is not None else known.failed_step
        known.error = sent.error if sent.error is not None else known.error

    def renew(self, lease: Lease) -> Renewal:
        known = self.runs.get(lease.key)
        if known is None or self._refused(lease.key, lease.run_id, lease.fence) is not None or not known.running:
            return Renewal.LOST
        known.live = True
        return STOPS.get(known.decision, Renewal.OURS)

    def finish(self, ending: Ending) -> Lost | None:
        end = ending.record
        lost = self._refused(end.key, end.run_id, end.fence)
        if lost is None and (known := self.runs[end.key]).running:
            if ending.changes is not None:
                self._take(known, ending.changes)
            known.status, known.held, known.undone = end.status, end.held, end.undone
            known.undoing = (known.undoing or end.undoing) and end.status is not Status.FAILURE
            known.failed_step, known.error = end.failed_step, end.error
            known.decision, known.is_finished = None, True
        return lost

    def withdraw(self, claim: Claim) -> None:
        known = self.runs.get(claim.key)
        if known is None or known.owner is not claim or not known.running:
            return
        if known.before is None:
            self._free(known)
        else:
            known.status, known.live, known.is_finished = known.before, False, known.before in UNDONE_YET
            known.takeovers -= known.running and known.takeovers > 0
            known.delayed = False

    def expire(self, key: str) -> None:
        """Note that the lease of a running run has expired."""
        self.runs[key].live = False

    def release(self, key: str, *, force: bool) -> type[StoreError] | None:
        refusal = self._not_idle(key)
        if refusal is None or (force and refusal is StoreError):
            self._free(self.runs[key])
            return None
        return refusal

    def hold(self, key: str) -> type[StoreError] | None:
        refusal = self._not_idle(key)
        if refusal is None:
            self._stop(self.runs[key])
            self.runs[key].held = True
        return refusal

    def decide(self, key: str, decision: str) -> type[StoreError] | None:
        refusal = self._not_idle(key)
        if refusal is not None:
            return refusal
        known = self.runs[key]
        if not (known.held or known.resumable):
            return StoreError
        self._stop(known)
        known.held, known.decision = False, decision
        if known.status not in UNDONE_YET:
            known.status = Status.PARKED
        return None

    def _not_idle(self, key: str) -> type[StoreError] | None:
        known = self.runs.get(key)
        if known is None:
            return RunNotFound
        return StoreError if known.running and known.live else None

    def _stop(self, known: Known) -> None:
        known.decision, known.undone, known.delayed = None, (), False
        if known.running:
            known.status = Status.PARKED
            known.fence += 1

    def _free(self, known: Known) -> None:
        known.status, known.held, known.decision, known.is_finished = Status.FAILURE, False, None, True
        known.undone = ()
        known.fence += 1
