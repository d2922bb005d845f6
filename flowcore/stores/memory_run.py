"""A run as MemoryStore keeps it: its live objects come as a whole when the run ends, or in pieces with checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ..errors import RunFailed, error_message, safe_repr
from ..run import Sent, StepReport
from ..status import Status
from .base import LIVE, STOPS, Checkpoint, Claim, Ending, RunRecord, StepRecord, Write
from .decide import is_over, makes_progress, takeover_delay

__all__ = ["LiveRun"]


class LiveRun:
    """A run's record, with fields that only the store needs. It is used under the store's lock."""

    __slots__ = ("_steps", "_writes", "before", "delay", "due", "expires", "number", "owner", "record", "started")

    def __init__(self, number: int, record: RunRecord, owner: str, started: float, expires: float) -> None:
        self.number = number
        """rises with each run that begins"""
        self.record = record
        self.owner = owner
        """run id of the claim that made the present owner"""
        self.started = started
        """this moment, `expires` and `due` are by the store's own clock, which is never set back"""
        self.expires = expires
        self.delay = 0.0
        """seconds after `expires` until recovery may take the run over"""
        self.due = started
        """if the run has no owner: when recovery may resume it"""
        self.before: RunRecord | None = None
        """the record as the present owner found it; None if that owner began the run"""
        self._steps: dict[str, StepRecord] | None = None  # from checkpoints; they count instead of those in `record`
        self._writes: dict[str, Write] | None = None

    @classmethod
    def begun(cls, number: int, claim: Claim, now: float, wall: float, generation: int, fence: int) -> LiveRun:
        """A fresh run, begun by `claim`."""
        record = RunRecord(
            claim.key,
            claim.run_id,
            claim.workflow,
            claim.fingerprint,
            claim.graph,
            status=Status.QUEUED if claim.queued else Status.RUNNING,
            owner=None if claim.owner is None else replace(claim.owner, since=wall),
            generation=generation,
            fence=fence,
            started=wall,
            expires=wall + claim.lease,
            deadline=claim.deadline,
            values=dict(claim.values),
            carrier=dict(claim.carrier),
        )
        if claim.begins and not claim.queued:
            _begin_steps(record, claim.begins)
        return cls(number, record, claim.run_id, now, now + claim.lease)

    def begin_queued(self, claim: Claim) -> None:
        """Begin a run that its owner had recorded as queued."""
        self.record.status, self.record.graph = Status.RUNNING, claim.graph
        self.record.carrier = dict(claim.carrier)
        _begin_steps(self.record, claim.begins)

    def take_over(self, claim: Claim, wall: float, takeovers: int) -> RunRecord:
        """Give the run to a new owner. Returns the record as the new owner finds it."""
        record = self.record
        found = self.before = replace(self.seen(), graph=claim.graph, takeovers=takeovers)
        self.owner, self.delay = claim.run_id, takeover_delay(takeovers, claim.lease)
        # The decision stays until a checkpoint or an ending shows that the new owner has learned of it.
        self.record = replace(
            record,
            status=Status.RUNNING,
            graph=claim.graph,
            owner=None if claim.owner is None else replace(claim.owner, since=wall),
            previous_owner=record.owner,
            fence=record.fence + 1,
            takeovers=takeovers,
            reason=record.reason if record.decision in STOPS else None,
            not_before=None,
            finished=None,
            waiting_for=(),
        )
        return found

    def give_back(self, now: float, wall: float) -> None:
        """Give the run, which its owner took over but did not begin, the status from before. It may be resumed now."""
        record, before = self.record, self.before
        assert before is not None  # noqa: S101 - the caller has checked it
        self.due, self.delay = now, 0.0
        record.status = before.status
        if before.status == Status.RUNNING:  # the takeover did not happen, and does not count
            record.takeovers = max(0, record.takeovers - 1)
        if before.status not in LIVE:
            record.expires = None
            record.waiting_for = before.waiting_for
            record.reason = record.reason or before.reason
            record.finished = None if before.status == Status.WAITING else wall

    def erase(self) -> None:
        """Delete the users' data. What is left shows that there was a run, and how it ended."""
        record = self.record
        self.record = RunRecord(record.key, record.run_id, record.workflow, None, record.graph, record.status)
        self.record.generation, self.record.fence, self.record.seq = record.generation, record.fence, record.seq
        self.record.started, self.record.finished = record.started, record.finished
        self.before = self._steps = self._writes = None

    @property
    def over(self) -> bool:
        """Whether nothing of the run is left to resume."""
        return is_over(self.record.status)

    @property
    def live(self) -> bool:
        """Whether the run has an owner, dead or alive."""
        return self.record.status in LIVE

    @property
    def in_progress(self) -> bool:
        """Whether the run has an owner, or waits, and is not held."""
        return not self.record.held and (self.live or self.record.status == Status.WAITING)

    def expired(self, now: float) -> bool:
        """Whether the run is running, but the lease of its owner has ended."""
        return self.record.status == Status.RUNNING and self.expires <= now

    def due_at(self) -> float | None:
        """The moment from which recovery may resume the run, by the store's clock, or None if recovery never may."""
        if self.record.held or self.over:
            return None
        return self.expires + self.delay if self.live else self.due

    def counts_as(self, status: str, now: float) -> bool:
        """Whether a listing of the runs with this status includes the run."""
        if status == "held":
            return self.record.held
        return self.expired(now) if status == "expired" else self.record.status == status

    def note(self, checkpoint: Checkpoint) -> None:
        """Record what a checkpoint changes. For each field, the highest number wins."""
        record = self.record
        if makes_progress(checkpoint):
            record.takeovers = record.retries = 0
            self.delay = 0.0
        if checkpoint.steps:
            self._steps = {} if self._steps is None else self._steps
            _update(self._steps, checkpoint.steps)
        if checkpoint.writes:
            self._writes = {} if self._writes is None else self._writes
            _update(self._writes, checkpoint.writes)
        saved: tuple[StepRecord | Write, ...] = (*checkpoint.steps.values(), *checkpoint.writes.values())
        healed = checkpoint.base if checkpoint.heals else 0
        record.seq = max((record.seq, healed, *(one.seq for one in saved)))
        record.undoing = record.undoing or checkpoint.undoing
        if checkpoint.failed_step is not None:
            record.failed_step = checkpoint.failed_step
        if checkpoint.error is not None:
            record.error = checkpoint.error

    def step_status(self, name: str) -> Status | None:
        """The recorded status of a step, or None if nothing is recorded of it."""
        saved = None if self._steps is None else self._steps.get(name)
        report = self.record.steps.get(name) if saved is None else saved.report
        return None if report is None else report.status

    def receive(self, name: str, sent: Sent, now: float, wall: float) -> None:
        """Keep a value that was sent to the wait `name`. If the run waits for it, recovery may resume the run now."""
        record = self.record
        record.sent = {**record.sent, name: sent}
        record.received = len(record.sent)
        if record.status == Status.WAITING and name in record.waiting_for:
            self.due, record.not_before = now, wall

    def end(self, ending: Ending, finished: float, *, watched: bool) -> None:
        """Record how the run ended. Its errors stay live objects only if a caller waits for them (`watched`)."""
        known, end = self.record, ending.record
        if ending.changes is not None:
            self.note(ending.changes)
        elif self._steps is None and self._writes is None:  # no checkpoint has recorded any of it
            known.results, known.values, known.steps = end.results, end.values, end.steps
            known.effects, known.carriers = end.effects, end.carriers
            known.sent = {**end.sent, **known.sent}
        known.status, known.held, known.undone, known.failed_step = end.status, end.held, end.undone, end.failed_step
        known.finished, known.reason, known.retries = finished, end.reason, end.retries
        known.waiting_for = end.waiting_for
        if end.status == Status.WAITING:
            known.finished = None
        known.decision = known.expires = self.before = None
        known.undoing = (known.undoing or end.undoing) and end.status != Status.FAILURE
        if end.error is not None or known.error is not None:
            known.error = end.error
            if not watched:
                self._forget_frames()

    def seen(self) -> RunRecord:
        """The record for callers. While the run is live, they get a copy."""
        record = self.record
        if self.live and self.delay and record.expires is not None:
            record = replace(record, not_before=record.expires + self.delay)
        if self._steps is None and self._writes is None:
            return replace(record) if self.live else record
        saved = sorted((self._steps or {}).items(), key=lambda step: step[1].seq)
        names = {name for name, _ in saved}
        steps = {**record.steps, **{name: step.report for name, step in saved}}
        effects = [name for name in record.effects if name not in names]
        effects += [name for name, step in saved if step.effect or step.report.status == Status.RUNNING]
        # Steps in flight come last.
        effects.sort(key=lambda name: name in steps and steps[name].status == Status.RUNNING)
        writes = self._writes or {}
        return replace(
            record,
            results=_without(record.results, names) | {name: step.result for name, step in saved if step.has_result},
            values=_without(record.values, writes)
            | {key: write.value for key, write in writes.items() if not write.deleted},
            steps=steps,
            effects=tuple(effects),
            carriers=_without(record.carriers, names) | {name: step.carrier for name, step in saved if step.carrier},
        )

    def head(self) -> RunRecord:
        """The record without values and without the fields of single steps."""
        return replace(self.seen(), results={}, values={}, steps={}, effects=(), carriers={}, sent={})

    def _forget_frames(self) -> None:
        """Keep the errors of a run as text, because an exception keeps alive every frame that it passed through, and
        all variables in those frames."""
        record = self.record
        if record.error is not None:
            record.error = _as_text(record.error, record.run_id, record.failed_step)
        record.steps = {name: _report_as_text(report, record.run_id, name) for name, report in record.steps.items()}
        if self._steps is not None:
            self._steps = {
                name: replace(step, report=_report_as_text(step.report, record.run_id, name))
                for name, step in self._steps.items()
            }

    def as_found(self) -> RunRecord | None:
        """The record that the owner was granted when it took the run over, with all later changes; None if the owner
        began the run."""
        before = self.before
        if before is None:
            return None
        return replace(
            self.seen(),
            status=before.status,
            expires=before.expires,
            owner=before.owner,
            previous_owner=None,
            reason=before.reason,
            not_before=before.not_before,
        )


