"""How durable stores encode values: as JSON, with tags for types that JSON lacks. A value that is read back equals the
value that was written, and has the same type.

| type | text |
|---|---|
| None, bool, int, float, str; a list or a str-keyed dict of them | plain JSON |
| tuple, set, frozenset, bytes, datetime, date, time, timedelta, Decimal, UUID | `{"$":"tuple","v":[…]}` and its like |
| a dict with other keys, or with the key "$" | `{"$":"dict","v":[[key,value],…]}` |
| NaN, the infinities, ints of more than 2,000 bits, text with separate halves of surrogate pairs | tagged, too |

Values of all other types are refused, and so are those of subclasses of these types: a StrEnum would come back as a
str. A stored text is only data: a tag names an entry of a fixed table, and nothing is imported or called by a name in
the text.
"""

# Arguments are checked at run time, for callers without a type checker.
# Values are of any type, and narrowing Any by `type(value) is dict` leaves a dict of unknowns.
# pyright: reportUnnecessaryIsInstance=false, reportUnknownArgumentType=false, reportUnknownVariableType=false
# pyright: reportUnknownMemberType=false, reportUnknownLambdaType=false

from __future__ import annotations

import functools
import json
import math
import re
from collections.abc import Callable, Mapping
from json.encoder import encode_basestring_ascii as quoted
from typing import Any, Final, NamedTuple, NoReturn, Protocol, TypeAlias, cast

from ..errors import CorruptRecord, NotSerializable, safe_repr, safe_str

__all__ = [
    "DEEP",
    "FIXED",
    "LONG",
    "NESTED",
    "TAG",
    "VALUE",
    "Codec",
    "JsonCodec",
    "is_plain",
    "json_text",
    "json_value",
    "quoted",
    "refuse",
    "sorted_text",
    "tagged",
    "tagged_text",
    "type_name",
    "untagged",
]

TAG: Final = "$"
VALUE: Final = "v"
_ATOMS: Final[frozenset[type]] = frozenset({str, int, float, bool, type(None)})
NESTED: Final = frozenset({dict, list})
FIXED: Final[frozenset[type]] = _ATOMS | {bytes}
"""types whose values cannot be changed in place"""
LONG: Final = 2000  # bits; an interpreter may refuse to read the decimal digits of a longer int
_PAIR: Final = re.compile("[\ud800-\udbff][\udc00-\udfff]")
_ZONE: Final = re.compile(r"[A-Za-z0-9_+-]+(/[A-Za-z0-9_+-]+)*")
DEEP: Final = "it contains itself, or is nested too deep"

Tagger: TypeAlias = "Callable[[Any], dict[str, Any]]"
"""returns the tagged form of a value whose type the default codec lacks; raises NotSerializable"""


class Codec(Protocol):
    """Encodes values as texts and decodes them. It may encrypt. Must be thread-safe.

    `annotation` is the type of the value (a step's return type, a field of `Workflow(input=)`), or Any if none is
    known. An exception from `dumps` becomes NotSerializable, one from `loads` CorruptRecord. A method that takes a
    third argument is given the Place of the text, so that an encrypting codec can bind the text to its place.

    A codec encodes values, results, keys, errors, reasons and carriers. If its own class sets `plain = True`, as
    flowcore's codecs do, it encodes only values and results, and the rest is stored as it is.
    """

    def dumps(self, value: Any, annotation: Any, /) -> str: ...
    def loads(self, text: str, annotation: Any, /) -> Any: ...


class JsonCodec:
    """The default codec. It writes JSON with tags: see the table in flowcore.stores.codec. Stateless and
    thread-safe."""

    plain = True

    def dumps(self, value: Any, annotation: Any = Any, /) -> str:
        """The text of a value, in ASCII. Raises NotSerializable, which names the type and says what to do instead."""
        try:
            if value.__class__ is str:
                text = quoted(value)
                if "\\ud" not in text:
                    return text
            elif is_plain(value):
                text = json_text(value)
                # An escaped surrogate is usually half of an emoji. Two separate halves would be read as one character.
                if "\\ud" not in text or json_value(text) == value:
                    return text
        except ValueError:  # NaN, an infinity, or an int with more digits than the interpreter writes
            pass
        except RecursionError:
            raise NotSerializable(f"{DEEP}. Store a flat value.") from None
        return tagged_text(value, refuse)

    def loads(self, text: str, annotation: Any = Any, /) -> Any:
        """The value of a text. Raises CorruptRecord for an unknown tag, and ValueError for a text that is not JSON."""
        return json_value(text) if _TAGGED not in text else _tagged_value(text)


# -- plain JSON --------------------------------------------------------------------------------------------------------


