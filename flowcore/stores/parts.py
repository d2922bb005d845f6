"""Readers of the smallest parts of a stored record. Each raises Foreign for a part that flowcore did not write."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, cast

from ..errors import safe_repr, safe_str
from ..status import Status
from .codec import json_value

__all__ = [
    "LARGEST",
    "Fields",
    "Foreign",
    "count",
    "flag",
    "items",
    "json",
    "mapping",
    "number",
    "numbered",
    "one_of",
    "optional",
    "pair",
    "parsed",
    "run_id",
    "seconds",
    "status",
    "string",
    "strings",
    "text",
    "time",
]

Fields = Mapping[str, Any]
LARGEST: Final = 2**53 - 1
_LONGEST_RUN_ID: Final = 128
_DIGITS: Final = len(str(LARGEST))


class Foreign(ValueError):
    """A part of a record is not as flowcore writes it; the message says why."""


def number(fields: Fields, name: str) -> int:
    """The whole number from 0 up in a field. Raises Foreign, which says what is there instead."""
    value = fields.get(name)
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= _DIGITS:
        value = int(value)
    if type(value) is not int or not 0 <= value <= LARGEST:
        raise Foreign(f"its {name} is {'missing' if value is None else safe_repr(value)}")
    return value


def count(fields: Fields, name: str) -> int:
    """The same as `number`, but 0 if there is no such field."""
    return number(fields, name) if name in fields else 0


def time(fields: Fields, name: str) -> float | None:
    """The seconds since the epoch in a field that has microseconds, or None if there is no such field."""
    return number(fields, name) / 1e6 if name in fields else None


def parsed(text: str, field: str) -> Any:
    """The value of a text of JSON."""
    try:
        return json_value(text)
    except (ValueError, RecursionError) as error:
        raise Foreign(f"its field {safe_repr(field)} is not JSON ({safe_str(error, 200)})") from error


def json(fields: Fields, name: str, default: object) -> Any:
    """The value of a field of JSON, or `default` if there is no such field."""
    return parsed(text(fields, name), name) if name in fields else default


def numbered(text: object, field: str) -> tuple[int, dict[str, Any]]:
    """Split a text into the seq in front and the JSON object behind it."""
    seq, _, known = string(text, field).partition(" ")
    return number({field: seq}, field), mapping(parsed(known, field), field)


def text(fields: Fields, name: str) -> str:
    """The text in a field, which must be there."""
    return string(fields.get(name), name)


def run_id(fields: Fields) -> str:
    """The run id. Error messages quote it, so an id that is very long or not printable is refused; flowcore's own ids
    have 32 digits."""
    known = text(fields, "run_id")
    if len(known) > _LONGEST_RUN_ID or not known.isprintable():
        raise Foreign(f"its run id is {safe_repr(known)}")
    return known


def string(value: object, field: str) -> str:
    if not isinstance(value, str):
        raise Foreign(f"its field {safe_repr(field)} is {'missing' if value is None else safe_repr(value)}")
    return value


def optional(fields: Fields, name: str) -> str | None:
    """The text in a field, or None if there is no such field."""
    return text(fields, name) if name in fields else None


def pair(value: object, field: str) -> tuple[str, str]:
    """A list of two texts, as a tuple."""
    both = items(value, field)
    if len(both) != 2:
        raise Foreign(f"its field {safe_repr(field)} has {safe_repr(value)} in it")
    return string(both[0], field), string(both[1], field)


def times(value: object, field: str) -> tuple[float, float]:
    """A list of two times in seconds since the epoch, as a tuple."""
    both = items(value, field)
    if len(both) != 2:
        raise Foreign(f"its field {safe_repr(field)} has {safe_repr(value)} in it")
    return seconds(both[0], field), seconds(both[1], field)


def mapping(value: object, field: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise Foreign(f"its field {safe_repr(field)} has {safe_repr(value)} in it")
    return cast("dict[str, Any]", value)


def items(value: object, field: str) -> list[object]:
    if not isinstance(value, list):
        raise Foreign(f"its field {safe_repr(field)} has {safe_repr(value)} in it")
    return cast("list[object]", value)


def strings(value: object, field: str) -> dict[str, str]:
    """A dict with texts as keys and values."""
    return {key: string(text, field) for key, text in mapping(value, field).items()}


def flag(fields: Fields, name: str) -> bool:
    """Whether a field is 1. A missing field counts as 0."""
    value = number(fields, name) if name in fields else 0
    if value > 1:
        raise Foreign(f"its {name} is {value}")
    return bool(value)


def one_of(known: frozenset[str], value: object, field: str) -> str:
    if not isinstance(value, str) or value not in known:
        raise Foreign(f"its field {safe_repr(field)} has the unknown value {safe_repr(value)}")
    return value


def status(known: frozenset[str], value: object, field: str) -> Status:
    """The status that a value names. It must be one of `known`."""
    return Status(one_of(known, value, field))


def seconds(value: object, field: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= LARGEST:
        raise Foreign(f"its field {safe_repr(field)} has the invalid duration {safe_repr(value)}")
    return float(value)
