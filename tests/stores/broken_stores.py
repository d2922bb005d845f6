"""Stores that break one rule each, and a test class for each of them. test_conformance_catches.py runs these classes
and checks that they fail."""

import time
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any, ClassVar

from flowcore import RunNotFound, SendRefused, Status
from flowcore.stores import MemoryStore
from flowcore.stores.base import (
    RESUMABLE,
    Arrived,
    Behind,
    Busy,
    Checkpoint,
    CheckpointAnswer,
    Claim,
    ClaimAnswer,
    Claimed,
    Ending,
    Finished,
    Held,
    Lease,
    Lost,
    Page,
    Renewal,
    RunRecord,
)
from flowcore.stores.decide import Order
from flowcore.testing.conformance import StoreConformance


class Broken(MemoryStore):
    """A MemoryStore that breaks one rule."""

    rule: ClassVar[str] = ""
    """the rule that a failure must name; of several, separated by spaces, any one"""

    def run_of(self, key: str) -> Any:
        return self._runs.get(key)


class TakesARepeatedClaimForAnother(Broken):
    """The defect of the Go original: a lost reply leaves the key stuck."""

    rule = "claim-again"

    def claim(self, claim: Claim, /) -> ClaimAnswer:
        run = self.run_of(claim.key)
        return super().claim(claim if run is None else replace(claim, run_id=claim.run_id + "'"))


class BeginsAgainForALateClaim(Broken):
    rule = "claim-again-after-the-end"

    def claim(self, claim: Claim, /) -> ClaimAnswer:
        run = self.run_of(claim.key)
        if run is not None and run.owner == claim.run_id and run.record.status != Status.RUNNING:
            run.owner = ""
        return super().claim(claim)


class RepeatsATakeoverWithoutItsRecord(Broken):
    rule = "claim-again"

    def claim(self, claim: Claim, /) -> ClaimAnswer:
        run = self.run_of(claim.key)
        again = run is not None and run.owner == claim.run_id
        answer = super().claim(claim)
        if again and isinstance(answer, Claimed):
            answer.record = None
        return answer


class RepeatsATakeoverAsRunning(Broken):
    rule = "claim-again"

    def claim(self, claim: Claim, /) -> ClaimAnswer:
        run = self.run_of(claim.key)
        again = run is not None and run.owner == claim.run_id
        answer = super().claim(claim)
        if again and isinstance(answer, Claimed) and answer.record is not None:
            answer.record.status = Status.RUNNING
        return answer


class RecordsAQueuedRunAsRunning(Broken):
    rule = "claim-queued"

    def claim(self, claim: Claim, /) -> ClaimAnswer:
        return super().claim(replace(claim, queued=False))


class BeginsAQueuedRunWithTheOldCarrier(Broken):
    rule = "claim-queued"

    def claim(self, claim: Claim, /) -> ClaimAnswer:
        run = self.run_of(claim.key)
        carrier = None if run is None else run.record.carrier
        answer = super().claim(claim)
        if carrier is not None and run is self.run_of(claim.key):
            run.record.carrier = carrier
        return answer


class HasLeasesThatNeverEnd(Broken):
    """The defect of the Go original: a hard crash leaves the key stuck."""

    rule = "time-passes"

    def list_runs(self, **query: Any) -> Page:
        self._never()
        return super().list_runs(**query)

    def claim(self, claim: Claim, /) -> ClaimAnswer:
        self._never()
        return super().claim(claim)

    def _never(self) -> None:
        for run in self._runs.values():
            run.expires = float("inf")


class TakesOverWhatIsLeased(Broken):
    rule = "claim-busy"

    def claim(self, claim: Claim, /) -> ClaimAnswer:
        run = self.run_of(claim.key)
        if run is not None and run.owner != claim.run_id and claim.attached is not None:
            run.expires = 0.0
        return super().claim(claim)


