"""The plain steps of a chain whose run only a durable store listens to: what `steps.work` and `durable.ended` do for any
step, without their ways around what does not happen here.

It goes on while exactly one step runs, none is ready beside it, and the next one waits for nothing else. Whatever is not as
simple as that, a step that fails or writes, a store that does not answer, a run that stops, is left to the others.
"""

from __future__ import annotations

from types import CoroutineType
from typing import Any, NamedTuple

from ..context import Context
from ..plan import Node
from ..run import StepReport
from ..status import Status
from ..stores.base import Checkpoint, StepRecord
from . import durable
from .effects import Ask, GivenUp, Program
from .execution import Execution

__all__ = ["Made", "stride"]


class Made(NamedTuple):
    """The first attempt of `node`, which began at `at`, was made: `value`, or `error`. The store does not know yet."""

    node: Node
    at: float
    ctx: Context
    value: Any
    error: BaseException | GivenUp | None


def stride(x: Execution, node: Node) -> Program[Made | tuple[Node, Node | None, Exception | None]]:
    """Run steps from `node` on, of which the store knows that it begins, and which is taken.

    Answers an attempt that is still to be judged or recorded; or else the step that was recorded last, the node to go on
    with, and why the run must fail though that step has not.
    """
    changes, clock, lease, lock = x.changes, x.settings.clock, x.settings.lease, x.lock
    assert changes is not None  # noqa: S101 - the caller has looked
    key, run_id, fence, ready_at = x.stored_key, x.run_id, x.fence, x.ready_at
    while True:
        at = clock()
        ctx = Context(x, node)
        value, error = yield ctx
        name, after = node.name, node.follows
        if error is not None or after is None or not after.plain or type(value) is CoroutineType:
            return Made(node, at, ctx, value, error)
        ran, effect = clock() - at, node.compensation is not None
        with lock:
            if x.stopped or x.ready or x.running > 1 or changes.steps or changes.writes:
                return Made(node, at, ctx, value, error)
            x.results[name] = value
            if effect:
                x.to_undo.append(node)
            report = x.reports[name] = StepReport(Status.SUCCESS, 1, at - ready_at[node.index], ran, 0.0)
            x.left -= 1
            changes.seq += 2
            seq = changes.seq
            changes.begun.add(after.name)
        begins = StepRecord(seq, StepReport(Status.RUNNING, 1), False, None, False, {})
        steps = {name: StepRecord(seq - 1, report, True, value, effect, {}), after.name: begins}
        checkpoint = Checkpoint(key, run_id, fence, lease, steps, {})
        sent = clock()
        answer, failure = yield Ask("checkpoint", checkpoint)
        if failure is None and answer is None:
            x.lease_until = max(x.lease_until, sent + lease)
            now = clock()
            with lock:
                if now < x.lease_until and not x.stopped:
                    x.counts[after.index] = 0
                    ready_at[after.index] = now
                    changes.begun.discard(after.name)
                    node = after
                    continue
        return node, *(yield from durable.heard(x, node, after, checkpoint, sent, answer, failure))
