"""The effects that a program may yield to its driver, and the reply to each.

A program is a generator. It yields effects and is resumed with `send`, by one thread or task at a time. It imports no
threading, no asyncio, no clock and no randomness: `Settings` holds the clock and the randomness, and the driver does
the rest.

| effect | the driver | reply |
|---|---|---|
| Call | runs user code in the call's context | (value, None), (None, error) or (None, Abandoned) |
| a Context | runs its step's function in a copy of the run's context: the cheapest form of a Call | as for Call |
| Suspended | awaits the rest of a call that was begun without a driver | as for Call |
| AwaitAbandoned | waits for an abandoned call, at most `seconds` | its (value, error), or None |
| Sleep | waits `seconds`, holding no thread | False, or True when cut short because the run stops |
| Alarm | does in `seconds` what REQUEST_WORKER does, unless the run is over | None |
| Ask | calls a verb of the store | (the store's reply, None) or (None, error) |
| WholeStep | has all attempts of a step, or of its undo, run elsewhere, if Settings.whole_steps is set | its StepEnd |
| REQUEST_WORKER | starts a worker program for this run, or wakes an idle worker, if one is available | None |
| Delegate | passes a node that was taken to a worker | None |
| WAIT | waits until a program of this run yields RESUME | None |
| RESUME | resumes the program that waits, or that waits next | None |
| DIRECT | decides whether the program may call user code and the store itself, without yielding | a Direct, or None |
| SHIELD | from now on keeps cancellations away from the program: undoing begins | None |
| Stop | cuts sleeps short; with `cancel` also interrupts the calls that run | None |
"""

from __future__ import annotations

import contextvars
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

from ..context import AttemptContext, Context

if TYPE_CHECKING:
    from ..plan import Node
    from .run_state import RunState

__all__ = [
    "DIRECT",
    "REQUEST_WORKER",
    "RESUME",
    "SHIELD",
    "WAIT",
    "Abandoned",
    "Alarm",
    "Ask",
    "AwaitAbandoned",
    "Call",
    "Delegate",
    "Direct",
    "Effect",
    "Interrupts",
    "Outcome",
    "Program",
    "Signal",
    "Sleep",
    "Stop",
    "Suspended",
    "WholeStep",
    "as_call",
]

R = TypeVar("R")


