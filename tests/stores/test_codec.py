"""The default codec: what is read equals what was written, in type too, and what cannot be kept is refused by name."""

import collections
import dataclasses
import datetime as dt
import enum
import json
import math
import subprocess
import sys
import threading
from decimal import Decimal
from typing import Any, NamedTuple
from uuid import UUID
from zoneinfo import ZoneInfo

import pydantic
import pytest
from hypothesis import given, strategies as st

from flowcore import CorruptRecord, NotSerializable
from flowcore.stores import codec
from flowcore.stores.canonical import canonical
from flowcore.stores.codec import JsonCodec

CODEC = JsonCodec()

KEPT: dict[str, Any] = {
    "None": None,
    "bool": True,
    "int": 7,
    "a long int": -(10**700),
    "an int that the interpreter would not write": 10**5000,
    "float": 0.1,
    "minus zero": -0.0,
    "NaN": math.nan,
    "infinity": [math.inf, -math.inf],
    "str": "a\x00\n\u2028é",
    "emoji": ["😀", {"😀": 1}],
    "lone surrogate": "\ud83d",
    "two lone surrogates": ["\ud83d\ude00", {"\ud83d\ude00": 1}],
    "list": [1, [2, []]],
    "dict": {"a": {"b": [1, "x"]}, "": {}},
    "tuple": (1, ("a",), [2], ()),
    "set": {1},
    "frozenset": [frozenset({"a"}), frozenset({(1, frozenset())})],
    "bytes": b"\x00\xff",
    "naive datetime": dt.datetime(2026, 1, 2, 3, 4, 5, 6),  # noqa: DTZ001
    "fixed zone": dt.datetime(2026, 1, 2, tzinfo=dt.timezone(dt.timedelta(hours=2, microseconds=1))),
    "named zone": dt.datetime(2026, 1, 2, tzinfo=dt.timezone(dt.timedelta(hours=2), "EET")),
    "UTC": dt.datetime.max.replace(tzinfo=dt.UTC),
    "zone and fold": dt.datetime(2026, 10, 25, 2, 30, fold=1, tzinfo=ZoneInfo("Europe/Berlin")),
    "date": dt.date.min,
    "time": dt.time(3, 4, 5, 6, tzinfo=dt.UTC, fold=1),
    "timedelta": [dt.timedelta(days=-1, microseconds=1), dt.timedelta.max],
    "Decimal": [Decimal("1.10"), Decimal("-0E+5"), Decimal("1E+999999"), Decimal("Infinity"), Decimal("sNaN12")],
    "UUID": UUID(int=7),
    "dict with keys of other types": {
        1: "a",
        "1": "b",
        (2, (3,)): "c",
        None: "d",
        dt.date(2026, 1, 2): "e",
        Decimal("1.0"): "f",
        b"": "g",
    },
    "dict with nested keys": {frozenset({UUID(int=1)}): {2: {(): set()}}},
    "dict like the codec's own tags": [
        {"$": "tuple", "v": [1]},
        {"$": 1},
        {"a": {"$": {"$": "x"}}},
        {"v": 1},
        "$",
        {"$": "os.system"},
    ],
}


def same(a: Any, b: Any) -> bool:
    """Equal in value and in type, all the way down."""
    if type(a) is not type(b):
        return False
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return same(list(a.items()), list(b.items()))
    if isinstance(a, set | frozenset):
        return len(a) == len(b) and all(any(same(one, other) for other in b) for one in a)
    return repr(a) == repr(b) if not isinstance(a, int) else a == b


@pytest.mark.parametrize("value", KEPT.values(), ids=KEPT)
def test_a_value_comes_back_in_value_and_type(value: Any) -> None:
    text = CODEC.dumps(value)
    assert text.isascii()
    assert same(CODEC.loads(text), value)
    assert CODEC.dumps(CODEC.loads(text)) == text


ATOMS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.text(st.characters(codec=None), max_size=3)
    | st.binary()
    | st.decimals()
    | st.datetimes(timezones=st.none() | st.timezones())
    | st.dates()
    | st.times()
    | st.timedeltas()
    | st.uuids()
)
KEYS = st.recursive(
    ATOMS.filter(lambda key: not isinstance(key, float | Decimal) or str(key)[-1].isdigit()),
    lambda inner: st.tuples(inner, inner) | st.frozensets(inner, max_size=2),
    max_leaves=4,
)
VALUES = st.recursive(
    ATOMS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text(max_size=2) | KEYS, inner, max_size=3)
    ),
    max_leaves=12,
)


@given(VALUES)
def test_any_value_comes_back(value: Any) -> None:
    assert same(CODEC.loads(CODEC.dumps(value)), value)


def test_plain_values_are_plain_json() -> None:
    value = {"id": "C-9", "é": [1, 2.5, None, True, {}], "text": '"'}
    assert CODEC.dumps(value) == json.dumps(value, separators=(",", ":"))


def test_json_is_the_same_where_the_interpreter_has_no_encoder_in_c(monkeypatch: pytest.MonkeyPatch) -> None:
    value = {"card": "C-9", "é": [1, 2.5, None, True, {}], "text": '"'}
    text = codec._strict_json()(value)
    monkeypatch.setattr(json.encoder, "c_make_encoder", None)
    slowly = codec._strict_json()
    assert slowly(value) == text == json.dumps(value, separators=(",", ":"))
    with pytest.raises(ValueError, match="Out of range float values"):
        slowly(math.nan)


# -- what is refused ---------------------------------------------------------------------------------------------------


class Colour(enum.StrEnum):
    RED = "red"


