"""A state machine for Hypothesis. It makes up histories, with late copies, and compares the store with the model."""
# ruff: noqa: S101, PT017 - these are tests; what is raised is compared with what the model says

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar

from hypothesis import HealthCheck, Phase, settings, strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,  # pyright: ignore[reportUnknownVariableType]
)

from ...errors import RunNotFound, StoreError
from ...run import StepReport
from ...status import Status
from ...stores.base import Checkpoint, Claim, Claimed, Ending, Finished, Lease, Renewal, RunRecord, StepRecord, Write
from .model import FREE, Known, Model, snapshot
from .rules import broken
from .suite import LONG, SHORT, Suite, new_id

__all__ = ["MadeUpHistories"]

KEYS = ("one", "one", "one", "one", "two")
SOME: list[Any] = [None, 0, "text", [1, {"a": []}], {}]
VALUES = st.sampled_from(SOME)
REPORTS = (
    StepReport(Status.RUNNING, 1),
    StepReport(Status.SUCCESS, 1),
    StepReport(Status.SUCCESS, 2, undo=Status.SUCCESS),
    StepReport(Status.FAILURE, 3, error=ValueError("no")),
    StepReport(Status.SKIPPED),
)
NO_RESULT = st.just(value=False)  # `Histories.numbered` decides which steps have a result.
STEPS: Any = st.dictionaries(
    st.sampled_from("abc"),
    st.builds(StepRecord, st.just(0), st.sampled_from(REPORTS), NO_RESULT, VALUES, st.booleans(), st.just({"e": "f"})),
    min_size=1,
    max_size=2,
)
WRITES: Any = st.dictionaries(st.sampled_from("xy"), st.builds(Write, st.just(0), VALUES, st.booleans()), max_size=2)
ENDS = (
    Status.SUCCESS,
    Status.FAILURE,
    Status.COMPENSATED,
    Status.PARKED,
    Status.INCOMPLETE,
    Status.COMPENSATION_FAILED,
)
WHEN = st.sampled_from(["at once", "at once", "later"])


def one_of(many: list[Any], which: float) -> Any:
    """Return the last element if `which` is at least 0.5, else an earlier one: the first if it is 0."""
    return many[-1] if which > 0.5 else many[int(which * 2 * (len(many) - 1))]


WHICH = st.sampled_from([1.0, 1.0, 1.0, 0.0, 0.2, 0.4, 0.5])


