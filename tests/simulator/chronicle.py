"""The states of a run in a durable store, replayed from the requests that reached the store, as its contract says."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from flowcore import Status
from flowcore.events import RunRecovered
from flowcore.stores.base import Checkpoint, Claim, Claimed, Ending, Renewal, RunRecord, StepRecord
from flowcore.testing.acts import SimulatedCall
from flowcore.testing.network import StoreCall

from .crashes import Tale
from .specs import Effect

OVER = {Status.SUCCESS, Status.SKIPPED}


@dataclass
class Grant:
    """A claim that the store granted: from then on, the run had this owner."""

    position: int
    at: float
    fence: int
    process: int
    claim: str
    """the run id of the claim"""
    record: RunRecord | None
    """the record that the owner resumes; None if the claim began the run"""
    delivered: bool


@dataclass
class Known:
    """The state of a run in its store after the request with the number `position`."""

    position: int
    status: Status
    fence: int
    held: bool = False
    undoing: bool = False
    decision: str | None = None
    steps: dict[str, StepRecord] = field(default_factory=dict[str, StepRecord])

    def status_of(self, step: str) -> Status:
        return self.steps[step].report.status if step in self.steps else Status.PENDING

    def undo_of(self, step: str) -> Status | None:
        return self.steps[step].report.undo if step in self.steps else None


@dataclass
class KeptRun:
    """One run of the key: its states and owners, from its first claim on."""

    run_id: str
    generation: int
    states: list[Known]
    grants: list[Grant] = field(default_factory=list[Grant])
    ended_at: float | None = None
    decisions: list[str] = field(default_factory=list[str])
    """the decisions of operators"""
    parked: list[int] = field(default_factory=list[int])
    """the requests with which owners have left the run to the next one"""
    withdrawn = False
    """whether the claim that began the run was withdrawn"""

    @property
    def now(self) -> Known:
        return self.states[-1]

    def before(self, position: int) -> Known:
        """Return the state when the first `position` requests had arrived."""
        return next((known for known in reversed(self.states) if known.position < position), self.states[0])

    def fences(self) -> set[int]:
        return {grant.fence for grant in self.grants}

    def lost_at(self, fence: int) -> float:
        """The moment at which the owner with this fence lost the run to another one, or infinity."""
        return min((grant.at for grant in self.grants if grant.fence > fence), default=float("inf"))


@dataclass
class Done:
    """An effect, with the call that made it."""

    effect: Effect
    call: SimulatedCall
    stale: bool
    """whether it was made after another process had become the owner, or after the run was over"""


class Chronicle:
    """A tale, with all states that its runs had in the store."""

    def __init__(self, tale: Tale) -> None:
        self.tale = tale
        self.spec = tale.spec
        self.story = tale.story
        self.steps = {step.name: step for step in tale.spec.steps}
        self.runs: list[KeptRun] = []
        self.broken: list[str] = []
        self._lease_until = -math.inf
        """when the lease of the latest owner ends"""
        for position, call in enumerate(self.story.stored):
            if call.applied is not None and not isinstance(call.answer, Exception):
                self._replay(position, call)
        self.done = list(self._done())

    # -- replaying -----------------------------------------------------------------------------------------------------

    def _replay(self, position: int, call: StoreCall) -> None:
        argument: Any = call.argument
        match call.verb:
            case "claim":
                if isinstance(call.answer, Claimed):
                    self._granted(position, call, argument, call.answer)
            case "checkpoint":
                if call.answer is None or isinstance(call.answer, Renewal):
                    self._told(position, argument)
                    if argument.renews:
                        self._renewed(call, argument.lease)
            case "renew":
                if call.answer[0] is not Renewal.LOST:
                    self._renewed(call, argument[1])
            case "finish":
                if call.answer is None:
                    self._ended(position, call, argument)
            case "withdraw":
                self._withdrawn(position, call, argument)
            case "resume" | "undo" | "hold" | "release":
                self._decided(position, call)
            case _:
                pass

    def _withdrawn(self, position: int, call: StoreCall, claim: Claim) -> None:
        """Replay a withdrawn claim. If it had begun a run, that run has failed, with a higher fence. If it had taken a run
        over, that run has its status from before, and no owner."""
        run = self.runs[-1] if self.runs else None
        if run is None or run.grants[-1].claim != claim.run_id or run.now.status is not Status.RUNNING:
            return
        if run.run_id == claim.run_id:
            run.withdrawn = True
            self._know(run, position, status=Status.FAILURE, fence=run.now.fence + 1)
        else:
            self._know(run, position, status=run.before(run.grants[-1].position).status)
            self._lease_until = call.applied or 0.0

    def _renewed(self, call: StoreCall, lease: float) -> None:
        self._lease_until = max(self._lease_until, (call.applied or 0.0) + lease)

    def _decided(self, position: int, call: StoreCall) -> None:
        """Replay the decision of an operator."""
        run, verb = self.runs[-1], call.verb
        if verb == "undo" and run.now.status is Status.RUNNING and (call.applied or 0.0) < self._lease_until:
            run.decisions.append(verb)  # Its owner is alive, gets the decision with its next call, and undoes the run.
            return
        fence = run.now.fence + (run.now.status is Status.RUNNING or verb == "release")
        status = Status.FAILURE if verb == "release" else run.now.status
        if status is Status.RUNNING or (status is Status.COMPENSATION_FAILED and verb != "hold"):
            status = Status.PARKED
        if verb == "resume" and status is Status.FAILURE:  # it had failed with nothing undone, or was released
            status = Status.PARKED
        decision = verb if verb in {"resume", "undo"} else None
        run.decisions.append(verb)
        self._know(run, position, held=verb == "hold", decision=decision, status=status, fence=fence)

    def _granted(self, position: int, call: StoreCall, claim: Claim, answer: Claimed) -> None:
        run = self.runs[-1] if self.runs else None
        at = call.applied or 0.0
        grant = Grant(position, at, answer.fence, call.process, claim.run_id, answer.record, call.delivered)
        if run is not None and run.grants[-1].claim == claim.run_id:  # It is the same claim again, or a late copy.
            run.grants[-1].delivered = run.grants[-1].delivered or call.delivered
            self._lease_until = max(self._lease_until, at + claim.lease)
            if answer.fence != run.now.fence:
                self.broken.append("the same claim is granted again with another fence")
            return
        if run is not None and answer.fence <= run.now.fence:
            self.broken.append(f"the fence falls from {run.now.fence} to {answer.fence}")
        if answer.record is None:
            if run is not None and run.now.status not in {Status.FAILURE, Status.COMPENSATED}:
                self.broken.append(f"the key is given away, though its run is {run.now.status}")
            begun = {name: StepRecord(1, _running()) for name in claim.begins}
            known = Known(position, Status.RUNNING, answer.fence, steps=begun)
            run = KeptRun(claim.run_id, answer.generation, [known])
            self.runs.append(run)
        else:
            assert run is not None
            if answer.record.run_id != run.run_id or answer.generation != run.generation:
                self.broken.append("a takeover makes another run of it")
            self._know(run, position, status=Status.RUNNING, fence=answer.fence)
        run.grants.append(grant)
        self._lease_until = at + claim.lease

    def _told(self, position: int, checkpoint: Checkpoint) -> bool:
        run = self.runs[-1]
        if checkpoint.run_id != run.run_id or checkpoint.fence != run.now.fence:
            self.broken.append(f"{checkpoint} is accepted of one who is not the owner")
            return False
        if run.now.status is not Status.RUNNING:  # This is a late copy.
            return False
        steps = dict(run.now.steps)
        for name, record in checkpoint.steps.items():
            if name not in steps or steps[name].seq < record.seq:
                steps[name] = record
        self._know(run, position, decision=None, steps=steps, undoing=run.now.undoing or checkpoint.undoing)
        return True

    def _ended(self, position: int, call: StoreCall, ending: Ending) -> None:
        run, end = self.runs[-1], ending.record
        if end.run_id != run.run_id:
            self.broken.append("a run ends that is not the key's")
        elif run.now.status is Status.RUNNING:
            if ending.changes is not None:
                self._told(position, ending.changes)
            undoing = (run.now.undoing or end.undoing) and end.status is not Status.FAILURE
            self._know(run, position, status=end.status, held=end.held, undoing=undoing, decision=None)
            run.ended_at = call.applied
            if end.status is Status.PARKED and not end.held:
                run.parked.append(position)

    def _know(self, run: KeptRun, position: int, **changes: Any) -> None:
        run.states.append(replace(run.now, position=position, **changes))

    # -- queries -------------------------------------------------------------------------------------------------------

    def run_of(self, fence: int) -> KeptRun | None:
        return next((run for run in self.runs if fence in run.fences()), None)

    def decision(self, fence: int) -> str | None:
        """Return the decision that the owner with this fence reported when it took the run over, or None."""
        run = self.run_of(fence)
        grant = None if run is None else next(grant for grant in run.grants if grant.fence == fence)
        events = () if grant is None or not grant.delivered else self.story.acts[grant.process].events
        return next((event.decision for event in events if isinstance(event, RunRecovered)), None)

    def _done(self) -> Iterator[Done]:
        """Yield each effect with its call. The n-th effect of a kind was made by the n-th call of that kind."""
        waiting: dict[tuple[Any, ...], list[SimulatedCall]] = {}
        made = [call for call in self.story.calls if call.performed is not None]
        for call in sorted(made, key=lambda call: call.performed or 0.0):
            what = "do" if call.what == "await" else call.what
            if call.what == "do" and self.steps[call.step].form == "answers":
                continue  # The function has only returned a coroutine, which has done nothing yet.
            waiting.setdefault((call.fence, call.step, what, call.attempt), []).append(call)
        for effect in self.tale.effects:
            call = waiting[effect.fence, effect.step, effect.what, effect.attempt].pop(0)
            run = self.run_of(effect.fence)
            assert run is not None
            performed = call.performed or 0.0
            over = run.ended_at is not None and performed > run.ended_at and run.now.status is not Status.RUNNING
            yield Done(effect, call, stale=over or performed >= run.lost_at(effect.fence))

    def of(self, run: KeptRun) -> list[Done]:
        """Return the effects of a run."""
        return [done for done in self.done if done.effect.fence in run.fences()]


def _running() -> Any:
    from flowcore.run import StepReport

    return StepReport(Status.RUNNING, 1)
