"""What an operator should know about a Redis server, and which of its settings can lose runs."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping
from typing import Any, Final

from .errors import is_forbidden, refuse

__all__ = ["Everywhere", "examine", "risks"]

_UNKNOWN: Final = "unknown"
_ROLES: Final = {"master": "primary", "slave": "replica"}
_TIME: Final = "if redis.pcall('TIME').err then return 'refused' end return 'allowed'"


class Everywhere:
    """A command for every primary. The reply lists what each of them returned, or the one error that was raised."""

    __slots__ = ("command",)

    def __init__(self, *command: str) -> None:
        self.command = command


def examine() -> Generator[Any, list[Any], dict[str, str]]:
    """Ask the server for the facts that matter. "unknown": the server does not report it, or forbids the question."""
    infos: list[Mapping[str, Any]] = [one or {} for one in (yield from _asked("INFO"))]
    snapshots = [_setting(one) for one in (yield from _asked("CONFIG", "GET", "save"))]
    syncs = [_setting(one) for one in (yield from _asked("CONFIG", "GET", "appendfsync"))]
    (time,) = yield [("EVAL", _TIME, 0)]
    if isinstance(time, Exception) and not is_forbidden(time):
        refuse(time)
    return {
        "store": "redis",
        "version": _together(info.get("redis_version") for info in infos),
        "mode": _together(info.get("redis_mode") for info in infos),
        "role": _together(_ROLES.get(info.get("role", "")) for info in infos),
        "eviction": _together(info.get("maxmemory_policy") for info in infos),
        "persistence": _together(map(_persistence, infos, snapshots, syncs)),
        "scripts": "refused" if isinstance(time, Exception) else "allowed",
        "time": _UNKNOWN if isinstance(time, Exception) else _string(time),
    }


def risks(report: Mapping[str, str]) -> list[str]:
    """Return what can lose runs in a report of `examine`, each as a clause."""
    found: list[str] = []
    if report["eviction"] not in {"noeviction", _UNKNOWN}:
        found.append(
            f"it evicts keys when its memory is full (set maxmemory-policy noeviction, not {report['eviction']})"
        )
    if "none" in report["persistence"].split(", "):
        found.append("persistence is off (set appendonly yes)")
    if "replica" in report["role"]:
        found.append("it is a replica (connect to the primary)")
    return found


def _asked(*command: str) -> Generator[Any, list[Any], list[Any]]:
    """Return each primary's reply to a command, or None if it forbids the command."""
    replies = yield Everywhere(*command)
    for reply in replies:
        if isinstance(reply, Exception) and not is_forbidden(reply):
            refuse(reply)
    return [None if isinstance(reply, Exception) else reply for reply in replies]


def _setting(reply: Any) -> str | None:
    """Return the value in a reply to CONFIG GET, which is a mapping or a list, depending on the client's protocol."""
    if not reply:
        return None
    return _string(next(iter(reply.values())) if hasattr(reply, "values") else reply[1])


def _persistence(info: Mapping[str, Any], snapshots: str | None, sync: str | None) -> str | None:
    log = info.get("aof_enabled")
    if log is None:
        return None
    kinds = [f"aof ({sync})" if sync else "aof"] if int(log) else []
    if snapshots:
        kinds.append("rdb")
    if kinds:
        return " and ".join(kinds)
    return "none" if snapshots is not None else None


def _together(values: Iterable[object]) -> str:
    """Return one text for what all primaries reported."""
    return ", ".join(sorted({_UNKNOWN if value is None else str(value) for value in values})) or _UNKNOWN


def _string(value: object) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
