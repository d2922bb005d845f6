"""One run in flight: its data, its ready queue, and the few decisions that must be made under its lock."""

from __future__ import annotations

import contextvars
import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import CoroutineType
from typing import TYPE_CHECKING, Any

from ..errors import LeaseLost, NoResult, RunParked, StepCancelled, safe_repr
from ..events import Event, Hooks
from ..events.hooks import Crossing
from ..plan import Node
from ..run import Run, Sent, StepReport, no_result
from ..status import Status
from ..step import Step
from .effects import Call, Outcome
from .ledger import Ledger
from .request import Request
from .settings import Settings
from .waits import Waits

if TYPE_CHECKING:
    from .emit import EventScope
    from .inline import InlineProgress
    from .outcome import StepEnd

__all__ = ["RunState", "step_key"]


class RunState:
    """One run in flight. What is marked (lock) changes only under `lock`; user code and hooks never run under it.

    What most runs never touch has its default on the class, so that beginning a run stays cheap.
    """

    # its caller
    key: str | None = None
    """the idempotency key"""
    input: Any = None
    """of Workflow(input=); None until a step asks for it"""
    after_wait = False
    """it had waited in its store"""
    cancelled_late: BaseException | None = None
    """(lock) what it was cancelled with while it was left to its store"""
    continued: RunState | None = None
    """(lock) after that: the same run once more, for its caller"""
    given = False
    """(lock) after that: its caller has it as it is"""
    dormant = False
    """it waits in its store, and its caller here for it"""
    on_pause: Callable[[Run | None], None] | None = None
    """called with the run when nothing of it can go on but its waits, and with None when it goes on"""

    # the claim
    claimed = False
    deadline: float | None = None
    """monotonic"""
    fingerprint: str | None = ""
    generation = 0
    fence = 1
    carrier: Mapping[str, str] = {}
    _run_id: str | None = None
    interrupted_carrier: Mapping[str, str] | None = None
    interrupted_by: Mapping[str, str | int | float] = {}
    """after a takeover, what the record says of the owner before: see RunStarted"""
    """after a takeover: the carrier of the owner that went before"""

    # the durable store
    ledger: Ledger | None = None
    """what the store must know of the steps; None in memory"""
    tried: Mapping[str, StepReport] = {}
    """after a takeover: of steps whose attempts under earlier owners failed, and that have some left, what is recorded"""
    was_in_doubt: frozenset[str] = frozenset()
    """after a takeover: steps that were in flight, so that an earlier attempt may have had its effect"""

    # the ready queue
    running = 0
    """(lock) nodes taken and not ended"""
    waking = False
    """(lock) a helper has been asked for and has not come yet"""
    main_waits = False
    """(lock) the main program has nothing to do but wait for the others"""
    past_pivot = False
    """nothing is undone any more: a pivot is done, or the workflow has undo="never\""""
    working = False
    """the claim is made and the steps may run"""

    # the failure
    stopped = False
    """(lock) nothing new may start"""
    interrupted = False
    """the run was cancelled: calls should end early"""
    parked = False
    """(lock) another process is to resume it: start nothing, undo nothing"""
    lost = False
    """(lock) another process owns it: start nothing, undo nothing"""
    held = False
    """parked until an operator has decided"""
    leaving: BaseException | None = None
    """(lock) why it is left to others"""
    reason: str | None = None
    """why it is parked or held, as its record says it"""
    retries = 0
    """after a takeover: how often it had ended parked or incomplete since its last progress"""
    done_before = 0
    """after a takeover: how many steps and undos had ended"""
    error: BaseException | None = None
    """(lock) what failed the run"""
    failed_step: str | None = None
    """(lock)"""
    other_errors: tuple[tuple[str, BaseException], ...] = ()
    """(lock) what came after it"""
    abandoned: tuple[Call, ...] = ()
    """(lock) calls that were given up and may not have landed"""
    undoing: set[int] | None = None
    """(lock) in a parallel undo: the nodes to undo"""
    undo_begun: set[str]
    """(lock) steps whose undo has begun; only once the run has stopped"""
    undo_order = 0
    undo_stopped = False
    """a second Ctrl-C: start no further undo"""
    undone: list[str]
    """steps whose undo succeeded, in order; only once the run has stopped"""
    undo_errors: dict[str, Exception]
    """of the undos that failed, by step; only once the run has stopped"""
    finished: Status | None = None
    progress: InlineProgress | None = None
    """where the inline path stopped; the main program continues there"""
    at: Node | None = None
    """the last node that the caller's thread began to run, or to undo"""
    hooks: Hooks = Hooks()
    wanted: frozenset[type[Event]] = frozenset()
    observed = False
    """whether times are wanted"""
    store_context: contextvars.Context | None = None
    """where hooks have prepared one: the contextvars context that each call of the store gets a copy of"""
    scope: EventScope | None = None
    """what hooks entered at the run's start"""
    state: dict[Any, Any]
    """for hooks: shared by all events of this run in this process; only where it is observed"""
    ready_at: dict[int, float]
    """when nodes became ready, in monotonic seconds; only where it is observed"""
    waits: Waits | None = None
    """(lock) of steps without a function; None: the workflow has none"""
    times: dict[str, tuple[float, float]]
    """seconds waited and ran of steps that succeeded inline: kept instead of reports, which few callers read"""

    def __init__(self, settings: Settings, request: Request) -> None:
        self.settings = settings
        self.request = request
        workflow, plan = self.workflow, self.plan = request.workflow, request.plan
        self.values, self.context = request.values, request.context
        if request.key is not None:
            self.key = request.key
        if request.input is not None:
            self.input = request.input
        if workflow.undo == "never":
            self.past_pivot = True
        if settings.observed:
            self.hooks, self.observed = settings.hooks.of_run(settings.clock), True
            self.wanted = self.hooks.wanted
            self.state, self.ready_at, self.times = {}, {}, {}
        if settings.durable:
            self.ledger, self.observed = settings.claims.open(), True  # its record has times
            self.left = len(plan.nodes)  # (lock) nodes that are not over
            self.state, self.ready_at, self.times = {}, {}, {}
        if plan.waits:
            self.waits = Waits()
        self.lock = threading.Lock()
        self.limit = settings.parallel  # steps of this run at a time
        if workflow.max_parallel is not None:
            self.limit = min(self.limit, workflow.max_parallel)
        self.counts = plan.indegrees[:]  # (lock) unfinished dependencies of each node
        self.ready = deque(plan.ready)  # (lock) nodes to start, by index
        self.results: dict[str, Any] = {}  # (lock) in order of completion
        self.to_undo: list[Node] = []  # (lock) nodes with an undo whose effect stands or may stand, as they completed
        self.reports: dict[str, StepReport] = {}  # of the steps that have more than a result

    # -- what a Context and a Run ask ----------------------------------------------------------------------------------

    @property
    def run_id(self) -> str:
        """Drawn when first asked for: most runs in memory never need one."""
        if self._run_id is None:
            drawn = self.settings.new_id()
            with self.lock:
                self._run_id = self._run_id or drawn
        return self._run_id

    @run_id.setter
    def run_id(self, value: str) -> None:
        self._run_id = value

    @property
    def known_id(self) -> str | None:
        """This run's id, if it has been drawn."""
        return self._run_id

    def has_id(self, run_id: str) -> bool:
        """Whether this run's id has been drawn and is this one."""
        return self._run_id == run_id

    def step_meant(self, key: object, by: str) -> str | None:
        """The name of the step that `key` (a Step or a name) means to the function of step `by`; None: no step."""
        if isinstance(key, str):
            return key if key in self.plan.by_name else None
        if not isinstance(key, Step):
            return None
        if key.workflow is self.workflow:
            return key.name
        aliases = self.plan.by_name[by].step.aliases
        if aliases is not None and key in aliases:
            return aliases[key]
        return None

    def unknown(self, key: object) -> KeyError:
        if isinstance(key, Step):
            return NoResult(f"{key!r} belongs to another workflow than {safe_repr(self.workflow.name)}.")
        return KeyError(key)

    def no_result(self, step: str) -> NoResult:
        report = self.reports.get(step)
        return no_result(step, report or StepReport(), self.workflow.name)

    def step_key(self, step: str, *, undo: bool) -> str:
        namespace = self.settings.namespace
        return step_key(namespace, self.workflow.name, self.stored_key, self.generation, step, undo=undo)

    def crossings(self) -> list[Crossing]:
        """What hooks enter around a step in another process; called in the step's contextvars context."""
        return self.hooks.crossings()

    @property
    def stored_key(self) -> str:
        """The key of the run's record: its idempotency key, or else its id."""
        return self.key if self.key is not None else self.run_id

    def report(self, node: Node) -> StepReport:
        """The report of a step that has more than a result."""
        report = self.reports.get(node.name)
        if report is not None:
            return report
        if self.observed and node.name in self.times:
            waited, ran = self.times[node.name]
            report = StepReport(Status.SUCCESS, 1, waited, ran, 0.0)
        else:
            report = StepReport()
        return self.reports.setdefault(node.name, report)

    # -- the ready queue -----------------------------------------------------------------------------------------------

    def take(self) -> Node | None:
        """The next node to run, or None: nothing is ready, enough are running, or the run stops."""
        with self.lock:
            self.waking = False
            if self.waits is not None:
                self._ready_waits(self.waits)
            if not self.ready or self.running >= self.limit:
                return None
            self.running += 1
            return self.plan.nodes[self.ready.popleft()]

    def _ready_waits(self, waits: Waits) -> None:
        if waits.aside and not self.stopped:
            now = self.settings.clock()
            due = waits.due(now, self.deadline)
            self.ready.extend(node.index for node in due)
            for node in due:
                if node.wait is None:
                    self.ready_at[node.index] = now

    def wants_help(self) -> bool:
        """Whether another worker would find something to do and none has been asked for yet; it then counts as asked."""
        with self.lock:
            if self.waking or not self.ready or self.running >= self.limit:
                return False
            self.waking = True
            return True

    def done(self, node: Node, value: object, freed: list[Node] | None = None) -> Node | None:
        """`node` has its result: ready what waited for it (and add that to `freed`), and continue with the next one."""
        with self.lock:
            self.results[node.name] = value
            if node.compensation is not None:
                self.to_undo.append(node)
            return self._after(node, freed)

    def skipped(self, node: Node, freed: list[Node] | None = None) -> Node | None:
        """`node` was skipped, which lets its dependants go on like a result would."""
        with self.lock:
            return self._after(node, freed)

    def _after(self, node: Node, freed: list[Node] | None) -> Node | None:
        if not self.stopped:
            counts, ready = self.counts, self.ready
            for index in node.successors:
                counts[index] -= 1
                if not counts[index]:
                    ready.append(index)
                    if freed is not None:
                        self.ready_at[index] = self.settings.clock()
                        freed.append(self.plan.nodes[index])
            if ready:  # this worker's place is still its own
                return self.plan.nodes[ready.popleft()]
        self.running -= 1
        return None

    def unblock_saved(self, node: Node, following: Node | None) -> tuple[list[Node], Node | None]:
        """(lock) The end of `node` is saved: unblock its dependents. Returns them, and the node that this worker runs next:
        `following`, or else a ready one."""
        unblocked: list[Node] = []
        for index in node.successors:
            self.counts[index] -= 1
            if not self.counts[index]:
                self.ready_at[index] = self.settings.clock()
                unblocked.append(self.plan.nodes[index])
                if unblocked[-1] is not following:
                    self.ready.append(index)
        if following is None and self.ready:
            following = self.plan.nodes[self.ready.popleft()]
        if following is None:
            self.running -= 1
        return unblocked, following

    def put_back(self) -> None:
        """A node that was taken does not start after all, or has failed."""
        with self.lock:
            self.running -= 1

    def restore(self, over: set[str]) -> None:
        """Resume a run whose steps in `over` (names) have succeeded or were skipped under an earlier owner."""
        nodes = self.plan.nodes
        with self.lock:
            self.left = len(nodes) - len(over)
            self.past_pivot = self.workflow.undo == "never" or any(
                node.step.pivot and node.name in over and self.report(node).status is Status.SUCCESS for node in nodes
            )
            self.counts = [sum(nodes[i].name not in over for i in node.predecessors) for node in nodes]
            if not self.stopped:
                self.ready = deque(n.index for n in nodes if n.name not in over and not self.counts[n.index])

    def failed(self, node: Node, end: StepEnd, *, effect: bool) -> bool:
        """`node` has failed, and with it the run; `effect`: it must be undone. Returns whether this was the first. Its place
        is given up later: the run must not end before its store knows."""
        with self.lock:
            effect = effect and node.compensation is not None
            if effect:
                self.to_undo.append(node)
            if self.ledger is not None:
                self.ledger.failed(self, node, effect=effect)
            return self._stop(end.error or StepCancelled(), node.name)

    def fail(self, error: BaseException, step: str) -> bool:
        """The run fails because of `step`, which is done. Returns whether this was the first failure."""
        with self.lock:
            return self._stop(error, step)

    def interrupt(self, error: BaseException, step: str | None = None) -> bool:
        """Cancel the run because of `error` (out of `step`, if one raised it).

        Returns whether it was still going on; then the running calls are to be interrupted, by yielding a Stop or, from
        outside of a program, by the driver.
        """
        if self.finished is Status.WAITING:
            return self._cancel_late(error)
        if isinstance(error, SystemExit | KeyboardInterrupt) and self.settings.durable:
            return self.hand_over(error)
        with self.lock:
            if self.finished is not None or self.interrupted:
                return False
            self.interrupted = True
            self._stop(error, step)
            return True

    def hand_over(self, error: BaseException) -> bool:
        """This process stops because of `error`: park the run for another one, also while it is being undone, and end its
        calls early. A run in memory, which no other process can resume, is cancelled instead. Returns what `interrupt`
        does."""
        if not self.settings.durable:
            return self.interrupt(error)
        with self.lock:
            if self.finished is not None or self.lost or (self.parked and self.interrupted):
                return False
            self.interrupted = True
            if not self.parked:
                self.parked = True
                self._leave(error)
            return True

    def park(self, error: Exception | None = None) -> None:
        """Leave the run to its next owner: start no further step, undo nothing. With an `error`, which says what
        keeps it from going on, also while it is being undone."""
        with self.lock:
            if self.finished is not None or self.relinquished or (self.stopped and error is None):
                return
            self.parked = True
            self._leave(error or RunParked(f"run {self._run_id or ''} is parked: its engine was left."))

    def hold(self, error: BaseException) -> None:
        """Leave the run to an operator: start nothing, undo nothing."""
        with self.lock:
            if not self.lost:
                self.parked = self.held = True
                self._leave(error)

    def lose(self, error: BaseException) -> bool:
        """Another process owns the run. Returns whether that is news."""
        with self.lock:
            if self.lost or self.finished is not None:
                return False
            self.lost = self.interrupted = True
            self._leave(error)
            return True

    def in_child(self, process: int) -> None:
        """This process, a child, was forked in the middle of the run, which is its parent's. The thread that has forked, in a step,
        may come back into it."""
        self.lock = threading.Lock()
        what = f"process {process} was forked in the middle of run {self.run_id} of {safe_repr(self.workflow.name)}"
        why = f"{what}, which is its parent's: here nothing more of it is started or undone."
        self.lose(LeaseLost(why, run_id=self.run_id))
        self.running = min(self.running, 1)  # no thread is here that runs any other step

    def fail_after_all(self, error: BaseException) -> None:
        """The end of a run that has done all its steps cannot be recorded: it has not succeeded."""
        with self.lock:
            self.finished = None
            self.parked, self.lost = isinstance(error, RunParked), isinstance(error, LeaseLost)
            if self.relinquished:
                self._leave(error)
            else:
                self._stop(error, next(reversed(self.results), None))

    def _leave(self, error: BaseException) -> None:
        self.leaving = error
        self._stop(error, None)

    @property
    def relinquished(self) -> bool:
        """Whether this process starts and undoes nothing more of the run, whatever is left to do."""
        return self.parked or self.lost

    def _stop(self, error: BaseException, step: str | None) -> bool:
        first = not self.stopped
        if first:
            self.undone, self.undo_errors, self.undo_begun = [], {}, set()
            self.error, self.failed_step = error, step
        elif step is not None and error is not self.error and not isinstance(error, StepCancelled):
            self.other_errors += ((step, error),)
        if first:  # later there may be a parallel undo in the queue
            self.ready.clear()
        self.stopped = True
        return first

    def repair(self) -> None:
        """Make the books right after an interrupt struck somewhere in them, when nothing else of the run goes on.

        What is known to have ended is in `results` and in the reports; if the last node that the thread which was struck
        had begun is not there, what it did is unknown.
        """
        with self.lock:
            node = self.at
            ended = {name: self.plan.by_name[name] for name in self.results}
            known = [*ended.values(), *(other for other in self.to_undo if other.name not in ended)]
            if node is not None and node not in known and node.name not in self.reports:
                self.reports[node.name] = StepReport(Status.CANCELLED, 1, error=self.error)
                self.failed_step = self.failed_step or node.name
                known.append(node)
            undone = {name for name, report in self.reports.items() if report.undo is not None}
            self.to_undo = [other for other in known if other.compensation is not None and other.name not in undone]
            self.running = 0

    def idle(self, *, waits: bool = False) -> bool:
        """Whether no step is running, and none waits; else, with `waits`, the main program is noted as waiting for that."""
        with self.lock:
            aside = self.waits is not None and not self.stopped and bool(self.waits.aside)
            if (self.running or aside) and waits:
                self.main_waits = True
            return not (self.running or aside)

    def pause(self) -> bool:
        """Whether nothing of it can go on but its waits: it may be left to its store, and cannot be cancelled here meanwhile."""
        with self.lock:
            if self.stopped or self.running or self.ready or self.waits is None or not self.waits.aside:
                return False
            self.finished, self.main_waits = Status.WAITING, False
            return True

    def _cancel_late(self, error: BaseException) -> bool:
        """Cancel a run that is being left to its store, or was a moment ago. False: its caller has it already."""
        with self.lock:
            if self.given:
                return False
            self.cancelled_late, continued = self.cancelled_late or error, self.continued
        return continued is None or continued.interrupt(error)

    def continue_as(self, again: RunState | None) -> bool:
        """`again`, or with None nothing here, continues a run that was left to its store. False: it was cancelled meanwhile, so
        that something must."""
        with self.lock:
            if again is None and self.cancelled_late is not None:
                return False
            self.continued, self.given = again, again is None
            error = self.cancelled_late
        if again is not None and error is not None:
            again.interrupt(error)
        return True

    def resume_waits(self, sent: Mapping[str, Sent]) -> None:
        """It is not left to its store after all: `sent` has come."""
        with self.lock:
            self.finished, error = None, self.cancelled_late
            if self.waits is not None:
                self.waits.sent.update(sent)
        if error is not None:
            self.interrupt(error)

    def succeed(self) -> bool:
        """End as a success, unless the run has stopped: from now on it cannot be cancelled any more."""
        with self.lock:
            if not self.stopped:
                self.finished = Status.SUCCESS
            return not self.stopped

    def resumes_main(self) -> bool:
        """Whether the last step has just ended and the main program waits for that; true once."""
        with self.lock:
            if self.running or not self.main_waits:
                return False
            self.main_waits = False
            return True

    # -- calls that were given up --------------------------------------------------------------------------------------

    def landed(self, call: Call, outcome: Outcome) -> bool:
        """A call that was given up is over. Returns whether its run is too: then it is for a `late` program."""
        if isinstance(outcome[0], CoroutineType):
            outcome[0].close()  # it will not be awaited, so it never began
            outcome = (None, StepCancelled())
        with self.lock:
            call.landed, call.landed_at = outcome, self.settings.clock()
            call.after_undo = self.stopped and call.node.name in self.undo_begun
            return self.finished is not None

    def end(self, status: Status) -> bool:
        """End with `status`; False: a call has landed meanwhile that was not looked at."""
        with self.lock:
            if any(call.landed is not None for call in self.abandoned):
                return False
            self.finished = status
            return True

    def give_up(self, call: Call) -> None:
        """Remember a call that was given up; it may have landed already."""
        with self.lock:
            call.given_up = self.settings.clock()
            self.abandoned += (call,)

    def forget(self, call: Call) -> None:
        """The call has landed, and what came of it is known."""
        with self.lock:
            self.abandoned = tuple(other for other in self.abandoned if other is not call)

    # -- undoing -------------------------------------------------------------------------------------------------------

    @property
    def failing(self) -> bool:
        """Whether it has failed so that what it did is to be undone, here or by others."""
        return self.stopped and not self.past_pivot and self.error is not self.leaving

    @property
    def undoes(self) -> bool:
        """Whether what this run did is, or was, undone here."""
        return self.stopped and not self.past_pivot and not self.parked and not self.lost

    def undo_on(
        self,
        error: BaseException,
        step: str | None,
        to_undo: list[Node],
        undone: list[str],
        undo_errors: dict[str, Exception],
    ) -> None:
        """Resume undoing a run that an earlier owner undid in part, or that is to be undone, because of `error`."""
        with self.lock:
            self._stop(error, step)
            self.to_undo = to_undo
            self.undone, self.undo_errors = undone, undo_errors
            self.undo_begun.update(undone, undo_errors)
            self.undo_order = len(self.undo_begun)

    def begin_undo(self, node: Node) -> int:
        """The undo of `node` is about to start; answers its number, from 1."""
        with self.lock:
            self.undo_begun.add(node.name)
            self.undo_order += 1
            return self.undo_order

    def begin_parallel_undo(self) -> None:
        """Fill the ready queue for undoing: a step is ready once all that depended on it are undone."""
        with self.lock:
            self.ready = deque[int]()  # of undos; hooks go on asking the other one how many steps are ready
            self.undoing = {node.index for node in self.to_undo}
            self.to_undo.clear()
            self.counts = [len(node.successors) for node in self.plan.nodes]
            self.waking = False
            self._free([node.index for node in reversed(self.plan.nodes) if not node.successors])

    def undo_ended(self, node: Node) -> Node | None:
        """`node` is undone, or could not be: either way, what it depended on is next."""
        with self.lock:
            if self.undoes:
                self._free_before(node.index)
            else:
                self.ready.clear()
            if self.ready:
                return self.plan.nodes[self.ready.popleft()]
            self.running -= 1
            return None

    def _free(self, indices: list[int]) -> None:
        # A step without an undo holds up nothing: pass through it. A loop, for chains of any length.
        assert self.undoing is not None  # noqa: S101 - begin_parallel_undo has been here
        while indices:
            index = indices.pop(0)
            if index in self.undoing:
                self.ready.append(index)
                continue
            for before in self.plan.nodes[index].predecessors:
                self.counts[before] -= 1
                if not self.counts[before]:
                    indices.append(before)

    def _free_before(self, index: int) -> None:
        freed: list[int] = []
        for before in self.plan.nodes[index].predecessors:
            self.counts[before] -= 1
            if not self.counts[before]:
                freed.append(before)
        self._free(freed)

    # -- the end -------------------------------------------------------------------------------------------------------

    def snapshot(self, status: Status) -> Run:
        """The run as it is now."""
        reports = {name: replace(report) for name, report in list(self.reports.items())}
        return Run(self, self.workflow.name, status, dict(self.results), reports, self.plan)

    def as_run(self, status: Status, error: BaseException | None = None, *, held: bool = False) -> Run:
        """The run, for its caller."""
        ended = Run(self, self.workflow.name, status, self.results, self.reports, self.plan)
        if self.observed:
            ended._times = self.times  # pyright: ignore[reportPrivateUsage]
        if error is not None:
            ended.results = dict(self.results)  # what lands late is not the caller's any more
            ended.error, ended.held = error, held
            ended.failed_step, ended.undone = self.failed_step, tuple(self.undone)
        if self.carrier:
            ended.carrier = self.carrier
        return ended


def step_key(namespace: str, workflow: str, key: str, generation: int, step: str, *, undo: bool) -> str:
    """What `ctx.step_key` is: the same for every attempt and takeover, another for the undo and for a run afresh."""
    import hashlib

    digest = hashlib.sha256()
    for part in (namespace, workflow, key, str(generation), step, "undo" if undo else "do"):
        data = part.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "big") + data)
    return digest.hexdigest()
