"""What a run on Temporal has in place of a store: its claim was made when its execution was started."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._durable.takeover import Takeover
from .._kernel.effects import Program
from .._kernel.ledger import Ledger
from .._kernel.run_state import RunState
from ..run import Run

if TYPE_CHECKING:
    from .driver import WorkflowDriver

__all__ = ["Granted", "NoStore"]


class NoStore:
    """Temporal itself keeps what a store would."""

    name = "temporal"
    durable = False
    blocks = False


class Granted:
    """The claim was made when the execution was started, and its end is the workflow's result. See
    flowcore._kernel.ledger.Claims."""

    def __init__(self, driver: WorkflowDriver) -> None:
        self._driver = driver

    def open(self) -> Ledger:
        raise AssertionError

    def claim(self, run: RunState) -> Program[Run | Takeover | None]:
        yield from ()
        run.claimed = True
        return self._driver.begin()

    def adopt(self, run: RunState) -> Program[Run | None]:
        yield from ()
        return None

    def suspend(self, run: RunState, waiting: Run) -> Program[bool]:
        raise AssertionError  # a run that only waits stays where it is, and costs nothing

    def finish(self, run: RunState, finished: Run) -> Program[BaseException | None]:
        yield from ()
        self._driver.finish(finished)
        return None
