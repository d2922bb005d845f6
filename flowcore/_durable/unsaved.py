"""The changes of a durable run that are not saved yet, and those that were sent to its store."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from ..run import STARTING_REPORT, StepReport
from ..status import Status
from ..stores.base import Checkpoint, Claim, RunRecord, StepRecord, Write
from .handed_out import HandedOut

__all__ = ["Unsaved"]


class Unsaved:
    """The changes in a run since its last checkpoint, numbered by `seq`. The caller holds the run's lock.

    A step's writes are saved together with the step's own end. If another step's checkpoint saved them and the process
    died then, the step would run again with its writes already there.
    """

    __slots__ = (
        "announced",
        "attempt_times",
        "base",
        "carriers",
        "first_starts",
        "handed_out",
        "sent",
        "sent_writes",
        "seq",
        "steps",
        "unstorable",
        "writes",
    )

    def __init__(self) -> None:
        self.handed_out = HandedOut()
        self.seq = 0
        self.base = 0  # the highest seq that the store has acknowledged
        # The latest record of each step that was sent, to heal a record in the store that has gone back in time.
        self.sent: dict[str, StepRecord] = {}
        self.sent_writes: dict[Any, Write] = {}  # the same for each key of the context
        self.steps: dict[str, StepRecord] = {}  # the unsaved record of each step
        self.writes: dict[str, dict[Any, Write]] = {}  # unsaved writes, by the step that wrote them, then by key
        self.announced: set[str] = set()  # steps whose start is saved, and that have not started here
        self.carriers: dict[str, dict[str, str]] = {}  # trace context from hooks for each step, saved with its end
        self.first_starts: dict[str, float] = {}  # first starts of steps with several attempts, in epoch seconds
        self.attempt_times: dict[str, tuple[tuple[float, float], ...]] = {}  # of steps with several attempts
        self.unstorable: set[str] = set()  # steps whose results, or writes, the store cannot keep

    def wrote(self, step: str, key: Any, value: Any) -> None:
        """Note that `step` has set a key of the context."""
        self.seq += 1
        self.writes.setdefault(step, {})[key] = Write(self.seq, value)

    def deleted(self, step: str, key: Any) -> None:
        """Note that `step` has deleted a key of the context."""
        self.seq += 1
        self.writes.setdefault(step, {})[key] = Write(self.seq, deleted=True)

    def note_start(self, step: str, attempt: int, at: float, errors: tuple[tuple[str, str], ...] = ()) -> None:
        """Note that an attempt of `step` is about to start, `at` seconds since the epoch. `errors`: those of the earlier
        attempts, all of which have failed."""
        report = StepReport(Status.RUNNING, attempt, started=at)
        if errors:
            report.failed, report.errors, report.started = attempt - 1, errors, self.first_starts.get(step, at)
            report.attempt_times = self.attempt_times.get(step, ())
        self.seq += 1
        self.steps[step] = StepRecord(self.seq, report)

    def note_wait(self, step: str, at: float, until: float | None) -> None:
        """Note that `step` waits since `at`, and until `until` at most, both in seconds since the epoch."""
        self.seq += 1
        self.steps[step] = StepRecord(self.seq, StepReport(Status.WAITING, started=at, until=until))

    def note_closed(self, step: str, at: float) -> None:
        """Note that the wait `step` was closed at `at`, in seconds since the epoch: no value counts for it any more."""
        before = self.sent[step].report.started if step in self.sent else None
        self.seq += 1
        self.steps[step] = StepRecord(self.seq, StepReport(Status.TIMEOUT, started=before, until=at))

    def note_failed_attempt(
        self, step: str, failed: int, errors: tuple[tuple[str, str], ...], retry_at: float, *, effect: bool
    ) -> None:
        """Note that `failed` attempts of `step` have failed, and that the next one is due at `retry_at`, in seconds
        since the epoch. `errors`: theirs. `effect`: an earlier attempt, cut off by a crash, may have had its effect."""
        report = StepReport(Status.PENDING, failed, failed=failed, errors=errors, retry_at=retry_at)
        report.started, report.attempt_times = self.first_starts.get(step), self.attempt_times.get(step, ())
        self.seq += 1
        self.steps[step] = StepRecord(self.seq, report, effect=effect)

    def withdraw_start(self, step: str) -> None:
        """Note that `step` does not start although its start is saved."""
        self.announced.discard(step)
        self.seq += 1
        self.steps[step] = StepRecord(self.seq, StepReport())

    def note_end(self, step: str, report: StepReport, results: dict[str, Any], *, effect: bool) -> None:
        """Note that `step`, or its undo, has ended as `report` describes. `effect`: the step must be undone if its run
        is."""
        self.seq += 1
        kept = step in results and step not in self.unstorable
        result = results[step] if kept else None
        self.steps[step] = StepRecord(self.seq, report, kept, result, effect, self.carriers.get(step, {}))

    def cannot_keep(self, step: str) -> None:
        """Drop the result and the writes of `step`, which the store refused, but not the record that the step ended."""
        self.unstorable.add(step)
        self.writes.pop(step, None)
        record = self.steps[step]
        record.has_result, record.result = False, None

    def take(self, steps: Collection[str] | None = None) -> tuple[dict[str, StepRecord], dict[Any, Write]]:
        """Take out the unsaved changes of `steps`, or of all steps if that is None: the latest record of each step, and
        the latest write of each key."""
        if steps is None and not self.writes:
            steps_due, self.steps = self.steps, {}
            self.sent.update(steps_due)
            return steps_due, {}
        names = list(self.steps.keys() | self.writes.keys()) if steps is None else steps
        records = {name: self.steps.pop(name) for name in names if name in self.steps}
        writes: dict[Any, Write] = {}
        for name in names if self.writes else ():
            for key, write in self.writes.pop(name, {}).items():
                if key not in writes or writes[key].seq < write.seq:
                    writes[key] = write
        self.sent.update(records)
        for key, write in writes.items():
            if key not in self.sent_writes or self.sent_writes[key].seq < write.seq:
                self.sent_writes[key] = write
        return records, writes

    def acknowledged(self, checkpoint: Checkpoint) -> None:
        """Note that the store has the changes of `checkpoint`."""
        for step in checkpoint.steps.values():
            self.base = max(self.base, step.seq)
        for write in checkpoint.writes.values():
            self.base = max(self.base, write.seq)

    def all_known(self) -> tuple[dict[str, StepRecord], dict[Any, Write]]:
        """Return the latest record of each step, and the latest write of each key, that was ever sent."""
        return dict(self.sent), dict(self.sent_writes)

    def put_all_back(self) -> None:
        """Put all changes that were sent back among the unsaved ones. Later changes win."""
        self.steps = self.sent | self.steps
        pending = self.writes.setdefault("", {})
        for key, write in self.sent_writes.items():
            if key not in pending or pending[key].seq < write.seq:
                pending[key] = write

    def started(self, claim: Claim) -> None:
        """Note that the store has recorded the start of the steps with which `claim` began the run."""
        self.announced.update(claim.begins)
        # A change may have been noted before the claim returned: the numbers must never fall.
        self.base, self.seq = max(self.base, len(claim.begins)), max(self.seq, len(claim.begins))
        self.sent.update((name, StepRecord(seq, STARTING_REPORT)) for seq, name in enumerate(claim.begins, 1))

    def found(self, record: RunRecord) -> None:
        """Note that the store has `record`, of an earlier owner. Its results are in order of completion."""
        self.base = self.seq = record.seq
        order = dict.fromkeys((*record.results, *record.steps))
        for seq, name in enumerate(order, 1):
            report = record.steps.get(name, StepReport(Status.SUCCESS, 1))
            has_result, carrier = name in record.results, record.carriers.get(name, {})
            if report.started is not None:
                self.first_starts[name], self.attempt_times[name] = report.started, report.attempt_times
            result, effect = record.results.get(name), name in record.effects
            self.sent[name] = StepRecord(min(seq, record.seq), report, has_result, result, effect, carrier)
        self.sent_writes.update((key, Write(min(1, record.seq), value)) for key, value in record.values.items())
