"""What a step sees of its run (semantics 5): shared values, results of other steps, and who it is."""

import contextvars
import sys
import threading
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

import pytest

from flowcore import Context, DefinitionError, Engine, NoResult, Status, Workflow

from .conftest import Drive, Gate, Ledger, MakeLive

current = contextvars.ContextVar("current", default="outside")


def look(drive: Drive, at: Callable[[Context], Any], **options: Any) -> None:
    """Run one step that looks at its context."""
    wf = Workflow("look")
    wf.add_step("look", at, **options)
    drive(wf, {"a": 1, "b": 2})


def test_a_write_is_visible_to_every_later_step(drive: Drive) -> None:
    wf = Workflow("writes")
    wf.add_step("write", lambda ctx: ctx.update(seat="7A"))
    wf.add_step("read", lambda ctx: ctx["seat"], depends_on="write")
    assert drive(wf)["read"] == "7A"


def test_a_write_is_visible_to_a_running_sibling_at_once(live: MakeLive) -> None:
    wf = Workflow("siblings")
    written, read = Gate(), Gate()

    def write(ctx: Context) -> None:
        ctx["x"] = 1
        written.set()
        read.wait()

    def reading(ctx: Context) -> int:
        written.wait()
        value = ctx["x"]
        read.set()
        return int(value)

    wf.add_step("write", write)
    wf.add_step("reading", reading)
    assert live().run(wf)["reading"] == 1


def test_the_callers_dict_is_never_changed(drive: Drive) -> None:
    values = {"n": 1}
    wf = Workflow("copy")
    wf.add_step("write", lambda ctx: ctx.update(n=2))
    drive(wf, values)
    assert values == {"n": 1}


def test_initial_values_must_be_a_mapping(drive: Drive) -> None:
    with pytest.raises(DefinitionError, match="initial values must be a mapping such as a dict, not list"):
        drive(Workflow("w"), [("a", 1)])


def test_the_context_is_a_mutable_mapping(drive: Drive) -> None:
    def step(ctx: Context) -> None:
        assert (dict(ctx), len(ctx), list(ctx)) == ({"a": 1, "b": 2}, 2, ["a", "b"])
        assert ("a" in ctx, "z" in ctx) == (True, False)
        assert (ctx.get("z"), ctx.get("z", 5), ctx.get("a")) == (None, 5, 1)
        assert (ctx.setdefault("a", 9), ctx.setdefault("c", 3)) == (1, 3)
        assert (ctx.pop("c"), ctx.pop("c", None)) == (3, None)
        with pytest.raises(KeyError, match="c"):
            ctx.pop("c")
        ctx.update({"d": 4}, e=5)
        del ctx["d"]
        with pytest.raises(KeyError, match="d"):
            ctx["d"]
        with pytest.raises(KeyError, match="d"):
            del ctx["d"]
        assert sorted(dict([ctx.popitem(), ctx.popitem(), ctx.popitem()])) == ["a", "b", "e"]
        ctx["f"] = 6
        ctx.clear()
        assert not ctx
        assert list(ctx.items()) == []

    look(drive, step)


def test_keys_may_be_anything_that_a_dict_takes(drive: Drive) -> None:
    def step(ctx: Context) -> None:
        ctx[7] = "seven"
        assert (ctx[7], ctx.get(8), 7 in ctx, 8 in ctx) == ("seven", None, True, False)
        with pytest.raises(KeyError, match="8"):
            ctx[8]

    look(drive, step)


def test_values_may_be_changed_while_they_are_iterated_over(drive: Drive) -> None:
    def step(ctx: Context) -> None:
        for key in ctx:
            ctx[f"{key}{key}"] = 1

    look(drive, step)


def test_setdefault_pop_and_update_are_atomic(live: MakeLive) -> None:
    wf = Workflow("atomic")
    winners: list[object] = []

    def race(ctx: Context) -> None:
        mine = object()
        winners.append(ctx.setdefault("one", mine))
        for _ in range(200):
            with ctx_lock:
                ctx["n"] = ctx["n"] + 1

    ctx_lock = threading.Lock()
    for number in range(8):
        wf.add_step(str(number), race)
    live().run(wf, {"n": 0})
    assert len(set(winners)) == 1


def test_a_step_knows_its_own_name_attempt_and_run(drive: Drive) -> None:
    seen: list[tuple[str, int, str]] = []

    def step(ctx: Context) -> None:
        seen.append((ctx.step, ctx.attempt, ctx.run_id))
        if ctx.attempt < 3:
            raise ValueError

    wf = Workflow("who")
    wf.add_step("me", step, retry=3)
    run = drive(wf)
    assert seen == [("me", 1, run.id), ("me", 2, run.id), ("me", 3, run.id)]
    assert len(run.id) == 32


