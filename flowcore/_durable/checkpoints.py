"""Telling a durable store: each start of a step, each end, each undo, before anything that follows from it begins.

Whoever takes the run over knows no more than what was told here. So a step's end is told together with the start of the
next one that its worker goes on with, in one round trip, and only then may anything else that waited for it begin.

Source of the rules: an unreachable store is called again for `store_patience` seconds, then the run parks; past the lease
nothing new starts meanwhile. Where the store returns Lost, another owner has the run, and this one starts and undoes
nothing more. Where it returns Behind, its record has gone back in time, and this owner writes all that it knows.
"""

from __future__ import annotations

import contextvars
from collections.abc import Collection
from dataclasses import replace
from typing import Any, Final

from .._kernel import emit
from .._kernel.effects import Ask, Program, Sleep, Stop
from .._kernel.run_state import RunState
from ..errors import LeaseLost, NotSerializable, RunParked, StepCancelled, StoreUnavailable, safe_repr, safe_str
from ..plan import Node
from ..retry import Backoff
from ..stores.base import Behind, Checkpoint, Ending, Lost, Renewal, RunRecord

__all__ = [
    "STORE_BACKOFF",
    "ask",
    "begin",
    "begun_already",
    "cancelled",
    "ended",
    "finish",
    "flush",
    "heard",
    "lose",
    "parked",
    "still_ours",
]

Answer = tuple[Any, BaseException | None]
"""what the store answered, or (None, its error)"""
STORE_BACKOFF: Final = Backoff.exponential(0.02, max_delay=1.0, jitter=False)
"""how often a store that does not answer is asked again"""
_MARGIN: Final = 1 / 6
"""the last part of a lease, in which nothing is begun that the store does not know of"""
_CURABLE: Final = (StoreUnavailable, OSError)
"""errors of a store that a retry may cure"""


def ask(run: RunState, verb: str, argument: object, context: contextvars.Context | None = None) -> Program[Answer]:
    """Ask the store once, in the run's context or in that given, and tell the hooks how it went."""
    began = run.settings.clock()
    outcome: Answer = yield Ask(verb, argument, context)
    emit.store_called(run, verb, began, outcome[1])
    return outcome


def begun_already(run: RunState, node: Node) -> bool:
    """Whether the store knows already that `node` begins, and nothing speaks against it: it may, without asking."""
    changes = run.changes
    assert changes is not None  # noqa: S101 - the callers have looked
    if (
        node.name not in changes.begun
        or run.stopped
        or run.in_doubt is not None
        or run.settings.clock() >= run.lease_until
    ):
        return False
    with run.lock:
        changes.begun.discard(node.name)
    return True


def begin(run: RunState, node: Node, attempt: int) -> Program[bool]:
    """Have the store know that an attempt of `node` is about to start. False: it must not, the run stops.

    Raises NotSerializable for what an earlier attempt wrote.
    """
    assert run.changes is not None  # noqa: S101 - the callers have looked
    with run.lock:
        known = attempt == 1 and node.name in run.changes.begun
        doubtful = None if run.in_doubt is None else run.in_doubt.pop(node.name, None)
        if known:
            run.changes.begun.discard(node.name)
        else:
            run.changes.begins(node.name, attempt)
    if known:
        ours = yield from still_ours(run)
        if ours and run.stopped:
            run.not_begun(node)
        return ours and not run.stopped
    failure = yield from _checkpoint(run, (node.name,))
    if isinstance(failure, NotSerializable):
        raise failure
    if run.stopped and run.in_doubt is not None and doubtful is not None:
        with run.lock:
            run.in_doubt[node.name] = doubtful
    elif run.stopped and failure is None and attempt == 1:  # the run failed while its store was told
        run.not_begun(node)
    return failure is None and not run.stopped


def ended(run: RunState, node: Node, value: object, *, skipped: bool) -> Program[tuple[Node | None, Exception | None]]:
    """Have the store know that `node` is done, or was skipped, and free what waited for it.

    Answers the node to go on with, and why the run must fail though the step has not: its result cannot be stored.
    """
    after, told = run.settle(node, value, skipped=skipped)
    failure = None if told is None else (yield from _checkpoint(run, told))
    return _freed(run, node, after, failure)


