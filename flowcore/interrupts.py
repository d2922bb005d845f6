"""Ctrl-C in the main thread: raised inside user code, deferred everywhere else.

Python raises KeyboardInterrupt between any two bytecodes of the main thread, also in the middle of an engine's own
bookkeeping. While `Engine.run` works in the main thread it takes SIGINT over from Python's default handler (never from
one of the user's), as asyncio.Runner does, and gives it back at the end.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType

__all__ = ["CtrlC", "guard"]


class CtrlC:
    """What one run in the main thread makes of SIGINT.

    While the main thread is in a step (between `enter` and `leave`) the interrupt is raised there. In an undo only a
    second one is: the first waits until everything is undone. Elsewhere `ring` is called, which must be safe in a signal
    handler.
    """

    __slots__ = ("_before", "_in_step", "_in_undo", "_ring", "count", "raised")

    def __init__(self, ring: Callable[[], None], before: object) -> None:
        self._ring = ring
        self._before = before
        self.count = 0
        self.raised = 0
        self._in_step = False
        self._in_undo = False

    def enter(self, *, undo: bool) -> None:
        """User code begins."""
        if undo:
            self._in_undo = True
        else:
            self._in_step = True

    def leave(self) -> None:
        """User code is over."""
        self._in_step = self._in_undo = False

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        self.count += 1
        if self._in_step or (self._in_undo and self.count > 1):
            self.raised += 1
            raise KeyboardInterrupt
        self._ring()

    @property
    def unseen(self) -> bool:
        """Whether there was an interrupt that nobody has acted upon."""
        return self.count > self.raised

    def restore(self) -> None:
        signal.signal(signal.SIGINT, self._before)  # type: ignore[arg-type] # what signal.signal() itself gave


def guard(ring: Callable[[], None]) -> CtrlC | None:
    """Take SIGINT over for a run in the main thread; None elsewhere, or where the user handles it."""
    if threading.current_thread() is not threading.main_thread():
        return None
    current = signal.getsignal(signal.SIGINT)
    if current is not signal.default_int_handler and not isinstance(current, CtrlC):
        return None
    mine = CtrlC(ring, current)
    signal.signal(signal.SIGINT, mine)
    return mine
