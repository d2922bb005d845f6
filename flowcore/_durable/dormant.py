"""Callers of a run that only waits: it is left to its store, and no process owns it.

Such a caller polls the head of the record, with growing delays, until the run may be resumed or another process has
resumed it. Then it claims the run like any caller. If an engine has many such callers, each polls less often, so that
together they poll about 100 times per second at most. A value that this engine sends wakes the caller at once.
"""

from __future__ import annotations

import math
from typing import Any, Final

from .._kernel import stopping
from .._kernel.effects import Program, Sleep
from .._kernel.request import Request
from .._kernel.run import execute
from .._kernel.run_state import RunState
from ..errors import StoreUnavailable
from ..retry import Backoff
from ..run import Run
from ..status import Status
from . import checkpoints
from .waiting import LocalRuns, head_of

__all__ = ["continuation", "take_back"]

_POLL: Final = Backoff.exponential(0.05, max_delay=1.0, jitter=False)
_SHARE: Final = 0.01
"""seconds between two polls of such callers of one engine, on average"""


def continuation(run: RunState, local: LocalRuns) -> tuple[RunState, Program[Run]] | None:
    """Return the RunState and the main program that resume a run left to its store, for its caller. Returns None if the
    caller asked for the run as it is."""
    if run.waits is None or (run.request.until_waiting and stopping.continue_as(run, None)):
        return None
    values: dict[Any, Any] = {}  # they are in the store
    request = Request(
        *(run.workflow, run.plan, values, run.context, run.stored_key),
        wait=math.inf,
        deadline=run.workflow.deadline,
        recovering=run.run_id,
    )
    again = RunState(run.settings, request)
    again.dormant, again.on_pause = True, run.on_pause
    stopping.continue_as(run, again)
    due = run.waits.next_limit(run.deadline)
    return again, _resume_when_due(again, local, due, run.waits.known)


def _resume_when_due(run: RunState, local: LocalRuns, due: float, received: int) -> Program[Run]:
    """Run the main program of a caller whose run waits in its store: wait until it may be resumed, at the moment `due`
    (monotonic) at the latest, then claim it. `received`: how many sent values the run had when it was left to its
    store."""
    local.sleep(run)
    try:
        polls, until = 0, None
        while run.error is None and (left := due - run.settings.clock()) > 0:
            polls += 1
            yield Sleep(min(max(_POLL.delay(polls), local.sleepers * _SHARE), left))
            if run.error is None:
                head, failure = yield from head_of(run, run.stored_key)
                if isinstance(failure, StoreUnavailable):
                    continue
                if failure is not None or head is None or head.run_id != run.request.recovering:
                    break
                if head.status is not Status.WAITING or head.decision is not None:
                    break
                if head.received > received and (until is None or head.not_before != until):
                    break
                received, until = head.received, head.not_before  # the new values are for another wait
    finally:
        run.dormant = False
        local.wake_up(run)
    return (yield from execute(run))


def take_back(run: RunState, key: str) -> Program[None]:
    """Let the caller of a run that may wait in its store cancel it: release the run from its wait, so that it is
    claimed and undone here. If another process runs it, cancel it there."""
    _, failure = yield from checkpoints.ask(run, "resume", key)
    if failure is not None:
        yield from checkpoints.ask(run, "cancel", key)
