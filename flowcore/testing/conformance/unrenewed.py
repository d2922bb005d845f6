"""Tests of checkpoints that need not renew the lease: in all else, they are checkpoints."""
# ruff: noqa: S101 - these are tests

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from ...run import StepReport
from ...status import Status
from ...stores.base import Busy, Checkpoint, Lost, Renewal, StepRecord
from .rules import broken
from .suite import Owner, Suite, done, gone, in_flight, wrote

__all__ = ["UnrenewedRules"]


def _unrenewed(owner: Owner, *args: Any, **options: Any) -> Checkpoint:
    """Return the next checkpoint of an owner that knows that its lease was renewed a short while ago."""
    base = owner.checkpoints.seq
    return replace(owner.says(*args, **options), base=base, renews=False)


class UnrenewedRules(Suite):
    """The tests of checkpoints with `renews=False`."""

    def test_a_checkpoint_that_need_not_renew_the_lease_is_recorded_like_any_other(self) -> None:
        owner = self.begin(begins=("a",))
        for sent in (
            _unrenewed(owner, {"a": done("A"), "b": in_flight()}, {"x": wrote(2), "y": gone()}),
            _unrenewed(owner, {"b": done("B")}, {"z": wrote("new")}),
            _unrenewed(owner),
        ):
            assert self.store.checkpoint(sent) is None, broken("unrenewed", sent)
            with self.unchanged("highest-seq-wins", but_lease=True):
                assert self.store.checkpoint(sent) is None, broken("highest-seq-wins", "a second copy is no error")
        record = self.record()
        assert dict(record.results) == {"a": "A", "b": "B"}, broken("unrenewed", record.results)
        assert dict(record.values) == {"x": 2, "z": "new"}, broken("unrenewed", record.values)
        assert record.seq == owner.seq, broken("seq", f"{record.seq}, though {owner.seq} was sent")
        self.refused(Busy, "unrenewed")

    def test_of_parallel_steps_each_is_recorded_whichever_comes_first(self) -> None:
        owner = self.begin()
        base = owner.checkpoints.seq
        first, second = (replace(_unrenewed(owner, {name: done(name)}), base=base) for name in "ab")
        late = replace(first, steps={"a": StepRecord(0, StepReport(Status.RUNNING, 1))}, base=owner.checkpoints.seq)
        for sent in (second, first, late):
            assert self.store.checkpoint(sent) is None, broken("unrenewed", sent)
        assert dict(self.record().results) == {"a": "a", "b": "b"}, broken("results", self.record().results)
        assert self.record().seq == owner.seq, broken("seq", self.record().seq)

    @pytest.mark.parametrize(("verb", "order"), [("cancel", Renewal.CANCEL), ("undo", Renewal.UNDO)])
    def test_it_tells_the_owner_of_an_operators_decision(self, verb: str, order: Renewal) -> None:
        owner = self.begin()
        getattr(self.store, verb)(self.key)
        assert self.store.checkpoint(_unrenewed(owner, {"a": done()})) is order, broken("decision-is-heard", verb)
        undoing = _unrenewed(owner, {"b": done()}, undoing=True)
        assert self.store.checkpoint(undoing) is None, broken("decision-is-heard", "the run is being undone")
        assert self.record().decision is None, broken("decision-is-heard", self.record().decision)

    def test_it_shows_progress_and_an_earlier_owner_gets_lost(self) -> None:
        old = self.begin()
        late = _unrenewed(old, {"a": done("late")})
        self.expire(old)
        new = self.take_over()
        with self.unchanged("lost"):
            assert self.store.checkpoint(late) == Lost(), broken("lost", "the run was taken over")
        assert self.record().takeovers == 1, broken("takeovers", self.record().takeovers)
        assert self.store.checkpoint(_unrenewed(new, {"a": done("new")})) is None, broken("unrenewed")
        record = self.record()
        assert (record.takeovers, dict(record.results)) == (0, {"a": "new"}), broken("takeovers", record)