class TakesOverOtherDefinitions(Broken):
    rule = "claim-other-graph"

    def claim(self, claim: Claim, /) -> ClaimAnswer:
        run = self.run_of(claim.key)
        resumable = run is not None and not run.over
        return super().claim(replace(claim, graph=run.record.graph) if resumable else claim)


class LooksAtTheStateBeforeTheFingerprint(Broken):
    rule = "claim-mismatch"

    def claim(self, claim: Claim, /) -> ClaimAnswer:
        run = self.run_of(claim.key)
        if run is not None and run.record.status == Status.SUCCESS:
            claim = replace(claim, fingerprint=None)
        return super().claim(claim)


class AsksForAFingerprintWhereThereIsNone(Broken):
    rule = "claim-mismatch claim-takeover"

    def claim(self, claim: Claim, /) -> ClaimAnswer:
        known = self.run_of(claim.key) is not None
        return super().claim(replace(claim, fingerprint=claim.fingerprint or "none") if known else claim)


class RemembersTheFingerprintAfterRelease(Broken):
    rule = "claim-after-release"

    def claim(self, claim: Claim, /) -> ClaimAnswer:
        run = self.run_of(claim.key)
        if run is not None and run.record.status == Status.FAILURE and not run.record.held:
            claim = replace(claim, fingerprint=run.record.fingerprint)
        return super().claim(claim)


class ForgetsThatAKeyIsHeld(Broken):
    """The defect of the Go original: a failed undo still releases the key."""

    rule = "claim-held"

    def claim(self, claim: Claim, /) -> ClaimAnswer:
        answer = super().claim(claim)
        return self._begin(claim, self._clock(), 1, 99) if isinstance(answer, Held) else answer


class RunsAgainAfterSuccess(Broken):
    rule = "claim-success"

    def claim(self, claim: Claim, /) -> ClaimAnswer:
        run = self.run_of(claim.key)
        mine = run is not None and claim.run_id == run.owner
        answer = super().claim(claim)
        if isinstance(answer, Finished) and answer.record.status == Status.SUCCESS and not mine and not claim.attached:
            self.run_of(claim.key).record.status = Status.FAILURE
            return super().claim(claim)
        return answer


class ReplaysWithoutResults(Broken):
    """The defect of the Go original: a completed key returns no results."""

    rule = "claim-attached claim-success"

    def claim(self, claim: Claim, /) -> ClaimAnswer:
        answer = super().claim(claim)
        return Finished(replace(answer.record, results={}), answer.age) if isinstance(answer, Finished) else answer


class BeginsARunForWhoOnlyWaits(Broken):
    rule = "claim-attached-to-an-older-run"

    def claim(self, claim: Claim, /) -> ClaimAnswer:
        run = self.run_of(claim.key)
        if run is not None and run.record.run_id != claim.attached:
            claim = replace(claim, attached=None)
        return super().claim(claim)


class ForgetsWhoWaits(Broken):
    rule = "claim-attached"

    def claim(self, claim: Claim, /) -> ClaimAnswer:
        return super().claim(replace(claim, attached=None))


class TellsToAskAgainAtOnce(Broken):
    rule = "claim-busy"

    def claim(self, claim: Claim, /) -> ClaimAnswer:
        answer = super().claim(claim)
        return replace(answer, lease_left=-1.0) if isinstance(answer, Busy) else answer


class KeepsTheFenceAtATakeover(Broken):
    rule = "fence-rises"

    def _take_over(self, run: Any, claim: Claim, now: float, takeovers: int) -> Claimed:
        answer = super()._take_over(run, claim, now, takeovers)
        run.record.fence -= 1
        return replace(answer, fence=answer.fence - 1)


class BeginsEachGenerationAtFenceOne(Broken):
    rule = "fence-rises"

    def _begin(self, claim: Claim, now: float, generation: int, fence: int) -> Claimed:
        return super()._begin(claim, now, generation, 1)


class KeepsTheGeneration(Broken):
    rule = "claim-after-release"

    def _begin(self, claim: Claim, now: float, generation: int, fence: int) -> Claimed:
        return super()._begin(claim, now, 0, fence)