def test_a_result_is_found_by_step_and_by_name(drive: Drive) -> None:
    wf = Workflow("results")
    first = wf.add_step("first", lambda ctx: {"x": 1})

    def second(ctx: Context) -> bool:
        assert first in ctx
        assert ctx.get(first) is ctx["first"]
        return ctx[first] is ctx["first"]

    wf.add_step("second", second, depends_on=first)
    run = drive(wf)
    assert run["second"] is True
    assert run[first] is run["first"]


def test_an_initial_value_with_the_name_of_a_step_is_refused(drive: Drive, ledger: Ledger) -> None:
    wf = ledger.chain("pay")
    with pytest.raises(
        DefinitionError, match="key 'pay' is the name of step 'pay', and the run of workflow 'chain' was given"
    ):
        drive(wf, {"card": 1, "pay": "card"})
    assert ledger == []


WRITES: dict[str, Callable[[Context], Any]] = {
    "assignment": lambda ctx: ctx.__setitem__("pay", 1),
    "update": lambda ctx: ctx.update(fine=1, pay=1),
    "setdefault": lambda ctx: ctx.setdefault("pay", 1),
}


@pytest.mark.parametrize("how", WRITES)
def test_a_write_to_the_name_of_a_step_is_refused(drive: Drive, how: str) -> None:
    wf = Workflow("writes")
    wf.add_step("pay", lambda ctx: "receipt")
    wf.add_step("ship", WRITES[how], depends_on="pay")
    with pytest.raises(DefinitionError, match="key 'pay' is the name of step 'pay', and step 'ship' writes to it"):
        drive(wf)


@dataclass
class Fields:
    sku: str
    amount: int


@pytest.mark.parametrize("how", ["a name", "a step", "a field"])
def test_an_update_that_is_refused_writes_nothing(drive: Drive, how: str) -> None:
    wf: Any = Workflow("updates", input=Fields) if how == "a field" else Workflow("updates")
    pay = wf.add_step("pay", lambda ctx: "receipt")
    seen: list[Any] = []

    def ship(ctx: Context) -> None:
        key: Any = {"a name": "pay", "a step": pay, "a field": "sku"}[how]
        with pytest.raises(DefinitionError, match=r"is the name of step|ctx\[step\] is read-only|cannot change 'sku'"):
            ctx.update({"fine": 1, key: 2})
        if how == "a field":
            with pytest.raises(DefinitionError, match="cannot change 'sku'"):
                ctx.clear()
        seen.append(dict(ctx))

    wf.add_step("ship", ship, depends_on="pay")
    values: dict[str, Any] = {"sku": "a", "amount": 1} if how == "a field" else {"amount": 1}
    drive(wf, values)
    assert seen == [values]


def test_a_step_sees_results_of_the_steps_it_depends_on_and_no_others(drive: Drive) -> None:
    wf = Workflow("order")
    a = wf.add_step("a", lambda ctx: "a")
    b = wf.add_step("b", lambda ctx: "b", depends_on=a)
    wf.add_step("c", lambda ctx: ctx[a] + ctx["b"], depends_on=b)
    other = wf.add_step("other", lambda ctx: 1)

    def asks(ctx: Context) -> None:
        for key in (other, "other"):
            with pytest.raises(NoResult, match="'d' does not depend on 'other'"):
                ctx[key]
        assert (ctx.get(other, "no"), other in ctx, ctx.get("a"), a in ctx) == ("no", False, "a", True)

    wf.add_step("d", asks, depends_on="c", compensate=lambda ctx: seen.append((ctx[other], ctx["c"])))
    wf.add_step("e", lambda ctx: 1 / 0, depends_on=("d", other))
    seen: list[Any] = []
    assert drive(wf, check=False).status is Status.COMPENSATED
    assert seen == [(1, "ab")]


def test_ancestors_of_wide_and_of_deep_graphs_are_cheap() -> None:
    """As steps run in the order of their dependencies, the graph is walked once, not once for each step."""
    count = 2_000  # deeper than Python's recursion limit
    wf = Workflow("large")
    wf.add_step("root", lambda ctx: 0)
    for number in range(count):
        wf.add_step(f"wide{number}", lambda ctx: 0, depends_on="root")
        wf.add_step(f"deep{number}", lambda ctx: 0, depends_on=f"deep{number - 1}" if number else "root")
    plan = wf.plan()
    walked: list[int] = []

    class Nodes(tuple[Any, ...]):
        __slots__ = ()

        def __getitem__(self, index: Any) -> Any:
            walked.append(index)
            return super().__getitem__(index)

    nodes = plan.nodes
    plan.nodes = Nodes(nodes)
    assert all(plan.precedes("root", node) for node in nodes[1:])
    assert not any(plan.precedes("deep7", plan.by_name[f"wide{number}"]) for number in range(count))
    assert plan.precedes("deep7", plan.by_name[f"deep{count - 1}"])
    assert not plan.precedes(f"deep{count - 1}", plan.by_name["deep7"])
    assert len(walked) <= len(nodes)


