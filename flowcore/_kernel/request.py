"""What a caller, or recovery, asks of an engine: a run of a workflow."""

from __future__ import annotations

import contextvars
from typing import Any, NamedTuple

from ..plan import Plan
from ..workflow import Workflow

__all__ = ["Request"]


class Request(NamedTuple):
    """A run that an engine is asked for. Made once, of options that were checked, and passed on whole."""

    workflow: Workflow[Any]
    plan: Plan
    values: dict[Any, Any]
    """the initial values; the run changes them"""
    context: contextvars.Context
    """the caller's, of which each call of user code gets a copy"""
    key: str | None = None
    """the idempotency key"""
    input: Any = None
    """of Workflow(input=), as the caller gave it; None where it is made of the values"""
    wait: float | None = None
    """seconds to wait for another run that has the key"""
    deadline: float | None = None
    """seconds from the first claim to the run's deadline; None: no limit"""
    once: bool = False
    """an earlier run that failed is the answer too"""
    submitted: bool = False
    until_waiting: bool = False
    """the caller wants to have the run as soon as it only waits"""
    recovering: str | None = None
    """the id of a run whose values are in the store: recovery resumes it, or, where `wait` is given, its caller does"""
