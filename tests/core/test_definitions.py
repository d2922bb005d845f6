"""What an engine, a workflow and its input are made of: refused at once, by name, where it makes no sense (semantics 30)."""

import functools
import gc
import inspect
import math
import pydoc
import re
import threading
import weakref
from collections.abc import Callable
from dataclasses import InitVar, dataclass, field
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import pydantic
import pytest

from flowcore import AsyncEngine, Context, DefinitionError, Engine, FlowcoreError, Logger, MemoryStore, Status, Workflow
from flowcore.stores import SQLiteStore

from .conftest import Drive, Ledger


async def async_hook(event: Any) -> None: ...


def generator_hook(event: Any) -> Any:
    yield event


class AsyncCall:
    async def __call__(self, event: Any) -> None: ...


WRONG: dict[str, dict[str, Any]] = {
    "a path as store": {"store": "runs.db"},
    "a class as store": {"store": SQLiteStore},
    "a pathlib path as store": {"store": Path("runs.db")},
    "a dict as store": {"store": {}},
    "one hook": {"hooks": print},
    "a number of hooks": {"hooks": 3},
    "a hook that is none": {"hooks": ["print"]},
    "an async hook": {"hooks": [async_hook]},
    "an object with an async call": {"hooks": [AsyncCall()]},
    "a partial of an async hook": {"hooks": [partial(async_hook)]},
    "a generator as hook": {"hooks": [generator_hook]},
}


@pytest.mark.parametrize("engine", [Engine, AsyncEngine])
@pytest.mark.parametrize("what", WRONG)
def test_what_can_be_no_hook_or_store_is_refused_when_the_engine_is_made(engine: Any, what: str) -> None:
    with pytest.raises(DefinitionError, match=r"store= must be a store|[Hh]ook"):
        engine(**WRONG[what])


def test_a_logger_with_an_async_method_is_refused_where_it_is_defined() -> None:
    with pytest.raises(DefinitionError, match=r"Late\.run_started must not be async"):

        class Late(Logger):
            async def run_started(self, event: Any) -> None: ...


def test_a_logger_with_a_generator_as_method_is_refused_where_it_is_defined() -> None:
    with pytest.raises(DefinitionError, match=r"Late\.step_failed is a generator, whose body would never run"):

        class Late(Logger):
            def step_failed(self, event: Any) -> Any:
                yield event


@pytest.mark.parametrize("engine", [Engine, AsyncEngine])
@pytest.mark.parametrize("option", ["lease", "recover_every"])
@pytest.mark.parametrize("value", [0, -1, math.inf, -math.inf, math.nan, "1", None, True, 10**400])
def test_a_lease_is_a_finite_time(engine: Any, option: str, value: Any) -> None:
    if value is None and option == "recover_every":
        return
    with pytest.raises(FlowcoreError, match=f"{option}= must be"):
        engine(store=MemoryStore(), **{option: value})


@pytest.mark.parametrize("errors", [ValueError, "ValueError", [int], (FlowcoreError,), (KeyboardInterrupt,), 7])
def test_errors_must_be_exception_types(errors: Any) -> None:
    with pytest.raises(DefinitionError, match="errors= of workflow 'w' must be"):
        Workflow("w", errors=errors)


def test_two_error_types_of_one_name_are_refused() -> None:
    with pytest.raises(DefinitionError, match="has two types with the name Declined"):
        Workflow("w", errors=(type("Declined", (Exception,), {}), type("Declined", (Exception,), {})))


# -- input -------------------------------------------------------------------------------------------------------------


@dataclass
class Order:
    sku: str
    amount: Decimal = Decimal(1)
    tags: list[str] = field(default_factory=list)


class Trip(pydantic.BaseModel):
    city: str
    nights: int = 1


def test_the_input_is_an_order_for_each_step(drive: Drive) -> None:
    wf = Workflow("buy", input=Order)

    @wf.step
    def pay(ctx: Context[Order]) -> str:
        return f"{ctx.input.sku} {ctx.input.amount} {ctx['sku']} {type(ctx.input).__name__}"

    for given in (Order("a"), {"sku": "a"}, {"sku": "a", "amount": Decimal(1)}):
        assert drive(wf, given)[pay] == "a 1 a Order"
        assert drive(wf, given, idempotency_key="k", store=MemoryStore())[pay] == "a 1 a Order"


