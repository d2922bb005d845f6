"""What a program may ask of its driver, and what it is answered.

A program is a generator. It yields effects and is resumed with `send`, by one thread or task at a time. It imports no
threading, no asyncio, no clock and no randomness: those it is given in `Settings`, or asks for here.

| effect | the driver | answers |
|---|---|---|
| Call | runs user code in the call's context | (value, None), (None, error) or (None, GivenUp) |
| a Context | runs its step's function in a copy of the run's context: the leanest Call there is | the same |
| Suspended | awaits the rest of a call that was begun without a driver | the same |
| AwaitAbandoned | waits for a call that was given up, at most `seconds` | its (value, error), or None |
| Sleep | waits `seconds`, holding no thread | False, or True when cut short because the run stops |
| Alarm | does what REQUEST_WORKER does in so many seconds, unless the run is over | None |
| Ask | calls a verb of the store | (answer, None) or (None, error) |
| WholeStep | has a step, or its undo, made elsewhere with all its attempts; where Settings.whole_steps | its StepEnd |
| REQUEST_WORKER | starts a helper program for this run, or wakes an idle one, if any is to be had | None |
| Delegate | lets a helper carry on with a node | None |
| WAIT | waits until a program of this run yields RESUME | None |
| RESUME | resumes the program that waits, or will wait next | None |
| DIRECT | looks whether user code and the store may be called without going through the driver each time | a Direct, or None |
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

__all__ = [
    "DIRECT",
    "REQUEST_WORKER",
    "RESUME",
    "SHIELD",
    "WAIT",
    "Alarm",
    "Ask",
    "AwaitAbandoned",
    "Call",
    "Delegate",
    "Direct",
    "Effect",
    "GivenUp",
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
    """A value that stands only for itself."""

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

Outcome = tuple[Any, "BaseException | GivenUp | None"]
"""(value, None) where it went well, else (None, what went wrong)"""


@dataclass(slots=True, eq=False)
class GivenUp:
    """A call that nothing waits for any more: it was late (`timed_out`), or cancelled because the run stops. `over`: it
    has ended without a result, or never began (`began` is false); nothing will come of it. `error`: what it has then
    raised, if that was not the cancellation itself."""

    call: Call
    timed_out: bool = field(kw_only=True)
    over: bool = field(default=False, kw_only=True)
    error: BaseException | None = field(default=None, kw_only=True)
    began: bool = field(default=True, kw_only=True)


class Call:
    """Run `fn(ctx)` in `context`.

    `timeout`: seconds, or None. `shielded`: an undo, which no cancellation of the run touches. `asks`: a predicate, which
    has no effect to undo. A call that is given up
    goes on in its thread or task; what comes of it is the answer to an AwaitAbandoned, or the subject of a `late` program.
    """

    __slots__ = (
        "after_undo",
        "asks",
        "context",
        "ctx",
        "fn",
        "given_up",
        "is_async",
        "landed",
        "landed_at",
        "node",
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
        self.given_up = 0.0  # monotonic seconds at which it was
        self.landed: Outcome | None = None  # what came of a call after it was given up; see RunState.landed
        self.landed_at = 0.0
        self.after_undo = False  # whether its node was being undone, or was undone, when it landed

    def abandon(self) -> None:
        """Its result is not awaited any more: the user code sees `ctx.cancelled`."""
        if isinstance(self.ctx, AttemptContext):
            self.ctx.abandon()


def as_call(ctx: Context, context: contextvars.Context) -> Call:
    """The Call that a bare Context stands for, in a contextvars context of its own."""
    node = ctx.node
    return Call(node, node.fn, ctx, context, None, node.is_async)


class Direct(Protocol):
    """A driver that performs a call, or asks the store, in the thread that its program is in, and gives neither up: where
    it would answer anyway before it does anything else, it may as well be called."""

    def call_here(self, fn: Callable[..., Any], ctx: Context, context: contextvars.Context) -> Outcome: ...
    def ask_here(self, verb: str, argument: object) -> tuple[Any, BaseException | None]: ...


class Interrupts(Protocol):
    """What a Ctrl-C comes to while the inline path runs in the main thread: it is raised `in_step`, and else counted."""

    in_step: bool
    count: int
    raised: int


@dataclass(slots=True, eq=False)
class AwaitAbandoned:
    """Wait until `call`, which was given up, is over; at most `seconds`."""

    call: Call
    seconds: float


@dataclass(slots=True, eq=False)
class Sleep:
    """Wait, unless the run stops; a `shielded` one, between the attempts of an undo, is never cut short."""

    seconds: float
    shielded: bool = field(default=False, kw_only=True)


@dataclass(slots=True, eq=False)
class Alarm:
    """Start a helper in so many seconds."""

    seconds: float


@dataclass(slots=True, eq=False)
class Ask:
    """Call `verb` of the store with one argument, in `context`, or in the run's own where None."""

    verb: str
    argument: object
    context: contextvars.Context | None = None


@dataclass(slots=True, eq=False)
class Delegate:
    """Let a helper carry on with `node`, which has been taken."""

    node: Node


@dataclass(slots=True, eq=False)
class Stop:
    """The run stops: nothing new will start."""

    cancel: bool = field(kw_only=True)


@dataclass(slots=True, eq=False)
class Suspended:
    """Async user code that the inline path has begun, with `ctx` in `context`, and that waits for `waiting`: await the
    rest."""

    ctx: Context
    context: contextvars.Context
    coroutine: Any
    waiting: Any


@dataclass(slots=True, eq=False)
class WholeStep:
    """Make all attempts of the step `node`, or of its `undo`, elsewhere."""

    node: Node
    undo: bool = field(kw_only=True)


Effect = WholeStep | Suspended | Call | Context | AwaitAbandoned | Sleep | Alarm | Ask | Delegate | Stop | Signal
Program = Generator[Effect, Any, R]
