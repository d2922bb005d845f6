"""What a run on Temporal has instead of a store. Its claim was granted when its execution was started."""

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
    """Stands for the store of a run: Temporal itself keeps the record."""

    name = "temporal"
    durable = False
    blocks = False


class Granted:
    """The claims of runs on Temporal: a run's claim was granted when its execution was started, and its end is the
    result of the workflow. See flowcore._kernel.ledger.Claims."""

    def __init__(self, driver: WorkflowDriver) -> None:
        self._driver = driver

    def open(self) -> Ledger:
        raise AssertionError

    def claim(self, run: RunState) -> Program[Run | Takeover | None]:
        yield from ()
        run.claimed = True
        return self._driver.begin()

    def withdraw(self, run: RunState, claim_id: str) -> Program[None]:
        yield from ()  # Temporal ends the execution

    def adopt(self, run: RunState) -> Program[Run | None]:
        yield from ()
        return None

    def suspend(self, run: RunState, waiting: Run) -> Program[bool]:
        raise AssertionError  # a run that only waits stays in its Temporal workflow, and costs nothing

    def finish(self, run: RunState, finished: Run) -> Program[BaseException | None]:
        yield from ()
        self._driver.finish(finished)
        return None
