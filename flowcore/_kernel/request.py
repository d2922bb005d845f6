"""What a caller, or recovery, asks of an engine: a run of a workflow."""

from __future__ import annotations

import contextvars
from typing import Any, Final

from ..plan import Plan
from ..workflow import Workflow

__all__ = ["Request"]


class Request:
    """A run that an engine is asked for. Made once, of options that were checked, and passed on whole.

    `values`: the initial ones, which the run changes; `context`: the caller's, of which each call of user code gets a copy;
    `key`: the idempotency key; `input`: of Workflow(input=), as the caller gave it. Seconds: `wait`, for another run that has
    the key; `deadline`, from the first claim until the run must be over; None: no limit. `once`: an earlier run that failed is
    the answer too. `until_waiting`: the caller wants to have the run as soon as it only waits. `recovering`: the id of a run
    whose values are in the store; recovery resumes it, or, where `wait` is given, its caller does.
    """

    __slots__ = (
        "context",
        "deadline",
        "input",
        "key",
        "once",
        "plan",
        "recovering",
        "submitted",
        "until_waiting",
        "values",
        "wait",
        "workflow",
    )

    def __init__(
        self,
        workflow: Workflow[Any],
        plan: Plan,
        values: dict[Any, Any],
        context: contextvars.Context,
        key: str | None = None,
        input: Any = None,  # noqa: A002 - its name in Workflow
        wait: float | None = None,
        deadline: float | None = None,
        once: bool = False,
        submitted: bool = False,
        until_waiting: bool = False,
        recovering: str | None = None,
    ) -> None:
        self.workflow: Final = workflow
        self.plan: Final = plan
        self.values: Final = values
        self.context: Final = context
        self.key: Final = key
        self.input: Final = input
        self.wait: Final = wait
        self.deadline: Final = deadline
        self.once: Final = once
        self.submitted: Final = submitted
        self.until_waiting: Final = until_waiting
        self.recovering: Final = recovering

    @property
    def unattended(self) -> bool:
        """Whether recovery has asked for it, and no caller waits for the run."""
        return self.recovering is not None and self.wait is None
