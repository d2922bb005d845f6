"""Poison (semantics 28): whatever is thrown at it is handled, or refused with an error that names the culprit."""

import asyncio
import functools
import gc
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any, cast

import pytest

from flowcore import (
    NO_KEY,
    AsyncEngine,
    AsyncStepInSyncEngine,
    Context,
    DefinitionError,
    DuplicateStep,
    Engine,
    LoggingHook,
    Retry,
    Run,
    Status,
    Step,
    UnknownDependency,
    Workflow,
)
from flowcore.stores import MemoryStore

from .conftest import Drive, Ledger, notes, run_async

NAMES = {
    "a megabyte": "x" * 1_000_000,
    "NUL": "a\0b",
    "lone surrogate": "a\ud800b",
    "newlines": "a\r\nb",
    "right to left": "a\u202eb",
    "combining": "e" + "\u0301" * 1000,
    "a space": " ",
    "quotes": "\"'`;--",
    "braces": "{0}%s{name}",
    "looks like a note": "flowcore: run",
}


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_names_of_any_length_and_characters_work_everywhere(drive: Drive, name: str, ledger: Ledger) -> None:
    store, wf = MemoryStore(), Workflow(name)
    first = ledger.add(wf, name)
    ledger.add(wf, name + "2", depends_on=name)
    values = {name + "3": name}
    key = name[:1024]
    run = drive(wf, values, store=store, idempotency_key=key, hooks=[LoggingHook(json=True)])
    assert run[first] == run[name] == name
    assert drive(wf, values, store=store, idempotency_key=key).replayed
    for text in (repr(wf), wf.to_mermaid(), wf.to_dot(), run.explain(), repr(first), repr(run)):
        assert len(text) < 5000
        text.encode()
    assert run.to_dict()["steps"][name]["status"] == "success"


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_a_failure_of_a_step_with_any_name_is_reported_in_a_short_note(drive: Drive, name: str, ledger: Ledger) -> None:
    wf = Workflow(name)
    ledger.add(wf, name)
    ledger.add(wf, name + "2", depends_on=name, raises=ValueError("x"))
    with pytest.raises(ValueError, match="x") as caught:
        drive(wf, hooks=[LoggingHook()])
    note = notes(caught.value)
    assert len(note) < 1000
    note.encode()
    assert ledger == [name, name + "2", f"-{name}"]


class Hostile(Exception):
    """An exception that cannot be printed."""

    def __str__(self) -> str:
        raise RuntimeError("no")

    __repr__ = __str__


class Closed(Exception):
    """An exception that takes no attributes."""

    __slots__ = ()

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(name)

    def add_note(self, note: str, /) -> None:
        raise TypeError("no notes")


def with_notes(value: Any) -> Exception:
    error = ValueError("odd notes")
    error.__notes__ = value
    return error


ERRORS: dict[str, Callable[[], Exception]] = {
    "unprintable": Hostile,
    "no attributes": Closed,
    "notes are None": lambda: with_notes(None),
    "notes are a string": lambda: with_notes("text"),
    "notes are a number": lambda: with_notes(7),
    "notes hold anything": lambda: with_notes([1, None, Hostile()]),
    "a megabyte": lambda: ValueError("x" * 1_000_000),
    "surrogates": lambda: ValueError("\ud800"),
    "a group": lambda: ExceptionGroup("group", [ValueError("x")]),
    "no arguments": KeyError,
}


@pytest.mark.parametrize("make", ERRORS.values(), ids=ERRORS)
def test_any_exception_of_a_step_is_raised_as_it_is_and_everything_is_undone(
    drive: Drive, ledger: Ledger, make: Callable[[], Exception]
) -> None:
    error, wf = make(), Workflow("w")
    ledger.add(wf, "a")
    ledger.add(wf, "b", depends_on="a", raises=error, retry=2)
    with pytest.raises(type(error)) as caught:
        drive(wf, idempotency_key="k", hooks=[LoggingHook()])
    assert caught.value is error
    assert ledger == ["a", "b", "b", "-a"]
    run = drive(wf, check=False)
    run.explain()
    run.to_dict()


