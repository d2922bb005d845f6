"""Threads for engines: a pool whose jobs can be abandoned, and timers."""

from __future__ import annotations

import heapq
import itertools
import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from queue import SimpleQueue

from ..errors import NoThread
from ..forks import after_fork_in_child

__all__ = ["Timers", "Workers", "start_thread"]

Job = Callable[[], None]
_log = logging.getLogger("flowcore")


def start_thread(thread: threading.Thread) -> None:
    """Start a thread. Raises NoThread if the process has as many as it may have."""
    try:
        thread.start()
    except RuntimeError as error:
        raise NoThread(
            f"This process cannot start another thread ({error}). "
            "Raise the limit on threads of its user or container, then try again."
        ) from error


def _nothing() -> None:
    """The job of a thread that waits for its first one."""


class Workers:
    """At most `limit` threads, started when first needed, that run jobs in the order in which they came.

    A thread whose job was abandoned is replaced, up to `limit` further threads, and ends when its job returns. All
    threads are daemons: they do not keep the interpreter alive. The owner of the pool closes it.
    """

    def __init__(self, limit: int, name: str) -> None:
        self.limit = limit
        self._name = name
        self._lock = threading.Lock()
        self._backlog: deque[Job] = deque()  # jobs that wait for a thread
        self._idle: list[_Worker] = []  # the most recently used one is last, and taken first
        self._threads: set[_Worker] = set()
        self._numbers = itertools.count(1)
        self._closed = False
        self._capacity = limit  # how many threads there may be now
        self._abandoned = Counter[str]()  # jobs that were abandoned and have not returned, by name
        self._warned = False
        self._short_of_threads = False  # whether the process could not start the latest thread
        after_fork_in_child(self, Workers._after_fork)

    def _after_fork(self) -> None:
        """In a forked child, forget the threads and their jobs: they belong to the parent."""
        self._lock = threading.Lock()
        self._threads.clear()
        self._idle.clear()
        self._backlog.clear()
        self._abandoned.clear()
        self._capacity = self.limit

    @property
    def busy(self) -> int:
        """The number of threads that run a job now."""
        with self._lock:
            return len(self._threads) - len(self._idle)

    def abandon(self, name: str) -> None:
        """Note that a thread's job was abandoned: another thread may be started in its place. `name`: names the job."""
        with self._lock:
            self._abandoned[name] += 1
            total = self._abandoned.total()
            self._capacity = self.limit + min(total, self.limit)
            self._start_for_backlog()
            names = dict(self._abandoned)
            warns = total > self.limit and not self._warned
            self._warned = self._warned or warns
        if warns:
            listed = ", ".join(f"{name} ({count} times)" if count > 1 else name for name, count in names.items())
            _log.warning(
                "%d calls were abandoned and have not returned: %s. Their threads are no longer replaced "
                "(max_workers=%d); set a timeout on the operations that they wait for.",
                total,
                listed,
                self.limit,
            )

    def returned(self, name: str) -> None:
        """Note that an abandoned job has returned."""
        with self._lock:
            self._abandoned[name] -= 1
            self._abandoned += Counter()  # this drops counts of zero
            self._capacity = self.limit + min(self._abandoned.total(), self.limit)
            self._warned = self._warned and bool(self._abandoned)

    @property
    def exhausted(self) -> bool:
        """Whether all threads run abandoned jobs and no further thread may be started."""
        with self._lock:
            return self._capacity <= len(self._threads) <= self._abandoned.total()

    def counts(self) -> tuple[int, int]:
        """How many threads run a job, and how many of these jobs were abandoned."""
        with self._lock:
            return len(self._threads) - len(self._idle), self._abandoned.total()

    @property
    def is_over(self) -> bool:
        """Whether the pool is closed, and no thread runs a job any more."""
        return self._closed and not self.busy

    def owns_current_thread(self) -> bool:
        """Whether the calling thread is one of the pool's."""
        return threading.current_thread() in self._threads

    def put(self, job: Job, *, first: bool = False, beyond: bool = False) -> bool:
        """Run `job` on a thread. Returns False if it has to wait for one; with `first`, it then waits before all other
        jobs, as jobs of runs that have begun do. With `beyond`, a job never waits: if no thread is idle, one beyond the
        limit is started.

        Raises NoThread if the process cannot start a thread, and the job may not wait or no thread is there to wait for.
        """
        with self._lock:
            if self._idle:
                self._idle.pop().inbox.put(job)
                return True
            if beyond or len(self._threads) < self._capacity:
                try:
                    self._start(job)
                except NoThread as error:
                    if beyond or not self._threads:
                        raise
                    self._warn_of_failed_start(error)
                else:
                    return True
            (self._backlog.appendleft if first else self._backlog.append)(job)
            return False

    def ensure_thread(self) -> None:
        """Start a thread if there is none, so that `put` does not raise. Raises NoThread."""
        with self._lock:
            if not self._threads:
                self._start(_nothing)

    def _start(self, job: Job) -> None:
        """(lock) Start a thread that begins with `job`. Raises NoThread."""
        worker = _Worker(self, f"{self._name}-{next(self._numbers)}", job)
        try:
            self._threads.add(worker)
            start_thread(worker)
        except BaseException:  # NoThread, or the exit of a signal handler
            if worker.ident is None:
                self._threads.discard(worker)
            raise
        self._short_of_threads = False

    def _start_for_backlog(self) -> None:
        """(lock) Start a thread for the first job that waits, if there may be one more."""
        if self._backlog and len(self._threads) < self._capacity:
            try:
                self._start(self._backlog[0])
            except NoThread as error:
                self._warn_of_failed_start(error)
            else:
                self._backlog.popleft()

    def replace_lost(self, worker: _Worker) -> None:
        """Give the place of a thread that an error of its job has ended to another one."""
        with self._lock:
            self._threads.discard(worker)
            self._start_for_backlog()

    def _warn_of_failed_start(self, error: NoThread) -> None:
        """(lock) Log that jobs wait although the pool has fewer threads than its limit. This is logged once, until a
        thread can be started again. Logs nothing while the interpreter exits, because from Python 3.12 on it then
        starts no more threads."""
        if not self._short_of_threads and threading.main_thread().is_alive():
            self._short_of_threads = True
            _log.warning("%d of max_workers=%d threads run: %s", len(self._threads), self.limit, error)

    def next_job(self, worker: _Worker) -> Job | None:
        """The next job for `worker`, or None if it is to end. Blocks while there is no job."""
        with self._lock:
            if self._backlog and len(self._threads) <= self._capacity:
                return self._backlog.popleft()
            if self._closed or len(self._threads) > self._capacity:
                self._threads.discard(worker)
                return None
            self._idle.append(worker)
        return worker.inbox.get()

    def close(self, timeout: float | None) -> None:
        """End idle threads now, and others after their job. Waits at most `timeout` seconds (None: no limit)."""
        with self._lock:
            self._closed = True
            threads = list(self._threads)
            for worker in self._idle:
                self._threads.discard(worker)
                worker.inbox.put(None)
            self._idle.clear()
        until = None if timeout is None else time.monotonic() + min(timeout, threading.TIMEOUT_MAX / 2)
        for thread in threads if timeout != 0 else ():
            if thread is not threading.current_thread():
                thread.join(None if until is None else max(0.0, until - time.monotonic()))