def heard(
    run: RunState,
    node: Node,
    after: Node,
    checkpoint: Checkpoint,
    sent: float,
    answer: object,
    failure: BaseException | None,
) -> Program[tuple[Node | None, Exception | None]]:
    """What `ended` does when a store, asked at `sent`, has not simply answered that it knows of `node` and `after`."""
    if failure is not None:
        answer, failure = yield from retry_store_call(run, "checkpoint", checkpoint, (sent, failure))
    failure = yield from _told(run, checkpoint, answer, failure)
    return _freed(run, node, after, failure)


def _freed(
    run: RunState, node: Node, after: Node | None, failure: BaseException | None
) -> tuple[Node | None, Exception | None]:
    """The store was told that `node` is over, or `failure`: what waited for it may go on, unless the run has stopped."""
    assert run.changes is not None  # noqa: S101 - the callers have looked
    if isinstance(failure, NotSerializable):
        if after is not None:
            with run.lock:
                run.changes.steps.pop(after.name, None)
                run.changes.begun.discard(after.name)
        return None, failure
    released, after = run.release(node, after)
    emit.steps_ready(run, released)
    return after, None


def flush(run: RunState) -> Program[bool]:
    """Have the store know all that it does not; once the run has stopped, also why, and that it is being undone.

    False: the run is not ours any more, or parked. What cannot be stored is left out: the run has failed already.
    """
    failure = yield from _checkpoint(run, None)
    if isinstance(failure, NotSerializable):
        failure = yield from _checkpoint(run, None)
    return failure is None and not run.left_to_others


def still_ours(run: RunState) -> Program[bool]:
    """Whether the run may go on without asking; where the lease has run out unnoticed, the store is asked."""
    if run.left_to_others:
        return False
    if run.settings.clock() < run.lease_until:
        return True
    failure = yield from _checkpoint(run, ())
    return failure is None and not run.left_to_others


def finish(run: RunState, record: RunRecord) -> Program[BaseException | None]:
    """Tell the store how the run ended, and all that it does not know yet. Answers why it could not be told."""
    if run.changes is None:
        _, failure = yield from ask(run, "finish", Ending(record))
        return failure
    with run.lock:
        steps, writes = run.changes.take()
        base = run.changes.base
    changes = Checkpoint(
        record.key, record.run_id, record.fence, run.settings.lease, steps, writes, record.undoing, base=base
    )
    answer, failure = yield from retry_store_call(run, "finish", Ending(record, changes))
    while failure is None and isinstance(answer, Behind):
        answer, failure = yield from _healed(run, changes, answer, None)
        if failure is None and not isinstance(answer, Lost):
            changes.base = run.changes.base
            answer, failure = yield from retry_store_call(run, "finish", Ending(record, changes))
    if failure is not None:
        _put_back(run, changes, failure)
    return lose(run, gone=answer.gone) if isinstance(answer, Lost) else failure


def _checkpoint(run: RunState, steps: Collection[str] | None) -> Program[BaseException | None]:
    """Tell the store what has changed of `steps` (None: of all). Answers NotSerializable; anything else that keeps the
    store from knowing stops the run."""
    assert run.changes is not None  # noqa: S101 - the callers have looked
    with run.lock:
        if steps is None and run.running > 1:  # what others write goes with their own ends
            steps = (*run.changes.steps, "")
        records, writes = run.changes.take(steps)
        # A pivot that is still running may succeed, and then nothing is undone.
        undoing = run.failing and not (run.plan.pivoted and run.running)
        checkpoint = Checkpoint(run.stored_key, run.run_id, run.fence, run.settings.lease, records, writes, undoing)
        checkpoint.base = run.changes.base
        if undoing:
            checkpoint.failed_step, checkpoint.error = run.failed_step, run.error
    answer, failure = yield from retry_store_call(run, "checkpoint", checkpoint)
    return (yield from _told(run, checkpoint, answer, failure))


def _told(
    run: RunState, checkpoint: Checkpoint, answer: object, failure: BaseException | None
) -> Program[BaseException | None]:
    """The store has answered a checkpoint, or has not: what follows for the run."""
    answer, failure = yield from _healed(run, checkpoint, answer, failure)
    while failure is None and not isinstance(answer, Lost) and run.settings.clock() >= run.lease_until:
        # It was written in time, but this process heard of it too late: another owner may have the run by now.
        empty = Checkpoint(run.stored_key, run.run_id, run.fence, run.settings.lease)
        answer, failure = yield from retry_store_call(run, "checkpoint", empty)
        answer, failure = yield from _healed(run, empty, answer, failure)
    if failure is not None:
        _put_back(run, checkpoint, failure)
    elif answer is Renewal.CANCEL and run.interrupt(cancelled(run)):
        yield Stop(cancel=True)
    if isinstance(answer, Lost):
        failure = lose(run, gone=answer.gone)
    elif failure is not None and not isinstance(failure, NotSerializable):
        run.park(parked(run, f"its progress could not be saved ({safe_str(failure, 200)})", failure))
    if run.left_to_others:
        yield Stop(cancel=run.lost)
    return failure


