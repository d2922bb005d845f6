"""Waits: steps without a function, which end when a value is sent to them or when their time is over.

A step that waits holds no worker and no place among the steps that run at a time: it is set aside, and is ready again
once its value has come, its time is over, or the run's deadline has passed.
"""

from __future__ import annotations

import math
from typing import Final

from ..context import own_copy
from ..errors import NotSerializable, SendRefused, StepTimeout, safe_repr
from ..plan import Node
from ..retry import CENTURY
from ..run import Sent
from ..status import Status
from ..step import NO_DEFAULT
from . import emit_steps
from .effects import Alarm, Program
from .outcome import StepEnd
from .run_state import RunState

__all__ = ["begin_or_end", "keep", "receive", "request_alarm", "withdraw"]

_OPEN: Final = frozenset({Status.PENDING, Status.WAITING})
"""statuses of a wait that has not ended"""


def begin_or_end(run: RunState, node: Node, overdue: StepEnd | None = None) -> Program[StepEnd]:
    """Begin the wait `node`, or end it if it is over. `overdue`: its end if the run's deadline has passed. Returns the
    end of the step, which is WAITING if the step was set aside, and PENDING if the run stops."""
    waits, wait, name = run.waits, node.wait, node.name
    assert waits is not None and wait is not None  # noqa: S101, PT018 - the caller has checked it
    if name not in waits.until:
        now = run.settings.clock()
        until = math.inf if wait.timeout is None else now + min(wait.timeout, CENTURY)
        with run.lock:
            waits.begin(node, now, until)
        emit_steps.wait_started(run, node)
        if run.ledger is not None and name not in waits.sent:
            try:
                begins = yield from run.ledger.waits(run, node, until)
            except NotSerializable as error:  # a value that its when= wrote
                overdue = StepEnd(Status.FAILURE, None, error)
            else:
                if not begins:
                    return StepEnd(Status.PENDING)
    if (
        run.ledger is not None
        and not wait.sleeps
        and _is_over(run, name)
        and not (yield from run.ledger.close_wait(run, node))
    ):
        return StepEnd(Status.PENDING)
    return _end_or_set_aside(run, node, overdue)


def _is_over(run: RunState, name: str) -> bool:
    """Whether the time of a wait is over, and no value has come."""
    waits = run.waits
    assert waits is not None  # noqa: S101 - the caller has checked it
    with run.lock:
        return not run.stopped and name not in waits.sent and run.settings.clock() >= waits.until[name]


def _end_or_set_aside(run: RunState, node: Node, overdue: StepEnd | None) -> StepEnd:
    waits, wait, name = run.waits, node.wait, node.name
    assert waits is not None and wait is not None  # noqa: S101, PT018 - the caller has checked it
    with run.lock:
        if run.stopped:
            return StepEnd(Status.PENDING)
        now = run.settings.clock()
        sent = waits.sent.get(name)
        if sent is None and overdue is None and now < waits.until[name]:
            waits.aside[name] = node
            run.report(node).status = Status.WAITING
            run.running -= 1
            return StepEnd(Status.WAITING)
        waited = now - waits.over(name)
    if overdue is not None:
        end = overdue
    elif sent is not None:
        end = StepEnd(Status.SUCCESS, sent.value)
    elif wait.default is not NO_DEFAULT:
        end = StepEnd(Status.SUCCESS, own_copy(wait.default))  # each run has its own
    else:
        late = StepTimeout(
            f"no value was sent to step {safe_repr(name)} within its timeout of {wait.timeout or 0.0:g} s."
        )
        end = StepEnd(Status.TIMEOUT, None, late)
    run.report(node).ran = waited
    emit_steps.wait_finished(run, node, end, waited, sent)
    return end


def request_alarm(run: RunState) -> Program[None]:
    """Request a worker for the moment at which the next step that is set aside is due without a value."""
    waits = run.waits
    assert waits is not None  # noqa: S101 - the caller has checked it
    with run.lock:
        seconds = (
            None if run.stopped or run.finished is not None else waits.alarm_in(run.settings.clock(), run.deadline)
        )
    if seconds is not None:
        yield Alarm(seconds)


def withdraw(run: RunState) -> None:
    """Set the open waits of a run that is undone back to PENDING, because they accept no more values."""
    for node in run.plan.nodes:
        if node.wait is not None and run.report(node).status is Status.WAITING:
            run.report(node).status = Status.PENDING


def receive(run: RunState, name: str, sent: Sent) -> Sent:
    """Keep a value that was sent to the wait `name` of a run in memory. Returns the value that counts: this one, or an
    earlier one. Raises SendRefused if the run has no such wait, or does not wait for it any more."""
    waits = run.waits
    what = f"run {run.run_id} of {safe_repr(run.workflow.name)}"
    node = run.plan.by_name.get(name)
    if waits is None or node is None or node.wait is None or node.wait.sleeps:
        raise SendRefused(f"{what} has no wait {safe_repr(name)}.")
    with run.lock:
        if name in waits.sent:
            return waits.sent[name]
        if run.finished is not None or run.stopped:
            raise SendRefused(f"{what} has ended or is being undone, and no longer waits for {safe_repr(name)}.")
        report = run.reports.get(name)
        if name in waits.ended or name in run.results or (report is not None and report.status not in _OPEN):
            status = Status.SUCCESS if report is None or report.status in _OPEN else report.status
            raise SendRefused(f"{what} no longer waits for {safe_repr(name)}: that wait ended with status {status}.")
        waits.sent[name] = sent
    return sent


def keep(run: RunState, name: str, sent: Sent) -> Sent:
    """Keep a value that the store of the run has accepted for its wait `name`. Returns the value that counts: this one,
    or an earlier one."""
    if run.waits is None:
        return sent
    with run.lock:
        return run.waits.sent.setdefault(name, sent)