@dataclass
class Nested:
    items: list[str]


@dataclass
class Guarded:
    items: list[str]
    lock: Any = field(default_factory=threading.Lock)


class Pair(NamedTuple):
    items: list[int]
    number: int


def test_the_callers_initial_values_are_never_changed(drive: Drive) -> None:
    given: dict[str, Any] = {
        "body": {"amount": 1, "tags": ["a"]},
        "seen": {"x"},
        "pair": ([1], 2),
        "order": Nested(["a"]),
        "ordered": OrderedDict(b=[1], a=[2]),
        "default": defaultdict(list, a=[1]),
        "counter": Counter("aab"),
        "queue": deque([[1], [2]], maxlen=2),
        "bytes": bytearray(b"a"),
        "named": Pair([1], 2),
    }
    before = deepcopy(given)
    given["guarded"] = Guarded(["a"])

    def changes(ctx: Context) -> None:
        ctx["body"].pop("amount")
        ctx["body"]["tags"].append("b")
        ctx["seen"].add("y")
        ctx["pair"][0].append(2)
        ctx["order"].items.append("b")
        ctx["ordered"]["b"].append(2)
        ctx["default"]["b"].append(2)
        ctx["counter"].update("a")
        ctx["queue"][0].append(2)
        ctx["queue"].append([3])
        ctx["bytes"].append(98)
        ctx["named"].items.append(2)
        ctx["guarded"].items.append("b")
        kinds.extend(type(ctx[key]) for key in given)

    kinds: list[type] = []
    wf = Workflow("changes", fingerprint=lambda values: "same")
    wf.add_step("a", changes)
    drive(wf, given, idempotency_key="k")
    assert kinds == list(map(type, given.values()))
    assert given.pop("guarded").items == ["a"]
    assert given == before


def test_a_step_is_in_the_context_by_its_name_too(drive: Drive) -> None:
    seen: list[Any] = []
    wf = Workflow("names")
    wf.add_step(
        "first", lambda ctx: 1, compensate=lambda ctx: seen.append(("first" in ctx, "last" in ctx, "none" in ctx))
    )

    def last(ctx: Context) -> None:
        seen.append((*(name in ctx for name in ("n", "first", "last", "none")), list(ctx), len(ctx)))
        with pytest.raises(TypeError):  # as a dict does
            ctx.get(cast("Any", []))
        raise ValueError

    wf.add_step("last", last, depends_on="first")
    drive(wf, {"n": 0}, check=False)
    assert seen == [(True, True, False, False, ["n"], 1), (True, False, False)]


def test_a_step_is_in_its_run_if_it_has_a_result(drive: Drive) -> None:
    wf, other = Workflow("run"), Workflow("other")
    done = wf.add_step("done", lambda ctx: None)
    skipped = wf.add_step("skipped", lambda ctx: None, when=lambda ctx: False)
    run = drive(wf)
    assert done in run
    assert "done" in run
    for absent in (skipped, "skipped", "none", other.add_step("done", lambda ctx: None), 0):
        assert absent not in run
    with pytest.raises(TypeError, match="not iterable"):
        list(cast("Any", run))


def test_get_returns_the_default_for_a_key_that_another_step_removes_meanwhile() -> None:
    over = threading.Event()

    def changes(ctx: Context) -> None:
        while not over.is_set():
            ctx["x"] = 1
            del ctx["x"]

    def reads(ctx: Context) -> set[Any]:
        try:
            return {ctx.get("x", "gone") for _ in range(20_000)}
        finally:
            over.set()

    wf = Workflow("race")
    wf.add_step("changes", changes)
    wf.add_step("reads", reads)
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with Engine() as engine:
            assert engine.run(wf)["reads"] <= {1, "gone"}
    finally:
        sys.setswitchinterval(before)


def test_none_is_a_result(drive: Drive) -> None:
    wf = Workflow("none")
    first = wf.add_step("first", lambda ctx: None)
    wf.add_step("second", lambda ctx: (ctx[first], ctx.get(first, "default"), first in ctx), depends_on=first)
    assert drive(wf)["second"] == (None, None, True)