def _begin_steps(record: RunRecord, begins: tuple[str, ...]) -> None:
    record.seq = len(begins)
    record.steps = {name: StepReport(Status.RUNNING, 1) for name in begins}
    record.effects = begins


def _update(known: dict[str, Any], saved: Mapping[str, StepRecord | Write]) -> None:
    for name, one in saved.items():
        if name not in known or known[name].seq < one.seq:
            known[name] = one


def _without(old: Mapping[str, Any], names: Any) -> dict[str, Any]:
    return {name: value for name, value in old.items() if name not in names}


def _report_as_text(report: StepReport, run_id: str, step: str) -> StepReport:
    error, undo_error = report.error, report.undo_error
    if error is None and undo_error is None:
        return report
    return replace(
        report,
        error=None if error is None else _as_text(error, run_id, step),
        undo_error=None if undo_error is None else _as_text(undo_error, run_id, step),
    )


def _as_text(error: BaseException, run_id: str, step: str | None) -> RunFailed:
    if isinstance(error, RunFailed):
        kind, message, traceback_text = error.error_type, error.message, error.traceback_text
    else:
        kind, message, traceback_text = type(error).__name__, error_message(error), ""
    where = "" if step is None else f" at step {safe_repr(step)}"
    return RunFailed(
        f"run {run_id} failed{where}: {kind}: {message}",
        run=run_id,
        step=step,
        error_type=kind,
        error_message=message,
        traceback_text=traceback_text,
    )