class GivesATakenRunANewId(Broken):
    rule = "claim-takeover claim-attached"

    def _take_over(self, run: Any, claim: Claim, now: float, takeovers: int) -> Claimed:
        answer = super()._take_over(run, claim, now, takeovers)
        run.record.run_id = claim.run_id
        assert answer.record is not None
        return replace(answer, record=replace(answer.record, run_id=claim.run_id))


class LeavesATakenRunFinished(Broken):
    rule = "claim-takeover"

    def _take_over(self, run: Any, claim: Claim, now: float, takeovers: int) -> Claimed:
        finished = run.record.finished
        answer = super()._take_over(run, claim, now, takeovers)
        run.record.finished = finished
        return answer


class ForgetsADecisionBeforeItIsHeard(Broken):
    rule = "decision-is-heard"

    def _take_over(self, run: Any, claim: Claim, now: float, takeovers: int) -> Claimed:
        answer = super()._take_over(run, claim, now, takeovers)
        run.record.decision = None
        return answer


class NeverForgetsADecision(Broken):
    rule = "decision-is-heard"

    def checkpoint(self, checkpoint: Checkpoint, /) -> CheckpointAnswer:
        run = self.run_of(checkpoint.key)
        decision = None if run is None else run.record.decision
        answer = super().checkpoint(checkpoint)
        if run is not None:
            run.record.decision = decision
        return answer


class TakesCheckpointsFromAnOldOwner(Broken):
    """The defect of the Go original: it does not check the owner of a write."""

    rule = "lost late-copies"

    def checkpoint(self, checkpoint: Checkpoint, /) -> CheckpointAnswer:
        run = self.run_of(checkpoint.key)
        if run is not None and run.record.run_id == checkpoint.run_id:
            checkpoint = replace(checkpoint, fence=run.record.fence)
        return super().checkpoint(checkpoint)


class TakesEndingsFromAnOldOwner(Broken):
    """The defect of the Go original: a stale run changes the claim of another run."""

    rule = "lost late-copies"

    def finish(self, ending: Ending, /) -> Behind | Lost | Arrived | None:
        run = self.run_of(ending.record.key)
        if run is not None and run.record.run_id == ending.record.run_id:
            ending = replace(ending, record=replace(ending.record, fence=run.record.fence))
        return super().finish(ending)


class TakesEndingsFromAnotherRun(Broken):
    rule = "lost"

    def finish(self, ending: Ending, /) -> Behind | Lost | Arrived | None:
        run = self.run_of(ending.record.key)
        if run is not None:
            ending = replace(ending, record=replace(ending.record, run_id=run.record.run_id))
        return super().finish(ending)


class NeverSaysThatARecordIsGone(Broken):
    rule = "lost"

    def checkpoint(self, checkpoint: Checkpoint, /) -> CheckpointAnswer:
        answer = super().checkpoint(checkpoint)
        return answer and Lost()


class MakesARecordAtTheEndWhereThereIsNone(Broken):
    rule = "lost"

    def finish(self, ending: Ending, /) -> Behind | Lost | Arrived | None:
        if self.run_of(ending.record.key) is None:
            ending = replace(ending, record=replace(ending.record, fence=0))
        return super().finish(ending)


class LetsTheLastWriteWin(Broken):
    rule = "highest-seq-wins late-copies"

    def checkpoint(self, checkpoint: Checkpoint, /) -> CheckpointAnswer:
        run = self.run_of(checkpoint.key)
        if run is not None and run.record.fence == checkpoint.fence:
            for reported, known in ((checkpoint.steps, run._steps), (checkpoint.writes, run._writes)):
                for name in reported:
                    (known or {}).pop(name, None)
        return super().checkpoint(checkpoint)


