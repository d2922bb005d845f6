"""PydanticCodec stores dataclasses, NamedTuples, Enums, TypedDicts and pydantic models. Needs pydantic."""

# Values are of any type, and narrowing Any by isinstance leaves containers of unknowns.
# pyright: reportUnknownArgumentType=false, reportUnknownVariableType=false

from __future__ import annotations

import functools
from collections.abc import Mapping
from enum import Enum
from typing import TYPE_CHECKING, Any, Final, NoReturn

from ..errors import NotSerializable, safe_repr, safe_str
from ..validation import without_values
from .codec import ANNOTATE, JsonCodec, tagged_text, type_name

if TYPE_CHECKING:
    from pydantic import TypeAdapter

__all__ = ["PydanticCodec"]

_PLAIN: Final = JsonCodec()
_REBUILT: Final = '{"$":"typed","v":'
"""precedes data that pydantic has written, so that a store without this codec refuses it"""


class PydanticCodec:
    """The default codec, and pydantic for the types that it lacks. Pydantic uses the return annotation of the step, or
    the annotation of the input's field.

    A value is stored only if it comes back equal and of the same types. A stored text never decides which types are
    built: the annotation in the definition does. Without an annotation, as in a listing, such a value is read as plain
    data. Stateless and thread-safe. Raises ImportError if pydantic is not installed.
    """

    plain = True

    def __init__(self) -> None:
        try:
            import pydantic  # noqa: F401  # pyright: ignore[reportUnusedImport]
        except ImportError:
            raise ImportError("PydanticCodec needs pydantic: pip install 'flowcore[pydantic]'") from None

    def dumps(self, value: Any, annotation: Any = Any, /) -> str:
        """The text of a value. Raises NotSerializable, which names the type and says what to do instead."""
        try:
            return _PLAIN.dumps(value)
        except NotSerializable as error:
            if annotation is Any:
                raise NotSerializable(
                    f"{type_name(value)} is rebuilt from an annotation, and there is none here. "
                    f"{ANNOTATE}, or use plain data."
                ) from error
        parts, back = self._dumped(value, annotation)
        if not _same(back, value):
            raise NotSerializable(
                f"{type_name(value)} does not come back unchanged by the annotation {safe_repr(annotation)}. "
                "Annotate all of its parts, or use plain data."
            )
        return f"{_REBUILT}{parts}}}"

    def _dumped(self, value: Any, annotation: Any) -> tuple[str, Any]:
        try:
            adapter = _adapter(annotation)
            text = tagged_text(_without_members(adapter.dump_python(value, round_trip=True, warnings=False)), _refuse)
            return text, adapter.validate_python(_PLAIN.loads(text))
        except NotSerializable:
            raise
        except Exception as error:  # noqa: BLE001 - user code raises anything
            why = without_values(error, annotation)
            raise NotSerializable(
                f"{type_name(value)} cannot be taken apart by the annotation {safe_repr(annotation)} "
                f"({type(why).__name__}: {safe_str(why, 200)}). Return a value of that type."
            ) from why

    def loads(self, text: str, annotation: Any = Any, /) -> Any:
        """The value of a text. Raises CorruptRecord for an unknown tag, and ValueError for a value that the annotation
        refuses."""
        if not text.startswith(_REBUILT):
            return _PLAIN.loads(text)
        parts = _PLAIN.loads(text[len(_REBUILT) : -1])
        if annotation is Any:
            return parts
        try:
            return _adapter(annotation).validate_python(parts)
        except ValueError as error:
            raise without_values(error, annotation) from None


@functools.lru_cache(maxsize=1024)
def _cached_adapter(annotation: Any) -> TypeAdapter[Any]:
    from pydantic import TypeAdapter

    return TypeAdapter(annotation)


def _adapter(annotation: Any) -> TypeAdapter[Any]:
    try:
        return _cached_adapter(annotation)
    except TypeError:  # the annotation cannot be hashed
        return _cached_adapter.__wrapped__(annotation)


def _without_members(value: Any) -> Any:
    """Return the value with each Enum member replaced by its value, and each NamedTuple by a tuple."""
    if isinstance(value, Enum):
        return _without_members(value.value)
    if isinstance(value, Mapping):
        return {_without_members(key): _without_members(part) for key, part in value.items()}
    if isinstance(value, tuple):
        return tuple(map(_without_members, value))
    if type(value) in {list, set, frozenset}:
        return type(value)(map(_without_members, value))
    return value


def _refuse(value: Any) -> NoReturn:
    raise NotSerializable(f"{type_name(value)} inside it is of a type that cannot be stored. Use plain data there.")


def _same(a: Any, b: Any) -> bool:
    """Whether two values are equal, and of the same types, at any depth."""
    if type(a) is not type(b):
        return False
    if isinstance(a, Mapping):
        return a.keys() == b.keys() and all(_same(part, b[key]) for key, part in a.items())
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(_same, a, b))
    if hasattr(a, "__dict__") and not isinstance(a, Enum):
        return _same(vars(a), vars(b)) and bool(a == b)
    return bool(a == b) or (a != a and b != b)  # noqa: PLR0124 - NaN