@pytest.mark.parametrize("make", ERRORS.values(), ids=ERRORS)
def test_any_exception_of_an_undo_is_reported(drive: Drive, ledger: Ledger, make: Callable[[], Exception]) -> None:
    error, wf = make(), Workflow("w")
    ledger.add(wf, "a", undo_raises=error)
    ledger.add(wf, "b", depends_on="a", raises=ValueError("b"))
    run = drive(wf, idempotency_key="k", hooks=[LoggingHook()], check=False)
    assert (run.status, run.steps["a"].undo_error) == (Status.COMPENSATION_FAILED, error)
    run.explain()
    run.to_dict()


def test_one_exception_object_raised_again_and_again_gathers_no_notes(drive: Drive) -> None:
    error = ValueError("the same")

    def step(ctx: Context) -> None:
        raise error

    wf = Workflow("w")
    wf.add_step("a", step)
    for _ in range(5):
        drive(wf, check=False)
    assert notes(error).count("flowcore:") == 1


def test_the_exceptions_own_notes_are_kept(drive: Drive, ledger: Ledger) -> None:
    error = ValueError("x")
    error.add_note("mine")
    wf = Workflow("w")
    ledger.add(wf, "a", raises=error)
    drive(wf, check=False)
    assert error.__notes__[0] == "mine"
    assert len(error.__notes__) == 2


RESULTS: list[Any] = [
    float("nan"),
    object(),
    type,
    NotImplemented,
    ...,
    StopIteration(),
    lambda: 1,
    10**5000,
    {}.keys(),
]


@pytest.mark.parametrize("value", RESULTS, ids=lambda value: type(value).__name__)
def test_any_value_is_a_result(drive: Drive, value: Any) -> None:
    wf = Workflow("w")
    wf.add_step("a", lambda ctx: value)
    wf.add_step("b", lambda ctx: ctx["a"] is value, depends_on="a")
    run = drive(wf)
    assert (run["a"] is value, run["b"]) == (True, True)


def test_an_exception_returned_is_a_result_like_any_other(drive: Drive, ledger: Ledger) -> None:
    wf = Workflow("w")
    ledger.add(wf, "a", first=lambda ctx: ValueError("returned"))
    assert isinstance(drive(wf)["a"], ValueError)


# -- coroutines and generators -----------------------------------------------------------------------------------------


async def fetch(ctx: Context) -> str:
    await asyncio.sleep(0)
    return "fetched"


def test_an_async_step_is_refused_by_engine_before_anything_runs(ledger: Ledger) -> None:
    wf = Workflow("mixed")
    ledger.add(wf, "a")
    wf.add_step("fetch", fetch, depends_on="a")
    with Engine() as engine, pytest.raises(AsyncStepInSyncEngine) as caught:
        engine.run(wf)
    assert str(caught.value) == "step 'fetch' of workflow 'mixed' is async: run it on AsyncEngine."
    with Engine() as engine, pytest.raises(AsyncStepInSyncEngine):
        engine.submit(wf)
    assert ledger == []


def test_an_async_undo_or_callable_object_counts_as_async() -> None:
    class Fetcher:
        async def __call__(self, ctx: Context) -> str:
            return "fetched"

    undo, call = Workflow("undo"), Workflow("callable")
    undo.add_step("a", lambda ctx: 1, compensate=fetch)
    call.add_step("a", Fetcher())
    for wf in (undo, call):
        with Engine() as engine, pytest.raises(AsyncStepInSyncEngine, match="AsyncEngine"):
            engine.run(wf)
    assert asyncio.run(AsyncEngine().run(call))["a"] == "fetched"