def test_the_input_may_be_a_model(drive: Drive) -> None:
    wf = Workflow("travel", input=Trip, idempotency_key=lambda trip: trip.city)
    book = wf.add_step("book", lambda ctx: repr(ctx.input))
    store = MemoryStore()
    assert drive(wf, Trip(city="Oslo"), store=store)[book] == "Trip(city='Oslo', nights=1)"
    assert drive(wf, {"city": "Oslo"}, store=store).replayed


@pytest.mark.parametrize(
    ("given", "why"),
    [
        (None, "is not a valid Order: .*missing 1 required positional argument: 'sku'"),
        ({"sku": "a", "colour": 1}, "is not a valid Order: .*unexpected keyword argument 'colour'"),
        ("a", "takes a Order or a mapping of its fields, not str"),
        (Trip(city="Oslo"), "takes a Order or a mapping of its fields, not Trip"),
    ],
)
def test_what_is_wrong_with_the_input_is_reported_at_the_call(drive: Drive, given: Any, why: str) -> None:
    wf = Workflow("buy", input=Order)
    wf.add_step("pay", lambda ctx: 1)
    with pytest.raises(DefinitionError, match=f"'buy' {why}"):
        drive(wf, given)


def test_a_model_says_what_is_wrong_with_a_mapping(drive: Drive) -> None:
    with pytest.raises(
        DefinitionError, match=r"the input of workflow 'travel' is not a valid Trip: nights: "
    ) as caught:
        drive(Workflow("travel", input=Trip), {"city": "Oslo", "nights": "secret"})
    assert "secret" not in f"{caught.value} {caught.value.__cause__}"


def test_fields_of_the_input_are_read_only_and_no_names_of_steps(drive: Drive) -> None:
    wf = Workflow("buy", input=Order)
    wf.add_step("pay", lambda ctx: ctx.update(sku="b"))
    with pytest.raises(DefinitionError, match="step 'pay' cannot change 'sku', a field of the run's input"):
        drive(wf, Order("a"))
    clash = Workflow("buy", input=Order)
    clash.add_step("sku", lambda ctx: 1)
    with pytest.raises(DefinitionError, match="step 'sku' of workflow 'buy' has the name of a field of its input"):
        drive(clash, Order("a"))


@dataclass
class Scaled:
    amount: int
    tags: list[str] = field(default_factory=list)
    cents: int = field(init=False, default=0)
    digits: int = field(init=False)

    def __post_init__(self) -> None:
        self.amount *= 100
        self.tags.append("scaled")
        self.cents = self.amount
        self.digits = len(str(self.amount))


@dataclass
class Doubled:
    amount: int
    times: InitVar[int] = 1
    lock: Any = field(init=False, default_factory=threading.Lock)

    def __post_init__(self, times: int) -> None:
        self.amount *= times

    @functools.cached_property
    def half(self) -> float:
        return self.amount / 2


@dataclass
class Needed:
    amount: int
    times: InitVar[int]

    def __post_init__(self, times: int) -> None:
        self.amount *= times


@dataclass(frozen=True, slots=True)
class Frozen:
    text: str
    tags: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "text", self.text + "!")


class Open(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="allow")
    amount: int

    def model_post_init(self, context: Any, /) -> None:
        self.amount *= 100