class CountsCheckpointsInsteadOfFields(Broken):
    rule = "results highest-seq-wins"

    def checkpoint(self, checkpoint: Checkpoint, /) -> CheckpointAnswer:
        run = self.run_of(checkpoint.key)
        fields: list[Any] = [*checkpoint.steps.values(), *checkpoint.writes.values()]
        reported = max([field.seq for field in fields], default=0)
        if run is not None and reported <= run.record.seq:
            checkpoint = replace(checkpoint, steps={}, writes={})
        return super().checkpoint(checkpoint)


class LowersTheNumberOfARecord(Broken):
    rule = "seq"

    def checkpoint(self, checkpoint: Checkpoint, /) -> CheckpointAnswer:
        answer, run = super().checkpoint(checkpoint), self.run_of(checkpoint.key)
        if answer is None and run is not None and checkpoint.steps:
            run.record.seq = max(step.seq for step in checkpoint.steps.values())
        return answer


class WritesAfterTheEnd(Broken):
    rule = "late-copies late-after-the-end"

    def checkpoint(self, checkpoint: Checkpoint, /) -> CheckpointAnswer:
        answer = super().checkpoint(checkpoint)
        run = self.run_of(checkpoint.key)
        if answer is None and run.record.status != Status.RUNNING:
            run.note(checkpoint)
        return answer


class FinishesTwice(Broken):
    rule = "late-copies late-after-the-end"

    def finish(self, ending: Ending, /) -> Behind | Lost | Arrived | None:
        run = self.run_of(ending.record.key)
        if run is not None and run.record.run_id == ending.record.run_id and run.record.fence == ending.record.fence:
            run.record.status = Status.RUNNING
        return super().finish(ending)


class IsShockedByALateCheckpoint(Broken):
    rule = "late-copies late-after-the-end"

    def checkpoint(self, checkpoint: Checkpoint, /) -> CheckpointAnswer:
        run = self.run_of(checkpoint.key)
        over = run is not None and run.record.status != Status.RUNNING
        return Lost() if over else super().checkpoint(checkpoint)


class IgnoresTheLastChanges(Broken):
    """The defect of the Go original: errors of SetStep are ignored."""

    rule = "results finish"

    def finish(self, ending: Ending, /) -> Behind | Lost | Arrived | None:
        if ending.changes is None:
            return super().finish(ending)
        return super().finish(Ending(ending.record, replace(ending.changes, steps={}, writes={})))


class KeepsTheLeaseAfterTheEnd(Broken):
    rule = "finish"

    def finish(self, ending: Ending, /) -> Behind | Lost | Arrived | None:
        answer = super().finish(ending)
        if answer is None:
            run = self.run_of(ending.record.key)
            run.record.expires = self._wall()
        return answer


class CountsTakeoversBeyondTheEnd(Broken):
    """A defect that the Redis store had."""

    rule = "takeovers"

    def finish(self, ending: Ending, /) -> Behind | Lost | Arrived | None:
        run = self.run_of(ending.record.key)
        takeovers = 0 if run is None else run.record.takeovers
        answer = super().finish(ending)
        if answer is None and run is not None:
            run.record.takeovers = takeovers
        return answer


class ForgetsThePreviousOwnerAtTheEnd(Broken):
    rule = "previous-owner"

    def finish(self, ending: Ending, /) -> Behind | Lost | Arrived | None:
        answer = super().finish(ending)
        run = self.run_of(ending.record.key)
        if answer is None and run is not None:
            run.record.previous_owner = None
        return answer


class LetsNobodyFinishLate(Broken):
    rule = "finish-late lost"

    def finish(self, ending: Ending, /) -> Behind | Lost | Arrived | None:
        run = self.run_of(ending.record.key)
        return Lost() if run is not None and run.expired(self._clock()) else super().finish(ending)


class LeavesTheLeaseToHeartbeats(Broken):
    rule = "checkpoint-renews"

    def checkpoint(self, checkpoint: Checkpoint, /) -> CheckpointAnswer:
        run = self.run_of(checkpoint.key)
        expires = None if run is None else run.expires
        answer = super().checkpoint(checkpoint)
        if run is not None:
            run.expires = expires
        return answer


