"""The keys that schedules use in stores, the same in every process: one for each fire, and those of their log."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from datetime import datetime

__all__ = ["LOG", "fire_key", "fire_of", "log_key", "logged_schedule", "schedule_of"]

LOG: Final = "flowcore.schedule"
"""the workflow name of records that are not runs: they list the schedules, and the fires that were skipped"""
_PREFIX: Final = "schedule/"


def log_key(schedule: str, period: int, number: int) -> str:
    """Return the key of an entry in a schedule's log. Each period's entry with the highest number is valid."""
    return f"{_PREFIX}{schedule}/since/{period}.{number}"


def logged_schedule(key: str) -> str | None:
    """Return the name of the schedule whose log has this key; None for any other key."""
    name, between, _ = key.removeprefix(_PREFIX).rpartition("/since/")
    return name if between and key.startswith(_PREFIX) else None


def fire_key(schedule: str, fire: datetime) -> str:
    """Return the idempotency key of the run of a fire. `fire` is in UTC."""
    return f"{_PREFIX}{schedule}/{fire.replace(tzinfo=None).isoformat()}Z"


def schedule_of(key: str | None) -> str | None:
    """Return the name of the schedule whose fire has this key; None for any other key."""
    return None if fire_of(key) is None else str(key)[len(_PREFIX) :].rpartition("/")[0]


def fire_of(key: str | None) -> datetime | None:
    """Return the planned time, in UTC, of the fire that has this key; None for any other key."""
    if key is None or not key.startswith(_PREFIX) or not key.endswith("Z"):
        return None
    from datetime import datetime  # an import that most runs never need

    try:
        return datetime.fromisoformat(key.rpartition("/")[2])
    except ValueError:
        return None
