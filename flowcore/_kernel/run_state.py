"""The state of one run in flight: its data, its ready queue, and the few decisions that must be made under its lock."""

from __future__ import annotations

import contextvars
import threading
from collections import deque
from collections.abc import Callable, Mapping, MutableSequence
from types import CoroutineType
from typing import TYPE_CHECKING, Any

from ..errors import NoResult, StepCancelled, safe_repr
from ..events import Event, Hooks
from ..events.hooks import Crossing
from ..keys import step_key
from ..plan import Node
from ..run import Run, StepReport, no_result
from ..status import Status
from ..step import Step
from .effects import Call, Outcome
from .ledger import Earlier, Ledger
from .request import Request
from .settings import Settings
from .undo_order import UndoOrder
from .waits import Waits

if TYPE_CHECKING:
    from .inline import InlineProgress
    from .scopes import EventScope

__all__ = ["RunState"]


class RunState:
    """The state of one run in flight. Attributes marked (lock) change only under `lock`. User code and hooks never run
    under the lock.

    Attributes that most runs never touch have their default on the class, so that creating a run stays cheap.
    """

    # the caller
    key: str | None = None
    """the idempotency key"""
    input: Any = None
    """the input of Workflow(input=); None until a step reads it"""
    cancelled_late: BaseException | None = None
    """(lock) the error with which the run was cancelled while it was being left to its store, or to another owner"""
    continued: RunState | None = None
    """(lock) after the run was left to its store: the RunState that resumes it for its caller"""
    given = False
    """(lock) after the run was left to its store: whether its caller got it, so that nothing here resumes it"""
    dormant = False
    """whether the run waits in its store while its caller waits here"""
    on_pause: Callable[[Run | None], None] | None = None
    """called with the Run when the run only waits, and with None when it resumes"""

    # the claim
    submitted_at: float | None = None
    """when the run was submitted (monotonic), until it leaves the queue; set only if it is observed"""
    queued = False
    """whether the store has recorded the run as queued"""
    claimed = False
    attached = False
    """whether the caller waits for the run of another one, which has the key"""
    deadline: float | None = None
    """the moment at which the run must be over (monotonic); None: no limit"""
    fingerprint: str | None = ""
    generation = 0
    fence = 1
    carrier: Mapping[str, str] = {}
    _run_id: str | None = None
    began: float | None = None
    """when the run began under an earlier owner (monotonic); None if it begins here"""
    earlier: Earlier | None = None
    """after a takeover: the state in which earlier owners left the run"""

    # the durable store
    ledger: Ledger | None = None
    """records the steps in the store; None in memory"""
    tried: Mapping[str, StepReport] = {}
    """the recorded reports of steps of which attempts failed under an earlier owner, or before they were set aside"""
    was_in_doubt: frozenset[str] = frozenset()
    """steps that an earlier owner, or an executor that was lost, had in flight: an attempt may have had its effect"""

    # the ready queue
    running = 0
    """(lock) how many nodes were taken from the queue and have not ended"""
    worker_requested = False
    """(lock) whether a worker has been requested and has not started yet"""
    main_waits = False
    """(lock) whether the main program waits for the other workers"""
    past_pivot = False
    """whether nothing is undone any more, because a pivot is done or the workflow has undo="never\""""
    undo_ordered = False
    """whether an operator wants the run undone, even if its pivot is done"""
    working = False
    """whether the key is claimed and a takeover is decided on, so that workers may run steps"""

    # the failure
    stopped = False
    """(lock) whether no new step may start"""
    interrupted = False
    """whether running calls should end early, because the run was cancelled or is left"""
    parked = False
    """(lock) whether another process is to resume the run: nothing is started or undone here"""
    lost = False
    """(lock) whether another process owns the run: nothing is started or undone here"""
    held = False
    """whether the run is parked until an operator decides"""
    released = False
    """(lock) whether the run is parked not because of an error: its process or engine stops, or no thread was free for it"""
    leaving: BaseException | None = None
    """(lock) the error because of which the run is left to another owner or an operator"""
    reason: str | None = None
    """why the run is parked or held, as its record states it"""
    error: BaseException | None = None
    """(lock) the error that stopped the run"""
    failed_step: str | None = None
    """(lock) the step that failed the run, if one did"""
    other_errors: tuple[tuple[str, BaseException], ...] = ()
    """(lock) step and error of each later failure"""
    abandoned: tuple[Call, ...] = ()
    """(lock) abandoned calls whose outcome has not been processed"""
    undoing: UndoOrder | None = None
    """(lock) which steps are ready to be undone, during a parallel undo"""
    undo_begun: set[str]
    """(lock) steps whose undo has begun; set only once the run has stopped"""
    undo_order = 0
    """(lock) the number of the latest undo, from 1"""
    undo_stopped = False
    """whether no further undo starts, because of a second Ctrl-C"""
    undone: list[str]
    """steps whose undo succeeded, in order; set only once the run has stopped"""
    undo_errors: dict[str, Exception]
    """the errors of undos that failed, by step; set only once the run has stopped"""
    finished: Status | None = None
    """(lock) the status with which the run has ended, or WAITING while it is left to its store"""
    progress: InlineProgress | None = None
    """where the inline path stopped; the main program continues there"""
    at: Node | None = None
    """the last node that the caller's thread began to run, or to undo"""
    hooks: Hooks = Hooks()
    wanted: frozenset[type[Event]] = frozenset()
    observed = False
    """whether the times of steps are measured, for hooks or for a record"""
    store_context: contextvars.Context | None = None
    """the contextvars context of which each call of the store gets a copy; None unless hooks have prepared one"""
    scope: EventScope | None = None
    """the scope of the run, if it began on the inline path"""
    state: dict[Any, Any]
    """a dict for hooks, shared by all events of this run in this process; set only if the run is observed"""
    ready_at: dict[int, float]
    """when nodes became ready, by index (monotonic); set only if the run is observed"""
    waits: Waits | None = None
    """(lock) the waits and the steps that are set aside; None if there are none"""
    times: dict[str, tuple[float, float]]
    """seconds waited and ran of steps that succeeded inline, which have no report; set only if the run is observed"""

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
            self._run_id = settings.new_id()  # each event has it
            self.state, self.ready_at, self.times = {}, {}, {}
        if settings.durable:
            self.ledger, self.observed = settings.claims.open(), True  # the record needs the times of steps
            self.left = plan.size  # (lock) how many nodes have not ended
            self.state, self.ready_at, self.times = {}, {}, {}
        if plan.waits:
            self.waits = Waits()
        self.lock = threading.Lock()
        self.limit = settings.parallel  # how many steps of this run may run at a time
        if workflow.max_parallel is not None:
            self.limit = min(self.limit, workflow.max_parallel)
        self.counts = plan.indegrees[:]  # (lock) how many dependencies of each node have not ended
        self.ready = deque(plan.ready)  # (lock) nodes to start, by index
        self.results: dict[str, Any] = {}  # (lock) in order of completion
        self.to_undo: list[Node] = []  # (lock) nodes to undo: done, or in doubt, in order of completion
        self.reports: dict[str, StepReport] = {}  # reports of the steps that have more than a result

    def after_fork(self) -> None:
        """Replace the lock in a child process, because another thread may have held it during the fork."""
        self.lock = threading.Lock()

    # -- for Context and Run -------------------------------------------------------------------------------------------

    @property
    def run_id(self) -> str:
        """The run's id. It is drawn at the first access, because most runs in memory never need one."""
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

    def step_meant(self, key: object, by: str) -> str | None:
        """Return the name of the step that `key` (a Step or a name) refers to in the function of step `by`, or None if
        it refers to no step."""
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
        """Return the scopes of hooks around a step in another process. Called in the step's contextvars context."""
        return self.hooks.crossings()

    @property
    def stored_key(self) -> str:
        """The key of the run's record: its idempotency key, or else its id."""
        return self.key if self.key is not None else self.run_id

    def report(self, node: Node) -> StepReport:
        """Return the report of a step, which is created if there was none."""
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
        """Take the next node to run from the ready queue. Returns None if no node is ready, or if enough steps run."""
        with self.lock:
            self.worker_requested = False
            if self.waits is not None and self.finished is None:  # a run that is being left to its store begins nothing
                self._ready_waits(self.waits)
            if not self.ready or self.running >= self.limit:
                return None
            self.running += 1
            return self.plan.nodes[self.ready.popleft()]

    def _ready_waits(self, waits: Waits) -> None:
        if waits.aside and not self.stopped:
            now = self.settings.clock()
            for node in waits.due(now, self.deadline):
                self.ready.append(node.index)
                if node.wait is None and self.observed:
                    self.ready_at[node.index] = now

    def needs_worker(self) -> bool:
        """Whether another worker would have something to do and none has been requested. If so, one counts as requested
        from now on."""
        with self.lock:
            if self.worker_requested or not self.ready or self.running >= self.limit:
                return False
            self.worker_requested = True
            return True

    def done(self, node: Node, value: object, announced: list[int] | None = None) -> Node | None:
        """Store the result of `node` and unblock its dependents. Those that are ready now join the ready queue, or
        `announced` if that is given: the caller then emits that they are ready before it calls `join_queue`. Returns
        the node to run next, or None, which frees the worker's place unless `announced` has nodes."""
        with self.lock:
            self.results[node.name] = value
            if node.compensation is not None:
                self.to_undo.append(node)
            self.unblock(node, self.ready if announced is None else announced)
            return None if announced else self._next()

    def skipped(self, node: Node, announced: list[int] | None = None) -> Node | None:
        """Unblock the dependents of `node`, which was skipped, as `done` does."""
        with self.lock:
            self.unblock(node, self.ready if announced is None else announced)
            return None if announced else self._next()

    def unblock(self, node: Node, ready: MutableSequence[int]) -> None:
        """(lock) Add the dependents of `node` that are ready now to `ready`, by index, unless the run has stopped."""
        if not self.stopped:
            counts = self.counts
            for index in node.successors:
                counts[index] -= 1
                if not counts[index]:
                    ready.append(index)
                    if self.observed:
                        self.ready_at[index] = self.settings.clock()

    def join_queue(self, nodes: list[int]) -> Node | None:
        """Put `nodes` into the ready queue. Returns the node to run next, or None, which frees the worker's place."""
        with self.lock:
            if not self.stopped:
                self.ready.extend(nodes)
            return self._next()

    def _next(self) -> Node | None:
        if self.ready:  # this worker keeps its place among the steps that run at a time
            return self.plan.nodes[self.ready.popleft()]
        self.running -= 1
        return None

    def put_back(self) -> None:
        """Free the place of a node that was taken and does not start after all, or has failed."""
        with self.lock:
            self.running -= 1

    @property
    def relinquished(self) -> bool:
        """Whether this process starts and undoes nothing more of the run, because it is parked, held or lost."""
        return self.parked or self.lost

    def idle(self, *, waits: bool = False) -> bool:
        """Whether no step runs, and none is set aside. If not and `waits` is set, notes that the main program waits
        until then."""
        with self.lock:
            aside = self.waits is not None and not self.stopped and bool(self.waits.aside)
            if (self.running > 0 or aside) and waits:
                self.main_waits = True
            return not (self.running > 0 or aside)

    def succeed(self) -> bool:
        """End the run as a success, so that it cannot be cancelled any more. Returns False if it has stopped before."""
        with self.lock:
            if not self.stopped:
                self.finished = Status.SUCCESS
            return not self.stopped

    def resumes_main(self) -> bool:
        """Whether no step runs any more and the main program waits for that. Returns True only once: the caller then
        resumes the main program."""
        with self.lock:
            if self.running > 0 or not self.main_waits:
                return False
            self.main_waits = False
            return True

    # -- abandoned calls -----------------------------------------------------------------------------------------------

    def complete_late(self, call: Call, outcome: Outcome) -> bool:
        """Note the outcome of an abandoned call that completed late. Returns whether its run is over: then the program
        `late` must process it."""
        if isinstance(outcome[0], CoroutineType):
            outcome[0].close()  # a coroutine that is not awaited never begins
            outcome = (None, StepCancelled())
        with self.lock:
            call.late_outcome, call.completed_late_at = outcome, self.settings.clock()
            call.after_undo = self.stopped and call.node.name in self.undo_begun
            return self.finished is not None

    def end(self, status: Status) -> bool:
        """End the run with `status`. Returns False, and ends nothing, if an abandoned call has completed late and has
        not been processed."""
        with self.lock:
            if any(call.late_outcome is not None for call in self.abandoned):
                return False
            self.finished = status
            return True

    def abandon(self, call: Call) -> None:
        """Note that a call is abandoned, before the program that waits for it is resumed: an exit may end that program, and
        the effect of the call must be undone all the same. The call may have completed already."""
        with self.lock:
            call.abandoned_at = self.settings.clock()
            if not call.asks:
                self.abandoned += (call,)

    def forget(self, call: Call) -> None:
        """Forget an abandoned call that has completed late, because its outcome is being processed."""
        with self.lock:
            self.abandoned = tuple(other for other in self.abandoned if other is not call)

    # -- undoing -------------------------------------------------------------------------------------------------------

    @property
    def failing(self) -> bool:
        """Whether the run has failed, and its steps are to be undone, here or by another owner."""
        return self.stopped and not self.past_pivot and self.error is not self.leaving

    @property
    def is_undone_here(self) -> bool:
        """Whether the steps of this run are being undone, or were undone, here."""
        return self.stopped and not self.past_pivot and not self.parked and not self.lost

    def begin_undo(self, node: Node) -> int:
        """Note that the undo of `node` is about to start. Returns its number, from 1."""
        with self.lock:
            self.undo_begun.add(node.name)
            self.undo_order += 1
            return self.undo_order

    def begin_parallel_undo(self) -> None:
        """Fill the ready queue with the steps that may be undone first."""
        with self.lock:
            self.undoing = UndoOrder(self.plan, self.to_undo)
            self.to_undo.clear()
            self.worker_requested = False
            # A new queue, because hooks still read the length of the old one as the number of steps ready to run.
            self.ready = deque(self.undoing.first())

    def undo_ended(self, node: Node) -> Node | None:
        """Note that the undo of `node` has ended, which makes its dependencies ready even if it failed. Returns the
        node to undo next, or None, which frees the worker's place."""
        with self.lock:
            if self.is_undone_here and self.undoing is not None:
                self.ready.extend(self.undoing.after(node.index))
            else:
                self.ready.clear()
            if self.ready:
                return self.plan.nodes[self.ready.popleft()]
            self.running -= 1
            return None