def _healed(run: RunState, checkpoint: Checkpoint, answer: object, failure: BaseException | None) -> Program[Answer]:
    """Where the record has gone back in time, write all that this owner knows of the run."""
    changes = run.changes
    assert changes is not None  # noqa: S101 - the callers have looked
    while failure is None and isinstance(answer, Behind):
        with run.lock:
            steps, writes = changes.all_known()
        healing = replace(checkpoint, steps=steps, writes=writes, heals=True)
        answer, failure = yield from retry_store_call(run, "checkpoint", healing)
    if failure is None and not isinstance(answer, Lost):
        with run.lock:
            changes.acknowledged(checkpoint)
    return answer, failure


def retry_store_call(
    run: RunState, verb: str, argument: object, failed: tuple[float, BaseException] | None = None
) -> Program[Answer]:
    """Call the store until it answers; for `store_patience` at most, or until the run's deadline. Nothing new of the run
    starts meanwhile, and what has ended is kept: the store refuses it if another owner has taken the run over.

    `failed`: when it was first called, and with which error. A run that is cancelled or left waits for its lease only.
    """
    clock, lease = run.settings.clock, run.settings.lease
    began, failure = (clock(), None) if failed is None else failed
    tries = 0
    while True:
        if failure is not None:
            until = began + run.settings.store_patience
            if run.deadline is not None and not run.stopped:
                until = min(until, max(run.deadline, run.lease_until - lease * _MARGIN))
            if run.interrupted or run.left_to_others:
                until = min(until, began + lease - lease * _MARGIN, run.lease_until - lease * _MARGIN)
            left = until - clock()
            if not isinstance(failure, _CURABLE) or left <= 0 or run.lost:
                return None, failure
            tries += 1
            yield Sleep(min(STORE_BACKOFF.delay(tries), left), shielded=True)
        sent = clock()
        answer, failure = yield Ask(verb, argument)
        if run.wanted:
            emit.store_called(run, verb, sent, failure)
        if failure is None:
            if not isinstance(answer, Lost | Behind):
                run.lease_until = max(run.lease_until, sent + lease)
            return answer, None


def _put_back(run: RunState, checkpoint: Checkpoint, failure: BaseException) -> None:
    """The store does not know of these changes after all. Later ones win; what it cannot keep is left out."""
    assert run.changes is not None  # noqa: S101 - the callers have looked
    with run.lock:
        for name, record in checkpoint.steps.items():
            run.changes.steps.setdefault(name, record)
            if isinstance(failure, NotSerializable):
                run.changes.cannot_keep(name)
        if not isinstance(failure, NotSerializable):
            pending = run.changes.writes.setdefault("", {})
            pending.update({k: w for k, w in checkpoint.writes.items() if k not in pending or pending[k].seq < w.seq})


def lose(run: RunState, *, gone: bool = False) -> LeaseLost:
    """The store says that the run is not ours any more (`gone`: that it knows no such run)."""
    what = f"run {run.run_id} of {safe_repr(run.workflow.name)}"
    why = (
        f"the store has lost the record of {what}: nothing more was started or undone; see what it did before you run it again."
        if gone
        else f"another process has taken {what} over: it goes on there, and here nothing more was started or undone."
    )
    error = LeaseLost(why, run_id=run.run_id)
    if run.lose(error):
        emit.lease_lost(run)
    return error


def parked(run: RunState, why: str, cause: BaseException | None = None) -> RunParked:
    """The error of a run that another caller, or recovery, resumes."""
    error = RunParked(
        f"Run {run.run_id} of {safe_repr(run.workflow.name)} was parked: {why}. It resumes on the next call with its key "
        "or on engine.recover()."
    )
    error.__cause__ = cause
    return error


def cancelled(run: RunState) -> StepCancelled:
    """The error of a run that an operator has cancelled through the store."""
    return StepCancelled(f"Run {run.run_id} of {safe_repr(run.workflow.name)} was cancelled through its store.")
