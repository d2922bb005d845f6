"""What an engine, a workflow and its input are made of: refused at once, by name, where it makes no sense (semantics 30)."""

import inspect
import math
import pydoc
import re
from dataclasses import dataclass, field
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
    with pytest.raises(DefinitionError, match=r"the input of workflow 'travel' is not a valid Trip: .*nights"):
        drive(Workflow("travel", input=Trip), {"city": "Oslo", "nights": "some"})


def test_fields_of_the_input_are_read_only_and_no_names_of_steps(drive: Drive) -> None:
    wf = Workflow("buy", input=Order)
    wf.add_step("pay", lambda ctx: ctx.update(sku="b"))
    with pytest.raises(DefinitionError, match="step 'pay' cannot change 'sku', a field of the run's input"):
        drive(wf, Order("a"))
    clash = Workflow("buy", input=Order)
    clash.add_step("sku", lambda ctx: 1)
    with pytest.raises(DefinitionError, match="step 'sku' of workflow 'buy' has the name of a field of its input"):
        drive(clash, Order("a"))


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
