"""Tests of the verbs for operators: find, list, release, hold, resume, undo, gc, doctor."""
# ruff: noqa: S101 - these are tests

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from ...errors import RunNotFound
from ...status import Status
from ...stores.base import STOPS, Claimed, Finished, Held, Lost, Mismatch, Renewal, RunRecord
from .model import snapshot
from .rules import broken
from .suite import LONG, Owner, Suite, done, new_id, wrote

__all__ = ["OperatorRules"]

DECISIONS = ("resume", "undo")
VERBS = ("release", "erase", "hold", *DECISIONS)
ENDED = ("success", "failure", "compensated")


class OperatorRules(Suite):
    """The tests of the verbs with which people look at runs and decide about them."""

    def _left(self, state: str, key: str | None = None) -> Owner:
        """Return the last owner of a run that has ended in this state or, if "expired", whose lease has expired."""
        owner = self.begin(key)
        owner.saves({"a": done("A")})
        if state == "expired":
            self.expire(owner)
        else:
            held = state == Status.COMPENSATION_FAILED
            owner.ends(Status(state), held=held, failed_step="b", error=ValueError("no"))
        return owner

    # -- finding and listing runs --------------------------------------------------------------------------------------

    def test_find_answers_the_record_or_none(self) -> None:
        assert self.store.find(self.key) is None, broken("find", "of an unused key")
        owner = self.begin()
        for store in (self.store, self.other):
            record = store.find(self.key)
            assert record is not None, broken("find", "None, though there is a run")
            assert (record.key, record.run_id) == (self.key, owner.run_id), broken("find", record)

    def test_get_run_answers_the_record_of_a_run_id(self) -> None:
        owner = self.begin()
        owner.saves({"a": done("A")})
        self.same(snapshot(self.other.get_run(owner.run_id)), snapshot(self.record()), "get-run")
        owner.ends(Status.FAILURE)
        self.same(snapshot(self.store.get_run(owner.run_id)), snapshot(self.record()), "get-run")
        again = self.begin()
        assert self.store.get_run(again.run_id).generation == 1, broken("get-run", "after another run")
        for unknown in (owner.run_id, new_id(), ""):
            with self.refuses("get-run", f"get_run({unknown!r})", RunNotFound):
                self.store.get_run(unknown)

    def test_list_resumable_lists_runs_without_a_live_owner(self) -> None:
        states = ("parked", "incomplete", "expired", "success", "failure", "compensation_failed")
        runs = {state: self._left(state, f"{self.key}-{state}") for state in states}
        runs["running"] = self.begin()
        runs["held"] = self._left("parked", f"{self.key}-held")
        self.store.hold(runs["held"].key)
        names = {owner.run_id: state for state, owner in runs.items()}
        for store in (self.store, self.other):
            records = store.list_resumable({self.workflow, "another"})
            seen = {names.get(record.run_id, "a run of others") for record in records}
            assert seen == {"parked", "incomplete", "expired"}, broken("list-resumable", seen)
            began = [record.started for record in records]
            assert began == sorted(began), broken("list-resumable", f"not the oldest first: {began}")
            heads = {(record.key, record.workflow, record.graph) for record in records}
            expected = {(runs[state].key, self.workflow, "graph") for state in ("parked", "incomplete", "expired")}
            assert heads == expected, broken("list-resumable", heads)
        assert self.store.list_resumable([]) == [], broken("list-resumable", "no workflows at all")
        assert self.store.list_resumable([self.workflow + "x"]) == [], broken("list-resumable", "another workflow's")
        self.take_over(runs["parked"].key)
        assert not self.is_listed(runs["parked"]), broken("list-resumable", "a run that was taken over")

    def test_runs_are_listed_by_status(self) -> None:
        states = ("success", "failure", "compensated", "incomplete", "parked", "compensation_failed")
        keys = {state: self._left(state, f"{self.key}-{state}").key for state in states}
        keys["running"] = self.begin().key
        keys["expired"] = self._left("expired", f"{self.key}-expired").key
        expected = {state: {key} for state, key in keys.items()}
        expected["held"] = {keys["compensation_failed"]}
        expected["running"] = {keys["running"], keys["expired"]}
        for status, those in expected.items():
            seen = {record.key for record in self.store.list_runs(status=status, workflow=self.workflow)}
            assert seen == those, broken("list-runs", f"status={status!r}: {seen}")
        seen = {record.key for record in self.other.list_runs(workflow=self.workflow)}
        assert seen == set(keys.values()), broken("list-runs", seen)

    def test_runs_are_listed_by_workflow_and_age(self) -> None:
        owner, other = self.begin(), self.begin(self.key + "-other", workflow=self.workflow + "-other")

        def listed(**query: Any) -> set[str]:
            mine = {owner.key, other.key}
            return {record.key for record in self.store.list_runs(**query)} & mine

        assert listed() == {owner.key, other.key}, broken("list-runs", "without any filter")
        assert listed(workflow=self.workflow) == {owner.key}, broken("list-runs", "workflow=")
        assert listed(older_than=LONG) == set(), broken("list-runs", f"older_than={LONG}, of runs just begun")
        assert listed(older_than=0, status="success") == set(), broken("list-runs", "older_than=0, status='success'")
        self.until(
            lambda: listed(older_than=0.01) == {owner.key, other.key}, "list-runs", "older_than=0.01 did not list"
        )

    def test_runs_that_are_not_over_are_counted_once(self) -> None:
        states = ("success", "failure", "parked", "incomplete", "expired", "compensation_failed")
        keys = {state: self._left(state, f"{self.key}-{state}").key for state in states}
        self.begin()
        expected: dict[str, int] = dict.fromkeys(("running", "parked", "incomplete", "expired", "held"), 1)
        self._counts_are(expected)
        self.store.hold(keys["expired"])
        self._counts_are(expected | {"expired": 0, "held": 2})
        for state in ("expired", "compensation_failed"):
            self.store.resume(keys[state])
        self._counts_are(expected | {"expired": 0, "held": 0, "parked": 3})
        self.take_over(keys["parked"])
        self.store.release(keys["incomplete"])
        self._counts_are({"running": 2, "parked": 2})

    def _counts_are(self, expected: Mapping[str, int]) -> None:
        counts = {
            status: number for (workflow, status), number in self.other.counts().items() if workflow == self.workflow
        }
        assert counts == {status: number for status, number in expected.items() if number}, broken("counts", counts)

    def test_listed_records_tell_how_it_stands(self) -> None:
        self._left("parked")
        (listed,) = self.store.list_runs(status="parked", workflow=self.workflow)
        assert (listed.key, listed.failed_step) == (self.key, "b"), broken("list-runs", listed)

    def test_a_store_tells_about_itself(self) -> None:
        store = self.store
        assert isinstance(store.name, str), broken("about-itself", store.name)
        assert store.name.isidentifier(), broken("about-itself", store.name)
        assert isinstance(store.durable, bool), broken("about-itself", store.durable)
        assert isinstance(store.blocks, bool), broken("about-itself", store.blocks)
        report = store.doctor()
        assert report, broken("about-itself", "doctor returned nothing")
        assert all(isinstance(name, str) for name in report), broken("about-itself", report)
        assert all(isinstance(what, str | int | float) for what in report.values()), broken("about-itself", report)
        assert isinstance(store.gc(), int), broken("about-itself", "gc")

    # -- decisions -----------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("verb", VERBS)
    def test_an_unknown_key_is_not_found(self, verb: str) -> None:
        with self.refuses("not-found", verb, RunNotFound):
            getattr(self.store, verb)(self.key)
        assert self.store.find(self.key) is None, broken("not-found", "a record came from nothing")

    @pytest.mark.parametrize("verb", VERBS)
    def test_a_run_in_progress_is_left_alone(self, verb: str) -> None:
        self.begin()
        if verb == "undo":  # Its owner gets the decision; the next test checks that.
            return
        with self.unchanged("not-while-running"), self.refuses("not-while-running", verb):
            getattr(self.store, verb)(self.key)

    @pytest.mark.parametrize("verb", ["undo", "cancel"])
    def test_the_owner_of_a_run_learns_of_a_decision(self, verb: str) -> None:
        owner = self.begin()
        getattr(self.store, verb)(self.key)
        order = STOPS[verb]
        for _ in range(2):
            assert self.store.renew([owner.lease], LONG) == [order], broken(
                "order", f"a renewal does not return {verb}"
            )
            assert self.store.checkpoint(owner.says()) is order, broken("order", f"a checkpoint does not return {verb}")
        assert self.record().decision == verb, broken("order", self.record().decision)
        assert self.store.checkpoint(owner.says(undoing=True)) is None, broken("order", "the owner is undoing already")
        assert self.record().decision is None, broken(
            "decision-is-heard", f"{self.record().decision}, after it began to undo"
        )
        assert self.store.renew([owner.lease], LONG) == [Renewal.OURS], broken("decision-is-heard", "again")

    @pytest.mark.parametrize("how", ["withdrawn", "given up", "failed", "erased"])
    def test_a_claim_once_is_answered_with_an_outcome_only(self, how: str) -> None:
        owner = self.begin()
        if how == "withdrawn":
            self.store.withdraw(owner.claim)
        elif how == "given up":
            self.expire(owner)
            self.store.release(self.key)
        else:
            ending = owner.ending(Status.FAILURE)
            ending.record.error = ValueError("no")
            assert self.store.finish(ending) is None, broken("claim-once", "its end is refused")
        if how == "erased":
            self.store.erase(self.key)
        answer = self.store.claim(self.request(once=True))
        wanted: type[object] = Claimed if how in {"withdrawn", "given up"} else Finished
        assert isinstance(answer, wanted), broken("claim-once", f"{how}: {answer}")
        if how == "failed":
            answer = self.store.claim(self.request(once=True, fingerprint="other"))
            assert isinstance(answer, Mismatch), broken("claim-once", f"other initial values: {answer}")

    @pytest.mark.parametrize(
        "state", ["success", "failure", "compensation_failed", "incomplete", "parked", "expired", "held"]
    )
    def test_release_frees_the_key(self, state: str) -> None:
        owner = self._left("parked" if state == "held" else state)
        if state == "held":
            self.store.hold(self.key)
        before = self.record()
        record = before
        for _ in range(2):
            self.store.release(self.key)
            record = self.record()
            seen = (record.status, record.held, record.decision, record.expires, record.finished is not None)
            assert seen == (Status.FAILURE, False, None, None, True), broken("release", seen)
            assert record.fence > before.fence, broken("release", f"the fence is {record.fence}, was {before.fence}")
        assert not self.is_listed(owner), broken("release", "list_resumable lists it")
        again = self.begin(fingerprint="other", graph="other")
        assert again.answer.generation == 1, broken("release", again.answer)
        assert again.fence > record.fence, broken("fence-rises", again.answer)

    @pytest.mark.parametrize("state", ["success", "parked", "compensation_failed"])
    def test_forced_release_does_as_release_where_no_force_is_needed(self, state: str) -> None:
        self._left(state)
        self.store.release(self.key, force=True)
        assert self.begin().answer.generation == 1, broken("release", "force=True")

    def _erased(self, status: Status, old: RunRecord) -> None:
        for store in (self.store, self.other):
            record = store.find(self.key)
            assert record is not None, broken("erase", "the record is gone")
            left = (record.status, record.held, record.key, record.run_id, record.workflow, record.graph)
            assert left == (status, False, old.key, old.run_id, old.workflow, old.graph), broken("erase", left)
            assert record.fence >= old.fence, broken("fence-rises", f"{record.fence} after {old.fence}")
            assert record.generation == old.generation, broken("erase", f"the generation is {record.generation}")
            put_in = (record.values, record.results, record.steps, record.carrier, record.carriers, record.undone)
            assert not any(put_in), broken("erase", put_in)
            texts = (record.error, record.reason, record.failed_step, record.fingerprint)
            assert texts == (None,) * 4, broken("erase", texts)

    @pytest.mark.parametrize("state", ["success", "failure", "compensated"])
    def test_erase_forgets_what_users_put_in(self, state: str) -> None:
        owner = self.begin(values={"card": "4111"}, carrier={"baggage": "who"})
        owner.saves({"a": done("A", carrier={"baggage": "who"})}, {"b": wrote("B")})
        owner.ends(Status(state), failed_step="b", error=ValueError("card 4111"), undone=("a",))
        old = self.record()
        for _ in range(2):
            self.store.erase(self.key)
            self._erased(Status(state), old)
        answer = self.store.claim(self.request())
        if state == "success":
            assert isinstance(answer, Mismatch), broken("erase", answer)
            assert answer.erased, broken("erase", answer)
            self.store.release(self.key)
            answer = self.store.claim(self.request())
        assert isinstance(answer, Claimed), broken("erase", answer)
        assert (answer.generation, answer.record) == (1, None), broken("erase", answer)
        assert answer.fence > old.fence, broken("fence-rises", answer)

    @pytest.mark.parametrize("state", ["running", "parked", "incomplete", "compensation_failed", "held", "expired"])
    def test_a_run_that_is_not_over_is_erased_by_force_only(self, state: str) -> None:
        owner = self.begin() if state == "running" else self._left("success" if state == "held" else state)
        if state == "held":
            self.store.hold(self.key)
        old = self.record()
        with self.unchanged("erase"), self.refuses("erase", "erase"):
            self.store.erase(self.key)
        self.store.erase(self.key, force=True)
        self._erased(Status.FAILURE, old)
        assert not self.is_listed(owner), broken("erase", "list_resumable lists it")
        if state in {"running", "expired"}:
            assert self.store.finish(owner.ending(Status.SUCCESS)) == Lost(), broken("erase", "its owner's ending")
        assert self.begin(fingerprint="other").answer.generation == 1, broken("erase", "the key is not free")

    def test_an_erased_run_is_forgotten_too(self) -> None:
        store = self.forgetful(0.05)
        self._left("success")
        store.erase(self.key)
        self.until(lambda: store.gc() >= 0 and store.find(self.key) is None, "retention", "it was not forgotten")

    def test_a_forced_release_stops_the_owner(self) -> None:
        owner = self.begin()
        self.store.release(self.key, force=True)
        with self.unchanged():
            assert self.store.checkpoint(owner.says({"a": done()})) == Lost(), broken(
                "release", "its owner's checkpoint"
            )
            assert self.store.finish(owner.ending(Status.SUCCESS)) == Lost(), broken("release", "its owner's ending")
            assert self.store.renew([owner.lease], LONG) == [Renewal.LOST], broken("release", "its owner's lease")
        new = self.begin()
        with self.unchanged():
            assert self.store.finish(owner.ending(Status.SUCCESS)) == Lost(), broken("release", "its owner's ending")
        assert new.fence > owner.fence, broken("fence-rises", new.answer)

    @pytest.mark.parametrize("state", ["success", "failure", "incomplete", "parked", "compensation_failed", "expired"])
    def test_a_held_key_stays_held_until_a_decision(self, state: str) -> None:
        owner = self._left(state)
        for _ in range(2):
            self.store.hold(self.key)
            assert self.record().held, broken("hold", "it is not held")
        assert self.record().expires is None, broken("hold", f"its lease ends at {self.record().expires}")
        self.refused(Held, "claim-held")
        self.refused(Held, "claim-held", fingerprint=None)
        self.refused(Finished, "claim-attached", attached=owner.run_id)
        assert not self.is_listed(owner), broken("list-resumable", "a held run")

    @pytest.mark.parametrize("decision", DECISIONS)
    @pytest.mark.parametrize("state", ["incomplete", "parked", "compensation_failed", "expired", "held"])
    def test_the_next_owner_gets_the_decision(self, state: str, decision: str) -> None:
        owner = self._left("success" if state == "held" else state)
        if state == "held":
            self.store.hold(self.key)
        record = self.record()
        before = snapshot(record)
        status = Status.INCOMPLETE if state == "incomplete" else Status.PARKED
        for _ in range(2):
            getattr(self.store, decision)(self.key)
            record = self.record()
            seen = (record.status, record.held, record.decision, record.expires)
            assert seen == (status, False, decision, None), broken("decide", seen)
        expected = {name: before[name] for name in ("run_id", "results", "values", "steps", "effects", "generation")}
        self.same(snapshot(record), expected, "decide")
        assert self.is_listed(owner), broken("decide", "list_resumable does not list it")
        new = self.take_over()
        assert new.answer.record is not None, broken("claim-takeover", new.answer)
        got = (new.run_id, new.answer.record.decision, new.answer.record.status)
        assert got == (owner.run_id, decision, record.status), broken("decide", got)
        assert new.fence > max(owner.fence, record.fence), broken("fence-rises", new.answer)

    def test_the_last_decision_counts(self) -> None:
        self._left("parked")
        self.store.undo(self.key)
        self.store.resume(self.key)
        assert self.record().decision == "resume", broken("decide", self.record().decision)

    @pytest.mark.parametrize("how", ["a checkpoint", "its ending"])
    def test_a_decision_is_remembered_until_its_owner_shows_that_it_has_it(self, how: str) -> None:
        self._left("parked")
        self.store.undo(self.key)
        self.expire(self.take_over())  # This owner dies without a checkpoint.
        owner = self.take_over()
        record = owner.answer.record
        assert record is not None, broken("claim-takeover", owner.answer)
        assert record.decision == "undo", broken(
            "decision-is-heard", f"{record.decision}, though no owner knows it yet"
        )
        again = self.store.claim(owner.claim)
        assert isinstance(again, Claimed), broken("claim-again", again)
        assert again.record is not None, broken("claim-again", again)
        assert again.record.decision == "undo", broken(
            "decision-is-heard", f"{again.record.decision}, for the claim again"
        )
        if how == "a checkpoint":
            owner.saves(undoing=True)
            assert self.record().decision is None, broken("decision-is-heard", "it stays after a checkpoint")
            self.expire(owner)
        else:
            owner.ends(Status.PARKED)
        record = self.take_over().answer.record
        assert record is not None, broken("claim-takeover")
        assert record.decision is None, broken("decision-is-heard", f"{record.decision} again, after {how}")

    @pytest.mark.parametrize("decision", DECISIONS)
    @pytest.mark.parametrize("state", ENDED)
    def test_there_is_nothing_to_decide_on_a_run_that_is_over(self, state: str, decision: str) -> None:
        self._left(state)
        if (state, decision) == ("failure", "resume"):  # Nothing was undone, so the run may be resumed.
            return
        with self.unchanged("decide"), self.refuses("decide", f"{decision} after {state}"):
            getattr(self.store, decision)(self.key)

    def test_a_run_that_has_failed_with_nothing_undone_is_not_undoing(self) -> None:
        owner = self.begin()
        owner.saves({"a": done("A")}, undoing=True, failed_step="b", error=ValueError("no"))
        owner.ends(Status.FAILURE, undoing=True, failed_step="b", error=ValueError("no"))
        assert not self.record().undoing, broken("undoing-stays", "after the end")
        self.store.resume(self.key)
        taken = self.take_over().answer.record
        assert taken is not None, broken("claim-takeover")
        assert not taken.undoing, broken("undoing-stays", "the next owner is to undo it")

    @pytest.mark.parametrize("verb", ["hold", *DECISIONS])
    def test_an_operator_shuts_out_an_owner_whose_lease_is_over(self, verb: str) -> None:
        owner = self._left("expired")
        getattr(self.store, verb)(self.key)
        with self.unchanged("operators-fence"):
            assert self.store.checkpoint(owner.says({"b": done()})) == Lost(), broken("operators-fence", "a checkpoint")
            assert self.store.finish(owner.ending(Status.SUCCESS)) == Lost(), broken("operators-fence", "an ending")
            assert self.store.renew([owner.lease], LONG) == [Renewal.LOST], broken("operators-fence", "a lease")
            self.store.withdraw(owner.claim)
            again = self.store.claim(owner.claim)
            assert not isinstance(again, Claimed), broken("operators-fence", again)

    # -- retention -----------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("state", ENDED)
    def test_an_ended_run_is_forgotten_after_its_retention(self, state: str) -> None:
        store = self.forgetful(0.05)
        owner = self._left(state)
        last = self.record().fence
        self.until(lambda: store.gc() >= 0 and store.find(self.key) is None, "retention", f"{state} was not forgotten")
        store.gc()  # The retention may have ended between gc() and find().
        with self.refuses("retention", "get_run of a run that was forgotten", RunNotFound):
            store.get_run(owner.run_id)
        assert store.list_runs(workflow=self.workflow) == [], broken("retention", "list_runs still lists it")
        late = owner.says({"b": done()})
        assert store.checkpoint(late) == Lost(gone=True), broken("lost", "a checkpoint of a run that was forgotten")
        again = self.begin(fingerprint="other")
        assert again.answer.generation == 0, broken("retention", again.answer)
        if store.durable:
            assert again.fence > last, broken("fence-rises", f"{again.fence} after {last}, which was forgotten")

    def test_a_released_run_is_forgotten_too(self) -> None:
        store = self.forgetful(0.05)
        self._left("parked")
        store.release(self.key)
        self.until(lambda: store.gc() >= 0 and store.find(self.key) is None, "retention", "it was not forgotten")

    @pytest.mark.parametrize(
        "state", ["running", "expired", "parked", "incomplete", "compensation_failed", "held", "undo"]
    )
    def test_a_resumable_run_is_never_forgotten(self, state: str) -> None:
        store = self.forgetful(0.05)
        other = self._left("success", self.key + "-other")
        match state:
            case "running":
                self.begin()
            case "held" | "undo":
                self._left("success")
                store.hold(self.key)
                if state == "undo":
                    store.undo(self.key)
            case _:
                self._left(state)
        self.until(lambda: store.gc() >= 0 and store.find(other.key) is None, "retention", "success was not forgotten")
        self.advance(0.05)
        store.gc()
        kept = store.find(self.key)
        assert kept is not None, broken("retention", f"a run that is {state} was forgotten")
        assert self.store.get_run(kept.run_id).key == self.key, broken("retention", f"get_run has forgotten {state}")
