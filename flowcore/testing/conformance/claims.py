"""Tests of `claim`: every one of its rules, in order."""
# ruff: noqa: S101 - these are tests

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from ...errors import RunNotFound
from ...status import Status
from ...stores.base import Busy, Claim, Claimed, Finished, Held, Mismatch, OtherGraph
from .model import snapshot
from .rules import broken
from .suite import LONG, SHORT, Owner, Suite, done

__all__ = ["ClaimRules"]

RELEASED = (Status.FAILURE, Status.COMPENSATED)
STATES = ("running", "expired", "success", "incomplete", "parked", "compensation_failed", "held")
RESUMABLE = ("incomplete", "parked", "expired")
OVER = ("success", "failure", "compensated", "compensation_failed", "held")


class ClaimRules(Suite):
    """The tests of `claim` and of its replies."""

    def bring_to(self, state: str, **claim: Any) -> Owner:
        """Return the owner of a run in this state: a status, "expired", or "held" by an operator after its success."""
        owner = self.begin(**claim)
        owner.saves({"a": done("A")}, {})
        match state:
            case "running":
                pass
            case "expired":
                self.expire(owner)
            case "held":
                owner.ends(Status.SUCCESS)
                self.store.hold(owner.key)
            case _:
                failed = None if state == Status.SUCCESS else ValueError("no")
                owner.ends(
                    Status(state),
                    held=state == Status.COMPENSATION_FAILED,
                    failed_step=None if failed is None else "b",
                    error=failed,
                )
        return owner

    # -- a free key ----------------------------------------------------------------------------------------------------

    def test_a_free_key_is_claimed(self) -> None:
        answer = self.store.claim(self.request())
        assert isinstance(answer, Claimed), broken("claim-begins", answer)
        assert (answer.generation, answer.record) == (0, None), broken("claim-begins", answer)
        assert answer.fence >= 1, broken("claim-begins", answer)
        assert 0 <= answer.age < LONG, broken("ages", answer)

    def test_a_claim_is_recorded(self) -> None:
        owner = self.begin(begins=("b", "a"))
        claim, record = owner.claim, self.record()
        seen = snapshot(record)
        for name in ("key", "run_id", "workflow", "fingerprint", "graph", "values", "carrier"):
            assert seen[name] == getattr(claim, name), broken("claim-is-recorded", f"{name} is {seen[name]!r}")
        assert (record.status, record.held, record.undoing, record.decision) == (Status.RUNNING, False, False, None), (
            broken("claim-is-recorded", record)
        )
        assert (record.generation, record.fence) == (0, owner.fence), broken("claim-is-recorded", record)
        assert record.finished is None, broken("claim-is-recorded", record)
        assert record.expires is not None, broken("claim-is-recorded", "expires is None, though it is leased")
        left = record.expires - record.started
        assert LONG - 1 < left < LONG + 1, broken("claim-is-recorded", f"its lease of {LONG} s ends after {left} s")
        begun = {name: (report.status, report.attempts) for name, report in record.steps.items()}
        assert begun == {"a": (Status.RUNNING, 1), "b": (Status.RUNNING, 1)}, broken("claim-is-recorded", begun)
        assert (record.seq, dict(record.results)) == (2, {}), broken("claim-is-recorded", record)
        assert tuple(record.effects) == ("b", "a"), broken("effects", f"{record.effects}, though b and a are running")

    def test_a_claim_without_values_steps_or_fingerprint_is_recorded(self) -> None:
        self.begin(values={}, carrier={}, fingerprint=None)
        record = self.record()
        seen = (record.fingerprint, dict(record.values), dict(record.carrier), dict(record.steps), record.seq)
        assert seen == (None, {}, {}, {}, 0), broken("claim-is-recorded", seen)

    def test_two_keys_are_two_runs(self) -> None:
        one, two = self.begin(), self.begin(self.key + "-2")
        assert self.record(one.key).run_id == one.run_id, broken("claim-begins", "of two keys")
        assert self.record(two.key).run_id == two.run_id, broken("claim-begins", "of two keys")

    # -- the same claim again ------------------------------------------------------------------------------------------

    def test_the_same_claim_again_gets_the_same_answer(self) -> None:
        owner = self.begin(begins=("a",))
        for store in (self.store, self.other):
            again = store.claim(owner.claim)
            assert isinstance(again, Claimed), broken("claim-again", again)
            seen = (again.generation, again.fence, again.record)
            assert seen == (0, owner.fence, None), broken("claim-again", again)

    def test_the_same_claim_again_renews_the_lease(self) -> None:
        owner = self.begin(lease=SHORT)
        self.expired(owner.key)
        owner.claim.lease = LONG
        again = self.store.claim(owner.claim)
        assert isinstance(again, Claimed), broken("claim-again", again)
        self.refused(Busy, "claim-again")

    @pytest.mark.parametrize("state", RESUMABLE)
    def test_the_same_claim_that_took_a_run_over_gets_the_same_answer(self, state: str) -> None:
        self.bring_to(state)
        owner = self.take_over()
        first = owner.answer.record
        again = self.store.claim(owner.claim)
        assert isinstance(again, Claimed), broken("claim-again", again)
        assert (again.generation, again.fence) == (0, owner.fence), broken("claim-again", again)
        assert first is not None, broken("claim-takeover", owner.answer)
        assert again.record is not None, broken("claim-again", again)
        seen, expected = snapshot(again.record), snapshot(first)
        for name in ("fence", "finished", "expires"):  # No caller depends on the former values of these.
            del expected[name]
        self.same(seen, expected, "claim-again")

    @pytest.mark.parametrize("state", [*OVER, "incomplete", "parked"])
    def test_the_same_claim_again_after_the_end_is_finished(self, state: str) -> None:
        owner = self.bring_to(state)
        with self.unchanged("claim-again-after-the-end"):
            again = self.store.claim(owner.claim)
        assert isinstance(again, Finished), broken("claim-again-after-the-end", again)
        assert again.record.run_id == owner.run_id, broken("claim-again-after-the-end", again)

    def test_the_same_claim_again_after_release_is_finished(self) -> None:
        owner = self.begin()
        self.store.release(self.key, force=True)
        with self.unchanged("claim-again-after-the-end"):
            again = self.store.claim(owner.claim)
        assert isinstance(again, Finished), broken("claim-again-after-the-end", again)

    # -- waiting for a run ---------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("state", OVER)
    def test_a_claim_that_waits_for_an_ended_run_gets_its_outcome(self, state: str) -> None:
        owner = self.bring_to(state)
        answer = self.refused(Finished, "claim-attached", attached=owner.run_id, waits=True)
        self.same(snapshot(answer.record), snapshot(self.record()), "claim-attached")
        assert dict(answer.record.results) == {"a": "A"}, broken("claim-attached", answer)

    @pytest.mark.parametrize("state", RESUMABLE)
    def test_a_claim_that_waits_takes_over_a_run_without_a_live_owner(self, state: str) -> None:
        owner = self.bring_to(state)
        assert self.take_over(attached=owner.run_id, waits=True).run_id == owner.run_id, broken("claim-attached")

    def test_a_claim_that_waits_for_a_run_in_progress_is_busy(self) -> None:
        owner = self.bring_to("running")
        self.refused(Busy, "claim-busy", attached=owner.run_id, waits=True)

    @pytest.mark.parametrize("state", RELEASED)
    def test_a_claim_that_waits_for_a_replaced_run_begins_none(self, state: str) -> None:
        first, second = self.bring_to("failure"), self.bring_to(state)
        answer = self.refused(Finished, "claim-attached-to-an-older-run", attached=first.run_id, waits=True)
        assert answer.record.run_id == second.run_id, broken("claim-attached-to-an-older-run", answer)

    @pytest.mark.parametrize("state", RELEASED)
    def test_the_same_claim_again_after_another_owner_has_ended_the_run_is_finished(self, state: str) -> None:
        lost = self.begin(lease=0.0)  # The reply was lost, so this owner never knew of its run.
        self.take_over().ends(state, failed_step="a", error=ValueError("no"))
        with self.unchanged("claim-again-after-the-end"):
            again = self.store.claim(lost.claim)
        assert isinstance(again, Finished), broken("claim-again-after-the-end", again)
        assert again.record.run_id == lost.run_id, broken("claim-again-after-the-end", again)

    # -- a key that is free again --------------------------------------------------------------------------------------

    @pytest.mark.parametrize("state", RELEASED)
    def test_after_a_failure_the_key_is_free_for_anything(self, state: str) -> None:
        old = self.bring_to(state, begins=("a", "z"))
        changes: dict[str, Any] = {
            "fingerprint": "other",
            "graph": "other",
            "workflow": f"{self.workflow}-other",
            "values": {"z": 3},
        }
        claim = self.request(**changes)
        answer = self.other.claim(claim)
        assert isinstance(answer, Claimed), broken("claim-after-release", answer)
        assert (answer.generation, answer.record) == (1, None), broken("claim-after-release", answer)
        assert answer.fence > old.fence, broken("fence-rises", answer)
        record = self.record()
        expected: dict[str, Any] = {
            **{name: getattr(claim, name) for name in ("run_id", "workflow", "fingerprint", "graph", "values")},
            "status": Status.RUNNING,
            "finished": None,
            "failed_step": None,
            "error": None,
            "undone": (),
            "results": [],
            "steps": {},
            "effects": (),
            "carriers": {},
            "seq": 0,
            "generation": 1,
        }
        self.same(snapshot(record), expected, "claim-after-release")
        with self.refuses("get-run", "get_run of the run before", RunNotFound):
            self.store.get_run(old.run_id)

    def test_generation_and_fence_rise_with_each_failure(self) -> None:
        fences: list[int] = []
        for generation in range(4):
            owner = self.begin()
            assert owner.answer.generation == generation, broken("claim-after-release", owner.answer)
            fences.append(owner.fence)
            owner.ends(Status.FAILURE, failed_step="a", error=ValueError("no"))
        assert fences == sorted(set(fences)), broken("fence-rises", fences)

    # -- the wrong key -------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("state", STATES)
    def test_another_fingerprint_is_a_mismatch_whatever_the_state(self, state: str) -> None:
        owner = self.bring_to(state)
        answer = self.refused(Mismatch, "claim-mismatch", fingerprint="other", workflow="other", carrier={})
        seen = (answer.run_id, answer.workflow, dict(answer.carrier))
        assert seen == (owner.run_id, self.workflow, dict(owner.claim.carrier)), broken("claim-mismatch", answer)
        assert 0 <= answer.age < LONG, broken("ages", answer)

    @pytest.mark.parametrize("state", RESUMABLE)
    def test_a_claim_without_a_fingerprint_fits_every_record(self, state: str) -> None:
        owner = self.bring_to(state)
        assert self.take_over(fingerprint=None).run_id == owner.run_id, broken("claim-mismatch", "for fingerprint None")
        assert self.record().fingerprint == "fingerprint", broken("claim-takeover", "the run's fingerprint has changed")

    # -- held, finished, resumable and busy runs -----------------------------------------------------------------------

    @pytest.mark.parametrize("state", ["compensation_failed", "held", "failure", "incomplete", "parked", "expired"])
    def test_a_held_key_is_held_whatever_the_status(self, state: str) -> None:
        owner = self.bring_to(state)
        self.store.hold(self.key)
        answer = self.refused(Held, "claim-held")
        seen = (answer.run_id, dict(answer.carrier))
        assert seen == (owner.run_id, dict(owner.claim.carrier)), broken("claim-held", answer)

    def test_after_success_the_outcome_is_answered(self) -> None:
        owner = self.bring_to("success")
        for store in (self.store, self.other):
            answer = store.claim(self.request(graph="other"))
            assert isinstance(answer, Finished), broken("claim-success", answer)
            self.same(snapshot(answer.record), snapshot(self.record()), "claim-success")
            seen = (answer.record.run_id, answer.record.status, dict(answer.record.results))
            assert seen == (owner.run_id, Status.SUCCESS, {"a": "A"}), broken("claim-success", answer)
            assert 0 <= answer.age < LONG, broken("ages", answer)

    @pytest.mark.parametrize("state", RESUMABLE)
    def test_a_run_that_was_left_is_taken_over(self, state: str) -> None:
        old = self.bring_to(state)
        before = snapshot(self.record())
        assert not isinstance(self.other.claim(self.request(graph="other", fingerprint="other")), Claimed)
        new = self.take_over(carrier={}, values={})
        assert (new.answer.generation, new.run_id) == (0, old.run_id), broken("claim-takeover", new.answer)
        assert new.fence > old.fence, broken("fence-rises", new.answer)
        record = new.answer.record
        assert record is not None, broken("claim-takeover", new.answer)
        before["takeovers"] = int(state == "expired")
        self.same(snapshot(record), before, "claim-takeover")
        after = snapshot(self.record())
        left = after["expires"] - before["started"] if after["expires"] is not None else None
        assert left is not None, broken("claim-takeover", "it has no lease")
        assert left > LONG - 1, broken("claim-takeover", f"its lease ends {left} s after the run began")
        expected = {
            **before,
            "status": Status.RUNNING,
            "fence": new.fence,
            "finished": None,
            "expires": after["expires"],
        }
        del expected["undone"]  # Until the run ends, a store may derive it from the steps.
        self.same(after, expected, "claim-takeover")
        self.refused(Busy, "claim-takeover")

    @pytest.mark.parametrize("state", RESUMABLE)
    def test_a_run_keeps_the_carrier_of_its_first_owner(self, state: str) -> None:
        old = self.bring_to(state)
        first = dict(old.claim.carrier)
        new = self.take_over(carrier={"traceparent": "another"})
        record = new.answer.record
        assert record is not None, broken("claim-takeover", new.answer)
        assert dict(record.carrier) == first, broken("carriers", f"the new owner gets {record.carrier}, not {first}")
        busy = self.refused(Busy, "claim-busy")
        assert dict(busy.carrier) == first, broken("carriers", f"others get {busy.carrier}, not {first}")
        new.ends(Status.SUCCESS)
        assert dict(self.record().carrier) == first, broken("carriers", f"{self.record().carrier}, not {first}")

    def test_the_fence_rises_with_each_takeover(self) -> None:
        owners = [self.begin()]
        for _ in range(3):
            self.expire(owners[-1])
            owners.append(self.take_over())
        fences = [owner.fence for owner in owners]
        assert fences == sorted(set(fences)), broken("fence-rises", fences)
        assert {owner.run_id for owner in owners} == {owners[0].run_id}, broken("claim-takeover", "the run id changed")

    @pytest.mark.parametrize("state", RESUMABLE)
    def test_a_run_of_another_definition_is_refused_loudly(self, state: str) -> None:
        self.bring_to(state)
        answer = self.refused(OtherGraph, "claim-other-graph", graph="other")
        assert answer.graph == "graph", broken("claim-other-graph", answer)
        assert answer.run_id == self.record().run_id, broken("claim-other-graph", answer)

    @pytest.mark.parametrize("lease", [LONG, 1.0, SHORT])
    def test_a_busy_run_says_when_to_ask_again(self, lease: float) -> None:
        owner = self.begin(lease=LONG)
        if lease != LONG:
            self.store.renew([owner.lease], lease)
        answer = self.store.claim(self.request())
        if lease == LONG or isinstance(answer, Busy):  # A short lease may have expired meanwhile.
            assert isinstance(answer, Busy), broken("claim-busy", answer)
            seen = (answer.run_id, dict(answer.carrier))
            assert seen == (owner.run_id, dict(owner.claim.carrier)), broken("claim-busy", answer)
            assert 0 < answer.lease_left <= lease + 0.001, broken("claim-busy", f"{answer}, a lease of {lease} s")
            assert lease < LONG or answer.lease_left > LONG - 60, broken("claim-busy", f"{answer}, of {lease} s")

    def test_asking_after_a_busy_run_changes_nothing(self) -> None:
        self.bring_to("running")
        for waits in (False, True):
            self.refused(Busy, "claim-busy", waits=waits)

    def test_age_counts_from_the_first_claim(self) -> None:
        owner = self.bring_to("expired")
        began = self.record().started
        self.advance(0.05)
        later = self.take_over()
        assert later.answer.age >= 0.04, broken("ages", f"{later.answer.age} s, at least 0.05 s after the run began")
        assert self.record().started == began, broken("ages", "a takeover has changed when the run began")
        later.ends(Status.SUCCESS)
        answer = self.store.claim(Claim(owner.key, "another", self.workflow, None, "graph", {}))
        assert isinstance(answer, Finished), broken("claim-success", answer)
        assert answer.age >= later.answer.age, broken("ages", f"{answer.age} s after {later.answer.age} s")

    # -- a queued run --------------------------------------------------------------------------------------------------

    def test_a_queued_run_begins_with_what_its_owner_claims_then(self) -> None:
        queued = self.request(queued=True, begins=("a",), carrier={})
        first = self.store.claim(queued)
        assert isinstance(first, Claimed), broken("claim-queued", first)
        record = self.record()
        assert (record.status, dict(record.steps)) == (Status.QUEUED, {}), broken("claim-queued", record)
        begun = self.store.claim(replace(queued, queued=False, carrier={"traceparent": "00-1-3-01"}))
        assert isinstance(begun, Claimed), broken("claim-queued", begun)
        assert (begun.generation, begun.fence) == (first.generation, first.fence), broken("claim-queued", begun)
        assert begun.record is None, broken("claim-queued", begun)
        record = self.record()
        assert record.status is Status.RUNNING, broken("claim-queued", record)
        assert dict(record.carrier) == {"traceparent": "00-1-3-01"}, broken("claim-queued", record.carrier)
        steps = {name: report.status for name, report in record.steps.items()}
        assert steps == {"a": Status.RUNNING}, broken("claim-queued", steps)

    def test_a_queued_run_whose_owner_has_died_is_taken_over(self) -> None:
        owner = self.begin(queued=True)
        self.refused(Busy, "claim-queued", graph="another")
        self.store.renew([owner.lease], SHORT)
        found: list[Any] = []

        def taken_over() -> bool:
            answer = self.store.claim(self.request(graph="another"))
            found.extend([answer.record] if isinstance(answer, Claimed) else [])
            return bool(found)

        self.until(taken_over, "claim-queued", f"a queued run with a lease of {SHORT} s was not taken over")
        assert found[0] is not None, broken("claim-queued", "it began anew")
        assert found[0].status is Status.QUEUED, broken("claim-queued", found[0])
        assert self.record().status is Status.RUNNING, broken("claim-queued", self.record())