class Plain(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(frozen=True, extra="allow")
    amount: int = pydantic.Field(alias="theAmount")


INPUTS: dict[str, Callable[[], Any]] = {
    "a __post_init__ that changes": lambda: Scaled(5, ["a"]),
    "an InitVar with a default, and a lock": lambda: Doubled(5, 3),
    "an InitVar without a default": lambda: Needed(5, 3),
    "frozen, with slots": lambda: Frozen("a", ("b",)),
    "a model with fields that it does not declare": lambda: Open.model_validate({"amount": 5, "more": [1]}),
    "a frozen model with an alias": lambda: Plain.model_validate({"theAmount": 5, "more": [1]}),
}


@pytest.mark.parametrize("what", INPUTS)
@pytest.mark.parametrize("options", [{}, {"strict": True}], ids=["memory", "strict"])
def test_the_input_has_the_callers_values_with_a_key_too(drive: Drive, what: str, options: dict[str, Any]) -> None:
    given, seen = INPUTS[what](), list[Any]()
    if isinstance(given, Doubled):
        assert given.half == 7.5  # it is kept in the object, and is no field
    fields = given.model_dump() if isinstance(given, pydantic.BaseModel) else repr(given).partition("lock=")[0]

    def same(value: Any) -> str:
        seen.append(value)
        return "same"

    wf = Workflow("buy", input=type(given), fingerprint=same)
    wf.add_step("pay", lambda ctx: seen.append(ctx.input))
    drive(wf, given, idempotency_key="k", store=MemoryStore(**options))
    assert len(seen) >= 2
    for found in seen:
        assert type(found) is type(given)
        assert fields == (
            found.model_dump() if isinstance(found, pydantic.BaseModel) else repr(found).partition("lock=")[0]
        )


@dataclass
class Larger(Order):
    colour: str = "red"


class Private(pydantic.BaseModel):
    amount: int = 1
    _token: str = pydantic.PrivateAttr("")


def noted() -> Order:
    order: Any = Order("a")
    order.note = "not a field"
    made: Order = order
    return made


def secret() -> Private:
    private = Private()
    private._token = "t"
    return private


@pytest.mark.parametrize(
    ("given", "lost"),
    [(Larger("a"), "colour"), (noted(), "note"), (secret(), "_token")],
    ids=["subclass", "set", "private"],
)
def test_an_input_with_more_than_its_fields_is_refused_where_that_would_be_lost(
    drive: Drive, given: Any, lost: str
) -> None:
    kind = Order if isinstance(given, Order) else type(given)
    wf = Workflow("buy", input=kind)
    wf.add_step("pay", lambda ctx: ctx.input is given)
    assert drive(wf, given)["pay"]
    with pytest.raises(DefinitionError, match=f"has the attribute '{lost}', which is not a field of {kind.__name__}"):
        drive(wf, given, idempotency_key="k", store=MemoryStore())


@pytest.mark.parametrize("kind", [dict, int, 7, Order("a"), "Order"])
def test_an_input_type_is_a_dataclass_or_a_model(kind: Any) -> None:
    with pytest.raises(DefinitionError, match="input= of workflow 'w' must be a dataclass or a pydantic model"):
        Workflow("w", input=kind)


def test_a_workflow_without_input_says_so(drive: Drive) -> None:
    wf = Workflow("plain")
    wf.add_step("a", lambda ctx: ctx.input)
    with pytest.raises(DefinitionError, match=r"workflow 'plain' has no input=\. Use ctx\[key\]"):
        drive(wf, {"a2": 1})


# -- include, help -----------------------------------------------------------------------------------------------------


def test_included_steps_wait_for_the_steps_that_include_names(drive: Drive, ledger: Ledger) -> None:
    part = ledger.chain("a", "b")
    wf = Workflow("whole")
    ledger.add(wf, "first")
    copies = wf.include(part, prefix="part.", depends_on="first")
    assert (copies["a"].depends_on, copies["b"].depends_on) == (("first",), ("part.a",))
    assert drive(wf).status is Status.SUCCESS
    assert ledger[0] == "first"
    with pytest.raises(DefinitionError):
        wf.include(part, prefix="other.", depends_on=part.steps[0])


def test_help_shows_a_steps_own_docstring_and_signature() -> None:
    wf = Workflow("w")

    @wf.step(retry=2)
    def charge(ctx: Context) -> int:
        """Charge the card."""
        return 1

    assert charge.__doc__ == "Charge the card."
    assert str(inspect.signature(charge)) == "(ctx: flowcore.context.Context) -> int"
    text = "".join(re.split(".\x08", pydoc.render_doc(charge)))
    assert "charge(ctx: flowcore.context.Context) -> int" in text
    assert "Charge the card." in text


@pytest.mark.parametrize(
    "function", [lambda ctx: 1, partial(lambda more, ctx: 1, 1), AsyncCall()], ids=["lambda", "partial", "object"]
)
def test_every_function_makes_a_step_that_help_can_show(function: Any) -> None:
    step = Workflow("w").add_step("s", function)
    assert pydoc.render_doc(step)
    assert repr(step) == "<Step 's'>"


def test_an_engine_keeps_no_workflow_that_nothing_else_keeps(tmp_path: Path) -> None:
    """As a service that makes a workflow for each request."""

    def request(engine: Engine, number: int) -> weakref.ref[Workflow]:
        wf = Workflow(f"request-{number}")
        wf.add_step("a", lambda ctx: 1)
        engine.run(wf, idempotency_key=str(number))
        return weakref.ref(wf)

    for store in (None, SQLiteStore(tmp_path / "runs.db", durability="normal")):
        with Engine(store=store, hooks=[lambda event: None]) as engine:
            made = [request(engine, number) for number in range(20)]
            gc.collect()
            assert [workflow() for workflow in made] == [None] * 20
            assert not engine._registered