class TurnsBackFromUndoing(Broken):
    rule = "undoing-stays"

    def checkpoint(self, checkpoint: Checkpoint, /) -> CheckpointAnswer:
        answer = super().checkpoint(checkpoint)
        if answer is None:
            self.run_of(checkpoint.key).record.undoing = checkpoint.undoing
        return answer


class UndoesWhatHasFailed(Broken):
    rule = "undoing-stays"

    def finish(self, ending: Ending, /) -> Lost | Behind | Arrived | None:
        run = self.run_of(ending.record.key)
        undoing = run is not None and run.record.undoing
        answer = super().finish(ending)
        if run is not None:
            run.record.undoing = undoing or ending.record.undoing
        return answer


class DropsWhatNeedNotRenewTheLease(Broken):
    rule = "unrenewed"

    def checkpoint(self, checkpoint: Checkpoint, /) -> CheckpointAnswer:
        return super().checkpoint(checkpoint if checkpoint.renews else replace(checkpoint, steps={}, writes={}))


class RenewsWhateverItIsAsked(Broken):
    rule = "renew lost late-copies"

    def renew(self, leases: Sequence[Lease], lease: float, /) -> list[Renewal]:
        super().renew(leases, lease)
        return [Renewal.OURS for _ in leases]


class DoesNotRenewWhatHasEnded(Broken):
    rule = "renew"

    def _renewed(self, one: Lease, lease: float) -> Renewal:
        run = self.run_of(one.key)
        expired = run is not None and run.expired(self._clock())
        return Renewal.LOST if expired else super()._renewed(one, lease)


class WithdrawsByForgetting(Broken):
    rule = "withdraw-begun find"

    def withdraw(self, claim: Claim, /) -> None:
        run = self.run_of(claim.key)
        if run is not None and run.owner == claim.run_id and run.before is None:
            self._runs.pop(claim.key)


class WithdrawsFromAnybody(Broken):
    rule = "withdraw-other late-copies"

    def withdraw(self, claim: Claim, /) -> None:
        if (run := self.run_of(claim.key)) is not None:
            super().withdraw(replace(claim, run_id=run.owner))


class WithdrawsWhatHasEnded(Broken):
    rule = "withdraw-other nothing-is-written"

    def withdraw(self, claim: Claim, /) -> None:
        run = self.run_of(claim.key)
        if run is not None and run.owner == claim.run_id:
            self._free(run)


class WithdrawsARunThatSomebodyElseBegan(Broken):
    rule = "withdraw-takeover"

    def withdraw(self, claim: Claim, /) -> None:
        if (run := self.run_of(claim.key)) is not None:
            run.before = None
        super().withdraw(claim)


class TakesAWaitForTheEndOfAStep(Broken):
    rule = "takeovers"

    def checkpoint(self, checkpoint: Checkpoint, /) -> CheckpointAnswer:
        answer = super().checkpoint(checkpoint)
        run = self.run_of(checkpoint.key)
        if answer is None and run is not None:
            waits = any(step.report.until is not None for step in checkpoint.steps.values())
            run.record.takeovers = 0 if waits else run.record.takeovers
        return answer


class WithdrawsAsIfTheOwnerCrashed(Broken):
    rule = "withdraw-takeover"

    def withdraw(self, claim: Claim, /) -> None:
        run = self.run_of(claim.key)
        if run is not None and run.owner == claim.run_id and run.before is not None and run.live:
            self._renew(run, self._clock(), 0.0)
        else:
            super().withdraw(claim)


class ListsResultsAsTheyCome(Broken):
    rule = "results"

    def find(self, key: str, /) -> RunRecord | None:
        record, run = super().find(key), self.run_of(key)
        if record is not None and run._steps:
            record.results = {name: record.results[name] for name in run._steps if name in record.results}
        return record


