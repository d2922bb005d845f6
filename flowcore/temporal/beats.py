"""The heartbeats of an activity: what a worker tells the next one about the attempts before."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, Final

from temporalio import activity
from temporalio.api.common.v1 import Payload
from temporalio.exceptions import ApplicationError

from .._durable.endings import retry_in
from .._kernel.outcome import StepEnd
from .wire import Tried

__all__ = ["Beats"]

_FAILED: Final = ("failed", "errors", "times", "retry_at")
"""what a heartbeat says about the attempts of the step that have failed"""


class Beats:
    """The heartbeats of one attempt of an activity, and what those before it have left.

    Temporal counts each attempt of an activity, for whatever reason there was another one. An attempt that was given
    back does not count as a crash of its worker, and if it had not begun its step, the step is not in doubt.
    """

    def __init__(self, info: activity.Info, tried: Tried | None) -> None:
        known: dict[str, Any] = info.heartbeat_details[0] if info.heartbeat_details else {}
        self.failed: dict[str, Any] = {name: known[name] for name in _FAILED if name in known}
        """the attempts of the step that have failed"""
        if tried is not None and not self.failed:
            failed = tried.get("failed", len(tried["errors"]))
            self.failed = {"failed": failed, "errors": tried["errors"], "retry_at": None}
            self.failed["times"] = tried.get("times", [])
        self._attempt = info.attempt
        self._returned: int = known.get("returned", 0)
        self.lease = (info.heartbeat_timeout or timedelta(seconds=30)).total_seconds()
        self.token, self.at = info.task_token, time.monotonic()
        """Temporal's name for this attempt, and when its latest heartbeat was sent"""
        self.payloads: Sequence[Payload] | None = None
        """the details of the next heartbeat, encoded, for a thread that sends it"""
        self.changed = asyncio.Event()
        """set when an attempt has failed, so that the details must be encoded again"""
        self.in_doubt = info.attempt > 1 and known.get("unbegun") != info.attempt - 1
        """whether an earlier worker may have begun the step's latest attempt and not reported its end"""
        self.crashes = info.attempt - 1 - self._returned
        """how many workers have crashed in this activity"""

    def details(self) -> dict[str, Any]:
        """What a heartbeat says."""
        return {**self.failed, "returned": self._returned}

    def beat(self) -> None:
        """Send a heartbeat. Call it in the worker's event loop only."""
        activity.heartbeat(self.details())
        self.at = time.monotonic()

    def attempt_failed(self, end: StepEnd, retry_at: float) -> None:
        """Report that an attempt of the step has failed, so that it counts even if this worker dies."""
        self.failed = {
            "failed": end.failed,
            "errors": [list(error) for error in end.errors],
            "retry_at": retry_at,
        }
        if end.scope is not None:
            self.failed["times"] = [list(times) for times in end.scope.attempt_times]
        self.beat()
        self.changed.set()

    def give_back(self, why: str, *, in_doubt: bool, kind: str = "GivenBack", later: bool = False) -> ApplicationError:
        """Return the error with which Temporal gives the activity to another worker. `in_doubt`: whether the step may
        have begun. `later`: wait longer each time until then."""
        left = {**self.details(), "returned": self._returned + 1}
        activity.heartbeat(left if in_doubt else {**left, "unbegun": self._attempt})
        delay = retry_in(self.lease, self._returned + 1) if later else 0.0
        return ApplicationError(why, type=kind, next_retry_delay=timedelta(seconds=delay) if delay else None)
