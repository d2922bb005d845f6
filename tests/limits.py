"""A run of the tests always ends. The limits are for what hangs: a slow or busy machine stays far below them.

A test that has not ended after PATIENCE seconds prints the stacks of all threads and fails; the others go on. Where its
main thread cannot be interrupted, faulthandler ends the process after `faulthandler_timeout` (pyproject.toml), and
pytest-xdist ends the run: it starts no new process in place of a dead one (`--max-worker-restart=0`), as with
`--dist=loadfile` it would wait for that one for ever. What pytest-xdist does not see is a dead process whose child keeps
the pipe open, so the process that collects the reports ends the run after SILENCE seconds without one.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import threading
import time
from collections.abc import Generator
from types import FrameType
from typing import Any, Final

import pytest

__all__ = ["SilenceLimit", "TestLimit", "own_group"]

PATIENCE: Final = 400.0
AGAIN: Final = 60.0
"""seconds after which a test that hangs in its end, too, is interrupted again"""
SILENCE: Final = 700.0


class TestLimit:
    """Fails a test that hangs, in the process that runs it. `stderr`: a file descriptor."""

    __test__ = False

    def __init__(self, stderr: int, patience: float = PATIENCE) -> None:
        self._stderr = stderr
        self._patience = patience
        self._process = os.getpid()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, Any, Any]:
        before = signal.signal(signal.SIGALRM, self._over)
        signal.setitimer(signal.ITIMER_REAL, self._patience, AGAIN)
        try:
            return (yield)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)

    def _over(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # A forked child inherits this handler, and means the signal for its own end.
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        faulthandler.dump_traceback(self._stderr)
        pytest.fail(f"The test hangs: it has not ended after {self._patience:g} s. All stacks are on stderr.")


class SilenceLimit:
    """Ends a run in which no process reports anything any more, in the process that collects the reports.

    The processes that run the tests lead groups of their own (`own_group`), so that what one of them has left behind can
    be killed even if it is dead itself: a reader of the run's output waits until the last of them has closed it.
    """

    def __init__(self, stderr: int, silence: float = SILENCE) -> None:
        self._stderr = stderr
        self._silence = silence
        self._heard = time.monotonic()
        self._running: set[str] = set()
        self._groups: set[int] = set()
        threading.Thread(target=self._watch, name="silence limit", daemon=True).start()

    def pytest_xdist_newgateway(self, gateway: Any) -> None:
        self._groups.add(gateway._rinfo().pid)

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._heard = time.monotonic()
        self._running.add(nodeid)

    def pytest_runtest_logreport(self) -> None:
        self._heard = time.monotonic()

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        self._heard = time.monotonic()
        self._running.discard(nodeid)

    def pytest_unconfigure(self) -> None:
        self._kill()

    def _watch(self) -> None:
        while (left := self._heard + self._silence - time.monotonic()) > 0:
            time.sleep(left)
        running = ", ".join(sorted(self._running)) or "none"
        message = f"\nThe run hangs: no report for {self._silence:g} s. Tests without an end: {running}.\n"
        os.write(self._stderr, message.encode())
        self._kill()
        os._exit(pytest.ExitCode.INTERNAL_ERROR)

    def _kill(self) -> None:
        for group in self._groups:
            with contextlib.suppress(OSError):  # It is empty, or the process has not come as far as to lead one.
                os.killpg(group, signal.SIGKILL)


def own_group() -> None:
    """Make this process the leader of a group, which all will belong to that it starts."""
    os.setpgid(0, 0)