class ForgetsThatAKeyWasDeleted(Broken):
    rule = "claim-takeover values"

    def checkpoint(self, checkpoint: Checkpoint, /) -> CheckpointAnswer:
        writes = {key: write for key, write in checkpoint.writes.items() if not write.deleted}
        return super().checkpoint(replace(checkpoint, writes=writes))


class ForgetsWhatIsInFlight(Broken):
    rule = "effects"

    def find(self, key: str, /) -> RunRecord | None:
        record = super().find(key)
        if record is not None:
            steps = record.steps
            effects = [name for name in record.effects if steps[name].status != Status.RUNNING]
            record = replace(record, effects=tuple(effects))
        return record


class CountsInDoubles(Broken):
    """A store that turns numbers into doubles, as Lua does."""

    rule = "values-round-trip"

    def claim(self, claim: Claim, /) -> ClaimAnswer:
        return super().claim(replace(claim, values={key: self.counted(value) for key, value in claim.values.items()}))

    def counted(self, value: Any) -> Any:
        if isinstance(value, list):
            return [self.counted(one) for one in value]
        return int(float(value)) if type(value) is int else value


class TakesEmptyListsForEmptyDicts(CountsInDoubles):
    """A store that confuses empty lists with empty dicts, as Lua does."""

    def counted(self, value: Any) -> Any:
        return {} if value == [] else [self.counted(one) for one in value] if isinstance(value, list) else value


class TrimsKeys(Broken):
    """The defect of the Go original: trimming merges the keys "a" and "a "."""

    rule = "keys-are-literal"

    def claim(self, claim: Claim, /) -> ClaimAnswer:
        return super().claim(replace(claim, key=claim.key.strip()))

    def find(self, key: str, /) -> RunRecord | None:
        return super().find(key.strip())


class HandsOutItsOwnRecords(Broken):
    rule = "records-are-copies"

    def find(self, key: str, /) -> RunRecord | None:
        run = self.run_of(key)
        live = run is not None and run._steps is None and run._writes is None
        return run.record if live else super().find(key)


class FindsRunsThatOthersHaveReplaced(Broken):
    rule = "get-run claim-after-release"

    def get_run(self, run_id: str, /) -> RunRecord:
        try:
            return super().get_run(run_id)
        except RunNotFound:
            return next((run.record for run in self._runs.values()), RunRecord("", run_id, "", None, ""))


class ListsHeldRunsAsResumable(Broken):
    rule = "list-resumable"

    def list_resumable(self, workflows: Collection[str], /, **query: Any) -> Page:
        held = [run.head() for run in self._runs.values() if run.record.held and run.record.workflow in workflows]
        return Page([*super().list_resumable(workflows, **query), *held])


class ForgetsToListExpiredRuns(Broken):
    rule = "list-resumable withdraw-takeover time-passes"

    def list_resumable(self, workflows: Collection[str], /, **query: Any) -> Page:
        return Page(one for one in super().list_resumable(workflows, **query) if one.status in RESUMABLE)


class CountsHeldRunsByTheirStatus(Broken):
    rule = "counts"

    def counts(self) -> dict[tuple[str, str], int]:
        return dict(
            Counter((run.record.workflow, str(run.record.status)) for run in self._runs.values() if not run.over)
        )


class ListsEverybodysRuns(Broken):
    rule = "list-runs"

    def list_runs(self, *, workflow: Any = None, **query: Any) -> Page:
        return super().list_runs(**query)


class ReleasesWhatIsRunning(Broken):
    rule = "not-while-running"

    def release(self, key: str, /, *, force: bool = False) -> None:
        super().release(key, force=True)


class ReleasesWithoutTellingTheOwner(Broken):
    rule = "release withdraw-begun"

    def _free(self, run: Any) -> None:
        super()._free(run)
        run.record.fence -= 1


class ErasesValuesButKeepsErrors(Broken):
    rule = "erase"

    def erase(self, key: str, /, *, force: bool = False) -> None:
        error = self._runs[key].record.error if key in self._runs else None
        super().erase(key, force=force)
        self._runs[key].record.error = error