class Histories(RuleBasedStateMachine):
    """One store, one model, two keys, and all messages that were ever made, because each may be sent again."""

    def __init__(self, suite: Suite) -> None:
        super().__init__()
        self.suite, self.store, self.model = suite, suite.store, Model()
        self.workflow, self.prefix = f"workflow-{new_id()}", new_id()
        self.claims: list[Claim] = []
        self.owners: list[tuple[Lease, Known]] = []
        self.checkpoints: list[Checkpoint] = []
        self.endings: list[Ending] = []
        self.numbers: set[int] = set()

    # -- claims --------------------------------------------------------------------------------------------------------

    @rule(key=st.sampled_from(KEYS), begins=st.sampled_from([(), ("a",), ("c", "b")]))
    def call(self, key: str, begins: tuple[str, ...]) -> None:
        """Send a claim with the usual fingerprint."""
        key = self.prefix + key
        self.claims.append(Claim(key, new_id(), self.workflow, "f", "g", {"by": "a"}, {"x": 0}, LONG, begins))
        self.ask(self.claims[-1])

    @rule(
        key=st.sampled_from(KEYS),
        fingerprint=st.sampled_from(["other", "f", None]),
        graph=st.sampled_from(["g", "g", "other"]),
        carrier=st.sampled_from(["c", "d", None]),
        attached=st.sampled_from([None, None, "the present run", "an older run"]),
    )
    def call_otherwise(
        self, key: str, fingerprint: str | None, graph: str, carrier: str | None, attached: str | None
    ) -> None:
        """Send a claim with another fingerprint, graph or carrier, or one that waits for a run."""
        key = self.prefix + key
        if attached == "the present run":
            known = self.model.runs.get(key)
            attached = None if known is None else known.run_id
        carried = {} if carrier is None else {"by": carrier}
        asked = Claim(key, new_id(), self.workflow, fingerprint, graph, carried, {"x": 1}, LONG, (), attached)
        self.claims.append(asked)
        self.ask(asked)

    @precondition(lambda self: bool(self.claims))
    @rule(which=WHICH, gives_up=st.sampled_from([False, False, True]))
    def claim_again(self, which: float, gives_up: bool) -> None:
        """Send a claim again, as if its reply was lost or the network repeated it, or withdraw it."""
        claim = one_of(self.claims, which)
        if not gives_up:
            self.ask(claim)
        elif not self.is_unspecified(claim):
            self.answers("withdraw", claim)

    def is_unspecified(self, claim: Claim) -> bool:
        """Whether the claim is the first one of a run that had another owner since. No rule covers that."""
        known = self.model.runs.get(claim.key)
        if known is None or known.claim is not claim:
            return False
        return known.resumable if known.owner is not claim else known.before is not None

    def ask(self, claim: Claim) -> None:
        """Send a claim, and check that the reply is the one of the model."""
        known = self.model.runs.get(claim.key)
        again = known is not None and known.owner is claim
        if self.is_unspecified(claim):
            return
        last = 0 if known is None else known.fence
        before = None if known is None else known.record()
        expected = self.model.claim(claim)
        try:
            answer: Any = self.store.claim(claim)
        except StoreError as error:
            answer = error
        assert isinstance(answer, expected), differs(f"claim returned {answer}, not {expected.__name__}")
        known = self.model.runs[claim.key]
        if isinstance(answer, Finished):
            compare(known, answer.record)
        if isinstance(answer, Claimed):
            assert answer.generation == known.generation, differs(
                f"generation {answer.generation}, not {known.generation}"
            )
            assert answer.fence == last if again else answer.fence > last, differs(f"fence {answer.fence} after {last}")
            known.fence = answer.fence
            if known.before is None:
                assert answer.record is None, differs(f"{answer}, though no run had begun")
            else:
                assert answer.record is not None, differs(f"{answer}, though it resumes a run")
                assert before is not None, differs("unreachable")
                before.status, before.takeovers = known.before, known.takeovers
                compare(known, answer.record, before, but="fence" if again else "")
            self.owners.append((Lease(claim.key, known.run_id, answer.fence), known))

    # -- owners --------------------------------------------------------------------------------------------------------

    def numbered(
        self, known: Known, steps: dict[str, StepRecord], writes: dict[str, Write], behind: int
    ) -> tuple[dict[str, StepRecord], dict[str, Write]]:
        """Return the steps and writes with the next numbers of the run or, if they are `behind`, with earlier ones, as
        in a delayed message. No number is used twice. Only successful steps have a result."""
        seq = max(20, (known.checkpoints.seq // 20 + 1 - behind) * 20)
        numbers: dict[str, int] = {}
        for name in (*steps, *writes):
            while seq in self.numbers:
                seq += 1
            numbers[name] = seq
            self.numbers.add(seq)
        done = {name: step.report.status == Status.SUCCESS for name, step in steps.items()}
        return (
            {
                name: replace(
                    step, seq=numbers[name], has_result=done[name], result=step.result if done[name] else None
                )
                for name, step in steps.items()
            },
            {key: replace(write, seq=numbers[key]) for key, write in writes.items()},
        )

    @precondition(lambda self: bool(self.owners))
    @rule(
        which=WHICH,
        steps=STEPS,
        writes=WRITES,
        behind=st.sampled_from([0, 0, 1, 3]),
        undoing=st.sampled_from([False, False, False, True]),
        renews=st.booleans(),
        when=WHEN,
    )
    def checkpoint(
        self,
        which: float,
        steps: dict[str, StepRecord],
        writes: dict[str, Write],
        behind: int,
        undoing: bool,
        renews: bool,
        when: str,
    ) -> None:
        """Make a checkpoint of an owner, to be sent at once or later."""
        lease, known = one_of(self.owners, which)
        base = known.checkpoints.seq
        steps, writes = self.numbered(known, steps, writes, behind)
        sent = Checkpoint(lease.key, lease.run_id, lease.fence, LONG, steps, writes, undoing)
        sent.base, sent.renews = base, renews
        if undoing:
            sent.failed_step, sent.error = "a", ValueError("no")
        self.checkpoints.append(sent)
        if when == "at once":
            self.send(sent)

    @precondition(lambda self: bool(self.checkpoints))
    @rule(which=WHICH)
    def checkpoint_again(self, which: float) -> None:
        """Send a checkpoint late, or again."""
        self.send(one_of(self.checkpoints, which))

    def send(self, checkpoint: Checkpoint) -> None:
        """Send a checkpoint. One that finds an expired lease renews it: else stores may differ."""
        known = self.model.runs.get(checkpoint.key)
        live = known is not None and known.live
        self.answers("checkpoint", checkpoint if live else replace(checkpoint, renews=True))

    @precondition(lambda self: bool(self.owners))
    @rule(which=WHICH, lease=st.sampled_from([LONG, SHORT, SHORT]))
    def renew(self, which: float, lease: float) -> None:
        """Renew the lease of an owner, for a long time or for so short a time that it expires."""
        mine, _ = one_of(self.owners, which)
        expected = [self.model.renew(mine), Renewal.LOST]
        seen = self.store.renew([mine, Lease(self.prefix + "nobody", "nobody", 1)], lease)
        assert seen == expected, differs(f"renew returned {seen}, not {expected}")
        if expected[0] is not Renewal.LOST and lease == SHORT:
            self.model.expire(mine.key)
            self.suite.until(lambda: self.lists("expired", mine.key), "time-passes", f"{mine.key} did not expire")

    @precondition(lambda self: bool(self.owners))
    @rule(which=WHICH, status=st.sampled_from(ENDS), steps=STEPS, writes=WRITES, failed=st.booleans(), when=WHEN)
    def finish(
        self,
        which: float,
        status: Status,
        steps: dict[str, StepRecord],
        writes: dict[str, Write],
        failed: bool,
        when: str,
    ) -> None:
        """Make the ending of an owner's run, to be sent at once or later."""
        lease, known = one_of(self.owners, which)
        steps, writes = self.numbered(known, steps, writes, 0)
        changes = Checkpoint(lease.key, lease.run_id, lease.fence, LONG, steps, writes) if steps or writes else None
        record = replace(known.record(), fence=lease.fence, run_id=lease.run_id, status=status, undoing=False)
        record.held = status == Status.COMPENSATION_FAILED
        record.undone = ("c",) if failed else ()
        record.failed_step, record.error = ("b", ValueError("b")) if failed else (None, None)
        self.endings.append(Ending(record, changes))
        if when == "at once":
            self.answers("finish", self.endings[-1])

    @precondition(lambda self: bool(self.endings))
    @rule(which=WHICH)
    def finish_again(self, which: float) -> None:
        """Send an ending late, or again."""
        self.answers("finish", one_of(self.endings, which))

    def answers(self, verb: str, argument: Any) -> None:
        """Check that the store replies as the model does."""
        expected, seen = getattr(self.model, verb)(argument), getattr(self.store, verb)(argument)
        assert seen == expected, differs(f"{verb} returned {seen}, not {expected}, for {argument}")
        if verb == "withdraw":
            self.copy_fence(argument.key)

    # -- operators -----------------------------------------------------------------------------------------------------

    @rule(
        key=st.sampled_from(KEYS),
        verb=st.sampled_from(["release", "force", "hold", "resume", "undo", "resume", "undo"]),
    )
    def operate(self, key: str, verb: str) -> None:
        """Make a decision of an operator."""
        key = self.prefix + key
        known = self.model.runs.get(key)
        if known is not None and ((verb == "undo" and known.running) or (verb == "resume" and known.status in FREE)):
            return
        match verb:
            case "release" | "force":
                force = verb == "force"
                expected = self.model.release(key, force=force)
                self.does(key, expected, verb, lambda: self.store.release(key, force=force))
            case "hold":
                self.does(key, self.model.hold(key), verb, lambda: self.store.hold(key))
            case _:
                self.does(key, self.model.decide(key, verb), verb, lambda: getattr(self.store, verb)(key))

    def does(self, key: str, expected: type[StoreError] | None, what: str, act: Callable[[], None]) -> None:
        """Check that the store refuses the decision if, and only if, the model does."""
        try:
            act()
        except StoreError as error:
            assert expected is not None, differs(f"{what} was refused: {error}")
            assert isinstance(error, RunNotFound) == (expected is RunNotFound), differs(f"{what} raised {error!r}")
        else:
            assert expected is None, differs(f"{what} was done, and should raise {expected}")
        self.copy_fence(key)

    def copy_fence(self, key: str) -> None:
        """Copy the store's fence into the model, because no rule says by how much a verb raises it."""
        known, record = self.model.runs.get(key), self.store.find(key)
        if known is not None and record is not None:
            assert record.fence >= known.fence, differs(f"the fence is {record.fence}, {known.fence} at least was due")
            known.fence = record.fence

    # -- finding and listing runs --------------------------------------------------------------------------------------

    def lists(self, status: str | None, key: str) -> bool:
        """Whether the store lists this key under this status."""
        return any(one.key == key for one in self.store.list_runs(status=status, workflow=self.workflow, limit=None))

    @rule(status=st.sampled_from([None, "held", "expired", *ENDS, Status.RUNNING]))
    def look(self, status: str | None) -> None:
        """Check the runs that the store lists under a status, those that it lists for recovery, and what it counts."""
        fits: dict[str | None, Callable[[Known], bool]] = {
            None: lambda _: True,
            "held": lambda known: known.held,
            "expired": lambda known: known.running and not known.live,
        }

        def in_status(known: Known) -> bool:
            return known.status == status

        fit = fits.get(status, in_status)
        expected = {key for key, known in self.model.runs.items() if fit(known)}
        seen = {record.key for record in self.store.list_runs(status=status, workflow=self.workflow, limit=None)}
        assert seen == expected, differs(f"list_runs(status={status!r}) lists {seen}, not {expected}")
        expected = {key for key, known in self.model.runs.items() if known.is_due}
        seen = {record.key for record in self.store.list_resumable([self.workflow])}
        assert seen == expected, differs(f"list_resumable lists {seen}, not {expected}")
        standing = Counter(
            "held" if known.held else "expired" if known.running and not known.live else str(known.status)
            for known in self.model.runs.values()
            if known.held or known.running or known.resumable
        )
        counts = {status: number for (name, status), number in self.store.counts().items() if name == self.workflow}
        assert counts == standing, differs(f"counts returns {counts}, not {dict(standing)}")

    @invariant()
    def is_as_the_model_says(self) -> None:
        """Check that the store's record under each key is the one of the model."""
        for key in {self.prefix + key for key in KEYS}:
            known, record = self.model.runs.get(key), self.store.find(key)
            assert (known is None) == (record is None), differs(f"find({key!r}) is {record}, not {known}")
            if known is not None and record is not None:
                compare(known, record)


def differs(detail: str) -> str:
    """Return the message of a failure: the store differs from the model."""
    return broken("model", detail)


def compare(known: Known, record: RunRecord, expected: RunRecord | None = None, but: str = "") -> None:
    """Check that the record is the one of the model, or the `expected` one, in all fields that the contract fixes."""
    wanted, seen = snapshot(known.record() if expected is None else expected), snapshot(record)
    left_open = {"started", "finished", "expires", but}
    if not known.undone or wanted["status"] == Status.RUNNING:  # A store may then derive `undone` from the steps.
        left_open.add("undone")
    if known.held or known.status not in {Status.RUNNING, Status.PARKED, Status.INCOMPLETE}:
        left_open.add("decision")
    for name in sorted(wanted.keys() - left_open):
        assert seen[name] == wanted[name], differs(f"{name} is {seen[name]!r}, not {wanted[name]!r}")
    if expected is None:
        assert (record.expires is not None) == known.running, differs(f"{known.status}, expires is {record.expires}")
        if known.running or known.is_finished:
            assert (record.finished is None) == known.running, differs(f"{known.status}, finished is {record.finished}")


class MadeUpHistories(Suite):
    """Hypothesis looks for a history after which the store and the model differ, and reports the shortest it finds."""

    phases: ClassVar[tuple[Phase, ...]] = (Phase.generate, Phase.shrink)

    def test_no_history_makes_the_store_differ_from_the_model(self) -> None:
        machine: Any = lambda: Histories(self)  # noqa: E731 - Hypothesis types say a class
        run_state_machine_as_test(
            machine,
            settings=settings(
                max_examples=self.examples,
                stateful_step_count=50,
                deadline=None,
                phases=self.phases,
                suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
                database=None,
                report_multiple_bugs=False,
            ),
        )