def test_a_missing_result_says_why(drive: Drive) -> None:
    wf = Workflow("missing")
    skipped = wf.add_step("skipped", lambda ctx: 1, when=lambda ctx: False)
    later = wf.add_step("later", lambda ctx: 1, depends_on="asks")

    def asks(ctx: Context) -> None:
        assert (ctx.get(skipped), ctx.get(later, "no"), later in ctx) == (None, "no", False)
        assert (ctx.get("skipped"), ctx.get("later", "no"), "later" in ctx) == (None, "no", False)
        assert "skipped" not in ctx
        with pytest.raises(NoResult, match="step 'skipped' has no result: it was skipped by its when="):
            ctx[skipped]
        with pytest.raises(
            NoResult, match="step 'asks' has no result of step 'later': 'asks' does not depend on 'later'"
        ):
            ctx[later]
        with pytest.raises(NoResult, match="does not depend on 'later'"):
            ctx["later"]

    wf.add_step("asks", asks, depends_on=skipped)
    drive(wf)


def test_an_undo_may_ask_after_the_step_that_failed(drive: Drive) -> None:
    wf = Workflow("undo asks")
    seen: list[str] = []

    def undo(ctx: Context) -> None:
        try:
            ctx[pay]
        except NoResult as error:
            seen.append(str(error))

    wf.add_step("book", lambda ctx: 1, compensate=undo)
    pay = wf.add_step("pay", lambda ctx: 1 / 0, depends_on="book")
    with pytest.raises(ZeroDivisionError):
        drive(wf)
    assert seen == ["step 'pay' has no result: it failed with ZeroDivisionError."]


def test_a_step_of_another_workflow_is_refused(drive: Drive) -> None:
    foreign = Workflow("other").add_step("foreign", lambda ctx: 1)

    def step(ctx: Context) -> None:
        with pytest.raises(NoResult, match="<Step 'foreign'> belongs to another workflow than 'look'"):
            ctx[foreign]

    look(drive, step)


def test_get_never_raises_also_for_a_step_of_another_workflow(drive: Drive) -> None:
    foreign = Workflow("other").add_step("foreign", lambda ctx: 1)
    look(drive, lambda ctx: [ctx.get(foreign), ctx.get(foreign, 1)])


def test_a_result_cannot_be_assigned(drive: Drive) -> None:
    def step(ctx: Context) -> None:
        with pytest.raises(DefinitionError, match="ctx\\[step\\] is read-only: step 'first' gives its result"):
            ctx[first] = 2

    wf = Workflow("assigns")
    first = wf.add_step("first", lambda ctx: 1)
    wf.add_step("second", step, depends_on=first)
    drive(wf)


def test_contexts_are_compared_by_identity_and_print_no_values(drive: Drive) -> None:
    def step(ctx: Context) -> None:
        assert ctx == ctx  # noqa: PLR0124 - the point
        assert ctx != dict(ctx)
        assert hash(ctx) == hash(ctx)
        assert repr(ctx) == "<Context of step 'look', attempt 1, 2 values>"

    look(drive, step)


def test_contextvars_set_in_a_step_do_not_reach_later_steps(drive: Drive) -> None:
    wf = Workflow("vars")
    wf.add_step("set", lambda ctx: str(current.set("inside")))
    wf.add_step("get", lambda ctx: current.get(), depends_on="set")
    assert drive(wf)["get"] == "outside"
    assert current.get() == "outside"


def test_a_step_sees_the_callers_contextvars(drive: Drive) -> None:
    wf = Workflow("vars")
    wf.add_step("plain", lambda ctx: current.get())
    wf.add_step("retried", lambda ctx: current.get(), retry=2)
    token = current.set("the caller's")
    try:
        assert set(drive(wf).results.values()) == {"the caller's"}
    finally:
        current.reset(token)


def test_the_deadline_of_an_attempt_is_in_its_context(drive: Drive) -> None:
    wf = Workflow("deadline")
    wf.add_step("none", lambda ctx: ctx.deadline)
    wf.add_step("some", lambda ctx: ctx.deadline, timeout=50)
    wf.add_step("less", lambda ctx: ctx.deadline, timeout=50, step_timeout=20)
    run = drive(wf)
    assert run["none"] is None
    assert 25 < run["some"] - run["less"] < 35


def test_nothing_is_cancelled_and_no_error_is_there_in_a_healthy_step(drive: Drive) -> None:
    def step(ctx: Context) -> None:
        assert (ctx.cancelled, ctx.error, ctx.fence) == (False, None, 1)

    look(drive, step)


def test_one_workflow_runs_in_many_threads_with_values_of_their_own() -> None:
    wf = Workflow("many")
    first = wf.add_step("first", lambda ctx: ctx["n"])
    wf.add_step("second", lambda ctx: ctx[first] * 2, depends_on=first)
    with ThreadPoolExecutor(16) as pool:
        runs = list(pool.map(lambda n: Drive("threads")(wf, {"n": n}), range(64)))
    assert [run["second"] for run in runs] == [2 * n for n in range(64)]
    assert len({run.id for run in runs}) == 64
