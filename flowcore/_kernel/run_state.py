"""One run in flight: its data, its ready queue, and the few decisions that must be made under its lock."""

from __future__ import annotations

import contextvars
import threading
from collections import deque
from collections.abc import Callable, Mapping
from types import CoroutineType
from typing import TYPE_CHECKING, Any

from ..errors import NoResult, StepCancelled, safe_repr
from ..events import Event, Hooks
from ..events.hooks import Crossing
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
    from .emit import EventScope
    from .inline import InlineProgress

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
    earlier: Earlier | None = None
    """after a takeover: what its record says of its owners before"""

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
    undo_ordered = False
    """an operator wants it undone, whatever its pivot does"""
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
    error: BaseException | None = None
    """(lock) what failed the run"""
    failed_step: str | None = None
    """(lock)"""
    other_errors: tuple[tuple[str, BaseException], ...] = ()
    """(lock) what came after it"""
    abandoned: tuple[Call, ...] = ()
    """(lock) calls that were given up and may not have landed"""
    undoing: UndoOrder | None = None
    """(lock) in a parallel undo: which steps are ready to be undone"""
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

    def after_fork(self) -> None:
        """In a child: another thread may have held the lock."""
        self.lock = threading.Lock()

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
            if self.waits is not None and self.finished is None:  # else it is being left to its store
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

    def put_back(self) -> None:
        """A node that was taken does not start after all, or has failed."""
        with self.lock:
            self.running -= 1

    @property
    def relinquished(self) -> bool:
        """Whether this process starts and undoes nothing more of the run, whatever is left to do."""
        return self.parked or self.lost

    def idle(self, *, waits: bool = False) -> bool:
        """Whether no step is running, and none waits; else, with `waits`, the main program is noted as waiting for that."""
        with self.lock:
            aside = self.waits is not None and not self.stopped and bool(self.waits.aside)
            if (self.running or aside) and waits:
                self.main_waits = True
            return not (self.running or aside)

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

    def begin_undo(self, node: Node) -> int:
        """The undo of `node` is about to start; answers its number, from 1."""
        with self.lock:
            self.undo_begun.add(node.name)
            self.undo_order += 1
            return self.undo_order

    def begin_parallel_undo(self) -> None:
        """Fill the ready queue for undoing."""
        with self.lock:
            self.undoing = UndoOrder(self.plan, self.to_undo)
            self.to_undo.clear()
            self.waking = False
            self.ready = deque(self.undoing.first())  # hooks go on asking the other one how many steps are ready

    def undo_ended(self, node: Node) -> Node | None:
        """`node` is undone, or could not be: either way, what it depended on is next."""
        with self.lock:
            if self.undoes and self.undoing is not None:
                self.ready.extend(self.undoing.after(node.index))
            else:
                self.ready.clear()
            if self.ready:
                return self.plan.nodes[self.ready.popleft()]
            self.running -= 1
            return None


def step_key(namespace: str, workflow: str, key: str, generation: int, step: str, *, undo: bool) -> str:
    """What `ctx.step_key` is: the same for every attempt and takeover, another for the undo and for a run afresh."""
    import hashlib

    digest = hashlib.sha256()
    for part in (namespace, workflow, key, str(generation), step, "undo" if undo else "do"):
        data = part.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "big") + data)
    return digest.hexdigest()
