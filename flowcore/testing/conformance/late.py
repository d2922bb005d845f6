"""Tests of late copies: each verb is sent once more, after something else has happened to the run."""
# ruff: noqa: S101 - these are tests

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import pytest

from ...status import Status
from ...stores.base import Busy, Checkpoint, Claimed, Ending, Finished, Held, Lost, Renewal
from .rules import broken
from .suite import LONG, Owner, Suite, done, gone, in_flight, wrote

__all__ = ["LateCopies"]

CAME_SINCE: Final = (
    *("a checkpoint", "success", "failure", "parked", "a takeover", "another run"),
    *("release", "hold", "resume", "undo"),
)
LATE: Final = ("claim", "checkpoint", "finish", "withdraw", "renew")
NEVER_SENT: Final = {("finish", "a checkpoint"), ("withdraw", "a checkpoint")}
"""pairs that cannot occur: an owner that sends the verb sends no checkpoint afterwards"""
PAIRS: Final = [(late, since) for late in LATE for since in CAME_SINCE if (late, since) not in NEVER_SENT]


def _expected(late: str, since: str) -> Any:
    """Return the right replies to a late copy: one of these values, or an instance of one of these classes."""
    lost = (Lost(),)
    match late:
        case "claim":
            if since in {"a takeover", "another run"}:
                return (Busy,)
            return (Claimed,) if since == "a checkpoint" else (Held, Finished) if since == "hold" else (Finished,)
        case "renew":
            return ([Renewal.OURS if since == "a checkpoint" else Renewal.LOST],)
        case "withdraw":
            return (None,)
        case _:
            return (None,) if since in {"a checkpoint", "success", "failure", "parked"} else lost


class LateCopies(Suite):
    """The tests of late copies: a network may deliver the first copy of a message after all that followed it."""

    @pytest.mark.parametrize(("late", "since"), PAIRS)
    def test_a_late_copy_is_answered_by_what_holds_now(self, late: str, since: str) -> None:
        owner = self.begin(begins=("a",))
        checkpoint = owner.saves({"a": done("early")}, {"x": wrote("early")})
        ending = owner.ending(Status.SUCCESS, {"b": in_flight()}, {"y": wrote("early")})
        send = self._copies(owner, checkpoint, ending)[late]
        self._then(since, owner, ending)
        with self.unchanged("late-copies", but_lease=since == "a checkpoint"):
            answer = send()
        expected = _expected(late, since)
        fits = any(isinstance(answer, one) if isinstance(one, type) else answer == one for one in expected)
        assert fits, broken("late-copies", f"a copy of {late} after {since} got the reply {answer}, not {expected}")

    def _copies(self, owner: Owner, checkpoint: Checkpoint, ending: Ending) -> dict[str, Callable[[], Any]]:
        return {
            "claim": lambda: self.other.claim(owner.claim),
            "checkpoint": lambda: self.other.checkpoint(checkpoint),
            "finish": lambda: self.other.finish(ending),
            "withdraw": lambda: self.other.withdraw(owner.claim),
            "renew": lambda: self.other.renew([owner.lease], LONG),
        }

    def _then(self, since: str, owner: Owner, ending: Ending) -> None:
        """Make `since` happen, before the late copy arrives."""
        match since:
            case "a checkpoint":
                owner.saves({"a": done("new"), "b": done("new")}, {"x": gone(), "y": wrote("new")})
            case "success":
                self.store.finish(ending)
            case "failure" | "parked":
                owner.ends(Status(since), {"a": done("new"), "b": done("new")})
            case "a takeover":
                self.expire(owner)
                self.take_over().saves({"a": done("new"), "b": done("new")}, {"x": gone()})
            case "another run":
                owner.ends(Status.FAILURE)
                self.begin().saves({"a": done("new")})
            case "release":
                self.store.release(self.key, force=True)
            case _:
                self.expire(owner)
                getattr(self.store, since)(self.key)
