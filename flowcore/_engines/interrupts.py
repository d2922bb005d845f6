"""Ctrl-C in the main thread: raised inside user code, deferred everywhere else.

Python raises KeyboardInterrupt between any two bytecodes of the main thread, also in the middle of an engine's own
bookkeeping. While `Engine.run` works in the main thread it takes SIGINT over from Python's default handler (never from
one of the user's), as asyncio.Runner does, and gives it back at the end.
"""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Final

from ..exits import raise_deferred

__all__ = [
    "SigintGuard",
    "guard",
    "hold_sigint",
    "raised_by_signal",
    "restore",
]

_SIGINT: Final = int(signal.SIGINT)
_DEFAULT: Final = signal.default_int_handler
# signal.signal calls this function and converts numbers to enums and back, which takes as long as a small run.
_set_handler: Final[Callable[[int, Any], Any]] = vars(signal)["_signal"].signal


class SigintGuard:
    """The handler of SIGINT for one run in the main thread.

    While `in_step` is set, an interrupt is raised in user code. While `in_undo` is set, only a second interrupt is
    raised: the first one waits until everything is undone. Otherwise an interrupt is only counted, and `wake` is
    called, which must be safe in a signal handler.
    """

    __slots__ = ("before", "count", "in_step", "in_undo", "raised", "wake")

    def __init__(self) -> None:
        self.wake: Callable[[], None] | None = None
        self.before: Any = _DEFAULT
        self.in_step = False
        self.in_undo = False
        self.count = 0
        self.raised = 0
        """how many interrupts were raised or acted upon"""

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        self.count += 1
        if self.in_step or (self.in_undo and self.count > 1):
            self.raised += 1
            raise KeyboardInterrupt
        if self.wake is not None:
            self.wake()

    @property
    def unseen(self) -> bool:
        """Whether there was an interrupt that has had no effect yet."""
        return self.count > self.raised


_HANDLERS: Final = tuple(
    getattr(handler, "__code__", None)
    for handler in (SigintGuard.__call__, getattr(asyncio.Runner, "_on_sigint", None))
)


def raised_by_signal(error: BaseException | None) -> bool:
    """Whether `error` was raised by flowcore's or asyncio's handler of SIGINT, and not by user code."""
    trace = error.__traceback__ if isinstance(error, KeyboardInterrupt) else None
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and trace.tb_frame.f_code in _HANDLERS


def guard() -> SigintGuard | None:
    """Take SIGINT over for a run in the main thread. Returns None elsewhere, or if the user has a handler for it."""
    if threading.current_thread() is not threading.main_thread():
        return None
    mine = SigintGuard()
    mine.before = _set_handler(_SIGINT, mine)
    if mine.before is not _DEFAULT and not isinstance(mine.before, SigintGuard):
        restore(mine)  # looking first would cost a further call each time
        return None
    return mine


def restore(mine: SigintGuard | None) -> None:
    """Restore the handler of SIGINT that `guard` replaced, if it did."""
    if mine is not None:
        _set_handler(_SIGINT, mine.before)


@contextmanager
def hold_sigint() -> Generator[None, None, None]:
    """Defer a Ctrl-C in the main thread until the end of the block, which calls hooks. Then it is raised, even in place
    of the block's error. So is the exit of another signal handler that has interrupted a hook."""
    mine = guard()
    try:
        yield
    finally:
        restore(mine)
        if mine is not None and mine.count:
            raise KeyboardInterrupt
        raise_deferred()