@pytest.mark.parametrize("hooks", [(), (lambda event: None,)], ids=["silent", "watched"])
def test_a_plain_function_that_answers_a_coroutine_is_refused_by_engine_in_one_sentence(
    ledger: Ledger, hooks: Any
) -> None:
    wf = Workflow("sneaky")
    ledger.add(wf, "a")
    wf.add_step("b", lambda ctx: fetch(ctx), depends_on="a", retry=3)  # noqa: PLW0108 - the point
    with Engine(hooks=hooks) as engine, pytest.raises(AsyncStepInSyncEngine) as caught:
        engine.run(wf)
    assert str(caught.value) == "step 'b' returned a coroutine, which Engine cannot await. Run it on AsyncEngine."
    assert ledger == ["a", "-a"]


def test_a_plain_undo_that_answers_a_coroutine_has_failed_on_engine(ledger: Ledger) -> None:
    wf = Workflow("sneaky")
    wf.add_step("a", lambda ctx: 1, compensate=lambda ctx: fetch(ctx))  # noqa: PLW0108 - the point
    wf.add_step("b", lambda ctx: 1 / 0, depends_on="a")
    with Engine() as engine:
        run = engine.run(wf, check=False)
    assert isinstance(run.steps["a"].undo_error, AsyncStepInSyncEngine)


def test_a_predicate_that_answers_a_coroutine_is_refused_by_engine(ledger: Ledger) -> None:
    wf = Workflow("sneaky")
    sneaky: Any = lambda ctx: fetch(ctx)  # noqa: E731, PLW0108 - the point
    wf.add_step("a", lambda ctx: 1, when=sneaky)
    with Engine() as engine, pytest.raises(AsyncStepInSyncEngine):
        engine.run(wf)


def test_asyncengine_awaits_a_coroutine_that_a_plain_function_answers() -> None:
    async def main() -> None:
        wf = Workflow("sneaky")
        wf.add_step("a", lambda ctx: fetch(ctx), compensate=lambda ctx: fetch(ctx))  # noqa: PLW0108 - the point
        wf.add_step("b", lambda ctx: fetch(ctx), timeout=60, retry=2)  # noqa: PLW0108
        wf.add_step("c", lambda ctx: 1 / 0, depends_on=["a", "b"])
        run = await AsyncEngine().run(wf, check=False)
        assert (run["a"], run["b"], run.undone) == ("fetched", "fetched", ("a",))

    run_async(main)


class Later:
    """An awaitable that is no coroutine, as calls of RPC libraries and requests of HTTP clients are."""

    def __init__(self, value: Any) -> None:
        self._value = value

    def __await__(self) -> Any:
        yield from asyncio.sleep(0).__await__()
        return self._value()


def awaitables(ledger: Ledger) -> Workflow:
    """A step, a predicate and an undo: each returns an awaitable."""

    def later(what: str) -> Callable[[Context], Any]:
        def noted() -> bool:
            ledger.append(what)
            return True

        return lambda ctx: Later(noted)

    wf = Workflow("awaitables")
    wf.add_step("a", later("a"), compensate=later("-a"))
    wf.add_step("b", lambda ctx: Later(lambda: 1 / 0), depends_on="a", when=later("asked"), timeout=60, retry=2)
    return wf


@pytest.mark.parametrize("store", [None, MemoryStore(strict=True)], ids=["no store", "a strict store"])
@pytest.mark.parametrize("hooks", [(), (lambda event: None,)], ids=["silent", "watched"])
def test_asyncengine_awaits_what_a_plain_function_returns_if_it_can_be_awaited(
    ledger: Ledger, hooks: Any, store: Any
) -> None:
    async def main() -> None:
        run = await AsyncEngine(hooks=hooks, store=store).run(awaitables(ledger), check=False)
        assert isinstance(run.error, ZeroDivisionError)
        assert (run.steps["b"].attempts, run.undone) == (2, ("a",))
        assert ledger == ["a", "asked", "-a"]

    run_async(main)


