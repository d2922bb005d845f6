"""Tests of the verbs that an owner sends: checkpoint, renew, finish and withdraw."""
# ruff: noqa: S101 - these are tests

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from ...run import StepReport
from ...status import Status
from ...stores.base import Busy, Checkpoint, Claimed, Finished, Lease, Lost, Owner, Renewal, StepRecord, Write
from .model import snapshot
from .rules import broken
from .suite import LONG, SHORT, Suite, done, gone, in_flight, wrote

__all__ = ["WriteRules"]

WAITS = (StepReport(Status.WAITING), StepReport(Status.WAITING, until=2.0), StepReport(Status.TIMEOUT, until=2.0))
"""a wait without a limit, one with a limit, and one that is closed: none of them has ended"""
ENDS = ("success", "failure", "compensated", "compensation_failed", "incomplete", "parked")


class WriteRules(Suite):
    """The tests of checkpoint, renew, finish and withdraw."""

    # -- checkpoint ----------------------------------------------------------------------------------------------------

    def test_a_checkpoint_is_recorded(self) -> None:
        owner = self.begin(begins=("a",))
        owner.saves(
            {"a": done({"seat": 7}, carrier={"traceparent": "00-a"}), "b": in_flight(2)},
            {"x": wrote([1, 2]), "new": wrote(None)},
        )
        record = self.record()
        assert dict(record.results) == {"a": {"seat": 7}}, broken("results", record.results)
        assert dict(record.values) == {"x": [1, 2], "y": "two", "new": None}, broken("values", record.values)
        reports = {name: (report.status, report.attempts) for name, report in record.steps.items()}
        assert reports == {"a": (Status.SUCCESS, 1), "b": (Status.RUNNING, 2)}, broken("steps", reports)
        assert tuple(record.effects) == ("a", "b"), broken("effects", record.effects)
        assert record.carriers["a"] == {"traceparent": "00-a"}, broken("carriers", record.carriers)
        assert record.seq == owner.seq, broken("seq", f"{record.seq}, though {owner.seq} was sent")
        assert record.status == Status.RUNNING, broken("checkpoint-renews", f"the run is {record.status}")

    def test_the_next_owner_gets_all_of_it(self) -> None:
        old = self.begin(begins=("a",))
        old.saves({"a": done(1), "b": in_flight()}, {"x": wrote(2), "y": gone()})
        self.expire(old)
        record = self.take_over().answer.record
        assert record is not None, broken("claim-takeover")
        seen = (dict(record.results), dict(record.values), tuple(record.effects), record.seq)
        assert seen == ({"a": 1}, {"x": 2}, ("a", "b"), old.seq), broken("claim-takeover", seen)

    def test_results_come_in_the_order_in_which_steps_ended(self) -> None:
        owner = self.begin(begins=("a",))
        owner.saves({"b": in_flight(), "c": in_flight()}, {})
        owner.saves({"c": done(3)})
        owner.saves({"a": done(1, effect=False)})
        owner.ends(Status.INCOMPLETE, {"b": done(2)})
        seen = (list(self.record().results.items()), tuple(self.record().effects))
        assert seen[0] == [("c", 3), ("a", 1), ("b", 2)], broken("results", seen[0])
        assert seen[1] == ("c", "b"), broken("effects", seen[1])

    def test_results_are_in_the_order_of_seq_not_of_arrival(self) -> None:
        owner = self.begin()
        first, second, third = (owner.says({name: done(name)}) for name in "abc")
        for sent in (third, first, second):
            assert self.store.checkpoint(sent) is None, broken("lost", sent)
        assert list(self.record().results) == ["a", "b", "c"], broken("results", self.record().results)
        assert tuple(self.record().effects) == ("a", "b", "c"), broken("effects", self.record().effects)

    def test_steps_in_flight_come_last_among_the_effects(self) -> None:
        owner = self.begin()
        owner.saves({"a": in_flight(), "b": done("B"), "c": done("C", effect=False)})
        owner.saves({"d": done("D")})
        assert tuple(self.record().effects) == ("b", "d", "a"), broken("effects", self.record().effects)

    def test_of_each_step_the_highest_number_stays(self) -> None:
        owner = self.begin()
        late, new = owner.says({"a": in_flight()}), owner.says({"a": done("new")})
        assert self.store.checkpoint(new) is None, broken("lost", new)
        with self.unchanged("highest-seq-wins", but_lease=True):
            assert self.store.checkpoint(late) is None, broken("highest-seq-wins", "a late copy is not an error")

    def test_of_each_key_the_highest_number_stays(self) -> None:
        owner = self.begin()
        late, new = (
            owner.says(writes={"x": wrote("late"), "y": gone()}),
            owner.says(writes={"x": gone(), "y": wrote("new")}),
        )
        assert self.store.checkpoint(new) is None, broken("lost", new)
        with self.unchanged("highest-seq-wins", but_lease=True):
            assert self.store.checkpoint(late) is None, broken("highest-seq-wins", "a late copy is not an error")
        assert dict(self.record().values) == {"y": "new"}, broken("highest-seq-wins", self.record().values)

    def test_a_late_copy_lowers_no_number(self) -> None:
        owner = self.begin()
        late, new = owner.says({"a": done("late")}), owner.says({"b": done("new")})
        assert self.store.checkpoint(new) is None, broken("lost", new)
        assert self.store.checkpoint(late) is None, broken("highest-seq-wins", "a late copy is not an error")
        after = replace(owner.says({"c": done("after")}), base=new.steps["b"].seq)
        answer = self.store.checkpoint(after)
        assert answer is None, broken("seq", f"{answer}, though the record has had all numbers up to {after.base}")

    def test_each_field_has_a_number_of_its_own(self) -> None:
        owner = self.begin()
        owner.saves({"a": done("new")}, {"x": wrote("new")})
        late = Checkpoint(owner.key, owner.run_id, owner.fence, LONG)
        late.steps = {"a": StepRecord(1, StepReport(Status.RUNNING, 1)), "b": replace(done("b"), seq=1)}
        late.writes = {"x": Write(1, "late"), "z": Write(1, "z")}
        owner.saves({"c": done("c")})
        assert self.store.checkpoint(late) is None, broken("lost", late)
        record = self.record()
        assert dict(record.results) == {"b": "b", "a": "new", "c": "c"}, broken("highest-seq-wins", record.results)
        expected = {"x": "new", "y": "two", "z": "z"}
        assert dict(record.values) == expected, broken("highest-seq-wins", record.values)

    def test_an_equal_number_changes_nothing(self) -> None:
        owner = self.begin()
        sent = owner.saves({"a": done("first")}, {"x": wrote("first")})
        again = replace(
            sent,
            steps={name: replace(step, result="second") for name, step in sent.steps.items()},
            writes={key: replace(write, value="second") for key, write in sent.writes.items()},
        )
        with self.unchanged("highest-seq-wins", but_lease=True):
            assert self.store.checkpoint(again) is None, broken("highest-seq-wins", "a late copy is not an error")

    def test_the_numbers_go_on_over_a_takeover(self) -> None:
        old = self.begin()
        old.saves({"a": done(1)}, {"x": wrote(1)})
        self.expire(old)
        new = self.take_over()
        assert new.seq == old.seq, broken("seq", f"the new owner gets {new.seq}, the old one had sent {old.seq}")
        new.saves({"b": done(2)}, {"x": wrote(2)})
        record = self.record()
        assert list(record.results) == ["a", "b"], broken("results", record.results)
        assert record.values["x"] == 2, broken("values", record.values)

    def test_a_deleted_key_may_be_written_again(self) -> None:
        owner = self.begin()
        owner.saves(writes={"x": gone(), "y": gone()})
        assert dict(self.record().values) == {}, broken("values", self.record().values)
        owner.saves(writes={"x": wrote("back")})
        assert dict(self.record().values) == {"x": "back"}, broken("values", self.record().values)

    def test_a_step_that_failed_has_no_result(self) -> None:
        owner = self.begin()
        owner.saves({"a": done("A")})
        report = StepReport(Status.TIMEOUT, 3, waited=0.25, ran=1.5, backed_off=0.5, error=ValueError("too late"))
        report.attempt_times = ((1_700_000_000.25, 1_700_000_000.5), (1_700_000_001.0, 1_700_000_001.5))
        owner.saves({"b": StepRecord(0, report, effect=True)})
        record = self.record()
        assert dict(record.results) == {"a": "A"}, broken("results", record.results)
        assert tuple(record.effects) == ("a", "b"), broken("effects", record.effects)
        seen = snapshot(record)["steps"]["b"]
        expected = ("timeout", 3, 0.25, 1.5, 0.5, ("ValueError", "too late"), *[None] * 6, report.attempt_times)
        assert seen == expected, broken("steps", seen)

    def test_an_undone_step_is_no_effect_any_more(self) -> None:
        owner = self.begin()
        owner.saves({"a": done("A"), "b": done("B")})
        failed = StepReport(Status.SUCCESS, 1, undo=Status.FAILURE, undo_error=ValueError("no"))
        failed.undo_started, failed.undo_finished = 1_700_000_000.25, 1_700_000_001.5
        failed.completed_late, failed.completed_late_at = Status.SUCCESS, 1_700_000_002.0
        undone = StepReport(Status.SUCCESS, 1, undo=Status.SUCCESS)
        owner.saves({"b": StepRecord(0, undone, True, "B"), "a": StepRecord(0, failed, True, "A", effect=True)})
        seen = snapshot(self.record())
        assert seen["effects"] == ("a",), broken("effects", seen["effects"])
        assert dict(seen["results"]) == {"a": "A", "b": "B"}, broken("results", seen["results"])
        times = (1_700_000_000.25, 1_700_000_001.5)
        late = ("success", 1_700_000_002.0)
        expected = ("success", 1, *[None] * 4, ("ValueError", "no"), "failure", *times, *late, ())
        assert seen["steps"]["a"] == expected, broken("steps", seen["steps"]["a"])

    def test_a_checkpoint_renews_the_lease_also_one_that_is_over(self) -> None:
        owner = self.begin(lease=SHORT)
        self.expired(self.key)
        owner.saves()
        self.refused(Busy, "checkpoint-renews")
        owner.saves(lease=SHORT)
        self.expired(self.key)

    def test_undoing_stays_and_so_does_what_failed(self) -> None:
        owner = self.begin()
        owner.saves(undoing=True, failed_step="a", error=ValueError("no"))
        for _ in range(2):
            record = self.record()
            assert record.undoing, broken("undoing-stays")
            seen = (record.failed_step, snapshot(record)["error"])
            assert seen == ("a", ("ValueError", "no")), broken("undoing-stays", seen)
            owner.saves({"b": done()})
        self.expire(owner)
        taken = self.take_over().answer.record
        assert taken is not None, broken("claim-takeover")
        assert taken.undoing, broken("undoing-stays", "the next owner does not get it")

    # -- lost runs -----------------------------------------------------------------------------------------------------

    def test_an_owner_that_was_taken_over_is_lost(self) -> None:
        old = self.begin()
        self.expire(old)
        new = self.take_over()
        with self.unchanged():
            assert self.store.checkpoint(old.says({"a": done()})) == Lost(), broken("lost", "after a takeover")
            assert self.store.finish(old.ending(Status.SUCCESS)) == Lost(), broken("lost", "after a takeover")
            assert self.store.renew([old.lease], LONG) == [Renewal.LOST], broken("renew", "after a takeover")
        assert self.store.renew([new.lease], LONG) == [Renewal.OURS], broken("renew", "of the new owner")

    @pytest.mark.parametrize("wrong", ["fence below", "fence above", "run id"])
    def test_a_wrong_run_or_fence_is_lost(self, wrong: str) -> None:
        self.begin().ends(Status.FAILURE)
        owner = self.begin()
        sent, ending = owner.says({"a": done()}), owner.ending(Status.SUCCESS)
        match wrong:
            case "run id":
                sent.run_id = ending.record.run_id = "another"
            case _:
                sent.fence = ending.record.fence = owner.fence + (1 if wrong == "fence above" else -1)
        with self.unchanged():
            assert self.store.checkpoint(sent) == Lost(), broken("lost", f"a checkpoint with a wrong {wrong}")
            assert self.store.finish(ending) == Lost(), broken("lost", f"an ending with a wrong {wrong}")
            assert self.store.renew([Lease(sent.key, sent.run_id, sent.fence)], SHORT) == [Renewal.LOST], broken(
                "renew", wrong
            )

    def test_where_there_is_no_record_it_is_gone(self) -> None:
        owner = self.begin()
        sent, ending = owner.says({"a": done()}), owner.ending(Status.SUCCESS)
        sent.key = ending.record.key = self.key + "-gone"
        assert self.store.checkpoint(sent) == Lost(gone=True), broken("lost", "without a record")
        assert self.store.finish(ending) == Lost(gone=True), broken("lost", "without a record")
        assert self.store.renew([Lease(sent.key, sent.run_id, sent.fence)], LONG) == [Renewal.LOST], broken(
            "renew", "nothing"
        )
        assert self.store.find(sent.key) is None, broken("nothing-is-written", "a record came from nothing")

    # -- renew ---------------------------------------------------------------------------------------------------------

    def test_renew_answers_for_each_lease_in_order(self) -> None:
        mine, ended, lost = self.begin(), self.begin(self.key + "-ended"), self.begin(self.key + "-lost")
        ended.ends(Status.SUCCESS)
        self.expire(lost)
        self.take_over(lost.key)
        leases = [lost.lease, mine.lease, ended.lease, Lease(self.key + "-no", "no", 1), replace(mine.lease, fence=-1)]
        seen = self.store.renew(leases, LONG)
        assert seen == [Renewal.LOST, Renewal.OURS, *[Renewal.LOST] * 3], broken("renew", seen)
        assert self.store.renew([], LONG) == [], broken("renew", "no leases at all")

    def test_renew_renews_also_a_lease_that_is_over(self) -> None:
        owner = self.begin(lease=SHORT)
        self.expired(self.key)
        assert self.store.renew([owner.lease], LONG) == [Renewal.OURS], broken("renew", "a lease that is over")
        self.refused(Busy, "renew")
        expires = self.record().expires
        assert expires is not None, broken("renew", "expires is None")
        assert expires - self.record().started > LONG - 1, broken("renew", f"the lease ends at {expires}")

    def test_renew_changes_nothing_else(self) -> None:
        owner = self.begin()
        owner.saves({"a": done()}, {"x": gone()})
        with self.unchanged(but_lease=True):
            self.store.renew([owner.lease], 2 * LONG)

    # -- finish --------------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("status", ENDS)
    def test_an_ending_is_recorded(self, status: str) -> None:
        owner = self.begin(begins=("a",))
        owner.saves({"a": done("A")})
        held = status == Status.COMPENSATION_FAILED
        failed: dict[str, Any] = {}
        if status != Status.SUCCESS:
            failed = {"failed_step": "b", "error": ValueError("no"), "undone": ("a",)}
        owner.ends(Status(status), {"b": done("B", carrier={"c": "d"})}, {"x": wrote(2)}, held=held, **failed)
        record = self.record()
        seen = (record.status, record.held, record.failed_step, tuple(record.undone))
        assert seen == (status, held, failed.get("failed_step"), failed.get("undone", ())), broken("finish", seen)
        assert record.expires is None, broken("finish", f"its lease still ends at {record.expires}")
        assert record.finished is not None, broken("finish", "it has not finished")
        assert record.finished >= record.started, broken("finish", f"{record.started} to {record.finished}")
        assert snapshot(record)["error"] == (("ValueError", "no") if failed else None), broken("errors", record.error)
        changes = (dict(record.results), record.values["x"], record.carriers.get("b"), record.seq)
        assert changes == ({"a": "A", "b": "B"}, 2, {"c": "d"}, owner.seq), broken("finish", changes)

    @pytest.mark.parametrize("how", ["checkpoint", *ENDS])
    def test_the_end_of_a_step_has_takeovers_count_from_0(self, how: str) -> None:
        self.expire(self.begin(begins=("a",)))
        owner = self.take_over()
        assert self.record().takeovers == 1, broken("takeovers", self.record().takeovers)
        if how == "checkpoint":
            for report in (in_flight().report, *WAITS):
                owner.saves({"b": StepRecord(0, report)})
                assert self.record().takeovers == 1, broken("takeovers", f"no step has ended, b is {report.status}")
            owner.saves({"a": done()})
        else:
            owner.ends(Status(how), {"a": done()}, held=how == Status.COMPENSATION_FAILED)
        assert self.record().takeovers == 0, broken("takeovers", f"after a step that ended: {self.record().takeovers}")

    @pytest.mark.parametrize("status", ENDS)
    def test_the_record_names_the_owner_before_the_present_one(self, status: str) -> None:
        first, second = Owner("one", 1), Owner("two", 2)
        self.expire(self.begin(owner=first))
        assert self.record().previous_owner is None, broken("previous-owner", self.record().previous_owner)
        owner = self.take_over(owner=second)
        for ended in (False, True):
            if ended:
                owner.ends(Status(status), {"a": done()}, held=status == Status.COMPENSATION_FAILED)
            record = self.record()
            owners = [None if one is None else (one.host, one.pid) for one in (record.previous_owner, record.owner)]
            assert owners == [("one", 1), ("two", 2)], broken("previous-owner", f"ended: {ended}, {owners}")

    @pytest.mark.parametrize("status", ENDS)
    @pytest.mark.parametrize("again", ["success", "failure", "parked"])
    def test_a_second_ending_is_a_late_copy(self, status: str, again: str) -> None:
        owner = self.begin()
        ending = owner.ends(Status(status), held=status == Status.COMPENSATION_FAILED)
        with self.unchanged("late-after-the-end"):
            assert self.store.finish(ending) is None, broken("late-after-the-end", "the same ending again")
            other = owner.ending(Status(again), {"z": done()}, {"x": gone()})
            assert self.store.finish(other) is None, broken("late-after-the-end", "another ending")
            assert self.store.checkpoint(owner.says({"z": done()})) is None, broken(
                "late-after-the-end", "a checkpoint"
            )
            assert self.store.renew([owner.lease], LONG) == [Renewal.LOST], broken("renew", "a run that is over")

    def test_an_owner_whose_lease_is_over_may_still_finish(self) -> None:
        owner = self.begin(lease=SHORT)
        self.expired(self.key)
        assert self.store.finish(owner.ending(Status.SUCCESS)) is None, broken("finish-late")
        assert self.record().status == Status.SUCCESS, broken("finish-late", self.record().status)

    def test_changes_of_an_ending_go_by_their_numbers_too(self) -> None:
        owner = self.begin()
        late = owner.ending(Status.INCOMPLETE, {"a": in_flight()}, {"x": wrote("late")})
        owner.saves({"a": done("new")}, {"x": wrote("new")})
        assert self.store.finish(late) is None, broken("lost", "an ending")
        record = self.record()
        seen = (record.status, dict(record.results), record.values["x"])
        assert seen == (Status.INCOMPLETE, {"a": "new"}, "new"), broken("highest-seq-wins", seen)

    # -- withdraw ------------------------------------------------------------------------------------------------------

    def test_a_withdrawn_claim_releases_the_key(self) -> None:
        owner = self.begin(begins=("a",))
        self.store.withdraw(owner.claim)
        record = self.record()
        seen = (record.status, record.held, record.expires, record.finished is not None)
        assert seen == (Status.FAILURE, False, None, True), broken("withdraw-begun", seen)
        with self.unchanged():
            self.store.withdraw(owner.claim)
            assert self.store.checkpoint(owner.says({"a": done()})) == Lost(), broken("withdraw-begun", "to its owner")
            assert isinstance(self.store.claim(owner.claim), Finished), broken("claim-again-after-the-end", "withdrawn")
        again = self.begin()
        assert again.answer.generation == 1, broken("withdraw-begun", again.answer)
        assert again.fence > max(owner.fence, record.fence), broken("fence-rises", again.answer)

    @pytest.mark.parametrize("decision", [None, "resume", "undo"])
    def test_a_withdrawn_takeover_leaves_the_run_to_others(self, decision: str | None) -> None:
        self.begin().ends(Status.PARKED, {"a": done("A")})
        if decision is not None:
            getattr(self.store, decision)(self.key)
        taken = self.take_over()
        self.store.withdraw(taken.claim)
        assert self.is_listed(taken), broken("withdraw-takeover", "list_resumable does not list it")
        with self.unchanged("withdraw-takeover", but_lease=True):
            self.store.withdraw(taken.claim)
        new = self.take_over()
        record = new.answer.record
        assert record is not None, broken("claim-takeover", new.answer)
        assert record.decision == decision, broken(
            "decision-is-heard", f"{record.decision}, after a withdrawn takeover"
        )
        assert dict(record.results) == {"a": "A"}, broken("withdraw-takeover", record.results)
        assert new.fence > taken.fence, broken("fence-rises", new.answer)

    @pytest.mark.parametrize(
        "status", [Status.QUEUED, Status.RUNNING, Status.WAITING, Status.PARKED, Status.INCOMPLETE]
    )
    def test_a_run_is_as_before_once_its_takeover_is_withdrawn(self, status: Status) -> None:
        owner = self.begin(queued=status is Status.QUEUED)
        if status is Status.QUEUED:
            self.store.renew([owner.lease], SHORT)
            self.until(
                lambda: self.is_listed(owner), "time-passes", f"a queued run with a lease of {SHORT} s was not due"
            )
        elif status is Status.RUNNING:
            self.expire(owner)
        else:
            ending = owner.ending(status)
            ending.record.waiting_for, ending.record.reason = (
                ("w",) if status is Status.WAITING else (),
                "the shop is closed",
            )
            assert self.store.finish(ending) is None, broken("finish", status)
        before = self.record()
        for _ in range(2):
            taken = self.take_over()
            self.store.withdraw(taken.claim)
            assert self.is_listed(taken), broken("withdraw-takeover", f"{status}, list_resumable does not list it")
            record = self.record()
            for name in ("status", "takeovers", "waiting_for", "reason"):
                now, then = getattr(record, name), getattr(before, name)
                assert now == then, broken("withdraw-takeover", f"{name} is {now!r}, and was {then!r}")
        new = self.take_over().answer.record
        assert new is not None, broken("claim-takeover", "it began anew")
        assert (new.status, new.takeovers) == (status, status is Status.RUNNING), broken("withdraw-takeover", new)

    @pytest.mark.parametrize("status", ENDS)
    def test_a_withdrawal_after_the_end_changes_nothing(self, status: str) -> None:
        owner = self.begin()
        owner.ends(Status(status), held=status == Status.COMPENSATION_FAILED)
        with self.unchanged("withdraw-other"):
            self.store.withdraw(owner.claim)

    def test_a_withdrawal_of_what_was_not_granted_changes_nothing(self) -> None:
        self.begin()
        refused = self.request()
        with self.unchanged("withdraw-other"):
            assert isinstance(self.store.claim(refused), Busy), broken("claim-busy")
            self.store.withdraw(refused)
        self.store.withdraw(self.request(self.key + "-never"))
        assert self.store.find(self.key + "-never") is None, broken("withdraw-other", "a record came from nothing")

    def test_a_withdrawal_by_who_was_taken_over_changes_nothing(self) -> None:
        old = self.begin()
        self.expire(old)
        self.take_over()
        with self.unchanged("withdraw-other"):
            self.store.withdraw(old.claim)

    def test_records_of_a_run_in_progress_are_copies(self) -> None:
        owner = self.begin()
        found = [self.record()]
        owner.saves({"a": done()})
        found.append(self.record())
        before = [snapshot(record) for record in found]
        owner.saves({"b": done()}, {"x": gone()}, undoing=True)
        owner.ends(Status.FAILURE, failed_step="b")
        assert isinstance(self.store.claim(self.request()), Claimed), broken("claim-after-release")
        for record, then in zip(found, before, strict=True):
            self.same(snapshot(record), then, "records-are-copies")
