"""Tests of waits: values that are sent to a run, and runs that only wait."""
# ruff: noqa: S101 - these are tests

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, Final

import pytest

from ...errors import NotSerializable, RunNotFound, SendRefused
from ...run import StepReport
from ...status import Status
from ...stores.base import Arrived, Busy, Ending, OtherGraph, Renewal, StepRecord
from .model import snapshot
from .rules import broken
from .suite import Owner, Suite, done, in_flight

__all__ = ["WaitRules"]

GRAPH: Final = '[["a",[],0,0],["wait",["a"],0,0,"wait"],["more",["a"],0,0,"wait"],["nap",["a"],0,0,"sleep"]]'


def waits(until: float | None = None) -> StepRecord:
    """Return the record of a step that waits, for a checkpoint."""
    return StepRecord(0, StepReport(Status.WAITING, until=until))


class WaitRules(Suite):
    """The tests of runs with waits."""

    def _with_waits(self, **changes: Any) -> Owner:
        return self.begin(graph=GRAPH, **changes)

    def _suspended(self, seconds: float = math.inf, **changes: Any) -> Owner:
        """Return the owner of a run that only waits now."""
        owner = self._with_waits(**changes)
        owner.saves({"a": done("A"), "wait": waits()})
        answer = self.store.finish(self._waiting(owner, seconds))
        assert answer is None, broken("waits", answer)
        return owner

    def _waiting(self, owner: Owner, seconds: float = math.inf, received: int = 0, *names: str) -> Ending:
        ending = owner.ending(Status.WAITING)
        ending.record.waiting_for = names or ("wait",)
        return replace(ending, retry_in=seconds, received=received)

    def _send(self, value: Any, name: str = "wait", **options: Any) -> bool:
        return self.other.send(self.key, name, value, **options)

    def _is_due(self) -> bool:
        return any(record.key == self.key for record in self.store.list_resumable([self.workflow]))

    # -- sending -------------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("state", ["queued", "running", "waiting"])
    def test_a_value_is_kept_in_the_record(self, state: str) -> None:
        if state == "waiting":
            self._suspended()
        else:
            self._with_waits(queued=state == "queued")
        assert self._send({"by": ["Ann"]}, id="one", carrier={"traceparent": "00-1"}) is True, broken("send", "refused")
        record = self.record()
        assert "wait" in record.sent, broken("send", "the record does not have the value")
        sent = record.sent["wait"]
        assert (sent.value, sent.id, sent.carrier) == ({"by": ["Ann"]}, "one", {"traceparent": "00-1"}), broken(
            "send", sent
        )
        assert sent.host, broken("send", "the record does not say from which host")
        assert sent.pid, broken("send", "the record does not say from which process")
        assert sent.at >= record.started - 1, broken("send", f"at {sent.at}, of a run that began at {record.started}")
        head = self.store.head(self.key)
        assert head is not None, broken("find", None)
        assert (record.received, head.received) == (1, 1), broken(
            "send", f"received {record.received}, {head.received}"
        )
        assert self._send(2, "more"), broken("send", "the value for another wait was refused")
        assert self.record().received == 2, broken("send", "two values were sent")

    def test_the_first_value_counts(self) -> None:
        self._with_waits()
        assert self._send(1, id="one") is True, broken("send", "refused")
        with self.unchanged():
            assert self._send(1, id="one") is True, broken("send-first", "a repeated value with the same id is refused")
            assert self._send(2, id="two") is False, broken("send-first", "a second value counts")
            assert self._send(3) is False, broken("send-first", "a second value counts")
        self._send(1, "more")
        assert self._send(1, "more") is False, broken("send-first", "a second value without an id counts")
        assert self.record().sent["wait"].value == 1, broken("send-first", self.record().sent)

    def test_the_first_value_counts_after_the_end_too(self) -> None:
        owner = self._with_waits()
        self._send(1, id="one")
        owner.ends(Status.SUCCESS, {"a": done(), "wait": done(1, effect=False)})
        assert self._send(1, id="one") is True, broken(
            "send-first", "a repeated value with the same id is refused after the end"
        )
        assert self._send(2) is False, broken("send-first", "another value is accepted after the end")
        assert self.record().sent["wait"].value == 1, broken("send", "the record of a run that is over has lost it")

    def test_a_value_that_no_wait_waits_for_is_refused(self) -> None:
        with self.refuses("send-refused", "send for an unknown key", RunNotFound):
            self._send(1)
        owner = self._with_waits()
        for name in ("a", "nap", "missing", ""):
            with self.unchanged(), self.refuses("send-refused", f"send to {name!r}, which is not a wait", SendRefused):
                self._send(1, name)
        owner.saves({"a": done("A"), "wait": StepRecord(0, StepReport(Status.TIMEOUT, error=ValueError("late")))})
        with self.unchanged(), self.refuses("send-refused", "send to a wait that has ended", SendRefused):
            self._send(1)
        owner.saves(undoing=True, failed_step="a", error=ValueError("no"))
        with self.unchanged(), self.refuses("send-refused", "send to a run that is being undone", SendRefused):
            self._send(1, "more")
        owner.ends(Status.COMPENSATED, error=ValueError("no"))
        with self.unchanged(), self.refuses("send-refused", "send to a run that is over", SendRefused):
            self._send(1, "more")

    def test_a_value_that_cannot_be_kept_is_refused(self) -> None:
        if not self.store.durable:
            pytest.skip("a store in memory keeps any value")
        self._with_waits()
        with self.unchanged(), self.refuses("not-serializable", "send(object())", NotSerializable) as refusal:
            self._send(object())
        assert "'wait'" in str(refusal.error), broken(
            "not-serializable", f"the error does not name the wait: {refusal.error}"
        )

    def test_an_owner_learns_of_values_with_its_renewals(self) -> None:
        owner = self._with_waits()
        assert self.store.renew([owner.lease], 60) == [Renewal.OURS], broken("send-is-heard", "nothing was sent")
        self._send(1)
        for _ in range(2):
            assert self.store.renew([owner.lease], 60) == [Renewal.SENT], broken("send-is-heard", "one was sent")
        known = replace(owner.lease, received=1)
        assert self.store.renew([known], 60) == [Renewal.OURS], broken("send-is-heard", "it is known")
        self._send(1, "more")
        assert self.store.renew([known], 60) == [Renewal.SENT], broken("send-is-heard", "another one was sent")
        self.store.cancel(self.key)
        assert self.store.renew([known], 60) == [Renewal.CANCEL], broken("send-is-heard", "a cancellation comes first")

    # -- waiting -------------------------------------------------------------------------------------------------------

    def test_a_run_that_waits_has_no_owner_and_is_not_due(self) -> None:
        owner = self._suspended()
        for store in (self.store, self.other):
            record = store.find(self.key)
            assert record is not None, broken("find", None)
            assert record.status == Status.WAITING, broken("waits", record.status)
            assert record.waiting_for == ("wait",), broken("waits", record.waiting_for)
            assert (record.expires, record.finished) == (None, None), broken("waits", record)
            assert record.not_before == math.inf, broken("waits", record.not_before)
            assert not self.is_listed(owner), broken("waits", "it is due")
        head = self.store.head(self.key)
        assert head is not None, broken("find", None)
        assert head.waiting_for == ("wait",), broken("waits", f"its head says {head.waiting_for}")
        with self.unchanged():
            assert self.store.renew([owner.lease], 60) == [Renewal.LOST], broken("waits", "its lease was renewed")
            assert self.store.checkpoint(owner.says({"x": in_flight()})) is None, broken("waits", "a late checkpoint")
        assert self.store.counts().get((self.workflow, "waiting")) == 1, broken("waits", self.store.counts())
        found = [record.key for record in self.store.list_runs(status="waiting", workflow=self.workflow)]
        assert found == [self.key], broken("list-runs", found)

    def test_a_claim_of_a_run_that_waits_is_busy(self) -> None:
        owner = self._suspended(1000.0)
        for changes in ({}, {"fingerprint": None}, {"attached": owner.run_id}, {"waits": True}):
            answer = self.refused(Busy, "waits", graph=GRAPH, **changes)
            assert answer.run_id == owner.run_id, broken("waits", answer)
            assert answer.waiting_for == ("wait",), broken("waits", answer)
            assert 900 < answer.lease_left <= 1000, broken("waits", answer)
            assert answer.due == self.record().not_before, broken("waits", answer)

    def test_a_run_that_waits_is_resumed_when_its_value_is_there(self) -> None:
        owner = self._suspended()
        assert self._send(1, "more"), broken("send", "refused")
        assert not self._is_due(), broken("wakes", "by a value that it does not wait for yet")
        assert self._send("yes"), broken("send", "refused")
        assert self._is_due(), broken("wakes", "not listed, though its value is there")
        next_owner = self.take_over(graph=GRAPH, fingerprint=None)
        found = next_owner.answer.record
        assert found is not None, broken("wakes", None)
        assert found.status == Status.WAITING, broken("wakes", found.status)
        assert found.takeovers == 0, broken("wakes", "it counts as a crash")
        assert found.sent["wait"].value == "yes", broken("wakes", found.sent)
        assert found.steps["wait"].status == Status.WAITING, broken("wakes", found.steps)
        assert next_owner.fence > owner.fence, broken("fence-rises", next_owner.fence)
        record = self.record()
        assert (record.status, record.waiting_for) == (Status.RUNNING, ()), broken("wakes", record)
        assert not self._is_due(), broken("wakes", "it has an owner")

    def test_a_run_that_waits_is_resumed_when_its_time_has_come(self) -> None:
        self._suspended(0.05)
        self.until(self._is_due, "wakes", "a run that waits for 0.05 s was not listed")
        self.take_over(graph=GRAPH)

    def test_a_run_whose_value_is_there_does_not_begin_to_wait(self) -> None:
        owner = self._with_waits()
        owner.saves({"a": done("A"), "wait": waits()})
        self._send(1)
        with self.unchanged(but_lease=True):
            answer = self.store.finish(self._waiting(owner))
            assert isinstance(answer, Arrived), broken("arrived", answer)
        assert self.store.finish(self._waiting(owner, math.inf, 1)) is None, broken("arrived", "its owner knows it")
        self.same(snapshot(self.record()), {"status": Status.WAITING}, "arrived")

    def test_a_run_that_is_to_be_cancelled_does_not_begin_to_wait(self) -> None:
        owner = self._with_waits()
        owner.saves({"a": done("A"), "wait": waits()})
        self.store.cancel(self.key)
        with self.unchanged(but_lease=True):
            answer = self.store.finish(self._waiting(owner))
            assert isinstance(answer, Arrived), broken("arrived", answer)
        assert self.store.checkpoint(owner.says()) is Renewal.CANCEL, broken(
            "arrived", "its owner does not learn of it"
        )

    def test_a_late_copy_of_the_end_that_began_the_wait_changes_nothing(self) -> None:
        owner = self._with_waits()
        owner.saves({"a": done("A"), "wait": waits()})
        ending = self._waiting(owner)
        assert self.store.finish(ending) is None, broken("waits", "refused")
        with self.unchanged():
            assert self.store.finish(ending) is None, broken("late-copies", "the first copy was lost")
        self._send(1)
        assert self.store.finish(ending) is None, broken("late-copies", "a late copy")
        assert self._is_due(), broken("late-copies", "a late copy put the run to sleep again")

    def test_another_graph_does_not_resume_a_run_that_waits(self) -> None:
        self._suspended()
        self._send(1)
        self.refused(OtherGraph, "claim-other-graph", graph="another")

    def test_operators_decide_on_a_run_that_waits(self) -> None:
        owner = self._suspended()
        self.store.hold(self.key, "looks odd")
        assert self._send(1), broken("send", "to a held run")
        assert not self._is_due(), broken("hold", "a held run is due")
        self.store.resume(self.key)
        assert self._is_due(), broken("decide", "resume of a run that waits")
        found = self.take_over(graph=GRAPH).answer.record
        assert found is not None, broken("decide", None)
        assert (found.decision, found.sent["wait"].value) == ("resume", 1), broken("decide", found)
        assert found.run_id == owner.run_id, broken("decide", found.run_id)

    @pytest.mark.parametrize("verb", ["undo", "cancel"])
    def test_a_run_that_waits_can_be_undone(self, verb: str) -> None:
        self._suspended()
        getattr(self.store, verb)(self.key)
        assert self._is_due(), broken("decide", f"{verb} of a run that waits")
        found = self.take_over(graph=GRAPH).answer.record
        assert found is not None, broken("decide", None)
        assert found.decision == verb, broken("decide", found.decision)

    def test_a_run_that_waits_can_be_released(self) -> None:
        self._suspended()
        self.store.release(self.key)
        again = self.begin(graph=GRAPH)
        assert again.answer.generation == 1, broken("release", again.answer)
        record = self.record()
        assert (record.sent, record.received) == ({}, 0), broken("claim-after-release", record.sent)