@pytest.mark.parametrize("hooks", [(), (lambda event: None,)], ids=["silent", "watched"])
def test_an_awaitable_that_a_plain_function_returns_is_refused_by_engine(ledger: Ledger, hooks: Any) -> None:
    with Engine(hooks=hooks) as engine, pytest.raises(AsyncStepInSyncEngine) as caught:
        engine.run(awaitables(ledger))
    assert (
        str(caught.value) == "step 'a' returned an awaitable Later, which Engine cannot await. Run it on AsyncEngine."
    )
    undo = Workflow("undo")
    undo.add_step("a", lambda ctx: 1, compensate=lambda ctx: Later(int))
    undo.add_step("b", lambda ctx: 1 / 0, depends_on="a")
    with Engine(hooks=hooks) as engine:
        run = engine.run(undo, check=False)
    assert isinstance(run.steps["a"].undo_error, AsyncStepInSyncEngine)


def test_a_timeout_holds_for_a_coroutine_that_a_plain_function_answers_too() -> None:
    async def slow(ctx: Context) -> None:
        await asyncio.sleep(3600)

    async def main() -> None:
        wf = Workflow("sneaky")
        wf.add_step("a", lambda ctx: slow(ctx), timeout=0.02)  # noqa: PLW0108 - the point
        run = await AsyncEngine().run(wf, check=False)
        assert run.steps["a"].status is Status.TIMEOUT

    run_async(main)


def generates(ctx: Context) -> Any:
    yield 1


async def generates_async(ctx: Context) -> Any:
    yield 1


class Generates:
    def __call__(self, ctx: Context) -> Any:
        yield 1


class Callables:
    def step(self, ctx: Context) -> int:
        return 1

    @staticmethod
    def none() -> int:
        return 1

    def __call__(self, ctx: Context, more: int = 2) -> int:
        return 1


def injects(function: Any) -> Any:
    @functools.wraps(function)
    def inner(ctx: Context) -> Any:
        return function(ctx, "a session")

    return inner


NO_STEPS: dict[str, tuple[Any, str]] = {
    "a generator": (generates, "is a generator function"),
    "an async generator": (generates_async, "is a generator function"),
    "a partial of a generator": (functools.partial(generates), "is a generator function"),
    "an object whose call is a generator": (Generates(), "is a generator function"),
    "no parameter": (lambda: 1, "must take exactly one argument, ctx"),
    "two parameters": (lambda ctx, more: 1, "must take exactly one argument, ctx"),
    "a keyword-only parameter": (lambda *, ctx: 1, "must take exactly one argument, ctx"),
    "a required keyword": (lambda ctx, *, more: 1, "must take exactly one argument, ctx"),
    "an unbound method": (Callables.step, "must take exactly one argument, ctx"),
    "a static method": (Callables.none, "must take exactly one argument, ctx"),
    "a full partial": (functools.partial(lambda ctx: 1, 1), "must take exactly one argument, ctx"),
    "no function": (7, "must be a function of ctx, not 7"),
}
STEPS: dict[str, Any] = {
    "a default": lambda ctx, more=1: 1,
    "any arguments": lambda *args, **more: 1,
    "a default keyword": lambda ctx, *, more=1: 1,
    "a bound method": Callables().step,
    "an object": Callables(),
    "a partial": functools.partial(lambda more, ctx: 1, 1),
    "a decorator that adds an argument": injects(lambda ctx, session: 1),
    "a builtin": dict,
}


@pytest.mark.parametrize("what", NO_STEPS)
def test_a_function_that_could_not_do_its_work_is_refused_where_it_is_given(what: str) -> None:
    function, why = NO_STEPS[what]

    def define(**options: Any) -> None:
        Workflow("w").add_step("s", lambda ctx: 1, **options)

    with pytest.raises(DefinitionError, match=why):
        Workflow("w").add_step("s", function)
    for option in ("compensate", "when", "verify"):
        with pytest.raises(DefinitionError, match=f"step 's'.*{why}"):
            define(**{option: function})


