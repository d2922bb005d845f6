"""The canonical form of values, which decides whether two requests with the same key are the same request."""

# Values are of any type, and narrowing Any by `type(value) is dict` leaves a dict of unknowns.
# pyright: reportUnknownArgumentType=false, reportUnknownVariableType=false, reportUnknownMemberType=false

from __future__ import annotations

import math
from typing import Any, cast

from ..errors import NotSerializable
from .codec import (
    DEEP,
    LONG,
    NESTED,
    TAG,
    VALUE,
    is_plain,
    json_value,
    refuse,
    sorted_text,
    tagged,
    tagged_text,
    untagged,
)

__all__ = ["canonical"]


def canonical(value: object) -> str:
    """Return the same text for all values that mean the same request: numbers by value, text in NFC, dicts in any
    order, tuples as lists.

    Raises NotSerializable for a value that no codec of flowcore can store.
    """
    try:
        if is_plain(value):
            text = sorted_text(value)
            if "\\u" not in text and not _needs_comparing(value):
                return text
    except (ValueError, RecursionError):
        pass
    try:
        return sorted_text(_canonical(json_value(tagged_text(value, _comparable))))
    except (RecursionError, ValueError):
        raise NotSerializable(f"{DEEP}. Use a flat value.") from None


def _comparable(value: Any) -> Any:
    """Return plain data in place of a value that the default codec cannot store: the value of an Enum member, the parts
    or fields of an object, or the plain value of a subclass of str, int, float, dict or list."""
    kind = type(value)
    if any(base.__module__ == "enum" and base.__name__ == "Enum" for base in kind.__mro__):
        return tagged(value.value, _comparable)
    if isinstance(value, tuple) and hasattr(kind, "_fields"):
        return [tagged(part, _comparable) for part in value]
    fields = getattr(kind, "__dataclass_fields__", None) or getattr(kind, "__pydantic_fields__", None)
    if fields:
        return {TAG: "fields", VALUE: {name: tagged(getattr(value, name), _comparable) for name in fields}}
    bases: tuple[Any, ...] = (str, int, float, dict, list)
    plain: Any = next((base for base in bases if issubclass(kind, base)), None)
    return refuse(value) if plain is None else tagged(plain(value), _comparable)


def _needs_comparing(value: Any) -> bool:
    """Whether a plain value contains numbers that may equal a number of another type."""
    parts = value.values() if type(value) is dict else value if type(value) is list else (value,)
    return any(
        type(part) is float
        or (type(part) is int and part.bit_length() > LONG)
        or (type(part) in NESTED and _needs_comparing(part))
        for part in parts
    )


def _canonical(known: Any) -> Any:
    """The canonical form of a tagged value."""
    if isinstance(known, str):
        return known if known.isascii() else _nfc(known)
    if isinstance(known, float):
        return _number(known)
    if isinstance(known, list):
        return [_canonical(part) for part in known]
    if not isinstance(known, dict):
        return known
    parts = cast("dict[str, Any]", known)
    match parts:
        case {"$": "Decimal" | "int" | "float" as name, "v": _}:
            number = untagged(parts)
            return _number(number) if name == "int" or _is_finite(number) else parts
        case {"$": "set" | "frozenset" | "dict" as name, "v": list(inner)}:
            return {TAG: name, VALUE: sorted(map(_canonical, inner), key=sorted_text)}
        case {"$": "tuple", "v": list(inner)}:  # a client that repeats a request as JSON sends lists
            return [_canonical(part) for part in inner]
        case {"$": str(name), "v": inner}:
            return {TAG: name, VALUE: _canonical(inner)}
        case _:
            pairs = [[_nfc(key), _canonical(part)] for key, part in parts.items()]
            whole = dict(pairs)
            return whole if len(whole) == len(pairs) else {TAG: "dict", VALUE: sorted(pairs, key=sorted_text)}


def _nfc(text: str) -> str:
    from unicodedata import normalize

    return normalize("NFC", text)


def _is_finite(number: Any) -> bool:
    return bool(number.is_finite()) if hasattr(number, "is_finite") else math.isfinite(number)


def _number(number: Any) -> Any:
    """The canonical form of a finite number: its exact value, so that 1, 1.0 and Decimal("1.00") are the same."""
    from decimal import Decimal

    exact = Decimal(number)
    sign, digits, exponent = exact.as_tuple()
    if not exact:
        return 0
    if exact.adjusted() < LONG and exact == exact.to_integral_value() and (whole := int(exact)).bit_length() <= LONG:
        return whole
    text = "".join(map(str, digits))
    bare = text.rstrip("0")
    return {TAG: "number", VALUE: f"{'-' * sign}{bare}e{cast('int', exponent) + len(text) - len(bare)}"}
