"""The ledger of a durable run, which saves the progress of its steps in the store.

Each start, end and undo of a step is saved before anything that follows from it starts, because the next owner of the
run knows only what is saved. The end of a step is saved together with the start of the step that its worker runs next,
in one round trip.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Final, cast

from .._kernel import emit, emit_steps, stopping
from .._kernel.effects import Program, Sleep
from .._kernel.inline import FirstAttempt
from .._kernel.ledger import Errors, now_of
from .._kernel.outcome import StepEnd
from .._kernel.run_state import RunState
from .._kernel.steps import stopped
from ..errors import LeaseLost, NotSerializable, safe_str
from ..plan import Node
from ..run import StepReport
from ..status import Status
from ..stores.base import Checkpoint
from .checkpoints import STORE_BACKOFF, ask, parked, retry_store_call, save, settle
from .fast_checkpoints import run_chain
from .handed_out import apart, complaint
from .unsaved import Unsaved

__all__ = ["Ledger", "ledger_of"]

_FRESH: Final = 3 / 4
"""the part of a lease that is left when a checkpoint renews it"""


class Ledger(Unsaved):
    """See flowcore._kernel.ledger.Ledger. It has no reference to its run, so that a run that is over leaves no cycle
    for the garbage collector."""

    __slots__ = ("ahead", "epoch", "in_doubt", "lease_until", "ordered", "reason")

    def __init__(self) -> None:
        super().__init__()
        self.in_doubt: Mapping[str, StepReport] = {}
        """after a takeover: the recorded reports of steps that may have had their effect"""
        self.lease_until = math.inf
        self.epoch = self.ahead = 0.0
        self.ordered = False
        """whether an operator has cancelled or undone the run while it was in flight here, and the reason is unknown"""
        self.reason: str | None = None
        """the reason that this operator gave"""

    def note_clocks(self, run: RunState, sent: float, store_now: float | None) -> None:
        """Note the offset of the store's clock. `store_now`: the store's time in the reply to a claim; `sent`: when
        that claim was sent (monotonic)."""
        clock, wall = run.settings.clock(), run.settings.wall()
        # The offset is uncertain by the time that the reply took. If it may be 0, it is taken to be 0.
        least = 0.0 if store_now is None else store_now - wall
        self.ahead = 0.0 if store_now is None else min(max(0.0, least), least + clock - sent)
        self.epoch = wall + self.ahead - clock

    def extend_lease(self, until: float) -> None:
        self.lease_until = max(self.lease_until, until)

    def must_renew(self, now: float, lease: float) -> bool:
        """Whether a checkpoint at `now` must renew the lease. For a quarter of it after each renewal it need not,
        because that would cost the store more than the rest of the checkpoint."""
        return now >= self.lease_until - lease * _FRESH

    # -- steps ---------------------------------------------------------------------------------------------------------

    def may_begin(self, run: RunState, node: Node) -> bool:
        if node.name not in self.announced or run.stopped or run.settings.clock() >= self.lease_until:
            return False
        with run.lock:
            self.announced.discard(node.name)
        return True

    def began(self, run: RunState, node: Node, attempt: int, errors: Errors) -> Program[bool]:
        with run.lock:
            known = attempt == 1 and node.name in self.announced
            if known:
                self.announced.discard(node.name)
            else:
                self.note_start(node.name, attempt, now_of(run), errors)
        if known:
            begins = (yield from self.may_continue(run)) and not run.stopped
        else:
            failure = yield from save(run, self, (node.name,))
            if isinstance(failure, NotSerializable):
                raise failure
            begins = failure is None and not run.stopped
        if not begins:  # its start is saved, or may be; the next owner must not take the step for one in doubt
            self.withdrawn(run, node, attempt - 1, errors)
        return begins

    def waits(self, run: RunState, node: Node, until: float) -> Program[bool]:
        ends = None if until == math.inf else until - run.settings.clock() + now_of(run)
        with run.lock:
            self.note_wait(node.name, now_of(run), ends)
        failure = yield from save(run, self, (node.name,))
        if isinstance(failure, NotSerializable):
            raise failure
        return failure is None and not run.stopped

    def close_wait(self, run: RunState, node: Node) -> Program[bool]:
        with run.lock:
            self.note_closed(node.name, now_of(run))
        failure = yield from save(run, self, (node.name,))
        if isinstance(failure, NotSerializable):
            raise failure
        if failure is not None or run.stopped:
            return False
        began, tries = run.settings.clock(), 0
        while True:
            found, failure = yield from ask(run, "find", run.stored_key)
            if failure is None or run.stopped:
                break
            tries += 1
            if run.settings.clock() - began > run.settings.store_patience:
                why = f"the values sent to it could not be read ({safe_str(failure, 200)})"
                stopping.park(run, parked(run, why, failure))
                break
            yield Sleep(STORE_BACKOFF.delay(tries))
        if run.waits is not None and found is not None and found.run_id == run.run_id and node.name in found.sent:
            with run.lock:
                run.waits.sent.setdefault(node.name, found.sent[node.name])
        return not run.stopped

    def attempt_failed(self, run: RunState, node: Node, end: StepEnd, delay: float) -> Program[None]:
        if end.scope is not None:
            self.first_starts.setdefault(node.name, end.scope.at + self.epoch)
            self.attempt_times[node.name] = end.scope.attempt_times
        if not delay:  # the start of the next attempt is saved at once, with this failure
            return
        with run.lock:
            due, effect = now_of(run) + delay, _may_be_done(run, node)
            self.note_failed_attempt(node.name, end.failed, end.errors, due, effect=effect)
        failure = yield from save(run, self, (node.name,))
        if isinstance(failure, NotSerializable):
            raise failure

    def ended(self, run: RunState, node: Node, end: StepEnd) -> Program[Node | None]:
        result = end.value
        with run.lock:
            if node.name in self.writes or node.name in self.handed_out:
                result = self._own_result(run, node, result)
            failure: BaseException | None = self._note_changes(run, node)
        following, steps = self._note_success(run, node, end, result)
        if failure is None and steps is not None:
            failure = yield from save(run, self, steps)
        return (yield from self._unblock(run, node, following, failure))

    def _own_result(self, run: RunState, node: Node, result: object) -> object:
        """(lock) Replace results that `node`, which has ended, may have written to the context, by copies. Returns the
        copy of its own `result`; the others are results that it read."""
        if node.name in self.writes:
            for name in self.handed_out.results_of(node.name):
                run.results[name] = apart(run.results[name])
        return apart(result)

    def _note_changes(self, run: RunState, node: Node) -> NotSerializable | None:
        """Note the values that `node`, which has ended, changed in place. A changed result is set back to its recorded
        value, with a warning; if the store is strict, an error is returned instead. The caller holds the run's lock."""
        step, refused = node.name, None
        if step not in self.handed_out:
            return None
        if self.handed_out.take_input(step) and run.workflow.input is not None:
            for key, value in run.workflow.input.changes(run.input, run.values).items():
                run.values[key] = value
                self.wrote(step, key, value)
        for key, value in self.handed_out.changed_values(step):
            if run.values.get(key) is value:  # a value that was replaced meanwhile is not written
                self.wrote(step, key, value)
        for name, recorded in self.handed_out.changed_results(step):
            run.results[name] = recorded
            if getattr(run.settings.store, "strict", False):
                refused = NotSerializable(complaint(step, name))
            else:
                self.handed_out.warn(step, name, run.run_id)
        return refused

    def _note_success(
        self, run: RunState, node: Node, end: StepEnd, result: object
    ) -> tuple[Node | None, tuple[str, ...] | None]:
        """Note the end of `node`. Returns the node that this worker runs next, or None, and the steps to save at once.
        These are None if the checkpoint at the run's end, or the one before the first undo, is soon enough."""
        skipped = end.status is Status.SKIPPED
        with run.lock:
            effect = not skipped and node.compensation is not None
            if not skipped:
                run.results[node.name] = result
            if effect:
                run.to_undo.append(node)
            self.note_end(node.name, run.report(node), run.results, effect=effect)
            run.left -= 1
            if run.stopped or not run.left:
                return None, None if run.running == 1 else (node.name,)
            following = None
            if run.ready:  # this worker keeps its place among the steps that run at a time
                following = run.plan.nodes[run.ready.popleft()]
            else:  # the first successor that depends on no other step that is not saved
                for index in node.successors:
                    if run.counts[index] == 1:
                        following = run.plan.nodes[index]
                        break
            if following is None:
                return None, (node.name,)
            if _is_announced(run, following):
                self.note_start(following.name, 1, run.settings.clock() + self.epoch)
                self.announced.add(following.name)
            return following, (node.name, following.name)

    def _unblock(
        self, run: RunState, node: Node, following: Node | None, failure: BaseException | None
    ) -> Program[Node | None]:
        """Unblock the dependents of `node`, whose end is saved, or fail the run if the store cannot keep its result.
        Returns the node to run next."""
        if isinstance(failure, NotSerializable):  # the step had its effect, and is undone with the others
            if following is not None:
                with run.lock:
                    self.steps.pop(following.name, None)
                    self.announced.discard(following.name)
            yield from stopped(run, stopping.fail(run, failure, node.name))
            return None
        unblocked: list[int] = []
        with run.lock:
            run.unblock(node, unblocked)
        emit_steps.steps_ready(run, unblocked)  # before another worker can start them
        if following is None:
            return run.join_queue(unblocked)
        with run.lock:
            if not run.stopped:
                run.ready.extend(index for index in unblocked if index != following.index)
                return following
            run.running -= 1
            if _is_announced(run, following):
                self._withdraw(run, following.name)
            return None

    def run_plain(self, run: RunState, node: Node) -> Program[FirstAttempt | Node | None]:
        made = yield from run_chain(run, self, node)
        return made if isinstance(made, FirstAttempt) else (yield from self._after_chain(run, *made))

    def _after_chain(
        self,
        run: RunState,
        node: Node,
        following: Node | None,
        sent: Checkpoint | None,
        at: float,
        outcome: tuple[object, BaseException | None],
    ) -> Program[Node | None]:
        """Continue after the last step `node` of a chain. `sent`: the checkpoint that was sent at the moment `at`
        (monotonic), or None after the last step of the run. `outcome`: the store's reply, or its error."""
        if sent is None:
            return None
        answer, failure = outcome
        if failure is not None:
            answer, failure = yield from retry_store_call(run, self, "checkpoint", sent, (at, failure))
        failure = yield from settle(run, self, sent, answer, failure)
        return (yield from self._unblock(run, node, following, failure))

    def failed(self, run: RunState, node: Node, *, effect: bool) -> None:
        self._note_changes(run, node)
        self.note_end(node.name, run.report(node), run.results, effect=effect)

    def withdrawn(self, run: RunState, node: Node, failed: int = 0, errors: Errors = ()) -> None:
        with run.lock:
            if failed:
                due, effect = now_of(run), _may_be_done(run, node)
                self.note_failed_attempt(node.name, failed, errors, due, effect=effect)
            else:
                self._withdraw(run, node.name)

    def _withdraw(self, run: RunState, name: str) -> None:
        """(lock) Note that a step does not start although its start is saved. A step that was in doubt stays in
        doubt."""
        if name in run.was_in_doubt:
            self.announced.discard(name)
        else:
            self.withdraw_start(name)

    # -- undoing, and the end ------------------------------------------------------------------------------------------

    def undone(self, run: RunState, node: Node) -> Program[None]:
        with run.lock:
            self._note_changes(run, node)
            self.note_end(node.name, run.report(node), run.results, effect=True)
            more = bool(run.to_undo) or run.undoing is not None
        if more:  # the last undo is saved with the end of the run
            yield from self.flush(run)

    def may_continue(self, run: RunState) -> Program[bool]:
        if run.relinquished:
            return False
        if run.settings.clock() < self.lease_until:
            return True
        failure = yield from save(run, self, ())
        return failure is None and not run.relinquished

    def flush(self, run: RunState) -> Program[bool]:
        failure = yield from save(run, self, None)
        if isinstance(failure, NotSerializable):  # save the rest without that value: the run has failed already
            failure = yield from save(run, self, None)
        return failure is None and not run.relinquished

    def stopped(self, run: RunState) -> None:
        with run.lock:
            for name in list(self.announced):
                self._withdraw(run, name)
            if not run.is_undone_here:
                return
            for name in () if run.waits is None else list(run.waits.until):
                self.withdraw_start(name)
            for node in run.plan.nodes if run.was_in_doubt else ():
                if node.name in run.was_in_doubt and run.report(node).status is Status.PENDING:
                    self._leave_in_doubt(run, node)

    def _leave_in_doubt(self, run: RunState, node: Node) -> None:
        """(lock) Note that `node`, which was in doubt, was not attempted again, and add it to the steps to undo."""
        found = self.in_doubt.get(node.name, run.report(node))
        status = Status.FAILURE if found.status is Status.FAILURE else Status.UNKNOWN
        report = run.reports[node.name] = replace(found, status=status, retry_at=None)
        effect = node.compensation is not None
        if effect:
            run.to_undo.append(node)
        self.note_end(node.name, report, run.results, effect=effect)

    def decided(self, run: RunState, node: Node, *, effect: bool) -> None:
        """Note the end of `node`, which had not ended under an earlier owner, as its report describes, because the run
        is undone. `effect`: `node` may have had its effect."""
        with run.lock:
            effect = effect and node.compensation is not None
            self.note_end(node.name, run.report(node), run.results, effect=effect)

    def save_again(self, run: RunState) -> None:
        with run.lock:
            self.put_all_back()
            for name in run.results:
                node, record = run.plan.by_name[name], self.steps.get(name)
                if (record is None or not record.has_result) and name not in self.unstorable:
                    self.note_end(name, run.report(node), run.results, effect=node.compensation is not None)

    def unfinished(self, run: RunState, failure: BaseException) -> BaseException:
        if isinstance(failure, LeaseLost):
            emit.lease_lost(run)
        elif not isinstance(failure, NotSerializable):
            failure = parked(
                run, f"its end could not be saved ({type(failure).__name__}: {safe_str(failure, 200)})", failure
            )
        return failure

    def carry(self, step: str, carrier: dict[str, str]) -> None:
        self.carriers[step] = carrier


def ledger_of(run: RunState) -> Ledger | None:
    """Return the run's ledger, or None in memory."""
    return cast("Ledger | None", run.ledger)


def _is_announced(run: RunState, node: Node) -> bool:
    """Whether the start of `node` is saved together with the end of the step before it."""
    return node.when is None and node.wait is None and node.name not in run.tried


def _may_be_done(run: RunState, node: Node) -> bool:
    """Whether an attempt of `node` that a crash cut off may have had its effect, and `node` can be undone."""
    return node.name in run.was_in_doubt and node.compensation is not None