class _Worker(threading.Thread):
    """One thread of a pool, with an inbox of its own so that a job wakes exactly one."""

    def __init__(self, pool: Workers, name: str, job: Job) -> None:
        super().__init__(name=name, daemon=True)
        self.inbox: SimpleQueue[Job | None] = SimpleQueue()
        self._pool = pool
        self._job: Job | None = job

    def run(self) -> None:
        job, self._job = self._job, None
        while job is not None:
            try:
                job()
            except BaseException:
                self._pool.replace_lost(self)
                raise
            del job  # do not keep a run alive while waiting for the next
            job = self._pool.next_job(self)


class Timers:
    """Calls functions after a delay, on one thread that is started when first needed. The functions must be quick: they
    hand longer work over to other threads."""

    def __init__(self, name: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._name = name
        self._clock = clock
        self._changed = threading.Condition()
        self._heap: list[tuple[float, int, Timer]] = []
        self._numbers = itertools.count()
        self._thread: threading.Thread | None = None
        self._closed = False
        after_fork_in_child(self, Timers._after_fork)

    def _after_fork(self) -> None:
        """In a forked child, forget the thread and its timers: they belong to the parent."""
        self._changed = threading.Condition()
        self._thread = None
        self._heap.clear()

    def after(self, seconds: float, callback: Job) -> Timer:
        """Call `callback` once, after `seconds`, unless the returned timer is cancelled before. Raises NoThread, also if
        the timers are closed, because the callback would never be called."""
        timer = Timer(callback)
        moment = self._clock() + min(seconds, threading.TIMEOUT_MAX / 2)
        with self._changed:
            if self._closed:
                raise NoThread("The engine was closed, and nothing can wait in it any more. Make another engine.")
            if self._thread is None or not self._thread.is_alive():  # an error may have ended it
                thread = threading.Thread(target=self._watch, name=self._name, daemon=True)
                start_thread(thread)
                self._thread = thread
            heapq.heappush(self._heap, (moment, next(self._numbers), timer))
            if self._heap[0][2] is timer:
                self._changed.notify()
        return timer

    def _watch(self) -> None:
        while True:
            with self._changed:
                while self._heap and self._heap[0][2].callback is None:
                    heapq.heappop(self._heap)
                now = self._clock()
                if self._closed:
                    return
                if not self._heap:
                    self._changed.wait()
                    continue
                if self._heap[0][0] > now:
                    self._changed.wait(self._heap[0][0] - now)
                    continue
                timer = heapq.heappop(self._heap)[2]
            timer.fire()

    def close(self) -> None:
        """Drop all timers and end the thread."""
        with self._changed:
            self._closed = True
            self._heap.clear()
            self._changed.notify()


class Timer:
    """A callback that is called once, unless `cancel` is called before. Thread-safe."""

    __slots__ = ("callback",)

    def __init__(self, callback: Job) -> None:
        self.callback: Job | None = callback

    def cancel(self) -> None:
        self.callback = None

    def fire(self) -> None:
        callback, self.callback = self.callback, None
        if callback is not None:
            callback()
