"""Fast checkpoints: a chain of plain steps on a durable store, in a run that no hook observes.

For such steps this does the same as `steps.work` and `Ledger.ended`, without the branches for cases that cannot occur
here. It continues while exactly one step runs, no other is ready, and the next one depends on nothing else. All other
cases are left to them: a step that fails or writes, a store that is unreachable, a run that stops.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from .._kernel.effects import DIRECT, Ask, Direct, Outcome, Program
from .._kernel.inline import FirstAttempt
from .._kernel.run_state import RunState
from .._kernel.scopes import StepScope
from ..context import Context
from ..functions import PLAIN, is_awaitable
from ..plan import Node
from ..run import StepReport
from ..status import Status
from ..stores.base import Checkpoint, StepRecord
from .checkpoints import Answer

if TYPE_CHECKING:
    from .ledger import Ledger

__all__ = ["run_chain"]

_RUNNING: Final = Status.RUNNING  # its lookup in the enumeration, for each step, would take eight times as long
_SUCCESS: Final = Status.SUCCESS


Recorded = tuple[Node, Node | None, Checkpoint | None, float, Answer]
"""the step that ended last, the step after it, the checkpoint that was sent, when it was sent (monotonic), and the
reply of the store; after the last step of the run nothing is sent, and the second and third are None"""


def run_chain(run: RunState, ledger: Ledger, node: Node) -> Program[FirstAttempt | Recorded]:
    """Run a chain of steps that begins with `node`, which was taken and whose start is saved. Returns an attempt that
    is neither judged nor saved, or a Recorded, if the last step has ended or the store did not simply accept a
    checkpoint."""
    clock, lease, lock = run.settings.clock, run.settings.lease, run.lock
    key, run_id, fence, results, reports = run.stored_key, run.run_id, run.fence, run.results, run.reports
    copy, types, epoch = run.context.copy, run.plan.types, ledger.epoch
    # Yielding to the driver for each step would cost as much as the rest of this function.
    direct: Direct | None = yield DIRECT
    at = clock()
    waited = at - run.ready_at[node.index]
    while True:
        ctx = Context(run, node)
        outcome: Outcome = (yield ctx) if direct is None else direct.call_here(node.fn, ctx, copy())
        value = outcome[0]
        name, after = node.name, node.follows
        if (
            outcome[1] is not None
            or (type(value) not in PLAIN and is_awaitable(value))
            or not (run.left == 1 if after is None else after.plain)
        ):
            return _made(run, ledger, at, waited, ctx, outcome)
        ended, effect = clock(), node.compensation is not None
        with lock:
            if (
                run.stopped
                or run.ready
                or run.running > 1
                or ledger.steps
                or ledger.writes
                or name in ledger.handed_out
            ):
                return _made(run, ledger, at, waited, ctx, outcome)
            results[name] = value
            if effect:
                run.to_undo.append(node)
            report = reports[name] = StepReport(_SUCCESS, 1, waited, ended - at, 0.0, started=at + epoch)
            run.left -= 1
            ledger.seq = seq = ledger.seq + 2
            done = StepRecord(seq - 1, report, True, value, effect, {})
            if after is None:  # the last step is saved together with the end of the run
                ledger.steps[name] = done
                run.running -= 1
                return node, None, None, ended, (None, None)
        begins = StepRecord(seq, StepReport(_RUNNING, 1, started=ended + epoch), False, None, False, {})
        steps = {name: done, after.name: begins}
        ledger.sent.update(steps)
        renews = ledger.must_renew(ended, lease)
        checkpoint = Checkpoint(key, run_id, fence, lease, steps, {}, base=ledger.base, types=types, renews=renews)
        if direct is None:
            answer, failure = yield Ask("checkpoint", checkpoint)
        else:
            answer, failure = direct.ask_here("checkpoint", checkpoint)
        at = clock()
        if failure is None and answer is None:
            if renews:
                ledger.extend_lease(ended + lease)
            ledger.base = seq
            if at < ledger.lease_until and not run.stopped:
                node, waited = after, 0.0  # it starts at the moment at which it is ready
                continue
        ledger.announced.add(after.name)
        return node, after, checkpoint, ended, (answer, failure)


def _made(run: RunState, ledger: Ledger, at: float, waited: float, ctx: Context, outcome: Outcome) -> FirstAttempt:
    scope = StepScope(at, run.context, waited)
    scope.epoch = ledger.epoch
    return FirstAttempt(ctx, outcome, scope, scope)
