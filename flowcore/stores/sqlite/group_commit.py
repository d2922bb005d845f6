"""Group commit: while one thread writes, others queue up; then one of them writes the whole queue in one transaction.

So they wait for the disk together, and not one after the other. A thread that finds no other thread writing writes at
once. A thread in the queue is woken when its work is written, or when it is its turn to write the whole queue.
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
"""calls its argument in a transaction, and returns what this returns"""
_LOOK: Final = 0.1
"""seconds after which a waiting thread checks by itself: an interrupt may have hit the thread that was to wake it"""


class GroupCommit(Generic[C]):
    """Combines the writes of several threads. `lock` guards what they write to. Thread-safe. What is marked (queue
    lock) needs `_queue_lock`."""

    def __init__(self, lock: threading.Lock) -> None:
        self._lock = lock
        self._queue_lock = threading.Lock()
        self._led = False  # (queue lock) a thread is writing, or has been woken to write
        self._waiting: deque[_Write[C]] = deque()  # (queue lock)

    def write(self, work: Callable[[C], T], transaction: Transaction[C]) -> T:
        """Run `work` in a `transaction`, on any thread but in this one's contextvars context, and return its result.

        Raises what `work` raises. `work` may run twice: if the transaction that it shared with others fails, it runs
        again in its own.
        """
        with self._queue_lock:
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
        """(queue lock) Add `work` to the queue, and return its entry."""
        mine: _Write[C] = _Write(work)
        self._waiting.append(mine)
        return mine

    def _wait(self, mine: _Write[C], transaction: Transaction[C]) -> Any:
        """Return the result of `mine` after another thread has written it, or write it when it is this thread's
        turn."""
        try:
            while not mine.done:
                if mine.wakeup.acquire(timeout=_LOOK) or not self._lock.locked():
                    self._lead(mine, transaction)
        except BaseException:
            mine.done = True  # its caller has given it up: no thread may write it later
            self._pass_on()
            raise
        if mine.error is not None:
            raise mine.error
        return mine.answer

    def _lead(self, mine: _Write[C], transaction: Transaction[C]) -> None:
        """Write `mine` and the rest of the queue, unless another thread has written `mine` by now."""
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
        """Empty the queue, and return its other entries that are still to be written."""
        with self._queue_lock:
            others = [one for one in self._waiting if not (one is mine or one.done)]
            self._waiting.clear()
        return others

    def _pass_on(self) -> None:
        """Wake the thread whose turn it is to write, if any waits."""
        with self._queue_lock:
            while self._waiting and self._waiting[0].done:
                self._waiting.popleft()
            if self._waiting:
                self._waiting[0].wake()
            else:
                self._led = False

    def forget(self) -> None:
        """Empty the queue in a child process, because the waiting threads are its parent's."""
        self._queue_lock = threading.Lock()
        self._led = False
        self._waiting.clear()


class _Write(Generic[C]):
    """The work that a thread wants written and, once it is done, its result or error."""

    __slots__ = ("_context", "_work", "answer", "done", "error", "wakeup")

    def __init__(self, work: Callable[[C], Any]) -> None:
        self._work = work
        self._context = contextvars.copy_context()
        self.wakeup = threading.Lock()  # its thread waits for this lock
        self.wakeup.acquire()
        self.answer: Any = None
        self.error: Exception | None = None
        self.done = False

    def perform(self, subject: C) -> Any:
        """Run the work in its own thread's context, so that its spans, for example, belong to that thread."""
        return self._context.run(self._work, subject)

    def wake(self) -> None:
        with suppress(RuntimeError):  # another thread has woken it already
            self.wakeup.release()


def _commit(batch: list[_Write[C]], transaction: Transaction[C]) -> None:
    """Write the batch in one transaction or, if that fails but the store is available, each entry in its own."""
    try:
        answers: list[Any] = transaction(lambda subject: [one.perform(subject) for one in batch])
    except StoreUnavailable as error:
        for one in batch:  # each thread raises an exception of its own
            one.error, one.done = StoreUnavailable(*error.args), True
            one.error.__cause__ = error.__cause__
    except Exception:  # noqa: BLE001 - each entry alone shows whose error it is
        for one in batch:
            try:
                one.answer = transaction(one.perform)
            except Exception as error:  # noqa: BLE001 - its own thread raises it
                one.error = error
            one.done = True
    else:
        for one, answer in zip(batch, answers, strict=True):
            one.answer, one.done = answer, True