@pytest.mark.parametrize("what", STEPS)
def test_a_function_that_can_be_called_with_ctx_alone_is_a_step(what: str, drive: Drive) -> None:
    wf = Workflow("w")
    wf.add_step("s", STEPS[what])
    assert drive(wf).status is Status.SUCCESS


async def _key(values: Any) -> str:
    return "k"


@pytest.mark.parametrize("option", ["idempotency_key", "fingerprint"])
@pytest.mark.parametrize("function", [_key, lambda: "k", 7], ids=["async", "no argument", "no function"])
def test_a_key_or_fingerprint_function_that_could_not_answer_is_refused(option: str, function: Any) -> None:
    with pytest.raises(DefinitionError, match=f"{option}= of workflow 'w'"):
        Workflow("w", **{option: function})


# -- size --------------------------------------------------------------------------------------------------------------


def in_step(count: int, go: Callable[[int], Run]) -> Run:
    """Run so many steps, after an eighth of them: the CPU time must grow with the number of steps, not with its square."""

    def timed(number: int) -> tuple[Run, float]:
        began = time.process_time()
        return go(number), time.process_time() - began

    gc.collect()
    gc.disable()  # How long a collection takes depends on what other tests have left in memory.
    try:
        _, brief = timed(count // 8)
        run, long = timed(count)
    finally:
        gc.enable()
    assert long < 24 * brief, f"{count // 8:,} steps take {brief:.3f} s, {count:,} steps {long:.3f} s"
    return run


def chain(length: int, fn: Callable[[Context], Any], *, fails: bool = False, **options: Any) -> Workflow:
    wf = Workflow("long", **options)
    before: list[Step[Any]] = []
    for number in range(length):
        before = [wf.add_step(str(number), fn, depends_on=before, compensate=lambda ctx: None)]
    if fails:
        wf.add_step("fails", lambda ctx: 1 / 0, depends_on=before)
    return wf


@pytest.mark.no_cover  # Under coverage these would take twice the time, for branches that other tests come to.
def test_a_chain_of_20_000_steps_runs_on_engine(full: bool) -> None:
    count = 100_000 if full else 20_000
    run = in_step(count, lambda number: Engine().run(chain(number, lambda ctx: None)))
    assert len(run.results) == count


@pytest.mark.no_cover
def test_a_chain_of_20_000_async_steps_runs_on_asyncengine(full: bool) -> None:
    async def step(ctx: Context) -> None:
        pass

    count = 100_000 if full else 20_000
    run = in_step(count, lambda number: asyncio.run(AsyncEngine().run(chain(number, step))))
    assert len(run.results) == count


@pytest.mark.no_cover
@pytest.mark.parametrize("parallel_undo", [False, True])
def test_a_chain_of_10_000_steps_is_undone(drive: Drive, parallel_undo: bool) -> None:
    count = 2_000 if drive.kind == "asyncio" else 10_000

    def go(number: int) -> Run:
        return drive(chain(number, lambda ctx: None, fails=True, parallel_undo=parallel_undo), check=False)

    assert len(in_step(count, go).undone) == count


@pytest.mark.no_cover
def test_a_fan_out_of_5_000_steps(drive: Drive) -> None:
    def go(number: int) -> Run:
        wf = Workflow("wide")
        first = wf.add_step("first", lambda ctx: 0)
        middle = [wf.add_step(str(index), lambda ctx: 1, depends_on=first) for index in range(number)]
        wf.add_step("last", lambda ctx: sum(ctx[step] for step in middle), depends_on=middle)
        return drive(wf)

    assert in_step(5_000, go)["last"] == 5_000


def test_one_workflow_is_run_by_64_threads_at_once(ledger: Ledger) -> None:
    wf = Workflow("shared")
    wf.add_step("a", lambda ctx: ctx["n"], compensate=lambda ctx: ledger.append("undone"))
    wf.add_step("b", lambda ctx: ctx["a"] * 2, depends_on="a", retry=2)
    wf.add_step("c", lambda ctx: ctx["a"] * 3, depends_on="a", timeout=60)
    wf.add_step("d", lambda ctx: ctx["b"] + ctx["c"] if ctx["n"] % 2 else 1 / 0, depends_on=["b", "c"])
    with Engine() as engine, ThreadPoolExecutor(64) as pool:
        runs = list(pool.map(lambda n: engine.run(wf, {"n": n}, check=False), range(256)))
    for n, run in enumerate(runs):
        assert run.status is (Status.SUCCESS if n % 2 else Status.COMPENSATED)
        assert not n % 2 or run["d"] == 5 * n
    assert len(ledger) == 128


def test_64_runs_at_once_on_one_asyncengine() -> None:
    async def main() -> None:
        wf = Workflow("shared")
        wf.add_step("a", fetch)
        wf.add_step("b", lambda ctx: ctx["n"], depends_on="a")
        async with AsyncEngine(max_workers=4) as engine:
            runs = await asyncio.gather(*(engine.run(wf, {"n": n}) for n in range(64)))
        assert [run["b"] for run in runs] == list(range(64))

    run_async(main)


# -- definitions that make no sense ------------------------------------------------------------------------------------


class Unprintable:
    def __str__(self) -> str:
        raise RuntimeError("no")

    __repr__ = __str__


class Ambiguous:
    """Like an array, it has no truth value that tells whether it equals another object."""

    __hash__ = None  # type: ignore[assignment,unused-ignore]

    def __eq__(self, other: object) -> Any:
        raise ValueError("ambiguous")


WRONG_STEPS: list[tuple[dict[str, Any], str]] = [
    ({"name": ""}, "a step needs a name that is a non-empty string"),
    ({"name": 7}, "a step needs a name that is a non-empty string, not .*7"),
    ({"fn": 7}, "a step must be a function of ctx, not .*7"),
    ({"fn": None}, "a step must be a function of ctx, not .*None"),
    ({"depends_on": 7}, "depends_on of step 'a' must be steps or names, not .*7"),
    ({"depends_on": [7]}, "depends_on of step 'a' must be steps or names, not .*7"),
    ({"depends_on": None}, "depends_on of step 'a' must be steps or names, not .*None"),
    ({"timeout": -1}, "timeout of step 'a' must be seconds"),
    ({"timeout": "1"}, "timeout of step 'a' must be seconds"),
    ({"timeout": float("nan")}, "timeout of step 'a' must be seconds"),
    ({"timeout": timedelta(seconds=-1)}, "timeout of step 'a' must be seconds"),
    ({"step_timeout": True}, "step_timeout of step 'a' must be seconds"),
    ({"timeout": timedelta}, "timeout of step 'a' must be seconds"),
    ({"retry": 0}, "retry of step 'a' counts the first attempt too: 1 or more, not 0"),
    ({"retry": "3"}, "retry of step 'a' must be a number of attempts or a Retry, not '3'"),
    ({"retires": 3, "tmieout": 1}, "step 'a' has no option 'retires', 'tmieout'"),
    ({"pivot": "no"}, "pivot of step 'a' must be True or False, not 'no'"),
    ({"effect": None}, "effect of step 'a' must be True or False, not None"),
    ({"when": 7}, "when of step 'a' must be a function of ctx, not .*7"),
    ({"verify": 7}, "verify of step 'a' must be a function of ctx, not .*7"),
    ({"undo": "never"}, "undo of step 'a' must be 'done' or 'attempted', not 'never'"),
    ({"undo": Ambiguous()}, "undo of step 'a' must be 'done' or 'attempted', not "),
    ({"on_crash": "pray"}, "on_crash of step 'a' must be 'retry' or 'undo' or 'hold', not 'pray'"),
    ({"compensate": 7}, "the undo of step 'a' must be a function of ctx, not .*7"),
    ({"depends_on": Unprintable()}, "depends_on of step 'a' must be steps or names"),
    ({"timeout": Unprintable()}, "timeout of step 'a' must be seconds"),
]


@pytest.mark.parametrize(
    ("wrong", "sentence"), WRONG_STEPS, ids=lambda value: str(list(value)) if isinstance(value, dict) else ""
)
def test_a_wrong_option_of_a_step_is_refused_by_name_and_leaves_no_step_behind(
    wrong: dict[str, Any], sentence: str
) -> None:
    wf = Workflow("w")
    options: dict[str, Any] = {"name": "a", "fn": lambda ctx: 1} | wrong
    with pytest.raises(DefinitionError, match=sentence):
        wf.add_step(**options)
    assert wf.steps == ()


WRONG_WORKFLOWS: list[tuple[dict[str, Any], str]] = [
    ({"name": ""}, "a workflow needs a name that is a non-empty string"),
    ({"name": None}, "a workflow needs a name that is a non-empty string"),
    ({"deadline": -1}, "deadline of workflow 'w' must be seconds"),
    ({"on_failure": "explode"}, "on_failure= must be 'wait' or 'cancel', not 'explode'"),
    ({"undo": "all"}, "undo= must be 'done' or 'attempted' or 'never', not 'all'"),
    ({"max_parallel": 0}, "max_parallel= must be a whole number from 1 up"),
    ({"max_parallel": 1.5}, "max_parallel= must be a whole number from 1 up"),
    ({"max_parallel": True}, "max_parallel= must be a whole number from 1 up"),
    ({"parallel_undo": "no"}, "parallel_undo= must be True or False, not 'no'"),
    ({"fingerprint": "customer"}, "fingerprint= of workflow 'w' must be a function of the initial values"),
    ({"fingerprint": NO_KEY}, "fingerprint= of workflow 'w' must be a function of the initial values"),
    ({"idempotency_key": ""}, "idempotency_key= of workflow 'w': an idempotency key must not be empty"),
    ({"idempotency_key": "k" * 1025}, "idempotency_key= of workflow 'w': an idempotency key has 1,025 characters"),
]


@pytest.mark.parametrize(("wrong", "sentence"), WRONG_WORKFLOWS, ids=lambda value: str(value)[:60])
def test_a_wrong_option_of_a_workflow_is_refused_by_name(wrong: dict[str, Any], sentence: str) -> None:
    with pytest.raises(DefinitionError, match=sentence):
        cast("Any", Workflow)(**({"name": "w"} | wrong))


WRONG_ENGINES: list[tuple[dict[str, Any], str]] = [
    ({"max_workers": 0}, "max_workers= must be a whole number from 1 up"),
    ({"max_workers": "4"}, "max_workers= must be a whole number from 1 up"),
    ({"max_workers": True}, "max_workers= must be a whole number from 1 up"),
    ({"grace": -1}, "grace= must be seconds"),
    ({"lease": None}, "lease= must be seconds"),
    ({"recover_every": -1}, "recover_every= must be seconds"),
    ({"workflows": Workflow("w")}, "workflows= must be a list of workflows, not .*'w'"),
    ({"workflows": ["w"]}, "workflows= contains 'w', which is not a workflow"),
    ({"workflows": "w"}, "workflows= must be a list of workflows, not 'w'"),
    ({"workflows": None}, "workflows= must be a list of workflows, not None"),
    (
        {"store": "redis://user:" + "hidden" + "@localhost"},
        "store= must be a store such as .*, not 'redis://localhost'",
    ),
]


@pytest.mark.parametrize("engine", [Engine, AsyncEngine])
@pytest.mark.parametrize(("wrong", "sentence"), WRONG_ENGINES, ids=str)
def test_a_wrong_option_of_an_engine_is_refused_by_name(engine: Any, wrong: dict[str, Any], sentence: str) -> None:
    with pytest.raises(DefinitionError, match=sentence):
        engine(**wrong)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"wait": -1}, "wait= must be seconds"),
        ({"deadline": "soon"}, "deadline= must be seconds"),
        ({"once": "no", "idempotency_key": "k"}, "once= must be True or False, not 'no'"),
        ({"check": "no"}, "check= must be True or False, not 'no'"),
        ({"until": []}, r"until= must be 'end' or 'waiting', not \[\]"),
    ],
)
def test_a_wrong_option_of_a_run_is_refused_by_name(drive: Drive, wrong: dict[str, Any], sentence: str) -> None:
    with pytest.raises(DefinitionError, match=sentence):
        drive(Workflow("w"), **wrong)