class Signal:
    """An effect without arguments, recognized by its identity."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return self.name


REQUEST_WORKER: Final = Signal("REQUEST_WORKER")
WAIT: Final = Signal("WAIT")
RESUME: Final = Signal("RESUME")
SHIELD: Final = Signal("SHIELD")
DIRECT: Final = Signal("DIRECT")

Outcome = tuple[Any, "BaseException | Abandoned | None"]
"""(value, None) if the call succeeded, else (None, the error or Abandoned)"""


@dataclass(slots=True, eq=False)
class Abandoned:
    """An abandoned call: it timed out (`timed_out`), or it was cancelled because the run stops.

    `over`: the call has ended without a result, or never began (then `began` is false), and cannot complete late.
    `error`: the error that it raised when it was cancelled, if that was not the cancellation itself.
    """

    call: Call
    timed_out: bool = field(kw_only=True)
    over: bool = field(default=False, kw_only=True)
    error: BaseException | None = field(default=None, kw_only=True)
    began: bool = field(default=True, kw_only=True)


class Call:
    """Run `fn(ctx)` in `context`.

    `timeout`: seconds, or None. `shielded`: the call is an undo, which no cancellation of the run interrupts. `asks`:
    the call is a `when=` or a `verify=`, which has no effect to undo. An abandoned call keeps running in its thread or
    task. Its outcome is the reply to an AwaitAbandoned or, after the end of the run, is processed by the program
    `late`.
    """

    __slots__ = (
        "abandoned_at",
        "after_undo",
        "asks",
        "completed_late_at",
        "context",
        "ctx",
        "fn",
        "is_async",
        "late_outcome",
        "node",
        "reported_late",
        "shielded",
        "timeout",
    )

    def __init__(
        self,
        node: Node,
        fn: Callable[..., Any],
        ctx: Context,
        context: contextvars.Context,
        timeout: float | None,
        is_async: bool,
        shielded: bool = False,
        asks: bool = False,
    ) -> None:
        self.node = node
        self.fn = fn
        self.ctx = ctx
        self.context = context
        self.timeout = timeout
        self.is_async = is_async
        self.shielded = shielded
        self.asks = asks
        self.abandoned_at = 0.0  # when it was abandoned (monotonic)
        self.late_outcome: Outcome | None = None  # of an abandoned call; see RunState.complete_late
        self.completed_late_at = 0.0
        self.after_undo = False  # whether the undo of its node had begun when it completed late
        self.reported_late = False  # whether the event that it completed late was emitted

    def abandon(self) -> None:
        """Set `ctx.cancelled` for the user code, because its result is not awaited any more."""
        if isinstance(self.ctx, AttemptContext):
            self.ctx.abandon()


def as_call(ctx: Context, context: contextvars.Context) -> Call:
    """Return the Call that a bare Context stands for, to be run in the contextvars context `context`."""
    node = ctx.node
    return Call(node, node.fn, ctx, context, None, node.is_async)


class Direct(Protocol):
    """A driver that runs user code and calls the store synchronously, in the program's thread, and abandons neither: a
    program may call it directly instead of yielding."""

    def call_here(self, fn: Callable[..., Any], ctx: Context, context: contextvars.Context) -> Outcome: ...
    def ask_here(self, verb: str, argument: object) -> tuple[Any, BaseException | None]: ...


class Interrupts(Protocol):
    """How Ctrl-C is handled while the inline path runs in the main thread.

    Each one is counted in `count`. While `in_step` is set, as it is while user code runs, it is raised. Otherwise the
    inline path cancels the run before the next step. `raised`: how many have been handled in one of these ways.
    """

    in_step: bool
    count: int
    raised: int


@dataclass(slots=True, eq=False)
class AwaitAbandoned:
    """Wait until the abandoned `call` is over, at most `seconds`."""

    call: Call
    seconds: float


@dataclass(slots=True, eq=False)
class Sleep:
    """Wait for `seconds`, or until the run stops or is woken. A `shielded` sleep is never cut short. One between two
    attempts of an undo (`undoes`) is cut short if this process leaves the run to another owner, but not otherwise."""

    seconds: float
    shielded: bool = field(default=False, kw_only=True)
    undoes: bool = field(default=False, kw_only=True)

    def is_cut_short(self, run: RunState) -> bool:
        """Whether a Stop ends the sleep now. It may only wake the run, because what the run waits for has happened."""
        return run.relinquished if self.undoes else not self.shielded

    def is_over_at_once(self, run: RunState) -> bool:
        """Whether the sleep ends before it begins, because the run has stopped."""
        return run.stopped and self.is_cut_short(run)


@dataclass(slots=True, eq=False)
class Alarm:
    """Start a worker in `seconds`, unless the run is over by then."""

    seconds: float


@dataclass(slots=True, eq=False)
class Ask:
    """Call `verb` of the store with one argument, in `context`, or in the run's own context if that is None."""

    verb: str
    argument: object
    context: contextvars.Context | None = None


@dataclass(slots=True, eq=False)
class Delegate:
    """Pass `node`, which was taken from the ready queue, to a worker."""

    node: Node


@dataclass(slots=True, eq=False)
class Stop:
    """Cut the sleeps of the run short, because it stops; with `cancel` also interrupt the calls that run. `exit`: what a
    signal handler raised in the run's programs, which the caller of the run gets, whatever else has failed."""

    cancel: bool = field(kw_only=True)
    exit: BaseException | None = field(default=None, kw_only=True)


@dataclass(slots=True, eq=False)
class Suspended:
    """Await the rest of async user code that the inline path began, with `ctx` in `context`. `waiting`: the object that
    the coroutine awaits now."""

    ctx: Context
    context: contextvars.Context
    coroutine: Any
    waiting: Any


@dataclass(slots=True, eq=False)
class WholeStep:
    """Have all attempts of the step `node`, or of its undo if `undo` is set, run elsewhere."""

    node: Node
    undo: bool = field(kw_only=True)


Effect = WholeStep | Suspended | Call | Context | AwaitAbandoned | Sleep | Alarm | Ask | Delegate | Stop | Signal
Program = Generator[Effect, Any, R]