def _strict_json() -> Callable[[object], str]:
    """Return a function that writes strict JSON, in ASCII and without spaces.

    If the interpreter has it, this is the C function that JSONEncoder.encode calls in the end: for a small value, the
    Python code before that call takes longer than the call itself.
    """
    encoder = json.JSONEncoder(allow_nan=False, separators=(",", ":"))
    make: Any = getattr(json.encoder, "c_make_encoder", None)
    try:
        parts = make(None, encoder.default, quoted, None, ":", ",", False, False, False)
        if "".join(parts([{"é": None}, 0.5], 0)) != '[{"\\u00e9":null},0.5]':
            return encoder.encode
    except TypeError:
        return encoder.encode

    def encode(value: object) -> str:
        try:
            return "".join(parts(value, 0))
        except RecursionError:
            return encoder.encode(value)  # detects a value that contains itself

    return encode


def _no_constant(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


json_text: Final = _strict_json()
"""writes a value as strict JSON; tuples become lists, as in the json module"""
json_value: Final[Callable[[str], Any]] = json.JSONDecoder(parse_constant=_no_constant).decode
"""reads a text of strict JSON; raises ValueError"""
sorted_text: Final = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False).encode
_TAGGED: Final = f'"{TAG}":'


def is_plain(value: Any) -> bool:
    """Whether strict JSON keeps a value and its type. It is True for NaN too, which the JSON encoder then refuses."""
    # Most values are small, and for small values a loop costs less than a set of their types.
    kind = type(value)
    if kind in _ATOMS:
        return True
    if kind is dict:
        if TAG in value:
            return False
        for key, part in value.items():
            if type(key) is not str or (type(part) not in _ATOMS and not is_plain(part)):
                return False
        return True
    if kind is list:
        for part in value:  # noqa: SIM110 - all() of a generator takes twice as long
            if type(part) not in _ATOMS and not is_plain(part):
                return False
        return True
    return False


# -- tags --------------------------------------------------------------------------------------------------------------


class _Tag(NamedTuple):
    """One row of the table of tags: the name in the text, the type, and the functions for both directions.

    `dump` returns plain JSON, or, if `nests`, a list of values that are tagged in turn. `load` may raise any error for
    data that `dump` did not return.
    """

    name: str
    type: type
    dump: Callable[[Any], Any]
    load: Callable[[Any], Any]
    nests: bool = False


@functools.cache
def _by_type() -> Mapping[type, _Tag]:
    return {tag.type: tag for tag in _table()}


@functools.cache
def _by_name() -> Mapping[str, _Tag]:
    return {tag.name: tag for tag in _table()}


def _table() -> tuple[_Tag, ...]:
    # These modules are imported with the first value that needs them; most processes never need them.
    import base64
    import datetime as dt
    import decimal
    import uuid

    def zone(tz: dt.tzinfo | None) -> Any:
        if tz is None:
            return None
        if type(tz) is dt.timezone:
            offset, *name = cast("Any", tz).__getinitargs__()
            return [delta(offset), *name]
        key = getattr(tz, "key", None)
        if type(tz).__module__ == "zoneinfo" and isinstance(key, str) and _ZONE.fullmatch(key):
            return key
        raise NotSerializable(
            f"its time zone is a {type_name(tz)}. Use datetime.timezone or zoneinfo.ZoneInfo, which can be stored."
        )

    def zone_back(known: Any) -> dt.tzinfo | None:
        if known is None:
            return None
        if isinstance(known, str):
            if not _ZONE.fullmatch(known):
                raise ValueError("not a time zone")
            from zoneinfo import ZoneInfo

            return ZoneInfo(known)
        offset, *name = known
        return dt.timezone(delta_back(offset), *map(_text, name))

    def delta(value: dt.timedelta) -> list[int]:
        return [value.days, value.seconds, value.microseconds]

    def delta_back(known: Any) -> dt.timedelta:
        days, seconds, micros = map(_whole, known)
        return dt.timedelta(days, seconds, micros)

    def moment(value: Any) -> list[Any]:
        return [value.replace(tzinfo=None).isoformat(), value.fold, zone(value.tzinfo)]

    def moment_back(kind: Any) -> Callable[[Any], Any]:
        def load(known: Any) -> Any:
            text, fold, tz = known
            return kind.fromisoformat(_text(text)).replace(fold=_whole(fold), tzinfo=zone_back(tz))

        return load

    return (
        _Tag("tuple", tuple, list, lambda known: tuple(_list(known)), nests=True),
        _Tag("set", set, list, lambda known: set(_list(known)), nests=True),
        _Tag("frozenset", frozenset, list, lambda known: frozenset(_list(known)), nests=True),
        _Tag(
            "bytes",
            bytes,
            lambda value: base64.b64encode(value).decode(),
            lambda known: base64.b64decode(_text(known), validate=True),
        ),
        _Tag("datetime", dt.datetime, moment, moment_back(dt.datetime)),
        _Tag("date", dt.date, dt.date.isoformat, lambda known: dt.date.fromisoformat(_text(known))),
        _Tag("time", dt.time, moment, moment_back(dt.time)),
        _Tag("timedelta", dt.timedelta, delta, delta_back),
        # Decimal has a context of its own here, because traps in the caller's context must not refuse a stored number.
        _Tag("Decimal", decimal.Decimal, str, lambda known: decimal.Decimal(_text(known), decimal.Context())),
        _Tag("UUID", uuid.UUID, lambda value: value.hex, lambda known: uuid.UUID(hex=_text(known))),
        _Tag("dict", dict, lambda value: list(map(list, value.items())), lambda known: dict(_list(known)), nests=True),
        _Tag("float", float, repr, lambda known: {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}[known]),
        _Tag("int", int, hex, lambda known: int(_text(known), 16)),
        _Tag("str", str, lambda value: list(map(ord, value)), lambda known: "".join(map(chr, map(_whole, known)))),
    )


