"""What the collection of some 10,000 tests costs each process, kept small.

Pytest rewrites the asserts of each file and keeps the result as bytecode. If all processes begin at once, each rewrites
all files; so the first one collects alone, and the others load what it has written. Coverage is measured from the first
test that needs it, because it would double the time of everything before that. The garbage collector is off meanwhile, and
never looks at what was collected, because all of that lives as long as the process.
"""

from __future__ import annotations

import fcntl
import gc
import importlib
import pkgutil
import sys
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any, Final

import pytest

__all__ = ["Coverage", "FirstAlone", "FrozenHeap"]

MEASURED_PACKAGES: Final = ("flowcore._kernel", "flowcore._durable")


class FirstAlone:
    """Lets one process collect before the others do."""

    @pytest.hookimpl(wrapper=True)
    def pytest_collection(self) -> Generator[None, Any, Any]:
        if sys.dont_write_bytecode:
            return (yield)
        with Path(__file__).open("rb") as this_file:
            try:
                fcntl.flock(this_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:  # another process is the first one: this one waits until that has collected
                fcntl.flock(this_file, fcntl.LOCK_SH)
            return (yield)


class FrozenHeap:
    """Spares the garbage collector what the collection makes: half a million objects."""

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_collection(self) -> Generator[None, Any, Any]:
        gc.disable()
        try:
            return (yield)
        finally:
            gc.enable()
            gc.collect()  # It counts what is there. Full collections are then as rare as without the freeze.
            gc.freeze()


class Coverage:
    """Pauses the coverage of pytest-cov, except in the tests for which `measures` returns True, and in their fixtures."""

    def __init__(self, pytest_cov: Any, measures: Callable[[pytest.Item], bool], *, worker: bool) -> None:
        if worker:
            # pytest-cov takes each worker for the main process until the session starts. It would never stop what it has
            # started for that, and all tests would be traced.
            pytest_cov.cov_controller.pause()
        self._pytest_cov = pytest_cov
        self._measures = measures
        self._paused = False

    def _set(self, *, paused: bool) -> None:
        if paused != self._paused:
            controller = self._pytest_cov.cov_controller
            (controller.pause if paused else controller.resume)()
            self._paused = paused

    @pytest.hookimpl(wrapper=True)
    def pytest_collection(self) -> Generator[None, Any, Any]:
        for package in map(importlib.import_module, MEASURED_PACKAGES):  # some of their lines run at import only
            for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
                importlib.import_module(module.name)
        self._set(paused=True)
        return (yield)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, Any, Any]:
        self._set(paused=not self._measures(item))
        return (yield)
