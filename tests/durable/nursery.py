"""Processes that are there at once: forked from one that has imported everything and has no threads.

pytest itself cannot be forked, with the threads of whatever test came before; and a new Python needs half a second.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Collection, Iterable
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path
from typing import Any, Final, Self

__all__ = ["Nursery"]

_ROOT: Final = Path(__file__).parents[2]
_WARM: Final = ("flowcore.stores", "flowcore.testing", "redis", "redis.asyncio", "tests.durable.crash")


class Nursery:
    """Starts processes, and reports when they end. Those that are left when it is closed are killed."""

    def __init__(self) -> None:
        mine, theirs = Pipe()
        command = [sys.executable, "-m", "tests.durable.nursery", str(theirs.fileno())]
        self._process = subprocess.Popen(command, pass_fds=[theirs.fileno()], cwd=_ROOT)
        theirs.close()
        self._pipe: Connection[Any, Any] = mine
        self._codes: dict[int, int] = {}  # of those that have ended, and whose code was not asked for yet

    def start(self, target: Callable[..., None], *args: Any) -> int:
        """Call a function of some module in a process of its own; answers its pid."""
        self._pipe.send((target, args))
        while True:
            pid, code = self._pipe.recv()
            if code is None:
                return int(pid)
            self._codes[pid] = code

    def wait(self, pids: Collection[int]) -> tuple[int, int]:
        """Wait for one of these processes to end; answers its pid, and its exit code, or minus the signal that killed it."""
        while True:
            for pid in pids:
                if pid in self._codes:
                    return pid, self._codes.pop(pid)
            pid, code = self._pipe.recv()
            self._codes[pid] = code

    def ended(self, pid: int) -> int | None:
        """The exit code of this process, or None while it lives."""
        while self._pipe.poll():
            one, code = self._pipe.recv()
            self._codes[one] = code
        return self._codes.pop(pid, None)

    def call(self, target: Callable[..., None], calls: Iterable[tuple[Any, ...]], *, at_once: int = 4) -> list[int]:
        """Call a function with each of these arguments, each in its own process, a few at a time; answers the exit codes."""
        codes: dict[int, int | None] = {}
        running: set[int] = set()
        for args in calls:
            if len(running) >= at_once:
                self._collect(running, codes)
            pid = self.start(target, *args)
            running.add(pid)
            codes[pid] = None
        while running:
            self._collect(running, codes)
        return [code for code in codes.values() if code is not None]

    def _collect(self, running: set[int], codes: dict[int, int | None]) -> None:
        pid, codes[pid] = self.wait(running)
        running.remove(pid)

    def close(self) -> None:
        self._pipe.close()
        self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def main(pipe: Connection[Any, Any]) -> None:
    """Fork what is asked for, until the other end of the pipe is closed."""
    for module in _WARM:
        importlib.import_module(module)
    gc.freeze()
    bell, rope = os.pipe()
    os.set_blocking(rope, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(rope)
    children: set[int] = set()
    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            ready = wait([pipe, bell])
            if bell in ready:
                os.read(bell, 4096)
                for pid in list(children):
                    gone, status = os.waitpid(pid, os.WNOHANG)
                    if gone:
                        children.remove(pid)
                        pipe.send((pid, os.waitstatus_to_exitcode(status)))
            if pipe in ready:
                target, args = pipe.recv()
                pid = os.fork()
                if not pid:
                    signal.set_wakeup_fd(-1)
                    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                    for file in (bell, rope, pipe.fileno()):
                        os.close(file)
                    _live(target, args)
                children.add(pid)
                pipe.send((pid, None))
    for pid in children:
        os.kill(pid, signal.SIGKILL)


def _live(target: Callable[..., None], args: tuple[Any, ...]) -> None:
    code = 1
    try:
        target(*args)
        code = 0
    except BaseException:  # noqa: BLE001 - the end of a process
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    main(Connection(int(sys.argv[1])))
