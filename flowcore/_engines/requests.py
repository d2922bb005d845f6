"""Building requests from callers' arguments, which are checked here before a run begins."""

# Arguments are also checked at run time, for callers without a type checker.
# pyright: reportUnnecessaryIsInstance=false

from __future__ import annotations

import contextvars
from typing import TYPE_CHECKING, Any, Final

from .._kernel.request import Request
from .._kernel.settings import Settings
from ..context import initial, own_copy, step_name_taken
from ..errors import AsyncStepInSyncEngine, DefinitionError, IdempotencyError, NotSerializable, safe_repr
from ..keys import NO_KEY, Key, NoKey, checked_key
from ..retry import Duration, seconds
from ..workflow import Workflow

if TYPE_CHECKING:
    from ..plan import Plan

__all__ = ["checked_request"]

_TEXT: Final = frozenset({str})
MOST_VALUES: Final = 1000
"""the most initial values that a recorded run may have"""


def checked_request(
    settings: Settings,
    workflow: Workflow[Any],
    values: Any,
    idempotency_key: Key | None,
    wait: Duration | None,
    deadline: Duration | None,
    *,
    once: bool,
    check: bool,
    submitted: bool,
    until_waiting: bool,
    recovering: str | None,
) -> Request:
    """Build the request of a caller, or, with `recovering`, of an engine that resumes the run with that id.

    Raises DefinitionError, AsyncStepInSyncEngine, IdempotencyError for an invalid key, and NotSerializable.
    """
    try:
        plan = workflow.freeze()
    except (AttributeError, TypeError):  # TypeError: the class Workflow itself
        if isinstance(workflow, Workflow):
            raise
        raise DefinitionError(f"An engine runs workflows, not {safe_repr(workflow)}.") from None
    if plan.has_async is not None and not settings.runs_async:
        raise AsyncStepInSyncEngine(
            f"step {safe_repr(plan.has_async)} of workflow {safe_repr(workflow.name)} is async: run it on AsyncEngine."
        )
    given = None
    if workflow.input is not None and recovering is None:
        given = workflow.input.accept(values)
        values = workflow.input.values(given)
    own: dict[Any, Any] = {} if values is None else initial(values)
    key = None
    if idempotency_key is not None or workflow.idempotency_key is not None:
        key = _key(workflow, own if given is None else given, idempotency_key)
    if once is not False and once is not True:  # this costs no call, which `flag` would
        raise DefinitionError(f"once= must be True or False, not {safe_repr(once)}.")
    if check is not False and check is not True:
        raise DefinitionError(f"check= must be True or False, not {safe_repr(check)}.")
    if once and key is None:
        raise IdempotencyError("once=True needs an idempotency_key=.")
    recorded = key is not None or settings.durable
    if recorded and given is not None and workflow.input is not None:
        workflow.input.check_recordable(given, own)
    if own:
        own = _own_values(workflow, plan, own, recorded=recorded)
    return Request(
        workflow,
        plan,
        own,
        contextvars.copy_context(),
        key,
        None if recorded else given,
        None if wait is None else seconds(wait, "wait="),
        workflow.deadline if deadline is None else seconds(deadline, "deadline="),
        once,
        submitted,
        until_waiting,
        recovering,
        deadline is not None,
    )


def _own_values(workflow: Workflow[Any], plan: Plan, values: dict[Any, Any], *, recorded: bool) -> dict[Any, Any]:
    """Check the initial values. Returns a copy of them if they are recorded, so that the run changes no object of its
    caller. Raises DefinitionError for a value with the name of a step, and NotSerializable for too many values."""
    for name in plan.by_name.keys() & values.keys():
        raise step_name_taken(name, f"the run of workflow {safe_repr(workflow.name)} was given an initial value for it")
    if not recorded:
        return values
    if len(values) > MOST_VALUES:
        raise NotSerializable(
            f"The run of workflow {safe_repr(workflow.name)} has {len(values):,} initial values, and a recorded run "
            f"may have at most {MOST_VALUES:,}. Put them into one value, or store them elsewhere and pass a reference."
        )
    if not _TEXT.issuperset(map(type, values)):  # a member of an Enum means the same request as its text
        values = {str.__str__(key) if isinstance(key, str) else key: value for key, value in values.items()}
    copied: dict[Any, Any] = own_copy(values)
    return copied


def _key(workflow: Workflow[Any], given: Any, called_with: Key | None) -> str | None:
    """The run's idempotency key, taken literally: the call's own, or else the workflow's. None for a run without a key.
    Raises IdempotencyError."""
    key: Any = called_with
    if key is None:
        default = workflow.idempotency_key
        key = default if default is None or isinstance(default, str | NoKey) else default(given)
        if key is None:
            raise IdempotencyError(
                f"the key function of workflow {safe_repr(workflow.name)} returned None, which would leave the run unprotected. "
                "Return flowcore.NO_KEY for a run without a key."
            )
    if key is NO_KEY:
        return None
    return checked_key(key)