@pytest.mark.parametrize("engine_type", [Engine, AsyncEngine])
@pytest.mark.parametrize("wrong", ["tree", []], ids=repr)
def test_a_wrong_propagation_is_refused_by_name(engine_type: type[Engine | AsyncEngine], wrong: Any) -> None:
    async def main() -> None:
        engine = engine_type()
        with pytest.raises(DefinitionError, match="propagation= must be 'link' or 'child', not"):
            await cast("Any", engine).submit(Workflow("w"), propagation=wrong)

    asyncio.run(main())


@pytest.mark.parametrize("wrong", [{"other": "x"}, {"other": None}, {"prefix": 5}])
def test_what_can_not_be_included_is_refused_by_name(wrong: dict[str, Any]) -> None:
    other, wf = Workflow("other"), Workflow("w")
    other.add_step("a", lambda ctx: 1)
    with pytest.raises(DefinitionError, match=r"include\((prefix=\) must be a string|\) takes a Workflow)"):
        cast("Any", wf).include(**({"other": other} | wrong))
    assert wf.steps == ()


@pytest.mark.parametrize("wrong", [7, Workflow], ids=repr)
def test_what_is_no_workflow_is_refused_in_one_sentence(drive: Drive, wrong: Any) -> None:
    with pytest.raises(DefinitionError, match="workflow"):
        drive(wrong)


