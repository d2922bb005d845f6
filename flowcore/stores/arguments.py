"""Checks of what operators, and callers without a type checker, pass to the verbs of a store."""

# Arguments are checked at run time.
# pyright: reportUnnecessaryIsInstance=false

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Final
from urllib.parse import parse_qsl

from ..errors import DefinitionError, safe_repr

__all__ = [
    "LISTED",
    "check_clock",
    "check_key",
    "check_listing",
    "check_reason",
    "check_resumable",
    "check_run_id",
    "without_password",
]

LISTED: Final = (
    *("queued", "running", "waiting", "success", "failure", "compensated", "compensation_failed", "incomplete"),
    *("parked", "held", "expired"),
)
"""values of `list_runs(status=)`"""


def check_key(key: object) -> None:
    """Raise DefinitionError if the key of a run is not a string."""
    if not isinstance(key, str):
        raise DefinitionError(f"The key of a run must be a string, not of type {type(key).__name__}.")


def check_run_id(run_id: object) -> None:
    """Raise DefinitionError if the id of a run is not a string."""
    if not isinstance(run_id, str):
        raise DefinitionError(f"The id of a run must be a string, not {safe_repr(run_id)}.")


def check_listing(status: object, workflow: object, limit: object, text: object) -> None:
    """Raise DefinitionError for arguments of `list_runs` with which it could list nothing."""
    if status is not None and not (isinstance(status, str) and status in LISTED):
        raise DefinitionError(f"list_runs(status={safe_repr(status)}) is unknown: use one of {', '.join(LISTED)}.")
    if workflow is not None and not isinstance(workflow, str):
        raise DefinitionError(
            f"list_runs(workflow=) must be None or the name of a workflow, not {safe_repr(workflow)}."
        )
    if text is not None and not isinstance(text, str):
        raise DefinitionError(f"list_runs(text=) must be None or a part of a key, not {safe_repr(text)}.")
    _check_limit(limit, "list_runs")


def check_resumable(workflows: Collection[str], limit: object) -> None:
    """Raise DefinitionError for arguments of `list_resumable` with which it could list nothing."""
    is_collection = isinstance(workflows, Collection) and not isinstance(workflows, str | bytes)
    if not is_collection or not all(isinstance(name, str) for name in workflows):
        raise DefinitionError(
            f"list_resumable(workflows) must be the names of workflows in a collection, not {safe_repr(workflows)}."
        )
    _check_limit(limit, "list_resumable")


def check_reason(reason: object) -> None:
    """Raise DefinitionError if the reason of an operator's decision is not a string or None."""
    if reason is not None and not isinstance(reason, str):
        raise DefinitionError(f"reason= must be a string, not {safe_repr(reason)}.")


def check_clock(clock: object, what: str) -> None:
    """Raise DefinitionError, which names `what`, if a clock is not a function."""
    if not callable(clock):
        raise DefinitionError(f"{what} must be a function that returns seconds, not {safe_repr(clock)}.")


def _check_limit(limit: Any, verb: str) -> None:
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
        raise DefinitionError(f"{verb}(limit=) must be None or a whole number from 1 up, not {safe_repr(limit)}.")


def without_password(value: object) -> str:
    """Return safe_repr(value) for what was given in place of a store or a client. Of a URL, the user, the password and the
    values of the query are left out, because messages end up in logs."""
    if not isinstance(value, str) or not ("://" in value or "@" in value):
        return safe_repr(value)
    head, _, rest = value.rpartition("@")
    scheme = head.partition("://")[0] + "://" if "://" in head else ""
    place, _, query = rest.partition("?")
    names = "&".join(f"{name}=…" for name, _ in parse_qsl(query, keep_blank_values=True))
    return safe_repr(scheme + place + (f"?{names}" if names else ""))