class LetsAnErasedKeyBeginAgain(Broken):
    rule = "erase"

    def erase(self, key: str, /, *, force: bool = False) -> None:
        super().erase(key, force=force)
        self._runs[key].record.status = Status.FAILURE


class LetsAnOldOwnerWriteIntoAHeldRun(Broken):
    rule = "operators-fence hold counts"  # A held run keeps its status and its lease, so it is counted as expired too.

    def _stop(self, run: Any, *, held: bool, decision: str | None = None, reason: str | None = None) -> None:
        run.record = replace(run.record, held=held, decision=decision)


class DecidesOnWhatIsOver(Broken):
    rule = "decide erase"  # erase() first decides to give up the run, as an operator would.

    def _order(self, run: Any, verb: str) -> Order:
        return Order.STOP if run.over else super()._order(run, verb)


class ForgetsHeldRuns(Broken):
    rule = "retention"

    def finish(self, ending: Ending, /) -> Behind | Lost | Arrived | None:
        answer = super().finish(ending)
        self._ended[ending.record.key] = self._clock()
        return answer


class NeverForgets(Broken):
    """The defect of the Go original: records never expire."""

    rule = "retention"

    def _forget_old(self, now: float) -> None:
        pass


class LosesWhatIsSent(Broken):
    rule = "send"

    def send(self, *args: Any, **options: Any) -> bool:
        return True


class TakesTheLastValue(Broken):
    rule = "send-first"

    def send(self, key: str, name: Any, value: Any, /, **options: Any) -> bool:
        run = self.run_of(key)
        run.record.sent = {other: sent for other, sent in run.record.sent.items() if other != name}
        return super().send(key, name, value, **options)


class TakesValuesForAnything(Broken):
    rule = "send-refused"

    def send(self, key: str, name: Any, value: Any, /, **options: Any) -> bool:
        try:
            return super().send(key, name, value, **options)
        except SendRefused:
            return True


class KeepsValuesFromOwners(Broken):
    rule = "send-is-heard"

    def renew(self, leases: Sequence[Lease], lease: float, /) -> list[Renewal]:
        return [Renewal.OURS if one is Renewal.SENT else one for one in super().renew(leases, lease)]


class ResumesWhatWaits(Broken):
    rule = "waits claim-busy"

    def finish(self, ending: Ending, /) -> Behind | Lost | Arrived | None:
        return super().finish(replace(ending, retry_in=0.0) if ending.record.status == Status.WAITING else ending)


class LeavesWhatWaitsAsleep(Broken):
    rule = "wakes decide"

    def send(self, key: str, name: Any, value: Any, /, **options: Any) -> bool:
        run = self.run_of(key)
        due = None if run is None else (run.due, run.record.not_before)
        counts = super().send(key, name, value, **options)
        if due is not None:
            run.due, run.record.not_before = due
        return counts


class WaitsThoughTheValueIsThere(Broken):
    rule = "arrived"

    def finish(self, ending: Ending, /) -> Behind | Lost | Arrived | None:
        return super().finish(replace(ending, received=99) if ending.record.status == Status.WAITING else ending)


class HasNoLock(Broken):
    """The defect of any store that reads first and then writes, without a lock."""

    rule = "claim-by-many"

    def claim(self, claim: Claim, /) -> ClaimAnswer:
        if self.run_of(claim.key) is None:
            time.sleep(0.001)
            return self._begin(claim, self._clock(), 0, 1)
        return super().claim(claim)


BROKEN = {name: one for name, one in vars().items() if isinstance(one, type) and issubclass(one, Broken) and one.rule}


def suite_of(store: type[Broken]) -> type[StoreConformance]:
    """Return the test class of a broken store."""

    class Suite(StoreConformance):
        examples = 100
        _patience = 1.0

        def make_store(self) -> Any:
            return store()

        def make_forgetful_store(self, retention: float) -> Any:
            return store(retention=retention)

    return Suite


globals().update({f"Test{name}": suite_of(one) for name, one in BROKEN.items()})
