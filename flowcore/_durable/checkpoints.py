"""Telling a durable store: each start of a step, each end, each undo, before anything that follows from it begins.

Whoever takes the run over knows no more than what was told here. So a step's end is told together with the start of the
next one that its worker goes on with, in one round trip, and only then may anything else that waited for it begin.

Source of the rules: a store that does not answer is asked again until the lease is about to end, then the run parks; one
that answers Lost has another owner by now, and this one starts and undoes nothing more.
"""

from __future__ import annotations

import contextvars
from collections.abc import Collection
from typing import Any, Final

from .._kernel import emit
from .._kernel.effects import Ask, Program, Sleep, Stop
from .._kernel.run_state import Execution
from ..errors import LeaseLost, NotSerializable, RunParked, StoreUnavailable, said, shown
from ..plan import Node
from ..retry import Backoff
from ..stores.base import Checkpoint, Ending, Lost, RunRecord

__all__ = [
    "AGAIN",
    "ask",
    "begin",
    "begun_already",
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
AGAIN: Final = Backoff.exponential(0.02, max_delay=1.0, jitter=False)
"""how often a store that does not answer is asked again"""
_MARGIN: Final = 1 / 6
"""the last part of a lease, in which nothing is begun that the store does not know of"""


def ask(x: Execution, verb: str, argument: object, context: contextvars.Context | None = None) -> Program[Answer]:
    """Ask the store once, in the run's context or in that given, and tell the hooks how it went."""
    began = x.settings.clock()
    outcome: Answer = yield Ask(verb, argument, context)
    emit.store_called(x, verb, began, outcome[1])
    return outcome


def begun_already(x: Execution, node: Node) -> bool:
    """Whether the store knows already that `node` begins, and nothing speaks against it: it may, without asking."""
    changes = x.changes
    assert changes is not None  # noqa: S101 - the callers have looked
    if node.name not in changes.begun or x.stopped or x.in_doubt is not None or x.settings.clock() >= x.lease_until:
        return False
    with x.lock:
        changes.begun.discard(node.name)
    return True


def begin(x: Execution, node: Node, attempt: int) -> Program[bool]:
    """Have the store know that an attempt of `node` is about to start. False: it must not, the run stops.

    Raises NotSerializable for what an earlier attempt wrote.
    """
    assert x.changes is not None  # noqa: S101 - the callers have looked
    with x.lock:
        known = attempt == 1 and node.name in x.changes.begun
        doubtful = None if x.in_doubt is None else x.in_doubt.pop(node.name, None)
        if known:
            x.changes.begun.discard(node.name)
        else:
            x.changes.begins(node.name, attempt)
    if known:
        ours = yield from still_ours(x)
        if ours and x.stopped:
            x.not_begun(node)
        return ours and not x.stopped
    failure = yield from _checkpoint(x, (node.name,))
    if isinstance(failure, NotSerializable):
        raise failure
    if x.stopped and x.in_doubt is not None and doubtful is not None:
        with x.lock:
            x.in_doubt[node.name] = doubtful
    elif x.stopped and failure is None and attempt == 1:  # the run failed while its store was told
        x.not_begun(node)
    return failure is None and not x.stopped


def ended(x: Execution, node: Node, value: object, *, skipped: bool) -> Program[tuple[Node | None, Exception | None]]:
    """Have the store know that `node` is done, or was skipped, and free what waited for it.

    Answers the node to go on with, and why the run must fail though the step has not: its result cannot be stored.
    """
    after, told = x.settle(node, value, skipped=skipped)
    failure = None if told is None else (yield from _checkpoint(x, told))
    return _freed(x, node, after, failure)


def heard(
    x: Execution,
    node: Node,
    after: Node,
    checkpoint: Checkpoint,
    sent: float,
    answer: object,
    failure: BaseException | None,
) -> Program[tuple[Node | None, Exception | None]]:
    """What `ended` does when a store, asked at `sent`, has not simply answered that it knows of `node` and `after`."""
    if failure is not None:
        answer, failure = yield from _insist(x, "checkpoint", checkpoint, (sent, failure))
    failure = yield from _told(x, checkpoint, answer, failure)
    return _freed(x, node, after, failure)


def _freed(
    x: Execution, node: Node, after: Node | None, failure: BaseException | None
) -> tuple[Node | None, Exception | None]:
    """The store was told that `node` is over, or `failure`: what waited for it may go on, unless the run has stopped."""
    assert x.changes is not None  # noqa: S101 - the callers have looked
    if isinstance(failure, NotSerializable):
        if after is not None:
            with x.lock:
                x.changes.steps.pop(after.name, None)
                x.changes.begun.discard(after.name)
        return None, failure
    released, after = x.release(node, after)
    emit.steps_ready(x, released)
    return after, None


def flush(x: Execution) -> Program[bool]:
    """Have the store know all that it does not; once the run has stopped, also why, and that it is being undone.

    False: the run is not ours any more, or parked. What cannot be stored is left out: the run has failed already.
    """
    failure = yield from _checkpoint(x, None)
    if isinstance(failure, NotSerializable):
        failure = yield from _checkpoint(x, None)
    return failure is None and not x.left_to_others


def still_ours(x: Execution) -> Program[bool]:
    """Whether the run may go on without asking; where the lease has run out unnoticed, the store is asked."""
    if x.left_to_others:
        return False
    if x.settings.clock() < x.lease_until:
        return True
    failure = yield from _checkpoint(x, ())
    return failure is None and not x.left_to_others


def finish(x: Execution, record: RunRecord) -> Program[BaseException | None]:
    """Tell the store how the run ended, and all that it does not know yet. Answers why it could not be told."""
    if x.changes is None:
        _, failure = yield from ask(x, "finish", Ending(record))
        return failure
    with x.lock:
        steps, writes = x.changes.take()
    changes = Checkpoint(record.key, record.run_id, record.fence, x.settings.lease, steps, writes, record.undoing)
    answer, failure = yield from _insist(x, "finish", Ending(record, changes))
    if failure is not None:
        _put_back(x, changes, failure)
    return lose(x, gone=answer.gone) if isinstance(answer, Lost) else failure


def _checkpoint(x: Execution, steps: Collection[str] | None) -> Program[BaseException | None]:
    """Tell the store what has changed of `steps` (None: of all). Answers NotSerializable; anything else that keeps the
    store from knowing stops the run."""
    assert x.changes is not None  # noqa: S101 - the callers have looked
    with x.lock:
        if steps is None and x.running > 1:  # what others write goes with their own ends
            steps = (*x.changes.steps, "")
        records, writes = x.changes.take(steps)
        # A pivot that is still running may succeed, and then nothing is undone.
        undoing = x.failing and not (x.plan.pivoted and x.running)
        checkpoint = Checkpoint(x.stored_key, x.run_id, x.fence, x.settings.lease, records, writes, undoing)
        if undoing:
            checkpoint.failed_step, checkpoint.error = x.failed_step, x.error
    answer, failure = yield from _insist(x, "checkpoint", checkpoint)
    return (yield from _told(x, checkpoint, answer, failure))


def _told(
    x: Execution, checkpoint: Checkpoint, answer: object, failure: BaseException | None
) -> Program[BaseException | None]:
    """The store has answered a checkpoint, or has not: what follows for the run."""
    while failure is None and answer is None and x.settings.clock() >= x.lease_until:
        # It was written in time, but this process heard of it too late: somebody else may have the run by now.
        empty = Checkpoint(x.stored_key, x.run_id, x.fence, x.settings.lease)
        answer, failure = yield from _insist(x, "checkpoint", empty)
    if failure is not None:
        _put_back(x, checkpoint, failure)
    if isinstance(answer, Lost):
        failure = lose(x, gone=answer.gone)
    elif failure is not None and not isinstance(failure, NotSerializable):
        x.park(parked(x, f"its store could not be told what it did: {said(failure, 200)}", failure))
    if x.left_to_others:
        yield Stop(cancel=x.lost)
    return failure


def _insist(
    x: Execution, verb: str, argument: object, failed: tuple[float, BaseException] | None = None
) -> Program[Answer]:
    """Ask the store until it answers, or the lease is about to end; for at most a lease, should it be renewed all the
    time by a store that cannot write. `failed`: when it was first asked, and what came of that."""
    clock, lease = x.settings.clock, x.settings.lease
    began, failure = (clock(), None) if failed is None else failed
    tries = 0
    while True:
        if failure is not None:
            left = min(x.lease_until, began + lease) - clock() - lease * _MARGIN
            if not isinstance(failure, StoreUnavailable) or left <= 0 or x.lost:
                return None, failure
            tries += 1
            yield Sleep(min(AGAIN.delay(tries), left), shielded=True)
        sent = clock()
        answer, failure = yield Ask(verb, argument)
        if x.wanted:
            emit.store_called(x, verb, sent, failure)
        if failure is None:
            x.lease_until = max(x.lease_until, sent + lease)
            return answer, None


def _put_back(x: Execution, checkpoint: Checkpoint, failure: BaseException) -> None:
    """The store does not know of these changes after all. Later ones win; what it cannot keep is left out."""
    assert x.changes is not None  # noqa: S101 - the callers have looked
    with x.lock:
        for name, record in checkpoint.steps.items():
            x.changes.steps.setdefault(name, record)
            if isinstance(failure, NotSerializable):
                x.changes.cannot_keep(name)
        if not isinstance(failure, NotSerializable):
            pending = x.changes.writes.setdefault("", {})
            pending.update({k: w for k, w in checkpoint.writes.items() if k not in pending or pending[k].seq < w.seq})


def lose(x: Execution, *, gone: bool = False) -> LeaseLost:
    """The store says that the run is not ours any more (`gone`: that it knows no such run)."""
    what = f"run {x.run_id} of {shown(x.workflow.name)}"
    why = (
        f"the store has lost the record of {what}: nothing more was started or undone; see what it did before you run it again."
        if gone
        else f"another process has taken {what} over: it goes on there, and here nothing more was started or undone."
    )
    error = LeaseLost(why, run_id=x.run_id)
    if x.lose(error):
        emit.lease_lost(x)
    return error


def parked(x: Execution, why: str, cause: BaseException | None = None) -> RunParked:
    """The error of a run that is left to whoever goes on with it."""
    how = "the next call with its key, or engine.recover(), goes on with it"
    error = RunParked(f"run {x.run_id} of {shown(x.workflow.name)} is parked, {why}; {how}.")
    error.__cause__ = cause
    return error
