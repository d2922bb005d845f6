"""The plain steps of a chain whose run only a durable store listens to: what `steps.work` and `checkpoints.ended` do for any
step, without their ways around what does not happen here.

It goes on while exactly one step runs, none is ready beside it, and the next one waits for nothing else. Whatever is not as
simple as that, a step that fails or writes, a store that does not answer, a run that stops, is left to the others.
"""

from __future__ import annotations

from types import CoroutineType

from .._kernel.effects import DIRECT, Ask, Direct, Outcome, Program
from .._kernel.emit import StepScope
from .._kernel.inline import FirstAttempt
from .._kernel.run_state import RunState
from ..context import Context
from ..plan import Node
from ..run import BEGINS, StepReport
from ..status import Status
from ..stores.base import Checkpoint, StepRecord
from . import checkpoints

__all__ = ["stride"]


def stride(run: RunState, node: Node) -> Program[FirstAttempt | tuple[Node, Node | None, Exception | None]]:
    """Run steps from `node` on, of which the store knows that it begins, and which is taken.

    Answers an attempt that is still to be judged or recorded; or else the step that was recorded last, the node to go on
    with, and why the run must fail though that step has not.
    """
    changes, clock, lease, lock = run.changes, run.settings.clock, run.settings.lease, run.lock
    assert changes is not None  # noqa: S101 - the caller has looked
    key, run_id, fence, results, reports = run.stored_key, run.run_id, run.fence, run.results, run.reports
    copy = run.context.copy
    # From step to step, the way through the driver would cost as much as all that is done here.
    direct: Direct | None = yield DIRECT
    at = clock()
    waited = at - run.ready_at[node.index]
    while True:
        ctx = Context(run, node)
        value, error = (yield ctx) if direct is None else direct.call_here(node.fn, ctx, copy())
        name, after = node.name, node.follows
        if error is not None or type(value) is CoroutineType or not (run.left == 1 if after is None else after.plain):
            return _made(run, at, waited, ctx, (value, error))
        ended, effect = clock(), node.compensation is not None
        with lock:
            if run.stopped or run.ready or run.running > 1 or changes.steps or changes.writes:
                return _made(run, at, waited, ctx, (value, error))
            results[name] = value
            if effect:
                run.to_undo.append(node)
            report = reports[name] = StepReport(Status.SUCCESS, 1, waited, ended - at, 0.0)
            run.left -= 1
            changes.seq = seq = changes.seq + 2
            done = StepRecord(seq - 1, report, True, value, effect, {})
            if after is None:  # the checkpoint that the run ends with tells of its last step
                changes.steps[name] = done
                run.running -= 1
                return node, None, None
        begins = StepRecord(seq, BEGINS, False, None, False, {})
        steps = {name: done, after.name: begins}
        changes.sent.update(steps)
        checkpoint = Checkpoint(key, run_id, fence, lease, steps, {}, base=changes.base)
        if direct is None:
            answer, failure = yield Ask("checkpoint", checkpoint)
        else:
            answer, failure = direct.ask_here("checkpoint", checkpoint)
        at = clock()
        if failure is None and answer is None:
            until = run.lease_until = max(run.lease_until, ended + lease)
            changes.base = seq
            if at < until and not run.stopped:
                node, waited = after, 0.0  # it is ready in the moment in which it starts
                continue
        changes.begun.add(after.name)
        return node, *(yield from checkpoints.heard(run, node, after, checkpoint, ended, answer, failure))


def _made(run: RunState, at: float, waited: float, ctx: Context, outcome: Outcome) -> FirstAttempt:
    scope = StepScope(at, run.context, waited)
    return FirstAttempt(ctx, outcome, scope, scope)