def tagged_text(value: object, tagger: Tagger) -> str:
    """The text of any value. `tagger` converts the parts whose types are not in the table. Raises NotSerializable."""
    try:
        return json_text(tagged(value, tagger))
    except (RecursionError, ValueError):
        raise NotSerializable(f"{DEEP}. Store a flat value.") from None


def tagged(value: Any, tagger: Tagger) -> Any:
    """A value as plain JSON, with tags where JSON would lose its type."""
    kind = type(value)
    if kind is dict:
        if TAG not in value and all(type(key) is str and not _PAIR.search(key) for key in value):
            return {key: tagged(part, tagger) for key, part in value.items()}
    elif kind is list:
        return [tagged(part, tagger) for part in value]
    elif kind in _ATOMS and not (
        (kind is float and not math.isfinite(value))
        or (kind is int and value.bit_length() > LONG)
        or (kind is str and _PAIR.search(value))
    ):
        return value
    tag = _by_type().get(kind)
    if tag is None:
        return tagger(value)
    known = tag.dump(value)
    if tag.nests:
        known = [tagged(part, tagger) for part in known]
        if kind is set or kind is frozenset:
            known.sort(key=json_text)  # so that equal sets have the same text
    return {TAG: tag.name, VALUE: known}


def _tagged_value(text: str) -> Any:
    return _tagged_decoder(text)


def untagged(known: dict[str, Any]) -> Any:
    """Return the value of a dict in a stored text: the dict itself, or the value whose tagged form it is. Raises
    CorruptRecord."""
    if TAG not in known:
        return known
    name = known[TAG]
    tag = _by_name().get(name) if isinstance(name, str) else None
    if tag is None or len(known) != 2 or VALUE not in known:
        raise CorruptRecord(f"a stored value has the unknown tag {safe_repr(name)}.")
    try:
        return tag.load(known[VALUE])
    except Exception as error:
        raise CorruptRecord(
            f"a stored value has the tag {safe_repr(name)}, but its data is invalid ({type(error).__name__}: "
            f"{safe_str(error, 100)})."
        ) from error


_tagged_decoder: Final = json.JSONDecoder(parse_constant=_no_constant, object_hook=untagged).decode


def _text(known: object) -> str:
    if not isinstance(known, str):
        raise TypeError("not a string")
    return known


def _whole(known: object) -> int:
    if type(known) is not int:
        raise TypeError("not a whole number")
    return known


def _list(known: object) -> list[Any]:
    if not isinstance(known, list):
        raise TypeError("not a list")
    return known


# -- what is refused ---------------------------------------------------------------------------------------------------


ANNOTATE: Final = "Annotate its type (the return type of a step, or a field of the workflow's input=)"
"""what helps where a value is rebuilt from an annotation; there is none for a value that a step writes"""


def type_name(value: object) -> str:
    kind = type(value)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def refuse(value: Any) -> NoReturn:
    raise NotSerializable(f"{type_name(value)} is not a type that the default codec keeps. {_way_out(value)}")


def _way_out(value: Any) -> str:
    kind = type(value)
    known: tuple[type, ...] = (*_ATOMS, *_by_type())
    plain = next((base for base in known if issubclass(kind, base)), None)
    if _is_structured(kind):
        return f"{ANNOTATE} and give the store PydanticCodec(), or use plain data."
    if plain is not None:
        return f"Convert it with {plain.__name__}(…), or give the store a codec= that keeps it."
    return "Use plain data, or give the store a codec= that keeps it."


def _is_structured(kind: type) -> bool:
    """Whether PydanticCodec rebuilds values of this type from an annotation."""
    bases = {base.__module__ + "." + base.__qualname__ for base in kind.__mro__}
    return (
        hasattr(kind, "__dataclass_fields__")
        or hasattr(kind, "__pydantic_core_schema__")
        or "enum.Enum" in bases
        or (issubclass(kind, tuple) and hasattr(kind, "_fields"))
    )
