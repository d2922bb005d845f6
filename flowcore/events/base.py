"""The base classes of all events."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

__all__ = ["Event", "StepEvent"]


@dataclass(slots=True, eq=False)
class Event:
    """The base class of all events, with the fields that each of them has."""

    workflow: str
    run_id: str
    at: float
    """monotonic seconds, by the engine's clock"""
    state: dict[Any, Any] = field(repr=False)
    """a dict for the hooks' own data, shared by all events of the run in this process; never stored"""


@dataclass(slots=True, eq=False)
class StepEvent(Event):
    """The base class of all events of a step."""

    step: str