def test_two_steps_cannot_share_a_name() -> None:
    wf = Workflow("w")
    wf.add_step("a", lambda ctx: 1)
    with pytest.raises(DuplicateStep, match="workflow 'w' already has a step 'a'"):
        wf.add_step("a", lambda ctx: 2)


def test_a_step_object_is_not_registered_again() -> None:
    wf = Workflow("w")
    step = wf.add_step("a", lambda ctx: 1)
    with pytest.raises(DefinitionError, match="<Step 'a'> is a step already: use wf"):
        wf.add_step("b", step)


def test_a_dependency_on_another_workflows_step_is_refused() -> None:
    foreign = Workflow("other").add_step("foreign", lambda ctx: 1)
    with pytest.raises(UnknownDependency, match="depends on <Step 'foreign'> of another workflow: use wf"):
        Workflow("w").add_step("a", lambda ctx: 1, depends_on=foreign)


def test_a_step_has_one_undo() -> None:
    step = Workflow("w").add_step("a", lambda ctx: 1, compensate=lambda ctx: None)
    with pytest.raises(DefinitionError, match="step 'a' already has an undo"):
        step.compensate(lambda ctx: None)


def test_a_function_without_a_name_needs_one() -> None:
    with pytest.raises(DefinitionError, match="a step needs a name"):
        Workflow("w").step(functools.partial(print))
    assert Workflow("w").step(print).name == "print"


def test_a_step_that_is_called_is_just_its_function() -> None:
    @Workflow("w").step(timeout=1, retry=Retry(3))
    def double(ctx: Context) -> Any:
        return ctx * 2  # type: ignore[operator,unused-ignore]

    assert double(21) == 42  # type: ignore[arg-type,unused-ignore]


def test_definitions_may_be_made_by_many_threads_at_once() -> None:
    wf = Workflow("w")
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda number: wf.add_step(str(number), lambda ctx: 1), range(500)))
    assert len(wf.steps) == 500
    assert len(Engine().run(wf).results) == 500