class Point(NamedTuple):
    x: int


class Level(enum.IntEnum):
    LOW = 1


@dataclasses.dataclass
class Order:
    sku: str


class Model(pydantic.BaseModel):
    sku: str


loop: list[Any] = []
loop.append(loop)
deep: list[Any] = []
for _ in range(100_000):
    deep = [deep]

PYDANTIC = "the return type of a step, or a field of the workflow's input=. and give the store PydanticCodec()"
REFUSED: dict[str, tuple[Any, str]] = {
    "a StrEnum": (Colour.RED, PYDANTIC),
    "an IntEnum": ([Level.LOW], PYDANTIC),
    "an Enum as key": ({Colour.RED: 1}, PYDANTIC),
    "a NamedTuple": (Point(1), PYDANTIC),
    "a dataclass": ({"order": Order("a")}, PYDANTIC),
    "a str subclass": (type("Markup", (str,), {})("a"), r"Convert it with str\(…\)"),
    "a float subclass": (type("Metres", (float,), {})(1.5), r"Convert it with float\(…\)"),
    "an OrderedDict": (collections.OrderedDict(), r"Convert it with dict\(…\)"),
    "a datetime subclass": (type("Stamp", (dt.datetime,), {})(2026, 1, 2), r"Convert it with datetime\(…\)"),
    "a foreign time zone": (dt.datetime(2026, 1, 2, tzinfo=type("Zone", (dt.tzinfo,), {})()), "zoneinfo.ZoneInfo"),
    "bytearray": (bytearray(b"x"), "Use plain data"),
    "a lock": (threading.Lock(), "_thread.lock is not a type that the default codec keeps"),
    "a value that contains itself": (loop, "contains itself, or is nested too deep"),
    "a tuple that contains itself": ((loop,), "contains itself, or is nested too deep"),
    "a deep one": (deep, "contains itself, or is nested too deep"),
}


@pytest.mark.parametrize(("value", "why"), REFUSED.values(), ids=REFUSED)
def test_a_value_that_would_change_is_refused_with_a_way_out(value: Any, why: str) -> None:
    with pytest.raises(NotSerializable, match=why):
        CODEC.dumps(value)


FOREIGN = [
    '{"$":"os.system","v":"true"}',
    '{"$":"tuple"}',
    '{"$":"tuple","v":3}',
    '{"$":"tuple","v":[],"w":1}',
    '{"$":["tuple"],"v":[]}',
    '{"$":"set","v":[[]]}',
    '{"$":"Decimal","v":"one"}',
    '{"$":"datetime","v":["2026-01-02",0,"../../../etc/passwd"]}',
    '{"$":"datetime","v":["2026-01-02",0,"No/Such"]}',
    '{"$":"float","v":"1"}',
    '{"$":"str","v":[99999999]}',
    '[{"$":"dict","v":[[1]]}]',
]


@pytest.mark.parametrize("text", FOREIGN)
def test_an_unknown_or_broken_tag_is_a_corrupt_record(text: str) -> None:
    with pytest.raises(CorruptRecord, match=r"a stored value has the (unknown )?tag"):
        CODEC.loads(text)


def test_reading_imports_nothing_that_a_text_names() -> None:
    text = '[{"$":"antigravity","v":1},{"$":"this.s","v":[]}]'
    program = f"""
import sys
from flowcore.stores.codec import JsonCodec
JsonCodec().loads(JsonCodec().dumps((1,)))
before = set(sys.modules)
try:
    JsonCodec().loads({text!r})
except Exception as error:
    print(type(error).__name__, sorted(set(sys.modules) - before))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "CorruptRecord []\n"


# -- comparing ---------------------------------------------------------------------------------------------------------

EQUAL = [
    (1, 1.0, Decimal("1.00")),
    (0, -0.0, Decimal("-0")),
    (0.5, Decimal("0.50")),
    (10**300, Decimal("1E+300"), float(10**300) if float(10**300) == 10**300 else 10**300),
    (10**800, Decimal("1E+800")),
    ("caf\u00e9", "cafe\u0301"),
    ({"caf\u00e9": 1}, {"cafe\u0301": 1.0}),
    ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
    ({1: 2, "a": (1,)}, {"a": (1.0,), 1.0: 2}),
    (Level.LOW, 1, 1.0),
    (Colour.RED, "red"),
    (Point(1), Point(1), [1.0]),
    (Order("a"), Order("a")),
    (Model(sku="a"), Model(sku="a")),
    ({3, 1, 2}, {1, 2, 3}),
    ((1, (2,)), [1.0, [2]]),
]
UNEQUAL = [
    (1, "1"),
    (1, True),
    (0, None),
    (0.1, Decimal("0.1")),
    ({1: 2}, {"1": 2}),
    ("a", b"a"),
    ({"a": None}, {}),
    ({"$": "tuple", "v": [1]}, (1,)),
    (1e16, 1e16 + 2),
    (10**800, 10**800 + 1),
]


@pytest.mark.parametrize("alike", EQUAL, ids=str)
def test_values_that_are_equal_have_one_canonical_text(alike: tuple[Any, ...]) -> None:
    assert len({canonical({"value": one}) for one in alike}) == 1


@pytest.mark.parametrize(("a", "b"), UNEQUAL, ids=str)
def test_values_that_differ_have_two(a: Any, b: Any) -> None:
    assert canonical({"value": a}) != canonical({"value": b})


@given(VALUES)
def test_every_value_that_can_be_stored_can_be_compared(value: Any) -> None:
    assert canonical(value) == canonical(CODEC.loads(CODEC.dumps(value)))
