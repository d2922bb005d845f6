"""A thin wrapper around a real store: it notes what the store has accepted, and tells of each call before and after it."""

from __future__ import annotations

import inspect
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, Final

from flowcore.stores.base import Claimed
from tests.durable.ledger import Journal

__all__ = ["Bomb", "Fuse", "Watched"]

_WATCHED: Final = frozenset({"claim", "checkpoint", "renew", "finish", "withdraw", "find", "list_resumable"})
_ACCEPTED: Final = frozenset({"checkpoint", "finish"})


class Bomb:
    """Kills this process once all of its runs are where they are to die, or over. Until then those who are wait."""

    def __init__(self, runs: int) -> None:
        self._left = runs
        self._lock = threading.Lock()

    def over(self) -> None:
        """One run less to wait for."""
        with self._lock:
            self._left -= 1
            if not self._left:
                os.kill(os.getpid(), signal.SIGKILL)

    def die(self) -> None:
        """Go no further."""
        self.over()
        threading.Event().wait()


class Fuse:
    """Ends a run the `occurrence`-th time that it is told `label`, or anything; remembers what it was told."""

    def __init__(self, label: str, occurrence: int, die: Callable[[], None]) -> None:
        self._label = label
        self._occurrence = occurrence
        self._die = die
        self._lock = threading.Lock()
        self.seen: Counter[str] = Counter()

    def __call__(self, label: str) -> None:
        with self._lock:
            self.seen[label] += 1
            count = self.seen[self._label] if self._label else self.seen.total()
            dies = count == self._occurrence and self._label in {"", label}
        if dies:
            self._die()


class Watched:
    """The store itself, watched: by `journal`, and by `point`, which is told "before claim", "after claim" and so on."""

    def __init__(self, store: Any, journal: Journal, point: Callable[[str], None] = lambda label: None) -> None:
        self._store = store
        self._journal = journal
        self._point = point
        self.name, self.durable, self.blocks = store.name, store.durable, store.blocks

    def __getattr__(self, verb: str) -> Any:
        call = getattr(self._store, verb)
        if verb not in _WATCHED:
            return call

        def watched(argument: Any, *more: Any, **options: Any) -> Any:
            self._point(f"before {verb}")
            sent = time.monotonic()
            answer = call(argument, *more, **options)
            self._heard(verb, argument, answer, sent)
            return answer

        async def watched_async(argument: Any, *more: Any, **options: Any) -> Any:
            self._point(f"before {verb}")
            sent = time.monotonic()
            answer = await call(argument, *more, **options)
            self._heard(verb, argument, answer, sent)
            return answer

        return watched_async if inspect.iscoroutinefunction(call) else watched

    def _heard(self, verb: str, argument: Any, answer: Any, sent: float) -> None:
        if isinstance(answer, Claimed) or (answer is None and verb in _ACCEPTED):
            self._journal.accepted(verb, argument, answer, sent)
        self._point(f"after {verb}")
