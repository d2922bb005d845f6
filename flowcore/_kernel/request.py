"""The request of a caller, or of recovery, for a run of a workflow."""

from __future__ import annotations

import contextvars
from typing import Any, Final

from ..plan import Plan
from ..workflow import Workflow

__all__ = ["Request"]


class Request:
    """The request for one run. It is built once, from options that have been checked, and never changes.

    `values`: the initial values; the run changes this dict. `context`: the caller's contextvars context; each call of
    user code gets a copy. `key`: the idempotency key. `input`: the input of Workflow(input=), as the caller gave it.
    `wait`: seconds to wait for another run that has the key. `deadline`: seconds from the first claim until the run
    must be over. None means no wait, or no deadline. `own_deadline`: the caller gave the deadline, which then holds even
    if the run was recorded with another one. `once`: the outcome of an earlier run is returned even if that run
    failed. `submitted`: the run was submitted, and its caller did not wait for it to start. `until_waiting`: the caller
    gets the run as soon as it only waits. `recovering`: the id of a recorded run to resume, whose values are in the
    store; recovery resumes it, or its caller if `wait` is given.
    """

    __slots__ = (
        "context",
        "deadline",
        "input",
        "key",
        "once",
        "own_deadline",
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
        own_deadline: bool = False,
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
        self.own_deadline: Final = own_deadline

    @property
    def unattended(self) -> bool:
        """Whether recovery requested the run, so that no caller waits for it."""
        return self.recovering is not None and self.wait is None
