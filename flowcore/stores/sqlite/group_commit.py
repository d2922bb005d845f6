"""Group commit: what threads want written while one of them is writing, the next one writes all at once.

They wait for the disk together then, and not one after the other. A thread that finds no other thread writing writes; the others queue
up, and are woken when theirs is written, or when it is their turn to write all that waits.
"""

from __future__ import annotations

import contextvars
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, Generic, TypeVar, cast

from ...errors import StoreUnavailable

__all__ = ["GroupCommit"]

C = TypeVar("C")
T = TypeVar("T")
Transaction = Callable[[Callable[[C], Any]], Any]
"""calls what it is given, keeps all that this writes or nothing of it, and answers what it has answered"""
_LOOK: Final = 0.1
"""seconds until who waits looks for itself: an interrupt may have struck the one that was to wake it"""


class GroupCommit(Generic[C]):
    """The threads that want to write, and the `lock` of what they write to. Thread-safe."""

    def __init__(self, lock: threading.Lock) -> None:
        self._lock = lock
        self._door = threading.Lock()
        self._led = False  # (door) a thread writes, or has been woken to
        self._waiting: deque[_Write[C]] = deque()  # (door)

    def write(self, work: Callable[[C], T], transaction: Transaction[C]) -> T:
        """Have `work` done in a `transaction`, by this thread or another, in this one's contextvars context.

        Raises what it raises. It may be done twice, where what was to be committed with it was refused.
        """
        with self._door:
            mine = self._queued(work) if self._led else None
            self._led = True
        if mine is not None:
            return cast("T", self._wait(mine, transaction))
        try:
            with self._lock:
                answer: T = transaction(work)
        finally:
            self._pass_on()
        return answer

    def _queued(self, work: Callable[[C], T]) -> _Write[C]:
        """(door) What is going to wait for its turn."""
        mine: _Write[C] = _Write(work)
        self._waiting.append(mine)
        return mine

    def _wait(self, mine: _Write[C], transaction: Transaction[C]) -> Any:
        """Wait until another thread has written it, or it is our turn."""
        try:
            while not mine.done:
                if mine.bell.acquire(timeout=_LOOK) or not self._lock.locked():
                    self._lead(mine, transaction)
        except BaseException:
            mine.done = True  # its caller has given it up: no thread may write it later
            self._pass_on()
            raise
        if mine.error is not None:
            raise mine.error
        return mine.answer

    def _lead(self, mine: _Write[C], transaction: Transaction[C]) -> None:
        """Write all that waits, unless another thread has written `mine` by now."""
        if mine.done:
            return
        with self._lock:
            batch = [] if mine.done else [mine, *self._others(mine)]
            if batch:
                _commit(batch, transaction)
        self._pass_on()
        for one in batch:
            one.wake()

    def _others(self, mine: _Write[C]) -> list[_Write[C]]:
        """All else that waits to be written, which waits no more."""
        with self._door:
            others = [one for one in self._waiting if not (one is mine or one.done)]
            self._waiting.clear()
        return others

    def _pass_on(self) -> None:
        """Wake the one whose turn it is to write."""
        with self._door:
            while self._waiting and self._waiting[0].done:
                self._waiting.popleft()
            if self._waiting:
                self._waiting[0].wake()
            else:
                self._led = False

    def forget(self) -> None:
        """In a child: those who wait are threads of its parent."""
        self._door = threading.Lock()
        self._led = False
        self._waiting.clear()


class _Write(Generic[C]):
    """What a thread wants written, and, once it is, what came of it."""

    __slots__ = ("_context", "_work", "answer", "bell", "done", "error")

    def __init__(self, work: Callable[[C], Any]) -> None:
        self._work = work
        self._context = contextvars.copy_context()
        self.bell = threading.Lock()  # what its thread waits at
        self.bell.acquire()
        self.answer: Any = None
        self.error: Exception | None = None
        self.done = False

    def perform(self, subject: C) -> Any:
        """On whichever thread; so that spans, say, of what it does stay its own."""
        return self._context.run(self._work, subject)

    def wake(self) -> None:
        with suppress(RuntimeError):  # another thread was quicker
            self.bell.release()


def _commit(batch: list[_Write[C]], transaction: Transaction[C]) -> None:
    """All of it in one transaction, or each alone, where something of it was refused."""
    try:
        answers: list[Any] = transaction(lambda subject: [one.perform(subject) for one in batch])
    except StoreUnavailable as error:
        for one in batch:  # an exception belongs to one thread
            one.error, one.done = StoreUnavailable(*error.args), True
            one.error.__cause__ = error.__cause__
    except Exception:  # noqa: BLE001 - whose it is, is seen when each is alone
        for one in batch:
            try:
                one.answer = transaction(one.perform)
            except Exception as error:  # noqa: BLE001 - its own thread raises it
                one.error = error
            one.done = True
    else:
        for one, answer in zip(batch, answers, strict=True):
            one.answer, one.done = answer, True
