"""The end of a step, and tables of the status changes that runs, steps and undos may make."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from ..run import StepReport
from ..status import Status

if TYPE_CHECKING:
    from .scopes import StepScope

__all__ = ["RUN", "STEP", "UNDO", "StepEnd", "outcome"]


class StepEnd:
    """The end of an attempt or, after the last one, of the step or undo: `value` if the status is success, else
    `error`.

    `attempts`: how many there were. `errors`: type and message of each failed attempt, or of the first and last of many.
    `failed`: how many attempts failed. `scope`: the scope with the times of the step, or None if they are not measured.
    """

    __slots__ = ("attempts", "error", "errors", "failed", "scope", "status", "value")

    def __init__(
        self,
        status: Status,
        value: object = None,
        error: BaseException | None = None,
        attempts: int = 0,
        errors: tuple[tuple[str, str], ...] = (),
        failed: int = 0,
    ) -> None:
        self.status = status
        self.value = value
        self.error = error
        self.attempts = attempts
        self.errors = errors
        self.failed = failed
        self.scope: StepScope | None = None

    def report_to(self, report: StepReport) -> None:
        """Copy the end of the step into its report."""
        begun_before = report.failed > 0 and report.started is not None  # its first attempt was recorded earlier
        report.status, report.attempts, report.error = self.status, self.attempts, self.error
        report.failed, report.errors, report.retry_at = self.failed, self.errors, None
        if self.scope is not None:
            report.waited, report.ran, report.backed_off = self.scope.waited, self.scope.ran, self.scope.backoff
            if self.scope.epoch is not None and not begun_before:
                report.started = self.scope.at + self.scope.epoch
            report.attempt_times = self.scope.attempt_times if len(self.scope.attempts) > 1 else ()


STEP: Final[Mapping[Status, frozenset[Status]]] = {
    # FAILURE: its when= raised. SUCCESS: a wait whose value was sent before the wait began.
    Status.PENDING: frozenset({Status.RUNNING, Status.WAITING, Status.SKIPPED, Status.FAILURE, Status.SUCCESS}),
    Status.WAITING: frozenset({Status.SUCCESS, Status.TIMEOUT, Status.FAILURE, Status.PENDING}),
    Status.RUNNING: frozenset(
        # UNKNOWN: the process died. PENDING: it waits for its next attempt.
        {Status.SUCCESS, Status.FAILURE, Status.TIMEOUT, Status.CANCELLED, Status.UNKNOWN, Status.PENDING}
    ),
    Status.UNKNOWN: frozenset({Status.RUNNING, Status.SUCCESS}),  # the next owner retries it, or verify= finds it done
    Status.SUCCESS: frozenset(),
    Status.FAILURE: frozenset(),
    Status.TIMEOUT: frozenset(),
    Status.CANCELLED: frozenset(),
    Status.SKIPPED: frozenset(),
}

UNDO: Final[Mapping[Status, frozenset[Status]]] = {
    Status.PENDING: frozenset({Status.RUNNING}),
    Status.RUNNING: frozenset({Status.SUCCESS, Status.FAILURE, Status.TIMEOUT}),
    # A step that completes after its undo is undone again.
    Status.SUCCESS: frozenset({Status.RUNNING}),
    Status.FAILURE: frozenset({Status.RUNNING}),
    Status.TIMEOUT: frozenset({Status.RUNNING}),
}

RUN: Final[Mapping[Status, frozenset[Status]]] = {
    Status.RUNNING: frozenset(
        {
            Status.SUCCESS,
            Status.FAILURE,
            Status.COMPENSATED,
            Status.COMPENSATION_FAILED,
            Status.INCOMPLETE,
            Status.PARKED,
            Status.WAITING,
            Status.LOST,
        }
    ),
    Status.WAITING: frozenset({Status.RUNNING}),
    Status.PARKED: frozenset({Status.RUNNING}),
    Status.INCOMPLETE: frozenset({Status.RUNNING}),
    Status.SUCCESS: frozenset(),
    Status.FAILURE: frozenset(),
    Status.COMPENSATED: frozenset(),
    Status.COMPENSATION_FAILED: frozenset(),
    Status.LOST: frozenset(),
}

# (lost, parked, failed, past its pivot, something was undone, an undo failed) -> outcome. None means: either value.
_OUTCOMES: Final = (
    ((True, None, None, None, None, None), Status.LOST),
    ((False, True, None, None, None, None), Status.PARKED),
    ((False, False, False, None, None, None), Status.SUCCESS),
    ((False, False, True, True, None, None), Status.INCOMPLETE),
    ((False, False, True, False, None, True), Status.COMPENSATION_FAILED),
    ((False, False, True, False, True, False), Status.COMPENSATED),
    ((False, False, True, False, False, False), Status.FAILURE),
)


def _first_match(facts: tuple[bool, ...]) -> Status:
    for row, status in _OUTCOMES:
        if all(cell is None or cell == fact for cell, fact in zip(row, facts, strict=True)):
            return status
    raise AssertionError(facts)


_BY_FACTS: Final = {facts: _first_match(facts) for facts in itertools.product((False, True), repeat=6)}


def outcome(*, lost: bool, parked: bool, failed: bool, past_pivot: bool, undone: bool, undo_failed: bool) -> Status:
    """Return the status in which a run ends that has nothing left to do."""
    return _BY_FACTS[lost, parked, failed, past_pivot, undone, undo_failed]
